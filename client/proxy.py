"""Choose the HTTP proxy for a server. Left alone, gRPC would proxy loopback too, and ignore NO_PROXY."""

import ipaddress
import os
import re
from typing import NamedTuple

_NAMES = ("grpc_proxy", "https_proxy", "http_proxy")  # the ones gRPC reads, in this order and case


class Proxy(NamedTuple):
    """A proxy's URL, and where it was set: "--proxy" or an environment variable."""

    url: str
    named_by: str

    def __str__(self) -> str:
        return f"the proxy {without_password(self.url)} ({self.named_by})"


def without_password(url: str) -> str:
    """Mask a proxy's URL for display: anything before the last @ may be a password, or part of one."""
    return re.sub(r"^([^:/]*://)?.*@", r"\1***@", url, flags=re.DOTALL)


def proxy_for(target: str, asked: str = "") -> Proxy | None:
    """Return the proxy for HOST:PORT; None for loopback, Unix sockets, and hosts in no_proxy or NO_PROXY.

    Parameters
    ----------
    target
        The address, as gRPC takes it.
    asked
        A proxy's URL; overrides grpc_proxy, https_proxy and http_proxy in the environment.

    Raises
    ------
    ValueError
        The password in the URL has unescaped characters; gRPC's own message would print it.
    """
    host = _host_of(target)
    if not host or _is_loopback(host) or any(_is_exempt(host, entry) for entry in _exemptions()):
        return None
    if asked:
        return _proxy(asked, "--proxy")
    for name in _NAMES:
        if url := os.environ.get(name, ""):
            return _proxy(url, name)
    return None


def _proxy(url: str, named_by: str) -> Proxy:
    if re.search(r"[/?#\s\\].*@", url.partition("://")[2] or url, re.DOTALL):
        raise ValueError(
            f"{named_by}: escape the password in the proxy's URL: / as %2F, ? as %3F, # as %23, @ as %40, space as %20"
        )
    return Proxy(url if "://" in url else f"http://{url}", named_by)


def _exemptions() -> list[str]:
    """Return the entries of no_proxy, in either case."""
    found = (os.environ.get(name, "") for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"))
    return ",".join(found).replace(",", " ").split()


def _host_of(target: str) -> str:
    """Return the host; empty if there is none."""
    if target.startswith("unix"):
        return ""
    host, _, _ = target.removeprefix("dns:").rpartition("/")[2].rpartition(":")
    return host.strip("[]")


def _is_exempt(host: str, entry: str) -> bool:
    """Whether a no_proxy entry covers this host: *, a domain and its subdomains, or a network (10.0.0.0/8)."""
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        name = entry.lower().lstrip("*").lstrip(".")
        return bool(name) and f".{host.lower()}".endswith(f".{name}")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
