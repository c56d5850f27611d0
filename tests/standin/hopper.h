// kernels/hopper.cuh on the CPU: the same names in plain C++, after the PTX ISA's text. HOPPER.md says which sections,
// and what had to be assumed.
//
// As late as the hardware may be: a TMA load lands when a thread waits for its mbarrier and no other can run (with
// ZFNET_STANDIN_EARLY at once), a store reads shared memory and products are computed when a thread waits for them
// and no other can run. What is wrong by PTX ends the run with a sentence.
//
// The async proxy's view of shared memory is a second copy, `seen`. Ordinary stores do not change it until a
// fence.proxy.async; where TMA or wgmma reads or overwrites bytes that differ, a fence or a wait is missing.
#pragma once
#include "tensor_map.h"
#include <array>
#include <tuple>

using Mbarrier = unsigned long long;

namespace standin_hopper {

using zfcpu::die;
using Registers = std::vector<float>;

constexpr unsigned WINDOW = 1024; // where shared memory begins that is a block's own
constexpr int WARPGROUP = 128;

template <class... A> std::string text(const char *format, A... arguments) {
    char line[300];
    snprintf(line, sizeof line, format, arguments...);
    return line;
}
[[noreturn]] inline void die_of(const std::string &what) { die(what.c_str()); }

// The offset of bytes in dynamic shared memory: TMA and wgmma are played there alone.
inline size_t offset_of(const void *at, size_t bytes, const char *who) {
    const zfcpu::Dynamic &dynamic = zfcpu::dynamic();
    const size_t offset = (const unsigned char *)at - dynamic.bytes;
    if (offset > dynamic.size || bytes > dynamic.size - offset)
        die_of(text("%s: %zu bytes that are not within dynamic shared memory", who, bytes));
    return offset;
}
inline unsigned address_of(size_t offset) { return WINDOW + zfcpu::Dynamic::BEGIN + offset; }

// Bits of an address from 4 on are changed by those from 7 on, `span` chunks being 2, 4 or 8. The pattern
// begins `base_offset` lines of 128 bytes later.
inline unsigned swizzled(unsigned address, unsigned span, unsigned base_offset = 0) {
    return address ^ ((((address >> 7) - base_offset) & (span - 1)) << 4);
}

// ---- what is going on in a block ----

struct Barrier {
    unsigned expected, pending, phase = 0;
    int bytes = 0;         // expected and not there
    bool fenced = false;   // since it was initialised
    bool observed = true;  // some thread has seen the last phase complete
    int by = 0;            // the thread that initialised it
    int waiters = 0;
};

struct Load {
    Mbarrier *bar;
    TensorMap map; // of a bulk copy without one: magic 0
    std::array<int, 5> at;
    int right, down;
    const unsigned char *global;
    size_t offset, bytes;
};

struct Store {
    TensorMap map;
    std::array<int, 5> at;
    size_t offset;
    std::vector<unsigned char> box; // once it is read
    bool written = false;
};

// Accumulators of one thread, from the first product that uses them until all that were begun are done. Meanwhile the
// registers are NaN.
struct Accumulators {
    float *registers;
    int products = 0;
    Registers values;
};

struct Product {
    int columns, depth, transposed[2], scale[2];
    bool tf32, accumulate, a_in_registers;
    unsigned long long a, b;
    int threads = 0; // that have begun it
    bool done = false;
    std::shared_ptr<Accumulators> d[WARPGROUP];
    unsigned fragments[WARPGROUP][4];

