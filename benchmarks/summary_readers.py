"""Read a sequencing summary with the tools that people use: `python benchmarks/summary_readers.py SUMMARY`.

NanoPlot, pycoQC and ToulligQC each have their own environment in build/summary-readers, which this script creates if
needed, because pycoQC needs numpy and pandas from 2022. Each tool reports on SUMMARY, and the script compares its
reads, bases, N50 and Q with those computed here from the table.

Each tool has its own figure for Q: NanoPlot the mean error probability as Phred, pycoQC the median, and ToulligQC the
plain mean. NanoPlot rounds to 0.1; the others compute in float32. All but ToulligQC leave out reads without bases.

Prints Markdown. The exit code is 1 if a figure differs or a tool does not finish. NanoPlot does not finish if all reads
have the same start time, as in converted files: it fails in its plots over time, after it has written its figures.
"""

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENTS = Path(__file__).resolve().parent.parent / "build" / "summary-readers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a tool counted, or should have counted."""

    reads: int
    bases: int
    n50: float
    qscore: float

    def agree(self, other: "Figures", qscore_error: float) -> bool:
        """Whether all figures are the same, apart from the tool's rounding of Q."""
        same = (self.reads, self.bases, self.n50) == (other.reads, other.bases, other.n50)
        return same and math.isclose(self.qscore, other.qscore, rel_tol=0, abs_tol=qscore_error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool that reads summaries: what to install, how to run it, and how to read its figures.

    `command(summary, folder)` is run in the environment, `figures(folder)` reads what it wrote, and `expected_qscore`
    computes its figure for Q from the reads' Q.
    """

    name: str
    packages: tuple[str, ...]
    command: Callable[[Path, Path], list[str | Path]]
    figures: Callable[[Path], Figures]
    expected_qscore: Callable[[list[float]], float]
    qscore_error: float
    counts_empty: bool = False


def nanoplot_figures(folder: Path) -> Figures:
    """Read NanoStats.txt."""
    rows = dict(line.split("\t") for line in (folder / "NanoStats.txt").read_text().splitlines())
    return Figures(
        reads=int(rows["number_of_reads"]),
        bases=round(float(rows["number_of_bases"])),
        n50=float(rows["n50"]),
        qscore=float(rows["mean_qual"]),
    )


def pycoqc_figures(folder: Path) -> Figures:
    """Read the JSON report; the fiftieth percentile of Q is the median."""
    figures = json.loads((folder / "report.json").read_text())["All Reads"]["basecall"]
    return Figures(
        reads=figures["reads_number"],
        bases=figures["bases_number"],
        n50=figures["N50"],
        qscore=figures["qual_score_percentiles"][50],
    )


def toulligqc_figures(folder: Path) -> Figures:
    """Read the data report."""
    prefix = "basecaller.sequencing.summary.1d.extractor."
    lines = (folder / "report.data").read_text().splitlines()
    rows = dict(line.removeprefix(prefix).split("=", 1) for line in lines if line.startswith(prefix))
    return Figures(
        reads=int(rows["read.count"]),
        bases=int(rows["yield"]),
        n50=float(rows["n50"]),
        qscore=float(rows["all.read.qscore.mean"]),
    )


def mean_error_qscore(qscores: list[float]) -> float:
    """Return the mean error probability as Phred."""
    return -10 * math.log10(statistics.fmean(10 ** (qscore / -10) for qscore in qscores))


TOOLS = (
    Tool(
        name="NanoPlot",
        packages=("NanoPlot==1.48.0",),
        command=lambda summary, folder: ["NanoPlot", "--summary", summary, "-o", folder, "--tsv_stats", "--no_static"],
        figures=nanoplot_figures,
        expected_qscore=mean_error_qscore,
        qscore_error=0.051,
    ),
    Tool(
        name="pycoQC",
        packages=("pycoQC==2.5.2", "numpy<1.24", "pandas<2", "scipy<1.11", "setuptools<70"),
        command=lambda summary, folder: [
            "pycoQC",
            *("-f", summary, "-o", folder / "report.html", "-j", folder / "report.json"),
        ],
        figures=pycoqc_figures,
        expected_qscore=statistics.median,
        qscore_error=1e-4,
    ),
    Tool(
        name="ToulligQC",
        packages=("toulligqc==2.9.1",),
        command=lambda summary, folder: [
            "toulligqc",
            *("-a", summary, "-o", folder / "report.html", "--data-report-path", folder / "report.data", "--quiet"),
        ],
        figures=toulligqc_figures,
        expected_qscore=statistics.fmean,
        qscore_error=1e-4,
        counts_empty=True,
    ),
)


def ensure_environment(tool: Tool) -> Path:
    """Return the folder with a tool's programs, installing them if needed."""
    environment = ENVIRONMENTS / tool.name.lower()
    ready = environment / ".ready"
    if not ready.exists():
        print(f"installing {tool.name} into {environment}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "python", "-m", "pip", "install", "-q", *tool.packages], check=True)
        ready.touch()
    return environment / "bin"


def expected_figures(summary: Path, tool: Tool) -> Figures:
    """Compute from the table what a tool should count."""
    with summary.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [row for row in rows if tool.counts_empty or row["sequence_length_template"] != "0"]
    lengths = sorted((int(row["sequence_length_template"]) for row in rows), reverse=True)
    counted, n50 = 0, 0
    for n50 in lengths:
        counted += n50
        if counted >= sum(lengths) / 2:
            break
    qscore = tool.expected_qscore([float(row["mean_qscore_template"]) for row in rows])
    return Figures(reads=len(rows), bases=sum(lengths), n50=n50, qscore=qscore)


def compare(tool: Tool, summary: Path) -> bool:
    """Run a tool and print two rows of the table; return whether it finished with the same figures."""
    programs = ensure_environment(tool)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program, *arguments = tool.command(summary.absolute(), folder)
        done = subprocess.run([programs / program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        expected = expected_figures(summary, tool)
        print(
            f"| table, for {tool.name} | {expected.reads} | {expected.bases} | {expected.n50} | {expected.qscore:.4f} |"
        )
        problem = "" if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
        try:
            found = tool.figures(folder)
        except (OSError, KeyError, ValueError) as error:
            print(f"| {tool.packages[0]} | no figures: {problem or error} | | | |")
            return False
    print(f"| {tool.packages[0]} | {found.reads} | {found.bases} | {found.n50:g} | {found.qscore:.4f} |")
    if problem:
        print(f"{tool.name} did not finish: {problem}", file=sys.stderr)
    return not problem and found.agree(expected, tool.qscore_error)


def main() -> int:
    """Run all tools and return the exit code."""
    parser = argparse.ArgumentParser(description="Read a sequencing summary with NanoPlot, pycoQC and ToulligQC.")
    parser.add_argument("summary", type=Path, metavar="SUMMARY", help="sequencing_summary.txt")
    summary = parser.parse_args().summary
    print("| | reads | bases | N50 | Q |\n| --- | --- | --- | --- | --- |")
    return 0 if all([compare(tool, summary) for tool in TOOLS]) else 1  # run all of them, even if one fails


if __name__ == "__main__":
    sys.exit(main())
