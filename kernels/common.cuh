// What every kernel file begins with: the structs that travel from Rust (each `#[repr(C)]` there and
// the same here), the storage types, and the few helpers that all families use.
//
// Layout: activations are NHWC, filters KRSC, contiguous. `float` and `bf16` are storage only; all
// arithmetic is f32. Linear indices are `size_t`: a batch of 2048 has more than 2^31 values.
//
// A kernel is written once for every storage type `T` as a `__device__` template and exported under
// `extern "C"` names ending in `_f32` and `_bf16`. Beside each export stands its contract: grid,
// block, shared memory, and what it expects of its arguments.
//
// With ZFNET_STANDIN the same files are compiled by g++ and run on the CPU (tests/standin); then
// what CUDA provides comes from cuda_cpu.h.
#pragma once
#ifdef ZFNET_STANDIN
#include "cuda_cpu.h"
#else
#include <cstdint>
#define DYNAMIC_SHARED(T, name) extern __shared__ __align__(128) unsigned char name##_bytes[]; T *name = (T *)name##_bytes
#endif

// ---- sizes and states, as in src/shape.rs and src/backend/mod.rs ----

struct ConvDims {
    unsigned n, h, w, c;    // input
    unsigned k, r, s;       // filters
    unsigned p, q;          // output
    unsigned stride[2];     // down, right
    unsigned pad[2];        // top, left; beyond any edge zeros are read
    unsigned groups;        // filter i sees the c / groups channels of group i / (k / groups)
};

struct PoolDims {
    unsigned n, h, w, c, p, q;
    unsigned window[2], stride[2], pad[2];
    unsigned any_sign;      // 1: a switch also keeps the place of a winner that is not positive
};

// A window of each sample of a backward pass, at start + jump * its unit's place: down, right.
struct Windows {
    unsigned map[2], size[2];
    int start[2], jump[2];
};

struct Lrn {
    unsigned size;          // neighbours of channel j: j - size / 2 ..= j + (size - 1) / 2
    float k, alpha, beta;
};

struct Crop { unsigned image, y, x, mirror; };
struct InputDims { unsigned rows, columns; float scale; unsigned order[3]; };
struct SeedUnit { unsigned map, y, x; float value; };
struct Peak { float value; unsigned position; };
struct MapMoments { float sum, squares, largest; };

// What a step's kernels read, in device memory, so that a recorded step replays truthfully.
// `halted` is ours alone: set by a loss that is not finite, it keeps the weights as they are.
struct StepState {
    unsigned long long seed;
    unsigned step, first_sample;
    float rate;
    unsigned halted;
};

constexpr unsigned char NOT_POSITIVE = 255; // the switch of a window without a positive value, unless any_sign

// ---- storage ----

struct bf16 { unsigned short bits; };

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(bf16 value) {
    unsigned bits = (unsigned)value.bits << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

// Rounds to the nearest value that `T` holds, ties to even; NaN stays NaN.
template <class T> __device__ T narrow(float value);
template <> __device__ __forceinline__ float narrow<float>(float value) { return value; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float value) {
    bf16 half;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half.bits) : "f"(value));
#else
    unsigned bits;
    memcpy(&bits, &value, 4);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    half.bits = nan ? 0x7fffu : (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
#endif
    return half;
}

// N neighbours in memory, moved at once: the first stands at a multiple of N.
template <class T, unsigned N> struct alignas(N * sizeof(T)) Pack { T of[N]; };

// N neighbours as floats; `from` stands at a multiple of N.
template <unsigned N, class T> __device__ __forceinline__ void load_wide(float (&wide)[N], const T *from) {
    Pack<T, N> values = *(const Pack<T, N> *)from;
#pragma unroll
    for (unsigned i = 0; i < N; i++) wide[i] = widen(values.of[i]);
}

// Two bf16 of a word at a time: the compiler takes them apart in more instructions.
template <unsigned N>
__device__ __forceinline__ void load_wide(float (&wide)[N], const bf16 *from) {
    static_assert(N % 2 == 0, "whole words");
    Pack<unsigned, N / 2> words = *(const Pack<unsigned, N / 2> *)from;
#pragma unroll
    for (unsigned i = 0; i < N; i++) {
        wide[i] = __uint_as_float(i % 2 ? words.of[i / 2] & 0xffff0000u : words.of[i / 2] << 16);
    }
}

