"""Simulated signal is like real signal, and the fit of the pore model finds what a table misses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.signal import SignalNoise
from porestream.models.train.arrays import ReadSet, TrainingRead
from porestream.models.train.fit_pore import Residuals, fit_pore
from porestream.models.train.prepare import prepare_reads
from porestream.models.train.statistics import (
    SignalStatistics,
    comparison,
    real_statistics,
    robust_sd,
    simulated_statistics,
)

MakeRead = Callable[..., TrainingRead]

# Real and simulated may differ by this factor, either way. Two simulations of eight reads differ by up to 1.1.
TOLERANCES = {
    "level_sd": 1.05,
    "event_residual_sd": 1.25,
    "sample_residual_sd": 1.25,
    "sample_residual_robust_sd": 1.25,
    "within_sd": 1.2,
    "single_sample_share": 1.4,
    "mean_dwell_samples": 1.15,
}


def differences(real: SignalStatistics, simulated: SignalStatistics) -> list[str]:
    """What is out of tolerance."""
    found = []
    for name, factor in TOLERANCES.items():
        a, b = getattr(real, name), getattr(simulated, name)
        if not 1 / factor < b / a < factor:
            found.append(name)
    # Dwell quantiles are whole samples: one of 5% or 25% may be the next.
    for a, b in zip(real.dwell_samples, simulated.dwell_samples, strict=True):
        if abs(a - b) > max(1.0, 0.2 * a):
            found.append("dwell_samples")
    for a, b in zip(real.autocorrelation, simulated.autocorrelation, strict=True):
        if abs(a - b) > 0.08:
            found.append("autocorrelation")
    return found


@pytest.fixture(scope="module")
def real_reads(shared_data: Path, pore: PoreModel) -> list[TrainingRead]:
    """Eight of the reads that the pore model was fitted to, and the five that it was not."""
    folder = shared_data / "human_r1041_4khz"
    found = prepare_reads([folder / "reads.pod5"], folder / "calls.bam", pore)
    reads = sorted((read for read in found if isinstance(read, TrainingRead)), key=lambda read: read.read_id)
    return reads[:8] + reads[-5:]


def test_simulated_signal_is_like_real_signal(real_reads: list[TrainingRead], pore: PoreModel) -> None:
    real = real_statistics(real_reads, pore)
    simulated = simulated_statistics(real_reads, pore, SignalNoise())
    assert differences(real, simulated) == [], comparison(real, simulated)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"event_sd_units": 0.096}, "event_residual_sd"),  # the first simulator's: all that a 9-mer table misses
        ({"sample_sd_factor": 1.3}, "within_sd"),
        ({"dwell_log_sd": 1.2}, "dwell_samples"),
        ({"correlated_share": 0.0}, "autocorrelation"),
        ({"speed_bases_per_s": 260.0}, "mean_dwell_samples"),
    ],
)
def test_a_worse_simulator_would_be_noticed(
    real_reads: list[TrainingRead], pore: PoreModel, wrong: dict[str, float], what: str
) -> None:
    real = real_statistics(real_reads[:4], pore)
    assert what in differences(real, simulated_statistics(real_reads[:4], pore, replace(SignalNoise(), **wrong)))


def test_statistics_of_a_known_signal(simulated_read: MakeRead, pore: PoreModel) -> None:
    """Without noise, all that remains is where samples straddle bases."""
    read = simulated_read(2, bases=2000)
    still = replace(
        SignalNoise(),
        event_sd_units=0.0,
        sample_sd_factor=1e-3,
        wander_sd_units=0.0,
        drift_sd_units=0.0,
        spike_share=0.0,
        stall_share=0.0,
        speed_sd=0.0,
    )
    found = simulated_statistics([read], pore, still, level_error_units=0.0, label_error_share=0.0)
    wrong = simulated_statistics([read], pore, still, level_error_units=0.05, label_error_share=0.0)
    assert found.event_residual_sd < 0.01
    assert wrong.event_residual_sd == pytest.approx(0.05, rel=0.1)
    assert found.within_sd < 0.06
    assert found.mean_dwell_samples == pytest.approx(4000 / 392, rel=0.1)
    assert "event residual, robust sd" in comparison(found, found)
    assert robust_sd(np.random.default_rng(1).normal(3, 2, 100_000)) == pytest.approx(2, rel=0.02)


def test_a_read_that_cannot_be_aligned_is_told_and_left_out(simulated_read: MakeRead, pore: PoreModel) -> None:
    good = [simulated_read(seed) for seed in (1, 2, 3)]
    bad = replace(simulated_read(4), read_id="bad", signal_pa_S=-simulated_read(4).signal_pa_S)
    told: list[tuple[str, str]] = []

    def left_out(read_id: str, error: Exception) -> None:
        told.append((read_id, str(error)))

    assert real_statistics([good[0], bad, good[1]], pore, left_out) == real_statistics(good[:2], pore)
    assert [read_id for read_id, _ in told] == ["bad"]
    assert "do not rise with the pore model's" in told[0][1]
    _, realigned = fit_pore(ReadSet([*good[:2], bad], good[2:]), pore, rounds=1, epochs=1, width=8, left_out=left_out)
    assert [read_id for read_id, _ in told[1:]] == ["bad", "bad"]  # in the round, and realigning
    assert [read.read_id for read in realigned.training] == ["read1", "read2"]
    with pytest.raises(ValueError, match="no read is left that can be aligned"):
        real_statistics([bad], pore)


def test_the_fit_explains_what_the_table_does_not(simulated_read: MakeRead, pore: PoreModel) -> None:
    """Reads simulated with the context's levels; the fit begins with the table alone and never sees them."""
    first_OI, first_bias_O = pore.layers[0]
    nothing = [(np.zeros_like(first_OI), np.zeros_like(first_bias_O))]
    nothing += [(np.zeros_like(weight_OI), np.zeros_like(bias_O)) for weight_OI, bias_O in pore.layers[1:]]
    table = PoreModel(pore.kmer_means_K, nothing)
    reads = ReadSet([simulated_read(seed, bases=3000) for seed in range(5)], [simulated_read(9, bases=3000)])
    told: list[Residuals] = []
    fitted, realigned = fit_pore(reads, table, rounds=2, epochs=4, width=64, report=told.append)
    assert [residuals.round for residuals in told] == [1, 2]
    assert told[-1].context < 0.9 * told[-1].table
    bases_B = reads.validation[0].bases_B
    true_B, table_B, fitted_B = (model.levels(bases_B).mean_B for model in (pore, table, fitted))
    assert np.mean((fitted_B - true_B) ** 2) < 0.75 * np.mean((table_B - true_B) ** 2)
    before, after = reads.validation[0].starts_B, realigned.validation[0].starts_B
    assert (np.diff(after) >= 0).all()
    assert np.mean(np.abs(after - before) <= 3) > 0.8  # it began with the true ones
