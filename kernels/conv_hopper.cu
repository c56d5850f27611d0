// Convolution on Hopper's tensor cores (sm_90a): the products of conv_tensor.cu, in bf16, of one group, by `wgmma` on
// tiles that TMA copies.
//
//                    rows (256 a tile)             columns    depth (64 a step)
//   forward          N P Q                         K          R S C
//   backward data    pixels (n,h,w) of a class     C          taps (r,s) of the class, K
//   backward filter  R S C                         K          N P Q
//
// (The filter gradient is the other's transposed: so that 256 rows divide what they are.)
//
// A block is three warpgroups. One thread of the first, the producer, has TMA fill the stages of a ring in shared
// memory; the other two, the consumers, multiply 128 of the rows each. A stage has two mbarriers: a phase of `full` ends
// when its bytes have come, one of `empty` when all warps of the consumers have read them.
//
// An item is a tile of the product and, of its depth, the part of a split. There are as many blocks as multiprocessors;
// block b takes items b, b + gridDim.x, ... The ring runs on from one to the next: while results are written, the
// producer fetches for the next.
//
// TMA reads activations by im2col: pixel after pixel of the rows (or of the depth), each at the same tap of the filter,
// beyond the edge zeros. It copies boxes of 64 channels, or of 32 where more of 64 would be beyond the last.
#include "conv.cuh"
#include "hopper.cuh"
#ifdef HOPPER

namespace conv_hopper {

// The same constants are in src/backend/cuda/hopper.rs.
constexpr int ROWS = 256, WIDE = 128, MEDIUM = 96, DEPTH = 64;
constexpr int STAGES = 4;
constexpr int MOST_CLASSES = 4;
constexpr int CONSUMERS = 2; // warpgroups
constexpr int THREADS = 128 * (1 + CONSUMERS);
constexpr int SLICE = 16; // of the depth, a product

// The tensor maps of the classes of a data gradient.
struct ClassMaps { TensorMap of[MOST_CLASSES]; };

// ---- operands in shared memory ----

// A matrix of `EXTENT` rows (of A; or columns, of B) by DEPTH, as boxes that are `CHUNK` values wide: of the depth, or if
// TRANSPOSED of the rows.
template <int EXTENT, int CHUNK_, bool TRANSPOSED_> struct Operand {
    static constexpr int CHUNK = CHUNK_;
    static constexpr bool TRANSPOSED = TRANSPOSED_;
    static constexpr int BOXES = (TRANSPOSED ? EXTENT : DEPTH) / CHUNK;
    static constexpr int BYTES = EXTENT * DEPTH * sizeof(bf16), BOX_BYTES = BYTES / BOXES;
    static constexpr int PITCH = CHUNK * sizeof(bf16);
    static_assert(CHUNK == 64 || CHUNK == 32, "a swizzle's width");

    static __device__ __forceinline__ unsigned long long descriptor(const unsigned char *tile) {
        return matrix_descriptor(tile, TRANSPOSED ? BOX_BYTES : 0, 8 * PITCH, CHUNK == 64 ? SWIZZLE_128B : SWIZZLE_64B);
    }
    // What is added to it for the rows from `row` on, and that slice of the depth.
    static constexpr __device__ __forceinline__ unsigned advance(unsigned row, unsigned slice) {
        const unsigned bytes = TRANSPOSED ? row / CHUNK * BOX_BYTES + slice * SLICE * PITCH
                                          : row * PITCH + slice * SLICE / CHUNK * BOX_BYTES + slice * SLICE % CHUNK * sizeof(bf16);
        return bytes / 16;
    }
};

// ---- the ring ----

template <int STAGE_BYTES> struct Ring {
    static constexpr int BYTES = STAGES * STAGE_BYTES;

    unsigned char *stages;
    Mbarrier *full, *empty;
    unsigned stage = 0, parity = 0; // whose turn it is, and of how many rounds

    // All threads of the block.
    __device__ explicit Ring(unsigned char *dynamic) {
        stages = dynamic + (1024 - shared_address(dynamic) % 1024) % 1024; // where swizzles' patterns begin
        full = (Mbarrier *)(stages + BYTES);
        empty = full + STAGES;
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) {
                mbarrier_init(&full[i], 1);
                mbarrier_init(&empty[i], 4 * CONSUMERS);
            }
            fence_mbarrier_init();
        }
        __syncthreads();
    }
    __device__ __forceinline__ unsigned char *at() const { return stages + stage * STAGE_BYTES; }
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    // Of the producer: waits until the stage may be filled, and says with what.
    __device__ __forceinline__ Mbarrier *acquire() const {
        mbarrier_wait_parity(&empty[stage], parity ^ 1);
        mbarrier_arrive_expect_tx(&full[stage], STAGE_BYTES);
        return &full[stage];
    }
    __device__ __forceinline__ void wait() const { mbarrier_wait_parity(&full[stage], parity); }
    // Of a warp that multiplies: it has read the stage before this one.
    __device__ __forceinline__ void release_last() const {
        if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[stage == 0 ? STAGES - 1 : stage - 1]);
    }
};

