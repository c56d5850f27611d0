// Hopper's instructions (sm_90a), one function each, named after what the PTX ISA calls it: mbarriers,
// TMA copies of tensors, and the products of a warpgroup.
//
// Terms. The generic proxy is what ordinary loads and stores go through; the async proxy, what TMA and wgmma
// go through. A warpgroup is four warps, of which the first is a multiple of 4. A tensor map describes a tensor
// and a box of it, made by cuTensorMapEncodeTiled or cuTensorMapEncodeIm2col, and is handed to a kernel as
// `const __grid_constant__ TensorMap`. Coordinates begin with the axis that is contiguous. All memory called
// shared is the block's own: clusters have one block here.
//
// Code that uses these is to stand within `#ifdef HOPPER`: other chips' assemblers do not know them.
//
// With ZFNET_STANDIN the same names come from tests/standin/hopper.h, in plain C++.
#pragma once
#include "mma.cuh"
#if defined(ZFNET_STANDIN) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER
#endif

// How 16-byte chunks are swizzled, as a matrix descriptor names it: within 128, 64 or 32 bytes. (A tensor map numbers
// these the other way round.)
enum Swizzle { SWIZZLE_NONE = 0, SWIZZLE_128B = 1, SWIZZLE_64B = 2, SWIZZLE_32B = 3 };

#ifdef ZFNET_STANDIN
#include "hopper.h"
#else

using Mbarrier = unsigned long long; // in shared memory

struct __align__(64) TensorMap { unsigned long long opaque[16]; };

// ---- mbarriers ----

// A phase ends when `count` arrivals were made and all expected bytes were copied. Follow it with a fence, and a
// barrier of the threads that use it.
__device__ __forceinline__ void mbarrier_init(Mbarrier *bar, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}

// Makes this thread's mbarrier_init visible to the async proxy.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Before the memory is used for anything else, another mbarrier included.
__device__ __forceinline__ void mbarrier_inval(Mbarrier *bar) {
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(bar)) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier *bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

// Lets the phase also wait for that many bytes, without arriving.
__device__ __forceinline__ void mbarrier_expect_tx(Mbarrier *bar, unsigned bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect_tx(Mbarrier *bar, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
                 : "memory");
}

// Whether the phase of this parity is over, phases being counted from 0: of a fresh mbarrier parity 1 is. May
// wait for a time, and may be false although the phase ends meanwhile.
__device__ __forceinline__ bool mbarrier_try_wait_parity(Mbarrier *bar, unsigned parity) {
    unsigned over;
    asm volatile("{\n\t.reg .pred over;\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n\t"
                 "selp.u32 %0, 1, 0, over;\n\t}"
                 : "=r"(over)
                 : "r"(shared_address(bar)), "r"(parity)
                 : "memory");
    return over;
}

// Waits until it is.
__device__ __forceinline__ void mbarrier_wait_parity(Mbarrier *bar, unsigned parity) {
    while (!mbarrier_try_wait_parity(bar, parity)) {}
}

// ---- proxies ----

// Orders what this thread did to shared memory through the generic proxy before what the async proxy does after.
// Between stores and a wgmma or TMA copy that reads or overwrites them, before the barrier between their threads.
__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- copies by TMA ----

__device__ __forceinline__ void prefetch_tensormap(const TensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Begins to copy a box, of which the first element stands at `at`, to shared memory (a multiple of 128), swizzled as
// the map says. What lies outside of the tensor is 0. The bytes of the whole box count at the mbarrier.
template <int RANK>
__device__ __forceinline__ void cp_async_bulk_tensor(void *shared, const TensorMap *map, const int (&at)[RANK], Mbarrier *bar) {
    static_assert(RANK >= 2 && RANK <= 5, "a tensor of 2 to 5 axes");
    const unsigned to = shared_address(shared), mbar = shared_address(bar);
    if constexpr (RANK == 2)
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                     ::"r"(to), "l"(map), "r"(mbar), "r"(at[0]), "r"(at[1]) : "memory");
    if constexpr (RANK == 3)
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
                     ::"r"(to), "l"(map), "r"(mbar), "r"(at[0]), "r"(at[1]), "r"(at[2]) : "memory");
    if constexpr (RANK == 4)
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
                     ::"r"(to), "l"(map), "r"(mbar), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]) : "memory");
    if constexpr (RANK == 5)
        asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], [%2];"
                     ::"r"(to), "l"(map), "r"(mbar), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]) : "memory");
}

