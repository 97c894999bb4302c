"""Bases of real reads, where they are at hand, and of the kit's simulated ones, against the CPU's in fp32."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import edlib

from gpu_steps.common import arguments, say
from gpu_steps.opened import kernels_of, open_card
from porestream.client.reads import SignalRead
from porestream.client.sources.pod5_source import Pod5Source
from porestream.models.call.basecaller import Basecaller
from porestream.models.call.card import Card
from porestream.models.files.bundle import load_bundle
from porestream.models.files.catalog import BUNDLED
from porestream.models.scale import Measurement
from porestream.server.start.devices import batch_decoder, network_passes

LEAST_AGREEMENT = 0.99
ROWS = 64
READS = 50
REAL_SETS = {
    "sarscov2_r941": "models/dna_r9.4.1_e8.1_fast@v3.4",
    "klebsiella_r94": "models/dna_r9.4.1_e8.1_fast@v3.4",
    "r1041_5khz": None,
}
"""Folders with a reads.pod5, and the model that fits; None: the bundled one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How two devices' calls of the same reads compare.

    Attributes
    ----------
    agreement
        1 - edits / bases of the longer of the two sequences, over all reads.
    equal
        Number of reads with the same sequence on both.
    """

    reads: int
    bases: int
    agreement: float
    equal: int


def sequence(caller: Basecaller, read: SignalRead) -> str:
    """Return a read's bases; empty if the caller rejects it."""
    info = read.info
    measured = Measurement(
        sample_rate_hz=info.run.sample_rate_hz,
        offset_adc=info.offset_adc,
        scale_pa=info.scale_pa_per_adc,
        open_pore_pa=info.open_pore_level_pa or float("nan"),
        flow_cell_product_code=info.run.flow_cell_product_code,
    )
    try:
        return caller.call_read(read.signal_S, measured).sequence
    except ValueError:
        return ""


def compare(model: Path, reads: Iterable[SignalRead], card: Card) -> Comparison:
    """Call the reads on the CPU in fp32 and on the GPU, and compare them."""
    bundle = load_bundle(model)
    device = kernels_of(card)
    callers = (
        Basecaller(bundle, "fp32"),
        Basecaller(bundle, "auto", card=card, rows=ROWS, decoder=batch_decoder(device, bundle.config),
                   passes=network_passes(device, bundle.config)),
    )  # fmt: skip
    count = equal = bases = edits = 0
    for read in reads:
        ours, theirs = (sequence(caller, read) for caller in callers)
        count, equal, bases = count + 1, equal + (ours == theirs), bases + max(len(ours), len(theirs))
        edits += edlib.align(ours, theirs)["editDistance"] if ours and theirs else max(len(ours), len(theirs))
    return Comparison(reads=count, bases=bases, agreement=1 - edits / max(1, bases), equal=equal)


def main() -> None:
    options = arguments()
    card = open_card(options.device)
    sets = {"simulated": (options.kit / "run.pod5", BUNDLED)}
    for name, model in REAL_SETS.items() if options.data else ():
        path = options.data / name / "reads.pod5"
        if path.is_file():
            sets[name] = path, options.data / model if model else BUNDLED
        else:
            say(name, said=f"not at hand: {path}")
    for name, (path, model_folder) in sets.items():
        found = compare(model_folder, Pod5Source([path], 1 if options.small else READS), card)
        ok = found.agreement >= LEAST_AGREEMENT
        say(name, ok=ok, reads=found.reads, bases=found.bases, agreement=round(found.agreement, 5), equal=found.equal)


if __name__ == "__main__":
    main()
