// Convolution on Hopper's tensor cores (sm_90a): the products of conv_tensor.cu, in bf16, of one group, by `wgmma` on
// tiles that TMA copies.
//
//                    rows                               columns               depth, 64 a step
//   forward          N P Q, 256 a tile                  K, 128 a tile         R S C
//   backward data    pixels (n,h,w) of a class, 256     C, 128 or 96          taps (r,s) of the class, K
//   backward filter  K, 128                             R S C, 256            N P Q
//
// A block is three warpgroups. One thread of the first, the producer, has TMA fill the stages of a ring in shared
// memory; the other two, the consumers, multiply half of the rows each. A stage has two mbarriers: a phase of `full` ends
// when its bytes have come, one of `empty` when all warps of the consumers have read them.
//
// An item is a tile of the product and, of its depth, the part of a split. Block b takes items b, b + gridDim.x, ...,
// and there are usually as many blocks as multiprocessors. The ring runs on from one to the next: while results are written, the
// producer fetches for the next.
//
// TMA reads activations by im2col: pixel after pixel of the rows (or of the depth), each at the same tap of the filter,
// beyond the edge zeros. It copies boxes of 64 channels, or of 32 where more of 64 would be beyond the last.
#include "hopper.cuh"
#ifdef HOPPER

namespace conv_hopper {

// The same constants are in src/backend/cuda/hopper.rs.
constexpr int LONG = 256, WIDE = 128, MEDIUM = 96; // sides of tiles
constexpr int DEPTH = 64;
constexpr int STAGES = 4;
constexpr int MOST_CLASSES = 4;
constexpr int CONSUMERS = 2; // warpgroups
constexpr int THREADS = 128 * (1 + CONSUMERS);
constexpr int SLICE = 16; // of the depth, a product
// Of the 168 that a thread begins with, the producer gives the consumers what their sums, and addresses to write them to, take.
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

// ---- operands in shared memory ----

// A matrix of `EXTENT` rows (of A; or columns, of B) by DEPTH, as boxes that are `CHUNK` values wide: of the depth, or if
// TRANSPOSED of the rows.
template <int EXTENT_, int CHUNK_, bool TRANSPOSED_> struct Operand {
    static constexpr int EXTENT = EXTENT_, CHUNK = CHUNK_;
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

// What follows comes from the host (src/backend/cuda/hopper.rs), so that nothing is to be divided, or kept in registers.

// How a product is cut.
struct Cut {
    Divisor tiles, across; // all; those of a row of tiles, which are neighbours
    unsigned splits;
};

// A tile, and the steps of its depth: at least one.
struct Item {
    unsigned row_tile, column_tile, split;
    unsigned step, end;

    // Item split * tiles + tile, before its steps are known.
    __device__ __forceinline__ Item(const Cut &cut, unsigned i) {
        split = cut.tiles.quotient(i);
        unsigned tile = i - split * cut.tiles.divisor;
        row_tile = cut.across.quotient(tile), column_tile = tile - row_tile * cut.across.divisor;
    }
    // Those of the split, of so many: about equal parts.
    __device__ __forceinline__ void cut_depth(unsigned steps, unsigned splits) {
        unsigned each = steps / splits, longer = steps - splits * each;
        step = split * each + min(split, longer);
        end = step + each + (split < longer);
    }
};

// A pixel of images by its number.
struct Pixel { unsigned n, row, column; };
struct Pixels {
    unsigned count;
    Divisor per_image, across;

    __device__ __forceinline__ Pixel at(unsigned i) const {
        unsigned n = per_image.quotient(i), place = i - n * per_image.divisor, row = across.quotient(place);
        return {n, row, place - row * across.divisor};
    }
};

// Boxes of channels at taps, one after another: box i is chunk i % chunks of the channels at tap i / chunks, which is
// row `down` and column `right` of the taps.
struct Box { unsigned chunk, tap, down, right; };
struct Boxes {
    unsigned count;
    Divisor chunks, across;

    __device__ __forceinline__ Box at(unsigned i) const {
        unsigned tap = chunks.quotient(i), down = across.quotient(tap);
        return {i - tap * chunks.divisor, tap, down, tap - down * across.divisor};
    }
};

// Of a product whose rows or depth are pixels, and its depth or columns boxes.
struct Sizes {
    Cut cut;
    Pixels pixels;
    Boxes boxes;
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

// A thread's sums of a tile: of rows 64 m .. of its warpgroup's half [4 c + 2 i + e] is row 16 warp + lane / 4 + 8 i, column
// 8 c + 2 (lane % 4) + e.
template <int ROWS, int COLUMNS> using Sums = float[ROWS / 128][COLUMNS / 2];

template <int ROWS> __device__ __forceinline__ unsigned row_of(unsigned m, unsigned i) {
    unsigned thread = threadIdx.x % 128, consumer = threadIdx.x / 128 - 1;
    return consumer * (ROWS / CONSUMERS) + 64 * m + thread / 32 * 16 + thread % 32 / 4 + 8 * i;
}

// Writes the part from column0 on of rows of `columns` values, a multiple of eight: as it is to `partial`, or if that is
// null with bias (or null) and relu to y.
template <int COLUMNS>
__device__ __forceinline__ void store_rows(const Sums<LONG, COLUMNS> &sums, const Row (&rows)[2][2], unsigned column0, unsigned columns,
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
// Each says what an item is, has TMA copy a step of one to a stage (`Filler`, which the producer makes once an item), and
// stores an item's sums.

template <int CHUNK> struct Forward {
    static constexpr int COLUMNS = WIDE;
    using A = Operand<LONG, CHUNK, false>;
    using B = Operand<COLUMNS, CHUNK, false>;

    const TensorMap *x, *w;
    bf16 *y;
    const float *bias;
    bool relu;
    const ConvDims &d;
    const Cut &cut;
    const Pixels &pixels;
    const Boxes &boxes;
    float *partial;

    __device__ Item item(unsigned i) const {
        Item item(cut, i);
        item.cut_depth((boxes.count + A::BOXES - 1) / A::BOXES, cut.splits);
        return item;
    }
    struct Filler {
        const Forward &of;
        int filter;
        Pixel first;

        __device__ Filler(const Forward &of, const Item &item)
            : of(of), filter(item.column_tile * COLUMNS), first(of.pixels.at(item.row_tile * LONG)) {}
        __device__ void fill(unsigned char *a, unsigned char *b, unsigned step, Mbarrier *bar) const {
            const ConvDims &d = of.d;
            int row = first.row * d.stride[0] - d.pad[0], column = first.column * d.stride[1] - d.pad[1];
#pragma unroll
            for (int i = 0; i < A::BOXES; i++) {
                unsigned box = step * A::BOXES + i;
                auto [chunk, tap, down, right] = of.boxes.at(min(box, of.boxes.count - 1));
                // Behind the last box there are no channels: zeros.
                int channel = box < of.boxes.count ? chunk * CHUNK : d.c;
                cp_async_bulk_tensor_im2col(a + i * A::BOX_BYTES, of.x, {channel, column, row, (int)first.n}, right, down, bar);
                cp_async_bulk_tensor<3>(b + i * B::BOX_BYTES, of.w, {channel, (int)tap, filter}, bar);
            }
        }
    };
    __device__ void store(const Item &item, const Sums<LONG, COLUMNS> &sums) const {
        Row rows[2][2];
        for (unsigned m = 0; m < 2; m++)
            for (unsigned i = 0; i < 2; i++) {
                unsigned row = item.row_tile * LONG + row_of<LONG>(m, i);
                rows[m][i] = {(size_t)row * d.k, row < pixels.count};
            }
        float *part = cut.splits > 1 ? partial + item.split * (size_t)pixels.count * d.k : nullptr;
        store_rows<COLUMNS>(sums, rows, item.column_tile * COLUMNS, d.k, y, part, bias, relu);
    }
};

// Of a data gradient: the pixels of the image that meet the same taps, as ParityAxis of conv.cuh says it, without those that
// no class is without.
struct ClassAxis { unsigned parity, first, taps, base; };
struct Class {
    TensorMap dy;
    ClassAxis down, right;
    Pixels pixels;
    Boxes boxes;         // of K
    unsigned first_tile; // of rows
};
struct Classes {
    Class of[MOST_CLASSES];
    unsigned count;
};

template <int COLUMNS_> struct BackwardData {
    static constexpr int COLUMNS = COLUMNS_, FILTERS = 64;
    using A = Operand<LONG, FILTERS, false>;
    using B = Operand<COLUMNS, COLUMNS % 64 == 0 ? 64 : 32, true>;

    const Classes &classes;
    const TensorMap *w;
    bf16 *dx;
    const ConvDims &d;
    const Cut &cut;
    float *partial;

    struct ClassItem : Item { const Class &of; };
    __device__ ClassItem item(unsigned i) const {
        Item item(cut, i);
        unsigned number = 0;
        while (number + 1 < classes.count && item.row_tile >= classes.of[number + 1].first_tile) number++;
        const Class &of = classes.of[number];
        item.row_tile -= of.first_tile;
        item.cut_depth(of.boxes.count, cut.splits);
        return {item, of};
    }
    struct Filler {
        const BackwardData &of;
        const Class &c;
        int channel;
        Pixel first;

        __device__ Filler(const BackwardData &of, const ClassItem &item)
            : of(of), c(item.of), channel(item.column_tile * COLUMNS), first(c.pixels.at(item.row_tile * LONG)) {}
        __device__ void fill(unsigned char *a, unsigned char *b, unsigned step, Mbarrier *bar) const {
            auto [chunk, tap, down, right] = c.boxes.at(step);
            // The map's first place is that of the last tap.
            const unsigned last_down = c.down.taps - 1, last_right = c.right.taps - 1;
            int row = (int)(c.down.base + first.row) - (int)last_down, column = (int)(c.right.base + first.column) - (int)last_right;
            int place = (c.down.first + down * of.d.stride[0]) * of.d.s + c.right.first + right * of.d.stride[1];
            int filter = chunk * FILTERS;
            cp_async_bulk_tensor_im2col(a, &c.dy, {filter, column, row, (int)first.n}, last_right - right, last_down - down, bar);
#pragma unroll
            for (int i = 0; i < B::BOXES; i++)
                cp_async_bulk_tensor<3>(b + i * B::BOX_BYTES, of.w, {channel + i * B::CHUNK, place, filter}, bar);
        }
    };
    __device__ void store(const ClassItem &item, const Sums<LONG, COLUMNS> &sums) const {
        const Class &c = item.of;
        Row rows[2][2];
        for (unsigned m = 0; m < 2; m++)
            for (unsigned i = 0; i < 2; i++) {
                unsigned row = item.row_tile * LONG + row_of<LONG>(m, i);
                Pixel pixel = c.pixels.at(row);
                unsigned h = pixel.row * d.stride[0] + c.down.parity, w = pixel.column * d.stride[1] + c.right.parity;
                rows[m][i] = {((size_t)(pixel.n * d.h + h) * d.w + w) * d.c, row < c.pixels.count};
            }
        float *part = cut.splits > 1 ? partial + item.split * ((size_t)d.n * d.h * d.w * d.c) : nullptr;
        store_rows<COLUMNS>(sums, rows, item.column_tile * COLUMNS, d.c, dx, part, nullptr, false);
    }
};

template <int CHUNK> struct BackwardFilter {
    static constexpr int COLUMNS = LONG;
    using A = Operand<WIDE, 64, true>;
    using B = Operand<COLUMNS, CHUNK, true>;

    const TensorMap *x, *dy;
    float *dw;
    bool accumulate;
    const ConvDims &d;
    const Cut &cut;
    const Pixels &pixels;
    const Boxes &boxes;
    float *partial;

    __device__ Item item(unsigned i) const {
        Item item(cut, i);
        item.cut_depth((pixels.count + DEPTH - 1) / DEPTH, cut.splits);
        return item;
    }
    struct Filler {
        const BackwardFilter &of;
        int filter;
        Box at[B::BOXES];

        // Columns behind the last box are not stored: any box does.
        __device__ Filler(const BackwardFilter &of, const Item &item) : of(of), filter(item.row_tile * WIDE) {
#pragma unroll
            for (int i = 0; i < B::BOXES; i++) at[i] = of.boxes.at(min(item.column_tile * B::BOXES + i, of.boxes.count - 1));
        }
        __device__ void fill(unsigned char *a, unsigned char *b, unsigned step, Mbarrier *bar) const {
            const ConvDims &d = of.d;
            Pixel first = of.pixels.at(step * DEPTH);
            int row = first.row * d.stride[0] - d.pad[0], column = first.column * d.stride[1] - d.pad[1];
#pragma unroll
            for (int i = 0; i < A::BOXES; i++)
                cp_async_bulk_tensor<2>(a + i * A::BOX_BYTES, of.dy, {filter + i * A::CHUNK, (int)step * DEPTH}, bar);
#pragma unroll
            for (int i = 0; i < B::BOXES; i++)
                cp_async_bulk_tensor_im2col(b + i * B::BOX_BYTES, of.x, {(int)at[i].chunk * CHUNK, column, row, (int)first.n}, at[i].right, at[i].down, bar);
        }
    };
    __device__ void store(const Item &item, const Sums<WIDE, COLUMNS> &sums) const {
        using Pair = Pack<float, 2>;
        const size_t each = (size_t)d.r * d.s * d.c; // values of a filter
        float *to = cut.splits > 1 ? partial + item.split * d.k * each : dw;
        const bool add = accumulate && cut.splits == 1;
#pragma unroll
        for (unsigned b = 0; b < B::BOXES; b++) {
            unsigned box = item.column_tile * B::BOXES + b;
            if (box >= boxes.count) break;
            auto [chunk, tap, down, right] = boxes.at(box);
            unsigned channels = d.c - chunk * CHUNK; // from the box's first on, a multiple of eight
#pragma unroll
            for (unsigned i = 0; i < 2; i++) {
                unsigned filter = item.row_tile * WIDE + row_of<WIDE>(0, i);
                if (filter >= d.k) continue;
                float *first = to + filter * each + (size_t)tap * d.c + chunk * CHUNK + 2 * (threadIdx.x % 4);
                Pair old[CHUNK / 8] = {}; // all on their way at once
#pragma unroll
                for (unsigned c = 0; c < CHUNK / 8; c++)
                    if (add && 8 * c < channels) old[c] = *(const Pair *)(first + 8 * c);
#pragma unroll
                for (unsigned c = 0; c < CHUNK / 8; c++) {
                    const float *pair = &sums[0][4 * (b * CHUNK / 8 + c) + 2 * i];
                    if (8 * c < channels) *(Pair *)(first + 8 * c) = {old[c].of[0] + pair[0], old[c].of[1] + pair[1]};
                }
            }
        }
    }
};

// ---- the product ----

template <class Direction> __device__ __forceinline__ void multiply(const Direction &direction) {
    using A = typename Direction::A;
    using B = typename Direction::B;
    constexpr int ROWS = A::EXTENT, COLUMNS = B::EXTENT;
    DYNAMIC_SHARED(unsigned char, dynamic);
    Ring<A::BYTES + B::BYTES> ring(dynamic);
    const unsigned items = direction.cut.tiles.divisor * direction.cut.splits;

    if (threadIdx.x < 128) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x >= 32 || !elect_sync()) return;
        for (unsigned i = blockIdx.x; i < items; i += gridDim.x) {
            const auto item = direction.item(i);
            const typename Direction::Filler filler(direction, item);
            for (unsigned step = item.step; step < item.end; step++, ring.advance())
                filler.fill(ring.at(), ring.at() + A::BYTES, step, ring.acquire());
        }
        return;
    }
    setmaxnreg_inc<CONSUMER_REGISTERS>();
    const unsigned half = (threadIdx.x / 128 - 1) * (ROWS / CONSUMERS);
    for (unsigned i = blockIdx.x; i < items; i += gridDim.x) {
        const auto item = direction.item(i);
        Sums<ROWS, COLUMNS> sums;
        for (unsigned step = item.step; step < item.end; step++, ring.advance()) {
            ring.wait();
            const auto a = A::descriptor(ring.at()) + A::advance(half, 0), b = B::descriptor(ring.at() + A::BYTES);
            wgmma_fence();
#pragma unroll
            for (unsigned slice = 0; slice < DEPTH / SLICE; slice++)
#pragma unroll
                for (unsigned m = 0; m < ROWS / 128; m++)
                    wgmma_bf16<COLUMNS, A::TRANSPOSED, B::TRANSPOSED>(sums[m], a + A::advance(64 * m, slice), b + B::advance(0, slice),
                                                                     slice > 0 || step > item.step);
            wgmma_commit_group();
            wgmma_wait_group<1>(); // those of the step before are done
            if (step > item.step) ring.release_last();
        }
        wgmma_wait_group<0>();
        ring.release_last();
#pragma unroll
        for (unsigned m = 0; m < ROWS / 128; m++) wgmma_fence_operand(sums[m]);
        direction.store(item, sums);
    }
}

} // namespace conv_hopper

// Exports. Block 384; grid any, of use up to the items; dynamic shared memory 1024 + 4 stages of 16384 + 32768 bytes (with 96
// columns 12288 + 32768) + 64. C and K are multiples of 8, no groups; a data gradient has at most 4 classes, each with pixels
// and taps. Tensors are whole and aligned to 16 bytes. With several splits partial has room for splits x outputs and
// conv_reduce has to follow: bias, relu and accumulate are its affair then. The maps (src/backend/cuda/hopper.rs), with chunk
// 64 or 32 by the name's end:
//   x, dy of a class  im2col, chunk (of dy 64) channels by 256 pixels, for the filter gradient by 64
//   w                 [K, R S, C], boxes of 128 filters (for the data gradient 64) by 1 by chunk (there 64, or 32 for 96 columns)
//   dy                [N P Q, K], boxes of 64 by 64
#define FORWARD(name, CHUNK)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(conv_hopper::THREADS, 1)                                                       \
        name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, bf16 *y, const float *bias, unsigned relu, \
             const __grid_constant__ ConvDims d, const __grid_constant__ conv_hopper::Sizes sizes, float *partial) {            \
        conv_hopper::multiply(                                                                                                  \
            conv_hopper::Forward<CHUNK>{&x, &w, y, bias, relu != 0, d, sizes.cut, sizes.pixels, sizes.boxes, partial});         \
    }
#define BACKWARD_DATA(name, COLUMNS)                                                                                            \
    extern "C" __global__ void __launch_bounds__(conv_hopper::THREADS, 1)                                                       \
        name(const __grid_constant__ conv_hopper::Classes classes, const __grid_constant__ TensorMap w, bf16 *dx,               \
             const __grid_constant__ ConvDims d, const __grid_constant__ conv_hopper::Cut cut, float *partial) {                \
        conv_hopper::multiply(conv_hopper::BackwardData<conv_hopper::COLUMNS>{classes, &w, dx, d, cut, partial});               \
    }
#define BACKWARD_FILTER(name, CHUNK)                                                                                            \
    extern "C" __global__ void __launch_bounds__(conv_hopper::THREADS, 1)                                                       \
        name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dy, float *dw, unsigned accumulate,         \
             const __grid_constant__ ConvDims d, const __grid_constant__ conv_hopper::Sizes sizes, float *partial) {            \
        conv_hopper::multiply(                                                                                                  \
            conv_hopper::BackwardFilter<CHUNK>{&x, &dy, dw, accumulate != 0, d, sizes.cut, sizes.pixels, sizes.boxes, partial}); \
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
