"""Each network as it is served: memory, speed, scores and bases against the golden ones, and graph against eager.

Dimensions: N rows of a batch, T time steps, C scores.
"""

import tempfile
from pathlib import Path

import edlib
import numpy as np
from golden import NetworkResult, chunks, kept_steps, load_network, longest_chunk
from shapes import write_shape

from gpu_steps.common import arguments, median_s, say
from gpu_steps.opened import kernels_of, open_card
from porestream.models.call.basecaller import Basecaller
from porestream.models.call.card import Card
from porestream.models.call.cuda_runner import CudaRunner
from porestream.models.files.bundle import ModelBundle, load_bundle
from porestream.server.start.devices import batch_decoder, network_passes

SHAPES = ("fast v4.3", "hac v4.3", "sup v5", "sup v4", "hac v6", "fast v3")
SMALL_SHAPES = ("tiny v4.3", "tiny v6")
SCORE_ROWS = 64
MOST_RMS = 0.05
"""Of half precision's scores against fp32's, which deviate by about 2."""
LEAST_AGREEMENT = 0.99


def agreement(ours: list[str], theirs: list[str]) -> float:
    """Return 1 - edits / bases."""
    edits = sum(int(edlib.align(one, other)["editDistance"]) for one, other in zip(ours, theirs, strict=True))
    return 1 - edits / max(1, sum(map(len, theirs)))


def check_scores(name: str, bundle: ModelBundle, cards: tuple[Card, Card], expected: NetworkResult, rows: int) -> None:
    """Compare the scores of a graph, of single launches, and of the golden result; then again with our kernels."""
    samples = longest_chunk(bundle.config)
    batch = chunks(samples)
    found = {}
    for kind, card, passes in (
        ("graph", cards[0], None),
        ("eager", cards[1], None),
        ("graph with our kernels", cards[0], network_passes(kernels_of(cards[0]), bundle.config)),
    ):
        if kind == "graph with our kernels" and passes is None:
            continue
        runner = CudaRunner(bundle, [samples], "auto", card, rows, passes=passes)
        scores_TNC = runner(batch, samples)[:, : len(batch)].copy()
        again_TNC = runner(batch, samples)[:, : len(batch)]
        rms = float(np.sqrt(np.mean((kept_steps(scores_TNC) - expected.scores_TNC.astype(np.float32)) ** 2)))
        repeats = np.array_equal(scores_TNC, again_TNC)
        say(f"{name}, {kind}", ok=rms < MOST_RMS and repeats, scores_rms=round(rms, 5), repeats=repeats)
        found[kind] = scores_TNC
    say(f"{name}, graph = eager", ok=np.array_equal(found["graph"], found["eager"]))


def check_served(name: str, bundle: ModelBundle, card: Card, expected: NetworkResult, rows: int | None) -> None:
    """Load a model as a server does; report memory and speed, and compare bases."""
    device = kernels_of(card)
    before = card.free_bytes()
    caller = Basecaller(bundle, "auto", card=card, rows=rows, decoder=batch_decoder(device, bundle.config),
                        passes=network_passes(device, bundle.config))  # fmt: skip
    runner, samples = caller.runner, caller.chunker.lengths[0]
    assert isinstance(runner, CudaRunner)
    taken = before - card.free_bytes()
    batch = chunks(samples)
    results = runner.call(batch, samples)
    bases = ["" if isinstance(one, ValueError) else one.bases_B.tobytes().decode() for one in results]
    agrees = agreement(bases, expected.bases)
    in_batch = runner.rows * samples
    network_s = median_s(lambda: runner.compute_only(samples))
    whole_s = median_s(lambda: runner.call(batch, samples))
    say(
        f"{name}, served",
        ok=agrees >= LEAST_AGREEMENT and taken <= runner.planned_bytes,
        rows=runner.rows,
        samples=samples,
        device_class=runner.device_class,
        planned_GiB=round(runner.planned_bytes / 2**30, 2),
        taken_GiB=round(taken / 2**30, 2),
        bases_agree=round(agrees, 5),
        network_M_samples_a_s=round(in_batch / network_s / 1e6, 2),
        with_decoder_M_samples_a_s=round(in_batch / whole_s / 1e6, 2),
    )


def main() -> None:
    options = arguments()
    card, eager = (open_card(options.device, graphs=graphs) for graphs in (True, False))
    rows = 16 if options.small else None
    with tempfile.TemporaryDirectory() as folder:
        for name in SMALL_SHAPES if options.small else SHAPES:
            try:
                bundle = load_bundle(write_shape(name, Path(folder) / name))
                expected = load_network(options.kit, name)
                check_served(name, bundle, card, expected, rows)
                check_scores(name, bundle, (card, eager), expected, rows or SCORE_ROWS)
            except Exception as error:  # noqa: BLE001  # the other networks are looked at all the same
                say(name, ok=False, said=f"{type(error).__name__}: {error}"[-2000:])


if __name__ == "__main__":
    main()
