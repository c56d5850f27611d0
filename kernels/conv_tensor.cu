// Convolution on tensor cores: bf16 operands, or f32 rounded to tf32; sums are always f32.
//
//   forward          y[n,p,q,k]  = sum over r, s, c of x[n,h,w,c] w[k,r,s,c]    (+ bias[k], relu)
//   backward data    dx[n,h,w,c] = sum over r, s, k of dy[n,p,q,k] w[k,r,s,c]
//   backward filter  dw[k,r,s,c] = sum over n, p, q of dy[n,p,q,k] x[n,h,w,c]   (+ dw)
//   with h = p stride - pad + r and w = q stride - pad + s; beyond the edge zeros are read.
//
// Each is a product of matrices A [rows, depth] and B [depth, columns] that are never written out:
// blocks copy pieces of x, w and dy into shared memory as if they were there.
//
//                    rows                          columns    depth
//   forward          N P Q                         K          R S C
//   backward data    pixels (n,h,w) of a class     C          taps (r,s) of the class, K
//   backward filter  K                             R S C      N P Q
//
// With groups C and K here are those of one group; its channels lie among those of all.
//
// Pixels with the same remainders of h and w by the stride meet the same taps: they are a class,
// with a product of its own.
//
// Every operand is described by a source, a matrix of `majors` rows whose `minors` columns are
// contiguous in memory, at least chunk by chunk (16 bytes). Depth runs along the minors (a plain
// tile) or along the majors (a transposed one).
//
// A product whose tiles are fewer than the machine has room for is split along its depth: split i
// writes partial[i * outputs + index], and conv_reduce (conv.cu) adds the splits in order. How
// often, src/backend/cuda/plan.rs says from the sizes alone.
//
// The first layer has kernels of its own at the end of this file.
#include "conv.cuh"
#include "mma.cuh"
#include "unpool.cuh"

namespace conv_tensor {

// The same constants are in src/backend/cuda/plan.rs.
constexpr int THREADS = 256;
constexpr int ROWS = 128;                           // of a block's tile
constexpr int WIDE = 128, MEDIUM = 96, NARROW = 32; // its columns
constexpr int DEPTH_BYTES = 128;                    // its depth: 64 values of bf16, 32 of tf32
constexpr int MOST_STAGES = 3; // or 2 where two blocks of 3 do not fit into a multiprocessor

// ---- operands ----

struct Bf16 {
    using T = bf16;
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                    unsigned b0, unsigned b1) {
        mma_bf16(d, a, b0, b1);
    }
};

struct Tf32 {
    using T = float;
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                    unsigned b0, unsigned b1) {
        mma_tf32(d, a, b0, b1);
    }
};

// A source says what it can of a major and of a minor alone, `major(i)` and `minor(j)`, so that
// this is worked out once for many values; `at` joins the two to an address, and says whether the
// value is inside: outside, the address is not to be read.

// A matrix in memory, [majors, minors]; its rows begin `pitch` apart.
template <class T> struct Matrix {
    const T *base;
    unsigned majors, minors, pitch;

    using Major = unsigned;
    struct Minor { const T *from; bool inside; };
    __device__ __forceinline__ Major major(unsigned i) const { return i; }
    __device__ __forceinline__ Minor minor(unsigned j) const { return {base + j, j < minors}; }
    __device__ __forceinline__ bool at(const T *&value, Major i, const Minor &j) const {
        value = j.from + (size_t)i * pitch;
        return i < majors && j.inside;
    }
    __device__ bool whole_chunks() const { return minors % (16 / sizeof(T)) == 0; }
};

// The windows of images [N, H, W, pitch], of C channels from `first` on: major (n * P + p) * Q + q at
// minor (i * S + j) * C + c is channel first + c of image n in row p * stride + origin + i * step,
// and the same of columns.
template <class T> struct Windows {
    static constexpr int OUTSIDE = -(1 << 30); // a row that no sum brings back into an image

    const T *base;
    unsigned h, w, pitch, first, majors, minors;
    Divisor per_image, across, per_tap_row, channels;
    unsigned stride[2];
    int origin[2], step;

    // What outputs of a convolution see of x.
    __device__ Windows(const T *x, const ConvDims &d, const Group &group)
        : base(x), h(d.h), w(d.w), pitch(d.c), first(group.first_c), majors(d.n * d.p * d.q),
          minors(d.r * d.s * group.c), per_image(divisor_of(d.p * d.q)), across(divisor_of(d.q)),
          per_tap_row(divisor_of(d.s * group.c)), channels(divisor_of(group.c)),
          stride{d.stride[0], d.stride[1]}, origin{-(int)d.pad[0], -(int)d.pad[1]}, step(1) {}
    // What inputs of a class see of dy.
    __device__ Windows(const T *dy, const ConvDims &d, const Group &group, const ParityAxis &down,
                       const ParityAxis &right)
        : base(dy), h(d.p), w(d.q), pitch(d.k), first(group.first_k),
          majors(d.n * down.pixels * right.pixels), minors(down.taps * right.taps * group.k),
          per_image(divisor_of(down.pixels * right.pixels)), across(divisor_of(right.pixels)),
          per_tap_row(divisor_of(right.taps * group.k)), channels(divisor_of(group.k)), stride{1, 1},
          origin{(int)down.base, (int)right.base}, step(-1) {}

    // Parts of a row, a column, and a pixel's index in the whole tensor.
    struct Major { int row, column, pixel; };
    struct Minor { int row, column; const T *from; };
    __device__ __forceinline__ Major major(unsigned i) const {
        unsigned n = per_image.quotient(i), place = i - n * per_image.divisor;
        unsigned p = across.quotient(place), q = place - p * across.divisor;
        int row = (int)(p * stride[0]) + origin[0], column = (int)(q * stride[1]) + origin[1];
        return {i < majors ? row : OUTSIDE, column, ((int)(n * h) + row) * (int)w + column};
    }
    __device__ __forceinline__ Minor minor(unsigned j) const {
        unsigned down = per_tap_row.quotient(j), rest = j - down * per_tap_row.divisor;
        unsigned right = channels.quotient(rest), channel = rest - right * channels.divisor;
        int row = (int)down * step, column = (int)right * step;
        const T *from = base + (ptrdiff_t)(row * (int)w + column) * (int)pitch + first + channel;
        return {j < minors ? row : OUTSIDE, column, from};
    }
    __device__ __forceinline__ bool at(const T *&value, const Major &i, const Minor &j) const {
        value = j.from + (ptrdiff_t)i.pixel * (int)pitch;
        return (unsigned)(i.row + j.row) < h && (unsigned)(i.column + j.column) < w;
    }
    __device__ bool whole_chunks() const { return channels.divisor % (16 / sizeof(T)) == 0; }
};

// Filters w [K, R, S, C] by the taps of one class: major (i * across + j) * K + k at minor c is
// channel c of filter k at tap (first + i * stride, first + j * stride).
template <class T> struct Taps {
    const T *base;
    unsigned k, r, s, c, majors;
    Divisor filters, across;
    unsigned first[2], stride[2];

    __device__ Taps(const T *w, const ConvDims &d, const Group &group, const ParityAxis &down,
                    const ParityAxis &right)
        : base(w + group.weights), k(group.k), r(d.r), s(d.s), c(group.c),
          majors(down.taps * right.taps * group.k), filters(divisor_of(group.k)),
          across(divisor_of(right.taps)), first{down.first, right.first},
          stride{d.stride[0], d.stride[1]} {}

    // place: (k * R + r) * S + s
    struct Major { int place; bool inside; };
    struct Minor { const T *from; bool inside; };
    __device__ __forceinline__ Major major(unsigned m) const {
        unsigned tap = filters.quotient(m), filter = m - tap * k;
        unsigned i = across.quotient(tap), j = tap - i * across.divisor;
        unsigned place = (filter * r + first[0] + i * stride[0]) * s + first[1] + j * stride[1];
        return {(int)place, m < majors};
    }
    __device__ __forceinline__ Minor minor(unsigned j) const { return {base + j, j < c}; }
    __device__ __forceinline__ bool at(const T *&value, const Major &i, const Minor &j) const {
        value = j.from + (ptrdiff_t)i.place * (int)c;
        return i.inside && j.inside;
    }
    __device__ bool whole_chunks() const { return c % (16 / sizeof(T)) == 0; }
};

// ---- tiles in shared memory ----

// A piece of a source in shared memory: `MAJORS` rows of `MINORS` values, of which the 16-byte
// chunks have `SLOTS` to be in. Which one changes with the number of the row, so that neither
// copies nor fragments meet in a bank.
template <class T_, bool TRANSPOSED_, int WIDTH>
struct Tile {
    using T = T_;
    static constexpr bool TRANSPOSED = TRANSPOSED_;
    static constexpr int DEPTH = DEPTH_BYTES / sizeof(T);
    static constexpr int MAJORS = TRANSPOSED ? DEPTH : WIDTH;
    static constexpr int MINORS = TRANSPOSED ? WIDTH : DEPTH;
    static constexpr int CHUNK = 16 / sizeof(T);
    static constexpr int CHUNKS = MINORS / CHUNK;
    static constexpr int SLOTS = CHUNKS <= 8 ? 8 : CHUNKS <= 16 ? 16 : 32;
    static constexpr int PITCH = SLOTS * 16;
    static constexpr int BYTES = MAJORS * PITCH;

    static __device__ __forceinline__ unsigned offset(unsigned major, unsigned chunk) {
        // Fragments of transposed f32 are single words, four rows by eight columns at a time.
        unsigned turn = TRANSPOSED && sizeof(T) == 4 ? 2 * (major % 4) : major % 8;
        return major * PITCH + (chunk ^ turn) * 16;
    }
};

template <class T> struct alignas(16) Chunk { T v[16 / sizeof(T)]; };

// A thread's share of filling tiles from a source: the same chunk of every STEP-th major; none
// where the tile has fewer chunks than slots. If not `WHOLE`, the source's runs may be no whole
// chunks, which are then gathered value by value.
template <class Tile, class Source, bool WHOLE>
struct Loader {
    using T = typename Tile::T;
    static constexpr int STEP = THREADS / Tile::SLOTS;
    static constexpr int COPIES = Tile::MAJORS / STEP;
    static_assert(Tile::MAJORS % STEP == 0, "every thread copies as much");

    const Source &source;
    unsigned first; // row or column of the product where the tile begins
    unsigned major0, chunk;
    bool by_chunk;
    typename Source::Major majors[Tile::TRANSPOSED ? 1 : COPIES];
    typename Source::Minor minor;

    __device__ __forceinline__ Loader(const Source &source, unsigned first)
        : source(source), first(first), major0(threadIdx.x / Tile::SLOTS),
          chunk(threadIdx.x % Tile::SLOTS), by_chunk(WHOLE || source.whole_chunks()) {
        if (Tile::TRANSPOSED) {
            minor = source.minor(first + chunk * Tile::CHUNK);
        } else {
#pragma unroll
            for (int i = 0; i < COPIES; i++) majors[i] = source.major(first + major0 + i * STEP);
        }
    }

    // Begins to fill `tile` with what lies at `depth` and behind it.
    __device__ __forceinline__ void fill(unsigned char *tile, unsigned depth) {
        if (Tile::CHUNKS < Tile::SLOTS && chunk >= Tile::CHUNKS) return;
        if (!WHOLE && !by_chunk) return gather(tile, depth);
        if (!Tile::TRANSPOSED) minor = source.minor(depth + chunk * Tile::CHUNK);
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            unsigned major = major0 + i * STEP;
            if (Tile::TRANSPOSED) majors[0] = source.major(depth + major);
            const T *value;
            bool inside = source.at(value, majors[Tile::TRANSPOSED ? 0 : i], minor);
            copy_16(tile + Tile::offset(major, chunk), value, inside);
        }
    }

    // The same without whole chunks: ordinary loads, those of a chunk all on their way at once.
    __device__ __forceinline__ void gather(unsigned char *tile, unsigned depth) const {
        unsigned column = (Tile::TRANSPOSED ? first : depth) + chunk * Tile::CHUNK;
#pragma unroll 1
        for (int i = 0; i < COPIES; i++) {
            unsigned major = major0 + i * STEP;
            auto row = source.major((Tile::TRANSPOSED ? depth : first) + major);
            Chunk<T> values;
#pragma unroll
            for (int e = 0; e < Tile::CHUNK; e++) {
                const T *value;
                bool inside = source.at(value, row, source.minor(column + e));
                values.v[e] = inside ? *value : T{};
            }
            *(Chunk<T> *)(tile + Tile::offset(major, chunk)) = values;
        }
    }
};

// A lane's part of 16 rows (of A; or columns, of B) by slice `slice` of the tile's depth, 32 bytes:
// r[i + 2 j] (of B r[2 i + j], so that what one product takes is side by side) is rows first + 8 i
// and on, half j.
template <class Tile, bool OF_B>
__device__ __forceinline__ void load_fragment(unsigned (&r)[4], const unsigned char *tile,
                                              unsigned first, unsigned slice) {
    unsigned lane = threadIdx.x % 32;
    // The matrix whose row this lane points at.
    unsigned i = OF_B ? lane / 16 : lane / 8 % 2, j = OF_B ? lane / 8 % 2 : lane / 16;
    if (!Tile::TRANSPOSED) {
        load_matrices(r, tile + Tile::offset(first + 8 * i + lane % 8, 2 * slice + j));
    } else if (sizeof(typename Tile::T) == 2) {
        unsigned depth = 16 * slice + 8 * j + lane % 8;
        load_matrices_transposed(r, tile + Tile::offset(depth, first / 8 + i));
    } else {
        unsigned g = lane / 4, t = lane % 4;
#pragma unroll
        for (int m = 0; m < 4; m++) {
            unsigned row = first + 8 * (OF_B ? m / 2 : m % 2) + g;
            unsigned depth = 8 * slice + 4 * (OF_B ? m % 2 : m / 2) + t;
            r[m] = *(const unsigned *)(tile + Tile::offset(depth, row / 4) + row % 4 * 4);
        }
    }
    if (sizeof(typename Tile::T) == 4) {
#pragma unroll
        for (int m = 0; m < 4; m++) r[m] = round_tf32(r[m]);
    }
}

// ---- results ----

template <class T> struct alignas(4 * sizeof(T)) Quad { T v[4]; };

// Where a product goes: rows of `columns` values, into y, or as they are into this split's part of
// the partial sums, which lie as y does.
template <class T> struct Output {
    T *y;
    float *partial;    // null if there is one split
    const float *bias; // [columns] or null
    bool relu, accumulate;
    unsigned rows, columns;
    size_t first;      // value of y, and bias, of a group

    // Up to four sums of one row, which begins at value `start` of the group's part of y.
    __device__ __forceinline__ void store(size_t start, unsigned column, Quad<float> sums) const {
        size_t index = first + start + column;
        if (columns % 4 == 0) {
            if (partial) {
                *(Quad<float> *)(partial + index) = sums;
                return;
            }
            Quad<T> old = {};
            if (accumulate) old = *(const Quad<T> *)(y + index);
            Quad<T> out;
#pragma unroll
            for (int e = 0; e < 4; e++) out.v[e] = finish(sums.v[e], old.v[e], column + e);
            *(Quad<T> *)(y + index) = out;
        } else {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (column + e >= columns) continue;
                if (partial) partial[index + e] = sums.v[e];
                else y[index + e] = finish(sums.v[e], accumulate ? y[index + e] : T{}, column + e);
            }
        }
    }
    __device__ __forceinline__ T finish(float sum, T old, unsigned column) const {
        if (accumulate) sum += widen(old);
        if (bias) sum += bias[first + column];
        if (relu && sum < 0) sum = 0;
        return narrow<T>(sum);
    }
};

template <int WIDTH> constexpr int SLAB = 16 * (WIDTH + 8); // floats

// Writes a warp's 16 rows of `WIDTH` sums, by way of a slab of shared memory of its own, so that
// lanes write runs. `start(row)` is where a row begins in y, counted in values.
template <int WIDTH, class T, class Start>
__device__ __forceinline__ void store_rows(const Output<T> &output, float *slab,
                                           const float (&sums)[WIDTH / 8][4], unsigned row0,
                                           unsigned column0, Start start) {
    constexpr int PITCH = WIDTH + 8;
    unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp(); // the rows before these have been read
#pragma unroll
    for (int j = 0; j < WIDTH / 8; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float *pair = slab + (g + 8 * i) * PITCH + 8 * j + 2 * t;
            pair[0] = sums[j][2 * i];
            pair[1] = sums[j][2 * i + 1];
        }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * WIDTH / 128; i++) {
        unsigned quad = lane + 32 * i, row = quad / (WIDTH / 4), column = quad % (WIDTH / 4) * 4;
        const float *four = slab + row * PITCH + column;
        if (row0 + row < output.rows && column0 + column < output.columns)
            output.store(start(row0 + row), column0 + column, *(const Quad<float> *)four);
    }
}

// ---- the product ----

// Where part `i` of `parts` about equal parts of `count` begins.
__device__ __forceinline__ unsigned part_begin(unsigned count, unsigned i, unsigned parts) {
    unsigned each = count / parts;
    return i * each + min(i, count - parts * each);
}

// Rows of y that lie one behind the other.
struct Rows {
    unsigned columns;
    __device__ __forceinline__ size_t operator()(unsigned row) const {
        return (size_t)row * columns;
    }
};

// One tile of a product, and of its depth the part of this split. `COLUMNS` wide, by 8 warps: 2 x 4
// if wide, else 4 x 2. `stages` steps of the depth are on their way at a time, 2 or 3.
template <class Math, int COLUMNS, bool WHOLE, bool A_TRANSPOSED, bool B_TRANSPOSED, class A,
          class B, class T, class Start>
