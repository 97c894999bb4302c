"""How the kernels of the training are compiled."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile with numba at the first call, without the GIL, and keep the machine code beside the source.

    Sums may be reordered (`fastmath`): the kernels' tests bound what that costs. Where the source's folder cannot be
    written, numba keeps the code in the user's cache directory.
    """
    return cast(Function, numba.njit(cache=True, nogil=True, fastmath=True)(function))
