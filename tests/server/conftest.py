"""A server in this process, on a tiny model with random weights, and a client that speaks raw protobuf to it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from porestream.server.app import build_engine, build_server
from porestream.server.rpc import BasecallService, Engine
from porestream.server.settings import Settings

CONFIG = """
[model]
package = "bonito.crf"
[labels]
labels = ["N", "A", "C", "G", "T"]
[input]
features = 1
[encoder]
stride = 6
winlen = 19
scale = 5.0
features = 16
rnn_type = "lstm"
activation = "swish"
blank_score = 2.0
[global_norm]
state_len = 2
[basecaller]
chunksize = 1200
overlap = 120
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory that calls nonsense, but quickly, and always the same."""
    generator = torch.Generator().manual_seed(1)
    width = 16
    shapes = {"9.linear.weight": (64, width), "9.linear.bias": (64,)}
    for layer, (ins, outs, winlen) in enumerate(((1, 4, 5), (4, 16, 5), (16, width, 19))):
        shapes |= {f"{layer}.conv.weight": (outs, ins, winlen), f"{layer}.conv.bias": (outs,)}
    for layer in range(4, 9):
        for part in ("ih", "hh"):
            shapes |= {f"{layer}.rnn.weight_{part}_l0": (4 * width, width), f"{layer}.rnn.bias_{part}_l0": (4 * width,)}
    folder = tmp_path_factory.mktemp("models") / "tiny_fast@v1"
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG)
    tensors = {name: torch.randn(shape, generator=generator) * 0.6 for name, shape in shapes.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


class RunningServer:
    """A server on a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.address = ""
        self.engine: Engine
        self.service: BasecallService
        self.error: BaseException | None = None
        self._thread.start()
        self._started.wait(60)
        if self.error:
            raise self.error

    async def _run(self) -> None:
        try:
            self.engine = build_engine(self._settings)
            server, self.service, _, self.address = build_server(self.engine, self._settings.listen)
            await server.start()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._started.set()
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await self._stop.wait()
        await server.stop(0)
        await asyncio.to_thread(self.engine.pipeline.close)

    def drain(self, grace_s: float) -> None:
        """As on SIGTERM."""
        asyncio.run_coroutine_threadsafe(self.service.drain(grace_s), self.loop).result(grace_s + 10)

    def stop(self) -> None:
        """Stop at once."""
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)


StartServer = Callable[..., RunningServer]


@pytest.fixture
def start_server(tiny_model: Path) -> Iterator[StartServer]:
    """Starts servers: `start_server(batch_size=7, ...)`; they are stopped in the end."""
    servers: list[RunningServer] = []

    def start(**settings: object) -> RunningServer:
        given = {"model": [tiny_model], "listen": "127.0.0.1:0", "threads": 2, "max_streams": 32} | settings
        server = RunningServer(Settings(**given))  # type: ignore[arg-type]
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def signals() -> list[np.ndarray]:
    """Reads of many lengths, with steps as real signal has."""
    rng = np.random.default_rng(5)
    reads = []
    for samples in [*range(6, 40, 7), 299, 300, 301, 1199, 1200, 1201, 2500, 5000, 12_345, 30_000, 100_000, 140_000]:
        levels = rng.normal(500, 80, samples // 9 + 1).repeat(9)[:samples]
        reads.append((levels + rng.normal(0, 12, samples)).astype(np.int16))
    return reads
