// Convolution in fp32 without tensor cores, in all three directions: naive loops, which all other
// routes are held against, and tiled products.
//
//   y[n, p, q, k]  = sum over r, s, c of x[n, h, w, c] w[k, r, s, c]       (+ bias[k], then relu)
//   dx[n, h, w, c] = sum over r, s, k of dy[n, p, q, k] w[k, r, s, c]
//   dw[k, r, s, c] = sum over n, p, q of dy[n, p, q, k] x[n, h, w, c]      (+ dw to accumulate)
//   with h = p stride - pad + r and w = q stride - pad + s; beyond the edge zeros are read.
//
// The tiled kernels are products A B of which no matrix is ever made: each says where in x, w or dy
// the value of a row (or column) at a depth lies.
//
//                 rows                        columns    depth
//   forward       (n, p, q)                   k          (r, s, c)
//   data          (n, h, w) of one parity     c          (r, s that meet this parity, k)
//   filter        k                           (r, s, c)  (n, p, q)
//
// With a stride, a pixel meets only every stride-th row and column of a filter, and which ones
// depends on its parity. So the data gradient is one product for each of the stride[0] stride[1]
// parity classes.
//
// With groups c and k here are those of one group; its channels lie among those of all.
//
// A depth can be split among several blocks; then each writes its sums to `partial`, and conv_reduce
// adds them in order.
#include "conv.cuh"

