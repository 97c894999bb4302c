"""One of the trainer's processes, which learn from their own chunks and share their gradients.

Every process simulates, computes the loss and gradient of its rows, and sums gradients with the others over gloo, so
all of them take the same step. On CPUs there is one process per core. With CUDA, the network runs on the GPUs; the
processes share them and keep them busy with data. The loss stays on the CPU (numba).

Dimensions: N rows, S samples.
"""

import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path

import mappy
import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from porestream.models.call.host import bf16_is_faster
from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.sequence import encode
from porestream.models.simulate.signal import SignalNoise
from porestream.models.train.arrays import ReadSet, load_reads
from porestream.models.train.crf_loss import crf_loss
from porestream.models.train.data import HALF_BAND, Chunk, Place, RealChunks, SimulatedChunks, collate
from porestream.models.train.muon import Muon
from porestream.models.train.network import TrainableNetwork
from porestream.models.train.schedule import Schedule
from porestream.models.train.state import DATA, Progress, TrainingState

STATE_NAME, LOG_NAME = "state.pt", "log.jsonl"
VALIDATION_SAMPLES = 3000
"""Length of the validation chunks."""

_NARROW_BAND, _NARROW_STEPS = 3, 300  # at first, paths far from the alignment only blur the gradient
_MAX_NORM = 2.0
_MEAN_RATE = 0.002  # of the running mean of the weights, which covers about the last 500 steps
_MAX_SKIPPED = 20
_LOG_EVERY_STEPS = 50
_VALIDATION_CHUNKS, _VALIDATION_SEED = 32, 424242


class TrainingDiverged(RuntimeError):
    """Too many gradients in a row were infinite or undefined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What to train, on which data, and for how long; lengths in samples. See the options of the `train` command."""

    out: Path
    reads: Path | None = None
    pore: Path | None = None
    genomes: tuple[Path, ...] = ()
    resume: Path | None = None
    samples: float | None = None
    minutes: float | None = None
    rate: float = 5e-3
    warm_up_steps: int = 200
    anneal: float = 0.3
    batch: int = 32
    chunk_samples: tuple[int, ...] = (1800, 1800, 2400, 3000)
    real_share: float = 0.15
    genome_share: float = 0.25
    workers: int = 2
    seed: int = 1
    device: str = "auto"
    width: int = 96
    state_len: int = 3
    validate_every_steps: int = 500
    save_every_s: float = 240.0
    snapshot_every_samples: float | None = None


