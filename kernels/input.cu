// From pixels to the network's input: cut, mirror, normalise.
//
//   x[n, i, j, c] = (pixels[image, y + i, x + j', order[c]] * scale - mean[y + i, x + j', c])
//                   * inverse_std[c],      j' = w - 1 - j where the crop is mirrored, else j
//
// The mean belongs to the source pixel: it is taken off before cutting and mirroring.
#include "common.cuh"

namespace input {

constexpr unsigned PIXELS = 256; // of a block, a thread each
constexpr unsigned N = 8;        // values of a store

template <class T>
__device__ void cut(T *x, const unsigned char *pixels, const Crop *crops, const float *mean,
                    const float *inverse_std, const InputDims &dims, unsigned mean_per_pixel,
                    unsigned n, unsigned pixels_each, const Divisor &width) {
    // Pixels of three values go through shared memory, to be written in packs.
    __shared__ __align__(32) T values[PIXELS * 3];
    size_t first = (size_t)blockIdx.x * PIXELS, len = (size_t)n * pixels_each * 3;
    size_t sample = first + threadIdx.x;
    unsigned i = take_index(sample, pixels_each);
    if (sample < n) {
        unsigned j = width.take(i);
        Crop crop = crops[sample];
        if (crop.mirror) j = width.divisor - 1 - j;
        unsigned at = ((crop.y + i) * dims.side + crop.x + j) * 3;
        const unsigned char *pixel = pixels + (size_t)crop.image * dims.side * dims.side * 3 + at;
        if (mean_per_pixel) mean += at;
#pragma unroll
        for (unsigned c = 0; c < 3; c++) {
            float value = (float)pixel[dims.order[c]] * dims.scale;
            values[threadIdx.x * 3 + c] = narrow<T>((value - mean[c]) * inverse_std[c]);
        }
    }
    __syncthreads();
    unsigned place = threadIdx.x * N;
    if (place >= PIXELS * 3 || first * 3 + place >= len) return;
    store_pack(x, first * 3 + place, len, *(const Pack<T, N> *)(values + place));
}

} // namespace input

// input: x [n, h, w, 3], pixels [images, side, side, 3], crops [n], mean [side, side, 3] (or [3]
// where mean_per_pixel is 0), inverse_std [3].
// pixels_each is h w, width divides by w. Grid ceil(n h w / 256), block 256: one thread a pixel of x.
// Crops must lie inside the images, of which one has less than 2^32 values.
#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void input_##suffix(                                                     \
        T *x, const unsigned char *pixels, const Crop *crops, const float *mean,                   \
        const float *inverse_std, InputDims dims, unsigned mean_per_pixel, unsigned n,             \
        unsigned pixels_each, Divisor width) {                                                     \
        input::cut<T>(x, pixels, crops, mean, inverse_std, dims, mean_per_pixel, n, pixels_each,   \
                      width);                                                                      \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT
