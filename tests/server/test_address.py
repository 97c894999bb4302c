"""Addresses that gRPC would make something else of."""

import pytest
from click.testing import CliRunner

from porestream.cli.main import main
from porestream.server.address import wrong_address
from porestream.server.settings import SettingsError, load_settings

RIGHT = [
    "node7:50051",
    "127.0.0.1:1",
    "[::1]:65535",
    "unix:/run/porestream.sock",
    "unix:relative",
    "dns:///node7:50051",
    "ipv4:10.0.0.1:50051,10.0.0.2:50051",
]
WRONG = {
    "node7": "the port is missing; write HOST:PORT, for example node7:50051",
    "node7:": "the port is missing; write HOST:PORT, for example node7:50051",
    "node7:http": "the port is missing",
    "http://node7:50051": "this is a URL; write HOST:PORT, for example node7:50051",
    "https://node7/": "this is a URL; write HOST:PORT, for example node7:50051",
    "127.0.0.1:99999": "port 99999 is out of range",
    "127.0.0.1:0": "port 0 is out of range",
    "::1:50051": "put an IPv6 address in brackets",
    ":50051": "the host is missing",
    "unix:": "the socket path is missing",
    "unix:/tmp/a#b": "gRPC does not allow #",
    "unix:/tmp/a,b?": "gRPC does not allow , ?",
    "unix:/tmp/%41": "gRPC does not allow %",
    "unix:/" + 120 * "a": "a socket path may have at most 107 bytes",
}


@pytest.mark.parametrize("address", RIGHT)
def test_what_is_right(address: str) -> None:
    assert wrong_address(address) == ""


@pytest.mark.parametrize("address", WRONG)
@pytest.mark.parametrize("command", [["health"], ["call", "a.pod5"]], ids=" ".join)
def test_what_is_wrong_is_said_at_once(address: str, command: list[str]) -> None:
    assert wrong_address(address).startswith(f"{address}: {WRONG[address]}")
    result = CliRunner().invoke(main, [*command, "--server", address])
    assert result.exit_code == 2
    assert f"--server {address}: {WRONG[address]}" in result.stderr


@pytest.mark.parametrize("name", ["listen", "health_listen"])
def test_where_a_server_listens(name: str) -> None:
    assert wrong_address("127.0.0.1:0", listens=True) == "", "a free port"
    for address in ("127.0.0.1:99999", "dns:///node7:50051", "127.0.0.1"):
        with pytest.raises(SettingsError, match=f"setting '{name}': .*{address}"):
            load_settings({name: address}, None)
