// Unpooling by switches, as pool.cu does it and the first layer's filter gradient (conv_tensor.cu).
#pragma once
#include "common.cuh"

namespace unpool {

// Adds those values whose switch is `here`, or NOT_POSITIVE where the window's first place is asked,
// unless under the forward mask.
template <bool FORWARD_MASK, class T>
__device__ __forceinline__ void add_winners(float (&sums)[1], const T *value,
                                            const unsigned char *winner, unsigned here, bool first) {
    bool points = *winner == here || (!FORWARD_MASK && first && *winner == NOT_POSITIVE);
    if (points) sums[0] += widen(*value);
}

template <bool FORWARD_MASK, unsigned N, class T>
__device__ __forceinline__ void add_winners(float (&sums)[N], const T *values,
                                            const unsigned char *winners, unsigned here,
                                            bool first) {
    static_assert(N % 4 == 0, "whole words of switches");
    float wide[N];
    load_wide(wide, values);
    Pack<unsigned, N / 4> words = *(const Pack<unsigned, N / 4> *)winners;
#pragma unroll
    for (unsigned word = 0; word < N / 4; word++) {
        // A byte is 0 where the switch points here.
        unsigned apart = words.of[word] ^ here * 0x1010101u;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            unsigned byte = 0xffu << i * 8;
            bool points = !(apart & byte);
            if (!FORWARD_MASK) points |= first && !(~words.of[word] & byte);
            if (points) sums[4 * word + i] += wide[4 * word + i];
        }
    }
}

// Windows of 3 x 3 with a stride of 2: a square of 2 x 2 pixels of the padded image is covered by four of
// them at most, its own (`up` and `left` are 0) and those before it. Adds what one of the four gives, under
// the forward mask. They are to come row by row, the order of every sum of windows here.
template <unsigned N, class T>
__device__ __forceinline__ void add_window_3_2(float (&sums)[2][2][N], const T *values,
                                               const unsigned char *winners, unsigned up,
                                               unsigned left) {
#pragma unroll
    for (unsigned row = 0; row < 2 - up; row++)
#pragma unroll
        for (unsigned column = 0; column < 2 - left; column++)
            add_winners<true>(sums[row][column], values, winners,
                              (2 * up + row) * 3 + 2 * left + column, false);
}

} // namespace unpool
