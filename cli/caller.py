"""What `porestream call` does: source, server, client, writer, summary."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import click
import pysam
import structlog
from tqdm import tqdm

from porestream.cli.embedded import embedded_server
from porestream.client.client import BasecallClient
from porestream.client.reads import ReadStatus, SignalRead
from porestream.client.records import RecordWriter, output_mode
from porestream.client.sources import Pod5Source
from porestream.client.stream import ServerLost, ServerRefused, StreamOptions
from porestream.client.summary import Summary
from porestream.models.catalog import (
    BUNDLED,
    NoModel,
    choose_model,
    default_models_directory,
    find_model,
    kind_of,
    model_among,
)
from porestream.models.chemistry import Chemistry, chemistry_of_run

EXIT_FAILURE, EXIT_USAGE, EXIT_UNREADABLE, EXIT_SERVER_LOST, EXIT_UNBALANCED = 1, 2, 3, 4, 5
EXIT_TERMINATED = 128 + signal.SIGTERM
_LISTED_PROBLEMS = 20
_ABOUT_BUNDLED = "the project's own, trained on simulated and a few real reads. ONT's models call better"


@dataclass(frozen=True, slots=True)
class Request:
    """The command's arguments."""

    reads: tuple[Path, ...]
    model: str
    models_directory: Path | None
    reference: str
    preset: str
    output: str
    server: str | None
    server_flags: dict[str, str]
    max_reads: int | None
    emit_moves: bool
    summary_json: Path | None
    command_line: str


def run_call(request: Request) -> int:
    """Do it; returns the exit code.

    Raises
    ------
    click.UsageError
        An output has the wrong name, or nowhere to be: better known now than at the end.
    """
    _check_outputs(request)
    pysam.set_verbosity(0)  # htslib's own error messages; ours say the same
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())],
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _AboveProgress())),
    )
    try:
        return asyncio.run(_call(request))
    except asyncio.CancelledError:
        _say("stopped by SIGTERM; what was called so far is in the output")
        return EXIT_TERMINATED
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        _say(f"Error: {about}{error.strerror or error}")
        return EXIT_FAILURE
    except (ServerRefused, ValueError) as error:
        _say(f"Error: {error}")
        return EXIT_FAILURE


def _check_outputs(request: Request) -> None:
    try:
        output_mode(request.output)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for path in (Path(request.output), request.summary_json):
        if path is not None and not path.parent.is_dir():
            raise click.UsageError(f"{path}: there is no folder {path.parent}; make it first")


async def _call(request: Request) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    source = Pod5Source(request.reads, request.max_reads)
    for fault in source.file_faults:
        _say(f"cannot read {fault.path}: {fault.reason}")
    known_faults = len(source.file_faults)
    summary = Summary()
    lost: ServerLost | None = None
    if source.total_reads or not source.file_faults:
        async with AsyncExitStack() as stack:
            address, model = request.server, request.model
            if address is None:
                model = str(_resolve_model(request, source).absolute())  # ./hac is a path, hac a kind
                address = await stack.enter_async_context(embedded_server(_server_flags(request, model)))
            try:
                await _stream(request, model, source, address, summary)
            except ServerLost as error:
                lost = error
    for fault in source.file_faults[known_faults:]:
        _say(f"cannot read {fault.path}: {fault.reason}")
    for read_fault in source.read_faults:
        _say(f"read {read_fault.read_id} of {read_fault.path} rejected: {read_fault.reason}")
        summary.add_unreadable_read()
    summary.files_unreadable = sorted({str(fault.path) for fault in source.file_faults})
    if summary.reads_received or not lost:
        _say(str(summary))
    if request.summary_json is not None:
        summary.write(request.summary_json)
    if lost:
        _say(f"Error: server lost: {lost}")
        return EXIT_SERVER_LOST
    if summary.missing:
        _say(f"Error: the books do not balance: {summary.missing} reads have no result")
        return EXIT_UNBALANCED
    if source.file_faults:
        _say(f"Error: {len(summary.files_unreadable)} of the inputs could not be read, or not to the end; see above")
        return EXIT_UNREADABLE
    return 0


