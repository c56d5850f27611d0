// What plain f32 arithmetic can do: multiply-adds in registers, for the benchmarks' ceilings.
#include "common.cuh"

namespace peak {
constexpr int CHAINS = 8; // as many as hide a multiply-add's latency
}

// peak_f32: out has a value for each thread. Per round 16 multiply-adds a thread. Grid any, block 256.
extern "C" __global__ void __launch_bounds__(256) peak_f32(float *out, unsigned rounds) {
    float sum[peak::CHAINS];
    for (int i = 0; i < peak::CHAINS; i++) sum[i] = (float)i;
    float factor = 1.0f - 1e-6f * (float)threadIdx.x, term = 1e-3f * (float)blockIdx.x;
    for (unsigned round = 0; round < rounds; round++) {
        for (int twice = 0; twice < 2; twice++) {
            for (int i = 0; i < peak::CHAINS; i++) sum[i] = fmaf(sum[i], factor, term);
        }
    }
    float all = 0;
    for (int i = 0; i < peak::CHAINS; i++) all += sum[i];
    out[global_index()] = all;
}
