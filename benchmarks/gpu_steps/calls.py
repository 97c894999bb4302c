"""A server with the GPU and `porestream call` of many samples: speed and rows filled, with few and with many workers.

The kit's one small POD5 file is looped under new ids.
"""

import re
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
import warnings
from pathlib import Path

import pod5
from shapes import write_shape

from gpu_steps.common import arguments, say

SAMPLES = 200_000_000
SHAPES = ("hac v4.3", "fast v4.3", "sup v5")
START_LIMIT_S = 120.0
PORT = 9464
_ROWS = re.compile(r'^porestream_row_samples_total\{[^}]*row="(\w+)"[^}]*\} (\S+)$', re.MULTILINE)


def looped(source: Path, output: Path, samples: int) -> int:
    """Write the file's reads again and again, each time under new ids; return the samples written."""
    with pod5.Reader(source) as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pod5's own
        reads = [record.to_read() for record in reader.reads()]
    written = 0
    with pod5.Writer(output) as writer:
        while written < samples:
            for read in reads:
                read.read_id = uuid.uuid5(uuid.NAMESPACE_URL, f"{written}-{read.read_id}")
                written += len(read.signal)
            writer.add_reads(reads)
    return written


def rows_filled() -> float | str:
    """Ask the server what share of the rows that it computed had chunks."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError as error:
        return f"unknown: {error}"
    found: dict[str, float] = {}
    for kind, value in _ROWS.findall(text):
        found[kind] = found.get(kind, 0.0) + float(value)
    return round(found.get("chunk", 0.0) / max(1.0, sum(found.values())), 3)


def measure(shape: str, model: Path, run: Path, samples: int, threads: int, device: str, work: Path) -> None:
    """Serve a model, call the run, and stop."""
    porestream = [sys.executable, "-m", "porestream.cli.main"]
    socket = work / "socket"
    socket.unlink(missing_ok=True)
    serve = [*porestream, "serve", "--model", str(model), "--device", device, "--threads", str(threads)]
    serve += ["--listen", f"unix:{socket}", "--metrics-port", str(PORT), "--cache-dir", str(work / "cache")]
    began_s = time.monotonic()
    with (work / "server.log").open("w") as log, subprocess.Popen(serve, stderr=log, stdout=log) as server:
        try:
            while not socket.exists():
                if server.poll() is not None or time.monotonic() > began_s + START_LIMIT_S:
                    said = (work / "server.log").read_text().splitlines()[-5:]
                    say(f"{shape}, {threads} workers", ok=False, said=said or "the server did not start")
                    return
                time.sleep(0.1)
            started_s = time.monotonic() - began_s
            output = work / "calls.bam"
            call = [*porestream, "call", str(run), "--server", f"unix:{socket}", "-o", str(output)]
            began_s = time.monotonic()
            done = subprocess.run(call, capture_output=True, text=True, check=False)
            seconds = time.monotonic() - began_s
            say(
                f"{shape}, {threads} workers",
                ok=done.returncode == 0,
                samples=samples,
                server_start_s=round(started_s, 1),
                seconds=round(seconds, 1),
                M_samples_a_s=round(samples / seconds / 1e6, 2),
                rows_filled=rows_filled(),
                said=done.stderr.strip().splitlines()[-4:],
            )
            output.unlink(missing_ok=True)
        finally:
            server.terminate()


def main() -> None:
    options = arguments()
    work = options.work / "calls"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    run = work / "run.pod5"
    samples = looped(options.kit / "run.pod5", run, 400_000 if options.small else SAMPLES)
    for shape in ("tiny v4.3",) if options.small else SHAPES:
        model = write_shape(shape, work / shape.replace(" ", "_"))
        for threads in (2,) if options.small else (16, 2):
            measure(shape, model, run, samples, threads, options.device, work)


if __name__ == "__main__":
    main()