// ---- items ----

// Where part `i` of `parts` about equal parts of `count` begins.
__device__ __forceinline__ unsigned part_begin(unsigned count, unsigned i, unsigned parts) {
    unsigned each = count / parts;
    return i * each + min(i, count - parts * each);
}

__device__ __forceinline__ unsigned tiles(unsigned count, unsigned size) { return (count + size - 1) / size; }

// A pixel of images by its number.
struct Pixel { unsigned n, row, column; };
struct Pixels {
    unsigned count;
    Divisor per_image, across;

    __device__ Pixels(unsigned n, unsigned down, unsigned right)
        : count(n * down * right), per_image(divisor_of(down * right)), across(divisor_of(right)) {}
    __device__ __forceinline__ Pixel at(unsigned i) const {
        unsigned n = per_image.quotient(i), place = i - n * per_image.divisor, row = across.quotient(place);
        return {n, row, place - row * across.divisor};
    }
};

// A tile, and the steps of its depth.
struct Item { unsigned row0, column0, split, step, end; };

// Boxes of channels at taps, one after another: tap i / chunks, and there channels i % chunks * CHUNK and on.
struct Boxes {
    unsigned count;
    Divisor chunks, across;

    __device__ Boxes(unsigned down, unsigned right, unsigned channels, unsigned chunk)
        : count(down * right * tiles(channels, chunk)), chunks(divisor_of(tiles(channels, chunk))), across(divisor_of(right)) {}
    struct Box { unsigned chunk, tap, down, right; };
    __device__ __forceinline__ Box at(unsigned i) const {
        unsigned tap = chunks.quotient(i), down = across.quotient(tap);
        return {i - tap * chunks.divisor, tap, down, tap - down * across.divisor};
    }
};

// ---- results ----

// Where a row of results begins in y, in values, if it is inside.
struct Row { size_t start; bool inside; };

// Of four neighbouring lanes lane t gets word t of each.
__device__ __forceinline__ void transpose_quad(unsigned (&v)[4]) {
    unsigned lane = threadIdx.x % 4;
#pragma unroll
    for (unsigned step = 1; step < 4; step *= 2) {
        bool high = lane & step;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            if (i & step) continue;
            unsigned given = high ? v[i] : v[i + step];
            unsigned got = __shfl_xor_sync(0xffffffffu, given, step);
            if (high) v[i] = got;
            else v[i + step] = got;
        }
    }
}

// The sums of one warpgroup: of 64-row block m, [4 c + 2 i + e] is row 16 warp + lane / 4 + 8 i, column 8 c + 2 (lane % 4) + e.
template <int COLUMNS> using Sums = float[2][COLUMNS / 2];

__device__ __forceinline__ unsigned row_of(unsigned m, unsigned i) {
    unsigned thread = threadIdx.x % 128, warpgroup = threadIdx.x / 128 - 1;
    return warpgroup * 128 + m * 64 + thread / 32 * 16 + thread % 32 / 4 + 8 * i;
}

