"""Indexes made to crash, hang or mislead: each is refused by name before minimap2 or a card sees it."""

import gzip
import hashlib
import json
import logging
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mappy
import numpy as np
import pytest

from porestream.kernels.align.aligner import PRESETS, load_reference
from porestream.kernels.align.fasta import INDEX_MAGIC, ReferenceFileError, read_fasta
from porestream.kernels.align.index import Index, build_index, load_index
from porestream.kernels.align.mmi import read_contents

BASES = "".join(np.random.default_rng(18).choice(list("ACGT"), 20_000))
BITS = 14
FIRST_BUCKET = 24 + 2 * (1 + 1 + 4)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "r.fa"
    path.write_text(f">a\n{BASES}\n>b\n{BASES[:3000]}NNNN{BASES[5000:9000]}\n")
    return path


@pytest.fixture(scope="module")
def mmi(fasta: Path) -> bytes:
    out = fasta.with_name("r.mmi")
    mappy.Aligner(str(fasta), preset="map-ont", fn_idx_out=str(out))
    return out.read_bytes()


@pytest.fixture(scope="module")
def psindex(fasta: Path) -> bytes:
    out = fasta.with_name("r.psindex")
    build_index(fasta, read_fasta(fasta), PRESETS["map-ont"], out)
    return out.read_bytes()


Change = tuple[int, bytes]


def buckets(mmi: bytes) -> list[tuple[int, int, int, int]]:
    """Of each bucket where its number of positions stands, and that number; the same of its keys."""
    found, at = [], FIRST_BUCKET
    for _ in range(1 << BITS):
        (n,) = struct.unpack_from("<I", mmi, at)
        keys_at = at + 4 + 8 * n
        (m,) = struct.unpack_from("<I", mmi, keys_at)
        found.append((at, n, keys_at, m))
        at = keys_at + 4 + 16 * m
    return found


def crowd(mmi: bytes, n: int) -> bytes:
    """An index with one bucket of keys that all have one place in the hash table."""
    pairs = np.stack([np.arange(n, dtype=np.uint64) << np.uint64(23 + 1) | np.uint64(1), np.full(n, 100 << 1)], 1)
    body = struct.pack("<II", 0, n) + pairs.astype("<u8").tobytes()
    return b"MMI\2" + struct.pack("<5I", 10, 28, 0, 1, 0) + b"\1a" + struct.pack("<I", 8000) + body + bytes(4000)


def with_pair(mmi: bytes, shared: bool, value: int, half: int) -> bytes:
    """The first key of one position, or of several (`shared`), with another value (half 1), or itself changed (0)."""
    for _, _, at, m in buckets(mmi):
        for place in range(at + 4, at + 4 + 16 * m, 16):
            if bool(mmi[place] & 1) != shared:
                return mmi[: place + 8 * half] + struct.pack("<Q", value) + mmi[place + 8 * half + 8 :]
    raise AssertionError


def twice(mmi: bytes) -> bytes:
    """With a key that comes twice: minimap2's assertion ends the process."""
    _, _, at, m = max(buckets(mmi), key=lambda bucket: bucket[3])
    assert m >= 2
    return mmi[: at + 4] + mmi[at + 20 : at + 28] + mmi[at + 12 :]


def header(at: int, value: int) -> Callable[[bytes], bytes]:
    return lambda mmi: mmi[:at] + struct.pack("<I", value) + mmi[at + 4 :]


