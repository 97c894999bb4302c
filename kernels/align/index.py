"""Builds and loads a reference's index for the device: minimap2's minimizers in flat arrays, in a memory-mapped file.

Minimizers are sorted by hash. A hash's high bits select a `bucket`, which says where the `key`s (the low bits) start;
`start` says where a key's `position`s start. Bytes per base of a human genome (3.1 Gb, k 15, w 10: 553 M positions of
100 M keys, 2**26 buckets): 4 * 0.178 positions + 0.022 strands + 0.032 keys + 0.129 starts + 0.087 buckets + 0.25
bases = 1.23.

File format: `INDEX_MAGIC`, the header's length as uint64, its CRC-32 as uint32, the header (JSON), and each array at a
multiple of 64 bytes.
"""

import contextlib
import json
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pysam

from porestream.kernels.align.fasta import (
    INDEX_MAGIC,
    Reference,
    ReferenceFileError,
    ReferenceSequence,
    make_reference,
)
from porestream.kernels.align.minimizers import minimizer_chunks
from porestream.kernels.align.mmi import Preset
from porestream.kernels.align.pack import AMBIGUOUS_CODE, encode_bases

_ALIGN = 64
_PARTITION_BITS = 8  # hashes are sorted in 2**8 parts, by their first bits
_KEYS_A_BUCKET_BITS = 3  # 2**3 positions per bucket; for a genome, two to seven keys
_OCCURRENCES = {"map-ont": (10, 1_000_000), "lr:hq": (50, 500)}  # options.c: min_mid_occ, max_mid_occ
_FREQUENT = float(np.float32(2e-4))  # options.c: mid_occ_frac
_DTYPES = {
    "bucket": ("<u4",),
    "key": ("|u1", "<u2", "<u4"),
    "start": ("<u4",),
    "position": ("<u4",),
    "strand": ("|u1",),
    "bases": ("|u1",),
    "unknown": ("<i8",),
}
_ARRAYS = tuple(_DTYPES)
_KEY_BITS = {"|u1": 8, "<u2": 16, "<u4": 32}
_MAX_K, _MAX_W = (
    19,
    255,
)  # a hash without its first 8 bits, a position and a strand fit in 64 bits; options.c, mm_check_opt
_CHECKED_ENTRIES = 1 << 24  # at a time

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Index:
    """An index's arrays, mapped from the file.

    Attributes
    ----------
    reference
        The reference that was indexed.
    preset
        The preset that gave k and w.
    frequent
        Mapping ignores minimizers that occur more often than this (map.c, mid_occ).
    bucket
        uint32[2**bits + 1]: where each bucket's keys begin.
    key
        uint8, uint16 or uint32: the low bits of each hash.
    start
        uint32[keys + 1]: where each key's positions begin.
    position
        uint32: position of a k-mer's last base in the concatenated sequences.
    strand
        uint8: one bit per position, highest bit first; 1 means that the other strand's k-mer was hashed.
    bases
        uint8: four bases each, the first in the lowest bits; unknown bases are stored as A.
    unknown
        int64[runs, 2]: start and end of each run of unknown bases.
    offset
        int64[sequences + 1]: where each sequence begins in the concatenation.
    """

    reference: Reference
    preset: Preset
    frequent: int
    bucket: npt.NDArray[np.uint32]
    key: npt.NDArray[np.unsignedinteger[Any]]
    start: npt.NDArray[np.uint32]
    position: npt.NDArray[np.uint32]
    strand: npt.NDArray[np.uint8]
    bases: npt.NDArray[np.uint8]
    unknown: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]

    @property
    def device_bytes(self) -> int:
        """Device memory that the arrays take."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    def codes(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Return the codes of bases `first` to `last` of the concatenation: A 0, C 1, G 2, T 3, unknown 4."""
        packed = np.asarray(self.bases[first // 4 : -(-last // 4)])
        four = packed[:, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)
        codes: npt.NDArray[np.uint8] = four.reshape(-1)[first % 4 : first % 4 + last - first]
        for begin, end in self.unknown[np.searchsorted(self.unknown[:, 1], first, "right") :]:
            if begin >= last:
                break
            codes[max(begin - first, 0) : end - first] = AMBIGUOUS_CODE
        return codes


def build_index(path: Path, reference: Reference, preset: Preset, output: Path, say: Progress = lambda _: None) -> None:
    """Build the index of a FASTA into a file. Takes memory for a few times the longest sequence.

    Parameters
    ----------
    path, reference
        The file and the result of `kernels.align.fasta.read_fasta`.
    preset
        Gives k, w and how often a minimizer may occur.
    output
        The index is written next to this and then renamed, so it is either complete or absent.
    say
        Called with progress messages.

    Raises
    ------
    OSError
        The index cannot be written.
    """
    with _folder_beside(output) as folder:
        sketch = _Sketch(folder, preset)
        offset = 0
        with pysam.FastxFile(str(path), persist=False) as file:
            for number, entry in enumerate(file, 1):
                say(f"minimizers of {entry.name} ({number} of {len(reference.sequences)})")
                sketch.add(encode_bases(entry.sequence or ""), offset)
                offset += len(entry.sequence or "")
        sketch.close()
        say("sorting")
        arrays = sketch.arrays()
        frequent = _frequent(np.diff(arrays["start"]), preset)
        header = {
            "reference": {
                "name": reference.name,
                "sha256": reference.sha256,
                "sequences": [[s.name, s.length, s.md5] for s in reference.sequences],
            },
            "preset": {"name": preset.name, "k": preset.k, "w": preset.w},
            "frequent": frequent,
        }
        temporary = folder / "index"
        with temporary.open("wb") as out:
            _write(out, header, arrays)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(output)


@contextlib.contextmanager
def _folder_beside(output: Path) -> Iterator[Path]:
    """Make a folder of our own, and remove it in the end.

    tempfile's would stay where a signal stops the command between making the folder and noting its name.
    """
    folder = output.with_name(f".{output.name}.{secrets.token_hex(8)}")
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _frequent(counts_K: npt.NDArray[np.unsignedinteger[Any]], preset: Preset) -> int:
    """Return how often a minimizer may occur: index.c, mm_idx_cal_max_occ, in options.c's bounds (mm_mapopt_update)."""
    least, most = _OCCURRENCES[preset.name]
    if len(counts_K) == 0:
        return most
    place = int((1.0 - _FREQUENT) * len(counts_K))
    return min(max(int(np.partition(counts_K, place)[place]) + 1, least), most)


class _Sketch:
    """Collects a reference's minimizers in files, one per range of hashes, and sorts them; also packs its bases."""

    def __init__(self, folder: Path, preset: Preset) -> None:
        self._folder, self._preset = folder, preset
        self._low_bits = 2 * preset.k - _PARTITION_BITS
        self._files = [(folder / f"hashes{part}").open("w+b") for part in range(1 << _PARTITION_BITS)]
        self._bases = (folder / "bases").open("w+b")
        self._rest = np.zeros(0, np.uint8)  # fewer than four bases
        self._unknown: list[npt.NDArray[np.int64]] = []
        self._count = 0

    def add(self, codes_S: npt.NDArray[np.uint8], offset: int) -> None:
        for chunk in minimizer_chunks(codes_S, self._preset.k, self._preset.w):
            low_M = chunk.hash_M & np.uint64((1 << self._low_bits) - 1)
            place_M = (chunk.position_M + offset).astype(np.uint64)
            entry_M = low_M << np.uint64(33) | place_M << np.uint64(1) | chunk.reverse_M
            part_M = (chunk.hash_M >> np.uint64(self._low_bits)).astype(np.uint8)
            order = np.argsort(part_M, kind="stable")
            ends = np.searchsorted(part_M[order], np.arange(len(self._files)), "right")
            for file, entries in zip(self._files, np.split(entry_M[order], ends[:-1]), strict=True):
                file.write(entries.tobytes())
            self._count += len(entry_M)
        none = np.zeros(1, np.int8)
        edges = np.diff(np.concatenate([none, (codes_S == AMBIGUOUS_CODE).view(np.int8), none]))
        self._unknown.append(np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], 1) + offset)
        codes = np.concatenate([self._rest, codes_S & 3])  # code 4 becomes 0
        whole = len(codes) // 4 * 4
        self._bases.write(_pack(codes[:whole]).tobytes())
        self._rest = codes[whole:]

    def close(self) -> None:
        self._bases.write(_pack(np.concatenate([self._rest, np.zeros(-len(self._rest) % 4, np.uint8)])).tobytes())
        for file in (*self._files, self._bases):
            file.close()

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays of `Index`; the large ones are mapped from files."""
        bits = max(_PARTITION_BITS, self._count.bit_length() - 1 - _KEYS_A_BUCKET_BITS)
        key_bits = 2 * self._preset.k - bits
        key_dtype = np.uint8 if key_bits <= 8 else np.uint16 if key_bits <= 16 else np.uint32
        counts_B = np.zeros(1 << bits, np.uint32)
        position, strand = self._mapped("position", np.uint32), self._mapped("strand", np.bool_)
        keys, starts, done = [], [], 0
        for part in range(len(self._files)):
            entry_M = np.fromfile(self._folder / f"hashes{part}", np.uint64)
            (self._folder / f"hashes{part}").unlink()
            entry_M.sort()
            there = slice(done, done + len(entry_M))
            position[there] = (entry_M >> np.uint64(1)).astype(np.uint32)
            strand[there] = (entry_M & np.uint64(1)).astype(np.bool_)
            low_M = entry_M >> np.uint64(33)
            first = np.flatnonzero(np.concatenate([[True], low_M[1:] != low_M[:-1]])[: len(low_M)])
            hash_K = low_M[first] | np.uint64(part << self._low_bits)
            own = slice(part << bits - _PARTITION_BITS, (part + 1) << bits - _PARTITION_BITS)  # a part's own buckets
            in_part = (hash_K >> np.uint64(key_bits)).astype(np.int64) - own.start
            counts_B[own] = np.bincount(in_part, minlength=own.stop - own.start)
            keys.append((hash_K & np.uint64((1 << key_bits) - 1)).astype(key_dtype))
            starts.append((first + done).astype(np.uint32))
            done += len(entry_M)
        size = (self._folder / "bases").stat().st_size
        return {
            "bucket": np.concatenate([[0], np.cumsum(counts_B, dtype=np.uint64)]).astype(np.uint32),
            "key": np.concatenate(keys),
            "start": np.append(np.concatenate(starts), np.uint32(self._count)),
            "position": position,
            "strand": np.packbits(strand),
            "bases": np.memmap(self._folder / "bases", np.uint8, "r") if size else np.zeros(0, np.uint8),
            "unknown": np.concatenate([np.zeros((0, 2), np.int64), *self._unknown]),
        }

    def _mapped(self, name: str, dtype: Any) -> npt.NDArray[Any]:
        """Make an array in a file, with one entry per minimizer."""
        return np.memmap(self._folder / name, dtype, "w+", shape=(max(self._count, 1),))[: self._count]


def _pack(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    four = codes.reshape(-1, 4)
    packed: npt.NDArray[np.uint8] = (four << np.array([0, 2, 4, 6], np.uint8)).sum(axis=1, dtype=np.uint8)
    return packed


def _write(out: BinaryIO, header: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
    at, places = 0, {}
    offsets = {}
    for name in _ARRAYS:
        offsets[name] = at = -(-at // _ALIGN) * _ALIGN
        places[name] = [arrays[name].dtype.str, list(arrays[name].shape), at]
        at += arrays[name].nbytes
    text = json.dumps({**header, "arrays": places, "bytes": at}).encode()
    out.write(INDEX_MAGIC + len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(4, "little") + text)
    first = _first_array(len(text))
    for name in _ARRAYS:
        out.seek(first + offsets[name])
        arrays[name].tofile(out)
    out.truncate(first + at)


def _first_array(header_bytes: int) -> int:
    return -(-(len(INDEX_MAGIC) + 12 + header_bytes) // _ALIGN) * _ALIGN


def index_beside(path: Path, preset: str) -> Path:
    """Return where to look first for a FASTA's index."""
    return path.with_name(f"{path.name}.{preset.replace(':', '-')}.psindex")


