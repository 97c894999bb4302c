"""The aligner: its first call, which compiles, later ones, its stages, and its records against those of minimap2."""

import time
from functools import partial

from alignment import compare, timed_kernels
from golden import load_alignments, load_reads

from gpu_steps.common import arguments, median_s, say
from porestream.kernels.align.aligner import PRESETS, load_reference
from porestream.kernels.align.device_aligner import DeviceAligner
from porestream.kernels.align.index import load_index
from porestream.kernels.device import find_kernel_device

LEAST_SAME = 0.99


def main() -> None:
    options = arguments()
    device = find_kernel_device(options.device)
    folder = options.kit / "alignment"
    reads = load_reads(options.kit)
    bases = sum(len(sequence) for _, sequence in reads)
    for preset in PRESETS:
        index = load_index(folder / f"{preset.replace(':', '-')}.psindex")
        minimap2 = load_reference(folder / "genome.fa", preset=preset, cache_dir=None, threads=4, all_anchors=True)
        aligner = DeviceAligner(device, index, minimap2)
        began_s = time.perf_counter()
        found = aligner.align_batch(reads, md=True)
        first_s = time.perf_counter() - began_s
        left = {failure.name.lower(): count for failure, count in aligner.fallbacks.items()}
        ours = [
            aligner.align_elsewhere(*read, md=True) if one is None else one
            for read, one in zip(reads, found, strict=True)
        ]
        compared = compare(ours, load_alignments(options.kit, preset))
        same = compared.kinds["same"] / len(reads)
        say(
            f"{preset}, records",
            ok=same >= LEAST_SAME,
            same=round(same, 4),
            others={kind: count for kind, count in compared.kinds.items() if kind != "same"},
            left_to_minimap2=left,
        )
        second_s = median_s(partial(aligner.align_batch, reads, md=True), 1 if options.small else 3)
        say(
            f"{preset}, speed",
            bases=bases,
            first_s=round(first_s, 2),
            later_s=round(second_s, 3),
            M_bases_a_s=round(bases / second_s / 1e6, 2),
        )
        with timed_kernels(device) as seconds:
            aligner.align_batch(reads, md=True)
        say(f"{preset}, stages", **{f"{name}_ms": round(1e3 * taken_s, 2) for name, taken_s in seconds.items()})


if __name__ == "__main__":
    main()
