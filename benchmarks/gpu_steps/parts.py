"""Where a batch's time goes: convolutions, encoder, scores and decoder at several numbers of rows, then the longest
kernels.

Dimensions: N rows of a batch, M samples, T time steps, C channels or scores.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from golden import chunks, longest_chunk
from shapes import write_shape

from gpu_steps.common import RUNS, arguments, say
from gpu_steps.opened import kernels_of, open_card
from porestream.models.call.card import Card
from porestream.models.call.cuda_runner import use_passes
from porestream.models.call.memory import half_scores
from porestream.models.call.network import Network
from porestream.models.files.bundle import load_bundle
from porestream.server.start.devices import batch_decoder, network_passes

SHAPES = ("hac v4.3", "sup v5", "fast v4.3", "hac v6")
PROFILED = ("hac v4.3", "sup v5")
ROWS = (1024, 512, 128)
LONGEST = 15


def device_ms(card: Card, work: Callable[[], object]) -> float:
    """Return the median milliseconds of some work on the GPU, by its own clock."""
    times = []
    for _ in range(RUNS + 1):
        if card.device.type == "cpu":
            began_s = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - began_s))
            continue
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with card.in_order():
            began.record(card.stream)
            work()
            ended.record(card.stream)
        ended.synchronize()
        times.append(began.elapsed_time(ended))
    return float(sorted(times[1:])[RUNS // 2])


def measure(name: str, card: Card, rows: int, folder: Path, profiled: bool) -> None:
    """Time the parts of one network at one number of rows."""
    bundle = load_bundle(folder)
    samples = longest_chunk(bundle.config)
    device = kernels_of(card)
    decoder = batch_decoder(device, bundle.config)
    passes = network_passes(device, bundle.config)
    few_NM = torch.stack([torch.from_numpy(chunk_M) for chunk_M in chunks(samples, min(rows, 16))])
    with torch.inference_mode(), card.in_order():
        network = Network(bundle, card.precision("auto"), encoder_rows=rows).to(card.device)
        if passes is not None:
            use_passes(passes, network.encoder)
        batch_NM = few_NM.repeat(-(-rows // len(few_NM)), 1)[:rows].to(card.device)
        x_NCT = network.convolved(batch_NM)
        x_TNC = network.encoded(x_NCT)
        if decoder is not None and half_scores(card.precision("auto")):
            network.finish_scores = decoder.finish_scores
        dtype = torch.float16 if network.finish_scores else torch.float32
        steps = samples // bundle.config.stride
        scores_TNC = torch.empty(steps, rows, bundle.config.score_count, dtype=dtype, device=card.device)
        network.scores(x_TNC, scores_TNC)
        stages: dict[str, Callable[[], Any]] = {
            "convolutions": lambda: network.convolved(batch_NM),
            "encoder": lambda: network.encoded(x_NCT),
            "scores": lambda: network.scores(x_TNC, scores_TNC),
            "decoder": lambda: decoder and decoder(scores_TNC),
        }
        times = {f"{stage}_ms": round(device_ms(card, run), 2) for stage, run in stages.items()}
        whole_ms = sum(times.values())
        say(f"{name}, {rows} rows", samples=samples, **times, M_samples_a_s=round(rows * samples / whole_ms / 1e3, 1))
        if profiled:
            _profile(name, card, lambda: network(batch_NM, scores_TNC))


def _profile(name: str, card: Card, work: Callable[[], object]) -> None:
    on_gpu = card.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        if on_gpu:
            torch.cuda.synchronize()

    def taken_us(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    events = sorted(profile.key_averages(), key=taken_us, reverse=True)
    whole_us = sum(map(taken_us, events)) or 1.0
    for event in events[:LONGEST]:
        say(f"{name}, kernel", share=round(taken_us(event) / whole_us, 3), times=event.count, kernel=event.key[:160])


def main() -> None:
    options = arguments()
    card = open_card(options.device)
    with tempfile.TemporaryDirectory() as name:
        for shape in ("tiny v4.3", "tiny v6") if options.small else SHAPES:
            folder = write_shape(shape, Path(name) / shape)
            for rows in (16,) if options.small else ROWS:
                try:
                    measure(shape, card, rows, folder, options.small or (shape in PROFILED and rows == ROWS[0]))
                except Exception as error:  # noqa: BLE001  # e.g. out of memory: fewer rows may still fit
                    say(f"{shape}, {rows} rows", ok=False, said=f"{type(error).__name__}: {error}"[-2000:])


if __name__ == "__main__":
    main()
