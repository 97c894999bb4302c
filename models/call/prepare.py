"""Prepares a read for the network: normalise, trim the leader, plan chunks at the model's sample rate.

Dimensions: S samples as measured, M samples at the model's rate, T time steps.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from porestream.models.call.chunk import Chunker, ChunkPlan
from porestream.models.files.config import ModelConfig
from porestream.models.scale import (
    Measurement,
    Scaling,
    leader_samples,
    med_mad_scaling,
    pa_scaling,
    quantile_scaling,
    rna_adapter_samples,
)

_STANDARDISED_TRIM_SAMPLES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRead:
    """What the workers need to call a read's chunks.

    Attributes
    ----------
    signal_S
        int16, as measured, without the leader.
    scaling
        Shift and scale that normalise the signal.
    trimmed_samples
        Measured samples trimmed as leader.
    plan
        How the read is cut, in samples at the model's rate.
    step
        Measured samples per model sample: 1, or 4/5 for a 4 kHz read and a 5 kHz model.
    is_rna
        Whether bases are called starting from the 3' end.
    """

    signal_S: npt.NDArray[np.int16]
    scaling: Scaling
    trimmed_samples: int
    plan: ChunkPlan
    step: Fraction = Fraction(1)
    is_rna: bool = False

    def chunk(self, start: int, samples: int) -> npt.NDArray[np.float32]:
        """Return one chunk, normalised, float32; past the end of the read, the chunk repeats from its start.

        Parameters
        ----------
        start, samples
            First sample and length, at the model's rate.
        """
        if self.step == 1:
            chunk_M = self.scaling.apply(self.signal_S[start : start + samples])
        else:
            stop = min(start + samples, self.plan.read_samples)
            positions_M = np.arange(start, stop) * self.step.numerator / self.step.denominator
            first = int(positions_M[0])
            near_S = self.scaling.apply(self.signal_S[first : int(positions_M[-1]) + 2])
            chunk_M = np.interp(positions_M - first, np.arange(near_S.size), near_S).astype(np.float32)
        return chunk_M if chunk_M.size == samples else _repeated(chunk_M, samples)

    def write_chunk(self, start: int, out_M: npt.NDArray[np.float32]) -> None:
        """Write what `chunk` returns into a row of a batch."""
        part_S = self.signal_S[start : start + out_M.size]
        if self.step == 1 and part_S.size == out_M.size:
            self.scaling.apply(part_S, out_M)
        else:
            out_M[:] = self.chunk(start, out_M.size)

    def measured_moves(self, moves_T: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], int]:
        """Convert moves to measured samples; return them with their stride, the measured samples per move.

        If a time step is 4.8 measured samples, the move table gets a stride of 4, and every move goes to the step that
        holds its sample. No two moves collide, because the new steps are shorter.
        """
        if self.step == 1:
            return moves_T, self.plan.stride
        stride = int(self.plan.stride * self.step)
        measured_T = np.zeros(self.signal_S.size // stride, np.uint8)
        ratio = self.plan.stride * self.step / stride
        measured_T[np.flatnonzero(moves_T) * ratio.numerator // ratio.denominator] = 1
        return measured_T, stride


def _repeated(chunk_M: npt.NDArray[np.float32], samples: int) -> npt.NDArray[np.float32]:
    """Return so many samples, the chunk again and again: `np.resize` in a tenth of its time."""
    out_M = np.empty(samples, np.float32)
    done = chunk_M.size
    out_M[:done] = chunk_M
    while done < samples:
        more = min(done, samples - done)
        out_M[done : done + more] = out_M[:more]
        done += more
    return out_M


def prepare(
    signal_S: npt.NDArray[np.int16], measured: Measurement, config: ModelConfig, chunker: Chunker
) -> PreparedRead:
    """Normalise and trim a read, and plan its chunks.

    Parameters
    ----------
    signal_S
        int16 counts of the instrument's ADC.
    measured
        Calibration and sample rate. If the model resamples from this rate, the signal is interpolated linearly to the
        model's own rate; otherwise it is used as it is.

    Raises
    ------
    ValueError
        Without its leader the read is shorter than a time step.
    """
    if signal_S.size < config.stride:  # also, an empty signal cannot be scaled
        raise ValueError(f"too short: {_samples(signal_S.size)}, the model's stride is {config.stride}")
    trimmed = rna_adapter_samples(signal_S) if config.is_rna else 0  # an adapter would spoil the read's quantiles
    scaling = _scaling(signal_S[trimmed:], measured, config)
    if not config.is_rna:
        trimmed = _leader_samples(signal_S, scaling, config)
    kept_S = signal_S[trimmed:]
    rate_hz = measured.sample_rate_hz
    step = Fraction(1)
    if rate_hz in config.resample_from_hz and rate_hz != config.sample_rate_hz:
        step = Fraction(rate_hz, config.sample_rate_hz)
    model_samples = int((kept_S.size - 1) / step) + 1
    if model_samples < config.stride:
        raise ValueError(
            f"too short: {_samples(signal_S.size)}, {trimmed} of them leader; the model's stride is {config.stride}"
        )
    return PreparedRead(
        signal_S=kept_S,
        scaling=scaling,
        trimmed_samples=trimmed,
        plan=chunker.plan(model_samples),
        step=step,
        is_rna=config.is_rna,
    )


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


def _scaling(signal_S: npt.NDArray[np.int16], measured: Measurement, config: ModelConfig) -> Scaling:
    match config.scaling:
        case "pa":
            return pa_scaling(measured, config.standardisation)
        case "quantile":
            return quantile_scaling(signal_S, config.quantiles)
        case _:
            return med_mad_scaling(signal_S)


def _leader_samples(signal_S: npt.NDArray[np.int16], scaling: Scaling, config: ModelConfig) -> int:
    """Return the length of a DNA read's leader; always 10 samples if the signal is standardised, as in dorado."""
    if config.standardisation.on:
        return _STANDARDISED_TRIM_SAMPLES if signal_S.size > _STANDARDISED_TRIM_SAMPLES else 0
    return leader_samples(signal_S, scaling)
