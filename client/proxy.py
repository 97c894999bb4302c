"""Which HTTP proxy stands between client and server: gRPC would send loopback through it, and knows no NO_PROXY."""

import ipaddress
import re
from typing import NamedTuple
from urllib.request import getproxies_environment

_SCHEMES = ("grpc", "https", "http")  # which gRPC looks for, in this order


class Proxy(NamedTuple):
    """A proxy's URL, and who names it: "--proxy", or an environment variable."""

    url: str
    named_by: str

    def __str__(self) -> str:
        shown = re.sub(r"//[^/@]*@", "//***@", self.url)
        return f"the proxy {shown} ({self.named_by})"


def proxy_for(target: str, asked: str = "") -> Proxy | None:
    """The proxy on the way to HOST:PORT; None for loopback, Unix sockets, and what NO_PROXY or no_proxy exempts.

    Parameters
    ----------
    target
        As gRPC takes it.
    asked
        A proxy's URL that goes before the environment (GRPC_PROXY, HTTPS_PROXY, HTTP_PROXY, in either case).
    """
    host = _host_of(target)
    if not host or _is_loopback(host):
        return None
    if asked:
        return Proxy(asked if "://" in asked else f"http://{asked}", "--proxy")
    found = getproxies_environment()
    if not any(found.get(scheme) for scheme in _SCHEMES):
        return None
    exempt = ",".join([found.get("no", ""), found.get("no_grpc", "")])
    if any(_is_exempt(host, entry) for entry in exempt.replace(",", " ").split()):
        return None
    scheme = next(scheme for scheme in _SCHEMES if found.get(scheme))
    return Proxy(found[scheme] if "://" in found[scheme] else f"http://{found[scheme]}", f"{scheme}_proxy")


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
