"""Nothing that a run with faults writes, but its results, holds a secret, a read's id or a sample's name.

Marks are planted where such things are: in tokens, the key, the environment, runs and reads. Then everything is looked
through that was written meanwhile, logs and tracebacks first.
"""

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import grpc
import numpy as np
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

PORESTREAM = Path(sys.executable).with_name("porestream")
TOKEN, WRONG_TOKEN, NEW_TOKEN = (f"planted-token-{kind}-5ec7e7" for kind in ("right", "wrong", "new"))
SERVERS, CLIENTS = "planted-in-the-servers-environment", "planted-in-the-clients-environment"
PROXY = "http://planted-user:planted-p@ss/word@127.0.0.1:9"
SAMPLE, EXPERIMENT, RUN = "planted-sample", "planted-experiment", "planted-run"
FIRST_ID = UUID("5ec7e75e-c7e7-45ec-87e7-5ec700000000").int
MAX_READ_SAMPLES, SABOTAGED_CHANNEL = 6000, 666

SECRETS = ["planted-token", SERVERS, CLIENTS, "planted-user", "planted-p@", "ss/word", "ss@", "PRIVATE KEY"]
READ_IDS = ["5ec7e75e", base64.b64encode(UUID(int=FIRST_ID).bytes).decode()[:12], r"^\xc7\xe7^", r"^\\xc7\\xe7^"]

# What nobody can provoke from outside: exceptions at reads whose adapters are to go, and at streams with this channel.
SABOTAGED = f"""
from porestream.cli.main import main
from porestream.server.calling import after_calling
from porestream.server.streams import session
def fail(*_):
    raise RuntimeError("sabotage")
receive = session.Session.receive
after_calling.trim_adapters = fail
session.Session.receive = lambda self, chunk: fail() if chunk.channel == {SABOTAGED_CHANNEL} else receive(self, chunk)
main()
"""


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def environment(**extra: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PORESTREAM_")} | extra


def unpacked(path: Path) -> str:
    """A file's text; of BGZF (a BAM) as far as it goes."""
    data, found = path.read_bytes(), b""
    while data[:2] == b"\x1f\x8b":
        unpack = zlib.decompressobj(31)
        with suppress(zlib.error):
            found += unpack.decompress(data)
        data = unpack.unused_data
    return (found + data).decode(errors="backslashreplace")


class Scene:
    """A server with secrets in files, runs to call, and all that is said and written."""

    def __init__(self, folder: Path, model: Path, write_pod5: Callable[..., Path]) -> None:
        self.folder, self.model = folder, model
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "ca.crt"))
        self.keys: list[str] = []
        self.rotate(self.authority)
        self.write("tokens", f"{TOKEN} name=lab-1\n")
        self.write("token", TOKEN)
        self.write("wrong", WRONG_TOKEN)
        for name in ("temporary", "said", "results"):
            (folder / name).mkdir()
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            self.port, self.metrics_port = one.getsockname()[1], other.getsockname()[1]
        rng = np.random.default_rng(1)
        lengths = [1500, 3, MAX_READ_SAMPLES + 1, 1500, 1500]
        planted = {"sample_id": SAMPLE, "experiment_name": EXPERIMENT}
        noise = [rng.normal(500, 60, length).astype(np.int16) for length in lengths]
        self.run = write_pod5(folder / "run.pod5", noise, (RUN,), FIRST_ID, **planted)
        self.bad_run = write_pod5(folder / "bad.pod5", noise[:1], (RUN * 40,), FIRST_ID + 100, **planted)
        self.endless = folder / "endless"  # to be watched: such a call ends when it is made to
        self.endless.mkdir()
        write_pod5(self.endless / "long.pod5", noise[3:] * 1000, (RUN,), FIRST_ID + 1000, **planted)
        self.cut_off = folder / "cut.pod5"
        self.cut_off.write_bytes(self.run.read_bytes()[:-500])
        self.servers: list[subprocess.Popen[bytes]] = []

    def write(self, name: str, text: str | bytes) -> Path:
        """A file that appears at once."""
        new, path = self.folder / f"{name}.new", self.folder / name
        new.write_bytes(text.encode() if isinstance(text, str) else text)
        new.chmod(0o600)
        os.replace(new, path)
        return path

    def rotate(self, authority: trustme.CA, kind: trustme.KeyType = trustme.KeyType.ECDSA) -> None:
        issued = authority.issue_cert("localhost", key_type=kind)
        self.plant_key(issued.private_key_pem.bytes())
        self.write("tls.crt", b"".join(pem.bytes() for pem in issued.cert_chain_pems))

    def plant_key(self, pem: bytes) -> None:
        """Put a key into its place; its lines are marks from then on."""
        self.keys += [line for line in pem.decode().splitlines() if len(line) > 20 and not line.startswith("-")]
        self.write("tls.key", pem)

    def serve(self, name: str, *flags: object, until: str = "serving") -> Path:
        """Start a server and wait for a word of its log; returns the log."""
        log = self.folder / "said" / name
        secrets = {"--tls-certificate": "tls.crt", "--tls-key": "tls.key", "--token-file": "tokens"}
        command: list[object] = [sys.executable, "-P", "-c", SABOTAGED, "serve", "--threads", 1, "--model", self.model]
        command += ["--listen", f"localhost:{self.port}", "--metrics-port", self.metrics_port]
        command += ["--max-read-samples", MAX_READ_SAMPLES]
        command += [word for flag, file in secrets.items() for word in (flag, self.folder / file)]
        with log.open("wb") as sink:
            env = environment(
                PLANTED=SERVERS,
                TMPDIR=str(self.folder / "temporary"),
                GLIBC_TUNABLES="glibc.malloc.hugetlb=0",  # given, it is not started once more
            )
            server = subprocess.Popen([*map(str, [*command, *flags])], stdout=sink, stderr=sink, env=env)
        self.servers.append(server)
        wait_for(lambda: until in log.read_text() or server.poll() is not None)
        return log

    def start_call(
        self, name: str, *words: object, token: str = "token", server: str | None = None, **env: str
    ) -> subprocess.Popen[bytes]:
        """`porestream call` with these; what it says goes to a file of this name. `server`: an empty one is its own."""
        where = ["--server", server or f"localhost:{self.port}", "--tls-ca", self.folder / "ca.crt"]
        where += ["--token-file", self.folder / token]
        command = [PORESTREAM, "call", *words, *(where if server != "" else [])]
        with (self.folder / "said" / name).open("wb") as sink:
            env = environment(PLANTED=CLIENTS, TMPDIR=str(self.folder / "temporary"), **env)
            return subprocess.Popen([*map(str, command)], stdout=sink, stderr=sink, env=env)

    def ask_page(self, path: str, **headers: str) -> None:
        """Keep what the metrics port answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.metrics_port}{path}", headers=headers)
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=10) as answer:
            name = f"page{path.partition('?')[0].replace('/', '_')}"
            (self.folder / "said" / name).write_bytes(answer.read())

    def channel(self) -> grpc.Channel:
        tls = grpc.ssl_channel_credentials((self.folder / "ca.crt").read_bytes())
        both = grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(TOKEN))
        return grpc.secure_channel(f"localhost:{self.port}", both)

    def close(self) -> None:
        for server in self.servers:
            server.kill()
            server.wait()

    def said(self, *folders: str) -> dict[str, str]:
        """The texts in these folders by file, unpacked; by default what was said, and temporary files."""
        places = [self.folder / name for name in folders or ("said", "temporary")]
        files = [path for place in places for path in place.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): unpacked(path) for path in files}


@pytest.fixture
def scene(tiny_model: Path, write_pod5: Callable[..., Path]) -> Iterator[Scene]:
    # Not pytest's folder: in one of a long name no socket has room, and an own server would be elsewhere.
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder), tiny_model, write_pod5)
        yield scene
        scene.close()


def odd_streams(scene: Scene) -> list[str]:
    """Streams that no honest client would have; the statuses and words that they end with."""
    read_id = UUID(int=FIRST_ID).bytes
    run = pb.RunInfo(run_id=RUN, sample_id=SAMPLE, experiment_id=EXPERIMENT)
    opening = pb.StreamReadsRequest(open=pb.OpenStream(run=run, options=pb.CallOptions(model="tiny_fast@v1")))
    chunk = pb.ReadChunk(read_id=read_id, signal=bytes(20), sample_count=10, encoding=pb.SIGNAL_ENCODING_INT16_LE)

    def batch(seq: int = 1, **fields: object) -> pb.StreamReadsRequest:
        changed = pb.ReadChunk.FromString(chunk.SerializeToString())
        for name, value in fields.items():
            setattr(changed, name, value)
        return pb.StreamReadsRequest(signal=pb.SignalBatch(batch_seq=seq, chunks=[changed]))

    half_close = pb.StreamReadsRequest(half_close=pb.HalfClose())
    other_model = pb.StreamReadsRequest.FromString(opening.SerializeToString())
    other_model.open.expected.model = "another"
    streams: list[list[pb.StreamReadsRequest]] = [
        [opening, batch(7)],
        [opening, batch(read_id=read_id * 2)],
        [opening, batch(encoding=99)],
        [opening, batch(), opening],
        [opening, batch(), pb.StreamReadsRequest(result_ack=pb.ResultAck(result_seq=9))],
        [opening, batch(signal_crc32c=1), batch(2, first_sample=500), batch(3, end_of_read=True), half_close],
        [opening, batch(encoding=pb.SIGNAL_ENCODING_VBZ, end_of_read=True), half_close],
        [opening, batch(sample_count=1 << 30, end_of_read=True), half_close],
        [opening, batch(end_of_read=True), half_close],  # without a calibration
        [opening, batch(channel=SABOTAGED_CHANNEL)],
        [opening, batch()],
        [pb.StreamReadsRequest(open=pb.OpenStream(run=pb.RunInfo(run_id=RUN * 40)))],
        [batch()],
        [other_model],
    ]
    ended = []
    with scene.channel() as channel:
        service = pb_grpc.BasecallServiceStub(channel)
        for requests in streams:
            try:
                ended += [str(response)[:0] for response in service.StreamReads(iter(requests), timeout=20)]
            except grpc.RpcError as error:
                ended.append(f"{error.code().name}: {error.details()}")  # type: ignore[attr-defined]
        raw = channel.stream_stream("/porestream.v1.BasecallService/StreamReads")
        with pytest.raises(grpc.RpcError):
            list(raw(iter([opening.SerializeToString(), b"\x0a\xff" + read_id + SAMPLE.encode()]), timeout=20))
        with pytest.raises(grpc.RpcError) as unknown:
            list(service.WatchStats(pb.WatchStatsRequest(run_id=RUN + "-unknown"), timeout=20))
        ended.append(unknown.value.details())  # type: ignore[attr-defined]
        open_stream = service.StreamReads(iter([opening, batch()]), timeout=20)
        next(iter(open_stream))
        for path in ("/metrics", "/", "/status.json", f"/{TOKEN}", f"/metrics?{TOKEN}"):
            scene.ask_page(path, Authorization=f"Bearer {TOKEN}", Cookie=SAMPLE)
    return [words for words in ended if words]


def garble_connections(scene: Scene) -> None:
    """What speaks no TLS, and a token in the clear."""
    for data in (f"GET /{TOKEN} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode(), os.urandom(64), b"\x16"):
        with socket.create_connection(("127.0.0.1", scene.port), timeout=10) as plain, suppress(OSError):
            plain.sendall(data)


def rotate_badly(scene: Scene) -> None:
    """Secrets that cannot be used; each is looked at as a client connects."""

    def look() -> None:
        with socket.create_connection(("127.0.0.1", scene.port), timeout=10) as plain, suppress(OSError):
            plain.sendall(b"\x16")
        with suppress(grpc.RpcError), scene.channel() as channel:
            pb_grpc.BasecallServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=5)

    good = {name: (scene.folder / name).read_bytes() for name in ("tls.crt", "tls.key", "tokens")}
    ed448 = Ed448PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for pem in (ed448, good["tls.key"][:-60], good["tls.key"].replace(b"-----BEGIN", b"--BEGIN"), b""):
        scene.plant_key(pem)
        look()
    scene.write("tls.crt", good["tls.key"])  # they are mixed up
    look()
    for lines in (
        f"{TOKEN} role=boss",
        f"{TOKEN} {NEW_TOKEN} name=a",
        f"{NEW_TOKEN[:14]}",
        f"name={TOKEN}/x {TOKEN}",
    ):
        scene.write("tokens", lines)
        look()
    for name, data in good.items():
        scene.write(name, data)
    look()


def start_what_cannot(scene: Scene) -> list[subprocess.Popen[bytes]]:
    """Servers with a damaged model, and with a key that is none; calls behind a proxy that is not there."""
    damaged = scene.folder / "damaged_fast@v1"
    shutil.copytree(scene.model, damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    no_key = scene.write("no.key", f"-----BEGIN PRIVATE KEY-----\n{scene.keys[0]}\n")
    scene.serve("server-damaged-model", "--model", damaged, until="")
    scene.serve("server-no-key", "--tls-key", no_key, until="")
    far = ["--give-up-s", 0.5, "-o", scene.folder / "far.bam", "--proxy", PROXY.replace("/word", "")]
    return [
        *scene.servers,
        scene.start_call("far-flag", scene.run, *far, server="192.0.2.1:1"),
        scene.start_call("far-variable", scene.run, *far[:4], server="192.0.2.1:1", https_proxy=PROXY, no_proxy=""),
    ]


def call_and_die(scene: Scene) -> None:
    """A call with a server of its own is killed: the server's log stays in the folder for temporary files."""
    words = ["--model", scene.model, "-o", scene.folder / "results/own.bam"]
    call = scene.start_call("own", "--watch", scene.endless, *words, server="")
    wait_for(lambda: any(b"stream opened" in log.read_bytes() for log in scene.folder.glob("temporary/*/log")))
    call.kill()
    call.wait()


