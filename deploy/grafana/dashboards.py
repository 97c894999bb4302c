"""Define the Grafana dashboards as code. `make docs` runs this file to write the JSON in dashboards/.

To add a panel, add a `Panel` to a section below. In queries, `@` stands for the selected servers, and `@m` for the
selected servers and models. tests/ops runs every query against a real Prometheus that scrapes a real server.
"""

from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    FieldColorModeId,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TARGET = Path(__file__).resolve().parent / "dashboards"
_DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_GRID_COLUMNS = 24


@dataclass(frozen=True)
class Panel:
    """One panel.

    Parameters
    ----------
    title, description
        What it shows, and how to read it.
    unit
        Grafana's unit: "s", "percentunit", "bytes", "si:samples/s" (scaled), "suffix: streams" (not scaled).
    queries
        Each PromQL query and the legend for its series.
    kind
        "timeseries", "stat" (the last value, large) or "table" (labels of info metrics).
    width
        Number of columns out of 24.
    limit
        Values from here on are bad and shown in red.
    recorded
        Only a server with a GPU or an energy meter has this data, so the tests make it up.
    """

    title: str
    unit: str
    description: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    limit: float | None = None
    stacked: bool = False
    recorded: bool = False

    @property
    def expressions(self) -> list[str]:
        """The queries with Grafana's variables filled in for `@` and `@m`."""
        chosen, model = 'instance=~"$instance"', 'model=~"$model"'
        return [each.replace("@m", f"{chosen}, {model}").replace("@", chosen) for each in self.queries]

    @property
    def height(self) -> int:
        """Height in Grafana's grid units."""
        return 4 if self.kind == "stat" else 8


@dataclass(frozen=True)
class Dashboard:
    """One file in dashboards/: panels in sections, grouped by the question they answer."""

    name: str
    title: str
    description: str
    sections: dict[str, list[Panel]]


def _quantiles(histogram: str, by: str, chosen: str, shares: tuple[float, ...] = (0.5, 0.99)) -> dict[str, str]:
    """Return queries for a histogram's quantiles over all selected servers."""
    grouped = f"le, {by}" if by else "le"
    return {
        f"histogram_quantile({share}, sum by ({grouped}) (rate({histogram}_bucket{{{chosen}}}[$__rate_interval])))": (
            f"p{share * 100:.0f}" + (f" {{{{{by}}}}}" if by else "")
        )
        for share in shares
    }


def _mean(histogram: str, by: str, chosen: str) -> dict[str, str]:
    return {
        f"sum by ({by}) (rate({histogram}_sum{{{chosen}}}[$__rate_interval])) / "
        f"sum by ({by}) (rate({histogram}_count{{{chosen}}}[$__rate_interval]))": f"{{{{{by}}}}}"
    }


SERVICE = Dashboard(
    "service",
    "Porestream: service",
    "Is it keeping up, how large is the backlog, which stage is the bottleneck, how late are results, what is running?",
    {
        "Now": [
            Panel(
                "Servers up",
                "suffix: servers",
                "Servers that Prometheus can reach.",
                {'count(up{job="porestream", @} == 1) or vector(0)': ""},
                kind="stat",
                width=4,
            ),
            Panel(
                "Streams",
                "suffix: streams",
                "Open streams on all servers.",
                {"sum(porestream_streams{@})": ""},
                kind="stat",
                width=4,
            ),
            Panel(
                "Signal in",
                "si:samples/s",
                "Signal received per second. Each channel of a flow cell sends 4,000 or 5,000 samples/s.",
                {"sum(rate(porestream_samples_received_total{@m}[$__rate_interval]))": ""},
                kind="stat",
                width=4,
            ),
            Panel(
                "Bases out",
                "si:bases/s",
                "Bases called per second.",
                {"sum(rate(porestream_bases_called_total{@m}[$__rate_interval]))": ""},
                kind="stat",
                width=4,
            ),
            Panel(
                "Live streams stalled",
                "percentunit",
                "Share of the time that live streams have to wait before they can send. Above 20%, the server is not "
                "keeping up.",
                {'max(instance_priority:porestream_credit_stall:ratio_rate5m{@, priority="live"}) or vector(0)': ""},
                kind="stat",
                width=4,
                limit=0.2,
            ),
            Panel(
                "Reads unaccounted for",
                "suffix: reads",
                "Read attempts received, minus those that ended or are still open. Anything but 0 is a bug: reads may "
                "be lost.",
                {"sum(abs(porestream_books_imbalance{@}))": ""},
                kind="stat",
                width=4,
                limit=1,
            ),
        ],
        "Is it keeping up?": [
            Panel(
                "Samples in and out",
                "si:samples/s",
                "Signal received, and signal of reads that have a result. Credit keeps the two close together, so look "
                "at the stalled streams, too.",
                {
                    "sum(rate(porestream_samples_received_total{@m}[$__rate_interval]))": "in",
                    "sum(rate(porestream_samples_finished_total{@m}[$__rate_interval]))": "out",
                },
            ),
            Panel(
                "Backlog",
                "s",
                "Age of the oldest complete read that has no result yet. Credit limits it: signal beyond about 8 M "
                "samples per stream waits at the client.",
                {"max by (priority) (porestream_backlog_seconds{@})": "{{priority}}"},
            ),
            Panel(
                "Signal waiting",
                "si:samples",
                "Samples of complete reads that are waiting or being called.",
                {"sum by (priority) (porestream_queued_samples{@})": "{{priority}}"},
                stacked=True,
            ),
            Panel(
                "Streams",
                "suffix: streams",
                "Open streams, and the limit. Streams beyond the limit are refused (RESOURCE_EXHAUSTED).",
                {
                    "sum by (priority) (porestream_streams{@})": "{{priority}}",
                    "sum(porestream_max_streams{@})": "limit",
                },
            ),
            Panel(
                "Samples by token",
                "suffix: samples/s",
                "Samples received, by the name of the client's token. The name is empty if the token has none.",
                {"sum by (token) (rate(porestream_token_samples_received_total{@}[$__rate_interval]))": "{{token}}"},
                stacked=True,
            ),
            Panel(
                "Streams by token",
                "suffix: streams",
                "Open streams, by the name of the client's token. Each may have up to --max-streams-per-peer.",
                {"sum by (token) (porestream_token_streams{@})": "{{token}}"},
            ),
            Panel(
                "Stalled streams",
                "suffix: streams",
                "Average number of streams that cannot send because their credit is used up. Normal for files; for "
                "live streams it means that signal waits at the sequencer.",
                {
                    "sum by (priority) (rate(porestream_credit_stall_seconds_total{@}[$__rate_interval]))": (
                        "{{priority}}"
                    ),
                    "sum(porestream_streams_stalled{@})": "all, right now",
                },
            ),
            Panel(
                "Stream memory",
                "percentunit",
                "Share in use of the memory for signal, results and credit, which is half of --memory-budget. Near "
                "100%, no stream gets new credit.",
                {"porestream_memory_charged_bytes{@} / porestream_memory_for_signal_bytes{@}": "{{instance}}"},
            ),
        ],
        "Which stage is the bottleneck?": [
            Panel(
                "Work by stage",
                "suffix: threads",
                "Average number of threads that each stage keeps busy. All stages together cannot exceed the number of "
                "workers. The largest stage is the bottleneck.",
                {
                    "sum by (stage) (rate(porestream_stage_seconds_sum{@}[$__rate_interval]))": "{{stage}}",
                    "sum(porestream_workers{@})": "workers",
                },
            ),
            Panel(
                "Queue before each stage",
                "short",
                "Reads (prepare, align, deliver, acknowledge) or chunks (basecall) waiting for each stage. Reads "
                "waiting for deliver or acknowledge are waiting for the client.",
                {"sum by (stage) (porestream_stage_queue{@})": "{{stage}}"},
            ),
            Panel(
                "Wait before each stage",
                "s",
                "How long a read, or the oldest chunk in a batch, waited (p99).",
                _quantiles("porestream_stage_wait_seconds", "stage", "@", (0.99,)),
            ),
            Panel(
                "Batch fill",
                "percentunit",
                "Chunks in a batch, as a share of its capacity. A GPU is fastest with full batches, but live chunks do "
                "not wait for one to fill.",
                _mean("porestream_batch_fill_ratio", "model", "@m"),
            ),
            Panel(
                "Streams per batch",
                "suffix: streams",
                "Average number of streams whose chunks share a batch.",
                _mean("porestream_batch_streams", "model", "@m"),
            ),
            Panel(
                "Aligned on the CPU instead",
                "si:reads/s",
                "Reads that minimap2 aligned on the CPU because the GPU could not, by reason.",
                {"sum by (reason) (rate(porestream_alignment_fallbacks_total{@}[$__rate_interval]))": "{{reason}}"},
                stacked=True,
            ),
            Panel(
                "Event loop lag",
                "s",
                "How late the event loop's timers fire (p99). Every stream on that server is delayed by as much.",
                _quantiles("porestream_event_loop_lag_seconds", "instance", "@", (0.99,)),
            ),
        ],
        "How late is it?": [
            Panel(
                "Last sample to result",
                "s",
                "Time from receiving a read's last sample to handing its result to the network.",
                _quantiles("porestream_read_latency_seconds", "priority", "@"),
                width=24,
            ),
        ],
        "What is running?": [
            Panel(
                "Servers",
                "string",
                "Version of each server.",
                {"porestream_build_info{@}": ""},
                kind="table",
                width=12,
            ),
            Panel(
                "Devices",
                "string",
                "The device that each server runs its networks on.",
                {"porestream_device_info{@}": ""},
                kind="table",
                width=12,
            ),
            Panel(
                "Models",
                "string",
                "Served models, and what determines the bases they call. All servers should show the same digests.",
                {"porestream_model_info{@m}": ""},
                kind="table",
                width=12,
            ),
            Panel(
                "References",
                "string",
                "Served references with their digests. Empty if the servers don't align.",
                {"porestream_reference_info{@}": ""},
                kind="table",
                width=12,
            ),
        ],
    },
)

THROUGHPUT = Dashboard(
    "throughput",
    "Porestream: throughput",
    "Bases, reads, quality, identity and alignment.",
    {
        "In this time range": [
            Panel(
                "Bases",
                "si:bases",
                "Bases called in this time range by the selected servers and models.",
                {"sum(increase(porestream_bases_called_total{@m}[$__range]))": ""},
                kind="stat",
                width=6,
            ),
            Panel(
                "Reads called",
                "si:reads",
                "Reads called in this time range whose results were delivered and acknowledged.",
                {'sum(increase(porestream_reads_total{@m, status="called"}[$__range]))': ""},
                kind="stat",
                width=6,
            ),
            Panel(
                "Mean Q",
                "suffix: Q",
                "Average of the reads' mean Phred quality.",
                {
                    "sum(increase(porestream_read_mean_qscore_sum{@m}[$__range])) / "
                    "sum(increase(porestream_read_mean_qscore_count{@m}[$__range]))": ""
                },
                kind="stat",
                width=6,
            ),
            Panel(
                "Aligned",
                "percentunit",
                "Share of reads that aligned, among reads in streams with a reference.",
                {
                    "sum(increase(porestream_reads_aligned_total{@m}[$__range])) / "
                    "sum(increase(porestream_reads_to_align_total{@m}[$__range]))": ""
                },
                kind="stat",
                width=6,
            ),
        ],
        "Bases and reads": [
            Panel(
                "Bases",
                "si:bases/s",
                "Bases called per second, by model.",
                {"sum by (model) (rate(porestream_bases_called_total{@m}[$__rate_interval]))": "{{model}}"},
                stacked=True,
            ),
            Panel(
                "Bases by server",
                "si:bases/s",
                "Bases called per second. Servers that share clients should show similar rates.",
                {"sum by (instance) (rate(porestream_bases_called_total{@m}[$__rate_interval]))": "{{instance}}"},
                stacked=True,
            ),
            Panel(
                "Samples",
                "si:samples/s",
                "Signal of reads that have a result, by priority.",
                {"sum by (priority) (rate(porestream_samples_finished_total{@m}[$__rate_interval]))": "{{priority}}"},
                stacked=True,
            ),
            Panel(
                "Reads started",
                "si:reads/s",
                "Read attempts started. A read that is sent again counts as a new attempt.",
                {"sum by (priority) (rate(porestream_reads_received_total{@m}[$__rate_interval]))": "{{priority}}"},
                stacked=True,
            ),
            Panel(
                "Reads ended",
                "si:reads/s",
                "Read attempts by how they ended. The Errors dashboard shows those neither called nor filtered.",
                {"sum by (status) (rate(porestream_reads_total{@m}[$__rate_interval]))": "{{status}}"},
                stacked=True,
            ),
            Panel(
                "Read length",
                "si:bases",
                "Length of called reads (median and p99).",
                _quantiles("porestream_read_length_bases", "model", "@m"),
            ),
        ],
        "Are the calls good?": [
            Panel(
                "Read quality",
                "suffix: Q",
                "Mean Phred quality of reads. The worst tenth is below p10. If it falls on all servers, look at the "
                "sample or the flow cell; if on one server only, look at that server.",
                _quantiles("porestream_read_mean_qscore", "model", "@m", (0.1, 0.5)),
                width=6,
            ),
            Panel(
                "Filtered",
                "percentunit",
                "Share of reads below the minimum quality that the client asked for.",
                {
                    'sum by (model) (rate(porestream_reads_total{@m, status="filtered"}[$__rate_interval])) / '
                    "sum by (model) (rate(porestream_reads_total{@m}[$__rate_interval]))": "{{model}}"
                },
                width=6,
            ),
            Panel(
                "Identity",
                "percentunit",
                "Identity of primary alignments, 1 - NM / columns (p10 and median).",
                _quantiles("porestream_alignment_identity_ratio", "model", "@m", (0.1, 0.5)),
                width=6,
            ),
            Panel(
                "Aligned",
                "percentunit",
                "Share of reads that aligned, among acknowledged reads in streams with a reference.",
                {
                    "sum by (model) (rate(porestream_reads_aligned_total{@m}[$__rate_interval])) / "
                    "sum by (model) (rate(porestream_reads_to_align_total{@m}[$__rate_interval]))": "{{model}}"
                },
                width=6,
            ),
        ],
    },
)

