// A step of an LSTM after its matrix products: the next cells and hidden states, from the gates i, f, g, o.
//
// Gates and hidden states have the network's precision, cells are float32.
#include "numbers.cuh"

namespace {
// HARD: as in hac v6.
__device__ __forceinline__ float gate(float x)
{
    return HARD ? between(0.0f, x * 0.2f + 0.5f, 1.0f) : sigmoid(x);
}

__device__ __forceinline__ float candidate(float x)
{
    return HARD ? between(-1.0f, x, 1.0f) : tanh32(x);
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
