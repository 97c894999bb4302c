"""Run `porestream call`: source, server, client, outputs, counts."""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TextIO, cast

import click
import pysam
import structlog
from tqdm import tqdm

from porestream.cli.call_files import (
    REJECTED,
    check_files,
    check_reference,
    cram_reference,
    fill_table,
    open_outputs,
    open_table,
)
from porestream.cli.choose import (
    ABOUT_BUNDLED,
    ChemistryCheck,
    ChemistryMismatch,
    last_part,
    local_models,
    model_on_server,
    resolve_model,
)
from porestream.cli.embedded import embedded_server
from porestream.cli.progress import AboveProgress, say
from porestream.cli.request import Request
from porestream.cli.stopping import EXIT_HUNG_UP, EXIT_INTERRUPTED, EXIT_TERMINATED
from porestream.client.client import BasecallClient
from porestream.client.opening import ServerLost, ServerRefused, StreamOptions
from porestream.client.outputs.output_file import larger_kept
from porestream.client.outputs.partial import Partial
from porestream.client.outputs.rejected import RejectedReads
from porestream.client.outputs.sequencing_summary import SummaryTable
from porestream.client.outputs.summary import Summary
from porestream.client.outputs.writers import Format, Outputs, OutputSettings, format_of
from porestream.client.reads import CallerIdentity, ReadResult, ReadStatus, RunInfo, ServerInfo, SignalRead
from porestream.client.sources.pod5_source import Pod5Source, ReadFault, load_read_ids
from porestream.client.sources.watch import FolderWatch
from porestream.client.text import counted, shown
from porestream.models.files.catalog import BUNDLED

EXIT_FAILURE, EXIT_USAGE, EXIT_UNREADABLE, EXIT_SERVER_LOST, EXIT_UNBALANCED, EXIT_FAILED_READS = 1, 2, 3, 4, 5, 6
_NAMED_IDS = 5


def run_call(request: Request) -> int:
    """Run the call and return the exit code.

    Raises
    ------
    click.UsageError
        An output's name is wrong, or its folder is missing: better said now than at the end.
    """
    _check_outputs(request)
    pysam.set_verbosity(0)  # silences htslib: our messages say the same
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, AboveProgress())),
    )
    try:
        return asyncio.run(_Call(request).run())
    except KeyboardInterrupt:  # while scanning the inputs
        say("stopped by Ctrl-C before anything was called")
        return EXIT_INTERRUPTED
    except (OSError, ServerRefused, ValueError) as error:
        say(f"Error: {_message(error)}")
    except ServerLost as error:
        say(f"Error: server lost: {error}")
        return EXIT_SERVER_LOST
    return EXIT_FAILURE


def _check_outputs(request: Request) -> None:
    try:
        form = request.form if request.output_dir else format_of(request.output, request.form)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if form is Format.FASTQ and request.options.reference:
        raise click.UsageError("a FASTQ cannot hold alignments: leave out --reference, or write a BAM")
    for path in (Path(request.output), request.summary_json, request.rejected_reads):
        if path is not None and not path.parent.is_dir():
            raise click.UsageError(f"{path}: folder {path.parent} does not exist; create it first")


