"""`porestream info`."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from porestream.cli.options import models_directory_option
from porestream.cli.text import escaped

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from porestream.client.reads import RunInfo
    from porestream.client.sources.runs import FileRuns, Runs
    from porestream.models.files.chemistry import Chemistry

_EXIT_UNREADABLE = 3  # as in `porestream call`
_UNKNOWN = "unknown"


@click.command(short_help="Show what is in POD5 files: runs, chemistry, reads, samples, end reasons.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("-r", "--recursive", is_flag=True, help="Search folders recursively.")
@models_directory_option(type=click.Path(path_type=Path, exists=True, file_okay=False), envvar="PORESTREAM_MODELS")
@click.option("--json", "as_json", is_flag=True, help="Write JSON: all figures of each run, and unreadable files.")
@click.pass_context
def info(ctx: click.Context, files: tuple[Path, ...], recursive: bool, models_dir: Path | None, as_json: bool) -> None:
    """Show what is in POD5 files, or in folders of them, run by run. It is quick, as it does not read the signal.

    \b
    porestream info run.pod5
    porestream info -r /data/experiment
    porestream info pod5_folder/ --json | jq '.runs[].reads'

    Each run is shown once, however many files it has. "model" is the one that `porestream call` would choose. "bases"
    is an estimate from the amount of signal and the chemistry's speed; it is a little high, as some of the signal is
    adapter or stalled. "time covered" is from the start of the first read to the end of the last one. Half of all
    samples are in reads of the N50 or longer; the N50 is accurate to 0.2%.

    Exit codes: 0 all was read, 2 wrong usage, 3 a file could not be read (it is named, and the others are shown).
    """
    from tqdm import tqdm

    from porestream.client.sources.pod5_source import find_pod5_files
    from porestream.client.sources.runs import Runs

    found, missing = find_pod5_files(files, recursive=recursive)
    faults = [(fault.path, fault.reason) for fault in missing]
    files_read = 0
    all_runs, runs = Runs({}), dict[str, _Run]()
    for path in tqdm(found, unit="file", leave=False, disable=not sys.stderr.isatty()):
        try:
            read = _read_file(path, all_runs)
        except Exception as error:  # noqa: BLE001 - whatever pod5 and Arrow raise for a file that is not one
            faults.append((path, _reason(error)))
            continue
        files_read += 1
        for key, run in read.items():
            if key in runs:
                runs[key].add(run)
            else:
                runs[key] = run
    shown = sorted(runs.values(), key=_Run.order)
    models = _Models(models_dir)
    if as_json:
        unreadable = [{"path": str(path), "reason": reason} for path, reason in faults]
        click.echo(json.dumps({"runs": [run.as_json(models) for run in shown], "unreadable": unreadable}, indent=2))
    else:
        for run in shown:
            click.echo(f"run {escaped(run.said.key)}")
            for name, value in run.lines(models):
                click.echo(f"  {name:<13} {escaped(value) or '-'}")
        if len(shown) > 1:
            click.echo(_total(shown, files_read))
    for path, reason in faults:
        click.echo(escaped(f"cannot read {path}: {reason}"), err=True)
    ctx.exit(_EXIT_UNREADABLE if faults else 0)


_BINS_PER_OCTAVE, _OCTAVES = 512, 40


def _empty_histogram() -> "npt.NDArray[np.float64]":
    import numpy as np

    return np.zeros((2, _OCTAVES * _BINS_PER_OCTAVE))


@dataclass(kw_only=True)
class _Run:
    """One acquisition: its metadata, and its reads' totals.

    `lengths_2L` is a histogram of read lengths with L bins of equal width on a logarithmic scale: row 0 counts reads,
    row 1 their samples. Starts and ends are in samples from the run's start.
    """

    said: "RunInfo"
    files: int = 1
    reads: int = 0
    samples: int = 0
    first_start: int | None = None
    last_end: int = 0
    channels: set[int] = field(default_factory=set)
    end_reasons: Counter[str] = field(default_factory=Counter)
    lengths_2L: "npt.NDArray[np.float64]" = field(default_factory=_empty_histogram)

    def add_reads(
        self,
        start_R: "npt.NDArray[np.uint64]",
        samples_R: "npt.NDArray[np.uint64]",
        channel_R: "npt.NDArray[np.int64]",
        end_reasons: Counter[str],
    ) -> None:
        """Count some reads."""
        import numpy as np

        first = int(start_R.min())
        self.reads += len(samples_R)
        self.samples += int(samples_R.sum())
        self.first_start = first if self.first_start is None else min(first, self.first_start)
        self.last_end = max(self.last_end, int((start_R + samples_R).max()))
        self.channels.update(np.unique(channel_R).tolist())
        self.end_reasons += end_reasons
        bins = self.lengths_2L.shape[1]
        bin_R = (np.log2(np.maximum(samples_R, 1)) * _BINS_PER_OCTAVE).astype(np.int64).clip(max=bins - 1)
        self.lengths_2L[0] += np.bincount(bin_R, weights=samples_R > 0, minlength=bins)  # empty reads are in no bin
        self.lengths_2L[1] += np.bincount(bin_R, weights=samples_R, minlength=bins)

    def add(self, other: "_Run") -> None:
        """Count another file's reads of this run."""
        self.files += other.files
        self.reads += other.reads
        self.samples += other.samples
        starts = [start for start in (self.first_start, other.first_start) if start is not None]
        self.first_start = min(starts, default=None)
        self.last_end = max(self.last_end, other.last_end)
        self.channels |= other.channels
        self.end_reasons += other.end_reasons
        self.lengths_2L += other.lengths_2L

    def order(self) -> tuple[str, str]:
        """Sort key: start, then id."""
        return self._started, self.said.key

    @property
    def sample_rate_hz(self) -> int:
        return self.said.sample_rate_hz

    @property
    def chemistry(self) -> "Chemistry":
        return self.said.chemistry

    @property
    def _started(self) -> str:
        began = self.said.acquisition_start_time
        return began.isoformat(timespec="seconds") if began else ""

    @property
    def bases(self) -> int | None:
        """An estimate; None if the chemistry's speed or the sample rate is unknown."""
        if not self.sample_rate_hz or not self.chemistry.bases_per_second:
            return None
        return round(self.samples / self.sample_rate_hz * self.chemistry.bases_per_second)

    @property
    def covered_s(self) -> float | None:
        """Time from the first read's start to the last one's end."""
        return None if self.first_start is None else self._seconds(self.last_end - self.first_start)

    @property
    def mean_samples(self) -> float:
        return self.samples / self.reads if self.reads else 0.0

    @property
    def n50_samples(self) -> float:
        """The N50, where half of all samples are in longer reads: the mean length of its bin."""
        count_L, samples_L = self.lengths_2L[:, ::-1]
        if not self.samples:
            return 0.0
        bin_ = int((samples_L.cumsum() >= samples_L.sum() / 2).argmax())
        return float(samples_L[bin_] / count_L[bin_])

    def lines(self, models: "_Models") -> Iterator[tuple[str, str]]:
        """Yield names and values to show; an empty value is unknown."""
        from porestream.client.text import counted

        seconds, said = self._seconds, self.said
        product = said.flow_cell_product_code
        yield "flow cell", " ".join(filter(None, [said.flow_cell_id, product and f"({product})"]))
        yield "kit", said.sequencing_kit
        yield "position", said.position
        yield "sample", said.sample_id
        yield "experiment", said.experiment_id
        yield "started", self._started.replace("T", " ").replace("+00:00", " UTC")
        yield "sample rate", f"{self.sample_rate_hz} Hz" if self.sample_rate_hz else ""
        yield "chemistry", str(self.chemistry)
        name, reason = models.of(self.chemistry)
        yield "model", name or f"none: {reason}"
        yield "reads", f"{self.reads:,} in {counted(self.files, 'file')}"
        signal_s = seconds(self.samples)
        yield "samples", f"{self.samples:,}" + (f" ({_clock(signal_s)} of signal)" if signal_s is not None else "")
        yield "bases", "" if self.bases is None else f"about {self.bases:,}"
        yield "time covered", "" if self.covered_s is None else _clock(self.covered_s)
        mean_s, n50_s = seconds(self.mean_samples), seconds(self.n50_samples)
        in_seconds = "" if mean_s is None or n50_s is None else f" (mean {mean_s:.2f} s, N50 {n50_s:.2f} s)"
        yield "read length", f"mean {self.mean_samples:,.0f}, N50 {self.n50_samples:,.0f} samples{in_seconds}"
        yield "channels", f"{len(self.channels):,}"
        yield (
            "end reasons",
            ", ".join(f"{name} {count:,} ({count / self.reads:.1%})" for name, count in self.end_reasons.most_common()),
        )

    def as_json(self, models: "_Models") -> dict[str, object]:
        """Return all figures; unknown ones are null."""
        name, reason = models.of(self.chemistry)
        said = self.said
        return {
            "run_id": said.run_id,
            "flow_cell_id": said.flow_cell_id or None,
            "flow_cell_product_code": said.flow_cell_product_code or None,
            "sequencing_kit": said.sequencing_kit or None,
            "position": said.position or None,
            "sample_id": said.sample_id or None,
            "experiment_id": said.experiment_id or None,
            "acquisition_start_time": self._started or None,
            "sample_rate_hz": self.sample_rate_hz or None,
            "chemistry": str(self.chemistry),
            "model": name or None,
            "no_model_because": reason or None,
            "files": self.files,
            "reads": self.reads,
            "samples": self.samples,
            "signal_seconds": self._seconds(self.samples),
            "bases_estimate": self.bases,
            "first_start_seconds": None if self.first_start is None else self._seconds(self.first_start),
            "covered_seconds": self.covered_s,
            "mean_read_samples": self.mean_samples,
            "n50_read_samples": self.n50_samples,
            "channels": len(self.channels),
            "end_reasons": dict(self.end_reasons.most_common()),
        }

    def _seconds(self, samples: float) -> float | None:
        return samples / self.sample_rate_hz if self.sample_rate_hz else None