    bool same(const Product &other) const {
        auto all = [](const Product &p) {
            return std::make_tuple(p.columns, p.depth, p.transposed[0], p.transposed[1], p.scale[0], p.scale[1], p.tf32, p.accumulate, p.a_in_registers, p.a, p.b);
        };
        return all(*this) == all(other);
    }
};

// The last product's accumulators when it was done, and how many fences there had been.
struct Delivered { Registers values; int fences; };

struct Thread {
    std::vector<Store> stores;
    std::deque<std::vector<Store>> store_groups;
    std::vector<std::shared_ptr<Product>> products;
    std::deque<std::vector<std::shared_ptr<Product>>> product_groups;
    size_t begun = 0; // products
    int fences = 0;   // of wgmma
    std::vector<std::shared_ptr<Accumulators>> in_flight;
    std::map<float *, Delivered> delivered;
};

struct Warpgroup {
    std::deque<std::shared_ptr<Product>> products; // that not all threads have begun
    size_t before = 0;                             // products that all have
};

struct Named { unsigned threads = 0, arrived = 0, turn = 0; };

struct Block : zfcpu::Background {
    std::vector<unsigned char> seen = std::vector<unsigned char>(zfcpu::dynamic().size, 0xFF);
    std::map<Mbarrier *, Barrier> barriers;
    std::vector<Load> loads;
    std::vector<Thread> threads = std::vector<Thread>(zfcpu::MAX_THREADS);
    Warpgroup warpgroups[zfcpu::MAX_THREADS / WARPGROUP];
    Named named[16];

    bool advance() override;
    void end() override;