def index_name(reference: Reference, preset: Preset) -> str:
    """Return an index's file name, which identifies the reference and the parameters."""
    return f"{reference.sha256[:32]}.k{preset.k}w{preset.w}.{preset.name.replace(':', '-')}.psindex"


def load_index(path: Path) -> Index:
    """Map an index into memory and check it, because kernels do not check its offsets.

    Raises
    ------
    ReferenceFileError
        The file is missing, truncated, damaged, or not a porestream index.
    """
    again = "build it again with porestream index"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(len(INDEX_MAGIC) + 12)
            if head[: len(INDEX_MAGIC)] != INDEX_MAGIC or len(head) < len(INDEX_MAGIC) + 12:
                raise ReferenceFileError(path, "it is not a porestream index, or another version built it", again)
            length = int.from_bytes(head[len(INDEX_MAGIC) : len(INDEX_MAGIC) + 8], "little")
            text = file.read(min(length, size))
    except OSError as error:
        raise ReferenceFileError(path, f"it cannot be read ({error.strerror})", "check the path") from error
    if len(text) < length or zlib.crc32(text) != int.from_bytes(head[len(INDEX_MAGIC) + 8 :], "little"):
        raise ReferenceFileError(path, "the index is truncated or damaged", again)
    try:
        header = json.loads(text)
        first = _first_array(length)
        expected = first + _whole(header["bytes"])
        if size != expected:
            raise ReferenceFileError(path, f"the index is truncated: it has {size:,} of {expected:,} bytes", again)
        index = _index(path, header, first, size)
        _check_values(index)
    except ReferenceFileError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise ReferenceFileError(path, f"the index is damaged ({type(error).__name__}: {error})", again) from error
    return index


