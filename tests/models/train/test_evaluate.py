"""Evaluation: calls with known errors give the known figures."""

import json
from collections.abc import Iterator
from pathlib import Path

import mappy
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from porestream.models.call.basecaller import CalledRead
from porestream.models.simulate.sequence import decode, encode, random_bases, reverse_complement
from porestream.models.train.__main__ import main
from porestream.models.train.accuracy import ReadAccuracy, accuracy, best_hit
from porestream.models.train.curve import NoPlots, curve_rows, draw, write_table
from porestream.models.train.evaluate import evaluate, fit_qscore, phred
from porestream.models.train.truths import ReadTruths, ReferenceTruth, simulated_truths


def random_sequence(bases: int, seed: int) -> str:
    return decode(random_bases(bases, np.random.default_rng(seed)))


def compare(called: str, truth: str, qualities: npt.NDArray[np.uint8] | None = None) -> ReadAccuracy:
    hit = best_hit(mappy.Aligner(seq=truth, preset="map-ont"), called)
    assert hit is not None
    qualities_B = np.full(len(called), 10, np.uint8) if qualities is None else qualities
    return accuracy(called, qualities_B, hit, encode(truth[hit.r_st : hit.r_en]), len(truth))


def test_each_kind_of_error_is_counted() -> None:
    truth = random_sequence(1000, 1)
    other = {"A": "C", "C": "G", "G": "T", "T": "A"}
    called = list(truth)
    for place in (100, 300, 500):
        called[place] = other[called[place]]
    called[700:702] = []
    called.insert(200, other[truth[200]] if other[truth[200]] != truth[199] else other[other[truth[200]]])
    text = "".join(called)
    for strand in (text, mappy.revcomp(text)):
        found = compare(strand, truth)
        assert (found.mismatches, found.insertions, found.deletions) == (3, 1, 2)
        assert found.identity == pytest.approx(995 / 1001)
        assert found.truth_bases == 1000


@pytest.mark.parametrize("reverse", [False, True])
def test_errors_are_found_under_their_quality(reverse: bool) -> None:
    truth = random_sequence(2000, 2)
    called_B, qualities_B = encode(truth), np.full(2000, 20, np.uint8)
    wrong = np.arange(100, 1900, 60)
    called_B[wrong] = (called_B[wrong] + 1) % 4
    qualities_B[wrong] = 5
    if reverse:
        called_B, qualities_B = reverse_complement(called_B), qualities_B[::-1].copy()
    found = compare(decode(called_B), truth, qualities_B)
    assert found.columns_Q[5] == found.errors_Q[5] == wrong.size
    assert found.errors_Q[20] == 0
    assert found.expected_error == pytest.approx((1970 * 0.01 + 30 * 10**-0.5) / 2000, rel=0.01)
    assert found.columns_Q.sum() == found.columns


def test_homopolymers_are_right_or_wrong_by_length() -> None:
    left, middle, right = (random_sequence(400, seed).rstrip("A").lstrip("A") + "C" for seed in (3, 4, 5))
    truth = left + "AAAAAAA" + "G" + middle + "TTTTT" + "G" + right
    called = left + "AAAAAA" + "G" + middle + "TTTTT" + "G" + right
    perfect, short = compare(truth, truth), compare(called, truth)
    assert np.array_equal(perfect.runs_L, perfect.right_runs_L)
    lost = perfect.right_runs_L - short.right_runs_L
    assert lost.tolist() == [0] * 7 + [1] + [0] * 5
    assert np.array_equal(perfect.runs_L, short.runs_L)


class _Caller:
    """Calls the truth with errors at the rate that the qualities say, after a scale and a bias."""

    def __init__(self, truths: list[str], seed: int) -> None:
        self._truths, self._rng = truths, np.random.default_rng(seed)
        self.calls = 0

    def __call__(self, signal_S: npt.NDArray[np.int16], sample_rate_hz: int) -> CalledRead:
        self.calls += 1
        if signal_S.size < 10:
            raise ValueError("too short")
        bases_B = encode(self._truths[int(signal_S[0])])
        true_quality_B = self._rng.choice([8, 10, 12, 15, 20], bases_B.size)
        wrong = self._rng.random(bases_B.size) < 10.0 ** (true_quality_B / -10)
        bases_B = np.where(wrong, (bases_B + self._rng.integers(1, 4, bases_B.size)) % 4, bases_B).astype(np.uint8)
        qualities_B = (2 * true_quality_B - 4).astype(np.uint8)  # twice as sure as it should be
        return CalledRead(
            sequence=decode(bases_B),
            qualities_B=qualities_B,
            moves_T=np.ones(bases_B.size, np.uint8),
            stride=5,
            trimmed_samples=0,
        )


