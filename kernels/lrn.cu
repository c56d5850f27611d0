// Local response normalisation across channels.
//
//   s[c]  = k + alpha * sum of x[j]^2 over c's neighbours, c - size / 2 <= j <= c + (size - 1) / 2
//   y[c]  = x[c] s[c]^-beta
//   dx[c] = dy[c] s[c]^-beta - 2 alpha beta x[c] * sum of dy[j] x[j] s[j]^(-beta - 1)
//                                                  over those j that have c as a neighbour
//
// For neighbourhoods of five, which everybody uses, and channels of a multiple of eight, a thread takes
// eight channels of a pixel, with what they need of the channels beside them, and shares the sums that
// neighbours have in common.
//
// For all others: a pixel's channels are contiguous and pixels follow each other, so a block takes
// TILE values of the flat memory, whatever number of channels that is, and stages them in shared
// memory with what their neighbourhoods reach on both sides. Neighbourhoods end at their own pixel.
#include "common.cuh"

namespace lrn {

constexpr unsigned TILE = 1024;
constexpr unsigned MAX_HALO = 32; // for neighbourhoods of 33

using Staged = float[TILE + 2 * MAX_HALO];

// A block's values, and where they stand in their pixels.
struct Tile {
    size_t first;     // index of its first value
    unsigned len;     // number of its values
    unsigned halo;    // number of values staged before the first, and after the last
    unsigned channel; // of the first staged value
    unsigned c;

    __device__ Tile(size_t number, size_t end, unsigned size, unsigned c) : c(c) {
        first = number * TILE;
        len = (unsigned)min((size_t)TILE, end - first);
        halo = (size - 1 + 3) / 4 * 4; // a neighbourhood of a neighbourhood, in packs
        channel = (unsigned)(first % c) + c - halo % c;
        channel = channel < c ? channel : channel - c;
    }

    // Channel of a staged value.
    __device__ unsigned channel_of(unsigned i) const { return (channel + i) % c; }

    // Stages those values of x [end] that there are.
    template <class T> __device__ void stage(Staged &staged, const T *x, size_t end) const {
        if (c % 4 == 0) stage_packs<4>(staged, x, end);
        else stage_packs<1>(staged, x, end);
    }