class _Call:
    """One call, from reading the source to the final counts."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.summary = Summary()
        self.partial = Partial(request.resume_from) if request.resume_from else None
        if self.partial is not None and self.partial.path != request.resume_from:
            say(f"resuming from {self.partial.path}, as {request.resume_from} does not exist")
        if self.partial is not None and (kept := larger_kept(self.partial.path)):
            say(f"note: {kept} is larger and may have more reads; --resume-from accepts it, too")
        rejected_reads = request.rejected_reads or request.beside_output(REJECTED)
        self.source = Pod5Source(
            request.reads,
            request.max_reads,
            request.recursive,
            load_read_ids(request.read_ids) if request.read_ids else None,
            self.partial.runs if self.partial else {},
        )
        check_files(request, self.source.files, self.partial, rejected_reads)
        self.rejected = RejectedReads(rejected_reads)
        self.watch: FolderWatch | None = None
        if request.watch is not None:
            self.watch = FolderWatch(request.watch, self.source, request.watch_timeout_s)
        self.told_files = 0
        self.stopping = threading.Event()
        self.stop_code, self.stop_name = 0, ""
        self.streaming = self.sorting = False
        self.outputs: Outputs | None = None
        self.is_whole = False  # whether the outputs have their final names
        self.resumable: list[Path] = []

    async def run(self) -> int:
        """Run the call and return the exit code."""
        try:
            return await self._run()
        finally:
            self.rejected.release()

    async def _run(self) -> int:
        self._take_signals()
        failure: Exception | None = None
        try:
            if self.watch is not None:
                say(f"waiting for POD5 files in {self.watch.folder}")
                await asyncio.to_thread(self.watch.wait_for_first)
            self._tell_files()
            if self.source.runs or not (self.source.file_faults or self.watch):
                await self._serve_and_call()
        except (ServerLost, ServerRefused, OSError) as error:
            if not self.streaming:
                raise
            failure = error
        except asyncio.CancelledError:
            if not self.stop_code:
                raise
        return self._close_books(failure)

    async def _serve_and_call(self) -> None:
        request = self.request
        async with AsyncExitStack() as stack:
            address, model = request.server, request.options.model
            if address is None:
                chosen = resolve_model(model, self.source.runs.values(), request.models_dir, say)
                model = str(chosen.absolute())  # ./hac is a path, hac a kind
                address = await stack.enter_async_context(embedded_server(self._server_flags(model)))
            await self._call(address, model)

    # Ctrl-C

    def _take_signals(self) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def stop(code: int, name: str) -> None:
            first, self.stop_code, self.stop_name = not self.stop_code, code, name
            self.stopping.set()
            if self.watch is not None:
                self.watch.stop()
            if first and self.streaming and not self.sorting:
                say(f"{name}: finishing the reads under way; press or send it again to stop now")
            else:
                if self.outputs is not None:
                    self.outputs.stop_sorting()
                task.cancel()

        for number, code, name in (
            (signal.SIGINT, EXIT_INTERRUPTED, "Ctrl-C"),
            (signal.SIGTERM, EXIT_TERMINATED, "SIGTERM"),
            (signal.SIGHUP, EXIT_HUNG_UP, "SIGHUP"),
        ):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in a shell's background job
                loop.add_signal_handler(number, stop, code, name)

    # the call

    async def _call(self, address: str, model: str) -> None:
        request = self.request
        info = await BasecallClient(address, StreamOptions(credentials=request.options.credentials)).server_info()
        if info.version != version("porestream"):
            say(f"note: the server runs porestream {shown(info.version)}, this is {version('porestream')}")
        runs = self.source.runs.values()
        if request.server:
            await asyncio.to_thread(check_reference, request, info)
            model = model_on_server(model, runs, info.models, request.server)
        client = BasecallClient(
            address,
            replace(request.options, model=last_part(model), reference=last_part(request.options.reference)),
        )
        check = self._check_chemistry(last_part(model), info)
        callers = {run.key: await client.identify(run) for run in runs}
        first = next(iter(callers.values()), None) or await client.identify()
        used = list(dict.fromkeys(caller.model for caller in callers.values()))
        if unknown := [name for name in used if name not in info.models]:
            known = shown(", ".join(info.models), 500)
            raise ServerRefused(f"the server would call with {shown(unknown[0])!r}, but lists only {known}")
        if request.server and not request.options.model and used == [BUNDLED.name]:
            say(f"model: {BUNDLED.name}, {ABOUT_BUNDLED}.")
        elif len(used) > 1:
            say(f"models: {shown(', '.join(used), 500)}, one for each chemistry")
        partial = self.partial
        settings = self._output_settings(first, info, lambda run: callers.get(run.key) or client.caller_of(run))
        if partial is not None:
            partial.check(settings)
        all_runs = (partial.runs if partial else {}) | self.source.runs
        outputs = self.outputs = open_outputs(request, all_runs, settings)
        try:
            self.rejected.hold()
        except OSError:
            outputs.close(finish=False)
            raise
        table: SummaryTable | None = None
        finished = False
        # In a thread, because whoever reads our output may be slow and heartbeats must continue; in a single one, so
        # that no file is closed while it is being written.
        loop, writing = asyncio.get_running_loop(), ThreadPoolExecutor(1)
        try:
            if partial is not None:
                self.summary.reads_taken_over = await loop.run_in_executor(
                    writing, partial.take_over, outputs, self.source.runs
                )
                self.source.skip(partial.read_ids)
                say(
                    f"{counted(self.summary.reads_taken_over, 'read')} taken from {partial.path}, "
                    f"{self.source.total_reads:,} left to call"
                )
            if request.emit_summary:
                table = open_table(request, partial)
                if partial is not None:
                    await loop.run_in_executor(writing, fill_table, table, partial, outputs, self.source)
            if partial is not None:
                outputs.settle()
            await self._stream(client, check, outputs, table, writing)
            finished = not self.stop_code  # else there are reads left to call
        finally:
            self.resumable = [path for writer in outputs.writers if (path := writer.partial_path)]
            self.sorting = request.sort and finished
            if self.sorting:
                say("sorting")
            is_whole = False
            try:
                await asyncio.shield(loop.run_in_executor(writing, lambda: outputs.close(finish=finished)))
                is_whole = finished
            finally:
                if table is not None:
                    table.close(finish=is_whole)
            if is_whole:
                self.is_whole, self.resumable = True, [writer.path for writer in outputs.writers if writer.path]
            writing.shutdown(wait=False)
            if left_out := sum(writer.left_out for writer in outputs.writers):
                below = f"{counted(left_out, 'read')} below Q {request.options.min_mean_qscore:g}"
                say(f"{below} left out of the FASTQ; use --output-dir to keep them")

    async def _stream(
        self,
        client: BasecallClient,
        check: ChemistryCheck,
        outputs: Outputs,
        table: SummaryTable | None,
        writing: ThreadPoolExecutor,
    ) -> None:
        loop = asyncio.get_running_loop()
        summary = self.summary

        def write(results: list[ReadResult]) -> list[ReadResult]:
            written = outputs.write_all(results)
            if table is not None:
                table.write_all(written)
            return written

        summary.start_clock()
        bar = tqdm(unit="read", disable=not sys.stderr.isatty(), dynamic_ncols=True, smoothing=0.1)
        batches = client.call_batches(self._reads(check))
        self.streaming = True
        try:
            async for results in batches:
                for result in await loop.run_in_executor(writing, write, results):
                    summary.add(result)
                    if result.status in (ReadStatus.REJECTED, ReadStatus.FAILED):
                        self._reject(result.info.read_id, result.info.file_name, result.status.value, result.detail)
                self._tell_files()
                bar.total = self.source.total_reads
                bar.update(len(results))
                summary.stop_clock()
                bar.set_postfix_str(f"{summary.bases:,} bases, {summary.bases_per_second:,.0f} bases/s", refresh=False)
        finally:
            await batches.aclose()
            bar.close()
            summary.stop_clock()
            summary.reconnects, summary.reads_resent = client.reconnects, client.resent
            summary.reads_unsent += client.unsent

    def _reads(self, check: ChemistryCheck) -> Iterator[SignalRead]:
        """Yield the reads to send, in the client's thread, without those of later runs that the model is not for."""
        warned = set(self.source.runs)
        for read in self.watch or self.source:
            if self.stopping.is_set():
                return
            run = read.info.run
            if run.key not in warned:
                warned.add(run.key)
                for warning in [*check.warnings(run), *filter(None, [check.mismatch(run)])]:
                    say(f"warning: {warning}")
            if reason := check.mismatch(run):
                fault = ReadFault(str(read.info.read_id), Path(read.info.file_name), f"chemistry: {reason}")
                self.source.read_faults.append(fault)  # counted at the end
                continue
            self.summary.reads_received += 1
            yield read

    def _check_chemistry(self, model: str, info: ServerInfo) -> ChemistryCheck:
        others = info.models if self.request.server else local_models(self.request.models_dir)
        allowed = self.request.options.allow_chemistry_mismatch
        check = ChemistryCheck(model, info.models, others, allowed=allowed)
        for run in self.source.runs.values():
            if reason := check.mismatch(run):
                raise ChemistryMismatch(reason)
            for warning in check.warnings(run):
                say(f"warning: {warning}")
        return check

    # files

    def _output_settings(
        self, identity: CallerIdentity, info: ServerInfo, run_identity: Callable[[RunInfo], CallerIdentity]
    ) -> OutputSettings:
        request, options = self.request, self.request.options
        form = (request.form or Format.BAM) if request.output_dir else format_of(request.output, request.form)
        return OutputSettings(
            identity=identity,
            sequences=info.references.get(identity.reference, ()),
            command_line=request.command_line,
            choices=f"min_qscore={options.min_mean_qscore:g} trim={'none' if options.no_trim else 'adapters'}",
            form=form,
            reference=cram_reference(request.options.reference) if form is Format.CRAM else None,
            sort=request.sort,
            continued=self.partial.path if self.partial else None,
            run_identity=run_identity,
        )

    def _server_flags(self, model: str) -> list[str]:
        given = {
            "--model": model,
            "--reference": self.request.options.reference,
            "--preset": self.request.options.preset,
        }
        return [
            word for flag, value in (given | dict(self.request.server_flags)).items() if value for word in (flag, value)
        ]

    # the counts

    def _reject(self, read_id: object, file_name: str, status: str, reason: str) -> None:
        if line := self.rejected.add(read_id, file_name, status, reason):
            say(line)

    def _tell_files(self) -> None:
        faults = self.source.file_faults
        for fault in faults[self.told_files :]:
            say(f"cannot read {fault.path}: {fault.reason}")
        self.told_files = len(faults)

    def _close_books(self, failure: Exception | None) -> int:
        source, summary = self.source, self.summary
        self._tell_files()
        for fault in source.read_faults:
            self._reject(fault.read_id, str(fault.path), "rejected", fault.reason)
            summary.add_unreadable_read()
        self.rejected.close(finish=self.is_whole)
        if unmet := source.unmet:
            named = ", ".join(unmet[:_NAMED_IDS]) + (", ..." if len(unmet) > _NAMED_IDS else "")
            say(f"warning: {len(unmet)} of the read ids in {self.request.read_ids} are not in any input: {named}")
        summary.files_unreadable = sorted({str(fault.path) for fault in source.file_faults})
        if summary.reads_received or not (failure or self.stop_code):
            say(str(summary))
        if self.rejected.counts:
            where = f"; listed in {self.rejected.path}" if self.rejected.path else ""
            say(f"rejected or failed: {self.rejected}{where}")
        if self.watch is not None and self.watch.ended_by:
            say(f"watched until the {self.watch.ended_by}")
        if self.request.summary_json is not None:
            summary.write(self.request.summary_json)
        return self._exit_code(failure)

    def _exit_code(self, failure: Exception | None) -> int:
        missing, faults = self.summary.missing, self.source.file_faults
        if self.stop_code:
            say(f"stopped by {self.stop_name}{self._way_on() if self.streaming else ' before anything was called'}")
            return self.stop_code
        if failure:
            lost = isinstance(failure, ServerLost)
            say(f"Error: {'server lost: ' if lost else ''}{_message(failure)}{self._way_on()}")
            return EXIT_SERVER_LOST if lost else EXIT_FAILURE
        if missing:
            say(f"Error: the counts do not add up: {counted(missing, 'read')} without a result{self._way_on()}")
            return EXIT_UNBALANCED
        if faults:
            count = len(self.summary.files_unreadable)
            say(f"Error: {count} of the inputs could not be read, or not to the end; see above")
            return EXIT_UNREADABLE
        if failed := self.summary.reads_failed:
            say(f"Error: {counted(failed, 'read')} failed, through no fault of the input{self._way_on()}")
            return EXIT_FAILED_READS
        return 0

    def _way_on(self) -> str:
        if not self.resumable:
            return ""
        if folder := self.request.output_dir:
            way_on = f"use --resume-from {folder} and another --output-dir"
            return f"; the reads called so far are in {folder}: to continue, {way_on}"
        partial = self.resumable[0]
        way_on = f"run the same command with --resume-from {partial}"
        return f"; the reads called so far are in {partial}: to continue, {way_on}"


def _message(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    return (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