    unsigned char *memory() const { return zfcpu::dynamic().bytes; }
    // What the async proxy reads there, which must be what ordinary loads would.
    const unsigned char *read(size_t offset, size_t bytes, const char *who) const {
        if (memcmp(memory() + offset, &seen[offset], bytes) != 0)
            die_of(text("%s uses shared memory at %u that ordinary stores have changed, without fence.proxy.async or while it was in use", who, address_of(offset)));
        return &seen[offset];
    }
    void write(size_t offset, const void *from, size_t bytes) {
        memcpy(memory() + offset, from, bytes);
        memcpy(&seen[offset], from, bytes);
    }
    void land(const Load &load);
};
inline Block &block() { return zfcpu::background<Block>(); }
inline Thread &thread() { return block().threads[zfcpu::cur.lin]; }

// ---- mbarriers ----

inline std::string name_of(const Mbarrier *bar) {
    const zfcpu::Dynamic &dynamic = zfcpu::dynamic();
    const size_t offset = (const unsigned char *)bar - dynamic.bytes;
    if (offset >= dynamic.size) return text("the mbarrier at %p", (const void *)bar);
    return text("the mbarrier at shared address %u (byte %zu of dynamic memory)", address_of(offset), offset);
}

inline Barrier &barrier(Mbarrier *bar) {
    auto &barriers = block().barriers;
    auto found = barriers.find(bar);
    if (found == barriers.end()) die_of(name_of(bar) + " is used, and not initialised");
    return found->second;
}

inline void complete_if_due(Barrier &b) {
    if (b.pending != 0 || b.bytes != 0) return;
    b.phase++;
    b.pending = b.expected;
    b.observed = false;
}

inline void add_bytes(Mbarrier *bar, long long bytes) {
    Barrier &b = barrier(bar);
    const long long sum = b.bytes + bytes;
    if (std::abs(sum) >= 1 << 20) die_of(name_of(bar) + " counts 2^20 bytes or more");
    b.bytes = sum;
}

inline bool is_over(const Barrier &b, unsigned parity) { return (b.phase & 1) != parity; }

struct PhaseWait : zfcpu::Wait {
    Mbarrier *bar;
    Barrier &b;
    unsigned parity;
    PhaseWait(Mbarrier *bar, Barrier &b, unsigned parity) : Wait(false), bar(bar), b(b), parity(parity) { b.waiters++; }
    ~PhaseWait() { b.waiters--; }
    bool over() override { return is_over(b, parity); }
    std::string what() const override {
        return text("parity %u of ", parity) + name_of(bar) + text(", which is in phase %u and lacks %u arrivals and %d bytes", b.phase, b.pending, b.bytes);
    }
};

// ---- TMA ----

// What may be done when nothing else can.
struct Patience : zfcpu::Wait {
    Patience() : Wait(true) {}
    bool over() override { return true; }
    std::string what() const override { return "TMA"; } // never: it is over at once
};

// `visit(byte of the box, global address)` for every element of a box that is within the tensor.
template <class Visit> void each_element(const TensorMap &map, const std::array<int, 5> &at, int right, int down, Visit visit) {
    const int bytes = map.element_bytes;
    int64_t w = at[1], h = at[2], n = at[3]; // of im2col
    for (unsigned row = 0; row < map.rows(); row++) {
        int64_t position[5];
        if (map.im2col) {
            position[1] = w + right, position[2] = h + down, position[3] = n;
            w += map.step[1];
            if (w > (int64_t)map.last[1] + map.upper[0]) w = map.lower[0], h += map.step[2];
            if (h > (int64_t)map.last[2] + map.upper[1]) h = map.lower[1], n += map.step[3];
        } else {
            unsigned rest = row;
            for (int i = 1; i < map.rank; i++) {
                position[i] = at[i] + (int64_t)(rest % map.count(i)) * map.step[i];
                rest /= map.count(i);
            }
        }
        bool inside = true;
        uint64_t address = map.address;
        for (int i = 1; i < map.rank; i++) {
            inside &= position[i] >= 0 && position[i] <= (int64_t)map.last[i];
            address += position[i] * map.strides[i - 1];
        }
        for (int64_t x = 0; inside && x < map.box[0]; x++)
            if (at[0] + x >= 0 && at[0] + x <= (int64_t)map.last[0]) visit((row * map.box[0] + x) * bytes, (unsigned char *)(address + (at[0] + x) * bytes));
    }
}

// The offset in shared memory of chunk `i` of a box that begins at `offset`.
inline size_t chunk(const TensorMap &map, size_t offset, size_t i) { return swizzled(address_of(offset + 16 * i), map.span) - address_of(0); }

inline void check_map(const TensorMap *map, int rank, bool im2col, const char *who) {
    if (map->magic != TensorMap::MAGIC) die_of(text("%s: no tensor map", who));
    if (map->rank != rank || map->im2col != im2col) die_of(text("%s: a tensor map of another kind or rank", who));
    if (map->span > 1 && map->row_bytes() != map->span * 16u) die_of(text("%s: rows narrower than the swizzle, which is not played here", who));
}

inline size_t box_offset(const void *shared, const TensorMap &map, const char *who) {
    const size_t offset = offset_of(shared, map.bytes(), who);
    if (address_of(offset) % 128) die_of(text("%s: a shared address that is not a multiple of 128", who));
    return offset;
}

inline void Block::land(const Load &load) {
    const char *who = "a load by TMA";
    read(load.offset, load.bytes, who);
    for (auto &[bar, _] : barriers) {
        const size_t at = (unsigned char *)bar - memory();
        if (at + 8 > load.offset && at < load.offset + load.bytes) die_of(std::string(who) + " overwrites " + name_of(bar));
    }
    std::vector<unsigned char> box(load.bytes);
    if (load.map.magic) {
        each_element(load.map, load.at, load.right, load.down, [&](size_t byte, const unsigned char *global) { memcpy(&box[byte], global, load.map.element_bytes); });
        for (size_t i = 0; i < load.bytes / 16; i++) write(chunk(load.map, load.offset, i), &box[16 * i], 16);
    } else {
        write(load.offset, load.global, load.bytes);
    }
    add_bytes(load.bar, -(long long)load.bytes);
    complete_if_due(barrier(load.bar));
}

inline void begin(const Load &load) {
    Block &b = block();
    if (!barrier(load.bar).fenced) die_of(name_of(load.bar) + " is used by TMA, and no fence has followed its initialisation");
    b.read(load.offset, load.bytes, "a load by TMA");
    if (standin_tensor::copies_land_early) b.land(load);
    else b.loads.push_back(load);
}

// Reads a store's box from shared memory, as it is now.
inline void collect(Store &store) {
    if (!store.box.empty()) return;
    store.box.resize(store.map.bytes());
    for (size_t i = 0; i < store.box.size() / 16; i++)
        memcpy(&store.box[16 * i], block().read(chunk(store.map, store.offset, i), 16, "a store by TMA"), 16);
}
inline void deliver(Store &store) {
    if (store.written) return;
    collect(store);
    store.written = true;
    each_element(store.map, store.at, 0, 0, [&](size_t byte, unsigned char *global) { memcpy(global, &store.box[byte], store.map.element_bytes); });
}

inline void wait_for_stores(size_t pending, bool written) {
    Thread &t = thread();
    if (t.store_groups.size() <= pending) return;
    Patience patience;
    zfcpu::wait(patience);
    for (size_t i = 0; i + pending < t.store_groups.size(); i++)
        for (Store &store : t.store_groups[i]) written ? deliver(store) : collect(store);
    while (written && t.store_groups.size() > pending) t.store_groups.pop_front();
}

// A load that some thread waits for, the last one first.
inline bool Block::advance() {
    for (size_t i = loads.size(); i-- > 0;) {
        if (!barrier(loads[i].bar).waiters) continue;
        const Load load = loads[i];
        loads.erase(loads.begin() + i);
        land(load);
        return true;
    }
    return false;
}

inline void Block::end() {
    if (!loads.empty()) die_of("the block ends before " + std::to_string(loads.size()) + " loads by TMA have landed");
    for (auto &[bar, b] : barriers)
        if (b.bytes != 0) die_of(text("the block ends, and %d bytes more are expected than came at ", b.bytes) + name_of(bar));
    for (Thread &t : threads) {
        if (!t.stores.empty()) die("the block ends, and stores by TMA are in no group");
        for (auto &group : t.store_groups)
            for (Store &store : group) {
                if (store.box.empty()) die("the block ends before a store by TMA has read shared memory");
                deliver(store);
            }
        if (!t.in_flight.empty()) die("the block ends before products were waited for");
    }
}

// ---- wgmma ----

// What registers hold while a product is in flight: a NaN that is no result of arithmetic.
inline float in_flight() { return __uint_as_float(0xffffffffu); }
inline bool is_in_flight(const float *registers, size_t count) {
    return std::all_of(registers, registers + count, [](float x) { return __float_as_uint(x) == 0xffffffffu; });
}

// The shared address of an element: row `i` along M or N, `k` along K, as the canonical layouts have them.
inline unsigned element_address(unsigned long long descriptor, int i, int k, bool mn_major, int bytes) {
    constexpr unsigned SPAN[] = {1, 8, 4, 2};
    const auto field = [&](int bit) { return (unsigned)(descriptor >> bit & 0x3fff) << 4; };
    const unsigned start = field(0), leading = field(16), stride = field(32), base_offset = descriptor >> 49 & 7, span = SPAN[descriptor >> 62];
    const int chunk = 16 / bytes, width = chunk * span; // elements of 16 bytes, and of a swizzle's row
    const auto in_chunk = [&](int x) { return x % chunk * bytes; };
    unsigned offset;
    if (!mn_major && span == 1) offset = i % 8 * 16 + i / 8 * stride + in_chunk(k) + k / chunk * leading;
    else if (!mn_major) offset = i % 8 * 16 * span + i / 8 * stride + k * bytes;
    else if (span == 1) offset = in_chunk(i) + i / chunk * stride + k % 8 * 16 + k / 8 * leading;
    else offset = i % width * bytes + i / width * leading + k % 8 * 16 * span + k / 8 * stride;
    return swizzled((start + offset) & 0x3ffff, span, base_offset);
}

// Widened values of `rows` rows and `depth` values of k.
inline Registers operand(unsigned long long descriptor, int rows, const Product &p, int which) {
    constexpr unsigned long long RESERVED = 0x3ull << 14 | 0x3ull << 30 | 0x7ull << 46 | 0x3ffull << 52;
    const int bytes = p.tf32 ? 4 : 2;
    const char *who = which ? "wgmma (its operand b)" : "wgmma (its operand a)";
    if (descriptor & RESERVED) die_of(text("%s: a matrix descriptor with bits that mean nothing", who));
    Registers values;
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < p.depth; k++) {
            const unsigned address = element_address(descriptor, i, k, p.transposed[which], bytes);
            const unsigned char *at = block().read(offset_of(block().memory() + (address - address_of(0)), bytes, who), bytes, who);
            unsigned bits = 0;
            memcpy((char *)&bits + 4 - bytes, at, bytes);
            values.push_back(p.scale[which] * __uint_as_float(p.tf32 ? bits & 0xffffe000u : bits));
        }
    return values;
}

