"""Measure the memory and time of sorting in `porestream call --sort`: `python benchmarks/sorting.py [RECORDS]`.

It sorts made-up records of 6,000 bases at random places, 9 kB each uncompressed. Prints a Markdown table with one line.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pysam

from porestream.client.outputs.writers import OutputSettings, RecordWriter
from porestream.client.reads import CallerIdentity, ReferenceSequence, RunInfo

BASES, REFERENCE_BASES = 6000, 200_000_000


def main(records: int) -> None:
    """Write the records, sort them, and print the table."""
    rng = np.random.default_rng(1)
    sequence = "".join(rng.choice(list("ACGT"), BASES))
    identity = CallerIdentity(
        model="model",
        model_sha256="",
        reference="reference",
        reference_sha256="",
        preset="map-ont",
        precision="",
        device_class="",
        version="",
    )
    settings = OutputSettings(identity=identity, sequences=(ReferenceSequence("c", REFERENCE_BASES, ""),), sort=True)
    with tempfile.TemporaryDirectory() as folder:
        writer = RecordWriter(
            str(Path(folder) / "sorted.bam"), {"run": RunInfo(run_id="run", sample_rate_hz=4000)}, settings
        )
        for number in range(records):
            record = pysam.AlignedSegment(writer.header)
            record.query_name, record.reference_id, record.mapping_quality = str(number), 0, 60
            record.reference_start = int(rng.integers(0, REFERENCE_BASES - BASES))
            turn = int(rng.integers(0, BASES))
            record.query_sequence = sequence[turn:] + sequence[:turn]
            record.query_qualities = pysam.qualitystring_to_array("5" * BASES)
            record.cigartuples = [(0, BASES)]
            writer.copy([record])
        began_s = time.monotonic()
        writer.close()
        seconds = time.monotonic() - began_s
    memory_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print("| records | uncompressed, GB | memory, MB | seconds |\n| --- | --- | --- | --- |")
    print(f"| {records:,} | {records * 9060 / 1e9:.2f} | {memory_mb:.0f} | {seconds:.0f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 250_000)
