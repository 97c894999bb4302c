"""A real server under load, scraped by a real Prometheus: counters agree with the client, every query has an answer."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import open_browser
from live import PORESTREAM, Prometheus, Server, prometheus, wait_for
from test_dashboards import RULES, panels, query

MODEL = "dna_r9.4.1_e8.1_fast@v3.4"


@dataclass
class Live:
    """What the tests of this module ask; `summaries` are those of all calls that ended."""

    server: Server
    prometheus: Prometheus
    summaries: list[dict[str, int]]


@pytest.fixture(scope="module")
def live(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    data = shared_data / "sarscov2_r941"
    server = Server(
        folder / "server", "--model", shared_data / "models" / MODEL, "--reference", data / "reference.fasta"
    )
    with prometheus(folder / "prometheus", f"127.0.0.1:{server.metrics_port}", RULES) as watching:
        wait_for("the first scrape", lambda: watching.query("up == 1"))  # Prometheus looks for targets after 5 s
        call = [*PORESTREAM, "call", str(data / "reads.pod5"), *server.meet, "--reference", "reference.fasta"]
        broken = subprocess.Popen([*call, "-o", str(folder / "broken.bam")], stderr=subprocess.DEVNULL)
        wait_for("results", lambda: received(server.metrics()) >= 20)
        broken.kill()  # its reads are abandoned, and nobody calls them again
        broken.wait()
        summaries = []
        for priority, least_q in (("standard", "0"), ("bulk", "9"), ("live", "0")):
            summary = folder / f"{priority}.json"
            more = ["--priority", priority, "--min-qscore", least_q, "--summary-json", str(summary)]
            subprocess.run([*call, *more, "-o", str(folder / f"{priority}.bam")], check=True, stderr=subprocess.DEVNULL)
            summaries.append(json.loads(summary.read_text()))
        ended_s = time.time()
        wait_for("a scrape after that", lambda: watching.query(f"timestamp(porestream_streams) > {ended_s}"))
        yield Live(server, watching, summaries)
    assert server.stop() == 0, server.log.read_text()


def received(metrics: str) -> float:
    return sum(
        float(value) for value in re.findall(r"^porestream_reads_received_total{.*} (.*)$", metrics, re.MULTILINE)
    )


def test_counters_equal_the_clients_summary(live: Live) -> None:
    """To the read, the sample and the base, as Prometheus has scraped them."""
    asked = live.prometheus
    wait_for("all acknowledgements", lambda: asked.query("sum(porestream_reads_open) == 0"))
    for summary, priority in zip(live.summaries, ("standard", "bulk", "live"), strict=True):
        mine = f'{{priority="{priority}"}}'
        broken = priority == "bulk"  # the call that was killed was one, too
        for metric, name in (
            ("reads_received_total", "reads_received"),
            ("samples_finished_total", "samples"),
            ("bases_called_total", "bases"),
        ):
            value = asked.value(f"sum(porestream_{metric}{mine})")
            assert value >= summary[name] if broken else value == summary[name], (metric, priority)
        attempts = summary["reads_received"] - summary["reads_unsent"] + summary["reads_resent"]
        ended = {
            series["metric"]["status"]: float(series["value"][1])
            for series in asked.query(f"sum by (status) (porestream_reads_total{mine})")
        }
        assert sum(ended.values()) == asked.value(f"sum(porestream_reads_received_total{mine})")
        if broken:
            assert ended["abandoned"] > 0
        else:
            assert ended == {
                "called": summary["reads_called"],
                "filtered": summary["reads_filtered"],
                "rejected": summary["reads_rejected"],
                "failed": summary["reads_failed"],
                "abandoned": 0,
            }
            assert sum(ended.values()) == attempts
    assert asked.value("porestream_books_imbalance") == 0
    assert live.summaries[1]["reads_filtered"] > 0
    aligned = sum(summary["reads_aligned"] for summary in live.summaries)
    assert asked.value("sum(porestream_reads_aligned_total)") >= aligned > 0
    assert asked.value("porestream_streams_ended_total{status='OK'}") >= len(live.summaries)


@pytest.mark.parametrize("panel", panels(recorded=False))
def test_panel_has_data(panel: Any, live: Live) -> None:
    for expression in map(query, panel.expressions):
        if panel.kind == "table":
            assert live.prometheus.query(expression), expression
        else:
            assert live.prometheus.has_data(expression, time.time()), expression


def test_every_rule_evaluates_and_no_alert_fires(live: Live) -> None:
    groups = live.prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == sum(path.read_text().count("expr:") for path in RULES)
    for rule in rules:
        assert rule["health"] == "ok", (rule["name"], rule.get("lastError"))
        assert rule.get("state") != "firing", rule["name"]


def test_alerts_ask_for_what_the_server_has(live: Live) -> None:
    """Each series of an alert's condition is there, with the labels asked for: a misspelled one would never fire."""
    asked = 0
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                for selector in re.findall(
                    r"\b(?:porestream|process)_\w+(?:{[^}]*})?|up{[^}]*}", re.sub(r"\w+:\w+:\w+", "", rule["expr"])
                ):
                    if "energy" not in selector:  # of meters
                        assert live.prometheus.query(selector), selector
                        asked += 1
    assert asked > 20


def test_nothing_of_runs_and_reads_is_in_the_metrics(live: Live) -> None:
    metrics = live.server.metrics()
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", metrics)
    labels = set(re.findall(r'[{,]([a-z_]+)="', "\n".join(re.findall("^porestream_.*$", metrics, re.MULTILINE))))
    assert not {label for label in labels if re.search(r"run|read|sample|tenant|client|peer|flow_cell", label)}


def test_the_page_shows_the_server(live: Live) -> None:
    with open_browser() as browser:
        browser.set_size(1200, 1500)
        browser.open(live.server.url + "/")
        for text in ("Healthy", MODEL, "reference.fasta", "cpu"):
            browser.wait_for_text(text)
        assert not browser.messages()
        asked = {request.split("/")[2] for request in browser.requests() if request.startswith("http")}
        assert asked == {live.server.url.removeprefix("http://")}
