// Finds minimap2's minimizers (sketch.c, mm_sketch; MIT License, Copyright (c) 2018- Dana-Farber Cancer Institute,
// 2017-2018 Broad Institute, Inc.): which k-mers of the reads are written down, by the rules that minimizers.py
// explains.
//
// The reads lie one after another, one code per base, with a 5 after each read.
#ifndef K
#define K 15
#define W 10
#endif

namespace {
typedef unsigned char u8;
typedef unsigned long long u64;
constexpr int TILE = 256;
constexpr u64 NONE = ~0ull;
constexpr u64 MASK = (1ull << 2 * K) - 1;
constexpr u8 END = 5;

__device__ __forceinline__ u64 hash64(u64 key)
{
    key = (~key + (key << 21)) & MASK;
    key = key ^ key >> 24;
    key = (key + (key << 3) + (key << 8)) & MASK;
    key = key ^ key >> 14;
    key = (key + (key << 2) + (key << 4)) & MASK;
    key = key ^ key >> 28;
    return (key + (key << 31)) & MASK;
}

// Returns the hash of the k-mer whose last base is at `last`, or NONE if there is no valid k-mer; `reverse` becomes
// whether the other strand's k-mer was hashed.
__device__ __forceinline__ u64 kmer_at(const u8* codes, long long last, bool& reverse)
{
    if (last < K - 1) return NONE;
    u64 forward = 0, backward = 0;
    for (int i = 0; i < K; ++i) {
        const u64 base = codes[last - (K - 1) + i];
        if (base > 3) return NONE;
        forward = forward << 2 | base;
        backward |= (3 - base) << 2 * i;
    }
    reverse = backward < forward;
    return hash64(reverse ? backward : forward);
}

__device__ __forceinline__ void write_down(unsigned* written, long long place)
{
    atomicOr(written + (place >> 5), 1u << (place & 31));
}
}

// One thread per step: finds the k-mers that the step writes down, and sets a bit at the place of each one's last base.
extern "C" __global__ void sketch(const u8* __restrict__ codes, unsigned* __restrict__ written, long long steps)
{
    __shared__ u64 hashes[TILE + W];  // starting W steps before the tile
    const long long first = (long long)blockIdx.x * TILE;
    for (int i = threadIdx.x; i < TILE + W; i += TILE) {
        bool reverse;
        const long long last = first - W + i;
        hashes[i] = last < steps ? kmer_at(codes, last, reverse) : NONE;
    }
    __syncthreads();
    const long long step = first + threadIdx.x;
    if (step >= steps) return;
    const u64* at = hashes + threadIdx.x + W;  // at[-d]: d steps earlier
    u64 before = NONE;                         // the smallest hash of the W steps before this one
    int before_age = 0;
    int valid = 0;                             // how many of those W steps have a k-mer
    const bool is_end = codes[step] == END;
    for (int age = 1; age <= W; ++age) {
        if (is_end && step - age >= 0 && codes[step - age] == END) break;  // the rest is another read
        valid += at[-age] != NONE;
        if (at[-age] < before) before = at[-age], before_age = age;
    }
    if (is_end) {
        if (before != NONE) write_down(written, step - before_age);
        return;
    }
    const u64 own = at[0];
    if (own == NONE) return;
    if (valid == W) {
        if (own <= before) {
            write_down(written, step - before_age);
        } else if (before_age == W) {
            write_down(written, step - W);
            u64 least = own;
            int age_of_least = 0;
            for (int age = 1; age < W; ++age)
                if (at[-age] < least) least = at[-age], age_of_least = age;
            for (int age = 0; age < W; ++age)
                if (at[-age] == least && age != age_of_least) write_down(written, step - age);
        }
    } else if (valid == W - 1 && at[-W] == NONE) {  // the first full window
        for (int age = 1; age < W; ++age)
            if (at[-age] == before && age != before_age) write_down(written, step - age);
    }
}

// One thread per minimizer: computes its hash, and whether the other strand's k-mer was hashed.
extern "C" __global__ void describe_minimizers(
    const u8* __restrict__ codes, const long long* __restrict__ place, u64* __restrict__ hash, u8* __restrict__ reverse,
    long long count)
{
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    bool is_reverse = false;
    hash[i] = kmer_at(codes, place[i], is_reverse);
    reverse[i] = is_reverse;
}
