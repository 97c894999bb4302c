"""Convert between the client's values and protobuf."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

import google_crc32c
from pod5.signal_tools import vbz_compress_signal

from porestream.client.distrust import check_references, result_fault
from porestream.client.reads import (
    Alignment,
    CalledPart,
    CallerIdentity,
    ReadInfo,
    ReadResult,
    ReadStatus,
    ReferenceSequence,
    RunInfo,
    ServerInfo,
    SignalRead,
)
from porestream.models.files.chemistry import Chemistry, chemistry_of_model
from porestream.v1 import porestream_pb2 as pb

CHUNK_SAMPLES = 65_536
_CHUNK_BYTES = 128  # the most that a chunk's fixed-size fields and framing take
_MAX_DETAIL = 1000

_STATUSES = {
    pb.READ_STATUS_CALLED: ReadStatus.CALLED,
    pb.READ_STATUS_FILTERED: ReadStatus.FILTERED,
    pb.READ_STATUS_REJECTED: ReadStatus.REJECTED,
    pb.READ_STATUS_FAILED: ReadStatus.FAILED,
}


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRead:
    """A read as sent over the wire; kept until its result is stored, so that it can be resent."""

    info: ReadInfo
    samples: int
    chunks: tuple[pb.ReadChunk, ...]


def encode_read(read: SignalRead, chunk_samples: int = CHUNK_SAMPLES) -> EncodedRead:
    """Cut a read into chunks, each compressed (VBZ) and with a checksum."""
    info = read.info
    chunks = []
    total = int(read.signal_S.size)
    for first in range(0, total, chunk_samples) or (0,):
        signal_S = read.signal_S[first : first + chunk_samples].astype("<i2", copy=False)
        chunk = pb.ReadChunk(
            read_id=info.read_id.bytes,
            channel=info.channel,
            well=info.well,
            read_number=info.read_number,
            start_sample=info.start_sample,
            first_sample=first,
            sample_count=signal_S.size,
            encoding=pb.SIGNAL_ENCODING_VBZ,
            signal=vbz_compress_signal(signal_S).tobytes(),
            signal_crc32c=google_crc32c.value(signal_S.tobytes()),
        )
        if first == 0:
            chunk.calibration.offset_adc = info.offset_adc
            chunk.calibration.scale_pa_per_adc = info.scale_pa_per_adc
            chunk.calibration.open_pore_level_pa = info.open_pore_level_pa
        chunks.append(chunk)
    chunks[-1].end_of_read = True
    chunks[-1].end_reason = info.end_reason
    return EncodedRead(info, total, tuple(chunks))


def chunk_bytes(chunk: pb.ReadChunk) -> int:
    """Return the most bytes that a chunk takes in a message."""
    return _CHUNK_BYTES + len(chunk.signal) + len(chunk.end_reason.encode())


def encode_run(run: RunInfo) -> pb.RunInfo:
    """Encode a run for `open`."""
    message = pb.RunInfo(
        run_id=run.run_id,
        flow_cell_id=run.flow_cell_id,
        flow_cell_product_code=run.flow_cell_product_code,
        sequencing_kit=run.sequencing_kit,
        position=run.position,
        sample_id=run.sample_id,
        experiment_id=run.experiment_id,
        sample_rate_hz=run.sample_rate_hz,
    )
    if run.acquisition_start_time is not None:
        message.acquisition_start_time.FromDatetime(run.acquisition_start_time)
    return message


def decode_result(
    message: pb.ReadResult, info: ReadInfo, samples: int | None = None, lengths: Mapping[str, int] | None = None
) -> ReadResult:
    """Decode a read's result and add what the client knows of the read. An impossible result becomes FAILED.

    Parameters
    ----------
    message, info
        The server's result, and the read.
    samples, lengths
        What to check the result against: see `distrust.result_fault`.
    """
    status, detail = _STATUSES.get(message.status), message.detail[:_MAX_DETAIL]
    signal_samples = message.signal_samples if samples is None else min(message.signal_samples, samples)
    if status is None:
        status, detail = ReadStatus.FAILED, f"the server sent an unknown status: {message.status}"
    elif status in (ReadStatus.CALLED, ReadStatus.FILTERED):
        if not message.parts and not (status is ReadStatus.FILTERED and detail):
            status, detail = ReadStatus.FAILED, f"the server says {status.value}, but sent no sequence"
        elif fault := result_fault(message, samples, lengths):
            status, detail = ReadStatus.FAILED, f"the server sent an impossible result: {fault}"
    return ReadResult(
        info=info,
        status=status,
        detail=detail,
        signal_samples=signal_samples,
        scaling_midpoint_pa=message.scaling_midpoint,
        scaling_dispersion_pa=message.scaling_dispersion,
        scaling_strategy=message.scaling_strategy,
        parts=tuple(_parts(message)) if status in (ReadStatus.CALLED, ReadStatus.FILTERED) else (),
    )


def _parts(message: pb.ReadResult) -> Iterator[CalledPart]:
    for part in message.parts:
        yield CalledPart(
            read_id=UUID(bytes=part.read_id),
            sequence=part.sequence,
            qualities=part.qualities,
            mean_qscore=part.mean_qscore,
            samples=part.samples,
            trimmed_samples=part.trimmed_samples,
            stride_samples=part.model_stride,
            moves=part.moves,
            alignments=tuple(
                Alignment(
                    flag=alignment.flag,
                    reference_name=alignment.reference_name,
                    reference_start=alignment.reference_start,
                    reference_end=alignment.reference_end,
                    mapping_quality=alignment.mapping_quality,
                    cigar=tuple(alignment.cigar),
                    score=alignment.score,
                    edit_distance=alignment.edit_distance,
                    md=alignment.md,
                    divergence=alignment.divergence,
                )
                for alignment in part.alignments
            ),
            status=_STATUSES[part.status or message.status],
        )


def decode_identity(message: pb.CallerIdentity) -> CallerIdentity:
    """Decode a caller's identity."""
    return CallerIdentity(
        model=message.model,
        model_sha256=message.model_sha256.hex(),
        reference=message.reference,
        reference_sha256=message.reference_sha256.hex(),
        preset=message.preset,
        precision=message.precision,
        device_class=message.device_class,
        version=message.version,
        calling_revision=message.calling_revision,
    )


def decode_server_info(message: pb.GetServerInfoResponse) -> ServerInfo:
    """Decode a server's description of what it has.

    Raises
    ------
    ValueError
        A reference is not valid: see `distrust.check_references`.
    """
    check_references(message)
    return ServerInfo(
        version=message.version,
        device=message.device,
        models={model.name: _chemistry(model) for model in message.models},
        references={
            reference.name: tuple(
                ReferenceSequence(sequence.name, sequence.length, sequence.md5) for sequence in reference.sequences
            )
            for reference in message.references
        },
        max_chunk_samples=message.limits.max_chunk_samples,
        max_message_bytes=message.limits.max_message_bytes,
        min_chunk_credit_samples=message.limits.min_chunk_credit_samples,
        window_samples=message.limits.window_samples,
    )


def _chemistry(model: pb.Model) -> Chemistry:
    kit = chemistry_of_model(model.name).kit  # the contract has no field for it
    return Chemistry(
        molecule=model.molecule,
        pore=model.pore,
        bases_per_second=model.bases_per_second,
        sample_rates_hz=tuple(model.sample_rates_hz),
        kit=kit,
    )
