"""Feed a GPU that is not there: how much of its speed the scheduler, the service and the client can use.

    python benchmarks/fed.py                   all cases; ten minutes on two cores
    python benchmarks/fed.py --quick           one case, for tests

Scheduler, pipeline, service and client are the real ones and talk gRPC through a Unix socket. Only the GPU's runner is
not: it fills its batch like the real one, then holds the GPU's lock and sleeps as long as a batch of that length would
take, and answers each chunk with the same made-up bases. A batch time of 0 shows what the processors allow without it.
Reads are one simulated signal under new ids. The first results are not counted.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import numpy as np
import torch
from host_card import HostCard
from shapes import write_shape

from porestream.client.client import BasecallClient
from porestream.client.opening import StreamOptions, resolve_caller
from porestream.client.reads import ReadInfo, ReadStatus, RunInfo, SignalRead
from porestream.client.stream import Delivery, RunStream
from porestream.client.wire import EncodedRead, encode_read
from porestream.models.call import basecaller
from porestream.models.call.decode import Decoded
from porestream.models.call.runner import Chunk, fill_batch
from porestream.models.files.bundle import ModelBundle
from porestream.server.engine import Engine
from porestream.server.settings import Settings
from porestream.server.start import app
from porestream.server.watch.logs import configure_logging
from porestream.v1 import porestream_pb2 as pb

ROWS = 1024
CHUNK_SAMPLES, STRIDE = 12_000, 6
SAMPLES_A_BASE = 12
LENGTHS = {"55,000": (55_000,), "5,000": (5_000,), "mixed": (3_000, 9_000, 20_000, 55_000, 150_000)}
LIVE_SAMPLES, LIVE_EVERY_S = 4_000, 0.2
SKIPPED_S = 3.0  # at the start, while batches fill
MIN_CHUNK_SAMPLES = 1024


class AbsentCard(HostCard):
    """A card with a lock and nothing else. A class attribute holds what `AbsentRunner` needs."""

    batch_s = 0.0  # of the longest chunks


class AbsentRunner:
    """Stands in for `CudaRunner`: sleeps instead of computing."""

    precision, device_class, device_name = "fp16", "absent", "a GPU that is not there"
    planned_bytes = 0

    def __init__(self, bundle: ModelBundle, lengths: Sequence[int], *given: object) -> None:
        self.network = None
        self.rows = self.row_group = ROWS
        self.useful_rows = self.computed_rows = 0.0
        (self._card,) = (one for one in given if isinstance(one, AbsentCard))
        self._longest = max(lengths)
        self._buffers = threading.local()
        self._results = {samples: made_up_result(samples) for samples in lengths}

    def call(self, chunks: Sequence[Chunk], samples: int) -> list[Decoded | ValueError]:
        if not hasattr(self._buffers, "batch"):
            self._buffers.batch = torch.zeros(ROWS * self._longest)
        fill_batch(self._buffers.batch[: ROWS * samples].view(ROWS, samples), chunks)
        with self._card.lock:
            if AbsentCard.batch_s:
                time.sleep(AbsentCard.batch_s * samples / self._longest)
            self.useful_rows += len(chunks) * samples / self._longest  # a shorter batch takes less time
            self.computed_rows += ROWS * samples / self._longest
        return [self._results[samples]] * len(chunks)


def made_up_result(samples: int) -> Decoded:
    """Bases as many as a chunk really has."""
    steps = samples // STRIDE
    moves_T = np.zeros(steps, np.uint8)
    moves_T[:: SAMPLES_A_BASE // STRIDE] = 1
    bases_B = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(1).integers(0, 4, int(moves_T.sum()))]
    return Decoded(bases_B, np.full(bases_B.size, 20, np.uint8), moves_T)


def serve(model: Path, address: str, workers: int, batch_s: float) -> None:
    """Serve with the GPU that is not there, until SIGTERM."""
    AbsentCard.batch_s = batch_s
    configure_logging("text")
    for module, name, stand_in in (
        (app, "open_card", lambda _settings: AbsentCard()),
        (app, "kernel_devices", lambda *_: (None, None)),
        (app, "batch_decoder", lambda *_: _NoDecoder()),
        (basecaller, "CudaRunner", AbsentRunner),
    ):
        setattr(module, name, stand_in)
    settings = Settings(model=[str(model)], device="cuda", threads=workers, listen=address, memory_budget=4 << 30)
    engines: list[Engine] = []
    build_engine = app.build_engine

    def build(settings: Settings) -> Engine:
        engines.append(build_engine(settings))
        return engines[0]

    app.build_engine = build
    began_s = 0.0

    def listening(_address: str) -> None:
        nonlocal began_s
        began_s = time.process_time()
        runner = the_runner()  # whose rows so far were those of the workers' test batches
        runner.useful_rows = runner.computed_rows = 0.0

    def the_runner() -> AbsentRunner:
        (runner,) = (caller.runner for caller in engines[0].basecallers.values())
        assert isinstance(runner, AbsentRunner)
        return runner

    asyncio.run(app.serve(settings, listening))
    books = engines[0].ledger.server
    runner = the_runner()
    filled = runner.useful_rows / max(1, runner.computed_rows)
    cpu_s = time.process_time() - began_s
    report = {"filled": filled, "received": books.received, "called": books.called, "cpu_s": cpu_s}
    print(json.dumps(report), flush=True)


class _NoDecoder:
    class device:  # noqa: N801
        name = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is sent, and to what."""

    batch_s: float
    workers: int = 16
    reads: str = "55,000"
    clients: int = 1
    live: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """What came of it."""

    samples_per_s: float
    filled: float
    reads: int
    cpu_us: float  # of the server, per read
    live_ms: float  # 99th percentile of a live read's time, sent to stored


