"""Aligns batches of reads on a device as minimap2 does: look-up, seeds, chains and base-level alignment.

Reads that the device cannot align go to minimap2 itself, and are counted.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from porestream.kernels.align.aligner import REVERSE, SECONDARY, SUPPLEMENTARY, Alignment, MappyAligner
from porestream.kernels.align.chain import find_chains, without_too_much_work
from porestream.kernels.align.cigar import S, describe, figures_of_hits
from porestream.kernels.align.fasta import Reference
from porestream.kernels.align.hits import REVERSE as ON_REVERSE
from porestream.kernels.align.hits import Failure, HitAligner, Hits, read_hash
from porestream.kernels.align.index import Index
from porestream.kernels.align.pack import encode_bases
from porestream.kernels.align.seeds import IndexOnDevice, find_anchors
from porestream.kernels.align.sketch import Reads, sketch
from porestream.kernels.device import Device

LEAST_TASK_BYTES, MOST_TASK_BYTES = 256 << 20, 2 << 30
"""Device memory for the base-level alignment tasks that run at once: 256 MiB hold some 2,000 of 10 kb reads, while an
H100 has room for 3,700 warps of theirs, and each round of them costs two waits for the host."""
BATCH_BASES = 50_000_000
BYTES_A_BASE = 64
"""Device memory that a batch takes per base, besides its tasks: minimizers (a fifth as many as bases, 55 bytes each),
anchors (a quarter as many if few are repeats, 130 bytes each with sorting and chaining), and the bases themselves. A
batch of more repetitive reads does not fit, and is split in half."""
U8 = npt.NDArray[np.uint8]
_HIT_FIELDS = ("id", "parent", "flags", "sequence", "qs", "qe", "rs", "re", "mapq", "cigar", "operations", "ambiguous")


class DeviceAligner:
    """Aligns reads on a device; see `kernels.align.aligner.Aligner`.

    Parameters
    ----------
    device
        The device to run on.
    index
        The reference's index.
    fallback
        Aligns reads that the device cannot.
    batch_bases
        Bases per batch.
    task_bytes
        Device memory for the base-level alignment tasks that run at once.
    """

    def __init__(
        self,
        device: Device,
        index: Index,
        fallback: MappyAligner,
        batch_bases: int = BATCH_BASES,
        task_bytes: int = LEAST_TASK_BYTES,
    ) -> None:
        self.batch_bases = batch_bases
        self._device, self._index, self._fallback = device, index, fallback
        self._on_device = IndexOnDevice(device, index)
        self._hits = HitAligner(device, self._on_device, task_bytes)
        self._lock = threading.Lock()  # one batch at a time, because memory is planned for one
        self.fallbacks: Counter[Failure] = Counter()  # reads that minimap2 aligned instead

    @property
    def reference(self) -> Reference:
        return self._fallback.reference

    @property
    def preset(self) -> str:
        return self._fallback.preset

    @property
    def device_class(self) -> str:
        return "-gpu-aligner"

    def align(self, name: str, sequence: str, *, md: bool) -> list[Alignment]:
        """See `kernels.align.aligner.Aligner.align`."""
        found = self.align_batch([(name, sequence)], md=md)[0]
        return self.align_elsewhere(name, sequence, md=md) if found is None else found

    def align_elsewhere(self, name: str, sequence: str, *, md: bool) -> list[Alignment]:
        """Align a read with minimap2 on the CPU, however long that takes."""
        return self._fallback.align(name, sequence, md=md)

    def align_batch(self, reads: Sequence[tuple[str, str]], *, md: bool) -> list[list[Alignment] | None]:
        """Align many reads, each as `align` would; None marks a read that needs `align_elsewhere`."""
        codes = [encode_bases(sequence) for _, sequence in reads]
        hashes = np.array([read_hash(name, len(sequence)) for name, sequence in reads], np.uint32)
        found: list[list[Alignment] | None] = [None] * len(reads)
        with self._lock:
            self._batch(codes, hashes, np.arange(len(reads)), found, md)
        return found

    def warm_up(self) -> None:
        """Compile all kernels, by aligning part of the reference, so that the first read need not wait.

        Raises
        ------
        DeviceError
            A kernel does not compile.
        """
        codes = self._index.codes(0, min(6000, int(self._index.offset[-1])))
        bases = "".join(np.array(list("ACGTN"))[codes])
        self.align_batch([("whole", bases), ("far", bases[:1500] + bases[4500:]), ("none", "A")], md=False)
        self.fallbacks.clear()

    def _batch(
        self,
        codes: list[U8],
        hashes: npt.NDArray[np.uint32],
        numbers: npt.NDArray[np.int64],
        found: list[list[Alignment] | None],
        md: bool,
    ) -> None:
        """Align these reads; if they do not fit in memory, each half separately."""
        if len(numbers) == 0:
            return
        hits = None
        with contextlib.suppress(MemoryError):
            hits = self._hits_of([codes[number] for number in numbers], hashes[numbers])
        # Retry only out here: while an exception is being handled, it keeps the batch's device memory alive.
        if hits is None:
            if len(numbers) == 1:
                self.fallbacks[Failure.MEMORY] += 1
                return
            half = len(numbers) // 2
            self._batch(codes, hashes, numbers[:half], found, md)
            self._batch(codes, hashes, numbers[half:], found, md)
            return
        alignments = alignments_of(hits, [codes[number] for number in numbers], self._index, md)
        for number, failed, of_read in zip(numbers.tolist(), hits.failed.tolist(), alignments, strict=True):
            if failed:
                self.fallbacks[Failure(failed)] += 1
            else:
                found[number] = of_read

    def _hits_of(self, codes: list[U8], hashes: npt.NDArray[np.uint32]) -> Hits:
        device, preset = self._device, self._index.preset
        reads = Reads.of(device, codes)
        found = sketch(device, reads, preset.k, preset.w)
        anchors = find_anchors(device, self._on_device, reads, found)
        anchors, too_much = without_too_much_work(device, anchors, preset)
        with device.in_order():
            length = device.xp.asarray(reads.length)
            chains, too_much_again = find_chains(device, anchors, preset, length)
            too_much |= too_much_again
        failed = np.where(device.to_host(too_much), Failure.WORK, Failure.NONE).astype(np.uint8)
        return self._hits(reads, hashes, anchors, chains, failed)


def alignments_of(hits: Hits, codes: Sequence[U8], index: Index, md: bool) -> list[list[Alignment]]:
    """Describe each read's hits, from the device's counts where they suffice; of failed reads none.

    Parameters
    ----------
    hits, codes
        The hits, and the codes of each read's bases.
    index
        The reference.
    md
        Whether MD is wanted.
    """
    counts = np.diff(hits.first)
    hit = hits.hit[np.repeat(hits.failed == Failure.NONE, counts)]
    ends = np.cumsum(np.where(hits.failed == Failure.NONE, counts, 0)).tolist()
    figures = figures_of_hits(hits.cigars, hit["cigar"], hit["operations"], hit["matches"], hit["columns"])
    names = [sequence.name for sequence in index.reference.sequences]
    # Lists of Python's own numbers: taking fields of single structs costs more than all the rest.
    fields = [hit[name].tolist() for name in _HIT_FIELDS]
    hits_of_all = [*zip(*fields, *(column.tolist() for column in figures), strict=True)]
    found = []
    for read, (begin, end) in enumerate(pairwise([0, *ends])):
        alignments: list[Alignment] = []
        for one in hits_of_all[begin:end]:
            number, parent, flags, sequence, qs, qe, rs, re, mapq, place, operations, ambiguous, *counted = one
            reverse = bool(flags & ON_REVERSE)
            flag = (0 if not alignments else SUPPLEMENTARY) if number == parent else SECONDARY
            flag |= REVERSE if reverse else 0
            cigar = hits.cigars[place : place + operations]
            text = ""
            if md or ambiguous:
                query = codes[read][qs:qe]
                query = np.where(query < 4, 3 - query, query)[::-1] if reverse else query
                first = int(index.offset[sequence])
                described = describe(cigar, query, index.codes(first + rs, first + re), md=md)
                counted, text = [described.score, described.edit_distance, described.divergence], described.md
            clips = [qs, len(codes[read]) - qe]
            before, after = (
                np.array([clip << 4 | S] if clip else [], np.uint32) for clip in (clips[::-1] if reverse else clips)
            )
            score, edit_distance, divergence = counted
            alignments.append(
                Alignment(
                    flag=flag,
                    reference_name=names[sequence],
                    reference_start=rs,
                    reference_end=re,
                    mapping_quality=mapq,
                    cigar=np.concatenate([before, cigar, after]),
                    score=score,
                    edit_distance=edit_distance,
                    md=text,
                    divergence=divergence,
                )
            )
        found.append(alignments)
    return found
