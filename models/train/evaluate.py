"""Calls reads with a model directory and reports how good the calls are.

Dimensions: S samples, Q qualities (0-50), L lengths of homopolymers.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pod5

from porestream.models.call.basecaller import CalledRead
from porestream.models.scale import Measurement
from porestream.models.train.accuracy import QUALITIES, ReadAccuracy, accuracy
from porestream.models.train.truths import Truths

Signal = tuple[str, npt.NDArray[np.int16], Measurement]
"""Read id, ADC counts, and how the instrument measured them."""

Call = Callable[[npt.NDArray[np.int16], Measurement], CalledRead]

_LENGTHS = (0, 1000, 3000, 10_000, 30_000)
_MIN_FIT_COLUMNS = 200  # a quality with fewer columns is left out of the fit


@dataclass(frozen=True, slots=True)
class LengthBin:
    """Reads whose truth has at least `from_bases` bases, and fewer than the next bin's."""

    from_bases: int
    reads: int
    median_identity: float


@dataclass(frozen=True, slots=True)
class RunBin:
    """The truth's homopolymers of one length (the last bin: or longer), and the share called with the right length."""

    length: int
    runs: int
    right_share: float


@dataclass(frozen=True, slots=True)
class QualityBin:
    """Alignment columns of bases with one quality, and the error rate among them as Phred."""

    quality: int
    columns: int
    observed_quality: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How good a model's calls of some reads are.

    Attributes
    ----------
    name, model, samples_seen
        Name of the reads, name of the model's directory, and samples that the model was trained on (0: unknown).
    reads, mapped, failed
        How many reads were compared, how many have an alignment, and how many could not be called.
    bases, samples
        Bases called, and samples measured.
    median_identity, mean_identity, quartiles
        Identity of mapped reads: matches divided by columns of the best hit.
    mismatch, insertion, deletion
        Shares of all columns.
    predicted_quality, observed_quality
        Phred of the mean error that the qualities predict for aligned bases, and Phred of the mean of 1 - identity;
        both means are over reads.
    fitted_scale, fitted_bias
        [qscore] values that would make the qualities fit, or None if there are too few data to fit.
    """

    name: str
    model: str
    samples_seen: int
    reads: int
    mapped: int
    failed: int
    bases: int
    samples: int
    median_identity: float
    mean_identity: float
    quartiles: tuple[float, float]
    mismatch: float
    insertion: float
    deletion: float
    predicted_quality: float
    observed_quality: float
    fitted_scale: float | None
    fitted_bias: float | None
    by_length: list[LengthBin]
    homopolymers: list[RunBin]
    qualities: list[QualityBin]

    def json(self) -> dict[str, object]:
        """Return the report as plain values."""
        return asdict(self)

    def table(self) -> str:
        """Return the report as text to read."""
        low, high = self.quartiles
        lines = [
            f"{self.name}: {self.reads} reads, {self.mapped} mapped, {self.failed} failed; {self.bases:,} bases of "
            f"{self.samples:,} samples",
            f"identity        median {self.median_identity:.4f}, mean {self.mean_identity:.4f}, "
            f"quartiles {low:.4f}-{high:.4f}",
            f"columns         mismatch {self.mismatch:.4f}, insertion {self.insertion:.4f}, "
            f"deletion {self.deletion:.4f}",
            f"quality         predicted Q{self.predicted_quality:.1f}, observed Q{self.observed_quality:.1f}",
        ]
        if self.fitted_scale is not None and self.fitted_bias is not None:
            lines.append(f"[qscore] to fit scale = {self.fitted_scale:.3f}, bias = {self.fitted_bias:.3f}")
        lines.append("truth bases     reads   median identity")
        lines += [f"{b.from_bases:>7,} and on {b.reads:>8} {b.median_identity:>17.4f}" for b in self.by_length]
        lines.append("homopolymer      runs   right length")
        lines += [f"{b.length:>11} {b.runs:>9,} {b.right_share:>14.3f}" for b in self.homopolymers]
        lines.append("base quality  columns   observed")
        lines += [f"{b.quality:>12} {b.columns:>8,} {b.observed_quality:>10.1f}" for b in self.qualities]
        return "\n".join(lines)


def pod5_reads(paths: Sequence[Path]) -> Iterator[Signal]:
    """Yield the reads of POD5 files."""
    for path in paths:
        with pod5.Reader(path) as reader:
            for read in reader.reads():
                run, calibration = read.run_info, read.calibration
                code, level_pa = run.flow_cell_product_code, read.open_pore_level
                measured = Measurement(
                    sample_rate_hz=run.sample_rate,
                    offset_adc=calibration.offset,
                    scale_pa=calibration.scale,
                    open_pore_pa=level_pa,
                    flow_cell_product_code=code,
                )
                yield str(read.read_id), read.signal, measured


def evaluate(
    reads: Iterable[Signal],
    truths: Truths,
    call: Call,
    scale: float = 1.0,
    bias: float = 0.0,
    name: str = "reads",
    model: str = "",
    samples_seen: int = 0,
) -> Report:
    """Call the reads that have a truth, one by one, and compare them with it.

    Parameters
    ----------
    reads
        Signals to call.
    truths
        The true sequences.
    call
        Usually `Basecaller.call_read`.
    scale, bias
        The model's [qscore] values, which the fit is relative to.
    name, model, samples_seen
        For the report.

    Raises
    ------
    ValueError
        No read has a truth.
    """
    found: list[ReadAccuracy] = []
    compared = failed = bases = samples = 0
    for read_id, signal_S, measured in reads:
        if not truths.knows(read_id):
            continue
        compared += 1
        samples += signal_S.size
        try:
            called = call(signal_S, measured)
        except ValueError:  # too short, or scores that are not finite; a service would report it as failed
            failed += 1
            continue
        bases += len(called.sequence)
        aligned = truths.align(read_id, called.sequence)
        if aligned is not None:
            hit, truth_T, truth_bases = aligned
            found.append(accuracy(called.sequence, called.qualities_B, hit, truth_T, truth_bases))
    if not compared:
        raise ValueError("none of the reads has a truth: do the files belong together?")
    return _report(name, model, samples_seen, compared, failed, bases, samples, found, (scale, bias))


def phred(error: float) -> float:
    """Return -10 log10 of an error probability, but at most 60 (one in a million)."""
    return -10 * math.log10(max(error, 1e-6))


def fit_qscore(
    columns_Q: npt.NDArray[np.int64], errors_Q: npt.NDArray[np.int64], scale: float, bias: float
) -> tuple[float, float] | None:
    """Fit the [qscore] scale and bias with which the qualities would match the observed errors.

    A line through the observed Phred of every quality, fitted by least squares with the columns as weights, is combined
    with the scale and bias in use. Qualities at the decoder's limits (1 and 50), and those with few columns or without
    errors, are left out.

    Returns
    -------
    tuple or None
        Scale and bias; None if fewer than three qualities remain.
    """
    used = [q for q in range(2, QUALITIES - 1) if columns_Q[q] >= _MIN_FIT_COLUMNS and errors_Q[q] > 0]
    if len(used) < 3:
        return None
    observed = [phred(float(errors_Q[q] / columns_Q[q])) for q in used]
    slope, offset = np.polyfit(used, observed, 1, w=np.sqrt(columns_Q[used]))
    return float(slope * scale), float(slope * bias + offset)


def _report(
    name: str,
    model: str,
    samples_seen: int,
    compared: int,
    failed: int,
    bases: int,
    samples: int,
    found: Sequence[ReadAccuracy],
    qscore: tuple[float, float],
) -> Report:
    identities = np.array([read.identity for read in found]) if found else np.zeros(1)
    lengths = np.array([read.truth_bases for read in found])
    columns = max(1, sum(read.columns for read in found))
    zeros_Q = np.zeros(QUALITIES, np.int64)
    columns_Q, errors_Q = (sum((getattr(r, key) for r in found), zeros_Q) for key in ("columns_Q", "errors_Q"))
    fitted = fit_qscore(columns_Q, errors_Q, *qscore)
    by_length = []
    for low, high in zip(_LENGTHS, (*_LENGTHS[1:], math.inf), strict=True):
        inside = (lengths >= low) & (lengths < high)
        if inside.any():
            by_length.append(LengthBin(low, int(inside.sum()), float(np.median(identities[inside]))))
    homopolymers = []
    if found:
        runs_L, right_L = (np.sum([getattr(r, key) for r in found], axis=0) for key in ("runs_L", "right_runs_L"))
        homopolymers = [
            RunBin(length, int(runs_L[length]), float(right_L[length] / runs_L[length]))
            for length in range(1, runs_L.size)
            if runs_L[length]
        ]
    return Report(
        name=name,
        model=model,
        samples_seen=samples_seen,
        reads=compared,
        mapped=len(found),
        failed=failed,
        bases=bases,
        samples=samples,
        median_identity=float(np.median(identities)),
        mean_identity=float(np.mean(identities)),
        quartiles=(float(np.quantile(identities, 0.25)), float(np.quantile(identities, 0.75))),
        mismatch=sum(read.mismatches for read in found) / columns,
        insertion=sum(read.insertions for read in found) / columns,
        deletion=sum(read.deletions for read in found) / columns,
        predicted_quality=phred(float(np.mean([read.expected_error for read in found]))) if found else 0.0,
        observed_quality=phred(float(np.mean(1 - identities))),
        fitted_scale=fitted[0] if fitted else None,
        fitted_bias=fitted[1] if fitted else None,
        by_length=by_length,
        homopolymers=homopolymers,
        qualities=[
            QualityBin(q, int(columns_Q[q]), phred(float(errors_Q[q] / columns_Q[q])))
            for q in range(QUALITIES)
            if columns_Q[q]
        ],
    )