MMI: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "w = 0": (header(4, 0), "its w is 0, but must be 1 to 255"),
    "w = 256": (header(4, 256), "its w is 256"),
    "k = 0": (header(8, 0), "its k is 0, but must be 1 to 28"),
    "k = 2**32 - 1": (header(8, 2**32 - 1), "its k is 4294967295, but must be 1 to 28"),
    "bits": (header(12, 31), "its number of bucket bits is 31, but must be 0 to 20"),
    "sequences": (header(16, 2**32 - 1), "truncated"),
    "flags": (header(20, 8), "its flags is 8"),
    "length": (header(26, 2**32 - 1), "truncated"),
    "shorter": (header(26, 100), "a position is outside all sequences"),
    "positions": (header(FIRST_BUCKET, 2**31), "truncated"),
    "keys": (header(FIRST_BUCKET + 4, 2**31), "truncated"),
    "sequence": (lambda mmi: with_pair(mmi, False, 7 << 32 | 200, 1), "a position is outside all sequences"),
    "position": (lambda mmi: with_pair(mmi, False, 30_000 << 1, 1), "a position is outside all sequences"),
    "early": (lambda mmi: with_pair(mmi, False, 3 << 1, 1), "a position is outside all sequences"),
    "many": (lambda mmi: with_pair(mmi, True, 2**31, 1), "a key points to positions that do not exist"),
    "none": (lambda mmi: with_pair(mmi, True, 0, 1), "a key points to positions that do not exist"),
    "large key": (lambda mmi: with_pair(mmi, False, 1 << 62 | 1, 0), "a key is too large"),
    "twice": (twice, "a key occurs twice"),
    "crowd": (lambda mmi: crowd(mmi, 5000), "too many keys share one slot"),
}


@pytest.mark.parametrize("name", MMI)
def test_a_hostile_mmi_is_refused(mmi: bytes, tmp_path: Path, name: str) -> None:
    change, reason = MMI[name]
    file = tmp_path / "bad.mmi"
    file.write_bytes(change(mmi))
    with pytest.raises(ReferenceFileError, match=reason) as refused:
        load_reference(file, preset="map-ont", cache_dir=None, threads=1)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("name", ["k = 2**32 - 1", "positions", "keys", "many", "twice", "crowd"])