    template <unsigned N, class T>
    __device__ void stage_packs(Staged &staged, const T *x, size_t end) const {
        for (unsigned i = threadIdx.x * N; i < len + 2 * halo; i += blockDim.x * N) {
            size_t at = first + i; // `halo` too far
            if (at < halo || at - halo >= end) continue;
            Pack<T, N> values = *(const Pack<T, N> *)(x + (at - halo));
            for (unsigned j = 0; j < N; j++) staged[i + j] = widen(values.of[j]);
        }
    }
};

// Sum of `term(j)` from `before` places before the staged value `i` to `after` behind it, those of
// its own pixel.
template <class Term>
__device__ __forceinline__ float window_sum(const Tile &tile, unsigned i, unsigned before,
                                            unsigned after, Term term) {
    unsigned channel = tile.channel_of(i), end = i + min(after, tile.c - 1 - channel);
    float sum = 0;
    for (unsigned j = i - min(before, channel); j <= end; j++) sum += term(j);
    return sum;
}

// Square root to a relative error of 2^-23, in one instruction.
__device__ __forceinline__ float square_root(float x) {
#ifdef __CUDA_ARCH__
    float root;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
    return root;
#else
    return sqrtf(x);
#endif
}

// s^-beta, without a logarithm for the exponent that everybody uses.
__device__ __forceinline__ float inverse_power(float s, float beta) {
    if (beta == 0.75f) {
        float root = rsqrtf(s);
        return root * square_root(root);
    }
    return powf(s, -beta);
}

template <class T>
__device__ void forward(T *y, const T *x, size_t len, unsigned c, const Lrn &lrn) {
    __shared__ __align__(16) Staged staged;
    unsigned before = lrn.size / 2, after = (lrn.size - 1) / 2;
    Tile tile(blockIdx.x, len, lrn.size, c);
    tile.stage(staged, x, len);
    __syncthreads();
    auto square = [&](unsigned j) { return staged[j] * staged[j]; };
    for (unsigned i = threadIdx.x; i < tile.len; i += blockDim.x) {
        unsigned at = tile.halo + i;
        float s = lrn.k + lrn.alpha * window_sum(tile, at, before, after, square);
        y[tile.first + i] = narrow<T>(staged[at] * inverse_power(s, lrn.beta));
    }
}

template <class T>
__device__ void backward(T *dx, const T *dy, const T *x, const unsigned *images, size_t per_image,
                         unsigned c, const Lrn &lrn) {
    __shared__ __align__(16) Staged staged;
    __shared__ __align__(16) Staged scaled; // dy s^-beta
    __shared__ Staged terms;                // dy x s^(-beta - 1)
    unsigned before = lrn.size / 2, after = (lrn.size - 1) / 2;
    unsigned tiles = (unsigned)((per_image + TILE - 1) / TILE), sample = blockIdx.x / tiles;
    Tile tile(blockIdx.x % tiles, per_image, lrn.size, c);
    tile.stage(staged, x + image_of(images, sample) * per_image, per_image);
    tile.stage(scaled, dy + sample * per_image, per_image);
    __syncthreads();
    auto square = [&](unsigned j) { return staged[j] * staged[j]; };
    auto term = [&](unsigned j) { return terms[j]; };
    // Terms of the channels whose neighbour is one of the tile's: `after` before them, and `before`
    // behind.
    unsigned halo = tile.halo, end = halo + tile.len + before;
    for (unsigned i = halo - after + threadIdx.x; i < end; i += blockDim.x) {
        size_t at = tile.first + i;
        if (at < halo || at - halo >= per_image) continue;
        float s = lrn.k + lrn.alpha * window_sum(tile, i, before, after, square);
        scaled[i] *= inverse_power(s, lrn.beta);
        terms[i] = scaled[i] * staged[i] / s;
    }
    __syncthreads();
    float factor = 2 * lrn.alpha * lrn.beta;
    dx += sample * per_image + tile.first;
    for (unsigned i = threadIdx.x; i < tile.len; i += blockDim.x) {
        unsigned at = halo + i;
        float sum = window_sum(tile, at, after, before, term);
        dx[i] = narrow<T>(scaled[at] - factor * staged[at] * sum);
    }
}

// ---- neighbourhoods of five, eight channels a thread ----

constexpr unsigned N = 8, REACH = 2; // channels of a thread; neighbours on each side

// `first - BESIDE ..= first + 7 + BESIDE` of a pixel's channels, of which `first` is a multiple of
// eight; zeros beyond the first channel and the last. `x` is channel `first`.
template <unsigned BESIDE> struct Channels {
    float of[N + 2 * BESIDE];

    template <class T>
    __device__ __forceinline__ Channels(const T *x, bool before, bool behind) {
        float own[N], left[BESIDE] = {}, right[BESIDE] = {};
        load_wide(own, x);
        if (before) load_wide(left, x - BESIDE);
        if (behind) load_wide(right, x + N);
#pragma unroll
        for (unsigned i = 0; i < N + 2 * BESIDE; i++)
            of[i] = i < BESIDE ? left[i] : i < BESIDE + N ? own[i - BESIDE] : right[i - BESIDE - N];
    }
};

// sums[i] = values[i] + .. + values[i + 4].
template <unsigned COUNT>
__device__ __forceinline__ void sums_of_five(float (&sums)[COUNT], const float (&values)[COUNT + 4]) {
    float pairs[COUNT + 2];
#pragma unroll
    for (unsigned i = 0; i < COUNT + 2; i++) pairs[i] = values[i] + values[i + 1];
#pragma unroll
    for (unsigned i = 0; i < COUNT; i++) sums[i] = pairs[i] + pairs[i + 2] + values[i + 4];
}

// s of channels: `x` has two more on each side.
template <unsigned COUNT>
__device__ __forceinline__ void scales(float (&s)[COUNT], const float (&x)[COUNT + 4],
                                       const Lrn &lrn) {
    float squares[COUNT + 4];
#pragma unroll
    for (unsigned i = 0; i < COUNT + 4; i++) squares[i] = x[i] * x[i];
    sums_of_five(s, squares);
#pragma unroll
    for (unsigned i = 0; i < COUNT; i++) s[i] = lrn.k + lrn.alpha * s[i];
}

template <class T>
__device__ void forward_5(T *y, const T *x, unsigned packs, const Divisor &of_a_pixel,
                          const Lrn &lrn) {
    unsigned index = (unsigned)global_index();
    if (index >= packs) return;
    unsigned pixel = index, place = of_a_pixel.take(pixel);
    x += (size_t)index * N;
    Channels<REACH> values(x, place > 0, place + 1 < of_a_pixel.divisor);
    float s[N], out[N];
    scales(s, values.of, lrn);
#pragma unroll
    for (unsigned i = 0; i < N; i++) out[i] = values.of[REACH + i] * inverse_power(s[i], lrn.beta);
    store_narrow(y + (size_t)index * N, out);
}

template <class T>
__device__ void backward_5(T *dx, const T *dy, const T *x, const unsigned *images, unsigned packs,
                           const Divisor &of_a_pixel, const Divisor &of_an_image, const Lrn &lrn) {
    unsigned index = (unsigned)global_index();
    if (index >= packs) return;
    unsigned pixel = index, place = of_a_pixel.take(pixel);
    size_t source = index;
    if (images) {
        unsigned sample = index, pack = of_an_image.take(sample);
        source = (size_t)images[sample] * of_an_image.divisor + pack;
    }
    bool before = place > 0, behind = place + 1 < of_a_pixel.divisor;
    // The channels that have one of the eight as a neighbour, and the neighbours of those.
    Channels<REACH> scaled(dy + (size_t)index * N, before, behind);
    Channels<2 * REACH> values(x + source * N, before, behind);
    float s[N + 2 * REACH], terms[N + 2 * REACH], sums[N], out[N];
    scales(s, values.of, lrn);
#pragma unroll
    for (unsigned i = 0; i < N + 2 * REACH; i++) {
        float root = rsqrtf(s[i]);
        scaled.of[i] *= lrn.beta == 0.75f ? root * square_root(root) : powf(s[i], -lrn.beta);
        terms[i] = scaled.of[i] * values.of[REACH + i] * (root * root);
    }
    sums_of_five(sums, terms);
    float factor = 2 * lrn.alpha * lrn.beta;
#pragma unroll
    for (unsigned i = 0; i < N; i++)
        out[i] = scaled.of[REACH + i] - factor * values.of[2 * REACH + i] * sums[i];
    store_narrow(dx + (size_t)index * N, out);
}

} // namespace lrn

