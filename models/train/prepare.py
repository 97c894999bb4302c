"""Makes training arrays from POD5 and BAM.

Dimensions: S samples, B bases.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pod5
import pysam

from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.sequence import UNKNOWN, encode
from porestream.models.train.align import F32, CannotAlign, align
from porestream.models.train.arrays import TrainingRead
from porestream.models.train.moves import NoMoves, moves_of
from porestream.models.train.records import primary_records

_MIN_BASES = 200


class CannotUse(ValueError):
    """The training cannot use a read; the message says why."""


def prepare_reads(
    pod5_paths: list[Path], bam_path: Path, pore: PoreModel
) -> Iterator[TrainingRead | tuple[str, CannotUse]]:
    """Yield every read that is in both files, force-aligned to the pore's levels; or its id, and why it can't be used.

    The labels are the BAM's bases, including their errors. If several records have the same name, the first primary one
    counts.
    """
    records: dict[str, pysam.AlignedSegment] = {}
    for name, primary in primary_records(bam_path):
        records.setdefault(name, primary)
    for path in pod5_paths:
        with pod5.Reader(path) as reader:
            for found in reader.reads():
                record = records.get(str(found.read_id))
                if record is None:
                    continue
                calibration = found.calibration
                signal_pa_S = ((found.signal + np.float32(calibration.offset)) * calibration.scale).astype(np.float32)
                try:
                    yield aligned_read(signal_pa_S, found.run_info.sample_rate, record, pore)
                except CannotUse as error:
                    yield str(found.read_id), error


def aligned_read(
    signal_pa_S: F32, sample_rate_hz: float, record: pysam.AlignedSegment, pore: PoreModel
) -> TrainingRead:
    """Return one read with the sample at which each base arrives.

    Parameters
    ----------
    signal_pa_S
        The read's current.
    sample_rate_hz
        Samples per second.
    record
        The read's bases and moves, see `moves_of`.
    pore
        Predicts the levels of the bases.

    Raises
    ------
    CannotUse
        The read has no moves, unknown bases, too few bases, or a signal that does not fit them.
    """
    bases_B = encode(record.get_forward_sequence() or "")
    if (bases_B == UNKNOWN).any():
        raise CannotUse("it has unknown bases")
    try:
        moves = moves_of(record, signal_pa_S.size)
        # The pore model needs neighbours on both sides of a base.
        low = max(moves.first_base, pore.left)
        high = min(moves.first_base + moves.starts_B.size, bases_B.size - pore.right)
        if high - low < _MIN_BASES:
            raise CannotUse(f"only {max(high - low, 0)} bases have moves and neighbours; {_MIN_BASES} are needed")
        levels_B = pore.levels(bases_B[low - pore.left : high + pore.right]).mean_B
        starts_B = np.append(moves.starts_B, moves.end_sample)[low - moves.first_base : high - moves.first_base + 1]
        alignment = align(signal_pa_S, starts_B[:-1], int(starts_B[-1]), levels_B)
    except (NoMoves, CannotAlign) as error:
        raise CannotUse(str(error)) from error
    name = record.query_name or ""
    return TrainingRead(
        read_id=name,
        signal_pa_S=signal_pa_S,
        bases_B=bases_B[low:high],
        starts_B=alignment.starts_B.astype(np.float64),
        sample_rate_hz=float(sample_rate_hz),
    )
