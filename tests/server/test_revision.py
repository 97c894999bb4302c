"""The calling revision: who is another caller, and that bytes do not change without it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from calling_revision import check_digest

from porestream.client.client import SyncBasecallClient
from porestream.client.opening import ServerLost, StreamOptions
from porestream.client.outputs.records import header, records
from porestream.client.reads import ReadInfo, RunInfo, SignalRead
from porestream.models.call.adapters import BOTTOM, TOP
from porestream.models.call.cpu_runner import CpuRunner
from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

StartServer = Callable[..., Any]
STRIDE, STATE_LEN, DWELL_STEPS = 6, 2, 2


# Who is another caller


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({}, True),
        ({"version": "0.0.1"}, True),
        ({"version": "99"}, True),
        ({"calling_revision": 1}, False),
        ({"calling_revision": 0}, False),  # a server from before there was the number
        ({"precision": "fp16"}, False),
    ],
    ids=str,
)
def test_versions_of_one_revision_are_one_caller(
    start_server: StartServer, change: dict[str, Any], is_same: bool
) -> None:
    server = start_server()
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.BasecallServiceStub(channel)

        def opened(expected: pb.CallerIdentity | None) -> pb.CallerIdentity:
            request = pb.StreamReadsRequest(open=pb.OpenStream(run=pb.RunInfo(run_id="r"), expected=expected))
            caller: pb.CallerIdentity = next(stub.StreamReads(iter([request]))).opened.caller
            return caller

        caller = opened(None)
        assert caller.calling_revision == stub.GetServerInfo(pb.GetServerInfoRequest()).calling_revision > 1
        for name, value in change.items():
            setattr(caller, name, value)
        if is_same:
            opened(caller)
            return
        with pytest.raises(grpc.RpcError, match="this server would call differently") as refused:
            opened(caller)
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_what_a_client_leaves_out_is_not_compared(start_server: StartServer) -> None:
    server = start_server()
    with grpc.insecure_channel(server.address) as channel:
        expected = pb.CallerIdentity(precision=server.engine.basecallers["tiny_fast@v1"].precision)
        request = pb.StreamReadsRequest(open=pb.OpenStream(run=pb.RunInfo(run_id="r"), expected=expected))
        assert next(pb_grpc.BasecallServiceStub(channel).StreamReads(iter([request]))).opened.caller.model


# The bytes, on any machine: all but the network


def made_up_signal(sequence: str, rng: np.random.Generator, tail_samples: int) -> npt.NDArray[np.int16]:
    """A level a base for two steps; of two levels of a base the other one than the base before had."""
    level_B = np.array(["ACGT".index(base) * 2 + place % 2 for place, base in enumerate(sequence)])
    signal_S = (300 + 60 * level_B).repeat(DWELL_STEPS * STRIDE)
    return np.concatenate([np.full(10, 300), signal_S, rng.integers(300, 720, tail_samples)]).astype(np.int16)


def made_up_scores(chunk_M: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """scores_TC that spell the levels of a chunk, with errors; from whole numbers alone, so that they are the same
    everywhere."""
    step_T = chunk_M[: chunk_M.size // STRIDE * STRIDE].reshape(-1, STRIDE)[:, 0].astype(np.float64)
    levels = np.unique(step_T)
    rank_T = np.searchsorted(levels, step_T) * 8 // max(levels.size, 8)
    begins_T = np.diff(rank_T, prepend=-1) != 0
    states = 4**STATE_LEN
    newest_C = np.repeat(np.arange(states) % 4, 4)
    noise_TC = (np.arange(rank_T.size)[:, None] * 7919 + np.arange(4 * states) * 104_729 + rank_T[:, None]) % 61
    scores_TC = np.where(begins_T[:, None], np.where(newest_C == rank_T[:, None] // 2, 5.0, -5.0), -6.0)
    return (scores_TC + (noise_TC - 30) / 16).astype(np.float32)


def made_up_network(
    runner: CpuRunner, chunks: Iterable[Callable[[npt.NDArray[np.float32]], None]], samples: int
) -> npt.NDArray[np.float32]:
    """In the place of `CpuRunner.__call__`: scores_TNC."""
    scores_TNC = np.zeros((samples // STRIDE, runner.rows, 4 ** (STATE_LEN + 1)), np.float32)
    for row, write in enumerate(chunks):
        chunk_M = np.empty(samples, np.float32)
        write(chunk_M)
        scores_TNC[:, row] = made_up_scores(chunk_M)
    return scores_TNC


@pytest.mark.parametrize("scaling", ["quantile", "med_mad"])
def test_bytes_change_only_with_the_revision(
    start_server: StartServer,
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scaling: str,
) -> None:
    """Scaling, cut, decoder, stitching, trimming, alignment, records: of scores that are the same on every machine."""
    rng = np.random.default_rng(17)
    genome = "".join("ACGT"[base] for base in rng.integers(0, 4, 20_000))
    reference = tmp_path / "genome.fasta"
    reference.write_text(f">genome\n{genome}\n")
    model = make_bundle(tmp_path / "dna_r10.4.1_e8.2_400bps_fast@v4.2.0", scaling__strategy=scaling)
    monkeypatch.setattr(CpuRunner, "__call__", made_up_network)
    run = RunInfo(run_id="run", sample_rate_hz=5000, sequencing_kit="SQK-LSK114", flow_cell_product_code="FLO-MIN114")
    reads = []
    for number in range(40):
        length = int(rng.integers(20, 1500))
        start = int(rng.integers(0, len(genome) - length))
        sequence = TOP + genome[start : start + length] + (BOTTOM if number % 2 else "")
        signal_S = made_up_signal(sequence, rng, int(rng.integers(0, 40)))
        reads.append(
            SignalRead(
                ReadInfo(
                    read_id=UUID(int=number + 1),
                    run=run,
                    offset_adc=10.0,
                    scale_pa_per_adc=0.2,
                    channel=number + 1,
                    well=1,
                    read_number=number,
                ),
                signal_S,
            )
        )
    server = start_server(model=[model], reference=[reference], precision="fp32")
    options = StreamOptions(reference="genome.fasta", emit_moves=True, emit_md=True)
    with SyncBasecallClient(server.address, options) as client:
        sequences = client.server_info().references["genome.fasta"]
        results = list(client.call(reads))
        identity = client._run(client._client.identify())
    assert sum(result.is_aligned for result in results) > 30, "they spell the genome"
    head = header([run], identity, sequences)
    lines = [record.to_string() for result in results for record in records(result, head, identity.model)]
    check_digest(f"made-up scores, {scaling}", lines)


def test_a_client_does_not_go_over_to_a_server_that_knows_no_revision(
    start_server: StartServer, signals: list[npt.NDArray[np.int16]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a server takes what it does not know of for the same: the client looks for itself."""
    server = start_server()
    run = RunInfo(run_id="run", sample_rate_hz=4000)
    reads = [
        SignalRead(ReadInfo(read_id=UUID(int=n + 1), run=run, offset_adc=10.0, scale_pa_per_adc=0.2), signal)
        for n, signal in enumerate(signals[:3])
    ]
    with SyncBasecallClient(server.address, StreamOptions(give_up_s=1.0)) as client:
        client._run(client._client.identify(run))
        monkeypatch.setattr("porestream.server.edge.rpc.CALLING_REVISION", 0)
        monkeypatch.setattr("porestream.server.edge.rpc._check_expected", lambda *_: None)
        missing = r"calling_revision was \d+, but here it is missing, because the server is too old"
        with pytest.raises(ServerLost, match=missing):
            list(client.call(reads))