def test_a_poisoned_cached_index_is_built_again(
    fasta: Path, mmi: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """With the digest that it should have: whoever can write there can work it out."""
    caplog.set_level(logging.WARNING)
    aligned = load_reference(fasta, preset="map-ont", cache_dir=tmp_path, threads=1).align("r", BASES[:2000], md=False)
    (cached,) = tmp_path.iterdir()
    whole = cached.read_bytes()
    assert whole[:-32] == mmi
    poisoned = MMI[name][0](mmi)
    cached.write_bytes(poisoned + hashlib.sha256(poisoned).digest())
    found = load_reference(fasta, preset="map-ont", cache_dir=tmp_path, threads=1).align("r", BASES[:2000], md=False)
    assert [(a.reference_name, a.reference_start) for a in found] == [
        (a.reference_name, a.reference_start) for a in aligned
    ]
    assert "cached index is damaged; building it again" in caplog.text
    assert cached.read_bytes() == whole


def test_a_cached_index_of_something_else_is_built_again(
    fasta: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_reference(fasta, preset="map-ont", cache_dir=tmp_path / "cache", threads=1)
    (cached,) = (tmp_path / "cache").iterdir()
    whole = cached.read_bytes()
    for bases, k in ((BASES[1:], 15), (BASES, 17)):
        (tmp_path / "other.fa").write_text(f">a\n{bases}\n>b\n{'C' * 7004}\n")
        mappy.Aligner(str(tmp_path / "other.fa"), k=k, w=10, fn_idx_out=str(cached))
        cached.write_bytes(cached.read_bytes() + hashlib.sha256(cached.read_bytes()).digest())
        load_reference(fasta, preset="map-ont", cache_dir=tmp_path / "cache", threads=1)
        assert cached.read_bytes() == whole
        assert "belongs to another reference; building it again" in caplog.text
        caplog.clear()


LOAD_EACH = """
import resource, sys
from pathlib import Path
from porestream.kernels.align.aligner import load_reference
from porestream.kernels.align.fasta import ReferenceFileError
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
read = Path(sys.argv[1]).read_text()
for file in sys.argv[2:]:
    print(file, end=" ", flush=True)
    try:
        aligner = load_reference(Path(file), preset="map-ont", cache_dir=None, threads=1)
        aligner.align("r", read, md=True)
        print("aligned", flush=True)
    except ReferenceFileError:
        print("refused", flush=True)
"""


def damaged(whole: bytes, rng: random.Random, trial: int, structure: int) -> bytes:
    """Cut, or with a few bytes changed, most of them in the first `structure`."""
    data = bytearray(whole)
    if trial % 5 == 0:
        del data[rng.randrange(len(data)) :]
    for _ in range(rng.randint(0 if trial % 5 == 0 else 1, 3)):
        place = rng.randrange(structure if rng.random() < 0.4 else len(whole))
        if place < len(data):
            data[place] = rng.choice((data[place] ^ 1 << rng.randrange(8), 0, 255))
    return bytes(data)


def test_a_damaged_mmi_is_aligned_to_or_refused(mmi: bytes, tmp_path: Path) -> None:
    rng = random.Random(18)
    files = [tmp_path / f"{trial}.mmi" for trial in range(100)]
    for trial, file in enumerate(files):
        file.write_bytes(damaged(mmi, rng, trial, 40))
    (tmp_path / "read").write_text(BASES[1000:9000])
    command = [sys.executable, "-c", LOAD_EACH, str(tmp_path / "read"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    ends = [line.rpartition(" ")[2] for line in done.stdout.splitlines()]
    assert len(ends) == len(files)
    assert set(ends) == {"aligned", "refused"}


def parts(psindex: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(psindex[8:16], "little")
    first = -(-(20 + length) // 64) * 64
    return json.loads(psindex[20 : 20 + length]), psindex[first:]


def joined(header: Any, arrays: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    head = INDEX_MAGIC + len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(4, "little") + text
    return head.ljust(-(-len(head) // 64) * 64, b"\0") + arrays


def set_array(name: str, place: int, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["arrays"][name].__setitem__(place, value)


def put(*keys: Any, value: object) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_array("bucket", 0, "O"), r"bucket has dtype 'O', not <u4"),
        (set_array("unknown", 0, "|O"), r"unknown has dtype"),
        (set_array("key", 0, "<u8"), r"key has dtype '<u8', not \|u1 or <u2 or <u4"),
        (set_array("start", 0, "<f4"), "start has dtype"),
        (set_array("position", 0, [["a", "O"]]), "position has dtype"),
        (set_array("position", 1, [1 << 61]), "position extends beyond the file"),
        (set_array("position", 1, [-1]), "-1 is not a whole number"),
        (set_array("position", 1, [True]), "True is not a whole number"),
        (set_array("position", 1, [2, 2]), "position has the wrong shape"),
        (set_array("position", 1, [0]), "strand has"),
        (set_array("unknown", 1, [2]), "unknown has the wrong shape"),
        (set_array("start", 2, 1 << 60), "start extends beyond the file"),
        (set_array("start", 2, -64), "-64 is not a whole number"),
        (set_array("start", 2, 1), "start extends beyond the file"),
        (set_array("bucket", 1, [4]), "3 buckets do not fit k"),
        (put("bytes", value=5), "truncated: it has"),
        (put("bytes", value="x"), "'x' is not a whole number"),
        (put("frequent", value=2**31), "frequent = 2147483648 is out of range: 10 to 1000000"),
        (put("preset", "k", value=28), "invalid preset Preset"),
        (put("preset", "k", value=0), "invalid preset Preset"),
        (put("preset", "name", value="x"), "invalid preset Preset"),
        (put("preset", "z", value=1), "TypeError"),
        (put("arrays", value=[]), "damaged"),
        (put("reference", "sequences", 0, 1, value=2**40), "the limit is 2,147,483,647"),
        (put("reference", "sequences", 0, 1, value=19_000), "digest"),
        (put("reference", "sequences", 0, 0, value="b"), "two sequences are named"),
        (put("reference", "sequences", value=[]), "no sequences"),
        (put("reference", value=None), "damaged"),
    ],
)
def test_a_hostile_header_is_refused(
    psindex: bytes, tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    header, arrays = parts(psindex)
    change(header)
    file = tmp_path / "bad.psindex"
    file.write_bytes(joined(header, arrays))
    with pytest.raises(ReferenceFileError, match=reason):
        load_index(file)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"null", b"[" * 100_000, b"\xff", b"9" * 5000])
def test_a_header_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "bad.psindex"
    file.write_bytes(joined(text, b""))
    with pytest.raises(ReferenceFileError, match="the index is damaged"):
        load_index(file)


@pytest.mark.parametrize(
    ("name", "entry", "value", "reason"),
    [
        ("bucket", 0, 1, "bucket does not ascend from 0"),
        ("bucket", 9, 2**32 - 1, "bucket does not ascend from 0"),
        ("bucket", -1, 2**32 - 1, "bucket does not ascend from 0"),
        ("start", 5, 2**32 - 1, "start does not ascend from 0"),
        ("start", -1, 2**31, "start does not ascend from 0"),
        ("position", 3, 2**32 - 1, "a position is outside all sequences"),
        ("position", 3, 0, "a position is outside all sequences"),
        ("unknown", 0, -5, "unknown bases (are|is)"),
        ("unknown", 1, 2**50, "unknown bases (are|is)"),
        ("unknown", 1, 5, "unknown bases (are|is)"),
    ],
)
def test_values_that_lead_outside_are_refused(
    psindex: bytes, tmp_path: Path, name: str, entry: int, value: int, reason: str
) -> None:
    header, arrays = parts(psindex)
    dtype, shape, at = header["arrays"][name]
    changed = np.frombuffer(arrays, np.uint8).copy()
    width = np.dtype(dtype).itemsize
    view = changed[at : at + int(np.prod(shape)) * width].view(dtype)
    view[entry] = value
    file = tmp_path / "bad.psindex"
    file.write_bytes(joined(header, changed.tobytes()))
    with pytest.raises(ReferenceFileError, match=reason):
        load_index(file)


def trace(index: Index, hashes: range) -> int:
    """What the kernel `look_up` does, in Python: an entry outside its array is an IndexError."""
    bits = 2 * index.preset.k - (len(index.bucket) - 1).bit_length() + 1
    found = 0
    for hashed in hashes:
        first, last = int(index.bucket[hashed >> bits]), int(index.bucket[(hashed >> bits) + 1])
        for key in range(first, last):
            for place in range(int(index.start[key]), int(index.start[key + 1])):
                assert int(index.position[place]) < index.offset[-1]
                found += int(index.strand[place >> 3])
    return found


def test_a_damaged_psindex_is_used_or_refused(psindex: bytes, tmp_path: Path) -> None:
    rng, file = random.Random(18), tmp_path / "i.psindex"
    file.write_bytes(psindex)
    trace(load_index(file), range(0, 1 << 30, 1 << 22))
    ends = {"used": 0, "refused": 0}
    header, arrays = parts(psindex)
    text = json.dumps(header).encode()
    for trial in range(300):
        if trial % 2:
            file.write_bytes(damaged(psindex, rng, trial, 2000))
        else:  # with a checksum that fits
            file.write_bytes(joined(damaged(text, rng, trial, len(text)), damaged(arrays, rng, 1, len(arrays))))
        try:
            index = load_index(file)
            trace(index, range(0, 1 << 30, 1 << 24))
            index.codes(0, int(index.offset[-1]))
            ends["used"] += 1
        except ReferenceFileError:
            ends["refused"] += 1
    assert min(ends.values()) > 0


def test_a_zipped_mmi_is_refused(mmi: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.mmi.gz").write_bytes(gzip.compress(mmi))
    with pytest.raises(ReferenceFileError, match=r"it is not a \.mmi, or it is gzipped"):
        load_reference(tmp_path / "r.mmi.gz", preset="map-ont", cache_dir=None, threads=1)
    (tmp_path / "short").write_bytes(b"MMI\2")
    with pytest.raises(ReferenceFileError, match="truncated"):
        read_contents(tmp_path / "short")
