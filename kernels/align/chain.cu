// Chains anchors as minimap2 does (lchain.c; MIT License, Copyright (c) 2018- Dana-Farber Cancer Institute, 2017-2018
// Broad Institute, Inc.), with max_chain_skip at infinity, as is usual on GPUs: every anchor within reach is
// considered.
//
// Anchors are sorted by read and x. A segment is a run of anchors whose neighbours are close enough to be chained. No
// chain leaves its segment, so each segment is scored by itself, by one warp.
#include "anchor.cuh"

namespace {
constexpr u32 ALL = 0xffffffffu;
constexpr int NOT = -2147483647 - 1;

struct Best {
    int score;
    long long anchor;
};

// Returns the warp's highest score; if several are equal, the one with the latest anchor.
__device__ __forceinline__ Best best_of_warp(Best own)
{
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
        const int score = __shfl_xor_sync(ALL, own.score, lanes);
        const long long anchor = __shfl_xor_sync(ALL, own.anchor, lanes);
        if (score > own.score || (score == own.score && anchor > own.anchor)) own.score = score, own.anchor = anchor;
    }
    return own;
}

// lchain.c, comput_sc: the score of chaining anchor i after anchor j.
__device__ __forceinline__ int link_score(u64 xi, u64 yi, u64 xj, u64 yj, int reach, int band, float gap_cost)
{
    const int dq = query_of(yi) - query_of(yj);
    if (dq <= 0 || dq > reach) return NOT;
    const int dr = (int)(u32)(xi - xj);
    if (dr == 0) return NOT;
    const int dd = dr > dq ? dr - dq : dq - dr;
    if (dd > band) return NOT;
    const int dg = dr < dq ? dr : dq, span = span_of(yj);
    int score = span < dg ? span : dg;
    if (dd || dg > span) {
        const float linear = gap_cost * (float)dd;
        const float logarithm = dd >= 1 ? log2_of((float)(dd + 1)) : 0.0f;
        score -= (int)(linear + .5f * logarithm);
    }
    return score;
}

// lchain.c, comput_sc_simple.
__device__ __forceinline__ int simple_score(u64 xi, u64 yi, u64 xj, u64 yj, float gap_cost, bool& exact, int& width)
{
    const int dq = query_of(yi) - query_of(yj), dr = (int)(u32)(xi - xj);
    const int dd = dr > dq ? dr - dq : dq - dr, dg = dr < dq ? dr : dq, span = span_of(yj);
    width = dd;
    exact = dd == 0 && dg <= span;
    int score = span < dg ? span : dg;
    if (dd || dq > span) {
        const float linear = gap_cost * (float)dd;
        const float logarithm = dd >= 1 ? log2_of((float)(dd + 1)) : 0.0f;
        score -= (int)(linear + .5f * logarithm);
    }
    return score;
}
}

// mg_lchain_dp. Computes each anchor's score and its predecessor, `before` (-1: none). The caller sets both to their
// values for an anchor on its own.
extern "C" __global__ void chain(
    const long long* __restrict__ segment, const long long* __restrict__ segment_end, const u64* __restrict__ x,
    const u64* __restrict__ y, int* score, long long* before, int reach, int band, int most, float gap_cost)
{
    const int lane = threadIdx.x;
    const long long begin = segment[blockIdx.x], end = segment_end[blockIdx.x];
    long long first = begin, top = -1;  // the first anchor within reach; the best one (max_ii)
    for (long long i = begin; i < end; ++i) {
        const u64 xi = x[i], yi = y[i];
        while (first < i && xi > x[first] + reach) ++first;
        if (i - first > most) first = i - most;
        Best best = {span_of(yi), -1};
        for (long long j = i - 1 - lane; j >= first; j -= 32) {
            int s = link_score(xi, yi, x[j], y[j], reach, band, gap_cost);
            if (s == NOT) continue;
            s += score[j];
            if (s > best.score) best.score = s, best.anchor = j;
        }
        best = best_of_warp(best);
        if (top < 0 || xi - x[top] > (u64)reach) {
            Best found = {NOT, -1};
            for (long long j = i - 1 - lane; j >= first; j -= 32)
                if (score[j] > found.score) found.score = score[j], found.anchor = j;
            top = best_of_warp(found).anchor;
        }
        if (top >= 0 && top < first - 1) {
            const int s = link_score(xi, yi, x[top], y[top], reach, band, gap_cost);
            if (s != NOT && best.score < s + score[top]) best.score = s + score[top], best.anchor = top;
        }
        if (top < 0 || (xi - x[top] <= (u64)reach && score[top] < best.score)) top = i;
        __syncwarp();
        if (lane == 0) score[i] = best.score, before[i] = best.anchor;
        __syncwarp();
    }
}