// Floats rounded to N neighbours; `to` stands at a multiple of N.
template <unsigned N, class T>
__device__ __forceinline__ void store_narrow(T *to, const float (&wide)[N]) {
    Pack<T, N> values;
#pragma unroll
    for (unsigned i = 0; i < N; i++) values.of[i] = narrow<T>(wide[i]);
    *(Pack<T, N> *)to = values;
}

// The values `first ..` of an array of `len`: where it ends before them, those that it has.
template <unsigned N, class T>
__device__ __forceinline__ Pack<T, N> load_pack(const T *x, size_t first, size_t len) {
    if (first + N <= len) return *(const Pack<T, N> *)(x + first);
    Pack<T, N> values = {};
    for (unsigned i = 0; i < N; i++) {
        if (first + i < len) values.of[i] = x[first + i];
    }
    return values;
}

template <unsigned N, class T>
__device__ __forceinline__ void store_pack(T *y, size_t first, size_t len, const Pack<T, N> &values) {
    if (first + N <= len) {
        *(Pack<T, N> *)(y + first) = values;
        return;
    }
    for (unsigned i = 0; i < N; i++) {
        if (first + i < len) y[first + i] = values.of[i];
    }
}

// ---- division ----

// Division by a number that does not change, of numbers below 2^31: a product and a shift. With
// 2^shift the first power of two not below the divisor, the multiplier is the part of
// 2^32 2^shift / divisor above 2^32, rounded up (Granlund and Montgomery, PLDI 1994).
//
// Kernels that divide a few times for each value get theirs from the host (`Divisor` in
// src/backend/cuda/device.rs).
struct Divisor {
    unsigned divisor, multiplier, shift;

    __device__ __forceinline__ unsigned quotient(unsigned n) const {
        return ((unsigned)((unsigned long long)n * multiplier >> 32) + n) >> shift;
    }
    // Takes the fastest axis off a linear index: returns the remainder, and leaves the quotient.
    __device__ __forceinline__ unsigned take(unsigned &index) const {
        unsigned rest = quotient(index), place = index - rest * divisor;
        index = rest;
        return place;
    }
};

__device__ __forceinline__ Divisor divisor_of(unsigned d) {
    Divisor by;
    by.divisor = d ? d : 1; // nothing is ever divided by the 0 of an empty class
    by.shift = by.divisor > 1 ? 32 - __clz(by.divisor - 1) : 0;
    unsigned rest = (1u << by.shift) - by.divisor; // below the divisor
    if (by.divisor < 1u << 16) { // two halves of 16 bits: a division of 64 bits takes five times as long
        unsigned high = (rest << 16) / by.divisor, left = (rest << 16) - high * by.divisor;
        by.multiplier = (high << 16 | (left << 16) / by.divisor) + 1;
    } else {
        by.multiplier = (unsigned)(((unsigned long long)rest << 32) / by.divisor + 1);
    }
    return by;
}

// ---- threads ----

// Index of this thread in a grid of one dimension.
__device__ __forceinline__ size_t global_index() {
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}

// The image whose forward values sample `n` of a backward pass uses; `images` may be null: its own.
__device__ __forceinline__ size_t image_of(const unsigned *images, size_t n) {
    return images ? images[n] : n;
}

// Takes the fastest axis, of `size`, off a linear index: returns `index % size` and leaves
// `index / size`. Divides in 32 bits where it can, which is several times as fast.
__device__ __forceinline__ unsigned take_index(size_t &index, unsigned size) {
    size_t rest = index >> 32 ? index / size : (unsigned)index / size;
    unsigned place = (unsigned)(index - rest * size);
    index = rest;
    return place;
}

// `combine` of the values of all threads of a block of 256, in the order of a tree: the same in
// every run. All threads must call it; all get the result.
template <class V, class Combine> __device__ V block_reduce(V value, Combine combine) {
    __shared__ V values[256];
    values[threadIdx.x] = value;
    for (unsigned half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            values[threadIdx.x] = combine(values[threadIdx.x], values[threadIdx.x + half]);
        }
    }
    __syncthreads();
    value = values[0];
    __syncthreads(); // before another call writes the same memory
    return value;
}