namespace conv {

__device__ __forceinline__ float finish(float sum, float bias, bool relu) {
    sum += bias;
    return relu && sum < 0 ? 0 : sum; // NaN passes
}

// ---- naive loops, one thread a value; groups are supported ----

template <class Out, class T>
__device__ void forward_plain(Out *y, const T *x, const T *w, const float *bias, unsigned relu,
                              const ConvDims &d) {
    size_t place = global_index(), n = place;
    if (place >= (size_t)d.n * d.p * d.q * d.k) return;
    unsigned k = take_index(n, d.k), q = take_index(n, d.q), p = take_index(n, d.p);
    unsigned channels = d.c / d.groups, group = k / (d.k / d.groups);
    float sum = 0;
    for (unsigned r = 0; r < d.r; r++) {
        for (unsigned s = 0; s < d.s; s++) {
            unsigned row = p * d.stride[0] + r, column = q * d.stride[1] + s; // of the padded image
            if (row < d.pad[0] || row >= d.h + d.pad[0]) continue;
            if (column < d.pad[1] || column >= d.w + d.pad[1]) continue;
            const T *pixel = x + ((n * d.h + row - d.pad[0]) * d.w + column - d.pad[1]) * d.c;
            const T *filter = w + (((size_t)k * d.r + r) * d.s + s) * channels;
            for (unsigned c = 0; c < channels; c++) {
                sum += widen(pixel[group * channels + c]) * widen(filter[c]);
            }
        }
    }
    y[place] = narrow<Out>(finish(sum, bias ? bias[k] : 0, relu));
}

template <class T>
__device__ void backward_data_plain(T *dx, const T *dy, const T *w, const ConvDims &d) {
    size_t place = global_index(), n = place;
    if (place >= (size_t)d.n * d.h * d.w * d.c) return;
    unsigned channel = take_index(n, d.c), column = take_index(n, d.w), row = take_index(n, d.h);
    unsigned channels = d.c / d.groups, filters = d.k / d.groups;
    unsigned group = channel / channels, c = channel % channels;
    float sum = 0;
    for (unsigned r = 0; r < d.r; r++) {
        for (unsigned s = 0; s < d.s; s++) {
            unsigned top = row + d.pad[0] - r, left = column + d.pad[1] - s; // of the window
            if (row + d.pad[0] < r || column + d.pad[1] < s) continue;
            if (top % d.stride[0] || left % d.stride[1]) continue;
            unsigned p = top / d.stride[0], q = left / d.stride[1];
            if (p >= d.p || q >= d.q) continue;
            for (unsigned k = group * filters; k < (group + 1) * filters; k++) {
                sum += widen(dy[((n * d.p + p) * d.q + q) * d.k + k])
                     * widen(w[(((size_t)k * d.r + r) * d.s + s) * channels + c]);
            }
        }
    }
    dx[place] = narrow<T>(sum);
}

template <class T>
__device__ void backward_filter_plain(float *dw, const T *dy, const T *x, unsigned accumulate,
                                      const ConvDims &d) {
    unsigned channels = d.c / d.groups;
    size_t place = global_index(), k = place;
    if (place >= (size_t)d.k * d.r * d.s * channels) return;
    unsigned c = take_index(k, channels), s = take_index(k, d.s), r = take_index(k, d.r);
    unsigned channel = (unsigned)k / (d.k / d.groups) * channels + c;
    float sum = 0;
    for (size_t n = 0; n < d.n; n++) {
        for (unsigned p = 0; p < d.p; p++) {
            unsigned row = p * d.stride[0] + r; // of the padded image
            if (row < d.pad[0] || row >= d.h + d.pad[0]) continue;
            for (unsigned q = 0; q < d.q; q++) {
                unsigned column = q * d.stride[1] + s;
                if (column < d.pad[1] || column >= d.w + d.pad[1]) continue;
                size_t pixel = (n * d.h + row - d.pad[0]) * d.w + column - d.pad[1];
                sum += widen(dy[((n * d.p + p) * d.q + q) * d.k + k])
                     * widen(x[pixel * d.c + channel]);
            }
        }
    }
    dw[place] = sum + (accumulate ? dw[place] : 0);
}

// ---- the tiled product ----

// A block of 256 threads makes TILE x TILE values, a thread 8 x 8 of them: rows 4 ty .. 4 ty + 3 of
// the tile and the same of its second half, columns by tx alike. Tiles of A and B of DEPTH values
// go through shared memory, and while one is multiplied the next is on its way to registers.
constexpr unsigned TILE = 128, DEPTH = 8, THREADS = 256;
constexpr unsigned ROW = TILE + 4; // of shared memory: the 4 keep the stores off each other's banks

using Four = Pack<float, 4>;
using Tile = float[DEPTH][ROW];
using Sums = float[8][8];

// An operand of a product says
//   ALONG_ROWS      whether its rows (else its depth) are contiguous in memory,
//   vector          whether four neighbours of a multiple of four are always contiguous and aligned,
//   Place, place    what is known of a row for all depths,
//   at              where the value of a row at a depth lies; null for a zero.
// Of B, columns play the part of rows.

// The four values a step that one thread carries from an operand to its tile: four rows at one
// depth where rows are contiguous, else one row at four depths.
template <class Operand> struct Carrier {
    static constexpr bool ALONG_ROWS = Operand::ALONG_ROWS;
    const Operand &operand;
    unsigned first_row;
    unsigned row, depth; // of the first value, in the tile
    typename Operand::Place place;
    Four values;

    __device__ __forceinline__ Carrier(const Operand &operand, unsigned first_row)
        : operand(operand), first_row(first_row) {
        row = ALONG_ROWS ? threadIdx.x % (TILE / 4) * 4 : threadIdx.x / (DEPTH / 4);
        depth = ALONG_ROWS ? threadIdx.x / (TILE / 4) : threadIdx.x % (DEPTH / 4) * 4;
        place = operand.place(first_row + row);
    }

    __device__ __forceinline__ void load(unsigned first_depth) {
        unsigned from = first_depth + depth;
        if (operand.vector) {
            const float *first = operand.at(place, from);
            values = first ? *(const Four *)first : Four{};
            return;
        }
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            // To keep four places for this would take registers from every case.
            const float *value = ALONG_ROWS
                ? operand.at(operand.place(first_row + row + i), from)
                : operand.at(place, from + i);
            values.of[i] = value ? *value : 0;
        }
    }

    __device__ __forceinline__ void store(Tile &tile) const {
        if (ALONG_ROWS) {
            *(Four *)&tile[depth][row] = values;
        } else {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) tile[depth + i][row] = values.of[i];
        }
    }
};

__device__ __forceinline__ void multiply_add(Sums &sums, const Tile &a, const Tile &b) {
    unsigned ty = threadIdx.x / 16 * 4, tx = threadIdx.x % 16 * 4;
#pragma unroll
    for (unsigned depth = 0; depth < DEPTH; depth++) {
        Four rows[2], columns[2];
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
            rows[half] = *(const Four *)&a[depth][half * TILE / 2 + ty];
            columns[half] = *(const Four *)&b[depth][half * TILE / 2 + tx];
        }
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
#pragma unroll
            for (unsigned j = 0; j < 8; j++) {
                sums[i][j] += rows[i / 4].of[i % 4] * columns[j / 4].of[j % 4];
            }
        }
    }
}