// mg_lchain_rmq: long joins.
extern "C" __global__ void chain_far(
    const long long* __restrict__ segment, const long long* __restrict__ segment_end, const u64* __restrict__ x,
    const u64* __restrict__ y, int* score, long long* before, int reach, int reach_inner, int band, int most, float gap_cost)
{
    const int lane = threadIdx.x;
    const long long begin = segment[blockIdx.x], end = segment_end[blockIdx.x];
    long long first = begin, same = begin;  // the first within reach; the first with this x (equal x are not chained)
    for (long long i = begin; i < end; ++i) {
        const u64 xi = x[i], yi = y[i];
        const int qi = query_of(yi);
        if (x[same] != xi) same = i;
        while (first < i && xi > x[first] + reach) ++first;
        if (same - first > most) first = same - most;
        // The cheapest predecessor within reach, leaving gaps aside (pri).
        double least = 1e300;
        long long from = -1;
        int inner_score = NOT, inner_query = NOT;
        long long inner = -1;
        for (long long j = same - 1 - lane; j >= first; j -= 32) {
            const int qj = query_of(y[j]);
            if (qj >= qi || qj <= qi - reach) continue;
            const double cost = -(score[j] + 0.5 * gap_cost * (target_of(x[j]) + qj));
            if (cost < least) least = cost, from = j;
            if (xi <= x[j] + reach_inner && qj >= qi - reach_inner) {
                bool exact;
                int width;
                const int s = score[j] + simple_score(xi, yi, x[j], y[j], gap_cost, exact, width);
                if (width <= band && (s > inner_score || (s == inner_score && qj > inner_query)))
                    inner_score = s, inner_query = qj, inner = j;
            }
        }
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes >>= 1) {
            const double cost = __shfl_xor_sync(ALL, least, lanes);
            const long long j = __shfl_xor_sync(ALL, from, lanes);
            if (cost < least || (cost == least && j > from)) least = cost, from = j;
            const int s = __shfl_xor_sync(ALL, inner_score, lanes), q = __shfl_xor_sync(ALL, inner_query, lanes);
            const long long other = __shfl_xor_sync(ALL, inner, lanes);
            if (s > inner_score || (s == inner_score && (q > inner_query || (q == inner_query && other > inner))))
                inner_score = s, inner_query = q, inner = other;
        }
        int own = span_of(yi);
        long long chosen = -1;
        if (from >= 0) {
            bool exact;
            int width;
            const int s = score[from] + simple_score(xi, yi, x[from], y[from], gap_cost, exact, width);
            if (width <= band && s > own) own = s, chosen = from;
            if (!exact && qi > 0 && inner >= 0 && inner_score > own) own = inner_score, chosen = inner;
        }
        __syncwarp();
        if (lane == 0) score[i] = own, before[i] = chosen;
        __syncwarp();
    }
}

namespace {
// mg_chain_bk_end: returns how far back the chain that ends at `from` goes.
__device__ long long chain_begin(const int* score, const long long* before, u8* used, long long from, int drop)
{
    if (used[from]) return from;
    const int total = score[from];
    long long i = from, end = -1, top = from;
    int most = 0;
    do {
        used[i] = 2;
        end = i = before[i];
        const int s = i < 0 ? total : total - score[i];
        if (s > most) most = s, top = i;
        else if (most - s > drop) break;
    } while (i >= 0 && used[i] == 0);
    for (i = from; i >= 0 && i != end; i = before[i]) used[i] = 0;
    return top;
}
}

// mg_chain_backtrack, one thread per read. `last` holds the anchors that may end a chain, sorted by score; the best are
// followed first.
//   ends[r] .. ends[r + 1]    read r's part of `last`
//   chain_score, chain_count  as long as `last`; the first chains[r] entries of read r's part are its chains
//   order                     the chains' anchors, chain after chain, each from its end; read r's start at anchors[r]
extern "C" __global__ void backtrack(
    const long long* __restrict__ ends, const long long* __restrict__ last, const long long* __restrict__ anchors,
    const int* __restrict__ score, const long long* __restrict__ before, u8* used, int* __restrict__ chain_score,
    int* __restrict__ chain_count, long long* __restrict__ order, int* __restrict__ chains, int least_count, int least_score,
    int drop, int reads)
{
    const int read = blockIdx.x * blockDim.x + threadIdx.x;
    if (read >= reads) return;
    int found = 0;
    long long taken = anchors[read];
    for (long long k = ends[read + 1] - 1; k >= ends[read]; --k) {
        const long long from = last[k];
        if (used[from]) continue;
        const long long taken_before = taken, begin = chain_begin(score, before, used, from, drop);
        long long i = from;
        for (; i != begin; i = before[i]) order[taken++] = i, used[i] = 1;
        const int total = i < 0 ? score[from] : score[from] - score[i];
        if (total >= least_score && taken > taken_before && taken - taken_before >= least_count) {
            chain_score[ends[read] + found] = total;
            chain_count[ends[read] + found++] = (int)(taken - taken_before);
        } else {
            taken = taken_before;
        }
    }
    chains[read] = found;
}
