"""Reads over the wire and back: chunks that decode to the signal, results that come back as they were sent."""

from dataclasses import fields, replace
from datetime import UTC, datetime
from uuid import UUID

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pod5.signal_tools import vbz_decompress_signal

from porestream.client import Alignment, CalledPart, CallerIdentity, ReadInfo, ReadResult, ReadStatus, RunInfo
from porestream.client.opening import StreamOptions
from porestream.client.reads import ReferenceSequence, ServerInfo, SignalRead
from porestream.client.wire import (
    CHUNK_SAMPLES,
    EncodedRead,
    decode_identity,
    decode_result,
    decode_server_info,
    encode_read,
    encode_run,
)
from porestream.models.files.chemistry import Chemistry
from porestream.server.reads import CallSettings
from porestream.v1 import porestream_pb2 as pb

RUN = RunInfo(
    run_id="run",
    sample_rate_hz=4000,
    flow_cell_id="FAB12345",
    flow_cell_product_code="FLO-MIN106",
    sequencing_kit="SQK-LSK109",
    position="MN00001",
    sample_id="sample",
    experiment_id="experiment",
)
INFO = ReadInfo(
    read_id=UUID(int=7),
    run=RUN,
    offset_adc=-243.5,
    scale_pa_per_adc=0.1462,
    channel=12,
    well=3,
    read_number=456,
    start_sample=2**40,
    end_reason="signal_positive",
    file_name="a.pod5",
)


def decode(encoded: EncodedRead) -> npt.NDArray[np.int16]:
    """The signal, after the checks that a server makes."""
    pieces: list[npt.NDArray[np.int16]] = []
    for message in encoded.chunks:
        chunk = pb.ReadChunk.FromString(message.SerializeToString())
        assert chunk.encoding == pb.SIGNAL_ENCODING_VBZ
        assert chunk.first_sample == sum(piece.size for piece in pieces)
        piece = vbz_decompress_signal(np.frombuffer(chunk.signal, np.uint8), chunk.sample_count)
        assert piece.size == chunk.sample_count
        assert google_crc32c.value(piece.astype("<i2").tobytes()) == chunk.signal_crc32c
        pieces.append(piece)
    return np.concatenate(pieces)


@given(hnp.arrays(np.int16, st.integers(0, 700)), st.integers(1, 300))
def test_chunks_decode_to_the_signal(signal_S: npt.NDArray[np.int16], chunk_samples: int) -> None:
    encoded = encode_read(SignalRead(INFO, signal_S), chunk_samples)
    np.testing.assert_array_equal(decode(encoded), signal_S)
    assert encoded.samples == signal_S.size
    chunks = encoded.chunks
    assert len(chunks) == max(1, -(-signal_S.size // chunk_samples))
    assert all(0 < chunk.sample_count <= chunk_samples for chunk in chunks) or signal_S.size == 0
    assert [chunk.HasField("calibration") for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert [chunk.end_of_read for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [chunk.end_reason for chunk in chunks] == [""] * (len(chunks) - 1) + ["signal_positive"]
    for chunk in chunks:
        assert (chunk.read_id, chunk.channel, chunk.well) == (INFO.read_id.bytes, 12, 3)
        assert (chunk.read_number, chunk.start_sample) == (456, 2**40)


def test_an_empty_read_is_one_empty_chunk() -> None:
    (chunk,) = encode_read(SignalRead(INFO, np.zeros(0, np.int16))).chunks
    assert (chunk.sample_count, chunk.first_sample, chunk.end_of_read) == (0, 0, True)
    assert chunk.HasField("calibration")


def test_long_reads_are_cut_at_the_default_chunk() -> None:
    signal_S = np.arange(2 * CHUNK_SAMPLES + 1).astype(np.int16)
    encoded = encode_read(SignalRead(INFO, signal_S))
    assert [chunk.sample_count for chunk in encoded.chunks] == [CHUNK_SAMPLES, CHUNK_SAMPLES, 1]
    np.testing.assert_array_equal(decode(encoded), signal_S)


@pytest.mark.parametrize("kind", ["big-endian", "every other sample", "read-only"])
def test_any_int16_array_will_do(kind: str) -> None:
    signal_S = np.arange(-500, 500).astype(np.int16)
    given_S = {"big-endian": signal_S.astype(">i2"), "every other sample": np.repeat(signal_S, 2)[::2]}.get(kind)
    if given_S is None:
        given_S = signal_S.copy()
        given_S.flags.writeable = False
    np.testing.assert_array_equal(decode(encode_read(SignalRead(INFO, given_S), 77)), signal_S)


def test_the_calibration_survives() -> None:
    calibration = encode_read(SignalRead(INFO, np.zeros(9, np.int16))).chunks[0].calibration
    assert calibration.offset_adc == np.float32(-243.5)
    assert calibration.scale_pa_per_adc == np.float32(0.1462)


def test_vbz_is_worth_it() -> None:
    noise = np.random.default_rng(3).normal(500, 8, 50_000).astype(np.int16)
    assert sum(len(chunk.signal) for chunk in encode_read(SignalRead(INFO, noise)).chunks) < noise.nbytes / 2


def test_a_run_goes_over_the_wire() -> None:
    message = encode_run(replace(RUN, acquisition_start_time=datetime(2024, 5, 6, 7, 8, 9, 123000, tzinfo=UTC)))
    assert message.acquisition_start_time.ToDatetime(UTC) == datetime(2024, 5, 6, 7, 8, 9, 123000, tzinfo=UTC)
    found = {field.name: value for field, value in message.ListFields() if field.name != "acquisition_start_time"}
    assert found == {
        "run_id": "run",
        "flow_cell_id": "FAB12345",
        "flow_cell_product_code": "FLO-MIN106",
        "sequencing_kit": "SQK-LSK109",
        "position": "MN00001",
        "sample_id": "sample",
        "experiment_id": "experiment",
        "sample_rate_hz": 4000,
    }
    assert not encode_run(RUN).HasField("acquisition_start_time")


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def alignments(draw: st.DrawFn, bases: int, flag: int) -> Alignment:
    clip = draw(st.integers(0, bases - 1))
    begin = draw(st.integers(0, 2**20))
    return Alignment(
        flag=flag | draw(st.sampled_from([0, 16])),
        reference_name=draw(st.text(max_size=8)),
        reference_start=begin,
        reference_end=begin + bases - clip,
        mapping_quality=draw(st.integers(0, 255)),
        cigar=(clip << 4 | 4, bases - clip << 4),
        score=draw(st.integers(-(2**31), 2**31 - 1)),
        edit_distance=draw(st.integers(0, bases - clip)),
        md=draw(st.text("0123456789ACGT^", max_size=9)),
        divergence=draw(FLOATS),
    )


@st.composite
def parts(draw: st.DrawFn) -> CalledPart:
    sequence = draw(st.text("ACGT", max_size=20))
    trimmed, stride = draw(st.integers(0, 2**39)), draw(st.integers(1, 127))
    flags = [0, *draw(st.lists(st.sampled_from([0x100, 0x800]), max_size=2))] if sequence and draw(BOOLEANS) else []
    return CalledPart(
        read_id=draw(st.uuids()),
        sequence=sequence,
        qualities=draw(st.lists(st.integers(0, 93), min_size=len(sequence), max_size=len(sequence)).map(bytes)),
        mean_qscore=draw(FLOATS),
        samples=trimmed + 3 * len(sequence) * stride + draw(st.integers(0, 9)),
        trimmed_samples=trimmed,
        stride_samples=stride,
        moves=bytes([1, 0, 0]) * len(sequence) if draw(BOOLEANS) else b"",
        alignments=tuple(draw(alignments(len(sequence), flag)) for flag in flags),
    )


BOOLEANS = st.booleans()
RESULTS = st.builds(
    ReadResult,
    info=st.just(INFO),
    status=st.sampled_from(ReadStatus),
    detail=st.text(max_size=8),
    signal_samples=st.integers(2**40, 2**41),
    scaling_midpoint_pa=FLOATS,
    scaling_dispersion_pa=FLOATS,
    scaling_strategy=st.text(max_size=8),
    parts=st.lists(parts(), max_size=2, unique_by=lambda part: part.read_id).map(tuple),
).filter(lambda result: bool(result.parts) is (result.status in (ReadStatus.CALLED, ReadStatus.FILTERED)))


def encode(result: ReadResult) -> bytes:
    """As a server would."""
    message = pb.ReadResult(
        read_id=result.info.read_id.bytes,
        channel=result.info.channel,
        status=pb.ReadStatus.Value(f"READ_STATUS_{result.status.name}"),
        detail=result.detail,
        signal_samples=result.signal_samples,
        scaling_midpoint=result.scaling_midpoint_pa,
        scaling_dispersion=result.scaling_dispersion_pa,
        scaling_strategy=result.scaling_strategy,
    )
    for part in result.parts:
        encoded = message.parts.add(
            status=pb.ReadStatus.Value(f"READ_STATUS_{part.status.name}"),
            read_id=part.read_id.bytes,
            sequence=part.sequence,
            qualities=part.qualities,
            mean_qscore=part.mean_qscore,
            samples=part.samples,
            trimmed_samples=part.trimmed_samples,
            model_stride=part.stride_samples,
            moves=part.moves,
        )
        for alignment in part.alignments:
            fields = {name: getattr(alignment, name) for name in Alignment.__slots__}
            encoded.alignments.add(**fields)
    return message.SerializeToString()


@given(RESULTS)
def test_a_result_comes_back_as_it_was_sent(result: ReadResult) -> None:
    assert decode_result(pb.ReadResult.FromString(encode(result)), INFO) == result
    assert result.is_aligned is any(part.alignments for part in result.parts)


def test_a_status_of_a_later_version_counts_as_failed() -> None:
    assert decode_result(pb.ReadResult(status=99), INFO).status is ReadStatus.FAILED  # type: ignore[arg-type]
    assert decode_result(pb.ReadResult(), INFO).status is ReadStatus.FAILED


@pytest.mark.parametrize("status", [pb.READ_STATUS_CALLED, pb.READ_STATUS_FILTERED])
def test_a_server_that_says_called_and_sends_nothing_is_not_believed(status: pb.ReadStatus) -> None:
    result = decode_result(pb.ReadResult(status=status), INFO)
    assert result.status is ReadStatus.FAILED
    assert result.detail.endswith("but sent no sequence")


def test_identity_and_server_info() -> None:
    identity = pb.CallerIdentity(
        model="m",
        model_sha256=b"\x01\xff",
        reference="r",
        reference_sha256=b"\x02",
        precision="bf16",
        device_class="cpu-avx512",
        version="1",
        preset="lr:hq",
    )
    assert decode_identity(identity) == CallerIdentity(
        model="m",
        model_sha256="01ff",
        reference="r",
        reference_sha256="02",
        preset="lr:hq",
        precision="bf16",
        device_class="cpu-avx512",
        version="1",
    )
    info = pb.GetServerInfoResponse(version="1", device="cpu")
    info.models.add(name="a")
    info.models.add(name="b")
    info.references.add(name="r").sequences.add(name="chr1", length=9, md5="f" * 32)
    info.limits.max_chunk_samples = 5
    info.limits.max_message_bytes = 6
    info.limits.min_chunk_credit_samples = 7
    info.limits.window_samples = 8
    models = {"a": Chemistry(), "b": Chemistry()}
    expected = ServerInfo(
        version="1",
        device="cpu",
        models=models,
        references={"r": (ReferenceSequence("chr1", 9, "f" * 32),)},
        max_chunk_samples=5,
        max_message_bytes=6,
        min_chunk_credit_samples=7,
        window_samples=8,
    )
    assert decode_server_info(info) == expected


def test_options_travel_by_their_names() -> None:
    """One that is missing on the way would be dropped without a word."""
    of_the_stream_alone = {"heartbeat_s", "window_samples", "give_up_s", "credentials"}
    asked = {field.name for field in fields(StreamOptions)} - of_the_stream_alone
    sent = set(pb.CallOptions.DESCRIPTOR.fields_by_name) - {"adaptive"}  # decisions are not made yet
    settings = {field.name for field in fields(CallSettings)}
    assert asked == sent
    assert sent - {"allow_chemistry_mismatch"} <= settings  # that one is for the choice of the model
