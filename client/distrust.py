"""Check what a server sends, because it may be broken, or another program altogether.

A read with an impossible result fails, and the reason is reported. No such result may reach the records, where it could
make sorting the whole file fail, or mislead others.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from porestream.v1 import porestream_pb2 as pb

_REVERSE, _SECONDARY, _SUPPLEMENTARY = 0x10, 0x100, 0x800
_MAX_QUALITY = 93  # SAM's highest: '~'
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
        return f"{message.signal_samples} samples, but the read has {samples}"
    for part in message.parts:
        if fault := _part_fault(part, message.signal_samples) or _moves_fault(part) or _alignments_fault(part, lengths):
            return fault
    if len({part.read_id for part in message.parts}) < len(message.parts):
        return "two parts have the same id"
    return ""


def _part_fault(part: pb.CalledRead, signal_samples: int) -> str:
    bases = len(part.sequence)
    if part.status not in (pb.READ_STATUS_UNSPECIFIED, pb.READ_STATUS_CALLED, pb.READ_STATUS_FILTERED):
        return f"a part has status {part.status}"
    if len(part.read_id) != 16:
        return f"a read id has {len(part.read_id)} bytes, not 16"
    if part.sequence.strip("ACGT"):  # empty only if every letter is A, C, G or T
        return "a base is not A, C, G or T"
    if len(part.qualities) != bases:
        return f"{bases} bases, but {len(part.qualities)} qualities"
    if max(part.qualities, default=0) > _MAX_QUALITY:
        return f"a quality is {max(part.qualities)}"
    if not part.trimmed_samples <= part.samples <= signal_samples:
        return f"a part is from sample {part.trimmed_samples} to {part.samples} of {signal_samples}"
    if bases > part.samples - part.trimmed_samples:
        return f"{bases} bases from only {part.samples - part.trimmed_samples} samples"
    if not math.isfinite(part.mean_qscore):
        return f"a mean quality is {part.mean_qscore}"
    return ""


def _moves_fault(part: pb.CalledRead) -> str:
    moves, stride = part.moves, part.model_stride
    if not moves:
        return ""
    if not 1 <= stride <= _MAX_STRIDE:
        return f"the moves' stride is {stride} samples"
    if len(moves) * stride > part.samples - part.trimmed_samples:
        return f"{len(moves)} moves of {stride} samples, but only {part.samples - part.trimmed_samples} samples"
    if moves.count(0) + moves.count(1) < len(moves) or moves.count(1) != len(part.sequence):
        return f"the moves do not add up to {len(part.sequence)} bases"
    return ""


def _alignments_fault(part: pb.CalledRead, lengths: Mapping[str, int] | None) -> str:
    for number, alignment in enumerate(part.alignments):
        others = alignment.flag & (_SECONDARY | _SUPPLEMENTARY)
        if alignment.flag & ~(_REVERSE | _SECONDARY | _SUPPLEMENTARY) or bool(others) is not bool(number):
            return f"flag {alignment.flag} on alignment {number + 1}"
        if fault := _alignment_fault(alignment, len(part.sequence), lengths):
            return fault
    return ""


def _alignment_fault(alignment: pb.Alignment, bases: int, lengths: Mapping[str, int] | None) -> str:
    name, begin, end = alignment.reference_name, alignment.reference_start, alignment.reference_end
    length = _MAX_LENGTH if lengths is None else lengths.get(name)
    if length is None:
        return f"an alignment to {name[:60]!r}, which is not in the reference"
    if not 0 <= begin < end <= length:
        return f"an alignment to {name[:60]} from {begin} to {end}, but it has {length} bases"
    if alignment.mapping_quality > _MAX_MAPPING_QUALITY:
        return f"a mapping quality is {alignment.mapping_quality}"
    cigar = np.array(alignment.cigar, np.uint32)
    bases_of = np.bincount(cigar & 15, cigar >> 4, 16)
    clipped = bases_of[_H] if alignment.flag & _SECONDARY else 0  # these have no sequence of their own
    in_read, in_reference = bases_of[_IN_READ].sum() + clipped, bases_of[_IN_REFERENCE].sum()
    if bases_of[_X + 1 :].any() or in_read != bases or in_reference != end - begin:
        return (
            f"a CIGAR has {in_read:g} read and {in_reference:g} reference bases, "
            f"but there are {bases} and {end - begin}"
        )
    if alignment.edit_distance > bases_of[[*_ALIGNED, _I, _D]].sum():
        return f"an edit distance is {alignment.edit_distance}"
    if not _MD.fullmatch(alignment.md):
        return "an MD is invalid"
    return ""


def check_references(message: pb.GetServerInfoResponse) -> None:
    """Check that a SAM header can name the references that a server lists.

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
