"""The whole aligner on the emulator against minimap2 (mappy, every anchor looked at): simulated, real, odd reads."""

import asyncio
import re
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pod5
import pytest
import simulated_reads as simulated
from alignment import Comparison, compare, kind_of

from porestream.cli.embedded import embedded_server
from porestream.client import BasecallClient, Pod5Source
from porestream.kernels import emulator, source
from porestream.kernels.align import chain, device_aligner, hits
from porestream.kernels.align.aligner import PRESETS, REVERSE, Alignment, MappyAligner, load_reference
from porestream.kernels.align.device_aligner import DeviceAligner
from porestream.kernels.align.fasta import read_fasta
from porestream.kernels.align.hits import Failure
from porestream.kernels.align.index import build_index, load_index
from porestream.kernels.align.mmi import Preset
from porestream.kernels.align.sketch import Reads
from porestream.kernels.device import Device, EmulatedDevice
from porestream.kernels.emulator.sanitize import Kind, SanitizerMissingError, find_runtime, run_sanitized
from porestream.kernels.source import read_source

Read = tuple[str, str]


def aligners(folder: Path, reference: Path, preset: Preset) -> tuple[DeviceAligner, MappyAligner]:
    """Ours, and minimap2."""
    minimap2 = load_reference(reference, preset=preset.name, cache_dir=None, threads=2, all_anchors=True)
    build_index(reference, read_fasta(reference), preset, folder / "index")
    return DeviceAligner(EmulatedDevice(), load_index(folder / "index"), minimap2), minimap2


