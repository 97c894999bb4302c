"""fill.cu on the emulator against a plain dynamic programme, parasail, and minimap2's alignments."""

from collections.abc import Sequence
from pathlib import Path

import mappy
import numpy as np
import numpy.typing as npt
import parasail
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kernel_check import mutated
from plain_alignment import best_cigar, gaps_that_could_stand_further_left, matrix, score_cigar

from porestream.kernels import source
from porestream.kernels.align.extend import Extender
from porestream.kernels.align.fill import MAX_ROWS, Filler
from porestream.kernels.align.pack import Pieces, encode_bases
from porestream.kernels.align.tasks import MINIMAP2, Alignments, Scoring
from porestream.kernels.device import EmulatedDevice
from porestream.kernels.emulator import Schedule, scheduled

U8 = npt.NDArray[np.uint8]
Task = tuple[U8, U8]
BYTES = 2 << 30


def bases(rng: np.random.Generator, count: int) -> U8:
    return rng.integers(0, 4, count).astype(np.uint8)


def pair(rng: np.random.Generator, rows: int, columns: int, errors: float = 0.1) -> Task:
    """A query of `rows` bases and a target of `columns`, alike as far as can be."""
    target = bases(rng, max(rows, columns) + 50)
    query = np.concatenate([mutated(target, errors, rng), bases(rng, rows)])
    return query[:rows], target[:columns]


def pieces(tasks: Sequence[Task]) -> tuple[Pieces, Pieces]:
    queries, targets = (Pieces.of([task[side] for task in tasks]) for side in (0, 1))
    return queries, targets


def check(found: Alignments, tasks: Sequence[Task], scoring: Scoring = MINIMAP2) -> None:
    for number, (query, target) in enumerate(tasks):
        rows, columns = len(query), len(target)
        expected = int(matrix(query, target, -rows, rows + columns + 1, scoring)[-1, -1])
        assert found.score_N[number] == expected, (number, rows, columns)
        assert (found.query_N[number], found.target_N[number]) == (rows, columns)
        assert score_cigar(query, target, found.cigar_of(number), scoring) == (expected, rows, columns), number
        # with the target along the rows, the long insertion comes before the long deletion
        order = "MDIdi" if rows <= columns else "MDIid"
        cigar = best_cigar(query, target, -rows, rows + columns + 1, scoring, end=(rows, columns), order=order)
        assert found.cigar_of(number).tolist() == cigar, (number, rows, columns)


def same(left: Alignments, right: Alignments) -> bool:
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in Alignments.__slots__)


def structural_variant(rng: np.random.Generator, bases_more: int, flank: int) -> Task:
    left, right = bases(rng, flank), bases(rng, flank)
    shorter = mutated(np.concatenate([left, right]), 0.08, rng)
    return shorter, np.concatenate([left, bases(rng, bases_more), right])


