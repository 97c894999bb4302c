"""The emulator: seeded defects that it has to find, kernels that it has to leave alone, and CUDA's arithmetic."""

import os
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from porestream.kernels.emulator import EmulatorError, RawModule, Schedule, scheduled
from porestream.kernels.emulator.emulator import _cache_in

i32, u32, f32 = np.int32, np.uint32, np.float32
FULL = u32(0xFFFFFFFF)
in_each_schedule = pytest.mark.parametrize("schedule", list(Schedule), ids=lambda schedule: schedule.name.lower())

# One source, as each compiles for half a second. A kernel's defect is at the line with its name in a comment.
DEFECTS = r"""
extern "C" __global__ void missing_barrier(int* out) {
    __shared__ int s[64];
    s[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void warps_race(int* out) {
    __shared__ int s;
    if (threadIdx.x % 32 == 0) s = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = s;
}
extern "C" __global__ void blocks_race(int* out, unsigned* counter) {
    out[atomicAdd(counter, 1)] = blockIdx.x;
}
extern "C" __global__ void unwritten_shared(int* out) {
    __shared__ int s[32];
    extern __shared__ int dynamic[];
    if (threadIdx.x) s[threadIdx.x] = dynamic[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
    out[32 + threadIdx.x] = dynamic[threadIdx.x];
}
extern "C" __global__ void barriers_in_branches(int* out) {
    if (threadIdx.x < 32)
        __syncthreads();  // barriers_in_branches
    else
        __syncthreads();  // barriers_in_branches
}
extern "C" __global__ void exited_lanes(int* out) {
    if (threadIdx.x >= 16) return;
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);  // exited_lanes
}
extern "C" __global__ void half_a_warp(int* out) {
    int v = threadIdx.x;
    if (v & 1) v = __shfl_down_sync(0xffffffffu, v, 1);  // half_a_warp
    __syncthreads();  // half_a_warp
    out[threadIdx.x] = v;
}
extern "C" __global__ void unlike_collectives(int* out) {
    int v = threadIdx.x;
    if (v < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);  // unlike_collectives
    else v = __any_sync(0xffffffffu, v);  // unlike_collectives
    out[threadIdx.x] = v;
}
extern "C" __global__ void unlike_masks(int* out) {
    __syncwarp(threadIdx.x < 16 ? 0xffffffffu : 0xffff0000u);  // unlike_masks
}
extern "C" __global__ void outside_mask(int* out) {
    if (threadIdx.x < 8)
        out[threadIdx.x] = __shfl_down_sync(0xffu, threadIdx.x, 1);  // outside_mask
}
extern "C" __global__ void not_in_own_mask(int* out) {
    if (threadIdx.x < 9) __syncwarp(0xffu);  // not_in_own_mask
}
extern "C" __global__ void absent_lanes(int* out) {
    out[threadIdx.x] = __ballot_sync(0xffffffffu, 1);  // absent_lanes
}
extern "C" __global__ void warp_at_barrier(int* out) {
    if (threadIdx.x >= 32) __syncwarp(threadIdx.x == 32 ? 0xffffffffu : 1u << (threadIdx.x & 31));  // warp_at_barrier
    __syncthreads();  // warp_at_barrier
}
extern "C" __global__ void not_fp16(int* out) {
    out[0] = emu_max_f16x2_bits(0x00017bffu, threadIdx.x == 3 ? 0x7c000000u : 0u);  // not_fp16
}
__device__ __noinline__ int inner(int* out) {
    volatile char bytes[40000];
    for (int i = 0; i < 40000; ++i) bytes[i] = out[0];
    return bytes[out[0]];
}
extern "C" __global__ void too_many_locals(int* out) {
    if (threadIdx.x != 63) return;
    volatile char bytes[40000];
    for (int i = 0; i < 40000; ++i) bytes[i] = out[0];
    out[0] = inner(out) + bytes[out[0]];
}
"""

