// Cells of dual affine alignment: minimap2's recurrence (ksw2_extd2; Gotoh 1982 with two gap costs), eight cells at a time.
//
// What is called E consumes a base of the sequence along the columns, F one of the sequence along the rows. E and F of a cell
// are kept as what they are worth to the next cell ("outgoing"), so that neighbours hand on gaps and no scores:
//   H = max(diagonal H + score, E1, F1, E2, F2);  outgoing E1 = max(E1 - extend1, H - open1 - extend1), and so on.
// All scores rise by DRIFT with each anti-diagonal. A mismatch then adds nothing, a match 2 STEP, an ambiguous base STEP, so
// that H never falls along a diagonal and needs no floor, and extending a short gap costs nothing at minimap2's scores.
//
// PACKED: two cells a register, 15 bits each: sums are plain 32-bit additions that carry nothing from one cell to the next,
// and the maximum of halves is one instruction (DPX on sm_90 and later; before, that of half floats, which order positive
// integers up to 0x7bff as numbers). Scores are shifted down now and then; kernels/align/extend.py says when 15 bits are enough.
// Otherwise: a cell a register.
#ifndef PACKED
#define PACKED 1
#endif
#ifndef MATCH
#define MATCH 2
#define MISMATCH 4
#define AMBIGUOUS 1
#define OPEN1 4
#define EXTEND1 2
#define OPEN2 24
#define EXTEND2 1
#endif
#if defined(EMULATED_ARCH)
#define ARCH EMULATED_ARCH
#elif defined(__CUDA_ARCH__)
#define ARCH __CUDA_ARCH__
#else
#define ARCH 900
#endif

#ifndef INT_MIN  // NVRTC has no limits.h
#define INT_MIN (-2147483647 - 1)
#endif

