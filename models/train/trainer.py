"""The trainer: starts the processes, passes signals on, and leaves a state from which a run can continue."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.reference import Reference
from porestream.models.train.arrays import load_reads
from porestream.models.train.data import GENOME_BASES, RealChunks
from porestream.models.train.network import TrainableNetwork
from porestream.models.train.state import TrainingState
from porestream.models.train.worker import STATE_NAME, VALIDATION_SAMPLES, TrainSettings, Worker, device_of

_MALLOC = {"MMAP_THRESHOLD_": 1 << 30, "TRIM_THRESHOLD_": 1 << 33, "TOP_PAD_": 1 << 28}


def train(settings: TrainSettings) -> TrainingState:
    """Run the workers to the end, or until SIGTERM or Ctrl-C, and return the state that they left in `out`.

    If the run was stopped, its state has `begun`.

    Raises
    ------
    ValueError
        A file or the device can't be used, or the folder holds another run's state.
    RuntimeError
        The run was stopped before the first step, or a worker failed.
    """
    state_path = settings.out / STATE_NAME
    if state_path.exists() and (settings.resume is None or not settings.resume.samefile(state_path)):
        raise ValueError(f"{state_path} is there already: go on with --resume {state_path}, or choose another folder")
    _check(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    # By default glibc returns every large buffer to the kernel at once; keeping them makes training 1.4 times faster.
    for name, size in _MALLOC.items():
        os.environ.setdefault(f"MALLOC_{name}", str(size))
    stopping = False
    with tempfile.TemporaryDirectory(prefix="porestream-train-") as meeting:
        arguments = (settings, f"file://{meeting}/rendezvous")
        workers = spawn(_worker_process, arguments, settings.workers, join=False)  # type: ignore[no-untyped-call]

        def stop(*_: object) -> None:
            nonlocal stopping
            stopping = True
            for process in workers.processes:
                process.terminate()

        with _handlers(stop):
            try:
                while not workers.join():
                    pass
            except ProcessExitedException as error:
                if stopping and not state_path.exists():  # before it could handle the signal
                    raise RuntimeError("stopped before the first step: there is nothing to resume") from error
                raise RuntimeError(f"a worker failed: {error}") from error
            except ProcessRaisedException as error:
                raise RuntimeError(f"a worker failed: {str(error).strip().splitlines()[-1]}") from error
    return TrainingState.load(state_path)


def _check(settings: TrainSettings) -> None:
    """Check files and device once, before the workers start."""
    device_of(settings.device, 0)
    if settings.resume is not None:
        TrainableNetwork.of_weights(TrainingState.load(settings.resume).net)
    PoreModel.load(settings.pore)
    for path in settings.genomes:
        Reference.load(path, GENOME_BASES)
    if settings.reads is not None:
        reads = load_reads(settings.reads)
        try:
            RealChunks(reads.training, max(settings.chunk_samples), settings.state_len)
            if reads.validation:
                RealChunks(reads.validation, VALIDATION_SAMPLES, settings.state_len)
        except ValueError as error:
            raise ValueError(f"{settings.reads}: {error}") from error


def run_worker(rank: int, settings: TrainSettings, rendezvous: str = "") -> None:
    """Run one process of a run; with one worker, it is the only one."""
    torch.set_num_threads(1)
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    with _handlers(stop):
        if settings.workers > 1:
            dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=settings.workers)
        try:
            worker = Worker(rank, settings)
            while worker.step(stopped):
                pass
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _worker_process(rank: int, settings: TrainSettings, rendezvous: str) -> None:
    run_worker(rank, settings, rendezvous)
    # gloo's threads may outlive its group, and a thread that needs Python during its shutdown aborts the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextlib.contextmanager
def _handlers(stop: Any) -> Iterator[None]:
    """Make SIGTERM and Ctrl-C call `stop` instead of ending the process."""
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