__device__ __forceinline__ void multiply(const Output<T> &output, const A &a_source,
                                         const B &b_source, unsigned depth, unsigned row_tile,
                                         unsigned column_tile, unsigned splits, unsigned stages,
                                         Start start) {
    using TileA = Tile<typename Math::T, A_TRANSPOSED, ROWS>;
    using TileB = Tile<typename Math::T, B_TRANSPOSED, COLUMNS>;
    constexpr int STAGE = TileA::BYTES + TileB::BYTES;
    constexpr int WARPS_DOWN = COLUMNS == WIDE ? 2 : 4, WARPS_ACROSS = THREADS / 32 / WARPS_DOWN;
    constexpr int WARP_ROWS = ROWS / WARPS_DOWN, WARP_COLUMNS = COLUMNS / WARPS_ACROSS;
    DYNAMIC_SHARED(unsigned char, shared);

    unsigned steps = (depth + TileA::DEPTH - 1) / TileA::DEPTH;
    unsigned step = part_begin(steps, blockIdx.z, splits);
    unsigned end = part_begin(steps, blockIdx.z + 1, splits);

    Loader<TileA, A, WHOLE> load_a(a_source, row_tile * ROWS);
    Loader<TileB, B, WHOLE> load_b(b_source, column_tile * COLUMNS);
    auto fill = [&](unsigned step, unsigned stage) {
        unsigned char *tile = shared + stage * STAGE;
        if (step < end) {
            load_a.fill(tile, step * TileA::DEPTH);
            load_b.fill(tile + TileA::BYTES, step * TileA::DEPTH);
        }
        commit_copies();
    };

    unsigned warp = threadIdx.x / 32;
    unsigned warp_row = warp / WARPS_ACROSS * WARP_ROWS;
    unsigned warp_column = warp % WARPS_ACROSS * WARP_COLUMNS;
    float sums[WARP_ROWS / 16][WARP_COLUMNS / 8][4] = {};

    for (unsigned i = 0; i + 1 < stages; i++) fill(step + i, i);
    unsigned stage = 0;
    for (; step < end; step++) {
        if (stages == MOST_STAGES) wait_copies<MOST_STAGES - 2>();
        else wait_copies<0>();
        // Now everyone's copies of this step are here, and nobody reads the step before it any
        // more, whose stage is filled next.
        __syncthreads();
        fill(step + stages - 1, stage == 0 ? stages - 1 : stage - 1);
        const unsigned char *tile = shared + stage * STAGE;
#pragma unroll
        for (int slice = 0; slice < DEPTH_BYTES / 32; slice++) {
            unsigned a[WARP_ROWS / 16][4], b[WARP_COLUMNS / 16][4];
#pragma unroll
            for (int i = 0; i < WARP_ROWS / 16; i++)
                load_fragment<TileA, false>(a[i], tile, warp_row + 16 * i, slice);
#pragma unroll
            for (int j = 0; j < WARP_COLUMNS / 16; j++)
                load_fragment<TileB, true>(b[j], tile + TileA::BYTES, warp_column + 16 * j, slice);
#pragma unroll
            for (int i = 0; i < WARP_ROWS / 16; i++)
#pragma unroll
                for (int j = 0; j < WARP_COLUMNS / 8; j++)
                    Math::multiply(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
        stage = stage == stages - 1 ? 0 : stage + 1;
    }
    wait_copies<0>();
    __syncthreads(); // all copies have landed: the stages' memory becomes the warps' slabs

    float *slab = (float *)shared + warp * SLAB<WARP_COLUMNS>;
#pragma unroll
    for (int i = 0; i < WARP_ROWS / 16; i++)
        store_rows<WARP_COLUMNS>(output, slab, sums[i], row_tile * ROWS + warp_row + 16 * i,
                                 column_tile * COLUMNS + warp_column, start);
}

// Where this block's split puts its sums, if there are several.
__device__ __forceinline__ float *part_of(float *partial, size_t outputs, unsigned splits) {
    return splits > 1 ? partial + blockIdx.z * outputs : nullptr;
}

// x of the grid: tiles of columns fastest, then tiles of rows; y: groups; z: splits.

template <class Math, class T, int COLUMNS, bool WHOLE>
__device__ __forceinline__ void forward(T *y, const typename Math::T *x, const typename Math::T *w,
                                        const float *bias, unsigned relu, const ConvDims &d,
                                        const OfGroup &sizes, unsigned splits, float *partial,
                                        unsigned stages) {
    Group group(d, sizes, blockIdx.y);
    Windows<typename Math::T> windows(x, d, group);
    unsigned rows = windows.majors, depth = windows.minors, columns = group.k;
    Matrix<typename Math::T> filters{w + group.weights, columns, depth, depth};
    float *part = part_of(partial, (size_t)rows * d.k, splits);
    Output<T> output{y, part, bias, relu != 0, false, rows, columns, group.first_k};
    unsigned across = (columns + COLUMNS - 1) / COLUMNS;
    multiply<Math, COLUMNS, WHOLE, false, false>(output, windows, filters, depth,
                                                 blockIdx.x / across, blockIdx.x % across, splits,
                                                 stages, Rows{d.k});
}

// x of the grid: tiles of columns fastest, then classes, of which neighbours read the same part of
// dy, then tiles of rows. A class of fewer rows than the largest leaves its last blocks idle.
template <class Math, int COLUMNS, bool WHOLE>
__device__ __forceinline__ void backward_data(typename Math::T *dx, const typename Math::T *dy,
                                              const typename Math::T *w, const ConvDims &d,
                                              const OfGroup &sizes, unsigned splits,
                                              float *partial, unsigned stages) {
    using T = typename Math::T;
    Group group(d, sizes, blockIdx.y);
    unsigned across = (group.c + COLUMNS - 1) / COLUMNS, classes = d.stride[0] * d.stride[1];
    unsigned row_tile = blockIdx.x / across / classes, remainder = blockIdx.x / across % classes;
    unsigned top = remainder / d.stride[1], left = remainder % d.stride[1];
    ParityAxis down(top, d.stride[0], d.pad[0], d.h, d.r);
    ParityAxis right(left, d.stride[1], d.pad[1], d.w, d.s);
    Windows<T> windows(dy, d, group, down, right);
    Taps<T> taps(w, d, group, down, right);
    if (row_tile * ROWS >= windows.majors) return;

    size_t outputs = (size_t)d.n * d.h * d.w * d.c;
    float *part = part_of(partial, outputs, splits);
    Output<T> output{dx, part, nullptr, false, false, windows.majors, group.c, group.first_c};
    auto start = [&](unsigned row) {
        unsigned n = windows.per_image.quotient(row), place = row - n * windows.per_image.divisor;
        unsigned i = windows.across.quotient(place), j = place - i * windows.across.divisor;
        unsigned h = i * d.stride[0] + top, w = j * d.stride[1] + left;
        return ((size_t)(n * d.h + h) * d.w + w) * d.c;
    };
    multiply<Math, COLUMNS, WHOLE, false, true>(output, windows, taps, taps.majors, row_tile,
                                                blockIdx.x % across, splits, stages, start);
}

template <class Math, bool WHOLE>
__device__ __forceinline__ void backward_filter(float *dw, const typename Math::T *dy,
                                                const typename Math::T *x, unsigned accumulate,
                                                const ConvDims &d, const OfGroup &sizes,
                                                unsigned splits, float *partial, unsigned stages) {
    Group group(d, sizes, blockIdx.y);
    Windows<typename Math::T> windows(x, d, group);
    unsigned rows = group.k, columns = windows.minors, depth = windows.majors;
    Matrix<typename Math::T> gradients{dy + group.first_k, depth, rows, d.k};
    float *part = part_of(partial, (size_t)d.k * columns, splits);
    Output<float> output{dw, part, nullptr, false, accumulate != 0, rows, columns, group.weights};
    unsigned across = (columns + WIDE - 1) / WIDE;
    multiply<Math, WIDE, WHOLE, true, true>(output, gradients, windows, depth, blockIdx.x / across,
                                            blockIdx.x % across, splits, stages, Rows{columns});
}

// ---- the first layer ----

// An image of three channels gives runs of three values, which no copy of 16 bytes fits. So a block
// keeps the part of the image under a tile of outputs in shared memory, with a fourth channel of
// zeros, and reads fragments straight from there: the depth of a filter row is S pixels, filled up
// with zero weights to `padded` = 8 or 12 pixels. An image holding a NaN spreads it that far.
//
// Values are rounded to tf32 on their way into shared memory.

constexpr int FIRST_FILTERS = 48;                     // of a block
constexpr int FIRST_ACROSS = 16;                      // columns of outputs of a tile,
constexpr int FIRST_DOWN = 16, FIRST_FILTER_DOWN = 8; // rows: forward and filter gradient
constexpr int FIRST_PITCH = FIRST_FILTERS + 8;        // of dy's tile, values

// Squares of 2 x 2 of that tile, and windows of a pooling that cover them: in each row and column one more.
constexpr int SQUARES_DOWN = FIRST_FILTER_DOWN / 2, SQUARES_ACROSS = FIRST_ACROSS / 2;
constexpr int WINDOWS_ACROSS = SQUARES_ACROSS + 1, WINDOWS = (SQUARES_DOWN + 1) * WINDOWS_ACROSS;

__device__ __forceinline__ bf16 rounded(bf16 value) { return value; }
__device__ __forceinline__ float rounded(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    bits = round_tf32(bits);
    memcpy(&value, &bits, 4);
    return value;
}

// The part of x [N, H, W, 3] under tiles of outputs, `DOWN` x FIRST_ACROSS of them.
//
// Where groups of four pixels are whole in memory (W and the padding are multiples of four), a group
// is three wide loads, and a thread has its first AHEAD groups of the next tile on their way, in
// registers, while this one is multiplied.
template <class T, int DOWN, int AHEAD>
struct Patch {
    // Twelve values of four pixels, as they lie in memory: words, since each value would take a register.
    using Words = Pack<unsigned, sizeof(T)>;
    struct Group { Words of[3]; };

    ConvDims d;
    unsigned padded, rows, columns, tiles; // columns of a multiple of four
    Divisor per_row, across, per_image;
    unsigned n, p, q; // the image of the tile that was begun last, and its first output
    bool wide;
    Group ahead[AHEAD ? AHEAD : 1];

    __device__ explicit Patch(const ConvDims &d)
        : d(d), padded((d.s + 3) / 4 * 4), rows((DOWN - 1) * d.stride[0] + d.r),
          columns(((FIRST_ACROSS - 1) * d.stride[1] + padded + 3) / 4 * 4),
          across(divisor_of((d.q + FIRST_ACROSS - 1) / FIRST_ACROSS)),
          per_image(divisor_of((d.p + DOWN - 1) / DOWN * across.divisor)),
          wide(d.w % 4 == 0 && d.pad[1] % 4 == 0) {
        per_row = divisor_of(wide ? columns / 4 : columns);
        tiles = d.n * per_image.divisor;
    }

    // Chooses a tile.
    __device__ __forceinline__ void choose(unsigned tile) {
        n = per_image.quotient(tile);
        unsigned place = tile - n * per_image.divisor, down = across.quotient(place);
        p = down * DOWN, q = (place - down * across.divisor) * FIRST_ACROSS;
    }

    // The same, and begins to read it.
    __device__ __forceinline__ void begin(const T *x, unsigned tile) {
        choose(tile);
        if (!wide) return;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) ahead[i] = group(x, threadIdx.x + i * blockDim.x);
    }

    // Writes the tile to shared memory, `pixels` [rows, columns].
    __device__ __forceinline__ void finish(const T *x, Quad<T> *pixels) const {
        if (!wide) return one_by_one(x, pixels);
        unsigned groups = rows * per_row.divisor;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            unsigned place = threadIdx.x + i * blockDim.x;
            if (place < groups) spread(pixels + 4 * place, ahead[i]);
        }
        for (unsigned place = threadIdx.x + AHEAD * blockDim.x; place < groups; place += blockDim.x)
            spread(pixels + 4 * place, group(x, place));
    }

    // Four pixels: group `place` of the patch, zeros beyond the image's edges.
    __device__ __forceinline__ Group group(const T *x, unsigned place) const {
        unsigned row = per_row.quotient(place);
        int h = (int)(p * d.stride[0] + row) - (int)d.pad[0];
        int w = (int)(q * d.stride[1] + 4 * (place - row * per_row.divisor)) - (int)d.pad[1];
        Group values = {};
        if (row >= rows || (unsigned)h >= d.h || (unsigned)w >= d.w) return values;
        const T *from = x + ((size_t)(n * d.h + h) * d.w + w) * 3;
#pragma unroll
        for (int i = 0; i < 3; i++) values.of[i] = *(const Words *)(from + 4 * i);
        return values;
    }

    static __device__ __forceinline__ void spread(Quad<T> *pixels, const Group &group) {
        T values[12];
        memcpy(values, &group, sizeof values);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            Quad<T> pixel = {};
#pragma unroll
            for (int c = 0; c < 3; c++)
                pixel.v[c] = rounded(values[3 * i + c]);
            pixels[i] = pixel;
        }
    }

    __device__ void one_by_one(const T *x, Quad<T> *pixels) const {
        for (unsigned i = threadIdx.x; i < rows * columns; i += blockDim.x) {
            unsigned row = per_row.quotient(i);
            int h = (int)(p * d.stride[0] + row) - (int)d.pad[0];
            int w = (int)(q * d.stride[1] + i - row * columns) - (int)d.pad[1];
            Quad<T> pixel = {};
            if ((unsigned)h < d.h && (unsigned)w < d.w) {
                const T *from = x + ((size_t)(n * d.h + h) * d.w + w) * 3;
#pragma unroll
                for (int c = 0; c < 3; c++) pixel.v[c] = rounded(from[c]);
            }
            pixels[i] = pixel;
        }
    }

    // Where output (i, j) of the tile begins to read row r of the filter.
    __device__ __forceinline__ unsigned window(unsigned i, unsigned j, unsigned r) const {
        return (i * d.stride[0] + r) * columns + j * d.stride[1];
    }
};

