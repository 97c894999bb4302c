"""The workers on a card (with the CPU in its place), and a worker that cannot start."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import structlog
import torch
from click.testing import CliRunner
from host_card import HostCard

from porestream.cli.main import main
from porestream.client.client import BasecallClient, SyncBasecallClient
from porestream.client.opening import StreamOptions
from porestream.client.reads import ReadInfo, RunInfo, SignalRead
from porestream.models.call import basecaller
from porestream.models.call.basecaller import Basecaller
from porestream.models.files.config import ModelError
from porestream.models.networks.recurrent import AlongTime
from porestream.models.private_folder import default_cache_dir
from porestream.server.settings import Settings, SettingsError, load_settings
from porestream.server.start import devices
from porestream.server.start.app import build_engine, load_models
from porestream.server.start.devices import open_card

StartServer = Callable[..., Any]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Threads of torch and the log are as before afterwards."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    structlog.reset_defaults()


def call(address: str, signals: list[np.ndarray], first: int) -> dict[UUID, tuple[str, bytes]]:
    reads = [
        SignalRead(
            ReadInfo(
                read_id=UUID(int=first + number),
                run=RunInfo(run_id="run", sample_rate_hz=4000),
                offset_adc=10.0,
                scale_pa_per_adc=0.2,
            ),
            signal_S,
        )
        for number, signal_S in enumerate(signals)
    ]
    with SyncBasecallClient(address, StreamOptions()) as client:
        results = list(client.call(reads))
    return {result.info.read_id: (part.sequence, bytes(part.qualities)) for result in results for part in result.parts}


@pytest.fixture
def card_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that finds a card, which is the CPU without a stream."""
    monkeypatch.setattr(devices, "find_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(devices, "Card", lambda device, threads: HostCard(threads))
    monkeypatch.setattr(devices, "kernel_device", lambda device, card: None)


def test_a_card_calls_as_the_cpu_does_and_says_what_it_is(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    start_server: StartServer,
    signals: list[np.ndarray],
) -> None:
    """To the bit, where the CPU too takes a GPU's chunk lengths and computes recurrences with torch."""
    monkeypatch.setattr(basecaller, "MANY_LENGTHS", basecaller.FEW_LENGTHS)
    monkeypatch.setattr(AlongTime, "compile_for_cpu", lambda self: False)
    expected = call(start_server(precision="fp32", device="cpu").address, signals, 0)
    assert len(expected) == len(signals)
    request.getfixturevalue("card_on_cpu")
    server = start_server(precision="fp32", batch_size=16)
    identity = asyncio.run(BasecallClient(server.address, StreamOptions()).identify())
    assert (identity.precision, identity.device_class) == ("fp32", "cpu-16rows")
    half = len(signals) // 2
    with ThreadPoolExecutor(2) as pool:  # two streams at once
        parts = pool.map(lambda part: call(server.address, *part), [(signals[:half], 0), (signals[half:], half)])
    assert {key: value for part in parts for key, value in part.items()} == expected


@pytest.mark.usefixtures("card_on_cpu")
def test_models_share_a_cards_memory(
    monkeypatch: pytest.MonkeyPatch, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    monkeypatch.setattr(HostCard, "free_bytes", lambda card: 1400 << 20)
    models = [str(make_bundle(tmp_path / name, container="safetensors")) for name in ("one_fast@v1", "two_fast@v1")]
    settings = Settings(model=models, threads=1)
    first, second = load_models(settings, default_cache_dir(), open_card(settings), None).values()
    assert first.rows < second.rows  # half of what is free; then all of what is left
    with pytest.raises(ModelError, match=r"one_fast@v1 on cpu: a batch of 4096 chunks needs .* 0\.68 GiB"):
        build_engine(Settings(model=models, threads=1, batch_size=4096))


def test_without_a_card_cuda_is_refused(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="device cuda:1: PyTorch"):
        build_engine(Settings(model=[str(tiny_model)], device="cuda:1"))
    with pytest.raises(SettingsError, match=r"setting 'device': .*\(got 'gpu'\)"):
        load_settings({"device": "gpu"}, None)


def test_one_worker_warms_up_every_length_and_the_others_one(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """On a GPU: it is the same for all workers, and each worker's buffers are for the longest whatever comes first."""
    warmed: list[tuple[str, int]] = []
    call = Basecaller.call

    def note(caller: Basecaller, chunks: Any, samples: int) -> Any:
        warmed.append((threading.current_thread().name, samples))
        return call(caller, chunks, samples)

    monkeypatch.setattr(Basecaller, "call", note)
    monkeypatch.setattr(Basecaller, "warm_up_lengths", property(lambda caller: caller.chunker.lengths))
    engine = build_engine(Settings(model=[str(tiny_model)], threads=3))
    engine.pipeline.close()
    (caller,) = engine.basecallers.values()
    longest, *others = caller.chunker.lengths
    assert warmed[: len(others)] == [("worker-0", length) for length in others]
    assert sorted(warmed[len(others) :]) == [("worker-0", longest), ("worker-1", others[-1]), ("worker-2", others[-1])]


def test_a_cpu_warms_up_its_shortest_batch_alone(tiny_model: Path) -> None:
    """So that a server of a large model takes reads at once; its buffers are those of the longest."""
    engine = build_engine(Settings(model=[str(tiny_model)], threads=1))
    engine.pipeline.close()
    (caller,) = engine.basecallers.values()
    assert caller.warm_up_lengths == caller.chunker.lengths[-1:]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, workers: int) -> None:
    lock, calls = threading.Lock(), itertools.count()

    def warm_up(_: Basecaller, lengths: Sequence[int]) -> None:
        with lock:
            if next(calls) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Basecaller, "warm_up", warm_up)
    with pytest.raises(ModelError, match="failed to call a test batch: OutOfMemoryError: CUDA out of memory") as caught:
        build_engine(Settings(model=[str(tiny_model)], threads=workers))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker-")]


def test_serve_ends_with_the_cause(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    def warm_up(_: Basecaller, lengths: Sequence[int]) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(Basecaller, "warm_up", warm_up)
    done = CliRunner().invoke(main, ["serve", "--model", str(tiny_model), "--listen", "127.0.0.1:0", "-t", "2"])
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == (
        "Error: a worker failed to call a test batch: RuntimeError: no kernel image"
    )
