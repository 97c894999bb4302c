// Packs the tasks' sequences, one byte per base, into nibbles, in the order in which the windows of dual_affine.cuh
// take them.
namespace {
typedef unsigned char u8;
}

// One sequence of a task. Base number p, counted from 1, is codes[start + (p - 1) * step].
struct Piece {
    long long start, words;  // where it begins in the pool of codes, and in the pool of packed words
    int length, step;
    int complement;          // 3: take the other strand's bases; 0: take these
    int reversed;            // whether the nibbles of a word are in reverse order
    int outside, unused;     // outside: the nibble for places before the first base and after the last
};

// Word k holds bases 8 k to 8 k + 7, the first in the lowest nibble; if `reversed`, bases 8 k down to 8 k - 7.
// Ambiguous bases are 4. One block per piece.
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
