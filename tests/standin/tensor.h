// kernels/mma.cuh on the CPU: the same names in plain C++, with the PTX ISA's fragment layouts.
// What the lanes of a warp have to see of each other they exchange by address, between barriers.
//
// Asynchronous copies are made as unkind as the hardware may be: each lands at its issue or at the
// wait that covers it; with ZFNET_STANDIN_EARLY in the environment, early. A check runs both ways:
// late finds a missing wait, early a stage that is filled while others still read it. Addresses
// that are not multiples of what is copied end the run, and so does a block that leaves copies behind.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace standin_tensor {

inline bool copies_land_early = getenv("ZFNET_STANDIN_EARLY") != nullptr;

struct Copy { void *shared; const void *global; bool inside; unsigned bytes; };
// A thread's groups of copies, of which the last is still open, and the block that they belong to.
struct Queue {
    std::deque<std::vector<Copy>> groups{1};
    uint3 block{};
};

inline void check_aligned(const void *address, unsigned bytes = 16) {
    if ((uintptr_t)address % bytes) zfcpu::die("an address that is not aligned for a copy or a matrix");
}

// This thread's queue. Blocks that run at the same time have different dynamic shared memory; the
// header poisons everything thread-local.
inline Queue &queue() {
    static std::mutex mutex;
    static std::map<const void *, std::unique_ptr<Queue[]>> all;
    Queue *queues;
    {
        std::lock_guard lock(mutex);
        auto &of_block = all[zfcpu::block.dynamic];
        if (!of_block) of_block.reset(new Queue[zfcpu::MAX_THREADS]);
        queues = of_block.get();
    }
    Queue &queue = queues[zfcpu::cur.lin];
    const uint3 &block = zfcpu::cur.bid;
    if (queue.block.x != block.x || queue.block.y != block.y || queue.block.z != block.z) {
        for (auto &group : queue.groups)
            if (!group.empty()) zfcpu::die("the block before ended before its copies landed");
        queue.block = block;
    }
    return queue;
}

inline void land(const Copy &copy) {
    if (copy.inside) memcpy(copy.shared, copy.global, copy.bytes);
    else memset(copy.shared, 0, copy.bytes);
}

inline void begin(const Copy &copy) {
    check_aligned(copy.shared, copy.bytes);
    check_aligned(copy.global, copy.bytes);
    if (copies_land_early) land(copy);
    else queue().groups.back().push_back(copy);
}

// `read(lanes)` while `lanes(l)` is what lane l calls `mine`.
template <class T, class F> void with_lanes(const T *mine, F read) {
    zfcpu::exchange(~0u, mine, [&](const uint64_t *slots) {
        read([=](unsigned lane) {
            T *other;
            memcpy(&other, &slots[lane], sizeof other);
            return other;
        });
        return 0;
    });
}

// Words of a fragment of A and of B.
struct Operands { unsigned a[4], b[2]; };

// d += a b over `DEPTH` values, one after another in f32. `value(word, k)` is value k of a row's
// slice, `word` the four bytes that hold it; `PER_WORD` of them do.
template <int DEPTH, int PER_WORD, class Value>
void multiply(float (&d)[4], const Operands &mine, Value value) {
    with_lanes(&mine, [&](auto lanes) {
        unsigned g = zfcpu::lane() / 4, t = zfcpu::lane() % 4;
        for (int i = 0; i < 2; i++)
            for (int e = 0; e < 2; e++)
                for (int k = 0; k < DEPTH; k++) {
                    unsigned half = k / (DEPTH / 2), holder = k % (DEPTH / 2) / PER_WORD;
                    unsigned row = lanes(4 * g + holder)->a[i + 2 * half];
                    unsigned column = lanes(4 * (2 * t + e) + holder)->b[half];
                    d[2 * i + e] = fmaf(value(row, k), value(column, k), d[2 * i + e]);
                }
    });
}

} // namespace standin_tensor

inline void copy_16(void *shared, const void *global, bool inside) {
    standin_tensor::begin({shared, global, inside, 16});
}

inline void copy_8(void *shared, const void *global, bool inside) {
    standin_tensor::begin({shared, global, inside, 8});
}

inline void commit_copies() { standin_tensor::queue().groups.emplace_back(); }

template <int PENDING> void wait_copies() {
    auto &groups = standin_tensor::queue().groups;
    while (groups.size() > PENDING + 1) {
        for (auto &copy : groups.front()) standin_tensor::land(copy);
        groups.pop_front();
    }
}

inline void load_matrices(unsigned (&r)[4], const void *row) {
    standin_tensor::check_aligned(row);
    standin_tensor::with_lanes((const unsigned char *)row, [&](auto rows) {
        unsigned g = zfcpu::lane() / 4, t = zfcpu::lane() % 4;
        for (int m = 0; m < 4; m++) memcpy(&r[m], rows(8 * m + g) + 4 * t, 4);
    });
}

inline void load_matrices_transposed(unsigned (&r)[4], const void *row) {
    standin_tensor::check_aligned(row);
    standin_tensor::with_lanes((const unsigned char *)row, [&](auto rows) {
        unsigned g = zfcpu::lane() / 4, t = zfcpu::lane() % 4;
        for (int m = 0; m < 4; m++)
            for (int e = 0; e < 2; e++)
                memcpy((char *)&r[m] + 2 * e, rows(8 * m + 2 * t + e) + 2 * g, 2);
    });
}

inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    auto value = [](unsigned word, int k) {
        return __uint_as_float(k % 2 ? word & 0xffff0000u : word << 16);
    };
    standin_tensor::multiply<16, 2>(d, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, value);
}

// The hardware does not see an f32's last 13 bits.
inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    auto value = [](unsigned word, int) { return __uint_as_float(word & 0xffffe000u); };
    standin_tensor::multiply<8, 1>(d, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, value);
}

inline unsigned round_tf32(unsigned bits) {
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits & 0x7fffffu ? 0x7fffffffu : bits;
    return (bits + 0x1000u) & 0xffffe000u;
}
