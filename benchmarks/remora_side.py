"""Read records with Remora's own reader. compare_remora.py runs this with the Python of Remora's environment.

It imports Remora and copies nothing from it.

    remora_side.py POD5 BAM RESULT.json      write why Remora refuses each record; empty if it accepts it
    remora_side.py --cases CASES.json        write verdicts on made-up move tables into the same file
"""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pod5
import pysam
from remora import RemoraError
from remora.io import Read


def verdict(read: Any, record: pysam.AlignedSegment) -> str:
    """Return why Remora refuses this pair of signal and record; empty if it accepts it."""
    try:
        Read.from_pod5_and_alignment(read, record)
    except (RemoraError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def of_files(pod5_path: str, bam_path: str) -> dict[str, str]:
    """Return verdicts on the records of a file, by read id."""
    with pysam.AlignmentFile(bam_path, check_sq=False) as bam:
        records = {str(record.query_name): record for record in bam.fetch(until_eof=True) if not record.flag & 0x900}
    verdicts = {}
    with pod5.Reader(pod5_path) as reader:
        for read in reader.reads():
            if (record := records.pop(str(read.read_id), None)) is not None:
                verdicts[str(read.read_id)] = verdict(read, record)
    return verdicts | dict.fromkeys(records, "not in the POD5")


def of_cases(cases: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield verdicts on made-up move tables: signals of zeros, one base per move."""
    for case in cases:
        record = pysam.AlignedSegment(pysam.AlignmentHeader())
        record.query_name, record.flag = "made-up", 4
        record.query_sequence = "A" * case["steps"]
        record.set_tag("mv", [case["stride"], *[1] * case["steps"]])
        record.set_tag("ts", case["trimmed_samples"])
        record.set_tag("ns", case["samples"])
        read = SimpleNamespace(
            read_id="made-up",
            signal=np.zeros(case["signal_samples"], np.int16),
            calibration=SimpleNamespace(offset=0.0, scale=1.0),
        )
        yield case | {"taken": not verdict(read, record)}


def main() -> None:
    """Run one of the two modes in the module's docstring."""
    if sys.argv[1] == "--cases":
        path = Path(sys.argv[2])
        recorded = json.loads(path.read_text())
        verdicts = list(of_cases(recorded["cases"]))
        rows = ",\n  ".join(json.dumps(case) for case in verdicts)
        path.write_text(f'{{"remora": "{version("ont-remora")}", "cases": [\n  {rows}\n]}}\n')
    else:
        Path(sys.argv[3]).write_text(json.dumps(of_files(sys.argv[1], sys.argv[2])))


main()
