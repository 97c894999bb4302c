"""The processor's work beside a GPU: CPU and GIL time of each part of a read's way, per read.

    python benchmarks/beside.py             reads of 55,000 and 5,000 samples; a minute
    python benchmarks/beside.py --quick     once, for tests

The model is hac's (scaled in pA). Whatever the GPU does is made up: chunks come back called with random bases, and
alignments as hits without their figures. CPU time
is the thread's own, the median of RUNS. GIL time is what a second thread that only counts loses of its speed meanwhile.
The last rows are what follows: signal that one process can carry if nothing else held the GIL, at 70% of it.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import torch
from shapes import write_shape

from porestream.client.reads import ReadInfo, RunInfo, SignalRead
from porestream.client.wire import encode_read
from porestream.kernels.align.aligner import PRESETS, Alignment
from porestream.kernels.align.cigar import describe
from porestream.kernels.align.device_aligner import alignments_of
from porestream.kernels.align.fasta import read_fasta
from porestream.kernels.align.hits import HIT, Hits
from porestream.kernels.align.index import build_index, load_index
from porestream.models.call.adapters import trim_adapters
from porestream.models.call.basecaller import CalledRead, finish
from porestream.models.call.chunk import FEW_LENGTHS, Chunker
from porestream.models.call.decode import Decoded
from porestream.models.call.prepare import prepare
from porestream.models.call.quality import mean_qscore
from porestream.models.call.runner import decoded_rows, fill_batch
from porestream.models.files.bundle import load_bundle
from porestream.models.scale import Measurement
from porestream.server.edge.messages import decode_chunk, encode_output, parse_request
from porestream.server.reads import CalledPart, CallSettings, OpenRead, ReadResult, Status
from porestream.server.streams.session import Results
from porestream.server.vbz import compile_decoder
from porestream.v1 import porestream_pb2 as pb

RUNS = 5
BATCH_ROWS = 64
HITS = 64
SAMPLES_A_BASE = 12
ERROR_RATE = 0.03
READ_SAMPLES = (55_000, 5_000)
GIL_SHARE = 0.7
ALL, UNALIGNED, ALIGNED, ASKED = "all", "unaligned", "aligned", "with MD"
SETTINGS = CallSettings(model="m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a read's way, of which reads (ALL, UNALIGNED, ALIGNED, ASKED), and what it takes in us per read."""

    name: str
    cpu_us: float
    gil_us: float
    of: str


