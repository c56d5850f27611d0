// From pixels to the network's input: cut, mirror, normalise.
//
//   x[n, i, j, c] = (pixels[image, y + i, x + j', order[c]] * scale - mean[y + i, x + j', c])
//                   * inverse_std[c],      j' = w - 1 - j where the crop is mirrored, else j
//
// The mean belongs to the source pixel: it is taken off before cutting and mirroring. An input of one channel has
// the luma of the pixel in the place of pixels[..., order[c]].
#include "common.cuh"

namespace input {

constexpr unsigned PIXELS = 256; // of a block, a thread each
constexpr unsigned N = 8;        // values of a store

// ITU-R BT.601 in 16 bits, as Pillow's mode L: exact for a grey pixel.
__device__ __forceinline__ unsigned luma(const unsigned char *pixel) {
    return (19595u * pixel[0] + 38470u * pixel[1] + 7471u * pixel[2] + 32768u) >> 16;
}

template <class T, unsigned C>
__device__ void cut(T *x, const unsigned char *pixels, const Crop *crops, const float *mean,
                    const float *inverse_std, const InputDims &dims, unsigned mean_per_pixel,
                    unsigned n, unsigned pixels_each, const Divisor &width) {
    // Pixels of C values go through shared memory, to be written in packs.
    __shared__ __align__(32) T values[PIXELS * C];
    size_t first = (size_t)blockIdx.x * PIXELS, len = (size_t)n * pixels_each * C;
    size_t sample = first + threadIdx.x;
    unsigned i = take_index(sample, pixels_each);
    if (sample < n) {
        unsigned j = width.take(i);
        Crop crop = crops[sample];
        if (crop.mirror) j = width.divisor - 1 - j;
        unsigned at = (crop.y + i) * dims.columns + crop.x + j;
        const unsigned char *pixel =
            pixels + (size_t)crop.image * dims.rows * dims.columns * 3 + at * 3;
        if (mean_per_pixel) mean += at * C;
#pragma unroll
        for (unsigned c = 0; c < C; c++) {
            float byte = C == 1 ? (float)luma(pixel) : (float)pixel[dims.order[c]];
            float value = byte * dims.scale;
            values[threadIdx.x * C + c] = narrow<T>((value - mean[c]) * inverse_std[c]);
        }
    }
    __syncthreads();
    unsigned place = threadIdx.x * N;
    if (place >= PIXELS * C || first * C + place >= len) return;
    store_pack(x, first * C + place, len, *(const Pack<T, N> *)(values + place));
}

} // namespace input

// input: x [n, h, w, 3], pixels [images, rows, columns, 3], crops [n], mean [rows, columns, 3] (or [3]
// where mean_per_pixel is 0), inverse_std [3]. input_grey: the same with 1 for the last 3 of x, mean and inverse_std.
// pixels_each is h w, width divides by w. Grid ceil(n h w / 256), block 256: one thread a pixel of x.
// Crops must lie inside the images, of which one has less than 2^32 values.
#define EXPORT(name, T, C)                                                                         \
    extern "C" __global__ void name(T *x, const unsigned char *pixels, const Crop *crops,          \
                                    const float *mean, const float *inverse_std, InputDims dims,   \
                                    unsigned mean_per_pixel, unsigned n, unsigned pixels_each,     \
                                    Divisor width) {                                               \
        input::cut<T, C>(x, pixels, crops, mean, inverse_std, dims, mean_per_pixel, n,             \
                         pixels_each, width);                                                      \
    }
EXPORT(input_f32, float, 3)
EXPORT(input_bf16, bf16, 3)
EXPORT(input_grey_f32, float, 1)
EXPORT(input_grey_bf16, bf16, 1)
#undef EXPORT
