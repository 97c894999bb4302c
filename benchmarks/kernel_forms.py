"""Every kernel in every form that the service builds: cubin.py reads their machine code, and the first steps on a GPU
compile them (gpu_steps/compiling.py)."""

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A kernel as it is built and launched.

    Attributes
    ----------
    source
        Its file, relative to the kernels' folder or absolute.
    defines
        Macro definitions such as "R=4".
    units
        How many units a lane computes on the longest path through one iteration of the marked loop, as compiled: give
        it for `#pragma unroll 1` or a loop that is not unrolled. None if no loop is marked.
    """

    source: str
    kernel: str
    defines: tuple[str, ...]
    block_threads: int
    dynamic_shared_bytes: int = 0
    units: float | None = None
    unit: str = "cell"

    @property
    def name(self) -> str:
        """Name of the kernel and its definitions, for tables and tests."""
        return " ".join([self.kernel, *self.defines])


FORMS = [
    *(
        Form(source="extend.cu", kernel="extend", defines=(f"GROUPS={groups}",), block_threads=128, units=16 * groups)
        for groups in (1, 2, 3)
    ),
    *(
        Form(source="fill.cu", kernel="fill", defines=(f"MANY={many}",), block_threads=threads, units=16)
        for many, threads in ((0, 128), (1, 512))
    ),
    Form(source="extend.cu", kernel="extend_traceback", defines=("GROUPS=1",), block_threads=64),
    Form(source="fill.cu", kernel="fill_traceback", defines=("MANY=0",), block_threads=64),
    Form(source="pack.cu", kernel="pack_bases", defines=(), block_threads=128),
    *(
        Form(
            source="crf.cu",
            kernel=kernel,
            defines=(f"PRECISION={precision}", f"STATE_LEN={state_len}"),
            block_threads=threads,
            units=rows and rows / threads,
            unit="step",
        )
        for precision, state_len in (("FP16", 3), ("FP16", 4), ("FP16", 5), ("FP32", 4))
        for kernel, threads, rows in (  # rows: of a batch, that a block handles in a time step
            ("crf_backward", max(WARP, 4 ** (state_len - 1)), max(1, WARP // 4 ** (state_len - 1))),
            ("crf_beam", 128, 4),
            ("crf_errors", max(WARP, 4 ** (state_len - 1)), max(1, WARP // 4 ** (state_len - 1))),
            ("crf_call", 128, None),
        )
    ),
    Form(source="scores.cu", kernel="finish_scores", defines=("PRECISION=FP16",), block_threads=256),
    *(
        Form(source="sketch.cu", kernel=kernel, defines=(f"K={k}", f"W={w}"), block_threads=threads)
        for k, w in ((15, 10), (19, 19))
        for kernel, threads in (("sketch", 256), ("describe_minimizers", 128))
    ),
    *(
        Form(source="seeds.cu", kernel=kernel, defines=("KEY=u16",), block_threads=128)
        for kernel in ("look_up", "select_seeds", "expand")
    ),
    *(
        Form(source="chain.cu", kernel=kernel, defines=(), block_threads=threads)
        for kernel, threads in (("chain", 32), ("chain_far", 32), ("backtrack", 128))
    ),
    *(
        Form(source="hits.cu", kernel=kernel, defines=(), block_threads=64)
        for kernel in ("choose_chains", "plan_hits", "list_fills", "unpack", "join_hits", "choose_hits")
    ),
    *(
        Form(source="gates.cu", kernel="next_states", defines=(f"HARD={hard}", "PRECISION=FP16"), block_threads=256)
        for hard in (0, 1)
    ),
    *(
        Form(source="transformer.cu", kernel=kernel, defines=("PRECISION=FP16",), block_threads=256)
        for kernel in ("rotate", "add_norm", "gate_values")
    ),
]
