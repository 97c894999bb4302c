// Turns chains into alignments as minimap2 does (hit.c, align.c, esterr.c; MIT License, Copyright (c) 2018- Dana-Farber
// Cancer Institute, 2017-2018 Broad Institute, Inc.): chooses which chains to align, where to fill and extend them, and
// which alignments are primary, secondary and supplementary. One thread per read or per hit, because there are few of
// them.
#include "anchor.cuh"

namespace {
constexpr int REVERSE = 1, PRIMARY_RECORD = 2, STRAND_RETAINED = 4;
constexpr int UNSET = -1;
constexpr int MATCH = 2, MISMATCH = 4, AMBIGUOUS = 1, OPEN = 4, EXTEND = 2;  // options.c, with the first gap cost
constexpr int MIN_COUNT = 3, MIN_SCORE = 40, MIN_DP = 80, BEST = 5, BAND = 500, APART = 200;
constexpr int ZDROP_INVERSION = 200, RANK_LENGTH = 500;
constexpr u8 DROPS = 2;  // hits.py, Failure
constexpr int OP_M = 0, OP_I = 1, OP_D = 2;
}

// A chain on its way to an alignment; hits.py reads this declaration.
struct Hit {
    long long anchors, cigar;  // where its anchors and its CIGAR begin
    int id, parent, score, score0, count, sequence, qs, qe, rs, re, second, seconds, matches, columns;
    int flags, operations, dp, dp2, ambiguous, mapq;
    u32 hash;
    float divergence;
};

