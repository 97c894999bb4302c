"""Inspect the CUDA kernels' machine code without a driver: registers, spills, loops, occupancy, estimated speed.

    python benchmarks/cubin.py                Markdown tables of all KERNELS, on all ARCHITECTURES
    python benchmarks/cubin.py --loops        also each loop with its opcodes

NVRTC compiles the kernels, and NVIDIA's cuobjdump and nvdisasm read the result. All three come from PyPI. Mark a loop
of interest in the source or in a header with `// cubin: main loop` on the line of its `for` and `// cubin: end` on the
line of its closing brace. Nothing is measured here: speeds are upper bounds, printed with their calculation.
"""

import argparse
import functools
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import networkx
from cuda.bindings import nvrtc
from cuda.pathfinder import find_nvidia_binary_utility
from kernel_forms import FORMS, Form

from porestream.kernels.source import FOLDER, OPTIONS, path_of

CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy adds to a RawModule's options (cupy/cuda/compiler.py, 13.6 to 14.2)."""
ARCHITECTURES = (80, 90, 100, 120)
WARP = 32


class CompileError(RuntimeError):
    """NVRTC rejected a source; the message is its log, with file and line."""


class SassError(RuntimeError):
    """Machine code does not look as this module expects, or a marked loop cannot be found."""


def compile_cubin(
    source: str, name: str, arch: int, options: Sequence[str] = OPTIONS, headers: Sequence[Path] = ()
) -> bytes:
    """Compile `source` for one architecture, with line numbers, which do not change the machine code.

    Parameters
    ----------
    name
        The source's file name, for errors and line numbers.
    arch
        Compute capability without the point: 90 is sm_90.
    options
        NVRTC options, such as "-DR=4"; CuPy's are added.
    headers
        Folders with the files that the source includes.

    Raises
    ------
    CompileError
        The source does not compile; the message has NVRTC's log.
    """
    given = [f"-arch=sm_{arch}", *options, *CUPY_OPTIONS, "-lineinfo"]
    given += [f"-I{folder}" for folder in headers]
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(given), [option.encode() for option in given])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
            _checked(nvrtc.nvrtcGetProgramLog(program, log))
            text = log.rstrip(b"\0").decode()
            raise CompileError(f"{name} for sm_{arch} with {' '.join(options)}: {status.name}\n{text}")
        cubin = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc.nvrtcGetCUBIN(program, cubin))
        return bytes(cubin)
    finally:
        _checked(nvrtc.nvrtcDestroyProgram(program))


def _checked(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"NVRTC: {status.name}")
    return values[0] if values else None


@dataclass(frozen=True, slots=True)
class Mark:
    """First and last line of a main loop; `file` is a name without folders."""

    file: str
    first: int
    last: int


