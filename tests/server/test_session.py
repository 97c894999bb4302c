"""Sessions under a memory budget, with reads that are called when the test says so: no stall, no overrun, no loss."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from porestream.server.calling.scheduler import Job
from porestream.server.reads import (
    Calibration,
    CalledPart,
    CallSettings,
    Chunk,
    Encoding,
    ReadResult,
    SignalPiece,
    Status,
    StreamFault,
)
from porestream.server.streams.books import Books, Ledger, StreamBooks
from porestream.server.streams.budget import (
    BYTES_PER_CREDIT_SAMPLE,
    LEAST_WINDOW_SAMPLES,
    MAX_CHUNK_SAMPLES,
    MIN_CHUNK_CREDIT_SAMPLES,
    BudgetError,
    MemoryBudget,
)
from porestream.server.streams.results import GATHER_S, MAX_OPEN_READS, ResultsSession
from porestream.server.streams.session import RETRY_S, Beat, CreditGrant, Drain, Results

SETTINGS = CallSettings(model="model", sample_rate_hz=4000)
MIB = 1 << 20


class HeldReads:
    """Takes the scheduler's place, and holds jobs until they are finished by hand."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def cancel(self, stream: object) -> None:
        self.jobs = [job for job in self.jobs if job.stream is not stream]

    def finish(self, index: int = 0) -> None:
        job = self.jobs.pop(index % len(self.jobs))
        bases = job.read.samples // 10
        part = CalledPart(
            sequence="A" * bases,
            qualities_B=np.zeros(bases, np.uint8),
            moves_T=np.zeros(bases * 2, np.uint8),
            mean_qscore=9.0,
            trimmed_samples=10,
            stride=6,
            alignments=[],
        )
        job.deliver(
            job,
            ReadResult(
                read_id=job.read.read_id,
                channel=1,
                status=Status.CALLED,
                detail="",
                signal_samples=job.read.samples,
                parts=(part,),
            ),
        )


@dataclass
class Client:
    """Sends reads within the credit and notes what comes back."""

    session: ResultsSession
    reads: list[int]  # samples of each, by read id
    open_at_once: int = 1
    chunk_samples: int = MAX_CHUNK_SAMPLES
    acknowledging: bool = True
    credit: int = 0
    used: int = 0
    sent: dict[int, int] = field(default_factory=dict)
    results: dict[int, ReadResult] = field(default_factory=dict)
    outputs: list[object] = field(default_factory=list)
    last_seq: int = 0
    turn: int = 0
    fault: StreamFault | None = None
    ended: bool = False
    sent_back: list[int] = field(default_factory=list)
    resting: dict[int, int] = field(default_factory=dict)  # turns until a read is sent again
    pause: Callable[[int], int] = int

    async def listen(self) -> None:
        try:
            async for output in self.session.outputs():
                self.session.heard()
                self.outputs.append(output)
                if isinstance(output, CreditGrant):
                    self.credit = output.max_total_samples
                elif isinstance(output, Results):
                    assert output.first_seq == self.last_seq + 1
                    self.last_seq += len(output.results)
                    for result in output.results:
                        read = UUID(bytes=result.read_id).int
                        assert read not in self.results, "a second result"
                        if result.status is Status.TRY_AGAIN:
                            self.sent_back.append(read)
                            self.sent.pop(read)
                            self.resting[read] = self.pause(20 << min(10, self.sent_back.count(read)))
                        else:
                            self.results[read] = result
                    if self.acknowledging:
                        self.session.acknowledge(self.last_seq)
            self.ended = True
        except StreamFault as fault:
            self.fault = fault

    def unfinished(self) -> list[int]:
        return [read for read, samples in enumerate(self.reads) if self.sent.get(read, -1) < samples]

    def send(self) -> bool:
        """Send one chunk of one of the open reads in turn, if the credit allows."""
        self.resting = {read: turns - 1 for read, turns in self.resting.items() if turns > 1}
        candidates = [read for read in self.unfinished() if read not in self.resting][: self.open_at_once]
        if not candidates:
            return bool(self.resting)
        read = candidates[self.turn % len(candidates)]
        first = max(self.sent.get(read, 0), 0)
        count = min(self.chunk_samples, self.reads[read] - first)
        cost = max(count, MIN_CHUNK_CREDIT_SAMPLES)
        if self.used + cost > self.credit:
            return False
        self.turn += 1
        self.used += cost
        self.sent[read] = first + count
        self.session.receive(chunk(read, first, count, end=first + count == self.reads[read]))
        return True


