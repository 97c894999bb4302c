"""Adapters through the service: trimmed unless the stream says not to; what is left describes the same signal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from porestream.client.client import SyncBasecallClient
from porestream.client.opening import StreamOptions
from porestream.client.reads import CalledPart, ReadInfo, RunInfo, SignalRead
from porestream.client.sources.pod5_source import Pod5Source
from porestream.models.call import adapters
from porestream.models.call.quality import mean_qscore

StartServer = Callable[..., Any]


def call(address: str, reads: list[SignalRead], **options: Any) -> list[CalledPart]:
    with SyncBasecallClient(address, StreamOptions(emit_moves=True, **options)) as client:
        parts = {result.info.read_id: result.parts[0] for result in client.call(reads)}
    for part in parts.values():
        steps = (part.samples - part.trimmed_samples) // part.stride_samples
        assert len(part.moves) == steps, "a move table of another length is refused by Remora"
    return [parts[read.info.read_id] for read in reads]


def of_run(signals: list[np.ndarray], kit: str = "") -> list[SignalRead]:
    run = RunInfo(run_id=f"run {kit}", sample_rate_hz=4000, sequencing_kit=kit)
    return [
        SignalRead(ReadInfo(read_id=UUID(int=number), run=run, offset_adc=10.0, scale_pa_per_adc=0.2), signal)
        for number, signal in enumerate(signals)
    ]


def check(part: CalledPart, whole: CalledPart) -> tuple[int, int]:
    """Bases trimmed at the front and the rear; fails unless everything else is as in the whole read."""
    first = whole.sequence.index(part.sequence)
    end = first + len(part.sequence)
    assert part.qualities == whole.qualities[first:end]
    assert part.mean_qscore == pytest.approx(mean_qscore(np.frombuffer(part.qualities, np.uint8)))
    assert part.stride_samples == whole.stride_samples
    starts = [each.trimmed_samples + each.stride_samples * np.flatnonzero(list(each.moves)) for each in (whole, part)]
    assert np.array_equal(starts[1], starts[0][first:end])
    assert part.samples == (whole.samples if end == len(whole.sequence) else starts[0][end])
    return first, len(whole.sequence) - end


@pytest.fixture
def adapted(start_server: StartServer, signals: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> str:
    """A server that takes what it calls at both ends of one of the signals for adapters; its address."""
    server = start_server()
    (whole,) = call(server.address, of_run(signals[-4:-3]), no_trim=True)
    probe = adapters._Probe
    monkeypatch.setattr(adapters, "_FRONT", (probe(whole.sequence[6:30], 0, 40),))
    monkeypatch.setattr(adapters, "_REAR", (probe(whole.sequence[-13:-1][::-1], 0, 20),))
    return str(server.address)


def test_what_is_trimmed_is_trimmed_of_everything(adapted: str, signals: list[np.ndarray]) -> None:
    whole = call(adapted, of_run(signals), no_trim=True)
    assert [part.samples for part in whole] == [signal_S.size for signal_S in signals]
    trimmed = call(adapted, of_run(signals))
    assert check(trimmed[-4], whole[-4]) == (30, 13)
    assert [check(*parts) for parts in zip(trimmed, whole, strict=True)].count((0, 0)) >= len(signals) - 2
    assert call(adapted, of_run(signals), no_trim=True) == whole


def test_the_kit_of_the_run_counts(adapted: str, signals: list[np.ndarray]) -> None:
    (whole,) = call(adapted, of_run(signals[-4:-3]), no_trim=True)
    (ligated,) = call(adapted, of_run(signals[-4:-3], "sqk-lsk114"))
    (rapid,) = call(adapted, of_run(signals[-4:-3], "SQK-RBK114.24"))
    assert check(ligated, whole) == (30, 13)
    assert check(rapid, whole) == (30, 0)


def test_rna_is_not_searched_for_adapters_of_dna(
    start_server: StartServer,
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    signals: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaling = {"scaling__strategy": "pa", "standardisation__mean": 90.0, "standardisation__stdev": 20.0}
    model = make_bundle(tmp_path / "rna004_130bps_fast@v5.0.0", container="safetensors", **scaling)
    server = start_server(model=[model])
    reads = of_run(signals[-4:])
    whole = call(server.address, reads, no_trim=True)
    monkeypatch.setattr(adapters, "_FRONT", (adapters._Probe(whole[0].sequence[:24], 0, 40),))
    assert call(server.address, reads) == whole


def test_real_reads_are_trimmed_the_same_in_every_company(start_server: StartServer, shared_data: Path) -> None:
    model = shared_data / "models/dna_r9.4.1_e8.1_fast@v3.4"
    reads = list(Pod5Source([shared_data / "sarscov2_r941/reads.pod5"], max_reads=24))
    server = start_server(model=[model])
    whole, trimmed = call(server.address, reads, no_trim=True), call(server.address, reads)
    cut = [check(*parts) for parts in zip(trimmed, whole, strict=True)]
    assert sum(front > 0 for front, _ in cut) >= 0.75 * len(reads)
    assert sum(rear > 0 for _, rear in cut) >= 5
    assert call(start_server(model=[model], batch_size=3, threads=1).address, reads[::-1]) == trimmed[::-1]
