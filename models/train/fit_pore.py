"""Fits a pore model to real reads: learns from a wider context what the 9-mer table misses.

This is hard expectation-maximisation. Forced alignment to the current levels finds which samples belong to which base;
then a small network learns the levels, spreads and dwells of those events from 12 bases before and 10 after; and so on.
The 9-mer means stay unchanged.

Dimensions: B bases (events), I inputs (4 per place of the context, and the 9-mer's mean), O outputs (3), S samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from porestream.models.simulate.pore import PoreModel, kmer_index
from porestream.models.train.align import F32, F64, I64, LeftOut, align, each_aligned, event_moments
from porestream.models.train.arrays import ReadSet, TrainingRead
from porestream.models.train.statistics import robust_sd

_BATCH_EVENTS = 512
_PEAK_RATE, _WEIGHT_DECAY, _DROPOUT = 3e-3, 0.03, 0.1
_LEVEL_WEIGHT, _SPREAD_WEIGHT, _DWELL_WEIGHT = 30.0, 0.1, 0.1
_LEVEL_HUBER = 0.08  # table units: beyond this, an event is more likely misaligned than informative
_MAX_LEVEL_CHANGE = 0.8  # table units
_MIN_SD, _MIN_DWELL = 0.02, 0.7
_SPREAD_EVENT_SAMPLES, _LONG_EVENT_SAMPLES = 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """Robust sd (table units) of held-out reads' long events around the predicted levels.

    Attributes
    ----------
    round
        Round number, starting at 1.
    table, context
        Residual with the 9-mer table alone, and with the fitted context.
    dwell_explained
        Share of the variance of log dwell that the context explains.
    """

    round: int
    table: float
    context: float
    dwell_explained: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Events:
    """Events of some reads: inputs, median and sd in table units, number of samples, and the 9-mer's mean."""

    inputs_BI: F32
    medians_B: F64
    sds_B: F64
    counts_B: I64
    kmer_means_B: F32


def fit_pore(
    reads: ReadSet,
    start: PoreModel,
    rounds: int = 5,
    epochs: int = 12,
    width: int = 160,
    seed: int = 0,
    report: Callable[[Residuals], None] = lambda residuals: None,
    left_out: LeftOut = lambda read_id, error: None,
) -> tuple[PoreModel, ReadSet]:
    """Fit a pore model, and realign the reads to it.

    Parameters
    ----------
    reads
        Prepared reads; nothing is learned from those for validation.
    start
        Provides the 9-mer means and the first alignment.
    rounds, epochs
        Number of alignments and fits; passes over the events in each fit (twice as many in the last).
    width
        Width of the network's two hidden layers.
    seed
        Seed of the network's initial weights and of the order of events.
    report
        Called with the residuals of each round.
    left_out
        Called for each read that cannot be aligned, in every round and at the end.

    Returns
    -------
    tuple
        The pore model, and the reads with new starts, without those that cannot be aligned to it.

    Raises
    ------
    ValueError
        None of the reads to learn from, or none of those for validation, can be aligned.
    """
    pore = start
    for number in range(1, rounds + 1):
        events = _events(reads.training, pore, left_out)
        held_out = _events(reads.validation, pore, left_out)
        network = _fit(events, epochs * (2 if number == rounds else 1), width, seed + number)
        pore = PoreModel(start.kmer_means_K, _layers(network))
        report(_residuals(number, network, held_out))
    training, validation = (_realigned(part, pore, left_out) for part in (reads.training, reads.validation))
    return pore, ReadSet(training, validation)


def _realigned(reads: Sequence[TrainingRead], pore: PoreModel, left_out: LeftOut) -> list[TrainingRead]:
    """Realign the bases of the reads, except the outermost ones, whose neighbours are unknown."""
    moved = []
    for read, inner in each_aligned(reads, lambda read: _align_inner(read, pore), left_out):
        starts_B = read.starts_B.copy()
        starts_B[pore.left : starts_B.size - pore.right] = inner.starts_B
        moved.append(replace(read, starts_B=np.maximum.accumulate(starts_B)))
    return moved


@dataclass(frozen=True, slots=True)
class _Inner:
    """A read's aligned inner bases: their starts in the read, and the signal in table units from the first one on."""

    starts_B: I64
    units_S: F32


def _align_inner(read: TrainingRead, pore: PoreModel) -> _Inner:
    stop = read.bases_B.size - pore.right
    end_sample = int(read.starts_B[stop])
    alignment = align(
        read.signal_pa_S, read.starts_B[pore.left : stop], end_sample, pore.levels(read.bases_B).mean_B, rounds=2
    )
    part_S = read.signal_pa_S[int(alignment.starts_B[0]) : end_sample]
    return _Inner(alignment.starts_B, ((part_S - alignment.offset) / alignment.gain).astype(np.float32))


def _events(reads: Sequence[TrainingRead], pore: PoreModel, left_out: LeftOut) -> _Events:
    parts = []
    for read, inner in each_aligned(reads, lambda read: _align_inner(read, pore), left_out):
        moments = event_moments(inner.units_S, inner.starts_B - inner.starts_B[0], inner.units_S.size)
        parts.append((*_inputs(read.bases_B, pore), *moments))
    inputs_BI, kmer_means_B, medians_B, sds_B, counts_B = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Events(inputs_BI=inputs_BI, medians_B=medians_B, sds_B=sds_B, counts_B=counts_B, kmer_means_B=kmer_means_B)


def _inputs(bases_B: npt.NDArray[np.uint8], pore: PoreModel) -> tuple[F32, F32]:
    """Return the network's inputs for ``bases_B[left:-right]``, as PoreModel defines them, and the 9-mers' means."""
    context_BP = np.lib.stride_tricks.sliding_window_view(bases_B, pore.left + 1 + pore.right)
    means_B = pore.kmer_means_K[kmer_index(bases_B)]
    one_hot_BI = np.eye(4, dtype=np.float32)[context_BP].reshape(len(context_BP), -1)
    return np.concatenate([one_hot_BI, means_B[:, None]], axis=1), means_B


def _targets(events: _Events) -> torch.Tensor:
    """Return the targets (B, 3): level minus the 9-mer's mean, log sd, log dwell."""
    changes_B = np.clip(events.medians_B - events.kmer_means_B, -_MAX_LEVEL_CHANGE, _MAX_LEVEL_CHANGE)
    log_sds_B = np.log(np.maximum(events.sds_B, _MIN_SD))
    log_dwells_B = np.log(np.maximum(events.counts_B, _MIN_DWELL))
    return torch.from_numpy(np.stack([changes_B, log_sds_B, log_dwells_B], axis=1).astype(np.float32))


def _fit(events: _Events, epochs: int, width: int, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    inputs_BI, targets_BO = torch.from_numpy(events.inputs_BI), _targets(events)
    counts_B = torch.from_numpy(events.counts_B.astype(np.float32))
    trust_B = counts_B / (counts_B + 3.0)  # the median of few samples is uncertain
    spread_known_B = (counts_B >= _SPREAD_EVENT_SAMPLES).float()
    with torch.random.fork_rng(devices=[]):  # dropout has no generator of its own
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(inputs_BI.shape[1], width), nn.SiLU(), nn.Dropout(_DROPOUT),
            nn.Linear(width, width), nn.SiLU(), nn.Dropout(_DROPOUT),
            nn.Linear(width, 3),
        )  # fmt: skip
        with torch.no_grad():
            network[-1].bias.copy_(targets_BO.mean(0))  # type: ignore[operator]
        optimizer = torch.optim.AdamW(network.parameters(), _PEAK_RATE, weight_decay=_WEIGHT_DECAY)
        batches = max(1, len(inputs_BI) // _BATCH_EVENTS)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, epochs * batches + 1)
        for _ in range(epochs):
            order = torch.randperm(len(inputs_BI), generator=generator)
            for batch in order.tensor_split(batches):
                output_BO, target_BO = network(inputs_BI[batch]), targets_BO[batch]
                level_B, spread_B = (
                    functional.huber_loss(output_BO[:, o], target_BO[:, o], reduction="none", delta=delta)
                    for o, delta in ((0, _LEVEL_HUBER), (1, 1.0))
                )
                loss = (
                    _LEVEL_WEIGHT * (trust_B[batch] * level_B).mean()
                    + _SPREAD_WEIGHT * (spread_known_B[batch] * spread_B).mean()
                    + _DWELL_WEIGHT * functional.mse_loss(output_BO[:, 2], target_BO[:, 2])
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return network.eval()


def _layers(network: nn.Sequential) -> list[tuple[F32, F32]]:
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    return [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in linear]


def _residuals(number: int, network: nn.Sequential, events: _Events) -> Residuals:
    with torch.inference_mode():
        output_BO = network(torch.from_numpy(events.inputs_BI)).numpy()
    long_B = events.counts_B >= _LONG_EVENT_SAMPLES
    residuals_B = events.medians_B - events.kmer_means_B
    log_dwells_B = _targets(events)[:, 2].numpy()
    unexplained = np.mean((log_dwells_B - output_BO[:, 2]) ** 2) / np.var(log_dwells_B)
    return Residuals(
        round=number,
        table=robust_sd(residuals_B[long_B]),
        context=robust_sd((residuals_B - output_BO[:, 0])[long_B]),
        dwell_explained=float(1 - unexplained),
    )
