"""One client's messages take a part of the event loop's time where there are others, all of it where there are none."""

import pytest

from porestream.server.edge.pace import Pace


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def handled_in(pace: Pace, clock: Clock, seconds: float, streams: int = 1) -> float:
    """What a client who sends all the time has of so many seconds, each message 2 ms of work."""
    end_s, handled_s, free_s = clock.now_s + seconds, 0.0, [clock.now_s] * streams
    while clock.now_s < end_s:
        clock.now_s += 0.001
        for stream, at_s in enumerate(free_s):
            if at_s <= clock.now_s:
                handled_s += 0.002
                clock.now_s += 0.002
                free_s[stream] = clock.now_s + pace.wait_s("greedy", 0.002)
    return handled_s


@pytest.mark.parametrize("streams", [1, 20])
def test_a_client_has_a_tenth_however_many_streams_it_opens(clock: Clock, streams: int) -> None:
    pace = Pace(clock)
    for client in ["greedy"] * streams + ["modest"]:
        pace.enter(client)
    assert 0.8 < handled_in(pace, clock, 10, streams) < 1.5
    assert pace.wait_s("modest", 0.01) == 0


def test_who_is_alone_has_it_all(clock: Clock) -> None:
    pace = Pace(clock)
    for client in ["greedy", "greedy", "modest"]:
        pace.enter(client)
    pace.leave("modest")
    assert handled_in(pace, clock, 10) > 6


def test_signal_is_worth_its_messages_long_before_its_reads_end(clock: Clock) -> None:
    """Three thousand channels of 5 kHz, a chunk a second each, reads of a minute."""
    pace = Pace(clock)
    for client in ["instrument", "other"]:
        pace.enter(client)
    waits = []
    for _second in range(20):
        for _message in range(300):
            waits.append(pace.wait_s("instrument", 10 * 30e-6, 10 * 5000))
            clock.now_s += 1 / 300
    assert not any(waits)


def test_rejected_signal_is_worth_nothing(clock: Clock) -> None:
    pace = Pace(clock)
    for client in ["greedy", "other"]:
        pace.enter(client)
    waits = 0.0
    for _message in range(100):
        clock.now_s += 0.002
        waits += pace.wait_s("greedy", 0.002, 10 * 65_536)
        pace.answered("greedy", 0.001, 10 * 65_536)
    assert waits > 10


def test_no_wait_is_long_and_nothing_stays_of_who_left(clock: Clock) -> None:
    pace = Pace(clock)
    pace.enter("greedy")
    pace.enter("modest")
    assert pace.wait_s("greedy", 100.0) == 1.0
    pace.leave("greedy")
    pace.enter("greedy")
    assert pace.wait_s("greedy", 0.01) == 0
    for client in ("greedy", "modest"):
        pace.leave(client)
    assert not pace._streams
    assert not pace._allowances
