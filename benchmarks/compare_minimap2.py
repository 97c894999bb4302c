"""Compare our SAM records with the minimap2 program's for the same sequences: flag, place, MAPQ, CIGAR, NM, AS, de, MD.

    python benchmarks/compare_minimap2.py --minimap2 PATH --data ../shared/data

Build the program outside this project, in the version that mappy wraps (its source package has main.c and a Makefile:
`make minimap2`). Prints Markdown. The exit code is 1 if less than 99% of a set's records are equal, or a difference
fits no class.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

import numpy as np
import pysam

from porestream.client.outputs.records import header, records
from porestream.client.reads import Alignment as ClientAlignment
from porestream.client.reads import (
    CalledPart,
    CallerIdentity,
    ReadInfo,
    ReadResult,
    ReadStatus,
    ReferenceSequence,
    RunInfo,
)
from porestream.kernels.align.aligner import PRESETS, load_reference

SETS = {"sarscov2_r941": "reference.fasta", "klebsiella_r94": "HS11286.fna.gz"}
MODEL = "models/dna_r9.4.1_e8.1_fast@v3.4"
SIMULATED_READS = 3000
LEAST_EQUAL = 0.99
# As in the service: soft-clipped supplementary records (-Y) and MD; otherwise the preset's defaults.
FLAGS = ["-a", "-Y", "--MD", "-t", "2"]
_SECONDARY, _SUPPLEMENTARY, _ROLES, _UNMAPPED = 0x100, 0x800, 0x900, 0x4
_DE_STEP = 1e-4
_COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The compared parts of a record; `end` is exclusive, and `tags` are those that both sides write."""

    name: str
    flag: int
    contig: str
    start: int
    end: int
    mapq: int
    cigar: str
    tags: tuple[tuple[str, object], ...] = ()

    @property
    def score(self) -> object:
        """The AS tag; None for an unmapped record."""
        return dict(self.tags).get("AS")

    def overlaps(self, other: "Record") -> bool:
        """Whether both lie on the same strand and share bases of the reference."""
        same = (self.contig, self.flag & 16) == (other.contig, other.flag & 16)
        return same and self.start < other.end and other.start < self.end


def classify(ours: Sequence[Record], theirs: Sequence[Record]) -> Counter[str]:
    """Count how many of minimap2's records of one read equal one of ours, and classify the others.

    The classes of differences, in this order; every record on either side is counted once:

    - "tags": equal except for NM, AS, de or MD.
    - "MAPQ": same place and CIGAR, different MAPQ.
    - "role": same place and CIGAR, but one is primary and the other secondary, say, as happens with equal scores.
    - "tie": overlapping, with the same score, but a different CIGAR or place.
    - "secondary": a secondary record that only one side has.
    - "unclassified": anything else.
    """
    found: Counter[str] = Counter()
    left, right = list(ours), list(theirs)
    for label, same in _CLASSES:
        for record in list(right):
            match = next((other for other in left if same(other, record)), None)
            if match is not None:
                found[label] += 1
                left.remove(match)
                right.remove(record)
    for record in [*left, *right]:
        found["secondary" if record.flag & _SECONDARY else "unclassified"] += 1
    return found


def _same_tags(a: Record, b: Record) -> bool:
    """Return whether the tags are equal; de may differ by rounding, as minimap2 writes four decimal places."""
    left, right = dict(a.tags), dict(b.tags)
    divergences = float(str(left.pop("de", 0))), float(str(right.pop("de", 0)))
    return left == right and abs(divergences[0] - divergences[1]) < _DE_STEP


def _place(record: Record) -> tuple[object, ...]:
    return record.contig, record.start, record.cigar, record.flag & ~_ROLES


_CLASSES = (
    ("equal", lambda a, b: _place(a) == _place(b) and (a.flag, a.mapq) == (b.flag, b.mapq) and _same_tags(a, b)),
    ("tags", lambda a, b: _place(a) == _place(b) and (a.flag, a.mapq) == (b.flag, b.mapq)),
    ("MAPQ", lambda a, b: _place(a) == _place(b) and a.flag == b.flag),
    ("role", lambda a, b: _place(a) == _place(b)),
    ("tie", lambda a, b: a.overlaps(b) and a.score == b.score),
)


