// What both families of convolution kernels know of geometry.
#pragma once
#include "common.cuh"

// One axis of a parity class. The data gradient of a convolution with a stride falls apart into
// dense ones, one for each remainder (parity) of a pixel's place by the stride: pixel i of the class
// is pixel parity + i * stride of the image; tap first + u * stride of the filter meets it at place
// base + i - u of the output. A class may have no pixels, or no taps.
struct ParityAxis {
    unsigned parity, stride, pixels, first, taps, base;

    __device__ ParityAxis(unsigned parity, unsigned stride, unsigned pad, unsigned input,
                          unsigned filter)
        : parity(parity), stride(stride) {
        pixels = parity < input ? (input - parity - 1) / stride + 1 : 0;
        first = (parity + pad) % stride;
        taps = first < filter ? (filter - first - 1) / stride + 1 : 0;
        base = (parity + pad) / stride;
    }
};
