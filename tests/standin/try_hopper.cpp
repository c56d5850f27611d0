// Tries what stands in for Hopper's instructions: known answers, worked out by hand from the PTX ISA's text, and mistakes
// that must be noticed. `build.sh` makes it as OUTDIR/try-hopper; it needs nothing else, and is to be run with
// ZFNET_STANDIN_EARLY=1 as well. HOPPER.md says how to run the known answers on a GPU.
#include "try_hopper.cu"
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>
#ifdef ZFNET_STANDIN
#include <sys/wait.h>
#include <unistd.h>
#else
struct alignas(64) TensorMap { uint64_t opaque[16]; };
enum { SWIZZLE_NONE, SWIZZLE_128B, SWIZZLE_64B, SWIZZLE_32B };
#endif

// ---- what the driver has ----

using Address = unsigned long long;
enum { SUCCESS = 0, INVALID_VALUE = 1 };
extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void **, int);
int cuCtxSetCurrent(void *);
int cuMemAlloc_v2(Address *, size_t);
int cuMemFree_v2(Address);
int cuMemcpyHtoD_v2(Address, const void *, size_t);
int cuMemcpyDtoH_v2(void *, Address, size_t);
int cuStreamSynchronize(void *);
int cuModuleLoadData(void **, const void *);
int cuModuleGetFunction(void **, void *, const char *);
int cuFuncSetAttribute(void *, int, int);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
int cuTensorMapEncodeTiled(void *, int, unsigned, void *, const uint64_t *, const uint64_t *, const unsigned *, const unsigned *, int, int, int, int);
int cuTensorMapEncodeIm2col(void *, int, unsigned, void *, const uint64_t *, const uint64_t *, const int *, const int *, unsigned, unsigned, const unsigned *, int, int, int, int);
}
enum { UINT16 = 1, FLOAT32 = 7, BFLOAT16 = 9 };
enum { MAP_NONE, MAP_32B, MAP_64B, MAP_128B }; // swizzles as tensor maps name them

// ---- what the tests use ----

const bool early = getenv("ZFNET_STANDIN_EARLY");
std::string test;
int failures = 0;

template <class A, class B> void expect_at(int line, const char *what, A found, B expected) {
    if (found == (A)expected) return;
    printf("try_hopper.cpp:%d: %s: %s is %g, expected %g\n", line, test.c_str(), what, (double)found, (double)expected);
    failures++;
}
#define expect(found, expected) expect_at(__LINE__, #found, found, expected)

template <class T> struct Buffer {
    Address at;
    size_t count;
    explicit Buffer(const std::vector<T> &values) : count(values.size()) {
        expect(cuMemAlloc_v2(&at, count * sizeof(T)), SUCCESS);
        expect(cuMemcpyHtoD_v2(at, values.data(), count * sizeof(T)), SUCCESS);
    }
    explicit Buffer(size_t count) : Buffer(std::vector<T>(count)) {}
    ~Buffer() { cuMemFree_v2(at); }
    std::vector<T> read() const {
        std::vector<T> values(count);
        expect(cuMemcpyDtoH_v2(values.data(), at, count * sizeof(T)), SUCCESS);
        return values;
    }
};

const void *image = "the stand-in does not look at it";
constexpr int DYNAMIC = 128 << 10;
template <class... A> void launch(const char *name, unsigned blocks, unsigned threads, A... arguments) {
    void *module, *kernel, *places[] = {&arguments...};
    expect(cuModuleLoadData(&module, image), SUCCESS);
    expect(cuModuleGetFunction(&kernel, module, name), SUCCESS);
    expect(cuFuncSetAttribute(kernel, 8, DYNAMIC), SUCCESS);
    expect(cuLaunchKernel(kernel, blocks, 1, 1, threads, 1, 1, DYNAMIC, nullptr, places, nullptr), SUCCESS);
    expect(cuStreamSynchronize(nullptr), SUCCESS);
}

// A map of a dense tensor.
TensorMap tiled(int type, Address at, std::vector<uint64_t> dims, std::vector<unsigned> box, int swizzle, std::vector<unsigned> steps = {1, 1, 1, 1, 1}) {
    TensorMap map;
    uint64_t strides[4], bytes = type == FLOAT32 ? 4 : 2;
    for (size_t i = 0; i + 1 < dims.size(); i++) strides[i] = bytes *= dims[i];
    expect(cuTensorMapEncodeTiled(&map, type, dims.size(), (void *)at, dims.data(), strides, box.data(), steps.data(), 0, swizzle, 0, 0), SUCCESS);
    return map;
}
// Of images [N][H][W][C] of 16-bit values; corners and steps of W, then H.
TensorMap im2col(Address at, std::vector<uint64_t> cwhn, std::array<int, 2> lower, std::array<int, 2> upper, unsigned channels, unsigned pixels, int swizzle, unsigned step = 1) {
    TensorMap map;
    const uint64_t strides[] = {2 * cwhn[0], 2 * cwhn[0] * cwhn[1], 2 * cwhn[0] * cwhn[1] * cwhn[2]};
    const unsigned steps[] = {1, step, step, 1};
    expect(cuTensorMapEncodeIm2col(&map, BFLOAT16, 4, (void *)at, cwhn.data(), strides, lower.data(), upper.data(), channels, pixels, steps, 0, swizzle, 0, 0), SUCCESS);
    return map;
}

// ---- where an element lies ----

// The row and column that thread `thread` of a warpgroup holds in accumulator `i`.
struct Element { int row, column; };
Element accumulator(int thread, int i) { return {thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + thread % 4 * 2 + i % 2}; }

// The element of the operand has to be that of row `row` and value `k`: there is one sum that is not 0.
void probed(const char *name, Probe p, int row, int k) {
    test = name;
    Buffer<float> out(128 * PROBE_COLUMNS / 2);
    launch("probe", 1, 128, out.at, p);
    const std::vector<float> d = out.read();
    int found = 0;
    for (int thread = 0; thread < 128; thread++)
        for (int i = 0; i < PROBE_COLUMNS / 2; i++) {
            if (d[thread * PROBE_COLUMNS / 2 + i] == 0) continue;
            const Element element = accumulator(thread, i);
            expect(p.operand == 0 ? element.row : element.column, row);
            expect(p.operand == 0 ? element.column : element.row, 0);
            expect(d[thread * PROBE_COLUMNS / 2 + i], k + 1);
            found++;
        }
    expect(found, 1);
}

void layouts() {
    // K-major, bf16: T = 8 values in 16 bytes. Without swizzle ((8, m), (T, 2k)) : ((1T, SBO), (1, LBO)): row 9, k 10 is in the
    // second group (SBO = 256), its row 1 (16 bytes), the second chunk (LBO = 128), its value 2: 256 + 16 + 128 + 4.
    probed("K-major", {0, 0, 0, 404, 0, 0, 128, 256, SWIZZLE_NONE, 0}, 9, 10);
    probed("K-major, operand b", {1, 0, 0, 404, 0, 0, 128, 256, SWIZZLE_NONE, 0}, 9, 10);
    // With 128 B ((8, m), (T, 2k)) : ((8T, SBO), (1, T)): row 13, k 10 is at SBO + 5 * 128 + 20 = 1684, line 13 of 128 bytes, in
    // its chunk 1. Swizzle<3, 4, 3>: line % 8 = 5, chunk 1 ^ 5 = 4: 13 * 128 + 4 * 16 + 4.
    probed("K-major, 128 B", {0, 0, 0, 1732, 0, 0, 0, 1024, SWIZZLE_128B, 0}, 13, 10);
    probed("K-major, 128 B, operand b", {1, 0, 0, 1732, 0, 0, 0, 1024, SWIZZLE_128B, 0}, 13, 10);
    // Row 100 is row 4 of group 12: line 100, line % 8 = 4, chunk 1 ^ 4 = 5: 100 * 128 + 80 + 4.
    probed("K-major, 128 B, operand b far down", {1, 0, 0, 12884, 0, 0, 0, 1024, SWIZZLE_128B, 0}, 100, 10);
    // The second 16 values of k: the descriptor is moved by 32 bytes, so chunk 3 of line 13, 3 ^ 5 = 6: 1664 + 96 + 4.
    probed("K-major, 128 B, second slice", {0, 0, 0, 1764, 0, 32, 0, 1024, SWIZZLE_128B, 0}, 13, 10);
    // 64 B: 512 + 5 * 64 + 20 = 852, line 6, line % 4 = 2, chunk 5 ^ 2 = 7: 768 + 112 + 4.
    probed("K-major, 64 B", {0, 0, 0, 884, 0, 0, 0, 512, SWIZZLE_64B, 0}, 13, 10);
    // 32 B: 256 + 5 * 32 + 20 = 436, line 3, line % 2 = 1, chunk 3 ^ 1 = 2: 384 + 32 + 4.
    probed("K-major, 32 B", {0, 0, 0, 420, 0, 0, 0, 256, SWIZZLE_32B, 0}, 13, 10);
    // The pattern begins 128 bytes behind a multiple of 1024: base offset 1, and all as from its own start.
    probed("K-major, 128 B, a base offset", {0, 0, 0, 1732, 128, 0, 0, 1024, SWIZZLE_128B, 1}, 13, 10);
    // tf32, T = 4: k 6 is value 2 of chunk 1. 256 + 16 + 128 + 8, and line 13, chunk 1 ^ 5 = 4: 1664 + 64 + 8.
    probed("K-major, tf32", {0, 1, 0, 408, 0, 0, 128, 256, SWIZZLE_NONE, 0}, 9, 6);
    probed("K-major, tf32, 128 B", {0, 1, 0, 1736, 0, 0, 0, 1024, SWIZZLE_128B, 0}, 13, 6);
    probed("K-major, tf32, 128 B, operand b", {1, 1, 0, 1736, 0, 0, 0, 1024, SWIZZLE_128B, 0}, 13, 6);
    // MN-major. Without swizzle ((T, 1, m), (8, k)) : ((1, T, SBO), (1T, LBO)): row 9 is value 1 of group 1 (SBO = 128), k 10 is the
    // third of the second eight (LBO = 1024): 128 + 2 + 32 + 1024.
    probed("MN-major", {0, 0, 1, 1186, 0, 0, 1024, 128, SWIZZLE_NONE, 0}, 9, 10);
    // 32 B ((T, 2, m), (8, k)) : ((1, T, LBO), (2T, SBO)): row 41 is value 9 of group 2 (LBO = 512), k 13 is 5 of the second eight
    // (SBO = 256), each of 32 bytes: 1024 + 18 + 256 + 160 = 1458, line 11, odd, chunk 3 ^ 1 = 2: 1408 + 32 + 2.
    probed("MN-major, 32 B", {0, 0, 1, 1442, 0, 0, 512, 256, SWIZZLE_32B, 0}, 41, 13);
    // 64 B: 41 is value 9 of group 1 (LBO = 1024): 1024 + 18 + 512 + 5 * 64 = 1874, line 14, 14 % 4 = 2, chunk 5 ^ 2 = 7: 1792 + 112 + 2.
    probed("MN-major, 64 B", {0, 0, 1, 1906, 0, 0, 1024, 512, SWIZZLE_64B, 0}, 41, 13);
    // 128 B: 82 + 1024 + 5 * 128 = 1746, line 13, 13 % 8 = 5, chunk 5 ^ 5 = 0: 1664 + 2.
    probed("MN-major, 128 B", {0, 0, 1, 1666, 0, 0, 0, 1024, SWIZZLE_128B, 0}, 41, 13);
    // Row 100 is value 36 of group 1 (LBO = 2048): 2048 + 72 + 1024 + 640 = 3784, line 29, 29 % 8 = 5, chunk 4 ^ 5 = 1: 3712 + 16 + 8.
    probed("MN-major, 128 B, operand b", {1, 0, 1, 3736, 0, 0, 2048, 1024, SWIZZLE_128B, 0}, 100, 13);
    puts("layouts of matrices in shared memory");

    test = "accumulators";
    // Thread 37 is lane 5 of warp 1: g = 1, t = 1. d[6] = d[4 * 1 + 2 * 1 + 0]: row 16 + 1 + 8, column 8 + 2. Thread 127 is lane 31 of
    // warp 3: d[1] is row 48 + 7, column 6 + 1. Thread 64: d[2] is row 32 + 8, column 0.
    const struct { int thread, i, row, column; } HELD[] = {{37, 6, 25, 10}, {127, 1, 55, 7}, {64, 2, 40, 0}};
    Buffer<float> out(128 * 8);
    for (int columns : {0, 1}) {
        launch("accumulators", 1, 128, out.at, columns);
        const auto d = out.read();
        for (auto &held : HELD) expect(d[held.thread * 8 + held.i], columns ? held.column : held.row);
    }
    test = "operand a in registers";
    // Of thread 37: a[1] is row 17 + 8, its low half k = 2 t = 2; a[2] row 17, its high half k = 8 + 3. In tf32 a[3] is row 25, k = t + 4.
    const struct { int tf32, word, bit, row, k; } WORDS[] = {{0, 1, 0, 25, 2}, {0, 2, 16, 17, 11}, {1, 3, 0, 25, 5}};
    for (auto &w : WORDS)
        for (int scale : {0, 1}) { // not accumulated, and subtracted from 100
            Buffer<float> sums(128 * 4);
            launch("probe_registers", 1, 128, sums.at, w.tf32, 37u, w.word, w.bit, scale);
            const auto d = sums.read();
            for (int thread = 0; thread < 128; thread++)
                for (int i = 0; i < 4; i++) {
                    const Element element = accumulator(thread, i);
                    const float product = element.row == w.row && element.column == 0 ? w.k + 1 : 0;
                    expect(d[thread * 4 + i], scale ? 100 - product : product);
                }
        }
    puts("layouts of registers");
}

