"""What Prometheus is told: the reference page, conventions, closed label sets, books that agree with the client's."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from porestream.client import BasecallClient, StreamOptions
from porestream.client.opening import PRIORITIES
from porestream.client.reads import ReadInfo, ReadResult, RunInfo, SignalRead
from porestream.kernels.align.hits import Failure
from porestream.server import metrics
from porestream.server.calling.device_use import ActivityClock, DeviceUse
from porestream.server.reads import Reason, Stage
from porestream.server.watch.collector import ServerCollector
from porestream.server.watch.energy import CardMeter, CpuMeter, Reading, readable_packages
from porestream.server.watch.monitor import Monitor

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_code() -> None:
    assert (ROOT / "docs/operate/metrics.md").read_text() == metrics.reference_page(), "run `make docs`"


@pytest.mark.parametrize("definition", metrics.DEFINITIONS, ids=lambda definition: definition.name)
def test_names_follow_prometheus_conventions(definition: metrics.Definition) -> None:
    assert re.fullmatch(r"porestream_[a-z_]+", definition.name)
    assert definition.name.endswith("_total") is (definition.kind == "counter")
    assert set(definition.labels) <= set(metrics.LABELS) | {"version", "python", "torch", "sha256", "precision"} | {
        "device_class",
        "name",
    }
    assert not {"run", "read", "sample", "tenant", "run_id", "read_id"} & set(definition.labels)
    assert definition.help
    assert definition.unit


def test_label_values_are_those_of_the_page() -> None:
    said = {
        what: set(values.split(", ")) for what, values in re.findall(r"(\w[\w ]*): ([^;]+)", metrics.LABELS["reason"])
    }
    assert said == {
        "rejected reads": {reason.value for reason in Reason},
        "alignments": {failure.name.lower() for failure in Failure if failure},
    } | {
        what: {reason.value for reason in reasons}
        for what, reasons in (
            ("log lines", metrics.Dropped),
            ("calls", metrics.Refused),
            ("deferred reads", metrics.Deferred),
            ("connections", metrics.Closed),
        )
    }
    assert all(stage.value in metrics.LABELS["stage"] for stage in Stage)


class NoMeter:
    def read(self) -> Reading:
        raise OSError("gone")


def scrape(server, meters=None, expiry_s=None) -> dict[str, dict[tuple[str, ...], float]]:  # type: ignore[no-untyped-def]
    """Everything that is pulled from a running server, by name and label values, in the definitions' order."""

    async def no_change(_is_up: bool) -> None:
        pass

    async def look() -> Monitor:
        monitor = Monitor(server.engine, server.service, no_change)
        monitor.look()
        return monitor

    monitor = server.on_loop(look())
    registry = CollectorRegistry()
    registry.register(ServerCollector(server.engine, monitor, meters or {}, lambda: expiry_s))
    labels = {definition.name: definition.labels for definition in metrics.DEFINITIONS}
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            values = tuple(sample.labels[label] for label in labels[sample.name])
            found.setdefault(sample.name, {})[values] = sample.value
    return found


def made_up_reads(count: int, samples: int = 3000) -> list[SignalRead]:
    run = RunInfo(run_id="run", sample_rate_hz=4000)
    signal_S = np.random.default_rng(3).integers(300, 600, samples).astype(np.int16)
    return [
        SignalRead(
            ReadInfo(read_id=UUID(int=number + 1), run=run, offset_adc=-10.0, scale_pa_per_adc=0.2, channel=1), signal_S
        )
        for number in range(count)
    ]


def test_the_activity_clock_counts_what_is_active_up_to_its_capacity() -> None:
    now_s = [0.0]
    both, one = (ActivityClock(capacity, lambda: now_s[0]) for capacity in (None, 1))
    for step in ("enter", "enter", "leave", "leave"):
        for clock in (both, one):
            getattr(clock, step)()
        now_s[0] += 2.0
    assert both.seconds() == 2.0 + 4.0 + 2.0
    assert one.seconds() == 6.0


def test_a_device_is_down_after_three_batches_of_failures_that_are_its_own() -> None:
    use = DeviceUse("cuda:0", 1)
    failed = [RuntimeError("CUDA error"), RuntimeError("CUDA error")]
    for results in (
        failed,
        failed,
        [RuntimeError("x"), object()],
        failed,
        failed,
        [ValueError("scores")],
        failed,
        failed,
    ):
        use.computed(results)
        assert use.is_up
    use.computed(failed)
    assert not use.is_up
    use.computed([object()])
    assert use.is_up


@given(st.lists(st.integers(0, 5_000_000), max_size=20))
def test_cpu_energy_survives_a_counter_that_goes_round(tmp_path_factory, steps) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("powercap")
    range_uj = 7_000_000
    zones = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1"}  # and what is none
    zones |= {"intel-rapl:0:0": "core", "intel-rapl:2": "psys", "intel-rapl": "package-9"}
    for name, kind in zones.items():
        (folder / name).mkdir()
        (folder / name / "name").write_text(f"{kind}\n")
        (folder / name / "energy_uj").write_text("6999999\n")
        (folder / name / "max_energy_range_uj").write_text(f"{range_uj}\n")
    packages = readable_packages(folder)
    assert [package.name for package in packages] == ["intel-rapl:0", "intel-rapl:1"]
    meter = CpuMeter(packages)
    now_uj = 6_999_999
    for step in steps:
        now_uj += step
        for package in packages:
            (package / "energy_uj").write_text(str(now_uj % range_uj))
        meter.read()
    assert meter.read().energy_joules == pytest.approx(2 * sum(steps) / 1e6)


class FakeNvml:
    """NVML of a card that knows no temperature."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    energy_mj = 5_000_000

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: object) -> int:  # noqa: N802
        return self.energy_mj

    def nvmlDeviceGetMemoryInfo(self, _handle: object) -> object:  # noqa: N802
        return type("Memory", (), {"used": 3 << 30, "total": 80 << 30})

    def nvmlDeviceGetUtilizationRates(self, _handle: object) -> object:  # noqa: N802
        return type("Rates", (), {"gpu": 87})

    def nvmlDeviceGetTemperature(self, _handle: object, _sensor: int) -> int:  # noqa: N802
        raise self.NVMLError("not supported")


def test_a_card_tells_what_it_can() -> None:
    nvml = FakeNvml()
    meter = CardMeter(nvml, None)
    nvml.energy_mj += 12_000
    assert meter.read() == Reading(
        energy_joules=12.0,
        memory_used_bytes=3 << 30,
        memory_total_bytes=80 << 30,
        utilization_ratio=0.87,
        temperature_celsius=None,
    )


def test_every_pulled_metric_is_there_and_nothing_else(start_server) -> None:  # type: ignore[no-untyped-def]
    server = start_server()
    card = CardMeter(FakeNvml(), None)
    found = scrape(server, {"cuda:0": card, "cpu": NoMeter()}, expiry_s=2e9)
    made = {name for family in (*vars(metrics).values(),) if (name := getattr(family, "_name", ""))}
    pulled = {
        definition.name for definition in metrics.DEFINITIONS if definition.name.removesuffix("_total") not in made
    }
    missing = {"porestream_device_temperature_celsius", "porestream_reference_info"}  # the fake has none; no reference
    assert set(found) == pulled - missing
    assert found["porestream_device_energy_joules_total"] == {("cuda:0",): 0.0}
    assert found["porestream_tls_certificate_expiry_timestamp_seconds"] == {(): 2e9}


def test_counters_with_labels_start_at_0() -> None:
    """So that the first increase shows; a process of its own, because other tests increase them."""
    program = """
from prometheus_client import Counter
from porestream.server import metrics
from porestream.server.watch import collector
collector._expect_labels(["model"])
counters = [one for one in vars(metrics).values() if isinstance(one, Counter) and one._labelnames]
print(len(counters), *(one._name for one in counters if not one._metrics))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, *without = done.stdout.split()
    assert int(count) > 10
    assert without == ["porestream_token_samples_received"]  # names of tokens come from a file


def test_counters_agree_with_the_client_to_the_read(start_server) -> None:  # type: ignore[no-untyped-def]
    server = start_server()
    reads = made_up_reads(30)
    client = BasecallClient(server.address, StreamOptions(priority=PRIORITIES["bulk"]))

    async def call() -> list[ReadResult]:
        twice = [*reads, reads[-1]]  # the duplicate is rejected by the client: no server sees it
        return [result async for result in client.call(twice)]

    results = asyncio.run(call())
    assert (len(results), client.unsent, client.resent) == (31, 1, 0)
    found = scrape(server)
    bulk = ("tiny_fast@v1", "bulk")
    assert found["porestream_reads_received_total"][bulk] == len(results) - client.unsent
    assert found["porestream_reads_total"][(*bulk, "called")] == 30
    assert (
        found["porestream_samples_received_total"][bulk] == found["porestream_samples_finished_total"][bulk] == 90_000
    )
    assert found["porestream_bases_called_total"][bulk] == sum(
        len(part.sequence) for result in results for part in result.parts
    )
    assert found["porestream_books_imbalance"] == {(): 0.0}
    assert set(found["porestream_reads_open"].values()) == {0.0}
    assert sum(found["porestream_reads_received_total"].values()) == 30  # live and standard are there, and 0