def test_a_report_of_many_reads() -> None:
    truths = [random_sequence(bases, seed) for seed, bases in enumerate([500, 2500, 2600, 5000, 12_000, 300])]
    signals = [(str(i), np.full(4 * len(truth), i, np.int16), 5000) for i, truth in enumerate(truths)]
    signals += [("short", np.zeros(3, np.int16), 5000), ("unknown", np.zeros(5000, np.int16), 5000)]
    known = ReadTruths({str(i): truth for i, truth in enumerate(truths)} | {"short": "ACGT"})
    caller = _Caller(truths, 1)
    report = evaluate(signals, known, caller, scale=2.0, bias=-4.0, name="made up", samples_seen=7)
    assert caller.calls == 7
    assert (report.reads, report.mapped, report.failed) == (7, 6, 1)
    error = np.mean([10 ** (-q / 10) for q in (8, 10, 12, 15, 20)])
    assert report.mean_identity == pytest.approx(1 - error, abs=0.015)
    assert report.mismatch + report.insertion + report.deletion == pytest.approx(error, abs=0.01)
    assert report.observed_quality == pytest.approx(phred(float(error)), abs=0.8)
    assert report.predicted_quality > report.observed_quality + 3
    # Qualities were 2 q - 4 with scale 2 and bias -4: a scale of 1 and no bias would have been right.
    assert report.fitted_scale == pytest.approx(1.0, abs=0.15)
    assert report.fitted_bias == pytest.approx(0.0, abs=1.5)
    assert [(entry.from_bases, entry.reads) for entry in report.by_length] == [
        (0, 2),
        (1000, 2),
        (3000, 1),
        (10_000, 1),
    ]
    assert {entry.length for entry in report.homopolymers} >= {1, 2, 3, 4, 5}
    assert "made up: 7 reads, 6 mapped, 1 failed" in report.table()
    assert json.loads(json.dumps(report.json()))["samples_seen"] == 7
    with pytest.raises(ValueError, match="none of the reads has a truth"):
        evaluate(signals, ReadTruths({}), caller)


def test_a_fit_needs_enough() -> None:
    columns_Q, errors_Q = np.zeros(51, np.int64), np.zeros(51, np.int64)
    columns_Q[[5, 10]], errors_Q[[5, 10]] = 1000, 100
    assert fit_qscore(columns_Q, errors_Q, 1.0, 0.0) is None


@pytest.fixture
def reference(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "reference.fa"
    path.write_text(f">a\n{random_sequence(3000, 8)}\n>b\n{random_sequence(2000, 9)}\n")
    return path


def test_truths_of_a_simulated_run(tmp_path: Path, reference: Path) -> None:
    table = tmp_path / "run.truth.tsv"
    table.write_text("read_id\tcontig\tstart\tend\tstrand\nx\tb\t100\t1100\t-\ny\ta\t0\t900\t+\n")
    truths = simulated_truths(table, reference)
    called = mappy.revcomp(random_sequence(2000, 9)[100:1100])
    aligned = truths.align("x", called)
    assert aligned is not None
    hit, truth_T, bases = aligned
    assert (hit.mlen, bases, hit.strand) == (1000, 1000, 1)
    assert decode(truth_T) == called
    assert truths.knows("y")
    assert not truths.knows("z")
    table.write_text("read_id\tcontig\tstart\tend\tstrand\nx\tnone\t100\t1100\t-\n")
    with pytest.raises(ValueError, match="no column or contig 'none'"):
        simulated_truths(table, reference)


def test_mapping_to_a_reference(reference: Path) -> None:
    truth = ReferenceTruth(reference)
    called = mappy.revcomp(random_sequence(3000, 8)[500:1700])
    aligned = truth.align("any", called)
    assert aligned is not None
    found = accuracy(called, np.full(1200, 20, np.uint8), *aligned)
    assert found.identity == 1.0
    assert truth.align("any", random_sequence(1000, 77)) is None
    with pytest.raises(ValueError, match="not a reference"):
        ReferenceTruth(reference.with_name("none.fa"))


def test_the_learning_curve(tmp_path: Path) -> None:
    """Logs of this trainer and of its predecessor have the keys that matter in common."""
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"seen": 2000000, "loss": 0.5, "valid_sim": 0.6, "valid_real": 0.7}\n{"seen": 3000000, "loss": 0.4}\n'
        '{"seen": 1000000, "loss": 0.8, "valid_sim": 0.9}\n'
    )
    evaluation = tmp_path / "real.json"
    evaluation.write_text('{"name": "real", "samples_seen": 1500000, "median_identity": 0.8}')
    rows = curve_rows([log], [evaluation])
    write_table(tmp_path / "curve.tsv", rows)
    assert (tmp_path / "curve.tsv").read_text().splitlines() == [
        "samples_seen\tloss\tvalid_sim\tvalid_real\treads\tmedian_identity",
        "1000000\t0.8\t0.9\t\t\t",
        "1500000\t\t\t\treal\t0.8",
        "2000000\t0.5\t0.6\t0.7\t\t",
    ]
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        with pytest.raises(NoPlots, match=r"porestream\[train\]"):
            draw(tmp_path / "curve.png", rows)
    else:
        draw(tmp_path / "curve.png", rows)
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    evaluation.write_text("{}")
    with pytest.raises(ValueError, match=r"real\.json: not an evaluation"):
        curve_rows([], [evaluation])


def test_help_teaches_and_mistakes_are_one_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, list(arguments), prog_name="train")
        return result.exit_code, result.output

    code, text = run("--help")
    assert code == 0
    commands = ("prepare", "fit-pore", "compare-signal", "train", "export", "evaluate", "curve")
    places = [text.index(f"\n  {command} ") for command in commands]
    assert places == sorted(places)
    for command in commands:
        assert run(command, "--help")[0] == 0
    out = str(tmp_path / "run")
    assert "--samples or --minutes" in run("train", "--out", out)[1]
    assert "multiples of 6" in run("train", "--out", out, "--minutes", "1", "--chunk-samples", "1000")[1]
    not_state = tmp_path / "not.pt"
    not_state.write_text("x")
    code, text = run("train", "--out", out, "--minutes", "1", "--resume", str(not_state))
    assert code == 1
    assert text.startswith("Error: ")
    assert "not.pt: not a state file" in text
    Path(out).mkdir(exist_ok=True)
    (Path(out) / "state.pt").write_text("x")
    assert "is there already: go on with --resume" in run("train", "--out", out, "--minutes", "1")[1]
    code, text = run("evaluate", str(not_state), "--model", str(tmp_path))
    assert code == 2
    assert "say what is true" in text
