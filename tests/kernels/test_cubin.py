"""Machine code of the kernels: what benchmarks/cubin.py says of small ones, and what the service's own must fulfil."""

from collections import Counter
from pathlib import Path

import cubin
import pytest
from cubin import ARCHITECTURES, CARDS, KERNELS, Card, CompileError, Configuration, Instruction, SassError
from machine_code import check_limits

SPILLING = """
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float* out, const float* in) {
    float kept[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) kept[i] = in[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = kept[63 - i] * kept[i * 7 & 63];
}

extern "C" __global__ void indexed(int* out, const int* in, int step) {
    int kept[64];
    for (int i = 0; i < 64; ++i) kept[i] = in[i];
    for (int i = 0; i < 64; ++i) out[i] = kept[i * step & 63];
}

extern "C" __global__ void lean(float* out, const float* in) { out[threadIdx.x] = in[threadIdx.x] * 3; }
"""

HEADER = """
__device__ __forceinline__ int exchanged(int value) {
#pragma unroll
    for (int i = 1; i < 32; i *= 2) value += __shfl_xor_sync(~0u, value, i);
    return value ^ 5;
}
"""

WALK = """#include "walk.cuh"
extern "C" __global__ void __launch_bounds__(96) walk(int* out, const int* in, int rows, int columns) {
    __shared__ int last[128];
    int value = in[threadIdx.x];
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
        value = __shfl_xor_sync(~0u, value, row & 1) * 3;
#pragma unroll 1
        for (int column = 0; column < columns; ++column) {  // cubin: main loop
            value = exchanged(value) + COLUMN_COST;
        }  // cubin: end
        last[threadIdx.x] = value;
        __syncthreads();
        value = last[96 - threadIdx.x];
    }
    out[threadIdx.x] = value;
}
"""


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """Two loops, the marked one inside, with what it does in a header."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "walk.cuh").write_text(HEADER)
    (folder / "walk.cu").write_text(WALK)
    return Configuration(
        source=str(folder / "walk.cu"),
        kernel="walk",
        defines=("COLUMN_COST=7",),
        block_threads=96,
        dynamic_shared_bytes=1000,
        units=2,
        unit="step",
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_spills_and_arrays_in_local_memory_are_told(arch: int) -> None:
    code = cubin.compile_cubin(SPILLING, "spilling.cu", arch)
    spilling, indexed, lean = (cubin.report(code, kernel) for kernel in ("spilling", "indexed", "lean"))
    assert (spilling.arch, spilling.max_threads, indexed.max_threads) == (arch, 1024, None)
    assert spilling.spills
    assert spilling.registers == (64 if arch == 120 else 32)  # 2 blocks of 1,024 threads do not fit an SM of 12.0
    assert spilling.spill_store_bytes >= spilling.stack_bytes > 0
    assert spilling.spill_load_bytes >= spilling.stack_bytes
    assert indexed.spills
    assert (indexed.stack_bytes, indexed.spill_store_bytes) == (256, 256)
    assert not lean.spills
    assert (lean.stack_bytes, lean.spill_store_bytes, lean.spill_load_bytes, lean.loops) == (0, 0, 0, [])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loops_are_nested_and_the_marked_one_is_found(arch: int, walk: Configuration) -> None:
    found = walk.report(walk.compile(arch))
    outer, inner = found.loops
    assert (outer.depth, inner.depth) == (0, 1)
    assert found.main_loop == inner
    assert outer.first < inner.first <= inner.last < outer.last
    assert inner.own["SHFL"] == inner.path["SHFL"] == 5
    assert outer.own["SHFL"] == outer.path["SHFL"] == 1
    assert inner.own.total() == inner.path.total() == inner.shortest == inner.body
    assert outer.body > inner.body + outer.own.total() - 1
    assert 5 + 5 + 2 + 1 <= inner.body <= 5 + 5 + 10
    assert found.instructions_per(2) == inner.body / 64
    assert found.static_shared_bytes == 512
    assert found.max_threads == 96
    assert found.constant_bytes[0] > 0


def test_without_marks_there_is_no_main_loop(walk: Configuration) -> None:
    found = cubin.report(walk.compile(90), "walk")
    assert found.main_loop is None
    with pytest.raises(SassError, match="walk: no loop is marked"):
        found.instructions_per(1)


def test_a_mark_on_lines_outside_of_loops_is_an_error(walk: Configuration) -> None:
    with pytest.raises(SassError, match="no loop in the machine code"):
        cubin.report(walk.compile(90), "walk", [cubin.Mark("walk.cu", 4, 4)])


def test_marks_alternate() -> None:
    begin, end = "for (;;) {  // cubin: main loop", "}  // cubin: end"
    marks = cubin.find_marks(f"\n{begin}\n{end}\n{begin}\n\n{end}\n", "some/where.cu")
    assert marks == [cubin.Mark("where.cu", 2, 3), cubin.Mark("where.cu", 4, 6)]
    for text, line in ((end, 1), (f"{begin}\n\n{begin}", 3), (begin, 1), (f"{begin}\n{end}\n{end}", 3)):
        with pytest.raises(SassError, match=rf"where\.cu, line {line}:"):
            cubin.find_marks(text, "where.cu")


def test_a_kernel_that_is_not_there(walk: Configuration) -> None:
    with pytest.raises(SassError, match="stroll: there is no such kernel"):
        cubin.report(walk.compile(80), "stroll")


def test_errors_of_the_compiler_have_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r'k\.cu\(2\): error: identifier "unknown" is undefined'):
        cubin.compile_cubin("__global__ void k(int* out) {\n    *out = unknown;\n}", "k.cu", 90)
    source = '#include "h.cuh"\nextern "C" __global__ void k(int* out) { *out = WIDTH; }'
    with pytest.raises(CompileError, match=r"k\.cu\(1\): .*h\.cuh"):
        cubin.compile_cubin(source, "k.cu", 90)
    (tmp_path / "h.cuh").write_text("#define WIDTH 3 +\n")
    with pytest.raises(CompileError, match=r"k\.cu\(2\): error: .*expression"):
        cubin.compile_cubin(source, "k.cu", 90, headers=[tmp_path])
    (tmp_path / "h.cuh").write_text("#define WIDTH 3\n")
    assert cubin.compile_cubin(source, "k.cu", 90, headers=[tmp_path]).startswith(b"\x7fELF")


def assemble(text: str) -> list[Instruction]:
    """Lines of `address: [guard] opcode [operands]`, with targets as `(address)."""
    found = []
    for line in text.strip().splitlines():
        address, _, rest = line.partition(":")
        guard, rest = rest.split(maxsplit=1) if "@" in rest else ("", rest)
        opcode, _, operands = rest.strip().partition(" ")
        targets = (
            tuple(int(target, 16) for target in operands.split("(")[1].rstrip(")").split(",")) if "(" in rest else ()
        )
        found.append(
            Instruction(
                address=int(address, 16),
                guard=guard,
                opcode=opcode,
                operands=operands,
                targets=targets,
                lines=frozenset(),
            )
        )
    return found


def test_rare_parts_are_out_of_line_and_ways_differ() -> None:
    instructions = assemble("""
        00: MOV
        10: BRA.DIV UR4, `(a0)
        20: SHFL
        30: @P0 BRA `(60)
        40: IADD3
        50: IADD3
        60: @P1 BRA `(d0)
        70: BRA.U !UP0, `(10)
        80: EXIT
        90: BRA `(90)
        a0: WARPSYNC.COLLECTIVE R1, `(c0)
        b0: SHFL
        c0: BRA `(30)
        d0: LDG
        e0: BRA `(70)
    """)
    ((loop, _),) = cubin.find_loops(instructions)
    assert (loop.first, loop.last, loop.depth, loop.body) == (0x10, 0x70, 0, 12)
    assert loop.own == Counter(BRA=4, SHFL=1, IADD3=2)
    assert loop.out_of_line == Counter(WARPSYNC=1, SHFL=1, BRA=2, LDG=1)
    assert loop.path == loop.own
    assert loop.shortest == 5


def test_a_loop_all_of_whose_ways_are_out_of_line() -> None:
    ((loop, _),) = cubin.find_loops(
        assemble("00: MOV\n10: BRA `(30)\n20: EXIT\n30: FADD\n40: @P0 BRA `(10)\n50: BRA `(20)")
    )
    assert loop.path == Counter(BRA=2, FADD=1)


def test_switches_and_branches_of_every_form() -> None:
    ((loop, body),) = cubin.find_loops(
        assemble("""
        00: ISETP
        10: BRX R6 -0x20 (30,50)
        20: EXIT
        30: @!P0 BRA P1, `(70)
        40: BRA `(60)
        50: CALL.REL.NOINC `(90)
        60: IMAD
        70: @P0 BRA `(00)
        80: @P1 EXIT
        90: RET.REL.NODEC R2
    """)
    )
    assert body == {0, 1, 3, 4, 5, 6, 7}
    assert loop.path.total() == 6
    assert loop.shortest == 4


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared_bytes", "blocks", "warps", "limited_by"),
    [
        (80, 80, 128, 0, 6, 24, "registers"),  # 80 x 32 = 2,560; 16,384 / 2,560 = 6 warps a partition, 24 an SM
        (90, 33, 256, 0, 6, 48, "registers"),  # 1,056 rounded up to 1,280: 12 a partition, 48 an SM
        (100, 255, 64, 0, 4, 8, "registers"),  # 8,160 to 8,192: 2 a partition
        (100, 32, 32, 0, 32, 32, "blocks"),
        (120, 32, 32, 0, 24, 24, "blocks"),
        (90, 32, 1024, 0, 2, 64, "registers"),
        (120, 32, 1024, 0, 1, 32, "warps"),
        (80, 32, 128, 30_000, 5, 20, "shared memory"),  # 31,024 to 31,104 of 167,936
        (90, 32, 128, 227 * 1024, 1, 4, "shared memory"),
        (90, 32, 128, 227 * 1024 + 1, 0, 0, "shared memory"),
        (120, 32, 128, 99 * 1024, 1, 4, "shared memory"),
        (80, 128, 1024, 0, 0, 0, "registers"),  # 16 warps fit
    ],
)
def test_occupancy_as_calculated_by_hand(
    arch: int, registers: int, threads: int, shared_bytes: int, blocks: int, warps: int, limited_by: str
) -> None:
    found = cubin.occupancy(arch, registers, threads, shared_bytes)
    assert (found.blocks, found.warps, found.limited_by) == (blocks, warps, limited_by)
    assert found.max_warps == (48 if arch == 120 else 64)


