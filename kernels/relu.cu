// relu up, and the two ways of going down through it.
//
//   y  = x < 0 ? 0 : x                       (NaN passes)
//   dy = dy, but 0 where y is not positive   (forward_mask: the gradient's relu)
//            and 0 where dy < 0              (relu_down: the deconvnet's)
#include "common.cuh"

namespace relu {

constexpr unsigned N = 4; // values of a thread

template <class T> __device__ void forward(T *y, const T *x, size_t len) {
    size_t first = global_index() * N;
    if (first >= len) return;
    Pack<T, N> values = load_pack<N>(x, first, len);
    for (unsigned i = 0; i < N; i++) {
        float value = widen(values.of[i]);
        values.of[i] = narrow<T>(value < 0 ? 0 : value);
    }
    store_pack(y, first, len, values);
}

// Values `first ..` of the forward images that a backward pass uses.
template <class T>
__device__ Pack<T, N> forward_values(const T *y, const unsigned *images, size_t per_image,
                                     size_t first, size_t len) {
    if (!images) return load_pack<N>(y, first, len);
    Pack<T, N> values = {};
    for (unsigned i = 0; i < N && first + i < len; i++) {
        size_t sample = first + i;
        unsigned place = take_index(sample, (unsigned)per_image);
        values.of[i] = y[images[sample] * per_image + place];
    }
    return values;
}

template <class T>
__device__ void backward(T *dy, const T *y, const unsigned *images, size_t per_image, size_t len,
                         unsigned forward_mask, unsigned relu_down) {
    size_t first = global_index() * N;
    if (first >= len) return;
    Pack<T, N> values = load_pack<N>(dy, first, len), up = {};
    if (forward_mask) up = forward_values(y, images, per_image, first, len);
    for (unsigned i = 0; i < N; i++) {
        float value = widen(values.of[i]);
        bool stop = (forward_mask && !(widen(up.of[i]) > 0)) || (relu_down && value < 0);
        values.of[i] = narrow<T>(stop ? 0 : value);
    }
    store_pack(dy, first, len, values);
}

} // namespace relu

// relu_forward: y and x [len]. Grid ceil(len / 1024) or more, block 256. y may be x.
//
// relu_backward: dy [len] in place, y [.., per_image] of the forward images, images
// [len / per_image] or null. Grid ceil(len / 1024) or more, block 256. per_image is below 2^32.
#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void relu_forward_##suffix(T *y, const T *x, size_t len) {               \
        relu::forward<T>(y, x, len);                                                               \
    }                                                                                              \
    extern "C" __global__ void relu_backward_##suffix(T *dy, const T *y, const unsigned *images,   \
                                                      size_t per_image, size_t len,                \
                                                      unsigned forward_mask, unsigned relu_down) { \
        relu::backward<T>(dy, y, images, per_image, len, forward_mask, relu_down);                 \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT
