namespace {
// e to the power x for |x| < 87 (models/call/decode_kernels.py: Cody and Waite 1980, and a Taylor polynomial).
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
}  // namespace
