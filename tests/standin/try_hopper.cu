// Kernels by which try_hopper.cpp tries Hopper's instructions, on the stand-in or, compiled by nvcc, on a GPU.

// ---- what the program hands to them ----

// Of the operand under test a single element is 1, `at` bytes behind the start of its pattern. Of the other, k + 1 is in
// row 0: so the sum that is not 0 says which row and k it was.
struct Probe {
    int operand, tf32, transposed;
    unsigned at;             // of the element
    unsigned start, advance; // of the pattern, and of the descriptor behind it
    unsigned leading, stride;
    int swizzle;
    unsigned base_offset;
    int fenced = 1;
};
constexpr int PROBE_COLUMNS = 128;

struct Box { int rank, at[5], right, down; unsigned bytes; };

enum Mistake {
    NONE, WRONG_SWIZZLE, WRONG_STRIDE, NO_PROXY_FENCE, NO_STORE_BARRIER, WRONG_PHASE, NO_WAIT_FOR_COPIES, FEW_BYTES, NO_WAIT_FOR_PRODUCTS, NO_FENCE,
    EARLY_RELEASE, NO_RELEASE, WARP_MISSING, OTHER_ORDER, NO_READ_WAIT,
};

// Mistakes are planted on the stand-in alone.
#ifdef ZFNET_STANDIN
#define PLANTED(name) (mistake == (name))
#else
#define PLANTED(name) false
#endif

constexpr int STAGES = 2, DEPTH = 64; // values of k in a stage, 128 bytes: a swizzle's width

#if defined(__CUDACC__) || defined(ZFNET_STANDIN)
#include "hopper.cuh"
#ifdef HOPPER

// Dynamic shared memory from a multiple of 1024 on.
__device__ unsigned char *aligned(unsigned char *dynamic) { return dynamic + (1024 - shared_address(dynamic) % 1024) % 1024; }

// ---- kernels: where wgmma finds what ----

// Every thread's accumulators of one product, in its own order.
template <int N, class Begin> __device__ void single(float *out, float first, Begin begin) {
    float d[N / 2];
    for (float &sum : d) sum = first;
    wgmma_fence();
    begin(d);
    wgmma_commit_group();
    wgmma_wait_group<0>();
    wgmma_fence_operand(d);
    for (int i = 0; i < N / 2; i++) out[threadIdx.x * (N / 2) + i] = d[i];
}

extern "C" __global__ void probe(float *out, Probe p) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    unsigned char *tested = aligned(dynamic), *known = tested + (32 << 10);
    for (int i = threadIdx.x; i < 36 << 10; i += 128) tested[i] = 0;
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned one = p.tf32 ? 0x3f800fff : 0x3f800000; // in tf32 with bits that are not looked at
        memcpy(tested + p.start + p.at, (const char *)&one + (p.tf32 ? 0 : 2), p.tf32 ? 4 : 2);
        // K-major without swizzle: row 0 of 16 bytes, and 128 bytes further the next.
        for (int k = 0; k < (p.tf32 ? 8 : 16); k++) {
            const float value = k + 1;
            if (p.tf32) memcpy(known + k % 4 * 4 + k / 4 * 128, &value, 4);
            else memcpy(known + k % 8 * 2 + k / 8 * 128, (const char *)&value + 2, 2);
        }
    }
    if (p.fenced) fence_proxy_async();
    __syncthreads();
    const auto mine = matrix_descriptor(tested + p.start + p.advance, p.leading, p.stride, (Swizzle)p.swizzle, p.base_offset);
    const auto other = matrix_descriptor(known, 128, 256, SWIZZLE_NONE);
    const auto a = p.operand == 0 ? mine : other, b = p.operand == 0 ? other : mine;
    constexpr int N = PROBE_COLUMNS;
    if (p.tf32) single<N>(out, 0, [=](auto &d) { wgmma_tf32<N>(d, a, b, false); });
    else if (!p.transposed) single<N>(out, 0, [=](auto &d) { wgmma_bf16<N>(d, a, b, false); });
    else if (p.operand == 0) single<N>(out, 0, [=](auto &d) { wgmma_bf16<N, true, false>(d, a, b, false); });
    else single<N>(out, 0, [=](auto &d) { wgmma_bf16<N, false, true>(d, a, b, false); });
}

