"""TLS and tokens. The server reloads certificate, key and tokens when their files change, so secrets can be rotated."""

import hmac
import os
import re
import ssl
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from porestream.server.metrics import SECRETS_STALE
from porestream.server.reads import Priority
from porestream.server.settings import SettingsError

log = structlog.get_logger()

_MIN_TOKEN_LENGTH = 16
_EMPTY_S = 10.0
_FIELD = re.compile(rb"(name|role|priorities)=")
_T = TypeVar("_T")


class _Watched(Generic[_T]):
    """The contents of files, reloaded when one of them changes. If they become unusable, the old contents stay."""

    def __init__(self, paths: list[Path], read: Callable[[], _T]) -> None:
        self._paths, self._read = paths, read
        self._lock = threading.Lock()
        self._state = self._look()
        self._value = read()
        self.is_stale = False

    def get(self) -> _T:
        """Return the contents, reloading the files if they changed."""
        with self._lock:
            state = self._look()
            if state != self._state:
                was_stale, self.is_stale = self.is_stale, False
                try:
                    self._value = self._read()
                    log.info("secrets reloaded", files=[str(path) for path in self._paths])
                except SettingsError as error:  # also happens while only one of two files has been replaced
                    self.is_stale = True
                    log.error("cannot reload the secrets; keeping the old ones", reason=str(error))
                if self.is_stale != was_stale:
                    SECRETS_STALE.inc(1 if self.is_stale else -1)
                self._state = state
            return self._value

    def _look(self) -> list[tuple[int, int, int]]:
        found = []
        for path in self._paths:
            try:
                status = os.stat(path)
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                found.append((0, 0, 0))
        return found


class Certificate:
    """The server's certificate and key.

    Raises
    ------
    SettingsError
        The files cannot be read, or don't match.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self._pair = _Watched([certificate, key], self._read)

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for a new connection. Open connections keep theirs when the files change."""
        return self._pair.get()[0]

    def expiry_s(self) -> float:
        """When the certificate expires, in Unix time."""
        return self._pair.get()[1]

    def _read(self) -> tuple[ssl.SSLContext, float]:
        chain, key = (_read_file(path) for path in (self._certificate, self._key))
        try:
            certificate = x509.load_pem_x509_certificates(chain)[0]
        except ValueError as error:
            raise SettingsError(f"{self._certificate}: not a certificate in PEM format") from error
        try:
            private = load_pem_private_key(key, None)
        except (TypeError, ValueError, UnsupportedAlgorithm) as error:
            raise SettingsError(f"{self._key}: not an unencrypted private key in PEM format") from error
        if not isinstance(private, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey):
            kind = type(private).__name__.removesuffix("PrivateKey").strip("_")
            raise SettingsError(f"{self._key}: TLS clients do not support {kind} keys; use an RSA, EC or Ed25519 key")
        if private.public_key() != certificate.public_key():
            raise SettingsError(f"{self._key} is not the key of {self._certificate}; use the files of one pair")
        if self._key.stat().st_mode & stat.S_IWOTH:
            raise SettingsError(f"{self._key}: everybody can write to this file; chmod o-w")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["h2"])
        try:
            context.load_cert_chain(self._certificate, self._key)
        except (ssl.SSLError, OSError) as error:  # or the files changed since they were read above
            raise SettingsError(f"{self._certificate}, {self._key}: OpenSSL rejects them: {error}") from error
        return context, certificate.not_valid_after_utc.timestamp()


