"""VBZ without the GIL: the same samples as pod5's decoder, and nothing that it refuses."""

from collections.abc import Iterator

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pod5.signal_tools import vbz_compress_signal, vbz_decompress_signal

from porestream.server import vbz

SIGNALS = st.one_of(
    arrays.arrays(np.int16, st.integers(1, 100), elements=st.integers(-(1 << 15), (1 << 15) - 1)),
    arrays.arrays(np.int16, st.integers(1, 300), elements=st.integers(-70, 70)),
)


@pytest.fixture(autouse=True, scope="module")
def compiled() -> Iterator[None]:
    vbz.compile_decoder()
    yield
    vbz._compiled = None


@given(SIGNALS)
def test_samples_come_back(signal_S: np.ndarray) -> None:
    found_S = vbz.decode_vbz(vbz_compress_signal(signal_S).tobytes(), signal_S.size)
    assert found_S.dtype == np.int16
    assert found_S.tolist() == signal_S.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_chunk_is_read_as_pod5_reads_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    refused = read = 0
    for _ in range(200):
        signal_S = np.cumsum(rng.integers(-200, 200, int(rng.integers(1, 60)))).astype(np.int16)
        unpacked = bytearray(zstandard.ZstdDecompressor().decompress(vbz_compress_signal(signal_S).tobytes()))
        match rng.integers(4):
            case 0:
                unpacked[int(rng.integers(len(unpacked)))] ^= 1 << int(rng.integers(8))
            case 1:
                del unpacked[int(rng.integers(len(unpacked))) :]
            case 2:
                unpacked += bytes(int(rng.integers(1, 4)))
        count = signal_S.size + int(rng.choice([0, 0, 0, -1, 1, 9]))
        damaged = zstandard.ZstdCompressor().compress(bytes(unpacked))
        try:
            expected_S = vbz_decompress_signal(np.frombuffer(damaged, np.uint8), count) if count else None
        except (RuntimeError, ValueError):
            expected_S = None
        try:
            found_S = vbz.decode_vbz(damaged, count)
        except ValueError:
            refused += 1
            continue
        read += 1
        if expected_S is not None:
            assert found_S.tolist() == expected_S.tolist()
    assert refused
    assert read


def test_what_is_not_zstd_is_refused() -> None:
    whole = vbz_compress_signal(np.arange(3, dtype=np.int16)).tobytes()
    for wrong in (b"not zstd", whole + b"x", whole + whole, whole[:-1]):
        with pytest.raises(zstandard.ZstdError):
            vbz.decode_vbz(wrong, 3)
