"""Whole runs: places on the flow cell, truth against signal, files.

Dimensions: B bases, S samples.
"""

import csv
import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pod5
import pytest
from pod5 import EndReasonEnum

from porestream.client.sources.pod5_source import Pod5Source
from porestream.models.scale import leader_samples, quantile_scaling
from porestream.models.simulate.flowcell import PA_PER_ADC, FlowCell, Place, digitise, draw_end_reason
from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.reference import Reference
from porestream.models.simulate.run import MIN_LENGTH, Plan, Run, plan_reads, simulate_run
from porestream.models.simulate.sequence import encode, random_bases, reverse_complement
from porestream.models.simulate.signal import SignalNoise
from porestream.models.simulate.simulated_reads import ADAPTER_B, TAIL_B, ReadSettings, SimulatedRead
from porestream.models.simulate.writer import TRUTH_COLUMNS, RunWriter, run_info

PLAN = Plan(reads=12, coverage=None, length_mean=700, length_sd=300, strand="both")
RUN = Run(plan=PLAN, settings=ReadSettings(SignalNoise(), 5000, True), channels=3, seed=11)

CONTIGS = {name: random_bases(size, np.random.default_rng(size)) for name, size in (("chrA", 20_000), ("chrB", 6000))}
REFERENCE = Reference(CONTIGS, MIN_LENGTH)

Reads = list[tuple[SimulatedRead, Place]]


@pytest.fixture(scope="module")
def reads() -> Reads:
    return list(simulate_run(RUN, REFERENCE, threads=1))


def signals(reads: Iterable[tuple[SimulatedRead, Place]]) -> list[bytes]:
    return [digitise(read.current_pa_S, place.offset_adc).tobytes() for read, place in reads]


def test_a_run_follows_from_its_seed_whatever_the_threads(reads: Reads) -> None:
    again = list(simulate_run(RUN, REFERENCE, threads=3))
    assert signals(again) == signals(reads)
    assert [place for _, place in again] == [place for _, place in reads]
    for (one, _), (other, _) in zip(again, reads, strict=True):
        assert (one.read_id, one.window.contig, one.window.start) == (
            other.read_id,
            other.window.contig,
            other.window.start,
        )
        assert one.first_samples_B.tobytes() == other.first_samples_B.tobytes()
    others = list(simulate_run(replace(RUN, seed=12), REFERENCE, threads=2))
    assert not {read.read_id for read, _ in others} & {read.read_id for read, _ in reads}
    assert not set(signals(others)) & set(signals(reads))


def test_a_run_that_is_given_up_ends() -> None:
    endless = simulate_run(replace(RUN, plan=replace(PLAN, reads=10**9)), REFERENCE, threads=2)
    next(endless)
    endless.close()  # waits for the reads under way alone


def test_the_signal_is_that_of_the_stated_place(reads: Reads, pore: PoreModel) -> None:
    """The events' medians follow the levels of the reference there, on that strand, and of no place beside it."""
    strands = set()
    for read, _ in reads:
        window = read.window
        strands.add(window.strand)
        forward_B = CONTIGS[window.contig][window.start : window.end]
        bases_B = forward_B if window.strand == "+" else reverse_complement(forward_B)
        edges_B = np.append(read.first_samples_B, read.end_sample)
        inner = slice(pore.left, bases_B.size - pore.right)
        long_B = np.flatnonzero(np.diff(edges_B)[inner] >= 6) + pore.left
        medians_B = [np.median(read.current_pa_S[edges_B[at] + 1 : edges_B[at + 1]]) for at in long_B]

        def likeness(bases_B: np.ndarray, shift: int, at_B: np.ndarray = long_B, seen_B: list = medians_B) -> float:
            return float(np.corrcoef(pore.levels(np.roll(bases_B, shift)).mean_B[at_B - pore.left], seen_B)[0, 1])

        assert likeness(bases_B, 0) > 0.97
        assert likeness(bases_B, 1) < 0.6
        assert likeness(bases_B, -1) < 0.6
        assert likeness(reverse_complement(bases_B), 0) < 0.5
    assert strands == {"+", "-"}


def test_boundaries_lie_in_order_between_leader_and_tail(reads: Reads) -> None:
    tails = 0
    for read, _ in reads:
        assert read.first_samples_B.size == read.window.bases_B.size
        assert (np.diff(read.first_samples_B) >= 0).all()
        assert 10 * ADAPTER_B.size < read.first_samples_B[0] < 8000
        assert read.first_samples_B[-1] <= read.end_sample <= read.current_pa_S.size
        tail_samples = read.current_pa_S.size - read.end_sample
        tails += tail_samples > 5 * TAIL_B.size
        assert not tail_samples or read.end_reason == EndReasonEnum.SIGNAL_POSITIVE
    assert 2 < tails < 12


def test_without_adapters_a_read_is_its_bases() -> None:
    bare = replace(RUN, settings=replace(RUN.settings, adapters=False))
    for read, _ in simulate_run(bare, REFERENCE, threads=1):
        assert read.first_samples_B[0] == 0
        assert read.end_sample == read.current_pa_S.size
        assert np.quantile(read.current_pa_S, 0.999) < 190  # spikes apart, no open pore


def test_half_of_the_leaders_are_seen_and_none_is_trimmed_too_far() -> None:
    plan = Plan(reads=60, coverage=None, length_mean=600, length_sd=0, strand="both")
    found = []
    for read, place in simulate_run(replace(RUN, plan=plan), REFERENCE, threads=1):
        signal_S = digitise(read.current_pa_S, place.offset_adc)
        trimmed = leader_samples(signal_S, quantile_scaling(signal_S))
        assert trimmed <= read.first_samples_B[0]
        found.append(trimmed > 10)
    assert 0.3 < np.mean(found) < 0.7


def test_plans_end_at_their_coverage_or_count() -> None:
    by_coverage = list(plan_reads(REFERENCE, replace(PLAN, reads=None, coverage=2.0), 1))
    bases = sum(window.bases_B.size for window, _ in by_coverage)
    assert 52_000 <= bases < 52_000 + by_coverage[-1][0].bases_B.size
    assert len(list(plan_reads(REFERENCE, PLAN, 1))) == 12


def test_lengths_and_strands_are_as_planned() -> None:
    plan = Plan(reads=2000, coverage=None, length_mean=800, length_sd=400, strand="reverse")
    windows = [window for window, _ in plan_reads(REFERENCE, plan, 1)]
    lengths = [window.bases_B.size for window in windows]
    assert {window.strand for window in windows} == {"-"}
    assert min(lengths) == MIN_LENGTH
    assert np.mean(lengths) == pytest.approx(800, rel=0.05)
    assert np.std(lengths) == pytest.approx(400, rel=0.1)
    fixed = plan_reads(REFERENCE, replace(plan, reads=20, length_sd=0, strand="forward"), 1)
    assert {(window.bases_B.size, window.strand) for window, _ in fixed} == {(800, "+")}


def test_a_channel_takes_one_read_at_a_time() -> None:
    rng = np.random.default_rng(5)
    cell = FlowCell(20, 5000, rng)
    by_channel = defaultdict(list)
    places = []
    for _ in range(1000):
        samples, end_reason = int(rng.exponential(50_000)) + 1, draw_end_reason(rng)
        place = cell.place(samples, end_reason)
        places.append((place.start_sample, place.start_sample + samples))
        by_channel[place.channel].append((place, samples, end_reason))
    assert len(by_channel) == 20
    assert all(1 <= channel <= 512 for channel in by_channel)
    assert [start for start, _ in places] == sorted(start for start, _ in places)
    middle = places[500][0]
    assert sum(start <= middle < end for start, end in places) > 10, "channels run side by side"
    changes = 0
    for taken in by_channel.values():
        for (place, samples, end_reason), (following, _, _) in itertools.pairwise(taken):
            gap = following.start_sample - place.start_sample - samples
            assert gap >= 0.05 * 5000 - 1
            assert following.read_number > place.read_number > 0
            assert following.offset_adc == place.offset_adc
            assert 1 <= place.well <= 4
            changed = end_reason in (EndReasonEnum.UNBLOCK_MUX_CHANGE, EndReasonEnum.MUX_CHANGE)
            assert (following.well != place.well) == changed
            changes += changed
    assert 20 < changes < 100


