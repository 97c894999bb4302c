"""The emulator under g++'s sanitizers: bad addresses and races are reported at their lines, and nothing else is."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from porestream.kernels.emulator import sanitize
from porestream.kernels.emulator.sanitize import FOUND, Kind, SanitizerMissingError, find_runtime, run_sanitized

SCRIPT = """
import numpy as np
from porestream.kernels.emulator import EmulatorError, RawModule

module = RawModule({code!r}, name="defects.cu", sanitize={kind!r})
for kernel in {kernels!r}:
    numbers, out = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    try:
        module.get_function(kernel)((2,), (64,), (numbers, out), 256)
        print(kernel, *out[:4])
    except EmulatorError as error:
        print(error)
"""

# A kernel's defect is at the line with its name in a comment.
DEFECTS = r"""
extern "C" __global__ void past_an_array(const int* in, int* out) {
    out[threadIdx.x] = in[threadIdx.x + 1];  // past_an_array
}
extern "C" __global__ void past_a_shared_array(const int* in, int* out) {
    __shared__ int first[64], second[64];
    first[threadIdx.x + 1] = second[threadIdx.x] = in[threadIdx.x];  // past_a_shared_array
    out[threadIdx.x] = first[threadIdx.x] + second[0];
}
extern "C" __global__ void past_dynamic_shared_memory(const int* in, int* out) {
    extern __shared__ int words[];
    words[threadIdx.x + 1] = in[threadIdx.x];  // past_dynamic_shared_memory
    out[threadIdx.x] = words[threadIdx.x];
}
extern "C" __global__ void past_a_local_array(const int* in, int* out) {
    int local[8];
    for (int i = 0; i < 8; ++i) local[i] = in[i];
    out[threadIdx.x] = local[threadIdx.x & 15];  // past_a_local_array
}
extern "C" __global__ void misaligned(const int* in, int* out) {
    if (threadIdx.x < 8) out[threadIdx.x] = ((const int4*)(in + 1))[threadIdx.x].y;  // misaligned
}
extern "C" __global__ void no_barrier(const int* in, int* out) {
    __shared__ int s[64];
    s[threadIdx.x] = in[threadIdx.x];  // no_barrier
    out[threadIdx.x] = s[63 - threadIdx.x];  // no_barrier
}
extern "C" __global__ void shuffle_for_a_barrier(const int* in, int* out) {  // it orders no memory, says CUDA
    __shared__ int s[64];
    s[threadIdx.x] = in[threadIdx.x];  // shuffle_for_a_barrier
    const int v = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
    out[threadIdx.x] = s[threadIdx.x ^ 1] + v;  // shuffle_for_a_barrier
}
extern "C" __global__ void read_beside_atomics(const int* in, int* out) {
    __shared__ int s;
    if (threadIdx.x == 0) s = 0;
    __syncthreads();
    atomicAdd(&s, 1);  // read_beside_atomics
    out[threadIdx.x] = s;  // read_beside_atomics
}
extern "C" __global__ void all_write_one(const int* in, int* out) {
    out[0] = threadIdx.x;  // all_write_one
}
"""

SOUND = r"""
extern "C" __global__ void block(const int* in, int* out) {
    __shared__ int s[64], total;
    extern __shared__ int dynamic[];
    const int t = threadIdx.x;
    s[t] = dynamic[63 - t] = in[t];
    if (t == 0) total = 0;
    __syncthreads();
    int v = s[63 - t] + dynamic[63 - t];
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    atomicAdd(&total, 1);
    __syncthreads();
    out[t] = v + total;
}
extern "C" __global__ void warps(const int* in, int* out) {
    __shared__ int s[64];
    const int t = threadIdx.x;
    for (int round = 0; round < 3; ++round) {
        s[t] = in[t] + round;
        __syncwarp();
        out[t] = s[t ^ 1];
        __syncwarp(0xffu << (t & 24));
    }
}
extern "C" __global__ void many_return(const int* in, int* out) {
    __shared__ int s[64];
    s[threadIdx.x] = in[threadIdx.x];
    if (threadIdx.x & 1) return;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x ^ 2];
}
extern "C" __global__ void deadlock(const int* in, int* out) {
    int local[40];
    for (int i = 0; i < 40; ++i) local[i] = in[i];
    if (threadIdx.x & 1) __shfl_sync(0xffffffffu, 0, 0);
    __syncthreads();
    out[0] = local[in[9]];
}
"""


@pytest.fixture(scope="module", params=["address", "thread"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return skip_without(request.param)


def skip_without(kind: Kind) -> Kind:
    try:
        find_runtime(kind)
    except SanitizerMissingError as error:
        pytest.skip(str(error))
    return kind


def run(kind: Kind, code: str, *kernels: str) -> subprocess.CompletedProcess[str]:
    return run_sanitized(skip_without(kind), SCRIPT.format(code=code, kind=kind, kernels=kernels))


def places(kernel: str) -> list[str]:
    return [f"defects.cu:{n}" for n, line in enumerate(DEFECTS.splitlines(), 1) if line.endswith(f"// {kernel}")]


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        ("past_an_array", "heap-buffer-overflow"),
        ("past_a_shared_array", "global-buffer-overflow"),
        ("past_dynamic_shared_memory", "use-after-poison"),
        ("past_a_local_array", "stack-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_bad_addresses_are_reported_at_their_line(kernel: str, what: str) -> None:
    result = run("address", DEFECTS, kernel)
    assert result.returncode == FOUND, result.stderr
    assert what in result.stderr
    assert places(kernel)[0] in result.stderr


def test_races_are_reported_at_their_lines() -> None:
    kernels = "no_barrier", "shuffle_for_a_barrier", "read_beside_atomics", "all_write_one"
    result = run("thread", DEFECTS, *kernels)
    assert result.returncode == FOUND, result.stderr
    reports = [
        report for report in result.stderr.split("WARNING: ")[1:] if report.startswith("ThreadSanitizer: data race")
    ]
    for kernel in kernels:
        of_kernel = [report for report in reports if f" {kernel} defects.cu" in report]
        assert of_kernel, kernel
        assert all(any(place in report for report in of_kernel) for place in places(kernel)), kernel
    assert re.search(r"Thread T\d+ 'CUDA thread \d+'", result.stderr)


def test_sound_kernels_are_left_alone(kind: Kind) -> None:
    result = run(kind, SOUND, "block", "warps", "deadlock", "many_return", "block")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    block, warps, deadlock, many_return, again = result.stdout.splitlines()
    assert block == again == "block 190 190 190 190"
    assert warps == "warps 3 2 5 4"
    assert deadlock.startswith("deadlock: deadlock: every live thread waits")
    assert many_return == "many_return 2 0 0 0"


def test_without_the_runtime_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gxx = tmp_path / "g++"
    gxx.write_text("#!/bin/sh\necho libasan.so\n")
    gxx.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SanitizerMissingError, match=r"no libasan\.so: apt-get install libgcc"):
        run_sanitized("address", "")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SanitizerMissingError, match="not on PATH"):
        run_sanitized("thread", "")


def test_where_addresses_stay_randomised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that does not like where it was put is started again."""
    skip_without("thread")
    tries = []

    def unlucky(command: tuple[str, ...], **kwargs: object) -> subprocess.CompletedProcess[str]:
        tries.append(command)
        stderr = "FATAL: ThreadSanitizer: unexpected memory mapping 0x1-0x2" if len(tries) < 3 else ""
        return subprocess.CompletedProcess(command, bool(stderr) * FOUND, "", stderr)

    monkeypatch.setattr(sanitize, "find_runtime", lambda kind: Path("/libtsan.so"))
    monkeypatch.setattr(sanitize, "_without_randomised_addresses", lambda: ())
    monkeypatch.setattr(subprocess, "run", unlucky)
    assert run_sanitized("thread", "").returncode == 0
    assert len(tries) == 3
