"""What `porestream call` was asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from porestream.client.outputs.writers import Format, beside
from porestream.client.stream import StreamOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The command's parameters, under the names of its options; those that are a stream's are in `options`.

    Attributes
    ----------
    options
        What a stream is asked for. Its model and its reference may still be paths.
    server_flags
        Flags for the server that is started for this call.
    command_line
        As it may stand in an output's header.
    """

    reads: tuple[Path, ...]
    command_line: str
    recursive: bool = False
    read_ids: Path | None = None
    max_reads: int | None = None
    watch: Path | None = None
    watch_timeout_s: float = 7200.0
    resume_from: Path | None = None
    models_dir: Path | None = None
    output: str = "-"
    output_dir: Path | None = None
    emit: str = ""
    sort: bool = False
    emit_summary: bool = False
    summary_json: Path | None = None
    rejected_reads: Path | None = None
    server: str | None = None
    options: StreamOptions
    server_flags: Mapping[str, str] = field(default_factory=dict)

    @property
    def form(self) -> Format | None:
        """The format that is asked for; None: by the output's name."""
        return Format(self.emit) if self.emit else None

    def beside_output(self, name: str) -> Path | None:
        """The file of this name that goes with the output; None where that is standard output."""
        if self.output_dir is not None:
            return self.output_dir / name
        return None if self.output == "-" else beside(Path(self.output), name)
