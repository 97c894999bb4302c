"""What all steps share. Imports only the standard library, so that it works whatever is missing."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

RUNS = 5


def arguments() -> argparse.Namespace:
    """Parse what gpu_first.py passes to each step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--small", action="store_true")
    return parser.parse_args()


def say(what: str, /, **facts: object) -> None:
    """Report something at once; `ok=False` among the facts is a finding."""
    print(json.dumps({"what": what, **facts}, default=str), flush=True)


def median_s(work: Callable[[], object], runs: int = RUNS) -> float:
    """Return the median of some runs' seconds, after one warm-up run."""
    work()
    times = []
    for _ in range(runs):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)