// Writes the part from column0 on of rows of `columns` values, a multiple of eight: as it is to `partial`, or if that is
// null with bias (or null) and relu to y.
template <int COLUMNS>
__device__ __forceinline__ void store_rows(const Sums<COLUMNS> &sums, const Row (&rows)[2][2], unsigned column0, unsigned columns,
                                           bf16 *y, float *partial, const float *bias, bool relu) {
    unsigned t = threadIdx.x % 4;
#pragma unroll
    for (unsigned c = 0; c < COLUMNS / 8; c += 4) {
        if (column0 + 8 * c >= columns) break;
        float b[4][2] = {};
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            unsigned column = column0 + 8 * (c + j) + 2 * t;
            if (bias && column < columns) b[j][0] = bias[column], b[j][1] = bias[column + 1];
        }
#pragma unroll
        for (unsigned m = 0; m < 2; m++)
#pragma unroll
            for (unsigned i = 0; i < 2; i++) {
                const Row &row = rows[m][i];
                if (partial) {
#pragma unroll
                    for (unsigned j = 0; j < 4; j++) {
                        unsigned column = column0 + 8 * (c + j) + 2 * t;
                        const float *pair = &sums[m][4 * (c + j) + 2 * i];
                        if (row.inside && column < columns) *(Pack<float, 2> *)(partial + row.start + column) = {pair[0], pair[1]};
                    }
                    continue;
                }
                unsigned words[4];
#pragma unroll
                for (unsigned j = 0; j < 4; j++) {
                    unsigned word = 0;
#pragma unroll
                    for (unsigned e = 0; e < 2; e++) {
                        float sum = sums[m][4 * (c + j) + 2 * i + e] + b[j][e];
                        if (relu && sum < 0) sum = 0;
                        word |= (unsigned)narrow<bf16>(sum).bits << 16 * e;
                    }
                    words[j] = word;
                }
                transpose_quad(words); // eight columns a lane
                unsigned column = column0 + 8 * (c + t);
                if (row.inside && column < columns) *(Pack<unsigned, 4> *)(y + row.start + column) = {words[0], words[1], words[2], words[3]};
            }
    }
}

// ---- the three directions ----
//
// Each says which items there are (`items`, `item`), has TMA copy a step of one to a stage (`Filler`, which the producer
// makes once an item), and stores an item's sums. An item has at least one step.

template <int CHUNK> struct Forward {
    static constexpr int COLUMNS = WIDE;
    using A = Operand<ROWS, CHUNK, false>;
    using B = Operand<COLUMNS, CHUNK, false>;

    const TensorMap *x, *w;
    bf16 *y;
    const float *bias;
    bool relu;
    const ConvDims &d;
    unsigned splits;
    float *partial;
    Pixels pixels;
    Boxes boxes;
    unsigned across, items;

    __device__ Forward(const TensorMap *x, const TensorMap *w, bf16 *y, const float *bias, unsigned relu, const ConvDims &d, unsigned splits,
                       float *partial)
        : x(x), w(w), y(y), bias(bias), relu(relu != 0), d(d), splits(splits), partial(splits > 1 ? partial : nullptr), pixels(d.n, d.p, d.q),
          boxes(d.r, d.s, d.c, CHUNK), across(tiles(d.k, COLUMNS)), items(tiles(pixels.count, ROWS) * across * splits) {}

    __device__ Item item(unsigned i) const {
        unsigned tile = i / splits, split = i % splits, steps = tiles(boxes.count, A::BOXES);
        return {tile / across * ROWS, tile % across * COLUMNS, split, part_begin(steps, split, splits), part_begin(steps, split + 1, splits)};
    }
    struct Filler {
        const Forward &of;
        unsigned column0;
        Pixel first;

        __device__ Filler(const Forward &of, const Item &item) : of(of), column0(item.column0), first(of.pixels.at(item.row0)) {}
        __device__ void fill(unsigned char *a, unsigned char *b, unsigned step, Mbarrier *bar) const {
            const ConvDims &d = of.d;
            int row = first.row * d.stride[0] - d.pad[0], column = first.column * d.stride[1] - d.pad[1];
#pragma unroll
            for (int i = 0; i < A::BOXES; i++) {
                unsigned box = step * A::BOXES + i;
                // Behind the last box the filters' are zeros; x's are to be numbers.
                auto [chunk, tap, down, right] = of.boxes.at(min(box, of.boxes.count - 1));
                int filters_tap = box < of.boxes.count ? tap : d.r * d.s;
                int channel = chunk * CHUNK;
                cp_async_bulk_tensor_im2col(a + i * A::BOX_BYTES, of.x, {channel, column, row, (int)first.n}, right, down, bar);
                cp_async_bulk_tensor<3>(b + i * B::BOX_BYTES, of.w, {channel, filters_tap, (int)column0}, bar);
            }
        }
    };
    __device__ void store(const Item &item, const Sums<COLUMNS> &sums) const {
        Row rows[2][2];
        for (unsigned m = 0; m < 2; m++)
            for (unsigned i = 0; i < 2; i++) {
                unsigned row = item.row0 + row_of(m, i);
                rows[m][i] = {(size_t)row * d.k, row < pixels.count};
            }
        float *part = partial ? partial + item.split * (size_t)pixels.count * d.k : nullptr;
        store_rows<COLUMNS>(sums, rows, item.column0, d.k, y, part, bias, relu);
    }
};

// Of a data gradient: the pixels of a class, what they meet, and its items.
struct Class {
    ParityAxis down, right;
    unsigned pixels;

    // Numbered by the first taps of the axes, not by parities: so the classes of most taps come first.
    __device__ Class(const ConvDims &d, unsigned number)
        : down(axis(d, 0, number / d.stride[1])), right(axis(d, 1, number % d.stride[1])), pixels(d.n * down.pixels * right.pixels) {}
    static __device__ ParityAxis axis(const ConvDims &d, unsigned i, unsigned first) {
        unsigned stride = d.stride[i], parity = (first + (stride - 1) * d.pad[i]) % stride;
        return {parity, stride, d.pad[i], i == 0 ? d.h : d.w, i == 0 ? d.r : d.s};
    }
};

template <int COLUMNS_> struct BackwardData {
    static constexpr int COLUMNS = COLUMNS_, FILTERS = 64;
    using A = Operand<ROWS, FILTERS, false>;
    using B = Operand<COLUMNS, COLUMNS % 64 == 0 ? 64 : 32, true>;

    const ClassMaps &dy;
    const TensorMap *w;
    bf16 *dx;
    const ConvDims &d;
    unsigned splits;
    float *partial;
    unsigned across, items;

    __device__ BackwardData(const ClassMaps &dy, const TensorMap *w, bf16 *dx, const ConvDims &d, unsigned splits, float *partial)
        : dy(dy), w(w), dx(dx), d(d), splits(splits), partial(splits > 1 ? partial : nullptr), across(tiles(d.c, COLUMNS)), items(0) {
        for (unsigned i = 0; i < d.stride[0] * d.stride[1]; i++) items += items_of(Class(d, i));
    }
    __device__ unsigned items_of(const Class &c) const { return tiles(c.pixels, ROWS) * across * splits; }

    struct ClassItem : Item { unsigned number; };
    __device__ ClassItem item(unsigned i) const {
        unsigned number = 0;
        for (unsigned count; i >= (count = items_of(Class(d, number))); number++) i -= count;
        Class c(d, number);
        unsigned tile = i / splits, split = i % splits, steps = c.down.taps * c.right.taps * tiles(d.k, FILTERS);
        return {{tile / across * ROWS, tile % across * COLUMNS, split, part_begin(steps, split, splits), part_begin(steps, split + 1, splits)}, number};
    }
    struct Filler {
        const BackwardData &of;
        Class c;
        Boxes boxes;
        const TensorMap *map;
        unsigned column0;
        Pixel first;

        __device__ Filler(const BackwardData &of, const ClassItem &item)
            : of(of), c(of.d, item.number), boxes(c.down.taps, c.right.taps, of.d.k, FILTERS), map(&of.dy.of[item.number]), column0(item.column0),
              first(Pixels(of.d.n, c.down.pixels, c.right.pixels).at(item.row0)) {}
        __device__ void fill(unsigned char *a, unsigned char *b, unsigned step, Mbarrier *bar) const {
            auto [chunk, tap, down, right] = boxes.at(step);
            // The map's first place is that of the last tap.
            const unsigned last_down = c.down.taps - 1, last_right = c.right.taps - 1;
            int row = (int)(c.down.base + first.row) - (int)last_down, column = (int)(c.right.base + first.column) - (int)last_right;
            int place = (c.down.first + down * c.down.stride) * of.d.s + c.right.first + right * c.right.stride, filter = chunk * FILTERS;
            cp_async_bulk_tensor_im2col(a, map, {filter, column, row, (int)first.n}, last_right - right, last_down - down, bar);
#pragma unroll
            for (int i = 0; i < B::BOXES; i++)
                cp_async_bulk_tensor<3>(b + i * B::BOX_BYTES, of.w, {(int)column0 + i * B::CHUNK, place, filter}, bar);
        }
    };
    __device__ void store(const ClassItem &item, const Sums<COLUMNS> &sums) const {
        Class c(d, item.number);
        Pixels pixels(d.n, c.down.pixels, c.right.pixels);
        Row rows[2][2];
        for (unsigned m = 0; m < 2; m++)
            for (unsigned i = 0; i < 2; i++) {
                unsigned row = item.row0 + row_of(m, i);
                Pixel pixel = pixels.at(row);
                unsigned h = pixel.row * c.down.stride + c.down.parity, w = pixel.column * c.right.stride + c.right.parity;
                rows[m][i] = {((size_t)(pixel.n * d.h + h) * d.w + w) * d.c, row < pixels.count};
            }
        float *part = partial ? partial + item.split * ((size_t)d.n * d.h * d.w * d.c) : nullptr;
        store_rows<COLUMNS>(sums, rows, item.column0, d.c, dx, part, nullptr, false);
    }
};

