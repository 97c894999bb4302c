"""The data that the network learns from: chunks of simulated and of real reads.

With the same seeds and place, both streams give the same chunks again, so a resumed run continues where it stopped.

Dimensions: N rows of a batch, S samples, T time steps (S / STRIDE), P positions of a chunk's target, B bases.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.sequence import UNKNOWN, random_bases, reverse_complement
from porestream.models.simulate.signal import SignalNoise, simulate_signal, to_picoampere
from porestream.models.train.arrays import TrainingRead
from porestream.models.train.crf_loss import margins
from porestream.models.train.network import STRIDE
from porestream.models.train.signal import F32, MODEL_RATE_HZ, normalise, resample

HALF_BAND = 8
"""The largest half width of the loss's band; chunks have margins for it."""

GENOME_BASES = 7001
"""Shorter sequences give no windows, because the longest simulated read does not fit into them."""

_MAX_STEP_BASES = 7  # more in one step would leave the band
_MAX_DWELL_SAMPLES = 60  # chunks that are slower on average have stalled: there is little to learn from them
_SLOW_RATE_HZ, _SLOW_SHARE = 4000.0, 0.35
_READ_BASES = (1500, GENOME_BASES - 1)
_BLOCK_READS = 16
_SPEED_RANGE = (0.88, 1.12)
_WARP_LOG_SD = 0.3  # of the factor on each base's dwell, so that the few real reads are never the same twice
_MAX_ADDED_NOISE = 0.08
_NOISE_LOG_SD, _DWELL_RANGE = 0.25, (0.85, 1.15)  # between simulated reads, because runs differ in these
_GAIN_SD, _OFFSET_SD = 0.04, 0.05  # what the normalisation leaves, and some more


class Chunk(NamedTuple):
    """One training item: normalised signal, the bases near it, and which of them is in the pore at each step."""

    signal_S: F32
    target_P: npt.NDArray[np.uint8]
    positions_T: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Place:
    """How far a stream of simulated chunks has got: the block, how many of its chunks were taken, and their length.

    The length is None if it is unknown, because states of older versions do not record it.
    """

    block: int = 0
    taken: int = 0
    samples: int | None = None


