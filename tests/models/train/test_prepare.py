"""Moves, forced alignment, training arrays: against simulated reads, whose boundaries are known, and real ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pysam
import pytest

from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.sequence import decode, reverse_complement
from porestream.models.train.align import CannotAlign, align, events, fit_line
from porestream.models.train.arrays import TrainingRead, load_reads, save_reads, split
from porestream.models.train.moves import NoMoves, moves_of
from porestream.models.train.prepare import CannotUse, aligned_read, prepare_reads

MakeRead = Callable[..., TrainingRead]
STRIDE = 5


def record_of(read: TrainingRead, reverse: bool = False, trimmed: int = 0) -> pysam.AlignedSegment:
    """What a caller would write of a read: bases, and moves as coarse as its steps."""
    steps_T = np.zeros(-(-(read.signal_pa_S.size - trimmed) // STRIDE), np.uint8)
    at_B = ((read.starts_B - trimmed) // STRIDE).astype(int)
    for b in range(1, at_B.size):  # no two bases in one step
        at_B[b] = max(at_B[b], at_B[b - 1] + 1)
    kept = at_B < steps_T.size
    steps_T[at_B[kept]] = 1
    bases_B = read.bases_B[kept]
    record = pysam.AlignedSegment()
    record.query_name = read.read_id
    record.flag = 16 if reverse else 4
    record.query_sequence = decode(reverse_complement(bases_B) if reverse else bases_B)
    record.set_tag("mv", pysam_array([STRIDE, *steps_T]))
    record.set_tag("ts", trimmed)
    return record


def pysam_array(values: list[int]) -> object:
    import array

    return array.array("b", values)


@pytest.mark.parametrize("reverse", [False, True])
def test_moves_of_a_caller_become_the_true_boundaries(pore: PoreModel, simulated_read: MakeRead, reverse: bool) -> None:
    read = simulated_read(1)
    leader_S = np.full(203, 180, np.float32)
    shifted = replace(
        read, signal_pa_S=np.concatenate([leader_S, read.signal_pa_S]), starts_B=read.starts_B + leader_S.size
    )
    found = aligned_read(shifted.signal_pa_S, 4000.0, record_of(shifted, reverse, trimmed=200), pore)
    inner = slice(pore.left, pore.left + found.bases_B.size)
    assert found.bases_B.size >= read.bases_B.size - 30
    assert np.array_equal(found.bases_B, read.bases_B[inner])
    errors_B = np.abs(found.starts_B - shifted.starts_B[inner])
    assert np.median(errors_B) <= 1.0
    assert np.mean(errors_B <= 8) > 0.95  # as coarse as the moves are, they would be off by 2.5 in the median


def test_realigned_moves_count_from_both_ends() -> None:
    """Clip 2, match 3, insert 2, match 1, delete 1, match 1, clip 1; 5 samples before the first, 7 after the last."""
    record = pysam.AlignedSegment()
    record.query_name, record.flag, record.reference_start = "a", 0, 100
    record.query_sequence = "ACGTACGTAC"
    record.cigartuples = [(4, 2), (0, 3), (1, 2), (0, 1), (2, 1), (0, 1), (4, 1)]
    record.set_tag("ss", "4,6,5,8I3,1D9,")
    record.set_tag("si", "5,40,100,106")
    found = moves_of(record, samples=47)
    assert found.first_base == 2
    assert found.starts_B.tolist() == [5, 9, 15, 20, 24, 28, 31]
    assert found.end_sample == 40
    record.flag = 16  # the table goes with the signal, the CIGAR against it; the ends count from the signal's end
    record.set_tag("ss", "9,1D3,8I4,6,5,")
    found = moves_of(record, samples=47)
    assert found.first_base == 1
    assert found.starts_B.tolist() == [7, 16, 19, 23, 27, 31, 37]
    assert found.end_sample == 42


def test_records_without_usable_moves_are_named(simulated_read: MakeRead) -> None:
    read = simulated_read(1)
    samples = read.signal_pa_S.size

    def refused(message: str, **tags: object) -> None:
        record = record_of(read)
        for name, value in tags.items():
            record.set_tag(name, value)
        with pytest.raises(NoMoves, match=message):
            moves_of(record, samples)

    refused("neither an mv tag", mv=None)
    refused("part of the split read parent", pi="parent")
    refused("do not fit a signal", ts=3 * samples)
    refused("an ss tag but no alignment", ss="1,2,3", si="0,9,0,3")
    record = record_of(read)
    record.query_sequence = "ACGT"
    with pytest.raises(NoMoves, match="moves for 4 bases"):
        moves_of(record, samples)


def test_alignment_recovers_gain_and_offset(pore: PoreModel, simulated_read: MakeRead) -> None:
    read = simulated_read(4)
    levels_B = pore.levels(read.bases_B).mean_B
    inner = slice(pore.left, read.bases_B.size - pore.right)
    end = int(read.starts_B[inner.stop])
    guess_B = np.maximum.accumulate(read.starts_B[inner] + np.random.default_rng(1).normal(0, 15, levels_B.size))
    found = align(2 * read.signal_pa_S + 30, np.clip(guess_B, 0, end), end, levels_B)
    plain = align(read.signal_pa_S, read.starts_B[inner], end, levels_B)
    assert found.gain == pytest.approx(2 * plain.gain, rel=0.01)
    assert found.offset == pytest.approx(2 * plain.offset + 30, abs=1.0)
    assert (np.diff(found.starts_B) > 0).all()
    assert np.mean(np.abs(found.starts_B - read.starts_B[inner]) <= 3) > 0.8


def test_a_path_is_the_best_one() -> None:
    """Against all ways to cut a short signal into as many pieces as there are levels."""
    from itertools import combinations

    rng = np.random.default_rng(2)
    levels_B = rng.normal(0, 1, 10).astype(np.float32)
    counts_B = np.array([2, 1, 2, 2, 1, 2, 2, 1, 2, 2])
    starts_B = np.cumsum(counts_B) - counts_B
    signal_S = (np.repeat(levels_B, counts_B) + rng.normal(0, 0.3, 17)).astype(np.float32)
    found = align(signal_S, starts_B, 17, levels_B, rounds=1)
    gain, offset = fit_line(levels_B, *events(signal_S, starts_B, 17))
    units_S = (signal_S - offset) / gain

    def cost(starts: npt.NDArray[np.int64]) -> float:
        distance_S = np.abs(units_S - np.repeat(levels_B, np.diff([*starts, 17]))) / 0.2
        return float(np.where(distance_S < 4, distance_S**2 / 2, 8 + distance_S - 4)[1:].sum())

    best = min(cost(np.array([0, *cuts])) for cuts in combinations(range(1, 17), 9))
    assert cost(found.starts_B) == pytest.approx(best, rel=1e-4)


def test_what_cannot_be_aligned_is_said(pore: PoreModel, simulated_read: MakeRead) -> None:
    read = simulated_read(1)
    levels_B = pore.levels(read.bases_B).mean_B
    guess_B = read.starts_B[: levels_B.size]
    with pytest.raises(CannotAlign, match="cannot lie in 100 samples"):
        align(read.signal_pa_S, guess_B, 100, levels_B)
    with pytest.raises(CannotAlign, match="do not rise with the pore model's"):
        align(-read.signal_pa_S, read.starts_B[pore.left : -pore.right], int(read.starts_B[-pore.right]), levels_B)
    record = record_of(read)
    record.set_tag("mv", None)
    with pytest.raises(CannotUse, match="neither an mv tag"):
        aligned_read(read.signal_pa_S, 4000.0, record, pore)
    short = replace(read, bases_B=read.bases_B[:150], starts_B=read.starts_B[:150])
    with pytest.raises(CannotUse, match="only 128 bases have moves"):
        aligned_read(read.signal_pa_S, 4000.0, record_of(short), pore)


def test_arrays_come_back_and_the_last_by_name_are_for_validation(tmp_path: Path, simulated_read: MakeRead) -> None:
    reads = [simulated_read(seed, bases=300) for seed in (3, 1, 2)]
    prepared = split(reads, 1)
    assert [read.read_id for read in prepared.training] == ["read1", "read2"]
    save_reads(tmp_path / "reads.npz", prepared)
    loaded = load_reads(tmp_path / "reads.npz")
    for before, after in zip(
        [*prepared.training, *prepared.validation], [*loaded.training, *loaded.validation], strict=True
    ):
        assert after.read_id == before.read_id
        assert after.sample_rate_hz == before.sample_rate_hz
        for key in ("signal_pa_S", "bases_B", "starts_B"):
            assert np.array_equal(getattr(after, key), getattr(before, key))
    with pytest.raises(ValueError, match="3 reads for validation leave none of 3"):
        split(reads, 3)
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(ValueError, match=r"other\.npz: not training arrays"):
        load_reads(tmp_path / "other.npz")


def test_real_reads_are_prepared(shared_data: Path, pore: PoreModel) -> None:
    folder = shared_data / "human_r1041_4khz"
    found = list(prepare_reads([folder / "reads.pod5"], folder / "calls.bam", pore))
    reads = [read for read in found if isinstance(read, TrainingRead)]
    assert len(reads) == len(found) == 27
    assert len(split(reads, 5).training) == 22
    for read in reads:
        dwell_samples = np.diff(read.starts_B)
        assert dwell_samples.min() >= 1
        assert 4000 / 520 < dwell_samples.mean() < 4000 / 250