def _index(path: Path, header: dict[str, Any], first: int, size: int) -> Index:
    """Check the header and map the arrays, which begin at `first`."""
    about, preset = header["reference"], Preset(**header["preset"])
    reference = make_reference(path, [_sequence(*sequence) for sequence in about["sequences"]])
    if about["sha256"] != reference.sha256 or not isinstance(about["name"], str):
        raise ValueError("the digest does not match the sequences")
    if preset.name not in _OCCURRENCES or not 1 <= _whole(preset.k) <= _MAX_K or not 1 <= _whole(preset.w) <= _MAX_W:
        raise ValueError(f"invalid preset {preset}")
    least, most = _OCCURRENCES[preset.name]
    if not least <= _whole(header["frequent"]) <= most:
        raise ValueError(f"frequent = {header['frequent']} is out of range: {least} to {most}")
    return Index(
        reference=Reference(about["name"], reference.sequences, reference.sha256),
        preset=preset,
        frequent=header["frequent"],
        offset=np.cumsum([0, *(sequence.length for sequence in reference.sequences)], dtype=np.int64),
        **{name: _map(path, name, header["arrays"][name], first, size) for name in _ARRAYS},
    )


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r:.40} is not a whole number")
    return value


def _sequence(name: object, length: object, md5: object) -> ReferenceSequence:
    if not isinstance(name, str) or not isinstance(md5, str):
        raise ValueError("a sequence has no name or no md5")
    return ReferenceSequence(name, _whole(length), md5)


