"""minimap2's index files (.mmi): checking them before mappy loads them, and keeping a cache of them.

mappy trusts a .mmi: a truncated one crashes the process, of a multi-part one it silently uses the first part.
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

from porestream.kernels.reference import Reference, ReferenceFileError, ReferenceSequence, make_reference, md5_of

MAGIC = b"MMI\2"
_HAS_NO_BASES = 2  # minimap.h: MM_I_NO_SEQ
_MAX_BUCKET_BITS = 30  # minimap2 writes 14
_ALL = 2**31 - 1
_DIGEST_BYTES = hashlib.sha256().digest_size

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Preset:
    """minimap2's preset and its minimizers (options.c, mm_set_opt): k-mers of `k` bases, windows of `w` of them."""

    name: str
    k: int
    w: int


def read_lengths(path: Path) -> dict[str, int]:
    """Walk through a .mmi (minimap2's index.c, mm_idx_load) without loading it.

    Returns
    -------
    dict[str, int]
        Length in bases by name, in the file's order.

    Raises
    ------
    ReferenceFileError
        If the file is truncated, has several parts, no bases, or two sequences of one name.
    """
    again = "build it again with minimap2 -d, or give the FASTA"
    lengths: dict[str, int] = {}
    with path.open("rb") as file:
        try:
            _, _, bucket_bits, n_sequences, flags = _unpack(file, "<4x5I")
            if flags & _HAS_NO_BASES:
                raise ReferenceFileError(path, "the index has no bases (--idx-no-seq)", again)
            if bucket_bits > _MAX_BUCKET_BITS:
                raise ReferenceFileError(path, "the index is damaged", again)
            for _ in range(n_sequences):
                name_bytes = file.read(*_unpack(file, "<B"))
                name = name_bytes.decode()
                if name in lengths:
                    raise ReferenceFileError(path, f"two sequences are named {name!r}", "rename or remove one")
                (lengths[name],) = _unpack(file, "<I")
            for _ in range(1 << bucket_bits):
                (n_positions,) = _unpack(file, "<I")
                file.seek(8 * n_positions, os.SEEK_CUR)
                (n_keys,) = _unpack(file, "<I")
                file.seek(16 * n_keys, os.SEEK_CUR)
            file.seek((sum(lengths.values()) + 7) // 8 * 4, os.SEEK_CUR)
        except (EOFError, UnicodeDecodeError) as error:
            raise ReferenceFileError(path, "the index is truncated or damaged", again) from error
        if file.tell() > path.stat().st_size:
            raise ReferenceFileError(path, "the index is truncated", again)
        if file.read(len(MAGIC)) == MAGIC:
            raise ReferenceFileError(path, "the index has several parts", "build it with minimap2 -I 16g")
    return lengths


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise EOFError
    return struct.unpack(layout, data)


def load_index(path: Path, preset: Preset, all_anchors: bool = False) -> tuple[mappy.Aligner, Reference]:
    """Load a .mmi that somebody built; its own k and w hold, whatever the preset's.

    Its letters other than ACGT have become N, so an md5 is known only for sequences without them.

    Raises
    ------
    ReferenceFileError
        If the file is truncated, has several parts or no bases, or is unusable (`make_reference`).
    """
    lengths = read_lengths(path)
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
    """Load the index of a FASTA file from the cache, or build it and put it there.

    A cached file ends with the SHA-256 of what comes before, which minimap2 and mappy do not read; a file that does not
    match is built again. A cache that cannot be written is reported as a warning, no more.

    Parameters
    ----------
    path, reference
        The file and what `read_fasta` says of it.
    preset
        Gives k and w.
    cache_dir
        Made if missing. None: nothing is kept.
    threads
        To build with.
    """
    if cache_dir is None:
        return _build(path, preset, threads, None, all_anchors)
    cached = cache_dir / f"{reference.sha256[:32]}.k{preset.k}w{preset.w}.mappy-{mappy.__version__}.mmi"
    if _is_intact(cached):
        return _load(cached, preset, all_anchors)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=cache_dir, prefix=f".{cached.stem}.", suffix=".tmp")
    except OSError as error:
        _log.warning("index of %s is not cached: %s", path, error)
        return _build(path, preset, threads, None, all_anchors)
    os.close(handle)
    temporary = Path(name)
    try:
        index = _build(path, preset, threads, temporary, all_anchors)
        try:
            _seal(temporary)
            temporary.replace(cached)
        except (OSError, ReferenceFileError) as error:  # minimap2 does not notice a full disk
            _log.warning("index of %s is not cached: %s", path, error)
        return index
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path, preset: Preset, all_anchors: bool) -> mappy.Aligner:
    return mappy.Aligner(str(path), preset=preset.name, max_chain_skip=_ALL if all_anchors else None)


def _build(path: Path, preset: Preset, threads: int, output: Path | None, all_anchors: bool) -> mappy.Aligner:
    """Build an index, always of one part (mappy.pyx sets minimap2's batch size, -I, to 2**63 - 1)."""
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
    read_lengths(path)
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
        _log.warning("cached index %s cannot be read: %s", path, error)
        return False
    if not intact:
        _log.warning("cached index %s is damaged: building it again", path)
    return intact
