// Sequences of tasks, a base a byte, into nibbles in the order in which dual_affine.cuh's windows take them.
namespace {
typedef unsigned char u8;
}

// A sequence of a task. Base number p, from 1 on, is codes[start + (p - 1) * step].
struct Piece {
    long long start, words;  // where in the pool of codes, and in that of packed words
    int length, step;
    int complement;          // 3: the other strand's bases; 0: these
    int reversed;            // order of the nibbles in a word
    int outside, unused;     // what stands for bases before the first and after the last
};

// Word k has the bases 8 k to 8 k + 7, the first in the lowest nibble; `reversed`: 8 k down to 8 k - 7. Ambiguous bases are 4;
// A block a piece.
extern "C" __global__ void pack_bases(
    const Piece* __restrict__ pieces, const u8* __restrict__ codes, unsigned* __restrict__ words)
{
    const Piece piece = pieces[blockIdx.x];
    const int count = (piece.reversed ? piece.length + 7 : piece.length) / 8 + 1;
    for (int k = threadIdx.x; k < count; k += blockDim.x) {
        unsigned word = 0;
#pragma unroll
        for (int nibble = 0; nibble < 8; ++nibble) {
            const int p = piece.reversed ? 8 * k - nibble : 8 * k + nibble;
            unsigned base = piece.outside;
            if (p >= 1 && p <= piece.length) {
                base = codes[piece.start + (long long)(p - 1) * piece.step];
                base = base > 3 ? 4 : base ^ piece.complement;
            }
            word |= base << 4 * nibble;
        }
        words[piece.words + k] = word;
    }
}
