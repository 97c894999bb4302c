"""The alerts and recording rules, by promtool: each alert fires, says what it should, and else is silent."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from live import ROOT, tool

RULES = sorted((ROOT / "deploy/prometheus").glob("*.yml"))
RUNBOOKS = ROOT / "docs/operate/runbooks"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for path in RULES
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
RECORDED = re.findall(r"record: (\S+)", "".join(path.read_text() for path in RULES))
SERVER = 'job="porestream",instance="a:9464"'


def of(metric: str, labels: str = "") -> str:
    return f"{metric}{{{SERVER}{',' if labels else ''}{labels}}}"


def latencies(priority: str, above_s: float, rate: str) -> dict[str, str]:
    """Results that all take between `above_s` and the next limit of the histogram."""
    return {
        of("porestream_read_latency_seconds_bucket", f'priority="{priority}",le="{limit}"'): (
            rate if float(limit) > above_s else "0x400"
        )
        for limit in ("1", "3", "10", "30", "100", "300", "1000", "+Inf")
    }


def stalls(priority: str, streams: int, stalled_s: str) -> dict[str, str]:
    return {
        of("porestream_streams", f'priority="{priority}"'): f"{streams}x800",
        of("porestream_credit_stall_seconds_total", f'priority="{priority}"'): stalled_s,
    }


@dataclass(frozen=True)
class Case:
    """Series each 15 s that make an alert fire at `at`, and nearly the same ones that do not."""

    alert: str
    fires: dict[str, str]
    silent: dict[str, str]
    at: str
    summary: str
    labels: dict[str, str] = field(default_factory=dict)
    instance: str = "a:9464"


def ended(status: str, bad: str, good: str) -> dict[str, str]:
    return {
        of("porestream_reads_total", f'model="m",priority="bulk",status="{status}"'): bad,
        of("porestream_reads_total", 'model="m",priority="bulk",status="called"'): good,
    }


def on_a_gpu(chunks: int, padding: int, busy_s: int) -> dict[str, str]:
    """Of each 15 s."""
    rows = {"chunk": chunks, "padding": padding}
    return {
        of("porestream_row_samples_total", f'model="m",row="{row}"'): f"0+{count}x160" for row, count in rows.items()
    } | {
        of("porestream_device_busy_seconds_total", 'device="cuda:0"'): f"0+{busy_s}x160",
        of("porestream_device_slots", 'device="cuda:0"'): "1x160",
    }


DAY_S = 86400
CASES = [
    Case(
        "PorestreamServerDown",
        {of("up"): "1x4 0x40"},
        {of("up"): "1x4 0x16 1x40"},
        "7m",
        "Prometheus cannot reach server a:9464",
    ),
    Case(
        "PorestreamServerDown",
        {'up{job="another"}': "1x40"},
        {of("up"): "1x40"},
        "6m",
        "Prometheus cannot reach any server",
        instance="",
    ),
    Case(
        "PorestreamRestarts",
        {of("process_start_time_seconds"): "1x20 400x20 700x20 1000x20"},
        {of("process_start_time_seconds"): "1x20 400x20 700x40"},
        "20m",
        "Server a:9464 was started 3 times within an hour",
    ),
    Case(
        "PorestreamNoDevice",  # one that is killed for it, and comes back
        {of("porestream_device_up", 'device="cuda:0"'): "1x4 0x2 1x40"},
        {of("porestream_device_up", 'device="cuda:0"'): "1x40"},
        "5m",
        "Device cuda:0 of server a:9464 failed within the last ten minutes",
        {"device": "cuda:0"},
    ),
    Case(
        "PorestreamFallingBehind",
        {of("porestream_backlog_seconds", 'priority="live"'): "61x80"},
        {
            of("porestream_backlog_seconds", 'priority="live"'): "59x80",
            of("porestream_backlog_seconds", 'priority="standard"'): "600x80",
        },
        "10m",
        "Server a:9464 cannot keep up with its live streams",
        {"priority": "live"},
    ),
    Case(
        "PorestreamFallingBehind",  # of each 15 s, four streams wait 15 s in all; and 7.5 s
        stalls("live", 4, "0+15x120"),
        stalls("live", 4, "0+7.5x120") | stalls("bulk", 1, "0+15x120"),
        "20m",
        "Server a:9464 cannot keep up with its live streams",
        {"priority": "live"},
    ),
    Case(
        "PorestreamCatchingUp",
        stalls("standard", 2, "0+20x700"),
        stalls("standard", 2, "0+10x700"),
        "150m",
        "Server a:9464 has kept its standard streams waiting for two hours",
        {"priority": "standard"},
    ),
    Case(
        "PorestreamLatency",
        latencies("live", 10, "0+10x120"),
        latencies("live", 3, "0+10x120") | latencies("standard", 300, "0+10x120"),
        "20m",
        "Live results of server a:9464 take 29.8s (p99)",
        {"priority": "live"},
    ),
    *(
        Case(
            "PorestreamBusyNotFull",
            on_a_gpu(2, 3, busy_s=14),
            silent,
            "30m",
            "The GPU of server a:9464 is busy, but only 40% of what it computes is signal",
        )
        for silent in (on_a_gpu(3, 2, busy_s=14), on_a_gpu(2, 3, busy_s=13))
    ),
    Case(
        "PorestreamEventLoopLag",
        {
            of("porestream_event_loop_lag_seconds_bucket", 'le="0.3"'): "0x120",
            of("porestream_event_loop_lag_seconds_bucket", 'le="1"'): "0+15x120",
            of("porestream_event_loop_lag_seconds_bucket", 'le="+Inf"'): "0+15x120",
        },
        {
            of("porestream_event_loop_lag_seconds_bucket", 'le="0.1"'): "0+15x120",
            of("porestream_event_loop_lag_seconds_bucket", 'le="0.3"'): "0+15x120",
            of("porestream_event_loop_lag_seconds_bucket", 'le="+Inf"'): "0+15x120",
        },
        "20m",
        "The event loop of server a:9464 lags by 993ms (p99)",
    ),
    *(
        Case(
            "PorestreamStageStalled",
            {
                of("porestream_stage_queue", f'stage="{stage}"'): "7x80",
                of("porestream_stage_seconds_count", f'stage="{stage}"'): "0+1x8 8x80",
            },
            {
                of("porestream_stage_queue", f'stage="{stage}"'): "7x80",
                of("porestream_stage_seconds_count", f'stage="{moves}"'): "0+1x80",
            },
            "15m",
            f"Stage {stage} of server a:9464 has stopped with 7 waiting",
            {"stage": stage},
        )
        # A long read that is being called keeps others before prepare.
        for stage, moves in (("prepare", "basecall"), ("basecall", "basecall"))
    ),
    Case(
        "PorestreamStageStalled",
        {of("porestream_stage_queue", 'stage="acknowledge"'): "7x120", **ended("abandoned", "0x120", "0+1x8 8x112")},
        {of("porestream_stage_queue", 'stage="acknowledge"'): "7x120", **ended("abandoned", "0x120", "0+1x120")},
        "25m",
        "Stage acknowledge of server a:9464 has stopped with 7 waiting",
        {"stage": "acknowledge"},
    ),
    Case(
        "PorestreamBooksOutOfBalance",
        {of("porestream_books_imbalance"): "0x4 -2x40"},
        {of("porestream_books_imbalance"): "0x4 1 0x40"},
        "5m",
        "Server a:9464 cannot account for -2 reads",
    ),
    Case(
        "PorestreamReadsFail",
        ended("failed", "0+2x120", "0+98x120"),
        ended("failed", "0x60 5x60", "0+1x120"),  # five of 65, then silence
        "25m",
        "2% of the reads on server a:9464 fail",
        {"status": "failed"},
    ),
    Case(
        "PorestreamReadsRejected",
        ended("rejected", "0+10x160", "0+90x160"),
        ended("rejected", "0+5x160", "0+95x160"),
        "35m",
        "Server a:9464 rejects 10% of its reads",
        {"status": "rejected"},
    ),
    Case(
        "PorestreamStreamsBreak",
        ended("abandoned", "0+10x160", "0+90x160"),
        ended("abandoned", "0+5x160", "0+95x160"),
        "35m",
        "10% of the reads on server a:9464 are in streams that break",
        {"status": "abandoned"},
    ),
    Case(
        "PorestreamBatchesRetried",
        {of("porestream_batches_retried_total", 'model="m"'): "0x20 0+1x8 8x300"},
        {of("porestream_batches_retried_total", 'model="m"'): "0x20 1x2 2x300"},
        "60m",
        "Server a:9464 had to retry 8 batches of m within an hour",
        {"model": "m"},
    ),
    Case(
        "PorestreamMemory",
        {of("process_resident_memory_bytes"): "91x80", of("porestream_memory_limit_bytes"): "100x80"},
        {of("process_resident_memory_bytes"): "89x80", of("porestream_memory_limit_bytes"): "100x80"},
        "10m",
        "Server a:9464 uses 91% of its memory",
    ),
    Case(
        "PorestreamCertificateExpiresSoon",
        {of("porestream_tls_certificate_expiry_timestamp_seconds"): f"{10 * DAY_S + 300}x80"},
        {of("porestream_tls_certificate_expiry_timestamp_seconds"): f"{15 * DAY_S}x80"},
        "5m",
        "The certificate of server a:9464 expires in 10d 0h 0m 0s",
    ),
    Case(
        "PorestreamCertificateExpires",
        {of("porestream_tls_certificate_expiry_timestamp_seconds"): f"{DAY_S + 300}x80"},
        {of("porestream_tls_certificate_expiry_timestamp_seconds"): f"{3 * DAY_S}x80"},
        "5m",
        "The certificate of server a:9464 expires in 1d 0h 0m 0s",
    ),
    Case(
        "PorestreamSecretsStale",
        {of("porestream_secrets_stale"): "1x80"},
        {of("porestream_secrets_stale"): "0x80"},
        "5m",
        "Server a:9464 cannot reload 1 of its secrets",
    ),
]


def promtool(*arguments: object) -> None:
    made = subprocess.run([tool("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr


def run_tests(folder: Path, tests: list[dict[str, Any]]) -> None:
    """Run promtool's unit tests."""
    (folder / "rules.yml").write_text(
        yaml.safe_dump({"rule_files": [str(path) for path in RULES], "evaluation_interval": "15s", "tests": tests})
    )
    promtool("test", "rules", folder / "rules.yml")


