// Aligns two whole sequences globally, for example between two anchors. Every cell is computed; there is no band. One
// warp per task, or one block with MANY.
//
// The shorter sequence lies along the rows. Each lane keeps eight neighbouring rows in registers, so a warp has 256,
// and moves along the columns: on anti-diagonal a, a row is at column a - row. The diagonal's H and F come from the row
// above, E from the row itself. Row 0 and column 0 come before the sequences' first bases; their cells are computed
// like all others. The warps of a block pass their last rows on through shared memory.
#ifndef MANY
#define MANY 0
#endif
#include "dual_affine.cuh"

namespace {
constexpr int N = WORDS;
constexpr int ROWS = 256;  // per warp
constexpr int MOST_WARPS = MANY ? 16 : 4;  // per block: all on one task, or each on its own

struct Rows {
    unsigned h[2][N], e1[N], e2[N], f1[N], f2[N];  // h: the last two anti-diagonals
    unsigned bases, columns, next_columns, later_columns;
};

// Word w of an array after each row has taken the value of the row above; `above` comes from the previous lane.
__device__ __forceinline__ unsigned above_of(const unsigned (&of)[N], int w, unsigned above)
{
    return w > 0 ? of[w > 0 ? w - 1 : 0] : join(above, of[N - 1]);
}

// Computes one anti-diagonal; PARITY is its number's parity. `above` is from the previous warp's last row: H two steps
// ago, F1 and F2.
template <int PARITY>
__device__ __forceinline__ void step(Rows& rows, int lane, const unsigned (&above)[3], uint2* directions)
{
    unsigned from_h = __shfl_up_sync(ALL, rows.h[PARITY][N - 1], 1);
    unsigned from_f1 = __shfl_up_sync(ALL, rows.f1[N - 1], 1), from_f2 = __shfl_up_sync(ALL, rows.f2[N - 1], 1);
    if (lane == 0) from_h = above[0], from_f1 = above[1], from_f2 = above[2];
    unsigned h[N], f1[N], f2[N];
#pragma unroll
    for (int w = 0; w < N; ++w) {
        h[w] = above_of(rows.h[PARITY], w, from_h);
        f1[w] = above_of(rows.f1, w, from_f1), f2[w] = above_of(rows.f2, w, from_f2);
    }
    Directions found;
    const unsigned compared = compare(rows.bases, rows.columns);
#pragma unroll
    for (int w = 0; w < N; ++w) {
        update(score_of(compared, w), h[w], rows.e1[w], rows.e2[w], f1[w], f2[w], false, 0u, w, found);
        rows.h[PARITY][w] = h[w], rows.f1[w] = f1[w], rows.f2[w] = f2[w];
    }
    *directions = make_uint2(found.word[0], found.word[1]);
    rows.columns = __funnelshift_l(rows.next_columns, rows.columns, 4);
    rows.next_columns <<= 4;
}
}  // namespace

