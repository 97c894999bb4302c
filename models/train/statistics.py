"""Computes statistics of force-aligned signal, to compare real and simulated signal.

Dimensions: S samples, B bases.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from porestream.models.simulate.pore import KMER_LEN, PoreModel, kmer_index
from porestream.models.simulate.signal import SignalNoise, simulate_signal
from porestream.models.train.align import F32, F64, I64, MAD_TO_SD, LeftOut, align, each_aligned, event_moments
from porestream.models.train.arrays import TrainingRead

LAGS = (1, 2, 4, 8, 20, 100)
DWELL_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

LEVEL_ERROR_UNITS = 0.034
"""Difference (robust sd) between two pore models fitted to the same reads from different starting points."""
LABEL_ERROR_SHARE = 0.012
"""Median divergence between the real reads' published basecalls and their reference (minimap2's de)."""

_LONG_EVENT_SAMPLES = 8  # long enough that noise within the event hardly affects its median
_SPREAD_EVENT_SAMPLES = 6
_CLIP_UNITS = 0.6  # residuals are clipped to this for correlations, so that stalls and spikes don't dominate


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalStatistics:
    """Statistics over all bases or samples of some reads, in table units (about 22.5 pA) and samples.

    Attributes
    ----------
    level_sd
        Standard deviation of the events' medians: the spread of the levels.
    event_residual_sd
        Robust standard deviation of the medians of long events (8 samples or more) around the predicted levels: the
        part that the pore model does not explain.
    sample_residual_sd, sample_residual_robust_sd
        Standard deviation, and robust standard deviation, of all samples around the predicted levels.
    within_sd
        Median, over events of 6 samples or more, of the standard deviation within an event.
    single_sample_share
        Share of bases that have a single sample.
    mean_dwell_samples, dwell_samples
        Mean and quantiles (DWELL_QUANTILES) of the number of samples per base.
    autocorrelation
        Autocorrelation of the samples' residuals, at LAGS.
    """

    level_sd: float
    event_residual_sd: float
    sample_residual_sd: float
    sample_residual_robust_sd: float
    within_sd: float
    single_sample_share: float
    mean_dwell_samples: float
    dwell_samples: tuple[float, ...]
    autocorrelation: tuple[float, ...]

    def rows(self) -> dict[str, float]:
        """Return the figures by name, in the order of the table."""
        rows = {
            "level sd": self.level_sd,
            "event residual, robust sd": self.event_residual_sd,
            "sample residual, sd": self.sample_residual_sd,
            "sample residual, robust sd": self.sample_residual_robust_sd,
            "sd within an event, median": self.within_sd,
            "bases of a single sample": self.single_sample_share,
            "dwell, mean": self.mean_dwell_samples,
        }
        rows |= {f"dwell, {q:.0%} quantile": v for q, v in zip(DWELL_QUANTILES, self.dwell_samples, strict=True)}
        return rows | {f"autocorrelation, lag {lag}": v for lag, v in zip(LAGS, self.autocorrelation, strict=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """One read: each base's median, sd (table units), number of samples and level; each sample's residual."""

    medians_B: F64
    sds_B: F64
    counts_B: I64
    levels_B: F32
    residuals_S: F32


def robust_sd(values: npt.NDArray[np.floating]) -> float:
    """Return 1.4826 times the median absolute deviation, which is the standard deviation of normal values."""
    return float(MAD_TO_SD * np.median(np.abs(values - np.median(values))))


def real_statistics(
    reads: Iterable[TrainingRead], pore: PoreModel, left_out: LeftOut = lambda read_id, error: None
) -> SignalStatistics:
    """Compute statistics of prepared reads aligned to the pore's levels; report reads that can't be aligned."""

    def measured(read: TrainingRead) -> _Pieces:
        inner = slice(pore.left, read.bases_B.size - pore.right)
        end_sample = int(read.starts_B[read.bases_B.size - pore.right])
        return _measure(read.signal_pa_S, read.starts_B[inner], end_sample, pore.levels(read.bases_B).mean_B)

    return _summary([pieces for _, pieces in each_aligned(reads, measured, left_out)])


def simulated_statistics(
    reads: Iterable[TrainingRead],
    pore: PoreModel,
    noise: SignalNoise,
    seed: int = 1,
    level_error_units: float = LEVEL_ERROR_UNITS,
    label_error_share: float = LABEL_ERROR_SHARE,
    left_out: LeftOut = lambda read_id, error: None,
) -> SignalStatistics:
    """Compute statistics of simulated signal for the same bases and sample rates, aligned in the same way.

    Real reads are aligned to levels and labels that are not quite right, and those errors look like noise. So the same
    errors are put in here: every 9-mer's level gets a fixed error with standard deviation `level_error_units`, and a
    share `label_error_share` of the bases is substituted. With exact levels and labels, we would fit more noise to the
    simulator than there is.

    Reads that cannot be aligned are left out and reported to `left_out`.
    """
    rng = np.random.default_rng(seed)

    def measured(read: TrainingRead) -> _Pieces:
        current_S, starts_B = simulate_signal(read.bases_B, pore, rng, noise, read.sample_rate_hz)
        labels_B = read.bases_B.copy()
        wrong_B = rng.random(labels_B.size) < label_error_share
        labels_B[wrong_B] = (labels_B[wrong_B] + rng.integers(1, 4, np.count_nonzero(wrong_B))) % 4
        levels_B = pore.levels(labels_B).mean_B + np.float32(level_error_units) * _level_errors(labels_B)
        return _measure(current_S, starts_B, current_S.size, levels_B)

    return _summary([pieces for _, pieces in each_aligned(reads, measured, left_out)])


def _level_errors(bases_B: npt.NDArray[np.uint8]) -> F32:
    """Return standard normal errors, one for each base with a level; equal 9-mers always get the same error."""
    errors_K = np.random.default_rng(9).standard_normal(4**KMER_LEN, np.float32)
    errors_B: F32 = errors_K[kmer_index(bases_B)]
    return errors_B


def comparison(real: SignalStatistics, simulated: SignalStatistics) -> str:
    """Return both in two columns, as text."""
    lines = [f"{'table units, samples':<30}{'real':>10}{'simulated':>12}"]
    for (name, value), other in zip(real.rows().items(), simulated.rows().values(), strict=True):
        lines.append(f"{name:<30}{value:>10.4g}{other:>12.4g}")
    return "\n".join(lines)


def _measure(signal_S: F32, starts_B: F64, end_sample: int, levels_B: F32) -> _Pieces:
    alignment = align(signal_S, starts_B, end_sample, levels_B)
    first = int(alignment.starts_B[0])
    units_S = ((signal_S[first:end_sample] - alignment.offset) / alignment.gain).astype(np.float32)
    medians_B, sds_B, counts_B = event_moments(units_S, alignment.starts_B - first, end_sample - first)
    return _Pieces(
        medians_B=medians_B,
        sds_B=sds_B,
        counts_B=counts_B,
        levels_B=levels_B,
        residuals_S=units_S - np.repeat(levels_B, counts_B),
    )


def _summary(pieces: Sequence[_Pieces]) -> SignalStatistics:
    medians_B, sds_B, levels_B, residuals_S = (
        np.concatenate([getattr(piece, name) for piece in pieces])
        for name in ("medians_B", "sds_B", "levels_B", "residuals_S")
    )
    counts_B = np.concatenate([piece.counts_B for piece in pieces])
    long_B = counts_B >= _LONG_EVENT_SAMPLES
    clipped_S = np.clip(residuals_S, -_CLIP_UNITS, _CLIP_UNITS)
    return SignalStatistics(
        level_sd=float(np.std(medians_B[long_B])),
        event_residual_sd=robust_sd((medians_B - levels_B)[long_B]),
        sample_residual_sd=float(np.std(residuals_S)),
        sample_residual_robust_sd=robust_sd(residuals_S),
        within_sd=float(np.median(sds_B[counts_B >= _SPREAD_EVENT_SAMPLES])),
        single_sample_share=float(np.mean(counts_B == 1)),
        mean_dwell_samples=float(np.mean(counts_B)),
        dwell_samples=tuple(np.quantile(counts_B, DWELL_QUANTILES).tolist()),
        autocorrelation=tuple(float(np.corrcoef(clipped_S[:-lag], clipped_S[lag:])[0, 1]) for lag in LAGS),
    )