// sums = A B over one split's share of the depth: whole tiles, the last split's cut short.
template <class A, class B>
__device__ __forceinline__ void product(Sums &sums, const A &a, const B &b, unsigned depth,
                                        unsigned split, unsigned splits) {
    __shared__ __align__(16) Tile tile_a[2];
    __shared__ __align__(16) Tile tile_b[2];
    unsigned tiles = (depth + DEPTH - 1) / DEPTH, share = (tiles + splits - 1) / splits;
    unsigned first = min(split * share, tiles), end = min(first + share, tiles);
    Carrier<A> carrier_a(a, blockIdx.x * TILE);
    Carrier<B> carrier_b(b, blockIdx.y * TILE);
#pragma unroll
    for (unsigned i = 0; i < 64; i++) sums[i / 8][i % 8] = 0;
    if (first < end) {
        carrier_a.load(first * DEPTH);
        carrier_b.load(first * DEPTH);
    }
    for (unsigned tile = first; tile < end; tile++) {
        unsigned stage = tile % 2;
        carrier_a.store(tile_a[stage]);
        carrier_b.store(tile_b[stage]);
        __syncthreads(); // also: all are done with the stage that the next round writes
        if (tile + 1 < end) {
            carrier_a.load((tile + 1) * DEPTH);
            carrier_b.load((tile + 1) * DEPTH);
        }
        multiply_add(sums, tile_a[stage], tile_b[stage]);
    }
}

// Where sums go, and what happens to them on the way.
struct Output {
    float *y;
    const float *bias; // of columns, or null
    bool relu, accumulate;

    // One of several splits only puts its sums down.
    __device__ Output(float *y, const float *bias, bool relu, bool accumulate, size_t len,
                      unsigned split, unsigned splits, float *partial)
        : y(y), bias(bias), relu(relu), accumulate(accumulate) {
        if (splits > 1) *this = {partial + split * len};
    }
    __device__ Output(float *y) : y(y), bias(nullptr), relu(false), accumulate(false) {}

    // The same of one group's part of the output, and of the biases.
    __device__ Output of_group(size_t first, unsigned first_column) const {
        Output part = *this;
        part.y += first;
        if (bias) part.bias += first_column;
        return part;
    }

    // Values `at ..` of y, columns `column ..`.
    __device__ __forceinline__ void write(size_t at, unsigned column, unsigned columns,
                                          const float *sums) const {
        Four values;
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            if (column + j >= columns) continue;
            float sum = sums[j] + (accumulate ? y[at + j] : 0);
            values.of[j] = finish(sum, bias ? bias[column + j] : 0, relu);
        }
        if (columns % 4 == 0) {
            if (column < columns) *(Four *)(y + at) = values;
            return;
        }
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            if (column + j < columns) y[at + j] = values.of[j];
        }
    }
};

// Writes a block's sums; row `m` of the product is row `row_of(m)` of the output, both of `columns`,
// and rows of the output begin `pitch` apart.
template <class RowOf>
__device__ __forceinline__ void write(const Output &output, const Sums &sums, unsigned rows,
                                      unsigned columns, unsigned pitch, RowOf row_of) {
    unsigned ty = threadIdx.x / 16 * 4, tx = threadIdx.x % 16 * 4;
#pragma unroll
    for (unsigned i = 0; i < 8; i++) {
        unsigned m = blockIdx.x * TILE + i / 4 * (TILE / 2) + ty + i % 4;
        if (m >= rows) continue;
        size_t row = row_of(m);
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
            unsigned column = blockIdx.y * TILE + half * (TILE / 2) + tx;
            output.write(row * pitch + column, column, columns, &sums[i][half * 4]);
        }
    }
}

// ---- forward ----

// x, as rows (n, p, q) and depth (r, s, c).
struct Patches {
    static constexpr bool ALONG_ROWS = false;
    struct Place { const float *image; int top, left; };
    const float *x;
    const ConvDims &d;
    const Group &group;
    bool vector;