SOUND = r"""
extern "C" __global__ void sum(const int* in, int* out) {
    __shared__ int s[256];
    const int t = threadIdx.x;
    s[t] = in[blockIdx.x * 256 + t];
    __syncthreads();
    for (int d = 128; d; d >>= 1) {
        if (t < d) s[t] += s[t + d];
        __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = s[0];
}
extern "C" __global__ void sub_warps(int* out) {
    const int lane = threadIdx.x & 31;
    const unsigned mask = 0xffu << (lane & ~7);
    int v = lane;
    for (int round = 0; round <= lane >> 3; ++round) v += __shfl_xor_sync(mask, v, 1);
    v = __reduce_max_sync(0xffffffffu, v);
    out[threadIdx.x] = v + __popc(__ballot_sync(0xffffffffu, lane & 1));
}
extern "C" __global__ void far_ahead(int* out) {  // two lanes meet a thousand times while the others meet once
    const int lane = threadIdx.x;
    int v = lane;
    if (lane < 2)
        for (int i = 0; i < 1000; ++i) v = __shfl_xor_sync(3u, v, 1);
    else
        v = __shfl_sync(0xfffffffcu, v, 2) * 100 + lane;
    out[lane] = v;
}
extern "C" __global__ void alone(int* out) {  // the lane that meets the others last goes on while they have yet to
    int v = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
    for (int i = 0; i < 200; ++i) v = __shfl_sync(1u << (threadIdx.x & 31), v, threadIdx.x & 31) + 1;
    out[threadIdx.x] = v;
}
extern "C" __global__ void counts(int* out) {
    extern __shared__ __align__(16) int d[];
    const int t = threadIdx.x;
    d[t] = t ? __syncthreads_count(t & 1) : __syncthreads_count(1);
    const int all = __syncthreads_and(t < 96), some = __syncthreads_or(t == 95), none = __syncthreads_or(t == 96);
    out[t] = d[95 - t] + 1000 * all + 2000 * some + 4000 * none + 8000 * __syncthreads_and(t);
}
extern "C" __global__ void some_return(int* out) {  // a barrier does not wait for threads that have returned
    if (threadIdx.x & 1) return;
    __shared__ int s[64];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = s[62 - threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(64,
    2) where(unsigned* out) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = thread + 1000 * block;
}
extern "C" __launch_bounds__(32 * (1 + 1)) __global__ void null_pointer(const int* in, int* out) {
    out[0] = in == nullptr;
}
template <class T> __device__ T twice(T x) {
    __shared__ T s[64];
    s[threadIdx.x] = x;
    __syncthreads();
    return s[threadIdx.x ^ 1] + x;
}
extern "C" __global__ void shared_in_templates(int* out) {
    out[threadIdx.x] = twice<int>(threadIdx.x) + twice<float>(0.5f);
}
extern "C" __global__ void two_names(int* out) {
    extern __shared__ int words[];
    extern __shared__ unsigned char bytes[];
    words[threadIdx.x] = 0x01010101 * threadIdx.x;
    bytes[threadIdx.x * 4] = 99;
    out[threadIdx.x] = words[threadIdx.x];
}
struct Pair {
    int first;
    float second;
};
extern "C" __global__ void values(
    Pair pair, bool flag, unsigned char byte, long long wide, double number, double* out) {
    out[0] = pair.first;
    out[1] = pair.second;
    out[2] = flag;
    out[3] = byte;
    out[4] = wide;
    out[5] = number;
}
extern "C" __global__ void until(const volatile int* flag, int* out) {
    while (!*flag) {}
    out[0] = 1;
}
extern "C" __global__ void fails_in(int thread) {
    if (threadIdx.x == thread) __syncwarp(0);
}
// extern "C" __global__ void commented_out(int* out) {}
"""


@pytest.fixture(scope="module")
def defects() -> RawModule:
    return RawModule(DEFECTS, name="defects.cu")


@pytest.fixture(scope="module")
def sound() -> RawModule:
    return RawModule(SOUND, name="sound.cu")


def run(module: RawModule, kernel: str, threads: int = 64, blocks: int = 1, shared_mem: int = 0) -> npt.NDArray[i32]:
    """What a kernel with one argument puts out, from zeros on."""
    out = np.zeros(blocks * threads, i32)
    module.get_function(kernel)((blocks,), (threads,), (out,), shared_mem)
    return out


# ---- Defects


def test_a_missing_barrier_shows_as_a_result_of_the_schedule(defects: RawModule) -> None:
    results = []
    for schedule in Schedule:
        with scheduled(schedule, seed=3):
            results.append(run(defects, "missing_barrier"))
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_a_race_of_warps_shows_as_a_result_of_the_schedule(defects: RawModule) -> None:
    with scheduled(Schedule.FORWARD):
        assert set(run(defects, "warps_race")) == {32}
    with scheduled(Schedule.REVERSE):
        assert set(run(defects, "warps_race")) == {0}


def test_blocks_run_in_the_order_of_the_schedule(defects: RawModule) -> None:
    def order(schedule: Schedule, seed: int = 1) -> list[int]:
        out = np.zeros(20, i32)
        with scheduled(schedule, seed):
            defects.get_function("blocks_race")((20,), (1,), (out, np.zeros(1, u32)))
        return out.tolist()

    assert order(Schedule.FORWARD) == list(range(20))
    assert order(Schedule.REVERSE) == list(range(20))[::-1]
    assert sorted(order(Schedule.RANDOM)) == list(range(20))
    assert order(Schedule.RANDOM, 5) == order(Schedule.RANDOM, 5)
    assert len({tuple(order(Schedule.RANDOM, seed)) for seed in range(10)}) == 10


@in_each_schedule
def test_shared_memory_that_nothing_wrote_is_poison_in_each_block(defects: RawModule, schedule: Schedule) -> None:
    for _ in range(2):
        out = np.zeros(64, i32)
        with scheduled(schedule):
            defects.get_function("unwritten_shared")((3,), (32,), (out,), 128)
        assert out.view(u32)[0] == out.view(u32)[32] == 0xA5A5A5A5
        assert set(out[1:32]) == set(out[33:]) == {1}


@pytest.mark.parametrize(
    ("kernel", "threads", "message"),
    [
        ("barriers_in_branches", 64, "divergent __syncthreads"),
        ("exited_lanes", 32, "deadlock: live threads wait for a thread that has exited|names a lane that has exited"),
        ("half_a_warp", 32, "deadlock: every live thread waits at"),
        ("unlike_collectives", 32, "deadlock: live threads wait for|deadlock: every live thread waits at"),
        ("unlike_masks", 32, "deadlock|names a lane that has exited"),
        ("outside_mask", 32, "shuffle reads a lane outside the mask"),
        ("not_in_own_mask", 32, "lane is not in its own mask|names a lane that has exited"),
        ("absent_lanes", 48, "mask names a lane that has exited or does not exist"),
        ("warp_at_barrier", 64, "deadlock: every live thread waits at"),
        ("not_fp16", 32, "a half over 0x7BFF"),
    ],
)
@in_each_schedule
def test_defects_are_errors(defects: RawModule, kernel: str, threads: int, message: str, schedule: Schedule) -> None:
    lines = [number for number, line in enumerate(DEFECTS.splitlines(), 1) if line.endswith(f"// {kernel}")]
    with scheduled(schedule), pytest.raises(EmulatorError, match=message) as raised:
        run(defects, kernel, threads)
    text = str(raised.value)
    assert text.startswith(f"{kernel}: ")
    assert any(f"defects.cu:{line}" in text for line in lines)
    assert "block 0,0,0, thread " in text
    assert set(run(defects, "warps_race")) <= {0, 32}  # nothing of it is left in the next launch


