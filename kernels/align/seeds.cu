// Turns minimizers into anchors as minimap2 does (seed.c, map.c; MIT License, Copyright (c) 2018- Dana-Farber Cancer
// Institute, 2017-2018 Broad Institute, Inc.).
#include "anchor.cuh"

namespace {
constexpr int MOST_FREQUENT = 128;  // seed.c: MAX_MAX_HIGH_OCC

// ksort.h's heap, largest first; keys are count << 32 | place.
__device__ void heap_down(u64* heap, int i, int n)
{
    const u64 value = heap[i];
    int k = i;
    while ((k = (k << 1) + 1) < n) {
        if (k != n - 1 && heap[k] < heap[k + 1]) ++k;
        if (heap[k] < value) break;
        heap[i] = heap[k];
        i = k;
    }
    heap[i] = value;
}
}

// One thread per minimizer: finds where its positions begin, and how many there are.
extern "C" __global__ void look_up(
    const u64* __restrict__ hash, const u32* __restrict__ bucket, const KEY* __restrict__ key, const u32* __restrict__ start,
    u32* __restrict__ first, u32* __restrict__ found, int key_bits, long long count)
{
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const u64 of = hash[i] >> key_bits;
    const u32 low = (u32)(hash[i] & ((1ull << key_bits) - 1));
    u32 from = bucket[of], to = bucket[of + 1];
    while (from < to) {
        const u32 middle = from + (to - from) / 2;
        if (key[middle] < low) from = middle + 1;
        else to = middle;
    }
    const bool is_there = from < bucket[of + 1] && key[from] == low;
    first[i] = is_there ? start[from] : 0;
    found[i] = is_there ? start[from + 1] - start[from] : 0;
}

// One thread per read: chooses which of its minimizers become seeds (seed.c, mm_seed_select and mm_collect_matches).
// Minimizers that occur more often than `frequent` are left out, except for some where a stretch of the read has no
// others.
//   mini[r] .. mini[r + 1]   read r's minimizers
//   kept[i]                  0: not a seed; 1: a seed; 3: a seed next to an equal one (tandem)
//   scratch, heaps           one entry per minimizer
extern "C" __global__ void select_seeds(
    const long long* __restrict__ mini, const int* __restrict__ length, const int* __restrict__ position,
    const u64* __restrict__ hash, const u32* __restrict__ found, u8* __restrict__ kept, u32* __restrict__ scratch,
    u64* __restrict__ heaps, int* __restrict__ repetitive, int span, int frequent, int too_frequent, int apart, int reads)
{
    const int read = blockIdx.x * blockDim.x + threadIdx.x;
    if (read >= reads) return;
    const long long first = mini[read], last = mini[read + 1];
    u32* seed = scratch + first;
    u64* heap = heaps + first;
    int n = 0, many = 0;
    for (long long i = first; i < last; ++i) {
        if (found[i] == 0) continue;
        const bool tandem = (i > first && hash[i] == hash[i - 1]) || (i + 1 < last && hash[i] == hash[i + 1]);
        kept[i] = tandem ? 3 : 1;
        seed[n++] = (u32)(i - first);
        many += found[i] > (u32)frequent;
    }
    const u32* count = found + first;
    const int* place = position + first;
    u8* keep = kept + first;
    if (too_frequent <= frequent) {
        for (int i = 0; i < n; ++i)
            if (count[seed[i]] > (u32)frequent) keep[seed[i]] |= 4;
    } else if (n > 1 && many > 0) {
        for (int i = 0, last0 = -1; i <= n; ++i) {
            if (i < n && count[seed[i]] > (u32)frequent) continue;
            if (i - last0 > 1) {
                const int from = last0 < 0 ? 0 : place[seed[last0]], to = i == n ? length[read] : place[seed[i]];
                int most = (int)((double)(to - from) / apart + .499);
                if (most > MOST_FREQUENT) most = MOST_FREQUENT;
                int size = 0, j = last0 + 1;
                for (; j < i && size < most; ++j, ++size) heap[size] = (u64)count[seed[j]] << 32 | (u32)j;
                for (int k = (size >> 1) - 1; k >= 0; --k) heap_down(heap, k, size);
                for (; j < i && size > 0; ++j) {
                    if ((int)count[seed[j]] < (int)(heap[0] >> 32)) {
                        heap[0] = (u64)count[seed[j]] << 32 | (u32)j;
                        heap_down(heap, 0, size);
                    }
                }
                for (int k = last0 + 1; k < i; ++k) keep[seed[k]] |= 4;  // left out
                for (int k = 0; k < size; ++k) keep[seed[(u32)heap[k]]] &= ~4;
                for (int k = last0 + 1; k < i; ++k)
                    if (count[seed[k]] > (u32)too_frequent) keep[seed[k]] |= 4;
            }
            last0 = i;
        }
    }  // a single seed stays, however frequent it is, because mm_seed_select then checks nothing
    int total = 0, from = 0, to = 0;  // bases covered by minimizers that are left out
    for (int i = 0; i < n; ++i) {
        if (!(keep[seed[i]] & 4)) continue;
        const int end = place[seed[i]] + 1, begin = end - span;
        if (begin > to) {
            total += to - from;
            from = begin;
        }
        to = end;
        keep[seed[i]] = 0;
    }
    repetitive[read] = total + to - from;
}

// One thread per anchor: combines a seed with one of its positions. offset: int64[sequences + 1].
extern "C" __global__ void expand(
    const long long* __restrict__ seed_of, const long long* __restrict__ in_seed, const u32* __restrict__ first,
    const int* __restrict__ position, const u8* __restrict__ reverse, const u8* __restrict__ kept,
    const int* __restrict__ length, const u32* __restrict__ at, const u8* __restrict__ strand,
    const long long* __restrict__ offset, u64* __restrict__ x, u64* __restrict__ y, int span, int sequences, long long count)
{
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const long long seed = seed_of[i];
    const long long entry = (long long)first[seed] + in_seed[i];
    const long long place = at[entry];
    const bool other = (strand[entry >> 3] >> (7 - (entry & 7)) & 1) != reverse[seed];
    int low = 0, high = sequences;  // find the last sequence that begins no later than `place`
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (offset[middle] <= place) low = middle;
        else high = middle;
    }
    x[i] = (u64)other << 63 | (u64)low << 32 | (u32)(place - offset[low]);
    const u32 query = other ? length[seed] - (position[seed] + 1 - span) - 1 : position[seed];
    y[i] = (kept[seed] & 2 ? TANDEM : 0) | (u64)span << 32 | query;
}
