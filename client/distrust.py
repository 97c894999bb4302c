"""Check what a server sends: it may be broken, or another program altogether.

An impossible result fails its read, with the reason. None of it may reach the records, where it could make the sorting
of a whole file fail, or mislead others.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from porestream.v1 import porestream_pb2 as pb

_REVERSE, _SECONDARY, _SUPPLEMENTARY = 0x10, 0x100, 0x800
_MAX_QUALITY = 93  # SAM's last: '~'
_MAX_STRIDE = 127  # the mv tag holds signed bytes
_MAX_MAPPING_QUALITY = 255
_MAX_LENGTH = (1 << 31) - 1  # of a reference sequence: SAM specification, section 1.3
_REFERENCE_NAME = re.compile(r"[0-9A-Za-z!#$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*")  # as there, 1.2.1
_MD5 = re.compile(r"([0-9A-Fa-f]{32})?")
_MD = re.compile(r"[0-9A-Za-z^]*")
_M, _I, _D, _N, _S, _H, _P, _EQUAL, _X = range(9)  # CIGAR operations, as BAM numbers them
_ALIGNED, _IN_READ, _IN_REFERENCE = [_M, _EQUAL, _X], [_M, _I, _S, _EQUAL, _X], [_M, _D, _N, _EQUAL, _X]


def result_fault(message: pb.ReadResult, samples: int | None, lengths: Mapping[str, int] | None) -> str:
    """Say why a read cannot have this result; empty if it can.

    Parameters
    ----------
    message
        The result of a read that was called or filtered.
    samples
        Length of the read's signal; None: not known.
    lengths
        Bases of each reference sequence, by name; None: not known.
    """
    if samples is not None and message.signal_samples > samples:
        return f"{message.signal_samples} samples of a read that has {samples}"
    for part in message.parts:
        if fault := _part_fault(part, message.signal_samples) or _moves_fault(part) or _alignments_fault(part, lengths):
            return fault
    if len({part.read_id for part in message.parts}) < len(message.parts):
        return "two parts of one id"
    return ""


def _part_fault(part: pb.CalledRead, signal_samples: int) -> str:
    bases = len(part.sequence)
    if part.status not in (pb.READ_STATUS_UNSPECIFIED, pb.READ_STATUS_CALLED, pb.READ_STATUS_FILTERED):
        return f"a part of status {part.status}"
    if len(part.read_id) != 16:
        return f"a read id of {len(part.read_id)} bytes"
    if part.sequence.strip("ACGT"):  # empty only if every letter is A, C, G or T
        return "a base that is none of A, C, G and T"
    if len(part.qualities) != bases:
        return f"{bases} bases with {len(part.qualities)} qualities"
    if max(part.qualities, default=0) > _MAX_QUALITY:
        return f"a quality of {max(part.qualities)}"
    if not part.trimmed_samples <= part.samples <= signal_samples:
        return f"a part from sample {part.trimmed_samples} to {part.samples} of {signal_samples}"
    if bases > part.samples - part.trimmed_samples:
        return f"{bases} bases of {part.samples - part.trimmed_samples} samples"
    if not math.isfinite(part.mean_qscore):
        return f"a mean quality of {part.mean_qscore}"
    return ""


def _moves_fault(part: pb.CalledRead) -> str:
    moves, stride = part.moves, part.model_stride
    if not moves:
        return ""
    if not 1 <= stride <= _MAX_STRIDE:
        return f"moves of {stride} samples"
    if len(moves) * stride > part.samples - part.trimmed_samples:
        return f"{len(moves)} moves of {stride} samples in {part.samples - part.trimmed_samples}"
    if moves.count(0) + moves.count(1) < len(moves) or moves.count(1) != len(part.sequence):
        return f"moves that do not make {len(part.sequence)} bases"
    return ""


def _alignments_fault(part: pb.CalledRead, lengths: Mapping[str, int] | None) -> str:
    for number, alignment in enumerate(part.alignments):
        others = alignment.flag & (_SECONDARY | _SUPPLEMENTARY)
        if alignment.flag & ~(_REVERSE | _SECONDARY | _SUPPLEMENTARY) or bool(others) is not bool(number):
            return f"flag {alignment.flag} of alignment {number + 1}"
        if fault := _alignment_fault(alignment, len(part.sequence), lengths):
            return fault
    return ""


def _alignment_fault(alignment: pb.Alignment, bases: int, lengths: Mapping[str, int] | None) -> str:
    name, begin, end = alignment.reference_name, alignment.reference_start, alignment.reference_end
    length = _MAX_LENGTH if lengths is None else lengths.get(name)
    if length is None:
        return f"an alignment to {name[:60]!r}, which the reference does not have"
    if not 0 <= begin < end <= length:
        return f"an alignment to {name[:60]} from {begin} to {end}, which has {length} bases"
    if alignment.mapping_quality > _MAX_MAPPING_QUALITY:
        return f"a mapping quality of {alignment.mapping_quality}"
    cigar = np.array(alignment.cigar, np.uint32)
    bases_of = np.bincount(cigar & 15, cigar >> 4, 16)
    clipped = bases_of[_H] if alignment.flag & _SECONDARY else 0  # these have no sequence of their own
    in_read, in_reference = bases_of[_IN_READ].sum() + clipped, bases_of[_IN_REFERENCE].sum()
    if bases_of[_X + 1 :].any() or in_read != bases or in_reference != end - begin:
        return f"a CIGAR of {in_read:g} and {in_reference:g} bases, where there are {bases} and {end - begin}"
    if alignment.edit_distance > bases_of[[*_ALIGNED, _I, _D]].sum():
        return f"an edit distance of {alignment.edit_distance}"
    if not _MD.fullmatch(alignment.md):
        return "an MD that is none"
    return ""


def check_references(message: pb.GetServerInfoResponse) -> None:
    """Check that a file's header can name the references that a server says it has.

    Raises
    ------
    ValueError
        A name, length or digest is not allowed in SAM, or a name appears twice.
    """
    for reference in message.references:
        names: set[str] = set()
        for sequence in reference.sequences:
            name = sequence.name
            where = f"reference {reference.name[:60]!r}: sequence {name[:60]!r}"
            if not _REFERENCE_NAME.fullmatch(name):
                raise ValueError(f"{where} has a name that SAM does not allow")
            if name in names:
                raise ValueError(f"{where} appears twice")
            if not 0 < sequence.length <= _MAX_LENGTH:
                raise ValueError(f"{where} has {sequence.length} bases")
            if not _MD5.fullmatch(sequence.md5):
                raise ValueError(f"{where} has an MD5 that is not 32 hexadecimal digits")
            names.add(name)
