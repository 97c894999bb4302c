// Decodes CRF scores to bases, qualities and moves: models/call/decode_kernels.py on a GPU, operation by operation.
//
// A state is STATE_LEN bases; there are S states. Scores are float32 or halves (T, N, 4 S), ordered new state * 4 + dropped base.
// The scans use Q = S / 4 threads per row: thread u has the four states k * Q + u, which drop their first base k to
// become one of the four states 4 u + b, so its 16 scores of a step are contiguous. The beam search uses one warp per
// row, and one lane per hypothesis.
//
// Everything that decides bases and moves is plain IEEE arithmetic in the CPU's order (nothing is fused: --fmad=false),
// so both are the same to the bit. Qualities come from sums in float32, where the CPU's are in float64.
#include "numbers.cuh"

#ifndef STATE_LEN
#define STATE_LEN 3
#endif

namespace {
constexpr int S = 1 << 2 * STATE_LEN;
constexpr int Q = S / 4;
constexpr int ROWS = Q < 32 ? 32 / Q : 1;  // per block of the scans
constexpr int THREADS = ROWS * Q;
constexpr int BEAM_WARPS = 4;  // per block, one row each
constexpr int WIDTH = 32;      // most hypotheses
constexpr unsigned ALL = 0xffffffffu;
constexpr float SCORE_LIMIT = 40.0f, FLOOR = 1e-30f;
constexpr unsigned FINITE_BITS = 0x7f7fffffu;
constexpr float BEST_QUALITY = 50.0f;

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned long long u64;

#if PRECISION == FP32
typedef float Score;
#else
typedef unsigned short Score;
#endif

__device__ __forceinline__ float weight_of(float score)
{
    return exp32(fminf(fmaxf(score, -SCORE_LIMIT), SCORE_LIMIT));
}

__device__ __forceinline__ void row_sync()
{
    if (Q > 32) __syncthreads();
    else __syncwarp();
}

// Sums over a row's threads, adding halves to halves; all threads get the sum. `shared` (Q floats if Q > 32) must be
// written before the last row_sync.
__device__ __forceinline__ float sum_in_pairs(float own, const float* shared)
{
    if (Q > 32) {
        float part[Q > 32 ? Q / 32 : 1];
#pragma unroll
        for (int b = 0; b < Q / 32; ++b) part[b] = shared[32 * b + (threadIdx.x & 31)];
#pragma unroll
        for (int half = Q / 64; half > 0; half >>= 1)
#pragma unroll
            for (int b = 0; b < half; ++b) part[b] += part[b + half];
        own = part[0];
    }
#pragma unroll
    for (int offset = Q < 32 ? Q / 2 : 16; offset > 0; offset >>= 1) own += __shfl_xor_sync(ALL, own, offset);
    return own;
}

// Loads thread u's 16 scores of a step: weights[b][k] is for state k Q + u to state 4 u + b. Returns whether all are
// finite.
__device__ __forceinline__ bool load_weights(const Four* scores, float (&weights)[4][4])
{
    unsigned largest = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
        const Four four = __ldg(scores + b);
        const float values[4] = {number(four.x), number(four.y), number(four.z), number(four.w)};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            largest = max(largest, __float_as_uint(values[k]) & 0x7fffffffu);
            weights[b][k] = weight_of(values[k]);
        }
    }
    return largest <= FINITE_BITS;
}

// Where a thread of the scans works. Rows beyond the last one compute the last one again, and do not store it.
struct Place {
    int in_block, u, row;
    bool stored;
};

__device__ __forceinline__ Place place_of(int N)
{
    const int in_block = threadIdx.x / Q, row = blockIdx.x * ROWS + in_block;
    return {in_block, (int)threadIdx.x % Q, min(row, N - 1), row < N};
}

__device__ __forceinline__ u64 mix(u64 history, u64 base)
{
    const u64 mixed = (history ^ (base + 1)) * 0x9E3779B97F4A7C15ull;
    return mixed ^ mixed >> 32;
}

__device__ __forceinline__ u64 from_lane(u64 value, int lane)
{
    const unsigned low = __shfl_sync(ALL, (unsigned)value, lane), high = __shfl_sync(ALL, (unsigned)(value >> 32), lane);
    return (u64)high << 32 | low;
}

__device__ __forceinline__ int number_of(const unsigned (&ballots)[5])
{
    return __popc(ballots[0]) + __popc(ballots[1]) + __popc(ballots[2]) + __popc(ballots[3]) + __popc(ballots[4]);
}

// Returns how many marked candidates come before this lane's candidate `c`. Moves come first, lane by lane, then stays.
__device__ __forceinline__ int rank_of(const unsigned (&ballots)[5], int c, int lane)
{
    const unsigned before = (1u << lane) - 1;
    int rank = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b)
        rank += __popc(ballots[b] & (c == 4 ? ALL : before)) + (b < c && c < 4 ? ballots[b] >> lane & 1 : 0);
    return rank + (c == 4 ? __popc(ballots[4] & before) : 0);
}
}  // namespace

// Computes backward probabilities (T + 1, N, S), at each border up to a factor; status[row] |= 1 if a score is not
// finite.
extern "C" __global__ void __launch_bounds__(THREADS) crf_backward(
    const Score* __restrict__ scores, float* __restrict__ backward, int* __restrict__ status, int T, int N, float stay)
{
    __shared__ __align__(16) float after[2][ROWS][S];
    __shared__ float sums[2][THREADS];
    const Place at = place_of(N);
    float total = 1.0f;
    bool finite = true;
    for (int k = 0; k < 4; ++k) {
        after[0][at.in_block][k * Q + at.u] = 1.0f / S;
        if (at.stored) backward[((size_t)T * N + at.row) * S + k * Q + at.u] = 1.0f / S;
    }
    row_sync();
    for (int t = T - 1, side = 0; t >= 0; --t, side ^= 1) {  // cubin: main loop
        float weights[4][4];
        finite &= load_weights((const Four*)(scores + ((size_t)t * N + at.row) * 4 * S) + 4 * at.u, weights);
        if (t < T - 1) total = sum_in_pairs(total, sums[side ^ 1]);
        const float scale = 1.0f / total;
        const float4 next = *(const float4*)&after[side][at.in_block][4 * at.u];
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            float value = stay * after[side][at.in_block][k * Q + at.u]
                + (weights[0][k] * next.x + weights[1][k] * next.y + weights[2][k] * next.z + weights[3][k] * next.w);
            value = fmaxf(value * scale, FLOOR);
            sum = k ? sum + value : value;
            after[side ^ 1][at.in_block][k * Q + at.u] = value;
            if (at.stored) backward[((size_t)t * N + at.row) * S + k * Q + at.u] = value;
        }
        total = sum;
        sums[side][threadIdx.x] = sum;
        row_sync();
    }  // cubin: end
    if (!finite && at.stored) atomicOr(status + at.row, 1);
}

