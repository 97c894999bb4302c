"""The parameters of `porestream call`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from porestream.client.opening import StreamOptions
from porestream.client.outputs.writers import Format, beside


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The command's parameters, named like its options; stream options are in `options`.

    Attributes
    ----------
    options
        Options of the stream. Its model and reference may still be paths.
    server_flags
        Flags for the private server.
    command_line
        The command line for an output's header, without passwords.
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
        """The requested format; None: by the output's name."""
        return Format(self.emit) if self.emit else None

    def beside_output(self, name: str) -> Path | None:
        """Return the file of this name beside the output; None if the output is standard output."""
        if self.output_dir is not None:
            return self.output_dir / name
        return None if self.output == "-" else beside(Path(self.output), name)
