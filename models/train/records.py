"""The records of a BAM that stand for its reads."""

from collections.abc import Iterator
from pathlib import Path

import pysam


def primary_records(bam_path: Path) -> Iterator[tuple[str, pysam.AlignedSegment]]:
    """Names and records of those that have one and are neither secondary nor supplementary, in the file's order.

    A name may come more than once.
    """
    with pysam.AlignmentFile(str(bam_path), check_sq=False) as bam:
        for record in bam.fetch(until_eof=True):
            if record.query_name and not record.is_secondary and not record.is_supplementary:
                yield record.query_name, record
