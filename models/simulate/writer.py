"""Writes a simulated run to disk: a POD5, and a table with the truth."""

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import numpy as np
import pod5

from porestream.models.simulate.flowcell import ADC_MAX, ADC_MIN, PA_PER_ADC, Place, digitise
from porestream.models.simulate.simulated_reads import SimulatedRead

TRUTH_COLUMNS = (
    "read_id",
    "contig",
    "start",
    "end",
    "strand",
    "bases",
    "samples",
    "leader_samples",
    "tail_samples",
    "channel",
    "well",
    "read_number",
    "start_sample",
    "end_reason",
)

_BEGAN = datetime(2025, 1, 1, tzinfo=UTC)  # the same for all runs, so that only the seed makes a difference
_FLOW_CELL, _KIT, _SPEED = "FLO-MIN114", "SQK-LSK114", "400"
_PROTOCOL = f"sequencing/sequencing_MIN114_DNA_e8_2_400K:{_FLOW_CELL}:{_KIT}:{_SPEED}"


def run_info(seed: int, sample_rate_hz: int, sample_id: str) -> pod5.RunInfo:
    """Make the metadata of an R10.4.1 run on a MinION; the run ID is derived from the seed and the sample ID."""
    rng = np.random.default_rng([seed, *sample_id.encode()])
    run_id, protocol_run_id = rng.bytes(20).hex(), str(uuid.UUID(bytes=rng.bytes(16), version=4))
    software = f"porestream simulate {version('porestream')}"
    return pod5.RunInfo(
        acquisition_id=run_id,
        acquisition_start_time=_BEGAN,
        adc_max=ADC_MAX,
        adc_min=ADC_MIN,
        context_tags={
            "experiment_type": "genomic_dna",
            "sample_frequency": str(sample_rate_hz),
            "selected_speed_bases_per_second": _SPEED,
            "sequencing_kit": _KIT.lower(),
        },
        experiment_name="simulated",
        flow_cell_id="SIM00000",
        flow_cell_product_code=_FLOW_CELL,
        protocol_name=_PROTOCOL,
        protocol_run_id=protocol_run_id,
        protocol_start_time=_BEGAN,
        sample_id=sample_id,
        sample_rate=sample_rate_hz,
        sequencing_kit=_KIT.lower(),
        sequencer_position="SIM00000",
        sequencer_position_type="simulator",
        software=software,
        system_name="simulator",
        system_type="simulator",
        tracking_id={"run_id": run_id, "exp_script_purpose": "simulation", "simulated": "true", "seed": str(seed)},
    )


class RunWriter:
    """Writes reads to temporary files as they arrive; the files get their names if the context ends without an error.

    Parameters
    ----------
    pod5_path, truth_path
        Files to write. Existing files are replaced only once the new ones are complete.
    run
        The run that all reads belong to.
    boundaries
        Whether the truth table gets an extra last column with the first sample of every base.

    Raises
    ------
    OSError
        A file cannot be written; the message names it. `add` and the end of the context raise this too.
    """

    def __init__(self, pod5_path: Path, truth_path: Path, run: pod5.RunInfo, boundaries: bool) -> None:
        self._run = run
        self._boundaries = boundaries
        self._pod5_path, self._truth_path = pod5_path, truth_path
        with ExitStack() as stack:
            # pod5 makes temporary files next to its output, and leaves them there if it fails
            folder = tempfile.TemporaryDirectory(prefix=f".{pod5_path.name}.", dir=pod5_path.parent)
            self._unfinished_pod5 = Path(stack.enter_context(folder)) / pod5_path.name
            self._unfinished_truth = truth_path.with_name(f".{truth_path.name}.part")
            stack.callback(self._unfinished_truth.unlink, missing_ok=True)
            self._unfinished_truth.unlink(missing_ok=True)  # somebody else may have planted a link there
            self._truth = stack.enter_context(self._unfinished_truth.open("x"))
            with self._own_errors():
                self._pod5 = pod5.Writer(self._unfinished_pod5, f"porestream simulate {version('porestream')}")
            self._cleanup = stack.pop_all()
        self._truth.write("\t".join([*TRUTH_COLUMNS, *["boundaries"] * boundaries]) + "\n")

    def add(self, read: SimulatedRead, place: Place) -> None:
        """Write one read and its truth."""
        record = pod5.Read(
            read_id=read.read_id,
            pore=pod5.Pore(channel=place.channel, well=place.well, pore_type="not_set"),
            calibration=pod5.Calibration(offset=place.offset_adc, scale=PA_PER_ADC),
            read_number=place.read_number,
            start_sample=place.start_sample,
            median_before=place.open_pore_pa,
            end_reason=pod5.EndReason.from_reason_with_default_forced(read.end_reason),
            run_info=self._run,
            signal=digitise(read.current_pa_S, place.offset_adc),
        )
        with self._own_errors():
            self._pod5.add_read(record)
        window, samples = read.window, read.current_pa_S.size
        row = [
            read.read_id,
            window.contig,
            window.start,
            window.end,
            window.strand,
            window.bases_B.size,
            samples,
            read.first_samples_B[0],
            samples - read.end_sample,
            place.channel,
            place.well,
            place.read_number,
            place.start_sample,
            read.end_reason.name.lower(),
        ]
        if self._boundaries:
            row.append(",".join(map(str, read.first_samples_B.tolist())))
        self._truth.write("\t".join(map(str, row)) + "\n")

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._cleanup:
            if error is not None:
                with suppress(RuntimeError):  # the file is discarded anyway
                    self._pod5.close()
                return
            with self._own_errors():
                self._pod5.close()
            self._truth.close()
            self._unfinished_pod5.replace(self._pod5_path)
            self._unfinished_truth.replace(self._truth_path)

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Turn pod5's RuntimeErrors into OSErrors; pod5 raises RuntimeError for any problem with a file."""
        try:
            yield
        except RuntimeError as error:
            raise OSError(f"cannot write {self._pod5_path}: {error}; is the disk full?") from error