def encoded_reads(lengths: Sequence[int]) -> list[EncodedRead]:
    """Make a read of each length: noise around levels that change as often as bases do."""
    rng = np.random.default_rng(1)
    reads = []
    for number, samples in enumerate(lengths):
        levels_S = np.repeat(rng.normal(500, 120, samples // SAMPLES_A_BASE + 1), SAMPLES_A_BASE)[:samples]
        signal_S = (levels_S + rng.normal(0, 12, samples)).astype(np.int16)
        info = ReadInfo(read_id=UUID(int=number), run=RunInfo(run_id="", sample_rate_hz=5000), offset_adc=0.0,
                        scale_pa_per_adc=0.17, channel=1)  # fmt: skip
        reads.append(encode_read(SignalRead(info, signal_S)))
    return reads


def under_new_ids(reads: Sequence[EncodedRead], run: RunInfo) -> Iterator[EncodedRead]:
    """Repeat reads for ever, each time with another id."""
    for number, read in enumerate(itertools.cycle(reads), 1):
        read_id = UUID(int=number)
        chunks = []
        for chunk in read.chunks:
            copied = pb.ReadChunk()
            copied.CopyFrom(chunk)
            copied.read_id = read_id.bytes
            chunks.append(copied)
        yield replace(read, info=replace(read.info, read_id=read_id, run=run), chunks=tuple(chunks))


async def send(address: str, case: Case, seconds: float, is_live: bool = False) -> tuple[float, int, list[float]]:
    """Send reads for some time; return samples per second after the start, results, and live reads' times in seconds.

    Live ones are sent by a process of their own, so that they need not wait for the bulk ones' client.

    Raises
    ------
    SystemExit
        A read got no result, or another than CALLED.
    """
    options = StreamOptions()
    client = BasecallClient(address, options)
    window_samples = (await client.server_info()).window_samples
    began_s = time.monotonic()
    counted, sent, results, live_s = 0, 0, 0, []

    async def bulk(number: int) -> None:
        nonlocal sent
        run = RunInfo(run_id=f"bulk-{number}", sample_rate_hz=5000)

        def deliver(delivery: Delivery) -> None:
            nonlocal counted, results
            result, stored = delivery
            stored()
            if result is None:
                return
            results += result.status is ReadStatus.CALLED
            if began_s + SKIPPED_S <= time.monotonic() < began_s + seconds:
                counted += result.signal_samples

        stream = RunStream(address, run, options, deliver, MIN_CHUNK_SAMPLES, window_samples, expected)
        running = asyncio.create_task(stream.run())
        for read in under_new_ids(encoded_reads(LENGTHS[case.reads]), run):
            await stream.put(read)
            sent += 1
            if time.monotonic() > began_s + seconds:
                break
        stream.end()
        await running

    async def live() -> None:
        nonlocal sent
        run = RunInfo(run_id="live", sample_rate_hz=5000)
        sent_s: dict[UUID, float] = {}

        def deliver(delivery: Delivery) -> None:
            nonlocal results
            result, stored = delivery
            stored()
            if result is not None:
                results += result.status is ReadStatus.CALLED
                live_s.append(time.monotonic() - sent_s[result.info.read_id])

        of_live = StreamOptions(priority=pb.PRIORITY_LIVE)
        stream = RunStream(address, run, of_live, deliver, MIN_CHUNK_SAMPLES, window_samples, expected)
        running = asyncio.create_task(stream.run())
        for read in under_new_ids(encoded_reads([LIVE_SAMPLES]), run):
            sent_s[read.info.read_id] = time.monotonic()
            await stream.put(read)
            sent += 1
            await asyncio.sleep(LIVE_EVERY_S)
            if time.monotonic() > began_s + seconds:
                break
        stream.end()
        await running

    expected = await resolve_caller(address, options, RunInfo(run_id="bulk-0", sample_rate_hz=5000))
    await asyncio.gather(*([live()] if is_live else map(bulk, range(case.clients))))
    if results != sent:
        raise SystemExit(f"of {sent} reads, {results} were called")
    return counted / (seconds - SKIPPED_S), sent, live_s


def measure(case: Case, folder: Path, seconds: float) -> Fed:
    """Start a server and feed it."""
    model, socket = folder / "model", folder / "socket"
    if not model.exists():
        write_shape("hac v4.3", model)
    command = [sys.executable, __file__, "--serve", str(model), f"unix:{socket}", str(case.workers), str(case.batch_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        while not socket.exists():
            if server.poll() is not None:
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            time.sleep(0.05)
        live = [sys.executable, __file__, "--live", f"unix:{socket}", str(seconds)]
        with subprocess.Popen(live if case.live else ["true"], stdout=subprocess.PIPE, text=True) as other:
            samples_per_s, reads, _ = asyncio.run(send(f"unix:{socket}", case, seconds))
            said, _ = other.communicate()
        live_reads, live_s = json.loads(said or "[0, []]")
        reads += live_reads
        server.terminate()
        out, _ = server.communicate()
    socket.unlink(missing_ok=True)
    live_ms = 1000 * float(np.percentile(live_s[5:], 99)) if live_s else 0.0
    report = json.loads(out.splitlines()[-1])
    if not report["received"] == report["called"] == reads:
        raise SystemExit(f"{reads} reads got a result, and the server's books say {report}")
    return Fed(samples_per_s=samples_per_s, filled=report["filled"], reads=reads,
               cpu_us=1e6 * report["cpu_s"] / reads, live_ms=live_ms)  # fmt: skip


CASES = [
    *(Case(batch_s=batch_s, workers=workers) for batch_s in (0.0, 0.035, 0.1, 0.9) for workers in (2, 16)),
    *(Case(batch_s=batch_s, reads=reads) for reads in ("5,000", "mixed") for batch_s in (0.0, 0.1, 0.9)),
    *(Case(batch_s=batch_s, clients=8) for batch_s in (0.1, 0.9)),
    *(Case(batch_s=batch_s, workers=workers, live=True) for batch_s in (0.1, 0.9) for workers in (2, 16)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each case")
    parser.add_argument("--case", action="append", type=int, metavar="N", help="only these cases, counted from 0")
    parser.add_argument("--live", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        model, address, workers, batch_s = arguments.serve
        serve(Path(model), address, int(workers), float(batch_s))
        return
    if arguments.live:
        address, seconds = arguments.live
        _, reads, live_s = asyncio.run(send(address, Case(batch_s=0.0), float(seconds), is_live=True))
        print(json.dumps([reads, live_s]))
        return
    chosen = [CASES[number] for number in arguments.case] if arguments.case else CASES
    columns = "a batch, s|workers|reads|clients|M samples/s|of the GPU's|rows filled|server CPU a read, us|live p99, ms"
    print(f"| {columns.replace('|', ' | ')} |")
    print("| --- " * 9 + "|")
    with tempfile.TemporaryDirectory() as name:
        for case in [Case(batch_s=0.05, workers=2)] if arguments.quick else chosen:
            fed = measure(case, Path(name), 6.0 if arguments.quick else arguments.seconds)
            if arguments.quick and fed.filled < 0.3:
                raise SystemExit(f"only {fed.filled:.0%} of the rows had chunks")
            possible = ROWS * CHUNK_SAMPLES / case.batch_s if case.batch_s else 0.0
            share = f"{fed.samples_per_s / possible:.0%} of {possible / 1e6:,.0f}" if possible else ""
            live = f"{fed.live_ms:,.0f}" if case.live else ""
            cells = [case.batch_s, case.workers, case.reads, case.clients, f"{fed.samples_per_s / 1e6:.1f}", share]
            print(f"| {' | '.join(map(str, cells))} | {fed.filled:.0%} | {fed.cpu_us:,.0f} | {live} |", flush=True)


if __name__ == "__main__":
    main()
