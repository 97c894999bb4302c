"""Fixtures of the simulator's tests."""

from collections.abc import Iterator

import pytest
import torch

from porestream.models.simulate.pore import PoreModel


@pytest.fixture(scope="session")
def pore() -> PoreModel:
    return PoreModel.load()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several threads, much slower where others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