def write_fasta(path: Path, sequences: list[str]) -> Path:
    path.write_text("".join(f">c{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
    return path


def check(result: Comparison) -> None:
    assert result.sure_same_place >= 0.995 * result.sure
    assert result.mapq_near >= 0.95 * result.mapped
    assert result.score_at_least >= 0.97 * result.mapped


def check_cigars(reads: list[Read], found: list[list[Alignment]], sequences: dict[str, str]) -> None:
    """Counted anew, a base at a time: each spans its read and interval, with the score and NM that the record has."""
    for (_, bases), alignments in zip(reads, found, strict=True):
        for alignment in alignments:
            read = simulated.reverse_complement(bases) if alignment.flag & REVERSE else bases
            target = sequences[alignment.reference_name]
            q, t, score, edits = 0, alignment.reference_start, 0, 0
            for operation in alignment.cigar.tolist():
                kind, length = operation & 15, operation >> 4
                if kind == 4:
                    q += length
                elif kind == 0:
                    for a, b in zip(read[q : q + length], target[t : t + length], strict=True):
                        score += -1 if "N" in (a, b) else 2 if a == b else -4
                        edits += a != b or a == "N"
                    q, t = q + length, t + length
                else:
                    score -= min(4 + 2 * length, 24 + length)
                    edits += length
                    q, t = (q + length, t) if kind == 1 else (q, t + length)
            assert (q, t) == (len(read), alignment.reference_end)
            assert (score, edits) == (alignment.score, alignment.edit_distance)


@pytest.mark.parametrize(("preset", "count", "seed"), [("map-ont", 150, 1), ("lr:hq", 100, 2)])
def test_simulated_reads_are_aligned_as_minimap2_does(tmp_path: Path, preset: str, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sequences = simulated.genome(rng)
    ours, minimap2 = aligners(tmp_path, write_fasta(tmp_path / "g.fa", sequences), PRESETS[preset])
    reads = simulated.reads(rng, sequences, count)
    found = all_of(ours, reads)
    result = compare(found, [minimap2.align(name, bases, md=True) for name, bases in reads])
    check(result)
    assert result.kinds["same"] >= 0.98 * count, result.kinds
    assert ours.fallbacks.total() <= 0.08 * count, ours.fallbacks
    check_cigars(reads, found, {f"c{number}": sequence for number, sequence in enumerate(sequences)})
    flags = {alignment.flag & ~REVERSE for alignments in found for alignment in alignments}
    assert flags == {0, 256, 2048}


async def call(address: str, file: Path, most: int) -> list[Read]:
    """The reads of a file with the fewest samples, called."""
    with pod5.Reader(file) as reader:
        shortest = sorted(reader.reads(), key=lambda read: read.num_samples)[:most]
        source = Pod5Source([file], read_ids=frozenset(read.read_id.bytes for read in shortest))
    results = [result async for result in BasecallClient(address).call(source) if result.parts]
    return sorted((str(result.info.read_id), result.parts[0].sequence) for result in results)


@pytest.fixture(scope="module")
def called(shared_data: Path) -> dict[str, list[Read]]:
    """Real reads, called here."""
    model = shared_data / "models/dna_r9.4.1_e8.1_fast@v3.4"

    async def call_all() -> dict[str, list[Read]]:
        async with embedded_server(["--model", str(model)]) as address:
            return {
                name: await call(address, shared_data / name / "reads.pod5", most)
                for name, most in (("sarscov2_r941", 100), ("klebsiella_r94", 12))
            }

    return asyncio.run(call_all())


@pytest.mark.parametrize(
    ("name", "reference", "preset"),
    [
        ("sarscov2_r941", "reference.fasta", "map-ont"),
        ("klebsiella_r94", "HS11286.fna.gz", "map-ont"),
        ("klebsiella_r94", "HS11286.fna.gz", "lr:hq"),
    ],
)
def test_real_reads_are_aligned_as_minimap2_does(
    called: dict[str, list[Read]], shared_data: Path, tmp_path: Path, name: str, reference: str, preset: str
) -> None:
    ours, minimap2 = aligners(tmp_path, shared_data / name / reference, PRESETS[preset])
    result = compare(all_of(ours, called[name]), [minimap2.align(name, bases, md=True) for name, bases in called[name]])
    check(result)
    assert result.mapped > 0.7 * len(called[name])
    assert result.kinds["same"] >= 0.95 * len(called[name]), result.kinds


# ---- Edges


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeviceAligner, MappyAligner, list[str]]:
    """Many short sequences, one with N inside and at its ends, one like a plasmid that was cut in a repeat."""
    folder, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(5)
    sequences = [simulated.random_bases(rng, int(rng.integers(300, 3000))) for _ in range(60)]
    sequences[7] = "N" * 50 + sequences[7] + "N" * 200 + simulated.random_bases(rng, 800) + "N"
    end = simulated.random_bases(rng, 700)
    sequences[8] = end + simulated.random_bases(rng, 4000) + end
    ours, minimap2 = aligners(folder, write_fasta(folder / "s.fa", sequences), PRESETS["map-ont"])
    return ours, minimap2, sequences


def all_of(ours: DeviceAligner, reads: list[Read]) -> list[list[Alignment]]:
    """In a batch; what the device cannot take, elsewhere."""
    return [
        ours.align_elsewhere(name, bases, md=True) if found is None else found
        for (name, bases), found in zip(reads, ours.align_batch(reads, md=True), strict=True)
    ]


def both(small: tuple[DeviceAligner, MappyAligner, list[str]], reads: list[Read]) -> Counter[str]:
    ours, minimap2, _ = small
    theirs = [minimap2.align(name, bases, md=True) for name, bases in reads]
    found = all_of(ours, reads)
    one_by_one = [ours.align(name, bases, md=True) for name, bases in reads[:20]]
    assert [kind_of(a, b) for a, b in zip(one_by_one, found, strict=False)] == ["same"] * len(one_by_one)
    return Counter(kind_of(*pair) for pair in zip(found, theirs, strict=True))


def test_reads_of_any_length_and_letters(small: tuple[DeviceAligner, MappyAligner, list[str]]) -> None:
    sequences, rng = small[2], np.random.default_rng(6)
    reads = [
        ("one", "A"),
        ("two", "NN"),
        ("nothing known", "N" * 500),
        ("short", sequences[3][100:124]),
        ("least", sequences[3][100:160]),
        ("no such place", simulated.random_bases(rng, 2000)),
        ("all of it", sequences[4]),
        ("over both ends", simulated.random_bases(rng, 300) + sequences[5] + simulated.random_bases(rng, 300)),
        ("over N", sequences[7].replace("N", "A")),
        ("with N", sequences[6][:200] + "NNNNN" + sequences[6][205:]),
        ("over the cut", sequences[8][3000:] + sequences[8][700:2000]),
        ("repeat", sequences[8][:700]),
        ("two of them", sequences[10] + simulated.reverse_complement(sequences[11])),
        ("lower", sequences[12].lower()),
        *((f"end {i}", simulated.with_errors(rng, sequences[i][-400:], 0.05)) for i in range(20, 40)),
    ]
    assert set(both(small, reads)) == {"same"}


@pytest.mark.parametrize("schedule", [emulator.Schedule.REVERSE, emulator.Schedule.RANDOM])
def test_the_order_of_threads_makes_no_difference(
    small: tuple[DeviceAligner, MappyAligner, list[str]], schedule: emulator.Schedule
) -> None:
    ours, sequences, rng = small[0], small[2], np.random.default_rng(4)
    reads = simulated.reads(rng, sequences, 12, longest=2000)
    expected = all_of(ours, reads)
    with emulator.scheduled(schedule):
        found = all_of(ours, reads)
    assert [kind_of(*pair) for pair in zip(found, expected, strict=True)] == ["same"] * 12


def test_warming_up_takes_all_the_steps(
    small: tuple[DeviceAligner, MappyAligner, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: set[str] = set()
    original = source._kernel

    def noted(device: Device, file: str, kernel: str, macros: tuple[str, ...]) -> source.Kernel:
        started.add(kernel)
        return original(device, file, kernel, macros)

    monkeypatch.setattr(source, "_kernel", noted)
    small[0].warm_up()
    of_files = {
        kernel
        for file in ("sketch.cu", "seeds.cu", "chain.cu", "hits.cu", "fill.cu", "extend.cu", "pack.cu")
        for kernel in re.findall(r'extern "C" __global__ void (?:__launch_bounds__\(.*?\)\s*)?(\w+)', read_source(file))
    }
    assert started >= of_files - {"chain_far"}, of_files - started


def test_nothing_to_align(small: tuple[DeviceAligner, MappyAligner, list[str]]) -> None:
    assert small[0].align_batch([], md=True) == []
    assert small[0].align("x", "", md=False) == []


def test_md_only_where_it_is_asked_for(small: tuple[DeviceAligner, MappyAligner, list[str]]) -> None:
    with_md, without = (small[0].align("x", small[2][4], md=md)[0] for md in (True, False))
    assert with_md.md
    assert kind_of([replace(with_md, md="")], [without]) == "same"


def test_a_read_of_500_kb(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    sequence = simulated.random_bases(rng, 540_000)
    ours, minimap2 = aligners(tmp_path, write_fasta(tmp_path / "g.fa", [sequence]), PRESETS["lr:hq"])
    reads = [("long", simulated.with_errors(rng, sequence[20_000:520_000], 0.04))]
    found, theirs = all_of(ours, reads), [minimap2.align("long", reads[0][1], md=True)]
    assert kind_of(found[0], theirs[0]) in {"same", "cigar"}
    assert not ours.fallbacks


class Taken:
    """Stands for an array of a batch."""


def test_what_does_not_fit_is_halved_with_the_memory_given_back(
    small: tuple[DeviceAligner, MappyAligner, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, sequences = small[0], small[2]
    reads = [(f"r{i}", sequences[i]) for i in range(9)]
    expected = ours.align_batch(reads, md=True)
    tried: list[int] = []
    taken: list[weakref.ref[Taken]] = []
    real = device_aligner.find_anchors

    def tight(device: EmulatedDevice, index: object, of: Reads, found: object) -> object:
        assert not [one for one in taken if one() is not None], "the batch before still holds its memory"
        array = Taken()
        taken.append(weakref.ref(array))
        tried.append(len(of))
        if len(of) > 2 or len(sequences[4]) in of.length:
            raise MemoryError("no room")
        return real(device, index, of, found)  # type: ignore[arg-type]

    monkeypatch.setattr(device_aligner, "find_anchors", tight)
    before = Counter(ours.fallbacks)
    found = ours.align_batch(reads, md=True)
    assert [number for number, one in enumerate(found) if one is None] == [4]
    same = [kind_of(mine or [], other or []) for mine, other in zip(found, expected, strict=True)]
    assert same[:4] + same[5:] == ["same"] * 8
    assert tried[:3] == [9, 4, 2]
    assert ours.fallbacks - before == Counter({Failure.MEMORY: 1})


@pytest.mark.parametrize(("where", "name", "value", "reason"), [
    (hits, "MAX_ROWS", 100, Failure.SIZE),
    (chain, "MAX_CHAINS", 0, Failure.WORK), (chain, "MAX_LINKS", 10, Failure.WORK),
])  # fmt: skip
def test_what_the_device_cannot_take_is_minimap2s(
    small: tuple[DeviceAligner, MappyAligner, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    name: str,
    value: int,
    reason: Failure,
) -> None:
    ours, minimap2, sequences = small
    monkeypatch.setattr(where, name, value)
    before = Counter(ours.fallbacks)
    found = ours.align("r", sequences[4], md=True)
    assert kind_of(found, minimap2.align("r", sequences[4], md=True)) == "same"
    assert ours.fallbacks - before == Counter({reason: 1})


def test_an_inversion_is_minimap2s(small: tuple[DeviceAligner, MappyAligner, list[str]]) -> None:
    """Its score falls where the read goes backwards: there minimap2 splits, or looks for an inversion."""
    sequence = max(small[2][20:], key=len)
    bases = sequence[:900] + simulated.reverse_complement(sequence[900:1400]) + sequence[1400:]
    before = Counter(small[0].fallbacks)
    assert set(both(small, [("inverted", bases)])) == {"same"}
    assert set(small[0].fallbacks - before) == {Failure.DROPS}


SANITIZED = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {benchmarks!r})
import simulated_reads as simulated
from porestream.kernels.align.aligner import PRESETS, load_reference
from porestream.kernels.device import Device, EmulatedDevice, Launch
from porestream.kernels.align.device_aligner import DeviceAligner
from porestream.kernels.align.hits import Failure
from porestream.kernels.align.index import build_index, load_index
from porestream.kernels.align.fasta import read_fasta

rng, folder = np.random.default_rng(3), Path({folder!r})
unit = simulated.random_bases(rng, 500)
sequences = [simulated.random_bases(rng, 1500) + unit + "N" * 20 + simulated.random_bases(rng, 900), unit + unit]
(folder / "g.fa").write_text("".join(f">c{{i}}\\n{{bases}}\\n" for i, bases in enumerate(sequences)))
build_index(folder / "g.fa", read_fasta(folder / "g.fa"), PRESETS["map-ont"], folder / "i")
minimap2 = load_reference(folder / "g.fa", preset="map-ont", cache_dir=None, threads=1, all_anchors=True)
aligner = DeviceAligner(EmulatedDevice(sanitize={kind!r}), load_index(folder / "i"), minimap2)
reads = [("a", sequences[0][100:1300]), ("b", simulated.with_errors(rng, sequences[0][1300:2000], 0.05)), ("c", "ACGT"),
         ("d", simulated.reverse_complement(sequences[1])), ("e", sequences[0][:600] + sequences[0][900:1500])]
for alignments in aligner.align_batch(reads, md=True):
    print([(a.flag, a.reference_name, a.reference_start) for a in alignments or []])
print("done", dict(aligner.fallbacks))
"""


@pytest.mark.parametrize("kind", ["address", "thread"])
def test_sanitizers_are_silent(kind: Kind, tmp_path: Path) -> None:
    try:
        find_runtime(kind)
    except SanitizerMissingError as error:
        pytest.skip(str(error))
    script = SANITIZED.format(benchmarks=str(Path(simulated.__file__).parent), folder=str(tmp_path), kind=kind)
    done = run_sanitized(kind, script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("done {}\n"), done.stdout
    assert "'c0', 100" in done.stdout