def made_up_signal(samples: int) -> npt.NDArray[np.int16]:
    """Noise around levels that change as often as bases do."""
    rng = np.random.default_rng(1)
    levels_S = np.repeat(rng.normal(500, 120, samples // SAMPLES_A_BASE + 1), SAMPLES_A_BASE)[:samples]
    return (levels_S + rng.normal(0, 12, samples)).astype(np.int16)


def parts_of(samples: int) -> list[tuple[str, Callable[[], object], str]]:
    """Return each part's name, what it does for one read (or HITS of them), and which reads have it."""
    rng = np.random.default_rng(2)
    with tempfile.TemporaryDirectory() as name:
        config = load_bundle(write_shape("hac v4.3", Path(name))).config
    chunker = Chunker(
        config.chunk_size, config.overlap, config.stride, config.chunk_unit, config.coarse_stride, FEW_LENGTHS
    )
    info = ReadInfo(read_id=UUID(int=1), run=RunInfo(run_id="", sample_rate_hz=5000), offset_adc=10.0,
                    scale_pa_per_adc=0.17, channel=1)  # fmt: skip
    signal_S = made_up_signal(samples)
    encoded = encode_read(SignalRead(info, signal_S))
    request = pb.StreamReadsRequest(signal=pb.SignalBatch(chunks=encoded.chunks)).SerializeToString()
    arrived = [decode_chunk(chunk) for chunk in parse_request(request).signal.chunks]
    measured = Measurement(sample_rate_hz=5000, offset_adc=10.0, scale_pa=0.17)
    prepared = prepare(signal_S, measured, config, chunker)
    pieces = prepared.plan.pieces
    batches = {length: torch.zeros(BATCH_ROWS, length) for length in chunker.lengths}

    def decode() -> object:
        read = OpenRead(read_id=info.read_id.bytes, channel=1, calibration=None)
        for chunk in arrived:
            read.append(chunk)
        return read.take_signal()

    def fill() -> None:
        for row, piece in enumerate(pieces):
            fill_batch(batches[piece.samples][row : row + 1], [partial(prepared.write_chunk, piece.start)])

    steps = [piece.samples // config.stride for piece in pieces]
    longest = max(steps)
    moves_NT = np.zeros((len(pieces), longest), np.uint8)
    moves_NT[:, :: max(1, SAMPLES_A_BASE // config.stride)] = 1
    letters_NT = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, moves_NT.shape)]
    counts_N = np.array([int(moves_T[:count].sum()) for moves_T, count in zip(moves_NT, steps, strict=True)], np.int32)
    on_host: list[npt.NDArray[Any]] = [letters_NT, np.full_like(letters_NT, 20), moves_NT, counts_N]
    decoded = [
        Decoded(one.bases_B, one.qualities_B, one.moves_T[:count].copy())
        for one, count in zip(decoded_rows(on_host, len(pieces)), steps, strict=True)
        if isinstance(one, Decoded)
    ]
    called = finish(prepared, decoded)
    describe_all, with_md = (made_up_alignments(len(called.sequence), md) for md in (False, True))
    ((alignment,), *_) = describe_all()
    result, aligned = result_of(called, samples, []), result_of(called, samples, [alignment])

    def send(results: list[ReadResult]) -> Callable[[], object]:
        return lambda: encode_output(Results(1, results), SETTINGS).SerializeToString()

    return [
        (
            "request parsed, chunks accepted",
            lambda: [decode_chunk(c) for c in parse_request(request).signal.chunks],
            ALL,
        ),
        ("VBZ, checksum", decode, ALL),
        ("scaled, planned", lambda: prepare(signal_S, measured, config, chunker), ALL),
        ("rows filled", fill, ALL),
        ("results out of the batch", lambda: decoded_rows(on_host, len(pieces)), ALL),
        ("stitched", lambda: finish(prepared, decoded), ALL),
        ("adapters", lambda: trim_adapters(called), ALL),
        ("mean Q", lambda: mean_qscore(called.qualities_B), ALL),
        ("alignment described", describe_all, ALIGNED),
        ("the same with MD", with_md, ASKED),
        ("response", send([result]), UNALIGNED),
        ("response with the alignment", send([aligned]), ALIGNED),
    ]


def made_up_alignments(bases: int, md: bool) -> Callable[[], list[list[Alignment]]]:
    """Return the work of describing a batch of HITS reads, of so many bases, aligned with errors here and there."""
    rng = np.random.default_rng(3)
    target = rng.integers(0, 4, bases).astype(np.uint8)
    query, operations = [], []
    for base, kind in zip(
        target.tolist(), rng.choice(4, bases, p=[1 - ERROR_RATE, *[ERROR_RATE / 3] * 3]), strict=True
    ):
        query += [[base], [(base + 1) % 4], [base, base], []][kind]
        operations += [[0], [0], [0, 1], [2]][kind]
    ends = np.flatnonzero(np.diff([*operations, -1]))
    cigar = (np.diff([-1, *ends]) << 4 | np.array(operations)[ends]).astype(np.uint32)
    codes = np.array(query, np.uint8)
    figures = describe(cigar, codes, target, md=False)
    hit = np.zeros(HITS, HIT)
    hit["qe"], hit["re"], hit["mapq"] = len(codes), bases, 60
    hit["cigar"], hit["operations"] = len(cigar) * np.arange(HITS), len(cigar)
    hit["columns"], hit["matches"] = len(operations), len(operations) - figures.edit_distance
    hits = Hits(hit=hit, first=np.arange(HITS + 1), cigars=np.tile(cigar, HITS), failed=np.zeros(HITS, np.uint8))
    with tempfile.TemporaryDirectory() as name:
        fasta = Path(name) / "genome.fa"
        fasta.write_text(f">made_up\n{np.array(list('ACGT'))[target].tobytes().decode('utf-32')}\n")
        build_index(fasta, read_fasta(fasta), PRESETS["map-ont"], Path(name) / "index")
        index = load_index(Path(name) / "index")
    return lambda: alignments_of(hits, [codes] * HITS, index, md)


def result_of(called: CalledRead, samples: int, alignments: list[Alignment]) -> ReadResult:
    """Return what is sent of the read."""
    part = CalledPart(
        sequence=called.sequence, qualities_B=called.qualities_B, moves_T=called.moves_T, mean_qscore=12.0,
        trimmed_samples=called.trimmed_samples, stride=called.stride, alignments=alignments, status=Status.CALLED,
        read_id=bytes(16), first_sample=0,
    )  # fmt: skip
    return ReadResult(
        read_id=bytes(16), channel=1, status=Status.CALLED, detail="", signal_samples=samples, parts=(part,)
    )


def reads_of(name: str) -> int:
    """Return how many reads a part takes at once."""
    return HITS if "described" in name or "MD" in name else 1


def cpu_s(work: Callable[[], object], seconds: float) -> float:
    """Return the median of this thread's processor time for one piece of work."""
    work()
    times = []
    for _ in range(RUNS):
        count, began_s, ends_s = 0, time.thread_time(), time.perf_counter() + seconds
        while time.perf_counter() < ends_s:
            work()
            count += 1
        times.append((time.thread_time() - began_s) / count)
    return statistics.median(times)


class Counter:
    """A thread that counts how often it gets the GIL. It gives it back at once, so that it hardly delays the others."""

    def __init__(self) -> None:
        self.count, self._stops = 0, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stops:
            self.count += 1
            time.sleep(0)

    def rate(self, work: Callable[[], object], seconds: float) -> tuple[float, float]:
        """Return counts a second while some work is repeated, and the seconds of one piece of it."""
        done, began_s, before = 0, time.perf_counter(), self.count
        while time.perf_counter() < began_s + seconds:
            work()
            done += 1
        took_s = time.perf_counter() - began_s
        return (self.count - before) / took_s, took_s / done

    def stop(self) -> None:
        """Stop counting."""
        self._stops = True
        self._thread.join()


def gil_s(work: Callable[[], object], seconds: float) -> float:
    """Return about how long one piece of work keeps the GIL, on a machine with two idle cores: at most that."""
    counter = Counter()
    try:
        found = []
        for _ in range(RUNS):
            alone, _ = counter.rate(lambda: time.sleep(0.01), seconds)
            beside, piece_s = counter.rate(work, seconds)
            found.append(max(0.0, 1 - beside / alone) * piece_s)
        return statistics.median(found)
    finally:
        counter.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, briefly")
    parser.add_argument("--with-pod5", action="store_true", help="decode VBZ as a server without a GPU does")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.with_pod5:
        compile_decoder()
    seconds = 0.01 if options.quick else 0.2
    sizes = READ_SAMPLES[:1] if options.quick else READ_SAMPLES
    columns = {
        samples: [
            Part(
                name=name,
                cpu_us=1e6 * cpu_s(work, seconds) / reads_of(name),
                gil_us=1e6 * gil_s(work, seconds) / reads_of(name),
                of=of,
            )
            for name, work, of in parts_of(samples)
        ]
        for samples in sizes
    }
    print("| us a read |" + "".join(f" {samples:,} samples: CPU | GIL |" for samples in sizes))
    print("| --- " * (1 + 2 * len(sizes)) + "|")
    for rows in zip(*columns.values(), strict=True):
        print(f"| {rows[0].name} |" + "".join(f" {part.cpu_us:,.0f} | {part.gil_us:,.0f} |" for part in rows))
    for name, aligned in (("unaligned", False), ("aligned", True)):
        cells = carried = ""
        for samples, parts in columns.items():
            counted = [part for part in parts if part.of in (ALL, ALIGNED if aligned else UNALIGNED)]
            cpu_us, gil_us = sum(part.cpu_us for part in counted), sum(part.gil_us for part in counted)
            cells += f" {cpu_us:,.0f} | {gil_us:,.0f} |"
            carried += f" {samples / cpu_us:,.0f} a core | {GIL_SHARE * samples / max(gil_us, 1e-9):,.0f} |"
        print(f"| all, {name} |{cells}\n| M samples/s, {name} |{carried}")


if __name__ == "__main__":
    main()