// The product of k + 1 and of 1 in one thread's register `word` of a, there from bit `bit` on: alone, or subtracted from 100.
extern "C" __global__ void probe_registers(float *out, int tf32, unsigned by, int word, int bit, int subtract) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    unsigned char *known = aligned(dynamic);
    for (int i = threadIdx.x; i < 512; i += 128) known[i] = 0;
    __syncthreads();
    if (threadIdx.x < (tf32 ? 8u : 16u)) {
        const unsigned k = threadIdx.x;
        const float value = k + 1;
        if (tf32) memcpy(known + k % 4 * 4 + k / 4 * 128, &value, 4);
        else memcpy(known + k % 8 * 2 + k / 8 * 128, (const char *)&value + 2, 2);
    }
    fence_proxy_async();
    __syncthreads();
    const auto b = matrix_descriptor(known, 128, 256, SWIZZLE_NONE);
    unsigned a[4] = {};
    if (threadIdx.x == by) a[word] = tf32 ? 0x3f800fffu : 0x3f80u << bit; // 1, and in tf32 bits that are not looked at
    if (tf32 && !subtract) single<8>(out, 100, [=](auto &d) { wgmma_tf32<8>(d, a, b, false); });
    else if (tf32) single<8>(out, 100, [=](auto &d) { wgmma_tf32<8, 1, -1>(d, a, b, true); });
    else if (!subtract) single<8>(out, 100, [=](auto &d) { wgmma_bf16<8>(d, a, b, false); });
    else single<8>(out, 100, [=](auto &d) { wgmma_bf16<8, false, -1, 1>(d, a, b, true); });
}

// d = row of a, or column of b, which are small enough to be exact.
extern "C" __global__ void accumulators(float *out, int columns) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    unsigned char *a = aligned(dynamic), *b = a + 2048;
    for (int i = threadIdx.x; i < 4096; i += 128) a[i] = 0;
    __syncthreads();
    // Value 0 of every row, in groups of 8 rows that stand 256 bytes apart.
    const auto set = [](unsigned char *matrix, int row, float value) { memcpy(matrix + row % 8 * 16 + row / 8 * 256, (const char *)&value + 2, 2); };
    if (threadIdx.x < 64) set(a, threadIdx.x, columns ? 1 : threadIdx.x);
    if (threadIdx.x < 16) set(b, threadIdx.x, columns ? threadIdx.x : 1);
    fence_proxy_async();
    __syncthreads();
    single<16>(out, 0, [=](auto &d) {
        wgmma_bf16<16>(d, matrix_descriptor(a, 128, 256, SWIZZLE_NONE), matrix_descriptor(b, 128, 256, SWIZZLE_NONE), false);
    });
}

// ---- kernels: copies ----

template <int... I> __device__ void load_box(void *shared, const TensorMap *map, const Box &box, Mbarrier *bar) {
    cp_async_bulk_tensor(shared, map, {box.at[I]...}, bar);
}
// Copies a box (rank 0: by im2col) to shared memory, and that, up to `bytes`, to `out`.
extern "C" __global__ void load(unsigned char *out, const __grid_constant__ TensorMap map, Box box) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    unsigned char *to = aligned(dynamic);
    Mbarrier *bar = (Mbarrier *)(to + (64 << 10));
    if (threadIdx.x == 0) {
        prefetch_tensormap(&map);
        mbarrier_init(bar, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(bar, box.bytes);
        if (box.rank == 0) cp_async_bulk_tensor_im2col(to, &map, {box.at[0], box.at[1], box.at[2], box.at[3]}, box.right, box.down, bar);
        if (box.rank == 2) load_box<0, 1>(to, &map, box, bar);
        if (box.rank == 3) load_box<0, 1, 2>(to, &map, box, bar);
        if (box.rank == 4) load_box<0, 1, 2, 3>(to, &map, box, bar);
        if (box.rank == 5) load_box<0, 1, 2, 3, 4>(to, &map, box, bar);
    }
    __syncthreads();
    mbarrier_wait_parity(bar, 0);
    for (unsigned i = threadIdx.x; i < box.bytes; i += 32) out[i] = to[i];
}