def cut_chunk(
    signal_S: F32,
    bases_B: npt.NDArray[np.uint8],
    starts_B: npt.NDArray[np.float64],
    at: int,
    samples: int,
    state_len: int,
) -> Chunk | None:
    """Cut the chunk that starts at sample `at`; None if its bases can't be learned (no margins, jumps or stalls)."""
    middles_T = at + STRIDE * np.arange(samples // STRIDE) + STRIDE / 2
    current_T = np.searchsorted(starts_B, middles_T, "right") - 1
    before, after = margins(HALF_BAND, state_len)
    low, high = int(current_T[0]) - before, int(current_T[-1]) + after + 1
    if low < 0 or high > bases_B.size:
        return None
    if np.diff(current_T).max(initial=0) > _MAX_STEP_BASES:
        return None
    if current_T[-1] - current_T[0] < samples // _MAX_DWELL_SAMPLES:
        return None
    return Chunk(signal_S[at : at + samples], bases_B[low:high], (current_T - low).astype(np.int32))


class SimulatedChunks:
    """Endless shuffled chunks of simulated reads, in blocks of a few reads; a third of the reads are at 4 kHz.

    Parameters
    ----------
    pore, noise
        For the simulator.
    genomes
        Encoded sequences; some reads are windows of them. May be empty.
    genome_share
        Share of the reads that are such windows.
    samples
        Length of a chunk, if `place` has none.
    state_len
        The network's state length.
    seed
        Several numbers that together make one seed.
    place
        Where to continue, with chunks of its length.

    Raises
    ------
    ValueError
        No genome is long enough.
    """

    def __init__(
        self,
        pore: PoreModel,
        noise: SignalNoise,
        genomes: Sequence[npt.NDArray[np.uint8]],
        genome_share: float,
        samples: int,
        state_len: int,
        seed: Sequence[int],
        place: Place | None = None,
    ) -> None:
        self._pore, self._noise = pore, noise
        self._genomes = [genome_B for genome_B in genomes if genome_B.size >= GENOME_BASES]
        if genomes and not self._genomes:
            raise ValueError(f"no genome sequence has {GENOME_BASES} bases or more")
        self._genome_share = genome_share if self._genomes else 0.0
        self._genome_odds = np.array([genome_B.size for genome_B in self._genomes], float)
        self._state_len, self._seed = state_len, tuple(seed)
        place = Place() if place is None else place
        self._samples = samples if place.samples is None else place.samples
        self._place = replace(place, samples=self._samples)
        self._block: list[Chunk] | None = None

    @property
    def place(self) -> Place:
        """The place of the next chunk."""
        return self._place

    def set_samples(self, samples: int) -> None:
        """Give chunks of another length from now on, starting with the next block."""
        if samples != self._samples:
            self._samples, self._block = samples, None
            self._place = Place(self._place.block + 1, 0, samples)

    def take(self, count: int) -> list[Chunk]:
        """Return the next chunks.

        Raises
        ------
        ValueError
            The simulated reads give no chunks, because chunks are longer than reads or the pore model makes no sense.
        """
        chunks: list[Chunk] = []
        while len(chunks) < count:
            if self._block is None:
                self._block = self._simulated_block(self._place.block)
            taken = self._place.taken
            part = self._block[taken : taken + count - len(chunks)]
            chunks += part
            self._place = replace(self._place, taken=taken + len(part))
            if self._place.taken >= len(self._block):
                self._place, self._block = Place(self._place.block + 1, 0, self._samples), None
        return chunks

    def _simulated_block(self, index: int) -> list[Chunk]:
        rng = np.random.default_rng([*self._seed, index])
        chunks = []
        for _ in range(_BLOCK_READS):
            signal_S, bases_B, starts_B = self._read(rng)
            first = int(rng.integers(100, self._samples))
            for at in range(first, signal_S.size - self._samples, self._samples):
                chunk = cut_chunk(signal_S, bases_B, starts_B, at, self._samples, self._state_len)
                if chunk is not None:
                    chunks.append(chunk)
        if not chunks:
            raise ValueError(
                f"{_BLOCK_READS} simulated reads gave no chunk of {self._samples} samples: take shorter chunks, or "
                "another pore model"
            )
        order = rng.permutation(len(chunks))
        return [chunks[i] for i in order]

    def _read(self, rng: np.random.Generator) -> tuple[F32, npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
        count = int(rng.integers(*_READ_BASES))
        bases_B = self._window(count, rng) if rng.random() < self._genome_share else random_bases(count, rng)
        rate_hz = _SLOW_RATE_HZ if rng.random() < _SLOW_SHARE else MODEL_RATE_HZ
        noise = replace(
            self._noise,
            read_log_sd=_NOISE_LOG_SD,
            dwell_log_sd=self._noise.dwell_log_sd * rng.uniform(*_DWELL_RANGE),
        )
        current_S, starts_B = simulate_signal(bases_B, self._pore, rng, noise, rate_hz)
        factor = MODEL_RATE_HZ / rate_hz
        signal_S = resample(normalise(to_picoampere(current_S, rng)), factor)
        return signal_S, bases_B[self._pore.left : bases_B.size - self._pore.right], starts_B * factor

    def _window(self, count: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Return bases of a genome from a random place and strand; unknown bases are replaced by random ones."""
        genome_B = self._genomes[rng.choice(len(self._genomes), p=self._genome_odds / self._genome_odds.sum())]
        first = int(rng.integers(0, genome_B.size - count))
        window_B = genome_B[first : first + count]
        if rng.random() < 0.5:
            window_B = reverse_complement(window_B)
        return np.where(window_B == UNKNOWN, rng.integers(0, 4, count, np.uint8), window_B)


class RealChunks:
    """Random crops of real reads, with augmentation: speed, the dwell of every base, and noise.

    Parameters
    ----------
    reads
        Prepared reads; each is chosen with a probability proportional to its number of bases.
    samples
        Length of a chunk.
    state_len
        The network's state length.

    Raises
    ------
    ValueError
        No read is long enough.
    """

    def __init__(self, reads: Sequence[TrainingRead], samples: int, state_len: int) -> None:
        self._state_len = state_len
        self._reads = [(normalise(read.signal_pa_S), read) for read in reads]
        self._odds = np.array([read.bases_B.size for read in reads], float)
        self._samples = 0
        self.set_samples(samples)

    def set_samples(self, samples: int) -> None:
        """Give chunks of another length from now on."""
        if samples == self._samples:
            return
        self._samples = samples
        longest = max(
            ((read.starts_B[-1] - read.starts_B[0]) * MODEL_RATE_HZ / read.sample_rate_hz for _, read in self._reads),
            default=0.0,
        )
        if longest < 2 * samples:
            raise ValueError(
                f"no read is long enough for chunks of {samples} samples: the longest has {longest:.0f} (at "
                f"{MODEL_RATE_HZ:g} Hz), and {2 * samples} are needed"
            )

    def take(self, count: int, rng: np.random.Generator, augment: bool = True) -> list[Chunk]:
        """Return crops; all randomness comes from `rng`."""
        chunks: list[Chunk] = []
        while len(chunks) < count:
            signal_S, read = self._reads[rng.choice(len(self._reads), p=self._odds / self._odds.sum())]
            factor = MODEL_RATE_HZ / read.sample_rate_hz
            dwell_B = np.diff(read.starts_B) * factor
            if augment:
                dwell_B *= rng.uniform(*_SPEED_RANGE) * np.exp(_WARP_LOG_SD * rng.standard_normal(dwell_B.size))
            starts_B = np.concatenate(([0.0], np.cumsum(dwell_B)))
            last = int(starts_B[-1]) - self._samples
            if last <= 0:
                continue
            at = int(rng.integers(last))
            measured_S = np.interp(at + np.arange(self._samples), starts_B, read.starts_B)
            low = int(measured_S[0])
            near_S = signal_S[low : int(measured_S[-1]) + 2]
            crop_S = np.interp(measured_S - low, np.arange(near_S.size), near_S).astype(np.float32)
            if augment:
                noise = np.float32(rng.uniform(0, _MAX_ADDED_NOISE))
                crop_S += noise * rng.standard_normal(crop_S.size, np.float32)
            starts_B -= at
            chunk = cut_chunk(crop_S, read.bases_B, starts_B, 0, self._samples, self._state_len)
            if chunk is not None:
                chunks.append(chunk)
        return chunks


def collate(
    chunks: Sequence[Chunk], rng: np.random.Generator | None = None
) -> tuple[torch.Tensor, npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Make a batch: signal_NS (float32), and targets_NP and positions_NT for `crf_loss`.

    With `rng`, each row's gain and offset vary a little.
    """
    signal_NS = np.stack([chunk.signal_S for chunk in chunks])
    if rng is not None:
        gain_N1, offset_N1 = rng.standard_normal((2, len(chunks), 1), np.float32)
        signal_NS = signal_NS * (1 + np.float32(_GAIN_SD) * gain_N1) + np.float32(_OFFSET_SD) * offset_N1
    targets_NP = np.zeros((len(chunks), max(chunk.target_P.size for chunk in chunks)), np.uint8)
    for row, chunk in enumerate(chunks):
        targets_NP[row, : chunk.target_P.size] = chunk.target_P
    return torch.from_numpy(signal_NS), targets_NP, np.stack([chunk.positions_T for chunk in chunks])