// ---- copies ----

std::vector<uint16_t> counted(size_t count) {
    std::vector<uint16_t> values(count);
    for (size_t i = 0; i < count; i++) values[i] = i + 1;
    return values;
}
std::vector<uint16_t> loaded(const TensorMap &map, Box box) {
    Buffer<unsigned char> out(box.bytes);
    launch("load", 1, 32, out.at, map, box);
    const auto bytes = out.read();
    std::vector<uint16_t> values(bytes.size() / 2);
    memcpy(values.data(), bytes.data(), bytes.size());
    return values;
}

void copies() {
    test = "boxes that are swizzled";
    // 16 rows of 64 values, each its index + 1. Row 13, value 10: as K-major above, in all of these.
    Buffer<uint16_t> matrix(counted(16 * 64));
    const struct { int swizzle; unsigned width, at; } SWIZZLES[] = {{MAP_NONE, 64, 1684}, {MAP_128B, 64, 1732}, {MAP_64B, 32, 884}, {MAP_32B, 16, 420}};
    for (auto &s : SWIZZLES) {
        const auto box = loaded(tiled(UINT16, matrix.at, {64, 16}, {s.width, 16}, s.swizzle), {2, {0, 0}, 0, 0, s.width * 32});
        expect(box[s.at / 2], 13 * 64 + 10 + 1);
        uint64_t sum = 0;
        for (uint16_t value : box) sum += value;
        // Of rows 64 r + 1 .. 64 r + width, r < 16.
        expect(sum, s.width * (64 * 120 + 16) + 16 * s.width * (s.width - 1) / 2);
    }
    test = "a box beyond the edges";
    // From column -2, row -1: value (0, 0) is in row 1, column 2; column 63 is no part of it.
    auto box = loaded(tiled(UINT16, matrix.at, {64, 16}, {16, 4}, MAP_NONE), {2, {-2, -1}, 0, 0, 128});
    for (int row = 0; row < 4; row++)
        for (int column = 0; column < 16; column++) expect(box[row * 16 + column], row < 1 || column < 2 ? 0 : (row - 1) * 64 + column - 1);
    // From column 56, row 15: 8 values are there.
    box = loaded(tiled(UINT16, matrix.at, {64, 16}, {16, 4}, MAP_NONE), {2, {56, 15}, 0, 0, 128});
    for (int i = 0; i < 64; i++) expect(box[i], i < 8 ? 15 * 64 + 56 + i + 1 : 0);
    test = "a box with steps";
    // Rows 1, 4, 7 of a box of 7 rows in steps of 3: ceil(7 / 3) = 3.
    box = loaded(tiled(UINT16, matrix.at, {64, 16}, {8, 7}, MAP_NONE, {1, 3, 1, 1, 1}), {2, {8, 1}, 0, 0, 48});
    for (int i = 0; i < 24; i++) expect(box[i], (1 + i / 8 * 3) * 64 + 8 + i % 8 + 1);
    test = "boxes of more axes";
    // [2][2][2][3][8]: rows of 8; a box of 2 along the second axis from 1 on, 2 along the last but one, of 1 along the others, at 1.
    Buffer<uint16_t> five(counted(2 * 2 * 2 * 3 * 8));
    box = loaded(tiled(UINT16, five.at, {8, 3, 2, 2, 2}, {8, 2, 1, 2, 1}, MAP_NONE), {5, {0, 1, 1, 0, 1}, 0, 0, 64});
    // Element [1][d][1][r][x] is 8 (3 (2 (2 + d) + 1) + r) + x: rows (d, r) = (0, 1), (0, 2), (1, 1), (1, 2).
    const int rows[] = {3 * 5 + 1, 3 * 5 + 2, 3 * 7 + 1, 3 * 7 + 2};
    for (int i = 0; i < 32; i++) expect(box[i], rows[i / 8] * 8 + i % 8 + 1);
    box = loaded(tiled(UINT16, five.at, {8, 3, 2, 4}, {8, 2, 1, 2}, MAP_NONE), {4, {0, 1, 1, 2}, 0, 0, 64});
    for (int i = 0; i < 32; i++) expect(box[i], rows[i / 8] * 8 + i % 8 + 1);
    box = loaded(tiled(UINT16, five.at, {8, 3, 8}, {8, 2, 2}, MAP_NONE), {3, {0, 1, 5}, 0, 0, 64});
    for (int i = 0; i < 32; i++) expect(box[i], (3 * (5 + i / 16) + 1 + i / 8 % 2) * 8 + i % 8 + 1);
    puts("boxes");

    test = "im2col";
    // Two images of 3 rows, 4 columns and 8 channels; a value is 1000 (n + 1) + 100 h + 10 w + c. A filter of 3 x 3, padded by 1, begins
    // at columns -1 .. 2 (lower corner -1, upper corner 4 - 1 - 1) and rows -1 .. 1.
    std::vector<uint16_t> pixels(2 * 3 * 4 * 8);
    for (size_t i = 0; i < pixels.size(); i++) pixels[i] = 1000 * (i / 96 + 1) + 100 * (i / 32 % 3) + 10 * (i / 8 % 4) + i % 8;
    Buffer<uint16_t> images(pixels);
    const auto columns = [&](Box box, std::vector<int> first, unsigned step = 1, int corner_h = -1) {
        const unsigned count = first.size();
        box.bytes = count * 16;
        const auto values = loaded(im2col(images.at, {8, 4, 3, 2}, {-1, corner_h}, {-1, corner_h}, 8, count, MAP_NONE, step), box);
        for (unsigned i = 0; i < count * 8; i++) expect(values[i], first[i / 8] ? first[i / 8] + i % 8 : 0);
    };
    // The first 8 pixels of the output, from the filter's first place (above and left of them), its middle and its last.
    columns({0, {0, -1, -1, 0}, 0, 0, 0}, {0, 0, 0, 0, 0, 1000, 1010, 1020});
    columns({0, {0, -1, -1, 0}, 1, 1, 0}, {1000, 1010, 1020, 1030, 1100, 1110, 1120, 1130});
    columns({0, {0, -1, -1, 0}, 2, 2, 0}, {1110, 1120, 1130, 0, 1210, 1220, 1230, 0});
    // From output column 2 of the last row on, two to the right of the corner: the rest of that row, then the next image's.
    columns({0, {0, 1, 1, 0}, 2, 0, 0}, {1130, 0, 0, 0, 0, 0, 2010, 2020});
    // The last two pixels of the last image, the middle of the filter, and what is behind them.
    columns({0, {0, 1, 1, 1}, 1, 1, 0}, {2220, 2230, 0, 0, 0, 0, 0, 0});
    // In steps of 2 the filter begins at columns -1, 1 and rows -1, 1: 4 pixels an image.
    columns({0, {0, -1, -1, 0}, 0, 0, 0}, {0, 0, 0, 1110}, 2);
    columns({0, {0, 1, -1, 0}, 1, 1, 0}, {1020, 1200, 1220, 2000}, 2);
    // A filter of 3 columns and 1 row, padded by 1 to the sides: columns -1 .. 2, rows 0 .. 2.
    columns({0, {0, -1, 0, 0}, 0, 0, 0}, {0, 1000, 1010, 1020, 0, 1100, 1110, 1120}, 1, 0);
    columns({0, {0, 2, 2, 0}, 2, 0, 0}, {0, 2010, 2020, 2030, 0}, 1, 0);
    // Channels from 4 on: the box has 8, of which there are 4.
    const auto half = loaded(im2col(images.at, {8, 4, 3, 2}, {0, 0}, {0, 0}, 8, 1, MAP_NONE), {0, {4, 1, 1, 0}, 0, 0, 16});
    for (int i = 0; i < 8; i++) expect(half[i], i < 4 ? 1114 + i : 0);
    puts("im2col");

    test = "stores";
    // A box of 8 rows of 16 values, swizzled by 32 B: value (r, c) is taken from 32 r + 2 c, chunks changed by bit 7. At (8, 4) whole, at
    // (24, 12) the first 8 columns and 4 rows, of 32 x 16.
    Buffer<uint16_t> target(32 * 16);
    launch("store", 1, 32, tiled(UINT16, target.at, {32, 16}, {16, 8}, MAP_32B), 8, 4, 24, 12, 0);
    const auto stored = target.read();
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 32; column++) {
            const auto source = [](int r, int c) { return (r * 16 + (c ^ (r / 4 % 2 * 8))) + 1; };
            const int r = row - 4, c = column - 8;
            const bool whole = r >= 0 && r < 8 && c >= 0 && c < 16, corner = row >= 12 && column >= 24;
            expect(stored[row * 32 + column], corner ? source(row - 12, column - 24) : whole ? source(r, c) : 0);
        }
    test = "bulk copies";
    Buffer<uint16_t> few(counted(16));
    Buffer<uint16_t> arrived(16);
    launch("bulk", 1, 32, arrived.at, few.at);
    expect(arrived.read() == counted(16), true);
    puts("stores, and copies without a tensor");
}