def test_an_estimate_as_calculated_by_hand() -> None:
    path = Counter(LOP3=64, IADD3=32, IMAD=16, UIADD3=8, SHFL=4, BRA=4)
    h100 = cubin.estimate(path, 4, "cell", Card(name="H100", arch=90, sms=132, clock_ghz=2.0))
    assert h100.clocks == {"issue": 32.0, "alu": 48.0, "imad": 8.0, "shuffle": 4.0}
    assert h100.giga_units_per_s == 132 * 2.0 * 32 * 4 / 48
    assert "132 SMs x 2.0 GHz x 32 lanes x 4 cells / 48.0 clocks (alu: 96 instructions x 32 / 64 lanes" in h100.working
    assert h100.working.endswith("= 704 Gcells/s")
    blackwell = cubin.estimate(path, 4, "cell", Card(name="RTX", arch=120, sms=100, clock_ghz=2.0))
    assert blackwell.clocks == {"issue": 32.0, "alu": 32.0, "add": 8.0, "imad": 8.0, "shuffle": 4.0}
    assert {card.arch for card in CARDS} == set(ARCHITECTURES)


def test_the_command_prints_tables(
    walk: Configuration, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cubin, "KERNELS", [walk])
    assert cubin.main(["--arch", "90", "120", "--loops"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("NVRTC 1")
    assert "| walk COLUMN_COST=7 | 90 | " in said
    assert "| 0, 0 | 1512 |" in said
    assert "- walk COLUMN_COST=7, RTX 5090 (estimate): 170 SMs x 2.407 GHz x 32 lanes x 2 steps / " in said
    assert "walk COLUMN_COST=7, sm_120:\n\n- 0x" in said
    assert " (main): " in said


@pytest.mark.parametrize("configuration", KERNELS, ids=lambda configuration: configuration.name)
def test_kernels_keep_to_the_limits(configuration: Configuration) -> None:
    """On an H100; tests/long has the others."""
    check_limits(configuration, 90)
