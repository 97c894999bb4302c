"""Grafana's dashboards: the committed JSON is what the code makes, complete, and asks for metrics that there are.

Their queries run against a real server in test_live.py; here those of cards and energy meters do, on made-up samples.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from live import ROOT, Prometheus, module_at, prometheus, tool

from porestream.server import metrics

RULES = sorted((ROOT / "deploy/prometheus").glob("*.yml"))
boards = module_at(ROOT / "deploy/grafana/dashboards.py")
RECORDED = {
    rule["record"]: rule["expr"]
    for path in RULES
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "record" in rule
}
PARTS = ("", "_bucket", "_sum", "_count")
# Put by Prometheus, or by its libraries.
EVERYWHERE = {"instance", "job", "le"}
_NAME = r"\b(?:porestream|process)_\w+|\b\w+:porestream_\w+:\w+"


def panels(recorded: bool) -> list[Any]:
    return [
        pytest.param(panel, id=f"{board.name}-{panel.title}")
        for board in boards.DASHBOARDS
        for section in board.sections.values()
        for panel in section
        if panel.recorded is recorded
    ]


def query(expression: str) -> str:
    """As Grafana would send it when all servers and models are chosen."""
    for name, value in (("$instance", ".*"), ("$model", ".*"), ("$__rate_interval", "5m"), ("$__range", "1h")):
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize("board", boards.DASHBOARDS, ids=lambda board: board.name)
def test_committed_dashboard_is_the_codes(board: Any) -> None:
    committed = (boards.TARGET / f"{board.name}.json").read_text()
    assert committed == boards.render(board), "run make docs"
    assert {path.stem for path in boards.TARGET.glob("*.json")} == {board.name for board in boards.DASHBOARDS}


@pytest.mark.parametrize("board", boards.DASHBOARDS, ids=lambda board: board.name)
def test_every_panel_is_complete_and_has_its_place(board: Any) -> None:
    made = json.loads((boards.TARGET / f"{board.name}.json").read_text())
    assert {"datasource", "instance", "model"} == {variable["name"] for variable in made["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        grid = panel["gridPos"]
        place = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not taken & place, panel["title"]
        assert max(x for x, _ in place) < 24
        taken |= place
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"]
    identities = [panel["id"] for panel in made["panels"]]
    assert len(set(identities)) == len(identities)


def known_names() -> set[str]:
    names = {
        definition.name + part
        for definition in metrics.DEFINITIONS
        for part in (PARTS[1:] if definition.kind == "histogram" else PARTS[:1])
    }
    return (
        names
        | set(RECORDED)
        | {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds"}
    )


@pytest.mark.parametrize("panel", panels(False) + panels(True))
def test_panel_asks_for_metrics_and_labels_that_there_are(panel: Any) -> None:
    labels = {label for definition in metrics.DEFINITIONS for label in definition.labels} | EVERYWHERE
    for expression, legend in zip(panel.expressions, panel.queries.values(), strict=True):
        names = set(re.findall(_NAME, expression)) - labels
        assert names <= known_names()
        assert names or "up{" in expression
        grouped = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", group)}
        assert grouped | set(re.findall(r"{{(\w+)}}", legend)) <= labels


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    texts = [path.read_text() for path in (*boards.TARGET.glob("*.json"), *RULES)]
    used = {name for text in texts for name in re.findall(r"\bporestream_\w+", text)}
    unused = [
        definition.name for definition in metrics.DEFINITIONS if not used & {definition.name + part for part in PARTS}
    ]
    assert not unused


# ---- Cards and energy meters


STEP_S, SPAN_S = 15, 70 * 60


def card_samples(end_s: float) -> str:
    """OpenMetrics of a server with a card, made up: busy for 90% of the time, 350 W, 2 Mbase/s, 60 of 80 GB, 71 C."""
    card = 'job="porestream",instance="a:9464",device="cuda:0"'
    model = 'job="porestream",instance="a:9464",model="hac",priority="bulk"'
    series = [
        (metrics.DEVICE_BUSY_SECONDS, card, 0, 0.9),
        (metrics.DEVICE_ENERGY_JOULES, card, 0, 350),
        (metrics.BASES_CALLED, model, 0, 2e6),
        (metrics.DEVICE_MEMORY_USED, card, 60e9, 0),
        (metrics.DEVICE_MEMORY_TOTAL, card, 80e9, 0),
        (metrics.DEVICE_UTILIZATION, card, 0.87, 0),
        (metrics.DEVICE_TEMPERATURE, card, 71, 0),
    ]
    lines = []
    for definition, labels, start, a_second in series:
        lines.append(f"# TYPE {definition.name.removesuffix('_total')} {definition.kind}")
        lines += [
            f"{definition.name}{{{labels}}} {start + a_second * at_s} {end_s - SPAN_S + at_s}"
            for at_s in range(0, SPAN_S + 1, STEP_S)
        ]
    return "\n".join([*lines, "# EOF", ""])


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, float]]:
    """A Prometheus with the made-up samples, and when they end."""
    folder = tmp_path_factory.mktemp("card")
    end_s = int(time.time()) - 3 * 3600
    (folder / "samples").write_text(card_samples(end_s))
    command = [tool("promtool"), "tsdb", "create-blocks-from", "openmetrics", folder / "samples", folder / "data"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    with prometheus(folder, None, []) as running:
        yield running, end_s


@pytest.mark.parametrize("panel", panels(True))
def test_panel_of_a_card_has_data(panel: Any, card: tuple[Prometheus, float]) -> None:
    asked, end_s = card
    for expression in map(query, panel.expressions):
        # Rules do not run over the past: what they would have recorded is asked for.
        for name, expr in RECORDED.items():
            expression = re.sub(re.escape(name) + r"{[^}]*}", f"({expr.replace(chr(92), chr(92) * 2)})", expression)
        assert asked.has_data(expression, end_s), expression


def test_cost_of_a_gigabase_is_what_was_made_up(card: tuple[Prometheus, float]) -> None:
    asked, end_s = card
    for name, cost in (("device_seconds", 450), ("device_joules", 175_000)):
        (series,) = asked.query(RECORDED[f"instance_device:porestream_{name}_per_gigabase:rate1h"], time=str(end_s))
        assert float(series["value"][1]) == pytest.approx(cost, rel=1e-3)
