// What the tensor cores can do through mma.sync: products in registers, for the benchmarks' ceilings.
// (Hopper's own instruction, wgmma, can do more: a large product by cuBLASLt shows that.)
#include "mma.cuh"

namespace peak_tensor {

constexpr int TILES = 8; // independent products under way in a warp

template <bool BF16> __device__ void run(float *out, unsigned rounds) {
    float sums[TILES][4] = {};
    // Powers of two near 1, positive and negative, in either type.
    unsigned one = BF16 ? 0x3f803f80u : 0x3f800000u, sign = BF16 ? 0x80008000u : 0x80000000u;
    unsigned a[4], b[2];
    for (int i = 0; i < 4; i++) a[i] = one ^ ((threadIdx.x + i) & 1 ? sign : 0);
    for (int i = 0; i < 2; i++) b[i] = one ^ ((threadIdx.x / 2 + i) & 1 ? sign : 0);
    for (unsigned round = 0; round < rounds; round++) {
        for (int i = 0; i < TILES; i++) {
            if (BF16) mma_bf16(sums[i], a, b[0], b[1]);
            else mma_tf32(sums[i], a, b[0], b[1]);
        }
    }
    float all = 0;
    for (int i = 0; i < TILES; i++) {
        for (int j = 0; j < 4; j++) all += sums[i][j];
    }
    out[global_index()] = all;
}

} // namespace peak_tensor

// peak_bf16, peak_tf32: out has a value for each thread. Per round 8 products of 16 x 8 x 16 (tf32:
// 16 x 8 x 8) a warp. Grid any, block 256.
extern "C" __global__ void __launch_bounds__(256) peak_bf16(float *out, unsigned rounds) {
    peak_tensor::run<true>(out, rounds);
}
extern "C" __global__ void __launch_bounds__(256) peak_tf32(float *out, unsigned rounds) {
    peak_tensor::run<false>(out, rounds);
}