template <int CHUNK> struct BackwardFilter {
    static constexpr int COLUMNS = WIDE;
    using A = Operand<ROWS, CHUNK, true>;
    using B = Operand<COLUMNS, 64, true>;

    const TensorMap *x, *dy;
    float *dw;
    bool accumulate;
    const ConvDims &d;
    unsigned splits;
    float *partial;
    Pixels pixels;
    Boxes boxes;
    unsigned across, items;

    __device__ BackwardFilter(const TensorMap *x, const TensorMap *dy, float *dw, unsigned accumulate, const ConvDims &d, unsigned splits,
                              float *partial)
        : x(x), dy(dy), dw(dw), accumulate(accumulate != 0), d(d), splits(splits), partial(splits > 1 ? partial : nullptr),
          pixels(d.n, d.p, d.q), boxes(d.r, d.s, d.c, CHUNK), across(tiles(d.k, COLUMNS)), items(tiles(boxes.count, A::BOXES) * across * splits) {}

    // Items of a split are neighbours: they read the same pixels.
    __device__ Item item(unsigned i) const {
        unsigned in_all = items / splits, tile = i % in_all, split = i / in_all, steps = tiles(pixels.count, DEPTH);
        return {tile / across * ROWS, tile % across * COLUMNS, split, part_begin(steps, split, splits), part_begin(steps, split + 1, splits)};
    }
    struct Filler {
        const BackwardFilter &of;
        unsigned column0;
        typename Boxes::Box at[A::BOXES];

        // Rows behind the last box are not stored: any box does.
        __device__ Filler(const BackwardFilter &of, const Item &item) : of(of), column0(item.column0) {
#pragma unroll
            for (int i = 0; i < A::BOXES; i++) at[i] = of.boxes.at(min(item.row0 / CHUNK + i, of.boxes.count - 1));
        }
        __device__ void fill(unsigned char *a, unsigned char *b, unsigned step, Mbarrier *bar) const {
            const ConvDims &d = of.d;
            Pixel first = of.pixels.at(step * DEPTH);
            int row = first.row * d.stride[0] - d.pad[0], column = first.column * d.stride[1] - d.pad[1];
#pragma unroll
            for (int i = 0; i < A::BOXES; i++)
                cp_async_bulk_tensor_im2col(a + i * A::BOX_BYTES, of.x, {(int)at[i].chunk * CHUNK, column, row, (int)first.n}, at[i].right, at[i].down, bar);
#pragma unroll
            for (int i = 0; i < B::BOXES; i++)
                cp_async_bulk_tensor<2>(b + i * B::BOX_BYTES, of.dy, {(int)column0 + i * B::CHUNK, (int)step * DEPTH}, bar);
        }
    };
    __device__ void store(const Item &item, const Sums<COLUMNS> &sums) const {
        const size_t each = (size_t)d.r * d.s * d.c; // values of a filter
        float *to = partial ? partial + item.split * d.k * each : dw;
#pragma unroll
        for (unsigned m = 0; m < 2; m++)
#pragma unroll
            for (unsigned i = 0; i < 2; i++) {
                unsigned row = item.row0 + row_of(m, i), box = row / CHUNK;
                auto [chunk, tap, down, right] = boxes.at(box);
                unsigned channel = chunk * CHUNK + row % CHUNK;
                if (box >= boxes.count || channel >= d.c) continue;
#pragma unroll
                for (unsigned c = 0; c < COLUMNS / 8; c++)
#pragma unroll
                    for (unsigned e = 0; e < 2; e++) {
                        unsigned filter = item.column0 + 8 * c + 2 * (threadIdx.x % 4) + e;
                        if (filter >= d.k) continue;
                        float *value = to + filter * each + (size_t)tap * d.c + channel;
                        float sum = sums[m][4 * c + 2 * i + e];
                        *value = accumulate && !partial ? *value + sum : sum;
                    }
            }
    }
};

// ---- the product ----

