// Computes cells of dual affine alignment, eight at a time, with minimap2's recurrence (ksw2_extd2; Gotoh 1982 with two
// gap costs).
//
// E consumes a base of the sequence along the columns, F one of the sequence along the rows. A cell keeps E and F as
// what they are worth to the next cell ("outgoing"), so neighbours pass on gaps, not scores:
//   H = max(diagonal H + score, E1, F1, E2, F2);  outgoing E1 = max(E1 - extend1, H - open1 - extend1), and so on.
// All scores rise by DRIFT with each anti-diagonal. A mismatch then adds nothing, a match 2 STEP, an ambiguous base
// STEP. So H never falls along a diagonal and needs no floor, and with minimap2's scores, extending a short gap costs
// nothing.
//
// A register holds two cells, 15 bits each. Sums are plain 32-bit additions, which carry nothing from one cell to the
// next. The maximum of both halves is one instruction: DPX on sm_90 and later, or else the maximum of half floats,
// which sort positive integers up to 0x7bff correctly. Scores are shifted down now and then; Scoring.fits_packed in
// kernels/align/tasks.py says when 15 bits are enough, and scores that need more are refused.
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
constexpr unsigned ONE = 0x00010001u;                       // 1 in each cell of a register
constexpr int WORDS = 4;                                    // registers per group of eight cells
constexpr unsigned HALF = 0x7fffu;                          // the sign bit of HALF + x is set if x > 0
constexpr int FLOOR = 64 + OPEN1 + EXTEND1 + OPEN2 + EXTEND2;  // for cells nothing leads to; gaps opened there stay > 0
constexpr int TARGET = 20000;                               // where scores begin, and are brought back to
constexpr int INTERVAL = 256;                               // steps between bringing scores back
constexpr unsigned ROW_OUTSIDE = 0x88888888u, COLUMN_OUTSIDE = 0x99999999u;  // match nothing, not even each other

typedef unsigned char u8;

__device__ __forceinline__ unsigned most(unsigned a, unsigned b)
{
#if ARCH >= 900
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
#if ARCH >= 900
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
#if ARCH >= 900
    return __viaddmax_u16x2(a, (unsigned)(-cost & 0xffff) * ONE, b);
#else
    return most(a - (unsigned)cost * ONE, b);
#endif
}

// Shifts a register of two cells by one cell: the high cell of `before`, then the low one of `own`.
__device__ __forceinline__ unsigned join(unsigned before, unsigned own) { return __funnelshift_l(before, own, 16); }

// Returns a byte for each sign, 0xff if it is set: those of a's low and high cell, then those of b's.
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

// Compares eight pairs of bases: a nibble is 2 if they match, 1 if one of them is ambiguous (4), and 0 otherwise.
__device__ __forceinline__ unsigned compare(unsigned rows, unsigned columns)
{
    const unsigned differ = rows ^ columns;
    const unsigned ambiguous = (rows | columns) >> 2 & 0x11111111u;
    const unsigned equal = ~(differ | differ >> 1 | differ >> 3 | ambiguous) & 0x11111111u;
    return equal * 2 + ambiguous;
}

// Where the scores of eight cells came from, in two registers. Four bits per cell say where H came from (each is set if
// H is more than the diagonal, E1, F1, E2; with `right`, F2 replaces the diagonal), and four whether the outgoing E1,
// F1, E2, F2 extend a gap.
struct Directions {
    unsigned word[2];

    __device__ __forceinline__ Directions() : word{0, 0} {}

    // Bytes 0 and 1 hold the first four bits of the low and the high cell, bytes 2 and 3 the other four. Registers 0
    // and 1 of a group share a word, and so do 2 and 3.
    __device__ __forceinline__ void add(int w, const unsigned (&came)[4], const unsigned (&extends)[4])
    {
#pragma unroll
        for (int k = 0; k < 4; ++k) word[w >> 1] |= signs(came[k], extends[k]) & 0x01010101u << (k + 4 * (w & 1));
    }
};

// Returns a cell's four bits for where H came from and, above them, its four for extension.
__device__ __forceinline__ unsigned direction_of(const unsigned* words, int cell)
{
    const unsigned shifted = words[cell >> 1 & 1] >> (8 * (cell >> 2) + 4 * (cell & 1));
    return (shifted & 15) | (shifted >> 12 & 0xf0);
}

// Updates one register of cells: h is the diagonal's H and becomes the cells' own; e and f are the neighbours' and
// become outgoing.
__device__ __forceinline__ void update(unsigned score, unsigned& h, unsigned& e1, unsigned& e2, unsigned& f1, unsigned& f2,
                                       bool right, unsigned right_one, int w, Directions& directions)
{
    constexpr int FIRST1 = OPEN1 + EXTEND1 - DRIFT, FIRST2 = OPEN2 + EXTEND2 - DRIFT;
    constexpr int NEXT1 = EXTEND1 - DRIFT, NEXT2 = EXTEND2 - DRIFT;
    const unsigned diagonal = h + score * STEP;
    h = most_of_five(diagonal, e1, f1, e2, f2);
    // A gap is extended if that is worth more than opening it here; with `right`, also if it is worth the same.
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

// Returns the largest of a register's cells.
__device__ __forceinline__ unsigned largest(unsigned word)
{
    return max(word & 0xffffu, word >> 16);
}

// Returns cell 0 to 7 of a group.
__device__ __forceinline__ unsigned cell_of(const unsigned* words, int cell)
{
    return words[cell & 3] >> 16 * (cell >> 2) & 0xffffu;
}

// Lowers every cell by `by`, but not below FLOOR.
__device__ __forceinline__ unsigned lowered(unsigned word, unsigned by)
{
    return most(word, (FLOOR + by) * ONE) - by * ONE;
}

__device__ __forceinline__ unsigned bases_at(const unsigned* words, int count, int k, unsigned outside)
{
    return (unsigned)k < (unsigned)count ? __ldg(words + k) : outside;
}
}  // namespace

// A task: two sequences packed by `pack_bases`, and where its directions and CIGAR go. `rows` and `columns` are the
// lengths of the sequences.
struct Task {
    long long row_words, column_words;  // where they begin in the pool of packed bases
    long long directions, cigar;        // where they begin in their pools, in words
    int rows, columns;
    int first_diagonal;  // of the band (column - row); a multiple of 16
    int flags;
};

struct Result {
    int score;                 // of the best cell, or of the corner
    int row, column;           // where that cell is: bases consumed
    int dropped;               // 1: the z-drop test ended the task
    int row_end_score, row_end_column;  // the best in the last row, and its column; INT_MIN: not reached
    int corner_score;          // in the last row and column; INT_MIN: not reached
    int operations;            // in the CIGAR
};

namespace {
enum { RIGHT = 1, GLOBAL = 2, COLUMNS_ARE_QUERY = 4, FORWARD = 8 };

// Walks back from a cell and writes the CIGAR (BAM's encoding: M 0, I 1, D 2), from its end to its start.
//
// Of equally good ways it takes the first of M, D, I, long D, long I, or the last with RIGHT (ksw2_extd2_sse.c). E is a
// deletion, or an insertion if the query lies along the columns.
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
        if (in_gap) {  // does the gap that this cell passed on extend one, or begin here?
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