    __device__ Patches(const float *x, const ConvDims &d, const Group &group)
        : x(x + group.first_c), d(d), group(group), vector(group.c % 4 == 0) {}

    __device__ __forceinline__ Place place(unsigned m) const {
        unsigned q = m % d.q, p = m / d.q % d.p, n = m / d.q / d.p;
        if (n >= d.n) return {nullptr, 0, 0};
        return {x + (size_t)n * d.h * d.w * d.c, (int)(p * d.stride[0]) - (int)d.pad[0],
                (int)(q * d.stride[1]) - (int)d.pad[1]};
    }

    __device__ __forceinline__ const float *at(const Place &place, unsigned depth) const {
        unsigned tap = depth / group.c, c = depth - tap * group.c;
        unsigned r = tap / d.s, s = tap - r * d.s;
        unsigned h = place.top + r, w = place.left + s; // beyond the top or left: huge
        bool inside = place.image && r < d.r && h < d.h && w < d.w;
        return inside ? place.image + ((size_t)h * d.w + w) * d.c + c : nullptr;
    }
};

// w, as columns k and depth (r, s, c).
struct Filters {
    static constexpr bool ALONG_ROWS = false;
    struct Place { const float *filter; };
    const float *w;
    unsigned k, depths;
    bool vector;

    __device__ Filters(const float *w, const ConvDims &d, const Group &group)
        : w(w + group.weights), k(group.k), depths(d.r * d.s * group.c), vector(depths % 4 == 0) {}

    __device__ __forceinline__ Place place(unsigned column) const {
        return {column < k ? w + (size_t)column * depths : nullptr};
    }

    __device__ __forceinline__ const float *at(const Place &place, unsigned depth) const {
        return place.filter && depth < depths ? place.filter + depth : nullptr;
    }
};

__device__ void forward_tiled(float *y, const float *x, const float *w, const float *bias,
                              unsigned relu, const ConvDims &d, const OfGroup &sizes,
                              unsigned splits, float *partial) {
    unsigned rows = d.n * d.p * d.q, split = blockIdx.z % splits;
    Group group(d, sizes, blockIdx.z / splits);
    Sums sums;
    product(sums, Patches(x, d, group), Filters(w, d, group), d.r * d.s * group.c, split, splits);
    Output output(y, bias, relu, false, (size_t)rows * d.k, split, splits, partial);
    write(output.of_group(group.first_k, group.first_k), sums, rows, group.k, d.k,
          [](unsigned m) { return (size_t)m; });
}

// ---- backward, data ----

// A parity class: see conv.cuh.
struct Parity {
    ParityAxis down, right;

    __device__ Parity(const ConvDims &d, unsigned number)
        : down(number / d.stride[1], d.stride[0], d.pad[0], d.h, d.r),
          right(number % d.stride[1], d.stride[1], d.pad[1], d.w, d.s) {}

    __device__ unsigned rows(const ConvDims &d) const { return d.n * down.pixels * right.pixels; }
    __device__ unsigned depth(const Group &group) const { return down.taps * right.taps * group.k; }
};

// dy, as rows (n, i, j) and depth (u, v, k) of a parity class.
struct Gradients {
    static constexpr bool ALONG_ROWS = false;
    struct Place { const float *image; unsigned p, q; };
    const float *dy;
    const ConvDims &d;
    const Group &group;
    const Parity &parity;
    bool vector;

    __device__ Gradients(const float *dy, const ConvDims &d, const Group &group,
                         const Parity &parity)
        : dy(dy + group.first_k), d(d), group(group), parity(parity), vector(group.k % 4 == 0) {}

    __device__ __forceinline__ Place place(unsigned m) const {
        unsigned j = m % parity.right.pixels, rest = m / parity.right.pixels;
        unsigned i = rest % parity.down.pixels, n = rest / parity.down.pixels;
        if (n >= d.n) return {nullptr, 0, 0};
        return {dy + (size_t)n * d.p * d.q * d.k, parity.down.base + i, parity.right.base + j};
    }