template <class Direction> __device__ __forceinline__ void multiply(const Direction &direction) {
    using A = typename Direction::A;
    using B = typename Direction::B;
    constexpr int COLUMNS = Direction::COLUMNS;
    DYNAMIC_SHARED(unsigned char, dynamic);
    Ring<A::BYTES + B::BYTES> ring(dynamic);

    if (threadIdx.x < 128) {
        if (threadIdx.x >= 32 || !elect_sync()) return;
        for (unsigned i = blockIdx.x; i < direction.items; i += gridDim.x) {
            const auto item = direction.item(i);
            const typename Direction::Filler filler(direction, item);
            for (unsigned step = item.step; step < item.end; step++, ring.advance())
                filler.fill(ring.at(), ring.at() + A::BYTES, step, ring.acquire());
        }
        return;
    }
    const unsigned row = (threadIdx.x / 128 - 1) * 128;
    for (unsigned i = blockIdx.x; i < direction.items; i += gridDim.x) {
        const auto item = direction.item(i);
        float sums[2][COLUMNS / 2];
        for (unsigned step = item.step; step < item.end; step++, ring.advance()) {
            ring.wait();
            const auto a = A::descriptor(ring.at()) + A::advance(row, 0), b = B::descriptor(ring.at() + A::BYTES);
            wgmma_fence();
#pragma unroll
            for (unsigned slice = 0; slice < DEPTH / SLICE; slice++)
#pragma unroll
                for (unsigned m = 0; m < 2; m++)
                    wgmma_bf16<COLUMNS, A::TRANSPOSED, B::TRANSPOSED>(sums[m], a + A::advance(64 * m, slice), b + B::advance(0, slice),
                                                                     slice > 0 || step > item.step);
            wgmma_commit_group();
            wgmma_wait_group<1>(); // those of the step before are done
            if (step > item.step) ring.release_last();
        }
        wgmma_wait_group<0>();
        ring.release_last();
#pragma unroll
        for (unsigned m = 0; m < 2; m++) wgmma_fence_operand(sums[m]);
        direction.store(item, sums);
    }
}

} // namespace conv_hopper

// Exports. Block 384; grid at most the items; dynamic shared memory 1024 + 4 (32768 + 128 columns) + 64, with 128 columns or
// 96. C and K are multiples of 8, no groups; a data gradient has at most 4 classes, each with pixels and taps. Tensors are
// whole and aligned to 16 bytes. With splits > 1 partial has room for splits x outputs and conv_reduce has to follow: bias,
// relu and accumulate are its affair then. The maps (src/backend/cuda/hopper.rs), with chunk 64 or 32 by the name's end:
//   x, dy of a class  im2col, chunk (of dy 64) channels by 256 pixels, of the filter gradient 64
//   w                 [K, R S, C], boxes of 128 filters (of the data gradient 64) by 1 by chunk (there 64, or 32 for 96 columns)
//   dy                [N P Q, K], boxes of 64 by 64
#define FORWARD(name, CHUNK)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(conv_hopper::THREADS, 1)                                                       \
        name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, bf16 *y, const float *bias, unsigned relu, \
             ConvDims d, unsigned splits, float *partial) {                                                                     \
        conv_hopper::multiply(conv_hopper::Forward<CHUNK>(&x, &w, y, bias, relu, d, splits, partial));                          \
    }
#define BACKWARD_DATA(name, COLUMNS)                                                                                            \
    extern "C" __global__ void __launch_bounds__(conv_hopper::THREADS, 1)                                                       \
        name(const __grid_constant__ conv_hopper::ClassMaps dy, const __grid_constant__ TensorMap w, bf16 *dx, ConvDims d,      \
             unsigned splits, float *partial) {                                                                                 \
        conv_hopper::multiply(conv_hopper::BackwardData<conv_hopper::COLUMNS>(dy, &w, dx, d, splits, partial));                 \
    }
#define BACKWARD_FILTER(name, CHUNK)                                                                                            \
    extern "C" __global__ void __launch_bounds__(conv_hopper::THREADS, 1)                                                       \
        name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dy, float *dw, unsigned accumulate,         \
             ConvDims d, unsigned splits, float *partial) {                                                                     \
        conv_hopper::multiply(conv_hopper::BackwardFilter<CHUNK>(&x, &dy, dw, accumulate, d, splits, partial));                 \
    }

FORWARD(conv_forward_hopper_64, 64)
FORWARD(conv_forward_hopper_32, 32)
BACKWARD_DATA(conv_backward_data_hopper, WIDE)
BACKWARD_DATA(conv_backward_data_hopper_medium, MEDIUM)
BACKWARD_FILTER(conv_backward_filter_hopper_64, 64)
BACKWARD_FILTER(conv_backward_filter_hopper_32, 32)

#undef FORWARD
#undef BACKWARD_DATA
#undef BACKWARD_FILTER

#endif
