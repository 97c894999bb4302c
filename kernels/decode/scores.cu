// Makes scores of what a network's last matrix product gives, in place: tanh, scale and limit in one pass.
#include "numbers.cuh"

// `scores` has 4 * `fours` halves. A `limit` that is infinite limits nothing; what is not a number stays so.
extern "C" __global__ void __launch_bounds__(256) finish_scores(
    ushort4* __restrict__ scores, long long fours, int is_tanh, float scale, float limit)
{
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= fours) return;
    ushort4 four = scores[i];
    unsigned short* const halves[4] = {&four.x, &four.y, &four.z, &four.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const float x = number(*halves[k]);
        store(between(-limit, (is_tanh ? tanh32(x) : x) * scale, limit), halves[k]);
    }
    scores[i] = four;
}