def test_a_deadlock_says_how_many_threads_wait_where(defects: RawModule) -> None:
    shuffle, barrier = (n for n, line in enumerate(DEFECTS.splitlines(), 1) if line.endswith("// half_a_warp"))
    with pytest.raises(EmulatorError) as raised:
        run(defects, "half_a_warp", 32)
    assert f"16 waiting at defects.cu:{barrier}" in str(raised.value)
    assert f"16 waiting at defects.cu:{shuffle}" in str(raised.value)


def test_the_thread_that_fails_is_named(defects: RawModule) -> None:
    with pytest.raises(EmulatorError, match=r"block 0,0,0, thread 3,0,0\)"):
        run(defects, "not_fp16", 32)


def test_an_overflow_of_the_stack_is_an_error(defects: RawModule) -> None:
    with pytest.raises(EmulatorError, match="local variables overflow"):
        run(defects, "too_many_locals")


def test_locals_that_no_stack_holds_do_not_compile() -> None:
    code = 'extern "C" __global__ void k(int* out) { volatile int a[20000]; a[*out] = 1; *out = a[*out / 2]; }'
    with pytest.raises(EmulatorError, match=r"local\.cu:1.*frame size of 80\d\d\d bytes"):
        RawModule(code, name="local.cu")


# ---- Sound kernels


@in_each_schedule
def test_sound_kernels_give_the_same_in_each_schedule(sound: RawModule, schedule: Schedule) -> None:
    numbers = np.arange(3 * 256, dtype=i32)
    sums = np.zeros(3, i32)
    with scheduled(schedule, seed=11):
        sound.get_function("sum")((3,), (256,), (numbers, sums))
        assert sums.tolist() == numbers.reshape(3, 256).sum(axis=1).tolist()
        assert set(run(sound, "sub_warps")) == {(31 + 30) * 8 + 16}
        assert run(sound, "counts", 96, shared_mem=4 * 96).tolist() == (np.full(96, 49) + 1000 + 2000).tolist()
        assert run(sound, "some_return")[::2].tolist() == list(range(62, -1, -2))
        assert run(sound, "shared_in_templates").tolist() == [2 * i + 1 + (1 - 2 * (i % 2)) for i in range(64)]
        assert run(sound, "two_names", shared_mem=256).tolist() == [0x01010100 * i + 99 for i in range(64)]
        assert run(sound, "alone").tolist() == [(i ^ 1) + 200 for i in range(64)]


@pytest.mark.parametrize("seed", range(20))
def test_lanes_that_run_ahead_take_no_one_elses_results(sound: RawModule, seed: int) -> None:
    with scheduled(Schedule.RANDOM, seed):
        assert run(sound, "far_ahead", 32).tolist() == [0, 1, *(200 + lane for lane in range(2, 32))]


@in_each_schedule
def test_blocks_and_threads_know_where_they_are(sound: RawModule, schedule: Schedule) -> None:
    out = np.zeros(2 * 3 * 5 * 24, u32)
    with scheduled(schedule):
        sound.get_function("where")((2, 3, 5), (4, 3, 2), (out,))
    assert out.tolist() == [thread + 1000 * block for block in range(30) for thread in range(24)]


def test_a_block_of_1024_threads(sound: RawModule) -> None:
    assert run(sound, "alone", 1024).tolist() == [(i ^ 1) + 200 for i in range(1024)]


# Where lane `lane` reads, after the CUDA programming guide; a lane that would read outside its segment keeps its own.
SOURCES: dict[str, Callable[[int, int, int], int]] = {
    "shfl": lambda lane, by, width: lane // width * width + by % width,
    "shfl_up": lambda lane, by, width: lane - by if lane % width >= by else lane,
    "shfl_down": lambda lane, by, width: lane + by if lane % width + by < width else lane,
    "shfl_xor": lambda lane, by, width: lane ^ by if (lane ^ by) // width <= lane // width else lane,
}


@pytest.fixture(scope="module")
def shuffles() -> RawModule:
    return RawModule(
        "\n".join(
            f'extern "C" __global__ void {name}_{short}(const {kind}* in, {kind}* out, int by, int width) '
            f"{{ out[threadIdx.x] = __{name}_sync(0xffffffffu, in[threadIdx.x], by, width); }}"
            for name in SOURCES
            for short, kind in (("i", "int"), ("u", "unsigned long long"), ("f", "float"), ("d", "double"))
        )
    )


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("short", "dtype"), [("i", i32), ("u", np.uint64), ("f", f32), ("d", np.float64)])
@in_each_schedule
def test_shuffles(shuffles: RawModule, name: str, short: str, dtype: Any, schedule: Schedule) -> None:
    values = (np.arange(32) * 1e17 if dtype == np.uint64 else np.arange(32) - 16).astype(dtype)
    out = np.zeros(32, dtype)
    kernel = shuffles.get_function(f"{name}_{short}")
    with scheduled(schedule):
        for width in (2, 4, 8, 16, 32):
            for by in (0, 1, 3, 16, 31):
                kernel((1,), (32,), (values, out, i32(by), i32(width)))
                assert out.tolist() == [values[SOURCES[name](lane, by, width)] for lane in range(32)], (by, width)


