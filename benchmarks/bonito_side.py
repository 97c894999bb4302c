"""Run bonito's own network modules on a CPU. compare_bonito.py runs this with the Python of bonito's environment.

It imports bonito and copies nothing from it. It imports only `bonito.nn` and `bonito.crf.model`: the packages above
them would pull in bonito's command line and decoder, with ten dependencies that a network does not need.

Dimensions: N chunks, S samples, T time steps, C transition scores.
"""

import argparse
import copy
import importlib
import importlib.metadata
import importlib.util
import platform
import statistics
import sys
import time
import tomllib
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

QUIET = 0.93
"""Share of the threads' time that must have been spent computing for a pass to count."""


def bonito_model_class() -> Any:
    """Return bonito's `bonito.crf.model.Model`, imported without running the packages' own `__init__`."""
    spec = importlib.util.find_spec("bonito")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("bonito is not installed in this environment")
    folder = Path(spec.submodule_search_locations[0])
    for name, path in (("bonito", folder), ("bonito.crf", folder / "crf")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    return importlib.import_module("bonito.crf.model").Model


def load_model(directory: Path) -> Any:
    """Load bonito's model with a directory's weights: bonito's own `weights_1.tar`, or dorado's, matched by name.

    Dorado's `9.linear.bias` is `encoder.9.linear.bias`. This works only for v3, where dorado and bonito number the
    layers in the same way.
    """
    config = tomllib.loads((directory / "config.toml").read_text())
    model = bonito_model_class()(config)
    if (checkpoint := directory / "weights_1.tar").is_file():
        weights = torch.load(checkpoint, weights_only=True)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            modules = {file: torch.jit.load(file) for file in directory.glob("*.tensor")}  # type: ignore[no-untyped-call]
            weights = {
                f"encoder.{file.name.removesuffix('.tensor')}": next(iter(module.parameters())).detach()
                for file, module in modules.items()
            }
    model.load_state_dict(weights)  # strict: exactly bonito's parameters
    return model.eval()


def fuse(model: Any) -> Any:
    """Return the model as bonito uses it for calling, with batch norms fused into the convolutions before them."""
    return model.apply(importlib.import_module("bonito.nn").fuse_bn_)


def drop_blanks(scores_TNC: torch.Tensor, model: Any) -> torch.Tensor:
    """Drop the fixed score for staying, which bonito puts before every state's four scores."""
    T, N, _ = scores_TNC.shape
    states = model.seqdist.n_base**model.seqdist.state_len
    if scores_TNC.shape[2] == 4 * states:
        return scores_TNC
    return scores_TNC.reshape(T, N, states, 5)[..., 1:].reshape(T, N, 4 * states)


def measure(model: Any, chunks_N1S: torch.Tensor, size: int, threads: int, runs: int) -> tuple[float, int]:
    """Return the median samples per second of the passes that had their cores to themselves, and their number.

    Threads that wait for each other at every step become many times slower if something else takes one of their cores.
    Such a pass says nothing about bonito. It can be recognized by its processor time, which is well below threads x
    wall time.
    """
    parts = torch.split(chunks_N1S, size)
    model(parts[0])
    rates: list[float] = []
    for _ in range(4 * runs):
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        for part in parts:
            model(part)
        wall_s = time.perf_counter() - start_s
        if time.process_time() - start_cpu_s >= QUIET * threads * wall_s:
            rates.append(chunks_N1S.numel() / wall_s)
        if len(rates) == runs:
            break
    return (statistics.median(rates) if rates else float("nan")), len(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("chunks", type=Path, help=".npy file with chunks_NS, float32, normalised")
    parser.add_argument("results", type=Path, help=".npz file to write")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batches", required=True)
    parser.add_argument("--scored", type=int, required=True, help="number of chunks to write scores for")
    parser.add_argument("--runs", type=int, required=True)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    exact, model = fuse(copy.deepcopy(model).double()), fuse(model)
    chunks_N1S = torch.from_numpy(np.load(options.chunks))[:, None]
    batches = [int(size) for size in options.batches.split(",") if size]
    with torch.inference_mode():
        scores_TNC = drop_blanks(model(chunks_N1S[: options.scored]), model).contiguous().numpy()
        alone_TNC = torch.cat(
            [drop_blanks(model(chunk), model) for chunk in torch.split(chunks_N1S[: options.scored], 1)], 1
        )
        exact_TNC = drop_blanks(exact(chunks_N1S[: options.scored].double()), exact).numpy()
        speeds = [measure(model, chunks_N1S, size, options.threads, options.runs) for size in batches]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("ont-bonito", "ont-koi", "torch")]
    np.savez(
        options.results,
        scores_TNC=scores_TNC,
        alone_TNC=alone_TNC.numpy(),
        exact_TNC=exact_TNC,
        batches=np.array(batches),
        samples_per_s=np.array([speed for speed, _ in speeds]),
        passes=np.array([passes for _, passes in speeds]),
        versions=np.array(", ".join((*versions, f"Python {platform.python_version()}"))),
    )


if __name__ == "__main__":
    main()