// Beam search guided by the backward probabilities. path (N, T): bit 2 is set if a block moves, bits 0-1 are its base.
// first[row]: the state after the first block. `back` (T, N, WIDTH) is workspace. Rows with a status are skipped.
extern "C" __global__ void __launch_bounds__(32 * BEAM_WARPS) crf_beam(
    const Score* __restrict__ scores, const float* __restrict__ backward, const int* __restrict__ status,
    u16* __restrict__ back, u8* __restrict__ path, int* __restrict__ first, int T, int N, int width, float stay, float cut)
{
    __shared__ __align__(16) float all_values[BEAM_WARPS][4 * WIDTH];
    __shared__ float all_kept[BEAM_WARPS][WIDTH];
    __shared__ u8 all_candidates[BEAM_WARPS][WIDTH];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row = blockIdx.x * BEAM_WARPS + warp;
    if (row >= N || status[row]) return;
    float* values = all_values[warp];
    float* kept_values = all_kept[warp];
    u8* candidates = all_candidates[warp];
    int* states = (int*)values;  // of the first beam

    // The first beam: the `width` states with the largest backward probability (of equal ones, the first), all with
    // weight 1.
    int low = 0, high = 0x7f800000, above = 0, ties = 0;
    if (width < S) {
        bool exact = false;
        while (high - low > 1 && !exact) {
            const int middle = low + (high - low) / 2;
            int reached = 0;
            for (int s = lane; s < S; s += 32) reached += __float_as_int(backward[(size_t)row * S + s]) >= middle;
            reached = __reduce_add_sync(ALL, reached);
            exact = reached == width;
            if (exact) low = middle - 1;
            else if (reached > width) low = middle;
            else { high = middle; above = reached; }
        }
        ties = exact ? 0 : width - above;
    }
    int count = 0, state = 0;
    for (int s = lane; s < S + lane; s += 32) {  // lanes beyond S take part in the ballots
        const int bits = s < S ? __float_as_int(backward[(size_t)row * S + s]) : 0;
        const unsigned tied = __ballot_sync(ALL, s < S && width < S && bits == low);
        const bool chosen = s < S && (bits > low || ((tied >> lane & 1) && __popc(tied & ((1u << lane) - 1)) < ties));
        const unsigned all_chosen = __ballot_sync(ALL, chosen);
        ties -= min(ties, __popc(tied));
        if (chosen) states[count + __popc(all_chosen & ((1u << lane) - 1))] = s;
        count += __popc(all_chosen);
    }
    __syncwarp();
    if (lane < count) state = states[lane];
    const int seed = state;
    float weight = 1.0f;
    u64 hash = mix(0x2545F4914F6CDD1Dull, state), parent = 0;
    __syncwarp();

    for (int t = 0; t < T; ++t) {  // cubin: main loop
        const Score* step = scores + ((size_t)t * N + row) * 4 * S;
        const float* guide = backward + ((size_t)(t + 1) * N + row) * S;
        const bool alive = lane < count;
        const int shifted = (4 * state & (S - 1)), dropped = state / Q;
        float value[5];
        const float4 ahead = __ldg((const float4*)(guide + shifted));
        const float guides[4] = {ahead.x, ahead.y, ahead.z, ahead.w};
#pragma unroll
        for (int b = 0; b < 4; ++b)
            value[b] = alive ? weight * (weight_of(number(__ldg(step + 4 * (shifted + b) + dropped))) * guides[b]) : -1.0f;
        *(float4*)(values + 4 * lane) = make_float4(value[0], value[1], value[2], value[3]);
        int origin = -1;  // where the beam has this lane's sequence without its last base
        for (int o = 0; o < count; ++o)
            if (from_lane(hash, o) == parent) origin = o;
        if (!alive) origin = -1;
        __syncwarp();
        const int move = origin < 0 ? 0 : 4 * origin + (state & 3);
        const float stayed = weight * (stay * __ldg(guide + state)), moved = origin < 0 ? 0.0f : values[move];
        const float merged = stayed + moved;  // a stay and a move into the same sequence merge into the likelier one
        const bool stays = stayed > moved;
        value[4] = alive && stays ? merged : -1.0f;
        if (origin >= 0) values[move] = stays ? -1.0f : merged;
        __syncwarp();
        const float4 now = *(const float4*)(values + 4 * lane);
        value[0] = now.x, value[1] = now.y, value[2] = now.z, value[3] = now.w;

        int most = 0;
#pragma unroll
        for (int c = 0; c < 5; ++c) most = max(most, __float_as_int(value[c]));  // floats >= 0 sort like their bits
        most = __reduce_max_sync(ALL, most);
        const float best = __int_as_float(most), limit = best * cut;
        unsigned kept[5];
#pragma unroll
        for (int c = 0; c < 5; ++c) kept[c] = __ballot_sync(ALL, value[c] >= limit && alive);
        if (number_of(kept) > width) {  // bisect the bits of the smallest value that stays
            int least = __float_as_int(limit), beyond = most + 1, more = 0;
            bool exact = false;
            unsigned reached[5];
            while (beyond - least > 1 && !exact) {
                const int middle = least + (beyond - least) / 2;
#pragma unroll
                for (int c = 0; c < 5; ++c) reached[c] = __ballot_sync(ALL, __float_as_int(value[c]) >= middle && alive);
                const int number = number_of(reached);
                exact = number == width;
                if (number >= width) least = middle;
                else { beyond = middle; more = number; }
            }
            if (exact) {
#pragma unroll
                for (int c = 0; c < 5; ++c) kept[c] = reached[c];
            } else {  // of those equal to the smallest value, the first stay
                unsigned tied[5];
#pragma unroll
                for (int c = 0; c < 5; ++c) tied[c] = __ballot_sync(ALL, __float_as_int(value[c]) == least && alive);
#pragma unroll
                for (int c = 0; c < 5; ++c)
                    kept[c] = __ballot_sync(ALL, alive && (__float_as_int(value[c]) > least
                        || ((tied[c] >> lane & 1) && rank_of(tied, c, lane) < width - more)));
            }
        }
#pragma unroll
        for (int c = 0; c < 5; ++c)
            if (kept[c] >> lane & 1) {
                const int place = rank_of(kept, c, lane);
                candidates[place] = (u8)(c < 4 ? 4 * lane + c : 128 + lane);
                kept_values[place] = value[c];
            }
        count = number_of(kept);
        __syncwarp();
        const int candidate = lane < count ? candidates[lane] : 128;
        const bool moves = candidate < 128;
        const int from = moves ? candidate >> 2 : candidate - 128, base = candidate & 3;
        const int old_state = __shfl_sync(ALL, state, from);
        const u64 old_hash = from_lane(hash, from), old_parent = from_lane(parent, from);
        state = moves ? (4 * old_state & (S - 1)) | base : old_state;
        hash = moves ? mix(old_hash, base) : old_hash;
        parent = moves ? old_hash : old_parent;
        if (lane < count) weight = kept_values[lane] * (1.0f / best) / __ldg(guide + state);
        back[((size_t)t * N + row) * WIDTH + lane] = (u16)(from << 3 | (moves ? 4 | base : state & 3));
    }  // cubin: end

    const int bits = lane < count ? __float_as_int(weight) : -1;
    int place = __ffs(__ballot_sync(ALL, bits == __reduce_max_sync(ALL, bits))) - 1;
    int link = 0;
#pragma unroll 8
    for (int t = T - 1; t >= 0; --t) {  // loads of a whole beam need not wait for the place in it
        link = __shfl_sync(ALL, (int)back[((size_t)t * N + row) * WIDTH + lane], place);
        place = link >> 3;
        if (lane == 0) path[(size_t)row * T + t] = (u8)(link & 7);
    }
    const int start = __shfl_sync(ALL, seed, place);
    if (lane == 0) first[row] = link & 4 ? (4 * start & (S - 1)) | (link & 3) : start;
}