def test_launches_let_other_threads_run(sound: RawModule) -> None:
    """The kernel ends only when Python code has set the flag that it looks at."""
    flag, out = np.zeros(1, i32), np.zeros(1, i32)
    launch = threading.Thread(target=sound.get_function("until"), args=((1,), (1,), (flag, out)))
    launch.start()
    flag[0] = 1
    launch.join()
    assert out[0] == 1


def test_launches_of_many_threads_do_not_mix(sound: RawModule, shuffles: RawModule) -> None:
    def work(index: int) -> None:
        numbers, sums = np.arange(256, dtype=i32) * index, np.zeros(1, i32)
        values, out = np.arange(32, dtype=i32) + index, np.zeros(32, i32)
        for _ in range(20):
            sound.get_function("sum")((1,), (256,), (numbers, sums))
            assert sums[0] == numbers.sum()
            shuffles.get_function("shfl_xor_i")((1,), (32,), (values, out, i32(1), i32(32)))
            assert out.tolist() == [values[lane ^ 1] for lane in range(32)]
            with pytest.raises(EmulatorError, match=rf"thread {index},0,0\)$"):
                sound.get_function("fails_in")((1,), (64,), (i32(index),))
            with scheduled(Schedule(index % 3), seed=index):
                assert set(run(sound, "sub_warps")) == {(31 + 30) * 8 + 16}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))


def test_schedules_end_in_any_order(defects: RawModule) -> None:
    reverse, random = scheduled(Schedule.REVERSE), scheduled(Schedule.RANDOM)
    reverse.__enter__()
    random.__enter__()
    reverse.__exit__(None, None, None)
    random.__exit__(None, None, None)
    assert set(run(defects, "warps_race")) == {32}  # forward again


# ---- Launches and arguments


def launch(module: RawModule, kernel: str, *args: Any, grid: Sequence[int] = (1,), block: Sequence[int] = (1,)) -> None:
    module.get_function(kernel)(grid, block, args)


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((1,), (1025,)),
        ((1,), (33, 32)),
        ((1,), (1, 1, 65)),
        ((1,), (0,)),
        ((0,), (32,)),
        ((1, 65536), (32,)),
        ((1, 1, 65536), (32,)),
        ((2**31,), (32,)),
        ((), (32,)),
        ((1, 1, 1, 1), (32,)),
        ((1,), (-1,)),
    ],
)
def test_launches_that_no_card_accepts(sound: RawModule, grid: tuple[int, ...], block: tuple[int, ...]) -> None:
    with pytest.raises(EmulatorError, match=r"^where: (invalid launch configuration|grid|block)"):
        launch(sound, "where", np.zeros(4096, u32), grid=grid, block=block)


def test_more_than_48_kib_of_shared_memory_has_to_be_asked_for(sound: RawModule) -> None:
    kernel = RawModule(
        'extern "C" __global__ void big(int* o) { extern __shared__ int d[]; d[1024] = *o; *o = d[1024]; }'
    )
    big, out = kernel.get_function("big"), np.zeros(1, i32)
    big((1,), (32,), (out,), 48 << 10)
    with pytest.raises(EmulatorError, match=r"49153 bytes of dynamic.*max_dynamic_shared_size_bytes"):
        big((1,), (32,), (out,), (48 << 10) + 1)
    big.max_dynamic_shared_size_bytes = 300 << 10
    kernel.get_function("big")((1,), (32,), (out,), shared_mem=227 << 10)
    with pytest.raises(EmulatorError, match="big: shared memory over 227 KiB"):
        big((1,), (32,), (out,), (227 << 10) + 1)