def chunk(read: int, first: int, count: int, *, end: bool = False, signal: bytes | None = None) -> Chunk:
    signal = bytes(2 * count) if signal is None else signal
    calibration = Calibration(0.0, 0.2) if first == 0 else None
    return Chunk(
        read_id=UUID(int=read).bytes,
        channel=1,
        first_sample=first,
        piece=SignalPiece(Encoding.INT16_LE, signal, count, 0),
        calibration=calibration,
        end_of_read=end,
    )


async def go_on(client: Client, held: HeldReads, turns: int) -> None:
    """The client sends what it can, and what is complete is called."""
    for _ in range(turns):
        await settle()
        client.send()
        if held.jobs:
            held.finish()


async def settle() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


def balanced(books: Books) -> bool:
    closed = books.called + books.filtered + books.rejected + books.failed + books.abandoned
    return books.received == closed + books.open


def make_session(
    budget: MemoryBudget, held: HeldReads, ledger: Ledger, limit: int = 50_000_000, client: str | None = None
) -> ResultsSession:
    return ResultsSession(
        SETTINGS,
        held,
        budget,
        StreamBooks(ledger, "run", SETTINGS.model, SETTINGS.priority),
        max_read_samples=limit,
        window_samples=LEAST_WINDOW_SAMPLES,
        heartbeat_s=30.0,
        client=client,
    )


streams = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0, 1, 700, 5_000, 131_072, 300_000, 900_000, 3_000_000]), min_size=1, max_size=6),
        st.integers(1, 6),  # reads open at once
        st.sampled_from([4_000, 65_536, MAX_CHUNK_SAMPLES]),
        st.booleans(),  # acknowledging
    ),
    min_size=1,
    max_size=3,
)


@given(streams, st.integers(0, 2**32).map(Random))  # not st.randoms: how often it is asked depends on the clock
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_no_legal_stream_stalls_and_memory_stays_in_budget(plans, random) -> None:  # type: ignore[no-untyped-def]
    async def simulate() -> None:
        budget = MemoryBudget(12 * MIB, 3)
        held, ledger = HeldReads(), Ledger()
        clients = [
            Client(make_session(budget, held, ledger), reads, at_once, samples, acknowledging, pause=random.randrange)
            for reads, at_once, samples, acknowledging in plans
        ]
        listeners = [asyncio.create_task(client.listen()) for client in clients]
        while any(len(client.results) < len(client.reads) for client in clients):
            await settle()
            actions = [client.send for client in clients]
            if held.jobs:
                actions.append(lambda: held.finish(random.randrange(8)) is None)
            random.shuffle(actions)
            progressed = any(action() for action in actions)
            if not progressed:
                before = [(client.credit, len(client.results)) for client in clients]
                await asyncio.sleep(2 * GATHER_S + 2 * RETRY_S)
                await settle()
                after = [(client.credit, len(client.results)) for client in clients]
                missing = [len(client.reads) - len(client.results) for client in clients]
                assert before != after or not any(missing), f"stalled: {after}, missing {missing}"
            assert balanced(ledger.server)
            assert budget.charged_bytes() == sum(budget.charged_bytes(client.session) for client in clients)
            assert budget.charged_bytes() <= budget.signal_bytes + 2 * MIB  # a result may outweigh its signal a little
        for client in clients:
            client.session.acknowledge(client.last_seq)
            client.session.half_close()
        async with asyncio.timeout(5):
            await asyncio.gather(*listeners)
        for client, (reads, *_) in zip(clients, plans, strict=True):
            assert client.fault is None
            for read, samples in enumerate(reads):
                result = client.results[read]
                assert result.status is Status.CALLED or result.detail.startswith(("too long", "empty"))
                assert samples or result.status is Status.REJECTED
            client.session.close()
        assert budget.charged_bytes() == 0
        assert balanced(ledger.server)
        assert ledger.server.open == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("porestream.server.streams.budget.IDLE_READ_S", -10.0)  # patience is over at once
        patch.setattr(ResultsSession, "give_up_idle_read", lambda _: False)
        asyncio.run(simulate())


def run(scenario: Callable[[MemoryBudget, HeldReads, Ledger], object], budget_mib: int = 12) -> None:
    async def main() -> None:
        await scenario(MemoryBudget(budget_mib * MIB, 3), HeldReads(), Ledger())  # type: ignore[misc]

    asyncio.run(main())


def test_a_greedy_stream_leaves_room_for_others() -> None:
    async def scenario(budget: MemoryBudget, held: HeldReads, ledger: Ledger) -> None:
        hog = Client(make_session(budget, held, ledger), [100_000] * 200, acknowledging=False)
        small = Client(make_session(budget, held, ledger), [900_000])  # 1.8 MB: more than its guaranteed share
        for client in (hog, small):
            client.task = asyncio.create_task(client.listen())  # type: ignore[attr-defined]
        await settle()
        while hog.send():  # takes all it can get, and nothing is called of it
            await settle()
        while small.send():
            await settle()
        assert len(held.jobs) > 1
        assert any(job.stream is small.session for job in held.jobs), "the greedy stream starved the other"

    run(scenario)


