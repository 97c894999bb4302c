// Aligns two sequences in a band of diagonals, from their beginnings to the best cell (with z-drop) or to their ends.
// One warp per task.
//
// The band is 64 R diagonals (column - row) wide and starts at first_diagonal; R = 8 GROUPS. Each lane keeps 2 R
// neighbouring diagonals in registers. Each anti-diagonal updates the R diagonals of its own parity, using E from their
// left neighbours and F from their right neighbours. Even steps update even diagonals (first_diagonal is even); the
// left neighbour may belong to the previous lane. Odd steps update odd diagonals; the right neighbour may belong to the
// next lane. Cell c of a lane is at row i0 - c and column j0 + c, so bases pass through a window of nibbles: the
// columns' window moves on after each even step, the rows' window after each odd step.
#ifndef GROUPS
#define GROUPS 1
#endif
#include "dual_affine.cuh"

namespace {
constexpr int R = 8 * GROUPS, N = WORDS * GROUPS;
constexpr int WARPS = 4;  // per block; each has its own task

struct Band {
    unsigned h[2][N], e1[2][N], e2[2][N], f1[2][N], f2[2][N];  // of even [0] and odd [1] diagonals
    unsigned rows[GROUPS], columns[GROUPS], next_rows, next_columns, later_rows, later_columns;
};

// Word w of an array after each cell has taken its left neighbour's value, or its right neighbour's; `beyond` comes
// from the neighbouring lane.
__device__ __forceinline__ unsigned left_of(const unsigned (&of)[N], int w, unsigned beyond)
{
    const int r = w % WORDS;
    const unsigned before = w > 0 ? of[w > 0 ? w - 1 : 0] : beyond;
    return r > 0 ? before : join(before, of[w + WORDS - 1]);
}

__device__ __forceinline__ unsigned right_of(const unsigned (&of)[N], int w, unsigned beyond)
{
    const int r = w % WORDS;
    const unsigned next = w + 1 < N ? of[w + 1 < N ? w + 1 : 0] : beyond;
    return r < WORDS - 1 ? next : join(of[w - r], next);
}

template <int PARITY>
__device__ __forceinline__ void step(Band& band, int lane, bool right, unsigned right_one, uint2* directions)
{
    constexpr int OTHER = PARITY ^ 1;
    // PARITY 0: E from the previous lane; 1: F from the next lane.
    unsigned beyond1 = PARITY ? __shfl_down_sync(ALL, band.f1[OTHER][0], 1) : __shfl_up_sync(ALL, band.e1[OTHER][N - 1], 1);
    unsigned beyond2 = PARITY ? __shfl_down_sync(ALL, band.f2[OTHER][0], 1) : __shfl_up_sync(ALL, band.e2[OTHER][N - 1], 1);
    if (lane == (PARITY ? 31 : 0)) beyond1 = beyond2 = FLOOR * ONE;
    Directions found[GROUPS];
#pragma unroll
    for (int w = 0; w < N; ++w) {
        unsigned e1 = PARITY ? band.e1[OTHER][w] : left_of(band.e1[OTHER], w, beyond1);
        unsigned e2 = PARITY ? band.e2[OTHER][w] : left_of(band.e2[OTHER], w, beyond2);
        unsigned f1 = PARITY ? right_of(band.f1[OTHER], w, beyond1) : band.f1[OTHER][w];
        unsigned f2 = PARITY ? right_of(band.f2[OTHER], w, beyond2) : band.f2[OTHER][w];
        const unsigned score = score_of(compare(band.rows[w / WORDS], band.columns[w / WORDS]), w % WORDS);
        update(score, band.h[PARITY][w], e1, e2, f1, f2, right, right_one, w % WORDS, found[w / WORDS]);
        band.e1[PARITY][w] = e1, band.e2[PARITY][w] = e2, band.f1[PARITY][w] = f1, band.f2[PARITY][w] = f2;
    }
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) directions[g * 32] = make_uint2(found[g].word[0], found[g].word[1]);
    if (PARITY == 0) {  // the columns' window moves on by one base
#pragma unroll
        for (int g = 0; g < GROUPS; ++g)
            band.columns[g] = __funnelshift_r(band.columns[g], g + 1 < GROUPS ? band.columns[g + 1 < GROUPS ? g + 1 : 0] : band.next_columns, 4);
        band.next_columns >>= 4;
    } else {
#pragma unroll
        for (int k = 0; k < GROUPS; ++k) {  // NVRTC does not unroll a loop that counts down
            const int g = GROUPS - 1 - k;
            band.rows[g] = __funnelshift_l(g ? band.rows[g ? g - 1 : 0] : band.next_rows, band.rows[g], 4);
        }
        band.next_rows <<= 4;
    }
}

