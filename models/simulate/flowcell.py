"""Simulates the flow cell: which channel takes which read and when, why reads end, and how current becomes counts.

Dimensions: S samples.
"""

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pod5 import EndReasonEnum

CHANNELS, WELLS = 512, 4
"""Channels, and wells per channel, of a MinION flow cell."""

ADC_MIN, ADC_MAX = -4096, 4095
PA_PER_ADC = 0.1755
_MAX_OFFSET_ADC = 15

_GAP_S, _MIN_GAP_S = 0.8, 0.05
_MUX_CHANGE_S = 2.0

_END_REASONS = {
    EndReasonEnum.SIGNAL_POSITIVE: 0.93,
    EndReasonEnum.UNBLOCK_MUX_CHANGE: 0.04,
    EndReasonEnum.MUX_CHANGE: 0.01,
    EndReasonEnum.DATA_SERVICE_UNBLOCK_MUX_CHANGE: 0.01,
    EndReasonEnum.SIGNAL_NEGATIVE: 0.01,
}
_CHANGES_MUX = {EndReasonEnum.UNBLOCK_MUX_CHANGE, EndReasonEnum.MUX_CHANGE}


def draw_end_reason(rng: np.random.Generator) -> EndReasonEnum:
    """Draw why a read ends: most end normally; a few are ejected, or the channel switches to another well."""
    reasons = list(_END_REASONS)
    return reasons[int(rng.choice(len(reasons), p=list(_END_REASONS.values())))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and when a read was taken.

    Attributes
    ----------
    channel, well
        Numbered from 1.
    read_number
        Ascending on each channel, with gaps, because the instrument counts reads that it does not keep.
    start_sample
        Samples since the start of the run.
    offset_adc
        The channel's calibration: pA = (ADC + offset) * `PA_PER_ADC`.
    open_pore_pa
        Open-pore current before the read.
    """

    channel: int
    well: int
    read_number: int
    start_sample: int
    offset_adc: int
    open_pore_pa: float


@dataclass(slots=True, kw_only=True)
class _Channel:
    number: int
    well: int
    offset_adc: int
    read_number: int = 0


class FlowCell:
    """Channels that take one read after another; the next read goes to the channel that is free first.

    Parameters
    ----------
    channels
        How many of the `CHANNELS` take reads.
    sample_rate_hz
        Samples per second.
    rng
        Source of gaps, wells and calibrations.
    """

    def __init__(self, channels: int, sample_rate_hz: int, rng: np.random.Generator) -> None:
        self._sample_rate_hz = sample_rate_hz
        self._rng = rng
        self._free: list[tuple[int, int, _Channel]] = []  # when, channel number (a tie-breaker), channel
        for number in rng.permutation(CHANNELS)[:channels] + 1:
            offset_adc = int(rng.integers(-_MAX_OFFSET_ADC, _MAX_OFFSET_ADC + 1))
            channel = _Channel(number=int(number), well=int(rng.integers(1, WELLS + 1)), offset_adc=offset_adc)
            heapq.heappush(self._free, (self._gap(), channel.number, channel))

    def place(self, samples: int, end_reason: EndReasonEnum) -> Place:
        """Assign a place to a read of this many samples. Places are in order of start time."""
        start, number, channel = heapq.heappop(self._free)
        channel.read_number += int(self._rng.integers(1, 4))
        open_pore_pa = float(self._rng.normal(205, 8))
        place = Place(
            channel=number,
            well=channel.well,
            read_number=channel.read_number,
            start_sample=start,
            offset_adc=channel.offset_adc,
            open_pore_pa=open_pore_pa,
        )
        free = start + samples + self._gap()
        if end_reason in _CHANGES_MUX:
            channel.well = channel.well % WELLS + 1
            free += int(_MUX_CHANGE_S * self._sample_rate_hz)
        heapq.heappush(self._free, (free, number, channel))
        return place

    def _gap(self) -> int:
        return int((_MIN_GAP_S + self._rng.exponential(_GAP_S)) * self._sample_rate_hz)


def digitise(current_pa_S: npt.NDArray[np.float32], offset_adc: int) -> npt.NDArray[np.int16]:
    """Convert current in pA to ADC counts, clipped to the ADC's range; int16."""
    counts_S = current_pa_S * np.float32(1 / PA_PER_ADC)
    counts_S -= np.float32(offset_adc)
    np.clip(np.rint(counts_S, out=counts_S), ADC_MIN, ADC_MAX, out=counts_S)
    return counts_S.astype(np.int16)