void threads() {
    test = "phases";
    Buffer<int> out(8);
    launch("phases", 1, 64, out.at);
    // Parity 1 is over before the first phase. Each warp sees the other's turns.
    std::vector<int> expected = {1, 1, 11, 21, 0, 10, 20, 0};
    std::vector<int> found = out.read();
#ifdef ZFNET_STANDIN
    expected[7] = 2; // who had to wait was told so once
#else
    found[7] = 0;
#endif
    for (int i = 0; i < 8; i++) expect(found[i], expected[i]);
    test = "named barriers";
    Buffer<int> seen(32);
    launch("named", 1, 96, seen.at);
    expect(seen.read() == std::vector<int>(32, 7), true);
    puts("mbarriers and named barriers");
}

// ---- what is computed with all of it ----

std::vector<uint16_t> small_integers(size_t count, unsigned seed) {
    std::vector<uint16_t> values(count);
    constexpr uint16_t BITS[] = {0xc000, 0xbf80, 0, 0x3f80, 0x4000}; // -2 .. 2
    for (auto &value : values) value = BITS[((seed = seed * 1664525 + 1013904223) >> 24) % 5];
    return values;
}
float wide(uint16_t bits) {
    const uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

// Whether the product comes out right. All sums are exact.
bool multiplies(int mistake) {
    const int steps = 5, k = steps * DEPTH;
    const auto a = small_integers(128 * k, 1), b = small_integers(64 * k, 2);
    Buffer<uint16_t> as(a), bs(b);
    Buffer<float> c(128 * 64);
    launch("product", 1, 384, tiled(BFLOAT16, as.at, {(uint64_t)k, 128}, {DEPTH, 128}, MAP_128B), tiled(BFLOAT16, bs.at, {(uint64_t)k, 64}, {DEPTH, 64}, MAP_128B),
           tiled(FLOAT32, c.at, {64, 128}, {64, 64}, MAP_NONE), steps, mistake);
    const auto found = c.read();
    for (int row = 0; row < 128; row++)
        for (int column = 0; column < 64; column++) {
            float sum = 0;
            for (int i = 0; i < k; i++) sum += wide(a[row * k + i]) * wide(b[column * k + i]);
            if (found[row * 64 + column] != sum) return false;
        }
    return true;
}

// The first column of the bounding box, and its upper corner.
bool convolves(int left, int upper) {
    const int n = 2, h = 5, w = 7;
    const auto x = small_integers(n * h * w * 64, 3), filters = small_integers(64 * 9 * 64, 4);
    Buffer<uint16_t> xs(x), fs(filters);
    Buffer<float> y(n * h * w * 64);
    launch("convolution", 2, 128, y.at, im2col(xs.at, {64, w, h, n}, {left, -1}, {upper, -1}, 64, 64, MAP_128B), tiled(BFLOAT16, fs.at, {9 * 64, 64}, {64, 64}, MAP_128B), n, h, w, left);
    const auto found = y.read();
    for (int pixel = 0; pixel < n * h * w; pixel++)
        for (int filter = 0; filter < 64; filter++) {
            float sum = 0;
            for (int tap = 0; tap < 9; tap++) {
                const int row = pixel / w % h + tap / 3 - 1, column = pixel % w + tap % 3 - 1;
                if (row < 0 || row >= h || column < 0 || column >= w) continue;
                for (int c = 0; c < 64; c++) sum += wide(x[((pixel / w / h * h + row) * w + column) * 64 + c]) * wide(filters[(filter * 9 + tap) * 64 + c]);
            }
            if (found[pixel * 64 + filter] != sum) return false;
        }
    return true;
}

void whole() {
    test = "a product of matrices";
    expect(multiplies(NONE), true);
    test = "a convolution";
    expect(convolves(-1, -1), true);
    puts("a product of matrices and a convolution");
}

#ifdef ZFNET_STANDIN

static const bool added[] = {
    zfcpu::add_kernel("probe", "try", probe), zfcpu::add_kernel("probe_registers", "try", probe_registers), zfcpu::add_kernel("accumulators", "try", accumulators),
    zfcpu::add_kernel("load", "try", load), zfcpu::add_kernel("store", "try", store), zfcpu::add_kernel("bulk", "try", bulk),
    zfcpu::add_kernel("phases", "try", phases), zfcpu::add_kernel("named", "try", named), zfcpu::add_kernel("product", "try", product),
    zfcpu::add_kernel("convolution", "try", convolution), zfcpu::add_kernel("misuse", "try", misuse),
};

// ---- mistakes ----

// What `mistake` does in a process of its own: it has to end with a sentence that has these words, or find a wrong result (return
// false) if there are none.
void noticed(const std::string &name, const char *words, const std::function<bool()> &mistake) {
    fflush(stdout);
    int ends[2];
    if (pipe(ends)) abort();
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        _exit(mistake() ? 0 : 1);
    }
    close(ends[1]);
    std::string said;
    char line[1000];
    for (ssize_t got; (got = read(ends[0], line, sizeof line)) > 0;) said.append(line, got);
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    const bool good = words ? WIFSIGNALED(status) && said.find("stand-in: kernel") == 0 && said.find(words) != std::string::npos
                            : WIFEXITED(status) && WEXITSTATUS(status) == 1;
    if (!good) {
        printf("try_hopper.cpp: %s: expected %s, found status %d: %s\n", name.c_str(), words ? words : "a wrong result", status, said.c_str());
        failures++;
    }
    printf("%s: %s", name.c_str(), said.empty() ? "a wrong result\n" : said.c_str());
}

