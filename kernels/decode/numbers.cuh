// Features in the network's precision; arithmetic is float32, in the order in which it is written (nothing is fused:
// --fmad=false), and exp is a polynomial: every GPU and the emulator give the same bits.
#include "exp32.cuh"

#define FP32 0
#define FP16 1
#define BF16 2
#ifndef PRECISION
#define PRECISION FP16
#endif

namespace {
#if PRECISION == FP32
typedef float4 Four;  // features of a row, side by side
#else
typedef ushort4 Four;
#endif

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
}  // namespace