def find_marks(text: str, file: str) -> list[Mark]:
    """Return the marked loops of a source or header.

    Raises
    ------
    SassError
        An end mark has no begin mark, or the other way round.
    """
    marks: list[Mark] = []
    first = None
    for number, line in enumerate(text.splitlines(), 1):
        begins = "// cubin: main loop" in line
        if begins != (first is None) and (begins or "// cubin: end" in line):
            raise SassError(f"{file}, line {number}: '// cubin: main loop' and '// cubin: end' do not alternate")
        if begins:
            first = number
        elif "// cubin: end" in line and first is not None:
            marks.append(Mark(Path(file).name, first, number))
            first = None
    if first is not None:
        raise SassError(f"{file}, line {first}: '// cubin: main loop' has no matching '// cubin: end'")
    return marks


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction of SASS.

    Attributes
    ----------
    address
        Offset from the kernel's beginning, in bytes.
    guard
        Its predicate, such as "@!P0"; empty if it has none.
    targets
        Addresses that it can branch to.
    lines
        (file, line) of the source that it was compiled from, including where that was inlined.
    """

    address: int
    guard: str
    opcode: str
    operands: str
    targets: tuple[int, ...]
    lines: frozenset[tuple[str, int]]

    @property
    def kind(self) -> str:
        """The opcode up to its first point, plus the type if it handles packed numbers: VIMNMX.U16x2."""
        name, *rest = self.opcode.split(".")
        return ".".join([name, *(part for part in rest if re.fullmatch(r"[SU]?(16x2|8x4)", part))])


_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"([.$\w]+):\s*$")
_TARGET = re.compile(r"`\(([^)]+)\)|BRANCH_TARGETS ([^\"]+)\"")
_LINE = re.compile(r'"([^"]+)", line (\d+)')


def disassemble(cubin: bytes, kernel: str) -> list[Instruction]:
    """Return all instructions of a kernel, in the order of their addresses."""
    found: list[tuple[int, str, str, str, frozenset[tuple[str, int]]]] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    lines: frozenset[tuple[str, int]] = frozenset()
    inside = annotated = False
    for text in _run("nvdisasm", ("-c", "-gi"), cubin).splitlines():
        if text.split()[:1] == [".section"]:
            inside = f".text.{kernel}," in text
            lines = frozenset()
        elif not inside:
            continue
        elif "//## File" in text:
            here = frozenset((Path(file).name, int(line)) for file, line in _LINE.findall(text))
            lines = lines | here if annotated else here
            annotated = True
            continue
        elif match := _LABEL.match(text):
            waiting.append(match[1])
        elif match := _INSTRUCTION.match(text):
            address = int(match[1], 16)
            labels |= dict.fromkeys(waiting, address)
            waiting.clear()
            found.append((address, match[2] or "", match[3], match[4], lines))
        annotated = False
    if not found:
        raise SassError(f"{kernel}: there is no such kernel; is it declared extern C?")
    instructions = []
    for address, guard, opcode, operands, lines in found:
        names = [name for one, many in _TARGET.findall(operands) for name in (one, *many.split(",")) if name]
        targets = tuple(labels[name] for name in names if name in labels)
        instructions.append(
            Instruction(address=address, guard=guard, opcode=opcode, operands=operands, targets=targets, lines=lines)
        )
    return instructions


@functools.lru_cache(maxsize=256)  # a cubin has several kernels, and the tools take half a second to start
def _run(tool: str, options: Sequence[str], cubin: bytes) -> str:
    program = find_nvidia_binary_utility(tool)
    if program is None:
        raise SassError(f"{tool} is not installed: pip install nvidia-cuda-{tool}")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([program, *options, file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SassError(f"{tool} {' '.join(options)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A natural loop: the instructions that a back edge encloses, without those of called functions.

    Attributes
    ----------
    first, last
        Addresses of its header and of its last back edge, in bytes.
    depth
        Number of loops around it.
    body
        Number of instructions in it, including those in inner loops.
    own
        Opcodes outside inner loops, without those out of line.
    out_of_line
        Opcodes outside inner loops that are probably rare: those after its last back edge, where the compiler puts
        unlikely code, and those reached only by BRA.DIV, which a warp takes when its lanes have diverged before a
        shuffle or vote.
    path
        Opcodes on the longest path through one iteration, from `own` only unless every path goes out of line. A warp
        issues at most these if its lanes do not diverge; if they do, it may issue all of `own`.
    shortest
        Number of instructions on the shortest path.
    """

    first: int
    last: int
    depth: int
    body: int
    own: Counter[str] = field(repr=False)
    out_of_line: Counter[str] = field(repr=False)
    path: Counter[str] = field(repr=False)
    shortest: int


def _flow(instructions: Sequence[Instruction]) -> networkx.DiGraph:
    """Return which instruction can follow which, by index, starting at the first; BRA.DIV's edges are `divergent`."""
    at = {instruction.address: index for index, instruction in enumerate(instructions)}
    graph = networkx.DiGraph()
    graph.add_node(0)
    for index, instruction in enumerate(instructions):
        always = not instruction.guard
        match instruction.kind:
            case "EXIT" | "RET" | "KILL":
                falls, jumps = not always, False
            case "BRA" | "JMP":  # conditional if an operand precedes the target: BRA P0, BRA.U UP0, BRA.DIV UR4
                falls, jumps = not (always and re.fullmatch(r"`\([^)]+\)", instruction.operands)), True
            case "BRX" | "BRXU" | "JMX" | "JMXU":
                falls, jumps = not always, True
            case "CALL" | "WARPSYNC":
                falls, jumps = True, True
            case _:  # BSSY names where its threads reconverge, but does not jump there
                falls, jumps = True, False
        if falls and index + 1 < len(instructions):
            graph.add_edge(index, index + 1, divergent=False)
        for target in instruction.targets if jumps else ():
            if not graph.has_edge(index, at[target]):
                graph.add_edge(index, at[target], divergent=instruction.opcode == "BRA.DIV")
    return graph.subgraph(networkx.descendants(graph, 0) | {0}).copy()


