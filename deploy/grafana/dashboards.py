"""Grafana's dashboards, as code; this makes the JSON in dashboards/ (`make docs`).

To add a panel: add a `Panel` to a section below. In queries `@` stands for the chosen servers, `@m` for those and the
chosen models. tests/ops runs every query against a real Prometheus that scrapes a real server.
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
        Grafana's: "s", "percentunit", "bytes", "si:samples/s" (scaled), "suffix: streams" (not scaled).
    queries
        PromQL and the legend of its series.
    kind
        "timeseries", "stat" (the last value, large) or "table" (labels of info metrics).
    width
        Of 24 columns.
    limit
        Values above are bad: red.
    recorded
        Only a server with a card or an energy meter has these data: tested with made-up ones.
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
        """The queries as Grafana gets them, with its variables."""
        chosen, model = 'instance=~"$instance"', 'model=~"$model"'
        return [each.replace("@m", f"{chosen}, {model}").replace("@", chosen) for each in self.queries]

    @property
    def height(self) -> int:
        """In Grafana's grid units."""
        return 4 if self.kind == "stat" else 8


@dataclass(frozen=True)
class Dashboard:
    """A file of dashboards/: sections of panels, by the question that they answer."""

    name: str
    title: str
    description: str
    sections: dict[str, list[Panel]]


def _quantiles(histogram: str, by: str, chosen: str, shares: tuple[float, ...] = (0.5, 0.99)) -> dict[str, str]:
    """Queries for quantiles of a histogram, over all chosen servers."""
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
    "Is it keeping up, what is the backlog, which stage limits, how late are results, what runs?",
    {
        "Now": [
            Panel(
                "Servers up",
                "suffix: servers",
                "Servers that Prometheus reaches.",
                {'count(up{job="porestream", @} == 1) or vector(0)': ""},
                kind="stat",
                width=4,
            ),
            Panel(
                "Streams",
                "suffix: streams",
                "Streams being served, by all servers.",
                {"sum(porestream_streams{@})": ""},
                kind="stat",
                width=4,
            ),
            Panel(
                "Signal in",
                "si:samples/s",
                "Signal received a second. A channel sends 4,000 or 5,000, a flow cell as many times its channels.",
                {"sum(rate(porestream_samples_received_total{@m}[$__rate_interval]))": ""},
                kind="stat",
                width=4,
            ),
            Panel(
                "Bases out",
                "si:bases/s",
                "Bases called a second.",
                {"sum(rate(porestream_bases_called_total{@m}[$__rate_interval]))": ""},
                kind="stat",
                width=4,
            ),
            Panel(
                "Live streams wait",
                "percentunit",
                "Share of the time that live streams must wait before they may send. Over 20%: not keeping up.",
                {'max(instance_priority:porestream_credit_stall:ratio_rate5m{@, priority="live"}) or vector(0)': ""},
                kind="stat",
                width=4,
                limit=0.2,
            ),
            Panel(
                "Reads unaccounted for",
                "suffix: reads",
                "Attempts received, less those that ended or are held. Anything but 0 is a defect: reads may be lost.",
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
                "Signal received, and signal of reads that got a result. Credit keeps them close: see who must wait.",
                {
                    "sum(rate(porestream_samples_received_total{@m}[$__rate_interval]))": "in",
                    "sum(rate(porestream_samples_finished_total{@m}[$__rate_interval]))": "out",
                },
            ),
            Panel(
                "Backlog",
                "s",
                "Age of the oldest complete read without a result. Credit bounds it: what is beyond some 8 M samples "
                "of a stream waits at its client.",
                {"max by (priority) (porestream_backlog_seconds{@})": "{{priority}}"},
            ),
            Panel(
                "Signal waiting",
                "si:samples",
                "Samples of complete reads that wait or are being called.",
                {"sum by (priority) (porestream_queued_samples{@})": "{{priority}}"},
                stacked=True,
            ),
            Panel(
                "Streams",
                "suffix: streams",
                "Streams being served, and the most there may be: more are turned away (RESOURCE_EXHAUSTED).",
                {
                    "sum by (priority) (porestream_streams{@})": "{{priority}}",
                    "sum(porestream_max_streams{@})": "at most",
                },
            ),
            Panel(
                "Samples by token",
                "suffix: samples/s",
                "Samples received, by the name of the client's token (without a name: the others).",
                {"sum by (token) (rate(porestream_token_samples_received_total{@}[$__rate_interval]))": "{{token}}"},
                stacked=True,
            ),
            Panel(
                "Streams by token",
                "suffix: streams",
                "Streams being served, by the name of the client's token. One may have --max-streams-per-peer of them.",
                {"sum by (token) (porestream_token_streams{@})": "{{token}}"},
            ),
            Panel(
                "Streams that must wait to send",
                "suffix: streams",
                "Streams whose credit is used up, on average. Usual for files; live signal waits at the sequencer.",
                {
                    "sum by (priority) (rate(porestream_credit_stall_seconds_total{@}[$__rate_interval]))": (
                        "{{priority}}"
                    ),
                    "sum(porestream_streams_stalled{@})": "all, just now",
                },
            ),
            Panel(
                "Memory of streams",
                "percentunit",
                "Of the half of --memory-budget for signal, results and credit. Near 100% nobody gets new credit.",
                {"porestream_memory_charged_bytes{@} / porestream_memory_for_signal_bytes{@}": "{{instance}}"},
            ),
        ],
        "Which stage limits?": [
            Panel(
                "Work by stage",
                "suffix: threads",
                "Threads that a stage keeps busy, on average; all stages together cannot exceed the workers. The "
                "largest one limits.",
                {
                    "sum by (stage) (rate(porestream_stage_seconds_sum{@}[$__rate_interval]))": "{{stage}}",
                    "sum(porestream_workers{@})": "workers there are",
                },
            ),
            Panel(
                "Queue before each stage",
                "short",
                "Reads (before prepare, deliver, acknowledge) or chunks (before basecall) that wait. What waits "
                "before deliver or acknowledge waits for the client.",
                {"sum by (stage) (porestream_stage_queue{@})": "{{stage}}"},
            ),
            Panel(
                "Wait before each stage",
                "s",
                "p99 of how long a read or a batch's oldest chunk waited.",
                _quantiles("porestream_stage_wait_seconds", "stage", "@", (0.99,)),
            ),
            Panel(
                "Batch fill",
                "percentunit",
                "Chunks in a batch, of those it has room for. Full batches use a card best; live chunks do not wait.",
                _mean("porestream_batch_fill_ratio", "model", "@m"),
            ),
            Panel(
                "Streams that share a batch",
                "suffix: streams",
                "On average.",
                _mean("porestream_batch_streams", "model", "@m"),
            ),
            Panel(
                "Aligned on the CPU instead",
                "si:reads/s",
                "Reads that the device which aligns cannot take, by reason: minimap2 does them on the CPU.",
                {"sum by (reason) (rate(porestream_alignment_fallbacks_total{@}[$__rate_interval]))": "{{reason}}"},
                stacked=True,
            ),
            Panel(
                "Event loop lag",
                "s",
                "p99 of how late the event loop's timers are. All streams of that server wait as long.",
                _quantiles("porestream_event_loop_lag_seconds", "instance", "@", (0.99,)),
            ),
        ],
        "How late is it?": [
            Panel(
                "Last sample to result",
                "s",
                "From a read's last sample received to its result handed to the network.",
                _quantiles("porestream_read_latency_seconds", "priority", "@"),
                width=24,
            ),
        ],
        "What runs?": [
            Panel(
                "Servers",
                "string",
                "Build of each server.",
                {"porestream_build_info{@}": ""},
                kind="table",
                width=12,
            ),
            Panel(
                "Devices",
                "string",
                "What networks run on.",
                {"porestream_device_info{@}": ""},
                kind="table",
                width=12,
            ),
            Panel(
                "Models",
                "string",
                "Models served, with what decides their bases. All servers should show the same sums.",
                {"porestream_model_info{@m}": ""},
                kind="table",
                width=12,
            ),
            Panel(
                "References",
                "string",
                "References served, with their sums. Empty: no alignment.",
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
        "In the time shown": [
            Panel(
                "Bases",
                "si:bases",
                "Bases called in the time shown, by all chosen servers and models.",
                {"sum(increase(porestream_bases_called_total{@m}[$__range]))": ""},
                kind="stat",
                width=6,
            ),
            Panel(
                "Reads called",
                "si:reads",
                "Reads whose calls were delivered and acknowledged in the time shown.",
                {'sum(increase(porestream_reads_total{@m, status="called"}[$__range]))': ""},
                kind="stat",
                width=6,
            ),
            Panel(
                "Mean Q",
                "suffix: Q",
                "Mean of the reads' mean Phred quality.",
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
                "Of the reads of streams with a reference.",
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
                "Bases called a second, by model.",
                {"sum by (model) (rate(porestream_bases_called_total{@m}[$__rate_interval]))": "{{model}}"},
                stacked=True,
            ),
            Panel(
                "Bases by server",
                "si:bases/s",
                "Bases called a second. Servers that share clients should be alike.",
                {"sum by (instance) (rate(porestream_bases_called_total{@m}[$__rate_interval]))": "{{instance}}"},
                stacked=True,
            ),
            Panel(
                "Samples",
                "si:samples/s",
                "Signal of reads that got a result, by priority.",
                {"sum by (priority) (rate(porestream_samples_finished_total{@m}[$__rate_interval]))": "{{priority}}"},
                stacked=True,
            ),
            Panel(
                "Reads begun",
                "si:reads/s",
                "Attempts at reads begun: a read that is sent again counts again.",
                {"sum by (priority) (rate(porestream_reads_received_total{@m}[$__rate_interval]))": "{{priority}}"},
                stacked=True,
            ),
            Panel(
                "Reads ended",
                "si:reads/s",
                "By how they ended; the Errors dashboard has what is not called or filtered.",
                {"sum by (status) (rate(porestream_reads_total{@m}[$__rate_interval]))": "{{status}}"},
                stacked=True,
            ),
            Panel(
                "Read length",
                "si:bases",
                "Median and p99 of called reads' lengths.",
                _quantiles("porestream_read_length_bases", "model", "@m"),
            ),
        ],
        "Are the calls good?": [
            Panel(
                "Read quality",
                "suffix: Q",
                "Mean Phred quality of reads: the worst tenth is below p10. A fall that all servers share is the "
                "sample or the flow cell; of one server, that server.",
                _quantiles("porestream_read_mean_qscore", "model", "@m", (0.1, 0.5)),
                width=6,
            ),
            Panel(
                "Filtered",
                "percentunit",
                "Share of reads below the minimum quality that their client asked for.",
                {
                    'sum by (model) (rate(porestream_reads_total{@m, status="filtered"}[$__rate_interval])) / '
                    "sum by (model) (rate(porestream_reads_total{@m}[$__rate_interval]))": "{{model}}"
                },
                width=6,
            ),
            Panel(
                "Identity",
                "percentunit",
                "Of primary alignments: 1 - NM / columns. p10 and median.",
                _quantiles("porestream_alignment_identity_ratio", "model", "@m", (0.1, 0.5)),
                width=6,
            ),
            Panel(
                "Aligned",
                "percentunit",
                "Of acknowledged reads of streams with a reference.",
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
    "How busy devices are, and what a gigabase costs in device-seconds and joules.",
    {
        "Cost": [
            Panel(
                "Device time of a gigabase",
                "suffix: device-s/Gb",
                "Busy time of a device (cpu: of all its workers) in the last hour, for each 1e9 bases called in it.",
                {"instance_device:porestream_device_seconds_per_gigabase:rate1h{@}": "{{instance}} {{device}}"},
            ),
            Panel(
                "Energy of a gigabase",
                "suffix: J/Gb",
                "Energy of a device in the last hour, whoever used it, for each 1e9 bases called in it. Cards need "
                "both: theirs and the CPU's.",
                {"instance_device:porestream_device_joules_per_gigabase:rate1h{@}": "{{instance}} {{device}}"},
                recorded=True,
            ),
            Panel(
                "Power",
                "watt",
                "Of the whole device: NVML's for a card, the packages' (RAPL) for a CPU.",
                {"rate(porestream_device_energy_joules_total{@}[$__rate_interval])": "{{instance}} {{device}}"},
                recorded=True,
            ),
        ],
        "Devices": [
            Panel(
                "Devices that work",
                "suffix: devices",
                "A device whose last three batches failed is not counted.",
                {"sum(porestream_device_up{@})": "working", "count(porestream_device_up{@})": "there are"},
            ),
            Panel(
                "Busy",
                "percentunit",
                "Of the time of workers (CPU), or of the card with a batch on it.",
                {"instance_device:porestream_device_busy:ratio_rate5m{@}": "{{instance}} {{device}}"},
            ),
            Panel(
                "Kernels running",
                "percentunit",
                "NVML's utilization: share of its last sampling period in which any kernel ran. Well below Busy: "
                "launches or copies limit.",
                {"porestream_device_utilization_ratio{@}": "{{instance}} {{device}}"},
                recorded=True,
            ),
            Panel(
                "Memory of cards",
                "bytes",
                "Used by all processes, and what there is.",
                {
                    "porestream_device_memory_used_bytes{@}": "{{instance}} {{device}}",
                    "porestream_device_memory_total_bytes{@}": "{{instance}} {{device}}, there is",
                },
                recorded=True,
            ),
            Panel(
                "Temperature",
                "celsius",
                "Cards slow down by themselves when hot.",
                {"porestream_device_temperature_celsius{@}": "{{instance}} {{device}}"},
                recorded=True,
            ),
            Panel(
                "Chunks in a batch, of those with room",
                "percentunit",
                "A card that is busy with half-empty batches does half the work.",
                _mean("porestream_batch_fill_ratio", "model", "@m"),
            ),
        ],
        "Host": [
            Panel(
                "Memory of the process",
                "bytes",
                "Resident, and the container's or machine's limit. What goes over it is killed.",
                {
                    'process_resident_memory_bytes{job="porestream", @}': "{{instance}}",
                    "porestream_memory_limit_bytes{@}": "{{instance}}, limit",
                    "porestream_memory_budget_bytes{@}": "{{instance}}, budget of streams",
                },
                width=12,
            ),
            Panel(
                "Cores in use",
                "suffix: cores",
                "By the server's process.",
                {'rate(process_cpu_seconds_total{job="porestream", @}[$__rate_interval])': "{{instance}}"},
                width=12,
            ),
        ],
    },
)

ERRORS = Dashboard(
    "errors",
    "Porestream: errors",
    "Is anything lost? The books, failures, rejections, broken streams, retries.",
    {
        "The books": [
            Panel(
                "Reads unaccounted for",
                "suffix: reads",
                "Attempts received, less those that ended, less those that streams hold. Anything but 0 is a defect.",
                {"porestream_books_imbalance{@}": "{{instance}}"},
            ),
            Panel(
                "Reads without acknowledgement",
                "si:reads",
                "Received, and not yet acknowledged: what clients would send again after a crash of the server.",
                {"sum by (priority) (porestream_reads_open{@m})": "{{priority}}"},
                stacked=True,
            ),
            Panel(
                "Since the servers started",
                "locale",
                "Begun attempts are those that ended and those that are open, to the read.",
                {
                    "sum(porestream_reads_received_total{@m})": "begun",
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
                "The server is at fault: its log has the error.",
                {"sum by (stage) (rate(porestream_reads_failed_total{@}[$__rate_interval]))": "{{stage}}"},
                stacked=True,
            ),
            Panel(
                "Rejected, by reason",
                "si:reads/s",
                "The input is at fault. docs/operate/runbooks/PorestreamReadsRejected.md says what each reason means.",
                {"sum by (reason) (rate(porestream_reads_rejected_total{@}[$__rate_interval]))": "{{reason}}"},
                stacked=True,
            ),
            Panel(
                "Shares of reads that ended",
                "percentunit",
                "Failed, rejected, and abandoned: those whose stream broke, which the client sends again.",
                {
                    "instance_status:porestream_reads_not_called:ratio_rate15m{@}": "{{instance}} {{status}}",
                },
            ),
        ],
        "Streams": [
            Panel(
                "Opened, and opened again",
                "suffix: streams/s",
                "Again: the client says that an earlier connection broke.",
                {
                    "sum(rate(porestream_streams_opened_total{@}[$__rate_interval]))": "opened",
                    "sum(rate(porestream_streams_reconnected_total{@}[$__rate_interval]))": "of those again",
                },
            ),
            Panel(
                "Ended, by status",
                "suffix: streams/s",
                "gRPC status of streams that ended or were turned away. CANCELLED: the client stopped.",
                {"sum by (status) (rate(porestream_streams_ended_total{@}[$__rate_interval]))": "{{status}}"},
            ),
            Panel(
                "Connections",
                "suffix: connections",
                "From outside, on all ports of gRPC. One address may have three quarters of what descriptors allow.",
                {"porestream_connections{@}": "{{instance}}"},
            ),
            Panel(
                "Turned away",
                "suffix: /s",
                "Connections closed from here, calls refused, open reads sent back, by the reason; log lines left out.",
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
                "Batches tried again",
                "suffix: batches/s",
                "Batches that failed and were tried again chunk by chunk: out of memory, or a device that fails.",
                {"sum by (model) (rate(porestream_batches_retried_total{@m}[$__rate_interval]))": "{{model}}"},
            ),
        ],
        "Server": [
            Panel(
                "Started",
                "dateTimeFromNow",
                "When each server's process began.",
                {'process_start_time_seconds{job="porestream", @} * 1000': "{{instance}}"},
                kind="stat",
                width=12,
            ),
            Panel(
                "Certificate ends",
                "dateTimeFromNow",
                "When the certificate that is served ends. Empty: no TLS.",
                {"porestream_tls_certificate_expiry_timestamp_seconds{@} * 1000": "{{instance}}"},
                kind="stat",
                width=12,
            ),
            Panel(
                "Sends its streams away",
                "bool",
                "Draining: its clients connect to another server.",
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
        # Of an info metric only the labels say something.
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
    """One or several values of a label. All means all that come later, too, and not the list of those that are."""
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
    """The JSON of a dashboard, as Grafana's provisioning reads it."""
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
