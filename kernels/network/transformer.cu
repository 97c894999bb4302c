// The passes of a transformer's layer over its features, between matrix products: rotary embedding, residual and norm,
// SwiGLU. What torch does in a dozen float32 passes takes one each.
#include "numbers.cuh"

#ifndef WIDTH
#define WIDTH 512
#endif

namespace {
constexpr float EPSILON = 1e-5f;  // of the norm
constexpr int LANES = 32;
constexpr int FOURS = WIDTH / 4 / LANES;  // of a row, for each lane of a warp

__device__ __forceinline__ float4 numbers(Four four)
{
    return make_float4(number(four.x), number(four.y), number(four.z), number(four.w));
}

__device__ __forceinline__ Four rounded(float4 four)
{
    Four out;
    store(four.x, &out.x);
    store(four.y, &out.y);
    store(four.z, &out.z);
    store(four.w, &out.w);
    return out;
}

__device__ __forceinline__ void turn(float& a, float& b, float cosine, float sine)
{
    const float first = a * cosine - b * sine;
    b = a * sine + b * cosine;
    a = first;
}

__device__ __forceinline__ float swish(float x) { return x * sigmoid(x); }
}  // namespace

// Turns the queries and keys in place. `qkv` is (rows, steps, 3, heads, 2, halves, 4): queries, keys, values; the halves
// of a head's features are the coordinates of points. `cosines` and `sines` are (steps, halves). One thread per four
// points.
extern "C" __global__ void __launch_bounds__(256) rotate(
    Four* __restrict__ qkv, const float4* __restrict__ cosines, const float4* __restrict__ sines, int rows, int steps,
    int heads, int halves)
{
    const long long place = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const int half = place % halves;
    const long long head = place / halves;  // of all rows' and steps' queries and keys
    const long long step = head / (2 * heads);
    if (step >= (long long)rows * steps) return;
    Four* points = qkv + (step * 3 * heads + head % (2 * heads)) * 2 * halves + half;
    const long long angle = step % steps * halves + half;
    const float4 cosine = cosines[angle], sine = sines[angle];
    float4 a = numbers(points[0]), b = numbers(points[halves]);
    turn(a.x, b.x, cosine.x, sine.x);
    turn(a.y, b.y, cosine.y, sine.y);
    turn(a.z, b.z, cosine.z, sine.z);
    turn(a.w, b.w, cosine.w, sine.w);
    points[0] = rounded(a);
    points[halves] = rounded(b);
}

// out = weight * (added + alpha x) / sqrt(its mean square + EPSILON), each (rows, WIDTH). One warp per row.
extern "C" __global__ void __launch_bounds__(256) add_norm(
    const Four* __restrict__ added, const Four* __restrict__ x, const Four* __restrict__ weight, Four* __restrict__ out,
    float alpha, int rows)
{
    const long long row = (long long)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    if (row >= rows) return;
    const int lane = threadIdx.x % LANES;
    const long long first = row * (WIDTH / 4) + lane;
    float4 sums[FOURS];
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; ++i) {
        const float4 a = numbers(added[first + i * LANES]), b = numbers(x[first + i * LANES]);
        sums[i] = make_float4(a.x + alpha * b.x, a.y + alpha * b.y, a.z + alpha * b.z, a.w + alpha * b.w);
        square += sums[i].x * sums[i].x + sums[i].y * sums[i].y + (sums[i].z * sums[i].z + sums[i].w * sums[i].w);
    }
#pragma unroll
    for (int other = LANES / 2; other > 0; other /= 2) square += __shfl_xor_sync(0xffffffffu, square, other);
    const float scale = 1.0f / sqrtf(square / WIDTH + EPSILON);
#pragma unroll
    for (int i = 0; i < FOURS; ++i) {
        const float4 w = numbers(weight[lane + i * LANES]);
        const float4 y = make_float4(
            sums[i].x * scale * w.x, sums[i].y * scale * w.y, sums[i].z * scale * w.z, sums[i].w * scale * w.w);
        out[first + i * LANES] = rounded(y);
    }
}

// out = swish(gate) * value. `both` is (rows, 2, fours, 4): values, then gates; `out` is (rows, fours, 4). One thread per
// four.
extern "C" __global__ void __launch_bounds__(256) gate_values(
    const Four* __restrict__ both, Four* __restrict__ out, long long rows, int fours)
{
    const long long place = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long row = place / fours;
    if (row >= rows) return;
    const Four* of_row = both + row * 2 * fours + place % fours;
    const float4 value = numbers(of_row[0]), gate = numbers(of_row[fours]);
    out[place] = rounded(make_float4(
        swish(gate.x) * value.x, swish(gate.y) * value.y, swish(gate.z) * value.z, swish(gate.w) * value.w));
}
