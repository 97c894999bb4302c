"""Simulates one read, from the open pore to the adapter's tail, as current in pA.

Lengths and levels of the leader follow about thirty real R10.4.1 reads. Most of those start on the leader's plateau;
half of the simulated reads start with the open pore, so that trimming has something to do.

Dimensions: B bases, S samples.
"""

from dataclasses import dataclass
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pod5 import EndReasonEnum

from porestream.models.simulate.noise import SignalNoise
from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.reference import Window
from porestream.models.simulate.sequence import encode
from porestream.models.simulate.signal import simulate_signal, to_picoampere

F32 = npt.NDArray[np.float32]

ADAPTER_B = encode("TTTTTTTTCCTGTACTTCGTTCAGTTACGTATTGCT")
TAIL_B = encode("GCAATACGTAACTGAACGAAGT")
"""The ligation kit's adapter (LSK114): its top strand precedes every read, its bottom strand follows complete reads."""

_TAIL_SHARE = 0.7  # of the reads that end normally
_OPEN_PORE_SHARE = 0.5
_OPEN_PORE_S, _OPEN_PORE_UNITS, _OPEN_PORE_SD_UNITS = 0.04, 4.8, 0.3
_PLATEAU_S, _PLATEAU_UNITS, _PLATEAU_SD_UNITS = 0.025, 0.75, 0.1
_LOG_LENGTH_SD = 0.6
_LEADER_NOISE_UNITS = 0.1


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """Settings that all reads of a run share.

    Attributes
    ----------
    noise
        Speed and noise.
    sample_rate_hz
        Samples per second.
    adapters
        Whether reads have a leader and adapters.
    """

    noise: SignalNoise
    sample_rate_hz: int
    adapters: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRead:
    """A read, not yet placed on the flow cell.

    Attributes
    ----------
    read_id
        A random UUID (version 4).
    window
        Where it comes from.
    current_pa_S
        The whole signal, (S,) float32.
    first_samples_B
        The sample at which each base of the window arrives, (B,) int64, ascending; very short bases share a sample.
    end_sample
        The first sample after the window's last base.
    end_reason
        Why the read ended.
    """

    read_id: UUID
    window: Window
    current_pa_S: F32
    first_samples_B: npt.NDArray[np.int64]
    end_sample: int
    end_reason: EndReasonEnum


def simulate_read(
    window: Window, end_reason: EndReasonEnum, pore: PoreModel, settings: ReadSettings, rng: np.random.Generator
) -> SimulatedRead:
    """Simulate a read. All randomness comes from `rng`, so it does not matter which thread runs this, or when."""
    read_id = UUID(bytes=rng.bytes(16), version=4)
    adapter_B, tail_B = ADAPTER_B[:0], TAIL_B[:0]
    leader_S = np.empty(0, np.float32)
    if settings.adapters:
        adapter_B = ADAPTER_B
        if end_reason == EndReasonEnum.SIGNAL_POSITIVE and rng.random() < _TAIL_SHARE:
            tail_B = TAIL_B
        leader_S = _leader(settings, rng)
    before_B, after_B = (rng.integers(0, 4, size, np.uint8) for size in (pore.left, pore.right))
    strand_B = np.concatenate([before_B, adapter_B, window.bases_B, tail_B, after_B])
    current_S, starts_B = simulate_signal(strand_B, pore, rng, settings.noise, settings.sample_rate_hz)
    first, last = adapter_B.size, adapter_B.size + window.bases_B.size
    end = starts_B[last] if last < starts_B.size else current_S.size
    return SimulatedRead(
        read_id=read_id,
        window=window,
        current_pa_S=to_picoampere(np.concatenate([leader_S, current_S]), rng),
        first_samples_B=np.minimum(starts_B[first:last].astype(np.int64), current_S.size - 1) + leader_S.size,
        end_sample=int(end) + leader_S.size,
        end_reason=end_reason,
    )


def _leader(settings: ReadSettings, rng: np.random.Generator) -> F32:
    """Simulate the open pore (in some reads) and the plateau of the leader in the pore; table units, float32."""
    parts = [(_PLATEAU_S, rng.normal(_PLATEAU_UNITS, _PLATEAU_SD_UNITS))]
    if rng.random() < _OPEN_PORE_SHARE:
        parts.insert(0, (_OPEN_PORE_S, rng.normal(_OPEN_PORE_UNITS, _OPEN_PORE_SD_UNITS)))
    sizes = [int(median_s * settings.sample_rate_hz * rng.lognormal(0, _LOG_LENGTH_SD)) for median_s, _ in parts]
    leader_S = np.repeat(np.array([level for _, level in parts], np.float32), sizes)
    noise_S = rng.standard_normal(leader_S.size, np.float32)
    return leader_S + np.float32(_LEADER_NOISE_UNITS * settings.noise.sample_sd_factor) * noise_S