void planted_mistakes() {
    const char *wrong = nullptr; // a wrong result
    const auto planted = [](const char *name, const char *words, Mistake mistake) { noticed(name, words, [=] { return multiplies(mistake); }); };
    planted("a wrong swizzle", wrong, WRONG_SWIZZLE);
    planted("a wrong stride", wrong, WRONG_STRIDE);
    planted("no fence.proxy.async before a store", "that ordinary stores have changed, without fence.proxy.async", NO_PROXY_FENCE);
    planted("no barrier before a store", wrong, NO_STORE_BARRIER);
    planted("a phase off by one", early ? "no thread has seen the last phase complete" : "more arrivals than were declared", WRONG_PHASE);
    planted("no wait for copies", early ? "no thread has seen the last phase complete" : "more arrivals than were declared", NO_WAIT_FOR_COPIES);
    planted("too few bytes expected", "deadlock: ", FEW_BYTES);
    planted("no wait for products", "the block ends before products were waited for", NO_WAIT_FOR_PRODUCTS);
    planted("no wgmma.fence", "without wgmma.fence before it", NO_FENCE);
    if (early) planted("a buffer released too early", wrong, EARLY_RELEASE);
    planted("a buffer that is not released", "lacks 256 arrivals", NO_RELEASE);
    planted("a warp that takes no part", "products that not all threads of the warpgroup have begun", WARP_MISSING);
    planted("a warp that begins products in another order", "the threads of a warpgroup differ", OTHER_ORDER);
    if (!early) planted("no wait for a store's reads", "before a store by TMA has read shared memory", NO_READ_WAIT);
    noticed("a box one column off", wrong, [] { return convolves(0, 0); });
    noticed("a box one column narrower", wrong, [] { return convolves(-1, -2); });
}

