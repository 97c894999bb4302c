"""Recurrences of LSTMs on x86 processors, as machine code that LLVM (numba's) makes for one network's sizes.

A step of an LSTM is small: torch spends much of it on calling libraries and on passing over the gates again for each
activation. Here 16 hidden units of 4 rows (AVX-512) are one block: their four gates are summed in registers, turned
into the new state there, and stored once. A row's result doesn't depend on the others, and sums always run in the same
order, so a read's bytes don't depend on its batch.

Dimensions: T time steps, N rows of a batch, C hidden units and features of the input, K inner width of a low-rank LSTM.
"""

import ctypes
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from torch import nn

_GATES = 4
_WORD_BYTES = 4  # a float32, or two bf16
_ALIGNMENT = _CACHE_LINE_BYTES = 64
_CHUNK_WORDS = 64  # their weights take 16 KiB: with the next ones, most of an L1 cache
_CACHED_BYTES = 1 << 20  # weights that stay in a core's L2 cache
_SLAB_BYTES = 512 << 10  # sums of a slab, which stay there, too
_LIMIT = 28.0
"""Largest exponent of e. The sigmoid of -28 is 7e-13, and the product of three such powers still fits in float32."""

_POWERS_OF_2 = (1.0000001, 0.69314694, 0.2402212, 0.05550713, 0.009675541, 0.0013276471)
"""Polynomial for 2^x with |x| <= 1/2, least largest relative error (7.5e-8), fitted by Lawson's algorithm."""

_EXPONENT = 1.5 * 2.0**23 + 127
"""Added to a number below 2^22, it leaves no fraction: the last bits are the nearest whole number plus the exponent's
bias."""

_F32, _I8, _I32, _I64, _PTR = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.PointerType()

Vector = list[ir.Value]


