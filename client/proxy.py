"""Which HTTP proxy stands between client and server: gRPC would send loopback through it, and knows no NO_PROXY."""

import ipaddress
import os
import re
from typing import NamedTuple

_NAMES = ("grpc_proxy", "https_proxy", "http_proxy")  # which gRPC looks for, in this order and case


class Proxy(NamedTuple):
    """A proxy's URL, and who names it: "--proxy", or an environment variable."""

    url: str
    named_by: str

    def __str__(self) -> str:
        return f"the proxy {without_password(self.url)} ({self.named_by})"


def without_password(url: str) -> str:
    """A proxy's URL to be shown: whatever stands before its last @ may be a password, or part of one."""
    return re.sub(r"^([^:/]*://)?.*@", r"\1***@", url, flags=re.DOTALL)


def proxy_for(target: str, asked: str = "") -> Proxy | None:
    """The proxy on the way to HOST:PORT; None for loopback, Unix sockets, and what no_proxy or NO_PROXY exempts.

    Parameters
    ----------
    target
        As gRPC takes it.
    asked
        A proxy's URL that goes before the environment's grpc_proxy, https_proxy and http_proxy.

    Raises
    ------
    ValueError
        What stands in the URL as a password cannot; gRPC's message about it would have it in it.
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
            f"{named_by}: in a proxy's URL a password has / as %2F, ? as %3F, # as %23, @ as %40 and a space as %20"
        )
    return Proxy(url if "://" in url else f"http://{url}", named_by)


def _exemptions() -> list[str]:
    """What no_proxy says, in either case."""
    found = (os.environ.get(name, "") for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"))
    return ",".join(found).replace(",", " ").split()


def _host_of(target: str) -> str:
    """Empty where there is none."""
    if target.startswith("unix"):
        return ""
    host, _, _ = target.removeprefix("dns:").rpartition("/")[2].rpartition(":")
    return host.strip("[]")


def _is_exempt(host: str, entry: str) -> bool:
    """Whether an entry of no_proxy means this host: *, a name and all below it, or a network (10.0.0.0/8)."""
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
