"""Adapters: found in noisy reads and nowhere else, and what is left of a read describes the same signal as before."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from porestream.models.call.adapters import (
    BOTTOM,
    MIN_KEPT_BASES,
    TOP,
    TRANSPOSASE,
    find_insert,
    trim_adapters,
)
from porestream.models.call.basecaller import Basecaller, CalledRead
from porestream.models.files.bundle import load_bundle

BASES = "ACGT"
LINKER = "GCTTGGGTGTTTAACC"  # between the sequencing adapter and a rapid kit's barcode
BARCODE = "AAGAAAGTTGTCGGTGTCTTTGTG"
KITS = ["", "sqk-lsk109", "SQK-LSK114", "SQK-NBD114-24", "SQK-RAD114", "SQK-ULK114", "SQK-RBK114.24", "no kit"]


def random_bases(count: int, rng: np.random.Generator) -> str:
    return np.frombuffer(BASES.encode(), np.uint8)[rng.integers(0, 4, count)].tobytes().decode()


def miscalled(sequence: str, error: float, rng: np.random.Generator) -> str:
    """A third each of substitutions, insertions and deletions."""
    called: list[str] = []
    for base, draw in zip(sequence, rng.random(len(sequence)), strict=True):
        if draw < error / 3:
            called.append(rng.choice([other for other in BASES if other != base]))
        elif draw < 2 * error / 3:
            called.append(base + rng.choice(list(BASES)))
        elif draw >= error:
            called.append(base)
    return "".join(called)


def called_read(sequence: str, rng: np.random.Generator) -> CalledRead:
    moves_T = np.zeros(3 * len(sequence) + 5, np.uint8)
    moves_T[np.sort(rng.choice(moves_T.size, len(sequence), replace=False))] = 1
    return CalledRead(
        sequence=sequence,
        qualities_B=rng.integers(1, 50, len(sequence), dtype=np.uint8),
        moves_T=moves_T,
        stride=5,
        trimmed_samples=130,
    )


@pytest.mark.parametrize(
    ("error", "least_front", "least_rear"), [(0.0, 1.0, 1.0), (0.05, 0.98, 0.87), (0.1, 0.95, 0.75), (0.15, 0.85, 0.55)]
)
def test_adapters_are_found_in_noisy_reads(error: float, least_front: float, least_rear: float) -> None:
    rng = np.random.default_rng(int(100 * error))
    front = rear = front_bases = rear_bases = false = 0
    for _ in range(400):
        leader, insert = random_bases(int(rng.integers(0, 12)), rng), random_bases(300, rng)
        before = leader + miscalled(TOP, error, rng)
        after = miscalled(BOTTOM[:12], error, rng)
        false += find_insert(insert) != (0, 300)
        false += find_insert(before + insert)[1] != len(before + insert)
        false += find_insert(insert + after)[0] != 0
        first, end = find_insert(before + insert + after)
        front += abs(first - len(before)) <= 4
        rear += abs(end - len(before + insert)) <= 4
        front_bases += max(0, first - len(before))
        rear_bases += max(0, len(before + insert) - end)
    assert front >= 400 * least_front
    assert rear >= 400 * least_rear
    assert max(front_bases, rear_bases) < 0.5 * 400  # of the insert: where its first bases look like adapter
    assert false <= 4  # of 1,200


@pytest.mark.parametrize("length", range(10, len(BOTTOM) + 1))
def test_an_adapter_that_breaks_off_is_found_from_ten_bases_on(length: int) -> None:
    insert = random_bases(200, np.random.default_rng(length)) + "T"
    assert find_insert(insert + BOTTOM[:length]) == (0, 201)


@pytest.mark.parametrize("lost", range(10))
def test_an_adapter_of_which_the_leader_took_a_part_is_found(lost: int) -> None:
    sequence = TOP[lost:] + "A" + random_bases(200, np.random.default_rng(lost))
    assert find_insert(sequence) == (24 - lost, len(sequence))


@pytest.mark.parametrize("position", ["front", "rear"])
def test_an_adapter_within_a_read_is_left_there(position: str) -> None:
    rng = np.random.default_rng(7)
    sequence = random_bases(80, rng) + (TOP if position == "front" else BOTTOM) + random_bases(80, rng)
    assert find_insert(sequence) == (0, len(sequence))


def test_the_transposase_adapter_goes_unless_a_barcode_is_before_it() -> None:
    rng = np.random.default_rng(3)
    insert = "A" + random_bases(200, rng)
    barcoded = TOP + LINKER + BARCODE + TRANSPOSASE + insert
    for kit in KITS:
        first, _ = find_insert(barcoded, kit)
        assert first == len(TOP), kit
        for linker in ("", LINKER):
            rapid = TOP + linker + TRANSPOSASE
            expected = len(rapid) if kit in ("", "SQK-RAD114", "SQK-ULK114", "no kit") else len(TOP)
            assert find_insert(rapid + insert, kit)[0] == expected, (kit, linker)
    unrecognised = random_bases(len(TOP), rng) + TRANSPOSASE
    assert find_insert(unrecognised + insert, "SQK-RAD114")[0] == len(unrecognised)
    assert find_insert(unrecognised + insert)[0] == 0  # in a read of an unknown kit, a barcode may be before it
    found = [find_insert(miscalled(TOP + TRANSPOSASE, 0.1, rng) + insert, "SQK-RAD114")[0] for _ in range(100)]
    assert sum(length > 60 for length in found) >= 95


def test_reads_of_rapid_kits_have_no_adapter_at_their_end() -> None:
    sequence = random_bases(200, np.random.default_rng(4)) + "T" + BOTTOM[:14]
    ends = {kit: find_insert(sequence, kit)[1] for kit in KITS}
    assert {kit for kit, end in ends.items() if end == len(sequence)} == {"SQK-RAD114", "SQK-ULK114", "SQK-RBK114.24"}
    assert set(ends.values()) == {201, len(sequence)}


@pytest.mark.parametrize(("bases", "trimmed"), [(0, False), (MIN_KEPT_BASES - 1, False), (MIN_KEPT_BASES, True)])
def test_a_read_with_too_little_between_its_adapters_is_left_whole(bases: int, trimmed: bool) -> None:
    insert = "GATCCGATTGCCATGCAACTGGTCAC"[-bases:] if bases else ""
    sequence = TOP + insert + BOTTOM
    assert find_insert(sequence) == ((24, 24 + bases) if trimmed else (0, len(sequence)))


def test_random_bases_are_left_alone() -> None:
    """The rate that was measured on 300,000 such stretches: 0.044% are trimmed at the front and 0.049% at the rear."""
    rng = np.random.default_rng(11)
    text = random_bases(200 * 20_000, rng)
    inserts = [find_insert(text[first : first + 200]) for first in range(0, len(text), 200)]
    assert sum(first > 0 for first, _ in inserts) < 20
    assert sum(end < 200 for _, end in inserts) < 20


PIECES = st.lists(
    st.one_of(
        st.sampled_from([TOP, TOP[8:], BOTTOM, BOTTOM[:11], TRANSPOSASE, LINKER, BARCODE]), st.text("ACGT", max_size=40)
    ),
    max_size=8,
)


@given(PIECES, st.sampled_from(KITS), st.integers(0, 2**32 - 1))
def test_what_is_left_is_a_slice_and_its_moves_are_where_they_were(pieces: list[str], kit: str, seed: int) -> None:
    read = called_read("".join(pieces), np.random.default_rng(seed))
    left = trim_adapters(read, kit)
    first, end = find_insert(read.sequence, kit)
    assert find_insert(read.sequence, kit) == (first, end)  # the same again
    assert left.sequence == read.sequence[first:end]
    assert np.array_equal(left.qualities_B, read.qualities_B[first:end])
    assert left.sequence == read.sequence or len(left.sequence) >= MIN_KEPT_BASES
    assert left.moves_T.sum() == len(left.sequence)
    assert (left.stride, left.moves_T.dtype) == (read.stride, np.uint8)
    base_samples = [each.trimmed_samples + each.stride * np.flatnonzero(each.moves_T) for each in (read, left)]
    assert np.array_equal(base_samples[1], base_samples[0][first:end])
    if first:
        assert left.trimmed_samples == base_samples[0][first]  # moves begin with the first base
    last_sample = read.trimmed_samples + read.stride * read.moves_T.size
    stop = base_samples[0][end] if end < len(read.sequence) else last_sample
    assert left.trimmed_samples + left.stride * left.moves_T.size == stop


def test_real_reads_lose_their_adapters(shared_data: Path) -> None:
    from porestream.client.sources.pod5_source import Pod5Source

    model = Basecaller(load_bundle(shared_data / "models/dna_r9.4.1_e8.1_fast@v3.4"))
    reads = Pod5Source([shared_data / "sarscov2_r941/reads.pod5"], max_reads=20)
    sequences = [model.call_read(read.signal_S).sequence for read in reads]
    inserts = [find_insert(sequence, "sqk-lsk109") for sequence in sequences]
    assert sum(15 <= first <= 35 for first, _ in inserts) >= 0.8 * 20
    assert sum(9 <= len(sequence) - end <= 16 for sequence, (_, end) in zip(sequences, inserts, strict=True)) >= 5