class _Bf16(ir.types.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's bfloat, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bf16)

    def __hash__(self) -> int:
        return hash(_Bf16)


@dataclass(frozen=True, slots=True)
class Target:
    """What the code is made for.

    Attributes
    ----------
    cpu
        LLVM's name of the processor; "" means this one.
    lanes
        float32 numbers in a vector register: 16 with AVX-512, 8 with AVX2.
    rows
        Rows of a batch in a block.
    is_bf16
        Whether weights and features are bf16 (sums are always float32), or float32.
    features
        LLVM's names of what `cpu` has in addition.
    """

    cpu: str
    lanes: int
    rows: int
    is_bf16: bool
    features: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and features."""
        return torch.bfloat16 if self.is_bf16 else torch.float32

    @property
    def item_bytes(self) -> int:
        """Bytes per weight or feature."""
        return self.dtype.itemsize

    @property
    def per_word(self) -> int:
        """Weights or features per 32-bit word."""
        return _WORD_BYTES // self.item_bytes


AVX512_BF16 = Target("", 16, 4, is_bf16=True)
AVX512 = Target("", 16, 4, is_bf16=False)
AVX2 = Target("x86-64", 8, 2, is_bf16=False, features="+avx2,+fma")


ROWS = 4
"""A batch has a multiple of this many rows."""


@functools.cache
def target_of(dtype: torch.dtype) -> Target | None:
    """Return the fastest target of this processor for a dtype; None if torch should compute the recurrence."""
    can = torch.cpu.get_capabilities()
    if dtype == torch.float32:
        return AVX512 if can.get("avx512_f") else AVX2 if can.get("avx2") and can.get("fma3") else None
    if dtype == torch.bfloat16 and can.get("avx512_bf16") and not can.get("amx_bf16"):
        return AVX512_BF16
    return None


class _Code:
    """Builds LLVM code for a target."""

    def __init__(self, builder: ir.IRBuilder, target: Target) -> None:
        self.b, self.target = builder, target
        lanes = target.lanes
        self.f32s, self.i32s = ir.VectorType(_F32, lanes), ir.VectorType(_I32, lanes)
        self.bf16s, self.bf16_pairs = ir.VectorType(_Bf16(), lanes), ir.VectorType(_Bf16(), 2 * lanes)
        self.vector_bytes = lanes * _WORD_BYTES

    def number(self, value: float) -> ir.Constant:
        return ir.Constant(self.f32s, [value] * self.target.lanes)

    def integer(self, value: int) -> ir.Constant:
        return ir.Constant(self.i32s, [value] * self.target.lanes)

    def intrinsic(self, name: str, returns: ir.types.Type, *arguments: ir.Value) -> ir.Value:
        module = self.b.module
        function = module.globals.get(name) or ir.Function(
            module, ir.FunctionType(returns, [argument.type for argument in arguments]), name
        )
        return self.b.call(function, arguments)

    def float_op(self, name: str, *arguments: ir.Value) -> ir.Value:
        return self.intrinsic(f"llvm.{name}.v{self.target.lanes}f32", self.f32s, *arguments)

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        return self.float_op("fma", x, y, z)

    def at(self, pointer: ir.Value, *offsets: int | ir.Value) -> ir.Value:
        """Return a pointer moved by these numbers of bytes."""
        for offset in offsets:
            pointer = self.b.gep(pointer, [_i64(offset)], source_etype=_I8)
        return pointer

    def times(self, count: ir.Value, size: int) -> ir.Value:
        return self.b.mul(count, _i64(size))

    def load(self, pointer: ir.Value, kind: ir.types.Type, align: int = _ALIGNMENT) -> ir.Value:
        return self.b.load(pointer, align=min(align, self.vector_bytes), typ=kind)

    def store_features(self, features: ir.Value, pointer: ir.Value) -> None:
        """Store features in the target's dtype; bf16 is rounded to nearest, ties to even."""
        if self.target.is_bf16:
            features = self.b.fptrunc(features, self.bf16s)
        self.b.store(features, pointer, align=self.target.item_bytes)

    def splat(self, word: ir.Value) -> ir.Value:
        """Return a vector of one 32-bit word."""
        undefined = ir.Constant(self.i32s, ir.Undefined)
        mask = ir.Constant(ir.VectorType(_I32, self.target.lanes), [0] * self.target.lanes)
        return self.b.shuffle_vector(self.b.insert_element(undefined, word, ir.Constant(_I32, 0)), undefined, mask)

    @contextmanager
    def loop(self, count: ir.Value | int) -> Iterator[ir.Value]:
        """Run the body `count` times (at least once), with the index."""
        before = self.b.block
        body = self.b.append_basic_block("body")
        self.b.branch(body)
        self.b.position_at_end(body)
        index = self.b.phi(_I64)
        index.add_incoming(_i64(0), before)
        yield index
        after = self.b.append_basic_block("after")
        following = self.b.add(index, _i64(1))
        index.add_incoming(following, self.b.block)
        self.b.cbranch(self.b.icmp_signed("<", following, _i64(count)), body, after)
        self.b.position_at_end(after)

    def add_products(self, sums: ir.Value, weights: ir.Value, rows: "Rows", words: int) -> None:
        """Add to a block's sums the products of all rows with the block's weights, four vectors for each word of a row.

        The words are taken a chunk at a time, so that a chunk's weights stay in the L1 cache for all rows, and while
        they are multiplied the next chunk is fetched.
        """
        chunks = next(count for count in range(-(-words // _CHUNK_WORDS), words + 1) if words % count == 0)
        chunk_words, word_bytes = words // chunks, _GATES * self.vector_bytes
        with self.loop(chunks) as chunk:
            chunk_weights = self.at(weights, self.times(chunk, chunk_words * word_bytes))
            with self.loop(self.b.udiv(rows.count, _i64(self.target.rows))) as group:
                own = self.at(sums, self.times(group, self.target.rows * word_bytes))
                x = self.at(
                    rows.first,
                    self.times(chunk, chunk_words * _WORD_BYTES),
                    self.times(group, self.target.rows * rows.stride_bytes),
                )
                line = self.b.urem(group, _i64(max(word_bytes // _CACHE_LINE_BYTES, 1)))
                ahead = self.at(chunk_weights, chunk_words * word_bytes, self.times(line, _CACHE_LINE_BYTES))
                self._add_chunk(own, chunk_weights, x, rows.stride_bytes, chunk_words, ahead)

    def _add_chunk(
        self, sums: ir.Value, weights: ir.Value, x: ir.Value, stride_bytes: int, words: int, ahead: ir.Value
    ) -> None:
        """Add the products of a block's rows and some words."""
        places = [self.at(sums, index * self.vector_bytes) for index in range(self.target.rows * _GATES)]
        before, body = self.b.block, self.b.append_basic_block("products")
        first = [self.load(place, self.f32s) for place in places]
        self.b.branch(body)
        self.b.position_at_end(body)
        word = self.b.phi(_I64)
        word.add_incoming(_i64(0), before)
        phis = [self.b.phi(self.f32s) for _ in places]
        offset = self.times(word, _GATES * self.vector_bytes)
        weights_V = [self.load(self.at(weights, offset, v * self.vector_bytes), self.i32s) for v in range(_GATES)]
        self.prefetch(self.at(ahead, offset))
        x_word = self.at(x, self.times(word, _WORD_BYTES))
        new = []
        for r in range(self.target.rows):
            feature = self.splat(self.load(self.at(x_word, r * stride_bytes), _I32, self.target.item_bytes))
            for phi, weight in zip(phis[r * _GATES : (r + 1) * _GATES], weights_V, strict=True):
                new.append(self._multiply_add(phi, weight, feature))
        following = self.b.add(word, _i64(1))
        word.add_incoming(following, body)
        for phi, start, total in zip(phis, first, new, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(total, body)
        after = self.b.append_basic_block("summed")
        self.b.cbranch(self.b.icmp_signed("<", following, _i64(words)), body, after)
        self.b.position_at_end(after)
        for place, total in zip(places, new, strict=True):
            self.b.store(total, place, align=self.vector_bytes)

    def prefetch(self, pointer: ir.Value) -> None:
        """Fetch a cache line into L1 ahead of time; any address is allowed."""
        flags = (ir.Constant(_I32, flag) for flag in (0, 3, 1))  # to read, keep in all caches, data
        self.intrinsic("llvm.prefetch.p0", ir.VoidType(), pointer, *flags)

    def _multiply_add(self, total: ir.Value, weight: ir.Value, feature: ir.Value) -> ir.Value:
        if self.target.is_bf16:  # two products a lane
            pairs = (self.b.bitcast(feature, self.bf16_pairs), self.b.bitcast(weight, self.bf16_pairs))
            return self.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", self.f32s, total, *pairs)
        return self.fma(self.b.bitcast(feature, self.f32s), self.b.bitcast(weight, self.f32s), total)

    def between(self, low: float, x: ir.Value, high: float) -> ir.Value:
        """Limit x; what is not a number stays so, as a bad read must not look like a good one."""
        x = self.b.select(self.b.fcmp_ordered(">", x, self.number(high)), self.number(high), x)
        return self.b.select(self.b.fcmp_ordered("<", x, self.number(low)), self.number(low), x)

    def exp(self, x: ir.Value, factor: float) -> ir.Value:
        """Return e^(factor x), with the exponent limited to +-28; relative error about 1e-7 near 1."""
        limit = _LIMIT / math.log(2)
        power = self.between(-limit, self.b.fmul(x, self.number(factor / math.log(2))), limit)  # of 2
        biased = self.b.fadd(power, self.number(_EXPONENT))  # its last bits are the exponent of the nearest power of 2
        rest = self.b.fsub(power, self.b.fsub(biased, self.number(_EXPONENT)))
        mantissa: ir.Value = self.number(_POWERS_OF_2[-1])
        for coefficient in reversed(_POWERS_OF_2[:-1]):
            mantissa = self.fma(mantissa, rest, self.number(coefficient))
        scale = self.b.bitcast(self.b.shl(self.b.bitcast(biased, self.i32s), self.integer(23)), self.f32s)
        return self.b.fmul(mantissa, scale)

    def new_state(self, gates_V: Vector, cell: ir.Value, is_hard: bool) -> tuple[ir.Value, ir.Value]:
        """Return the cell and the hidden state after a step, from the sums of the gates i, f, g, o.

        cell = sigmoid(f) cell + sigmoid(i) tanh(g); hidden = sigmoid(o) tanh(cell): each over one denominator. Hard
        gates are piecewise linear instead: sigmoid(x) is 0.2 x + 0.5 between 0 and 1, tanh(x) is x between -1 and 1;
        the last tanh stays.
        """
        one, b = self.number(1), self.b
        if is_hard:
            fifth, half = self.number(0.2), self.number(0.5)
            i, f, o = (self.between(0, self.fma(gates_V[v], fifth, half), 1) for v in (0, 1, 3))
            cell = self.fma(f, cell, b.fmul(i, self.between(-1, gates_V[2], 1)))
            e_c = self.exp(cell, -2)
            return cell, b.fmul(o, b.fdiv(b.fsub(one, e_c), b.fadd(one, e_c)))
        e_i, e_f, e_g, e_o = (self.exp(gate, -2 if v == 2 else -1) for v, gate in enumerate(gates_V))
        by_i, by_f, by_g, by_o = (b.fadd(one, e) for e in (e_i, e_f, e_g, e_o))
        by_ig = b.fmul(by_i, by_g)
        cell = b.fdiv(self.fma(cell, by_ig, b.fmul(b.fsub(one, e_g), by_f)), b.fmul(by_ig, by_f))
        e_c = self.exp(cell, -2)
        return cell, b.fdiv(b.fsub(one, e_c), b.fmul(by_o, b.fadd(one, e_c)))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of features in memory."""

    first: ir.Value
    stride_bytes: int
    count: ir.Value


@dataclass(frozen=True, slots=True)
class Sizes:
    """A recurrence's sizes.

    Attributes
    ----------
    width
        C.
    inner
        K of a low-rank LSTM, padded to whole blocks; 0 for an ordinary LSTM.
    is_hard
        Whether gates are piecewise linear (`_Code.new_state`).
    """

    width: int
    inner: int
    is_hard: bool


class Recurrence:
    """One LSTM, ordinary or low-rank, that runs along time. Thread-safe.

    Parameters
    ----------
    gates_ih, gates_hh
        Weights of the gates i, f, g, o: (4 C, C), or (4 C, K) if it is low-rank.
    bias
        The sum of both biases, (4 C).
    inner_ih, inner_hh
        Of a low-rank LSTM: weights (K, C) from the input and the hidden state to their inner features.
    """

    def __init__(
        self,
        target: Target,
        gates_ih: torch.Tensor,
        gates_hh: torch.Tensor,
        bias: torch.Tensor,
        inner_ih: torch.Tensor | None = None,
        inner_hh: torch.Tensor | None = None,
        *,
        is_hard: bool = False,
    ) -> None:
        width, block = len(bias) // _GATES, _GATES * target.lanes
        inner = 0 if inner_ih is None else -(-len(inner_ih) // block) * block
        self._target, self._sizes = target, Sizes(width, inner, is_hard)
        self._run = _compiled(target, self._sizes)
        ins = inner or width
        gates = [nn.functional.pad(weights, (0, ins - weights.shape[1])) for weights in (gates_ih, gates_hh)]
        self._gates = [
            _packed(weights.reshape(_GATES, width // target.lanes, target.lanes, ins).transpose(0, 1), target)
            for weights in gates
        ]
        self._bias = _aligned(bias.float().view(_GATES, width // target.lanes, target.lanes).transpose(0, 1))
        self._inner = [
            _packed(
                nn.functional.pad(weights, (0, 0, 0, inner - len(weights))).view(-1, _GATES, target.lanes, width),
                target,
            )
            for weights in (inner_ih, inner_hh)
            if weights is not None
        ]

    @staticmethod
    def fits(target: Target, width: int) -> bool:
        """Whether LSTMs of `width` are a whole number of blocks."""
        return width % target.lanes == 0

    def __call__(self, x_TNC: torch.Tensor, reverse: bool, out_TNC: torch.Tensor | None = None) -> torch.Tensor:
        """Return the hidden states, (T, N, C), forwards or backwards in time.

        x is contiguous, and of the target's dtype; N is a multiple of ROWS. `out_TNC` is like x, or None for a new one.
        """
        sizes, target = self._sizes, self._target
        steps, rows, width = x_TNC.shape
        given = width, x_TNC.dtype, x_TNC.device.type, rows % ROWS, x_TNC.is_contiguous() and x_TNC.numel() > 0
        if given != (expected := (sizes.width, target.dtype, "cpu", 0, True)):  # the code reads memory without looking
            raise ValueError(f"compiled for C, dtype, device, N % {ROWS}, contiguous = {expected}, not {given}")
        y_TNC = torch.empty_like(x_TNC) if out_TNC is None else out_TNC
        cells = _aligned(torch.zeros(rows * width))
        slab_steps = self._slab_steps(steps, rows)
        features = rows * (width + sizes.inner * (1 + slab_steps))
        sums = slab_steps * rows * _GATES * (width + (target.lanes if sizes.inner else 0))
        spare = _aligned(torch.zeros(features + sums * _WORD_BYTES // x_TNC.element_size(), dtype=x_TNC.dtype))
        tensors = (x_TNC, y_TNC, spare, cells, *self._gates, self._bias, *self._inner)
        self._run(*(tensor.data_ptr() for tensor in tensors), steps, slab_steps, rows, reverse)
        return y_TNC

    def _slab_steps(self, steps: int, rows: int) -> int:
        """Return how many steps' sums to start at once: more than one if the weights don't stay in a core's cache."""
        if sum(weights.nbytes for weights in (*self._gates, *self._inner)) < _CACHED_BYTES:
            return 1
        return min(steps, max(1, _SLAB_BYTES // (rows * _GATES * self._sizes.width * _WORD_BYTES)))


def _packed(weights_BVLI: torch.Tensor, target: Target) -> torch.Tensor:
    """Order weights as `_Code.add_products` reads them: for each block and word of the input, four vectors of lanes."""
    *shape, ins = weights_BVLI.shape
    words = weights_BVLI.reshape(*shape, ins // target.per_word, target.per_word)
    return _aligned(words.permute(0, 3, 1, 2, 4).to(target.dtype))


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to a place where vectors can be loaded."""
    size = tensor.numel() * tensor.element_size()
    place = torch.empty(size + _ALIGNMENT, dtype=torch.uint8)
    first = -place.data_ptr() % _ALIGNMENT
    return place[first : first + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)


@functools.cache
def _compiled(target: Target, sizes: Sizes) -> Callable[..., None]:
    """Compile the loop over time, which runs without the GIL."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu = target.cpu or llvm.get_host_cpu_name()
    features = target.features if target.cpu else llvm.get_host_cpu_features().flatten()
    # 512-bit vectors, where LLVM would rather use two of 256 bits
    features += ",-prefer-256-bit" if target.lanes == AVX512.lanes else ""
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features.strip(","), opt=3)
    module = llvm.parse_assembly(str(_module(target, sizes)))
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    arguments = [ctypes.c_void_p] * (9 if sizes.inner else 7) + [ctypes.c_int64] * 4
    function = ctypes.CFUNCTYPE(None, *arguments)(engine.get_function_address("run"))
    function.engine = engine  # type: ignore[attr-defined]  # which owns the code
    return function


def _module(target: Target, sizes: Sizes) -> ir.Module:
    """Write the loop over time.

    For each slab of steps, block by block of hidden units, the input's part of the gates' sums. Then for each step,
    block by block, the hidden state's part, and the new state. If the LSTM is low-rank, inner features come first. So
    the weights of the input, which may not stay in a core's cache, are fetched once for a slab.
    """
    module = ir.Module("recurrence")
    pointers = [_PTR] * (9 if sizes.inner else 7)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*pointers, *[_I64] * 4]), "run")
    for argument in function.args[: len(pointers)]:
        argument.add_attribute("noalias")
    x, y, spare, cells, gates_ih, gates_hh, bias, *inner, steps, slab_steps, row_count, reverse = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    code = _Code(b, target)
    row_bytes, inner_bytes = sizes.width * target.item_bytes, sizes.inner * target.item_bytes
    step_bytes = b.mul(row_count, _i64(row_bytes))
    gate_words = (sizes.inner or sizes.width) // target.per_word
    blocks, block_bytes = sizes.width // target.lanes, _GATES * code.vector_bytes
    is_reverse = b.icmp_signed("!=", reverse, _i64(0))
    slab_rows = b.mul(slab_steps, row_count)
    # The spare memory: zeros for the hidden states before the first step, inner features of a step and of a slab, the
    # sums of a block for those, and the sums of all blocks for a slab.
    step_inner = code.at(spare, step_bytes)
    slab_inner = code.at(step_inner, code.times(row_count, inner_bytes))
    inner_sums = code.at(slab_inner, code.times(slab_rows, inner_bytes))
    sums = code.at(inner_sums, code.times(slab_rows, block_bytes if inner else 0))
    step_sums_bytes = code.times(row_count, block_bytes)

    def sums_of(block: ir.Value) -> ir.Value:
        return code.at(sums, b.mul(block, code.times(slab_rows, block_bytes)))

    def weights_of(gates: ir.Value, block: ir.Value) -> ir.Value:
        return code.at(gates, code.times(block, gate_words * block_bytes))

    slabs = b.udiv(b.add(steps, b.sub(slab_steps, _i64(1))), slab_steps)
    with code.loop(slabs) as slab:
        done = b.mul(slab, slab_steps)
        left = b.sub(steps, done)
        count = b.select(b.icmp_signed("<", left, slab_steps), left, slab_steps)
        first = b.select(is_reverse, b.sub(left, count), done)  # the slab's first step in memory
        rows = Rows(code.at(x, b.mul(first, step_bytes)), row_bytes, b.mul(count, row_count))
        if inner:
            part = Rows(slab_inner, inner_bytes, rows.count)
            _inner_features(code, sizes, inner[0], rows, part, inner_sums)
            rows = part
        with code.loop(blocks) as block:
            biases = code.at(bias, code.times(block, block_bytes))
            biases_V = [code.load(code.at(biases, v * code.vector_bytes), code.f32s) for v in range(_GATES)]
            _start_sums(code, rows.count, sums_of(block), biases_V)
            code.add_products(sums_of(block), weights_of(gates_ih, block), rows, gate_words)
        with code.loop(count) as index:
            place = b.select(is_reverse, b.sub(b.sub(count, _i64(1)), index), index)  # in the slab
            time = b.add(first, place)
            before = b.select(is_reverse, b.add(time, _i64(1)), b.sub(time, _i64(1)))
            y_now, y_before = (code.at(y, b.mul(one, step_bytes)) for one in (time, before))
            is_first = b.icmp_signed("==", b.add(done, index), _i64(0))
            rows = Rows(b.select(is_first, spare, y_before), row_bytes, row_count)
            if inner:
                part = Rows(step_inner, inner_bytes, row_count)
                _inner_features(code, sizes, inner[1], rows, part, inner_sums)
                rows = part
            with code.loop(blocks) as block:
                step_sums = code.at(sums_of(block), b.mul(place, step_sums_bytes))
                code.add_products(step_sums, weights_of(gates_hh, block), rows, gate_words)
                own_cells = code.at(cells, b.mul(block, code.times(row_count, code.vector_bytes)))
                out = code.at(y_now, code.times(block, target.lanes * target.item_bytes))
                with code.loop(row_count) as row:
                    own, cell = (
                        code.at(part, code.times(row, size))
                        for part, size in ((step_sums, block_bytes), (own_cells, code.vector_bytes))
                    )
                    gates_V = [code.load(code.at(own, v * code.vector_bytes), code.f32s) for v in range(_GATES)]
                    state, features = code.new_state(gates_V, code.load(cell, code.f32s), sizes.is_hard)
                    b.store(state, cell, align=code.vector_bytes)
                    code.store_features(features, code.at(out, code.times(row, row_bytes)))
    b.ret_void()
    return module


def _inner_features(code: _Code, sizes: Sizes, weights: ir.Value, rows: Rows, out: Rows, sums: ir.Value) -> None:
    """Write the loop that multiplies one step's rows with a (K, C) matrix, block by block of four vectors."""
    target = code.target
    words = sizes.width // target.per_word
    with code.loop(sizes.inner // (_GATES * target.lanes)) as block:
        _start_sums(code, rows.count, sums, [code.number(0)] * _GATES)
        code.add_products(sums, code.at(weights, code.times(block, words * _GATES * code.vector_bytes)), rows, words)
        block_out = code.at(out.first, code.times(block, _GATES * target.lanes * target.item_bytes))
        with code.loop(rows.count) as row:
            for v in range(_GATES):
                place = code.at(sums, code.times(row, _GATES * code.vector_bytes), v * code.vector_bytes)
                row_out = code.at(block_out, code.times(row, out.stride_bytes), v * target.lanes * target.item_bytes)
                code.store_features(code.load(place, code.f32s), row_out)


def _start_sums(code: _Code, row_count: ir.Value, sums: ir.Value, first_V: Vector) -> None:
    """Write the loop that sets the sums of all rows of a block."""
    with code.loop(row_count) as row:
        for v, first in enumerate(first_V):
            place = code.at(sums, code.times(row, _GATES * code.vector_bytes), v * code.vector_bytes)
            code.b.store(first, place, align=code.vector_bytes)


def _i64(value: int | ir.Value) -> ir.Value:
    return ir.Constant(_I64, value) if isinstance(value, int) else value
