"""Works out what a run was sequenced with and what a model was trained for, from their names."""

import re
from dataclasses import dataclass

# ONT's naming scheme. bonito's names may include the sample rate (`_5khz_`), and models for SQK-APK114 include the kit.
_MODEL_NAME = re.compile(
    r"^(?:porestream_)?(?P<molecule>dna|rna)(?P<version>\d*)_(?:(?P<pore>r[\d.]+)_)?(?:e[\d.]+_)?"
    r"(?:(?P<rate_khz>\d+)khz_)?(?:(?P<speed>\d+)bps_)?(?:(?P<kit>apk)_)?"
    r"(?P<kind>[a-z]+)@v(?P<release>\d+(\.\d+)*)$"  # anything after this: a modified-base or polishing model
)
# A flow cell's product code gives its pore (source: ONT's flow cell catalogue). 004RA is RNA only.
_PRODUCT = re.compile(r"^FLO-[A-Z]+?(?P<number>\d{3})(?P<suffix>[A-Z]*)$")
_PORES = {
    **dict.fromkeys(("106", "001", "002"), "r9.4.1"),
    "110": "r10",
    "111": "r10.3",
    "112": "r10.4",
    "114": "r10.4.1",
}
_SPEEDS = {"r10.4.1": 400, "r9.4.1": 450}
_RNA_SPEEDS = {"rna002": 70, "rna004": 130}
# Motor proteins as spelled in model names: kits 9 and 10 came with E8, 11 and 12 with E8.1, 14 with E8.2.
_ENZYMES = {"110": "e8", "111": "e8.1", "112": "e8.1", "114": "e8.2"}
_FIRST_5_KHZ = (4, 2)  # first release of the 400 bases/s R10.4.1 models that expects 5 kHz


@dataclass(frozen=True, slots=True, kw_only=True)
class Chemistry:
    """Molecule ("dna", "rna004"), pore ("r10.4.1") and speed of a run or a model; empty or 0 means unknown.

    `sample_rates_hz` are the rates that a model accepts, its own first; a run has one. `kit` is "apk" for SQK-APK114,
    which has its own models, and empty for all others.
    """

    molecule: str = ""
    pore: str = ""
    bases_per_second: int = 0
    sample_rates_hz: tuple[int, ...] = ()
    kit: str = ""

    def __str__(self) -> str:
        rates = ", ".join(f"{rate / 1000:g} kHz" for rate in self.sample_rates_hz)
        speed = f"({self.bases_per_second} bases/s)" if self.bases_per_second else ""
        pore = self.pore.upper() or ("" if self.molecule.startswith("rna") else "an unknown pore")
        kit = f"of kit {self.kit.upper()}" if self.kit else ""
        return " ".join(filter(None, [pore, self.molecule.upper(), kit, speed, rates and f"at {rates}"]))

    @property
    def known(self) -> bool:
        """Whether this is enough to choose a model."""
        return bool(self.molecule and (self.pore or self.molecule.startswith("rna")))

    def fits(self, run: "Chemistry") -> bool:
        """Return whether a model of this chemistry fits a run; speeds and rates count only if both are known."""
        if (self.molecule, self.pore, self.kit) != (run.molecule, run.pore, run.kit):
            return False
        if self.bases_per_second and run.bases_per_second and self.bases_per_second != run.bases_per_second:
            return False
        return not (self.sample_rates_hz and run.sample_rates_hz) or run.sample_rates_hz[0] in self.sample_rates_hz

    def disagrees(self, run: "Chemistry") -> bool:
        """Return whether a model of this chemistry is known not to fit a run; unknown values never disagree."""
        if self.known and run.known:
            return not self.fits(run)
        rates = self.sample_rates_hz, run.sample_rates_hz
        return all(rates) and run.sample_rates_hz[0] not in self.sample_rates_hz


@dataclass(frozen=True, slots=True)
class ModelName:
    """The parts of a model's name; `kind` is "fast", "hac", "sup" or another word, `release` sorts by age."""

    chemistry: Chemistry
    kind: str
    release: tuple[int, ...]


