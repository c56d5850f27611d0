// What both families of convolution kernels know of geometry.
#pragma once
#include "common.cuh"

// Channels and filters of one group: an argument, so that nothing of them is to be worked out.
struct OfGroup { unsigned c, k; };

// Where group `number` lies: its first channel and filter of all groups', and its filters' weights.
struct Group : OfGroup {
    unsigned first_c, first_k;
    size_t weights;

    __device__ Group(const ConvDims &d, const OfGroup &sizes, unsigned number)
        : OfGroup(sizes), first_c(number * c), first_k(number * k),
          weights((size_t)first_k * d.r * d.s * c) {}
};

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
