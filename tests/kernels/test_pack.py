"""pack.cu on the emulator against NumPy."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from porestream.kernels.align.pack import Pieces, encode_bases, pack_bases, packed_words
from porestream.kernels.device import EmulatedDevice
from porestream.kernels.emulator import Schedule, scheduled


def packed(codes: npt.NDArray[np.uint8], reversed_nibbles: bool, outside: int) -> list[int]:
    """Words by hand: base p (from 1 on) in nibble p % 8 of word p // 8; reversed, 8 k down to 8 k - 7 in word k."""
    count = int(packed_words(np.array([len(codes)]), np.array([reversed_nibbles]))[0])
    words = [0] * count
    for k in range(count):
        for nibble in range(8):
            p = 8 * k - nibble if reversed_nibbles else 8 * k + nibble
            base = min(int(codes[p - 1]), 4) if 1 <= p <= len(codes) else outside
            words[k] |= base << 4 * nibble
    return words


@pytest.mark.parametrize("schedule", Schedule)
@given(seed=st.integers(0, 2**32), lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12))
@hypothesis_settings(max_examples=20)
def test_words_are_those_by_hand(schedule: Schedule, seed: int, lengths: list[int]) -> None:
    rng, count = np.random.default_rng(seed), len(lengths)
    codes = rng.integers(0, 6, sum(lengths) + 50).astype(np.uint8)
    length_N = np.array(lengths, np.int32)
    backwards_N, complement_N, reversed_N, columns_N = (rng.random(count) < 0.5 for _ in range(4))
    start_N = rng.integers(0, len(codes) - length_N.max(), count).astype(np.int64)
    start_N = np.where(backwards_N, start_N + length_N - 1, start_N)
    pieces = Pieces(codes=codes, start_N=start_N, length_N=length_N, backwards_N=backwards_N, complement_N=complement_N)
    words_N = packed_words(length_N.astype(np.int64), reversed_N)
    first_N = np.concatenate([[0], np.cumsum(words_N)[:-1]]).astype(np.int64)
    words = np.full(int(words_N.sum()) + 1, 0xDEADBEEF, np.uint32)
    with scheduled(schedule, seed):
        pack_bases(EmulatedDevice(), pieces, words, first_N, reversed_N, columns_N)
    for number in range(count):
        taken = start_N[number] + np.arange(lengths[number]) * (-1 if backwards_N[number] else 1)
        own = codes[taken]
        own = np.where(own > 3, 4, 3 - own if complement_N[number] else own).astype(np.uint8)
        expected = packed(own, bool(reversed_N[number]), 9 if columns_N[number] else 8)
        assert words[first_N[number] : first_N[number] + words_N[number]].tolist() == expected
    assert words[-1] == 0xDEADBEEF


def test_letters_are_encoded() -> None:
    assert encode_bases("ACGTUacgtuNRY-é").tolist() == [0, 1, 2, 3, 3, 0, 1, 2, 3, 3, 4, 4, 4, 4, 4]
    assert encode_bases("").tolist() == []


def test_pieces_of_sequences() -> None:
    sequences = [np.array(codes, np.uint8) for codes in ([0, 1, 2], [], [3])]
    forward, backward = Pieces.of(sequences), Pieces.of(sequences, backwards=True)
    assert forward.start_N.tolist() == [0, 3, 3]
    assert backward.start_N.tolist() == [2, 2, 3]
    assert not forward.backwards_N.any()
    assert backward.backwards_N.all()
    assert backward.take(np.array([2])).length_N.tolist() == [1]