// The same by a map of im2col over [N][H][W][C]: `at` is channel, column, row and image of the first pixel, within the
// map's bounding box. From there it goes through the box, by columns, rows and images; of each pixel it takes the one
// that lies `right` and `down` of it.
__device__ __forceinline__ void cp_async_bulk_tensor_im2col(void *shared, const TensorMap *map, const int (&at)[4],
                                                            unsigned short right, unsigned short down, Mbarrier *bar) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};"
                 ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(bar)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]),
                 "h"(right), "h"(down) : "memory");
}

// Begins to copy bytes that are not a tensor: both addresses and the size are multiples of 16.
__device__ __forceinline__ void cp_async_bulk(void *shared, const void *global, unsigned bytes, Mbarrier *bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(bar)) : "memory");
}

// Begins to copy a box from shared memory (a multiple of 128). What lies outside of the tensor is left out.
template <int RANK>
__device__ __forceinline__ void cp_async_bulk_tensor_store(const TensorMap *map, const int (&at)[RANK], const void *shared) {
    static_assert(RANK >= 2 && RANK <= 5, "a tensor of 2 to 5 axes");
    const unsigned from = shared_address(shared);
    if constexpr (RANK == 2)
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];"
                     ::"l"(map), "r"(from), "r"(at[0]), "r"(at[1]) : "memory");
    if constexpr (RANK == 3)
        asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];"
                     ::"l"(map), "r"(from), "r"(at[0]), "r"(at[1]), "r"(at[2]) : "memory");
    if constexpr (RANK == 4)
        asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
                     ::"l"(map), "r"(from), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]) : "memory");
    if constexpr (RANK == 5)
        asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];"
                     ::"l"(map), "r"(from), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]) : "memory");
}

// Closes this thread's group of stores, which may be empty.
__device__ __forceinline__ void cp_async_bulk_commit_group() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until all of this thread's groups of stores but the last `PENDING` are done.
template <int PENDING> __device__ __forceinline__ void cp_async_bulk_wait_group() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Waits until they have read shared memory. At the latest before the block ends.
template <int PENDING> __device__ __forceinline__ void cp_async_bulk_wait_group_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// ---- threads ----

// True for one lane of the warp, the same at every call.
__device__ __forceinline__ bool elect_sync() {
    unsigned elected;
    asm volatile("{\n\t.reg .pred elected;\n\telect.sync _|elected, 0xffffffff;\n\tselp.u32 %0, 1, 0, elected;\n\t}" : "=r"(elected));
    return elected;
}

