"""Fixtures for all tests."""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pod5
import pytest

ROOT = Path(__file__).resolve().parent.parent

WritePod5 = Callable[..., Path]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real signal and a real model: optional, except in CI."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        message = f"real data is not here: {folder}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def write_pod5() -> WritePod5:
    """Writes a POD5 file: `write_pod5(path, signals, run_ids=..., first=...)`.

    Read i of `signals` is named UUID(int=first + i), is on channel i % 512 + 1 and belongs to `run_ids[i % len(run_ids)]`.
    """

    def write(
        path: Path,
        signals: Sequence[npt.NDArray[np.int16]],
        run_ids: Sequence[str] = ("run-a",),
        first: int = 1,
        sample_rate_hz: int = 4000,
    ) -> Path:
        began = datetime(2024, 5, 6, 7, 8, 9, 123000, tzinfo=UTC)
        runs = {
            run_id: pod5.RunInfo(
                acquisition_id=run_id,
                acquisition_start_time=began,
                adc_max=4095,
                adc_min=-4096,
                context_tags={},
                experiment_name="experiment",
                flow_cell_id="FAB12345",
                flow_cell_product_code="FLO-MIN106",
                protocol_name="protocol",
                protocol_run_id="protocol-run",
                protocol_start_time=began,
                sample_id="sample",
                sample_rate=sample_rate_hz,
                sequencing_kit="sqk-lsk109",
                sequencer_position="MN00001",
                sequencer_position_type="MinION Mk1B",
                software="porestream tests",
                system_name="system",
                system_type="system type",
                tracking_id={},
            )
            for run_id in run_ids
        }
        with pod5.Writer(path) as writer:
            for index, signal_S in enumerate(signals):
                writer.add_read(
                    pod5.Read(
                        read_id=UUID(int=first + index),
                        pore=pod5.Pore(channel=index % 512 + 1, well=index % 4 + 1, pore_type="r9.4.1"),
                        calibration=pod5.Calibration(offset=-243.0, scale=0.1462),
                        read_number=100 + index,
                        start_sample=4000 * index,
                        median_before=200.0,
                        end_reason=pod5.EndReason.from_reason_with_default_forced(pod5.EndReasonEnum.SIGNAL_POSITIVE),
                        run_info=runs[run_ids[index % len(run_ids)]],
                        signal=signal_S,
                    )
                )
        return path

    return write