DEVICES = Dashboard(
    "devices",
    "Porestream: devices and cost",
    "How busy the devices are, and what a gigabase costs in device-seconds and joules.",
    {
        "Cost": [
            Panel(
                "Device time per gigabase",
                "suffix: device-s/Gb",
                "Busy time of the device in the last hour (cpu: summed over its workers), per 1e9 bases called in that "
                "hour.",
                {"instance_device:porestream_device_seconds_per_gigabase:rate1h{@}": "{{instance}} {{device}}"},
            ),
            Panel(
                "Energy per gigabase",
                "suffix: J/Gb",
                "Energy that the device used in the last hour, for any process, per 1e9 bases called in that hour. "
                "With a GPU, add the GPU's and the CPU's.",
                {"instance_device:porestream_device_joules_per_gigabase:rate1h{@}": "{{instance}} {{device}}"},
                recorded=True,
            ),
            Panel(
                "Power",
                "watt",
                "Power of the whole device: from NVML for a GPU, and from its packages (RAPL) for a CPU.",
                {"rate(porestream_device_energy_joules_total{@}[$__rate_interval])": "{{instance}} {{device}}"},
                recorded=True,
            ),
        ],
        "Devices": [
            Panel(
                "Working devices",
                "suffix: devices",
                "A device whose last three batches failed does not count as working.",
                {"sum(porestream_device_up{@})": "working", "count(porestream_device_up{@})": "all"},
            ),
            Panel(
                "Busy",
                "percentunit",
                "Share of the time that the workers are busy (CPU), or that a batch is running (GPU).",
                {"instance_device:porestream_device_busy:ratio_rate5m{@}": "{{instance}} {{device}}"},
            ),
            Panel(
                "Kernels running",
                "percentunit",
                "NVML's utilization: share of its last sampling period during which a kernel ran. If this is well "
                "below Busy, launches or copies are the bottleneck.",
                {"porestream_device_utilization_ratio{@}": "{{instance}} {{device}}"},
                recorded=True,
            ),
            Panel(
                "GPU memory",
                "bytes",
                "GPU memory used by all processes, and in total.",
                {
                    "porestream_device_memory_used_bytes{@}": "{{instance}} {{device}}",
                    "porestream_device_memory_total_bytes{@}": "{{instance}} {{device}}, total",
                },
                recorded=True,
            ),
            Panel(
                "Temperature",
                "celsius",
                "GPU temperature. A hot GPU slows itself down.",
                {"porestream_device_temperature_celsius{@}": "{{instance}} {{device}}"},
                recorded=True,
            ),
            Panel(
                "Useful rows",
                "percentunit",
                "Share of the computed rows that were chunks rather than padding. A GPU that is busy with half-empty "
                "batches does half the work.",
                {
                    'sum by (instance) (rate(porestream_row_samples_total{@, row="chunk"}[$__rate_interval])) '
                    "/ sum by (instance) (rate(porestream_row_samples_total{@}[$__rate_interval]))": "{{instance}}"
                },
            ),
        ],
        "Host": [
            Panel(
                "Process memory",
                "bytes",
                "Resident memory of the server, and the limit of its container or machine. A server that exceeds the "
                "limit is killed.",
                {
                    'process_resident_memory_bytes{job="porestream", @}': "{{instance}}",
                    "porestream_memory_limit_bytes{@}": "{{instance}}, limit",
                    "porestream_memory_budget_bytes{@}": "{{instance}}, stream budget",
                },
                width=12,
            ),
            Panel(
                "Cores in use",
                "suffix: cores",
                "CPU cores that the server's process uses.",
                {'rate(process_cpu_seconds_total{job="porestream", @}[$__rate_interval])': "{{instance}}"},
                width=12,
            ),
        ],
    },
)

ERRORS = Dashboard(
    "errors",
    "Porestream: errors",
    "Is anything lost? Books, failures, rejections, broken streams and retries.",
    {
        "The books": [
            Panel(
                "Reads unaccounted for",
                "suffix: reads",
                "Read attempts received, minus those that ended, minus those open in streams. Anything but 0 is a bug.",
                {"porestream_books_imbalance{@}": "{{instance}}"},
            ),
            Panel(
                "Unacknowledged reads",
                "si:reads",
                "Reads received whose results are not acknowledged yet. Clients would send them again if the server "
                "crashed.",
                {"sum by (priority) (porestream_reads_open{@m})": "{{priority}}"},
                stacked=True,
            ),
            Panel(
                "Since the servers started",
                "locale",
                "Attempts started must equal attempts ended plus attempts open, to the read.",
                {
                    "sum(porestream_reads_received_total{@m})": "started",
                    "sum(porestream_reads_total{@m})": "ended",
                    "sum(porestream_reads_open{@m})": "open",
                },
                kind="stat",
            ),
        ],
        "Reads": [
            Panel(
                "Failed, by stage",
                "si:reads/s",
                "Reads that failed through the server's fault; its log has the error.",
                {"sum by (stage) (rate(porestream_reads_failed_total{@}[$__rate_interval]))": "{{stage}}"},
                stacked=True,
            ),
            Panel(
                "Rejected, by reason",
                "si:reads/s",
                "Reads rejected because of bad input. docs/operate/runbooks/PorestreamReadsRejected.md explains each "
                "reason.",
                {"sum by (reason) (rate(porestream_reads_rejected_total{@}[$__rate_interval]))": "{{reason}}"},
                stacked=True,
            ),
            Panel(
                "Reads not called",
                "percentunit",
                "Share of read attempts that failed, were rejected, or were abandoned because their stream broke (the "
                "client sends those again).",
                {
                    "instance_status:porestream_reads_not_called:ratio_rate15m{@}": "{{instance}} {{status}}",
                },
            ),
        ],
        "Streams": [
            Panel(
                "Streams opened",
                "suffix: streams/s",
                "All streams opened, and those opened by clients that reconnected after a break.",
                {
                    "sum(rate(porestream_streams_opened_total{@}[$__rate_interval]))": "opened",
                    "sum(rate(porestream_streams_reconnected_total{@}[$__rate_interval]))": "after a break",
                },
            ),
            Panel(
                "Streams ended, by status",
                "suffix: streams/s",
                "Streams that ended or were refused, by gRPC status. CANCELLED means that the client stopped.",
                {"sum by (status) (rate(porestream_streams_ended_total{@}[$__rate_interval]))": "{{status}}"},
            ),
            Panel(
                "Connections",
                "suffix: connections",
                "Open client connections on all gRPC ports. One address may have up to three quarters of the "
                "connections that the file descriptor limit allows.",
                {"porestream_connections{@}": "{{instance}}"},
            ),
            Panel(
                "Refused or dropped",
                "suffix: /s",
                "Connections that the server closed, calls it refused, open reads it sent back to the client, and log "
                "lines it dropped, by reason.",
                {
                    f"sum by (reason) (rate(porestream_{what}_total{{@}}[$__rate_interval]))": f"{name}: {{{{reason}}}}"
                    for what, name in (
                        ("connections_refused", "connections"),
                        ("calls_refused", "calls"),
                        ("log_lines_dropped", "log lines"),
                        ("reads_deferred", "reads sent back"),
                    )
                },
            ),
            Panel(
                "Batches retried",
                "suffix: batches/s",
                "Batches that failed and were retried chunk by chunk, because memory ran out or the device is failing.",
                {"sum by (model) (rate(porestream_batches_retried_total{@m}[$__rate_interval]))": "{{model}}"},
            ),
        ],
        "Server": [
            Panel(
                "Started",
                "dateTimeFromNow",
                "When each server's process started.",
                {'process_start_time_seconds{job="porestream", @} * 1000': "{{instance}}"},
                kind="stat",
                width=12,
            ),
            Panel(
                "Certificate expires",
                "dateTimeFromNow",
                "When the server's TLS certificate expires. Empty if the server has no TLS.",
                {"porestream_tls_certificate_expiry_timestamp_seconds{@} * 1000": "{{instance}}"},
                kind="stat",
                width=12,
            ),
            Panel(
                "Draining",
                "bool",
                "Whether the server is draining, so that its clients move to another server.",
                {"porestream_draining{@}": "{{instance}}"},
                width=24,
            ),
        ],
    },
)

