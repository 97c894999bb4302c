"""The status page: its arithmetic, what it says of made-up metrics, and its web server. tests/ops has the browser."""

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from porestream.server.metrics import DEFINITIONS
from porestream.server.watch.status_page import history as history_module
from porestream.server.watch.status_page import page as page_module
from porestream.server.watch.status_page import web
from porestream.server.watch.status_page.history import History, increase, snapshot
from porestream.server.watch.status_page.numbers import quantile, status
from porestream.server.watch.status_page.page import StatusServer, start

MAKE: dict[str, Callable[..., Any]] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
UNIX_S = 1_800_000_000.0
KEYS = """unix_s started_unix_s uptime_seconds version python torch conditions draining tls_certificate_expiry_unix_s
    reads_open books_imbalance_reads backlog_seconds last_minute last_hour since_start models references devices
    priorities max_streams memory queues series"""
WORK_KEYS = """seconds samples_received_per_second samples_finished_per_second bases_per_second samples_received
    samples_finished bases reads_received reads mean_qscore mean_read_length_bases mean_identity_ratio aligned_ratio"""
ERROR_KEYS = "reads_rejected reads_failed batches_retried streams_opened streams_reconnected streams_ended"


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class MadeUp:
    """Metrics of the server, made when first named, and a history whose time the test tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.clock = Clock()
        self.history = History(self.registry, clock=self.clock)
        self._metrics: dict[str, Any] = {}
        self._started = Gauge("process_start_time_seconds", "", registry=self.registry)
        self._started.set(UNIX_S)

    def __call__(self, metric_name: str, /, **labels: str) -> Any:
        if metric_name not in self._metrics:
            (one,) = (one for one in DEFINITIONS if one.name == f"porestream_{metric_name}")
            self._metrics[metric_name] = MAKE[one.kind](one.name, one.help, one.labels, registry=self.registry)
        metric = self._metrics[metric_name]
        return metric.labels(**labels) if labels else metric

    def after(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.history.tick()

    def status(self) -> dict[str, Any]:
        return status(snapshot(self.registry), self.history, UNIX_S + self.clock.now_s)


@pytest.fixture
def made_up() -> MadeUp:
    return MadeUp()


def with_reads(made_up: MadeUp) -> MadeUp:
    """100 s: 1000 bases and 10 000 samples a second by one model, nothing by the other."""
    for model in ("fast", "sup"):
        made_up("model_info", model=model, sha256=f"{model}-digest", precision="fp32", device_class="cpu").set(1)
    made_up("bases_called_total", model="sup", priority="bulk").inc(0)
    made_up.history.tick()
    for priority in ("live", "bulk"):
        made_up("bases_called_total", model="fast", priority=priority).inc(50_000)
        made_up("samples_received_total", model="fast", priority=priority).inc(600_000)
        made_up("samples_finished_total", model="fast", priority=priority).inc(500_000)
        made_up("reads_received_total", model="fast", priority=priority).inc(6)
        made_up("reads_total", model="fast", priority=priority, status="called").inc(5)
        made_up("reads_open", model="fast", priority=priority).set(1)
    made_up.after(100)
    return made_up


def test_rates_are_of_the_time_that_was_seen(made_up: MadeUp) -> None:
    found = with_reads(made_up).status()
    assert found["last_minute"]["bases_per_second"] == 1000
    assert found["last_hour"]["samples_received_per_second"] == 12_000
    assert found["last_hour"]["seconds"] == 100
    assert found["since_start"]["bases"] == 100_000
    assert found["since_start"]["reads"] == {"called": 10}
    assert (found["reads_open"], found["uptime_seconds"]) == (2, 100)
    fast, sup = found["models"]
    assert (fast["model"], fast["sha256"], fast["reads_open"]) == ("fast", "fast-digest", 2)
    assert fast["last_hour"]["bases_per_second"] == 1000
    assert (sup["last_hour"]["bases_per_second"], sup["last_hour"]["mean_qscore"]) == (0, None)
    assert found["series"]["bases_per_second"] == [1000]
    assert found["series"]["unix_s"] == [UNIX_S + 100]


def test_an_hour_forgets_what_was_before(made_up: MadeUp) -> None:
    with_reads(made_up)
    for _ in range(400):
        made_up.after(10)
    found = made_up.status()
    assert found["last_hour"]["seconds"] == 3600
    assert found["last_hour"]["bases"] == 0
    assert found["since_start"]["bases"] == 100_000
    assert len(found["series"]["backlog_seconds"]) == 360


def test_an_idle_server_has_no_figures_but_null(made_up: MadeUp) -> None:
    found = made_up.status()  # not even one row
    assert [condition["name"] for condition in found["conditions"]] == ["loading"]
    assert found["last_hour"]["bases_per_second"] is None
    assert found["since_start"]["mean_qscore"] is None
    assert (found["models"], found["references"], found["devices"]) == ([], [], [])
    json.dumps(found, allow_nan=False)


def test_keys_stay(made_up: MadeUp) -> None:
    """Labs' scripts read them: add, but do not rename."""
    found = with_reads(made_up).status()
    assert set(found) >= set(KEYS.split())
    for span in ("last_minute", "last_hour", "since_start"):
        assert set(found["models"][0][span]) >= set(WORK_KEYS.split())
        assert set(found[span]) >= set(WORK_KEYS.split())
    assert set(found["last_hour"]) & set(found["since_start"]) >= set(ERROR_KEYS.split())


def test_every_metric_that_is_shown_is_defined(made_up: MadeUp) -> None:
    """With each metric there, and each counted, nothing is left to say but null or 0: no name has a slip."""
    label_values = {"priority": "live", "device": "cpu", "row": "chunk"}
    for moment in (1, 2):
        for one in DEFINITIONS:
            metric = made_up(
                one.name.removeprefix("porestream_"), **{label: label_values.get(label, "x") for label in one.labels}
            )
            for add in ("inc", "observe"):
                if hasattr(metric, add):
                    getattr(metric, add)(moment)
        made_up.after(30)
    found = made_up.status()

    def empty(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from empty(inner, f"{path}.{key}")
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                yield from empty(inner, f"{path}.{i}")
        elif not value:
            yield path

    left = {path for path in empty(found, "") if not path.startswith((".priorities.1", ".priorities.2"))}
    assert left == {".memory.process_bytes"}  # the Python client's


@pytest.mark.parametrize(
    ("metric", "labels", "value", "condition"),
    [
        ("device_up", {"device": "cuda:0"}, 0, "device_down"),
        ("books_imbalance", {}, -1, "books_out_of_balance"),
        ("backlog_seconds", {"priority": "live"}, 61, "falling_behind"),
        ("draining", {}, 1, "draining"),
        ("tls_certificate_expiry_timestamp_seconds", {}, UNIX_S + 1e6, "certificate_ends"),
    ],
)
def test_conditions(made_up: MadeUp, metric: str, labels: dict[str, str], value: float, condition: str) -> None:
    assert [found["name"] for found in made_up.status()["conditions"]] == ["loading"]
    made_up("model_info", model="m", sha256="", precision="", device_class="").set(1)
    made_up("device_up", device="cpu").set(1)
    made_up("backlog_seconds", priority="bulk").set(10_000)  # files are read faster than they can be called
    made_up("tls_certificate_expiry_timestamp_seconds").set(UNIX_S + 1e8)
    assert made_up.status()["conditions"] == []
    made_up(metric, **labels).set(value)
    (found,) = made_up.status()["conditions"]
    assert found["name"] == condition


@pytest.mark.parametrize(
    ("priority", "stalled_s", "behind"), [("live", 150, True), ("live", 30, False), ("bulk", 240, False)]
)
def test_live_streams_that_must_wait_are_behind(made_up: MadeUp, priority: str, stalled_s: float, behind: bool) -> None:
    made_up("model_info", model="m", sha256="", precision="", device_class="").set(1)
    made_up("streams", priority=priority).set(4)
    made_up("credit_stall_seconds_total", priority=priority).inc(0)
    made_up.after(60)
    made_up("credit_stall_seconds_total", priority=priority).inc(stalled_s)
    made_up.after(60)
    found = made_up.status()["conditions"]
    assert [condition["name"] for condition in found] == (["falling_behind"] if behind else [])


def test_devices(made_up: MadeUp) -> None:
    made_up("device_slots", device="cpu").set(2)
    made_up("device_busy_seconds_total", device="cpu").inc(1000)
    made_up("device_energy_joules_total", device="cpu").inc(7)
    made_up.history.tick()
    made_up("device_busy_seconds_total", device="cpu").inc(60)
    for row, samples in (("chunk", 3e6), ("padding", 1e6)):
        made_up("row_samples_total", model="fast", row=row).inc(samples)
    made_up("device_energy_joules_total", device="cpu").inc(3000)
    made_up("bases_called_total", model="fast", priority="live").inc(1_000_000)
    made_up.after(60)
    (device,) = made_up.status()["devices"]
    assert device["busy_ratio_last_minute"] == 0.5
    assert device["useful_rows_ratio_last_minute"] == 0.75
    assert device["power_watts"] == 50
    assert device["joules_per_gigabase_last_hour"] == pytest.approx(3e6)
    assert (device["up"], device["memory_used_bytes"]) == (None, None)


def test_quantiles_as_prometheus_estimates_them() -> None:
    buckets = [(float("inf"), 100.0), (3.0, 90.0), (1.0, 50.0), (0.1, 0.0)]
    assert quantile(buckets, 0.5) == pytest.approx(1.0)
    assert quantile(buckets, 0.25) == pytest.approx(0.55)
    assert quantile(buckets, 0.99) == 3.0
    assert quantile([(1.0, 0.0), (float("inf"), 0.0)], 0.5) is None
    assert quantile([], 0.5) is None


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e12))), max_size=60),
    st.floats(0, 5000),
)
def test_rates_are_never_negative_and_memory_is_bounded(
    rows: list[tuple[float, dict[str, float]]], window_s: float
) -> None:
    class Source(Collector):
        values: dict[str, float]

        def collect(self) -> Iterator[CounterMetricFamily]:
            family = CounterMetricFamily("porestream_x", "", labels=["label"])
            for label, value in self.values.items():
                family.add_metric([label], value)
            yield family

    source, clock = Source(), Clock()
    history = History(source, interval_s=100, kept_s=1000, clock=clock)  # type: ignore[arg-type]
    for seconds, source.values in rows:
        clock.now_s += seconds
        history.tick()
        series = history.series(["porestream_x_total"], ["porestream_y"])
        assert all(rate >= 0 for rate in series["porestream_x_total"])
        assert all(0 <= age_s <= 1000 for age_s in series["age_s"])
        assert (
            len(series["age_s"]) == len(series["porestream_y"]) == len(series["porestream_x_total"]) == len(history) - 1
        )
        assert len(history) <= 11
        age_s, before = history.before(window_s) or (0.0, {})
        assert age_s >= 0
        assert all(value >= 0 for value in increase(snapshot(source), before).values())


def test_a_meter_that_fails_for_a_while_has_not_begun_again(made_up: MadeUp) -> None:
    made_up("device_energy_joules_total", device="cuda:0").inc(1000)
    made_up.history.tick()
    made_up("device_energy_joules_total").clear()
    made_up.after(10)
    made_up("device_energy_joules_total", device="cuda:0").inc(1060)
    made_up.after(10)
    assert made_up.history.series(["porestream_device_energy_joules_total"], [])[
        "porestream_device_energy_joules_total"
    ] == [0, 6]


def test_a_collector_that_fails_costs_a_row_and_is_logged_once(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Collector):
        works = True

        def collect(self) -> Iterator[CounterMetricFamily]:
            if not self.works:
                raise RuntimeError("the meter is gone")
            return iter(())

    told: list[str] = []
    monkeypatch.setattr(history_module.log, "exception", told.append)
    broken = Broken()
    made_up.registry.register(broken)
    made_up.after(10)
    broken.works = False
    made_up.after(10)
    made_up.after(10)
    assert (len(made_up.history), len(told)) == (1, 1)
    broken.works = True
    made_up.after(10)
    assert len(made_up.history) == 2


def test_the_history_keeps_rows_by_itself(made_up: MadeUp) -> None:
    history = History(made_up.registry, interval_s=0.01)
    history.start()
    deadline_s = time.monotonic() + 10
    while len(history) < 3 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    history.close()
    assert len(history) >= 3


@pytest.fixture
def server(made_up: MadeUp) -> Iterator[StatusServer]:
    opened = start(with_reads(made_up).registry, 0, "127.0.0.1", made_up.history)
    yield opened
    opened.close()