def _nests(graph: networkx.DiGraph) -> dict[int, tuple[set[int], set[int]]]:
    """Return natural loops by header, each as (latches, all nodes in the loop) (Aho et al., Compilers, 9.6)."""
    dominator = networkx.immediate_dominators(graph, 0)
    loops: dict[int, tuple[set[int], set[int]]] = {}
    for latch, header in graph.edges:
        above = latch if graph.in_degree(header) > 1 or header == 0 else None
        while above is not None and above != header:
            above = None if above == 0 else dominator[above]
        if above is None:
            continue
        latches, body = loops.setdefault(header, (set(), {header}))
        latches.add(latch)
        stack = [latch]
        while stack:
            if (node := stack.pop()) not in body:
                body.add(node)
                stack.extend(graph.predecessors(node))
    return loops


def _ways(graph: networkx.DiGraph, header: int, latches: set[int], counted: set[int]) -> tuple[set[int], int] | None:
    """Return the `counted` nodes on the longest path from header to a latch, and the length of the shortest path."""
    longest: dict[int, tuple[int, int | None]] = {}
    shortest: dict[int, int] = {}
    for node in networkx.topological_sort(graph):
        before = [other for other in graph.predecessors(node) if other in longest]
        if node != header and not before:
            continue
        best = max(before, key=lambda other: longest[other][0], default=None)
        longest[node] = ((longest[best][0] if best is not None else 0) + (node in counted), best)
        shortest[node] = min((shortest[other] for other in before), default=0) + (node in counted)
    ends = [latch for latch in latches if latch in longest]
    if not ends:
        return None
    step: int | None = max(ends, key=lambda latch: longest[latch][0])
    path = set()
    while step is not None:
        path.add(step)
        step = longest[step][1]
    return path & counted, min(shortest[latch] for latch in ends)


def find_loops(instructions: Sequence[Instruction]) -> list[tuple[Loop, set[int]]]:
    """Return a kernel's loops, outer ones before inner ones, each with the indices of its instructions."""
    graph = _flow(instructions)
    nests = _nests(graph)
    straight = networkx.subgraph_view(graph, filter_edge=lambda here, there: not graph.edges[here, there]["divergent"])
    converged = networkx.descendants(straight, 0) | {0}
    forward = graph.copy()
    forward.remove_edges_from([(latch, header) for header, (latches, _) in nests.items() for latch in latches])
    found = []
    for header, (latches, body) in nests.items():
        own = body - {node for other, (_, inner) in nests.items() if other != header and inner < body for node in inner}
        last = max([header, *(latches & converged)])
        rare = {node for node in own if node > last or node not in converged}
        ways = None
        if networkx.is_directed_acyclic_graph(forward.subgraph(body)):
            each = (_ways(forward.subgraph(part), header, latches, own) for part in (body - rare, body))
            ways = next(filter(None, each), None)
        path, shortest = ways or (own, len(own))  # if it jumps into the middle of an inner loop, count all of it
        loop = Loop(
            first=instructions[header].address,
            last=instructions[last].address,
            depth=sum(body < around for _, around in nests.values()),
            body=len(body),
            own=_opcodes(instructions, own - rare),
            out_of_line=_opcodes(instructions, rare),
            path=_opcodes(instructions, path),
            shortest=shortest,
        )
        found.append((loop, body))
    return sorted(found, key=lambda pair: (pair[0].first, pair[0].depth))


def _opcodes(instructions: Sequence[Instruction], chosen: Iterable[int]) -> Counter[str]:
    return Counter(instructions[index].kind for index in chosen)


def find_main_loop(
    instructions: Sequence[Instruction], loops: Sequence[tuple[Loop, set[int]]], marks: Sequence[Mark]
) -> Loop | None:
    """Return the marked loop; None if no instruction comes from a marked line.

    Among all marks and loops, choose the pair with the most instructions in common, as a share of those in either the
    loop or the mark's lines. Prefer loops whose back edge comes from the mark's lines, because a loop around the
    marked one can consist of it almost entirely. Among equal copies of a loop, choose the first.

    Raises
    ------
    SassError
        The kernel has marked lines, but not in a loop.
    """
    graded: list[tuple[tuple[bool, float], Loop | None]] = [((False, 0.0), None)]  # in case there are no loops
    marked = False
    for mark in marks:
        lines = {(mark.file, line) for line in range(mark.first, mark.last + 1)}
        of_mark = {index for index, instruction in enumerate(instructions) if lines & instruction.lines}
        marked |= bool(of_mark)
        for loop, body in loops:
            back = any(instructions[index].address == loop.last for index in of_mark)
            graded.append(((back, len(of_mark & body) / len(of_mark | body)), loop))
    if not marked:
        return None
    (back, share), best = max(graded, key=lambda pair: pair[0])
    if best is None or not (back or share >= 0.5):
        raise SassError(f"no loop in the machine code matches {', '.join(map(str, marks))}")
    return best


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """What a cubin says about a kernel.

    Attributes
    ----------
    registers
        Registers per thread.
    stack_bytes
        Local memory per thread: spills, and arrays that are not in registers.
    spill_store_bytes, spill_load_bytes
        Bytes a thread stores to and loads from local memory if each such instruction runs once (as `ptxas -v` counts
        spills, but including arrays in local memory).
    static_shared_bytes
        Shared memory per block, without the 1,024 bytes that the system reserves.
    constant_bytes
        Bytes by constant bank; bank 0 has the launch's parameters.
    max_threads
        Most threads in a block, from __launch_bounds__; None if the kernel has none.
    instructions
        Number of instructions that can be reached.
    main_loop
        The marked loop; None if none is marked.
    """

    kernel: str
    arch: int
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    static_shared_bytes: int
    constant_bytes: dict[int, int]
    max_threads: int | None
    instructions: int
    loops: list[Loop] = field(repr=False)
    main_loop: Loop | None

    @property
    def spills(self) -> bool:
        """Whether the kernel uses local memory at all."""
        return bool(self.stack_bytes or self.spill_store_bytes or self.spill_load_bytes)

    def instructions_per(self, units: float) -> float:
        """Return the instructions that a warp issues per cell, on the longest path through the main loop.

        In each iteration, each of the warp's 32 lanes computes `units` cells, or other units.

        Raises
        ------
        SassError
            No loop is marked.
        """
        if self.main_loop is None:
            raise SassError(f"{self.kernel}: no loop is marked with '// cubin: main loop' ... '// cubin: end'")
        return self.main_loop.path.total() / (units * WARP)


def report(cubin: bytes, kernel: str, marks: Sequence[Mark] = ()) -> KernelReport:
    """Return everything about one kernel of a cubin.

    Raises
    ------
    SassError
        There is no such kernel, or its marked loop cannot be found.
    """
    instructions = disassemble(cubin, kernel)
    elf = _run("cuobjdump", ("-elf", "-res-usage"), cubin)
    usage = re.search(rf"Function {re.escape(kernel)}:\n(.*)", elf)
    arch = re.search(r"CUDA Virtual SM: sm_(\d+)", elf)
    if usage is None or arch is None:
        raise SassError(f"{kernel}: cuobjdump does not report its resources")
    resources = {name: int(value) for name, value in re.findall(r"([A-Z]+(?:\[\d+\])?):(\d+)", usage[1])}
    info = elf.partition(f"\n.nv.info.{kernel}\n")[2].partition("\n.nv.")[0]
    threads = re.search(r"EIATTR_(?:MAX_THREADS|REQNTID)\n.*\n\s*Value:\s*(\w+) (\w+) (\w+)", info)
    reserved = 1024 if int(arch[1]) >= 90 and resources["SHARED"] else 0
    loops = find_loops(instructions)
    return KernelReport(
        kernel=kernel,
        arch=int(arch[1]),
        registers=resources["REG"],
        stack_bytes=resources["STACK"] + resources["LOCAL"],
        spill_store_bytes=_access_bytes(instructions, "STL"),
        spill_load_bytes=_access_bytes(instructions, "LDL"),
        static_shared_bytes=resources["SHARED"] - reserved,
        constant_bytes={int(name[9:-1]): value for name, value in resources.items() if name.startswith("CONSTANT")},
        max_threads=int(threads[1], 16) * int(threads[2], 16) * int(threads[3], 16) if threads else None,
        instructions=len(_flow(instructions)),
        loops=[loop for loop, _ in loops],
        main_loop=find_main_loop(instructions, loops, marks),
    )


