"""Compare our engine's decisions with readfish's own: `make compare-readfish`.

python benchmarks/compare_readfish.py --python VENV/bin/python            100,000 cases; exit code 1: some differ
python benchmarks/compare_readfish.py --python VENV/bin/python --record   also keep 1,000 answers for the tests
"""

import argparse
import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from readfish_cases import made_up, our_answer

from porestream.client.flow_cell import CHANNELS, divide

SIDE = Path(__file__).with_name("readfish_side.py")
RECORDED = Path(__file__).resolve().parent.parent / "tests" / "server" / "adaptive" / "readfish_2024_3_0.json.gz"
SHOWN = 5


def ask(python: str, questions: Sequence[object]) -> list[Any]:
    """Return readfish's answers."""
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run([python, str(SIDE)], input=lines, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def set_of(parts: Sequence[Sequence[int]]) -> list[set[int]]:
    """Return the channels of each part, in any order; readfish has a 0 where there is none."""
    return [{*part} - {0} for part in parts]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of an environment with readfish 2024.3.0")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--record", action="store_true", help=f"keep the first 1,000 in {RECORDED.name}")
    options = parser.parse_args()
    divisions = [
        (channels, parts, axis)
        for channels, sizes in CHANNELS.items()
        for axis, size in enumerate(sizes)
        for parts in range(1, size + 1)
        if size % parts == 0
    ]
    theirs = ask(options.python, [{"divide": division} for division in divisions])
    wrong = [one for one, answer in zip(divisions, theirs, strict=True) if set_of(divide(*one)) != set_of(answer)]
    print(f"{len(divisions)} divisions of flow cells: {len(wrong)} differ {wrong or ''}")
    cases = [made_up(seed) for seed in range(options.cases)]
    answers = ask(options.python, cases)
    differ = [
        seed for seed, (case, theirs) in enumerate(zip(cases, answers, strict=True)) if our_answer(case) != theirs
    ]
    evaluations = sum(map(len, answers))
    print(f"{len(cases):,} cases, {evaluations:,} evaluations: {len(differ):,} cases differ from readfish 2024.3.0")
    for seed in differ[:SHOWN]:
        print(f"case {seed}: {json.dumps(cases[seed])}\n  ours   {our_answer(cases[seed])}\n  theirs {answers[seed]}")
    if options.record and not differ:
        with gzip.open(RECORDED, "wt") as file:
            json.dump(answers[:1000], file)
    return 1 if differ or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