// lrn_forward_5: y and x [pixels, c] with c a multiple of 8; packs = pixels c / 8, below 2^31;
// of_a_pixel divides by c / 8. Neighbourhoods of 5. Grid ceil(packs / 256), block 256.
//
// lrn_backward_5: dx and dy alike, x [.., pixels_per_image, c] of the forward images, images
// [packs / of_an_image] or null; of_an_image divides by pixels_per_image c / 8.
// Grid ceil(packs / 256), block 256. dx must not be dy.
//
// lrn_forward: y and x [pixels, c]. Grid ceil(pixels c / 1024), block 256. y must not be x.
//
// lrn_backward: dx and dy [pixels, c], x [.., pixels_per_image, c] of the forward images, images
// [pixels / pixels_per_image] or null. Grid (pixels / pixels_per_image) *
// ceil(pixels_per_image c / 1024), block 256. dx must not be dy.
//
// Both use static shared memory only, and take sizes from 1 to 33 and any number of channels.
#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void lrn_forward_##suffix(T *y, const T *x, size_t pixels, unsigned c,   \
                                                    Lrn lrn) {                                     \
        lrn::forward(y, x, pixels * c, c, lrn);                                                    \
    }                                                                                              \
    extern "C" __global__ void lrn_backward_##suffix(                                              \
        T *dx, const T *dy, const T *x, const unsigned *images, size_t pixels_per_image,           \
        size_t pixels, unsigned c, Lrn lrn) {                                                      \
        lrn::backward(dx, dy, x, images, pixels_per_image * c, c, lrn);                            \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT
#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void lrn_forward_5_##suffix(T *y, const T *x, unsigned packs,            \
                                                      Divisor of_a_pixel, Lrn lrn) {               \
        lrn::forward_5(y, x, packs, of_a_pixel, lrn);                                              \
    }                                                                                              \
    extern "C" __global__ void lrn_backward_5_##suffix(                                            \
        T *dx, const T *dy, const T *x, const unsigned *images, unsigned packs,                    \
        Divisor of_a_pixel, Divisor of_an_image, Lrn lrn) {                                        \
        lrn::backward_5(dx, dy, x, images, packs, of_a_pixel, of_an_image, lrn);                   \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT
