"""The service through its wire contract: what it answers, what it refuses, and that bytes never depend on company."""

import asyncio
import difflib
import random
import time
from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from porestream.client.client import BasecallClient, SyncBasecallClient
from porestream.client.opening import ServerRefused, StreamOptions
from porestream.client.reads import ReadInfo, ReadResult, ReadStatus, RunInfo, SignalRead
from porestream.client.wire import encode_read
from porestream.server.metrics import BATCH_STREAMS, STREAMS_ENDED
from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

MODEL = "tiny_fast@v1"
RUN = RunInfo(run_id="run", sample_rate_hz=4000)


def signal_reads(signals: list[np.ndarray], run: RunInfo = RUN, first: int = 0) -> list[SignalRead]:
    return [
        SignalRead(
            ReadInfo(
                read_id=UUID(int=first + number), run=run, offset_adc=10.0, scale_pa_per_adc=0.2, channel=number + 1
            ),
            signal_S,
        )
        for number, signal_S in enumerate(signals)
    ]


def called(result: ReadResult) -> tuple[object, ...]:
    """What must be the same every time."""
    (part,) = result.parts
    return (
        part.sequence,
        part.qualities,
        part.moves,
        part.mean_qscore,
        part.trimmed_samples,
        result.scaling_midpoint_pa,
        result.scaling_dispersion_pa,
    )


def call_all(address: str, reads: list[SignalRead], **options: object) -> dict[UUID, tuple[object, ...]]:
    with SyncBasecallClient(address, StreamOptions(emit_moves=True, **options)) as client:  # type: ignore[arg-type]
        results = list(client.call(reads))
    assert len(results) == len({result.info.read_id for result in results}) == len(reads)
    assert all(result.status is ReadStatus.CALLED for result in results), [result.detail for result in results]
    return {result.info.read_id: called(result) for result in results}


def similarity(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right, autojunk=False).ratio()


PICOAMPERE = {"scaling__strategy": "pa", "standardisation__mean": 90.0, "standardisation__stdev": 20.0}


def test_a_model_of_picoampere_calls_what_was_measured(start_server, make_bundle, tmp_path, signals) -> None:  # type: ignore[no-untyped-def]
    """One current through two calibrations, and one that drifted together with its open pore."""
    server = start_server(model=[make_bundle(tmp_path / "pa@v1", container="safetensors", **PICOAMPERE)])
    signal_S, run = signals[-3], RunInfo(run_id="run", sample_rate_hz=4000, flow_cell_product_code="FLO-PRO114M")

    def read(number: int, add_adc: int, offset_adc: float, level_pa: float) -> SignalRead:
        info = ReadInfo(
            read_id=UUID(int=number),
            run=run,
            offset_adc=offset_adc,
            scale_pa_per_adc=0.2,
            channel=number,
            open_pore_level_pa=level_pa,
        )
        return SignalRead(info, (signal_S + add_adc).astype(np.int16))

    drift_adc = 54
    reads = [
        read(1, 0, 10.0, 0.0),
        read(2, 40, -30.0, 0.0),
        read(3, drift_adc, 10.0, 199.21 + 0.2 * drift_adc),
        read(4, drift_adc, 10.0, 0.0),
    ]
    results = call_all(server.address, reads)
    first, moved, drifted, other = (results[UUID(int=number)] for number in (1, 2, 3, 4))
    assert first[4] == 10  # samples trimmed, where reads are standardised
    assert moved[0] == first[0]
    assert similarity(str(drifted[0]), str(first[0])) > 0.98  # the same but for rounding
    assert similarity(str(other[0]), str(first[0])) < 0.95


