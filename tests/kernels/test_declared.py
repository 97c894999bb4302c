"""Kernels' parameters and structs, read from their sources."""

import numpy as np
import pytest

from porestream.kernels import declared, emulator, source
from porestream.kernels.device import EmulatedDevice

CODE = """
// extern "C" __global__ void not_this(int a);
struct Pair { long long first; int a, b; /* c */ float x; };
extern "C" __global__ void __launch_bounds__(32 * (1 + 1), MANY ? 1 : 2) much(
    const Pair* __restrict__ pairs, u8* out, const unsigned* words,  // a comment, with a comma
    unsigned long_name, long long count, float scale)
{
    if (count > 0) out[0] = 1;
}
"""


def test_parameters_are_the_sources() -> None:
    found = declared.parameters(CODE, "much")
    assert [one.name for one in found] == ["pairs", "out", "words", "long_name", "count", "scale"]
    assert [one.is_array for one in found] == [True, True, True, False, False, False]
    assert [one.dtype for one in found] == [
        None,
        *(np.dtype(kind) for kind in (np.uint8, np.uint32, np.uint32, np.int64, np.float32)),
    ]
    with pytest.raises(LookupError, match="no kernel 'not_this'"):
        declared.parameters(CODE, "not_this")


def test_structs_are_laid_out_as_in_c() -> None:
    pair = declared.struct(CODE, "Pair")
    assert pair.names == ("first", "a", "b", "x")
    assert pair.itemsize == 24  # 20, and up to what a long long is aligned to
    with pytest.raises(LookupError, match="no struct 'Other'"):
        declared.struct(CODE, "Other")


@pytest.mark.parametrize("file", sorted(path.name for path in source.FOLDER.glob("*/*.cu")))
def test_every_kernel_is_understood(file: str) -> None:
    """As many parameters, of the same sizes, as the compiler sees."""
    macros = {"K": 15, "W": 10, "KEY": "u8", "STATE_LEN": 3, "HARD": 1}
    if file in ("fill.cu", "extend.cu"):
        pytest.skip("compiled with many macros: test_fill.py and test_extend.py launch them")
    code = source.read_source(file)
    module = EmulatedDevice().compile(code, (*source.OPTIONS, *source.defines(macros)), file)
    assert isinstance(module, emulator.RawModule)
    assert module.kernels
    for name in module.kernels:
        seen = module.get_function(name)._parameters
        ours = declared.parameters(code, name)
        assert [one.is_array for one in ours] == [one.kind in (b"P", b"C") for one in seen], name
        sizes = [8 if one.is_array else one.dtype.itemsize for one in ours if one.is_array or one.dtype]
        assert sizes == [one.bytes for one in seen], name


def test_a_launch_names_what_is_wrong() -> None:
    kernel = source.load(EmulatedDevice(), "pack.cu", "pack_bases")
    codes, words = np.zeros(1, np.uint8), np.zeros(1, np.uint32)
    with pytest.raises(TypeError, match="pack_bases takes pieces, codes, words; missing or unknown: piece, pieces"):
        kernel(1, 32, piece=codes, codes=codes, words=words)
    with pytest.raises(TypeError, match="pack_bases: words must be uint32, not uint8"):
        kernel(1, 32, pieces=codes, codes=codes, words=codes)