def ask(server: StatusServer, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


@pytest.mark.parametrize(
    ("path", "content_type", "content"),
    [
        ("/", "text/html; charset=utf-8", b'<script src="page.js" defer></script>'),
        ("/page.js", "text/javascript; charset=utf-8", b"status.json"),
        ("/style.css", "text/css; charset=utf-8", b"prefers-color-scheme"),
        ("/status.json", "application/json", b'"bases_per_second": 1000.0'),
        ("/metrics", None, b'porestream_bases_called_total{model="fast",priority="live"} 50000.0'),
    ],
)
def test_routes(server: StatusServer, path: str, content_type: str | None, content: bytes) -> None:
    response, body = ask(server, path)
    assert response.status == 200
    assert content in body
    assert content_type in (None, response.getheader("Content-Type"))
    assert (response.getheader("Content-Security-Policy") or "").startswith("default-src 'self';")
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    assert response.getheader("Referrer-Policy") == "no-referrer"
    assert response.getheader("Cache-Control") == "no-store"
    head, nothing = ask(server, path, "HEAD")
    assert (head.status, nothing) == (200, b"")
    assert abs(int(head.getheader("Content-Length") or 0) - len(body)) < 100  # the time is in the JSON


def test_what_is_not_there_and_what_is_not_allowed(server: StatusServer) -> None:
    response, body = ask(server, "/../page.py")
    assert (response.status, b"/metrics" in body) == (404, True)
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        response, _ = ask(server, "/metrics", method)
        assert (response.status, response.getheader("Allow")) == (405, "GET, HEAD")


def test_the_page_loads_nothing_from_elsewhere_and_is_light(server: StatusServer) -> None:
    bodies = [ask(server, path)[1] for path in ("/", "/page.js", "/style.css")]
    assert sum(map(len, bodies)) < 25_000
    assert not any(b"//" in body.replace(b"http://www.w3.org/2000/svg", b"").replace(b"// ", b"") for body in bodies)
    assert b"innerHTML" not in bodies[1]


def test_a_stuck_client_does_not_block_a_scrape(server: StatusServer, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as stuck:
        stuck.sendall(b"GET / HTTP/1.1\r\n")  # and never the rest
        assert ask(server, "/metrics")[0].status == 200
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_told(server: StatusServer, made_up: MadeUp) -> None:
    with pytest.raises(OSError, match="in use"):
        start(made_up.registry, server.port, "127.0.0.1", made_up.history)


class Counted(Collector):
    """Counts how often it is asked, and fails if it shall."""

    def __init__(self) -> None:
        self.times, self.fails = 0, False

    def collect(self) -> Iterator[CounterMetricFamily]:
        self.times += 1
        if self.fails:
            raise RuntimeError("the meter is gone")
        yield CounterMetricFamily("porestream_x", "", value=self.times)


@pytest.fixture
def counted(made_up: MadeUp) -> Counted:
    collector = Counted()
    made_up.registry.register(collector)
    collector.times = 0
    return collector


def test_thirty_who_ask_cost_one_collection_a_second(server: StatusServer, counted: Counted) -> None:
    """Before, each request collected: thirty clients took a core of the server's."""
    began_s, threads = time.monotonic(), threading.active_count()
    with ThreadPoolExecutor(7) as clients:  # eight of an address may be connected
        paths = ["/status.json", "/metrics"] * 30
        answers = list(clients.map(lambda path: ask(server, path)[0].status, paths))
        assert threading.active_count() <= threads + 7
    assert set(answers) == {200}
    assert 1 <= counted.times <= time.monotonic() - began_s + 1


def test_connections_are_taken_at_a_pace(server: StatusServer) -> None:
    began_s = time.monotonic()
    for _ in range(60):
        assert ask(server, "/page.js")[0].status == 200
    assert time.monotonic() - began_s > (60 - 32 - 1) / 50


def test_formats_of_prometheus(server: StatusServer, counted: Counted) -> None:
    plain, text = ask(server, "/metrics")
    assert (plain.getheader("Content-Type") or "").startswith("text/plain; version=0.0.4")
    opened, as_open_metrics = ask(server, "/metrics", Accept="application/openmetrics-text;version=1.0.0,*/*;q=0.1")
    assert (opened.getheader("Content-Type") or "").startswith("application/openmetrics-text; version=1.0.0")
    assert as_open_metrics.endswith(b"# EOF\n")
    for _ in range(2):
        packed, body = ask(server, "/metrics", Accept_Encoding="gzip")
        assert packed.getheader("Content-Encoding") == "gzip"
        assert gzip.decompress(body) == text  # of the same second
    for version in ("abc", "1.0.1", "9"):
        made_up_version, body = ask(server, "/metrics", Accept=f"application/openmetrics-text;version={version}")
        assert (made_up_version.status, body) == (200, text)
    assert counted.times == 1


def test_a_collector_that_fails_is_asked_once_a_second_too(
    server: StatusServer, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(page_module.log, "exception", lambda text, **_: told.append(text))
    monkeypatch.setattr(page_module, "_KEPT_S", 3600.0)
    counted.fails = True
    assert [ask(server, "/metrics")[0].status for _ in range(5)] == [500] * 5
    assert (counted.times, len(told)) == (1, 1)
    assert ask(server, "/")[0].status == 200


@pytest.mark.parametrize(
    ("host", "is_taken"),
    [
        ("127.0.0.1:9464", True),
        ("[::1]:9464", True),
        ("[fe80::1%eth0]:9464", True),
        ("localhost", True),
        ("LOCALHOST.:9464", True),
        ("server:9464", True),  # compose
        ("gridion.local", True),
        ("porestream-metrics.porestream.svc:9464", True),
        ("porestream-metrics.porestream.svc.cluster.local", True),
        (socket.gethostname(), True),
        ("evil.example.org:9464", False),
        ("127.0.0.1.evil.example.org", False),
        ("svc.example.org", False),
        ("evil.org#.svc.x", False),
        ("", False),
        (":9464", False),
    ],
)
def test_a_name_that_anybody_can_have_is_not_answered(server: StatusServer, host: str, is_taken: bool) -> None:
    """A web page's owner can have its name mean this machine, and then read what is here in its visitor's browser."""
    for path in ("/status.json", "/metrics", "/"):
        response, body = ask(server, path, Host=host)
        assert response.status == (200 if is_taken else 421)
        assert is_taken or b"PORESTREAM_METRICS_ALLOWED_HOSTS" in body
        assert is_taken or b"porestream_" not in body


def test_allowed_hosts(made_up: MadeUp) -> None:
    server = start(made_up.registry, 0, "127.0.0.1", made_up.history, ["Nanopore.example.org", "*.lab.example.org"])
    try:
        for host, code in {
            "nanopore.example.org:443": 200,
            "a.b.lab.example.org": 200,
            "lab.example.org": 421,
            "evillab.example.org": 421,
            "x.nanopore.example.org": 421,
        }.items():
            assert (host, ask(server, "/status.json", Host=host)[0].status) == (host, code)
    finally:
        server.close()
    assert web.is_allowed("anything.example.org", ["*"])


def raw(server: StatusServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", 200),  # no browser: it names no host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: evil.example.org\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\nSet-Cookie: a=b\r\n\r\n", 400),
        (b"GET /%s HTTP/1.1\r\n\r\n" % (b"a" * 2048), 414),
        (b"GET / HTTP/1.1\r\n%s" % (b"A: b\r\n" * 5000), 431),
        (b"GET /?a=b HTTP/1.1\r\nHost: localhost\r\n\r\n%s" % (b"a" * 50_000), 200),
    ],
)
def test_strange_requests(server: StatusServer, request_: bytes, code: int) -> None:
    assert raw(server, request_).startswith(b"HTTP/1.1 %d " % code)


def test_who_sends_a_byte_now_and_then_is_cut_off(server: StatusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the time was that between two bytes: one could stay for ever."""
    monkeypatch.setattr(web, "_REQUEST_S", 0.5)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow, pytest.raises(OSError):  # noqa: PT011
        for _ in range(1000):
            slow.sendall(b"G")
            time.sleep(0.02)


def test_who_takes_no_answer_is_cut_off(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = web.WebServer(
            listener.dup(), lambda _: web.Response(code=200, content_type="text/plain", body=bytes(50_000_000))
        )
        with socket.create_connection(("127.0.0.1", port), timeout=20) as stuck:
            stuck.sendall(b"GET / HTTP/1.1\r\n\r\n")
            time.sleep(1.0)
            taken = 0
            with pytest.raises(OSError):  # noqa: PT011
                while got := stuck.recv(1 << 20):
                    taken += len(got)
                raise ConnectionResetError
            assert taken < 50_000_000
        server.close()


def test_connections_are_few_and_stuck_ones_make_room(server: StatusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        monkeypatch.setattr(web, "_STUCK_S", 3600.0)
        stuck = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            for _ in range(web.MOST_OF_A_PEER)
        ]
        began_s = time.monotonic()
        assert b"503" in stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10)).recv(100)
        assert time.monotonic() - began_s < web._REQUEST_S  # it need not wait for those
        monkeypatch.setattr(web, "_STUCK_S", 0.0)
        assert ask(server, "/metrics")[0].status == 200
        assert stuck[0].recv(100) == b""
        for connection in stuck[1:]:
            connection.sendall(b"GET /status.json HTTP/1.1\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_the_port_is_free_although_somebody_is_connected(made_up: MadeUp) -> None:
    server = start(made_up.registry, 0, "127.0.0.1", made_up.history)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        server.close()
        with suppress(ConnectionResetError):  # it was not yet taken
            assert connection.recv(1) == b""
        start(made_up.registry, server.port, "127.0.0.1", made_up.history).close()