namespace {
static_assert(MATCH == MISMATCH - 2 * AMBIGUOUS && MISMATCH % 2 == 0, "a cell's score must be a multiple of STEP");
constexpr int DRIFT = MISMATCH / 2, STEP = MISMATCH - AMBIGUOUS;
constexpr unsigned ALL = 0xffffffffu;
constexpr unsigned ONE = PACKED ? 0x00010001u : 1u;         // 1 in each cell of a register
constexpr int WORDS = PACKED ? 4 : 8;                       // registers of a group of eight cells
constexpr unsigned HALF = PACKED ? 0x7fffu : 0x7fffffffu;   // the sign bit of HALF + x is set where x > 0
constexpr int FLOOR = 64 + OPEN1 + EXTEND1 + OPEN2 + EXTEND2;  // of cells that nothing leads to; gaps they open stay above 0
constexpr int TARGET = PACKED ? 20000 : 1 << 28;            // scores begin there, and are brought back there
constexpr int INTERVAL = 256;                               // steps between two times
constexpr unsigned ROW_OUTSIDE = 0x88888888u, COLUMN_OUTSIDE = 0x99999999u;  // bases outside match nothing, not each other

typedef unsigned char u8;

__device__ __forceinline__ unsigned most(unsigned a, unsigned b)
{
#if !PACKED
    return max(a, b);
#elif ARCH >= 900
    return __vmaxu2(a, b);
#elif defined(__CUDA_EMU__)
    return emu_max_f16x2_bits(a, b);
#else
    unsigned larger;
    asm("max.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
#endif
}

__device__ __forceinline__ unsigned most_of_five(unsigned a, unsigned b, unsigned c, unsigned d, unsigned e)
{
#if PACKED && ARCH >= 900
    return __vimax3_u16x2(__vimax3_u16x2(a, b, c), d, e);
#else
    return most(most(most(a, b), most(c, d)), e);
#endif
}

// The larger of a - cost and b, cell by cell.
template <int cost>
__device__ __forceinline__ unsigned most_after(unsigned a, unsigned b)
{
    if (cost == 0) return most(a, b);
#if PACKED && ARCH >= 900
    return __viaddmax_u16x2(a, (unsigned)(-cost & 0xffff) * ONE, b);
#else
    return most(a - (unsigned)cost * ONE, b);
#endif
}

// A register of two cells shifted by one cell: the high cell of `before`, then the low one of `own`.
__device__ __forceinline__ unsigned join(unsigned before, unsigned own) { return __funnelshift_l(before, own, 16); }

#if PACKED
// 0xff in a byte for each sign: of a's low and high cell, of b's low and high cell.
__device__ __forceinline__ unsigned signs(unsigned a, unsigned b)
{
#ifdef __CUDA_EMU__
    return emu_prmt(a, b, 0xfdb9);
#else
    unsigned bytes;
    asm("prmt.b32 %0, %1, %2, 0xfdb9;" : "=r"(bytes) : "r"(a), "r"(b));
    return bytes;
#endif
}
#endif

// Of eight pairs of bases 2 in the nibble where they match, 1 where one is ambiguous (4), else 0.
__device__ __forceinline__ unsigned compare(unsigned rows, unsigned columns)
{
    const unsigned differ = rows ^ columns;
    const unsigned ambiguous = (rows | columns) >> 2 & 0x11111111u;
    const unsigned equal = ~(differ | differ >> 1 | differ >> 3 | ambiguous) & 0x11111111u;
    return equal * 2 + ambiguous;
}

// Which way scores came, of eight cells: two registers. Of a cell four bits where it came from (H is more than the diagonal,
// E1, F1, E2; with `right` F2 in place of the diagonal), and four whether the outgoing E1, F1, E2, F2 extend.
struct Directions {
    unsigned word[2];

    __device__ __forceinline__ Directions() : word{0, 0} {}

#if PACKED
    // Bytes 0 and 1 have the first four bits of the low and the high cell, bytes 2 and 3 the others; registers 0 and 1 of a
    // group share them, and 2 and 3.
    __device__ __forceinline__ void add(int w, const unsigned (&came)[4], const unsigned (&extends)[4])
    {
#pragma unroll
        for (int k = 0; k < 4; ++k) word[w >> 1] |= signs(came[k], extends[k]) & 0x01010101u << (k + 4 * (w & 1));
    }
#else
    // A byte a cell, the first of four in the highest.
    __device__ __forceinline__ void add(int w, const unsigned (&came)[4], const unsigned (&extends)[4])
    {
#pragma unroll
        for (int k = 0; k < 4; ++k) word[w >> 2] = __funnelshift_l(extends[3 - k], word[w >> 2], 1);
#pragma unroll
        for (int k = 0; k < 4; ++k) word[w >> 2] = __funnelshift_l(came[3 - k], word[w >> 2], 1);
    }
#endif
};

// A cell's four bits where it came from, and above them the four of extension.
__device__ __forceinline__ unsigned direction_of(const unsigned* words, int cell)
{
#if PACKED
    const unsigned shifted = words[cell >> 1 & 1] >> (8 * (cell >> 2) + 4 * (cell & 1));
    return (shifted & 15) | (shifted >> 12 & 0xf0);
#else
    return words[cell >> 2] >> 8 * (3 - (cell & 3)) & 0xff;
#endif
}

// One register of cells: h is the diagonal's H and becomes the cells' own; e and f are the neighbours' and become outgoing.
__device__ __forceinline__ void update(unsigned score, unsigned& h, unsigned& e1, unsigned& e2, unsigned& f1, unsigned& f2,
                                       bool right, unsigned right_one, int w, Directions& directions)
{
    constexpr int FIRST1 = OPEN1 + EXTEND1 - DRIFT, FIRST2 = OPEN2 + EXTEND2 - DRIFT;
    constexpr int NEXT1 = EXTEND1 - DRIFT, NEXT2 = EXTEND2 - DRIFT;
    const unsigned diagonal = h + score * STEP;
    h = most_of_five(diagonal, e1, f1, e2, f2);
    // A gap extends where that is worth more than opening it here; with `right` also where it is worth the same.
    const unsigned extend1 = (HALF + (unsigned)(FIRST1 - NEXT1)) * ONE + right_one;
    const unsigned extend2 = (HALF + (unsigned)(FIRST2 - NEXT2)) * ONE + right_one;
    const unsigned came[4] = {h - (right ? f2 : diagonal) + HALF * ONE, h - e1 + HALF * ONE, h - f1 + HALF * ONE, h - e2 + HALF * ONE};
    const unsigned extends[4] = {e1 - h + extend1, f1 - h + extend1, e2 - h + extend2, f2 - h + extend2};
    directions.add(w, came, extends);
    const unsigned open1 = h - FIRST1 * ONE, open2 = h - FIRST2 * ONE;
    e1 = most_after<NEXT1>(e1, open1), f1 = most_after<NEXT1>(f1, open1);
    e2 = most_after<NEXT2>(e2, open2), f2 = most_after<NEXT2>(f2, open2);
}

__device__ __forceinline__ unsigned score_of(unsigned compared, int w)
{
    return compared >> 4 * w & 3 * ONE;
}

// Of a register's cells the largest.
__device__ __forceinline__ unsigned largest(unsigned word)
{
    return PACKED ? max(word & 0xffffu, word >> 16) : word;
}

// Cell 0 to 7 of a group.
__device__ __forceinline__ unsigned cell_of(const unsigned* words, int cell)
{
    return PACKED ? words[cell & 3] >> 16 * (cell >> 2) & 0xffffu : words[cell];
}

// Every cell lower by `by`, but not below FLOOR.
__device__ __forceinline__ unsigned lowered(unsigned word, unsigned by)
{
    return most(word, (FLOOR + by) * ONE) - by * ONE;
}

__device__ __forceinline__ unsigned bases_at(const unsigned* words, int count, int k, unsigned outside)
{
    return (unsigned)k < (unsigned)count ? __ldg(words + k) : outside;
}
}  // namespace

// A task: two sequences as `pack_bases` leaves them, and where directions and CIGAR go. Rows and columns are their lengths.
struct Task {
    long long row_words, column_words;  // where in the pool of packed bases
    long long directions, cigar;        // where in their pools, in words
    int rows, columns;
    int first_diagonal;  // of the band: column - row; a multiple of 16
    int flags;
};

struct Result {
    int score;                 // of the best cell, or of the corner
    int row, column;           // where it is: bases consumed
    int dropped;               // 1: the z-drop test ended it
    int row_end_score, row_end_column;  // the best of all rows' end, and its column; INT_MIN: not reached
    int corner_score;          // of all rows and all columns; INT_MIN: not reached
    int operations;            // of the CIGAR
};

namespace {
enum { RIGHT = 1, GLOBAL = 2, COLUMNS_ARE_QUERY = 4, FORWARD = 8 };

// Walks back from a cell and writes the CIGAR (BAM's encoding: M 0, I 1, D 2), from its end to its start.
//
// Of equal ways the first of M, D, I, long D, long I is taken, with RIGHT the last (ksw2_extd2_sse.c). E is a deletion,
// or an insertion where the columns are the query's.
template <class WordsOf>
__device__ __forceinline__ int walk_back(const Task& task, int row, int column, unsigned* cigar, WordsOf words_of)
{
    enum { DIAGONAL, E1, F1, E2, F2 };
    const bool right = task.flags & RIGHT, swapped = task.flags & COLUMNS_ARE_QUERY;
    int state = DIAGONAL, operations = 0, operation = -1;
    unsigned length = 0;
    bool in_gap = false;
    while (row > 0 || column > 0) {
        int cell;
        const unsigned* words = words_of(row, column, cell);
        const unsigned bits = direction_of(words, cell), same = ~bits;
        if (in_gap) {  // does the gap that this cell handed on extend one, or begin here?
            const int slot = state - 1;  // E1, F1, E2, F2
            if (!(bits >> (4 + slot) & 1)) in_gap = false;
        }
        if (!in_gap) {
            const bool e1 = same & 2, f1 = same & 4, e2 = same & 8, either = same & 1;
            if (!right)
                state = either ? DIAGONAL : swapped ? (f1 ? F1 : e1 ? E1 : e2 ? E2 : F2) : (e1 ? E1 : f1 ? F1 : e2 ? E2 : F2);
            else
                state = swapped ? (e2 ? E2 : either ? F2 : e1 ? E1 : f1 ? F1 : DIAGONAL)
                                : (either ? F2 : e2 ? E2 : f1 ? F1 : e1 ? E1 : DIAGONAL);
        }
        int now = 0;
        if (state == DIAGONAL) --row, --column;
        else if (state == E1 || state == E2) --column, now = swapped ? 1 : 2, in_gap = true;
        else --row, now = swapped ? 2 : 1, in_gap = true;
        if (now == operation) ++length;
        else {
            if (operation >= 0) cigar[operations++] = length << 4 | operation;
            operation = now, length = 1;
        }
    }
    if (operation >= 0) cigar[operations++] = length << 4 | operation;
    return operations;
}
}  // namespace