// Writes 1, 2, ... of 16 bits to shared memory, and stores a box of them at each of two places.
extern "C" __global__ void store(const __grid_constant__ TensorMap map, int x0, int y0, int x1, int y1, int mistake) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    unsigned short *from = (unsigned short *)aligned(dynamic);
    for (int i = threadIdx.x; i < 1024; i += 32) from[i] = i + 1;
    if (!PLANTED(1)) fence_proxy_async();
    __syncwarp();
    const bool one = elect_sync();
    if (one) {
        cp_async_bulk_tensor_store(&map, {x0, y0}, from);
        cp_async_bulk_commit_group();
        cp_async_bulk_tensor_store(&map, {x1, y1}, from);
        cp_async_bulk_commit_group();
    }
    if (PLANTED(2)) from[threadIdx.x] = 0; // before it is read
    if (one) {
        cp_async_bulk_wait_group_read<1>();
        cp_async_bulk_wait_group<0>();
    }
}

// Copies 32 bytes, in two halves that are tracked by one mbarrier, before and after these bytes are expected.
extern "C" __global__ void bulk(unsigned char *out, const unsigned char *from) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    __shared__ __align__(8) Mbarrier bar;
    if (threadIdx.x == 0) {
        mbarrier_init(&bar, 1);
        fence_proxy_async();
        cp_async_bulk(dynamic, from, 16, &bar);
        mbarrier_expect_tx(&bar, 32);
        cp_async_bulk(dynamic + 16, from + 16, 16, &bar);
        mbarrier_arrive(&bar);
    }
    __syncwarp();
    mbarrier_wait_parity(&bar, 0);
    out[threadIdx.x] = dynamic[threadIdx.x];
    __syncwarp();
    if (threadIdx.x == 0) mbarrier_inval(&bar), mbarrier_init(&bar, 2);
}

// ---- kernels: threads ----

// Two warps, three phases of an mbarrier that waits for both: what each has seen of the other's turns, and how often it had to ask.
extern "C" __global__ void phases(int *out) {
    __shared__ __align__(8) Mbarrier bar;
    __shared__ int turns[2][3];
    const int warp = threadIdx.x / 32;
    if (threadIdx.x == 0) mbarrier_init(&bar, 64);
    __syncthreads();
    if (threadIdx.x == 0) out[0] = mbarrier_try_wait_parity(&bar, 1); // before the first phase
    for (int phase = 0; phase < 3; phase++) {
        if (threadIdx.x % 32 == 0) turns[warp][phase] = 10 * phase + warp;
        mbarrier_arrive(&bar);
        int asked = 1;
        while (!mbarrier_try_wait_parity(&bar, phase % 2)) asked++;
        if (threadIdx.x % 32 == 0) out[1 + 3 * warp + phase] = turns[1 - warp][phase];
        if (asked > 1) out[7] = asked;
    }
}

// Warp 1 waits for what warp 0 wrote, at a barrier of these two of three.
extern "C" __global__ void named(int *out) {
    __shared__ int value;
    if (threadIdx.x / 32 == 0) {
        if (elect_sync()) value = 7;
        bar_arrive(3, 64);
    } else if (threadIdx.x / 32 == 1) {
        bar_sync(3, 64);
        out[threadIdx.x % 32] = value;
    }
}

// ---- kernels: a product of matrices, and a convolution ----

