"""Minimizers: NumPy's, the kernel's and the index's against minimap2's steps, and against its own index files."""

import struct
from pathlib import Path

import mappy
import numpy as np
import plain_mapping
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porestream.kernels import emulator
from porestream.kernels.align import index as index_module
from porestream.kernels.align import minimizers as minimizers_module
from porestream.kernels.align.aligner import PRESETS
from porestream.kernels.align.fasta import ReferenceFileError, read_fasta
from porestream.kernels.align.index import build_index, load_index, sequences_of
from porestream.kernels.align.minimizers import minimizers
from porestream.kernels.align.pack import encode_bases
from porestream.kernels.align.sketch import Reads, sketch
from porestream.kernels.device import EmulatedDevice

SIZES = [(preset.k, preset.w) for preset in PRESETS.values()]


@st.composite
def sequences(draw: st.DrawFn) -> str:
    """Of random bases, repeats of short and long units, and N."""
    parts = draw(
        st.lists(
            st.one_of(
                st.text("ACGT", min_size=1, max_size=60),
                st.tuples(st.text("ACGT", min_size=1, max_size=12), st.integers(2, 20)).map(lambda t: t[0] * t[1]),
                st.integers(1, 40).map(lambda n: "N" * n),
                st.integers(1, 60).map(lambda n: "A" * n),
            ),
            min_size=1,
            max_size=8,
        )
    )
    again = draw(st.integers(0, len(parts)))
    return "".join([*parts, *parts[:again]])


def listed(codes: np.ndarray, k: int, w: int) -> list[tuple[int, int, int]]:
    found = minimizers(codes, k, w)
    return list(
        zip(found.position_M.tolist(), found.reverse_M.astype(int).tolist(), found.hash_M.tolist(), strict=True)
    )


@given(sequences(), st.sampled_from([*SIZES, (5, 3), (7, 7)]))
def test_numpy_takes_those_that_minimap2_takes(sequence: str, size: tuple[int, int]) -> None:
    codes = encode_bases(sequence)
    assert listed(codes, *size) == plain_mapping.sketch(codes.tolist(), *size)


@settings(max_examples=20)
@given(sequences(), st.integers(1, 40))
def test_chunks_make_no_difference(sequence: str, chunk: int) -> None:
    codes = encode_bases(sequence)
    whole = listed(codes, 15, 10)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(minimizers_module, "_CHUNK_BASES", chunk)
        assert listed(codes, 15, 10) == whole


@settings(max_examples=25)
@given(st.lists(sequences(), min_size=1, max_size=6), st.sampled_from(SIZES), st.sampled_from(list(emulator.Schedule)))
def test_the_kernel_takes_the_same(reads: list[str], size: tuple[int, int], schedule: emulator.Schedule) -> None:
    device, codes = EmulatedDevice(), [encode_bases(read) for read in reads]
    with emulator.scheduled(schedule):
        found = sketch(device, Reads.of(device, codes), *size)
    for number, read in enumerate(codes):
        there = slice(found.first[number], found.first[number + 1])
        own = list(zip(*(of[there].tolist() for of in (found.position_M, found.reverse_M, found.hash_M)), strict=True))
        assert own == listed(read, *size)


@pytest.mark.parametrize(("k", "w"), [(14, 10), (15, 16), (29, 10), (15, 1)])
def test_what_the_rules_do_not_hold_for_is_refused(k: int, w: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k}, w = {w} is not supported"):
        minimizers(encode_bases("ACGT"), k, w)


# ---- The index


def of_mmi(path: Path) -> list[tuple[int, int, int, int]]:
    """All of a .mmi (index.c, mm_idx_dump), as (sequence, position, strand, hash)."""
    found = []
    with path.open("rb") as file:
        assert file.read(4) == b"MMI\2"
        _, _, bits, sequences, _ = struct.unpack("<5I", file.read(20))
        for _ in range(sequences):
            file.read(file.read(1)[0] + 4)
        for bucket in range(1 << bits):
            positions = np.frombuffer(file.read(8 * struct.unpack("<I", file.read(4))[0]), "<u8")
            pairs = np.frombuffer(file.read(16 * struct.unpack("<I", file.read(4))[0]), "<u8").reshape(-1, 2)
            for key, value in pairs.tolist():
                many = positions[value >> 32 : (value >> 32) + (value & 0xFFFFFFFF)].tolist()
                found += [(key >> 1 << bits | bucket, place) for place in ([value] if key & 1 else many)]
    return sorted((place >> 32, (place & 0xFFFFFFFF) >> 1, place & 1, value) for value, place in found)