namespace {
// hit.c, mm_cal_fuzzy_len and mm_reg_set_coor.
__device__ void set_place(Hit& hit, const u64* x, const u64* y, int length)
{
    const long long first = hit.anchors, last = first + hit.count - 1;
    const int span = span_of(y[first]);
    hit.flags = is_reverse(x[first]) ? REVERSE : 0;
    hit.sequence = sequence_of(x[first]);
    hit.rs = target_of(x[first]) + 1 > span ? target_of(x[first]) + 1 - span : 0;
    hit.re = target_of(x[last]) + 1;
    if (!(hit.flags & REVERSE)) {
        hit.qs = query_of(y[first]) + 1 - span;
        hit.qe = query_of(y[last]) + 1;
    } else {
        hit.qs = length - (query_of(y[last]) + 1);
        hit.qe = length - (query_of(y[first]) + 1 - span);
    }
    hit.matches = hit.columns = span;
    for (long long i = first + 1; i <= last; ++i) {
        const int k = span_of(y[i]), t = target_of(x[i]) - target_of(x[i - 1]), q = query_of(y[i]) - query_of(y[i - 1]);
        hit.columns += t > q ? t : q;
        hit.matches += t > k && q > k ? k : t < q ? t : q;
    }
}

// hit.c, mm_set_parent: if a hit's part of the read lies mostly within a better hit's, it is secondary to that hit.
__device__ void set_parents(Hit* hits, int n, u64* covered, int* primaries, bool aligned)
{
    if (n <= 0) return;
    for (int i = 0; i < n; ++i) hits[i].id = i;
    primaries[0] = 0;
    hits[0].parent = 0;
    for (int i = 1, k = 1; i < n; ++i) {
        Hit& hit = hits[i];
        const int si = hit.qs, ei = hit.qe;
        int n_covered = 0, uncovered = 0, j;
        for (j = 0; j < k; ++j) {
            int sj = hits[primaries[j]].qs, ej = hits[primaries[j]].qe;
            if (ej <= si || sj >= ei) continue;
            if (sj < si) sj = si;
            if (ej > ei) ej = ei;
            const u64 part = (u64)sj << 32 | (u32)ej;
            int at = n_covered++;
            for (; at > 0 && covered[at - 1] > part; --at) covered[at] = covered[at - 1];
            covered[at] = part;
        }
        if (n_covered > 0) {
            int to = si;
            for (int c = 0; c < n_covered; ++c) {
                if ((int)(covered[c] >> 32) > to) uncovered += (int)(covered[c] >> 32) - to;
                if ((int)(u32)covered[c] > to) to = (int)(u32)covered[c];
            }
            if (ei > to) uncovered += ei - to;
            for (j = 0; j < k; ++j) {
                Hit& best = hits[primaries[j]];
                const int sj = best.qs, ej = best.qe;
                if (ej <= si || sj >= ei) continue;
                const int least = ej - sj < ei - si ? ej - sj : ei - si, most = ej - sj > ei - si ? ej - sj : ei - si;
                const int overlap = (ei < ej ? ei : ej) - (si > sj ? si : sj);
                if (!((float)overlap / least - (float)uncovered / most > 0.5f)) continue;
                hit.parent = best.parent;
                if (hit.score > best.second) best.second = hit.score;
                bool counts = hit.count >= best.count;
                if (aligned && (best.sequence != hit.sequence || best.rs != hit.rs || best.re != hit.re || overlap != least)) {
                    if (hit.dp > best.dp2) best.dp2 = hit.dp;
                    if (best.dp - hit.dp <= 2 * MATCH + MISMATCH) counts = true;
                }
                if (counts) ++best.seconds;
                break;
            }
        }
        if (j == k) {
            primaries[k++] = i;
            hit.parent = i;
            hit.seconds = 0;
        }
    }
}

// hit.c, mm_sync_regs and mm_set_sam_pri.
__device__ void renumber(Hit* hits, int n, int* now)
{
    int most = -1;
    for (int i = 0; i < n; ++i) most = hits[i].id > most ? hits[i].id : most;
    for (int i = 0; i <= most; ++i) now[i] = -1;
    for (int i = 0; i < n; ++i)
        if (hits[i].id >= 0) now[hits[i].id] = i;
    for (int i = 0; i < n; ++i) {
        hits[i].id = i;
        hits[i].parent = hits[i].parent >= 0 && now[hits[i].parent] >= 0 ? now[hits[i].parent] : UNSET;
    }
}

__device__ void set_primary_record(Hit* hits, int n)
{
    bool found = false;
    for (int i = 0; i < n; ++i) {
        hits[i].flags &= ~PRIMARY_RECORD;
        if (hits[i].id == hits[i].parent && !found) found = true, hits[i].flags |= PRIMARY_RECORD;
    }
}

// hit.c, mm_select_sub: keeps primary hits and the best secondary ones. `now` has at least one entry per hit.
__device__ int select_best(Hit* hits, int n, int* now, int least_difference, bool check_strand, int least_other_strand)
{
    int kept = 0, seconds = 0;
    bool dropped = false;
    // minimap2 decides keep[] with all hits in place, so decide first, then move.
    for (int i = 0; i < n; ++i) {
        Hit& hit = hits[i];
        const Hit& best = hits[hit.parent];
        bool keep = false;
        if (hit.parent == i) {
            keep = true;
        } else if (((float)hit.score >= (float)best.score * 0.8f || hit.score + least_difference >= best.score)
                   && seconds < BEST) {
            if (!(hit.qs == best.qs && hit.qe == best.qe && hit.sequence == best.sequence && hit.rs == best.rs
                  && hit.re == best.re))
                keep = true, ++seconds;
        } else if (check_strand && seconds < BEST && hit.score > least_other_strand
                   && (hit.flags & REVERSE) != (best.flags & REVERSE)) {
            hit.flags |= STRAND_RETAINED;
            keep = true;
            ++seconds;
        }
        now[i] = keep;
    }
    for (int i = 0; i < n; ++i) {
        if (now[i]) hits[kept++] = hits[i];
        else dropped = true;
    }
    if (dropped) renumber(hits, kept, now);
    return kept;
}

// esterr.c, mm_est_err: estimates divergence from how many of the read's seeds are in the chain.
__device__ int forward_place(u64 x, u64 y, int length)
{
    return is_reverse(x) ? length - 1 - (query_of(y) + 1 - span_of(y)) : query_of(y);
}

__device__ void estimate(Hit& hit, const u64* x, const u64* y, int length, int sequence_length, const int* seeds, int n, int span)
{
    hit.divergence = -1.0f;
    if (hit.count == 0 || n == 0) return;
    const bool reverse = hit.flags & REVERSE;
    const long long first = hit.anchors, last = first + hit.count - 1;
    const int place = forward_place(x[reverse ? last : first], y[reverse ? last : first], length);
    int low = 0, high = n - 1, start = -1;
    while (low <= high) {
        const int middle = (low + high) >> 1;
        if (seeds[middle] < place) low = middle + 1;
        else if (seeds[middle] > place) high = middle - 1;
        else {
            start = middle;
            break;
        }
    }
    if (start < 0) return;
    int end = start, matches = 1;
    for (int k = 1, j = start + 1; j < n && k < hit.count; ++j) {
        const long long i = reverse ? last - k : first + k;
        if (forward_place(x[i], y[i], length) == seeds[j]) ++k, end = j, ++matches;
    }
    int total = end - start + 1;
    const float average = (float)span;
    if (hit.qs > average && hit.rs > average) ++total;
    if (length - hit.qs > average && sequence_length - hit.re > average) ++total;
    hit.divergence = matches >= total ? 0.0f : (float)(1.0 - pow((double)matches / total, 1.0 / average));
}
}

