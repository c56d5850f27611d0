// From pixels to the network's input: cut, mirror, normalise.
//
//   x[n, i, j, c] = (pixels[image, y + i, x + j', order[c]] * scale - mean[y + i, x + j', c])
//                   * inverse_std[c],      j' = w - 1 - j where the crop is mirrored, else j
//
// The mean belongs to the source pixel: it is taken off before cutting and mirroring.
#include "common.cuh"

namespace input {

template <class T>
__device__ void cut(T *x, const unsigned char *pixels, const Crop *crops, const float *mean,
                    const float *inverse_std, const InputDims &dims, unsigned mean_per_pixel,
                    unsigned n, unsigned h, unsigned w) {
    size_t place = global_index(), rest = place;
    if (place >= (size_t)n * h * w) return;
    unsigned j = take_index(rest, w), i = take_index(rest, h);
    Crop crop = crops[rest];
    if (crop.mirror) j = w - 1 - j;
    size_t at = (size_t)(crop.y + i) * dims.side + crop.x + j;
    const unsigned char *pixel = pixels + ((size_t)crop.image * dims.side * dims.side + at) * 3;
    if (mean_per_pixel) mean += at * 3;
    for (unsigned c = 0; c < 3; c++) {
        float value = (float)pixel[dims.order[c]] * dims.scale;
        x[place * 3 + c] = narrow<T>((value - mean[c]) * inverse_std[c]);
    }
}

} // namespace input

// input: x [n, h, w, 3], pixels [images, side, side, 3], crops [n], mean [side, side, 3] (or [3]
// where mean_per_pixel is 0), inverse_std [3].
// Grid ceil(n h w / 256), block 256: one thread a pixel of x. Crops must lie inside the images.
#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void input_##suffix(                                                     \
        T *x, const unsigned char *pixels, const Crop *crops, const float *mean,                   \
        const float *inverse_std, InputDims dims, unsigned mean_per_pixel, unsigned n, unsigned h, \
        unsigned w) {                                                                              \
        input::cut<T>(x, pixels, crops, mean, inverse_std, dims, mean_per_pixel, n, h, w);         \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT
