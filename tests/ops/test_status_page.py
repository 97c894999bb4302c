"""The status page in a real browser, over metrics that the test counts."""

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, open_browser
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from porestream.server.metrics import DEFINITIONS
from porestream.server.watch.status_page.history import History
from porestream.server.watch.status_page.page import StatusServer, start

MAKE: dict[str, Callable[..., Any]] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
EVIL = "<script>document.title='evil'</script><b id=evil>x"


class Metrics:
    """What the server counts, and a history whose time the test tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.now_s = 0.0
        self.history = History(self.registry, clock=lambda: self.now_s)
        self._made: dict[str, Any] = {}

    def __call__(self, metric_name: str, /, **labels: str) -> Any:
        if metric_name not in self._made:
            (one,) = (one for one in DEFINITIONS if one.name == f"porestream_{metric_name}")
            self._made[metric_name] = MAKE[one.kind](one.name, one.help, one.labels, registry=self.registry)
        metric = self._made[metric_name]
        return metric.labels(**labels) if labels else metric

    def serve(self, port: int = 0) -> StatusServer:
        return start(self.registry, port, "127.0.0.1", self.history)

    def count(self, model: str, bases: float, priority: str = "live") -> None:
        """What 10 s of calling reads of 10 kb count."""
        self("samples_received_total", model=model, priority=priority).inc(12.5 * bases)
        self("samples_finished_total", model=model, priority=priority).inc(12 * bases)
        self("bases_called_total", model=model, priority=priority).inc(bases)
        self("reads_received_total", model=model, priority=priority).inc(bases / 10_000)
        self("reads_total", model=model, priority=priority, status="called").inc(bases / 10_000)
        self("reads_to_align_total", model=model).inc(100)
        self("reads_aligned_total", model=model).inc(97)
        self("read_mean_qscore", model=model).observe(14.5)
        self("read_length_bases", model=model).observe(10_000)
        self("alignment_identity_ratio", model=model).observe(0.962)
        self("read_latency_seconds", priority=priority).observe(0.4)

    def tick(self) -> None:
        """10 s, of which the device works 7.5."""
        self("device_busy_seconds_total", device="cpu").inc(15)
        self("device_energy_joules_total", device="cpu").inc(650)
        self.now_s += 10
        self.history.tick()

    def run(self, seconds: float, bases_per_second: float) -> None:
        """Time in which one model calls."""
        for _ in range(int(seconds / 10)):
            self.count("porestream_fast", 10 * bases_per_second)
            self.tick()


@pytest.fixture
def idle() -> Metrics:
    """A server that has done nothing yet."""
    metrics = Metrics()
    metrics("build_info", version="0.2.0", python="3.11.2", torch="2.9.1").set(1)
    for model, digest in (("porestream_fast", "3f9a61c2ab5d0e77"), ("porestream_hac", "b81d27f06c49aa10")):
        metrics("model_info", model=model, sha256=digest, precision="float32", device_class="cpu").set(1)
    for preset in ("lr:hq", "map-ont"):
        metrics("reference_info", reference="chm13v2", preset=preset, sha256="77d6a0f3c2be9418").set(1)
    metrics("reference_info", reference="lambda", preset="map-ont", sha256="d0c1e2f3a4b59687").set(1)
    metrics("device_info", device="cpu", name="AMD EPYC 9B14").set(1)
    metrics("device_up", device="cpu").set(1)
    metrics("device_slots", device="cpu").set(2)
    metrics("max_streams").set(64)
    metrics("books_imbalance").set(0)
    metrics("memory_budget_bytes").set(4 << 30)
    metrics("memory_for_signal_bytes").set(2 << 30)
    metrics("memory_charged_bytes").set(1.25 * (1 << 30))
    metrics("memory_limit_bytes").set(16 << 30)
    Gauge("process_start_time_seconds", "", registry=metrics.registry).set(time.time() - 5 * 3600)
    Gauge("process_resident_memory_bytes", "", registry=metrics.registry).set(2.1 * (1 << 30))
    for priority in ("live", "standard", "bulk"):
        for gauge in ("streams", "streams_stalled", "queued_samples"):
            metrics(gauge, priority=priority).set(0)
        for model in ("porestream_fast", "porestream_hac"):
            metrics("reads_open", model=model, priority=priority).set(0)
        metrics("backlog_seconds", priority=priority).set(0)
    metrics.history.tick()
    return metrics


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        opened.set_size(1200, 900)
        yield opened


def clean(browser: Browser) -> None:
    """Forget what the tests before left in the browser's logs."""
    browser.open("about:blank")
    browser.messages()
    browser.requests()


@pytest.fixture
def server(idle: Metrics, browser: Browser) -> Iterator[StatusServer]:
    clean(browser)
    opened = idle.serve()
    yield opened
    browser.open("about:blank")
    opened.close()


def test_an_idle_server(idle: Metrics, server: StatusServer, browser: Browser) -> None:
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.wait_for_text("Healthy")
    assert "No reads yet" in browser.text("#reads")
    assert "No reads yet" in browser.text("#figures")
    assert not re.search("NaN|undefined|null|Infinity|Invalid", browser.text())
    assert browser.messages() == []


def test_a_busy_server_is_shown_and_changes(idle: Metrics, server: StatusServer, browser: Browser) -> None:
    idle.run(600, 400_000)
    idle("streams", priority="live").set(3)
    idle("reads_rejected_total", reason="checksum").inc(2)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.wait_for_text("400 kb/s", "#figures")
    assert "4.8 Msamples/s" in browser.text("#figures")
    assert "3 of 64" in browser.text("#figures")
    assert "1.25 GiB of 2 GiB" in browser.text("#figures")
    assert "porestream_fast" in browser.text("#models")
    assert "no reads yet" in browser.text("#models")  # the other model
    assert "3f9a61c2ab5d" in browser.text("#models")
    assert "14.5" in browser.text("#models")
    assert "chm13v2 lr:hq, map-ont" in browser.text("#references")
    assert "lambda map-ont" in browser.text("#references")
    assert "cpu (AMD EPYC 9B14) up 75 % 75 %" in browser.text("#devices")
    assert "Rejected: checksum 2 2" in browser.text("#reads")
    points = browser.run("return document.querySelector('.figure svg .curve').getAttribute('d').split('L').length")
    assert points == 60
    label = browser.run("return document.querySelector('.figure svg').getAttribute('aria-label')")
    assert "at most 400 kb/s" in label.replace("\N{NO-BREAK SPACE}", " ")

    idle.run(60, 900_000)
    idle("backlog_seconds", priority="live").set(95)
    browser.wait_for_text("900 kb/s", "#figures")
    browser.wait_for_text("Falling behind the sequencer by 95 s", "#conditions")
    assert "Healthy" not in browser.text()
    idle("device_up", device="cpu").set(0)
    idle("books_imbalance").set(1)
    browser.wait_for_text("Device cpu is down", "#conditions")
    assert "Books out of balance (+1 reads)" in browser.text("#conditions")
    assert browser.messages() == []


def test_a_server_that_is_gone_and_comes_back(idle: Metrics, browser: Browser) -> None:
    clean(browser)
    server = idle.serve()
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.wait_for_text("Healthy")
    server.close()
    browser.wait_for_text("Cannot reach the server since", "#unreachable")
    assert re.search(r"since \d+:\d\d:\d\d.* \(no connection\). Showing data from \d+", browser.text("#unreachable"))
    assert "Healthy" not in browser.text()
    assert "porestream_fast" in browser.text("#models")  # what was known last
    idle.run(60, 123_000)
    server = idle.serve(server.port)
    try:
        browser.wait_for_text("123 kb/s", "#figures")
        browser.wait_for_text("Healthy")
        assert browser.text("#unreachable") == ""
        # Chromium itself tells of the fetches that found nobody; nothing else went wrong.
        assert all("ERR_CONNECTION_REFUSED" in message for message in browser.messages())
    finally:
        browser.open("about:blank")
        server.close()


def test_nothing_is_asked_of_others(server: StatusServer, browser: Browser) -> None:
    origin = f"http://127.0.0.1:{server.port}/"
    browser.open(origin)
    browser.wait_for_text("Healthy")
    asked = browser.requests()
    assert {origin, f"{origin}page.js", f"{origin}style.css", f"{origin}status.json"} <= set(asked)
    assert [url for url in asked if not url.startswith(origin)] == []
    refused = browser.run("return fetch('https://example.org/').then(() => 'sent', () => 'refused')")
    assert refused == "refused"
    assert any("Content Security Policy" in message for message in browser.messages())


