"""The first five minutes on a GPU: everything that a machine without one cannot show, each step by itself.

    python benchmarks/gpu_first.py --kit gpu-kit                          on the GPU's machine; needs no network
    python benchmarks/gpu_first.py --kit gpu-kit --only probe,kernels     some of the steps
    python benchmarks/gpu_first.py --table gpu-report.jsonl               the table of a run that was cut off
    python benchmarks/gpu_first.py --kit kit --device emulated --small    a rehearsal, with a kit of gpu_kit.py --small

Each step is a process with a time limit that imports only what it needs. What it finds goes to the report at once, a
JSON object a line, so that nothing is lost if a later step crashes, hangs, or takes the machine with it. A table comes
last. Exit code: 0 all is well, 1 something is not as it should be, 2 there is no kit.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

BENCHMARKS = Path(__file__).resolve().parent
LAST_LINES = 12
Fact = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """A module in gpu_steps (or another, for tests), and how long it may take."""

    name: str
    limit_s: float
    package: str = "gpu_steps"


STEPS = [
    Step("probe", 60),
    Step("install", 30),
    Step("compiling", 60),
    Step("kernels", 60),
    Step("networks", 120),
    Step("aligner", 60),
    Step("parts", 90),
    Step("calls", 200),
    Step("speeds", 45),
    Step("sanitizer", 60),
    Step("bases", 300),
    Step("cuda_tests", 600),
]
"""In the order of what is learnt a second. The last two are for a machine that one may keep: --all."""
FIRST = [step.name for step in STEPS[:-2]]


def run_step(step: Step, options: argparse.Namespace, report: TextIO) -> bool:
    """Run a step, and add to the report what it finds; return whether all was well."""
    began_s = time.monotonic()
    well = True

    def add(fact: Fact) -> None:
        nonlocal well
        well &= fact.get("ok") is not False
        fact = {"step": step.name, "at_s": round(time.monotonic() - began_s, 1), **fact}
        report.write(json.dumps(fact) + "\n")
        report.flush()
        os.fsync(report.fileno())
        print(_line(fact), flush=True)

    command = [
        sys.executable,
        "-m",
        f"{step.package}.{step.name}",
        "--kit",
        str(options.kit),
        "--work",
        str(options.work),
    ]
    command += ["--device", options.device, *(["--data", str(options.data)] if options.data else [])]
    command += ["--small"] if options.small else []
    folders = [str(BENCHMARKS), str(options.work / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        limit_s = step.limit_s * options.patience
        timer = threading.Timer(limit_s, _kill, [process])
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    fact = json.loads(line)
                except ValueError:
                    fact = {"what": "said", "said": line.rstrip()}
                add(fact if isinstance(fact, dict) and "what" in fact else {"what": "said", "said": fact})
            code = process.wait()
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
            _kill(process)
        errors.seek(0)
        last = errors.read().splitlines()[-LAST_LINES:]
    if timed_out and code:
        add({"what": "stopped", "ok": False, "said": f"it took longer than {limit_s:g} s", "stderr": last})
    elif code:
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        add({"what": "crashed", "ok": False, "said": how, "stderr": last})
    else:
        add({"what": "done"})
    return well


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a step and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _line(fact: Fact) -> str:
    mark = "ok " if fact.get("ok") is True else "BAD" if fact.get("ok") is False else "   "
    rest = " ".join(f"{key}={value}" for key, value in fact.items() if key not in ("step", "what", "ok", "at_s"))
    return f"{mark} {fact['step']:<10} {fact['at_s']:>6} {fact['what']}: {rest}"


def table(facts: Iterable[Fact]) -> str:
    """Return what was found as Markdown, what is not as it should be first."""
    found = [fact for fact in facts if fact["what"] != "done"]
    bad = [fact for fact in found if fact.get("ok") is False]
    lines = [
        f"{len(bad)} of {sum(isinstance(fact.get('ok'), bool) for fact in found)} checks are not as they should be.",
        "",
    ]
    for title, part in (("What is wrong", bad), ("All", found)):
        if part:
            lines += [f"## {title}", "", "| step | what | ok | found |", "| --- | --- | --- | --- |"]
            lines += [_row(fact) for fact in part]
            lines.append("")
    return "\n".join(lines)


def _row(fact: Fact) -> str:
    ok = "yes" if fact.get("ok") is True else "**no**" if fact.get("ok") is False else ""
    rest = ", ".join(
        f"{key} {_said(value)}" for key, value in fact.items() if key not in ("step", "what", "ok", "at_s")
    )
    return f"| {fact['step']} | {_said(fact['what'])} | {ok} | {rest} |"


def _said(value: object) -> str:
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def read_report(path: Path) -> Iterator[Fact]:
    """Read a report, which may have been cut off in its last line."""
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, help="folder made by gpu_kit.py (make gpu-kit)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or emulated (default: cuda)")
    parser.add_argument("--report", type=Path, default=Path("gpu-report.jsonl"), help="default: gpu-report.jsonl")
    parser.add_argument("--work", type=Path, help="folder for what is unpacked and called (default: a temporary one)")
    names = ", ".join(step.name for step in STEPS)
    parser.add_argument("--only", metavar="STEP,...", help=f"of: {names}")
    parser.add_argument("--all", action="store_true", help="also the steps that take minutes: bases, cuda_tests")
    parser.add_argument("--data", type=Path, help="folder of real sets, for bases")
    parser.add_argument("--patience", type=float, default=1.0, help="multiply all time limits (default: 1)")
    parser.add_argument("--small", action="store_true", help="small cases, for a rehearsal without a GPU")
    parser.add_argument("--table", type=Path, metavar="REPORT", help="only print a report's table")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(read_report(options.table)))
        return 0
    if options.kit is None or not (options.kit / "README.txt").is_file():
        print(
            f"no kit at {options.kit}: make one with `make gpu-kit`, on any machine, and name it with --kit",
            file=sys.stderr,
        )
        return 2
    wanted = options.only.split(",") if options.only else [step.name for step in STEPS] if options.all else FIRST
    if unknown := set(wanted) - {step.name for step in STEPS}:
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {names}")
    options.kit = options.kit.resolve()
    with tempfile.TemporaryDirectory() as folder, options.report.open("w") as report:
        options.work = (options.work or Path(folder)).resolve()
        well = [run_step(step, options, report) for step in STEPS if step.name in {*wanted, "install"}]
    text = table(read_report(options.report))
    options.report.with_suffix(".md").write_text(f"# The first minutes on a GPU\n\n{text}\n")
    print(f"\n{text}\n{options.report} and {options.report.with_suffix('.md')} have this too.")
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