// One thread per read: turns its chains, best first, into hits, and leaves out those that are not worth aligning
// (map.c, chain_post).
//   hits[r] .. hits[r + 1]   read r's entries in `hit`; the first left[r] stay
extern "C" __global__ void choose_chains(
    const long long* __restrict__ hits, Hit* hit, const u64* __restrict__ x, const u64* __restrict__ y,
    const int* __restrict__ length, const int* __restrict__ sequence_length, const long long* __restrict__ seeds,
    const int* __restrict__ seed_position, const u8* __restrict__ failed, u64* covered, int* primaries, int* __restrict__ left,
    int span, int max_gap, int reads)
{
    const int read = blockIdx.x * blockDim.x + threadIdx.x;
    if (read >= reads) return;
    if (failed[read]) {
        left[read] = 0;
        return;
    }
    const long long first = hits[read];
    int n = (int)(hits[read + 1] - first);
    Hit* mine = hit + first;
    for (int i = 0; i < n; ++i) set_place(mine[i], x, y, length[read]);
    set_parents(mine, n, covered + first, primaries + first, false);
    n = select_best(mine, n, primaries + first, 2 * span, true, (int)(max_gap * 0.8));
    for (int i = 0; i < n; ++i)
        estimate(
            mine[i], x, y, length[read], sequence_length[mine[i].sequence], seed_position + seeds[read],
            (int)(seeds[read + 1] - seeds[read]), span);
    int kept = 0;  // hit.c, mm_filter_strand_retained
    for (int i = 0; i < n; ++i) {
        const bool keep = !(mine[i].flags & STRAND_RETAINED) || mine[i].divergence < mine[mine[i].parent].divergence * 5.0f
            || mine[i].divergence < 0.01f;
        primaries[first + i] = keep;
    }
    for (int i = 0; i < n; ++i)
        if (primaries[first + i]) mine[kept++] = mine[i];
    left[read] = kept;
}

// Where to align a hit; hits.py reads this declaration. Positions are on the hit's strand of the read (q) and in the
// reference sequence (r).
struct Plan {
    long long anchors;
    int count, fills;
    int qs, rs, qe, re;      // from the first to the last anchor; this part is filled
    int qs0, rs0, qe0, re0;  // how far the hit may be extended
};

namespace {
__device__ int gap_at(const u64* x, const u64* y, int i)
{
    return (query_of(y[i]) - query_of(y[i - 1])) - (target_of(x[i]) - target_of(x[i - 1]));
}

__device__ int long_gaps(const u64* x, const u64* y, int count, int least, int* gaps)
{
    int n = 0;
    for (int i = 1; i < count; ++i) {
        const int gap = gap_at(x, y, i);
        if (gap < -least || gap > least) gaps[n++] = i;
    }
    return n > 1 ? n : 0;
}

// align.c, mm_filter_bad_seeds.
__device__ void ignore_bad_seeds(const u64* x, u64* y, int count, int max_length, int* gaps)
{
    const int n = long_gaps(x, y, count, 10, gaps);
    if (n == 0) return;
    int most = 0, from = -1, to = -1;
    for (int k = 0;; ++k) {
        if (k == n || k >= to) {
            if (to > 0)
                for (int i = gaps[from]; i < gaps[to]; ++i) y[i] |= IGNORED;
            most = 0;
            from = to = -1;
            if (k == n) break;
        }
        const int i = gaps[k];
        int inserted = 0, deleted = 0, difference = 0, at = -1, gap = gap_at(x, y, i);
        if (gap > 0) inserted += gap;
        else deleted -= gap;
        const int qs = query_of(y[i - 1]), rs = target_of(x[i - 1]);
        for (int l = k + 1; l < n && l <= k + 10; ++l) {
            const int j = gaps[l];
            if (query_of(y[j]) - qs > max_length || target_of(x[j]) - rs > max_length) break;
            gap = gap_at(x, y, j);
            if (gap > 0) inserted += gap;
            else deleted -= gap;
            const int rest = inserted - deleted, now = inserted + deleted - (rest < 0 ? -rest : rest);
            if (difference < now) difference = now, at = l;
        }
        if (difference > 40 && difference > most) most = difference, from = k, to = at;
    }
}

// align.c, mm_filter_bad_seeds_alt.
__device__ void join_over_bad_seeds(const u64* x, u64* y, int count, int max_length, int* gaps)
{
    const int n = long_gaps(x, y, count, 30, gaps);
    for (int k = 0; k < n;) {
        const int i = gaps[k];
        int gap1 = gap_at(x, y, i), re1 = target_of(x[i]), qe1 = query_of(y[i]), l;
        gap1 = gap1 > 0 ? gap1 : -gap1;
        for (l = k + 1; l < n; ++l) {
            const int j = gaps[l];
            if (query_of(y[j]) - qe1 > max_length || target_of(x[j]) - re1 > max_length) break;
            int gap2 = gap_at(x, y, j);
            const int span = span_of(y[j - 1]);
            const int r = target_of(x[j - 1]) + span - re1, q = query_of(y[j - 1]) + span - qe1;
            const int m = r < q ? r : q;
            gap2 = gap2 > 0 ? gap2 : -gap2;
            if (m > gap1 + gap2) break;
            re1 = target_of(x[j]);
            qe1 = query_of(y[j]);
            gap1 = gap2;
        }
        if (l > k + 1) {
            const int end = gaps[l - 1];
            for (int j = gaps[k]; j < end; ++j) y[j] |= IGNORED;
            y[end] |= LONG_JOIN;
        }
        k = l;
    }
}

// align.c, mm_fix_bad_ends.
__device__ void fix_bad_ends(const Hit& hit, const u64* x, const u64* y, int& first, int& count)
{
    first = 0;
    count = hit.count;
    if (hit.count < 3) return;
    int m = span_of(y[0]), l = m;
    for (int i = 1; i < hit.count - 1; ++i) {
        if (y[i] & LONG_JOIN) break;
        const int r = target_of(x[i]) - target_of(x[i - 1]), q = query_of(y[i]) - query_of(y[i - 1]), span = span_of(y[i]);
        const int least = r < q ? r : q, most = r > q ? r : q;
        if (most - least > l >> 1) first = i;
        l += least;
        m += least < span ? least : span;
        if (l >= BAND << 1 || (m >= 2 * MIN_SCORE && m >= BAND) || m >= hit.matches >> 1) break;
    }
    count = hit.count - first;
    m = l = span_of(y[hit.count - 1]);
    for (int i = hit.count - 2; i > first; --i) {
        if (y[i + 1] & LONG_JOIN) break;
        const int r = target_of(x[i + 1]) - target_of(x[i]), q = query_of(y[i + 1]) - query_of(y[i]), span = span_of(y[i + 1]);
        const int least = r < q ? r : q, most = r > q ? r : q;
        if (most - least > l >> 1) count = i + 1 - first;
        l += least;
        m += least < span ? least : span;
        if (l >= BAND << 1 || (m >= 2 * MIN_SCORE && m >= BAND) || m >= hit.matches >> 1) break;
    }
}
}