// Computes errors (N, T): for each block of the path, the probability that its state is neither the called one nor one
// of its neighbours.
extern "C" __global__ void __launch_bounds__(THREADS) crf_errors(
    const Score* __restrict__ scores, const float* __restrict__ backward, const int* __restrict__ status,
    const u8* __restrict__ path, const int* __restrict__ first, float* __restrict__ errors, int T, int N, float stay)
{
    __shared__ __align__(16) float before[2][ROWS][S];
    __shared__ float sums[2][3][THREADS];
    const Place at = place_of(N);
    for (int k = 0; k < 4; ++k) before[0][at.in_block][k * Q + at.u] = 1.0f / S;
    row_sync();
    float total = 1.0f, near = 0.0f, far = 0.0f;
    const bool called = !status[at.row];
    int state = 0;
    for (int t = 0, side = 0; t <= T; ++t, side ^= 1) {  // cubin: main loop
        if (t > 0) {  // finish the previous block
            const float* shared[3] = {sums[side ^ 1][0], sums[side ^ 1][1], sums[side ^ 1][2]};
            total = sum_in_pairs(total, shared[0]);
            near = sum_in_pairs(near, shared[1]);
            far = sum_in_pairs(far, shared[2]);
            if (at.u == 0 && at.stored && called) errors[(size_t)at.row * T + t - 1] = far / (near + far);
            if (t == T) break;
        }
        if (called) {
            const int link = path[(size_t)at.row * T + t];
            state = t == 0 ? first[at.row] : link & 4 ? (4 * state & (S - 1)) | (link & 3) : state;
        }
        float weights[4][4];
        load_weights((const Four*)(scores + ((size_t)t * N + at.row) * 4 * S) + 4 * at.u, weights);
        const float scale = 1.0f / total;
        const float4 guide = __ldg((const float4*)(backward + ((size_t)(t + 1) * N + at.row) * S) + at.u);
        const float guides[4] = {guide.x, guide.y, guide.z, guide.w};
        const float4 own = *(const float4*)&before[side][at.in_block][4 * at.u];
        const float owns[4] = {own.x, own.y, own.z, own.w};
        float from[4], values[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) from[k] = before[side][at.in_block][k * Q + at.u];
        near = far = 0.0f;
#pragma unroll
        for (int b = 0; b < 4; ++b) {
            const float value = stay * owns[b]
                + (weights[b][0] * from[0] + weights[b][1] * from[1] + weights[b][2] * from[2] + weights[b][3] * from[3]);
            values[b] = fmaxf(value * scale, FLOOR);
            const int s = 4 * at.u + b;
            const bool is_near = s == state || s / 4 == (state & (Q - 1)) || (s & (Q - 1)) == state / 4;
            const float product = values[b] * guides[b];
            near += is_near ? product : 0.0f;
            far += is_near ? 0.0f : product;
        }
        *(float4*)&before[side ^ 1][at.in_block][4 * at.u] = make_float4(values[0], values[1], values[2], values[3]);
        total = values[0] + values[1] + values[2] + values[3];
        sums[side][0][threadIdx.x] = total, sums[side][1][threadIdx.x] = near, sums[side][2][threadIdx.x] = far;
        row_sync();
    }  // cubin: end
}