def _map(path: Path, name: str, described: Any, first: int, size: int) -> npt.NDArray[Any]:
    """Map an array of the file, after checking its dtype, shape and place."""
    dtype, shape, at = described
    lengths = tuple(map(_whole, shape))
    if dtype not in _DTYPES[name]:
        raise ValueError(f"{name} has dtype {dtype!r:.40}, not {' or '.join(_DTYPES[name])}")
    if len(lengths) != (2 if name == "unknown" else 1) or (name == "unknown" and lengths[1] != 2):
        raise ValueError(f"{name} has the wrong shape, {lengths!r:.40}")
    begin = first + _whole(at)
    if begin % _ALIGN or begin + math.prod(lengths) * np.dtype(dtype).itemsize > size:
        raise ValueError(f"{name} extends beyond the file")
    if 0 in lengths:
        return np.zeros(lengths, dtype)
    return np.memmap(path, np.dtype(dtype), "r", begin, lengths)


def _check_values(index: Index) -> None:
    """Check that the arrays fit together and all offsets are in range; the kernels do not check again."""
    bases, positions, keys = int(index.offset[-1]), len(index.position), len(index.key)
    buckets = len(index.bucket) - 1
    key_bits = 2 * index.preset.k - buckets.bit_length() + 1
    if buckets < 1 or buckets & (buckets - 1) or not 0 <= key_bits <= _KEY_BITS[index.key.dtype.str]:
        raise ValueError(f"{buckets:,} buckets do not fit k = {index.preset.k} and keys of {index.key.dtype}")
    expected = {"start": keys + 1, "strand": -(-positions // 8), "bases": -(-bases // 4)}
    for name, length in expected.items():
        if len(getattr(index, name)) != length:
            raise ValueError(f"{name} has {len(getattr(index, name)):,} entries, not {length:,}")
    _check_ascending("bucket", index.bucket, keys)
    _check_ascending("start", index.start, positions)
    for part in _parts(index.position):
        if part.min() < index.preset.k - 1 or part.max() >= bases:
            raise ValueError("a position is outside all sequences")
    ends = index.unknown.reshape(-1)  # from, to, from, to
    if len(ends) and (ends[0] < 0 or ends[-1] > bases or np.any(index.unknown[:, 0] >= index.unknown[:, 1])):
        raise ValueError("a run of unknown bases is outside all sequences")
    if np.any(ends[1:] < ends[:-1]):
        raise ValueError("the runs of unknown bases are not in order")


def _check_ascending(name: str, array: npt.NDArray[np.uint32], last: int) -> None:
    """Check that the array ascends from 0 to `last`."""
    if array[0] != 0 or array[-1] != last or any(np.any(part[1:] < part[:-1]) for part in _parts(array)):
        raise ValueError(f"{name} does not ascend from 0 to {last:,}")


def _parts(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the entries in parts; each part includes the first entry of the next."""
    for first in range(0, len(array), _CHECKED_ENTRIES):
        yield np.asarray(array[first : first + _CHECKED_ENTRIES + 1])


def sequences_of(index: Index) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Yield each sequence's name and codes."""
    offset = index.offset
    for sequence, first, last in zip(index.reference.sequences, offset[:-1], offset[1:], strict=True):
        yield sequence.name, index.codes(int(first), int(last))