def _access_bytes(instructions: Iterable[Instruction], kind: str) -> int:
    widths = {"8": 1, "U8": 1, "S8": 1, "16": 2, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
    found = [one.opcode.split(".")[1:] for one in instructions if one.kind == kind]
    return sum(next((widths[part] for part in parts if part in widths), 4) for parts in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an SM can hold at a time."""

    warps: int
    blocks: int
    shared_bytes: int
    block_shared_bytes: int


LIMITS = {
    80: Limits(warps=64, blocks=32, shared_bytes=164 * 1024, block_shared_bytes=163 * 1024),
    90: Limits(warps=64, blocks=32, shared_bytes=228 * 1024, block_shared_bytes=227 * 1024),
    100: Limits(warps=64, blocks=32, shared_bytes=228 * 1024, block_shared_bytes=227 * 1024),
    120: Limits(warps=48, blocks=24, shared_bytes=100 * 1024, block_shared_bytes=99 * 1024),
}
"""CUDA C++ Programming Guide 13, "Technical Specifications per Compute Capability" (Table 27).

The Blackwell Tuning Guide, 1.4.1.1, says 32 blocks and 128 KB for 12.0; GPUs report 24 and 100 KiB, as here.
"""
SM_REGISTERS = 65_536
"""From the same table: 64 K 32-bit registers per SM."""
PARTITIONS = 4
"""cuda_occupancy.h, cudaOccSubPartitionsPerMultiprocessor: each has a quarter of the registers and whole warps."""
REGISTER_UNIT = 256
"""cuda_occupancy.h, cudaOccRegAllocationGranularity: a warp's registers are a multiple of this."""
SHARED_UNIT = 128
"""cuda_occupancy.h, cudaOccSMemAllocationGranularity, in bytes."""
SHARED_RESERVED = 1024
"""Bytes that the system reserves in each block (Hopper Tuning Guide, 1.4.2.2; 8.0 and later)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """Blocks and warps of a kernel that fit on an SM, the most warps that an SM can hold, and what sets the limit."""

    blocks: int
    warps: int
    max_warps: int
    limited_by: str


def occupancy(arch: int, registers: int, block_threads: int, shared_bytes: int = 0) -> Occupancy:
    """Compute the occupancy as cuda_occupancy.h does, with all of an SM's shared memory available to blocks.

    Parameters
    ----------
    registers
        Registers per thread.
    shared_bytes
        Static and dynamic shared memory per block.
    """
    limits = LIMITS[arch]
    block_warps = -(-block_threads // WARP)
    warp_registers = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    register_warps = SM_REGISTERS // PARTITIONS // warp_registers * PARTITIONS
    block_shared = -(-(shared_bytes + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT
    fits = block_threads <= 1024 and shared_bytes <= limits.block_shared_bytes
    blocks = {
        "registers": register_warps // block_warps,
        "shared memory": limits.shared_bytes // block_shared if fits else 0,
        "warps": limits.warps // block_warps,
        "blocks": limits.blocks,
    }
    least = min(blocks, key=blocks.__getitem__)
    return Occupancy(blocks=blocks[least], warps=blocks[least] * block_warps, max_warps=limits.warps, limited_by=least)


ISSUE_LANES = 4 * WARP
"""Per clock and SM: four schedulers issue one warp instruction each (whitepapers of A100, H100 and RTX Blackwell)."""
LANES = {
    80: {"alu": 64, "imad": 64, "fma": 64, "half": 128, "double": 32},
    90: {"alu": 64, "imad": 64, "fma": 128, "half": 128, "double": 64},
    100: {"alu": 64, "imad": 64, "fma": 128, "half": 64, "double": 64},
    120: {"alu": 64, "add": 128, "imad": 64, "fma": 128, "half": 64, "double": 2},
}
"""Lanes per clock and SM for each class of opcodes.

CUDA C++ Best Practices Guide 13, 12.1.1, "Throughput of Native Arithmetic Instructions": integer add, compare, minimum,
shift and logic have 64 lanes, which we assume they share; on 12.0 integer add, minimum and maximum have 128. A two-way
half-precision instruction counts once.
"""
COMMON_LANES = {"shuffle": 32, "reduce": 16, "special": 16, "memory": 32}
"""From the same table: warp shuffle, warp reduce, functions, conversions. Shared memory: 32 banks, a word per clock."""
_CLASSES = {
    "imad": "IMAD IMUL IDP",
    "fma": "FFMA FADD FMUL FFMA2 FADD2 FMUL2",
    "half": "HFMA2 HADD2 HMUL2",
    "double": "DFMA DADD DMUL DSETP",
    "shuffle": "SHFL",
    "reduce": "REDUX CREDUX",
    "special": "MUFU I2F F2I F2F FRND POPC FLO BREV",
    "memory": "LD LDG LDS LDL LDSM LDGSTS ST STG STS STL STSM ATOM ATOMG ATOMS RED REDG",
    "add": "IADD IADD3 VIADD IMNMX VIMNMX VIMNMX3",
    "issue": "BRA BRX JMP JMX BSSY BSYNC BREAK BMOV EXIT RET CALL WARPSYNC ENDCOLLECTIVE NOP BAR DEPBAR NANOSLEEP "
    "YIELD S2R CS2R S2UR R2UR LDC LDCU MEMBAR CCTL ERRBAR",
}
_CLASS_OF = {opcode: name for name, opcodes in _CLASSES.items() for opcode in opcodes.split()}


def pipe(opcode: str, arch: int) -> str:
    """Return an opcode's class in LANES or COMMON_LANES; "issue" if it only has to be issued.

    Opcodes of the uniform datapath, which begin with U, only have to be issued. Unknown opcodes count as "alu", such as
    additions and maxima of packed numbers, whose rates NVIDIA does not publish.
    """
    name = _CLASS_OF.get(opcode, "issue" if opcode.startswith("U") else "alu")
    return "alu" if name == "add" and "add" not in LANES[arch] else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU with its number of SMs and its boost clock."""

    name: str
    arch: int
    sms: int
    clock_ghz: float


CARDS = (
    Card(name="A100 SXM", arch=80, sms=108, clock_ghz=1.410),
    Card(name="H100 SXM", arch=90, sms=132, clock_ghz=1.980),
    Card(name="B200", arch=100, sms=148, clock_ghz=1.965),
    Card(name="RTX 5090", arch=120, sms=170, clock_ghz=2.407),
    Card(name="RTX PRO 6000 Blackwell", arch=120, sms=188, clock_ghz=2.617),
)
"""From NVIDIA's whitepapers of A100, H100 (v1.04, Table 3) and RTX Blackwell; B200 and RTX PRO 6000 as users report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An upper bound on a GPU's speed.

    Attributes
    ----------
    clocks
        An SM's clocks for one iteration of a warp, by the resource that would be the bottleneck.
    giga_units_per_s
        Speed with the largest of these.
    """

    card: Card
    clocks: dict[str, float]
    giga_units_per_s: float
    working: str


def estimate(path: Counter[str], units: float, unit: str, card: Card) -> Estimate:
    """Estimate how fast a GPU can run a loop whose iterations issue `path`'s opcodes for `units` per lane.

    This is an upper bound: it counts issue slots and the lanes of each pipe, but no latencies, cache misses, bank
    conflicts, wide accesses, divergence or work outside of the loop.
    """
    lanes = LANES[card.arch] | COMMON_LANES
    counts = Counter({"issue": path.total()})
    for opcode, count in path.items():
        if (name := pipe(opcode, card.arch)) != "issue":
            counts[name] += count
    clocks = {name: count * WARP / (lanes | {"issue": ISSUE_LANES})[name] for name, count in counts.items()}
    bound = max(clocks, key=clocks.__getitem__)
    speed = card.sms * card.clock_ghz * WARP * units / clocks[bound]
    width = (lanes | {"issue": ISSUE_LANES})[bound]
    others = ", ".join(f"{name} {clocks[name]:.1f}" for name in clocks if name != bound)
    shown = f"{speed:.0f}" if speed >= 10 else f"{speed:.2f}"
    working = (
        f"{card.sms} SMs x {card.clock_ghz} GHz x {WARP} lanes x {units:g} {unit}s / {clocks[bound]:.1f} clocks "
        f"({bound}: {counts[bound]} instructions x {WARP} / {width} lanes; {others}) = {shown} G{unit}s/s"
    )
    return Estimate(card=card, clocks=clocks, giga_units_per_s=speed, working=working)


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration(Form):
    """A form of a kernel, and its machine code."""

    def compile(self, arch: int) -> bytes:
        """Return the machine code; raises CompileError."""
        return _compiled(self._path(), self.defines, arch)

    def marks(self) -> list[Mark]:
        """Return the marks in its file and in all headers in the same folder."""
        path = self._path()
        files = [path, *sorted(path.parent.glob("*.cuh"))]
        return [mark for file in files for mark in find_marks(file.read_text(), file.name)]

    def _path(self) -> Path:
        return Path(self.source) if Path(self.source).is_absolute() else path_of(self.source)

    def report(self, cubin: bytes) -> KernelReport:
        """Return what the machine code says; raises SassError."""
        return report(cubin, self.kernel, self.marks())


@functools.cache
def _compiled(path: Path, defines: tuple[str, ...], arch: int) -> bytes:
    options = (*OPTIONS, *(f"-D{define}" for define in defines))
    folders = [path.parent, *(folder for folder in FOLDER.iterdir() if folder.is_dir())]
    return compile_cubin(path.read_text(), path.name, arch, options, folders)


KERNELS = [Configuration(**asdict(form)) for form in FORMS]
"""All kernels that the service builds."""


_COLUMNS = (
    "kernel|sm|registers|stack, B|spilled, B: stored, loaded|shared, B|constant, B|warps an SM|limited by|instructions|"
    "main loop: own|out of line|longest way|shortest way|a warp's instructions"
)


def _row(configuration: Configuration, found: KernelReport) -> list[object]:
    shared = found.static_shared_bytes + configuration.dynamic_shared_bytes
    held = occupancy(found.arch, found.registers, configuration.block_threads, shared)
    row = [configuration.name, found.arch, found.registers, found.stack_bytes]
    row += [f"{found.spill_store_bytes}, {found.spill_load_bytes}", shared, sum(found.constant_bytes.values())]
    row += [f"{held.warps} of {held.max_warps}", held.limited_by, found.instructions]
    if (loop := found.main_loop) is None:
        return [*row, *[""] * 5]
    row += [loop.own.total(), loop.out_of_line.total(), loop.path.total(), loop.shortest]
    units = configuration.units
    return [*row, f"{found.instructions_per(units):.2f} a {configuration.unit}" if units else ""]


def _print_tables(configurations: Sequence[Configuration], architectures: Sequence[int], loops: bool) -> None:
    found = [(one, one.report(one.compile(arch))) for one in configurations for arch in architectures]
    columns = _COLUMNS.split("|")
    print("NVRTC {}.{}\n".format(*nvrtc.nvrtcVersion()[1:]))
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for configuration, one in found:
        print(f"| {' | '.join(map(str, _row(configuration, one)))} |")
    print("\nEstimates, not measurements: upper bounds from the longest way through an iteration of the main loop.\n")
    for configuration, one in found:
        if one.main_loop is None or configuration.units is None:
            continue
        for card in CARDS:
            if card.arch == one.arch:
                working = estimate(one.main_loop.path, configuration.units, configuration.unit, card).working
                print(f"- {configuration.name}, {card.name} (estimate): {working}")
    for configuration, one in found if loops else ():
        print(f"\n{configuration.name}, sm_{one.arch}:\n")
        for loop in one.loops:
            opcodes = ", ".join(f"{count} {opcode}" for opcode, count in loop.own.most_common())
            mark = " (main)" if loop == one.main_loop else ""
            print(
                f"{'  ' * loop.depth}- {loop.first:#06x} to {loop.last:#06x}{mark}: {loop.body} instructions; "
                f"its own, in line, {loop.own.total()}: {opcodes}"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Describe the CUDA kernels' machine code as Markdown")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--loops", action="store_true", help="also print each loop with its opcodes")
    arguments = parser.parse_args(argv)
    _print_tables(KERNELS, arguments.arch, arguments.loops)
    return 0


if __name__ == "__main__":
    sys.exit(main())
