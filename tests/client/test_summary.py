"""The books of a call."""

import json
import time
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from porestream.client import Alignment, CalledPart, ReadInfo, ReadResult, ReadStatus, RunInfo
from porestream.client.outputs.summary import Summary

INFO = ReadInfo(
    read_id=UUID(int=1), run=RunInfo(run_id="run", sample_rate_hz=4000), offset_adc=0.0, scale_pa_per_adc=1.0
)
ALIGNMENT = Alignment(
    flag=0,
    reference_name="chr1",
    reference_start=0,
    reference_end=4,
    mapping_quality=60,
    cigar=(4 << 4,),
    score=8,
    edit_distance=0,
    md="4",
    divergence=0.0,
)
NEEDED = {
    "reads_received",
    "reads_called",
    "reads_filtered",
    "reads_rejected",
    "reads_failed",
    "reads_aligned",
    "samples",
    "bases",
    "seconds",
    "samples_per_second",
    "bases_per_second",
}


def make_result(status: ReadStatus, lengths: tuple[int, ...] = (4,), aligned: bool = False) -> ReadResult:
    parts = tuple(
        CalledPart(
            read_id=INFO.read_id,
            sequence="A" * n,
            qualities=bytes(n),
            mean_qscore=9.0,
            samples=10 * n,
            trimmed_samples=0,
            stride_samples=5,
            moves=b"",
            alignments=(ALIGNMENT,) * (2 * aligned),
        )
        for n in lengths
    )
    has_parts = status in (ReadStatus.CALLED, ReadStatus.FILTERED)
    return ReadResult(
        info=INFO,
        status=status,
        detail="",
        signal_samples=100,
        parts=parts if has_parts else (),
    )


@given(st.lists(st.tuples(st.sampled_from(ReadStatus), st.booleans())), st.integers(0, 5), st.integers(0, 5))
def test_the_books_balance(results: list[tuple[ReadStatus, bool]], unreadable: int, lost: int) -> None:
    summary = Summary()
    for status, aligned in results:
        summary.reads_received += 1
        summary.add(make_result(status, (4, 6), aligned))
    for _ in range(unreadable):
        summary.add_unreadable_read()
    summary.reads_received += lost
    summary.stop_clock()
    count = {status: sum(found is status for found, _ in results) for status in ReadStatus}
    assert summary.reads_received == len(results) + unreadable + lost
    assert summary.reads_called == count[ReadStatus.CALLED]
    assert summary.reads_filtered == count[ReadStatus.FILTERED]
    assert summary.reads_rejected == count[ReadStatus.REJECTED] + unreadable
    assert summary.reads_failed == count[ReadStatus.FAILED]
    assert summary.missing == lost
    called = [aligned for status, aligned in results if status in (ReadStatus.CALLED, ReadStatus.FILTERED)]
    assert summary.reads_aligned == sum(called), "a read counts once, however many alignments it has"
    assert summary.bases == 10 * len(called)
    assert summary.samples == 100 * len(results)


def test_a_read_too_many_does_not_balance_either() -> None:
    summary = Summary(reads_received=1)
    for _ in range(2):
        summary.add(make_result(ReadStatus.CALLED))
    assert summary.missing == -1


def test_rates_are_of_the_time_since_the_clock_was_started() -> None:
    summary = Summary()
    summary.add(make_result(ReadStatus.CALLED))
    time.sleep(0.05)
    summary.start_clock()
    before_s = time.monotonic()
    time.sleep(0.02)
    summary.stop_clock()
    assert 0.02 <= summary.seconds <= time.monotonic() - before_s + 0.01
    assert summary.samples_per_second == pytest.approx(100 / summary.seconds)
    assert summary.bases_per_second == pytest.approx(4 / summary.seconds)


def test_the_json_has_what_is_promised(tmp_path: Path) -> None:
    summary = Summary(reads_received=2, files_unreadable=["läufe.pod5"])
    summary.add(make_result(ReadStatus.CALLED, aligned=True))
    summary.add(make_result(ReadStatus.REJECTED))
    summary.stop_clock()
    path = tmp_path / "summary.json"
    summary.write(path)
    figures = json.loads(path.read_text())
    assert figures.keys() >= NEEDED
    assert not [name for name in figures if name.startswith("_")]
    assert figures["files_unreadable"] == ["läufe.pod5"]
    assert all(isinstance(figures[name], (int, float)) for name in NEEDED)
    assert figures == {name: getattr(summary, name) for name in figures}


def test_an_empty_call_has_a_summary() -> None:
    summary = Summary()
    summary.stop_clock()
    assert summary.missing == 0
    assert json.loads(summary.to_json())["bases_per_second"] == 0
    assert str(summary).startswith("0 reads: 0 called")


def test_the_text_has_every_count() -> None:
    summary = Summary(
        reads_received=10,
        reads_called=5,
        reads_filtered=2,
        reads_rejected=2,
        reads_failed=1,
        reads_aligned=4,
        samples=123_456,
        bases=7_890,
        seconds=2.0,
        samples_per_second=61_728.0,
        bases_per_second=3945.0,
    )
    assert str(summary) == (
        "10 reads: 5 called, 2 filtered, 2 rejected, 1 failed; 4 aligned\n"
        "123,456 samples, 7,890 bases in 2.0 s (61,728 samples/s, 3,945 bases/s)"
    )
