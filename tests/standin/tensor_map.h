// A tensor map of the stand-in: what a driver hides in its 128 bytes, as cuTensorMapEncodeTiled and
// cuTensorMapEncodeIm2col fill it in (libcuda.cpp) and hopper.h reads it. What the driver's documentation demands
// of their arguments is checked here.
#pragma once
#include <cstdint>

// Axes begin with the contiguous one: x of a matrix, or C, W, H, N of images.
struct alignas(64) TensorMap {
    static constexpr uint32_t MAGIC = 0x544d4150;
    uint64_t address;     // of element 0
    uint64_t strides[4];  // bytes between neighbours along the axes from the second on
    uint32_t last[5];     // size of the tensor - 1
    uint16_t box[5];      // im2col: channels and pixels
    int8_t lower[2], upper[2]; // im2col: corners of the bounding box, W and H
    uint8_t step[5];      // between elements that are taken
    uint8_t rank, element_bytes, im2col;
    uint8_t span;         // 16-byte chunks within which they are swizzled: 1, 2, 4 or 8
    uint32_t magic;

    uint64_t size(int axis) const { return (uint64_t)last[axis] + 1; }
    // From element 0 to behind the last.
    uint64_t extent() const {
        uint64_t bytes = size(0) * element_bytes;
        for (int i = 1; i < rank; i++) bytes += last[i] * strides[i - 1];
        return bytes;
    }
    // Elements of a box along an axis.
    unsigned count(int axis) const { return axis == 0 ? box[0] : (box[axis] + step[axis] - 1) / step[axis]; }
    unsigned row_bytes() const { return box[0] * element_bytes; }
    unsigned rows() const {
        if (im2col) return box[1];
        unsigned rows = 1;
        for (int i = 1; i < rank; i++) rows *= count(i);
        return rows;
    }
    unsigned bytes() const { return rows() * row_bytes(); }
};
static_assert(sizeof(TensorMap) == 128);

namespace standin {

// What both ways of encoding share: fills in the map, or says what is wrong.
inline const char *describe_tensor(TensorMap &map, int type, unsigned rank, uint64_t address, const uint64_t *dims, const uint64_t *strides,
                                   const unsigned *steps, int interleave, int swizzle, int promotion, int fill) {
    static constexpr int BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    if (type < 0 || type >= (int)(sizeof BYTES / sizeof *BYTES)) return "a type of elements that does not exist or is not played here";
    if (!dims || !steps || (rank > 1 && !strides)) return "an array that is null";
    map.rank = rank;
    map.element_bytes = BYTES[type];
    map.address = address;
    if (address % 16) return "an address that is not a multiple of 16";
    for (unsigned i = 0; i < rank; i++) {
        if (dims[i] == 0 || dims[i] > 1ull << 32) return "a size of 0 or above 2^32";
        map.last[i] = dims[i] - 1;
        if (i > 0) {
            if (strides[i - 1] % 16 || strides[i - 1] >= 1ull << 40) return "a stride that is not a multiple of 16, or not below 2^40";
            map.strides[i - 1] = strides[i - 1];
        }
        if (steps[i] == 0 || steps[i] > 8) return "a step between elements of 0 or above 8";
        map.step[i] = i == 0 ? 1 : steps[i];
    }
    if (interleave != 0) return "an interleaved layout, which is not played here";
    if (swizzle < 0 || swizzle > 3) return "a swizzle that does not exist or is not played here";
    map.span = 1 << swizzle;
    if (promotion < 0 || promotion > 3) return "an L2 promotion that does not exist";
    if (fill != 0) return "NaN in place of zeros, which is not played here";
    map.magic = TensorMap::MAGIC;
    return nullptr;
}

inline const char *check_row(const TensorMap &map) {
    if (map.row_bytes() % 16) return "a box with rows that are not a multiple of 16 bytes";
    if (map.span > 1 && map.row_bytes() > map.span * 16u) return "a box with rows wider than the swizzle";
    return nullptr;
}

inline const char *describe_box(TensorMap &map, const unsigned *box) {
    if (!box) return "an array that is null";
    for (int i = 0; i < map.rank; i++) {
        if (box[i] == 0 || box[i] > 256) return "a box with a size of 0 or above 256";
        map.box[i] = box[i];
    }
    return check_row(map);
}

// Of images: rank 4 alone is played.
inline const char *describe_pixels(TensorMap &map, const int *lower, const int *upper, unsigned channels, unsigned pixels) {
    if (map.rank != 4) return "im2col of another rank than 4, which is not played here";
    if (!lower || !upper) return "an array that is null";
    for (int i = 0; i < 2; i++) {
        if (lower[i] < -128 || lower[i] > 127 || upper[i] < -128 || upper[i] > 127) return "a corner that is not within -128 .. 127";
        if ((int64_t)map.size(i + 1) + upper[i] - lower[i] <= 0) return "a bounding box without any pixel";
        map.lower[i] = lower[i];
        map.upper[i] = upper[i];
    }
    if (channels == 0 || channels > 256) return "channels of a pixel of 0 or above 256";
    if (pixels == 0 || pixels > 1024) return "pixels of a column of 0 or above 1024";
    map.im2col = 1;
    map.box[0] = channels;
    map.box[1] = pixels;
    return check_row(map);
}

} // namespace standin