def test_rna_is_called_from_its_3_prime_end(start_server, make_bundle, tmp_path, signals) -> None:  # type: ignore[no-untyped-def]
    """The same weights and signal, as DNA and as RNA: the sequence is turned round, the moves are not."""
    names = ("dna_test@v1", "rna004_130bps_fast@v5.0.0")
    server = start_server(model=[make_bundle(tmp_path / name, container="safetensors", **PICOAMPERE) for name in names])
    signal_S, info = signals[-3], ReadInfo(read_id=UUID(int=1), run=RUN, offset_adc=10.0, scale_pa_per_adc=0.2)
    (dna,) = call_all(server.address, [SignalRead(info, signal_S)], model=names[0]).values()
    (rna,) = call_all(server.address, [SignalRead(info, signal_S[dna[4] :])], model=names[1]).values()
    assert (dna[4], rna[4]) == (10, 0)
    assert rna[0] == str(dna[0])[::-1]
    assert list(rna[1]) == list(dna[1])[::-1]
    assert np.array_equal(rna[2], dna[2])


def opening(**options: object) -> pb.StreamReadsRequest:
    return pb.StreamReadsRequest(
        open=pb.OpenStream(run=pb.RunInfo(run_id="run"), options=pb.CallOptions(**options))  # type: ignore[arg-type]
    )


def exchange(address: str, requests: list[pb.StreamReadsRequest]) -> tuple[list[pb.StreamReadsResponse], grpc.RpcError]:
    """Send these and keep the stream open; what came back, and the error that ended it."""
    with grpc.insecure_channel(address) as channel:

        def send() -> Iterator[pb.StreamReadsRequest]:
            yield from requests
            time.sleep(5)

        responses = []
        with pytest.raises(grpc.RpcError) as ended:
            for response in pb_grpc.BasecallServiceStub(channel).StreamReads(send(), timeout=20):
                responses.append(response)
        return responses, ended.value


def signal_request(seq: int, *chunks: pb.ReadChunk) -> pb.StreamReadsRequest:
    return pb.StreamReadsRequest(signal=pb.SignalBatch(batch_seq=seq, chunks=chunks))


def test_reads_are_called_the_same_however_they_come(start_server, signals) -> None:  # type: ignore[no-untyped-def]
    """-b 1, 7, 32; -t 1, 2; random message splits; alone and in company."""
    reads = signal_reads(signals)
    expected = call_all(start_server(batch_size=16, threads=1).address, reads)
    for batch_size, threads in ((1, 1), (7, 2), (32, 2)):
        server = start_server(batch_size=batch_size, threads=threads)
        shuffled = random.Random(batch_size).sample(reads, len(reads))
        assert call_all(server.address, shuffled) == expected, f"-b {batch_size} -t {threads}"
    alone = start_server()
    for read in reads[::3]:
        assert call_all(alone.address, [read])[read.info.read_id] == expected[read.info.read_id]
    for seed in range(3):
        assert split_call(alone.address, reads, random.Random(seed)) == expected, f"message split {seed}"


def split_call(address: str, reads: list[SignalRead], rng: random.Random) -> dict[UUID, tuple[object, ...]]:
    """Send reads interleaved, in chunks of random lengths, encodings and messages, as no client of ours does."""
    pieces: list[list[pb.ReadChunk]] = []
    for read in reads:
        chunks: list[pb.ReadChunk] = []
        first, total = 0, read.signal_S.size
        while first < total:
            count = min(total - first, rng.choice([1, 5, 100, 4000, 50_000]))
            if total - first > 50_000:
                count = 50_000
            part = encode_read(SignalRead(read.info, read.signal_S[first : first + count])).chunks[0]
            part.first_sample, part.end_of_read = first, first + count == total
            if first:
                part.ClearField("calibration")
            if rng.random() < 0.5:
                part.encoding = pb.SIGNAL_ENCODING_INT16_LE
                part.signal = read.signal_S[first : first + count].tobytes()
            chunks.append(part)
            first += count
        pieces.append(chunks)
    queue: list[pb.ReadChunk] = []
    while any(pieces):
        queue.append(rng.choice([chunks for chunks in pieces if chunks]).pop(0))
    results: dict[UUID, tuple[object, ...]] = {}

    async def talk() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            call = pb_grpc.BasecallServiceStub(channel).StreamReads()
            await call.write(opening(emit_moves=True))
            credit = used = seq = 0
            by_id = {read.info.read_id.bytes: read.info for read in reads}
            while len(results) < len(reads):
                batch = []
                while queue and len(batch) < rng.randint(1, 20):
                    cost = max(queue[0].sample_count, 1024)
                    if used + cost > credit:
                        break
                    used += cost
                    batch.append(queue.pop(0))
                if batch:
                    seq += 1
                    await call.write(signal_request(seq, *batch))
                    continue
                async with asyncio.timeout(20):
                    response = await call.read()
                credit = max(credit, response.credit.max_total_samples, response.opened.credit.max_total_samples)
                for message in response.results.results:
                    from porestream.client.wire import decode_result

                    assert message.status == pb.READ_STATUS_CALLED, message.detail
                    result = decode_result(message, by_id[message.read_id])
                    results[result.info.read_id] = called(result)
            call.cancel()

    asyncio.run(talk())
    return results


