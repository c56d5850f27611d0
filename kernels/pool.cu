// Max pooling with one-byte switches, and unpooling by them.
//
//   y[n, p, q, c] = largest x in the window of (p, q), of the places inside the image
//   switch        = its index in the window, r * columns + s: first of equals, a NaN above all;
//                   NOT_POSITIVE where y <= 0, unless any_sign
//   dx[n, h, w, c] = sum of dy over the windows whose switch points at (h, w)
//
// Unpooling is a gather: each pixel asks the windows that cover it, row by row, so no two threads
// add to one place and the order of the sum is fixed. A thread takes N channels of a place, which
// share its windows: 8 where they divide the channels, else 1. Consecutive threads are consecutive
// channels. Blocks have the places of one image (y of the grid; further images follow), so that
// indices have 32 bits.
#include "unpool.cuh"

namespace pool {

// The part of an image's pixel, row and channels that a thread has.
struct Place {
    unsigned c, column, row;
};

// Divisors of the packs of a pixel, and of the pixels of a row.
template <unsigned N>
__device__ __forceinline__ Place place_of(unsigned index, const Divisor &packs,
                                          const Divisor &columns) {
    Place place;
    place.c = packs.take(index) * N;
    place.column = columns.take(index);
    place.row = index;
    return place;
}

// The rows r and columns s of the window at (p, q) that lie in the image: from `first` up to `end`;
// the window begins at (top, left) of the image, or before it.
struct Window {
    int top, left, first_r, first_s, end_r, end_s;