async def _stream(request: Request, model: str, source: Pod5Source, address: str, summary: Summary) -> None:
    info = await BasecallClient(address).server_info()
    client = BasecallClient(
        address,
        StreamOptions(
            model=_model_on_server(request, source, info.models) if request.server else _name(model),
            reference=_name(request.reference),
            preset=request.preset,
            emit_moves=request.emit_moves,
            emit_md=bool(request.reference),
        ),
    )
    identity = await client.identify()
    if request.server and not request.model and identity.model == BUNDLED.name:
        _say(f"model: {identity.model}, {_ABOUT_BUNDLED}.")
    sequences = info.references.get(identity.reference, ())
    writer = RecordWriter(request.output, source.runs, identity, sequences, request.command_line)
    # In a thread, for whoever reads our output may be slow, and heartbeats must go on; in one, so that nothing is
    # closed while it is written.
    loop, writing = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    problems = 0
    summary.start_clock()
    bar = tqdm(
        total=source.total_reads, unit="read", disable=not sys.stderr.isatty(), dynamic_ncols=True, smoothing=0.1
    )
    batches = client.call_batches(_counted(source, summary))
    try:
        async for results in batches:
            await loop.run_in_executor(writing, writer.write_all, results)
            for result in results:
                summary.add(result)
                if result.status in (ReadStatus.REJECTED, ReadStatus.FAILED):
                    problems += 1
                    if problems <= _LISTED_PROBLEMS:
                        _say(f"read {result.info.read_id} {result.status.value}: {result.detail}")
                    elif problems == _LISTED_PROBLEMS + 1:
                        _say("further rejected and failed reads are counted, not listed")
            bar.update(len(results))
            summary.stop_clock()
            bar.set_postfix_str(f"{summary.bases:,} bases, {summary.bases_per_second:,.0f} bases/s", refresh=False)
    finally:
        await batches.aclose()
        bar.close()
        summary.stop_clock()
        summary.reconnects = client.reconnects
        await loop.run_in_executor(writing, writer.close)


def _name(path: str) -> str:
    """What the server calls a model or reference: the last part of its path."""
    return os.path.basename(os.path.abspath(path)) if path else ""


def _counted(source: Pod5Source, summary: Summary) -> Iterator[SignalRead]:
    for read in source:
        summary.reads_received += 1
        yield read


def _resolve_model(request: Request, source: Pod5Source) -> Path:
    """The model directory for --model and the runs; says so if the choice was ours.

    Raises
    ------
    NoModel
        There is none; the message says what to do.
    """
    kind = kind_of(request.model)
    if request.model != "auto" and kind is None:
        return find_model(request.model, request.models_directory)
    model, passed_over = choose_model(_chemistries(source), request.models_directory, kind)
    for reason in passed_over:
        _say(f"model passed over: {reason}")
    if model == BUNDLED:
        folder = request.models_directory or default_models_directory()
        _say(f"model: {model.name}, {_ABOUT_BUNDLED}: put one's directory into {folder}, or give --model DIR.")
    else:
        _say(f"model: {model}")
    return model


def _model_on_server(request: Request, source: Pod5Source, names: tuple[str, ...]) -> str:
    """What to name to the server; empty where it has one model, or where only it can say what is amiss.

    Raises
    ------
    NoModel
        The server has none of the kind for these runs.
    """
    kind = kind_of(request.model)
    if kind is None and request.model not in ("", "auto"):
        return _name(request.model)
    if kind is None and len(names) == 1:
        return ""
    runs = _chemistries(source)
    model = model_among(names, runs, kind)
    if kind and not model:
        chemistries = "; ".join(sorted({str(run) for run in runs}))
        raise NoModel(f"no {kind} model for {chemistries} on {request.server}; there are: {', '.join(names)}")
    return model


def _chemistries(source: Pod5Source) -> list[Chemistry]:
    return [
        chemistry_of_run(run.flow_cell_product_code, run.sequencing_kit, run.sample_rate_hz)
        for run in source.runs.values()
    ]


def _server_flags(request: Request, model: str) -> list[str]:
    given = {"--model": model, "--reference": request.reference, "--preset": request.preset}
    flags = []
    for flag, value in (given | request.server_flags).items():
        if value:
            flags += [flag, value]
    return flags


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


class _AboveProgress:
    """Lets log lines stand above the progress bar."""

    def write(self, text: str) -> None:
        tqdm.write(text.rstrip("\n"), file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
