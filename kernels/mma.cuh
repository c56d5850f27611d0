// The tensor cores' primitives, each one PTX instruction (sm_80 and later): asynchronous copies
// into shared memory, matrix loads, and the two products, as the PTX ISA lays their fragments out.
//
// A warp multiplies [16 rows] x [32 bytes of depth] x [8 columns] at a time: 16 values of bf16 or 8
// of tf32. With g = lane / 4 and t = lane % 4 a lane holds
//   a[i + 2 j]  row g + 8 i,    bytes 4 t .. 4 t + 4 of the slice's half j (16 bytes each)
//   b[j]        column g,       the same bytes of half j
//   d[2 i + e]  row g + 8 i,    column 2 t + e
// In bf16 those four bytes are two values, the first in the low half.
//
// With ZFNET_STANDIN the same names come from tests/standin/tensor.h, in plain C++.
#pragma once
#include "common.cuh"
#ifdef ZFNET_STANDIN
#include "tensor.h"
#else

// The 32-bit address of something in shared memory.
__device__ __forceinline__ unsigned shared_address(const void *shared) {
    return (unsigned)__cvta_generic_to_shared(shared);
}

// Begins to copy 16 bytes, or to write 16 zero bytes if not `inside`: then nothing is read, and
// `global` may point anywhere. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_16(void *shared, const void *global, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(inside ? 16 : 0)
                 : "memory");
}

// The same of 8 bytes.
__device__ __forceinline__ void copy_8(void *shared, const void *global, bool inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(inside ? 8 : 0)
                 : "memory");
}

// Closes this thread's group of copies, which may be empty.
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all of this thread's groups but the last `PENDING` have landed. What other threads
// copied is seen after a barrier behind this.
template <int PENDING> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8x8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8, and
// gets bytes 4 t .. 4 t + 4 of row g of each. So 32-bit values come whole.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each matrix transposed: a lane gets values 2 t and 2 t + 1 of column g.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d += a b, operands of bf16.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4],
                                         unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a b, operands of tf32: f32 bits that `round_tf32` has seen.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4],
                                         unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// An f32 rounded to tf32's ten bits of fraction, ties away from zero. Left to itself the product
// would cut the other bits off.
__device__ __forceinline__ unsigned round_tf32(unsigned bits) {
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "r"(bits));
    return rounded;
}

#endif
