// What looking at a network asks for: each map's strongest value and its sum; and single
// units, from which a backward pass starts.
//
//   peaks[n, c] = largest of x[n, :, c] and its place: first of equals, the first NaN above all
//   sums[n, c]  = sum of x[n, :, c]
//   dy          = 0, but units[n].value at one place of sample n
//
// A block is 32 channels wide, so that reads coalesce, and 8 threads share a channel's places:
// thread i takes the places i, i + 8, .. and the first thread joins the eight results in order.
#include "common.cuh"

namespace look {

constexpr unsigned WIDTH = 32, ROWS = 8;

__device__ __forceinline__ bool above(Peak a, Peak b) {
    bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    if (a_nan || b_nan) return a_nan && (!b_nan || a.position < b.position);
    return a.value > b.value || (a.value == b.value && a.position < b.position);
}

template <class T> __device__ void channel_max(Peak *peaks, const T *x, unsigned hw, unsigned c) {
    __shared__ Peak found[ROWS][WIDTH];
    unsigned channel = blockIdx.x * WIDTH + threadIdx.x;
    size_t sample = blockIdx.y;
    x += sample * hw * c + channel;
    Peak peak = {-INFINITY, 0xffffffffu}; // no place: below any value
    if (channel < c) {
        for (unsigned place = threadIdx.y; place < hw; place += ROWS) {
            Peak other = {widen(x[(size_t)place * c]), place};
            if (above(other, peak)) peak = other;
        }
    }
    found[threadIdx.y][threadIdx.x] = peak;
    __syncthreads();
    if (threadIdx.y > 0 || channel >= c) return;
    for (unsigned row = 1; row < ROWS; row++) {
        Peak other = found[row][threadIdx.x];
        if (above(other, peak)) peak = other;
    }
    peaks[sample * c + channel] = peak;
}

template <class T> __device__ void channel_sum(float *sums, const T *x, unsigned hw, unsigned c) {
    __shared__ float found[ROWS][WIDTH];
    unsigned channel = blockIdx.x * WIDTH + threadIdx.x;
    size_t sample = blockIdx.y;
    x += sample * hw * c + channel;
    float sum = 0;
    if (channel < c) {
        for (unsigned place = threadIdx.y; place < hw; place += ROWS) {
            sum += widen(x[(size_t)place * c]);
        }
    }
    found[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || channel >= c) return;
    for (unsigned row = 1; row < ROWS; row++) sum += found[row][threadIdx.x];
    sums[sample * c + channel] = sum;
}

template <class T>
__device__ void scatter_units(T *dy, const SeedUnit *units, unsigned n, unsigned h, unsigned w,
                              unsigned c) {
    size_t sample = global_index();
    if (sample >= n) return;
    SeedUnit unit = units[sample];
    dy[((sample * h + unit.y) * w + unit.x) * c + unit.map] = narrow<T>(unit.value);
}

} // namespace look

// channel_max: peaks [n, c], x [n, hw, c]. Grid (ceil(c / 32), n), block (32, 8).
//
// channel_sum: sums [n, c], x [n, hw, c]. Grid (ceil(c / 32), n), block (32, 8).
//
// scatter_units: dy [n, h, w, c], all zeros before; units [n], inside it. Grid ceil(n / 256), block 256.
#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void channel_max_##suffix(Peak *peaks, const T *x, unsigned hw,          \
                                                    unsigned c) {                                  \
        look::channel_max<T>(peaks, x, hw, c);                                                     \
    }                                                                                              \
    extern "C" __global__ void channel_sum_##suffix(float *sums, const T *x, unsigned hw,          \
                                                    unsigned c) {                                  \
        look::channel_sum<T>(sums, x, hw, c);                                                      \
    }                                                                                              \
    extern "C" __global__ void scatter_units_##suffix(T *dy, const SeedUnit *units, unsigned n,    \
                                                      unsigned h, unsigned w, unsigned c) {        \
        look::scatter_units<T>(dy, units, n, h, w, c);                                             \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT
