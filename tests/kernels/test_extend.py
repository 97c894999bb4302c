"""extend.cu on the emulator against a plain dynamic programme: scores, ends, drops, CIGARs."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kernel_check import mutated
from plain_alignment import (
    NOTHING,
    Extended,
    best_cigar,
    extended,
    extended_in_band,
    gaps_that_could_stand_further_left,
    matrix,
    score_cigar,
)

from porestream.kernels import source
from porestream.kernels.align.extend import WIDEST_BAND, Extender
from porestream.kernels.align.fill import Filler
from porestream.kernels.align.pack import Pieces
from porestream.kernels.align.tasks import MINIMAP2, NOT_REACHED, Alignments, Scoring
from porestream.kernels.device import EmulatedDevice
from porestream.kernels.emulator import RawModule, Schedule, scheduled
from porestream.kernels.emulator.sanitize import FOUND, run_sanitized

U8 = npt.NDArray[np.uint8]
Task = tuple[U8, U8]
BYTES = 1 << 30
ARCHES = [90, 80]
"""With DPX and without."""


def bases(rng: np.random.Generator, count: int) -> U8:
    return rng.integers(0, 4, count).astype(np.uint8)


def related(rng: np.random.Generator, count: int, errors: float) -> Task:
    """A read and what it is of; neither is empty."""
    target = bases(rng, count)
    query = mutated(target, errors, rng)
    return query if len(query) else target.copy(), target


def many_tasks(seed: int, count: int, most: int) -> list[Task]:
    """Of all kinds: junk tails, long gaps, repeats, ambiguous bases, unrelated ones, of one base."""
    rng, tasks = np.random.default_rng(seed), []
    for number in range(count):
        query, target = related(rng, int(rng.integers(1, most + 1)), rng.uniform(0, 0.3))
        kind, middle = number % 8, len(query) // 2
        if kind == 1:
            query = np.concatenate([query[:middle], bases(rng, most // 2)])
        if kind == 2:
            query = np.concatenate([query[: middle // 2 + 1], query[middle + middle // 2 :]])
        if kind == 3:
            query = np.concatenate([query[:middle], bases(rng, most // 3), query[middle:]])
        if kind == 4:
            query[rng.random(len(query)) < 0.1] = 4
            target[rng.random(len(target)) < 0.1] = 4
        if kind == 5:
            unit = bases(rng, int(rng.integers(1, 4)))
            query, target = np.tile(unit, middle // len(unit) + 1), np.tile(unit, len(target) // len(unit) + 1)
        if kind == 6:
            query = bases(rng, int(rng.integers(1, most)))
        if kind == 7:
            query = query[:1]
        tasks.append((query, target))
    return tasks


def pieces(tasks: Sequence[Task], *, backwards: bool = False) -> tuple[Pieces, Pieces]:
    queries, targets = (Pieces.of([task[side] for task in tasks], backwards=backwards) for side in (0, 1))
    return queries, targets


def band_of(task: Task, band: int) -> tuple[int, int]:
    """First diagonal and width of the kernel's band."""
    first = -min(band, len(task[0])) // 16 * 16
    return first, -(-(min(band, len(task[1])) - first + 1) // 512) * 512


def plain(task: Task, band: int, scoring: Scoring = MINIMAP2) -> npt.NDArray[np.int64]:
    return matrix(*task, *band_of(task, band), scoring)


def check(
    found: Alignments, tasks: Sequence[Task], band: int, zdrop: int = -1, bonus: int = -1, scoring: Scoring = MINIMAP2
) -> None:
    """Each task ends where the plain programme does, with its CIGAR."""
    for number, task in enumerate(tasks):
        expected = extended(plain(task, band, scoring), zdrop, bonus, scoring.extend2)
        ours = Extended(
            int(found.score_N[number]),
            int(found.query_N[number]),
            int(found.target_N[number]),
            bool(found.dropped_N[number]),
        )
        assert ours == expected, (number, len(task[0]), len(task[1]))
        check_cigar(found, number, task, band, scoring)


def check_cigar(found: Alignments, number: int, task: Task, band: int, scoring: Scoring) -> None:
    """It is the plain programme's, and worth the score."""
    cigar, end = found.cigar_of(number), (int(found.query_N[number]), int(found.target_N[number]))
    assert score_cigar(*task, cigar, scoring) == (found.score_N[number], *end), number
    assert cigar.tolist() == best_cigar(*task, *band_of(task, band), scoring, end=end), number


def check_ends(found: Alignments, tasks: Sequence[Task], band: int, scoring: Scoring = MINIMAP2) -> None:
    for number, task in enumerate(tasks):
        expected = int(plain(task, band, scoring)[-1, -1])
        if expected < NOTHING // 2:
            assert found.score_N[number] == NOT_REACHED
            assert len(found.cigar_of(number)) == 0
        else:
            ours = int(found.score_N[number]), int(found.query_N[number]), int(found.target_N[number])
            assert ours == (expected, len(task[0]), len(task[1])), number
            check_cigar(found, number, task, band, scoring)


def same(left: Alignments, right: Alignments) -> bool:
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in Alignments.__slots__)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("schedule", Schedule)
def test_best_ends_and_drops(arch: int, schedule: Schedule) -> None:
    tasks = many_tasks(int(schedule), 32, 160)
    extender = Extender(EmulatedDevice(arch), BYTES)
    with scheduled(schedule, 7):
        for zdrop in (-1, 15, 60):
            check(extender(*pieces(tasks), band=300, zdrop=zdrop), tasks, 300, zdrop)
        check_ends(extender(*pieces(tasks), band=300, to_ends=True), tasks, 300)


@given(
    seed=st.integers(0, 2**32), band=st.integers(0, WIDEST_BAND), zdrop=st.integers(-1, 200), bonus=st.integers(-1, 80)
)
@hypothesis_settings(max_examples=25)
def test_any_tasks(seed: int, band: int, zdrop: int, bonus: int) -> None:
    tasks = many_tasks(seed, 12, 40 + seed % 400)
    extender = Extender(EmulatedDevice(90 if seed % 2 else 80), BYTES)
    found = extender(*pieces(tasks), band=band, zdrop=zdrop, end_bonus=bonus)
    check(found, tasks, band, zdrop, bonus)
    check_ends(extender(*pieces(tasks), band=band, to_ends=True), tasks, band)
    turned = [(query[::-1].copy(), target[::-1].copy()) for query, target in tasks]
    backwards = extender(*pieces(turned, backwards=True), band=band, zdrop=zdrop, end_bonus=bonus)
    for name in ("score_N", "query_N", "target_N", "dropped_N"):
        assert np.array_equal(getattr(backwards, name), getattr(found, name)), name
    for number, task in enumerate(tasks):
        end = int(found.query_N[number]), int(found.target_N[number])
        expected = best_cigar(*task, *band_of(task, band), end=end, last=True)
        assert backwards.cigar_of(number).tolist() == expected[::-1], number


@pytest.mark.parametrize("band", [5, 100, 255, 500, 751, WIDEST_BAND])
def test_bands(band: int) -> None:
    rng = np.random.default_rng(band)
    tasks = [related(rng, count, 0.12) for count in (300, 1_200, 1_800)]
    query, target = related(rng, 1_500, 0.05)
    for gap in (100, 400, 700, 900):  # some leave the band
        tasks.append((np.concatenate([query[:400], query[400 + gap :]]), target))
        tasks.append((query, np.concatenate([target[:400], target[400 + gap :]])))
    extender = Extender(EmulatedDevice(), BYTES)
    check(extender(*pieces(tasks), band=band, zdrop=400), tasks, band, 400)
    check_ends(extender(*pieces(tasks), band=band, to_ends=True), tasks, band)


def test_long_tasks_are_brought_back_into_15_bits_many_times() -> None:
    """20 kb that match, 20 kb of gaps and mismatches, and 6 kb of nothing alike."""
    rng = np.random.default_rng(2)
    alike = bases(rng, 20_000)
    tasks = [(alike, alike.copy()), related(rng, 20_000, 0.1), (bases(rng, 6_000), bases(rng, 6_000))]
    found = check_long(Extender(EmulatedDevice(), BYTES), tasks, 250, -1)
    assert found.score_N[0] == 40_000
    assert found.cigar_of(0).tolist() == [20_000 << 4]
    assert found.score_N[1] > 20_000


def test_a_read_of_100_kb() -> None:
    rng = np.random.default_rng(3)
    query, target = related(rng, 100_000, 0.02)
    found = Extender(EmulatedDevice(), BYTES)(*pieces([(query, target)]), band=200, zdrop=400)
    assert score_cigar(query, target, found.cigar_of(0)) == (found.score_N[0], found.query_N[0], found.target_N[0])
    assert found.score_N[0] > 150_000
    assert found.query_N[0] > 99_900


def check_long(extender: Extender, tasks: Sequence[Task], band: int, zdrop: int, bonus: int = -1) -> Alignments:
    """As `check` and `check_ends`, without a whole matrix. Returns the best alignments."""
    best = extender(*pieces(tasks), band=band, zdrop=zdrop, end_bonus=bonus)
    ends = extender(*pieces(tasks), band=band, to_ends=True)
    for number, task in enumerate(tasks):
        expected, corner = extended_in_band(*task, *band_of(task, band), zdrop, bonus, extender.scoring)
        taken = int(best.score_N[number]), int(best.query_N[number]), int(best.target_N[number])
        assert Extended(*taken, bool(best.dropped_N[number])) == expected, number
        check_cigar(best, number, task, band, extender.scoring)
        if expected.dropped:
            corner = extended_in_band(*task, *band_of(task, band), scoring=extender.scoring)[1]
        if corner < NOTHING // 2:
            assert ends.score_N[number] == NOT_REACHED
        else:
            ours = int(ends.score_N[number]), int(ends.query_N[number]), int(ends.target_N[number])
            assert ours == (corner, len(task[0]), len(task[1])), number
            check_cigar(ends, number, task, band, extender.scoring)
    return best