// c = a b^T of [128][k] and [64][k] in bf16: a warpgroup copies, two multiply 64 rows each.
extern "C" __global__ void __launch_bounds__(384, 1) product(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                                                             const __grid_constant__ TensorMap c, int steps, int mistake) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    unsigned char *base = aligned(dynamic);
    constexpr int A_BYTES = 128 * 128, B_BYTES = 64 * 128, C_BYTES = 64 * 64 * 4;
    unsigned char *as = base, *bs = as + STAGES * A_BYTES, *cs = bs + STAGES * B_BYTES;
    Mbarrier *full = (Mbarrier *)(cs + 2 * C_BYTES), *empty = full + STAGES;
    const int warp = threadIdx.x / 32, group = warp / 4;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) mbarrier_init(&full[i], 1), mbarrier_init(&empty[i], 256);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (group == 2) {
        setmaxnreg_dec<40>();
        if (warp != 8 || !elect_sync()) return;
        for (int i = 0; i < steps; i++) {
            const int stage = i % STAGES, phase = i / STAGES % 2;
            mbarrier_wait_parity(&empty[stage], phase ^ 1);
            mbarrier_arrive_expect_tx(&full[stage], A_BYTES + B_BYTES - (PLANTED(FEW_BYTES) ? 16 : 0));
            cp_async_bulk_tensor(as + stage * A_BYTES, &a, {i * DEPTH, 0}, &full[stage]);
            cp_async_bulk_tensor(bs + stage * B_BYTES, &b, {i * DEPTH, 0}, &full[stage]);
        }
        return;
    }
    setmaxnreg_inc<232>();
    const Swizzle swizzle = PLANTED(WRONG_SWIZZLE) ? SWIZZLE_64B : SWIZZLE_128B;
    const unsigned stride = PLANTED(WRONG_STRIDE) ? 512 : 1024;
    float d[32];
    for (int i = 0; i < steps; i++) {
        const int stage = i % STAGES, phase = i / STAGES % 2;
        if (!PLANTED(NO_WAIT_FOR_COPIES)) mbarrier_wait_parity(&full[stage], phase ^ PLANTED(WRONG_PHASE));
        if (!PLANTED(NO_FENCE)) wgmma_fence();
        if (PLANTED(WARP_MISSING) && warp == 1) return;
        for (int j = 0; j < DEPTH / 16; j++) {
            const int slice = PLANTED(OTHER_ORDER) && warp == 1 ? j ^ 1 : j;
            wgmma_bf16<64>(d, matrix_descriptor(as + stage * A_BYTES + group * 64 * 128 + 32 * slice, 0, stride, swizzle),
                           matrix_descriptor(bs + stage * B_BYTES + 32 * slice, 0, stride, swizzle), i + j > 0);
        }
        wgmma_commit_group();
        if (PLANTED(EARLY_RELEASE)) mbarrier_arrive(&empty[stage]);
        if (!PLANTED(NO_WAIT_FOR_PRODUCTS)) wgmma_wait_group<0>();
        if (!PLANTED(EARLY_RELEASE) && !PLANTED(NO_RELEASE)) mbarrier_arrive(&empty[stage]);
    }
    float *tile = (float *)(cs + group * C_BYTES);
    const int row = warp % 4 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < 32; i++) tile[(row + i / 2 % 2 * 8) * 64 + column + i / 4 * 8 + i % 2] = d[i];
    if (!PLANTED(NO_PROXY_FENCE)) fence_proxy_async();
    if (!PLANTED(NO_STORE_BARRIER)) bar_sync(1 + group, 128);
    if (warp % 4 == 0 && elect_sync()) {
        cp_async_bulk_tensor_store(&c, {0, group * 64}, tile);
        cp_async_bulk_commit_group();
        if (!PLANTED(NO_READ_WAIT)) cp_async_bulk_wait_group_read<0>();
    }
}

// y = the convolution of [n][h][w][64] by 64 filters of 3 x 3, padded by 1: a block computes 64 pixels, one tap of the filters a stage.
// One warpgroup copies and multiplies. The first column of the map's bounding box is `left`.
extern "C" __global__ void convolution(float *y, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap filters, int n, int h, int w, int left) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    unsigned char *base = aligned(dynamic);
    Mbarrier *full = (Mbarrier *)(base + 2 * STAGES * 8192);
    const int first = blockIdx.x * 64;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) mbarrier_init(&full[i], 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    const auto copy = [&](int tap) {
        if (threadIdx.x != 0 || tap >= 9) return;
        unsigned char *to = base + tap % STAGES * 2 * 8192;
        Mbarrier *bar = &full[tap % STAGES];
        mbarrier_arrive_expect_tx(bar, 2 * 8192);
        cp_async_bulk_tensor_im2col(to, &x, {0, first % w + left, first / w % h - 1, first / w / h}, tap % 3, tap / 3, bar);
        cp_async_bulk_tensor(to + 8192, &filters, {tap * 64, 0}, bar);
    };
    float d[32];
    copy(0);
    for (int tap = 0; tap < 9; tap++) {
        copy(tap + 1);
        mbarrier_wait_parity(&full[tap % STAGES], tap / STAGES % 2);
        unsigned char *stage = base + tap % STAGES * 2 * 8192;
        wgmma_fence();
        for (int j = 0; j < 4; j++)
            wgmma_bf16<64>(d, matrix_descriptor(stage + 32 * j, 0, 1024, SWIZZLE_128B), matrix_descriptor(stage + 8192 + 32 * j, 0, 1024, SWIZZLE_128B), tap + j > 0);
        wgmma_commit_group();
        wgmma_wait_group<0>();
        __syncthreads();
    }
    const int row = first + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < 32; i++)
        if (row + i / 2 % 2 * 8 < n * h * w) y[(row + i / 2 % 2 * 8) * 64 + column + i / 4 * 8 + i % 2] = d[i];
}