class Role(Enum):
    """What a token allows."""

    CALLER = "caller"
    WATCHER = "watcher"  # may query the server, but not have reads called


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One line of the token file."""

    secret: bytes = field(repr=False)
    name: str = ""
    role: Role = Role.CALLER
    priorities: frozenset[Priority] = frozenset(Priority)


class Tokens:
    """The tokens clients may use, one per line: TOKEN [name=NAME] [role=caller|watcher] [priorities=live,bulk].

    An empty file revokes all tokens, but only after ten seconds, because some tools empty a file before writing it. If
    the file is gone or unusable, the old tokens stay valid and a metric says so; with `fail_closed` no token is valid.

    Raises
    ------
    SettingsError
        The file cannot be read, has no tokens, has one that is too short to be safe, or everybody can write to it.
    """

    def __init__(self, path: Path, *, fail_closed: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._fail_closed, self._clock = path, fail_closed, clock
        self._tokens = _Watched([path], self._read)
        self._empty_since_s: float | None = None
        self._last = self._tokens.get()
        if not self._last:
            raise SettingsError(f"{path}: the file has no tokens; make one with `openssl rand -hex 32`")

    def valid(self) -> list[Token]:
        """Return the tokens that are valid now."""
        tokens = self._tokens.get()
        is_bad = not tokens or (self._fail_closed and self._tokens.is_stale)
        if not is_bad:
            self._empty_since_s, self._last = None, tokens
            return tokens
        now_s = self._clock()
        if self._empty_since_s is None:
            self._empty_since_s = now_s
        if now_s - self._empty_since_s < _EMPTY_S:
            return self._last
        return []

    def find(self, metadata: Any) -> Token | None:
        """Return the token in a call's metadata (`authorization: Bearer TOKEN`); None if no valid one is there."""
        given = next((value for key, value in metadata or () if key == "authorization"), "")
        scheme, _, secret = given.partition(" ") if isinstance(given, str) else ("", "", "")
        encoded = secret.strip().encode()
        found = [token for token in self.valid() if hmac.compare_digest(encoded, token.secret)]
        return found[0] if found and scheme.lower() == "bearer" else None

    def _read(self) -> list[Token]:
        try:
            mode = self._path.stat().st_mode
        except OSError as error:
            raise SettingsError(f"{self._path}: {error.strerror}") from error
        if mode & stat.S_IWOTH:
            raise SettingsError(f"{self._path}: everybody can write to this file and add a token; chmod o-w")
        if mode & stat.S_IROTH:
            log.warning("everybody on this machine can read the tokens; chmod o-r", file=str(self._path))
        text = _read_file(self._path).removeprefix(b"\xef\xbb\xbf")  # the byte order mark of Windows editors
        tokens = [token for number, line in enumerate(text.splitlines(), 1) for token in self._parse(line, number)]
        names = Counter(token.name for token in tokens if token.name)
        if doubles := [name for name, count in names.items() if count > 1]:
            raise SettingsError(f"{self._path}: two tokens are named {doubles[0]!r}; names must be unique")
        return tokens

    def _parse(self, line: bytes, number: int) -> Iterator[Token]:
        """Yield the tokens in a line: one with fields, or several without."""
        where = f"{self._path}, line {number}"
        words = line.partition(b"#")[0].split()
        fields = [word for word in words if _FIELD.match(word)]
        secrets = [word for word in words if not _FIELD.match(word)]
        if any(len(secret) < _MIN_TOKEN_LENGTH for secret in secrets):
            raise SettingsError(
                f"{where}: a token has fewer than {_MIN_TOKEN_LENGTH} characters; "
                "make a longer one with `openssl rand -hex 32`"
            )
        if fields and len(secrets) != 1:
            raise SettingsError(
                f"{where}: a line with name=, role= or priorities= must have exactly one token; it has {len(secrets)}"
            )
        found = dict(word.decode(errors="replace").split("=", 1) for word in fields)
        name = found.get("name", "")
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,64}", name):
            raise SettingsError(
                f"{where}: the token's name is invalid; use up to 64 letters, digits, dots, dashes and underscores"
            )
        try:
            role = Role(found.get("role", Role.CALLER.value))
        except ValueError as error:
            known = ", ".join(role.value for role in Role)
            raise SettingsError(f"{where}: unknown role {found['role']!r}; choose from {known}") from error
        try:
            chosen = found["priorities"].upper().split(",") if "priorities" in found else Priority.__members__
            priorities = frozenset(Priority[priority] for priority in chosen)
        except KeyError as error:
            raise SettingsError(
                f"{where}: unknown priority {error.args[0].lower()!r}; choose from live, standard, bulk"
            ) from error
        for secret in secrets:
            yield Token(secret=secret, name=name, role=role, priorities=priorities)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
