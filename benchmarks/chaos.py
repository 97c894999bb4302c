"""Inject random faults between a real server and client, and check that no read is lost or doubled and books balance.

In each run, `porestream call` streams to its own server through a proxy, and a dozen faults hit them. If a fault ends
the call, it continues with --resume-from. At the end, records and tables are compared with those of an undisturbed
call, without using porestream's own code. Meanwhile the books must balance in every scrape of /metrics. The exit code
is 1 if anything is wrong.

    python benchmarks/chaos.py --faults 1000 --seed 1
    python benchmarks/chaos.py --seed 1 --run 17        # only this run, with the same choices
"""

import argparse
import contextlib
import csv
import gzip
import itertools
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pod5
import pysam
from breaking import DOWN, UP, Proxy, TcpServer, scrape

READS = 40
PORESTREAM = str(Path(sys.executable).with_name("porestream"))
LANES = 5  # runs at the same time, because most of a run is waiting
LIMIT_S = 22 * 60.0  # no run starts after this time
FAULTS_S, HANG_S = 90.0, 180.0  # in each run: time for faults, and time for the rest
RATE_BYTES_S = 100_000  # speed of the link, so that a call lasts long enough to be hit often
SILENT_S = 22.0  # longer than either side waits for the other
MANY_BYTES = 10_000


@dataclass
class Called:
    """What a call wrote, in no particular order."""

    reads: Counter[str]
    """Names of primary records and of rejected reads."""
    rows: Counter[str]
    """Names in the summary table."""
    texts: Counter[str]
    """Full records, rejections and rows."""

    @classmethod
    def read(cls, output: Path) -> "Called":
        """Read the files that a call wrote."""
        stem = output.parent / output.name.partition(".")[0]
        if output.suffix == ".bam":
            with pysam.AlignmentFile(str(output), check_sq=False) as file:
                records = [record.to_string() for record in file]
        else:
            text = gzip.decompress(output.read_bytes()) if output.suffix == ".gz" else output.read_bytes()
            records = [line for line in text.decode().splitlines() if output.suffix != ".sam" or line[0] != "@"]
        if ".fastq" in output.name:  # make it like SAM: a name, then a flag
            assert len(records) % 4 == 0
            records = ["\t".join(records[i : i + 4])[1:].replace("\t", "\t0\t", 1) for i in range(0, len(records), 4)]
        primaries = [line for line in records if not int(line.split("\t", 2)[1]) & 0x900]
        with Path(f"{stem}.sequencing_summary.txt").open() as table:
            rows = list(csv.DictReader(table, delimiter="\t"))
        for row in rows if output.suffix != ".bam" else ():  # SAM and FASTQ have only six digits of it
            del row["mean_qscore_template"]
        list_of_rejected = Path(f"{stem}.rejected_reads.tsv")
        rejected = list_of_rejected.read_text().splitlines()[1:] if list_of_rejected.exists() else []
        reads = Counter(line.split("\t", 1)[0] for line in (*primaries, *rejected))
        texts = Counter([*records, *rejected, *("\t".join(row.values()) for row in rows)])
        return cls(reads, Counter(row["read_id"] for row in rows), texts)


@dataclass(kw_only=True)
class Job:
    """What to call, into which formats (with flags), and what an undisturbed call writes."""

    folder: Path
    pod5: Path
    server_flags: tuple[object, ...]
    formats: dict[str, tuple[str, ...]]
    expected: dict[str, tuple[Called, int]] = field(default_factory=dict)

    def command(self, output: Path, address: str) -> list[str]:
        """Return the command line of the call that writes this file."""
        command = [PORESTREAM, "call", str(self.pod5), "--server", address, "--emit-summary", "-o", str(output)]
        return [*command, *self.formats[output.name]]

    def prepare(self) -> None:
        """Call without faults, in all formats; every read must be there once."""
        with pod5.Reader(self.pod5) as reader:
            names = Counter(str(read.read_id) for read in reader.reads())
        (self.folder / "undisturbed").mkdir()
        with TcpServer(self.folder / "undisturbed", *self.server_flags) as server:
            server.start()
            for name in self.formats:
                output = self.folder / "undisturbed" / name / name
                output.parent.mkdir()
                subprocess.run(self.command(output, server.address), check=True, capture_output=True)
                called = Called.read(output)
                assert called.reads == names, "an undisturbed call loses reads"
                self.expected[name] = called, output.stat().st_size


