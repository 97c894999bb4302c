"""Attack a server from one peer (attackers.py), and measure an honest stream and the server meanwhile: `make attack`.

The server has the first core and one worker. Everything else shares the second core, with the attackers at the lowest
priority. During each attack this measures the honest stream's speed compared with just before, the peak memory above
that of the idle server, and health checks as Kubernetes makes them, twice a second. It fails if the stream drops below
60% of its earlier speed, one of its reads is not called, memory exceeds the budget by more than a quarter, or a health
check fails.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import queue
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import grpc
import trustme
from attackers import ATTACKERS_ADDRESS, ATTACKS, FILL_THE_LOG, Victim, read_of, steps
from grpc_health.v1 import health_pb2, health_pb2_grpc

from porestream.client import SyncBasecallClient
from porestream.client.channel import Credentials
from porestream.client.opening import StreamOptions
from porestream.client.reads import ReadStatus, SignalRead
from porestream.v1 import porestream_pb2 as pb

BUDGET_BYTES = 256 << 20
LEAST_SHARE, MOST_MEMORY = 0.6, 1.25
ROTATIONS = 50
CHECK_TIMEOUT_S = 5.0  # as in deploy/kubernetes/base/deployment.yaml
HONEST, ATTACKER = "honest-token-of-the-lab", "token-of-the-attacker"
_LONG_SAMPLES, _SHORT_SAMPLES = 500_000, 50_000
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one attack did, and what happened to the honest stream and the server."""

    name: str
    did: str
    speed_before: float
    """Samples per second."""
    speed: float
    memory_bytes: int
    slowest_check_s: float
    failed_checks: int
    lost_reads: int
    alive: bool

    @property
    def problems(self) -> list[str]:
        """Why this attack counts as a failure; empty if it does not."""
        found = {
            f"speed was {self.speed / self.speed_before:.0%} of before": self.speed < LEAST_SHARE * self.speed_before,
            f"memory grew by {self.memory_bytes >> 20} MB": self.memory_bytes > MOST_MEMORY * BUDGET_BYTES,
            f"{self.failed_checks} health checks failed": self.failed_checks,
            f"{self.lost_reads} reads were not called": self.lost_reads,
            "the server is dead": not self.alive,
        }
        return [problem for problem, is_so in found.items() if is_so]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _issue(authority: trustme.CA, folder: Path) -> None:
    """Replace the certificate file by file, as tools do it."""
    issued = authority.issue_cert("localhost")
    (folder / "new.key").write_bytes(issued.private_key_pem.bytes())
    (folder / "new.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    for kind in ("key", "crt"):
        os.replace(folder / f"new.{kind}", folder / f"tls.{kind}")


def _relay(port: int, ready: "Synchronized[int]") -> None:
    """Relay connections to the server from the attacker's address."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            on = await asyncio.open_connection("127.0.0.1", port, local_addr=(ATTACKERS_ADDRESS, 0))
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, on[1]), copy(on[0], writer))

    async def run() -> None:
        server = await asyncio.start_server(take, "127.0.0.1", 0, backlog=1000)
        ready.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    os.nice(19)
    asyncio.run(run())


def _attack(name: str, victim: Victim, stop: Event, told: "multiprocessing.Queue[str]") -> None:
    os.nice(19)
    told.put(ATTACKS[name](victim, ATTACKER, stop))


def _be_honest(
    victim: Victim, folder: Path, stop: Event, samples: "Synchronized[int]", lost: "Synchronized[int]"
) -> None:
    """Stream reads until `stop`: mostly short ones, and every tenth has half a million samples.

    Each must be called exactly once.
    """
    credentials = Credentials(tls=True, authority_file=victim.authority, token_file=folder / "honest.token")
    signals = [steps(_SHORT_SAMPLES) for _ in range(9)] + [steps(_LONG_SAMPLES)]
    sent, came = set(), set()

    def reads() -> Iterator[SignalRead]:
        while not stop.is_set():
            for signal_S in signals:
                read = read_of(signal_S, "honest")
                sent.add(read.info.read_id)
                yield read

    options = StreamOptions(priority=pb.PRIORITY_BULK, credentials=credentials, window_samples=1_500_000)
    with SyncBasecallClient(f"localhost:{victim.port}", options) as client:
        for result in client.call(reads()):
            samples.value += result.signal_samples
            lost.value += result.status is not ReadStatus.CALLED or result.info.read_id in came
            came.add(result.info.read_id)
    lost.value += len(sent - came)


class Checks:
    """Checks liveness and readiness at the health port, each on its own connection as the kubelet does."""

    def __init__(self, port: int) -> None:
        self.slowest_s, self.failed = 0.0, 0
        self._port, self._stop = port, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            for service in ("liveness", ""):
                began_s = time.monotonic()
                options = [("grpc.use_local_subchannel_pool", 1)]
                with grpc.insecure_channel(f"127.0.0.1:{self._port}", options) as channel:
                    try:
                        request = health_pb2.HealthCheckRequest(service=service)
                        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=CHECK_TIMEOUT_S)
                        self.failed += answer.status != health_pb2.HealthCheckResponse.SERVING
                    except grpc.RpcError:
                        self.failed += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)


class Field:
    """A server on the first core with an honest stream, attacked by one attack after another."""

    def __init__(self, folder: Path, model: str, log: str) -> None:
        self._folder, self._authority = folder, trustme.CA()
        _issue(self._authority, folder)
        self._authority.cert_pem.write_to_path(str(folder / "ca.crt"))
        (folder / "tokens").write_text(f"{HONEST} name=honest\n{ATTACKER} name=attacker\n")
        (folder / "tokens").chmod(0o600)
        (folder / "honest.token").write_text(HONEST)
        port, health_port, metrics_port = (_free_port() for _ in range(3))
        flags = {
            "--model": model,
            "--listen": f"127.0.0.1:{port}",
            "--health-listen": f"127.0.0.1:{health_port}",
            "--metrics-port": metrics_port,
            "--tls-certificate": folder / "tls.crt",
            "--tls-key": folder / "tls.key",
            "--token-file": folder / "tokens",
            "--memory-budget": BUDGET_BYTES,
            "--threads": 1,
            "--log-format": "json",
        }
        command = [str(Path(sys.executable).with_name("porestream")), "serve"]
        self._cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, self._cores[:1])
        with open("/dev/full" if log == "full disk" else os.devnull, "w") as sink:
            self._server = subprocess.Popen(
                [*command, *(str(word) for flag in flags.items() for word in flag)],
                stderr=subprocess.PIPE if log == "full pipe" else sink,  # nobody reads the pipe, which holds 64 KB
            )
        os.sched_setaffinity(0, self._cores[1:2] or self._cores)
        relay_port = _spawn.Value("i", 0)
        self._relay = _spawn.Process(target=_relay, args=(port, relay_port), daemon=True)
        self._relay.start()
        _wait_until(lambda: bool(relay_port.value) and _takes(port))
        self._victim = Victim(
            port=port,
            health_port=health_port,
            metrics_port=metrics_port,
            authority=folder / "ca.crt",
            relay_port=relay_port.value,
        )
        time.sleep(1)
        self._idle_bytes = self._resident("VmRSS")
        self._samples, self._lost = _spawn.Value("q", 0), _spawn.Value("q", 0)
        self._stop_honest = _spawn.Event()
        self._honest = _spawn.Process(
            target=_be_honest,
            args=(self._victim, folder, self._stop_honest, self._samples, self._lost),
            daemon=True,
        )
        self._honest.start()
        _wait_until(lambda: self._samples.value > 16 * _LONG_SAMPLES)

    def close(self) -> int:
        """Let the honest stream end; return how many of its reads were lost, or never came back."""
        self._stop_honest.set()
        self._honest.join(120)
        lost = self._lost.value + (self._honest.exitcode != 0)
        self._honest.kill()
        self._relay.kill()
        self._server.kill()
        self._server.wait()
        os.sched_setaffinity(0, self._cores)
        return int(lost)

    def attack(self, name: str, seconds: float) -> Outcome:
        """Run one attack for this long."""
        before = self._speed(seconds)
        Path(f"/proc/{self._server.pid}/clear_refs").write_text("5")
        lost = self._lost.value
        stop, told = _spawn.Event(), _spawn.Queue()
        attacker = _spawn.Process(target=_attack, args=(name, self._victim, stop, told), daemon=True)
        attacker.start()
        time.sleep(2.0)  # it takes this long to import what it needs
        checks = Checks(self._victim.health_port)
        rotations = threading.Thread(target=self._rotate, args=(seconds,)) if "rotations" in name else None
        if rotations:
            rotations.start()
        speed = self._speed(seconds)
        if rotations:
            rotations.join()
        stop.set()
        checks.end()
        try:
            did = told.get(timeout=60)
        except queue.Empty:
            did = "the attacker failed"
        attacker.join(10)
        attacker.kill()
        return Outcome(
            name=name,
            did=did,
            speed_before=before,
            speed=speed,
            memory_bytes=self._resident("VmHWM") - self._idle_bytes if self._server.poll() is None else 0,
            slowest_check_s=checks.slowest_s,
            failed_checks=checks.failed,
            lost_reads=self._lost.value - lost,
            alive=self._server.poll() is None and self._honest.is_alive(),
        )

    def _rotate(self, seconds: float) -> None:
        for _ in range(ROTATIONS):
            _issue(self._authority, self._folder)
            time.sleep(seconds / ROTATIONS)

    def _speed(self, seconds: float) -> float:
        """Return the honest stream's speed in samples per second."""
        began_s, before = time.monotonic(), self._samples.value
        time.sleep(seconds)
        return float(self._samples.value - before) / (time.monotonic() - began_s)

    def _resident(self, which: str) -> int:
        found = re.search(rf"{which}:\s+(\d+) kB", Path(f"/proc/{self._server.pid}/status").read_text())
        return int(found[1]) << 10 if found else 0


def _takes(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 120
    while not is_so():
        if time.monotonic() > deadline_s:
            raise SystemExit("attack: the server did not start, or does not call anything")
        time.sleep(0.1)


def outcomes(names: list[str], seconds: float, model: str) -> Iterator[Outcome]:
    """Yield the outcomes of these attacks. Those that fill the log also run against servers whose log is blocked."""
    for log in ("", "full disk", "full pipe"):
        chosen = [name for name in names if not log or name in FILL_THE_LOG]
        if not chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            field = Field(Path(folder), model, log)
            for name in chosen:
                yield replace(field.attack(name, seconds), name=f"{name}, log on a {log}" if log else name)
            if lost := field.close():
                raise SystemExit(f"attack: {lost} reads of the honest stream were lost")


def main() -> None:
    """Run the attacks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"any of: {'; '.join(ATTACKS)} (default: all)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=15,
        help="length of each attack, and of the measurement before it (default: 15)",
    )
    parser.add_argument("--model", default="auto", help="the server's model (default: the bundled one)")
    options = parser.parse_args()
    if unknown := set(options.attacks) - set(ATTACKS):
        parser.error(f"unknown attack: {', '.join(unknown)}")
    print("| attack | did | honest stream before, k samples/s | share of that | memory, MB | slowest check, s |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    problems: list[str] = []
    for row in outcomes(options.attacks or list(ATTACKS), options.seconds, options.model):
        print(
            f"| {row.name} | {row.did} | {row.speed_before / 1000:,.0f} | {row.speed / row.speed_before:.2f} | "
            f"{row.memory_bytes / 1e6:,.0f} | {row.slowest_check_s:.2f} |",
            flush=True,
        )
        problems += [f"{row.name}: {problem}" for problem in row.problems]
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
