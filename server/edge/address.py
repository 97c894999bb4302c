"""Addresses as users write them: gRPC itself takes almost anything, and makes something else of it."""

import re
import tempfile
from urllib.parse import urlsplit

_GRPC_SCHEMES = re.compile(r"(dns|ipv4|ipv6|xds|unix-abstract):")
_NOT_IN_SOCKET_PATHS = "#?,%"
_MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un


def wrong_address(address: str, *, listens: bool = False) -> str:
    """What is wrong with HOST:PORT or unix:PATH, and the way out; empty: nothing.

    Parameters
    ----------
    address
        As a user gave it.
    listens
        Whether it is to be listened on: port 0 is a free one then. Otherwise gRPC's own schemes (dns:///HOST:PORT) are
        taken, too.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path.strip("/"):
            return f"{address}: no path in it; unix:/run/porestream.sock is one"
        if found := set(path) & set(_NOT_IN_SOCKET_PATHS):
            return f"{address}: gRPC takes no {' '.join(sorted(found))} in a socket's path; choose another"
        if len(path.encode()) > _MAX_SOCKET_PATH_BYTES:
            return f"{address}: a socket's path has at most {_MAX_SOCKET_PATH_BYTES} bytes; choose a shorter one"
        return ""
    if not listens and _GRPC_SCHEMES.match(address):
        return ""
    if "://" in address:
        return f"{address}: a URL; HOST:PORT is wanted, as {_with_port(urlsplit(address).netloc)}"
    host, colon, port = address.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        return f"{address}: an IPv6 address stands in brackets, as [::1]:50051"
    if not colon or not port.isascii() or not port.isdigit():
        return f"{address}: no port in it; HOST:PORT is wanted, as {_with_port(address.rstrip(':'))}"
    if not (0 if listens else 1) <= int(port) <= 65535:
        return f"{address}: there is no port {port}; they go from 1 to 65535"
    if not host:
        return f"{address}: no host in it; HOST:PORT is wanted, as 127.0.0.1:{port}"
    return ""


def _with_port(host: str) -> str:
    return host if re.search(r":\d+$", host) else f"{host or 'HOST'}:50051"


def short_folder() -> str | None:
    """Where a socket's path is one that Unix and gRPC take: /tmp, where TMPDIR is none."""
    longest = f"unix:{tempfile.gettempdir()}/porestream-xxxxxxxx/socket"
    return "/tmp" if wrong_address(longest, listens=True) else None
