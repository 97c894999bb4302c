"""Training runs: they learn, go on exactly where they stopped, and survive SIGTERM."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from porestream.models.train import trainer
from porestream.models.train.__main__ import main
from porestream.models.train.arrays import ReadSet, TrainingRead, save_reads
from porestream.models.train.data import Place
from porestream.models.train.network import TrainableNetwork
from porestream.models.train.schedule import Schedule
from porestream.models.train.state import DATA, Progress, TrainingState
from porestream.models.train.trainer import run_worker
from porestream.models.train.worker import TrainSettings, device_of

BATCH, CHUNK = 8, 600
STEP_SAMPLES = BATCH * CHUNK


def settings(out: Path, steps: int, **changes: Any) -> TrainSettings:
    """A run of some steps of a tiny network, in this process."""
    out.mkdir(exist_ok=True)
    tiny = TrainSettings(
        out=out,
        samples=steps * STEP_SAMPLES,
        batch=BATCH,
        chunk_samples=(CHUNK,),
        workers=1,
        width=16,
        state_len=2,
        warm_up_steps=5,
        validate_every_steps=10_000,
        device="cpu",
    )
    return replace(tiny, **changes)


@pytest.fixture(scope="module")
def prepared(simulated_read: Callable[..., TrainingRead], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training arrays of three simulated reads at 4 kHz, one of them for validation."""
    reads = [simulated_read(seed) for seed in range(3)]
    path = tmp_path_factory.mktemp("arrays") / "reads.npz"
    save_reads(path, ReadSet(reads[:2], reads[2:]))
    return path


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_logs(tmp_path: Path, prepared: Path) -> None:
    run_worker(0, settings(tmp_path, 120, reads=prepared, validate_every_steps=60, rate=2e-2))
    log = rows(tmp_path)
    assert [row["step"] for row in log] == [50, 60, 100, 120]
    assert [row["seen"] for row in log] == [step * STEP_SAMPLES for step in (50, 60, 100, 120)]
    assert log[-1]["loss"] < log[0]["loss"] - 0.05  # with a rate of zero it falls by 0.02
    assert "valid_sim" not in log[0]
    for name in ("valid_sim", "valid_real"):
        assert log[3][name] < log[1][name]
    assert log[-1]["lr"] < 1e-3 < log[0]["lr"]
    state = TrainingState.load(tmp_path / "state.pt")
    assert state.begun is None  # it has ended
    assert state.progress.seen == 120 * STEP_SAMPLES


@pytest.mark.parametrize(
    ("lengths", "stop", "steps"),
    [
        ((CHUNK,), 10, 24),
        ((CHUNK, 2 * CHUNK), 12, 18),  # just where the chunks' length changes: the next step would have the new one
    ],
)
def test_stopped_and_resumed_is_the_same_as_straight_on(
    tmp_path: Path, prepared: Path, lengths: tuple[int, ...], stop: int, steps: int
) -> None:
    """The length of the run is in samples, so that no clock is in it: as many as 24 steps of short chunks have."""
    run_worker(0, settings(tmp_path / "straight", 24, reads=prepared, chunk_samples=lengths))
    first = settings(tmp_path / "stopped", 24, reads=prepared, chunk_samples=lengths)
    worker_steps(first, stop)
    middle = TrainingState.load(tmp_path / "stopped" / "state.pt")
    assert middle.progress == replace(middle.progress, steps=stop, seen=stop * STEP_SAMPLES)
    assert [place.samples for place in middle.places] == [CHUNK]
    assert middle.begun == Progress()
    run_worker(0, replace(first, resume=tmp_path / "stopped" / "state.pt"))
    straight, resumed = (TrainingState.load(tmp_path / name / "state.pt") for name in ("straight", "stopped"))
    assert resumed.progress.steps == straight.progress.steps == steps
    assert resumed.places == straight.places
    assert resumed.loss == straight.loss
    for name, weight in straight.net.items():
        assert torch.equal(resumed.net[name], weight), name
        assert torch.equal(resumed.mean[name], straight.mean[name]), name


def worker_steps(run: TrainSettings, steps: int) -> None:
    from porestream.models.train.worker import Worker

    worker = Worker(0, run)
    for _ in range(steps):
        assert worker.step(stopped=False)
    assert not worker.step(stopped=True)


def test_a_run_after_an_ended_one_has_a_schedule_of_its_own(tmp_path: Path) -> None:
    run_worker(0, settings(tmp_path, 4))
    run_worker(0, settings(tmp_path, 6, resume=tmp_path / "state.pt"))
    assert TrainingState.load(tmp_path / "state.pt").progress.steps == 10


def test_the_prototypes_states_are_taken(tmp_path: Path) -> None:
    """Only weights, their mean, the optimizer's state and two counters are in these."""
    worker_steps(settings(tmp_path, 10), 3)
    values = torch.load(tmp_path / "state.pt")
    old = {key: values[key] for key in ("net", "mean", "opt", "seen", "seconds")} | {"seen": 1_000_000}
    assert set(old["opt"]) == {"adam", "buf"}
    torch.save(old, tmp_path / "old.pt")
    run_worker(0, settings(tmp_path / "new", 2, resume=tmp_path / "old.pt", rate=1e-4))
    state = TrainingState.load(tmp_path / "new" / "state.pt")
    assert state.progress.seen == 1_000_000 + 2 * STEP_SAMPLES
    assert state.progress.steps == 1_000_000 // STEP_SAMPLES + 2
    # The running mean goes on slowly: it does not begin anew.
    for name, weight in state.mean.items():
        assert torch.linalg.norm(weight - old["mean"][name]) <= 0.02 * torch.linalg.norm(weight) + 1e-3, name


def test_places_without_a_chunk_length_are_taken(tmp_path: Path) -> None:
    """As states had them before the length was in them."""
    worker_steps(settings(tmp_path, 10), 3)
    values = torch.load(tmp_path / "state.pt")
    values["places"] = [{"block": 0, "taken": 24}]
    torch.save(values, tmp_path / "state.pt")
    assert TrainingState.load(tmp_path / "state.pt").places == [Place(0, 24)]
    worker_steps(settings(tmp_path, 10, resume=tmp_path / "state.pt"), 2)
    assert TrainingState.load(tmp_path / "state.pt").places == [Place(0, 40, CHUNK)]


def test_snapshots_are_states(tmp_path: Path) -> None:
    run_worker(0, settings(tmp_path, 5, snapshot_every_samples=2 * STEP_SAMPLES))
    assert len(list(tmp_path.glob("snapshot-*.pt"))) == 1  # named by the million: all five steps are in the first
    state = TrainingState.load(next(tmp_path.glob("snapshot-*.pt")))
    assert TrainableNetwork.of_weights(state.mean).width == 16
    assert state.progress.steps == 4