@given(seed=st.integers(0, 2**32), first=st.integers(-60, 0), zdrop=st.integers(-1, 60), bonus=st.integers(-1, 40))
@hypothesis_settings(max_examples=30)
def test_the_two_plain_programmes_agree(seed: int, first: int, zdrop: int, bonus: int) -> None:
    for task in many_tasks(seed, 8, 100):
        width = 1 - first + seed % 60
        H = matrix(*task, first, width)
        found, corner = extended_in_band(*task, first, width, zdrop, bonus)
        assert found == extended(H, zdrop, bonus)
        assert found.dropped or (corner == H[-1, -1] if corner > NOTHING // 2 else H[-1, -1] < NOTHING // 2)


@pytest.mark.parametrize("arch", ARCHES)
def test_long_tasks_end_where_the_plain_programme_does(arch: int) -> None:
    """With one, two and three groups of cells a lane; scores are brought back up to 150 times."""
    rng = np.random.default_rng(11)
    extender = Extender(EmulatedDevice(arch), BYTES)
    check_long(extender, [related(rng, 20_000, 0.1), (bases(rng, 4_000), bases(rng, 4_000))], 250, 400)
    query, target = related(rng, 5_000, 0.1)
    tasks = [(query, np.delete(target, range(2_000, 2_600))), (np.delete(query, range(2_000, 2_300)), target)]
    for band in (400, WIDEST_BAND):
        check_long(extender, tasks, band, 400, 20)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("schedule", Schedule)
def test_every_width_in_every_schedule(arch: int, schedule: Schedule) -> None:
    rng = np.random.default_rng(12)
    tasks = [related(rng, 800, 0.1), related(rng, 780, 0.3), (bases(rng, 800), bases(rng, 790)), related(rng, 9, 0.1)]
    extender = Extender(EmulatedDevice(arch), BYTES)
    with scheduled(schedule, 3):
        for band in (200, 400, WIDEST_BAND):
            check_long(extender, tasks, band, 100, 10)


EDGE_SCORES = [
    Scoring(open2=8_300),
    Scoring(extend1=11, extend2=11),
    Scoring(match=20, mismatch=20, ambiguous=0, open1=5, extend1=5, open2=40, extend2=1),
    Scoring(match=2, mismatch=86, ambiguous=42),
    Scoring(match=10, mismatch=10, ambiguous=0, open1=7, extend1=7, open2=7, extend2=7),
]
"""Of which 15 bits hold just so much: all a little larger do not fit."""


@pytest.mark.parametrize("scoring", EDGE_SCORES)
def test_scores_that_only_just_fit_into_15_bits(scoring: Scoring) -> None:
    assert scoring.fits_packed(768)
    rng, count = np.random.default_rng(13), 1_200
    some, ambiguous = bases(rng, count), np.full(count, 4, np.uint8)
    tasks = [
        *((some, some.copy()), (np.zeros(count, np.uint8), np.ones(count, np.uint8)), (some, ambiguous)),
        *((ambiguous, some), (np.concatenate([bases(rng, 600), some]), some), related(rng, count, 0.15)),
        *((some, np.concatenate([ambiguous[:600], some])), (ambiguous, ambiguous.copy())),
    ]
    # before sm_90 the largest that is ordered as a half float is the tighter limit
    check_long(Extender(EmulatedDevice(80), BYTES, scoring), tasks, WIDEST_BAND, -1)


@pytest.mark.parametrize("backwards", [False, True])
def test_no_gap_could_stand_further_left(backwards: bool) -> None:
    rng, tasks = np.random.default_rng(14), []
    for number in range(60):  # of two letters, and with a tandem repeat: many equally good places
        target = rng.integers(0, 2, int(rng.integers(30, 200))).astype(np.uint8)
        repeat = np.tile(bases(rng, 1 + number % 4), int(rng.integers(2, 20)))
        target = np.concatenate([target[:15], repeat, target[15:]])
        query = mutated(target, 0.1, rng)
        tasks.append((np.delete(query, range(18, 18 + number % 9)), target))
    found = Extender(EmulatedDevice(), BYTES)(*pieces(tasks, backwards=backwards), band=400, to_ends=True)
    for number, task in enumerate(tasks):
        assert gaps_that_could_stand_further_left(*task, found.cigar_of(number)) == 0, number


@pytest.mark.parametrize("complement", [False, True])
def test_extension_to_the_left_is_that_of_the_sequences_turned_round(complement: bool) -> None:
    tasks = many_tasks(4, 24, 300)
    turned = [(query[::-1].copy(), target[::-1].copy()) for query, target in tasks]
    forward = Extender(EmulatedDevice(), BYTES)(*pieces(turned), band=400, zdrop=100)
    queries, targets = pieces(tasks, backwards=True)
    if complement:  # the query as it is on the other strand: there it goes forward again
        queries = Pieces.of([np.where(query < 4, 3 - query, 4).astype(np.uint8) for query, _ in turned])
        queries = Pieces(
            codes=queries.codes,
            start_N=queries.start_N,
            length_N=queries.length_N,
            backwards_N=queries.backwards_N,
            complement_N=~queries.backwards_N,
        )
    left = Extender(EmulatedDevice(), BYTES)(queries, targets, band=400, zdrop=100)
    for name in ("score_N", "query_N", "target_N", "dropped_N"):
        assert np.array_equal(getattr(left, name), getattr(forward, name)), name
    for number, (query, target) in enumerate(tasks):
        rows, columns = int(left.query_N[number]), int(left.target_N[number])
        part = query[len(query) - rows :], target[len(target) - columns :]
        assert score_cigar(*part, left.cigar_of(number)) == (left.score_N[number], rows, columns)


def test_gaps_stand_left_whichever_way_it_goes() -> None:
    rng = np.random.default_rng(5)
    before, after = bases(rng, 60), bases(rng, 60)
    before[-1], after[0] = 1, 2  # around a run of A
    query = np.concatenate([before, np.zeros(8, np.uint8), after])
    target = np.concatenate([before, np.zeros(11, np.uint8), after])
    expected = [60 << 4, 3 << 4 | 2, 68 << 4]
    extender = Extender(EmulatedDevice(), BYTES)
    for backwards in (False, True):
        deleted = extender(*pieces([(query, target)], backwards=backwards), band=100)
        assert deleted.cigar_of(0).tolist() == expected
        inserted = extender(*pieces([(target, query)], backwards=backwards), band=100)
        assert inserted.cigar_of(0).tolist() == [60 << 4, 3 << 4 | 1, 68 << 4]


@pytest.mark.parametrize(
    "scoring",
    [
        Scoring(match=4, mismatch=6, ambiguous=1, open1=6, extend1=3, open2=30, extend2=2),
        Scoring(match=2, mismatch=2, ambiguous=0, open1=3, extend1=1, open2=3, extend2=1),
        Scoring(match=6, mismatch=8, ambiguous=1, open1=5, extend1=5, open2=60, extend2=1),
    ],
)
def test_other_scores(scoring: Scoring) -> None:
    tasks = many_tasks(6, 24, 200)
    extender = Extender(EmulatedDevice(80), BYTES, scoring)
    check(extender(*pieces(tasks), band=400, zdrop=80), tasks, 400, 80, scoring=scoring)
    check_ends(extender(*pieces(tasks), band=400, to_ends=True), tasks, 400, scoring)


def test_scores_that_the_kernels_do_not_have_are_refused() -> None:
    names = [field.name for field in fields(Scoring)]
    for values in ((2, 4, 0), (1, 5, 2), (3, 5, 1, 4, 1, 3, 2)):
        with pytest.raises(ValueError, match=r"the kernels need match|open2 must be at least open1"):
            Scoring(**dict(zip(names, values, strict=False)))


def test_scores_that_need_more_than_15_bits_are_refused() -> None:
    """By the widest band of a call: what a narrow one holds may be too much for a wide one."""
    tasks = [(np.zeros(1_000, np.uint8),) * 2] * 2
    extender = Extender(EmulatedDevice(), BYTES, Scoring(open2=8_301))
    with pytest.raises(ValueError, match=r"open2=8301.* needs more than the kernels' 15 bits .* of 768 cells"):
        extender(*pieces(tasks), band=np.array([200, WIDEST_BAND], np.int32))
    assert extender(*pieces(tasks), band=200).score_N.tolist() == [2_000, 2_000]
    for scoring in (Scoring(match=32, mismatch=32, ambiguous=0), Scoring(open2=25_000)):
        with pytest.raises(ValueError, match=r"Scoring\(match=.* needs more than the kernels' 15 bits .* of 256 cells"):
            Extender(EmulatedDevice(), BYTES, scoring)(*pieces(tasks), band=5)


@given(seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=30)
def test_scores_of_an_anti_diagonal_lie_as_close_as_is_claimed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scoring = [
        MINIMAP2,
        Scoring(match=4, mismatch=6, ambiguous=1, open1=6, extend1=3, open2=30, extend2=2),
        Scoring(match=6, mismatch=8, ambiguous=1, open1=5, extend1=5, open2=60, extend2=1),
    ][seed % 3]
    for query, target in many_tasks(seed, 8, 120):
        first, width = int(rng.integers(-80, 1)), int(rng.integers(81, 200))
        H = matrix(query, target, first, width, scoring)
        for a in range(len(query) + len(target) + 1):
            i = np.arange(max(0, a - len(target)), min(a, len(query)) + 1)
            rows, scores = i[H[i, a - i] > NOTHING // 2], H[i, a - i][H[i, a - i] > NOTHING // 2]
            if len(rows):
                cells = int(rows.max() - rows.min())
                limit = scoring.open2 + (2 * scoring.extend2 + scoring.match) * cells
                assert int(scores.max() - scores.min()) <= limit


def test_results_do_not_depend_on_company_and_memory() -> None:
    tasks = many_tasks(7, 30, 600)
    device = EmulatedDevice()
    together = Extender(device, BYTES)(*pieces(tasks), band=500, zdrop=100)
    few_bytes = Extender(device, 700_000)(*pieces(tasks), band=500, zdrop=100)
    assert same(together, few_bytes)
    order = np.random.default_rng(1).permutation(len(tasks))
    shuffled = Extender(device, BYTES)(*pieces([tasks[place] for place in order]), band=500, zdrop=100)
    for place, number in enumerate(order):
        assert shuffled.score_N[place] == together.score_N[number]
        assert shuffled.cigar_of(place).tolist() == together.cigar_of(int(number)).tolist()
    with pytest.raises(MemoryError, match=r"an alignment task needs .* bytes, but a batch may take 1,000"):
        Extender(device, 1000)(*pieces(tasks), band=500)


def test_nothing_and_empty_sequences() -> None:
    extender = Extender(EmulatedDevice(), BYTES)
    none = extender(*pieces([]), band=100)
    assert len(none.score_N) == 0
    empty, some = np.zeros(0, np.uint8), np.array([0, 1, 2], np.uint8)
    tasks = [(empty, some), (some, empty), (empty, empty)]
    found = extender(*pieces(tasks), band=100, to_ends=True)
    assert found.score_N.tolist() == [-10, -10, 0]
    assert [found.cigar_of(number).tolist() for number in range(3)] == [[3 << 4 | 2], [3 << 4 | 1], []]
    assert extender(*pieces(tasks), band=100).score_N.tolist() == [0, 0, 0]


def test_bands_and_counts_that_make_no_sense_are_refused() -> None:
    extender = Extender(EmulatedDevice(), BYTES)
    query, target = pieces(many_tasks(1, 3, 20))
    with pytest.raises(ValueError, match=r"band must be 0 or more, not -5"):
        extender(query, target, band=-5)
    with pytest.raises(ValueError, match=r"band must be one number or 3, one for each task, not of shape \(2,\)"):
        extender(query, target, band=np.array([5, 6], np.int32))
    for aligner in (extender, Filler(EmulatedDevice(), BYTES)):
        with pytest.raises(ValueError, match=r"3 queries for 1 targets: a task needs one of each"):
            aligner(query, target.take(np.array([0])), **({"band": 5} if aligner is extender else {}))


def test_wider_bands_are_refused() -> None:
    extender = Extender(EmulatedDevice(), BYTES)
    with pytest.raises(ValueError, match=rf"a band of \+-{WIDEST_BAND + 1} diagonals is too wide; the limit is \+-760"):
        extender(*pieces(many_tasks(1, 2, 20)), band=WIDEST_BAND + 1)


DEFECTS = [
    (
        "if (lane == (PARITY ? 31 : 0)) beyond1 = beyond2 = FLOOR * ONE;",
        "if (lane == 0) beyond1 = beyond2 = TARGET * ONE;",
    ),
    ("const bool right = task.flags & RIGHT,", "const bool right = false,"),
    ("level -= by;", ""),
    ("if (!(a & (INTERVAL - 1))) {", "if (false) {"),
    ("STEP = MISMATCH - AMBIGUOUS;", "STEP = MISMATCH - AMBIGUOUS - 1;"),
    ("if (!(a & 15)) {", "if (!(a & 31)) {"),
    ("score - score_now > zdrop + shift * EXTEND2", "score - score_now > zdrop"),
    ("band.next_rows <<= 4;", ""),
    ("e2 = most_after<NEXT2>(e2, open2), f2", "e2 = most(e2, open2), f2"),
]


def results_with_defects_in_mind() -> list[Alignments]:
    """Of tasks in which each defect shows: to the ends, backwards with z-drop, in a narrow band."""
    rng = np.random.default_rng(8)
    tasks = [*many_tasks(8, 24, 300), related(rng, 1_500, 0.1), (bases(rng, 900), bases(rng, 900))]
    whole = np.concatenate([bases(rng, 300), np.zeros(9, np.uint8), bases(rng, 300)])
    tasks.append((np.delete(whole, range(300, 303)), whole))
    alike = bases(rng, 8_000)  # more than 15 bits hold
    tasks.append((alike, alike.copy()))
    extender = Extender(EmulatedDevice(), BYTES)
    backwards = extender(*pieces(tasks, backwards=True), band=240, zdrop=30)
    narrow = extender(*pieces(tasks), band=5)
    return [extender(*pieces(tasks), band=240, to_ends=True), backwards, narrow]


@pytest.fixture(scope="module")
def right() -> list[Alignments]:
    return results_with_defects_in_mind()


@pytest.mark.parametrize(("text", "defect"), DEFECTS, ids=lambda text: str(text)[:30])
def test_a_seeded_defect_is_caught(
    monkeypatch: pytest.MonkeyPatch, text: str, defect: str, right: list[Alignments]
) -> None:
    sound = source.read_source("extend.cu")
    assert text in sound
    read = source.read_source
    monkeypatch.setattr(source, "read_source", lambda file: read(file).replace(text, defect))
    source._module.cache_clear()
    source._kernel.cache_clear()
    try:
        found = results_with_defects_in_mind()
        assert not all(same(ours, theirs) for ours, theirs in zip(found, right, strict=True))
    finally:
        source._module.cache_clear()
        source._kernel.cache_clear()


SANITIZED = """
import numpy as np
from porestream.kernels.device import EmulatedDevice
from porestream.kernels.align.extend import Extender
from porestream.kernels.align.fill import Filler
from porestream.kernels.align.pack import Pieces
rng = np.random.default_rng(1)
made = [rng.integers(0, 5, size).astype(np.uint8) for size in (1, 7, 8, 9, 100, 300)]
tasks = [(a, b) for a in made for b in made[::2]]
device = EmulatedDevice(sanitize={kind!r})
sides = [[task[side] for task in tasks] for side in (0, 1)]
pieces = [Pieces.of(side, backwards=backwards) for side in sides for backwards in (False, True)]
for band in (20, 760):
    Extender(device, 1 << 28)(pieces[0], pieces[2], band=band, zdrop=20)
    Extender(device, 1 << 28)(pieces[1], pieces[3], band=band, to_ends=True)
Filler(device, 1 << 28)(pieces[0], pieces[2])
print("done")
"""


@pytest.mark.parametrize("kind", ["address", "thread"])
def test_sanitizers_are_silent(kind: str) -> None:
    done = run_sanitized(kind, SANITIZED.format(kind=kind))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.returncode != FOUND
    assert "done" in done.stdout


@pytest.mark.parametrize("kind", ["address", "thread"])
def test_sanitizers_are_silent_in_the_widest_band_and_many_warps(kind: str) -> None:
    """Three groups of cells a lane, three warps a task."""
    script = SANITIZED.replace("(1, 7, 8, 9, 100, 300)", "(700,)").replace("(20, 760)", "(760,)")
    done = run_sanitized(kind, script.format(kind=kind))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done" in done.stdout


def test_a_read_beyond_the_directions_is_found() -> None:
    """The sanitizer sees into these kernels: directions of too few steps."""
    imported = "from porestream.kernels.align.extend import Extender"
    script = SANITIZED.replace(
        imported, "import porestream.kernels.align.extend as e\ne.STEP_WORDS = 32\nExtender = e.Extender"
    )
    done = run_sanitized("address", script.format(kind="address"))
    assert done.returncode == FOUND
    assert "extend.cu" in done.stderr


def test_the_source_compiles_without_macros() -> None:
    module = RawModule(source.read_source("extend.cu"), source.OPTIONS, "extend.cu")
    assert {"extend", "extend_traceback"} <= set(module.kernels)
