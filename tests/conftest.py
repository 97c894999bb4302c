"""Fixtures for all tests."""

import asyncio
import json
import math
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pod5
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# Hypothesis leaves time aside only where CI is set; here, too, a first example may compile a kernel.
settings.register_profile(
    "untimed",
    settings.get_profile("ci" if os.environ.get("CI") else "default"),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("untimed")

T = TypeVar("T")
WritePod5 = Callable[..., Path]
MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real signal and a real model: optional, except in CI."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        message = f"real data is not here: {folder}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def write_pod5() -> WritePod5:
    """Writes a POD5 file: `write_pod5(path, signals, run_ids=..., first=...)`.

    Read i of `signals` is named UUID(int=first + i), is on channel i % 512 + 1 and belongs to
    `run_ids[i % len(run_ids)]`. What else is given stands in every run: `sample_id="a"`.
    """

    def write(
        path: Path,
        signals: Sequence[npt.NDArray[np.int16]],
        run_ids: Sequence[str] = ("run-a",),
        first: int = 1,
        sample_rate_hz: int = 4000,
        **said: str,
    ) -> Path:
        began = datetime(2024, 5, 6, 7, 8, 9, 123000, tzinfo=UTC)
        runs = {
            run_id: pod5.RunInfo(
                acquisition_id=run_id,
                acquisition_start_time=began,
                adc_max=4095,
                adc_min=-4096,
                context_tags={},
                experiment_name=said.get("experiment_name", "experiment"),
                flow_cell_id="FAB12345",
                flow_cell_product_code=said.get("flow_cell_product_code", "FLO-MIN106"),
                protocol_name="protocol",
                protocol_run_id="protocol-run",
                protocol_start_time=began,
                sample_id=said.get("sample_id", "sample"),
                sample_rate=sample_rate_hz,
                sequencing_kit=said.get("sequencing_kit", "sqk-lsk109"),
                sequencer_position="MN00001",
                sequencer_position_type="MinION Mk1B",
                software="porestream tests",
                system_name="system",
                system_type="system type",
                tracking_id={},
            )
            for run_id in run_ids
        }
        with pod5.Writer(path) as writer:
            for index, signal_S in enumerate(signals):
                writer.add_read(
                    pod5.Read(
                        read_id=UUID(int=first + index),
                        pore=pod5.Pore(channel=index % 512 + 1, well=index % 4 + 1, pore_type="r9.4.1"),
                        calibration=pod5.Calibration(offset=-243.0, scale=0.1462),
                        read_number=100 + index,
                        start_sample=4000 * index,
                        median_before=200.0,
                        end_reason=pod5.EndReason.from_reason_with_default_forced(pod5.EndReasonEnum.SIGNAL_POSITIVE),
                        run_info=runs[run_ids[index % len(run_ids)]],
                        signal=signal_S,
                    )
                )
        return path

    return write


@pytest.fixture(scope="session")
def make_bundle() -> MakeBundle:
    """Writes a model directory with random weights, tiny unless told otherwise.

    `make_bundle(directory, seed=0, container="dorado", layers="v3", tensors=None, **config)`: `container` is "dorado"
    (a TorchScript file a tensor) or "safetensors"; `layers` is "v3" (sizes only) or "listed" (v4: each layer a table);
    `tensors` replaces or adds tensors by name, or drops those that are None; `config`
    does the same to config.toml's keys, written table__key: `encoder__stride=5, scaling__strategy="pa"`. The weights
    are such that scores vary over their whole range. Returns the directory.
    """
    import torch  # here, for it takes a second that most tests do without
    from safetensors.torch import save_file

    def write(
        directory: Path,
        seed: int = 0,
        container: str = "dorado",
        layers: str = "v3",
        tensors: dict[str, torch.Tensor | None] | None = None,
        **config: Any,
    ) -> Path:
        values = {
            "encoder__stride": 6,
            "encoder__winlen": 19,
            "encoder__scale": 5.0,
            "encoder__features": 16,
            "encoder__rnn_type": "lstm",
            "encoder__activation": "swish",
            "encoder__blank_score": 2.0,
            "global_norm__state_len": 2,
            "basecaller__chunksize": 1200,
            "basecaller__overlap": 120,
        } | config
        directory.mkdir(parents=True, exist_ok=True)
        tables: dict[str, list[str]] = {}
        for name, value in values.items():
            if value is not None:
                table, key = name.split("__")
                tables.setdefault(table, []).append(
                    f"{key} = {repr(value) if isinstance(value, float) else json.dumps(value)}"
                )
        features, winlen, stride = (values[f"encoder__{key}"] for key in ("features", "winlen", "stride"))
        if layers == "listed":
            tables["encoder"] = _listed_layers(features, winlen, stride)
        text = "\n".join(line for table, lines in tables.items() for line in (f"[{table}]", *lines))
        (directory / "config.toml").write_text(text + "\n")
        found = random_tensors(seed, features, winlen, values["global_norm__state_len"])
        if layers == "listed":
            del found["9.linear.bias"]
        kept = {name: tensor for name, tensor in (found | (tensors or {})).items() if tensor is not None}
        if container == "safetensors":
            save_file(kept, directory / "model.safetensors")
        for name, tensor in kept.items() if container == "dorado" else ():
            module = torch.nn.Module()
            module.register_parameter("0", torch.nn.Parameter(tensor, requires_grad=False))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
                torch.jit.script(module).save(str(directory / f"{name}.tensor"))
        return directory

    def random_tensors(seed: int, features: int, winlen: int, state_len: int) -> dict[str, torch.Tensor | None]:
        generator = torch.Generator().manual_seed(seed)

        def normal(gain: float, *shape: int) -> torch.Tensor:
            fan_in = math.prod(shape[1:])
            return torch.randn(shape, generator=generator) * gain / fan_in**0.5

        tensors: dict[str, torch.Tensor | None] = {}
        for layer, (ins, outs, width) in enumerate(((1, 4, 5), (4, 16, 5), (16, features, winlen))):
            tensors[f"{layer}.conv.weight"] = normal(2.0, outs, ins, width)
            tensors[f"{layer}.conv.bias"] = normal(0.2, outs)
        for layer in range(4, 9):
            for part, gain in (("ih", 3.0), ("hh", 1.0)):
                tensors[f"{layer}.rnn.weight_{part}_l0"] = normal(gain, 4 * features, features)
                tensors[f"{layer}.rnn.bias_{part}_l0"] = normal(0.2, 4 * features)
        tensors["9.linear.weight"] = normal(4.0, 4 ** (state_len + 1), features)
        tensors["9.linear.bias"] = normal(0.2, 4 ** (state_len + 1))
        return tensors

    return write


def _listed_layers(features: int, winlen: int, stride: int) -> list[str]:
    """The lines of [encoder] in v4's way; tables within it come last."""
    layers: list[dict[str, Any]] = [
        {"type": "convolution", "insize": ins, "size": outs, "winlen": width, "stride": step, "padding": width // 2}
        | {"activation": "swish", "bias": True}
        for ins, outs, width, step in ((1, 4, 5, 1), (4, 16, 5, 1), (16, features, winlen, stride))
    ]
    layers.append({"type": "permute", "dims": [2, 0, 1]})
    for index in range(5):
        layers.append({"type": "lstm", "size": features, "insize": features, "bias": True, "reverse": index % 2 == 0})
    layers.append({"type": "linearcrfencoder", "insize": features, "bias": False, "blank_score": 2.0})
    layers.append({"type": "clamp", "min": -5.0, "max": 5.0})
    lines = ['type = "serial"']
    for layer in layers:
        lines += ["[[encoder.sublayers]]", *(f"{key} = {json.dumps(value)}" for key, value in layer.items())]
    return lines


@pytest.fixture(scope="session")
def tiny_model(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory that calls nonsense, but quickly, and always the same."""
    return make_bundle(tmp_path_factory.mktemp("models") / "tiny_fast@v1", container="safetensors")


class RunningServer:
    """A server on a thread of its own."""

    def __init__(self, **settings: Any) -> None:
        from porestream.server.settings import Settings

        self._settings = Settings(**settings)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.address = ""
        self._leaving = False
        self.engine: Any
        self.service: Any
        self.error: BaseException | None = None
        self._thread.start()
        self._started.wait(60)
        if self.error:
            raise self.error

    async def _run(self) -> None:
        from porestream.server.start.app import build_engine, build_server, open_secrets

        try:
            self.engine = build_engine(self._settings)
            secrets = open_secrets(self._settings)
            serving = build_server(self.engine, self._settings.listen, *secrets, self._settings.health_listen)
            self.serving, self.service = serving, serving.service
            self.address, self.health_address = serving.address, serving.health_address
            await serving.start()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._started.set()
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await self._stop.wait()
        if self._leaving:
            await self.service.drain(5.0)
        await serving.stop()
        await asyncio.to_thread(self.engine.pipeline.close)

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def drain(self, grace_s: float) -> None:
        """As on SIGTERM."""
        asyncio.run_coroutine_threadsafe(self.service.drain(grace_s), self.loop).result(grace_s + 10)

    def leave(self) -> None:
        """Drain, then stop, as on SIGTERM."""
        self._leaving = True
        self.stop()

    def stop(self) -> None:
        """Stop at once."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(20)


StartServer = Callable[..., RunningServer]


@pytest.fixture
def start_server(tiny_model: Path) -> Iterator[StartServer]:
    """Starts servers: `start_server(batch_size=7, ...)`; they are stopped in the end."""
    servers: list[RunningServer] = []

    def start(**settings: object) -> RunningServer:
        given = {"model": [tiny_model], "listen": "127.0.0.1:0", "threads": 2, "max_streams": 32} | settings
        server = RunningServer(**given)
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
    for samples in [*range(13, 41, 7), 299, 300, 301, 1199, 1200, 1201, 2500, 5000, 12_345, 30_000, 100_000, 140_000]:
        levels = rng.normal(500, 80, samples // 9 + 1).repeat(9)[:samples]
        reads.append((levels + rng.normal(0, 12, samples)).astype(np.int16))
    return reads


SimulateRun = Callable[..., Path]


@pytest.fixture(scope="session")
def simulate_run() -> SimulateRun:
    """Simulates runs: `simulate_run(folder, reference, seed, sample_rate_hz=5000)`; returns the POD5 file.

    It has 40 R10.4.1 reads of 2,500 bases on average, long enough for minimap2 at 80% identity; in the truth beside it
    (`run.pod5`: `run.truth.tsv`) are base boundaries.
    """

    def simulate(folder: Path, reference: Path, seed: int, sample_rate_hz: int = 5000) -> Path:
        output = folder / f"run_{seed}.pod5"
        command = [sys.executable, "-m", "porestream.cli.main", "simulate", str(reference), "-o", str(output)]
        lengths = ["--reads", "40", "--length-mean", "2500", "--length-sd", "500"]
        rest = ["--sample-rate", str(sample_rate_hz), "--seed", str(seed), "--boundaries"]
        done = subprocess.run([*command, *lengths, *rest], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return output

    return simulate


@pytest.fixture(scope="session")
def simulated_run(simulate_run: SimulateRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with reference.fasta, two made-up contigs, and reads of it at 5 kHz: run_35.pod5, run_35.truth.tsv."""
    from porestream.models.simulate.sequence import decode, random_bases

    folder = tmp_path_factory.mktemp("simulated")
    rng = np.random.default_rng(1)
    contigs = (f">{name}\n{decode(random_bases(bases, rng))}\n" for name, bases in (("a", 60_000), ("b", 40_000)))
    (folder / "reference.fasta").write_text("".join(contigs))
    simulate_run(folder, folder / "reference.fasta", 35)
    return folder