def test_names_are_text(idle: Metrics, server: StatusServer, browser: Browser) -> None:
    idle("model_info", model=EVIL, sha256=EVIL, precision=EVIL, device_class=EVIL).set(1)
    idle("reference_info", reference=EVIL, preset=EVIL, sha256=EVIL).set(1)
    idle("device_info", device=EVIL, name=EVIL).set(1)
    idle("device_up", device=EVIL).set(0)
    idle("reads_received_total", model=EVIL, priority="live").inc()
    idle("reads_rejected_total", reason=EVIL).inc()
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.wait_for_text(EVIL, "#models")
    for part in ("#references", "#devices", "#reads", "#conditions"):
        assert EVIL in browser.text(part)
    assert browser.run("return document.title") != "evil"
    assert browser.run("return document.getElementById('evil')") is None
    assert browser.messages() == []


def brightness(browser: Browser, element: str, colour: str) -> int:
    style = browser.run(f"return getComputedStyle(document.querySelector('{element}')).{colour}")
    return sum(map(int, re.findall(r"\d+", style)[:3]))


def test_dark_and_light(server: StatusServer, browser: Browser) -> None:
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.wait_for_text("Healthy")
    assert brightness(browser, "body", "backgroundColor") > 600 > 300 > brightness(browser, "body", "color")
    browser.set_size(1200, 900, is_dark=True)
    assert brightness(browser, "body", "backgroundColor") < 300 < 600 < brightness(browser, "body", "color")
    browser.set_size(1200, 900)


def test_on_a_phone_only_tables_scroll_sideways(idle: Metrics, server: StatusServer, browser: Browser) -> None:
    idle.run(60, 400_000)
    browser.set_size(390, 800)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.wait_for_text("400 kb/s")
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    browser.set_size(1200, 900)


def test_it_can_be_read_aloud(idle: Metrics, server: StatusServer, browser: Browser) -> None:
    idle.run(60, 400_000)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.wait_for_text("400 kb/s")
    unnamed = """return [...document.querySelectorAll("svg")].filter(svg => svg.getAttribute("role") !== "img" ||
        !svg.getAttribute("aria-label") || !svg.querySelector("title").textContent).length"""
    assert browser.run(unnamed) == 0
    assert browser.run("return document.querySelectorAll('svg').length") == 4
    assert browser.run("return [...document.querySelectorAll('th')].filter(th => !th.scope).length") == 0
    headings = [
        int(level) for level in browser.run("return [...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName[1])")
    ]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert browser.run("return document.documentElement.lang") == "en"


@pytest.mark.skipif("STATUS_PAGE_PNG" not in os.environ, reason="STATUS_PAGE_PNG: where to keep a picture of the page")
def test_a_picture_for_the_documentation(idle: Metrics, server: StatusServer, browser: Browser) -> None:
    chance = random.Random(1)
    live = 350_000.0
    for i in range(360):
        live += chance.gauss(0, 9_000) + 0.02 * (350_000 - live)
        idle.count("porestream_fast", 10 * live)
        if i > 200:
            idle.count("porestream_hac", 10 * chance.uniform(40_000, 48_000), "bulk")
        idle("backlog_seconds", priority="live").set(chance.uniform(0.3, 0.9))
        idle("backlog_seconds", priority="bulk").set(chance.uniform(18, 22) if i > 200 else 0)
        idle.tick()
    idle("streams", priority="live").set(3)
    idle("streams", priority="bulk").set(1)
    idle("streams_opened_total", priority="live").inc(4)
    idle("reads_open", model="porestream_fast", priority="live").set(1536)
    idle("reads_received_total", model="porestream_fast", priority="live").inc(1538)  # the books balance
    idle("queued_samples", priority="live").set(1.9e6)
    idle("queued_samples", priority="bulk").set(38e6)
    idle("streams_stalled", priority="bulk").set(1)
    idle("reads_rejected_total", reason="checksum").inc(2)
    idle("reads_total", model="porestream_fast", priority="live", status="rejected").inc(2)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.wait_for_text("60 min")
    browser.set_size(1200, browser.run("return document.documentElement.scrollHeight"))
    browser.screenshot(Path(os.environ["STATUS_PAGE_PNG"]))
