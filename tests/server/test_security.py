"""TLS and tokens, and their rotation; health on a port of its own."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import grpc
import numpy as np
import pytest
import trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from structlog.testing import capture_logs

from porestream.cli.main import main
from porestream.client import BasecallClient, ReadInfo, RunInfo, SignalRead, StreamOptions, SyncBasecallClient
from porestream.client.channel import Credentials, open_channel
from porestream.client.opening import ServerLost, ServerRefused
from porestream.server.edge import rpc
from porestream.server.edge.security import Certificate, Role, Tokens
from porestream.server.metrics import SECRETS_STALE, TOKEN_SAMPLES_RECEIVED, TOKEN_STREAMS
from porestream.server.reads import Priority
from porestream.server.settings import SettingsError, load_settings
from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def write_certificate(folder: Path, authority: trustme.CA, **options: object) -> tuple[Path, Path]:
    issued = authority.issue_cert("localhost", **options)  # type: ignore[arg-type]
    certificate, key = folder / "tls.crt", folder / "tls.key"
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


@pytest.fixture
def secrets(tmp_path: Path, authority: trustme.CA) -> dict[str, Path]:
    certificate, key = write_certificate(tmp_path, authority)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    (tmp_path / "tokens").write_text(f"another-token-of-somebody\n{TOKEN}\n")
    (tmp_path / "token").write_text(TOKEN + "\n")
    return {
        "tls_certificate": certificate,
        "tls_key": key,
        "token_file": tmp_path / "tokens",
        "ca": tmp_path / "ca.crt",
        "token": tmp_path / "token",
    }


def meet(address: str, credentials: Credentials) -> None:
    """Ask both kinds of call: one answer, and a stream."""
    client = BasecallClient(address, StreamOptions(credentials=credentials))
    asyncio.run(client.server_info(timeout_s=2.0))
    asyncio.run(client.identify())


def test_only_with_tls_and_a_token(start_server, secrets, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    given = {name: secrets[name] for name in ("tls_certificate", "tls_key", "token_file")}
    server = start_server(**given, listen="localhost:0")
    right = Credentials(tls=True, authority_file=secrets["ca"], token_file=secrets["token"])
    meet(server.address, right)
    wrong = tmp_path / "wrong"
    wrong.write_text("f" * 32)
    for token in (None, wrong):
        with pytest.raises(ServerRefused, match="no valid token"):
            meet(server.address, Credentials(tls=True, authority_file=secrets["ca"], token_file=token))
    with pytest.raises(ServerLost, match="does it need TLS"):
        meet(server.address, Credentials())
    with pytest.raises(ServerLost, match="something listens there, but without TLS"):
        meet(start_server().address, right)
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.crt"))
    with pytest.raises(ServerLost, match="its certificate is not signed by a trusted authority"):
        meet(server.address, Credentials(tls=True, authority_file=tmp_path / "other.crt", token_file=secrets["token"]))
    health = ["health", "--server", server.address, "--tls-ca", str(secrets["ca"])]  # needs no token
    assert CliRunner().invoke(main, health).stdout == "SERVING\n"
    secrets["token_file"].write_text("f" * 32)  # rotated: the old one is no longer good
    meet(server.address, Credentials(tls=True, authority_file=secrets["ca"], token_file=wrong))
    with pytest.raises(ServerRefused, match="no valid token"):
        meet(server.address, right)


def test_a_new_certificate_is_served_without_a_restart(start_server, secrets, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    server = start_server(tls_certificate=secrets["tls_certificate"], tls_key=secrets["tls_key"], listen="localhost:0")
    meet(server.address, Credentials(tls=True, authority_file=secrets["ca"]))
    other = trustme.CA()
    other.cert_pem.write_to_path(str(tmp_path / "other.crt"))
    write_certificate(tmp_path, other)
    meet(server.address, Credentials(tls=True, authority_file=tmp_path / "other.crt"))
    with pytest.raises(ServerLost):
        meet(server.address, Credentials(tls=True, authority_file=secrets["ca"]))


def test_half_a_rotation_keeps_the_old_pair(secrets, authority: trustme.CA, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=10)
    write_certificate(tmp_path, authority, not_after=ends)
    certificate = Certificate(secrets["tls_certificate"], secrets["tls_key"])
    assert certificate.expiry_s() == ends.timestamp()
    old_key = secrets["tls_key"].read_bytes()
    write_certificate(tmp_path, authority, not_after=ends + timedelta(days=30))
    new_key = secrets["tls_key"].read_bytes()
    secrets["tls_key"].write_bytes(old_key)
    with capture_logs() as logs:
        assert certificate.expiry_s() == ends.timestamp()
    assert "is not the key of" in logs[0]["reason"]
    secrets["tls_key"].write_bytes(new_key)
    os.utime(secrets["tls_key"], (1, 1))
    assert certificate.expiry_s() == (ends + timedelta(days=30)).timestamp()
    secrets["tls_key"].unlink()
    assert certificate.expiry_s() == (ends + timedelta(days=30)).timestamp()


def test_unusable_secrets_are_named(secrets, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    certificate, key = secrets["tls_certificate"], secrets["tls_key"]
    absent, rubbish = tmp_path / "absent", tmp_path / "rubbish"
    rubbish.write_text("x" * 20)
    for pair, words in (
        ((absent, key), "absent: No such file"),
        ((rubbish, key), "rubbish: not a certificate"),
        ((certificate, rubbish), "rubbish: not an unencrypted private key"),
    ):
        with pytest.raises(SettingsError, match=words):
            Certificate(*pair)
    for text, words in (("\n", "the file has no tokens"), ("short\n", "fewer than 16 characters")):
        rubbish.write_text(text)
        with pytest.raises(SettingsError, match=words):
            Tokens(rubbish)
    with pytest.raises(SettingsError, match="one of tls_certificate and tls_key is missing"):
        load_settings({"tls_key": key}, None)
    with pytest.raises(SettingsError, match="token_file needs TLS"):
        load_settings({"token_file": rubbish}, None)
    for words in (["--tls-ca", str(absent)], ["--token-file", str(absent)]):
        result = CliRunner().invoke(main, ["health", *words])
        assert result.exit_code == 2
        assert f"{words[0]} {absent}: no such file" in result.stderr


@pytest.mark.parametrize("header", ["", "Basic " + TOKEN, TOKEN, "Bearer", "Bearer x", f"Bearer {TOKEN}x", b"\xff"])
def test_what_is_no_token(header: str | bytes, secrets) -> None:  # type: ignore[no-untyped-def]
    tokens = Tokens(secrets["token_file"])
    assert not tokens.find([("authorization", header)])
    assert not tokens.find(None)
    assert tokens.find([("user-agent", "x"), ("authorization", f"bearer {TOKEN}")])


def test_a_table_of_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(
        f"# who may what\n{TOKEN}\n{'a' * 16} name=lab-1 priorities=standard,bulk\n{'b' * 16} role=watcher name=ops #\n"
    )
    plain, lab, ops = Tokens(file).valid()
    assert (plain.name, plain.role, plain.priorities) == ("", Role.CALLER, frozenset(Priority))
    assert (lab.name, lab.priorities) == ("lab-1", {Priority.STANDARD, Priority.BULK})
    assert (ops.name, ops.role) == ("ops", Role.WATCHER)
    assert TOKEN not in repr(plain)
    for line, words in (
        (f"{TOKEN} name=lab 1x", "fewer than 16"),
        (f"{TOKEN} priorities=urgent", "unknown priority 'urgent'"),
        (f"{TOKEN} role=king", "unknown role 'king'; choose from caller, watcher"),
        ("name=lab", "must have exactly one token; it has 0"),
        (f"{TOKEN} name=a\n{'c' * 16} name=a", "two tokens are named 'a'"),
        (f"{TOKEN} name=a;b", "the token's name is invalid"),
    ):
        file.write_text(line + "\n")
        with pytest.raises(SettingsError, match=words):
            Tokens(file)
    file.write_text(TOKEN)
    file.chmod(0o666)
    with pytest.raises(SettingsError, match="everybody can write to this file"):
        Tokens(file)


def test_tokens_whose_file_is_emptied_or_lost(tmp_path: Path) -> None:
    file, now_s = tmp_path / "tokens", 0.0
    file.write_text(TOKEN)
    tokens, strict = (Tokens(file, fail_closed=closed, clock=lambda: now_s) for closed in (False, True))
    file.write_text("")
    assert [len(both.valid()) for both in (tokens, strict)] == [1, 1]  # perhaps it is about to be written
    now_s = 11.0
    assert [len(both.valid()) for both in (tokens, strict)] == [0, 0]
    file.write_text(TOKEN)
    os.utime(file, (2, 2))
    assert [len(both.valid()) for both in (tokens, strict)] == [1, 1]
    before = SECRETS_STALE._value.get()
    file.unlink()
    assert [len(both.valid()) for both in (tokens, strict)] == [1, 1]
    assert SECRETS_STALE._value.get() == before + 2
    now_s = 30.0
    assert [len(both.valid()) for both in (tokens, strict)] == [1, 0]
    file.write_text(TOKEN)
    assert [len(both.valid()) for both in (tokens, strict)] == [1, 1]
    assert SECRETS_STALE._value.get() == before


READ = SignalRead(
    ReadInfo(
        read_id=UUID(int=1),
        run=RunInfo(run_id="run", sample_rate_hz=4000),
        offset_adc=10.0,
        scale_pa_per_adc=0.2,
        channel=1,
    ),
    np.zeros(3000, np.int16),
)


def call_one(address: str, options: StreamOptions) -> None:
    with SyncBasecallClient(address, options) as client:
        assert len(list(client.call([READ]))) == 1


def test_what_a_token_may(start_server, secrets, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    secrets["token_file"].write_text(f"{'a' * 16} name=ops role=watcher\n{TOKEN} name=lab priorities=bulk\n")
    given = {name: secrets[name] for name in ("tls_certificate", "tls_key", "token_file")}
    server = start_server(**given, listen="localhost:0")
    bulk = StreamOptions(
        credentials=Credentials(tls=True, authority_file=secrets["ca"], token_file=secrets["token"]),
        priority=pb.PRIORITY_BULK,
    )
    with capture_logs() as logs:
        call_one(server.address, bulk)
    assert "lab" in [line.get("token") for line in logs if line["event"] == "stream opened"]
    with pytest.raises(ServerRefused, match="does not allow priority live; it allows bulk"):
        asyncio.run(BasecallClient(server.address, replace(bulk, priority=pb.PRIORITY_LIVE)).identify())
    secrets["token"].write_text("a" * 16)
    watcher = BasecallClient(server.address, StreamOptions(credentials=bulk.credentials))
    asyncio.run(watcher.server_info())
    asyncio.run(watcher.identify())
    with pytest.raises(ServerRefused, match="has the role watcher"):
        call_one(server.address, watcher.options)


def test_metrics_name_the_token(start_server, secrets) -> None:  # type: ignore[no-untyped-def]
    secrets["token_file"].write_text(f"{TOKEN} name=metered\n")
    given = {name: secrets[name] for name in ("tls_certificate", "tls_key", "token_file")}
    server = start_server(**given, listen="localhost:0")
    credentials = Credentials(tls=True, authority_file=secrets["ca"], token_file=secrets["token"])
    streams, samples = TOKEN_STREAMS.labels("metered"), TOKEN_SAMPLES_RECEIVED.labels("metered")
    with SyncBasecallClient(server.address, StreamOptions(credentials=credentials)) as client:
        for result in client.call([READ]):
            assert result.signal_samples == samples._value.get() == 3000
            assert streams._value.get() == 1
    assert streams._value.get() == 0


def test_a_revoked_token_ends_its_stream(  # type: ignore[no-untyped-def]
    start_server, secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "_REVOKED_CHECK_S", 0.05)
    monkeypatch.setattr(rpc, "_REVOKED_GRACE_S", 0.3)
    given = {name: secrets[name] for name in ("tls_certificate", "tls_key", "token_file")}
    server = start_server(**given, listen="localhost:0")
    tokens = Tokens(secrets["token_file"])
    options = StreamOptions(
        credentials=Credentials(tls=True, authority_file=secrets["ca"], token_file=secrets["token"])
    )

    async def talk() -> tuple[list[str], grpc.StatusCode]:
        async with open_channel(server.address, options.credentials) as channel:
            call = pb_grpc.BasecallServiceStub(channel).StreamReads()
            await call.write(pb.StreamReadsRequest(open=pb.OpenStream(run=pb.RunInfo(run_id="run"))))
            said = [(await call.read()).WhichOneof("message")]
            secrets["token_file"].write_text("another-token-of-somebody\n")
            said += [response.WhichOneof("message") async for response in _until_error(call)]
            return said, await call.code()

    watching = asyncio.run_coroutine_threadsafe(server.service.end_revoked(tokens), server.loop)
    said, code = asyncio.run(talk())
    watching.cancel()
    assert said[0] == "opened"
    assert "go_away" in said
    assert code is grpc.StatusCode.UNAUTHENTICATED


async def _until_error(call: grpc.aio.StreamStreamCall) -> AsyncIterator[pb.StreamReadsResponse]:
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            yield response
    except grpc.aio.AioRpcError:
        return


def test_keys_of_all_kinds_in_turn(start_server, secrets, authority: trustme.CA, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    server = start_server(tls_certificate=secrets["tls_certificate"], tls_key=secrets["tls_key"], listen="localhost:0")
    for kind in (trustme.KeyType.RSA, trustme.KeyType.ECDSA, trustme.KeyType.RSA):
        write_certificate(tmp_path, authority, key_type=kind)
        meet(server.address, Credentials(tls=True, authority_file=secrets["ca"]))
    odd = Ed448PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    secrets["tls_key"].write_bytes(odd)
    with capture_logs() as logs:
        meet(server.address, Credentials(tls=True, authority_file=secrets["ca"]))  # the one before
    assert "do not support" in next(line["reason"] for line in logs if "reload the secrets" in line["event"])


def test_health_says_what_the_server_is_good_for(start_server) -> None:  # type: ignore[no-untyped-def]
    server = start_server(health_listen="127.0.0.1:0")

    def ask(service: str, address: str = "") -> tuple[int, str]:
        result = CliRunner().invoke(
            main, ["health", "--server", address or server.health_address, "--service", service]
        )
        return result.exit_code, result.stdout.strip()

    assert ask("") == ask("liveness") == ask("porestream.v1.BasecallService") == (0, "SERVING")
    server.on_loop(server.serving.device_changed(False))
    assert ask("") == ask("liveness") == (1, "NOT_SERVING")
    server.on_loop(server.serving.device_changed(True))
    assert ask("") == ask("liveness") == (0, "SERVING")
    server.on_loop(server.serving.set_ready(False))
    assert (ask(""), ask("liveness")) == ((1, "NOT_SERVING"), (0, "SERVING"))
    with grpc.insecure_channel(server.health_address) as channel:  # nothing else is there
        info = channel.unary_unary("/porestream.v1.BasecallService/GetServerInfo")
        with pytest.raises(grpc.RpcError) as refused:
            info(b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    nobody = CliRunner().invoke(main, ["health", "--server", "127.0.0.1:1", "--timeout-s", "1"])
    assert nobody.exit_code == 1
    assert "UNAVAILABLE" in nobody.stderr


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_tracebacks_hold_no_secrets(log_format: str) -> None:
    """A frame's locals would be in them by default: keys, tokens, the environment."""
    code = (
        "import structlog\n"
        "from porestream.server.watch.logs import configure_logging\n"
        f"configure_logging({log_format!r})\n"
        "def meet(token):\n"
        "    secret = token[:8] * 2\n"
        "    raise RuntimeError('it went wrong')\n"
        "try:\n"
        f"    meet({TOKEN!r})\n"
        "except RuntimeError:\n"
        "    structlog.get_logger().exception('stream failed')\n"
    )
    script = "import sys; exec(compile(sys.stdin.read(), '<stdin>', 'exec'))"  # so that no line of it is shown
    done = subprocess.run([sys.executable, "-c", script], input=code, capture_output=True, text=True, check=True)
    assert "it went wrong" in done.stderr
    assert "meet" in done.stderr
    assert TOKEN[:8] not in done.stderr