// Barrier `id` (1 to 15) of that many threads of the block, a multiple of 32.
__device__ __forceinline__ void bar_sync(unsigned id, unsigned threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Arrives there, and does not wait.
__device__ __forceinline__ void bar_arrive(unsigned id, unsigned threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A warpgroup's registers a thread, from the pool of the block: a multiple of 8, from 24 to 256. The kernel has to have
// a limit of its own (__launch_bounds__ with the blocks of a multiprocessor).
template <int REGISTERS> __device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// ---- products of a warpgroup ----

// Before the first product, and between an access of registers and a product that uses them (but for accumulators of
// products of one shape, one after another). By all four warps, as all that follows.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit_group() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until all groups of products but the last `PENDING` are done.
template <int PENDING> __device__ __forceinline__ void wgmma_wait_group() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving accesses of these registers across this place: behind the wait for them.
template <int COUNT> __device__ __forceinline__ void wgmma_fence_operand(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// A matrix in shared memory as wgmma reads it. All in bytes, multiples of 16. With rows of A along M (columns of B along N)
// and elements of 16 bytes / T:
//   K-major   groups of 8 rows of a swizzle's width stand `stride` apart. Without swizzle a row is 16 bytes, and the next
//             16 bytes of it stand `leading` further; with it, `leading` is not used.
//   MN-major  (bf16 alone) 8 values of k, each with a swizzle's width of rows, stand `stride` apart, and the next rows
//             `leading` further. Without swizzle it is the other way round: the next T rows `stride`, the next 8 k `leading`.
// `base_offset` is 0 where the pattern of the swizzle begins at a multiple of 1024, 512 or 256 bytes, for 128, 64 and 32.
// Bytes / 16 added to a descriptor move its start.
__device__ __forceinline__ unsigned long long matrix_descriptor(const void *shared, unsigned leading, unsigned stride,
                                                                Swizzle swizzle, unsigned base_offset = 0) {
    const auto encode = [](unsigned bytes) { return (unsigned long long)((bytes & 0x3ffff) >> 4); };
    return encode(shared_address(shared)) | encode(leading) << 16 | encode(stride) << 32 |
           (unsigned long long)(base_offset & 7) << 49 | (unsigned long long)swizzle << 62;
}

// The assembler's lists of accumulators: the first four, and four more for every 8 columns.
#define WGMMA_FIRST_NAMES(a, b, c, e) "%" #a ", %" #b ", %" #c ", %" #e
#define WGMMA_MORE_NAMES(a, b, c, e) ", %" #a ", %" #b ", %" #c ", %" #e
#define WGMMA_FIRST_OPERANDS(a, b, c, e) "+f"(d[a]), "+f"(d[b]), "+f"(d[c]), "+f"(d[e])
#define WGMMA_MORE_OPERANDS(a, b, c, e) , "+f"(d[a]), "+f"(d[b]), "+f"(d[c]), "+f"(d[e])
#define WGMMA_D_8(F, M) F(0, 1, 2, 3)
#define WGMMA_D_16(F, M) WGMMA_D_8(F, M) M(4, 5, 6, 7)
#define WGMMA_D_24(F, M) WGMMA_D_16(F, M) M(8, 9, 10, 11)
#define WGMMA_D_32(F, M) WGMMA_D_24(F, M) M(12, 13, 14, 15)
#define WGMMA_D_40(F, M) WGMMA_D_32(F, M) M(16, 17, 18, 19)
#define WGMMA_D_48(F, M) WGMMA_D_40(F, M) M(20, 21, 22, 23)
#define WGMMA_D_56(F, M) WGMMA_D_48(F, M) M(24, 25, 26, 27)
#define WGMMA_D_64(F, M) WGMMA_D_56(F, M) M(28, 29, 30, 31)
#define WGMMA_D_72(F, M) WGMMA_D_64(F, M) M(32, 33, 34, 35)
#define WGMMA_D_80(F, M) WGMMA_D_72(F, M) M(36, 37, 38, 39)
#define WGMMA_D_88(F, M) WGMMA_D_80(F, M) M(40, 41, 42, 43)
#define WGMMA_D_96(F, M) WGMMA_D_88(F, M) M(44, 45, 46, 47)
#define WGMMA_D_104(F, M) WGMMA_D_96(F, M) M(48, 49, 50, 51)
#define WGMMA_D_112(F, M) WGMMA_D_104(F, M) M(52, 53, 54, 55)
#define WGMMA_D_120(F, M) WGMMA_D_112(F, M) M(56, 57, 58, 59)
#define WGMMA_D_128(F, M) WGMMA_D_120(F, M) M(60, 61, 62, 63)
#define WGMMA_D_136(F, M) WGMMA_D_128(F, M) M(64, 65, 66, 67)
#define WGMMA_D_144(F, M) WGMMA_D_136(F, M) M(68, 69, 70, 71)
#define WGMMA_D_152(F, M) WGMMA_D_144(F, M) M(72, 73, 74, 75)
#define WGMMA_D_160(F, M) WGMMA_D_152(F, M) M(76, 77, 78, 79)
#define WGMMA_D_168(F, M) WGMMA_D_160(F, M) M(80, 81, 82, 83)
#define WGMMA_D_176(F, M) WGMMA_D_168(F, M) M(84, 85, 86, 87)
#define WGMMA_D_184(F, M) WGMMA_D_176(F, M) M(88, 89, 90, 91)
#define WGMMA_D_192(F, M) WGMMA_D_184(F, M) M(92, 93, 94, 95)
#define WGMMA_D_200(F, M) WGMMA_D_192(F, M) M(96, 97, 98, 99)
#define WGMMA_D_208(F, M) WGMMA_D_200(F, M) M(100, 101, 102, 103)
#define WGMMA_D_216(F, M) WGMMA_D_208(F, M) M(104, 105, 106, 107)
#define WGMMA_D_224(F, M) WGMMA_D_216(F, M) M(108, 109, 110, 111)
#define WGMMA_D_232(F, M) WGMMA_D_224(F, M) M(112, 113, 114, 115)
#define WGMMA_D_240(F, M) WGMMA_D_232(F, M) M(116, 117, 118, 119)
#define WGMMA_D_248(F, M) WGMMA_D_240(F, M) M(120, 121, 122, 123)
#define WGMMA_D_256(F, M) WGMMA_D_248(F, M) M(124, 125, 126, 127)
#define WGMMA_NAMES(N) WGMMA_D_##N(WGMMA_FIRST_NAMES, WGMMA_MORE_NAMES)
#define WGMMA_OPERANDS(N) WGMMA_D_##N(WGMMA_FIRST_OPERANDS, WGMMA_MORE_OPERANDS)

// One instruction: its shape and types, the names of its operands, and these. `accumulate` is turned into a predicate.
#define WGMMA_ASM(N, instruction, accumulate_name, names, ...)                                                    \
    asm volatile("{\n\t.reg .pred accumulate;\n\tsetp.ne.b32 accumulate, %" #accumulate_name ", 0;\n\t"           \
                 "wgmma.mma_async.sync.aligned.m64n" #N instruction " {" WGMMA_NAMES(N) "}, " names ";\n\t}"      \
                 : WGMMA_OPERANDS(N) : __VA_ARGS__)

template <int N> struct Wgmma;
// For N columns; i .. q are the numbers of the operands behind the accumulators.
#define WGMMA(N, i, j, k, l, m, n, o, p, q)                                                                        \
    template <> struct Wgmma<N> {                                                                                  \
        template <int TRANSPOSE_A, int TRANSPOSE_B, int SCALE_A, int SCALE_B>                                      \
        static __device__ __forceinline__ void bf16(float (&d)[N / 2], unsigned long long a, unsigned long long b, int accumulate) { \
            WGMMA_ASM(N, "k16.f32.bf16.bf16", k, "%" #i ", %" #j ", accumulate, %" #l ", %" #m ", %" #n ", %" #o,  \
                      "l"(a), "l"(b), "r"(accumulate), "n"(SCALE_A), "n"(SCALE_B), "n"(TRANSPOSE_A), "n"(TRANSPOSE_B)); \
        }                                                                                                          \
        template <int TRANSPOSE_B, int SCALE_A, int SCALE_B>                                                       \
        static __device__ __forceinline__ void bf16(float (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, int accumulate) { \
            WGMMA_ASM(N, "k16.f32.bf16.bf16", n, "{%" #i ", %" #j ", %" #k ", %" #l "}, %" #m ", accumulate, %" #o ", %" #p ", %" #q, \
                      "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(SCALE_A), "n"(SCALE_B), "n"(TRANSPOSE_B)); \
        }                                                                                                          \
        template <int SCALE_A, int SCALE_B>                                                                        \
        static __device__ __forceinline__ void tf32(float (&d)[N / 2], unsigned long long a, unsigned long long b, int accumulate) { \
            WGMMA_ASM(N, "k8.f32.tf32.tf32", k, "%" #i ", %" #j ", accumulate, %" #l ", %" #m,                     \
                      "l"(a), "l"(b), "r"(accumulate), "n"(SCALE_A), "n"(SCALE_B));                                \
        }                                                                                                          \
        template <int SCALE_A, int SCALE_B>                                                                        \
        static __device__ __forceinline__ void tf32(float (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, int accumulate) { \
            WGMMA_ASM(N, "k8.f32.tf32.tf32", n, "{%" #i ", %" #j ", %" #k ", %" #l "}, %" #m ", accumulate, %" #o ", %" #p, \
                      "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(SCALE_A), "n"(SCALE_B)); \
        }                                                                                                          \
    };
WGMMA(8, 4, 5, 6, 7, 8, 9, 10, 11, 12)
WGMMA(16, 8, 9, 10, 11, 12, 13, 14, 15, 16)
WGMMA(24, 12, 13, 14, 15, 16, 17, 18, 19, 20)
WGMMA(32, 16, 17, 18, 19, 20, 21, 22, 23, 24)
WGMMA(40, 20, 21, 22, 23, 24, 25, 26, 27, 28)
WGMMA(48, 24, 25, 26, 27, 28, 29, 30, 31, 32)
WGMMA(56, 28, 29, 30, 31, 32, 33, 34, 35, 36)
WGMMA(64, 32, 33, 34, 35, 36, 37, 38, 39, 40)
WGMMA(72, 36, 37, 38, 39, 40, 41, 42, 43, 44)
WGMMA(80, 40, 41, 42, 43, 44, 45, 46, 47, 48)
WGMMA(88, 44, 45, 46, 47, 48, 49, 50, 51, 52)
WGMMA(96, 48, 49, 50, 51, 52, 53, 54, 55, 56)
WGMMA(104, 52, 53, 54, 55, 56, 57, 58, 59, 60)
WGMMA(112, 56, 57, 58, 59, 60, 61, 62, 63, 64)
WGMMA(120, 60, 61, 62, 63, 64, 65, 66, 67, 68)
WGMMA(128, 64, 65, 66, 67, 68, 69, 70, 71, 72)
WGMMA(136, 68, 69, 70, 71, 72, 73, 74, 75, 76)
WGMMA(144, 72, 73, 74, 75, 76, 77, 78, 79, 80)
WGMMA(152, 76, 77, 78, 79, 80, 81, 82, 83, 84)
WGMMA(160, 80, 81, 82, 83, 84, 85, 86, 87, 88)
WGMMA(168, 84, 85, 86, 87, 88, 89, 90, 91, 92)
WGMMA(176, 88, 89, 90, 91, 92, 93, 94, 95, 96)
WGMMA(184, 92, 93, 94, 95, 96, 97, 98, 99, 100)
WGMMA(192, 96, 97, 98, 99, 100, 101, 102, 103, 104)
WGMMA(200, 100, 101, 102, 103, 104, 105, 106, 107, 108)
WGMMA(208, 104, 105, 106, 107, 108, 109, 110, 111, 112)
WGMMA(216, 108, 109, 110, 111, 112, 113, 114, 115, 116)
WGMMA(224, 112, 113, 114, 115, 116, 117, 118, 119, 120)
WGMMA(232, 116, 117, 118, 119, 120, 121, 122, 123, 124)
WGMMA(240, 120, 121, 122, 123, 124, 125, 126, 127, 128)
WGMMA(248, 124, 125, 126, 127, 128, 129, 130, 131, 132)
WGMMA(256, 128, 129, 130, 131, 132, 133, 134, 135, 136)
#undef WGMMA

// Begins d = a b, or d += a b if `accumulate`, with [64][16] of a and [16][N] of b in bf16 and sums in f32; N is a multiple of
// 8 up to 256. Warp w of the warpgroup has rows 16 w ..; with g = lane / 4 and t = lane % 4 a lane holds
//   a[j]            row 16 w + g + 8 (j % 2), values 2 t and 2 t + 1 of half j / 2 of the slice, the first in the low half
//   d[4 c + 2 i + e]  row 16 w + g + 8 i, column 8 c + 2 t + e
// A scale of -1 negates an operand; transposed ones are MN-major.
template <int N, bool TRANSPOSE_A = false, bool TRANSPOSE_B = false, int SCALE_A = 1, int SCALE_B = 1>
__device__ __forceinline__ void wgmma_bf16(float (&d)[N / 2], unsigned long long a, unsigned long long b, bool accumulate) {
    Wgmma<N>::template bf16<TRANSPOSE_A, TRANSPOSE_B, SCALE_A, SCALE_B>(d, a, b, accumulate);
}
// The same with a in registers.
template <int N, bool TRANSPOSE_B = false, int SCALE_A = 1, int SCALE_B = 1>
__device__ __forceinline__ void wgmma_bf16(float (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, bool accumulate) {
    Wgmma<N>::template bf16<TRANSPOSE_B, SCALE_A, SCALE_B>(d, a, b, accumulate);
}

// The same with [64][8] of a and [8][N] of b in tf32, both K-major; a[j] is value t + 4 (j / 2) of the slice.
template <int N, int SCALE_A = 1, int SCALE_B = 1>
__device__ __forceinline__ void wgmma_tf32(float (&d)[N / 2], unsigned long long a, unsigned long long b, bool accumulate) {
    Wgmma<N>::template tf32<SCALE_A, SCALE_B>(d, a, b, accumulate);
}
template <int N, int SCALE_A = 1, int SCALE_B = 1>
__device__ __forceinline__ void wgmma_tf32(float (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, bool accumulate) {
    Wgmma<N>::template tf32<SCALE_A, SCALE_B>(d, a, b, accumulate);
}

#endif