def test_twenty_streams_share_batches_and_get_the_same_bytes(start_server, signals) -> None:  # type: ignore[no-untyped-def]
    server = start_server(max_streams=20)
    runs = [RunInfo(run_id=f"run-{number}", sample_rate_hz=4000) for number in range(20)]
    reads = [signal_reads(signals[number % 3 :: 3], run, 1000 * number) for number, run in enumerate(runs)]
    expected = {}
    for group in reads[:3]:
        results = call_all(server.address, group)
        for read, read_called in zip(group, (results[read.info.read_id] for read in group), strict=True):
            expected[read.signal_S.tobytes()] = read_called
    batch_streams = BATCH_STREAMS.labels(MODEL)
    before = batch_streams._sum.get() - sum(bucket.get() for bucket in batch_streams._buckets)
    streams = iter([read for turn in zip(*[iter(group) for group in reads], strict=False) for read in turn])
    mixed = list(streams)
    results = call_all(server.address, mixed)
    for read in mixed:
        assert results[read.info.read_id] == expected[read.signal_S.tobytes()]
    after = batch_streams._sum.get() - sum(bucket.get() for bucket in batch_streams._buckets)
    assert after > before, "no batch held chunks of several streams"


def test_server_info_and_standard_services(start_server) -> None:  # type: ignore[no-untyped-def]
    server = start_server()
    with grpc.insecure_channel(server.address) as channel:
        info = pb_grpc.BasecallServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest())
        assert [model.name for model in info.models] == [MODEL]
        assert info.models[0].weights_sha256 == server.engine.basecallers[MODEL].bundle.sha256
        assert info.limits.memory_budget_bytes == 1 << 30
        assert info.limits.max_message_bytes == 1 << 20
        names = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert {"porestream.v1.BasecallService", "grpc.health.v1.Health"} <= set(names)
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())


def test_stats_balance_and_tell_runs_apart(start_server, signals) -> None:  # type: ignore[no-untyped-def]
    server = start_server()
    call_all(server.address, signal_reads(signals[:4]))
    call_all(server.address, signal_reads(signals[:2], RunInfo(run_id="other", sample_rate_hz=4000)))
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.BasecallServiceStub(channel)
        stats = next(iter(stub.WatchStats(pb.WatchStatsRequest())))
        assert (stats.attempts_received, stats.attempts_called, stats.attempts_open) == (6, 6, 0)
        assert next(iter(stub.WatchStats(pb.WatchStatsRequest(run_id="other")))).attempts_called == 2
        with pytest.raises(grpc.RpcError, match="has not seen run 'absent'"):
            next(iter(stub.WatchStats(pb.WatchStatsRequest(run_id="absent"))))
        bad = pb.WatchStatsRequest()
        bad.interval.seconds = 3600
        with pytest.raises(grpc.RpcError, match="1-60 s"):
            next(iter(stub.WatchStats(bad)))