void mistakes() {
    const auto misused = [](const char *name, const char *words, int which) {
        noticed(name, words, [=] {
            Buffer<unsigned char> from(64);
            launch("misuse", 1, 128, from.at, which);
            return true;
        });
    };
    misused("an mbarrier that is not initialised", "is used, and not initialised", 0);
    misused("TMA with an mbarrier that is not fenced", "no fence has followed its initialisation", 1);
    misused("an mbarrier initialised twice", "is initialised again without mbarrier.inval", 2);
    misused("more arrivals than declared", "more arrivals than were declared", 3);
    misused("an arrival for a phase nobody awaited", "no thread has seen the last phase complete", 4);
    misused("a phase that never completes", "1 threads wait for parity 0 of the mbarrier at shared address", 5);
    misused("a copy that nobody waits for", early ? "-16 bytes more are expected than came at" : "before 1 loads by TMA have landed", 6);
    misused("bytes that never come", "16 bytes more are expected than came at", 7);
    misused("a copy over an mbarrier", "overwrites the mbarrier", 8);
    misused("a copy over stores without a fence", "a load by TMA uses shared memory", 9);
    misused("a product without a fence", "without wgmma.fence before it", 10);
    misused("accumulators changed behind the wait", "no wgmma.fence has followed", 11);
    misused("accumulators changed in flight", "changed while a product was in flight", 12);
    misused("a product that nobody waits for", "before products were waited for", 13);
    misused("a descriptor with stray bits", "bits that mean nothing", 14);
    misused("a named barrier that is not reached", "barrier 1, where 32 of 64 threads are", 15);
    misused("a named barrier of several sizes", "different numbers of threads", 16);
    misused("a copy to no multiple of 16", "not aligned", 17);
    misused("a copy to what is not shared", "not within dynamic shared memory", 18);
    misused("a parity of 2", "neither 0 nor 1", 19);
    noticed("an operand without fence.proxy.async", "wgmma (its operand a) uses shared memory", [] {
        Buffer<float> out(128 * PROBE_COLUMNS / 2);
        launch("probe", 1, 128, out.at, Probe{0, 0, 0, 404, 0, 0, 128, 256, SWIZZLE_NONE, 0, false});
        return true;
    });
    for (int mistake : {1, 2}) {
        if (mistake == 2 && early) continue; // it is read by then
        noticed(mistake == 1 ? "a store without fence.proxy.async" : "a store's source overwritten", "a store by TMA uses shared memory", [=] {
            Buffer<uint16_t> target(32 * 16);
            launch("store", 1, 32, tiled(UINT16, target.at, {32, 16}, {16, 8}, MAP_32B), 8, 4, 24, 12, mistake);
            return true;
        });
    }
    Buffer<uint16_t> matrix(counted(16 * 64));
    const auto load_of = [&](const char *name, const char *words, const TensorMap &map, Box box) {
        noticed(name, words, [&] { return loaded(map, box), true; });
    };
    load_of("a box in another rank", "another kind or rank", tiled(UINT16, matrix.at, {64, 16}, {16, 4}, MAP_NONE), {3, {0, 0, 0}, 0, 0, 128});
    load_of("rows narrower than the swizzle", "narrower than the swizzle", tiled(UINT16, matrix.at, {64, 16}, {16, 4}, MAP_128B), {2, {0, 0}, 0, 0, 128});
    load_of("im2col by a tiled map", "another kind or rank", tiled(UINT16, matrix.at, {8, 4, 4, 8}, {8, 1, 1, 1}, MAP_NONE), {0, {0, 0, 0, 0}, 0, 0, 16});
    load_of("a box that begins outside of the bounding box", "outside of the bounding box", im2col(matrix.at, {8, 4, 3, 2}, {-1, -1}, {-1, -1}, 8, 8, MAP_NONE),
            {0, {0, -2, -1, 0}, 0, 0, 128});
    load_of("too many bytes expected", "deadlock: ", tiled(UINT16, matrix.at, {64, 16}, {16, 4}, MAP_NONE), {2, {0, 0}, 0, 0, 144});
}

// ---- what the driver refuses ----

void refusals() {
    fclose(stderr); // where each is also said
    test = "tensor maps that are refused";
    Buffer<uint16_t> memory(4096);
    struct Tiled {
        int type = BFLOAT16;
        unsigned rank = 2;
        Address at = 0; // behind the start
        std::vector<uint64_t> dims = {64, 32}, strides = {128};
        std::vector<unsigned> box = {64, 32}, steps = {1, 1};
        int interleave = 0, swizzle = MAP_128B, promotion = 0, fill = 0;
    };
    TensorMap maps[2];
    const auto encode = [&](const Tiled &t, int out = 0) {
        return cuTensorMapEncodeTiled((char *)maps + out, t.type, t.rank, (void *)(memory.at + t.at), t.dims.data(), t.strides.data(), t.box.data(), t.steps.data(),
                                      t.interleave, t.swizzle, t.promotion, t.fill);
    };
    expect(encode({}), SUCCESS);
    expect(encode({}, 64), SUCCESS);
    expect(encode({}, 32), INVALID_VALUE);
    const std::vector<std::function<void(Tiled &)>> wrong = {
        [](Tiled &t) { t.type = 16; }, [](Tiled &t) { t.type = -1; }, [](Tiled &t) { t.rank = 0; }, [](Tiled &t) { t.rank = 6; }, [](Tiled &t) { t.at = 8; },
        [](Tiled &t) { t.dims[1] = 0; }, [](Tiled &t) { t.dims[0] = (1ull << 32) + 1; }, [](Tiled &t) { t.strides[0] = 120; }, [](Tiled &t) { t.strides[0] = 1ull << 40; },
        [](Tiled &t) { t.box[1] = 0; }, [](Tiled &t) { t.box[1] = 257; }, [](Tiled &t) { t.steps[1] = 0; }, [](Tiled &t) { t.steps[1] = 9; },
        [](Tiled &t) { t.box[0] = 4; },   // 8 bytes
        [](Tiled &t) { t.box[0] = 72; },  // wider than the swizzle
        [](Tiled &t) { t.swizzle = MAP_64B; }, [](Tiled &t) { t.swizzle = 7; }, [](Tiled &t) { t.promotion = 4; }, [](Tiled &t) { t.interleave = 3; }, [](Tiled &t) { t.fill = 2; },
        [](Tiled &t) { t.dims[1] = 65; }, // beyond the allocation
    };
    for (auto &change : wrong) {
        Tiled t;
        change(t);
        expect(encode(t), INVALID_VALUE);
    }
    struct Pixels {
        unsigned rank = 4;
        std::vector<int> lower = {-1, -1}, upper = {-1, -1};
        unsigned channels = 8, pixels = 64;
        int swizzle = MAP_NONE;
    };
    const auto encode_pixels = [&](const Pixels &p) {
        const uint64_t dims[] = {8, 4, 3, 2}, strides[] = {16, 64, 192};
        const unsigned steps[] = {1, 1, 1, 1};
        return cuTensorMapEncodeIm2col(maps, BFLOAT16, p.rank, (void *)memory.at, dims, strides, p.lower.data(), p.upper.data(), p.channels, p.pixels, steps, 0, p.swizzle, 0, 0);
    };
    expect(encode_pixels({}), SUCCESS);
    const std::vector<std::function<void(Pixels &)>> wrong_pixels = {
        [](Pixels &p) { p.rank = 2; }, [](Pixels &p) { p.lower[0] = -129; }, [](Pixels &p) { p.lower[1] = 128; }, [](Pixels &p) { p.upper[1] = -129; },
        [](Pixels &p) { p.upper[0] = 128; }, [](Pixels &p) { p.lower[0] = 3; }, [](Pixels &p) { p.channels = 257; }, [](Pixels &p) { p.channels = 4; },
        [](Pixels &p) { p.pixels = 1025; }, [](Pixels &p) { p.channels = 24, p.swizzle = MAP_32B; },
    };
    for (auto &change : wrong_pixels) {
        Pixels p;
        change(p);
        expect(encode_pixels(p), INVALID_VALUE);
    }
    puts(test.c_str());
}

#endif

int main(int argc, char **argv) {
#ifdef ZFNET_STANDIN
    (void)argc, (void)argv;
    setenv("ZFNET_STANDIN_THREADS", "1", 1); // mistakes are made in forks, which other threads would not survive
#else
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : nullptr;
    if (!file) return fprintf(stderr, "usage: %s FATBIN\n", argv[0]), 2;
    static std::vector<char> bytes(16 << 20);
    fread(bytes.data(), 1, bytes.size(), file);
    image = bytes.data();
#endif
    void *context;
    expect(cuInit(0), SUCCESS);
    expect(cuDevicePrimaryCtxRetain(&context, 0), SUCCESS);
    expect(cuCtxSetCurrent(context), SUCCESS);
    layouts();
    copies();
    threads();
    whole();
#ifdef ZFNET_STANDIN
    planted_mistakes();
    mistakes();
    refusals();
#endif
    printf(failures ? "%d failures\n" : "no failure\n", failures);
    return failures != 0;
}