    __device__ __forceinline__ const float *at(const Place &place, unsigned depth) const {
        unsigned tap = depth / group.k, k = depth - tap * group.k;
        unsigned u = tap / parity.right.taps, v = tap - u * parity.right.taps;
        unsigned p = place.p - u, q = place.q - v; // beyond the top or left: huge
        bool inside = place.image && u < parity.down.taps && p < d.p && q < d.q;
        return inside ? place.image + ((size_t)p * d.q + q) * d.k + k : nullptr;
    }
};

// w, as columns c and depth (u, v, k) of a parity class.
struct TransposedFilters {
    static constexpr bool ALONG_ROWS = true;
    struct Place { unsigned c; };
    const float *w;
    const ConvDims &d;
    const Group &group;
    const Parity &parity;
    bool vector;

    __device__ TransposedFilters(const float *w, const ConvDims &d, const Group &group,
                                 const Parity &parity)
        : w(w + group.weights), d(d), group(group), parity(parity), vector(group.c % 4 == 0) {}

    __device__ __forceinline__ Place place(unsigned column) const { return {column}; }

    __device__ __forceinline__ const float *at(const Place &place, unsigned depth) const {
        unsigned tap = depth / group.k, k = depth - tap * group.k;
        unsigned u = tap / parity.right.taps, v = tap - u * parity.right.taps;
        unsigned r = parity.down.first + u * parity.down.stride;
        unsigned s = parity.right.first + v * parity.right.stride;
        bool inside = place.c < group.c && u < parity.down.taps;
        return inside ? w + (((size_t)k * d.r + r) * d.s + s) * group.c + place.c : nullptr;
    }
};

__device__ void backward_data_tiled(float *dx, const float *dy, const float *w, const ConvDims &d,
                                    const OfGroup &sizes, unsigned splits, float *partial) {
    unsigned classes = d.stride[0] * d.stride[1], split = blockIdx.z % splits;
    Parity parity(d, blockIdx.z / splits % classes);
    Group group(d, sizes, blockIdx.z / splits / classes);
    unsigned rows = parity.rows(d);
    if (blockIdx.x * TILE >= rows) return; // another class has more
    Sums sums;
    product(sums, Gradients(dy, d, group, parity), TransposedFilters(w, d, group, parity),
            parity.depth(group), split, splits);
    Output output(dx, nullptr, false, false, (size_t)d.n * d.h * d.w * d.c, split, splits,
                  partial);
    write(output.of_group(group.first_c, 0), sums, rows, group.c, d.c, [&](unsigned m) {
        unsigned j = m % parity.right.pixels, rest = m / parity.right.pixels;
        unsigned i = rest % parity.down.pixels, n = rest / parity.down.pixels;
        unsigned row = parity.down.parity + i * parity.down.stride;
        return ((size_t)n * d.h + row) * d.w + parity.right.parity + j * parity.right.stride;
    });
}

// ---- backward, filter ----

// dy, as rows k and depth (n, p, q).
struct TransposedGradients {
    static constexpr bool ALONG_ROWS = true;
    struct Place { unsigned k; };
    const float *dy;
    unsigned k, pitch, pixels;
    bool vector;

    __device__ TransposedGradients(const float *dy, const ConvDims &d, const Group &group)
        : dy(dy + group.first_k), k(group.k), pitch(d.k), pixels(d.n * d.p * d.q),
          vector(k % 4 == 0) {}

    __device__ __forceinline__ Place place(unsigned m) const { return {m}; }

    __device__ __forceinline__ const float *at(const Place &place, unsigned pixel) const {
        return place.k < k && pixel < pixels ? dy + (size_t)pixel * pitch + place.k : nullptr;
    }
};

// x, as columns (r, s, c) and depth (n, p, q).
struct TransposedPatches {
    static constexpr bool ALONG_ROWS = true;
    struct Place { int top, left; unsigned c; }; // c is beyond the last for no column at all
    const float *x;
    const ConvDims &d;
    unsigned channels;
    bool vector;

    __device__ TransposedPatches(const float *x, const ConvDims &d, const Group &group)
        : x(x + group.first_c), d(d), channels(group.c), vector(channels % 4 == 0) {}

    __device__ __forceinline__ Place place(unsigned column) const {
        unsigned c = column % channels, tap = column / channels, s = tap % d.s, r = tap / d.s;
        return {(int)r - (int)d.pad[0], (int)s - (int)d.pad[1], r < d.r ? c : channels};
    }

    __device__ __forceinline__ const float *at(const Place &place, unsigned pixel) const {
        unsigned line = pixel / d.q, q = pixel - line * d.q, n = line / d.p, p = line - n * d.p;
        unsigned h = place.top + p * d.stride[0]; // beyond the top or left: huge
        unsigned w = place.left + q * d.stride[1];
        bool inside = n < d.n && place.c < channels && h < d.h && w < d.w;
        return inside ? x + (((size_t)n * d.h + h) * d.w + w) * d.c + place.c : nullptr;
    }
};

__device__ void backward_filter_tiled(float *dw, const float *dy, const float *x,
                                      unsigned accumulate, const ConvDims &d,
                                      const OfGroup &sizes, unsigned splits, float *partial) {
    unsigned split = blockIdx.z % splits;
    Group group(d, sizes, blockIdx.z / splits);
    unsigned columns = d.r * d.s * group.c;
    Sums sums;
    product(sums, TransposedGradients(dy, d, group), TransposedPatches(x, d, group),
            d.n * d.p * d.q, split, splits);
    Output output(dw, nullptr, false, accumulate, (size_t)d.k * columns, split, splits,
                  partial);
    write(output.of_group(group.weights, 0), sums, group.k, columns, columns,
          [](unsigned m) { return (size_t)m; });
}

// ---- sums over parts ----

template <class T>
__device__ void reduce(T *y, const float *partial, const float *bias, unsigned relu,
                       unsigned accumulate, size_t len, unsigned channels, unsigned splits) {
    size_t i = global_index(), rest = i;
    if (i >= len) return;
    float sum = 0;
#pragma unroll 8
    for (unsigned split = 0; split < splits; split++) sum += partial[split * len + i];
    if (accumulate) sum += widen(y[i]);
    y[i] = narrow<T>(finish(sum, bias ? bias[take_index(rest, channels)] : 0, relu));
}

constexpr unsigned WIDTH = 32, ROWS = 8; // threads of bias_gradient

// A thread sums N channels of every eighth pixel of a chunk, and the first of eight threads joins them
// in order. If POOLED, dy is that of a pooling: what it would unpool, under the forward mask, has the same
// sums, but for one rounding less.
template <unsigned N, bool POOLED, class T>
__device__ void bias_gradient(float *partial, const T *dy, const unsigned char *switches,
                              size_t pixels, unsigned k, unsigned chunks) {
    __shared__ float found[ROWS][WIDTH * N];
    unsigned channel = (blockIdx.x * WIDTH + threadIdx.x) * N, chunk = blockIdx.y;
    size_t share = (pixels + chunks - 1) / chunks, end = min((chunk + 1) * share, pixels);
    float sums[N] = {};
    if (channel < k) {
#pragma unroll 8
        for (size_t pixel = chunk * share + threadIdx.y; pixel < end; pixel += ROWS) {
            auto values = *(const Pack<T, N> *)(dy + pixel * k + channel);
            Pack<unsigned char, N> winners = {};
            if (POOLED) winners = *(const Pack<unsigned char, N> *)(switches + pixel * k + channel);
#pragma unroll
            for (unsigned i = 0; i < N; i++)
                sums[i] += winners.of[i] == NOT_POSITIVE ? 0 : widen(values.of[i]);
        }
    }
    for (unsigned i = 0; i < N; i++) found[threadIdx.y][threadIdx.x * N + i] = sums[i];
    __syncthreads();
    if (threadIdx.y > 0 || channel >= k) return;
    for (unsigned i = 0; i < N; i++) {
        float sum = sums[i];
        for (unsigned row = 1; row < ROWS; row++) sum += found[row][threadIdx.x * N + i];
        partial[(size_t)chunk * k + channel + i] = sum;
    }
}

} // namespace conv

// Plain: x [n, h, w, c], w [k, r, s, c / groups], bias [k] or null, y [n, p, q, k]; gradients alike.
// Grid ceil(count / 256) for count values of y, dx or dw, block 256.
extern "C" __global__ void conv_forward_plain_bf16_f32(float *y, const bf16 *x, const bf16 *w,
                                                       const float *bias, unsigned relu,
                                                       ConvDims d) {
    conv::forward_plain(y, x, w, bias, relu, d);
}