@pytest.mark.parametrize("arch", [90, 80])
@pytest.mark.parametrize("schedule", Schedule)
def test_small_and_many_warps(arch: int, schedule: Schedule) -> None:
    rng = np.random.default_rng(int(schedule))
    sizes = [(1, 1), (1, 9), (7, 8), (8, 7), (100, 3), (200, 210), (255, 300), (256, 255), (257, 256), (300, 700)]
    tasks = [pair(rng, *size) for size in sizes]
    with scheduled(schedule, 5):
        check(Filler(EmulatedDevice(arch), BYTES)(*pieces(tasks)), tasks)


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 530), columns=st.integers(1, 530), errors=st.floats(0, 0.5))
@hypothesis_settings(max_examples=25)
def test_any_two_sequences(seed: int, rows: int, columns: int, errors: float) -> None:
    rng = np.random.default_rng(seed)
    tasks = [pair(rng, rows, columns, errors), (bases(rng, columns), bases(rng, rows))]
    unit = bases(rng, 1 + seed % 3)
    tasks.append((np.tile(unit, rows // 3 + 1), np.tile(unit, columns // 3 + 1)))
    tasks.append((np.where(rng.random(rows) < 0.1, 4, tasks[0][0]).astype(np.uint8), tasks[0][1]))
    check(Filler(EmulatedDevice(90 if seed % 2 else 80), BYTES)(*pieces(tasks)), tasks)


@pytest.mark.parametrize("rows", [510, 511, 512, 513, 1_100, 2_000])
def test_edges_between_warps(rows: int) -> None:
    rng = np.random.default_rng(rows)
    tasks = [pair(rng, rows, rows + 130), pair(rng, rows + 1, rows)[::-1]]
    check(Filler(EmulatedDevice(), BYTES)(*pieces(tasks)), tasks)


@pytest.mark.parametrize("arch", [90, 80])
@pytest.mark.parametrize("schedule", Schedule)
def test_many_warps_in_every_schedule(arch: int, schedule: Schedule) -> None:
    rng = np.random.default_rng(11)
    tasks = [pair(rng, 1_100, 1_500), pair(rng, 780, 767)]
    with scheduled(schedule, 9):
        check(Filler(EmulatedDevice(arch), BYTES)(*pieces(tasks)), tasks)


@pytest.mark.parametrize(
    ("scoring", "rows"),
    [
        (Scoring(open2=9_300), 255),
        (Scoring(extend1=37, extend2=37), 255),
        (Scoring(match=30, mismatch=30, ambiguous=0, open1=5, extend1=5, open2=40, extend2=1), 255),
        (Scoring(open2=7_700), 1_000),
        (Scoring(extend1=8, extend2=8), 1_000),
        (Scoring(match=14, mismatch=14, ambiguous=0, open1=5, extend1=5, open2=40, extend2=1), 1_000),
    ],
)
def test_scores_that_only_just_fit_into_15_bits(scoring: Scoring, rows: int) -> None:
    assert scoring.fits_packed(rows // 256 * 256 + 256)
    rng, columns = np.random.default_rng(12), rows + 200
    some, ambiguous = bases(rng, columns), np.full(columns, 4, np.uint8)
    tasks = [
        *((some[:rows], some), (np.zeros(rows, np.uint8), np.ones(columns, np.uint8)), (some[:rows], ambiguous)),
        *((ambiguous[:rows], some), (ambiguous[:rows], ambiguous), pair(rng, rows, columns)),
    ]
    for arch in (90, 80):
        check(Filler(EmulatedDevice(arch), BYTES, scoring)(*pieces(tasks)), tasks, scoring)


def test_scores_that_need_more_than_15_bits_are_refused() -> None:
    """By the most rows of a call: what 255 hold may be too much for 256."""
    some = np.zeros(256, np.uint8)
    filler = Filler(EmulatedDevice(), BYTES, Scoring(open2=9_300))
    with pytest.raises(ValueError, match=r"open2=9300.* needs more than the kernels' 15 bits .* of 512 cells"):
        filler(*pieces([(some[1:], some), (some, some)]))
    assert filler(*pieces([(some[1:], some[1:])])).score_N.tolist() == [510]


def test_minimap2s_scores_fit_whatever_there_is_to_fill() -> None:
    assert MINIMAP2.fits_packed(MAX_ROWS + 1)


def test_no_gap_could_stand_further_left_and_extension_agrees() -> None:
    """Also where the target lies along the rows."""
    rng, tasks = np.random.default_rng(13), []
    for number in range(60):
        target = rng.integers(0, 2, int(rng.integers(30, 200))).astype(np.uint8)
        repeat = np.tile(bases(rng, 1 + number % 4), int(rng.integers(2, 20)))
        target = np.concatenate([target[:15], repeat, target[15:]])
        query = np.delete(mutated(target, 0.1, rng), range(18, 18 + number % 9))
        tasks.append((query, target) if number % 2 else (target, query))
    found = Filler(EmulatedDevice(), BYTES)(*pieces(tasks))
    banded = Extender(EmulatedDevice(), BYTES)(*pieces(tasks), band=500, to_ends=True)
    assert same(found, banded)
    for number, task in enumerate(tasks):
        assert gaps_that_could_stand_further_left(*task, found.cigar_of(number)) == 0, number


def test_structural_variants() -> None:
    rng = np.random.default_rng(3)
    tasks = [
        structural_variant(rng, more, flank) for more, flank in [(100, 80), (700, 150), (3_000, 100), (15_000, 70)]
    ]
    tasks += [(target, query) for query, target in tasks]
    found = Filler(EmulatedDevice(), BYTES)(*pieces(tasks))
    check(found, tasks)
    longest = [
        max((int(op) >> 4 for op in found.cigar_of(number) if op & 15), default=0) for number in range(len(tasks))
    ]
    assert longest[3] > 14_000 < longest[7]


def test_the_most_rows_and_no_more() -> None:
    rng = np.random.default_rng(4)
    query, target = pair(rng, MAX_ROWS, MAX_ROWS, 0.03)
    filler = Filler(EmulatedDevice(), BYTES)
    found = filler(*pieces([(query, target)]))
    banded = Extender(EmulatedDevice(), BYTES)(*pieces([(query, target)]), band=700, to_ends=True)
    assert found.score_N[0] == banded.score_N[0] > 5_000
    assert score_cigar(query, target, found.cigar_of(0)) == (found.score_N[0], MAX_ROWS, MAX_ROWS)
    longer = np.concatenate([query, query[:1]])
    with pytest.raises(ValueError, match=r"the shorter sequence of a task has 4,096 bases; the limit is 4,095"):
        filler(*pieces([(longer, longer)]))


def test_other_scores_against_parasail() -> None:
    """With both gap costs alike it is the single affine one, which parasail has."""
    rng = np.random.default_rng(5)
    scoring = Scoring(match=2, mismatch=4, ambiguous=1, open1=4, extend1=2, open2=4, extend2=2)
    parasail_matrix = parasail.matrix_create("ACGT", scoring.match, -scoring.mismatch)
    tasks = [pair(rng, int(rows), int(rng.integers(1, 400)), 0.2) for rows in rng.integers(1, 400, 40)]
    found = Filler(EmulatedDevice(), BYTES, scoring)(*pieces(tasks))
    for number, task in enumerate(tasks):
        query, target = ("".join("ACGT"[code] for code in codes) for codes in task)
        opened = scoring.open1 + scoring.extend1
        theirs = parasail.nw_striped_32(query, target, opened, scoring.extend1, parasail_matrix).score
        assert found.score_N[number] == theirs
        assert score_cigar(*task, found.cigar_of(number), scoring)[0] == theirs


def test_other_scores() -> None:
    scoring = Scoring(match=4, mismatch=6, ambiguous=1, open1=6, extend1=3, open2=30, extend2=2)
    rng = np.random.default_rng(6)
    tasks = [pair(rng, 120, 130), pair(rng, 300, 420), structural_variant(rng, 900, 60)]
    check(Filler(EmulatedDevice(80), BYTES, scoring)(*pieces(tasks)), tasks, scoring)


def test_both_strands_and_directions() -> None:
    rng = np.random.default_rng(7)
    tasks = [pair(rng, 90, 400), pair(rng, 400, 90), pair(rng, 260, 250)]
    expected = Filler(EmulatedDevice(), BYTES)(*pieces(tasks))
    turned = [(3 - query[::-1]).astype(np.uint8) for query, _ in tasks]  # on the other strand, read backwards
    query = Pieces.of(turned, backwards=True)
    query = Pieces(
        codes=query.codes,
        start_N=query.start_N,
        length_N=query.length_N,
        backwards_N=query.backwards_N,
        complement_N=query.backwards_N,
    )
    found = Filler(EmulatedDevice(), BYTES)(query, pieces(tasks)[1])
    assert same(found, expected)


def test_company_and_memory_change_nothing() -> None:
    rng = np.random.default_rng(8)
    tasks = [pair(rng, int(rng.integers(1, 600)), int(rng.integers(1, 600))) for _ in range(20)]
    device = EmulatedDevice()
    together = Filler(device, BYTES)(*pieces(tasks))
    assert same(together, Filler(device, 1_000_000)(*pieces(tasks)))
    for number, task in enumerate(tasks[:5]):
        alone = Filler(device, BYTES)(*pieces([task]))
        assert alone.cigar_of(0).tolist() == together.cigar_of(number).tolist()
    with pytest.raises(MemoryError, match="an alignment task needs"):
        Filler(device, 100_000)(*pieces(tasks))


def test_empty_sequences() -> None:
    empty, some = np.zeros(0, np.uint8), np.array([0, 1, 2], np.uint8)
    found = Filler(EmulatedDevice(), BYTES)(*pieces([(empty, some), (some, empty), (empty, empty)]))
    assert found.score_N.tolist() == [-10, -10, 0]
    assert [found.cigar_of(number).tolist() for number in range(3)] == [[3 << 4 | 2], [3 << 4 | 1], []]


def test_gaps_between_anchors_are_as_good_as_minimap2s(shared_data: Path) -> None:
    """Real sequence, cut at minimap2's long matches: what lies between scores no less than its CIGAR there."""
    _, genome, _ = next(mappy.fastx_read(str(shared_data / "klebsiella_r94" / "HS11286.fna.gz")))
    genome = genome[:400_000]
    aligner, rng = mappy.Aligner(seq=genome, preset="map-ont"), np.random.default_rng(9)
    tasks: list[Task] = []
    theirs: list[int] = []
    for _ in range(10):
        start = int(rng.integers(0, len(genome) - 4_000))
        read = mutated(encode_bases(genome[start : start + 4_000]), 0.08, rng)
        for hit in aligner.map("".join("ACGT"[code] for code in read)):
            if hit.strand < 0:
                continue
            cigar = [(int(length), int(operation)) for length, operation in hit.cigar]
            i, j, first = hit.q_st, hit.r_st, (hit.q_st, hit.r_st, 0)
            for place, (length, operation) in enumerate(cigar):
                i, j = i + length * (operation != 2), j + length * (operation != 1)
                if operation == 0 and length >= 12 and min(i - first[0], j - first[1]) >= 200:
                    task = read[first[0] : i], encode_bases(genome[first[1] : j])
                    part = np.array([n << 4 | op for n, op in cigar[first[2] : place + 1]], np.uint32)
                    tasks.append(task)
                    theirs.append(score_cigar(*task, part)[0])
                    first = i, j, place + 1
    assert len(tasks) > 60
    found = Filler(EmulatedDevice(), BYTES)(*pieces(tasks))
    check(found, tasks)
    assert (found.score_N >= theirs).all()
    assert (found.score_N == theirs).mean() > 0.95


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        ("if (lane == 0) from_h = above[0], from_f1 = above[1], from_f2 = above[2];", ""),
        ("level -= by;", ""),
        ("above[0] = next_above;", ""),
        ("if (!(a & 7) && (!MANY || a > first_row)) {", "if (!(a & 7)) {"),
        ("--column, now = swapped ? 1 : 2,", "--column, now = 2,"),
    ],
    ids=lambda text: str(text)[:30],
)
def test_a_seeded_defect_is_caught(monkeypatch: pytest.MonkeyPatch, text: str, defect: str) -> None:
    rng = np.random.default_rng(10)
    tasks = [pair(rng, *size, 0.2) for size in ((100, 120), (250, 900), (500, 520), (600, 500))]
    right = Filler(EmulatedDevice(), BYTES)(*pieces(tasks))
    check(right, tasks)
    read = source.read_source
    assert text in read("fill.cu")
    monkeypatch.setattr(source, "read_source", lambda file: read(file).replace(text, defect))
    for cache in (source._module, source._kernel):
        cache.cache_clear()
    try:
        assert not same(Filler(EmulatedDevice(), BYTES)(*pieces(tasks)), right)
    finally:
        for cache in (source._module, source._kernel):
            cache.cache_clear()
