// Anchors in minimap2's format (minimap.h, mmpriv.h). x holds the strand, the sequence, and the position in it of the
// k-mer's last base. y holds flags, the k-mer's length, and its position in the read, on that strand.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

namespace {
constexpr u64 LONG_JOIN = 1ull << 40, IGNORED = 1ull << 41, TANDEM = 1ull << 42;

__device__ __forceinline__ int target_of(u64 x) { return (int)(u32)x; }
__device__ __forceinline__ int query_of(u64 y) { return (int)(u32)y; }
__device__ __forceinline__ int span_of(u64 y) { return (int)(y >> 32 & 0xff); }
__device__ __forceinline__ int sequence_of(u64 x) { return (int)(x << 1 >> 33); }
__device__ __forceinline__ bool is_reverse(u64 x) { return x >> 63 != 0; }

// minimap2's own logarithm (mmpriv.h, mg_log2), so that scores are the same.
__device__ __forceinline__ float log2_of(float value)
{
    u32 bits = __float_as_uint(value);
    float log_2 = (float)((int)(bits >> 23 & 255) - 128);
    bits = (bits & ~(255u << 23)) + (127u << 23);
    const float z = __uint_as_float(bits);
    log_2 += (-0.34484843f * z + 2.02466578f) * z - 0.67487759f;
    return log_2;
}
}
