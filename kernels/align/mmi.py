"""Checks minimap2's index files (.mmi) before mappy loads them, and caches them.

mappy trusts a .mmi: a truncated file crashes the process, it silently uses only the first part of a multi-part file,
and out-of-range numbers make it read out of bounds or fill a hash table for hours.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import mappy
import numpy as np
import numpy.typing as npt

from porestream.kernels.align.fasta import Reference, ReferenceFileError, ReferenceSequence, make_reference, md5_of

MAGIC = b"MMI\2"
_MAX_K, _MAX_W = 28, 255  # options.c, mm_check_opt
_HAS_NO_BASES, _FLAGS = 2, 7  # minimap.h: MM_I_NO_SEQ, and all flags together
_MAX_BUCKET_BITS = 20  # minimap2 writes 14
_LEAST_SEQUENCE_BYTES, _LEAST_BUCKET_BYTES = 5, 8
_GROUP_ENTRIES = 1 << 20  # check buckets in groups of about this many entries
_MAX_ALIKE = 100  # keys that may share one slot of a hash table; with minimap2's hashes, about ten do
_ALL = 2**31 - 1
_DIGEST_BYTES = hashlib.sha256().digest_size

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Preset:
    """A minimap2 preset (options.c, mm_set_opt): minimizers of k-mers of `k` bases in windows of `w` k-mers."""

    name: str
    k: int
    w: int


@dataclass(frozen=True, slots=True)
class Contents:
    """A .mmi's `k` and `w`, and sequence lengths in bases by name, in the file's order."""

    k: int
    w: int
    lengths: dict[str, int]


def read_contents(path: Path) -> Contents:
    """Check a .mmi (minimap2's index.c, mm_idx_load) without loading it: every number in it must be in range.

    Sizes are checked against the size of the file before anything is allocated, and positions against their sequences.
    Every key must have its positions and be unique, and not too many may share a slot of minimap2's hash table.

    Raises
    ------
    ReferenceFileError
        The file is truncated or damaged, has several parts or no bases, or two sequences have the same name.
    """
    again = "build it again with minimap2 -d, or give the FASTA"
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            if file.read(len(MAGIC)) != MAGIC:
                raise ReferenceFileError(path, "it is not a .mmi, or it is gzipped", again)
            w, k, bucket_bits, n_sequences, flags = _unpack(file, "<5I")
            if flags & _HAS_NO_BASES:
                raise ReferenceFileError(path, "the index has no bases (--idx-no-seq)", again)
            for name, value, least, most in (
                ("k", k, 1, _MAX_K),
                ("w", w, 1, _MAX_W),
                ("flags", flags, 0, _FLAGS),
                ("number of bucket bits", bucket_bits, 0, min(_MAX_BUCKET_BITS, 2 * k)),
            ):
                if not least <= value <= most:
                    raise ReferenceFileError(
                        path, f"the index is damaged: its {name} is {value}, but must be {least} to {most}", again
                    )
            if (n_sequences * _LEAST_SEQUENCE_BYTES) + (_LEAST_BUCKET_BYTES << bucket_bits) > size:
                raise EOFError
            lengths: dict[str, int] = {}
            for _ in range(n_sequences):
                sequence = _read(file, _unpack(file, "<B")[0], size).decode()
                if sequence in lengths:
                    raise ReferenceFileError(path, f"two sequences are named {sequence!r}", "rename or remove one")
                (lengths[sequence],) = _unpack(file, "<I")
            if fault := _fault_in_buckets(file, size, Contents(k, w, lengths), bucket_bits):
                raise ReferenceFileError(path, f"the index is damaged: {fault}", again)
            file.seek((sum(lengths.values()) + 7) // 8 * 4, os.SEEK_CUR)
        except (EOFError, UnicodeDecodeError) as error:
            raise ReferenceFileError(path, "the index is truncated or damaged", again) from error
        if file.tell() > size:
            raise ReferenceFileError(path, "the index is truncated", again)
        if file.read(len(MAGIC)) == MAGIC:
            raise ReferenceFileError(path, "the index has several parts", "build it with minimap2 -I 16g")
    return Contents(k, w, lengths)


def _fault_in_buckets(file: BinaryIO, size: int, contents: Contents, bits: int) -> str:
    """Return what is wrong with the 2**bits consecutive hash tables; empty if nothing is."""
    lengths = np.array([*contents.lengths.values()], np.uint64)
    group: list[tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint64]]] = []
    entries = 0
    for bucket in range(1 << bits):
        positions, pairs = (
            np.frombuffer(_read(file, width * _unpack(file, "<I")[0], size), "<u8") for width in (8, 16)
        )
        group.append((bucket, positions, pairs))
        entries += len(positions) + len(pairs)
        if entries > _GROUP_ENTRIES or bucket + 1 == 1 << bits:
            if fault := _fault_in(group, lengths, contents.k, bits):
                return fault
            group, entries = [], 0
    return ""


def _fault_in(
    group: list[tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint64]]],
    lengths: npt.NDArray[np.uint64],
    k: int,
    bits: int,
) -> str:
    """Return what is wrong with some buckets, given as number, positions, and alternating keys and values.

    The layout is that of index.c, mm_idx_dump. A key is a hash without its low bits, which are the bucket's number,
    followed by one bit: whether the value is a single position, or the start and count of several.
    """
    one = np.uint64(1)
    low = np.uint64(0xFFFFFFFF)
    n_positions = np.array([len(positions) for _, positions, _ in group], np.uint64)
    n_keys = np.array([len(pairs) // 2 for *_, pairs in group])
    key, value = np.concatenate([pairs for *_, pairs in group]).reshape(-1, 2).T
    is_single, hashed = (key & one).astype(np.bool_), key >> one
    places = np.concatenate([*(positions for _, positions, _ in group), value[is_single]])
    sequence, at = places >> np.uint64(32), (places & low) >> one  # sketch.c: the k-mer's last base
    if len(places) and (sequence.max() >= len(lengths) or np.any(at >= lengths[sequence]) or at.min() < k - 1):
        return "a position is outside all sequences"
    first, count = value[~is_single] >> np.uint64(32), value[~is_single] & low
    if np.any(count == 0) or np.any(first + count > np.repeat(n_positions, n_keys)[~is_single]):
        return "a key points to positions that do not exist"
    bucket = np.repeat(np.array([number for number, *_ in group], np.uint64), n_keys)
    if np.any(hashed >> np.uint64(2 * k - bits)):
        return "a key is too large"
    whole = np.sort(hashed << np.uint64(bits) | bucket)
    if np.any(whole[1:] == whole[:-1]):
        return "a key occurs twice"
    slots = np.array([1 << max(2, (int(count) - 1).bit_length()) for count in n_keys], np.uint64)  # khash.h, kh_resize
    home = np.sort(bucket << np.uint64(32) | hashed & np.repeat(slots - one, n_keys))
    if np.any(home[_MAX_ALIKE:] == home[:-_MAX_ALIKE]):
        return "too many keys share one slot of a hash table"
    return ""


def _read(file: BinaryIO, count: int, size: int) -> bytes:
    """Read `count` bytes from a file of `size` bytes, or raise EOFError."""
    if count > size or len(data := file.read(count)) < count:
        raise EOFError
    return data


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, _read(file, wanted := struct.calcsize(layout), wanted))


def load_index(path: Path, preset: Preset, all_anchors: bool = False) -> tuple[mappy.Aligner, Reference]:
    """Load a .mmi that the user built; its own k and w override the preset's.

    A .mmi stores letters other than ACGT as N, so an md5 is known only for sequences without N.

    Raises
    ------
    ReferenceFileError
        `read_contents` refuses the file, or it is unusable (`make_reference`).
    """
    lengths = read_contents(path).lengths
    make_reference(path, (ReferenceSequence(name, length, "-") for name, length in lengths.items()))
    index = _load(path, preset, all_anchors)
    return index, make_reference(path, (_sequence(index, name) for name in lengths))


def _sequence(index: mappy.Aligner, name: str) -> ReferenceSequence:
    bases = index.seq(name)
    return ReferenceSequence(name, len(bases), None if "N" in bases else md5_of(bases))


def index_fasta(
    path: Path,
    reference: Reference,
    preset: Preset,
    cache_dir: Path | None,
    threads: int,
    all_anchors: bool = False,
) -> mappy.Aligner:
    """Load the index of a FASTA file from the cache, or build it and cache it.

    A cached file ends with the SHA-256 of everything before it, which minimap2 and mappy do not read. If the digest
    does not match, `read_contents` refuses the file, or it belongs to another reference, it is built again. If the
    cache is not writable, a warning is logged.

    Parameters
    ----------
    path, reference
        The file and the result of `read_fasta`.
    preset
        Gives k and w.
    cache_dir
        Created if missing. None means no cache.
    threads
        Threads for building.
    """
    if cache_dir is None:
        return _build(path, preset, threads, None, all_anchors)
    cached = cache_dir / f"{reference.sha256[:32]}.k{preset.k}w{preset.w}.mappy-{mappy.__version__}.mmi"
    if _is_intact(cached) and _is_of(cached, reference, preset):
        return _load(cached, preset, all_anchors)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=cache_dir, prefix=f".{cached.stem}.", suffix=".tmp")
    except OSError as error:
        _log.warning("cannot cache the index of %s: %s", path, error)
        return _build(path, preset, threads, None, all_anchors)
    os.close(handle)
    temporary = Path(name)
    try:
        index = _build(path, preset, threads, temporary, all_anchors)
        try:
            _seal(temporary)
            temporary.replace(cached)
        except (OSError, ReferenceFileError) as error:  # minimap2 does not notice a full disk
            _log.warning("cannot cache the index of %s: %s", path, error)
        return index
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path, preset: Preset, all_anchors: bool) -> mappy.Aligner:
    index = mappy.Aligner(str(path), preset=preset.name, max_chain_skip=_ALL if all_anchors else None)
    if not index:
        raise ReferenceFileError(path, "minimap2 cannot load the index", "build it again, or give the FASTA")
    return index


def _build(path: Path, preset: Preset, threads: int, output: Path | None, all_anchors: bool) -> mappy.Aligner:
    """Build an index; it always has one part (mappy.pyx sets minimap2's batch size, -I, to 2**63 - 1)."""
    return mappy.Aligner(
        str(path),
        preset=preset.name,
        k=preset.k,
        w=preset.w,
        n_threads=threads,
        fn_idx_out=None if output is None else str(output),
        max_chain_skip=_ALL if all_anchors else None,
    )


def _seal(path: Path) -> None:
    read_contents(path)
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def _is_intact(path: Path) -> bool:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = path.stat().st_size - _DIGEST_BYTES
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
            intact = left == 0 and file.read() == digest.digest()
    except FileNotFoundError:
        return False
    except OSError as error:
        _log.warning("cannot read the cached index %s: %s", path, error)
        return False
    if not intact:
        _log.warning("the cached index %s is damaged; building it again", path)
    return intact


def _is_of(path: Path, reference: Reference, preset: Preset) -> bool:
    """Return whether a cached index is safe to load and belongs to this reference; anyone can compute a digest."""
    expected = Contents(preset.k, preset.w, {sequence.name: sequence.length for sequence in reference.sequences})
    try:
        if read_contents(path) == expected:
            return True
        _log.warning("the cached index %s belongs to another reference; building it again", path)
    except (ReferenceFileError, OSError) as error:
        _log.warning("the cached index is damaged; building it again: %s", error)
    return False
