"use strict";
// Shows /status.json and refreshes it every few seconds. The server's strings become text, never HTML.

const EVERY_MS = 5000;
const TIMEOUT_MS = 4000;
const NONE = "–";
const NO_BREAK = "\u00a0";
const SVG = "http://www.w3.org/2000/svg";
const BAD = new Set(["device_down", "books_out_of_balance"]);

const byId = (id) => document.getElementById(id);

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);  // strings become text nodes
  return made;
}

// Numbers and times, formatted for the viewer's locale.

const rounded = (value, digits = 3) =>
  new Intl.NumberFormat(undefined, { maximumSignificantDigits: digits }).format(value);
const whole = (value) => value == null ? NONE : new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 }).format(value);
const clock = (unixS) => new Date(unixS * 1000).toLocaleTimeString();
const percent = (ratio, digits = 3) => ratio == null ? NONE : `${rounded(100 * ratio, digits)}${NO_BREAK}%`;

function scaled(value, unit, step, prefixes) {
  if (value == null) return NONE;
  let level = 0;
  while (Math.abs(value) >= step * 0.9995 && level < prefixes.length - 1) { value /= step; level += 1; }
  return `${rounded(value)}${NO_BREAK}${prefixes[level]}${unit}`;
}

const SI = ["", "k", "M", "G", "T", "P"];
const basesPerSecond = (value) => scaled(value, "b/s", 1000, SI);
const bases = (value) => scaled(value, "b", 1000, SI);
const samplesPerSecond = (value) => scaled(value, "samples/s", 1000, SI);
const samples = (value) => scaled(value, "samples", 1000, SI);
const bytes = (value) => scaled(value, "B", 1024, ["", "Ki", "Mi", "Gi", "Ti"]);
const energy = (joules) => joules == null ? NONE : scaled(joules / 3600, "Wh", 1000, SI);

function duration(seconds) {
  if (seconds == null) return NONE;
  if (seconds < 1 && seconds > 0) return `${rounded(1000 * seconds)}${NO_BREAK}ms`;
  if (seconds < 120) return `${rounded(seconds)}${NO_BREAK}s`;
  if (seconds < 7200) return `${rounded(seconds / 60)}${NO_BREAK}min`;
  if (seconds < 172800) return `${rounded(seconds / 3600)}${NO_BREAK}h`;
  return `${rounded(seconds / 86400)}${NO_BREAK}d`;
}

// The parts of the page.

function sparkline(values, times, label, format) {
  const svg = document.createElementNS(SVG, "svg");
  const add = (parent, name, attributes) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent.append(made);
    return made;
  };
  const highest = Math.max(...values, 0);
  const text = values.length
    ? `${label} from ${clock(times[0])} to ${clock(times.at(-1))}: at most ${format(highest)}, last ${format(values.at(-1))}`
    : `${label}: nothing recorded yet`;
  for (const [key, value] of Object.entries({ viewBox: "0 0 360 40", preserveAspectRatio: "none", role: "img", "aria-label": text }))
    svg.setAttribute(key, value);
  add(svg, "title", {}).textContent = text;
  if (values.length > 1) {
    const span = times.at(-1) - times[0] || 1;
    const points = values.map((value, i) =>
      `${(360 * (times[i] - times[0]) / span).toFixed(1)},${(38 - 36 * value / (highest || 1)).toFixed(1)}`);
    add(svg, "path", { class: "area", d: `M0,40L${points.join("L")}L360,40Z` });
    add(svg, "path", { class: "curve", d: `M${points.join("L")}` });
  }
  return svg;
}

function figure(title, value, below, line) {
  return element("div", { class: "figure" }, element("h3", {}, title), element("strong", {}, value), element("p", {}, below),
    ...(line ? [line] : []));
}

