"""Servers that break the contract, and runs and reads that no server takes: by name, and nothing else is hurt."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import numpy as np
import pytest
from fake_server import MODEL, REFERENCE, FakeServer, batch, honest_result, server_info, serving

from porestream.client.client import BasecallClient
from porestream.client.opening import MAX_RUN_ID_LENGTH, ServerLost, ServerRefused, StreamOptions
from porestream.client.reads import ReadInfo, ReadResult, ReadStatus, RunInfo, SignalRead
from porestream.client.wire import chunk_bytes, encode_read
from porestream.server.edge.rpc import MAX_RUN_ID_LENGTH as TAKEN
from porestream.v1 import porestream_pb2 as pb

RUN = RunInfo(run_id="run-a", sample_rate_hz=4000)
SAMPLES = 3000
OPTIONS = StreamOptions(reference=REFERENCE, emit_moves=True, give_up_s=3.0, heartbeat_s=1.0)


def read(number: int, run: RunInfo = RUN, samples: int = SAMPLES, **changes: object) -> SignalRead:
    info = replace(ReadInfo(read_id=UUID(int=number), run=run, offset_adc=10.0, scale_pa_per_adc=0.2), **changes)
    return SignalRead(info, np.random.default_rng(number).integers(300, 700, samples).astype(np.int16))


def call(target: str, reads: list[SignalRead], options: StreamOptions = OPTIONS) -> dict[int, ReadResult]:
    async def collect() -> list[ReadResult]:
        client = BasecallClient(target, options)
        async with asyncio.timeout(20):
            results = [result async for result in client.call(reads)]
        assert client.reconnects == 0
        return results

    results = asyncio.run(collect())
    assert len(results) == len(reads)
    return {result.info.read_id.int: result for result in results}


def test_an_honest_result_is_believed() -> None:
    with serving(FakeServer()) as target:
        found = call(target, [read(1), read(2)])
    assert {result.status for result in found.values()} == {ReadStatus.CALLED}
    assert all(result.is_aligned for result in found.values())


# Runs and reads that no server takes


def test_the_longest_run_id_is_the_servers() -> None:
    assert MAX_RUN_ID_LENGTH == TAKEN


ODD_RUNS = {
    "a long id": (
        RunInfo(run_id="x" * 300, sample_rate_hz=4000),
        "its id has 300 characters; servers accept at most 256 (run " + "x" * 60 + "...)",
    ),
    "no id": (RunInfo(run_id="", sample_rate_hz=4000), "its id is empty (run )"),
    "a megabyte": (
        RunInfo(run_id="big", sample_rate_hz=4000, sample_id="y" * (1 << 20)),
        "bytes; the server accepts at most 1,048,576 (run big)",
    ),
    "no text": (RunInfo(run_id="a\ud800", sample_rate_hz=4000), "UnicodeEncodeError: "),
    "no sample rate": (RunInfo(run_id="rate", sample_rate_hz=1 << 40), "ValueError: "),
}


@pytest.mark.parametrize("odd", ODD_RUNS)
@pytest.mark.parametrize("first", [True, False])
def test_one_odd_run_does_not_end_the_others(start_server, odd: str, first: bool) -> None:  # type: ignore[no-untyped-def]
    server = start_server(threads=1)
    run, reason = ODD_RUNS[odd]
    reads = [read(number + 1, run if bool(number % 2) is first else RUN) for number in range(10)]
    found = call(server.address, reads, replace(OPTIONS, reference=""))
    for number, result in found.items():
        if bool(number % 2) is not first:
            assert result.status is ReadStatus.REJECTED
            assert result.detail.startswith("run not sendable: ")
            assert reason in result.detail
            assert len(result.detail) < 300
        else:
            assert result.status is ReadStatus.CALLED


def test_a_run_just_small_enough_is_called(start_server) -> None:  # type: ignore[no-untyped-def]
    run = RunInfo(
        run_id="i" * 256,
        sample_rate_hz=4000,
        sample_id="y" * ((1 << 20) - 700),
        acquisition_start_time=datetime.now(UTC),
    )
    found = call(start_server(threads=1).address, [read(1, run)], replace(OPTIONS, reference=""))
    assert found[1].status is ReadStatus.CALLED


def test_reads_that_are_sent_by_nobody_are_counted(start_server) -> None:  # type: ignore[no-untyped-def]
    async def unsent() -> int:
        client = BasecallClient(start_server(threads=1).address)
        reads = [read(1), read(2, ODD_RUNS["a long id"][0]), read(3, end_reason="z" * (2 << 20))]
        assert len([result async for result in client.call(reads)]) == 3
        return client.unsent

    assert asyncio.run(unsent()) == 2


def test_a_read_that_no_message_can_hold_is_rejected(start_server) -> None:  # type: ignore[no-untyped-def]
    reads = [read(1), read(2, end_reason="z" * (2 << 20)), read(3)]
    found = call(start_server(threads=1).address, reads, replace(OPTIONS, reference=""))
    assert [found[number].status.value for number in (1, 2, 3)] == ["called", "rejected", "called"]
    assert found[2].detail.startswith("too large to send: 2,1")


@pytest.mark.parametrize("samples", [0, 1, 100, 70_000])
def test_what_a_chunk_takes_is_not_more_than_is_said(samples: int) -> None:
    odd = read(1, samples=samples, channel=65_535, well=255, read_number=(1 << 32) - 1, start_sample=(1 << 64) - 1)
    for reason in ("", "ä" * 50_000):
        for chunk in encode_read(replace(odd, info=replace(odd.info, end_reason=reason))).chunks:
            assert len(pb.SignalBatch(chunks=[chunk]).SerializeToString()) <= chunk_bytes(chunk)


def test_many_odd_reads_do_not_make_a_message_too_large(start_server) -> None:  # type: ignore[no-untyped-def]
    """Each fits, all of them in one message do not."""
    reads = [read(number, samples=200, end_reason="z" * 200_000) for number in range(30)]
    found = call(start_server(threads=1).address, reads, replace(OPTIONS, reference=""))
    assert {result.status for result in found.values()} == {ReadStatus.CALLED}


def test_a_server_that_takes_less_gets_less() -> None:
    fake = FakeServer(server_info(max_message_bytes=40_000, max_chunk_samples=8000))
    with serving(fake) as target:
        found = call(target, [read(number, samples=30_000) for number in range(10)])
    assert {result.status for result in found.values()} == {ReadStatus.CALLED}


def test_a_server_that_says_no_limits() -> None:
    info = server_info()
    info.ClearField("limits")
    with serving(FakeServer(info)) as target:
        assert call(target, [read(1)])[1].status is ReadStatus.CALLED


def test_what_is_larger_than_somebody_on_the_way_takes_is_not_tried_again() -> None:
    """The server says that it takes more than it does, or a proxy takes less."""
    with serving(FakeServer(server_info(max_message_bytes=1 << 30))) as target:
        run = RunInfo(run_id="big", sample_rate_hz=4000, sample_id="y" * (2 << 20))
        with pytest.raises(ServerRefused, match=r"RESOURCE_EXHAUSTED: .*larger than max"):
            call(target, [read(1, run)], replace(OPTIONS, give_up_s=60.0))


# Results that cannot be


def part(change: Callable[[pb.CalledRead], object]) -> Callable[[pb.ReadResult], object]:
    return lambda result: change(result.parts[0])


def alignment(**changes: object) -> Callable[[pb.ReadResult], object]:
    return lambda result: result.parts[0].alignments[0].MergeFrom(pb.Alignment(**changes))


CIGAR_OF_99 = [3 << 4 | 4, 50 << 4, 46 << 4]
CANNOT_BE: dict[str, tuple[Callable[[pb.ReadResult], object], str]] = {
    "qualities short": (part(lambda p: setattr(p, "qualities", p.qualities[1:])), "100 bases, but 99 qualities"),
    "qualities none": (part(lambda p: p.ClearField("qualities")), "100 bases, but 0 qualities"),
    "quality of 94": (part(lambda p: setattr(p, "qualities", bytes([94]) * 100)), "a quality is 94"),
    "bases": (part(lambda p: setattr(p, "sequence", "ACG\t" * 25)), "a base is not A, C, G or T"),
    "lower case": (part(lambda p: setattr(p, "sequence", "AcgA" * 25)), "a base is not A, C, G or T"),
    "mean quality": (part(lambda p: setattr(p, "mean_qscore", float("nan"))), "a mean quality is nan"),
    "too many bases": (
        part(lambda p: p.MergeFrom(pb.CalledRead(sequence="A" * 4000, qualities=b"\1" * 4000))),
        "4000 bases from only 2990 samples",
    ),
    "id": (part(lambda p: setattr(p, "read_id", b"short")), "a read id has 5 bytes, not 16"),
    "two of one id": (lambda r: r.parts.append(r.parts[0]), "two parts have the same id"),
    "samples": (
        part(lambda p: setattr(p, "samples", 1 << 63)),
        "a part is from sample 10 to 9223372036854775808 of 3000",
    ),
    "trimmed": (part(lambda p: setattr(p, "trimmed_samples", 3001)), "a part is from sample 3001 to 3000"),
    "signal": (lambda r: setattr(r, "signal_samples", 3001), "3001 samples, but the read has 3000"),
    "stride 0": (part(lambda p: setattr(p, "model_stride", 0)), "the moves' stride is 0 samples"),
    "stride 200": (part(lambda p: setattr(p, "model_stride", 200)), "the moves' stride is 200 samples"),
    "moves too long": (
        part(lambda p: setattr(p, "moves", p.moves + bytes(399))),
        "599 moves of 5 samples, but only 2990 samples",
    ),
    "moves of other bases": (
        part(lambda p: setattr(p, "moves", bytes([1]) * 99)),
        "the moves do not add up to 100 bases",
    ),
    "moves of 2": (part(lambda p: setattr(p, "moves", bytes([1, 2]) * 100)), "the moves do not add up to 100 bases"),
    "flag": (alignment(flag=4), "flag 4 on alignment 1"),
    "large flag": (alignment(flag=1 << 20), "flag 1048576 on alignment 1"),
    "secondary first": (alignment(flag=256), "flag 256 on alignment 1"),
    "two primaries": (part(lambda p: p.alignments.append(p.alignments[0])), "flag 16 on alignment 2"),
    "reference": (alignment(reference_name="chr\t2"), "an alignment to 'chr\\t2', which is not in the reference"),
    "before": (alignment(reference_start=-5), "an alignment to chr1 from -5 to 108, but it has 1000 bases"),
    "behind": (alignment(reference_start=950, reference_end=1048), "from 950 to 1048, but it has 1000 bases"),
    "far behind": (alignment(reference_start=1 << 62, reference_end=(1 << 62) + 98), "but it has 1000 bases"),
    "turned": (alignment(reference_start=500), "from 500 to 108"),
    "mapping quality": (alignment(mapping_quality=256), "a mapping quality is 256"),
    "operation": (alignment(cigar=[5 << 4 | 9]), "a CIGAR has 100 read and 98 reference bases"),
    "longer": (
        alignment(cigar=[1 << 4 | 4]),
        "a CIGAR has 101 read and 98 reference bases, but there are 100 and 98",
    ),
    "shorter": (
        part(lambda p: p.alignments[0].cigar.__setitem__(slice(None), CIGAR_OF_99)),
        "a CIGAR has 99 read and 96 reference bases",
    ),
    "edits": (alignment(edit_distance=(1 << 32) - 1), "an edit distance is 4294967295"),
    "MD": (alignment(md="5\tXX:i:1"), "an MD is invalid"),
}


@pytest.mark.parametrize("name", CANNOT_BE)
def test_a_result_that_cannot_be_is_its_reads_failure(name: str) -> None:
    change, reason = CANNOT_BE[name]

    def change_second(result: pb.ReadResult) -> None:
        if UUID(bytes=result.read_id).int == 2:
            change(result)

    fake = FakeServer(change=change_second)
    with serving(fake) as target:
        found = call(target, [read(number) for number in (1, 2, 3)])
    assert [found[number].status.value for number in (1, 2, 3)] == ["called", "failed", "called"]
    assert found[2].detail.startswith("the server sent an impossible result: ")
    assert reason in found[2].detail
    assert found[2].parts == ()


def test_words_of_a_server_are_not_without_end() -> None:
    def reject(result: pb.ReadResult) -> None:
        result.status, result.detail, result.signal_samples = pb.READ_STATUS_REJECTED, "w" * 10_000, 1 << 62

    with serving(FakeServer(change=reject)) as target:
        result = call(target, [read(1)])[1]
    assert (result.status, len(result.detail), result.signal_samples) == (ReadStatus.REJECTED, 1000, SAMPLES)


# Streams that cannot be


def breaks(words: str, fake: FakeServer, options: StreamOptions = OPTIONS) -> None:
    with serving(fake) as target, pytest.raises(ServerRefused) as caught:
        call(target, [read(number) for number in (1, 2, 3)], options)
    assert words in str(caught.value)
    assert target in str(caught.value)


def test_results_of_reads_that_it_does_not_have() -> None:
    stranger = UUID(int=99)
    breaks(
        f"it sent a result for read {stranger}, which is not waiting for one",
        FakeServer(answer=lambda result, seq: [batch(seq, honest_result(stranger.bytes, SAMPLES))]),
    )
    breaks(
        f"it sent a result for read {UUID(int=1)}, which is not waiting for one",
        FakeServer(answer=lambda result, seq: [batch(2 * seq - 1, result, result)]),
    )
    breaks(
        "it sent a result for read 616263, which is not waiting for one",
        FakeServer(answer=lambda result, seq: [batch(seq, honest_result(b"abc", SAMPLES))]),
    )


@pytest.mark.parametrize("wrong", [0, 2, 7, (1 << 64) - 1])
def test_results_out_of_order(wrong: int) -> None:
    breaks(f"it sent result {wrong} instead of 1", FakeServer(answer=lambda result, seq: [batch(wrong, result)]))


def test_a_stream_that_is_opened_twice_or_never() -> None:
    opened = pb.StreamReadsResponse()
    opened.opened.caller.CopyFrom(FakeServer().caller)
    opened.opened.caller.reference = REFERENCE
    breaks("it opened the stream twice", FakeServer(first=[opened, opened]))
    early = batch(1, honest_result(UUID(int=1).bytes, SAMPLES))
    breaks(f"it sent a result for read {UUID(int=1)}, which is not waiting for one", FakeServer(first=[early]))


NO_TEXT = pb.StreamReadsResponse(go_away=pb.GoAway(reason="a")).SerializeToString().replace(b"a", b"\xff")


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", NO_TEXT])
def test_what_is_no_message(garbage: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    breaks("it sent an invalid message", FakeServer(answer=lambda result, seq: [garbage]))
    breaks("it sent an invalid message", FakeServer(info=b"\xff\xff\xff"))
    assert "Traceback" not in capfd.readouterr().err


def test_another_caller_than_was_asked_for() -> None:
    fake = FakeServer()
    fake.caller.model = "other"
    breaks("model 'tiny_fast@v1' was requested, but it offers 'other'", fake, replace(OPTIONS, model=MODEL))
    fake = FakeServer()
    fake.caller.preset = "map-ont"
    breaks("preset 'lr:hq' was requested, but it offers 'map-ont'", fake, replace(OPTIONS, preset="lr:hq"))


def test_another_caller_than_the_stream_began_with() -> None:
    other = pb.StreamReadsResponse()
    other.opened.caller.CopyFrom(FakeServer().caller)
    other.opened.caller.reference, other.opened.caller.model_sha256 = REFERENCE, b"n" * 32
    fake = FakeServer(answer=lambda result, seq: [])

    def run() -> None:
        with serving(fake) as target:
            asyncio.run(go(target))

    async def go(target: str) -> None:
        client = BasecallClient(target, replace(OPTIONS, give_up_s=1.0))
        await client.identify(RUN)
        fake.first = [other]
        async for _ in client.call([read(1)]):
            pass

    with pytest.raises(ServerLost) as caught:
        run()
    assert len(fake.opened) > 1, "it is tried again: another server may be the one"
    assert f"the caller differs: model_sha256 was {'6d' * 32}, but here it is {'6e' * 32}" in str(caught.value)


@pytest.mark.parametrize(
    ("sequence", "reason"),
    [
        ({"name": "chr\n@CO", "length": 9}, "'chr\\n@CO' has a name that SAM does not allow"),
        ({"name": "chr1", "length": 9}, "'chr1' appears twice"),
        ({"name": "chr2"}, "'chr2' has 0 bases"),
        ({"name": "chr2", "length": 1 << 40}, "'chr2' has 1099511627776 bases"),
        ({"name": "chr2", "length": 9, "md5": "\t"}, "'chr2' has an MD5 that is not 32 hexadecimal digits"),
    ],
)
def test_references_that_no_header_can_name(sequence: dict[str, object], reason: str) -> None:
    info = server_info()
    info.references[0].sequences.add(**sequence)
    breaks(f"reference 'genome.fasta': sequence {reason}", FakeServer(info))
