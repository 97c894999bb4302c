"""Steps after calling may cut a read in parts, each with an id and a status of its own, or leave nothing of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import pytest

from porestream.client import ReadInfo, ReadStatus, RunInfo, SignalRead, StreamOptions, SyncBasecallClient
from porestream.models.files.config import ModelConfig
from porestream.server.calling import after_calling
from porestream.server.calling.after_calling import Part
from porestream.server.reads import CallSettings

RUN = RunInfo(run_id="run", sample_rate_hz=4000)
BASES = 60


def part_of(whole: Part, number: int, first: int, end: int) -> Part:
    """Bases of a part, as a step that splits would make it."""
    called = whole.called
    starts_B = np.flatnonzero(called.moves_T)
    first_step, end_step = int(starts_B[first]), int(starts_B[end])
    skipped = first_step * called.stride
    return Part(
        called=replace(
            called,
            sequence=called.sequence[first:end],
            qualities_B=called.qualities_B[first:end],
            moves_T=called.moves_T[first_step:end_step],
            trimmed_samples=called.trimmed_samples + skipped,
        ),
        read_id=uuid5(UUID(int=0), str(number)).bytes,
        first_sample=skipped,
    )


def split(parts: list[Part], _settings: CallSettings, _config: ModelConfig) -> list[Part]:
    (whole,) = parts
    found = [part_of(whole, 0, 0, BASES), part_of(whole, 1, BASES, 2 * BASES)]
    bad = replace(found[1].called, qualities_B=np.ones_like(found[1].called.qualities_B))
    return [found[0], replace(found[1], called=bad)]


def nothing(_parts: list[Part], _settings: CallSettings, _config: ModelConfig) -> list[Part]:
    return []


def call(address: str, signals: list[np.ndarray]) -> list[Any]:
    reads = [
        SignalRead(ReadInfo(read_id=UUID(int=n + 1), run=RUN, offset_adc=10.0, scale_pa_per_adc=0.2), signal)
        for n, signal in enumerate(signals)
    ]
    options = StreamOptions(emit_moves=True, min_mean_qscore=2.0)
    with SyncBasecallClient(address, options) as client:
        return sorted(client.call(reads), key=lambda result: result.info.read_id.int)


@pytest.fixture
def long_signals(signals: list[np.ndarray]) -> list[np.ndarray]:
    return sorted(signals, key=len)[-3:]


def test_a_read_in_two_parts(
    start_server: Callable[..., Any],
    long_signals: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start_server()
    whole = call(server.address, long_signals)
    monkeypatch.setattr(after_calling, "STEPS", (*after_calling.STEPS, split))
    results = call(server.address, long_signals)
    for before, result in zip(whole, results, strict=True):
        assert result.status is ReadStatus.CALLED
        first, second = result.parts
        assert first.sequence + second.sequence == before.parts[0].sequence[: 2 * BASES]
        assert (first.status, second.status) == (ReadStatus.CALLED, ReadStatus.FILTERED)
        assert first.read_id != second.read_id
        assert second.trimmed_samples > first.trimmed_samples
    books = server.engine.ledger.server
    assert (books.received, books.called, books.open) == (6, 6, 0), "parts are no reads"


def test_nothing_of_a_read_is_left(
    start_server: Callable[..., Any], long_signals: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server()
    monkeypatch.setattr(after_calling, "STEPS", (nothing,))
    for result in call(server.address, long_signals):
        assert (result.status, result.parts) == (ReadStatus.FILTERED, ())
        assert result.detail == "no sequence left after trimming"
    assert server.engine.ledger.server.filtered == len(long_signals)
