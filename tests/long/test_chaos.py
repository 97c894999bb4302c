"""A score of random faults, as `make chaos` has a thousand of them; and whether it would notice what it looks for."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import chaos
import numpy as np
import pytest
from breaking import scrape

FAULTS, SEED = 20, 5
READS = 20


@pytest.fixture(scope="module")
def job(tiny_model: Path, write_pod5: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> chaos.Job:
    """Reads of many lengths; the first are too short to be called."""
    folder, rng = tmp_path_factory.mktemp("chaos"), np.random.default_rng(1)
    signals = [
        (rng.normal(500, 80, samples // 9 + 1).repeat(9)[:samples] + rng.normal(0, 12, samples)).astype(np.int16)
        for samples in (5, 13, *rng.integers(1000, 25_000, READS))
    ]
    run = write_pod5(folder / "run.pod5", signals)
    flags = ("--model", tiny_model, "--threads", 1, "--grace-s", 1)
    job = chaos.Job(folder=folder, pod5=run, server_flags=flags, formats={"calls.bam": (), "calls.fastq": ()})
    job.prepare()
    return job


def test_nothing_is_lost_or_doubled_by_random_faults(job: chaos.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "SILENT_S", 1.0)  # `make chaos` has the time to outwait the client
    runs = chaos.run_all(job, FAULTS, SEED, lanes=4)
    assert sum(len(run.faults) for run in runs) >= FAULTS
    assert [(run.number, run.wrong) for run in runs if run.wrong] == []
    assert not any(run.lost | run.doubled for run in runs)
    assert sum(run.scrapes for run in runs)


def test_what_is_lost_doubled_or_other_is_seen(job: chaos.Job) -> None:
    expected, _ = job.expected["calls.bam"]
    first, second, *_ = expected.reads
    text = next(iter(expected.texts))
    run = chaos.Run(replace(job, formats={"calls.bam": ()}), SEED, 1000)
    run.compare(expected)
    assert not any((run.lost, run.doubled, run.wrong))
    run.compare(replace(expected, reads=expected.reads - Counter([first]) + Counter([second])))
    assert (run.lost, run.doubled) == ({first}, {second})
    run.compare(replace(expected, texts=expected.texts - Counter([text]) + Counter([text.replace("\t", " ")])))
    assert "2 records or rows differ" in run.wrong[0]


def test_books_that_do_not_balance_are_seen(tmp_path: Path) -> None:
    labels = '{model="m",priority="bulk"'
    page = tmp_path / "metrics"
    lines = [
        f"porestream_reads_received_total{labels}}} 9.0",
        f'porestream_reads_total{labels},status="called"}} 6.0',
        f'porestream_reads_total{labels},status="abandoned"}} 1.0',
        "porestream_books_imbalance 0.0",
    ]
    page.write_text("\n".join([*lines, f"porestream_reads_open{labels}}} 2.0\n"]))
    assert scrape(page.as_uri()) == ({}, 2, 0)
    page.write_text("\n".join([*lines, f"porestream_reads_open{labels}}} 1.0\n"]))
    assert scrape(page.as_uri()) == ({"m bulk": 1}, 1, 0)