def compare(ours: Iterable[Record], theirs: Iterable[Record]) -> Counter[str]:
    """Run `classify` on each read, and add up the counts."""
    by_name: dict[str, tuple[list[Record], list[Record]]] = {}
    for side, some in enumerate((ours, theirs)):
        for record in some:
            by_name.setdefault(record.name, ([], []))[side].append(record)
    return sum((classify(*pair) for pair in by_name.values()), Counter())


def records_of(path: Path) -> Iterator[Record]:
    """Yield the records of a SAM or BAM."""
    with pysam.AlignmentFile(str(path), check_sq=False) as file:
        for record in file.fetch(until_eof=True):
            tags = tuple((tag, record.get_tag(tag)) for tag in ("NM", "AS", "de", "MD") if record.has_tag(tag))
            yield Record(
                name=str(record.query_name),
                flag=record.flag,
                contig=record.reference_name or "*",
                start=record.reference_start,
                end=record.reference_end or 0,
                mapq=record.mapping_quality,
                cigar=record.cigarstring or "*",
                tags=tags,
            )


def run_minimap2(program: Path, preset: str, reference: Path, fasta: Path, sam: Path) -> None:
    """Align with the minimap2 program."""
    with sam.open("w") as file:
        command = [program, *FLAGS, "-x", preset, reference, fasta]
        subprocess.run(list(map(str, command)), stdout=file, stderr=subprocess.DEVNULL, check=True)


def write_called(bam: Path, fasta: Path) -> None:
    """Write the sequences of a BAM to a FASTA, in sequencing orientation."""
    with pysam.AlignmentFile(str(bam), check_sq=False) as file, fasta.open("w") as out:
        for record in file:
            if not record.flag & _ROLES:
                out.write(f">{record.query_name}\n{record.get_forward_sequence()}\n")


def simulate(reference: Path, seed: int = 1) -> dict[str, str]:
    """Make reads of 0.2-10 kb with 1-12% errors; 10% are chimeric, 10% have an indel of 50-800 bases."""
    rng = np.random.default_rng(seed)
    with pysam.FastxFile(str(reference)) as file:
        genome = max(((entry.sequence or "").upper() for entry in file), key=len).encode()
    reads = {}
    for number in range(SIMULATED_READS):
        pieces = [_piece(genome, rng, int(rng.integers(200, 10_000)))]
        if number % 10 == 0:
            pieces.append(_piece(genome, rng, int(rng.integers(500, 3000))))
        bases = b"".join(pieces)
        if number % 10 == 1:
            at, size = int(rng.integers(len(bases))), int(rng.integers(50, 800))
            middle = rng.choice(list(b"ACGT"), size).astype(np.uint8).tobytes() if rng.random() < 0.5 else b""
            bases = bases[:at] + middle + bases[at + (0 if middle else size) :]
        reads[str(UUID(int=number + 1))] = _with_errors(bases, rng, rng.uniform(0.01, 0.12)).decode()
    return reads


def _piece(genome: bytes, rng: np.random.Generator, length: int) -> bytes:
    start = int(rng.integers(len(genome) - length))
    piece = genome[start : start + length]
    return piece.translate(_COMPLEMENT)[::-1] if rng.random() < 0.5 else piece


def _with_errors(bases: bytes, rng: np.random.Generator, rate: float) -> bytes:
    kinds = rng.choice(4, len(bases), p=[1 - rate, rate / 3, rate / 3, rate / 3])
    others = rng.choice(list(b"ACGT"), len(bases)).astype(np.uint8)
    out = bytearray()
    for base, kind, other in zip(bases, kinds, others, strict=True):
        if kind == 0:
            out.append(base)
        elif kind == 1:
            out.append(int(other))
        elif kind == 2:
            out += bytes((base, int(other)))
    return bytes(out)


def align_here(reads: dict[str, str], reference: Path, preset: str, sam: Path, cache_dir: Path) -> None:
    """Write records as the service and its client make them, without a basecaller."""
    aligner = load_reference(reference, preset=preset, cache_dir=cache_dir, threads=2)
    sequences = tuple(ReferenceSequence(s.name, s.length, s.md5 or "") for s in aligner.reference.sequences)
    identity = CallerIdentity(
        model="m",
        model_sha256="",
        reference=reference.name,
        reference_sha256="",
        preset=preset,
        precision="",
        device_class="",
        version="",
    )
    run = RunInfo(run_id="r", sample_rate_hz=4000)
    head = header([run], identity, sequences)
    with pysam.AlignmentFile(str(sam), "w", header=head) as file:
        for name, bases in reads.items():
            alignments = tuple(
                ClientAlignment(
                    flag=a.flag,
                    reference_name=a.reference_name,
                    reference_start=a.reference_start,
                    reference_end=a.reference_end,
                    mapping_quality=a.mapping_quality,
                    cigar=tuple(a.cigar.tolist()),
                    score=a.score,
                    edit_distance=a.edit_distance,
                    md=a.md,
                    divergence=a.divergence,
                )
                for a in aligner.align(name, bases, md=True)
            )
            read_id = UUID(name)
            part = CalledPart(
                read_id=read_id,
                sequence=bases,
                qualities=bytes(len(bases)),
                mean_qscore=9.0,
                samples=0,
                trimmed_samples=0,
                stride_samples=5,
                moves=b"",
                alignments=alignments,
            )
            result = ReadResult(
                info=ReadInfo(read_id=read_id, run=run, offset_adc=0.0, scale_pa_per_adc=1.0),
                status=ReadStatus.CALLED,
                detail="",
                signal_samples=0,
                parts=(part,),
            )
            for record in records(result, head, "m"):
                file.write(record)


def main() -> int:
    """Compare all sets with both presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minimap2", type=Path, required=True, help="the minimap2 program")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the sets and the model")
    arguments = parser.parse_args()
    done = subprocess.run([arguments.minimap2, "--version"], capture_output=True, text=True, check=True)
    print(f"minimap2 {done.stdout.strip()}, mappy {version('mappy')}; `minimap2 {' '.join(FLAGS)} -x PRESET`\n")
    labels = [label for label, _ in _CLASSES[1:]] + ["secondary", "unclassified"]
    print(f"| sequences | preset | records | equal | {' | '.join(labels)} |")
    print(f"| --- | --- | --- | --- |{' --- |' * len(labels)}")
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for data_set, reference_name in [*SETS.items(), ("simulated", "")]:
            is_real = data_set in SETS
            reference = arguments.data / (
                f"{data_set}/{reference_name}" if is_real else "klebsiella_r94/HS11286.fna.gz"
            )
            for preset in PRESETS:
                ours, fasta, theirs = (folder / f"{data_set}.{suffix}" for suffix in ("bam", "fasta", "sam"))
                if is_real:
                    reads_file, model = arguments.data / data_set / "reads.pod5", arguments.data / MODEL
                    command = [sys.executable, "-m", "porestream.cli.main", "call", reads_file, "--model", model]
                    command += ["--reference", reference, "--preset", preset, "-o", ours]
                    subprocess.run(list(map(str, command)), check=True, stderr=subprocess.DEVNULL)
                    write_called(ours, fasta)
                else:
                    reads = simulate(reference)
                    fasta.write_text("".join(f">{read}\n{bases}\n" for read, bases in reads.items()))
                    ours = folder / "ours.sam"
                    align_here(reads, reference, preset, ours, folder)
                run_minimap2(arguments.minimap2, preset, reference, fasta, theirs)
                counts = compare(records_of(ours), records_of(theirs))
                total = sum(counts.values())
                share = counts["equal"] / total
                good &= share >= LEAST_EQUAL and not counts["unclassified"]
                cells = " | ".join(str(counts[label]) for label in labels)
                print(f"| {data_set} | {preset} | {total} | {share:.2%} | {cells} |", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