@dataclass
class _Models:
    """The models that `porestream call` would choose: for a chemistry, a name, or why there is none."""

    directory: Path | None
    _known: "dict[Chemistry, tuple[str, str]]" = field(default_factory=dict, init=False)

    def of(self, chemistry: "Chemistry") -> tuple[str, str]:
        from porestream.models.files.catalog import NoModel, choose_model

        if chemistry not in self._known:
            try:
                self._known[chemistry] = choose_model([chemistry], self.directory).model.name, ""
            except NoModel as error:
                self._known[chemistry] = "", str(error)
        return self._known[chemistry]


def _read_file(path: Path, all_runs: "Runs") -> dict[str, _Run]:
    """Read a file's runs, by key, from the columns of its read table, batch by batch.

    Raises
    ------
    Exception
        Whatever pod5 and Arrow raise for a file that is not one, or is cut short.
    """
    import pod5

    if not path.exists():
        raise FileNotFoundError("no such file")
    with pod5.Reader(path) as reader:
        in_file = all_runs.of_file(reader)
        runs = {run.key: _Run(said=run) for run in in_file.all}
        for index in range(reader.read_table.num_record_batches):
            _add_batch(reader.read_table.get_batch(index), in_file, runs)
    return runs


def _add_batch(batch: Any, in_file: "FileRuns", runs: dict[str, _Run]) -> None:
    import numpy as np

    from porestream.client.reads import RunInfo

    names = batch.schema.names
    columns = ("start", "num_samples", "channel_32bit" if "channel_32bit" in names else "channel")
    start_R, samples_R, channel_R = (batch.column(name).to_numpy() for name in columns)
    run_R, _ = _decoded(batch.column("run_info"))
    reason_R, reasons = _decoded(batch.column("end_reason"))
    of_batch = [*in_file.of_batch(batch.column("run_info")), "run unknown: the read does not name its run"]
    for run_index in np.unique(run_R):
        of_run = run_R == run_index
        counts = np.bincount(reason_R[of_run], minlength=len(reasons)).tolist()
        ended = Counter({name: count for name, count in zip(reasons, counts, strict=True) if count})
        found = of_batch[run_index]
        run = found if isinstance(found, RunInfo) else RunInfo(run_id=_UNKNOWN, sample_rate_hz=0)
        runs.setdefault(run.key, _Run(said=run)).add_reads(start_R[of_run], samples_R[of_run], channel_R[of_run], ended)


def _decoded(column: Any) -> "tuple[npt.NDArray[np.int64], list[str]]":
    """Return a dictionary column as indices into names; the last name is for nulls."""
    import numpy as np

    column.validate(full=True)  # catches indices outside the dictionary
    names = [name or _UNKNOWN for name in column.dictionary.to_pylist()]
    return column.indices.fill_null(len(names)).to_numpy().astype(np.int64), [*names, _UNKNOWN]


def _total(runs: Sequence[_Run], files: int) -> str:
    from porestream.client.text import counted

    reads, samples = sum(run.reads for run in runs), sum(run.samples for run in runs)
    return f"{counted(len(runs), 'run')}, {counted(reads, 'read')}, {samples:,} samples in {counted(files, 'file')}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"not a POD5 file, or cut short ({text})" if "Invalid signature" in text else text