extern "C" __global__ void __launch_bounds__(32 * MOST_WARPS, MANY ? 1 : 7) fill(
    const Task* __restrict__ tasks, Result* __restrict__ results, const unsigned* __restrict__ bases,
    unsigned* __restrict__ directions, int count)
{
    __shared__ unsigned edges[2][MOST_WARPS][3];  // each warp's last row: H, F1, F2 after even and odd steps
    __shared__ int highest[MOST_WARPS];
    const int lane = threadIdx.x & 31, of_block = threadIdx.x >> 5, warp = MANY ? of_block : 0, warps = MANY ? blockDim.x >> 5 : 1;
    const int number = MANY ? blockIdx.x : blockIdx.x * MOST_WARPS + of_block;
    if (number >= count) return;
    const Task task = tasks[number];
    const unsigned* column_bases = bases + task.column_words;
    const int column_words = (task.columns + 7) / 8 + 1, row_words = task.rows / 8 + 1;
    const int first_row = ROWS * warp, last_row = min(task.rows, first_row + ROWS - 1);
    Rows rows;
#pragma unroll
    for (int w = 0; w < N; ++w)
        rows.h[0][w] = rows.h[1][w] = rows.e1[w] = rows.e2[w] = rows.f1[w] = rows.f2[w] = FLOOR * ONE;
    rows.bases = bases_at(bases + task.row_words, row_words, 32 * warp + lane, ROW_OUTSIDE);
    int word = -lane;  // when the warp starts, the lane's first row is this many words before column 0
    rows.columns = bases_at(column_bases, column_words, word, COLUMN_OUTSIDE);
    rows.next_columns = bases_at(column_bases, column_words, ++word, COLUMN_OUTSIDE);
    rows.later_columns = bases_at(column_bases, column_words, ++word, COLUMN_OUTSIDE);
    // There is nothing above row 0, but row 0 and column 0 begin as if something had matched before (in the high cell,
    // which `join` takes).
    unsigned above[3] = {warp == 0 ? TARGET << 16 | FLOOR : FLOOR * ONE, FLOOR * ONE, FLOOR * ONE};
    unsigned next_above = FLOOR * ONE;
    if (MANY) {
        if (lane < 6) edges[lane / 3][warp][lane % 3] = FLOOR * ONE;
        __syncthreads();
    }
    uint2* out = (uint2*)(directions + task.directions) + (long long)warp * (ROWS + task.columns) * 32 + lane;
    int level = TARGET;
    const int last = task.rows + task.columns;

// Each step writes its own edge, waits at one barrier, and reads the previous warp's edge for the next step. Even and
// odd steps use different buffers, so no second barrier is needed.
#define ONE_STEP(PARITY)                                                                                                   \
    if (!MANY || (a >= first_row && a <= last_row + task.columns)) {                                                       \
        step<PARITY>(rows, lane, above, out);                                                                              \
        out += 32;                                                                                                         \
    }                                                                                                                      \
    if (a == last) break;                                                                                                  \
    above[0] = next_above;                                                                                                 \
    if (MANY) {                                                                                                            \
        if (lane == 31) edges[PARITY][warp][0] = rows.h[PARITY][N - 1], edges[PARITY][warp][1] = rows.f1[N - 1], edges[PARITY][warp][2] = rows.f2[N - 1]; \
        __syncthreads();                                                                                                   \
        if (warp > 0) next_above = edges[PARITY][warp - 1][0], above[1] = edges[PARITY][warp - 1][1], above[2] = edges[PARITY][warp - 1][2]; \
    }                                                                                                                      \
    ++a;                                                                                                                   \
    level += DRIFT;

    int a = 0;
#pragma unroll 1
    for (;;) {  // cubin: main loop
        ONE_STEP(0)
        ONE_STEP(1)
        if (!(a & 7) && (!MANY || a > first_row)) {
            rows.next_columns = rows.later_columns;
            rows.later_columns = bases_at(column_bases, column_words, ++word, COLUMN_OUTSIDE);
        }
        if (!(a & (INTERVAL - 1))) {
            unsigned now = rows.h[1][0];
#pragma unroll
            for (int w = 1; w < N; ++w) now = most(now, rows.h[1][w]);
            int best = __reduce_max_sync(ALL, (int)largest(now));
            if (MANY) {
                if (lane == 0) highest[warp] = best;
                __syncthreads();
                for (int other = 0; other < warps; ++other) best = max(best, highest[other]);
            }
            const int by = best - TARGET;
            if (by > 0) {
#pragma unroll
                for (int w = 0; w < N; ++w) {
                    rows.h[0][w] = lowered(rows.h[0][w], by), rows.h[1][w] = lowered(rows.h[1][w], by);
                    rows.e1[w] = lowered(rows.e1[w], by), rows.e2[w] = lowered(rows.e2[w], by);
                    rows.f1[w] = lowered(rows.f1[w], by), rows.f2[w] = lowered(rows.f2[w], by);
                }
#pragma unroll
                for (int k = 0; k < 3; ++k) above[k] = lowered(above[k], by);
                next_above = lowered(next_above, by);
                level -= by;
            }
        }
    }  // cubin: end
    if (task.rows >= first_row && task.rows < first_row + ROWS && lane == task.rows % ROWS / 8) {
        unsigned cells[N];
#pragma unroll
        for (int w = 0; w < N; ++w) cells[w] = last & 1 ? rows.h[1][w] : rows.h[0][w];
        unsigned corner = 0;  // selected by arithmetic, because an index would put the cells into local memory
#pragma unroll
        for (int c = 0; c < 8; ++c) corner = max(corner, cell_of(cells, c) * (c == task.rows % 8));
        const int score = (int)corner - level;
        results[number] = Result{score, task.rows, task.columns, 0, score, task.columns, score, 0};
    }
}

extern "C" __global__ void fill_traceback(
    const Task* __restrict__ tasks, Result* __restrict__ results, const unsigned* __restrict__ directions,
    unsigned* __restrict__ cigars, int count)
{
    const int number = blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= count) return;
    const Task task = tasks[number];
    results[number].operations = walk_back(task, task.rows, task.columns, cigars + task.cigar, [&](int row, int column, int& cell) {
        const int warp = row / ROWS, lane = row % ROWS / 8;
        cell = row % 8;
        const long long step = (long long)warp * (ROWS + task.columns) + row + column - warp * ROWS;
        return directions + task.directions + (step * 32 + lane) * 2;
    });
}
