"""Reads the primary records of a BAM."""

from collections.abc import Iterator
from pathlib import Path

import pysam


def primary_records(bam_path: Path) -> Iterator[tuple[str, pysam.AlignedSegment]]:
    """Yield names and records in the file's order, except secondary, supplementary and unnamed records.

    A name may occur more than once.
    """
    with pysam.AlignmentFile(str(bam_path), check_sq=False) as bam:
        for record in bam.fetch(until_eof=True):
            if record.query_name and not record.is_secondary and not record.is_supplementary:
                yield record.query_name, record
