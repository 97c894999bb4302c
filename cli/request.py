"""What `porestream call` was asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from porestream.client.channel import PLAINTEXT, Credentials
from porestream.client.writers import Format, beside


@dataclass(frozen=True, slots=True)
class Request:
    """The command's arguments."""

    reads: tuple[Path, ...]
    command_line: str
    recursive: bool = False
    read_ids: Path | None = None
    max_reads: int | None = None
    watch: Path | None = None
    watch_timeout_s: float = 7200.0
    resume_from: Path | None = None
    model: str = "auto"
    models_directory: Path | None = None
    allow_chemistry_mismatch: bool = False
    reference: str = ""
    preset: str = ""
    min_qscore: float = 0.0
    no_trim: bool = False
    output: str = "-"
    output_dir: Path | None = None
    emit: str = ""
    sort: bool = False
    emit_moves: bool = False
    emit_summary: bool = False
    summary_json: Path | None = None
    rejected_reads: Path | None = None
    server: str | None = None
    credentials: Credentials = PLAINTEXT
    priority: str = "bulk"
    give_up_s: float = 120.0
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