// Columns: [heading, cell of a row, class of the cell]; the first cell names the row.
function table(caption, columns, rows, otherwise) {
  if (!rows.length) return element("p", {}, otherwise);
  const head = columns.map(([heading, , look]) => element("th", { scope: "col", class: look === "text" ? look : "" }, heading));
  const body = rows.map((row) => element("tr", {}, ...columns.map(([, cell, look], i) => {
    const style = typeof look === "function" ? look(row) : look ?? "";
    return element(i ? "td" : "th", i ? { class: style } : { scope: "row" }, cell(row));
  })));
  return element("table", { "aria-label": caption }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}

function conditions(status) {
  if (!status.conditions.length) return [element("p", { class: "condition good" }, "Healthy: keeping up, device working, books balanced")];
  return status.conditions.map(({ name, text }) => element("p", { class: `condition ${BAD.has(name) ? "bad" : "warn"}` }, text));
}

function figures(status) {
  const { last_minute: minute, last_hour: hour, since_start: start, series } = status;
  const line = (key, label, format) => sparkline(series[key], series.unix_s, label, format);
  const rate = (title, key, format) =>
    figure(title, format(minute[key]), `last ${duration(hour.seconds)}: ${format(hour[key])}`, line(key, title, format));
  const count = (span, ...names) => names.reduce((sum, name) => sum + (span.reads[name] ?? 0), 0);
  const streams = status.priorities.reduce((sum, one) => sum + (one.streams ?? 0), 0);
  return [
    rate("Bases called", "bases_per_second", basesPerSecond),
    rate("Signal received", "samples_received_per_second", samplesPerSecond),
    rate("Signal finished", "samples_finished_per_second", samplesPerSecond),
    figure("Backlog", duration(status.backlog_seconds), "longest wait of a complete read",
      line("backlog_seconds", "Backlog", duration)),
    figure("Streams", `${whole(streams)} of ${whole(status.max_streams)}`, `${whole(status.reads_open)} reads open`),
    figure("Called", start.reads_received ? `${whole(count(start, "called", "filtered"))} reads` : "No reads yet",
      start.reads_received
        ? `${bases(start.bases)} since start; ${whole(count(hour, "called", "filtered"))} reads in the last ${duration(hour.seconds)}`
        : "none since the server started"),
    figure("Quality", hour.mean_qscore == null ? NONE : `Q${rounded(hour.mean_qscore)}`,
      `last ${duration(hour.seconds)}; identity ${percent(hour.mean_identity_ratio)}, aligned ${percent(hour.aligned_ratio)}`),
    figure("Memory for streams", `${bytes(status.memory.charged_bytes)} of ${bytes(status.memory.for_signal_bytes)}`,
      `the process uses ${bytes(status.memory.process_bytes)} of ${bytes(status.memory.limit_bytes)}`),
  ];
}

const models = (status) => table("Models", [
  ["Model", (row) => row.model],
  ["Bases, now", (row) => basesPerSecond(row.last_minute.bases_per_second)],
  ["Bases, last hour", (row) => basesPerSecond(row.last_hour.bases_per_second)],
  ["Called since start", (row) => row.since_start.reads_received ? bases(row.since_start.bases) : "no reads yet"],
  ["Mean length", (row) => bases(row.since_start.mean_read_length_bases)],
  ["Mean Q, last hour (since start)", (row) => `${row.last_hour.mean_qscore == null ? NONE : rounded(row.last_hour.mean_qscore)} (${
    row.since_start.mean_qscore == null ? NONE : rounded(row.since_start.mean_qscore)})`],
  ["Identity, last hour (since start)", (row) => `${percent(row.last_hour.mean_identity_ratio)} (${percent(row.since_start.mean_identity_ratio)})`],
  ["Aligned, last hour (since start)", (row) => `${percent(row.last_hour.aligned_ratio)} (${percent(row.since_start.aligned_ratio)})`],
  ["Precision", (row) => `${row.precision}, ${row.device_class}`, "text"],
  ["SHA-256", (row) => row.sha256.slice(0, 12), "text"],
], status.models, "No model loaded");

const streams = (status) => table("Streams by priority", [
  ["Priority", (row) => row.priority],
  ["Streams", (row) => whole(row.streams)],
  ["Stalled", (row) => whole(row.streams_stalled)],
  ["Reads open", (row) => whole(row.reads_open)],
  ["Waiting or being called", (row) => samples(row.queued_samples)],
  ["Backlog", (row) => duration(row.backlog_seconds)],
  ["Median latency, last hour", (row) => duration(row.latency_p50_seconds_last_hour)],
  ["99th percentile (estimates)", (row) => duration(row.latency_p99_seconds_last_hour)],
], status.priorities);

const devices = (status) => table("Devices", [
  ["Device", (row) => row.name ? `${row.device} (${row.name})` : row.device],
  ["State", (row) => row.up == null ? NONE : row.up ? "up" : "down", (row) => row.up == null ? "" : row.up ? "good" : "bad"],
  ["Busy, now", (row) => percent(row.busy_ratio_last_minute, 2)],
  ["Busy, last hour", (row) => percent(row.busy_ratio_last_hour, 2)],
  ["Useful rows, now", (row) => percent(row.useful_rows_ratio_last_minute, 2)],
  ["Memory", (row) => row.memory_total_bytes == null ? NONE : `${bytes(row.memory_used_bytes)} of ${bytes(row.memory_total_bytes)}`],
  ["Temperature", (row) => row.temperature_celsius == null ? NONE : `${whole(row.temperature_celsius)}${NO_BREAK}°C`],
  ["Power", (row) => scaled(row.power_watts, "W", 1000, SI)],
  ["Energy per Gb, last hour", (row) => energy(row.joules_per_gigabase_last_hour)],
], status.devices, "No device known");

const references = (status) => table("References", [
  ["Reference", (row) => row.reference],
  ["Presets", (row) => row.presets.join(", "), "text"],
  ["SHA-256", (row) => row.sha256.slice(0, 12), "text"],
], status.references, "No reference loaded: reads are called but not aligned");

function reads(status) {
  const { last_hour: hour, since_start: start } = status;
  if (!start.reads_received && !start.streams_opened) return element("p", {}, "No reads yet");
  const rows = [];
  const add = (what, inHour, sinceStart, bad) => rows.push({ what, inHour: inHour ?? 0, sinceStart, bad });
  const each = (key, name, bad, shown = () => true) => {
    for (const one of Object.keys(start[key]).sort())
      if (shown(one) && start[key][one]) add(name(one), hour[key][one], start[key][one], bad);
  };
  add("Reads received", hour.reads_received, start.reads_received, false);
  for (const end of ["called", "filtered", "rejected", "failed", "abandoned"])
    add(`Reads ${end}`, hour.reads[end], start.reads[end] ?? 0, ["rejected", "failed"].includes(end));
  each("reads_rejected", (reason) => `Rejected: ${reason}`, true);
  each("reads_failed", (stage) => `Failed in ${stage}`, true);
  add("Batches retried", hour.batches_retried, start.batches_retried, true);
  add("Streams opened", hour.streams_opened, start.streams_opened, false);
  add("Streams opened after a break", hour.streams_reconnected, start.streams_reconnected, false);
  each("streams_ended", (code) => `Streams ended: ${code}`, true, (code) => code !== "OK");
  add("Books out of balance, now", status.books_imbalance_reads, status.books_imbalance_reads ?? 0, true);
  const look = (key) => (row) => row.bad && row[key] ? "bad" : "";
  return table("Reads and errors", [
    ["What", (row) => row.what],
    [`Last ${duration(hour.seconds)}`, (row) => whole(row.inHour), look("inHour")],
    ["Since start", (row) => whole(row.sinceStart), look("sinceStart")],
  ], rows);
}

// Fetch, show, repeat.

let version = null;
let lastUnixS = null;
let lostUnixS = null;
let lastConditions = "";

function show(status) {
  if (version != null && version !== status.version) location.reload();  // the server was upgraded, so the page may have changed
  version = status.version;
  document.title = status.conditions.length ? `(!) porestream: ${status.conditions[0].name.replaceAll("_", " ")}` : "porestream: healthy";
  byId("about").textContent = `${status.version ?? ""}, up for ${duration(status.uptime_seconds)}` +
    (status.started_unix_s ? `, since ${new Date(status.started_unix_s * 1000).toLocaleString()}` : "");
  const words = JSON.stringify(status.conditions);
  if (words !== lastConditions) byId("conditions").replaceChildren(...conditions(status));
  lastConditions = words;
  byId("figures").replaceChildren(...figures(status));
  for (const [id, part] of Object.entries({ models, streams, devices, references, reads })) byId(id).replaceChildren(part(status));
  byId("updated").textContent = `Updated at ${clock(status.unix_s)}, every ${EVERY_MS / 1000} s.`;
}

// Fetches the status and shows it. Returns why the server can't be reached, or null.
async function ask() {
  let status;
  try {
    const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!response.ok) return `HTTP status ${response.status}`;
    status = await response.json();
  } catch (error) {
    return error.name === "TimeoutError" ? `no answer within ${TIMEOUT_MS / 1000} s` : "no connection";
  }
  show(status);  // outside the try: a bug in here is not a broken connection
  lastUnixS = Date.now() / 1000;
  return null;
}

async function refresh() {
  setTimeout(refresh, EVERY_MS);
  const wrong = await ask();
  lostUnixS = wrong ? lostUnixS ?? Date.now() / 1000 : null;
  const shown = lastUnixS ? ` Showing data from ${clock(lastUnixS)}.` : "";
  const text = wrong ? `Cannot reach the server since ${clock(lostUnixS)} (${wrong}).${shown}` : "";
  if (byId("unreachable").textContent !== text)  // otherwise screen readers would repeat it each time
    byId("unreachable").replaceChildren(...(text ? [element("p", { class: "condition bad" }, text)] : []));
  byId("shown").classList.toggle("stale", Boolean(wrong));
  byId("conditions").hidden = Boolean(wrong);
}

refresh();