#ifdef ZFNET_STANDIN

// ---- kernels: single mistakes ----

extern "C" __global__ void misuse(const unsigned char *from, int which) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    unsigned char *base = aligned(dynamic);
    Mbarrier *bar = (Mbarrier *)(base + 1024), *other = bar + 1;
    const bool one = threadIdx.x == 0;
    if (one) mbarrier_init(bar, 2);
    if (one && which != 1) fence_mbarrier_init();
    __syncthreads();
    float d[4] = {};
    const auto descriptor = matrix_descriptor(base, 128, 256, SWIZZLE_NONE);
    switch (which) {
    case 0: if (one) mbarrier_arrive(other); break;
    case 1: if (one) cp_async_bulk(base, from, 16, bar); break;
    case 2: if (one) mbarrier_init(bar, 1); break;
    case 3: // three of two arrivals, while bytes are missing
        if (one) mbarrier_expect_tx(bar, 16);
        if (threadIdx.x < 3) mbarrier_arrive(bar);
        break;
    case 4: // the next phase, while nobody has looked at the last
        if (threadIdx.x < 3) mbarrier_arrive(bar);
        break;
    case 5: if (one) mbarrier_arrive(bar), mbarrier_wait_parity(bar, 0); break;
    case 6: if (one) cp_async_bulk(base, from, 16, bar); break; // nobody waits
    case 7: if (one) mbarrier_expect_tx(bar, 16); break;
    case 8: if (one) cp_async_bulk(base + 1016 - 8, from, 32, bar), mbarrier_wait_parity(bar, 0); break; // over the mbarrier
    case 9: // stores, and no fence before TMA overwrites them
        if (one) base[0] = 1, mbarrier_expect_tx(bar, 16), cp_async_bulk(base, from, 16, bar);
        break;
    case 10: wgmma_bf16<8>(d, descriptor, descriptor, false); break;
    case 11: // changed behind the wait, and not fenced
        for (int i = 0; i < 512; i++) base[i] = 0;
        fence_proxy_async();
        __syncthreads();
        wgmma_fence();
        wgmma_bf16<8>(d, descriptor, descriptor, false);
        wgmma_commit_group();
        wgmma_wait_group<0>();
        d[1] = 5;
        wgmma_bf16<8>(d, descriptor, descriptor, true);
        break;
    case 12: // changed in flight
        wgmma_fence();
        wgmma_bf16<8>(d, descriptor, descriptor, false);
        d[1] = 5;
        wgmma_bf16<8>(d, descriptor, descriptor, true);
        break;
    case 13: wgmma_fence(), wgmma_bf16<8>(d, descriptor, descriptor, false); break; // and never waits
    case 14: wgmma_fence(), wgmma_bf16<8>(d, descriptor | 1ull << 52, descriptor, false), wgmma_commit_group(), wgmma_wait_group<0>(); break;
    case 15: if (threadIdx.x < 32) bar_sync(1, 64); break;
    case 16: bar_sync(1, threadIdx.x < 32 ? 64 : 128); break;
    case 17: if (one) cp_async_bulk(base + 8, from, 16, bar); break;
    case 18: if (one) cp_async_bulk((void *)from, from, 16, bar); break;
    case 19: if (one) while (!mbarrier_try_wait_parity(bar, 2)) {} break;
    }
}

#endif

#endif
#endif