def parse_model_name(name: str, sample_rates_hz: tuple[int, ...] = ()) -> ModelName | None:
    """Parse a name in ONT's scheme, such as `dna_r10.4.1_e8.2_400bps_fast@v4.3.0`; return None for other names.

    Parameters
    ----------
    name
        The model's name, without folders.
    sample_rates_hz
        The rates in its config.toml; they override those implied by the name.
    """
    match = _MODEL_NAME.match(name)
    if match is None:
        return None
    molecule, pore, release = match["molecule"] + match["version"], match["pore"] or "", release_of(match["release"])
    speed = int(match["speed"] or _RNA_SPEEDS.get(molecule, 0))
    if not speed and molecule == "dna" and pore.startswith("r9."):
        speed = 450
    if not sample_rates_hz and match["rate_khz"]:
        sample_rates_hz = (int(match["rate_khz"]) * 1000,)
    if not sample_rates_hz and pore.startswith("r9."):
        sample_rates_hz = (4000,)  # every R9.4.1 run has this rate
    if not sample_rates_hz and pore == "r10.4.1" and not name.startswith("porestream_"):  # our releases start at 1
        sample_rates_hz = (5000,) if speed != 260 and release >= _FIRST_5_KHZ else (4000,)
    return ModelName(
        Chemistry(
            molecule=molecule,
            pore=pore,
            bases_per_second=speed,
            sample_rates_hz=sample_rates_hz,
            kit=match["kit"] or "",
        ),
        match["kind"],
        release,
    )


def chemistry_of_model(name: str, sample_rates_hz: tuple[int, ...] = ()) -> Chemistry:
    """Return the chemistry that a model's name implies; unknown if it is not in ONT's scheme."""
    said = parse_model_name(name, sample_rates_hz)
    return said.chemistry if said else Chemistry()


def chemistry_of_run(flow_cell_product_code: str, sequencing_kit: str, sample_rate_hz: int) -> Chemistry:
    """Return the chemistry of a run from its flow cell and kit; 114 kits imply R10.4.1, RNA kits name the molecule."""
    product, kit = flow_cell_product_code.strip().upper(), sequencing_kit.strip().upper()
    match = _PRODUCT.match(product)
    rates = (sample_rate_hz,) if sample_rate_hz else ()
    if kit.startswith(("SQK-RNA004", "SQK-DRB004")) or (match and match["suffix"].endswith("RA")):
        return Chemistry(molecule="rna004", pore="", bases_per_second=_RNA_SPEEDS["rna004"], sample_rates_hz=rates)
    if kit.startswith(("SQK-RNA001", "SQK-RNA002")):
        return Chemistry(molecule="rna002", pore="", bases_per_second=_RNA_SPEEDS["rna002"], sample_rates_hz=rates)
    pore = _PORES.get(match["number"], "") if match else ""
    if not pore and re.search(r"114(\b|[-.])", kit):
        pore = "r10.4.1"
    if pore == "r10.4.1" and kit.startswith("SQK-APK114"):
        return Chemistry(molecule="dna", pore=pore, bases_per_second=0, sample_rates_hz=rates, kit="apk")
    speed = 260 if pore == "r10.4.1" and kit.endswith("-260") else _SPEEDS.get(pore, 0)
    return Chemistry(molecule="dna" if pore else "", pore=pore, bases_per_second=speed, sample_rates_hz=rates)


def enzyme_warning(model: str, sequencing_kit: str) -> str:
    """Return a warning if the model's motor protein differs from the kit's; empty if it does not.

    Basecalling still works, only a little less accurately: the strand moves at about the same speed.
    """
    name = re.search(r"_(e\d+(\.\d+)?)_", model)
    kit = re.search(r"-[A-Z]+(\d{3})", sequencing_kit.strip().upper())
    enzyme = _ENZYMES.get(kit[1], "") if kit else ""
    if not name or not enzyme or name[1] == enzyme:
        return ""
    return f"{model} is for motor protein {name[1].upper()}, but kit {sequencing_kit.upper()} uses {enzyme.upper()}"


def release_of(text: str) -> tuple[int, ...]:
    """Split `4.10.0` into numbers, so that releases sort correctly."""
    return tuple(int(part) for part in text.split("."))