// A warp's part of a tile are two rows of outputs by all of the block's filters.
template <class Math>
__device__ __forceinline__ void forward_first(typename Math::T *y, const typename Math::T *x,
                                              const typename Math::T *w, const float *bias,
                                              unsigned relu, const ConvDims &d) {
    using T = typename Math::T;
    DYNAMIC_SHARED(unsigned char, shared);
    unsigned padded = (d.s + 3) / 4 * 4, row_bytes = padded * sizeof(Quad<T>);
    unsigned pitch = d.r * row_bytes + 16; // an odd number of chunks: eight filters meet in no bank
    Quad<T> *pixels = (Quad<T> *)(shared + FIRST_FILTERS * pitch);
    Patch<T, FIRST_DOWN, sizeof(T) == 2 ? 2 : 0> patch(d); // f32 takes twice the registers
    patch.begin(x, blockIdx.x);

    unsigned filter0 = blockIdx.y * FIRST_FILTERS;
    for (unsigned i = threadIdx.x; i < FIRST_FILTERS * d.r * padded; i += THREADS) {
        unsigned s = i % padded, r = i / padded % d.r, k = i / padded / d.r;
        Quad<T> weights = {};
        if (s < d.s && filter0 + k < d.k) {
#pragma unroll
            for (int c = 0; c < 3; c++)
                weights.v[c] = rounded(w[(((filter0 + k) * d.r + r) * d.s + s) * 3 + c]);
        }
        *(Quad<T> *)(shared + k * pitch + r * row_bytes + s * sizeof(Quad<T>)) = weights;
    }

    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned char *filter = shared + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 16;
    for (unsigned tile = blockIdx.x; tile < patch.tiles; tile += gridDim.x) {
        patch.finish(x, pixels);
        unsigned n = patch.n, first_p = patch.p, first_q = patch.q;
        __syncthreads();
        if (tile + gridDim.x < patch.tiles) patch.begin(x, tile + gridDim.x);
        float sums[2][FIRST_FILTERS / 8][4] = {};
#pragma unroll 1
        for (unsigned r = 0; r < d.r; r++) {
            const unsigned char *window[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const Quad<T> *begin = pixels + patch.window(2 * warp + i, lane % 16, r);
                window[i] = (const unsigned char *)begin + lane / 16 * 16;
            }
#pragma unroll 2
            for (unsigned byte = 0; byte < row_bytes; byte += 32) {
                unsigned a[2][4], b[FIRST_FILTERS / 16][4];
#pragma unroll
                for (int i = 0; i < 2; i++) load_matrices(a[i], window[i] + byte);
#pragma unroll
                for (int j = 0; j < FIRST_FILTERS / 16; j++)
                    load_matrices(b[j], filter + 16 * j * pitch + r * row_bytes + byte);
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int j = 0; j < FIRST_FILTERS / 8; j++)
                        Math::multiply(sums[i][j], a[i], b[j / 2][j % 2 * 2],
                                       b[j / 2][j % 2 * 2 + 1]);
            }
        }
        __syncthreads(); // the patch's memory becomes the warps' slabs
        float *slab = (float *)pixels + warp * SLAB<FIRST_FILTERS>;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unsigned p = first_p + 2 * warp + i;
            // Rows of the product are columns of y: of 16, those that there are.
            T *row = y + ((size_t)(n * d.p + p) * d.q + first_q) * d.k;
            unsigned rows = p < d.p ? d.q - first_q : 0;
            Output<T> output{row, nullptr, bias, relu != 0, false, rows, d.k, 0};
            store_rows<FIRST_FILTERS>(output, slab, sums[i], 0, filter0, Rows{d.k});
        }
        __syncthreads(); // and a patch again
    }
}