// One thread per hit: plans where it is filled and how far it may be extended (align.c, the first half of mm_align1).
// Only the anchors of the read's hits are left; those of another hit nearby limit the extension.
extern "C" __global__ void plan_hits(
    const Hit* __restrict__ hit, const int* __restrict__ read_of, const long long* __restrict__ anchors,
    const u64* __restrict__ x, u64* y, const int* __restrict__ length, const int* __restrict__ sequence_length, Plan* plans,
    int* scratch, int half_span, int max_gap, int count)
{
    const int number = blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= count) return;
    const Hit& mine = hit[number];
    const int read = read_of[number], qlen = length[read], tlen = sequence_length[mine.sequence];
    const u64* xs = x + mine.anchors;
    u64* ys = y + mine.anchors;
    int first, n;
    fix_bad_ends(mine, xs, ys, first, n);
    ignore_bad_seeds(xs + first, ys + first, n, max_gap >> 1, scratch + mine.anchors);
    join_over_bad_seeds(xs + first, ys + first, n, max_gap >> 1, scratch + mine.anchors);
    Plan plan;
    plan.anchors = mine.anchors + first;
    plan.count = n;
    plan.rs = target_of(xs[first]) - half_span;
    plan.qs = query_of(ys[first]) - half_span;
    plan.re = target_of(xs[first + n - 1]) - half_span;
    plan.qe = query_of(ys[first + n - 1]) - half_span;
    const u64 on = xs[0] >> 32;
    const int rs = plan.rs, qs = plan.qs, re = plan.re, qe = plan.qe;
    int rs0 = target_of(xs[0]) + 1 - span_of(ys[0]), qs0 = query_of(ys[0]) + 1 - span_of(ys[0]), rs1 = 0, qs1 = 0, l = 0;
    if (rs0 < 0) rs0 = 0;
    for (long long i = mine.anchors - 1; i >= anchors[read] && x[i] >> 32 == on; --i) {
        const int xi = target_of(x[i]) + 1 - span_of(y[i]), yi = query_of(y[i]) + 1 - span_of(y[i]);
        if (xi < rs0 && yi < qs0 && ++l > MIN_COUNT) {
            l = rs0 - xi > qs0 - yi ? rs0 - xi : qs0 - yi;
            rs1 = rs0 - l;
            qs1 = qs0 - l;
            if (rs1 < 0) rs1 = 0;
            break;
        }
    }
    if (qs > 0 && rs > 0) {
        l = qs < max_gap ? qs : max_gap;
        qs1 = qs1 > qs - l ? qs1 : qs - l;
        qs0 = qs0 < qs1 ? qs0 : qs1;
        l += l * MATCH > OPEN ? (l * MATCH - OPEN) / EXTEND : 0;
        l = l < max_gap ? l : max_gap;
        l = l < rs ? l : rs;
        rs1 = rs1 > rs - l ? rs1 : rs - l;
        rs0 = rs0 < rs1 ? rs0 : rs1;
        rs0 = rs0 < rs ? rs0 : rs;
    } else {
        rs0 = rs;
        qs0 = qs;
    }
    const int last = mine.count - 1;
    int re0 = target_of(xs[last]) + 1, qe0 = query_of(ys[last]) + 1, re1 = tlen, qe1 = qlen;
    l = 0;
    for (long long i = mine.anchors + mine.count; i < anchors[read + 1] && x[i] >> 32 == on; ++i) {
        const int xi = target_of(x[i]) + 1, yi = query_of(y[i]) + 1;
        if (xi > re0 && yi > qe0 && ++l > MIN_COUNT) {
            l = xi - re0 > yi - qe0 ? xi - re0 : yi - qe0;
            re1 = re0 + l;
            qe1 = qe0 + l;
            break;
        }
    }
    if (qe < qlen && re < tlen) {
        l = qlen - qe < max_gap ? qlen - qe : max_gap;
        qe1 = qe1 < qe + l ? qe1 : qe + l;
        qe0 = qe0 > qe1 ? qe0 : qe1;
        l += l * MATCH > OPEN ? (l * MATCH - OPEN) / EXTEND : 0;
        l = l < max_gap ? l : max_gap;
        l = l < tlen - re ? l : tlen - re;
        re1 = re1 < re + l ? re1 : re + l;
        re0 = re0 > re1 ? re0 : re1;
    } else {
        re0 = re;
        qe0 = qe;
    }
    plan.rs0 = rs0, plan.qs0 = qs0, plan.re0 = re0, plan.qe0 = qe0;
    plan.fills = 0;
    int q = qs, r = rs;
    for (int i = 1; i < n; ++i) {
        const u64 flags = ys[first + i];
        if (flags & (IGNORED | TANDEM) && i != n - 1) continue;
        const int to_q = query_of(flags) - half_span, to_r = target_of(xs[first + i]) - half_span;
        if (i == n - 1 || flags & LONG_JOIN || (to_q - q >= APART && to_r - r >= APART)) ++plan.fills, q = to_q, r = to_r;
    }
    plans[number] = plan;
}