@pytest.mark.parametrize(
    ("requests", "code", "words"),
    [
        ([signal_request(1)], "INVALID_ARGUMENT", "must be `open`"),
        ([opening(model="absent")], "NOT_FOUND", "absent"),
        ([opening(reference="absent")], "NOT_FOUND", "none"),
        ([pb.StreamReadsRequest(open=pb.OpenStream())], "INVALID_ARGUMENT", "run_id"),
        ([opening(), opening()], "INVALID_ARGUMENT", "first message"),
        ([opening(), signal_request(2)], "INVALID_ARGUMENT", "batch_seq is 2"),
        ([opening(), pb.StreamReadsRequest()], "INVALID_ARGUMENT", "unknown kind of message"),
        ([opening(), pb.StreamReadsRequest(result_ack=pb.ResultAck(result_seq=9))], "INVALID_ARGUMENT", "9"),
        ([opening(), signal_request(1, pb.ReadChunk(read_id=b"short"))], "INVALID_ARGUMENT", "16"),
        ([opening(), signal_request(1, pb.ReadChunk(read_id=bytes(16)))], "INVALID_ARGUMENT", "encoding"),
        (
            [
                pb.StreamReadsRequest(
                    open=pb.OpenStream(run=pb.RunInfo(run_id="r"), purpose=pb.STREAM_PURPOSE_DECISIONS)
                )
            ],
            "UNIMPLEMENTED",
            "DECISIONS",
        ),
        (
            [
                pb.StreamReadsRequest(
                    open=pb.OpenStream(run=pb.RunInfo(run_id="r"), expected=pb.CallerIdentity(model_sha256=b"x"))
                )
            ],
            "FAILED_PRECONDITION",
            "model_sha256",
        ),
    ],
)
def test_broken_contracts_get_a_status(start_server, requests, code, words) -> None:  # type: ignore[no-untyped-def]
    _, error = exchange(start_server(threads=1).address, requests)
    assert error.code().name == code  # type: ignore[attr-defined]
    assert words in error.details()  # type: ignore[attr-defined]


def bad_chunks() -> dict[str, pb.ReadChunk]:
    good = encode_read(signal_reads([np.arange(5000, dtype=np.int16)])[0]).chunks[0]

    def changed(**fields: object) -> pb.ReadChunk:
        chunk = pb.ReadChunk()
        chunk.CopyFrom(good)
        for name, value in fields.items():
            setattr(chunk, name, value)
        return chunk

    return {
        "checksum mismatch": changed(signal_crc32c=1),
        "undecodable VBZ": changed(signal=b"\x00" * 100),
        "size does not fit": changed(signal=b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + bytes(50)),
        "int16 signal cannot be": changed(encoding=pb.SIGNAL_ENCODING_INT16_LE, signal=bytes(99)),
        "gap": changed(first_sample=7),
        "claims 4294967295": changed(sample_count=2**32 - 1),
        "too short": encode_read(signal_reads([np.arange(3, dtype=np.int16)])[0]).chunks[0],
    }


@pytest.mark.parametrize("reason", bad_chunks())
def test_a_bad_read_is_rejected_and_hurts_nobody(start_server, signals, reason) -> None:  # type: ignore[no-untyped-def]
    server = start_server(threads=1)
    bad = bad_chunks()[reason]
    good = encode_read(signal_reads([signals[8]], first=77)[0]).chunks[0]
    results: list[pb.ReadResult] = []
    with grpc.insecure_channel(server.address) as channel:

        def send() -> Iterator[pb.StreamReadsRequest]:
            yield opening()
            yield signal_request(1, bad, good)
            while len(results) < 2:
                time.sleep(0.01)
            yield pb.StreamReadsRequest(result_ack=pb.ResultAck(result_seq=2))
            yield pb.StreamReadsRequest(half_close=pb.HalfClose())

        for response in pb_grpc.BasecallServiceStub(channel).StreamReads(send(), timeout=30):
            results.extend(response.results.results)
    statuses = {result.read_id: result for result in results}
    assert statuses[bad.read_id].status == pb.READ_STATUS_REJECTED
    assert reason in statuses[bad.read_id].detail
    assert statuses[good.read_id].status == pb.READ_STATUS_CALLED
    assert server.engine.ledger.server.rejected == server.engine.ledger.server.called == 1
    assert server.engine.budget.charged_bytes() == 0


def test_a_drain_sends_streams_away_and_finishes_complete_reads(start_server, signals) -> None:  # type: ignore[no-untyped-def]
    server = start_server()
    seen: list[str] = []

    async def talk() -> tuple[list[bytes], grpc.RpcError]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = pb_grpc.BasecallServiceStub(channel).StreamReads()
            await call.write(opening())
            complete = encode_read(signal_reads([signals[-1]])[0])
            half = encode_read(signal_reads([signals[-2]], first=50)[0]).chunks[0]
            half.end_of_read = False
            await call.write(signal_request(1, *complete.chunks, half))
            await asyncio.sleep(0.05)
            draining = asyncio.create_task(asyncio.to_thread(server.drain, 10.0))
            names = []
            try:
                while True:
                    response = await call.read()
                    if response is grpc.aio.EOF:
                        raise AssertionError("ended with OK")
                    seen.append(response.WhichOneof("message"))
                    if seen[-1] == "go_away":
                        await call.write(pb.StreamReadsRequest(half_close=pb.HalfClose()))
                    for number, result in enumerate(response.results.results, response.results.first_result_seq):
                        names.append(result.read_id)
                        await call.write(pb.StreamReadsRequest(result_ack=pb.ResultAck(result_seq=number)))
            except grpc.RpcError as error:
                await draining
                return names, error

    names, error = asyncio.run(talk())
    assert "go_away" in seen
    assert names == [UUID(int=0).bytes]
    assert error.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    books = server.engine.ledger.server
    assert (books.called, books.abandoned, books.open) == (1, 1, 0)
    _, refused = exchange(server.address, [opening()])
    assert "shutting down" in refused.details()  # type: ignore[attr-defined]


def test_streams_beyond_the_limit_are_turned_away(start_server) -> None:  # type: ignore[no-untyped-def]
    server = start_server(max_streams=1)

    async def talk() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = pb_grpc.BasecallServiceStub(channel)
            first = stub.StreamReads()
            await first.write(opening())
            assert (await first.read()).HasField("opened")
            second = stub.StreamReads()
            await second.write(opening())
            with pytest.raises(grpc.RpcError, match="already has 1 streams open, its limit"):
                await second.read()
                await second.read()
            first.cancel()

    asyncio.run(talk())


def test_a_client_that_vanishes_leaves_nothing_behind(start_server, signals) -> None:  # type: ignore[no-untyped-def]
    server = start_server()
    cancelled = STREAMS_ENDED.labels("CANCELLED")._value
    before = cancelled.get()

    async def vanish() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = pb_grpc.BasecallServiceStub(channel).StreamReads()
            await call.write(opening())
            await call.read()
            for seq, read in enumerate(signal_reads(signals), 1):
                await call.write(signal_request(seq, *encode_read(read).chunks))

    asyncio.run(vanish())
    deadline = time.monotonic() + 20
    while cancelled.get() == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert cancelled.get() == before + 1
    assert server.service.stream_count == 0
    assert server.engine.budget.charged_bytes() == 0
    books = server.engine.ledger.server
    assert books.received == books.called + books.abandoned
    assert call_all(server.address, signal_reads(signals[:3]))


def test_a_defect_ends_its_stream_with_internal_and_is_counted(start_server, signals, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    server = start_server()
    before = STREAMS_ENDED.labels("INTERNAL")._value.get()
    (read,) = signal_reads(signals[:1])
    with monkeypatch.context() as broken:
        broken.setattr("porestream.server.edge.rpc.encode_output", lambda *_: 1 / 0)
        _, error = exchange(server.address, [opening(), signal_request(1, *encode_read(read).chunks)])
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "ZeroDivisionError" in error.details()
    assert STREAMS_ENDED.labels("INTERNAL")._value.get() == before + 1
    books = server.engine.ledger.server
    assert (books.received, books.abandoned, books.open) == (1, 1, 0)
    assert call_all(server.address, [read])


def test_another_caller_is_refused_for_good(start_server, signals) -> None:  # type: ignore[no-untyped-def]
    server = start_server()

    async def call() -> None:
        client = BasecallClient(server.address, StreamOptions(model="absent"))
        results: AsyncIterator[ReadResult] = client.call(signal_reads(signals[:1]))
        with pytest.raises(ServerRefused, match=f"this server has no model 'absent'; choose from {MODEL}"):
            await anext(results)

    asyncio.run(call())


def test_filtered_reads_are_sent_flagged(start_server, signals) -> None:  # type: ignore[no-untyped-def]
    server = start_server()
    with SyncBasecallClient(server.address, StreamOptions(min_mean_qscore=49.0)) as client:
        (result,) = client.call(signal_reads([signals[10]]))
    assert result.status is ReadStatus.FILTERED
    assert "below 49" in result.detail
    assert result.parts[0].sequence


def test_a_stream_that_names_no_model_gets_one_for_its_chemistry(start_server, make_bundle, tmp_path) -> None:  # type: ignore[no-untyped-def]
    names = "dna_r9.4.1_e8.1_fast@v9", "dna_r10.4.1_e8.2_400bps_fast@v4.1.0"
    models = [make_bundle(tmp_path / name) for name in names]
    facts = {"run_id": "r", "sequencing_kit": "SQK-LSK114", "sample_rate_hz": 4000}
    new, old, rna = (
        pb.RunInfo(**facts, flow_cell_product_code="FLO-MIN114"),
        pb.RunInfo(**(facts | {"sequencing_kit": "SQK-LSK109"}), flow_cell_product_code="FLO-MIN106"),
        pb.RunInfo(**(facts | {"sequencing_kit": "SQK-RNA004"})),
    )

    def open_stream(server, run: pb.RunInfo, **options: object) -> str:
        with grpc.insecure_channel(server.address) as channel:
            request = pb.StreamReadsRequest(open=pb.OpenStream(run=run, options=pb.CallOptions(**options)))
            call = pb_grpc.BasecallServiceStub(channel).StreamReads(iter([request]))
            return next(call).opened.caller.model

    both = start_server(model=models)
    assert open_stream(both, old) == models[0].name
    assert open_stream(both, new) == models[1].name
    mismatch = r"RNA004 .*, but dna_r9.4.1_e8.1_fast@v9 is for R9.4.1 DNA .* at 4 kHz; .* models for the run: none"
    with pytest.raises(grpc.RpcError, match=mismatch):
        open_stream(both, rna, model=models[0].name)
    with pytest.raises(grpc.RpcError, match=f"models for the run: {models[1].name}; set allow_chemistry_mismatch"):
        open_stream(both, new, model=models[0].name)
    assert open_stream(both, rna, model=models[0].name, allow_chemistry_mismatch=True) == models[0].name
    assert open_stream(both, pb.RunInfo(run_id="r"), model=models[0].name) == models[0].name
    fast_rate = pb.RunInfo(run_id="r", sample_rate_hz=5000)
    with pytest.raises(grpc.RpcError, match="an unknown pore at 5 kHz"):
        open_stream(both, fast_rate, model=models[0].name)
    for run, reason in ((rna, "the run is RNA004"), (pb.RunInfo(run_id="r"), "name one of")):
        with pytest.raises(grpc.RpcError, match=reason):
            open_stream(both, run)
    one = start_server(model=models[1:])
    assert open_stream(one, pb.RunInfo(run_id="r")) == models[1].name
    with pytest.raises(grpc.RpcError, match=r"the run is R9\.4\.1 DNA .* none of .* is for that: .*R10\.4\.1 DNA"):
        open_stream(one, old)
    assert open_stream(one, old, allow_chemistry_mismatch=True) == models[1].name
