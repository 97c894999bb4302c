"""A server of which tests say what it answers: broken, hostile, or of another kind."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

from porestream.v1 import porestream_pb2 as pb

MODEL, REFERENCE = "tiny_fast@v1", "genome.fasta"
CALLER = pb.CallerIdentity(
    model=MODEL, model_sha256=b"m" * 32, precision="fp32", device_class="cpu", version="0.1.0", calling_revision=2
)
BASES = 100


def server_info(**limits: int) -> pb.GetServerInfoResponse:
    """What such a server has; limits as an honest one's, unless told otherwise."""
    info = pb.GetServerInfoResponse(version="0.1.0", device="cpu", calling_revision=2)
    info.models.add(name=MODEL)
    info.references.add(name=REFERENCE).sequences.add(name="chr1", length=1000)
    given = {"max_message_bytes": 1 << 20, "max_chunk_samples": 1 << 18, "min_chunk_credit_samples": 1024} | limits
    info.limits.MergeFrom(pb.Limits(**given))
    return info


def honest_result(read_id: bytes, samples: int) -> pb.ReadResult:
    """Called, with moves, and aligned to chr1 from 10 on: three bases clipped, one inserted, two deleted."""
    result = pb.ReadResult(read_id=read_id, status=pb.READ_STATUS_CALLED, signal_samples=samples)
    part = result.parts.add(
        read_id=read_id,
        sequence="ACGT" * (BASES // 4),
        qualities=bytes([20]) * BASES,
        mean_qscore=20.0,
        samples=samples,
        trimmed_samples=10,
        model_stride=5,
        moves=bytes([1, 0]) * BASES,
    )
    cigar = [3 << 4 | 4, 50 << 4, 1 << 4 | 1, 40 << 4, 2 << 4 | 2, 6 << 4]
    part.alignments.add(
        flag=16,
        reference_name="chr1",
        reference_start=10,
        reference_end=108,
        mapping_quality=60,
        cigar=cigar,
        score=77,
        edit_distance=9,
        md="50A39^CC6",
        divergence=0.1,
    )
    return result


@dataclass
class FakeServer:
    """What is answered; `answer` is asked for the responses to each read that has come to its end, and its number."""

    info: pb.GetServerInfoResponse | bytes = field(default_factory=server_info)
    caller: pb.CallerIdentity = field(default_factory=lambda: pb.CallerIdentity.FromString(CALLER.SerializeToString()))
    first: list[pb.StreamReadsResponse | bytes] | None = None  # after `open`
    change: Callable[[pb.ReadResult], None] = lambda _: None
    answer: Callable[[pb.ReadResult, int], Iterable[pb.StreamReadsResponse | bytes]] | None = None
    opened: list[pb.OpenStream] = field(default_factory=list)

    def _resolve(self, request: pb.ResolveCallerRequest, _: grpc.ServicerContext) -> pb.ResolveCallerResponse:
        answer = pb.ResolveCallerResponse(caller=self.caller)
        answer.caller.reference = request.options.reference or self.caller.reference
        return answer

    def _stream(self, requests: Iterator[pb.StreamReadsRequest], _: grpc.ServicerContext) -> Iterator[Any]:
        self.opened.append(next(requests).open)
        options, seq, acknowledged, half_closed = self.opened[-1].options, 0, 0, False
        opened = pb.StreamReadsResponse(opened=pb.StreamOpened(caller=self.caller))
        opened.opened.caller.reference = options.reference or self.caller.reference
        opened.opened.credit.max_total_samples = 1 << 40
        yield from [opened] if self.first is None else self.first
        for request in requests:
            for chunk in request.signal.chunks:
                if chunk.end_of_read:
                    seq += 1
                    result = honest_result(chunk.read_id, chunk.first_sample + chunk.sample_count)
                    self.change(result)
                    yield from self.answer(result, seq) if self.answer else [batch(seq, result)]
            acknowledged = max(acknowledged, request.result_ack.result_seq)
            half_closed |= request.HasField("half_close")
            if half_closed and acknowledged >= seq:
                return


def batch(seq: int, *results: pb.ReadResult) -> pb.StreamReadsResponse:
    """Results, numbered from `seq`."""
    return pb.StreamReadsResponse(results=pb.ResultBatch(first_result_seq=seq, results=results))


@contextlib.contextmanager
def serving(fake: FakeServer) -> Iterator[str]:
    """Serve it; gives the address."""

    def encoded(message: Any) -> bytes:
        data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
        return data

    handlers = {
        "StreamReads": grpc.stream_stream_rpc_method_handler(fake._stream, pb.StreamReadsRequest.FromString, encoded),
        "ResolveCaller": grpc.unary_unary_rpc_method_handler(
            fake._resolve, pb.ResolveCallerRequest.FromString, encoded
        ),
        "GetServerInfo": grpc.unary_unary_rpc_method_handler(lambda *_: fake.info, None, encoded),
    }
    limit = [("grpc.max_receive_message_length", 1 << 20)]
    server = grpc.server(ThreadPoolExecutor(8), options=limit)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("porestream.v1.BasecallService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)