def play(scene: Scene, *flags: object) -> None:
    """The whole run, from a server that starts to one that is killed."""
    results = scene.folder / "results"
    scene.serve("server", *flags)
    books = ["--summary-json", scene.folder / "said/books.json", "--emit-summary", "--proxy", PROXY]  # not on this way
    calls: list[tuple[str, int, str, list[object]]] = [
        ("called", 0, "token", [scene.run, scene.bad_run, "-o", results / "a.bam", "--no-trim", *books]),
        ("unwritable", 1, "token", [scene.run, scene.cut_off, "-o", "/proc/calls.bam"]),
        ("refused", 1, "wrong", [scene.run, "-o", results / "b.bam"]),
        ("failed", 6, "token", [scene.run, "-o", results / "c.bam"]),
        ("unknown", 1, "token", [scene.run, "-o", results / "d.bam", "--model", "absent"]),
    ]
    model = ["--model", "tiny_fast@v1"]
    running = [scene.start_call(name, *model, *words, token=token) for name, _, token, words in calls]
    check_ends(odd_streams(scene))
    for (name, code, *_), process in zip(calls, running, strict=True):
        assert process.wait(60) == code, (scene.folder / "said" / name).read_text()
    garble_connections(scene)
    rotate_badly(scene)
    scene.rotate(scene.authority, trustme.KeyType.RSA)
    lost = scene.start_call("lost", "--watch", scene.endless, *model, "--give-up-s", "0.5", "-o", results / "e.bam")
    log = scene.folder / "said/server"
    opened = log.read_text().count("stream opened")
    wait_for(lambda: log.read_text().count("stream opened") > opened)
    scene.servers[-1].send_signal(signal.SIGKILL)
    assert lost.wait(60) == 4, (scene.folder / "said/lost").read_text()