// Begins to copy the windows that cover the tile of dy at (p, q) of image n: of dy pooled and of its
// switches [WINDOWS, FIRST_FILTERS] each. Where there is no window, zeros: they add nothing.
template <class T>
__device__ __forceinline__ void copy_windows(unsigned char *to, const T *dy,
                                             const unsigned char *switches, const PoolDims &d,
                                             unsigned n, unsigned p, unsigned q, unsigned filter0) {
    constexpr unsigned PACKS = FIRST_FILTERS / 8;
    unsigned char *winners = to + WINDOWS * FIRST_FILTERS * sizeof(T);
    // The windows before the tile's own: none where this is below zero.
    unsigned row0 = (p + d.pad[0]) / 2 - 1, column0 = (q + d.pad[1]) / 2 - 1;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < WINDOWS * PACKS; i += blockDim.x) {
        unsigned window = i / PACKS, k = filter0 + i % PACKS * 8;
        unsigned row = row0 + window / WINDOWS_ACROSS, column = column0 + window % WINDOWS_ACROSS;
        bool inside = row < d.p && column < d.q && k < d.c;
        size_t place = ((size_t)(n * d.p + row) * d.q + column) * d.c + k;
#pragma unroll
        for (unsigned byte = 0; byte < 8 * sizeof(T); byte += 16)
            copy_16(to + 8 * sizeof(T) * i + byte, (const unsigned char *)(dy + place) + byte, inside);
        copy_8(winners + 8 * i, switches + place, inside);
    }
}

// The tile of dy that the maxpool_backward of these windows would give.
template <class T>
__device__ __forceinline__ void unpool_tile(T *gradients, const unsigned char *windows) {
    constexpr unsigned N = 4, PACKS = FIRST_FILTERS / N; // more channels take too many registers
    const T *values = (const T *)windows;
    const unsigned char *winners = windows + WINDOWS * FIRST_FILTERS * sizeof(T);
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < SQUARES_DOWN * SQUARES_ACROSS * PACKS; i += blockDim.x) {
        unsigned square = i / PACKS, k = i % PACKS * N;
        unsigned row = square / SQUARES_ACROSS, column = square % SQUARES_ACROSS;
        float sums[2][2][N] = {};
#pragma unroll
        for (unsigned window = 0; window < 4; window++) {
            unsigned up = window < 2, left = window % 2 == 0;
            unsigned place = (row + 1 - up) * WINDOWS_ACROSS + column + 1 - left;
            unsigned at = place * FIRST_FILTERS + k;
            unpool::add_window_3_2(sums, values + at, winners + at, up, left);
        }
#pragma unroll
        for (unsigned pixel = 0; pixel < 4; pixel++) {
            unsigned place = (2 * row + pixel / 2) * FIRST_ACROSS + 2 * column + pixel % 2;
            store_narrow(gradients + place * FIRST_PITCH + k, sums[pixel / 2][pixel % 2]);
        }
    }
}