DASHBOARDS = [SERVICE, THROUGHPUT, DEVICES, ERRORS]


def _build_panel(panel: Panel, place: GridPos) -> timeseries.Panel | stat.Panel | table.Panel:
    built: timeseries.Panel | stat.Panel | table.Panel
    if panel.kind == "timeseries":
        stacking = StackingMode.NORMAL if panel.stacked else StackingMode.NONE
        built = (
            timeseries.Panel()
            .legend(
                common.VizLegendOptions()
                .display_mode(LegendDisplayMode.LIST)
                .placement(LegendPlacement.BOTTOM)
                .show_legend(True)
            )
            .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
            .stacking(common.StackingConfig().mode(stacking))
            .fill_opacity(20 if panel.stacked else 0)
            .axis_soft_min(0)
        )
    elif panel.kind == "stat":
        built = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    else:
        # In an info metric, only the labels carry information.
        hidden = {"Time": True, "Value": True, "__name__": True, "job": True}
        built = table.Panel().transformations([DataTransformerConfig("organize", {"excludeByName": hidden})])
    if panel.limit is not None:
        steps = [Threshold(value=None, color="green"), Threshold(value=panel.limit, color="red")]
        built.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        built.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
    for number, (expression, legend) in enumerate(zip(panel.expressions, panel.queries.values(), strict=True)):
        query = prometheus.Dataquery().expr(expression).ref_id(chr(ord("A") + number)).datasource(_DATASOURCE)
        if panel.kind == "table":
            query.instant().format(PromQueryFormat.TABLE)
        else:
            query.range().legend_format(legend or panel.title)
        built.with_target(query)
    built.title(panel.title).description(panel.description).unit(panel.unit).datasource(_DATASOURCE).grid_pos(place)
    return built


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """Return a variable for one or several values of a label. "All" includes values that appear later, too."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_DATASOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def render(board: Dashboard) -> str:
    """Return a dashboard's JSON in the form that Grafana's provisioning reads."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(f"porestream-{board.name}")
        .description(board.description)
        .tags(["porestream"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Porestream")
            .type("dashboards")
            .tags(["porestream"])
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_variable("instance", "Server", "label_values(porestream_build_info, instance)"))
        .with_variable(_variable("model", "Model", 'label_values(porestream_model_info{instance=~"$instance"}, model)'))
    )
    number, top = 0, 0
    for section, panels in board.sections.items():
        number += 1
        built.with_row(dashboard.Row(section).id(number).grid_pos(GridPos(h=1, w=_GRID_COLUMNS, x=0, y=top)))
        top, left, height = top + 1, 0, 0
        for panel in panels:
            number += 1
            if left + panel.width > _GRID_COLUMNS:
                top, left, height = top + height, 0, 0
            place = GridPos(h=panel.height, w=panel.width, x=left, y=top)
            built.with_panel(_build_panel(panel, place).id(number))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return JSONEncoder(indent=2, sort_keys=True).encode(built.build()) + "\n"


if __name__ == "__main__":
    TARGET.mkdir(exist_ok=True)
    for each in DASHBOARDS:
        (TARGET / f"{each.name}.json").write_text(render(each))