#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void conv_forward_plain_##suffix(                                        \
        T *y, const T *x, const T *w, const float *bias, unsigned relu, ConvDims d) {              \
        conv::forward_plain(y, x, w, bias, relu, d);                                               \
    }                                                                                              \
    extern "C" __global__ void conv_backward_data_plain_##suffix(T *dx, const T *dy, const T *w,   \
                                                                 ConvDims d) {                     \
        conv::backward_data_plain(dx, dy, w, d);                                                   \
    }                                                                                              \
    extern "C" __global__ void conv_backward_filter_plain_##suffix(                                \
        float *dw, const T *dy, const T *x, unsigned accumulate, ConvDims d) {                     \
        conv::backward_filter_plain(dw, dy, x, accumulate, d);                                     \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT

// Tiled: the same operands, every pointer aligned to 16 bytes, and less than 2^32 rows, columns and
// depths. Block 256. With splits > 1, partial is [splits, values of the output], nothing else is
// written, and conv_reduce_f32 follows. Grid, with c and k of a group, as `sizes` has them
//   forward  (ceil(n p q / 128), ceil(k / 128), groups splits)
//   data     (ceil(n ceil(h / stride[0]) ceil(w / stride[1]) / 128), ceil(c / 128),
//             groups stride[0] stride[1] splits)
//   filter   (ceil(k / 128), ceil(r s c / 128), groups splits)
extern "C" __global__ void __launch_bounds__(conv::THREADS, 2)
conv_forward_tiled(float *y, const float *x, const float *w, const float *bias, unsigned relu,
                   ConvDims d, OfGroup sizes, unsigned splits, float *partial) {
    conv::forward_tiled(y, x, w, bias, relu, d, sizes, splits, partial);
}

extern "C" __global__ void __launch_bounds__(conv::THREADS, 2)
conv_backward_data_tiled(float *dx, const float *dy, const float *w, ConvDims d, OfGroup sizes,
                         unsigned splits, float *partial) {
    conv::backward_data_tiled(dx, dy, w, d, sizes, splits, partial);
}

extern "C" __global__ void __launch_bounds__(conv::THREADS, 2)
conv_backward_filter_tiled(float *dw, const float *dy, const float *x, unsigned accumulate,
                           ConvDims d, OfGroup sizes, unsigned splits, float *partial) {
    conv::backward_filter_tiled(dw, dy, x, accumulate, d, sizes, splits, partial);
}

// conv_reduce: y [len], of `channels` a pixel; partial [splits, len]; bias [channels] or null.
// Grid ceil(len / 256), block 256.
//
// bias_gradient: partial [chunks, k], dy [pixels, k], switches the same, read in `_pooled` only; k is even.
// Grid (ceil(k / 64), chunks), block (32, 8). conv_reduce_f32 with splits = chunks follows. `_any`: the
// same for any k; grid (ceil(k / 32), chunks).
#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void conv_reduce_##suffix(                                               \
        T *y, const float *partial, const float *bias, unsigned relu, unsigned accumulate,         \
        size_t len, unsigned channels, unsigned splits) {                                          \
        conv::reduce(y, partial, bias, relu, accumulate, len, channels, splits);                   \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT
#define BIAS_GRADIENT(T, name, N, POOLED)                                                          \
    extern "C" __global__ void bias_gradient_##name(                                               \
        float *partial, const T *dy, const unsigned char *switches, size_t pixels, unsigned k,     \
        unsigned chunks) {                                                                         \
        conv::bias_gradient<N, POOLED>(partial, dy, switches, pixels, k, chunks);                  \
    }
BIAS_GRADIENT(float, f32, 2, false)
BIAS_GRADIENT(bf16, bf16, 2, false)
BIAS_GRADIENT(float, pooled_f32, 2, true)
BIAS_GRADIENT(bf16, pooled_bf16, 2, true)
BIAS_GRADIENT(float, any_f32, 1, false)
BIAS_GRADIENT(bf16, any_bf16, 1, false)
BIAS_GRADIENT(float, any_pooled_f32, 1, true)
BIAS_GRADIENT(bf16, any_pooled_bf16, 1, true)
#undef BIAS_GRADIENT
