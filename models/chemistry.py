"""What a run was sequenced with, and what a model was trained for, as far as names tell."""

import re
from dataclasses import dataclass

_MODEL_NAME = re.compile(
    r"^(?:porestream_)?(?P<molecule>dna|rna)(?P<version>\d*)_(?P<pore>r[\d.]+)?(_e[\d.]+)?(_?(?P<speed>\d+)bps)?"
    r"_(?P<kind>[a-z]+)@v(?P<release>\d+(\.\d+)*)$"  # more behind it: of modified bases, not a basecaller
)
# Flow cells' product codes name their pore; ONT's flow cell catalogue. 004RA: RNA only.
_PRODUCT = re.compile(r"^FLO-[A-Z]+?(?P<number>\d{3})(?P<suffix>[A-Z]*)$")
_PORES = {
    **dict.fromkeys(("106", "001", "002"), "r9.4.1"),
    "110": "r10",
    "111": "r10.3",
    "112": "r10.4",
    "114": "r10.4.1",
}
_SPEEDS = {"r10.4.1": 400, "r9.4.1": 450}
_FIRST_5_KHZ = (4, 2)  # release of the R10.4.1 models from which on 400 bases/s are measured at 5 kHz


@dataclass(frozen=True, slots=True)
class Chemistry:
    """Molecule ("dna", "rna"), pore ("r10.4.1") and speed of a run or a model; empty or 0: unknown.

    `sample_rates_hz` are the rates that a model takes, its own first; a run has one.
    """

    molecule: str = ""
    pore: str = ""
    bases_per_second: int = 0
    sample_rates_hz: tuple[int, ...] = ()

    def __str__(self) -> str:
        rates = ", ".join(f"{rate / 1000:g} kHz" for rate in self.sample_rates_hz)
        speed = f"({self.bases_per_second} bases/s)" if self.bases_per_second else ""
        pore = self.pore.upper() or ("" if self.molecule.startswith("rna") else "an unknown pore")
        return " ".join(filter(None, [pore, self.molecule.upper(), speed, rates and f"at {rates}"]))

    @property
    def known(self) -> bool:
        """Whether models can be told from each other by it."""
        return bool(self.molecule and (self.pore or self.molecule.startswith("rna")))

    def fits(self, run: "Chemistry") -> bool:
        """Whether a model of this chemistry is for a run of that one; speeds and rates count where both are known."""
        if (self.molecule, self.pore) != (run.molecule, run.pore):
            return False
        if self.bases_per_second and run.bases_per_second and self.bases_per_second != run.bases_per_second:
            return False
        return not (self.sample_rates_hz and run.sample_rates_hz) or run.sample_rates_hz[0] in self.sample_rates_hz


def chemistry_of_model(name: str, sample_rates_hz: tuple[int, ...] = ()) -> Chemistry:
    """What ONT's way of naming models says: `dna_r10.4.1_e8.2_400bps_fast@v4.3.0`; all unknown for other names."""
    match = _MODEL_NAME.match(name)
    if match is None:
        return Chemistry()
    pore = match["pore"] or ""
    speed = int(match["speed"] or (450 if pore.startswith("r9.") and match["molecule"] == "dna" else 0))
    if not sample_rates_hz and pore.startswith("r9."):
        sample_rates_hz = (4000,)  # of every R9.4.1 run
    if not sample_rates_hz and pore == "r10.4.1":
        sample_rates_hz = (5000,) if speed == 400 and release_of(match["release"]) >= _FIRST_5_KHZ else (4000,)
    return Chemistry(match["molecule"] + match["version"], pore, speed, sample_rates_hz)


def chemistry_of_run(flow_cell_product_code: str, sequencing_kit: str, sample_rate_hz: int) -> Chemistry:
    """What a run's flow cell and kit say; kits of the 114 series go with R10.4.1, RNA kits name their molecule."""
    product, kit = flow_cell_product_code.strip().upper(), sequencing_kit.strip().upper()
    match = _PRODUCT.match(product)
    if kit.startswith("SQK-RNA004") or (match and match["suffix"].endswith("RA")):
        return Chemistry("rna004", "", 130, (sample_rate_hz,) if sample_rate_hz else ())
    rates = (sample_rate_hz,) if sample_rate_hz else ()
    if kit.startswith(("SQK-RNA001", "SQK-RNA002")):
        return Chemistry("rna002", "", 70, rates)
    pore = _PORES.get(match["number"], "") if match else ""
    if not pore and re.search(r"114(\b|[-.])", kit):
        pore = "r10.4.1"
    return Chemistry("dna" if pore else "", pore, _SPEEDS.get(pore, 0), rates)


def release_of(text: str) -> tuple[int, ...]:
    """`4.10.0` as numbers, which compare as releases do."""
    return tuple(int(part) for part in text.split("."))