def test_most_reads_end_by_themselves() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw_end_reason(rng) for _ in range(2000)]
    assert drawn.count(EndReasonEnum.SIGNAL_POSITIVE) / 2000 == pytest.approx(0.93, abs=0.03)
    assert len(set(drawn)) == 5


def test_current_becomes_counts_within_the_adc() -> None:
    current_pa_S = np.array([-5000, 0, 100, 250, 5000], np.float32)
    counts_S = digitise(current_pa_S, 7)
    assert counts_S.dtype == np.int16
    assert (counts_S[0], counts_S[-1]) == (-4096, 4095)
    np.testing.assert_allclose((counts_S[1:4] + 7.0) * PA_PER_ADC, current_pa_S[1:4], atol=PA_PER_ADC / 2 + 1e-4)


@pytest.mark.parametrize("boundaries", [False, True])
def test_the_files_hold_the_run(tmp_path: Path, reads: Reads, boundaries: bool) -> None:
    output, truth = tmp_path / "run.pod5", tmp_path / "truth.tsv"
    for path in (output, truth):
        path.write_text("an older file")
    with RunWriter(output, truth, run_info(11, 5000, "sample"), boundaries) as writer:
        for read, place in reads:
            writer.add(read, place)
        assert output.read_text() == "an older file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.pod5", "truth.tsv"]

    source = Pod5Source([output])
    found = list(source)
    assert not source.file_faults
    assert not source.read_faults
    with truth.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == [*TRUTH_COLUMNS, *["boundaries"] * boundaries]
    for (read, place), row, taken in zip(reads, rows, found, strict=True):
        info = taken.info
        assert taken.signal_S.tobytes() == digitise(read.current_pa_S, place.offset_adc).tobytes()
        assert (info.read_id, info.offset_adc, info.end_reason) == (
            read.read_id,
            place.offset_adc,
            row["end_reason"],
        )
        for name, value in (
            ("read_id", info.read_id),
            ("channel", info.channel),
            ("well", info.well),
            ("read_number", info.read_number),
            ("start_sample", info.start_sample),
            ("samples", taken.signal_S.size),
            ("contig", read.window.contig),
            ("start", read.window.start),
            ("end", read.window.end),
            ("strand", read.window.strand),
            ("bases", read.window.end - read.window.start),
            ("leader_samples", read.first_samples_B[0]),
            ("tail_samples", taken.signal_S.size - read.end_sample),
        ):
            assert row[name] == str(value), name
        if boundaries:
            assert [int(sample) for sample in row["boundaries"].split(",")] == read.first_samples_B.tolist()
    with pod5.Reader(output) as reader:
        run = next(reader.reads()).run_info
        means_pa = [record.signal_pa.mean() for record in reader.reads()]
    assert (run.flow_cell_product_code, run.sequencing_kit, run.sample_rate) == ("FLO-MIN114", "sqk-lsk114", 5000)
    assert run.context_tags["selected_speed_bases_per_second"] == "400"
    assert run.context_tags["sample_frequency"] == "5000"
    np.testing.assert_allclose(means_pa, [read.current_pa_S.mean() for read, _ in reads], atol=0.1)


def test_run_ids_follow_from_the_seed() -> None:
    ids = [run_info(seed, 5000, sample).acquisition_id for seed, sample in ((1, "a"), (1, "a"), (2, "a"), (1, "b"))]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_a_run_that_fails_leaves_the_older_files(tmp_path: Path, reads: Reads) -> None:
    output, truth = tmp_path / "run.pod5", tmp_path / "run.truth.tsv"
    output.write_text("an older file")
    with pytest.raises(KeyboardInterrupt), RunWriter(output, truth, run_info(1, 5000, "sample"), False) as writer:
        writer.add(*reads[0])
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["run.pod5"]
    assert output.read_text() == "an older file"


def test_encoded_adapters_are_the_published_ones() -> None:
    assert ADAPTER_B.size == 36
    assert (reverse_complement(TAIL_B) == encode("ACTTCGTTCAGTTACGTATTGC")).all()
    assert (ADAPTER_B[-23:-1] == reverse_complement(TAIL_B)).all()