    __device__ __forceinline__ Window(unsigned p, unsigned q, const PoolDims &d)
        : top((int)(p * d.stride[0]) - (int)d.pad[0]), left((int)(q * d.stride[1]) - (int)d.pad[1]),
          first_r(max(-top, 0)), first_s(max(-left, 0)),
          end_r(min((int)d.window[0], (int)d.h - top)),
          end_s(min((int)d.window[1], (int)d.w - left)) {}
};

// One thread's windows, one value after the other.
template <unsigned N, class T>
__device__ __forceinline__ void by_value(Pack<T, N> &y, Pack<unsigned char, N> &winner,
                                         const T *image, const Window &window, const PoolDims &d) {
    unsigned char forgotten = d.any_sign ? 0 : NOT_POSITIVE; // has all bits
    float best[N] = {};
    bool first = true;
    for (int r = window.first_r; r < window.end_r; r++) {
        for (int s = window.first_s; s < window.end_s; s++) {
            unsigned char index = (unsigned char)(r * (int)d.window[1] + s);
            const T *pixel = image + ((size_t)(window.top + r) * d.w + window.left + s) * d.c;
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
#pragma unroll
    for (unsigned i = 0; i < N; i++) {
        y.of[i] = narrow<T>(best[i]);
        if (best[i] <= 0) winner.of[i] |= forgotten;
    }
}

// ---- two bf16 in a word ----

__device__ __forceinline__ float low_of(unsigned pair) { return widen(bf16{(unsigned short)pair}); }
__device__ __forceinline__ float high_of(unsigned pair) {
    return widen(bf16{(unsigned short)(pair >> 16)});
}

// 0xffff in each half where a is larger than b, else 0: also where one is NaN.
__device__ __forceinline__ unsigned larger(unsigned a, unsigned b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    unsigned mask;
    asm("set.gt.u32.bf16x2 %0, %1, %2;" : "=r"(mask) : "r"(a), "r"(b));
    return mask;
#else
    return (low_of(a) > low_of(b) ? 0xffffu : 0) | (high_of(a) > high_of(b) ? 0xffff0000u : 0);
#endif
}

// Whether a half is NaN.
__device__ __forceinline__ bool has_nan(unsigned pair) {
    return low_of(pair) != low_of(pair) || high_of(pair) != high_of(pair);
}

// The larger of each half; NaN where one of the two is.
__device__ __forceinline__ unsigned maximum(unsigned a, unsigned b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned most;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
    return most;
#else
    unsigned mask = larger(a, b), most = (a & mask) | (b & ~mask);
    if (low_of(a) != low_of(a)) most = (most & 0xffff0000u) | 0x7fffu;
    if (high_of(a) != high_of(a)) most = (most & 0xffffu) | 0x7fff0000u;
    return most;
#endif
}

constexpr unsigned PAIRS = 4; // of eight channels
constexpr unsigned LEAST = 0xff80ff80u; // minus infinity, twice

struct alignas(16) Pairs { unsigned of[PAIRS]; };

// One thread's windows of eight channels, two values at a time: an index, too, is half a word.
__device__ __forceinline__ void by_pairs(Pairs &best, Pack<unsigned char, 8> &winner,
                                         const bf16 *image, const Window &window,
                                         const PoolDims &d) {
    unsigned first = (unsigned)window.first_r * d.window[1] + (unsigned)window.first_s, winners[PAIRS];
#pragma unroll
    for (unsigned i = 0; i < PAIRS; i++) best.of[i] = LEAST, winners[i] = first * 0x10001u;
    for (int r = window.first_r; r < window.end_r; r++) {
        unsigned index = ((unsigned)r * d.window[1] + (unsigned)window.first_s) * 0x10001u;
        const bf16 *pixel =
            image + ((size_t)(window.top + r) * d.w + window.left + window.first_s) * d.c;
#pragma unroll 3
        for (int s = window.first_s; s < window.end_s; s++, index += 0x10001u, pixel += d.c) {
            Pairs values = *(const Pairs *)pixel;
#pragma unroll
            for (unsigned i = 0; i < PAIRS; i++) {
                unsigned mask = larger(values.of[i], best.of[i]);
                best.of[i] = maximum(values.of[i], best.of[i]);
                winners[i] = (index & mask) | (winners[i] & ~mask);
            }
        }
    }
#pragma unroll
    for (unsigned i = 0; i < PAIRS; i++) {
        if (!d.any_sign) winners[i] |= ~larger(best.of[i], 0); // NOT_POSITIVE
        winner.of[2 * i] = (unsigned char)winners[i];
        winner.of[2 * i + 1] = (unsigned char)(winners[i] >> 16);
    }
}

__device__ __forceinline__ void find(Pack<float, 8> &y, Pack<unsigned char, 8> &winner,
                                     const float *image, const Window &window, const PoolDims &d) {
    by_value(y, winner, image, window, d);
}

__device__ __forceinline__ void find(Pack<bf16, 8> &y, Pack<unsigned char, 8> &winner,
                                     const bf16 *image, const Window &window, const PoolDims &d) {
    Pairs best;
    by_pairs(best, winner, image, window, d);
    memcpy(&y, &best, sizeof y);
    bool nan = false;
#pragma unroll
    for (unsigned i = 0; i < PAIRS; i++) nan |= has_nan(best.of[i]);
    if (nan) by_value(y, winner, image, window, d); // which one came first
}

template <class T>
__device__ __forceinline__ void find(Pack<T, 1> &y, Pack<unsigned char, 1> &winner, const T *image,
                                     const Window &window, const PoolDims &d) {
    by_value(y, winner, image, window, d);
}

template <unsigned N, class T>
__device__ void forward(T *y, unsigned char *switches, const T *x, const PoolDims &d,
                        const Divisor &packs, const Divisor &columns) {
    unsigned index = (unsigned)global_index(), count = d.p * d.q * packs.divisor;
    if (index >= count) return;
    Place place = place_of<N>(index, packs, columns);
    Window window(place.row, place.column, d);
    for (unsigned n = blockIdx.y; n < d.n; n += gridDim.y) {
        Pack<T, N> values;
        Pack<unsigned char, N> winners = {};
        find(values, winners, x + (size_t)n * d.h * d.w * d.c + place.c, window, d);
        size_t at = ((size_t)n * count + index) * N;
        *(Pack<T, N> *)(y + at) = values;
        *(Pack<unsigned char, N> *)(switches + at) = winners;
    }
}

// ---- unpooling ----

// Down and right: windows that begin at least `window` before the padded index `i` do not cover it.
struct Covering {
    unsigned first, end;

    __device__ __forceinline__ Covering(unsigned i, unsigned window, const Divisor &stride,
                                        unsigned count)
        : first(i < window ? 0 : stride.quotient(i - window) + 1),
          end(min(stride.quotient(i) + 1, count)) {}
};

template <unsigned N, bool FORWARD_MASK, class T>
__device__ void backward(T *dx, const T *dy, const unsigned char *switches, const unsigned *images,
                         const PoolDims &d, const Divisor &packs, const Divisor &columns,
                         const Divisor &down, const Divisor &right) {
    unsigned index = (unsigned)global_index(), count = d.h * d.w * packs.divisor;
    if (index >= count) return;
    Place place = place_of<N>(index, packs, columns);
    unsigned row = place.row + d.pad[0], column = place.column + d.pad[1]; // of the padded image
    Covering rows(row, d.window[0], down, d.p), across(column, d.window[1], right, d.q);
    size_t outputs = (size_t)d.p * d.q * d.c;
    for (unsigned n = blockIdx.y; n < d.n; n += gridDim.y) {
        const T *gradients = dy + n * outputs + place.c;
        const unsigned char *winners = switches + image_of(images, n) * outputs + place.c;
        float sums[N] = {};
#pragma unroll 1
        for (unsigned p = rows.first; p < rows.end; p++) {
#pragma unroll 1
            for (unsigned q = across.first; q < across.end; q++) {
                unsigned top = p * d.stride[0], left = q * d.stride[1];
                unsigned here = (row - top) * d.window[1] + column - left;
                // The window's first place inside the image also answers to NOT_POSITIVE.
                bool first = !FORWARD_MASK && row == max(top, d.pad[0]) &&
                             column == max(left, d.pad[1]);
                size_t at = ((size_t)p * d.q + q) * d.c;
                unpool::add_winners<FORWARD_MASK>(sums, gradients + at, winners + at, here, first);
            }
        }
        store_narrow(dx + ((size_t)n * count + index) * N, sums);
    }
}

// Windows of 3 x 3 with a stride of 2, under the forward mask, which is how training unpools: a thread takes
// a square of 2 x 2 pixels of the padded image. Windows come in the order in which `backward` adds them.
template <class T>
__device__ void backward_3_2(T *dx, const T *dy, const unsigned char *switches,
                             const unsigned *images, const PoolDims &d, unsigned count,
                             const Divisor &packs, const Divisor &columns) {
    constexpr unsigned N = 8;
    unsigned index = (unsigned)global_index();
    if (index >= count) return;
    Place square = place_of<N>(index, packs, columns);
    size_t outputs = (size_t)d.p * d.q * d.c;
    for (unsigned n = blockIdx.y; n < d.n; n += gridDim.y) {
        const T *gradients = dy + n * outputs + square.c;
        const unsigned char *winners = switches + image_of(images, n) * outputs + square.c;
        float sums[2][2][N] = {};
#pragma unroll
        for (unsigned window = 0; window < 4; window++) {
            unsigned up = window < 2, left = window % 2 == 0; // the window before this square's own
            unsigned p = square.row - up, q = square.column - left;
            if (p >= d.p || q >= d.q) continue; // also where they are below zero
            size_t at = ((size_t)p * d.q + q) * d.c;
            unpool::add_window_3_2(sums, gradients + at, winners + at, up, left);
        }
#pragma unroll
        for (unsigned pixel = 0; pixel < 4; pixel++) {
            unsigned row = pixel / 2, column = pixel % 2;
            unsigned h = 2 * square.row + row - d.pad[0], w = 2 * square.column + column - d.pad[1];
            if (h < d.h && w < d.w) {
                T *to = dx + ((n * (size_t)d.h + h) * d.w + w) * d.c + square.c;
                store_narrow(to, sums[row][column]);
            }
        }
    }
}

} // namespace pool

// A pack is 8 channels, and in `_any` one, for channels that 8 does not divide; `packs` divides by the
// packs of a pixel, and an image has less than 2^31 packs.
//
// maxpool_forward: y and switches [n, p, q, c], x [n, h, w, c]; columns divides by q.
// Grid (ceil(p q packs / 256), n or less), block 256. A window has at most 255 places, at least one
// of them in the image.
//
// maxpool_backward, under the forward mask, and maxpool_unpool, without: dx [n, h, w, c], dy [n, p, q, c],
// switches [.., p, q, c] of the forward images, images [n] or null; columns divides by w, down and
// right by the strides. Grid (ceil(h w packs / 256), n or less), block 256.
//
// maxpool_backward_3_2: maxpool_backward for windows of 3 x 3 with a stride of 2. count = ceil((h + pad[0]) / 2)
// ceil((w + pad[1]) / 2) packs; columns divides by the second of these. Grid (ceil(count / 256), n or less),
// block 256.
#define FORWARD(T, name, N)                                                                        \
    extern "C" __global__ void maxpool_forward_##name(                                             \
        T *y, unsigned char *switches, const T *x, PoolDims d, Divisor packs, Divisor columns) {   \
        pool::forward<N>(y, switches, x, d, packs, columns);                                       \
    }
#define BACKWARD(T, name, N, FORWARD_MASK)                                                         \
    extern "C" __global__ void maxpool_##name(                                                     \
        T *dx, const T *dy, const unsigned char *switches, const unsigned *images, PoolDims d,     \
        Divisor packs, Divisor columns, Divisor down, Divisor right) {                             \
        pool::backward<N, FORWARD_MASK>(dx, dy, switches, images, d, packs, columns, down, right); \
    }
FORWARD(float, f32, 8)
FORWARD(bf16, bf16, 8)
FORWARD(float, any_f32, 1)
FORWARD(bf16, any_bf16, 1)
BACKWARD(float, backward_f32, 8, true)
BACKWARD(bf16, backward_bf16, 8, true)
BACKWARD(float, backward_any_f32, 1, true)
BACKWARD(bf16, backward_any_bf16, 1, true)
BACKWARD(float, unpool_f32, 8, false)
BACKWARD(bf16, unpool_bf16, 8, false)
BACKWARD(float, unpool_any_f32, 1, false)
BACKWARD(bf16, unpool_any_bf16, 1, false)
#undef FORWARD
#undef BACKWARD
#define BACKWARD_3_2(T, suffix)                                                                    \
    extern "C" __global__ void maxpool_backward_3_2_##suffix(                                      \
        T *dx, const T *dy, const unsigned char *switches, const unsigned *images, PoolDims d,     \
        unsigned count, Divisor packs, Divisor columns) {                                          \
        pool::backward_3_2(dx, dy, switches, images, d, count, packs, columns);                    \
    }
BACKWARD_3_2(float, f32)
BACKWARD_3_2(bf16, bf16)
#undef BACKWARD_3_2