def test_sigterm_leaves_a_state_to_resume_from(tmp_path: Path) -> None:
    """Two processes, over the command line: their gradients are shared, and both stop."""
    command = [sys.executable, "-m", "porestream.models.train", "train", "--out", str(tmp_path), "--minutes", "10"]
    command += ["--workers", "2", "--batch", "8", "--chunk-samples", "600", "--width", "16", "--device", "cpu"]
    command += ["--validate-every", "1000000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as run:
        while not (tmp_path / "log.jsonl").exists() and run.poll() is None:
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM, said
    assert f"--resume {tmp_path / 'state.pt'}" in said
    state = TrainingState.load(tmp_path / "state.pt")
    assert state.progress.steps >= 50
    assert state.progress.seen == state.progress.steps * 2 * STEP_SAMPLES
    assert len(state.places) == 2
    assert state.begun == Progress()
    assert not (tmp_path / "state.pt.new").exists()
    resumed = settings(tmp_path / "on", 1, resume=tmp_path / "state.pt", samples=state.progress.seen + 1)
    run_worker(0, resumed)
    assert TrainingState.load(tmp_path / "on" / "state.pt").progress.steps == state.progress.steps + 1


def test_schedule() -> None:
    begun = Progress(seen=1000, seconds=60.0, steps=100)
    by_samples = Schedule(
        rate=1.0, samples=1000, minutes=None, warm_up_steps=10, anneal=0.4, chunk_samples=(60, 120), begun=begun
    )
    assert by_samples.done(Progress(seen=1500)) == 0.5
    assert [by_samples.rate_at(0.0, 100 + step) for step in (0, 4, 9, 50)] == [0.1, 0.5, 1.0, 1.0]
    assert [by_samples.rate_at(done, 500) for done in (0.6, 0.8, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert [by_samples.chunk_samples_at(done) for done in (0.0, 0.49, 0.5, 1.2)] == [60, 60, 120, 120]
    assert (
        Schedule(
            rate=1.0, samples=None, minutes=2.0, warm_up_steps=10, anneal=0.4, chunk_samples=(60,), begun=begun
        ).done(Progress(seconds=120.0))
        == 0.5
    )


def test_what_is_no_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"a\.pt: not a state file"):
        TrainingState.load(tmp_path / "a.pt")
    torch.save({"net": {}}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b\.pt: not a state file"):
        TrainingState.load(tmp_path / "b.pt")


def test_what_a_run_learned_from_is_in_its_state(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\n" + "ACGTTGCA" * 1000 + "\n")
    run_worker(0, settings(tmp_path / "first", 2, genomes=(tmp_path / "a.fa",)))
    windows = "Simulated reads: windows of the genome a.fa"
    assert TrainingState.load(tmp_path / "first" / "state.pt").inputs == (DATA[0], windows)
    run_worker(0, settings(tmp_path / "second", 2, resume=tmp_path / "first" / "state.pt", reads=prepared))
    assert TrainingState.load(tmp_path / "second" / "state.pt").inputs == (DATA[0], windows, "Real reads: reads.npz")


@pytest.mark.parametrize(
    ("option", "content", "said"),
    [
        ("--genome", b"no sequence here, me@example.org\n", r"x is not FASTA"),
        ("--genome", b">a\nACGT\n", r"x: the longest sequence has 4 bases, but the shortest read has 7001"),
        ("--pore", b"no", r"x is not a pore model"),
        ("--pore", b"", r"x is not a pore model"),
        ("--pore", b"PK\x03\x04", r"x is not a pore model"),
        ("--reads", b"PK\x03\x04", r"x: not training arrays"),
        ("--resume", b"no", r"x: not a state file"),
    ],
)
def test_files_are_looked_at_before_the_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, content: bytes, said: str
) -> None:
    monkeypatch.setattr(trainer, "spawn", None)
    (tmp_path / "x").write_bytes(content)
    arguments = ["train", "--out", str(tmp_path / "out"), "--samples", "1e6", option, str(tmp_path / "x")]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 1
    assert re.search(said, result.output), result.output


def test_reads_too_short_for_the_longest_chunks_are_refused_at_once(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(ValueError, match=r"reads\.npz: no read is long enough for chunks of 60000 samples"):
        trainer.train(settings(tmp_path, 4, reads=prepared, chunk_samples=(CHUNK, 60_000)))


@pytest.mark.parametrize(
    "options",
    [
        "--warm-up 0",
        "--real-share 1.5",
        "--genome-share -0.1",
        "--anneal 2",
        "--validate-every 0",
        "--state-len 6",
        "--batch 0",
        "--workers 0",
        "--width 0",
        "--lr 0",
        "--seed -1",
        "--snapshot-every 0",
        "--samples 0",
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, options: str) -> None:
    arguments = ["train", "--out", str(tmp_path / "out"), "--samples", "1e6", *options.split()]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert f"Invalid value for '{options.split()[0]}'" in result.output


def test_what_a_worker_raises_is_said_in_a_line(tmp_path: Path) -> None:
    """Chunks longer than any simulated read are found out by the workers."""
    with pytest.raises(RuntimeError) as raised:
        trainer.train(settings(tmp_path, 4, chunk_samples=(600_000,)))
    assert str(raised.value).startswith("a worker failed: ValueError: 16 simulated reads gave no chunk of 600000")
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_devices_without_cuda() -> None:
    assert device_of("auto", 1) == torch.device("cpu")
    with pytest.raises(ValueError, match="no CUDA device"):
        device_of("cuda", 0)
