"""Reads for the training's tests."""

from collections.abc import Callable

import numpy as np
import pytest

from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.sequence import random_bases
from porestream.models.simulate.signal import SignalNoise, simulate_signal, to_picoampere
from porestream.models.train.arrays import TrainingRead

MakeRead = Callable[..., TrainingRead]


@pytest.fixture(scope="session")
def pore() -> PoreModel:
    """The pore model that ships."""
    return PoreModel.load()


@pytest.fixture(scope="session")
def simulated_read(pore: PoreModel) -> MakeRead:
    """`simulated_read(seed, bases=900, rate_hz=4000.0)`: a read whose starts are the truth."""

    def make(seed: int, bases: int = 900, rate_hz: float = 4000.0) -> TrainingRead:
        rng = np.random.default_rng(seed)
        bases_B = random_bases(bases, rng)
        current_S, starts_B = simulate_signal(bases_B, pore, rng, SignalNoise(), rate_hz)
        inner_B = bases_B[pore.left : bases_B.size - pore.right]
        return TrainingRead(
            read_id=f"read{seed}",
            signal_pa_S=to_picoampere(current_S, rng),
            bases_B=inner_B,
            starts_B=starts_B,
            sample_rate_hz=rate_hz,
        )

    return make
