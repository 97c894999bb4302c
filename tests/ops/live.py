"""A real server with TLS and tokens, and Debian's Prometheus that scrapes it, for tests."""

import importlib.util
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

ROOT = Path(__file__).resolve().parents[2]
PORESTREAM = [sys.executable, "-m", "porestream.cli.main"]
_PATIENCE_S = 60.0


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def tool(name: str) -> str:
    """Where a program is; the test is skipped where it is missing, except in CI."""
    if path := shutil.which(name):
        return path
    way_out = "https://kubernetes.io/docs/tasks/tools has it" if name == "kubectl" else "make ops-check installs it"
    message = f"{name} is missing: {way_out}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def module_at(path: Path) -> Any:
    """A Python file of deploy/, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def wait_for(what: str, ready: Callable[[], object], patience_s: float = _PATIENCE_S) -> None:
    """Until it is so; fails with `what` was waited for."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            if ready():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.1)


class Server:
    """`porestream serve` in a process of its own, with TLS, a token, a health port and a metrics port."""

    def __init__(self, folder: Path, *flags: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        authority.cert_pem.write_to_path(str(folder / "ca.crt"))
        issued.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
        issued.private_key_pem.write_to_path(str(folder / "tls.key"))
        (folder / "tokens").write_text("0123456789abcdef0123456789abcdef\n")
        port, health_port, self.metrics_port = free_port(), free_port(), free_port()
        self.address, self.health_address = f"localhost:{port}", f"127.0.0.1:{health_port}"
        self.url = f"http://127.0.0.1:{self.metrics_port}"
        self.meet = [
            "--server",
            self.address,
            "--tls-ca",
            str(folder / "ca.crt"),
            "--token-file",
            str(folder / "tokens"),
        ]
        self.log = folder / "server.log"
        secrets = ["--tls-certificate", folder / "tls.crt", "--tls-key", folder / "tls.key"]
        secrets += ["--token-file", folder / "tokens"]
        ports = ["--listen", self.address, "--health-listen", self.health_address, "--metrics-port", self.metrics_port]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*PORESTREAM, "serve", *map(str, (*secrets, *ports, *flags))], stderr=log, stdout=log
            )
        wait_for("the server", self._is_ready)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        command = [*PORESTREAM, "health", "--server", self.health_address]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def metrics(self) -> str:
        """What it tells Prometheus now."""
        return str(urllib.request.urlopen(f"{self.url}/metrics", timeout=10).read().decode())

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(60)


class Prometheus:
    """Debian's Prometheus on loopback.

    Parameters
    ----------
    folder
        For its data.
    target
        HOST:PORT to scrape each second; None: nothing.
    rules
        Files of rules, evaluated each second.
    """

    def __init__(self, folder: Path, target: str | None, rules: list[Path]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [{"job_name": "porestream", "static_configs": [{"targets": [target]}]}] if target else []
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": jobs,
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self.url = f"http://127.0.0.1:{free_port()}"
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    tool("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
            )
        wait_for("Prometheus", lambda: urllib.request.urlopen(f"{self.url}/-/ready", timeout=5).status == 200)

    def ask(self, path: str, **parameters: object) -> Any:
        """Its HTTP API's answer."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression: str, **parameters: str) -> list[Any]:
        """An instant query's series."""
        data = self.ask("query", query=expression, **parameters)
        return [data["result"]] if data["resultType"] == "scalar" else list(data["result"])

    def has_data(self, expression: str, end_s: float, span_s: float = 60.0) -> bool:
        """Whether a range query, as Grafana's panels are, gives any number."""
        step_s = span_s / 30
        data = self.ask("query_range", query=expression, start=end_s - span_s, end=end_s, step=step_s)
        return any(not math.isnan(float(value)) for series in data["result"] for _, value in series["values"])

    def value(self, expression: str) -> float:
        """Of a query that gives one number."""
        (series,) = self.query(expression)
        return float(series["value"][1])

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)


@contextmanager
def prometheus(folder: Path, target: str | None, rules: list[Path]) -> Iterator[Prometheus]:
    """`Prometheus`, stopped in the end."""
    running = Prometheus(folder, target, rules)
    try:
        yield running
    finally:
        running.stop()
