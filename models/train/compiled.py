"""Compiles the training kernels."""

from porestream.models.call.compiled import Function, compile_kept


def compiled(function: Function) -> Function:
    """Compile with numba at the first call, without the GIL, and keep the machine code in the user's cache directory.

    Sums may be reordered (`fastmath`); the kernels' tests limit the error that this causes.
    """
    return compile_kept(function, nogil=True, fastmath=True)
