"""Measure the simulator's speed in million samples per second and core: `python benchmarks/simulate.py [--reads N]`.

It measures processor time, so that other work on the machine matters less. Prints Markdown with the medians of three
turns: emission alone (sequence to signal in memory, one thread), and the whole command (reference, reads, compression,
files, start of the interpreter; all cores).
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.sequence import decode, random_bases
from porestream.models.simulate.signal import SignalNoise, simulate_signal

READ_BASES = 5000


def emission(reads: int) -> float:
    """Return million samples per second of processor time, on one thread."""
    rng, pore = np.random.default_rng(1), PoreModel.load()
    bases_B = random_bases(READ_BASES, rng)
    simulate_signal(bases_B, pore, rng, SignalNoise(), 5000)  # compiles
    start_s, samples = time.process_time(), 0
    for _ in range(reads):
        samples += simulate_signal(bases_B, pore, rng, SignalNoise(), 5000)[0].size
    return samples / (time.process_time() - start_s) / 1e6


def command(folder: Path, reads: int) -> float:
    """Return million samples per second of processor time, for the whole command."""
    reference, output = folder / "reference.fasta", folder / "run.pod5"
    reference.write_text(f">random\n{decode(random_bases(1_000_000, np.random.default_rng(1)))}\n")
    arguments = ["simulate", str(reference), "-o", str(output), "-n", str(reads), "--length-mean", str(READ_BASES)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "porestream.cli.main", *arguments, "--seed", "1"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    samples = sum(int(line.split("\t")[6]) for line in (folder / "run.truth.tsv").read_text().splitlines()[1:])
    return samples / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 1e6


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reads", type=int, default=300, help=f"number of reads, of {READ_BASES} bases on average (default: 300)"
    )
    parser.add_argument("--turns", type=int, default=3, help="number of turns to take the median of (default: 3)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| simulator | M samples/s a core |\n| --- | --- |")
    alone = statistics.median(emission(max(1, arguments.reads // 3)) for _ in range(arguments.turns))
    print(f"| emission alone | {alone:.1f} |")
    with tempfile.TemporaryDirectory() as folder:
        rate = statistics.median(command(Path(folder), arguments.reads) for _ in range(arguments.turns))
    print(f"| whole command, {arguments.reads} reads of {READ_BASES:,} bases on average | {rate:.1f} |")


if __name__ == "__main__":
    main()