// Returns the place of the first cell with this value, among the band's R * 32 cells on the anti-diagonal.
__device__ __forceinline__ int place_of(const unsigned (&words)[N], unsigned value, int lane)
{
    int mine = R;
#pragma unroll
    for (int c = 0; c < R; ++c)
        if (mine == R && cell_of(words + c / 8 * WORDS, c % 8) == value) mine = c;
    const unsigned have = __ballot_sync(ALL, mine < R);
    const int winner = __ffs(have) - 1;
    return R * winner + __shfl_sync(ALL, mine, winner);
}

__device__ __forceinline__ unsigned largest_of(const unsigned (&words)[N])
{
    unsigned value = words[0];
#pragma unroll
    for (int w = 1; w < N; ++w) value = most(value, words[w]);
    return __reduce_max_sync(ALL, largest(value));
}

// Follows the best cell so far, and tells whether the drop since then ends the task.
struct Best {
    int score, step;
    unsigned value, words[N];  // as stored, and all scores on its anti-diagonal

    // `h` holds the scores on anti-diagonal a; `level` is how a score of 0 is stored there. Returns whether the task
    // ends.
    __device__ __forceinline__ bool follow(const unsigned (&h)[N], int a, int level, int zdrop, int first_diagonal, int lane)
    {
        const unsigned now = largest_of(h);
        const int score_now = (int)now - level;
        if (score_now > score) {
            score = score_now, step = a, value = now;
#pragma unroll
            for (int w = 0; w < N; ++w) words[w] = h[w];
            return false;
        }
        if (score - score_now <= zdrop) return false;
        int row, column, row_now, column_now;
        where(first_diagonal, lane, row, column);
        const int diagonal = first_diagonal + 2 * place_of(h, now, lane) + (a & 1);
        row_now = (a - diagonal) >> 1, column_now = row_now + diagonal;
        if (row_now < row || column_now < column) return false;
        const int shift = abs((row_now - row) - (column_now - column));
        return score - score_now > zdrop + shift * EXTEND2;
    }

    __device__ __forceinline__ void where(int first_diagonal, int lane, int& row, int& column) const
    {
        if (step == 0) {
            row = column = 0;
            return;
        }
        const int diagonal = first_diagonal + 2 * place_of(words, value, lane) + (step & 1);
        row = (step - diagonal) >> 1, column = row + diagonal;
    }
};

// Copies `h`, with FLOOR for cells beyond the last row or column.
__device__ __forceinline__ void inside(const unsigned (&h)[N], unsigned (&masked)[N], int i0, int j0, const Task& task)
{
#pragma unroll
    for (int w = 0; w < N; ++w) {
        const int c = w / WORDS * 8 + w % WORDS;
        const unsigned low = i0 - c <= task.rows && j0 + c <= task.columns ? 0xffffu : 0u;
        const unsigned high = i0 - c - 4 <= task.rows && j0 + c + 4 <= task.columns ? 0xffff0000u : 0u;
        masked[w] = (h[w] & (low | high)) | (FLOOR * ONE & ~(low | high));
    }
}
}  // namespace

extern "C" __global__ void __launch_bounds__(32 * WARPS, GROUPS == 1 ? 4 : GROUPS == 2 ? 3 : 2) extend(
    const Task* __restrict__ tasks, Result* __restrict__ results, const unsigned* __restrict__ bases,
    unsigned* __restrict__ directions, int count, int zdrop)
{
    const int lane = threadIdx.x & 31, number = blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (number >= count) return;
    const Task task = tasks[number];
    const bool right = task.flags & RIGHT, follows = !(task.flags & GLOBAL);
    const unsigned right_one = right ? ONE : 0u;
    const unsigned* row_bases = bases + task.row_words;
    const unsigned* column_bases = bases + task.column_words;
    const int row_words = (task.rows + 7) / 8 + 1, column_words = task.columns / 8 + 1;
    const int first = task.first_diagonal, d0 = first + 2 * R * lane;
    Band band;
#pragma unroll
    for (int w = 0; w < N; ++w)
#pragma unroll
        for (int side = 0; side < 2; ++side)
            band.h[side][w] = band.e1[side][w] = band.e2[side][w] = band.f1[side][w] = band.f2[side][w] = FLOOR * ONE;
#pragma unroll
    for (int c = 0; c < R; ++c)  // where both sequences begin: as if something had matched before
        band.h[0][c / 8 * WORDS + c % 4] += (d0 + 2 * c == 0 ? TARGET - FLOOR : 0u) << 16 * (c % 8 / 4);
    int row_word = (-(d0 / 2) + 7) >> 3, column_word = (d0 / 2) >> 3;
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
        band.rows[g] = bases_at(row_bases, row_words, row_word - g, ROW_OUTSIDE);
        band.columns[g] = bases_at(column_bases, column_words, column_word + g, COLUMN_OUTSIDE);
    }
    column_word += GROUPS;
    band.next_rows = bases_at(row_bases, row_words, ++row_word, ROW_OUTSIDE);
    band.next_columns = bases_at(column_bases, column_words, column_word, COLUMN_OUTSIDE);
    band.later_rows = bases_at(row_bases, row_words, ++row_word, ROW_OUTSIDE);
    band.later_columns = bases_at(column_bases, column_words, ++column_word, COLUMN_OUTSIDE);

    Best best;
    best.score = 0, best.step = 0, best.value = TARGET;
#pragma unroll
    for (int w = 0; w < N; ++w) best.words[w] = 0;
    int level = TARGET, dropped = 0, row_end_score = INT_MIN, row_end_column = 0, corner_score = INT_MIN;
    const int corner = task.rows + task.columns;  // the anti-diagonal where both end; the band may end earlier
    const int last = min(corner, min(2 * task.rows + first + 64 * R - 1, 2 * task.columns - first));
    // Before this step, the whole band lies before the last row and the last column.
    const int near_end = min(2 * task.rows + first - 2, 2 * task.columns - (first + 64 * R) - 2);
    uint2* out = (uint2*)(directions + task.directions) + lane;
    int a = 0;

// One step, and two steps; with LATE they include what only matters near the ends.
#define ONE_STEP(PARITY, LATE)                                                                                             \
    step<PARITY>(band, lane, right, right_one, out);                                                                       \
    out += 32 * GROUPS;                                                                                                    \
    if (!LATE) {                                                                                                           \
        if (follows && best.follow(band.h[PARITY], a, level, zdrop, first, lane)) { dropped = 1; break; }                   \
    } else {                                                                                                               \
        const int i0 = (a - d0 - PARITY) >> 1, j0 = i0 + d0 + PARITY;                                                       \
        const int c = i0 - task.rows;                                                                                      \
        int found = INT_MIN;                                                                                               \
        _Pragma("unroll") for (int k = 0; k < R; ++k)                                                                      \
            if (k == c && j0 + k >= 0 && j0 + k <= task.columns)                                                           \
                found = (int)cell_of(band.h[PARITY] + k / 8 * WORDS, k % 8) - level;                                       \
        found = __reduce_max_sync(ALL, found);                                                                             \
        if (found > row_end_score) row_end_score = found, row_end_column = a - task.rows;                                  \
        if (a == corner) corner_score = found;                                                                              \
        if (follows) {                                                                                                     \
            unsigned masked[N];                                                                                            \
            inside(band.h[PARITY], masked, i0, j0, task);                                                                  \
            if (best.follow(masked, a, level, zdrop, first, lane)) { dropped = 1; break; }                                  \
        }                                                                                                                  \
    }                                                                                                                      \
    if (LATE && a == last) break;                                                                                          \
    ++a;                                                                                                                   \
    level += DRIFT;
#define TWO_STEPS(LATE)                                                                                                    \
    ONE_STEP(0, LATE)                                                                                                      \
    ONE_STEP(1, LATE)                                                                                                      \
    if (!(a & 15)) {                                                                                                       \
        band.next_rows = band.later_rows, band.next_columns = band.later_columns;                                          \
        band.later_rows = bases_at(row_bases, row_words, ++row_word, ROW_OUTSIDE);                                         \
        band.later_columns = bases_at(column_bases, column_words, ++column_word, COLUMN_OUTSIDE);                          \
        if (!(a & (INTERVAL - 1))) {                                                                                       \
            const unsigned now = largest_of(band.h[1]);                                                                    \
            const int by = (int)now - TARGET;                                                                              \
            if (by > 0) {                                                                                                  \
                _Pragma("unroll") for (int w = 0; w < N; ++w)                                                              \
                    _Pragma("unroll") for (int side = 0; side < 2; ++side) {                                               \
                        band.h[side][w] = lowered(band.h[side][w], by);                                                    \
                        band.e1[side][w] = lowered(band.e1[side][w], by), band.e2[side][w] = lowered(band.e2[side][w], by); \
                        band.f1[side][w] = lowered(band.f1[side][w], by), band.f2[side][w] = lowered(band.f2[side][w], by); \
                    }                                                                                                      \
                level -= by;                                                                                               \
            }                                                                                                              \
        }                                                                                                                  \
    }

#pragma unroll 1
    while (a < near_end) {  // cubin: main loop
        TWO_STEPS(false)
    }  // cubin: end
    if (!dropped) {
#pragma unroll 1
        for (;;) {
            TWO_STEPS(true)
        }
    }
    Result result;
    result.score = best.score;
    best.where(first, lane, result.row, result.column);
    result.dropped = dropped;
    result.row_end_score = row_end_score, result.row_end_column = row_end_column, result.corner_score = corner_score;
    result.operations = 0;
    if (lane == 0) results[number] = result;
}

extern "C" __global__ void extend_traceback(
    const Task* __restrict__ tasks, Result* __restrict__ results, const unsigned* __restrict__ directions,
    unsigned* __restrict__ cigars, int count, int end_bonus)
{
    const int number = blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= count) return;
    const Task task = tasks[number];
    Result& result = results[number];
    if (task.flags & GLOBAL) {
        result.score = result.corner_score, result.row = task.rows, result.column = task.columns;
        if (result.corner_score == INT_MIN) return;  // the corner is outside the band
    } else if (!result.dropped && result.row_end_score != INT_MIN && end_bonus >= 0
               && result.row_end_score + end_bonus > result.score) {  // as in minimap2: the whole read, if it is near
        result.score = result.row_end_score, result.row = task.rows, result.column = result.row_end_column;
    }
    result.operations = walk_back(task, result.row, result.column, cigars + task.cigar, [&](int row, int column, int& cell) {
        const int place = (column - row - task.first_diagonal) >> 1, lane = place / R, c = place % R;
        cell = c % 8;
        return directions + task.directions + (((long long)(row + column) * GROUPS + c / 8) * 32 + lane) * 2;
    });
}
