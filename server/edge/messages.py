"""Convert between protobuf messages and the server's own values. The rest of the server sees only the values."""

from collections.abc import Iterator

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from porestream.models.call.basecaller import Basecaller
from porestream.server import reads
from porestream.server.streams.books import Books
from porestream.server.streams.session import Beat, CreditGrant, Drain, Output, Results
from porestream.v1 import porestream_pb2 as pb

ENCODINGS = {
    pb.SIGNAL_ENCODING_INT16_LE: reads.Encoding.INT16_LE,
    pb.SIGNAL_ENCODING_VBZ: reads.Encoding.VBZ,
}
PRIORITIES = {
    pb.PRIORITY_UNSPECIFIED: reads.Priority.STANDARD,
    pb.PRIORITY_LIVE: reads.Priority.LIVE,
    pb.PRIORITY_STANDARD: reads.Priority.STANDARD,
    pb.PRIORITY_BULK: reads.Priority.BULK,
}
_STATUSES = {
    reads.Status.CALLED: pb.READ_STATUS_CALLED,
    reads.Status.FILTERED: pb.READ_STATUS_FILTERED,
    reads.Status.REJECTED: pb.READ_STATUS_REJECTED,
    reads.Status.FAILED: pb.READ_STATUS_FAILED,
    reads.Status.TRY_AGAIN: pb.READ_STATUS_TRY_AGAIN,
}


MAX_CHUNKS_A_REQUEST = 4096
"""More than a stream's credit ever allows, because a chunk counts as at least 1,024 samples."""
_MAX_FIELDS = 16  # of the request itself; a valid one has one
_SIGNAL_FIELD = pb.StreamReadsRequest.DESCRIPTOR.fields_by_name["signal"].number
_CHUNKS_FIELD = pb.SignalBatch.DESCRIPTOR.fields_by_name["chunks"].number


def parse_request(serialized: bytes) -> pb.StreamReadsRequest:
    """Parse a request after checking how much memory it needs: an empty chunk takes 2 bytes on the wire, 130 in memory.

    Raises
    ------
    DecodeError
        It is not a valid request, or has more chunks than any stream may send.
    """
    chunks = 0
    for place, (number, first, end) in enumerate(_fields(serialized, 0, len(serialized))):
        if place >= _MAX_FIELDS:
            raise DecodeError("the request has too many fields; send one message per request")
        if number == _SIGNAL_FIELD:
            for inner, _, _ in _fields(serialized, first, end):
                chunks += inner == _CHUNKS_FIELD
                if chunks > MAX_CHUNKS_A_REQUEST:
                    raise DecodeError(f"the request has more than {MAX_CHUNKS_A_REQUEST} chunks; send smaller batches")
    return pb.StreamReadsRequest.FromString(serialized)


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the fields of a serialized message: number, and where the value begins and ends."""
    while position < end:
        tag, position = _varint(data, position, end)
        kind = tag & 7
        if kind == 2:
            size, position = _varint(data, position, end)
        elif kind == 0:
            _, past = _varint(data, position, end)
            size = past - position
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise DecodeError("Error parsing message: groups are not supported")
        if position + size > end:
            raise DecodeError("Error parsing message: it is truncated")
        yield tag >> 3, position, position + size
        position += size


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise DecodeError("Error parsing message: it is truncated")


def decode_chunk(chunk: pb.ReadChunk) -> reads.Chunk:
    """Convert a chunk without decompressing its signal; StreamFault if its read id or encoding is invalid."""
    if len(chunk.read_id) != 16:
        raise reads.StreamFault(
            "INVALID_ARGUMENT", f"read_id has {len(chunk.read_id)} bytes; it must be a UUID, which has 16"
        )
    encoding = ENCODINGS.get(chunk.encoding)
    if encoding is None:
        raise reads.StreamFault("INVALID_ARGUMENT", f"unknown signal encoding {chunk.encoding}")
    calibration = chunk.calibration
    return reads.Chunk(
        read_id=chunk.read_id,
        channel=chunk.channel,
        first_sample=chunk.first_sample,
        piece=reads.SignalPiece(encoding, chunk.signal, chunk.sample_count, chunk.signal_crc32c),
        calibration=reads.Calibration(
            calibration.offset_adc, calibration.scale_pa_per_adc, calibration.open_pore_level_pa
        )
        if chunk.HasField("calibration")
        else None,
        end_of_read=chunk.end_of_read,
    )


def encode_output(output: Output, settings: reads.CallSettings) -> pb.StreamReadsResponse:
    """Convert a session's output to a response, with moves only if the settings ask for them."""
    match output:
        case CreditGrant(max_total_samples):
            return pb.StreamReadsResponse(credit=pb.Credit(max_total_samples=max_total_samples))
        case Results(first_seq, results):
            batch = pb.ResultBatch(
                first_result_seq=first_seq, results=[_encode_result(result, settings) for result in results]
            )
            return pb.StreamReadsResponse(results=batch)
        case Drain(grace_s):
            return pb.StreamReadsResponse(go_away=pb.GoAway(grace=_duration(grace_s), reason="DRAIN"))
        case Beat():
            response = pb.StreamReadsResponse()
            response.heartbeat.sent_at.GetCurrentTime()
            return response


