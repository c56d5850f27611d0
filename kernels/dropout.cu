// Inverted dropout, whose masks are a pure function of where a value stands.
//
//   y = number < threshold ? x * scale : 0
//
// The numbers are those of Philox4x32-10 (Salmon et al., SC 2011) for the counter (layer, step,
// sample, group) under the key `seed`. Elements of a sample are counted map by map (C, H, W),
// whatever the layout in memory; group = element / 4, and element % 4 picks one of the four numbers.
#include "common.cuh"

namespace dropout {

struct Numbers { unsigned of[4]; };

__device__ __forceinline__ Numbers philox4x32(Numbers counter, unsigned long long seed) {
    unsigned key[2] = {(unsigned)seed, (unsigned)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        unsigned long long a = (unsigned long long)counter.of[0] * 0xD2511F53u;
        unsigned long long b = (unsigned long long)counter.of[2] * 0xCD9E8D57u;
        counter = {{(unsigned)(b >> 32) ^ counter.of[1] ^ key[0], (unsigned)b,
                    (unsigned)(a >> 32) ^ counter.of[3] ^ key[1], (unsigned)a}};
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return counter;
}

template <class T>
__device__ void apply(T *y, const T *x, unsigned n, unsigned hw, unsigned c, unsigned layer,
                      unsigned long long threshold, float scale, const StepState *state) {
    // A vector's groups are neighbours in memory, so a thread makes all four values of one. In
    // maps they lie far apart, and a thread makes one value.
    bool vector = hw == 1;
    unsigned threads = vector ? (c + 3) / 4 : hw * c;
    size_t sample = global_index();
    unsigned thread = take_index(sample, threads);
    if (sample >= n) return;
    unsigned element = vector ? thread * 4 : thread % c * hw + thread / c;
    unsigned place = vector ? element : thread;
    unsigned lane = element % 4, count = vector ? min(4u, c - element) : 1;
    Numbers numbers = philox4x32(
        {{layer, state->step, state->first_sample + (unsigned)sample, element / 4}}, state->seed);
    size_t at = sample * hw * c + place;
    for (unsigned i = 0; i < 4; i++) { // over the numbers, so that they stay in registers
        if (i < lane || i >= lane + count) continue;
        size_t value = at + i - lane;
        y[value] = narrow<T>(numbers.of[i] < threshold ? widen(x[value]) * scale : 0);
    }
}

} // namespace dropout

// dropout: y and x [n, hw, c]; threshold is a share of 2^32. y may be x.
// Grid ceil(n hw c / 256), block 256; where hw is 1, a thread makes four values and
// ceil(n ceil(c / 4) / 256) blocks are enough. A sample has less than 2^32 values.
#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void dropout_##suffix(                                                   \
        T *y, const T *x, unsigned n, unsigned hw, unsigned c, unsigned layer,                     \
        unsigned long long threshold, float scale, const StepState *state) {                       \
        dropout::apply<T>(y, x, n, hw, c, layer, threshold, scale, state);                         \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT
