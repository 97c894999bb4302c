"""A read before the network: normalised, its leader trimmed, at the model's sample rate, cut into chunks.

Dimensions: S samples as measured, M samples at the model's rate, T time steps.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from porestream.models.chunk import Chunker, ChunkPlan
from porestream.models.config import ModelConfig
from porestream.models.scale import STRATEGIES, Scaling, leader_samples, quantile_scaling


@dataclass(frozen=True, slots=True)
class PreparedRead:
    """What the workers need of a read to call its chunks.

    Attributes
    ----------
    signal_S
        int16, as measured, after the leader.
    scaling
        To the normalised signal.
    trimmed_samples
        The leader's, as measured.
    plan
        The cut, in samples of the model's rate.
    step
        Measured samples for one of the model's: 1, or 4/5 for a 4 kHz read and a 5 kHz model.
    """

    signal_S: npt.NDArray[np.int16]
    scaling: Scaling
    trimmed_samples: int
    plan: ChunkPlan
    step: Fraction = Fraction(1)

    def chunk(self, start: int, samples: int) -> npt.NDArray[np.float32]:
        """One chunk, normalised, float32; what the read lacks at the end is the chunk repeated from its start.

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
        return chunk_M if chunk_M.size == samples else np.resize(chunk_M, samples)

    def measured_moves(self, moves_T: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], int]:
        """The moves, and how many measured samples each stands for: what users divide the signal by.

        4.8 measured samples a time step become a move table with a stride of 4, in which every move is at the step that
        holds its sample; no two meet, for the new steps are shorter.
        """
        if self.step == 1:
            return moves_T, self.plan.stride
        stride = int(self.plan.stride * self.step)
        measured_T = np.zeros(-(-self.signal_S.size // stride), np.uint8)
        ratio = self.plan.stride * self.step / stride
        measured_T[np.flatnonzero(moves_T) * ratio.numerator // ratio.denominator] = 1
        return measured_T, stride


def prepare(
    signal_S: npt.NDArray[np.int16], sample_rate_hz: int, config: ModelConfig, chunker: Chunker
) -> PreparedRead:
    """Normalise, trim, plan.

    Parameters
    ----------
    signal_S
        int16 counts of the instrument's ADC.
    sample_rate_hz
        Of the run. If it is one of those that the model resamples from, the signal is interpolated linearly to the
        model's own rate; every other rate is taken as it is.

    Raises
    ------
    ValueError
        The read is shorter than a time step.
    """
    if signal_S.size < config.stride:
        raise ValueError(f"too short: {signal_S.size} samples, the model's stride is {config.stride}")
    if config.scaling == "quantile":
        scaling = quantile_scaling(signal_S, config.quantiles)
    else:
        scaling = STRATEGIES[config.scaling](signal_S)
    trimmed = leader_samples(signal_S, scaling)
    kept_S = signal_S[trimmed:]
    if sample_rate_hz not in config.resample_from_hz or sample_rate_hz == config.sample_rate_hz:
        return PreparedRead(kept_S, scaling, trimmed, chunker.plan(kept_S.size))
    step = Fraction(sample_rate_hz, config.sample_rate_hz)
    resampled = int((kept_S.size - 1) / step) + 1
    return PreparedRead(kept_S, scaling, trimmed, chunker.plan(resampled), step)