// One thread per hit: lists the points between which it is filled, one more than there are fills. first_point: where
// each hit's points begin.
extern "C" __global__ void list_fills(
    const Plan* __restrict__ plans, const u64* __restrict__ x, const u64* __restrict__ y,
    const long long* __restrict__ first_point, int* __restrict__ query, int* __restrict__ target, int half_span, int count)
{
    const int number = blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= count) return;
    const Plan& plan = plans[number];
    long long point = first_point[number];
    int q = plan.qs, r = plan.rs;
    query[point] = q;
    target[point++] = r;
    for (int i = 1; i < plan.count; ++i) {
        const u64 flags = y[plan.anchors + i];
        if (flags & (IGNORED | TANDEM) && i != plan.count - 1) continue;
        const int to_q = query_of(flags) - half_span, to_r = target_of(x[plan.anchors + i]) - half_span;
        if (i == plan.count - 1 || flags & LONG_JOIN || (to_q - q >= APART && to_r - r >= APART)) {
            q = to_q;
            r = to_r;
            query[point] = q;
            target[point++] = r;
        }
    }
}

// Unpacks the reference's bases, one thread per base. Window w starts at base first[w] of the reference and at
// window[w] in `codes`, and ends where the next window starts.
extern "C" __global__ void unpack(
    const u8* __restrict__ bases, const long long* __restrict__ unknown, const long long* __restrict__ window,
    const long long* __restrict__ first, u8* __restrict__ codes, int windows, int unknowns, long long count)
{
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int low = 0, high = windows;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (window[middle] <= i) low = middle;
        else high = middle;
    }
    const long long place = first[low] + (i - window[low]);
    int from = 0, to = unknowns;  // find the first run that ends after `place`
    while (from < to) {
        const int middle = (from + to) / 2;
        if (unknown[2 * middle + 1] > place) to = middle;
        else from = middle + 1;
    }
    const bool is_unknown = from < unknowns && unknown[2 * from] <= place;
    codes[i] = is_unknown ? 4 : bases[place >> 2] >> 2 * (place & 3) & 3;
}

namespace {
struct Bases {  // a hit's: of the read, on the hit's strand, and of the sequence
    const u8* read;
    const u8* target;
    int length, target_from;
    bool reverse;
    __device__ int q(int i) const
    {
        const int code = reverse ? read[length - 1 - i] : read[i];
        return code > 3 ? 4 : reverse ? 3 - code : code;
    }
    __device__ int t(int i) const { return target[i - target_from]; }
};

__device__ int pair_score(int q, int t) { return q > 3 || t > 3 ? -AMBIGUOUS : q == t ? MATCH : -MISMATCH; }

struct Drop {  // align.c, update_max_zdrop
    int best = -2147483647 - 1, best_t = -1, best_q = -1, drop = 0;
    __device__ void see(int score, int t, int q)
    {
        if (score < best) {
            const int dt = t - best_t, dq = q - best_q, apart = dt > dq ? dt - dq : dq - dt;
            const int now = best - score - apart * EXTEND;
            if (now > drop) drop = now;
        } else {
            best = score, best_t = t, best_q = q;
        }
    }
};

// align.c, mm_test_zdrop: returns how far the score drops along a filled piece.
__device__ int deepest_drop(const u32* cigar, int n, const Bases& bases, int q0, int t0)
{
    Drop drop;
    int score = 0, t = 0, q = 0;
    for (int k = 0; k < n; ++k) {
        const int op = cigar[k] & 15, length = cigar[k] >> 4;
        if (op == OP_M) {
            for (int l = 0; l < length; ++l) {
                score += pair_score(bases.q(q0 + q + l), bases.t(t0 + t + l));
                drop.see(score, t + l, q + l);
            }
            t += length;
            q += length;
        } else {
            score -= OPEN + EXTEND * length;
            if (op == OP_I) q += length;
            else t += length;
            drop.see(score, t, q);
        }
    }
    return drop.drop;
}

// align.c, mm_fix_cigar: moves gaps as far left as possible, merges gaps that meet into one insertion and one deletion,
// and removes a gap at the start.
__device__ int fix_cigar(u32* cigar, int n, Hit& hit, const Bases& bases, int& q0, int& t0)
{
    if (n <= 1) return n;
    int t = 0, q = 0;
    bool shrink = false;
    for (int k = 0; k < n; ++k) {
        const int op = cigar[k] & 15, length = cigar[k] >> 4;
        if (length == 0) shrink = true;
        if (op == OP_M) {
            t += length;
            q += length;
            continue;
        }
        if (k > 0 && k < n - 1 && (cigar[k - 1] & 15) == OP_M && (cigar[k + 1] & 15) == OP_M) {
            const int before = cigar[k - 1] >> 4;
            int l = 0;
            if (op == OP_I)
                while (l < before && bases.q(q0 + q - 1 - l) == bases.q(q0 + q + length - 1 - l)) ++l;
            else
                while (l < before && bases.t(t0 + t - 1 - l) == bases.t(t0 + t + length - 1 - l)) ++l;
            if (l > 0) {
                cigar[k - 1] -= l << 4;
                cigar[k + 1] += l << 4;
                q -= l;
                t -= l;
            }
            if (l == before) shrink = true;
        }
        if (op == OP_I) q += length;
        else t += length;
    }
    for (int k = 0; k < n - 2; ++k) {
        if ((cigar[k] & 15) > 0 && (cigar[k] & 15) + (cigar[k + 1] & 15) == 3) {
            u32 sums[3] = {0, 0, 0};
            int l = k;
            for (; l < n; ++l) {
                const u32 op = cigar[l] & 15;
                if (op == OP_I || op == OP_D || cigar[l] >> 4 == 0) sums[op] += cigar[l] >> 4;
                else break;
            }
            if (sums[OP_I] > 0 && sums[OP_D] > 0 && l - k > 2) {
                cigar[k] = sums[OP_I] << 4 | OP_I;
                cigar[k + 1] = sums[OP_D] << 4 | OP_D;
                for (k += 2; k < l; ++k) cigar[k] &= 15;
                shrink = true;
            }
            k = l;
        }
    }
    if (shrink) {
        int l = 0;
        for (int k = 0; k < n; ++k)
            if (cigar[k] >> 4) cigar[l++] = cigar[k];
        n = l;
        l = 0;
        for (int k = 0; k < n; ++k) {
            if (k == n - 1 || (cigar[k] & 15) != (cigar[k + 1] & 15)) cigar[l++] = cigar[k];
            else cigar[k + 1] += cigar[k] >> 4 << 4;
        }
        n = l;
    }
    if ((cigar[0] & 15) != OP_M) {
        const int length = cigar[0] >> 4;
        if ((cigar[0] & 15) == OP_I) {
            if (hit.flags & REVERSE) hit.qe -= length;
            else hit.qs += length;
            q0 += length;
        } else {
            hit.rs += length;
            t0 += length;
        }
        --n;
        for (int k = 0; k < n; ++k) cigar[k] = cigar[k + 1];
    }
    return n;
}

__device__ int append(u32* cigar, int n, const u32* more, long long count)
{
    for (long long k = 0; k < count; ++k) {
        if (n > 0 && (cigar[n - 1] & 15) == (more[k] & 15)) cigar[n - 1] += more[k] >> 4 << 4;
        else cigar[n++] = more[k];
    }
    return n;
}
}

// One thread per hit: joins its pieces into one alignment, and computes its figures (align.c, the rest of mm_align1 and
// mm_update_extra).
//   end_task[2 h], [2 h + 1]   hit h's extensions to the left and to the right; -1: none
//   fill[h] .. fill[h + 1]     hit h's filled pieces
//   failed[r]                  set if minimap2 must align the read
extern "C" __global__ void join_hits(
    Hit* hit, const int* __restrict__ read_of, const Plan* __restrict__ plans, const u8* __restrict__ codes,
    const long long* __restrict__ read_start, const int* __restrict__ length, const u8* __restrict__ target,
    const long long* __restrict__ window, const long long* __restrict__ end_task, const int* __restrict__ end_query,
    const int* __restrict__ end_target, const u32* __restrict__ end_cigar, const long long* __restrict__ end_offset,
    const long long* __restrict__ fill, const int* __restrict__ point_query, const int* __restrict__ point_target,
    const u32* __restrict__ fill_cigar, const long long* __restrict__ fill_offset, const long long* __restrict__ cigar_at,
    u32* cigars, u8* __restrict__ failed, int count)
{
    const int number = blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= count) return;
    Hit& mine = hit[number];
    const Plan& plan = plans[number];
    const int read = read_of[number], qlen = length[read];
    const Bases bases = {
        codes + read_start[read], target + window[number], qlen, plan.rs0, (mine.flags & REVERSE) != 0};
    u32* cigar = cigars + cigar_at[number];
    int n = 0, q = plan.qs, t = plan.rs, q_end = plan.qe, t_end = plan.re;
    const long long left = end_task[2 * number], right = end_task[2 * number + 1];
    if (left >= 0) {
        n = append(cigar, n, end_cigar + end_offset[left], end_offset[left + 1] - end_offset[left]);
        q -= end_query[left];
        t -= end_target[left];
    }
    for (long long k = fill[number]; k < fill[number + 1]; ++k) {
        const u32* piece = fill_cigar + fill_offset[k];
        const int operations = (int)(fill_offset[k + 1] - fill_offset[k]);
        const long long point = k + number;  // each hit has one more point than pieces
        if (deepest_drop(piece, operations, bases, point_query[point], point_target[point]) > ZDROP_INVERSION) failed[read] = DROPS;
        n = append(cigar, n, piece, operations);
    }
    if (right >= 0) {
        n = append(cigar, n, end_cigar + end_offset[right], end_offset[right + 1] - end_offset[right]);
        q_end += end_query[right];
        t_end += end_target[right];
    }
    mine.rs = t;
    mine.re = t_end;
    mine.qs = bases.reverse ? qlen - q_end : q;
    mine.qe = bases.reverse ? qlen - q : q_end;
    n = fix_cigar(cigar, n, mine, bases, q, t);
    double score = 0.0, most = 0.0;
    mine.columns = mine.matches = mine.ambiguous = 0;
    for (int k = 0; k < n; ++k) {
        const int op = cigar[k] & 15, size = cigar[k] >> 4;
        int ambiguous = 0, different = 0;
        if (op == OP_M) {
            for (int l = 0; l < size; ++l) {
                const int cq = bases.q(q + l), ct = bases.t(t + l);
                if (ct > 3 || cq > 3) ++ambiguous;
                else if (ct != cq) ++different;
                score += pair_score(cq, ct);
                if (score < 0) score = 0;
                else most = most > score ? most : score;
            }
            mine.matches += size - (ambiguous + different);
            q += size;
            t += size;
        } else {
            for (int l = 0; l < size; ++l) ambiguous += (op == OP_I ? bases.q(q + l) : bases.t(t + l)) > 3;
            score -= OPEN + (double)EXTEND * log2_of((float)(1.0 + size));
            if (score < 0) score = 0;
            if (op == OP_I) q += size;
            else t += size;
        }
        mine.columns += size - ambiguous;
        mine.ambiguous += ambiguous;
    }
    mine.operations = n;
    mine.cigar = cigar_at[number];
    mine.dp = (int)(most + .499);
    mine.dp2 = 0;
}