def test_the_longest_open_read_is_rejected_by_name_when_nothing_else_helps() -> None:
    async def scenario(budget: MemoryBudget, held: HeldReads, ledger: Ledger) -> None:
        client = Client(make_session(budget, held, ledger), [9_000_000, 50_000], open_at_once=2)
        client.task = asyncio.create_task(client.listen())  # type: ignore[attr-defined]
        await go_on(client, held, 300)
        assert client.results[0].status is Status.REJECTED
        assert str(budget.total_bytes) in client.results[0].detail
        assert client.results[1].status is Status.CALLED

    run(scenario)


def test_reads_that_never_end_do_not_cost_anothers_long_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams of one client leave reads open, each smaller than the honest one; no clock helps."""
    monkeypatch.setattr("porestream.server.streams.budget.BUSY_PATIENCE_S", 0.0)

    async def scenario(budget: MemoryBudget, held: HeldReads, ledger: Ledger) -> None:
        hostile = [make_session(budget, held, ledger, client="hostile") for _ in range(2)]
        clients = [Client(session, [10**9], acknowledging=True) for session in hostile]
        honest = Client(make_session(budget, held, ledger, client="honest"), [4_000_000])
        tasks = [asyncio.create_task(client.listen()) for client in (*clients, honest)]
        for _ in range(30):  # they are first, and take what they get
            await settle()
            for client in clients:
                client.send()
        await go_on(honest, held, 400)
        assert honest.results[0].status is Status.CALLED
        assert not honest.sent_back
        assert any(client.sent_back for client in clients)
        for session in hostile:  # what still comes of those reads is not worth the server's time: server/edge/pace.py
            before = session.taken_samples
            gone = next(iter(session._refused))
            session.receive(replace(chunk(0, 0, 1000), read_id=gone, first_sample=10**6))
            assert session.taken_samples == before
        assert balanced(ledger.server)
        for task in tasks:
            task.cancel()

    run(scenario, 40)


def test_a_read_of_which_nothing_comes_goes_first_and_may_come_again() -> None:
    async def scenario(budget: MemoryBudget, held: HeldReads, ledger: Ledger) -> None:
        idle = Client(make_session(budget, held, ledger, client="idle"), [10**9])
        long = Client(make_session(budget, held, ledger, client="long"), [4_000_000])
        tasks = [asyncio.create_task(client.listen()) for client in (idle, long)]
        while not budget._borrowers or idle.credit - idle.used < MAX_CHUNK_SAMPLES:
            await settle()
            assert idle.send()
            await settle()
        for read in idle.session._open.values():
            read.grown_s = idle.session._credited_s = -1e9
        await go_on(long, held, 300)
        assert long.results[0].status is Status.CALLED
        assert idle.sent_back == [0]
        idle.reads = [50_000]
        await go_on(idle, held, 60)
        assert idle.results[0].status is Status.CALLED
        for task in tasks:
            task.cancel()

    run(scenario, 25)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([chunk(7, 0, 100), chunk(7, 150, 100, end=True)], "gap"),
        ([chunk(7, 0, 100), chunk(7, 50, 100, end=True)], "overlap"),
        ([chunk(7, 0, 100), chunk(7, 0, 100, end=True)], "overlap"),
        ([chunk(7, 0, 0, end=True)], "empty"),
        ([chunk(7, 0, 4_000_000_000, signal=b"xx", end=True)], "4000000000 samples"),
        ([chunk(7, 0, 10, signal=bytes(100_000), end=True)], "100000 bytes"),
        ([chunk(7, 0, 60_000), chunk(7, 60_000, 60_000, end=True)], "too long"),
    ],
)
def test_bad_reads_are_rejected_and_the_stream_goes_on(chunks: list[Chunk], reason: str) -> None:
    async def scenario(budget: MemoryBudget, held: HeldReads, ledger: Ledger) -> None:
        client = Client(make_session(budget, held, ledger, limit=100_000), [])
        client.task = asyncio.create_task(client.listen())  # type: ignore[attr-defined]
        for piece in chunks:
            client.session.receive(piece)
        client.session.receive(chunk(8, 0, 5_000, end=True))
        held.finish()
        await settle()
        assert client.results[7].status is Status.REJECTED
        assert reason in client.results[7].detail
        assert client.results[8].status is Status.CALLED
        assert balanced(ledger.server)

    run(scenario)


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [(None, "missing"), (Calibration(float("nan"), 1.0), "unusable"), (Calibration(0.0, 0.0), "unusable")],
)
def test_calibration_is_checked(calibration: Calibration | None, reason: str) -> None:
    async def scenario(budget: MemoryBudget, held: HeldReads, ledger: Ledger) -> None:
        session = make_session(budget, held, ledger)
        client = Client(session, [])
        client.task = asyncio.create_task(client.listen())  # type: ignore[attr-defined]
        good = chunk(7, 0, 100, end=True)
        session.receive(
            Chunk(
                read_id=good.read_id,
                channel=1,
                first_sample=0,
                piece=good.piece,
                calibration=calibration,
                end_of_read=True,
            )
        )
        await settle()
        assert reason in client.results[7].detail

    run(scenario)


def test_breaking_the_contract_ends_the_stream() -> None:
    async def scenario(budget: MemoryBudget, held: HeldReads, ledger: Ledger) -> None:
        session = make_session(budget, held, ledger)
        with pytest.raises(StreamFault, match="credit exceeded"):
            for number in range(1000):
                session.receive(chunk(number, 0, 100_000, end=True))  # complete reads that nobody calls
        with pytest.raises(StreamFault, match="0 results were sent"):
            session.acknowledge(1)
        session.half_close()
        with pytest.raises(StreamFault, match="half_close"):
            session.receive(chunk(2, 0, 10))
        session.close()
        assert budget.charged_bytes() == 0
        assert ledger.server.abandoned + ledger.server.rejected + ledger.server.open == ledger.server.received

    run(scenario)


def test_open_reads_are_bounded() -> None:
    async def scenario(budget: MemoryBudget, held: HeldReads, ledger: Ledger) -> None:
        session = make_session(budget, held, ledger)
        with pytest.raises(StreamFault, match=f"more than {MAX_OPEN_READS}|credit exceeded"):
            for number in range(MAX_OPEN_READS + 1):
                session.receive(chunk(number, 0, 0))

    run(scenario, budget_mib=1024)


def test_half_close_rejects_open_reads_but_a_drain_abandons_them() -> None:
    async def scenario(budget: MemoryBudget, held: HeldReads, ledger: Ledger) -> None:
        closing = Client(make_session(budget, held, ledger), [])
        drained = Client(make_session(budget, held, ledger), [])
        tasks = [asyncio.create_task(client.listen()) for client in (closing, drained)]
        for client in (closing, drained):
            client.session.receive(chunk(1, 0, 100))
            client.session.receive(chunk(2, 0, 100, end=True))
        drained.session.drain(5.0)
        await settle()
        for client in (closing, drained):
            client.session.half_close()
        held.finish()
        held.finish()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks)
        assert closing.ended
        assert "half-closed" in closing.results[1].detail
        assert Drain(5.0) in drained.outputs
        assert drained.fault
        assert drained.fault.code == "UNAVAILABLE"
        assert set(drained.results) == {2}, "a complete read is finished, an open one is left to the next server"
        for client in (closing, drained):
            client.session.close()
        assert (ledger.server.called, ledger.server.rejected, ledger.server.abandoned) == (2, 1, 1)

    run(scenario)


def test_a_silent_client_is_dropped_and_an_idle_one_gets_heartbeats() -> None:
    async def scenario(budget: MemoryBudget, held: HeldReads, ledger: Ledger) -> None:
        session = ResultsSession(
            SETTINGS,
            held,
            budget,
            StreamBooks(ledger, "run", SETTINGS.model, SETTINGS.priority),
            max_read_samples=1000,
            window_samples=LEAST_WINDOW_SAMPLES,
            heartbeat_s=0.05,
        )
        outputs = []
        with pytest.raises(StreamFault, match="silent"):
            async for output in session.outputs():
                outputs.append(output)
        assert Beat() in outputs

    run(scenario)


def test_results_of_a_closed_stream_are_dropped() -> None:
    async def scenario(budget: MemoryBudget, held: HeldReads, ledger: Ledger) -> None:
        session = make_session(budget, held, ledger)
        session.receive(chunk(1, 0, 1000, end=True))
        job = held.jobs[0]
        session.close()
        held.jobs = [job]
        held.finish()
        await settle()
        assert ledger.server.abandoned == 1
        assert budget.charged_bytes() == 0

    run(scenario)


def test_a_budget_too_small_is_refused_with_the_way_out() -> None:
    needed = 8 * MAX_CHUNK_SAMPLES * BYTES_PER_CREDIT_SAMPLE
    MemoryBudget(needed * 10, 10)
    with pytest.raises(BudgetError, match=rf"at least {needed * 11}, or allow at most 10 streams"):
        MemoryBudget(needed * 10, 11)
