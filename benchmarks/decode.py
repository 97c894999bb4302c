"""Measure the CRF decoder's speed on one core, by number of states: `python benchmarks/decode.py [--scores FILE.npy]`.

Without a file of scores (T, N, C float32), scores are made up. They are peaky like a network's: one transition stands
out at each block of a random path, and the rest are lower and vary smoothly. How far the path stands out determines how
full the beam is, and therefore the speed. It is chosen to match a fast model's real scores, which had 30 hypotheses and
41 candidates above the cut per step: here 30 and 48 with 64 states, and 27 and 38 with 1,024.

Prints the median of five runs as Markdown, in thousand samples per core-second.
"""

import argparse
import math
import os
import statistics
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from porestream.models.call.decode import Decoder, DecodeSettings

RUNS = 5
STATE_LENS = {64: 3, 256: 4, 1024: 5}


def made_up_scores(T: int, N: int, state_len: int, seed: int = 1) -> npt.NDArray[np.float32]:
    """Make random peaky scores, (T, N, 4**(state_len + 1)) float32 within +-5; see the module's docstring."""
    rng = np.random.default_rng(seed)
    S = 4**state_len
    noise_NC = rng.standard_normal((N, 4 * S), np.float32)
    scores_TNC = np.empty((T, N, 4 * S), np.float32)
    for t in range(T):
        noise_NC = 0.8 * noise_NC + 0.6 * rng.standard_normal((N, 4 * S), np.float32)
        scores_TNC[t] = 1.8 * noise_NC - 1.0
    for row in range(N):
        state = int(rng.integers(S))
        for t in range(T):
            if rng.random() < 0.45:
                dropped, state = state // (S // 4), (4 * state) % S + int(rng.integers(4))
                scores_TNC[t, row, 4 * state + dropped] += 4.0
            scores_TNC[t, row, 4 * state : 4 * state + 4] += 0.8
    return np.clip(scores_TNC, -5, 5)


def measure(scores_TNC: npt.NDArray[np.float32], decoder: Decoder, stride: int) -> float:
    """Return thousand samples decoded per second of the thread's processor time: the median of RUNS runs."""
    T, N, _ = scores_TNC.shape
    decoder(scores_TNC, 0)
    speeds: list[float] = []
    for _ in range(RUNS):
        start_s = time.thread_time()
        for row in range(N):
            decoder(scores_TNC, row)
        speeds.append(T * N * stride / (time.thread_time() - start_s) / 1000)
    return statistics.median(speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the CRF decoder, thousand samples per core-second.")
    parser.add_argument("--scores", type=Path, help="a network's scores, (T, N, C) float32 .npy")
    parser.add_argument("--steps", type=int, default=2000, help="time steps of made-up scores (default 2000)")
    parser.add_argument("--rows", type=int, default=8, help="rows decoded per run (default 8)")
    parser.add_argument("--stride", type=int, default=6, help="samples per time step (default 6)")
    parser.add_argument("--beam-width", type=int, default=DecodeSettings().beam_width)
    arguments = parser.parse_args()

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    settings = DecodeSettings(beam_width=arguments.beam_width)
    if arguments.scores:
        scores_TNC = np.ascontiguousarray(np.load(arguments.scores, mmap_mode="r")[:, : arguments.rows], np.float32)
        state_len = round(math.log(scores_TNC.shape[2], 4)) - 1
        batches = {4**state_len: scores_TNC}
    else:
        batches = {S: made_up_scores(arguments.steps, arguments.rows, L) for S, L in STATE_LENS.items()}
    print("| states | k samples/core-s | scores |\n| --- | --- | --- |")
    for states, scores_TNC in batches.items():
        decoder = Decoder(round(math.log(states, 4)), settings)
        speed = measure(scores_TNC, decoder, arguments.stride)
        print(f"| {states:,} | {speed:,.0f} | {scores_TNC.shape} |")


if __name__ == "__main__":
    main()
