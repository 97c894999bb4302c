"""Seeds and anchors on the emulator against minimap2's steps, with minimizers that are frequent."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porestream.kernels import emulator
from porestream.kernels.align import seeds
from porestream.kernels.align.aligner import PRESETS
from porestream.kernels.align.fasta import read_fasta
from porestream.kernels.align.index import Index, build_index, load_index
from porestream.kernels.align.minimizers import minimizers
from porestream.kernels.align.pack import encode_bases
from porestream.kernels.align.seeds import IndexOnDevice, find_anchors
from porestream.kernels.align.sketch import Reads, sketch
from porestream.kernels.device import EmulatedDevice

DEVICE = EmulatedDevice()
PRESET = PRESETS["map-ont"]
UNITS = ["".join(np.random.default_rng(seed).choice(list("ACGT"), 150)) for seed in range(4)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Units that are there 1, 8, 30 and 60 times, in three sequences; more than 10 times is frequent."""
    folder, rng = tmp_path_factory.mktemp("seeds"), np.random.default_rng(9)
    parts = [unit for unit, times in zip(UNITS, (1, 8, 30, 60), strict=True) for _ in range(times)]
    rng.shuffle(parts)
    text = "".join(part + "".join(rng.choice(list("ACGT"), 20)) for part in parts)
    thirds = [text[: len(text) // 3], text[len(text) // 3 : 2 * len(text) // 3], text[2 * len(text) // 3 :]]
    (folder / "r.fa").write_text("".join(f">c{number}\n{part}\n" for number, part in enumerate(thirds)))
    build_index(folder / "r.fa", read_fasta(folder / "r.fa"), PRESET, folder / "i")
    return replace(load_index(folder / "i"), frequent=10)


def places(index: Index) -> dict[int, list[tuple[int, int, int]]]:
    """By hash: (sequence, position, strand)."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    offset = index.offset
    for number in range(len(offset) - 1):
        own = minimizers(index.codes(int(offset[number]), int(offset[number + 1])), PRESET.k, PRESET.w)
        for value, place, reverse in zip(own.hash_M, own.position_M, own.reverse_M, strict=True):
            found.setdefault(int(value), []).append((number, int(place), int(reverse)))
    return found


def plain(index: Index, read: np.ndarray, too_frequent: int, apart: int):  # type: ignore[no-untyped-def]
    """seed.c and map.c for one read: (x, y) of its anchors, rep_len, positions of its seeds."""
    own, there, frequent, k = minimizers(read, PRESET.k, PRESET.w), places(index), index.frequent, PRESET.k
    mini = list(zip(own.hash_M.tolist(), own.position_M.tolist(), own.reverse_M.astype(int).tolist(), strict=True))
    if len(mini) > frequent:  # mm_seed_mz_flt
        times = {value: sum(value == other for other, _, _ in mini) for value, _, _ in mini}
        few = np.float32(len(mini)) * np.float32(0.01)
        mini = [one for one in mini if not (times[one[0]] > frequent and np.float32(times[one[0]]) > few)]
    seed = []
    for i, (value, place, reverse) in enumerate(mini):
        if value in there:
            tandem = any(0 <= j < len(mini) and mini[j][0] == value for j in (i - 1, i + 1))
            seed.append([there[value], place, reverse, tandem, False])
    if len(seed) > 1 and any(len(one[0]) > frequent for one in seed):  # mm_seed_select
        last = -1
        for i in range(len(seed) + 1):
            if i < len(seed) and len(seed[i][0]) > frequent:
                continue
            if i - last > 1:
                begin = 0 if last < 0 else seed[last][1]
                end = len(read) if i == len(seed) else seed[i][1]
                most = min(int((end - begin) / apart + 0.499), 128)
                chosen: list[tuple[int, int]] = []
                for j in range(last + 1, i):
                    key = (len(seed[j][0]), j)
                    if len(chosen) < most:
                        chosen.append(key)
                    elif chosen and key[0] < max(chosen)[0]:
                        chosen[chosen.index(max(chosen))] = key
                for j in range(last + 1, i):
                    seed[j][4] = (len(seed[j][0]), j) not in chosen or len(seed[j][0]) > too_frequent
            last = i
    total = begin = end = 0
    kept = []
    for one in seed:
        if one[4]:
            stop = one[1] + 1
            if stop - k > end:
                total, begin = total + end - begin, stop - k
            end = stop
        else:
            kept.append(one)
    anchors = []
    for where, place, reverse, tandem, _ in kept:
        for sequence, at, strand in where:
            other = strand != reverse
            query = len(read) - (place + 1 - k) - 1 if other else place
            anchors.append((other << 63 | sequence << 32 | at, tandem << 42 | k << 32 | query))
    return sorted(anchors), total + end - begin, [place for _, place, *_ in kept]


PIECES = st.one_of(
    st.integers(0, 3).map(lambda unit: UNITS[unit]),
    st.tuples(st.integers(0, 3), st.integers(0, 100)).map(lambda t: UNITS[t[0]][t[1] :]),
    st.text("ACGT", min_size=1, max_size=80),
    st.sampled_from(UNITS).map(lambda unit: unit[::-1].translate(str.maketrans("ACGT", "TGCA"))),
    st.tuples(st.text("ACGT", min_size=1, max_size=9), st.integers(5, 25)).map(lambda t: t[0] * t[1]),
)


@settings(max_examples=60)
@given(
    st.lists(st.lists(PIECES, min_size=1, max_size=8).map("".join), min_size=1, max_size=4),
    st.sampled_from([40, 4095]),
    st.sampled_from([60, 500]),
    st.sampled_from(list(emulator.Schedule)),
)
def test_anchors_are_minimap2s(
    index: Index, reads: list[str], too_frequent: int, apart: int, schedule: emulator.Schedule
) -> None:
    codes = [encode_bases(read) for read in reads]
    with emulator.scheduled(schedule), pytest.MonkeyPatch.context() as patched:
        patched.setattr(seeds, "_TOO_FREQUENT", too_frequent)
        patched.setattr(seeds, "_APART_BASES", apart)
        of = Reads.of(DEVICE, codes)
        found = find_anchors(DEVICE, IndexOnDevice(DEVICE, index), of, sketch(DEVICE, of, PRESET.k, PRESET.w))
    for number, read in enumerate(codes):
        anchors, repetitive, positions = plain(index, read, too_frequent, apart)
        there = slice(found.first[number], found.first[number + 1])
        ours = sorted(zip(found.x_A[there].tolist(), found.y_A[there].tolist(), strict=True))
        assert ours == anchors
        assert np.all(np.diff(found.x_A[there].astype(object)) >= 0)
        assert int(found.repetitive[number]) == repetitive
        own = slice(found.seed_first[number], found.seed_first[number + 1])
        assert found.seed_position[own].tolist() == positions


def test_one_seed_stays_however_frequent_it_is(index: Index) -> None:
    own = minimizers(encode_bases(UNITS[3]), PRESET.k, PRESET.w)
    last = int(own.position_M[len(own.position_M) // 2])
    of = Reads.of(DEVICE, [encode_bases(UNITS[3][last - 14 : last + 1])])
    found = sketch(DEVICE, of, PRESET.k, PRESET.w)
    assert len(found.hash_M) == 1
    assert len(find_anchors(DEVICE, IndexOnDevice(DEVICE, index), of, found).x_A) == 60
