"""Many clients that connect with TLS at once, as after a break: gRPC's server once crashed within the first storm."""

import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from servers import serving

from porestream.cli.main import main

STORMS, CLIENTS, ROTATIONS = 8, 100, 8


def issue(authority: trustme.CA, folder: Path) -> None:
    """A certificate in the place of the one before, file by file, as tools do it."""
    issued = authority.issue_cert("localhost")
    for name, data in (
        ("tls.key", issued.private_key_pem.bytes()),
        ("tls.crt", b"".join(pem.bytes() for pem in issued.cert_chain_pems)),
    ):
        (folder / f"{name}.new").write_bytes(data)
        os.replace(folder / f"{name}.new", folder / name)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(tiny_model: Path, authority: trustme.CA, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    issue(authority, tmp_path)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    secrets = ["--tls-certificate", tmp_path / "tls.crt", "--tls-key", tmp_path / "tls.key"]
    process = serving("--model", tiny_model, "--listen", f"127.0.0.1:{port}", *secrets)
    assert process.stderr is not None
    log = threading.Thread(target=process.stderr.read, daemon=True)
    log.start()
    yield process, port
    process.kill()
    process.wait()
    log.join(10)


def test_storms_of_handshakes(server: tuple[subprocess.Popen[str], int], authority: trustme.CA, tmp_path: Path) -> None:
    process, port = server
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    shaken = []

    def meet() -> None:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as encrypted,
        ):
            shaken.append(encrypted.version())

    for storm in range(STORMS):
        clients = [threading.Thread(target=meet) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        if storm >= STORMS - ROTATIONS:  # in the midst of it
            issue(authority, tmp_path)
        for client in clients:
            client.join()
        assert process.poll() is None, f"dead in storm {storm}"
    assert len(shaken) == STORMS * CLIENTS
    health = ["health", "--server", f"localhost:{port}", "--tls-ca", str(tmp_path / "ca.crt")]
    assert CliRunner().invoke(main, health).output == "SERVING\n"
