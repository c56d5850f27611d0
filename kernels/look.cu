// What looking at a network asks for: each map's strongest value, its sum and its moments; and single
// units, from which a backward pass starts.
//
//   peaks[n, c] = largest of x[n, :, c] and its place: first of equals, the first NaN above all
//   sums[n, c]  = sum of x[n, :, c]
//   moments[c]  = sum, sum of squares and largest number of x[:, :, c]
//   dy          = 0, but units[n].value at one place of sample n
//
// Peaks and sums: a block is 32 channels wide, so that reads coalesce, and 8 threads share a channel's
// places: thread i takes the places i, i + 8, .. and the first thread joins the eight results in order.
//
// Moments are made of tensors of any size, as fast as they can be read: of neighbours that make 16 bytes,
// a pack, whatever the number of channels. The fewest packs that are whole rows of channels are a period:
// a thread that takes the same place of one period after the other sees the same channels again and again.
// Each row of blocks takes a stretch of the periods and writes what it has found of them; joined are these in
// a second launch. All orders are those of sizes.
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

constexpr unsigned THREADS = 256; // of a block, at most
constexpr unsigned AT_ONCE = 4;

__device__ __forceinline__ void add(MapMoments &moments, float value) {
    moments.sum += value;
    moments.squares += value * value;
    moments.largest = fmaxf(moments.largest, value); // passes over NaN
}

template <unsigned N, class T>
__device__ void map_moments(MapMoments *partial, const T *x, size_t len, unsigned packs,
                            size_t periods, size_t share) {
    __shared__ MapMoments found[N][THREADS];
    unsigned pack = blockIdx.x * blockDim.x + threadIdx.x;
    MapMoments moments[N];
#pragma unroll
    for (unsigned i = 0; i < N; i++) moments[i] = {0, 0, -INFINITY};
    if (pack < packs) {
        size_t period = blockIdx.y * share + threadIdx.y, end = min((blockIdx.y + 1) * share, periods);
        // So many reads are under way before the first is waited for.
        for (; period + (AT_ONCE - 1) * blockDim.y < end; period += AT_ONCE * blockDim.y) {
            float values[AT_ONCE][N];
#pragma unroll
            for (unsigned i = 0; i < AT_ONCE; i++) {
                load_wide<N>(values[i], x + ((period + i * blockDim.y) * packs + pack) * N);
            }
#pragma unroll
            for (unsigned i = 0; i < AT_ONCE * N; i++) add(moments[i % N], values[i / N][i % N]);
        }
        for (; period < end; period += blockDim.y) {
            float values[N];
            load_wide<N>(values, x + (period * packs + pack) * N);
#pragma unroll
            for (unsigned i = 0; i < N; i++) add(moments[i], values[i]);
        }
        if (blockIdx.y == 0 && threadIdx.y == 0) { // and what is left, less than a period
            size_t at = (periods * packs + pack) * N;
#pragma unroll
            for (unsigned i = 0; i < N; i++) {
                if (at + i < len) add(moments[i], widen(x[at + i]));
            }
        }
    }
    // The lower half of the rows takes what the upper half has found, until one row is left. Nobody writes
    // what is still to be read: the rows that write next are below those that are read now.
    unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (unsigned rows = blockDim.y; rows > 1;) {
        unsigned half = (rows + 1) / 2;
        if (threadIdx.y >= half && threadIdx.y < rows) {
#pragma unroll
            for (unsigned i = 0; i < N; i++) found[i][thread] = moments[i];
        }
        __syncthreads();
        if (threadIdx.y + half < rows) {
#pragma unroll
            for (unsigned i = 0; i < N; i++) {
                MapMoments other = found[i][thread + half * blockDim.x];
                moments[i].sum += other.sum;
                moments[i].squares += other.squares;
                moments[i].largest = fmaxf(moments[i].largest, other.largest);
            }
        }
        rows = half;
    }
    if (threadIdx.y > 0 || pack >= packs) return;
    partial += ((size_t)blockIdx.y * packs + pack) * N;
#pragma unroll
    for (unsigned i = 0; i < N; i++) partial[i] = moments[i];
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
// map_moments: partial [stretches, packs * N], x [len] of `periods` periods of `packs` packs of N values and
// a rest that is less; N is 4 of f32 and 8 of bf16; `share` >= ceil(periods / stretches) periods a stretch.
// Grid (ceil(packs / width), stretches), block (width, rows) of 256 threads at most. join_moments follows.
//
// join_moments: moments [c], partial [rows, c]. Grid ceil(c / 8), block 256.
//
// scatter_units: dy [n, h, w, c], all zeros before; units [n], inside it. Grid ceil(n / 256), block 256.
#define EXPORT(T, suffix, N)                                                                       \
    extern "C" __global__ void channel_max_##suffix(Peak *peaks, const T *x, unsigned hw,          \
                                                    unsigned c) {                                  \
        look::channel_max<T>(peaks, x, hw, c);                                                     \
    }                                                                                              \
    extern "C" __global__ void channel_sum_##suffix(float *sums, const T *x, unsigned hw,          \
                                                    unsigned c) {                                  \
        look::channel_sum<T>(sums, x, hw, c);                                                      \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(look::THREADS, 4) map_moments_##suffix(           \
        MapMoments *partial, const T *x, size_t len, unsigned packs, size_t periods,               \
        size_t share) {                                                                            \
        look::map_moments<N, T>(partial, x, len, packs, periods, share);                           \
    }                                                                                              \
    extern "C" __global__ void scatter_units_##suffix(T *dy, const SeedUnit *units, unsigned n,    \
                                                      unsigned h, unsigned w, unsigned c) {        \
        look::scatter_units<T>(dy, units, n, h, w, c);                                             \
    }
EXPORT(float, f32, 4)
EXPORT(bf16, bf16, 8)
#undef EXPORT

// A warp takes a map: lane i the rows i, i + 32, ..
extern "C" __global__ void join_moments(MapMoments *moments, const MapMoments *partial,
                                        unsigned rows, unsigned c) {
    unsigned map = blockIdx.x * (look::THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (map >= c) return;
    double sum = 0, squares = 0;
    float largest = -INFINITY;
#pragma unroll 4
    for (unsigned row = lane; row < rows; row += 32) {
        MapMoments part = partial[(size_t)row * c + map];
        sum += part.sum;
        squares += part.squares;
        largest = fmaxf(largest, part.largest);
    }
    for (unsigned other = 16; other > 0; other /= 2) {
        sum += __shfl_xor_sync(~0u, sum, other);
        squares += __shfl_xor_sync(~0u, squares, other);
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, other));
    }
    if (lane == 0) moments[map] = {(float)sum, (float)squares, largest};
}
