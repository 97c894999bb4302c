"""Check addresses that users enter: gRPC accepts almost anything and interprets it in its own way."""

import re
import tempfile
from urllib.parse import urlsplit

_GRPC_SCHEMES = re.compile(r"(dns|ipv4|ipv6|xds|unix-abstract):")
_NOT_IN_SOCKET_PATHS = "#?,%"
_MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un


def wrong_address(address: str, *, listens: bool = False) -> str:
    """Return what is wrong with HOST:PORT or unix:PATH and how to fix it; empty if nothing is wrong.

    Parameters
    ----------
    address
        The address as the user entered it.
    listens
        Whether the server is to listen on it: port 0 then means any free port. Otherwise gRPC's own schemes
        (dns:///HOST:PORT) are allowed too.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path.strip("/"):
            return f"{address}: the socket path is missing; write for example unix:/run/porestream.sock"
        if found := set(path) & set(_NOT_IN_SOCKET_PATHS):
            return f"{address}: gRPC does not allow {' '.join(sorted(found))} in a socket path; choose another path"
        if len(path.encode()) > _MAX_SOCKET_PATH_BYTES:
            return f"{address}: a socket path may have at most {_MAX_SOCKET_PATH_BYTES} bytes; choose a shorter one"
        return ""
    if not listens and _GRPC_SCHEMES.match(address):
        return ""
    if "://" in address:
        return f"{address}: this is a URL; write HOST:PORT, for example {_with_port(urlsplit(address).netloc)}"
    host, colon, port = address.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        return f"{address}: put an IPv6 address in brackets, for example [::1]:50051"
    if not colon or not port.isascii() or not port.isdigit():
        return f"{address}: the port is missing; write HOST:PORT, for example {_with_port(address.rstrip(':'))}"
    if not (0 if listens else 1) <= int(port) <= 65535:
        return f"{address}: port {port} is out of range; choose one from 1 to 65535"
    if not host:
        return f"{address}: the host is missing; write HOST:PORT, for example 127.0.0.1:{port}"
    return ""


def _with_port(host: str) -> str:
    return host if re.search(r":\d+$", host) else f"{host or 'HOST'}:50051"


def short_folder() -> str | None:
    """Return /tmp if socket paths in TMPDIR would be too long or have forbidden characters; None if TMPDIR is fine."""
    longest = f"unix:{tempfile.gettempdir()}/porestream-xxxxxxxx/socket"
    return "/tmp" if wrong_address(longest, listens=True) else None
