"""The commands, one after the other, on a small made-up run."""

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import numpy as np
import pysam
import pytest
from click.testing import CliRunner

from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.sequence import decode
from porestream.models.train.__main__ import main
from porestream.models.train.arrays import TrainingRead, load_reads

MakeRead = Callable[..., TrainingRead]
STRIDE = 5


@pytest.fixture(scope="module")
def run_folder(
    tmp_path_factory: pytest.TempPathFactory, simulated_read: MakeRead, write_pod5: Callable[..., Path]
) -> Path:
    """`reads.pod5` of four reads, and `calls.bam` with their bases and moves; the fourth has none."""
    folder = tmp_path_factory.mktemp("run")
    reads = [simulated_read(seed, bases=1200) for seed in range(4)]
    signals = [np.round(read.signal_pa_S / 0.1462 + 243).astype(np.int16) for read in reads]
    write_pod5(folder / "reads.pod5", signals)
    header = pysam.AlignmentHeader.from_dict({"HD": {"VN": "1.6", "SO": "unknown"}})
    with pysam.AlignmentFile(str(folder / "calls.bam"), "wb", header=header) as bam:
        for i, read in enumerate(reads):
            at_B = np.unique((read.starts_B // STRIDE).astype(int), return_index=True)
            record = pysam.AlignedSegment(header)
            record.query_name, record.flag = str(UUID(int=i + 1)), 4
            record.query_sequence = decode(read.bases_B[at_B[1]])  # bases that share a step with another are missed
            if i < 3:
                steps_T = np.zeros(-(-read.signal_pa_S.size // STRIDE), np.uint8)
                steps_T[at_B[0]] = 1
                record.set_tag("mv", np.concatenate([[STRIDE], steps_T]).astype(np.int8).tolist())
            bam.write(record)
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_from_signal_to_curve(run_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    pod5_file, bam, arrays = run_folder / "reads.pod5", run_folder / "calls.bam", tmp_path / "reads.npz"
    said = run("prepare", pod5_file, "--bam", bam, "-o", arrays, "--valid", 1)
    assert f"{UUID(int=4)} is left out: it has neither an mv tag" in said
    assert "2 reads to learn from, 1 for validation" in said
    assert [read.read_id for read in load_reads(arrays).validation] == [str(UUID(int=3))]

    fitted, realigned = tmp_path / "pore.npz", tmp_path / "realigned.npz"
    said = run("fit-pore", arrays, "-o", fitted, "--realigned", realigned, "--rounds", 1, "--epochs", 1)
    assert said.startswith("round 1: held-out residual 0.")
    assert len(load_reads(realigned).training) == 2
    PoreModel.load(fitted)

    table = run("compare-signal", realigned, "--pore", fitted).splitlines()
    assert table[0].split() == ["table", "units,", "samples", "real", "simulated"]
    assert any(line.startswith("autocorrelation, lag 1 ") for line in table)

    report = tmp_path / "report.json"
    said = run("evaluate", pod5_file, "--bam", bam, "--arrays", arrays, "--model", tiny_model, "--json", report)
    assert "reads: 1 reads, 0 mapped, 0 failed" in said  # that model calls nonsense
    assert run("evaluate", pod5_file, "--bam", bam, "--model", tiny_model, "-n", 2).startswith("reads: 2 reads")

    run("curve", "--evaluation", report, "--table", tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text().splitlines()[1] == "0,,,,reads,0.0"
