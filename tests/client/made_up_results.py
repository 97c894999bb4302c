"""Results as a server might send them, of two runs: mapped, chimeric, repeated, unmapped, filtered, rejected."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import numpy as np
import pysam

from porestream.client.reads import (
    Alignment,
    CalledPart,
    CallerIdentity,
    ReadInfo,
    ReadResult,
    ReadStatus,
    ReferenceSequence,
    RunInfo,
)

START = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
RUN_A, RUN_B = (
    RunInfo(
        run_id=f"{letter * 8}-1111",
        sample_rate_hz=4000,
        flow_cell_id=f"FAB{letter}",
        flow_cell_product_code="FLO-MIN106",
        sequencing_kit="SQK-LSK109",
        position="MN1",
        sample_id="sample/../7",
        experiment_id="exp",
        acquisition_start_time=START,
        protocol_run_id=f"{letter}0123456-2222",
    )
    for letter in "ab"
)
RUNS = {run.run_id: run for run in (RUN_A, RUN_B)}
CONTIGS = {
    name: "".join(np.random.default_rng(length).choice(list("ACGT"), length))
    for name, length in (("c1", 900), ("c2", 400))
}
SEQUENCES = tuple(ReferenceSequence(name, len(bases), "") for name, bases in CONTIGS.items())
IDENTITY = CallerIdentity(
    model="dna_r9.4.1_e8_fast@v3.4",
    model_sha256="ab" * 32,
    reference="ref.fa",
    reference_sha256="cd" * 32,
    preset="map-ont",
    precision="fp32",
    device_class="cpu",
    version="0.1.0",
    calling_revision=2,
)
UNALIGNED = CallerIdentity(
    model="dna_r9.4.1_e8_fast@v3.4",
    model_sha256="ab" * 32,
    reference="",
    reference_sha256="",
    preset="",
    precision="fp32",
    device_class="cpu",
    version="0.1.0",
    calling_revision=2,
)
_COMPLEMENT = str.maketrans("ACGT", "TGCA")


def write_reference(folder: Path) -> Path:
    path = folder / "ref.fa"
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in CONTIGS.items()))
    return path


def make_result(number: int, *, aligned: bool = True) -> ReadResult:
    """Read UUID(int=number + 1), the same for the same number; of run b where the number is odd."""
    rng = np.random.default_rng(number)
    run = (RUN_A, RUN_B)[number % 2]
    info = ReadInfo(
        read_id=UUID(int=(number + 1) << 64 | number << 8),  # with zeros in the end, as any id may have
        run=run,
        offset_adc=0.0,
        scale_pa_per_adc=1.0,
        channel=number % 500 + 1,
        well=1,
        read_number=number,
        start_sample=4000 * number,
        end_reason="signal_positive",
        pore_type="r9.4.1",
        file_name="run.pod5",
    )
    if number % 11 == 10:
        return ReadResult(
            info=info,
            status=ReadStatus.REJECTED,
            detail="empty: the read has no samples",
            signal_samples=0,
            parts=(),
        )
    contig = ("c1", "c2")[number % 3 == 2]
    start = int(rng.integers(0, 200))
    length = int(rng.integers(60, 200))
    bases = CONTIGS[contig][start : start + length]
    reverse = bool(rng.integers(2))
    alignments: tuple[Alignment, ...] = ()
    sequence = bases.translate(_COMPLEMENT)[::-1] if reverse else bases
    if aligned and number % 7 != 6:
        flag = 16 if reverse else 0
        alignments = (_alignment(flag, contig, start, length, ((length, 0),), str(length)),)
        if number % 5 == 4:  # chimeric: half of it lies there, half here
            half = length // 2
            first, second = (((half, 0), (length - half, 4)), ((half, 4), (length - half, 0)))
            alignments = (
                _alignment(flag, contig, start, half, first, str(half)),
                _alignment(flag | 0x800, contig, start + half, length - half, second, str(length - half)),
            )
        elif number % 5 == 3:  # repeated
            alignments += (_alignment(flag | 0x100, contig, start, length, ((length, 0),), str(length)),)
    part = CalledPart(
        read_id=info.read_id,
        sequence=sequence,
        qualities=rng.integers(2, 40, length, np.uint8).tobytes(),
        mean_qscore=float(np.float32(5 + number % 10)),
        samples=10 * length + 5,
        trimmed_samples=5,
        stride_samples=5,
        moves=np.tile(np.array([1, 0], np.uint8), length).tobytes(),
        alignments=alignments,
    )
    status = ReadStatus.FILTERED if number % 10 < 3 else ReadStatus.CALLED
    detail = "mean Q" if status is ReadStatus.FILTERED else ""
    return ReadResult(
        info=info,
        status=status,
        detail=detail,
        signal_samples=10 * length + 5,
        scaling_midpoint_pa=80.0,
        scaling_dispersion_pa=12.0,
        scaling_strategy="med_mad",
        parts=(part,),
    )


def _alignment(
    flag: int, contig: str, start: int, length: int, cigar: tuple[tuple[int, int], ...], md: str
) -> Alignment:
    encoded = tuple(count << 4 | operation for count, operation in cigar)
    return Alignment(
        flag=flag,
        reference_name=contig,
        reference_start=start,
        reference_end=start + length,
        mapping_quality=60,
        cigar=encoded,
        score=2 * length,
        edit_distance=0,
        md=md,
        divergence=0.0,
    )


def contents(path: Path, reference: Path | None = None) -> list[str]:
    """All records of a SAM, BAM or CRAM as text, in order of names."""
    name = str(reference) if reference else None
    with pysam.AlignmentFile(str(path), check_sq=False, reference_filename=name) as file:
        return sorted(record.to_string() for record in file)