// Warp r sums row r of the block's filters, over the tiles of its split: a product of dy [pixels,
// 48], transposed, and the patch seen as [pixels, padded * 4]. If `POOLED`, dy is pooled, and unpooled
// tile by tile: to the same bits as by maxpool_backward.
template <class Math, int PADDED, bool POOLED>
__device__ __forceinline__ void backward_filter_first(float *dw, const typename Math::T *dy,
                                                      const typename Math::T *x,
                                                      unsigned accumulate, const ConvDims &d,
                                                      unsigned splits, float *partial,
                                                      unsigned stages,
                                                      const unsigned char *switches = nullptr,
                                                      const PoolDims &pool = {}) {
    using T = typename Math::T;
    constexpr int DOWN = FIRST_FILTER_DOWN, CHUNK = 16 / sizeof(T), CHUNKS = FIRST_FILTERS / CHUNK;
    constexpr int SLICE = 32 / sizeof(T); // pixels that one product takes
    constexpr unsigned GRADIENTS = DOWN * FIRST_ACROSS * FIRST_PITCH * sizeof(T);
    constexpr unsigned COPIED = POOLED ? WINDOWS * FIRST_FILTERS * (sizeof(T) + 1) : GRADIENTS;
    DYNAMIC_SHARED(unsigned char, shared);
    unsigned char *first = shared + (POOLED ? GRADIENTS : 0); // behind the tile that is unpooled
    Patch<T, DOWN, 1> patch(d);
    // A stage is dy [DOWN x FIRST_ACROSS pixels, FIRST_PITCH], or windows, and a patch. With two of them the
    // next tile comes while one is multiplied.
    unsigned stage_bytes = COPIED + patch.rows * patch.columns * sizeof(Quad<T>), stage = 0;

    unsigned filter0 = blockIdx.y * FIRST_FILTERS, split = blockIdx.z;
    unsigned tile = part_begin(patch.tiles, split, splits);
    unsigned end = part_begin(patch.tiles, split + 1, splits);
    unsigned r = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float sums[FIRST_FILTERS / 16][PADDED / 2][4] = {};
    auto begin = [&](unsigned tile, unsigned char *to) {
        patch.begin(x, tile);
        T *gradients = (T *)to;
        if (POOLED) copy_windows(to, dy, switches, pool, patch.n, patch.p, patch.q, filter0);
        for (unsigned i = threadIdx.x; !POOLED && i < DOWN * FIRST_ACROSS * CHUNKS; i += blockDim.x) {
            unsigned pixel = i / CHUNKS, chunk = i % CHUNKS;
            unsigned p = patch.p + pixel / FIRST_ACROSS, q = patch.q + pixel % FIRST_ACROSS;
            unsigned k = filter0 + chunk * CHUNK;
            size_t place = ((size_t)(patch.n * d.p + p) * d.q + q) * d.k + k;
            copy_16(gradients + pixel * FIRST_PITCH + chunk * CHUNK, dy + place,
                    p < d.p && q < d.q && k < d.k);
        }
        commit_copies();
    };
    auto finish = [&](unsigned tile, unsigned char *to) {
        patch.choose(tile); // again, so that it takes no registers while another is multiplied
        patch.finish(x, (Quad<T> *)(to + COPIED));
    };
    if (tile < end) {
        begin(tile, first);
        finish(tile, first);
    }
    for (; tile < end; tile++) {
        const unsigned char *now = first + stage * stage_bytes;
        stage = stages - 1 - stage;
        unsigned char *next = first + stage * stage_bytes;
        wait_copies<0>();
        __syncthreads(); // this tile is here, and the one before it has been read
        if (stages == 2 && tile + 1 < end) begin(tile + 1, next);
        if (POOLED) {
            unpool_tile((T *)shared, now);
            __syncthreads();
        }
        const T *gradients = (const T *)(POOLED ? shared : now);
#pragma unroll 1
        for (unsigned pixel = 0; pixel < DOWN * FIRST_ACROSS; pixel += SLICE) {
            unsigned a[FIRST_FILTERS / 16][4], b[PADDED / 2][2];
            const T *gradient = gradients + pixel * FIRST_PITCH;
            const Quad<T> *window = (const Quad<T> *)(now + COPIED) +
                                    patch.window(pixel / FIRST_ACROSS, pixel % FIRST_ACROSS, r);
            if (sizeof(T) == 2) {
                // Matrices of eight pixels by eight filters, or by two pixels of four channels.
                unsigned row = lane / 16 * 8 + lane % 8;
#pragma unroll
                for (int i = 0; i < FIRST_FILTERS / 16; i++)
                    load_matrices_transposed(
                        a[i], gradient + row * FIRST_PITCH + 16 * i + lane / 8 % 2 * 8);
#pragma unroll
                for (int j = 0; j < PADDED / 4; j++) {
                    unsigned both[4];
                    load_matrices_transposed(
                        both, window + lane % 16 * d.stride[1] + 4 * j + lane / 16 * 2);
#pragma unroll
                    for (int m = 0; m < 4; m++) b[2 * j + m / 2][m % 2] = both[m];
                }
            } else {
#pragma unroll
                for (int i = 0; i < FIRST_FILTERS / 16; i++)
#pragma unroll
                    for (int m = 0; m < 4; m++) {
                        const T *value =
                            gradient + (m / 2 * 4 + t) * FIRST_PITCH + 16 * i + m % 2 * 8 + g;
                        a[i][m] = round_tf32(*(const unsigned *)value);
                    }
#pragma unroll
                for (int j = 0; j < PADDED / 2; j++)
#pragma unroll
                    for (int m = 0; m < 2; m++) {
                        const Quad<T> *value = window + (4 * m + t) * d.stride[1] + 2 * j + g / 4;
                        memcpy(&b[j][m], &value->v[g % 4], 4);
                    }
            }
#pragma unroll
            for (int i = 0; i < FIRST_FILTERS / 16; i++)
#pragma unroll
                for (int j = 0; j < PADDED / 2; j++)
                    Math::multiply(sums[i][j], a[i], b[j][0], b[j][1]);
        }
        if (stages == 1) {
            __syncthreads(); // this tile has been read
            if (tile + 1 < end) begin(tile + 1, next);
        }
        if (tile + 1 < end) finish(tile + 1, next);
    }
    float *to = splits > 1 ? partial + split * ((size_t)d.k * d.r * d.s * 3) : dw;
#pragma unroll
    for (int i = 0; i < FIRST_FILTERS / 16; i++)
#pragma unroll
        for (int j = 0; j < PADDED / 2; j++)
#pragma unroll
            for (int m = 0; m < 4; m++) {
                unsigned k = filter0 + 16 * i + m / 2 * 8 + g, column = 8 * j + 2 * t + m % 2;
                unsigned s = column / 4, c = column % 4;
                if (k >= d.k || s >= d.s || c >= 3) continue;
                size_t index = (((size_t)k * d.r + r) * d.s + s) * 3 + c;
                to[index] = sums[i][j][m] + (accumulate && splits == 1 ? to[index] : 0);
            }
}

} // namespace conv_tensor

// ---- exports ----
//
// Block 256. Grid (tiles, groups, splits), where tiles are those of rows (128 each) times those of
// columns (128 each; 96 in `_medium`, 32 in `_narrow`) of a group, for the data gradient of the largest
// class and times stride[0] stride[1]. Dynamic shared memory: `stages`, 2 or 3, of 32 KB, of 24 KB if narrow.
//
// N P Q, N H W and K R S C below 2^31. Those without `_any` or `_narrow` need channel counts of a
// group that are multiples of 8 (bf16) or 4 (tf32): C for forward, C and K for the others. Tensors
// are whole and aligned to 16 bytes; `sizes` are those of a group. With splits > 1 partial has room for
// splits x outputs and conv_reduce has to follow: bias, relu and accumulate are its affair then.

#define FORWARD(name, Math, Out, COLUMNS, WHOLE)                                                   \
    extern "C" __global__ void __launch_bounds__(conv_tensor::THREADS, WHOLE ? 2 : 1)              \
        name(Out *y, const conv_tensor::Math::T *x, const conv_tensor::Math::T *w,                 \
             const float *bias, unsigned relu, ConvDims d, OfGroup sizes, unsigned splits,         \
             float *partial, unsigned stages) {                                                    \
        conv_tensor::forward<conv_tensor::Math, Out, conv_tensor::COLUMNS, WHOLE>(                 \
            y, x, w, bias, relu, d, sizes, splits, partial, stages);                               \
    }
#define BACKWARD_DATA(name, Math, COLUMNS, WHOLE)                                                  \
    extern "C" __global__ void __launch_bounds__(conv_tensor::THREADS, WHOLE ? 2 : 1)              \
        name(conv_tensor::Math::T *dx, const conv_tensor::Math::T *dy,                             \
             const conv_tensor::Math::T *w, ConvDims d, OfGroup sizes, unsigned splits,            \
             float *partial, unsigned stages) {                                                    \
        conv_tensor::backward_data<conv_tensor::Math, conv_tensor::COLUMNS, WHOLE>(                \
            dx, dy, w, d, sizes, splits, partial, stages);                                         \
    }
#define BACKWARD_FILTER(name, Math, WHOLE)                                                         \
    extern "C" __global__ void __launch_bounds__(conv_tensor::THREADS, WHOLE ? 2 : 1)              \
        name(float *dw, const conv_tensor::Math::T *dy, const conv_tensor::Math::T *x,             \
             unsigned accumulate, ConvDims d, OfGroup sizes, unsigned splits, float *partial,      \
             unsigned stages) {                                                                    \
        conv_tensor::backward_filter<conv_tensor::Math, WHOLE>(dw, dy, x, accumulate, d, sizes,    \
                                                               splits, partial, stages);           \
    }

FORWARD(conv_forward_bf16, Bf16, bf16, WIDE, true)
FORWARD(conv_forward_bf16_medium, Bf16, bf16, MEDIUM, true)
FORWARD(conv_forward_bf16_any, Bf16, bf16, WIDE, false)
FORWARD(conv_forward_bf16_narrow, Bf16, bf16, NARROW, false)
// bf16 operands, f32 results: the last layer's logits.
FORWARD(conv_forward_bf16_f32, Bf16, float, WIDE, true)
FORWARD(conv_forward_bf16_f32_any, Bf16, float, WIDE, false)
FORWARD(conv_forward_bf16_f32_narrow, Bf16, float, NARROW, false)
FORWARD(conv_forward_tf32, Tf32, float, WIDE, true)
FORWARD(conv_forward_tf32_medium, Tf32, float, MEDIUM, true)
FORWARD(conv_forward_tf32_any, Tf32, float, WIDE, false)
FORWARD(conv_forward_tf32_narrow, Tf32, float, NARROW, false)

BACKWARD_DATA(conv_backward_data_bf16, Bf16, WIDE, true)
BACKWARD_DATA(conv_backward_data_bf16_medium, Bf16, MEDIUM, true)
BACKWARD_DATA(conv_backward_data_bf16_any, Bf16, WIDE, false)
BACKWARD_DATA(conv_backward_data_bf16_narrow, Bf16, NARROW, false)
BACKWARD_DATA(conv_backward_data_tf32, Tf32, WIDE, true)
BACKWARD_DATA(conv_backward_data_tf32_medium, Tf32, MEDIUM, true)
BACKWARD_DATA(conv_backward_data_tf32_any, Tf32, WIDE, false)
BACKWARD_DATA(conv_backward_data_tf32_narrow, Tf32, NARROW, false)

BACKWARD_FILTER(conv_backward_filter_bf16, Bf16, true)
BACKWARD_FILTER(conv_backward_filter_bf16_any, Bf16, false)
BACKWARD_FILTER(conv_backward_filter_tf32, Tf32, true)
BACKWARD_FILTER(conv_backward_filter_tf32_any, Tf32, false)

// The first layer: no groups, C = 3, stride[1] even, S in 5 ..= 12, and for the filter gradient R <= 12
// and K a multiple of 8; x holds no NaN. With padded = S rounded up to a multiple of 4 and `size` the
// bytes of a value:
//   forward  block 256, grid (at most the tiles, ceil(K / 48)), dynamic shared memory 48 (R padded 4 size + 16)
//            + max(28672, (15 stride[0] + R) columns 4 size)
//   filter   block 32 R, grid (1, ceil(K / 48), splits), dynamic shared memory `stages`, 1 or 2, of
//            128 x 56 size + (7 stride[0] + R) columns 4 size; `_8` and `_12` are `padded`, and R is not
//            above it
//   pooled   the same, with dy [N, pool.p, pool.q, K] of a max pooling of windows of 3 x 3, strides of 2 and
//            paddings that 2 divides, its switches, and dynamic shared memory 128 x 56 size + `stages` of
//            45 x 48 (size + 1) + (7 stride[0] + R) columns 4 size
// with columns = 15 stride[1] + padded rounded up to a multiple of 4. Forward's last arguments are for
// its likeness with the others.

#define FORWARD_FIRST(name, Math)                                                                  \
    extern "C" __global__ void __launch_bounds__(conv_tensor::THREADS, 2) name(                    \
        conv_tensor::Math::T *y, const conv_tensor::Math::T *x, const conv_tensor::Math::T *w,     \
        const float *bias, unsigned relu, ConvDims d, OfGroup, unsigned, float *, unsigned) {      \
        conv_tensor::forward_first<conv_tensor::Math>(y, x, w, bias, relu, d);                     \
    }
#define BACKWARD_FILTER_FIRST(name, Math, PADDED, BLOCKS)                                          \
    extern "C" __global__ void __launch_bounds__(32 * PADDED, BLOCKS)                              \
        name(float *dw, const conv_tensor::Math::T *dy, const conv_tensor::Math::T *x,             \
             unsigned accumulate, ConvDims d, OfGroup sizes, unsigned splits, float *partial,      \
             unsigned stages) {                                                                    \
        conv_tensor::backward_filter_first<conv_tensor::Math, PADDED, false>(                      \
            dw, dy, x, accumulate, d, splits, partial, stages);                                    \
    }
#define BACKWARD_FILTER_FIRST_POOLED(name, Math, PADDED, BLOCKS)                                   \
    extern "C" __global__ void __launch_bounds__(32 * PADDED, BLOCKS)                              \
        name(float *dw, const conv_tensor::Math::T *dy, const conv_tensor::Math::T *x,             \
             unsigned accumulate, ConvDims d, OfGroup sizes, unsigned splits, float *partial,      \
             unsigned stages, const unsigned char *switches, PoolDims pool) {                      \
        conv_tensor::backward_filter_first<conv_tensor::Math, PADDED, true>(                       \
            dw, dy, x, accumulate, d, splits, partial, stages, switches, pool);                    \
    }

FORWARD_FIRST(conv_forward_first_bf16, Bf16)
FORWARD_FIRST(conv_forward_first_tf32, Tf32)
BACKWARD_FILTER_FIRST(conv_backward_filter_first_8_bf16, Bf16, 8, 3)
BACKWARD_FILTER_FIRST(conv_backward_filter_first_12_bf16, Bf16, 12, 1)
BACKWARD_FILTER_FIRST(conv_backward_filter_first_8_tf32, Tf32, 8, 2)
BACKWARD_FILTER_FIRST(conv_backward_filter_first_12_tf32, Tf32, 12, 1)
BACKWARD_FILTER_FIRST_POOLED(conv_backward_filter_first_pooled_8_bf16, Bf16, 8, 3)
BACKWARD_FILTER_FIRST_POOLED(conv_backward_filter_first_pooled_12_bf16, Bf16, 12, 1)
BACKWARD_FILTER_FIRST_POOLED(conv_backward_filter_first_pooled_8_tf32, Tf32, 8, 2)
BACKWARD_FILTER_FIRST_POOLED(conv_backward_filter_first_pooled_12_tf32, Tf32, 12, 1)

#undef FORWARD_FIRST
#undef BACKWARD_FILTER_FIRST
#undef BACKWARD_FILTER_FIRST_POOLED
#undef FORWARD
#undef BACKWARD_DATA
#undef BACKWARD_FILTER