// Operand a from the threads' registers.
inline Registers fragments(const Product &p) {
    Registers values(64 * p.depth);
    for (int x = 0; x < WARPGROUP; x++)
        for (int j = 0; j < 4; j++)
            for (int e = 0; e < (p.tf32 ? 1 : 2); e++) {
                const int row = x / 32 * 16 + x % 32 / 4 + j % 2 * 8, per_word = p.tf32 ? 1 : 2;
                const int k = x % 4 * per_word + e + j / 2 * (p.depth / 2);
                const unsigned word = p.fragments[x][j];
                values[row * p.depth + k] = p.scale[0] * __uint_as_float(p.tf32 ? word & 0xffffe000u : e ? word & 0xffff0000u : word << 16);
            }
    return values;
}

// One after another in f32, as mma.sync in tensor.h.
inline void compute(Product &p) {
    p.done = true;
    const Registers a = p.a_in_registers ? fragments(p) : operand(p.a, 64, p, 0), b = operand(p.b, p.columns, p, 1);
    for (int x = 0; x < WARPGROUP; x++)
        for (int i = 0; i < p.columns / 2; i++) {
            const int row = x / 32 * 16 + x % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + x % 4 * 2 + i % 2;
            float sum = p.accumulate ? p.d[x]->values[i] : 0;
            for (int k = 0; k < p.depth; k++) sum = fmaf(a[row * p.depth + k], b[column * p.depth + k], sum);
            p.d[x]->values[i] = sum;
        }
}

// The accumulators for a product that is about to begin.
inline std::shared_ptr<Accumulators> take(float *registers, size_t count) {
    Thread &t = thread();
    for (auto &acc : t.in_flight) {
        if (acc->registers != registers) continue;
        if (acc->values.size() != count) die("wgmma: a product of another shape uses accumulators that are in flight");
        if (!is_in_flight(registers, count)) die("wgmma: registers were changed while a product was in flight");
        return acc;
    }
    if (t.fences == 0) die("wgmma.mma_async without wgmma.fence before it");
    auto before = t.delivered.find(registers);
    if (before != t.delivered.end() && before->second.fences == t.fences &&
        (before->second.values.size() != count || memcmp(before->second.values.data(), registers, 4 * count) != 0))
        die("wgmma: accumulators were changed, and no wgmma.fence has followed");
    auto acc = std::make_shared<Accumulators>();
    acc->registers = registers;
    acc->values.assign(registers, registers + count);
    std::fill_n(registers, count, in_flight());
    t.in_flight.push_back(acc);
    return acc;
}

// This thread's part in the product, which begins when all of the warpgroup have come.
inline void begin(const Product &mine, float *registers, const unsigned *a) {
    const int group = zfcpu::cur.lin / WARPGROUP, x = zfcpu::cur.lin % WARPGROUP;
    if (group * WARPGROUP + WARPGROUP > (int)(blockDim.x * blockDim.y * blockDim.z)) die("wgmma: a warpgroup without four whole warps");
    Thread &t = thread();
    Warpgroup &w = block().warpgroups[group];
    const size_t number = t.begun++ - w.before;
    if (number == w.products.size()) w.products.push_back(std::make_shared<Product>(mine));
    const std::shared_ptr<Product> p = w.products[number];
    if (!p->same(mine)) die("wgmma: the threads of a warpgroup differ in the instruction, a descriptor or whether to accumulate");
    p->d[x] = take(registers, mine.columns / 2);
    p->d[x]->products++;
    if (a) std::copy_n(a, 4, p->fragments[x]);
    t.products.push_back(p);
    if (++p->threads == WARPGROUP) w.products.pop_front(), w.before++;
}

struct ProductWait : zfcpu::Wait {
    const Thread &t;
    size_t pending;
    ProductWait(const Thread &t, size_t pending) : Wait(true), t(t), pending(pending) {}
    bool over() override {
        for (size_t i = 0; i + pending < t.product_groups.size(); i++)
            for (auto &p : t.product_groups[i])
                if (p->threads < WARPGROUP) return false;
        return true;
    }
    std::string what() const override { return "products that not all threads of the warpgroup have begun"; }
};

inline void wait_for_products(size_t pending) {
    Thread &t = thread();
    if (t.product_groups.size() <= pending) return;
    ProductWait wait(t, pending);
    zfcpu::wait(wait);
    for (; t.product_groups.size() > pending; t.product_groups.pop_front())
        for (auto &p : t.product_groups.front()) {
            if (!p->done) compute(*p);
            Accumulators &acc = *p->d[zfcpu::cur.lin % WARPGROUP];
            if (--acc.products) continue;
            if (!is_in_flight(acc.registers, acc.values.size())) die("wgmma: registers were changed while a product was in flight");
            std::copy(acc.values.begin(), acc.values.end(), acc.registers);
            t.delivered[acc.registers] = {acc.values, t.fences};
            t.in_flight.erase(std::find_if(t.in_flight.begin(), t.in_flight.end(), [&](auto &other) { return other.get() == &acc; }));
        }
}

// ---- named barriers ----

struct NamedWait : zfcpu::Wait {
    const Named &named;
    unsigned id, turn;
    NamedWait(const Named &named, unsigned id) : Wait(false), named(named), id(id), turn(named.turn) {}
    bool over() override { return named.turn != turn; }
    std::string what() const override { return text("barrier %u, where %u of %u threads are", id, named.arrived, named.threads); }
};

// `true` if it was the last one.
inline bool arrive_at(Named &named, unsigned threads) {
    if (threads == 0 || threads % 32) die("bar: a number of threads that is not a multiple of 32");
    if (named.arrived && named.threads != threads) die("bar: threads expect different numbers of threads");
    named.threads = threads;
    if (++named.arrived < threads) return false;
    named.arrived = 0;
    named.turn++;
    return true;
}
inline Named &named(unsigned id) {
    if (id == 0 || id > 15) die("bar: an id that is not within 1 .. 15 (0 is __syncthreads)");
    return block().named[id];
}

} // namespace standin_hopper

// Shared memory has addresses of its own, of which TMA and wgmma look at the bits.
inline unsigned shared_address(const void *shared) {
    return standin_hopper::address_of(standin_hopper::offset_of(shared, 0, "shared_address"));
}

inline void mbarrier_init(Mbarrier *bar, unsigned count) {
    using namespace standin_hopper;
    if ((uintptr_t)bar % 8) die_of(name_of(bar) + " is not at a multiple of 8");
    if (count == 0 || count >= 1 << 20) die_of(name_of(bar) + " is initialised for 0 or 2^20 or more arrivals");
    Barrier fresh{count, count};
    fresh.by = zfcpu::cur.lin;
    if (!block().barriers.emplace(bar, fresh).second) die_of(name_of(bar) + " is initialised again without mbarrier.inval");
}
inline void fence_mbarrier_init() {
    for (auto &[bar, b] : standin_hopper::block().barriers) b.fenced |= b.by == zfcpu::cur.lin;
}
inline void mbarrier_inval(Mbarrier *bar) {
    standin_hopper::barrier(bar);
    standin_hopper::block().barriers.erase(bar);
}
inline void mbarrier_arrive(Mbarrier *bar) {
    using namespace standin_hopper;
    Barrier &b = barrier(bar);
    if (!b.observed) die_of("an arrival at " + name_of(bar) + ", of which no thread has seen the last phase complete");
    if (b.pending == 0) die_of("more arrivals than were declared at " + name_of(bar));
    b.pending--;
    complete_if_due(b);
}
inline void mbarrier_expect_tx(Mbarrier *bar, unsigned bytes) { standin_hopper::add_bytes(bar, bytes); }
inline void mbarrier_arrive_expect_tx(Mbarrier *bar, unsigned bytes) {
    mbarrier_expect_tx(bar, bytes);
    mbarrier_arrive(bar);
}
// Where it has to wait it returns false afterwards, as it may: whoever asks once is shown.
inline bool mbarrier_try_wait_parity(Mbarrier *bar, unsigned parity) {
    using namespace standin_hopper;
    if (parity > 1) die_of("a parity of neither 0 nor 1 for " + name_of(bar));
    Barrier &b = barrier(bar);
    if (is_over(b, parity)) return b.observed = true;
    PhaseWait wait(bar, b, parity);
    zfcpu::wait(wait);
    return false;
}
inline void mbarrier_wait_parity(Mbarrier *bar, unsigned parity) {
    while (!mbarrier_try_wait_parity(bar, parity)) {}
}

// Of all threads' stores so far: whose they were is not known.
inline void fence_proxy_async() {
    standin_hopper::Block &b = standin_hopper::block();
    std::copy_n(b.memory(), b.seen.size(), b.seen.begin());
    fence_mbarrier_init();
}

inline void prefetch_tensormap(const TensorMap *map) {
    if (map->magic != TensorMap::MAGIC) zfcpu::die("prefetch.tensormap: no tensor map");
}

template <int RANK> void cp_async_bulk_tensor(void *shared, const TensorMap *map, const int (&at)[RANK], Mbarrier *bar) {
    using namespace standin_hopper;
    static_assert(RANK >= 2 && RANK <= 5, "a tensor of 2 to 5 axes");
    check_map(map, RANK, false, "cp.async.bulk.tensor");
    Load load{bar, *map, {}, 0, 0, nullptr, box_offset(shared, *map, "cp.async.bulk.tensor"), map->bytes()};
    std::copy_n(at, RANK, load.at.begin());
    begin(load);
}

inline void cp_async_bulk_tensor_im2col(void *shared, const TensorMap *map, const int (&at)[4], unsigned short right, unsigned short down, Mbarrier *bar) {
    using namespace standin_hopper;
    const char *who = "cp.async.bulk.tensor.im2col";
    check_map(map, 4, true, who);
    if (right > 255 || down > 255) die_of(text("%s: an offset above 255", who));
    for (int i = 0; i < 2; i++)
        if (at[i + 1] < map->lower[i] || at[i + 1] > (int64_t)map->last[i + 1] + map->upper[i])
            die_of(text("%s: it begins at %d of axis %d, outside of the bounding box", who, at[i + 1], i + 1));
    begin({bar, *map, {at[0], at[1], at[2], at[3]}, right, down, nullptr, box_offset(shared, *map, who), map->bytes()});
}

inline void cp_async_bulk(void *shared, const void *global, unsigned bytes, Mbarrier *bar) {
    using namespace standin_hopper;
    standin_tensor::check_aligned(shared);
    standin_tensor::check_aligned(global);
    if (bytes % 16) die("cp.async.bulk: a size that is not a multiple of 16");
    begin({bar, {}, {}, 0, 0, (const unsigned char *)global, offset_of(shared, bytes, "cp.async.bulk"), bytes});
}

template <int RANK> void cp_async_bulk_tensor_store(const TensorMap *map, const int (&at)[RANK], const void *shared) {
    using namespace standin_hopper;
    static_assert(RANK >= 2 && RANK <= 5, "a tensor of 2 to 5 axes");
    check_map(map, RANK, false, "cp.async.bulk.tensor (a store)");
    Store store{*map, {}, box_offset(shared, *map, "cp.async.bulk.tensor (a store)"), {}, false};
    for (int i = 0; i < RANK; i++) {
        if (at[i] < 0) die("cp.async.bulk.tensor (a store): a coordinate below 0");
        store.at[i] = at[i];
    }
    if (standin_tensor::copies_land_early) deliver(store);
    thread().stores.push_back(store);
}
inline void cp_async_bulk_commit_group() {
    auto &t = standin_hopper::thread();
    t.store_groups.push_back(std::move(t.stores));
    t.stores.clear();
}
template <int PENDING> void cp_async_bulk_wait_group() { standin_hopper::wait_for_stores(PENDING, true); }
template <int PENDING> void cp_async_bulk_wait_group_read() { standin_hopper::wait_for_stores(PENDING, false); }

// The last lane: nothing may lean on its being the first.
inline bool elect_sync() {
    zfcpu::wsync();
    return zfcpu::lane() == 31;
}
inline void bar_sync(unsigned id, unsigned threads) {
    standin_hopper::Named &named = standin_hopper::named(id);
    standin_hopper::NamedWait wait(named, id);
    if (!arrive_at(named, threads)) zfcpu::wait(wait);
}
inline void bar_arrive(unsigned id, unsigned threads) { arrive_at(standin_hopper::named(id), threads); }

template <int REGISTERS> void setmaxnreg_inc() {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0, "24 to 256, a multiple of 8");
    zfcpu::wsync();
}
template <int REGISTERS> void setmaxnreg_dec() { setmaxnreg_inc<REGISTERS>(); }

inline void wgmma_fence() {
    standin_hopper::thread().fences++;
    zfcpu::wsync();
}
inline void wgmma_commit_group() {
    auto &t = standin_hopper::thread();
    t.product_groups.push_back(std::move(t.products));
    t.products.clear();
}
template <int PENDING> void wgmma_wait_group() { standin_hopper::wait_for_products(PENDING); }
template <int COUNT> void wgmma_fence_operand(float (&)[COUNT]) {}

inline unsigned long long matrix_descriptor(const void *shared, unsigned leading, unsigned stride, Swizzle swizzle, unsigned base_offset = 0) {
    if (leading % 16 || stride % 16 || shared_address(shared) % 16) zfcpu::die("a matrix descriptor of what is not a multiple of 16");
    const auto encode = [](unsigned bytes) { return (unsigned long long)((bytes & 0x3ffff) >> 4); };
    return encode(shared_address(shared)) | encode(leading) << 16 | encode(stride) << 32 |
           (unsigned long long)(base_offset & 7) << 49 | (unsigned long long)swizzle << 62;
}

namespace standin_hopper {
template <int N, int SCALE_A, int SCALE_B> Product product(bool tf32, bool transpose_a, bool transpose_b, bool in_registers, unsigned long long a, unsigned long long b, bool accumulate) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "8 to 256 columns, a multiple of 8");
    static_assert(SCALE_A * SCALE_A == 1 && SCALE_B * SCALE_B == 1, "scales are 1 or -1");
    Product p{};
    p.columns = N, p.depth = tf32 ? 8 : 16, p.tf32 = tf32, p.accumulate = accumulate, p.a_in_registers = in_registers, p.a = a, p.b = b;
    p.transposed[0] = transpose_a, p.transposed[1] = transpose_b, p.scale[0] = SCALE_A, p.scale[1] = SCALE_B;
    return p;
}
} // namespace standin_hopper

template <int N, bool TRANSPOSE_A = false, bool TRANSPOSE_B = false, int SCALE_A = 1, int SCALE_B = 1>
void wgmma_bf16(float (&d)[N / 2], unsigned long long a, unsigned long long b, bool accumulate) {
    standin_hopper::begin(standin_hopper::product<N, SCALE_A, SCALE_B>(false, TRANSPOSE_A, TRANSPOSE_B, false, a, b, accumulate), d, nullptr);
}
template <int N, bool TRANSPOSE_B = false, int SCALE_A = 1, int SCALE_B = 1>
void wgmma_bf16(float (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, bool accumulate) {
    standin_hopper::begin(standin_hopper::product<N, SCALE_A, SCALE_B>(false, false, TRANSPOSE_B, true, 0, b, accumulate), d, a);
}
template <int N, int SCALE_A = 1, int SCALE_B = 1>
void wgmma_tf32(float (&d)[N / 2], unsigned long long a, unsigned long long b, bool accumulate) {
    standin_hopper::begin(standin_hopper::product<N, SCALE_A, SCALE_B>(true, false, false, false, a, b, accumulate), d, nullptr);
}
template <int N, int SCALE_A = 1, int SCALE_B = 1>
void wgmma_tf32(float (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, bool accumulate) {
    standin_hopper::begin(standin_hopper::product<N, SCALE_A, SCALE_B>(true, false, false, true, 0, b, accumulate), d, a);
}