class Worker:
    """The state of the training in this process, and its steps.

    Parameters
    ----------
    rank
        Which of `settings.workers` processes this is; with more than one, torch.distributed must be initialised.
    settings
        Settings of the run.

    Raises
    ------
    ValueError
        A file can't be used, or the device doesn't exist.
    """

    def __init__(self, rank: int, settings: TrainSettings) -> None:
        self._rank, self._settings = rank, settings
        self._device = device_of(settings.device, rank)
        self._bf16 = self._device.type == "cuda" or bf16_is_faster()
        self._progress, self._loss, places, begun = Progress(), None, list[Place](), Progress()
        self._inputs = inputs_of(settings)
        torch.manual_seed(settings.seed)
        if settings.resume is None:
            self._network = TrainableNetwork(settings.width, settings.state_len)
            self._network.initialise()
            self._mean = copy.deepcopy(self._network)
            self._optimizer = Muon(self._network.to(self._device))
        else:
            state = TrainingState.load(settings.resume)
            self._network = TrainableNetwork.of_weights(state.net)
            self._mean = TrainableNetwork.of_weights(state.mean)
            self._optimizer = Muon(self._network.to(self._device))
            self._optimizer.load_state_dict(state.opt)
            self._progress, self._loss, places = state.progress, state.loss, state.places
            self._inputs = tuple(dict.fromkeys((*state.inputs, *self._inputs)))
            if not self._progress.steps and self._progress.seen:  # a state that has no step count
                steps = self._progress.seen // (settings.workers * settings.batch * settings.chunk_samples[0])
                self._progress = Progress(self._progress.seen, self._progress.seconds, steps)
            begun = self._progress if state.begun is None else state.begun
        self._mean.to(self._device)
        self._schedule = Schedule(
            rate=settings.rate,
            samples=settings.samples,
            minutes=settings.minutes,
            warm_up_steps=settings.warm_up_steps,
            anneal=settings.anneal,
            chunk_samples=settings.chunk_samples,
            begun=begun,
        )
        samples = self._schedule.chunk_samples_at(self._schedule.done(self._progress))
        state_len = self._network.state_len
        self._pore = PoreModel.load(settings.pore)
        self._genomes = [encode(text) for path in settings.genomes for _, text, _ in mappy.fastx_read(str(path))]
        place = places[rank] if rank < len(places) else None
        self._simulated = self._simulated_chunks(samples, (settings.seed, rank), place)
        reads = None if settings.reads is None else load_reads(settings.reads)
        self._real = RealChunks(reads.training, samples, state_len) if reads else None
        self._validation = self._validation_chunks(reads) if rank == 0 else {}
        self._began_s, self._past_s = time.monotonic(), self._progress.seconds
        self._first_seen, self._saved_s, self._skipped = self._progress.seen, self._began_s, 0

    def _simulated_chunks(self, samples: int, seed: tuple[int, ...], place: Place | None = None) -> SimulatedChunks:
        share, state_len = self._settings.genome_share, self._network.state_len
        return SimulatedChunks(self._pore, SignalNoise(), self._genomes, share, samples, state_len, seed, place)

    def _validation_chunks(self, reads: ReadSet | None) -> dict[str, list[Chunk]]:
        """Return the chunks by the name of their loss in the log."""
        chunks = {"valid_sim": self._simulated_chunks(VALIDATION_SAMPLES, (_VALIDATION_SEED,)).take(_VALIDATION_CHUNKS)}
        if reads and reads.validation:
            real = RealChunks(reads.validation, VALIDATION_SAMPLES, self._network.state_len)
            rng = np.random.default_rng(_VALIDATION_SEED)
            chunks["valid_real"] = real.take(_VALIDATION_CHUNKS, rng, augment=False)
        return chunks

    def step(self, stopped: bool) -> bool:
        """Update the weights once; if the run is over or a process was stopped, save the state and return False."""
        now_s = time.monotonic()
        seconds = self._past_s + now_s - self._began_s
        self._progress = Progress(self._progress.seen, seconds, self._progress.steps)
        # Only rank 0's clock counts, so that all processes do the same.
        mine = [self._schedule.done(self._progress), now_s - self._saved_s > self._settings.save_every_s]
        done, save, stop = self._largest([*(mine if self._rank == 0 else (0.0, 0.0)), stopped])
        if stop or save or done >= 1:
            self._save(ended=done >= 1)
        if stop or done >= 1:
            return False

        settings, steps = self._settings, self._progress.steps
        samples = self._schedule.chunk_samples_at(done)
        self._simulated.set_samples(samples)
        # The step number determines everything random in a step, so a resumed run equals an uninterrupted one.
        rng = np.random.default_rng([settings.seed, self._rank, steps, 1])
        chunks: list[Chunk] = []
        if self._real:
            self._real.set_samples(samples)
            chunks = self._real.take(int(rng.binomial(settings.batch, settings.real_share)), rng)
        chunks += self._simulated.take(settings.batch - len(chunks))
        self._network.zero_grad(set_to_none=False)
        loss = self._loss_of(self._network, chunks, _NARROW_BAND if steps < _NARROW_STEPS else HALF_BAND, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        mean_loss, norm = self._share_gradients(loss)
        rate = self._schedule.rate_at(done, steps)
        if np.isfinite(norm):
            self._skipped = 0
            self._optimizer.step(rate)
            self._loss = mean_loss if self._loss is None else 0.98 * self._loss + 0.02 * mean_loss
        else:
            self._skipped += 1
            if self._skipped > _MAX_SKIPPED:
                raise TrainingDiverged(f"{self._skipped} gradients in a row are not finite: try a rate below {rate:g}")
        with torch.no_grad():
            for mean, weight in zip(self._mean.parameters(), self._network.parameters(), strict=True):
                mean.lerp_(weight, max(_MEAN_RATE, 1 / (steps + 1)))
        before = self._progress.seen
        seen = before + settings.workers * settings.batch * samples
        self._progress = Progress(seen, seconds, steps + 1)
        if self._rank == 0:
            if (steps + 1) % _LOG_EVERY_STEPS == 0 or (steps + 1) % settings.validate_every_steps == 0:
                self._log(rate, norm)
            every = settings.snapshot_every_samples
            if every and seen // every > before // every:
                self._state([]).ended().save(settings.out / f"snapshot-{seen // 1_000_000:06d}M.pt")
        return True

    def _loss_of(
        self, network: nn.Module, chunks: list[Chunk], half: int, rng: np.random.Generator | None = None
    ) -> torch.Tensor:
        signal_NS, targets_NP, positions_NT = collate(chunks, rng)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            scores_TNC = network(signal_NS.to(self._device))
        return crf_loss(scores_TNC.float(), targets_NP, positions_NT, half)

    def _share_gradients(self, loss: torch.Tensor) -> tuple[float, float]:
        """Average gradients and loss over the processes; return the loss and the gradient's norm before clipping."""
        parameters = list(self._network.parameters())
        flat = torch.cat([*(p.grad.reshape(-1) for p in parameters if p.grad is not None), loss.detach().reshape(1)])
        if self._settings.workers > 1:
            flat = flat.cpu()
            dist.all_reduce(flat)
            flat = (flat / self._settings.workers).to(self._device)
            parts = torch.split(flat[:-1], [p.numel() for p in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
        norm = nn.utils.clip_grad_norm_(parameters, _MAX_NORM)
        return float(flat[-1]), float(norm)

    def _largest(self, values: list[float]) -> list[float]:
        """Return the largest of each value over all processes."""
        tensor = torch.tensor(values, dtype=torch.float64)
        if self._settings.workers > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [float(value) for value in tensor]

    def _log(self, rate: float, norm: float) -> None:
        progress = self._progress
        elapsed_s = time.monotonic() - self._began_s
        row = {
            "step": progress.steps,
            "seconds": round(progress.seconds, 1),
            "seen": progress.seen,
            "loss": self._loss,
            "lr": rate,
            "samples_per_s": round((progress.seen - self._first_seen) / elapsed_s),
            "norm": norm,
        }
        if progress.steps % self._settings.validate_every_steps == 0:
            with torch.no_grad():
                row |= {
                    name: self._loss_of(self._mean, chunks, HALF_BAND).item()
                    for name, chunks in self._validation.items()
                }
        with (self._settings.out / LOG_NAME).open("a") as file:
            file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}) + "\n")

    def _save(self, ended: bool) -> None:
        """Save the state. All processes must call this, to collect the places of their streams; rank 0 writes."""
        place = self._simulated.place
        here = torch.tensor([place.block, place.taken, place.samples])
        places = [here.clone() for _ in range(self._settings.workers)]
        if self._settings.workers > 1:
            dist.all_gather(places, here)
        if self._rank == 0:
            state = self._state([Place(*map(int, numbers)) for numbers in places])
            (state.ended() if ended else state).save(self._settings.out / STATE_NAME)
        self._saved_s = time.monotonic()

    def _state(self, places: list[Place]) -> TrainingState:
        return TrainingState(
            net=self._network.state_dict(),
            mean=self._mean.state_dict(),
            opt=self._optimizer.state_dict(),
            progress=self._progress,
            begun=self._schedule.begun,
            loss=self._loss,
            places=places,
            inputs=self._inputs,
        )


def inputs_of(settings: TrainSettings) -> tuple[str, ...]:
    """Return what a run learns from, one line each."""
    pore = DATA[0] if settings.pore is None else f"Simulated reads: the pore model {settings.pore.name}"
    genomes = [f"Simulated reads: windows of the genome {path.name}" for path in settings.genomes]
    reads = [] if settings.reads is None else [f"Real reads: {settings.reads.name}"]
    return (pore, *(genomes if settings.genome_share > 0 else ()), *(reads if settings.real_share > 0 else ()))


def device_of(name: str, rank: int) -> torch.device:
    """Return the device of a process: "auto" is CUDA if there is a GPU; several GPUs are assigned by rank.

    Raises
    ------
    ValueError
        The name is "cuda", and torch finds no GPU.
    """
    found = torch.cuda.device_count()
    if name == "cuda" and not found:
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu, or a CUDA build of torch")
    return torch.device("cuda", rank % found) if found and name != "cpu" else torch.device("cpu")