// Writes the path's bases as letters, and their qualities, packed to the front of each row, (N, T); moves (N, T); and
// counts (N), -1 if the row has a status. One warp per row, one lane per block. A base's quality comes from the mean,
// over its blocks, of the block's probability to the power of 0.4, after the published behaviour of dorado and
// openfish.
extern "C" __global__ void __launch_bounds__(32 * BEAM_WARPS) crf_call(
    const int* __restrict__ status, const u8* __restrict__ path, const int* __restrict__ first, const float* __restrict__ errors,
    u8* __restrict__ letters, u8* __restrict__ qualities, u8* __restrict__ moves, int* __restrict__ counts, int T, int N,
    float scale, float bias)
{
    const int lane = threadIdx.x & 31, row = blockIdx.x * BEAM_WARPS + (threadIdx.x >> 5);
    if (row >= N) return;
    if (status[row]) {
        if (lane == 0) counts[row] = -1;
        return;
    }
    const size_t start = (size_t)row * T;
    int called = 0;
    for (int t0 = 0; t0 < T; t0 += 32) {
        const int t = t0 + lane, link = t < T ? path[start + t] : 0;
        const bool begins = t < T && ((link & 4) || t == 0);  // the first block calls a base even if it stays
        const unsigned all = __ballot_sync(ALL, begins);
        if (t < T) moves[start + t] = begins;
        if (begins) {
            const size_t place = start + called + __popc(all & ((1u << lane) - 1));
            letters[place] = "ACGT"[(t == 0 ? first[row] : link) & 3];
            float lost = 0.0f;
            int blocks = 0;
            do lost -= expm1f(0.4f * log1pf(-errors[start + t + blocks++]));
            while (t + blocks < T && !(path[start + t + blocks] & 4));
            const float error = lost / blocks;
            const float quality = error > 0.0f ? floorf(-10.0f * log10f(error) * scale + bias + 0.5f) : BEST_QUALITY;
            qualities[place] = (u8)fminf(fmaxf(quality, 1.0f), BEST_QUALITY);
        }
        called += __popc(all);
    }
    if (lane == 0) counts[row] = called;
}