def _encode_result(result: reads.ReadResult, settings: reads.CallSettings) -> pb.ReadResult:
    timings = result.timings
    message = pb.ReadResult(
        read_id=result.read_id,
        channel=result.channel,
        status=_STATUSES[result.status],
        detail=result.detail,
        signal_samples=result.signal_samples,
        scaling_midpoint=result.scaling_midpoint_pa,
        scaling_dispersion=result.scaling_dispersion_pa,
        scaling_strategy=result.scaling_strategy,
        timings=pb.Timings(
            queue=_duration(timings.queue_s),
            basecall=_duration(timings.basecall_s),
            align=_duration(timings.align_s),
            total=_duration(timings.total_s),
        ),
    )
    for part in result.parts:
        message.parts.add(
            read_id=part.read_id or result.read_id,
            split_start_sample=part.first_sample,
            status=_STATUSES[part.status] if part.status is not result.status else pb.READ_STATUS_UNSPECIFIED,
            sequence=part.sequence,
            qualities=part.qualities_B.tobytes(),
            mean_qscore=part.mean_qscore,
            samples=part.samples_of(result.signal_samples),
            trimmed_samples=part.trimmed_samples,
            model_stride=part.stride,
            moves=part.moves_T.tobytes() if settings.emit_moves else b"",
            alignments=[
                pb.Alignment(
                    flag=alignment.flag,
                    reference_name=alignment.reference_name,
                    reference_start=alignment.reference_start,
                    reference_end=alignment.reference_end,
                    mapping_quality=alignment.mapping_quality,
                    cigar=alignment.cigar.tolist(),
                    score=alignment.score,
                    edit_distance=alignment.edit_distance,
                    md=alignment.md,
                    divergence=alignment.divergence,
                )
                for alignment in part.alignments
            ],
        )
    return message


def encode_model(name: str, basecaller: Basecaller) -> pb.Model:
    """Describe a loaded model for GetServerInfo."""
    chemistry = basecaller.bundle.chemistry
    return pb.Model(
        name=name,
        weights_sha256=basecaller.bundle.sha256,
        pore=chemistry.pore,
        molecule=chemistry.molecule,
        bases_per_second=chemistry.bases_per_second,
        sample_rates_hz=chemistry.sample_rates_hz,
        stride_samples=basecaller.bundle.config.stride,
        loaded=True,
    )


def encode_stats(books: Books) -> pb.WatchStatsResponse:
    """Return the current books; the caller adds rates and backlog."""
    response = pb.WatchStatsResponse(
        attempts_received=books.received,
        attempts_called=books.called,
        attempts_filtered=books.filtered,
        attempts_rejected=books.rejected,
        attempts_failed=books.failed,
        attempts_abandoned=books.abandoned,
        attempts_open=books.open,
        reads_aligned=books.aligned,
        samples_received=books.samples,
        bases_called=books.bases,
    )
    response.as_of.GetCurrentTime()
    return response


def seconds(value: Duration) -> float:
    """Convert a Duration to seconds; 0 if it is not set."""
    return float(value.seconds + value.nanos / 1e9)


def _duration(value_s: float) -> Duration:
    whole_s, nanoseconds = divmod(int(value_s * 1e9), 1_000_000_000)
    return Duration(seconds=whole_s, nanos=nanoseconds)