def of_index(index: index_module.Index) -> list[tuple[int, int, int, int]]:
    bits = 2 * index.preset.k - (len(index.bucket) - 1).bit_length() + 1
    bucket = np.repeat(np.arange(len(index.bucket) - 1), np.diff(index.bucket)).astype(np.uint64)
    value = np.repeat(bucket << np.uint64(bits) | index.key, np.diff(index.start))
    sequence = np.searchsorted(index.offset, index.position, "right") - 1
    strand = np.unpackbits(np.asarray(index.strand))[: len(index.position)]
    columns = (sequence, index.position - index.offset[sequence], strand, value)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def fasta(folder: Path, sequences: list[str]) -> Path:
    path = folder / "reference.fa"
    path.write_text("".join(f">c{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
    return path


def check_index(path: Path, folder: Path, name: str) -> index_module.Index:
    """Build it, and compare with minimap2's own of the same file."""
    preset = PRESETS[name]
    build_index(path, read_fasta(path), preset, folder / "made")
    index = load_index(folder / "made")
    minimap2 = mappy.Aligner(str(path), k=preset.k, w=preset.w, fn_idx_out=str(folder / "mmi"))
    assert of_index(index) == of_mmi(folder / "mmi")
    for sequence, codes in sequences_of(index):
        assert np.array_equal(codes, encode_bases(minimap2.seq(sequence)))
    assert not list(folder.glob(".made*"))
    return index


@settings(max_examples=10)
@given(st.lists(sequences(), min_size=1, max_size=4), st.sampled_from(sorted(PRESETS)))
def test_index_of_repeats_is_minimap2s(tmp_path_factory: pytest.TempPathFactory, reads: list[str], name: str) -> None:
    folder = tmp_path_factory.mktemp("index")
    check_index(fasta(folder, reads), folder, name)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_index_of_a_bacterium_is_minimap2s(shared_data: Path, tmp_path: Path, name: str) -> None:
    index = check_index(shared_data / "klebsiella_r94/HS11286.fna.gz", tmp_path, name)
    assert index.frequent == {"map-ont": 10, "lr:hq": 50}[name]  # the least that minimap2 has
    assert index.device_bytes / index.offset[-1] < {"map-ont": 2.2, "lr:hq": 1.5}[name]


def test_how_often_a_minimizer_may_occur(tmp_path: Path) -> None:
    """index.c, mm_idx_cal_max_occ: all but 2 in 10,000 of the minimizers occur no more often, less one."""
    rng = np.random.default_rng(2)
    unit = "".join(rng.choice(list("ACGT"), 400))
    text = "".join(rng.choice(list("ACGT"), 20_000)) + unit * 90
    build_index(fasta(tmp_path, [text]), read_fasta(tmp_path / "reference.fa"), PRESETS["map-ont"], tmp_path / "i")
    index = load_index(tmp_path / "i")
    times = sorted(np.diff(index.start).tolist())
    assert index.frequent == times[int((1 - float(np.float32(2e-4))) * len(times))] + 1
    assert 80 < index.frequent < 100


def test_a_human_genome_takes_less_than_1_4_bytes_a_base() -> None:
    """By the arrays' types at its size: minimizers and keys of GRCh38, k 15 and w 10 (553 M, 100 M)."""
    bases, positions, keys = 3_100_000_000, 553_000_000, 100_000_000
    bits = positions.bit_length() - 1 - index_module._KEYS_A_BUCKET_BITS
    key_bytes = 1 if 30 - bits <= 8 else 2
    total = 4 * 2**bits + (key_bytes + 4) * keys + 4 * positions + positions / 8 + bases / 4
    assert total / bases < 1.4


def test_any_window_of_bases(tmp_path: Path) -> None:
    text = "NACGTNNACGTTTTTGCANN"
    build_index(
        fasta(tmp_path, [text, "ACGTA"]), read_fasta(tmp_path / "reference.fa"), PRESETS["map-ont"], tmp_path / "i"
    )
    index, codes = load_index(tmp_path / "i"), encode_bases(text + "ACGTA")
    for first in range(len(codes)):
        for last in range(first, len(codes) + 1):
            assert np.array_equal(index.codes(first, last), codes[first:last])


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    build_index(
        fasta(tmp_path, ["ACGTTGCA" * 20]), read_fasta(tmp_path / "reference.fa"), PRESETS["lr:hq"], tmp_path / "i"
    )
    whole = (tmp_path / "i").read_bytes()
    for damaged, words in (
        (whole[:-1], "truncated: it has"),
        (whole[:100], "truncated or damaged"),
        (whole[:10], "not a porestream index"),
        (b"MMI\2" + whole, "not a porestream index"),
        (whole[:30] + b"x" + whole[31:], "truncated or damaged"),
        (whole + b"x", "truncated: it has"),
    ):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ReferenceFileError, match=words):
            load_index(tmp_path / "damaged")
    with pytest.raises(ReferenceFileError, match="cannot be read"):
        load_index(tmp_path / "missing")


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_module, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        build_index(
            fasta(tmp_path, ["ACGT" * 30]), read_fasta(tmp_path / "reference.fa"), PRESETS["lr:hq"], tmp_path / "i"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["reference.fa"]