def inputs(series: dict[str, str]) -> dict[str, Any]:
    return {"interval": "15s", "input_series": [{"series": name, "values": values} for name, values in series.items()]}


def test_promtool_finds_no_fault() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)


def test_every_alert_is_tried() -> None:
    assert {case.alert for case in CASES} == set(ALERTS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.summary[:24]}")
def test_alert_fires_and_stays_silent(case: Case, tmp_path: Path) -> None:
    rule = ALERTS[case.alert]
    where = {"job": "porestream"} | ({"instance": case.instance} if case.instance else {})
    expected = {
        "exp_labels": where | rule["labels"] | case.labels,
        "exp_annotations": rule["annotations"] | {"summary": case.summary},
    }
    run_tests(
        tmp_path,
        [
            inputs(series)
            | {"alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": alerts}]}
            for series, alerts in ((case.fires, [expected]), (case.silent, []))
        ],
    )


def test_a_wrong_expectation_is_found(tmp_path: Path) -> None:
    series = inputs({of("up"): "0x40"})
    wrong = {"eval_time": "5m", "alertname": "PorestreamServerDown", "exp_alerts": []}
    with pytest.raises(AssertionError, match="PorestreamServerDown"):
        run_tests(tmp_path, [series | {"alert_rule_test": [wrong]}])


