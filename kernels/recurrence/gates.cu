// A step of an LSTM after its matrix products: the next cells and hidden states, from the gates i, f, g, o.
//
// Gates and hidden states have the network's precision, cells are float32, and so is all arithmetic, in the order in
// which it is written (nothing is fused: --fmad=false). exp is a polynomial, so every GPU and the emulator give the
// same bits.
#define FP32 0
#define FP16 1
#define BF16 2
#ifndef PRECISION
#define PRECISION FP16
#endif

namespace {
#if PRECISION == FP32
typedef float4 Four;  // of a feature's values; a thread has four features side by side
#else
typedef ushort4 Four;
#endif

// e to the power x for |x| < 87, as in crf.cu.
__device__ __forceinline__ float exp32(float x)
{
    const float shifted = x * 1.44269504f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * __int_as_float((int)((unsigned)(__float_as_int(shifted) + 127) << 23));
}

__device__ __forceinline__ float between(float least, float x, float most)
{
    return x < least ? least : x > most ? most : x;  // unlike fminf and fmaxf, this keeps a NaN
}

__device__ __forceinline__ float sigmoid(float x)
{
    return 1.0f / (1.0f + exp32(-between(-40.0f, x, 40.0f)));
}

__device__ __forceinline__ float tanh32(float x)
{
    return 1.0f - 2.0f / (1.0f + exp32(2.0f * between(-20.0f, x, 20.0f)));
}

// HARD: as in hac v6.
__device__ __forceinline__ float gate(float x)
{
    return HARD ? between(0.0f, x * 0.2f + 0.5f, 1.0f) : sigmoid(x);
}

__device__ __forceinline__ float candidate(float x)
{
    return HARD ? between(-1.0f, x, 1.0f) : tanh32(x);
}

__device__ __forceinline__ float number(float value) { return value; }

__device__ __forceinline__ float number(unsigned short bits)
{
#if PRECISION == BF16
    return __int_as_float((int)((unsigned)bits << 16));
#elif defined(__CUDA_EMU__)
    return emu_number_of_f16(bits);
#else
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#endif
}

__device__ __forceinline__ void store(float x, float* at) { *at = x; }

// Rounds to nearest, ties to even.
__device__ __forceinline__ void store(float x, unsigned short* at)
{
#if PRECISION == BF16
    const unsigned bits = (unsigned)__float_as_int(x);
    *at = x == x ? (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fff;
#elif defined(__CUDA_EMU__)
    *at = emu_f16_of_number(x);
#else
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    *at = bits;
#endif
}

template <typename Value>
__device__ __forceinline__ void next(Value i, Value f, Value g, Value o, float* cell, Value* hidden)
{
    *cell = gate(number(f)) * *cell + gate(number(i)) * candidate(number(g));
    store(gate(number(o)) * tanh32(*cell), hidden);
}
}  // namespace

// gates: (rows, 4, quarters, 4 features); cells and hidden: (rows, quarters, 4). One thread per `Four` of `hidden`.
extern "C" __global__ void __launch_bounds__(256) next_states(
    const Four* __restrict__ gates, float4* __restrict__ cells, Four* __restrict__ hidden, int rows, int quarters)
{
    const unsigned place = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned row = place / quarters;
    if (row >= rows) return;
    const Four* of_row = gates + (long long)row * 4 * quarters + place % quarters;
    const Four i = of_row[0], f = of_row[quarters], g = of_row[2 * quarters], o = of_row[3 * quarters];
    float4 cell = cells[place];
    Four next_hidden;
    next(i.x, f.x, g.x, o.x, &cell.x, &next_hidden.x);
    next(i.y, f.y, g.y, o.y, &cell.y, &next_hidden.y);
    next(i.z, f.z, g.z, o.z, &cell.z, &next_hidden.z);
    next(i.w, f.w, g.w, o.w, &cell.w, &next_hidden.w);
    cells[place] = cell;
    hidden[place] = next_hidden;
}