def check_ends(ended: list[str]) -> None:
    """Each of the odd streams met what it was made for."""
    for words in (
        "batch_seq is 7",
        "read_id has 32 bytes",
        "encoding 99",
        "a stream's first message",
        "result_ack 9",
        "run_id is longer",
        "must be `open`",
        "would call differently",
        "not seen run",
    ):
        assert any(words in end for end in ended), ended


def found(said: dict[str, str], marks: list[str]) -> list[str]:
    """Which mark is in which file."""
    return [f"{name}: {mark}" for name, text in said.items() for mark in marks if mark in text]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_nothing_planted_comes_up(scene: Scene, log_format: str) -> None:
    play(scene, "--log-format", log_format)
    said = scene.said()
    log = said["said/server"]
    for event in (
        "read rejected",
        "read failed",
        "stream failed",
        "sabotage",
        "call refused",
        "cannot reload the secrets; keeping the old ones",
    ):
        assert event in log, log[-5000:]
    assert "server lost" in said["said/lost"]
    assert {"said/page_", "said/page_metrics", "said/page_status.json", "said/books.json"} <= said.keys()
    check_said(scene)


def test_nothing_planted_comes_up_where_nothing_gets_going(scene: Scene) -> None:
    hopeless = start_what_cannot(scene)
    call_and_die(scene)
    assert all(process.wait(60) for process in hopeless)
    said = scene.said()
    assert "damaged_fast@v1" in said["said/server-damaged-model"]
    assert "not an unencrypted private key" in said["said/server-no-key"]
    assert "through the proxy http://***@127.0.0.1:9 (--proxy)" in said["said/far-flag"]
    assert "https_proxy: escape the password in the proxy's URL" in said["said/far-variable"]
    assert any(name.startswith("temporary/porestream-") for name in said)
    check_said(scene)


def check_said(scene: Scene) -> None:
    said = scene.said()
    assert not found(said | scene.said("results"), SECRETS + scene.keys)
    assert not found(said, [SAMPLE, EXPERIMENT])
    # Reads and runs of the user's own files are named to him, on his terminal.
    own = ("called", "failed", "lost", "far-flag", "far-variable", "own", "unwritable", "refused", "unknown")
    others = {name: text for name, text in said.items() if name.removeprefix("said/") not in own}
    assert len(others) >= 2
    assert not found(others, [RUN, *READ_IDS])


def test_read_ids_are_in_the_log_where_they_are_asked_for(scene: Scene) -> None:
    """So the test above would see them."""
    log = scene.serve("server", "--log-format", "json", "--log-read-ids")
    check_ends(odd_streams(scene))
    wait_for(lambda: str(UUID(int=FIRST_ID)) in log.read_text())