class Run:
    """One call and its faults. Seed and number decide what is tried; the byte it hits depends on timing."""

    def __init__(self, job: Job, seed: int, number: int) -> None:
        self.number, self.faults, self.wrong = number, list[str](), list[str]()
        self.lost, self.doubled = set[str](), set[str]()
        self.scrapes, self.unbalanced = 0, Counter[str]()  # by the latest fault
        self._job, self._rng = job, random.Random(f"{seed}/{number}")
        self.most, name = self._rng.randint(10, 30), self._rng.choice(sorted(job.formats))
        self._folder = job.folder / f"run-{number}"
        self._output, self._client_log = self._folder / name / name, self._folder / "client-log"
        self._output.parent.mkdir(parents=True)
        self._expected, self._expected_bytes = job.expected[name]
        self._server = TcpServer(self._folder, *job.server_flags)

    def run(self) -> "Run":
        """Run until the call is complete."""
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,))
        with self._server:
            self._server.start()
            self._proxy = Proxy(self._server.port, RATE_BYTES_S)
            self._start_client()
            watcher.start()
            try:
                self._disturb()
                self.compare(Called.read(self._output))
                self._check_server()
            except (AssertionError, OSError, ValueError, subprocess.TimeoutExpired) as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
            finally:
                self._client.kill()
                self._client.wait()
                over.set()
                watcher.join()
                self._proxy.close()
        return self

    def _disturb(self) -> None:
        until_s, ends = time.monotonic() + FAULTS_S, 0
        while self._client.poll() != 0:
            if self._client.returncode is not None:
                # As documented, the client gives up after 10 s on a server that has never answered.
                is_unmet = self._client.returncode == 4 and "did not answer within 10 s" in self._said()
                if not self._is_expected_end and not is_unmet:
                    self.wrong.append(f"the call ended with {self._client.returncode}: {self._said()}")
                    ends += 1
                    assert ends < 3, "the call keeps ending"
                self._start_client()
            elif len(self.faults) < self.most and time.monotonic() < until_s:
                self._strike()
            else:
                self._client.wait(HANG_S)

    def _start_client(self) -> None:
        command = self._job.command(self._output, self._proxy.address)
        partial = self._output.with_name(f"{self._output.name}.partial")
        if partial.exists() or self._output.exists():
            command += ["--resume-from", str(partial)]
        with self._client_log.open("ab") as log:
            self._said_before = log.tell()
            self._client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._is_expected_end, self._began_bytes = False, self._proxy.passed[DOWN]

    def _said(self) -> str:
        """Return what the current client has printed."""
        return self._client_log.read_text()[self._said_before :]

    def _strike(self) -> None:
        """Inject one fault, after a random amount of signal."""
        kind = self._rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
        until = self._proxy.passed[UP] + int(self._rng.random() ** 2 * 2 * MANY_BYTES)
        self._wait(lambda: self._proxy.passed[UP] >= until, 2.0)
        if self._client.poll() is None and KINDS[kind][1](self):
            self.faults.append(kind)

    def _wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Wait for the condition, but not beyond the call's end."""
        deadline_s = time.monotonic() + limit_s
        while not condition() and self._client.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return condition()

    def _pause(self) -> bool:
        """Wait as long as a temporary fault lasts; rarely so long that the other side gives up the connection."""
        is_streaming = self._proxy.passed[DOWN] - self._began_bytes > MANY_BYTES
        is_long = self._rng.random() < 0.03 and is_streaming
        self._wait(lambda: False, SILENT_S if is_long else self._rng.uniform(0.05, 2.0))
        return True

    def _cut(self, way: str) -> bool:
        before, is_reset = self._proxy.cuts, self._rng.random() < 0.5
        self._proxy.cut_after(way, int(10 ** self._rng.uniform(0, 5 if way == UP else 4)), is_reset)
        if not self._wait(lambda: self._proxy.cuts > before, 3.0):
            self._proxy.cut(is_reset)
        return self._wait(lambda: self._proxy.cuts > before, 0.5)

    def _freeze(self) -> bool:
        self._proxy.freeze()
        self._pause()
        self._proxy.thaw()
        return True

    def _stop(self, send: Callable[[signal.Signals], None]) -> bool:
        send(signal.SIGSTOP)
        self._pause()
        send(signal.SIGCONT)
        return True

    def _restart_server(self, drain: bool) -> bool:
        if drain and (code := self._server.stop()) != 0:
            self.wrong.append(f"the server ended with {code} when told to drain")
        self._server.kill()
        time.sleep(max(0.0, self._rng.uniform(-1.0, 1.0)))
        self._server.start()
        return True

    def _end_client(self, number: signal.Signals) -> bool:
        self._client.send_signal(number)
        ends = -number, 128 + number  # without a signal handler yet, and with one
        self._is_expected_end = self._client.wait(HANG_S) in ends
        return self._is_expected_end

    def _fill_disk(self) -> bool:
        """From now on, keep the call's files from growing beyond a random size."""
        biggest = self._client_log.stat().st_size
        for path in self._output.parent.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it just got its final name
                biggest = max(biggest, path.stat().st_size)
        limit = biggest + int(self._rng.random() * max(self._expected_bytes - biggest, 1000))
        self._limit_files(limit)
        self._wait(lambda: False, 30.0)
        if self._client.poll() is None:
            self._limit_files(resource.RLIM_INFINITY)
        else:
            self._is_expected_end = self._client.returncode == 1 and "cannot write to" in self._said()
        return self._is_expected_end

    def _limit_files(self, most_bytes: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it just ended
            resource.prlimit(self._client.pid, resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(0.2):
            if found := scrape(self._server.metrics):
                self.scrapes += 1
                if found.unbalanced:
                    self.unbalanced[self.faults[-1] if self.faults else ""] += 1
                    self.wrong.append(f"books: {found.unbalanced}")

    def compare(self, called: Called) -> None:
        """Compare what the call wrote with what an undisturbed one writes."""
        expected = self._expected
        for there, wanted in ((called.reads, expected.reads), (called.rows, expected.rows)):
            self.lost |= set(wanted - there)
            self.doubled |= set(there - wanted)
        if called.texts != expected.texts:
            other = (called.texts - expected.texts) + (expected.texts - called.texts)
            self.wrong.append(f"{other.total()} records or rows differ, such as {next(iter(other))[:500]!r}")

    def _check_server(self) -> None:
        deadline_s = time.monotonic() + 60
        while (found := scrape(self._server.metrics)) is None or found.reads_open:
            assert time.monotonic() < deadline_s, "reads stay open although their call is over"
            time.sleep(0.1)
        self.wrong += [f"server: {line[:1000]}" for line in self._server.log.splitlines() if "Traceback" in line]


KINDS: dict[str, tuple[float, Callable[[Run], bool]]] = {
    "connection cut, client to server": (25, lambda run: run._cut(UP)),
    "connection cut, server to client": (25, lambda run: run._cut(DOWN)),
    "connection frozen": (12, Run._freeze),
    "server stopped, continued": (10, lambda run: run._stop(run._server.signal)),
    "server killed, started": (9, lambda run: run._restart_server(drain=False)),
    "server drained, started": (5, lambda run: run._restart_server(drain=True)),
    "client stopped, continued": (10, lambda run: run._stop(run._client.send_signal)),
    "client killed, resumed": (7, lambda run: run._end_client(signal.SIGKILL)),
    "client terminated, resumed": (4, lambda run: run._end_client(signal.SIGTERM)),
    "client's disk full, resumed": (12, Run._fill_disk),
}
"""How often each fault is tried, and how. The function returns whether it struck, as the call may be over before."""


def run_all(job: Job, faults: int, seed: int, lanes: int = LANES) -> list[Run]:
    """Do runs until this many faults have struck."""
    numbers, runs, began_s = itertools.count(), list[Run](), time.monotonic()

    def lane() -> None:
        while sum(len(run.faults) for run in runs) < faults and time.monotonic() - began_s < LIMIT_S:
            runs.append(run := Run(job, seed, next(numbers)))
            run.most = min(run.most, -(-faults // lanes))
            run.run()
            print(f"run {run.number}: {len(run.faults)} faults; {run.wrong or 'ok'}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(lanes) as pool:
        for ended in [pool.submit(lane) for _ in range(lanes)]:
            ended.result()
    return runs


def simulated_run(folder: Path, *flags: str) -> tuple[Path, Path]:
    """Simulate reads from a made-up genome; return the FASTA and the POD5."""
    from porestream.models.simulate.sequence import decode, random_bases

    reference, run = folder / "reference.fasta", folder / "run.pod5"
    reference.write_text(f">contig\n{decode(random_bases(60_000, np.random.default_rng(1)))}\n")
    command = [PORESTREAM, "simulate", str(reference), "-o", str(run), "--seed", "3", *flags]
    subprocess.run(command, check=True, capture_output=True)
    return reference, run


def simulated_job(folder: Path) -> Job:
    """Return a job for the bundled model, aligned if the format allows. The server rejects some reads as too long."""
    reference, run = simulated_run(folder, "--reads", str(READS), "--length-mean", "550", "--length-sd", "400")
    aligned = ("--reference", reference.name)
    formats = {"calls.bam": aligned, "sorted.bam": (*aligned, "--sort"), "calls.sam": aligned}
    flags = ("--reference", reference, "--threads", 1, "--grace-s", 2, "--max-read-samples", 25_000)
    return Job(folder=folder, pod5=run, server_flags=flags, formats=formats | {"calls.fastq": (), "calls.fastq.gz": ()})


def table(runs: list[Run]) -> str:
    """Return a Markdown table with a line per kind of fault, which counts the reads of all runs that it struck."""

    def line(name: str, times: int, hit: list[Run], unbalanced: int) -> str:
        lost, doubled = sum(len(run.lost) for run in hit), sum(len(run.doubled) for run in hit)
        return f"| {name} | {times:,} | {lost} | {doubled} | {unbalanced} |"

    lines = ["| fault | times | reads lost | reads doubled | scrapes that did not balance |", "| --- |" + " --- |" * 4]
    for kind in KINDS:
        hit = [run for run in runs if kind in run.faults]
        lines.append(line(kind, sum(r.faults.count(kind) for r in hit), hit, sum(r.unbalanced[kind] for r in runs)))
    everything = sum(len(run.faults) for run in runs), runs, sum(run.unbalanced.total() for run in runs)
    return "\n".join([*lines, line("all", *everything)])


def main() -> None:
    """Run everything and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1 << 30), help="default: a random one, which is printed"
    )
    parser.add_argument("--run", type=int, help="do only this run")
    parser.add_argument(
        "--json", action="store_true", help="print each run's faults and findings as JSON instead of the table"
    )
    arguments = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="porestream-chaos-") as name:
        job = simulated_job(Path(name))
        job.prepare()
        alone = arguments.run is not None
        runs = (
            [Run(job, arguments.seed, arguments.run).run()] if alone else run_all(job, arguments.faults, arguments.seed)
        )
    if arguments.json:
        keep = ("number", "faults", "wrong", "lost", "doubled", "scrapes", "unbalanced")
        print(json.dumps([{key: getattr(run, key) for key in keep} for run in runs], default=sorted))
    else:
        figures = f"{READS * len(runs):,} reads, {sum(run.scrapes for run in runs):,} scrapes"
        print(table(runs))
        print(f"\n{len(runs)} runs, {figures}, {time.monotonic() - began_s:.0f} s; seed {arguments.seed}")
    wrong = [run for run in runs if run.wrong or run.lost or run.doubled]
    for run in wrong:
        print(f"python benchmarks/chaos.py --seed {arguments.seed} --run {run.number}: {run.wrong}", file=sys.stderr)
    if wrong:
        raise SystemExit(f"{len(wrong)} runs went wrong")
    if not alone and sum(len(run.faults) for run in runs) < arguments.faults:
        raise SystemExit("time ran out before this many faults had struck")


if __name__ == "__main__":
    main()
