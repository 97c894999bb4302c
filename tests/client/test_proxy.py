"""Proxies: what the environment says, and what a server behind none, or behind one that is not there, looks like."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from porestream.client.channel import Credentials, way_to
from porestream.client.client import BasecallClient
from porestream.client.opening import ServerLost, StreamOptions
from porestream.client.proxy import proxy_for

NAMES = [f"{scheme}_proxy" for scheme in ("grpc", "https", "http", "no", "no_grpc")]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("environment", "target", "expected"),
    [
        ({"http_proxy": "http://p:1"}, "node7:50051", "http://p:1"),
        ({"https_proxy": "p:1"}, "node7:50051", "http://p:1"),
        ({"HTTPS_PROXY": "p:1"}, "node7:50051", None),  # gRPC looks for lower case only, and servers may be near
        ({"http_proxy": "http://a:1", "grpc_proxy": "http://b:2"}, "dns:///node7:50051", "http://b:2"),
        ({"http_proxy": "http://p:1"}, "127.0.0.1:50051", None),
        ({"http_proxy": "http://p:1"}, "127.8.9.1:50051", None),
        ({"http_proxy": "http://p:1"}, "[::1]:50051", None),
        ({"http_proxy": "http://p:1"}, "localhost:50051", None),
        ({"http_proxy": "http://p:1"}, "unix:/run/s", None),
        ({"http_proxy": "http://p:1", "no_proxy": "node7"}, "node7:50051", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "*.lab, other"}, "node7.lab:50051", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "lab"}, "node7.collab:50051", "http://p:1"),
        ({"http_proxy": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "10.1.2.3:50051", None),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, "node7:50051", None),
        ({}, "node7:50051", None),
    ],
    ids=str,
)
def test_which_proxy(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], target: str, expected: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_for(target)
    assert (found.url if found else None) == expected


def test_one_that_is_asked_for_goes_first_and_its_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://other:1")
    credentials = Credentials(proxy="http://me:secret@p:3128")
    assert way_to("node7:50051", credentials) == "node7:50051 through the proxy http://***@p:3128 (--proxy)"
    odd = Credentials(proxy="me:se@cr@et@p:3128")
    assert way_to("node7:50051", odd) == "node7:50051 through the proxy http://***@p:3128 (--proxy)"
    assert way_to("localhost:50051", credentials) == "localhost:50051"
    monkeypatch.setenv("no_proxy", "node7")  # as curl has it, and gRPC
    assert way_to("node7:50051", credentials) == "node7:50051"


@pytest.mark.parametrize("password", ["se/cret", "se?cret", "se#cret", "se cret", "se\\cret"])
def test_a_password_that_would_be_taken_for_a_host_is_refused_and_not_shown(password: str) -> None:
    for url in (f"http://me:{password}@p:3128", f"me:{password}@p:3128"):
        with pytest.raises(ValueError, match=r"--proxy: escape the password in the proxy's URL: / as %2F") as refused:
            proxy_for("node7:50051", url)
        assert "cret" not in str(refused.value)


@contextmanager
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """One that refuses everybody, and what it was asked for."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(4096).split(b"\r\n")[0])
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_loopback_is_met_without_the_proxy(start_server, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    server = start_server()
    with proxy() as (url, asked):
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, url)
        assert asyncio.run(BasecallClient(server.address).server_info()).models
    assert not asked


@pytest.mark.parametrize("where", ["environment", "--proxy"])
def test_a_proxy_is_asked_and_named(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with proxy() as (url, asked):
        if where == "environment":
            monkeypatch.setenv("https_proxy", url)
        options = StreamOptions(credentials=Credentials(proxy=url if where == "--proxy" else ""))
        with pytest.raises(ServerLost) as lost:
            asyncio.run(BasecallClient("node7.invalid:50051", options).server_info(timeout_s=1.0))
    assert asked[0] == b"CONNECT node7.invalid:50051 HTTP/1.1"
    named_by = "https_proxy" if where == "environment" else "--proxy"
    assert f"node7.invalid:50051 through the proxy {url} ({named_by}) did not answer" in str(lost.value)