@pytest.mark.parametrize(
    ("kernel", "args", "message"),
    [
        ("sum", (np.zeros(256, i32),), "takes 2 arguments, not 1"),
        ("sum", (np.zeros(256, i32), 7), "argument 1: a pointer of 8 bytes, not int: pass a numpy array"),
        ("sum", (np.zeros(256, i32), None), "argument 1.*not NoneType"),
        ("sum", ([1, 2], np.zeros(1, i32)), "argument 0: a pointer to const of 8 bytes, not list"),
        ("sum", (np.zeros(512, i32)[::2], np.zeros(1, i32)), r"argument 0.*strides \(8,\).*ascontiguousarray"),
        ("sum", (np.zeros(256, i32), np.broadcast_to(i32(0), (1,))), "argument 1.*read-only"),
        ("sum", (np.zeros(256, i32), i32(0)), "argument 1: a pointer"),
        ("fails_in", (3,), "argument 0: an integer of 4 bytes, not int: pass a numpy"),
        ("fails_in", (True,), "not bool"),
        ("fails_in", (3.0,), "not float"),
        ("fails_in", (np.int64(3),), "argument 0: an integer of 4 bytes, not int64"),
        ("fails_in", (f32(3),), "an integer of 4 bytes, not float32"),
        ("fails_in", (np.zeros(1, i32),), "an integer of 4 bytes, not ndarray of int32"),
    ],
)
def test_arguments_of_the_wrong_type(sound: RawModule, kernel: str, args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{kernel}.*{message}"):
        launch(sound, kernel, *args)


def test_sizes_are_integers(sound: RawModule) -> None:
    with pytest.raises(TypeError):
        launch(sound, "fails_in", i32(-1), block=(1.5,))  # type: ignore[arg-type]
    launch(sound, "fails_in", i32(-1), block=(np.int64(2),))  # type: ignore[arg-type]


def test_arguments_by_value(sound: RawModule) -> None:
    pair = np.zeros(1, [("first", i32), ("second", f32)])
    pair[0] = (-7, 0.25)
    out = np.zeros(6)
    args = pair[0], np.bool_(True), np.uint8(200), np.int64(-(2**40)), np.float64(1e300), out
    launch(sound, "values", *args)
    assert out.tolist() == [-7, 0.25, 1, 200, -(2**40), 1e300]


def test_null_pointers_and_read_only_arrays_to_const(sound: RawModule) -> None:
    out = np.zeros(1, i32)
    launch(sound, "null_pointer", np.uintp(0), out)
    assert out[0] == 1
    launch(sound, "null_pointer", np.broadcast_to(i32(0), (1,)), out)
    assert out[0] == 0


def test_a_kernel_that_is_not_there(sound: RawModule) -> None:
    with pytest.raises(EmulatorError, match=r"sound\.cu has no kernel 'commented_out'; it has sum, sub_warps"):
        sound.get_function("commented_out")


# ---- Compilation

ADD = 'extern "C" __global__ void add(int* out) {\n    *out += BY;\n}'


def added(module: RawModule) -> int:
    out = np.zeros(1, i32)
    launch(module, "add", out)
    return int(out[0])


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The compiler's command lines from now on."""
    commands = []
    real = subprocess.run

    def recorded(command: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        if "-shared" in command:
            commands.append(command)
        return real(command, *args, **kwargs)

    monkeypatch.setattr(subprocess, "run", recorded)
    return commands


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "porestream" / "emulator"


def test_a_compile_error_names_the_file_and_line() -> None:
    with pytest.raises(
        EmulatorError, match=r"add\.cu does not compile:(.|\n)*add\.cu:2:.*error: .BY. was not declared"
    ):
        RawModule(ADD, name="add.cu")


def test_a_name_with_quotes_and_lines_after_dynamic_shared_memory() -> None:
    code = 'extern "C" __global__ void k() {\n    extern __shared__\n        int d[\n];\n    d[0] = wrong;\n}'
    with pytest.raises(EmulatorError, match=r":5:.*error: .wrong. was not declared"):
        RawModule(code, name='a "b" \\ c.cu')


def test_only_macros_and_folders_go_to_gxx(cache: Path, compilations: list[Sequence[str]], tmp_path: Path) -> None:
    (tmp_path / "by.cuh").write_text("#define BY ONE + TWO + THREE\n")
    options = ["--fmad=false", "-std=c++11", "--gpu-architecture=sm_90", "-use_fast_math", "-DONE=1", "-D", "TWO=2"]
    options += ["--define-macro=THREE=3", f"-I{tmp_path}"]
    assert added(RawModule('#include "by.cuh"\n' + ADD, options)) == 6
    [command] = compilations
    assert not {"--fmad=false", "-std=c++11", "--gpu-architecture=sm_90", "-use_fast_math"} & set(command)
    with pytest.raises(EmulatorError, match="option -I needs a value"):
        RawModule(ADD, ["-I"])


def test_what_is_compiled_is_kept(cache: Path, compilations: list[Sequence[str]]) -> None:
    for _ in range(3):
        assert added(RawModule(ADD, ["-DBY=5"])) == 5
    assert len(compilations) == 1
    assert added(RawModule(ADD, ["-DBY=6"])) == 6
    assert len(compilations) == 2
    assert len(list(cache.iterdir())) == 2  # and nothing else


def test_a_changed_header_is_compiled_again(cache: Path, compilations: list[Sequence[str]], tmp_path: Path) -> None:
    for by in (7, 8):
        (tmp_path / "by.cuh").write_text(f"#define BY {by}\n")
        assert added(RawModule('#include "by.cuh"\n' + ADD, ["-I", str(tmp_path)])) == by
    assert len(compilations) == 2


def test_many_threads_compile_the_same(cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        modules = list(pool.map(lambda _: RawModule(ADD, ["-DBY=9"]), range(4)))
    assert [added(module) for module in modules] == [9] * 4
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilations: list[Sequence[str]]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert added(RawModule(ADD, ["-DBY=10"])) == 10
    assert len(compilations) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_cache_that_others_can_write_to_is_not_trusted(
    cache: Path, tmp_path: Path, compilations: list[Sequence[str]]
) -> None:
    """What is there may be anybody's, and would be run: it is made again, where only this user can put it."""
    cache.parent.mkdir(mode=0o777)
    cache.parent.chmod(0o777)
    assert added(RawModule(ADD, ["-DBY=11"])) == 11
    own = cache.parent / f"user-{os.geteuid()}" / "emulator"
    assert [path.suffix for path in own.iterdir()] == [".so"]
    assert not cache.exists()
    assert added(RawModule(ADD, ["-DBY=11"])) == 11
    assert len(compilations) == 1
    own.chmod(0o777)
    _cache_in.cache_clear()
    with pytest.raises(ValueError, match=rf"{own} is accessible to other users \(mode 0777\).* XDG_CACHE_HOME"):
        RawModule(ADD, ["-DBY=11"])


def test_a_cache_whose_name_others_can_change(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilations: list[Sequence[str]]
) -> None:
    """The way to it is an open folder then, which g++ does not have."""
    monkeypatch.setattr("porestream.models.private_folder._others_may_rename_in", lambda folder: folder == tmp_path)
    assert added(RawModule(ADD, ["-DBY=12"])) == 12
    assert added(RawModule(ADD, ["-DBY=12"])) == 12
    assert len(compilations) == 1
    assert len(list(cache.iterdir())) == 1


def test_without_gxx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match=r"g\+\+ to compile kernels, but it is not on PATH: apt-get install g\+\+"):
        RawModule(ADD, ["-DBY=1"])


def test_a_sanitizer_that_is_not_in_the_process() -> None:
    assert "asan" not in os.environ.get("LD_PRELOAD", "")
    with pytest.raises(EmulatorError, match="use run_sanitized"):
        RawModule(ADD, ["-DBY=1"], sanitize="address")
    with pytest.raises(ValueError, match="unknown sanitizer 'memory'; use one of address, thread"):
        RawModule(ADD, ["-DBY=1"], sanitize="memory")


# ---- Intrinsics against NumPy

Words = npt.NDArray[u32]


def in_halves(dtype: Any, function: Callable[..., Any]) -> Callable[..., Words]:
    """A function of 16-bit numbers as one of words with two of them."""

    def of_words(*words: Words) -> Words:
        return np.asarray(function(*(word.view(dtype) for word in words))).astype(dtype).view(u32)

    return of_words


def as_signed(function: Callable[..., Any]) -> Callable[..., Words]:
    return lambda *words: np.asarray(function(*(word.view(i32) for word in words))).astype(i32).view(u32)


def permuted(a: Words, b: Words, selector: Words, signs: bool) -> Words:
    """PTX, `prmt.b32`: nibble i of the selector says which byte goes to place i, and whether only its sign does."""
    pool = np.stack([a, b], axis=1).view(np.uint8)
    nibbles = selector[:, None] >> u32(4) * np.arange(4, dtype=u32) & u32(15)
    picked = np.take_along_axis(pool, (nibbles & u32(7)).astype(np.intp), axis=1)
    sign = np.where(picked & 0x80, 0xFF, 0).astype(np.uint8)
    return np.where(nibbles & u32(8), sign, picked).view(u32)[:, 0] if signs else picked.view(u32)[:, 0]


def shifted(low: Words, high: Words, by: Words, left: bool) -> Words:
    both, by = high.astype(np.uint64) << 32 | low, by & 31
    return ((both << by >> np.uint64(32)) if left else (both >> by)).astype(u32)


def first_set(x: Words) -> Words:
    return np.array([(int(v) & -int(v)).bit_length() for v in x], u32)


u16, s16 = np.uint16, np.int16
INTRINSICS: dict[str, Callable[..., Words]] = {
    "__popc(a)": np.bitwise_count,
    "__clz(a)": lambda a: np.array([32 - int(v).bit_length() for v in a], u32),
    "__ffs(a)": first_set,
    "__brev(a)": lambda a: np.array([int(f"{v:032b}"[::-1], 2) for v in a], u32),
    "__popcll(wide(a, b))": lambda a, b: np.bitwise_count(a) + np.bitwise_count(b),
    "__clzll(wide(a, b))": lambda a, b: np.array(
        [64 - (int(x) << 32 | int(y)).bit_length() for x, y in zip(a, b, strict=True)]
    ),
    "__ffsll(wide(a, b))": lambda a, b: np.where(b, first_set(b), np.where(a, first_set(a) + 32, 0)),
    "__umulhi(a, b)": lambda a, b: a.astype(np.uint64) * b >> np.uint64(32),
    "__mulhi(a, b)": as_signed(lambda a, b: a.astype(np.int64) * b >> 32),
    "__byte_perm(a, b, c)": lambda a, b, c: permuted(a, b, c, signs=False),
    "emu_prmt(a, b, c)": lambda a, b, c: permuted(a, b, c, signs=True),
    "__funnelshift_l(a, b, c)": lambda a, b, c: shifted(a, b, c, left=True),
    "__funnelshift_r(a, b, c)": lambda a, b, c: shifted(a, b, c, left=False),
    "__vadd2(a, b)": in_halves(u16, np.add),
    "__vsub2(a, b)": in_halves(u16, np.subtract),
    "__vmaxs2(a, b)": in_halves(s16, np.maximum),
    "__vmaxu2(a, b)": in_halves(u16, np.maximum),
    "__vmins2(a, b)": in_halves(s16, np.minimum),
    "__vminu2(a, b)": in_halves(u16, np.minimum),
    "__vcmpgtu2(a, b)": in_halves(u16, lambda a, b: np.where(a > b, 0xFFFF, 0)),
    "__viaddmax_s32(a, b, c)": as_signed(lambda a, b, c: np.maximum(a + b, c)),
    "__viaddmax_u32(a, b, c)": lambda a, b, c: np.maximum(a + b, c),
    "__vimax3_s32(a, b, c)": as_signed(lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "__vimax3_u32(a, b, c)": lambda a, b, c: np.maximum(np.maximum(a, b), c),
    "__viaddmax_s16x2(a, b, c)": in_halves(s16, lambda a, b, c: np.maximum(a + b, c)),
    "__viaddmax_u16x2(a, b, c)": in_halves(u16, lambda a, b, c: np.maximum(a + b, c)),
    "__vimax3_s16x2(a, b, c)": in_halves(s16, lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "__vimax3_u16x2(a, b, c)": in_halves(u16, lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "emu_max_f16x2_bits(a & 0x7bff7bff, b & 0x7bff7bff)": lambda a, b: in_halves(np.float16, np.maximum)(
        a & u32(0x7BFF7BFF), b & u32(0x7BFF7BFF)
    ),
    "__float_as_uint(emu_number_of_f16(a & 0xfbff))": lambda a: (
        (a & u32(0xFBFF)).astype(u16).view(np.float16).astype(f32).view(u32)
    ),
    "min((int)a, (int)b)": as_signed(np.minimum),
    "max(a, (int)b)": np.maximum,  # the usual arithmetic conversions: unsigned
    "min(a, b)": np.minimum,
    "__float_as_uint(__uint_as_float(a))": lambda a: a,
    "__float_as_int(__int_as_float((int)a))": lambda a: a,
    "__ldg(&x[i]) ^ __ldcs(&y[i])": lambda a, b: a ^ b,
}
FLOATS: dict[str, Callable[..., Any]] = {
    "__fadd_rn(a, b)": np.add,
    "__fsub_rn(a, b)": np.subtract,
    "__fmul_rn(a, b)": np.multiply,
    "__fdiv_rn(a, b)": np.divide,
    "__frcp_rn(a)": lambda a: f32(1) / a,
    "__fsqrt_rn(fabsf(a))": lambda a: np.sqrt(np.abs(a)),
    "a * b + c": lambda a, b, c: a * b + c,  # two roundings: nothing is contracted
    "__fmaf_rn(a, b, 0.0f)": lambda a, b: a * b + f32(0),
    "max(a, b)": np.fmax,
    "min(a, b)": np.fmin,
    "fmaxf(a, b)": np.fmax,
    "floorf(a)": np.floor,
    "rintf(a)": np.rint,
    "isfinite(a) + 2 * isnan(b)": lambda a, b: np.isfinite(a) + f32(2) * np.isnan(b),
}


def elementwise(expressions: dict[str, Callable[..., Any]], word: str) -> RawModule:
    """A kernel of each expression of words a, b and c."""
    return RawModule(
        "__device__ long long wide(unsigned high, unsigned low) { return (long long)high << 32 | low; }\n"
        + "\n".join(
            f'extern "C" __global__ void k{number}('
            f"const {word}* x, const {word}* y, const {word}* z, {word}* out, int n) {{"
            f" const int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return;"
            f" [[maybe_unused]] const {word} a = x[i], b = y[i], c = z[i]; __stcs(out + i, {expression}); }}"
            for number, expression in enumerate(expressions)
        )
    )


def apply(module: RawModule, number: int, arrays: npt.NDArray[Any]) -> npt.NDArray[Any]:
    out = np.zeros_like(arrays[0])
    count = len(out)
    module.get_function(f"k{number}")((-(-count // 32),), (32,), (*arrays, out, i32(count)))
    return out


@pytest.fixture(scope="module")
def integer_module() -> RawModule:
    return elementwise(INTRINSICS, "unsigned")


@pytest.fixture(scope="module")
def float_module() -> RawModule:
    return elementwise(FLOATS, "float")


edges = st.sampled_from([0, 1, 31, 32, 33, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x80007FFF])
words = st.one_of(edges, st.integers(0, 2**32 - 1))
three_of_words = npst.arrays(u32, st.tuples(st.just(3), st.integers(1, 40)), elements=words)
floats = st.floats(width=32, allow_subnormal=True)
three_of_floats = npst.arrays(f32, st.tuples(st.just(3), st.integers(1, 40)), elements=floats)


def operands(expression: str, arrays: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return arrays[: len(set(re.findall(r"\b[abcxyz]\b", expression)))]


@given(arrays=three_of_words)
@settings(max_examples=60)
def test_integer_intrinsics(integer_module: RawModule, arrays: npt.NDArray[u32]) -> None:
    for number, (expression, expected) in enumerate(INTRINSICS.items()):
        result = apply(integer_module, number, arrays)
        np.testing.assert_array_equal(result, expected(*operands(expression, arrays)).astype(u32), expression)


@given(arrays=three_of_floats)
@settings(max_examples=60)
def test_float_intrinsics(float_module: RawModule, arrays: npt.NDArray[f32]) -> None:
    for number, (expression, expected) in enumerate(FLOATS.items()):
        with np.errstate(all="ignore"):
            wanted = np.asarray(expected(*operands(expression, arrays))).astype(f32)
        np.testing.assert_array_equal(apply(float_module, number, arrays), wanted, expression)


REDUCTIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "add_u": ("__reduce_add_sync(mask, a)", lambda a: np.add.reduce(a, dtype=u32)),
    "add_s": ("__reduce_add_sync(mask, (int)a)", lambda a: np.add.reduce(a, dtype=u32)),
    "min_u": ("__reduce_min_sync(mask, a)", np.minimum.reduce),
    "min_s": ("__reduce_min_sync(mask, (int)a)", lambda a: np.minimum.reduce(a.view(i32)).astype(u32)),
    "max_u": ("__reduce_max_sync(mask, a)", np.maximum.reduce),
    "max_s": ("__reduce_max_sync(mask, (int)a)", lambda a: np.maximum.reduce(a.view(i32)).astype(u32)),
    "and": ("__reduce_and_sync(mask, a)", np.bitwise_and.reduce),
    "or": ("__reduce_or_sync(mask, a)", np.bitwise_or.reduce),
    "xor": ("__reduce_xor_sync(mask, a)", np.bitwise_xor.reduce),
    "any": ("__any_sync(mask, a & 1)", lambda a: u32(np.any(a & 1))),
    "all": ("__all_sync(mask, a & 1)", lambda a: u32(np.all(a & 1))),
}


@pytest.fixture(scope="module")
def reductions() -> RawModule:
    return RawModule(
        "\n".join(
            f'extern "C" __global__ void all_{name}(const unsigned* in, unsigned mask, unsigned* out) {{'
            f" const unsigned a = in[threadIdx.x]; if (mask >> threadIdx.x & 1) out[threadIdx.x] = {expression}; }}"
            for name, (expression, _) in {**REDUCTIONS, "ballot": ("__ballot_sync(mask, a & 1)", None)}.items()
        )
    )


@given(
    values=npst.arrays(u32, 32, elements=words),
    mask=st.one_of(st.just(2**32 - 1), st.integers(1, 2**32 - 1)),
    schedule=st.sampled_from(Schedule),
)
@settings(max_examples=60)
def test_reductions_and_votes(reductions: RawModule, values: Words, mask: int, schedule: Schedule) -> None:
    taking_part = mask >> np.arange(32) & 1 == 1
    with scheduled(schedule):
        for name, (expression, expected) in REDUCTIONS.items():
            out = np.full(32, 77, u32)
            launch(reductions, f"all_{name}", values, u32(mask), out, block=(32,))
            np.testing.assert_array_equal(out, np.where(taking_part, expected(values[taking_part]), 77), expression)
        out = np.full(32, 77, u32)
        launch(reductions, "all_ballot", values, u32(mask), out, block=(32,))
    votes = sum(1 << lane for lane in range(32) if taking_part[lane] and values[lane] & 1)
    np.testing.assert_array_equal(out, np.where(taking_part, votes, 77))


@in_each_schedule
def test_atomics(schedule: Schedule) -> None:
    module = RawModule(r"""
extern "C" __global__ void atomics(
    const int* in, int* signed_out, unsigned* out, unsigned long long* wide, float* total) {
    const int v = in[threadIdx.x];
    atomicAdd(signed_out, v);
    atomicMax(signed_out + 1, v);
    atomicMin(signed_out + 2, v);
    atomicMax(out, (unsigned)v);
    atomicMin(out + 1, (unsigned)v);
    atomicOr(out + 2, 1u << (v & 31));
    atomicAnd(out + 3, ~(1u << (v & 31)));
    atomicXor(out + 4, v);
    atomicSub(out + 5, 2);
    atomicAdd(wide, v);  // converts, as a parameter of CUDA's does
    atomicAdd(total, v);
    if (atomicCAS(out + 6, 0u, threadIdx.x + 1) == 0) atomicExch(out + 7, threadIdx.x + 1);
}""")
    values = np.random.default_rng(3).integers(-(10**5), 10**5, 256).astype(i32)
    signed, out, wide, total = (
        np.zeros(3, i32),
        np.array([0, 2**32 - 1, 0, 2**32 - 1, 0, 0, 0, 0], u32),
        np.zeros(1, np.uint64),
        np.zeros(1, f32),
    )
    with scheduled(schedule):
        launch(module, "atomics", values, signed, out, wide, total, block=(256,))
    assert signed.tolist() == [values.sum(), values.max(), values.min()]
    unsigned = values.view(u32)
    bits = np.bitwise_or.reduce(u32(1) << (unsigned & u32(31)))
    assert out[:5].tolist() == [unsigned.max(), unsigned.min(), bits, ~bits, np.bitwise_xor.reduce(unsigned)]
    assert out[5] == (-2 * 256) % 2**32
    assert out[6] == out[7] != 0
    assert wide.view(np.int64)[0] == values.sum(dtype=np.int64)
    assert total[0] == pytest.approx(values.sum(), abs=256)


def test_vectors_have_cudas_sizes_and_alignments() -> None:
    alignments = {"short2": 4, "uchar4": 4, "int2": 8, "uint2": 8, "float2": 8, "ushort4": 8, "int4": 16, "uint4": 16}
    alignments |= {"float4": 16, "ulonglong2": 16, "double2": 16}
    checks = "\n".join(
        f"static_assert(alignof({name}) == {n} && sizeof({name}) == {n});" for name, n in alignments.items()
    )
    module = RawModule(
        checks
        + r"""
extern "C" __global__ void copy(const uint4* in, uint4* out) {
    const uint4 v = in[threadIdx.x];
    out[threadIdx.x] = make_uint4(v.w, v.z, v.y, v.x);
}"""
    )
    numbers, out = np.arange(256, dtype=u32), np.zeros(256, u32)
    launch(module, "copy", numbers, out, block=(64,))
    assert out.reshape(64, 4).tolist() == numbers.reshape(64, 4)[:, ::-1].tolist()


def test_floats_are_rounded_to_fp16_like_numpys() -> None:
    """Every fp16 number, halfway to the next one, and next to halfway; infinities, and what is not a number."""
    numbers = np.arange(0x7C00, dtype=u16).view(np.float16).astype(f32)
    halfway = (numbers[1:] + numbers[:-1]) / 2
    near = [numbers, halfway, np.nextafter(halfway, f32(0)), np.nextafter(halfway, f32(1e9))]
    floats = np.concatenate([*near, np.array([65519.9, 65520, 1e38, np.inf, 1e-40, np.nan], f32)])
    floats = np.concatenate([floats, -floats])
    with np.errstate(over="ignore"):
        expected = np.where(np.isnan(floats), 0x7FFF, floats.astype(np.float16).view(u16))
    found = apply(elementwise({"(float)emu_f16_of_number(a)": np.abs}, "float"), 0, [floats] * 3)
    np.testing.assert_array_equal(found.astype(u16), expected)
