// Max pooling with one-byte switches, and unpooling by them.
//
//   y[n, p, q, c] = largest x in the window of (p, q), of the places inside the image
//   switch        = its index in the window, r * columns + s: first of equals, a NaN above all;
//                   NOT_POSITIVE where y <= 0
//   dx[n, h, w, c] = sum of dy over the windows whose switch points at (h, w)
//
// Unpooling is a gather: each pixel asks the windows that cover it, row by row, so no two threads
// add to one place and the order of the sum is fixed. A thread takes N channels of a place, which
// share its windows: 8 where they divide the channels, else 1. Consecutive threads are consecutive
// channels.
#include "common.cuh"

namespace pool {

template <unsigned N, class T>
__device__ void forward(T *y, unsigned char *switches, const T *x, const PoolDims &d) {
    size_t place = global_index() * N, n = place;
    if (place >= (size_t)d.n * d.p * d.q * d.c) return;
    unsigned c = take_index(n, d.c), q = take_index(n, d.q), p = take_index(n, d.p);
    const T *image = x + n * d.h * d.w * d.c + c;
    // The window begins at (top, left) of the image, or before it.
    int top = (int)(p * d.stride[0]) - (int)d.pad[0], left = (int)(q * d.stride[1]) - (int)d.pad[1];
    float best[N] = {};
    Pack<unsigned char, N> winner = {};
    bool first = true;
    for (int r = max(-top, 0); r < min((int)d.window[0], (int)d.h - top); r++) {
        for (int s = max(-left, 0); s < min((int)d.window[1], (int)d.w - left); s++) {
            unsigned char index = (unsigned char)(r * (int)d.window[1] + s);
            const T *pixel = image + ((size_t)(top + r) * d.w + left + s) * d.c;
            Pack<T, N> values = *(const Pack<T, N> *)pixel;
#pragma unroll
            for (unsigned i = 0; i < N; i++) {
                float value = widen(values.of[i]);
                bool larger = value > best[i] || value != value;
                if (first || (larger && best[i] == best[i])) { // a NaN, unequal to itself, stays
                    best[i] = value;
                    winner.of[i] = index;
                }
            }
            first = false;
        }
    }
    Pack<T, N> values;
#pragma unroll
    for (unsigned i = 0; i < N; i++) {
        values.of[i] = narrow<T>(best[i]);
        if (best[i] <= 0) winner.of[i] = NOT_POSITIVE;
    }
    *(Pack<T, N> *)(y + place) = values;
    *(Pack<unsigned char, N> *)(switches + place) = winner;
}

// The windows, of `count`, that cover the padded index `i` along one axis: `first` up to `end`.
__device__ __forceinline__ void covering(unsigned &first, unsigned &end, unsigned i,
                                         unsigned window, unsigned stride, unsigned count) {
    first = i < window ? 0 : (i - window) / stride + 1;
    end = min(i / stride + 1, count);
}

template <unsigned N, class T>
__device__ void backward(T *dx, const T *dy, const unsigned char *switches, const unsigned *images,
                         unsigned forward_mask, const PoolDims &d) {
    size_t place = global_index() * N, n = place;
    if (place >= (size_t)d.n * d.h * d.w * d.c) return;
    unsigned c = take_index(n, d.c), w = take_index(n, d.w), h = take_index(n, d.h);
    size_t outputs = (size_t)d.p * d.q * d.c;
    dy += n * outputs + c;
    switches += image_of(images, n) * outputs + c;
    unsigned row = h + d.pad[0], column = w + d.pad[1]; // of the padded image
    unsigned p_first, p_end, q_first, q_end;
    covering(p_first, p_end, row, d.window[0], d.stride[0], d.p);
    covering(q_first, q_end, column, d.window[1], d.stride[1], d.q);
    float sums[N] = {};
    for (unsigned p = p_first; p < p_end; p++) {
        for (unsigned q = q_first; q < q_end; q++) {
            unsigned top = p * d.stride[0], left = q * d.stride[1];
            unsigned index = (row - top) * d.window[1] + column - left;
            // The window's first place inside the image also answers to NOT_POSITIVE.
            bool first = row == max(top, d.pad[0]) && column == max(left, d.pad[1]);
            unsigned other = first && !forward_mask ? NOT_POSITIVE : index;
            size_t at = ((size_t)p * d.q + q) * d.c;
            auto values = *(const Pack<T, N> *)(dy + at);
            auto winners = *(const Pack<unsigned char, N> *)(switches + at);
#pragma unroll
            for (unsigned i = 0; i < N; i++) {
                bool here = winners.of[i] == index || winners.of[i] == other;
                sums[i] += here ? widen(values.of[i]) : 0;
            }
        }
    }
    Pack<T, N> values;
#pragma unroll
    for (unsigned i = 0; i < N; i++) values.of[i] = narrow<T>(sums[i]);
    *(Pack<T, N> *)(dx + place) = values;
}

} // namespace pool

// maxpool_forward: y and switches [n, p, q, c], x [n, h, w, c].
// Grid ceil(n p q c / 256), or ceil(n p q c / 2048) where 8 divides c; block 256. A window has at
// most 255 places, at least one of them in the image.
//
// maxpool_backward: dx [n, h, w, c], dy [n, p, q, c], switches [.., p, q, c] of the forward images,
// images [n] or null. Grid ceil(n h w c / 256), or ceil(n h w c / 2048) where 8 divides c; block 256.
#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void maxpool_forward_##suffix(T *y, unsigned char *switches, const T *x, \
                                                        PoolDims d) {                              \
        if (d.c % 8 == 0) pool::forward<8>(y, switches, x, d);                                     \
        else pool::forward<1>(y, switches, x, d);                                                  \
    }                                                                                              \
    extern "C" __global__ void maxpool_backward_##suffix(                                          \
        T *dx, const T *dy, const unsigned char *switches, const unsigned *images,                 \
        unsigned forward_mask, PoolDims d) {                                                       \
        if (d.c % 8 == 0) pool::backward<8>(dx, dy, switches, images, forward_mask, d);            \
        else pool::backward<1>(dx, dy, switches, images, forward_mask, d);                         \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT
