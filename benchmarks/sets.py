"""Data for benchmarks of whole calls: a model, reads and their reference, either real or small and made up."""

from dataclasses import dataclass
from pathlib import Path

from compare_bonito import simulated_run
from shapes import write_shape

MODEL = "models/dna_r9.4.1_e8.1_fast@v3.4"
QUICK_SAMPLES = 300_000
HAC_SAMPLES = 6_000_000


@dataclass(frozen=True, slots=True)
class ReadSet:
    """A model directory, a POD5 file and a FASTA file."""

    model: Path
    reads: Path
    reference: Path


def klebsiella(data: Path) -> ReadSet:
    """Return the real set in the data folder: 48 reads, 9.0 M samples."""
    return ReadSet(data / MODEL, data / "klebsiella_r94/reads.pod5", data / "klebsiella_r94/HS11286.fna.gz")


def made_up(folder: Path) -> ReadSet:
    """Make a few simulated reads and a tiny model that calls nonsense, to check that a benchmark works."""
    model = write_shape("tiny v3", folder / "tiny_fast@v1")
    reads = simulated_run(folder, QUICK_SAMPLES)
    return ReadSet(model, reads, folder / "reference.fasta")


def random_hac(folder: Path) -> ReadSet:
    """Make a hac model with random weights, which calls nonsense at a hac model's speed, and a simulated run."""
    model = write_shape("hac v4.3", folder / "random_hac@v1", container="bonito")
    return ReadSet(model, simulated_run(folder, HAC_SAMPLES), folder / "reference.fasta")
