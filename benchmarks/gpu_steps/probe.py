"""What is on this machine: the GPU, its driver, and every package, each imported in a process of its own."""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from gpu_steps.common import say
from gpu_steps.packages import ASSUMED, CARRIED

LIMIT_S = 40
FACTS = {
    "torch": "f'{m.__version__}, CUDA {m.version.cuda}, cuDNN {m.backends.cudnn.version()}, finds "
    "{[m.cuda.get_device_properties(i) for i in range(m.cuda.device_count())]}'",
    "cupy": "f'{m.__version__}, runtime {m.cuda.runtime.runtimeGetVersion()}, NVRTC {m.cuda.nvrtc.getVersion()}, finds "
    "{m.cuda.runtime.getDeviceCount() if m.cuda.is_available() else 0}'",
}


def imported(name: str) -> tuple[str, bool, str]:
    """Import a module elsewhere; return its name, whether that worked, and its version or the last words."""
    fact = FACTS.get(name, "getattr(m, '__version__', 'found')")
    code = f"import importlib; m = importlib.import_module({name!r}); print({fact})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return name, False, f"not imported within {LIMIT_S} s"
    words = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return name, done.returncode == 0, words[-1] if words else f"exit code {done.returncode}"


def main() -> None:
    say("machine", python=platform.python_version(), cores=os.cpu_count(), system=platform.platform())
    for program in ("nvidia-smi", "compute-sanitizer", "g++"):
        say(program, path=shutil.which(program) or "not found")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used,clocks.max.sm", "--format=csv"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        say("GPUs", said=done.stdout.strip().splitlines() or done.stderr.strip())
    with ThreadPoolExecutor(4) as pool:
        for name, ok, said in pool.map(imported, ASSUMED):
            say(f"import {name}", ok=ok, said=said)
        for name, ok, said in pool.map(imported, CARRIED.values()):
            say(f"import {name}", said=said if ok else "not here: from the kit")


if __name__ == "__main__":
    main()
