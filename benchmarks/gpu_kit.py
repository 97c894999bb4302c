"""Make a kit on a machine without a GPU; benchmarks/gpu_first.py checks a GPU with it, without a network.

    python benchmarks/gpu_kit.py gpu-kit                       golden results, for this environment
    python benchmarks/gpu_kit.py gpu-kit --wheels python3.12   and wheels, for a machine with that Python

The kit is a folder: what each kernel makes of its inputs (on the emulator), each network's scores and bases and
minimap2's records (on the CPU), a small POD5 file, and wheels of what the GPU's machine is not assumed to have
(gpu_steps/packages.py). Take it and this repository there.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import alignment
import golden
import numpy as np
from gpu_steps.networks import SHAPES, SMALL_SHAPES
from gpu_steps.packages import ASSUMED, CARRIED
from kernel_check import cases

from porestream.kernels.align.aligner import PRESETS, load_reference
from porestream.kernels.align.fasta import read_fasta
from porestream.kernels.align.index import build_index
from porestream.kernels.device import find_kernel_device
from porestream.models.simulate.sequence import decode, random_bases

ROOT = Path(__file__).resolve().parent.parent
TITLE = "A kit for benchmarks/gpu_first.py"
LARGEST_BYTES = 64 << 20
"""Of the kit and the repository together."""
PLATFORMS = (
    "manylinux_2_34_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "linux_x86_64",
)
WITHOUT_A_WHEEL = ("mappy",)
"""Built from source, with the given Python: PyPI has no wheels of them."""


def make_kernels(kit: Path, small: bool) -> None:
    """Compute every kernel case on the emulator."""
    device = find_kernel_device("emulated")
    for case in cases(small):
        inputs = case.inputs()
        golden.save_case(kit, case, case.compute(device, inputs), inputs)


def make_networks(kit: Path, small: bool) -> None:
    """Compute every network on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        for shape in SMALL_SHAPES if small else SHAPES:
            golden.save_network(kit, shape, golden.network_result(shape, Path(folder) / shape))


def make_alignments(kit: Path, small: bool) -> None:
    """Make up a genome and reads, index it, and align with minimap2."""
    folder = kit / "alignment"
    folder.mkdir(parents=True)
    reference, reads = alignment.made_up(folder, 6 if small else 2000)
    golden.save_reads(kit, reads)
    for preset in PRESETS:
        build_index(reference, read_fasta(reference), PRESETS[preset], folder / f"{preset.replace(':', '-')}.psindex")
        minimap2 = load_reference(reference, preset=preset, cache_dir=None, threads=2, all_anchors=True)
        golden.save_alignments(kit, preset, [minimap2.align(*read, md=True) for read in reads])


def make_run(kit: Path, small: bool) -> None:
    """Simulate a POD5 file of R10.4.1 reads."""
    with tempfile.TemporaryDirectory() as name:
        reference = Path(name) / "reference.fasta"
        reference.write_text(f">made_up\n{decode(random_bases(50_000, np.random.default_rng(1)))}\n")
        command = [sys.executable, "-m", "porestream.cli.main", "simulate", str(reference), "-o", str(kit / "run.pod5")]
        command += ["--reads", "4" if small else "60", "--length-mean", "1000" if small else "4400", "--seed", "1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def make_wheels(kit: Path, python: str) -> None:
    """Collect wheels for another Python, which must be installed here: the project's, and locked versions of others.

    Raises
    ------
    SystemExit
        A wheel can be neither found nor built.
    """
    wheels = kit / "wheels"
    wheels.mkdir()
    version = _output(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    locked = dict(line.strip().split("==") for line in (ROOT / "requirements.lock").open() if "==" in line)
    pinned = {_normal(name): number for name, number in locked.items()}
    _output(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT))
    for name in CARRIED:
        if name == "porestream":
            continue
        wanted = f"{name}=={pinned[name]}" if name in pinned else name
        if name in WITHOUT_A_WHEEL:
            _output(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), wanted)
            continue
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        _output(python, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", version,
                *platforms, "-d", str(wheels), wanted)  # fmt: skip


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr.strip()}")
    return done.stdout


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def repository_bytes() -> int:
    """Return the size of the files in the repository that git knows."""
    files = _output("git", "-C", str(ROOT), "ls-files", "-z").split("\0")
    return sum(path.stat().st_size for name in files if name and (path := ROOT / name).is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path, help="folder to make; one that is there is made anew")
    parser.add_argument("--wheels", metavar="PYTHON", help="also collect wheels for this interpreter's version")
    parser.add_argument("--small", action="store_true", help="few small cases, for a rehearsal")
    options = parser.parse_args()
    kit: Path = options.kit
    marker = kit / "README.txt"
    if kit.exists():
        if any(kit.iterdir()) and not (marker.is_file() and marker.read_text(errors="replace").startswith(TITLE)):
            raise SystemExit(f"{kit} is not empty and is not a kit; name another folder")
        shutil.rmtree(kit)
    kit.mkdir(parents=True)
    marker.write_text(
        f"{TITLE} of the repository that made it: python benchmarks/gpu_first.py --kit THIS\n"
        f"Assumed to be on the GPU's machine: {', '.join(ASSUMED)}.\n"
        f"Wheels in the kit, if there are any: {', '.join(CARRIED)}.\n"
    )
    for name, make in (
        ("kernels", make_kernels),
        ("networks", make_networks),
        ("alignments", make_alignments),
        ("run", make_run),
    ):
        began_s = time.monotonic()
        make(kit, options.small)
        print(f"{name}: {time.monotonic() - began_s:.0f} s", flush=True)
    if options.wheels:
        make_wheels(kit, options.wheels)
    size, ours = folder_bytes(kit), repository_bytes()
    print(f"{kit}: {size / 2**20:.1f} MiB; the repository: {ours / 2**20:.1f} MiB")
    if size + ours > LARGEST_BYTES:
        raise SystemExit(f"together they are larger than {LARGEST_BYTES >> 20} MiB")


if __name__ == "__main__":
    main()
