// Windows of maps, for backward passes from single units: each sample's lies at a place of its own.
//
//   gather_windows:     dst[n, i, j] = src[image, y + i, x + j], the window of sample n at (y, x); 0
//                       outside the map
//   gather_switches:    the same of a pooling's switches; NOT_POSITIVE of a window that begins before
//                       the image becomes the index of its first place inside (but for a forward mask)
//   zero_out_of_bounds: x[n, i, j] = 0 where (y + i, x + j) is outside the map
//
// One thread a value; consecutive threads are consecutive channels.
#include "common.cuh"

namespace window {

// A place of a window: what it is, and where in the map it lies.
struct Place {
    unsigned channel;
    size_t sample;
    int y, x;
    bool inside;
};

__device__ __forceinline__ Place place_of(size_t index, const unsigned *units, const Windows &d,
                                          unsigned c) {
    Place place;
    place.channel = take_index(index, c);
    int column = (int)take_index(index, d.size[1]), row = (int)take_index(index, d.size[0]);
    place.sample = index;
    place.y = d.start[0] + d.jump[0] * (int)units[2 * index] + row;
    place.x = d.start[1] + d.jump[1] * (int)units[2 * index + 1] + column;
    place.inside = place.y >= 0 && place.y < (int)d.map[0] && place.x >= 0 && place.x < (int)d.map[1];
    return place;
}

template <class T>
__device__ T gather(const T *src, const unsigned *images, const Place &place, const Windows &d,
                    unsigned c) {
    T zero = {};
    if (!place.inside) return zero;
    size_t row = image_of(images, place.sample) * d.map[0] + (size_t)place.y;
    return src[(row * d.map[1] + (size_t)place.x) * c + place.channel];
}

// First index inside the image, along one axis, of a window of a pooling.
__device__ __forceinline__ unsigned first_inside(int window, unsigned stride, unsigned pad) {
    unsigned start = (unsigned)window * stride;
    return start < pad ? pad - start : 0;
}

} // namespace window

// gather_switches: dst [n, size, c], src [.., map, c] of the forward images, images [n] or null,
// units [n, 2]: rows and columns. map is p, q of `pool`. Grid ceil(n size c / 256), block 256.
extern "C" __global__ void gather_switches(unsigned char *dst, const unsigned char *src,
                                           const unsigned *images, const unsigned *units, Windows d,
                                           unsigned forward_mask, PoolDims pool) {
    size_t index = global_index();
    if (index >= (size_t)pool.n * d.size[0] * d.size[1] * pool.c) return;
    window::Place place = window::place_of(index, units, d, pool.c);
    unsigned char winner = window::gather(src, images, place, d, pool.c);
    if (place.inside && winner == NOT_POSITIVE && !forward_mask) {
        unsigned row = window::first_inside(place.y, pool.stride[0], pool.pad[0]);
        unsigned column = window::first_inside(place.x, pool.stride[1], pool.pad[1]);
        if (row || column) winner = (unsigned char)(row * pool.window[1] + column);
    }
    dst[index] = winner;
}

// gather_windows: dst [n, size, c], src [.., map, c] of the forward images, images [n] or null, units [n, 2]:
// rows and columns. Grid ceil(n size c / 256), block 256.
//
// zero_out_of_bounds: x [n, size, c], units [n, 2]. Grid ceil(n size c / 256), block 256.
#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void gather_windows_##suffix(T *dst, const T *src, const unsigned *images,\
                                                       const unsigned *units, Windows d, unsigned n,\
                                                       unsigned c) {                               \
        size_t index = global_index();                                                             \
        if (index >= (size_t)n * d.size[0] * d.size[1] * c) return;                                \
        dst[index] = window::gather(src, images, window::place_of(index, units, d, c), d, c);      \
    }                                                                                              \
    extern "C" __global__ void zero_out_of_bounds_##suffix(T *x, const unsigned *units, Windows d, \
                                                           unsigned n, unsigned c) {               \
        size_t index = global_index();                                                             \
        if (index >= (size_t)n * d.size[0] * d.size[1] * c) return;                                \
        if (!window::place_of(index, units, d, c).inside) x[index] = T{};                          \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT
