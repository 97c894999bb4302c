"""Print reads with a mean quality of at least Q as FASTQ: `pipeline_step.py HOST:PORT Q POD5... > good.fastq`."""

import asyncio
import sys
from pathlib import Path

from porestream.client import BasecallClient, Pod5Source, StreamOptions


async def step(server: str, least_q: float, paths: list[Path]) -> int:
    """Print the good reads; return how many reads and files yielded no bases."""
    source, without = Pod5Source(paths), 0
    client = BasecallClient(server, StreamOptions(min_mean_qscore=least_q))
    async for result in client.call(source):  # survives broken connections; each result comes once
        for part in result.parts if result.status.value == "called" else ():
            qualities = "".join(chr(33 + quality) for quality in part.qualities)
            print(f"@{part.read_id} qs:f:{part.mean_qscore:.1f}\n{part.sequence}\n+\n{qualities}")
        without += not result.parts
    return without + len(source.read_faults) + len(source.file_faults)


if __name__ == "__main__":
    sys.exit(min(1, asyncio.run(step(sys.argv[1], float(sys.argv[2]), [Path(name) for name in sys.argv[3:]]))))