def test_recorded_values(tmp_path: Path) -> None:
    """Of a server that calls 1 Mbase/s with 3 of 4 workers, at 200 W; 1 read in 4 is rejected."""
    series = {
        of("porestream_device_busy_seconds_total", 'device="cpu"'): "0+45x300",
        of("porestream_device_slots", 'device="cpu"'): "4x300",
        of("porestream_row_samples_total", 'model="m",row="chunk"'): "0+3x300",
        of("porestream_row_samples_total", 'model="m",row="padding"'): "0+2x300",
        of("porestream_device_energy_joules_total", 'device="cpu"'): "0+3000x300",
        of("porestream_bases_called_total", 'model="m",priority="bulk"'): "0+15000000x300",
        **ended("rejected", "0+1x300", "0+3x300"),
        **latencies("bulk", 1, "0+30x300"),
        **stalls("bulk", 4, "0+15x300"),
    }
    values = {
        "instance_device:porestream_device_seconds_per_gigabase:rate1h": ({"device": "cpu"}, 3000),
        "instance_device:porestream_device_joules_per_gigabase:rate1h": ({"device": "cpu"}, 200_000),
        "instance_device:porestream_device_busy:ratio_rate5m": ({"device": "cpu"}, 0.75),
        "instance:porestream_useful_rows:ratio_rate5m": ({}, 0.6),
        "instance_status:porestream_reads_not_called:ratio_rate15m": ({"status": "rejected"}, 0.25),
        "instance_priority:porestream_read_latency_seconds:p99_rate5m": ({"priority": "bulk"}, 2.98),
        "instance_priority:porestream_credit_stall:ratio_rate5m": ({"priority": "bulk"}, 0.25),
    }
    assert set(values) == set(RECORDED)
    named = {"job": "porestream", "instance": "a:9464"}
    promql = [
        {
            "expr": f"round({name}, 0.001)",
            "eval_time": "70m",
            "exp_samples": [
                {"labels": "{" + ", ".join(f'{k}="{v}"' for k, v in (named | labels).items()) + "}", "value": value}
            ],
        }
        for name, (labels, value) in values.items()
    ]
    run_tests(tmp_path, [inputs(series) | {"promql_expr_test": promql}])


def test_recorded_values_are_used() -> None:
    dashboards = "".join(path.read_text() for path in (ROOT / "deploy/grafana/dashboards").glob("*.json"))
    for name in RECORDED:
        assert name in dashboards or any(name in rule["expr"] for rule in ALERTS.values()), name


def test_every_alert_has_its_runbook() -> None:
    linked = set()
    index = (RUNBOOKS / "README.md").read_text()
    for name, rule in ALERTS.items():
        page = ROOT / rule["annotations"]["runbook_url"]
        text = page.read_text()
        assert page.parent == RUNBOOKS
        assert name in text, f"{page.name} does not speak of {name}"
        for heading in ("## What it means", "## Look at", "## Do"):
            assert heading in text, f"{page.name}: {heading}"
        assert f"({page.name})" in index
        assert rule["labels"]["severity"] in {"critical", "warning"}
        linked.add(page.name)
    assert {path.name for path in RUNBOOKS.glob("*.md")} == linked | {"README.md"}