namespace {
// hit.c, mm_filter_regs; max_clip_ratio is 1.
__device__ int filter(Hit* hits, int n)
{
    int kept = 0;
    for (int i = 0; i < n; ++i)
        if (hits[i].count >= MIN_COUNT && hits[i].matches >= MIN_SCORE && hits[i].dp >= MIN_DP) hits[kept++] = hits[i];
    return kept;
}

// align.c, mm_update_dp_max: if two alignments are nearly equally good, scores all again, with mismatches weighted by
// how diverged the best one is.
__device__ void weigh_again(Hit* hits, int n, const u32* cigars, int length)
{
    if (n < 2) return;
    int most = -1, most2 = -1, best = -1;
    for (int i = 0; i < n; ++i) {
        if (hits[i].dp > most) most2 = most, most = hits[i].dp, best = i;
        else if (hits[i].dp > most2) most2 = hits[i].dp;
    }
    if (best < 0 || most < 0 || most2 < 0) return;
    if (hits[best].qe - hits[best].qs < (double)length * 0.9f) return;
    if (most2 < (double)most * 0.9f) return;
    int gaps = 0, opened = 0;
    for (int k = 0; k < hits[best].operations; ++k) {
        const u32 op = cigars[hits[best].cigar + k];
        if ((op & 15) != OP_M) ++opened, gaps += op >> 4;
    }
    double divergence = 1. - (double)hits[best].matches / (hits[best].columns + hits[best].ambiguous - gaps + opened);
    if (divergence < 0.02) divergence = 0.02;
    double weight = 0.5 / divergence;
    if (weight * MATCH < MISMATCH) weight = (double)MATCH / MISMATCH;
    for (int i = 0; i < n; ++i) {
        Hit& hit = hits[i];
        double cost = 0.0;
        int gap_bases = 0;
        for (int k = 0; k < hit.operations; ++k) {
            const u32 op = cigars[hit.cigar + k];
            if ((op & 15) == OP_M) continue;
            cost += weight + (double)log2_of((float)(1.0 + (op >> 4)));
            gap_bases += op >> 4;
        }
        const int mismatches = hit.columns + hit.ambiguous - hit.matches - gap_bases;
        hit.dp = (int)(MATCH * (hit.matches - weight * mismatches - cost) + .499);
        if (hit.dp < 0) hit.dp = 0;
    }
}

// hit.c, mm_set_mapq2.
__device__ void set_mapq(Hit* hits, int n, int repetitive)
{
    long long sum = 0;
    for (int i = 0; i < n; ++i)
        if (hits[i].parent == hits[i].id) sum += hits[i].score;
    const float unique = (float)sum / (sum + repetitive);
    for (int i = 0; i < n; ++i) {
        Hit& hit = hits[i];
        hit.mapq = 0;
        if (hit.parent != hit.id) continue;
        const float by_score = (hit.score > 100 ? 1.0f : 0.01f * hit.score) * unique;
        float penalty = hit.count > 10 ? 1.0f : 0.1f * hit.count;
        penalty = by_score < penalty ? by_score : penalty;
        const int second = hit.second > MIN_SCORE ? hit.second : MIN_SCORE;
        const float identity = (float)hit.matches / hit.columns;
        int mapq;
        if (hit.dp2 > 0 && hit.dp > 0) {
            const float x = (float)hit.dp2 * second / hit.dp / hit.score0;
            mapq = (int)(identity * penalty * 40.0f * (1.0f - x * x) * logf((float)hit.dp / MATCH));
            const int cap = (int)(6.02f * identity * identity * (hit.dp - hit.dp2) / MATCH + .499f);
            mapq = mapq < cap ? mapq : cap;
        } else {
            const float x = (float)second / hit.score0;
            mapq = (int)(identity * penalty * 40.0f * (1.0f - x) * logf((float)hit.dp / MATCH));
        }
        mapq -= (int)(4.343f * logf((float)(hit.seconds + 1)) + .499f);
        mapq = mapq > 0 ? mapq : 0;
        hit.mapq = mapq < 60 ? mapq : 60;
        if (hit.dp > hit.dp2 && hit.mapq == 0) hit.mapq = 1;
    }
}
}

// One thread per read: decides which of its alignments stay, in which order, and as what (map.c, align_regs).
extern "C" __global__ void choose_hits(
    const long long* __restrict__ hits, Hit* hit, const int* __restrict__ length, const u32* __restrict__ cigars, u64* covered,
    int* primaries, const int* __restrict__ repetitive, int* __restrict__ left, int span, int max_gap, int reads)
{
    const int read = blockIdx.x * blockDim.x + threadIdx.x;
    if (read >= reads) return;
    Hit* mine = hit + hits[read];
    int n = filter(mine, (int)(hits[read + 1] - hits[read]));
    if (length[read] >= RANK_LENGTH) {
        weigh_again(mine, n, cigars, length[read]);
        n = filter(mine, n);
    }
    for (int i = 1; i < n; ++i) {  // hit.c, mm_hit_sort
        const Hit now = mine[i];
        const u64 key = (u64)now.dp << 32 | now.hash;
        int at = i;
        for (; at > 0 && ((u64)mine[at - 1].dp << 32 | mine[at - 1].hash) < key; --at) mine[at] = mine[at - 1];
        mine[at] = now;
    }
    set_parents(mine, n, covered + hits[read], primaries + hits[read], true);
    n = select_best(mine, n, primaries + hits[read], 2 * span, false, (int)(max_gap * 0.8));
    set_primary_record(mine, n);
    set_mapq(mine, n, repetitive[read]);
    left[read] = n;
}
