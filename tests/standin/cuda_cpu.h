// CUDA's device side for g++: kernels/*.cu compiled with this header run on the CPU, one CUDA thread
// a fiber. See README.md for what that proves and what it cannot.
//
// A block is run by one OS thread; blocks of a launch are shared out among a few. Threads of a
// block run one at a time until they wait at a barrier or end, in an order that changes from phase
// to phase, so that a result that leans on an order shows. Shared memory is NaN (0xFF) at the start
// of a block, and a barrier that not all threads reach aborts with the kernel's name.
//
// With -DZFNET_THREADS every CUDA thread is an OS thread instead: slow, but ThreadSanitizer then
// sees what a missing barrier lets happen.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <link.h>
#include <map>
#include <math.h>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef ZFNET_THREADS
#include <climits>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif !defined(__x86_64__)
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// ---- words of the language ----

#ifndef __global__ // build.sh keeps the word, to list the kernels
#define __global__
#endif
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Align shared variables with __align__(n): g++ has no place for alignas here.
#ifdef ZFNET_THREADS
#define __shared__ static
#else
#define __shared__ static thread_local // of the OS thread that runs the block
#endif
#define DYNAMIC_SHARED(T, name) T *name = (T *)zfcpu::block.dynamic

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) { return {x, y, z, w}; }

// ---- a thread's place, and barriers ----

namespace zfcpu {

constexpr int MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32;
constexpr size_t MAX_SHARED = 227 * 1024, GUARD = 1024;

struct Thread {
    uint3 tid, bid;
    int lin; // linear index in the block; warp lin / 32, lane lin % 32
};
inline thread_local Thread cur;
inline dim3 block_dim, grid_dim;
inline const char *kernel_name = "?";

// What the threads of one block share.
struct Block {
    unsigned char *dynamic; // its dynamic shared memory
    uint64_t (*exchange)[32]; // a slot a lane, for shuffles
};

[[noreturn]] inline void die(const char *what) {
    fprintf(stderr, "stand-in: kernel %s, block (%u, %u, %u), thread (%u, %u, %u): %s\n", kernel_name,
            cur.bid.x, cur.bid.y, cur.bid.z, cur.tid.x, cur.tid.y, cur.tid.z, what);
    abort();
}

inline Thread place(int lin, uint3 bid) {
    unsigned i = lin;
    return {{i % block_dim.x, i / block_dim.x % block_dim.y, i / (block_dim.x * block_dim.y)}, bid, lin};
}

// Blocks are run from the last to the first.
inline uint3 block_place(size_t done, size_t blocks) {
    size_t i = blocks - 1 - done;
    return {unsigned(i % grid_dim.x), unsigned(i / grid_dim.x % grid_dim.y), unsigned(i / grid_dim.x / grid_dim.y)};
}

// Dynamic shared memory of exactly the bytes asked for, and behind them a guard: AddressSanitizer's
// own, or bytes that must still be 0xFF when the block ends. It begins at a multiple of 128, as DYNAMIC_SHARED
// promises, and of no more.
struct Dynamic {
    static constexpr size_t BEGIN = 128; // after a multiple of 1024
    unsigned char *memory = nullptr, *bytes = nullptr;
    size_t size = 0;
    void resize(size_t wanted) {
        if (bytes && wanted == size) return;
        free(memory);
        size = wanted;
#ifdef __SANITIZE_ADDRESS__
        const size_t guard = 0;
#else
        const size_t guard = GUARD;
#endif
        if (posix_memalign((void **)&memory, 1024, BEGIN + size + guard)) die("no memory");
        bytes = memory + BEGIN;
        memset(bytes + size, 0xFF, guard);
    }
    void poison() { memset(bytes, 0xFF, size); }
    void check() {
#ifndef __SANITIZE_ADDRESS__
        for (size_t i = 0; i < GUARD; i++)
            if (bytes[size + i] != 0xFF) die("wrote beyond its dynamic shared memory");
#endif
    }
};

// What a thread may wait for that is not a barrier of its warp or block (hopper.h).
struct Wait {
    bool patient; // whether it goes on only when no other thread can
    explicit Wait(bool patient) : patient(patient) {}
    virtual bool over() = 0;
    virtual std::string what() const = 0;

protected:
    ~Wait() = default;
};

// What goes on in a block beside its threads (hopper.h), from where it is first asked for.
struct Background {
    virtual ~Background() = default;
    // Called when no thread can run: whether it has done something that one may wait for.
    virtual bool advance() = 0;
    // Called when all threads have ended.
    virtual void end() = 0;
};

#ifndef ZFNET_THREADS

inline thread_local Block block;

// ---- fibers ----

// `jump` stores where it stands in `save` and goes on where `load` stood. Registers that a function
// may not change are all it has to carry over: swapcontext, which also makes two system calls, would
// be a hundred times slower.
#ifdef __x86_64__
using Context = void *;
__attribute__((naked, noinline)) static void jump(Context *, const Context *) {
    asm("pushq %rbp\n\t pushq %rbx\n\t pushq %r12\n\t pushq %r13\n\t pushq %r14\n\t pushq %r15\n\t"
        "movq %rsp, (%rdi)\n\t movq (%rsi), %rsp\n\t"
        "popq %r15\n\t popq %r14\n\t popq %r13\n\t popq %r12\n\t popq %rbx\n\t popq %rbp\n\t"
        "ret");
}
inline void prepare(Context &fresh, char *stack, size_t size, void (*entry)()) {
    void **top = (void **)(stack + size) - 2; // after `ret` pops the entry, aligned as after a call
    *top = (void *)entry;
    fresh = top - 6;
}
#else
using Context = ucontext_t;
inline void jump(Context *save, const Context *load) { swapcontext(save, load); }
inline void prepare(Context &fresh, char *stack, size_t size, void (*entry)()) {
    getcontext(&fresh);
    fresh.uc_stack.ss_sp = stack;
    fresh.uc_stack.ss_size = size;
    fresh.uc_link = nullptr;
    makecontext(&fresh, entry, 0);
}
#endif

// Stacks with a page between them that must not be touched. Their tops are not a power of two
// apart: they would all fall into the same few lines of the cache.
struct Stacks {
#ifdef __SANITIZE_ADDRESS__
    static constexpr size_t SIZE = 256 << 10;
#else
    static constexpr size_t SIZE = 64 << 10;
#endif
    static constexpr size_t PAGE = 4096;
    char *memory = nullptr;
    std::vector<int> unused;
    Stacks() {
        memory = (char *)mmap(nullptr, MAX_THREADS * (SIZE + PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) { perror("stand-in: stacks"); abort(); }
        for (int i = MAX_THREADS; i-- > 0;) {
            mprotect(bottom(i) - PAGE, PAGE, PROT_NONE);
            unused.push_back(i);
        }
    }
    char *bottom(int i) const { return memory + i * (SIZE + PAGE) + PAGE; }
    size_t size(int i) const { return SIZE - i % 31 * 128; }
};

// The threads of one warp, a bit each. Those in none of the first four sets have ended or run.
struct Warp { unsigned ready, at_warp, at_block, waiting, live; };

// Runs blocks on one OS thread.
//
// A fiber is not a thread but carries threads: it runs one after another until one has to wait and
// keeps the stack; then another fiber carries the next ones. A kernel without barriers so needs a
// single fiber.
struct Engine {
    Stacks stacks;
    Dynamic dynamic;
    uint64_t exchange[MAX_WARPS][32];
    const std::function<void()> *body = nullptr;
    uint3 bid{};
    Context waiting[MAX_THREADS], home;
    int stack_of[MAX_THREADS];      // of a thread that waits; -1: has not begun
    unsigned lanes_of[MAX_THREADS]; // lanes that a thread at a warp barrier waits for
    Wait *waits[MAX_THREADS];       // of threads that are `waiting`
    std::unique_ptr<Background> background;
    Warp warps[MAX_WARPS];
    int threads = 0, warp_count = 0, warp = 0, at_block = 0, live = 0, stack = -1;
    bool upwards = false; // the order of threads in this phase
    bool parked = false;  // some thread waited in the last block
    void *statics = nullptr; // the OS thread's `__shared__` variables
    size_t statics_size = 0;
    const void *home_bottom = nullptr;
    size_t home_size = 0;

    void find_statics();
    void poison_shared();
    void run(uint3 where, bool direction);
    int pick();
    bool wake();
    std::string stuck();
    int take_stack();
    void carry();
    void park();
    void go(Context *save, const Context *load, int to, bool forever = false);
    void arrived(bool from_home = false, void *fake = nullptr);
};
inline thread_local Engine *engine;

// Engines that no OS thread uses now: they have a thousand stacks, and threads come and go.
struct Idle {
    std::mutex mutex;
    std::vector<Engine *> engines;
};
inline Idle &idle = *new Idle;
inline void take_engine() {
    std::lock_guard lock(idle.mutex);
    if (idle.engines.empty()) idle.engines.push_back(new Engine);
    engine = idle.engines.back();
    idle.engines.pop_back();
}
inline void give_engine_back() {
    std::lock_guard lock(idle.mutex);
    idle.engines.push_back(engine);
    engine = nullptr;
}

// `__shared__` variables are the library's only thread-local ones but this header's own: nothing else
// here may be thread_local.
inline void Engine::find_statics() {
    statics = nullptr;
    dl_iterate_phdr([](dl_phdr_info *info, size_t, void *engine) {
        auto *e = (Engine *)engine;
        bool ours = false;
        for (int i = 0; i < info->dlpi_phnum; i++) {
            const auto &part = info->dlpi_phdr[i];
            uintptr_t begin = info->dlpi_addr + part.p_vaddr, here = (uintptr_t)&kernel_name;
            if (part.p_type == PT_LOAD && begin <= here && here < begin + part.p_memsz) ours = true;
            if (part.p_type == PT_TLS) e->statics_size = part.p_memsz;
        }
        if (ours) e->statics = info->dlpi_tls_data;
        return int(ours);
    }, this);
}
inline void Engine::poison_shared() {
    if (statics) memset(statics, 0xFF, statics_size);
    engine = this;
    block = {dynamic.bytes, exchange};
    dynamic.poison();
    memset(exchange, 0xFF, sizeof exchange);
}

inline void Engine::run(uint3 where, bool direction) {
    bid = where;
    upwards = direction;
    parked = false;
    threads = live = block_dim.x * block_dim.y * block_dim.z;
    warp_count = (threads + 31) / 32;
    at_block = 0;
    for (int w = 0; w < warp_count; w++) {
        unsigned lanes = threads - w * 32 >= 32 ? ~0u : (1u << (threads - w * 32)) - 1;
        warps[w] = {lanes, 0, 0, 0, lanes};
    }
    std::fill_n(stack_of, threads, -1);
    warp = upwards ? 0 : warp_count - 1;
    cur = place(pick(), bid);
    stack = take_stack();
    Context fresh;
    prepare(fresh, stacks.bottom(stack), stacks.size(stack), [] {
        engine->arrived(true);
        engine->carry();
    });
    go(&home, &fresh, stack);
    dynamic.check();
    if (background) background->end();
    background.reset();
}

inline int Engine::take_stack() {
    if (stacks.unused.empty()) die("out of stacks");
    int taken = stacks.unused.back();
    stacks.unused.pop_back();
#ifdef __SANITIZE_ADDRESS__ // what the last fiber left there when it was given up
    __asan_unpoison_memory_region(stacks.bottom(taken), stacks.size(taken));
#endif
    return taken;
}

// The next thread to run, or -1 when all have ended.
inline int Engine::pick() {
    for (;;) {
        for (int tried = 0; tried < warp_count; tried++) {
            Warp &w = warps[warp];
            for (unsigned lanes = w.at_warp; !w.ready && lanes; lanes &= lanes - 1) {
                unsigned group = lanes_of[warp * 32 + __builtin_ctz(lanes)] & w.live;
                if (group & ~w.at_warp) continue; // not all are there
                w.ready = group;
                w.at_warp &= ~group;
            }
            if (w.ready) {
                int lane = upwards ? __builtin_ctz(w.ready) : 31 - __builtin_clz(w.ready);
                w.ready &= ~(1u << lane);
                return warp * 32 + lane;
            }
            warp = upwards ? (warp + 1) % warp_count : (warp + warp_count - 1) % warp_count;
        }
        if (live == 0) return -1;
        if (at_block != threads) {
            if (wake()) continue;
            die(stuck().c_str());
        }
        for (int w = 0; w < warp_count; w++) std::swap(warps[w].ready, warps[w].at_block);
        at_block = 0;
        upwards = !upwards;
    }
}

// Lets threads go on whose wait is over, the patient ones a warp at a time when there are no others.
inline bool Engine::wake() {
    for (bool patient : {false, true}) {
        bool any = false;
        for (int w = 0; w < warp_count && !(any && patient); w++) {
            for (unsigned lanes = warps[w].waiting; lanes; lanes &= lanes - 1) {
                const int lane = __builtin_ctz(lanes);
                Wait &wait = *waits[w * 32 + lane];
                if (wait.patient != patient || !wait.over()) continue;
                warps[w].waiting &= ~(1u << lane);
                warps[w].ready |= 1u << lane;
                any = true;
            }
        }
        if (any) return upwards = !upwards, true;
    }
    return background && background->advance();
}

// What the threads wait for, when none can go on.
inline std::string Engine::stuck() {
    int waiting = 0;
    std::map<std::string, int> reasons;
    for (int w = 0; w < warp_count; w++)
        for (unsigned lanes = warps[w].waiting; lanes; lanes &= lanes - 1, waiting++)
            reasons[waits[w * 32 + __builtin_ctz(lanes)]->what()]++;
    std::string text = waiting ? "deadlock: " : "divergent barrier: ";
    for (auto &[reason, count] : reasons) text += std::to_string(count) + " threads wait for " + reason + "; ";
    return text + std::to_string(at_block) + " threads at __syncthreads, " + std::to_string(live - at_block - waiting) +
           " at a barrier of their warp, " + std::to_string(threads - live) + " ended";
}

// A fiber's life: never returns. `cur` is the first thread to carry.
inline void Engine::carry() {
    for (;;) {
        (*body)();
        warps[cur.lin / 32].live &= ~(1u << cur.lin % 32);
        live--;
        int next = pick(), mine = stack;
        if (next >= 0 && stack_of[next] < 0) {
            cur = place(next, bid);
            continue;
        }
        stacks.unused.push_back(mine);
        Context gone;
        if (next < 0) go(&gone, &home, -1, true);
        else go(&gone, &waiting[next], stack_of[next], true);
    }
}

// The current thread, already noted as waiting, gives way to others until it is picked again.
inline void Engine::park() {
    parked = true;
    const Thread me = cur;
    const int mine = stack;
    stack_of[me.lin] = mine;
    int next = pick();
    if (next == me.lin) return;
    if (stack_of[next] >= 0) {
        go(&waiting[me.lin], &waiting[next], stack_of[next]);
    } else {
        cur = place(next, bid);
        const int to = take_stack();
        Context fresh;
        prepare(fresh, stacks.bottom(to), stacks.size(to), [] {
            engine->arrived();
            engine->carry();
        });
        go(&waiting[me.lin], &fresh, to);
    }
    cur = me;
    stack = mine;
}

// `jump`, telling AddressSanitizer which stack (-1: the OS thread's own) comes next.
inline void Engine::go(Context *save, const Context *load, int to, [[maybe_unused]] bool forever) {
    stack = to;
#ifdef __SANITIZE_ADDRESS__
    void *fake = nullptr;
    __sanitizer_start_switch_fiber(forever ? nullptr : &fake, to < 0 ? home_bottom : stacks.bottom(to), to < 0 ? home_size : stacks.size(to));
    jump(save, load);
    arrived(false, fake);
#else
    jump(save, load);
#endif
}
inline void Engine::arrived([[maybe_unused]] bool from_home, [[maybe_unused]] void *fake) {
#ifdef __SANITIZE_ADDRESS__
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(fake, &bottom, &size);
    if (from_home) home_bottom = bottom, home_size = size;
#endif
}

inline void sync() {
    Engine &e = *engine;
    e.warps[cur.lin / 32].at_block |= 1u << cur.lin % 32;
    e.at_block++;
    e.park();
}
inline void wsync(unsigned lanes = ~0u) {
    Engine &e = *engine;
    e.lanes_of[cur.lin] = lanes;
    e.warps[cur.lin / 32].at_warp |= 1u << cur.lin % 32;
    e.park();
}

inline void wait(Wait &wait) {
    Engine &e = *engine;
    e.waits[cur.lin] = &wait;
    e.warps[cur.lin / 32].waiting |= 1u << cur.lin % 32;
    e.park();
}
template <class T> T &background() {
    if (!engine->background) engine->background = std::make_unique<T>();
    return static_cast<T &>(*engine->background);
}
inline Dynamic &dynamic() { return engine->dynamic; }

// Other OS threads that help with the blocks of a launch.
struct Pool {
    std::mutex mutex;
    std::condition_variable work, done;
    const std::function<void()> *job = nullptr;
    unsigned long number = 0; // of the job
    int busy = 0;
    explicit Pool(int helpers) {
        for (int i = 0; i < helpers; i++) std::thread([this] { help(); }).detach();
    }
    [[noreturn]] void help() {
        unsigned long last = 0;
        std::unique_lock lock(mutex);
        for (;;) {
            work.wait(lock, [&] { return job && number != last; });
            last = number;
            const auto *mine = job;
            busy++;
            lock.unlock();
            (*mine)();
            lock.lock();
            if (--busy == 0) done.notify_all();
        }
    }
    // Runs `todo` here and on every helper that wakes before it is finished here.
    void run(const std::function<void()> &todo) {
        {
            std::lock_guard lock(mutex);
            job = &todo;
            number++;
        }
        work.notify_all();
        todo();
        std::unique_lock lock(mutex);
        job = nullptr;
        done.wait(lock, [&] { return busy == 0; });
    }
};

// Runs a kernel. One at a time: the caller sees to that.
inline void launch(const char *name, dim3 grid, dim3 threads, size_t shared, const std::function<void()> &body) {
    kernel_name = name;
    grid_dim = grid;
    block_dim = threads;
    const size_t blocks = (size_t)grid.x * grid.y * grid.z;
    std::atomic<size_t> next{0};
    const std::function<void()> some_blocks = [&] {
        take_engine();
        Engine &e = *engine;
        e.body = &body;
        e.dynamic.resize(shared);
        e.find_statics();
        bool poison = true; // a kernel without barriers shares nothing: once is enough
        for (size_t i; (i = next.fetch_add(1)) < blocks; poison = e.parked) {
            if (poison) e.poison_shared();
            e.run(block_place(i, blocks), i % 2);
        }
        give_engine_back();
    };
    static const int cores = [] {
        const char *wanted = getenv("ZFNET_STANDIN_THREADS");
        return std::max(1, wanted ? atoi(wanted) : (int)std::thread::hardware_concurrency());
    }();
    static Pool &pool = *new Pool(cores - 1);
    if (blocks > 1 && cores > 1) pool.run(some_blocks);
    else some_blocks();
}

#else // ZFNET_THREADS

inline Block block;

// Threads waiting for each other: those of a warp or of a block. A thread that has ended is waited
// for no longer. Who wakes up reads only `phase`: with a mutex ThreadSanitizer would take a thread
// that wakes late to have seen all that faster ones did since.
struct Barrier {
    unsigned members = 0;
    std::atomic<uint64_t> counts{0}; // threads that wait, and from bit 32 on those that have ended
    std::atomic<unsigned> phase{0};
    void reset(unsigned count) { members = count, counts = 0; }
    void wait(bool strict) {
        const unsigned mine = phase.load(std::memory_order_relaxed);
        const uint64_t now = counts.fetch_add(1) + 1;
        if (strict && now >> 32) die("divergent barrier: other threads have ended");
        if (open(now)) return;
        while (phase.load(std::memory_order_acquire) == mine)
            syscall(SYS_futex, &phase, FUTEX_WAIT_PRIVATE, mine, nullptr, nullptr, 0);
    }
    void end(bool strict) {
        const uint64_t now = counts.fetch_add(1ull << 32) + (1ull << 32);
        if (strict && (unsigned)now)
            die("divergent barrier: ends while other threads are at __syncthreads");
        open(now);
    }
    bool open(uint64_t now) {
        const unsigned waiting = (unsigned)now, ended = now >> 32;
        if (!waiting || waiting + ended < members) return false;
        counts.fetch_sub(waiting);
        phase.fetch_add(1, std::memory_order_release);
        syscall(SYS_futex, &phase, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
        return true;
    }
};
struct Team {
    Barrier all, between, warps[MAX_WARPS];
    uint64_t exchange[MAX_WARPS][32];
    Dynamic dynamic;
};
inline Team &team = *new Team;

inline void sync() { team.all.wait(true); }
inline void wsync(unsigned = ~0u) { team.warps[cur.lin / 32].wait(false); }
inline void wait(Wait &) { die("instructions of Hopper are not played where each thread is an OS thread"); }
template <class T> T &background() { die("instructions of Hopper are not played where each thread is an OS thread"); }
inline Dynamic &dynamic() { return team.dynamic; }

inline void launch(const char *name, dim3 grid, dim3 threads, size_t shared, const std::function<void()> &body) {
    kernel_name = name;
    grid_dim = grid;
    block_dim = threads;
    const size_t blocks = (size_t)grid.x * grid.y * grid.z;
    const int count = threads.x * threads.y * threads.z;
    team.between.reset(count);
    team.dynamic.resize(shared);
    block = {team.dynamic.bytes, team.exchange};
    std::vector<std::thread> all;
    for (int lin = count; lin-- > 0;)
        all.emplace_back([&, lin] {
            for (size_t i = 0; i < blocks; i++) {
                cur = place(lin, block_place(i, blocks));
                if (lin == 0) {
                    team.all.reset(count);
                    for (int w = 0; w * 32 < count; w++) team.warps[w].reset(std::min(32, count - w * 32));
                    team.dynamic.poison();
                    memset(team.exchange, 0xFF, sizeof team.exchange);
                }
                team.between.wait(false);
                body();
                team.warps[lin / 32].end(false);
                team.all.end(true);
                team.between.wait(false);
                if (lin == 0) team.dynamic.check();
            }
        });
    for (auto &thread : all) thread.join();
}

#endif

// ---- exchange within a warp ----

// Every lane's value to every lane: `read(slots)` while all slots are filled. A lane that takes no
// part has all bits set.
template <class T, class F> auto exchange(unsigned lanes, T value, F read) {
    static_assert(sizeof(T) <= 8);
    uint64_t *slots = block.exchange[cur.lin / 32];
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    slots[cur.lin % 32] = bits;
    wsync(lanes);
    auto result = read(slots);
    wsync(lanes);
    slots[cur.lin % 32] = ~0ull;
    return result;
}
template <class T> T shuffle(unsigned lanes, T value, int source) {
    return exchange(lanes, value, [&](const uint64_t *slots) {
        T other;
        memcpy(&other, &slots[source], sizeof other);
        return other;
    });
}
inline int lane() { return cur.lin % 32; }
inline int last_lane(int width) { return lane() | (width - 1); }

// ---- kernels by name ----

// A kernel, and how to call it with arguments as cuLaunchKernel gets them.
struct Kernel {
    struct Argument { size_t size; bool pointer; };
    const char *name, *file;
    std::vector<Argument> arguments;
    std::function<void(void **)> call;
};
inline std::vector<Kernel> &kernels() {
    static auto &all = *new std::vector<Kernel>;
    return all;
}
template <class... A, size_t... I> void call_with(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A> *)arguments[I]...);
}
template <class... A> bool add_kernel(const char *name, const char *file, void (*kernel)(A...)) {
    kernels().push_back({name, file, {{sizeof(A), std::is_pointer_v<A>}...}, [kernel](void **arguments) {
        call_with(kernel, arguments, std::index_sequence_for<A...>{});
    }});
    return true;
}

} // namespace zfcpu

// ---- what CUDA provides to a kernel ----

#define threadIdx (zfcpu::cur.tid)
#define blockIdx (zfcpu::cur.bid)
#define blockDim (zfcpu::block_dim)
#define gridDim (zfcpu::grid_dim)
constexpr int warpSize = 32;

inline void __syncthreads() { zfcpu::sync(); }
inline void __syncwarp(unsigned lanes = ~0u) { zfcpu::wsync(lanes); }
template <class T> T __shfl_sync(unsigned lanes, T value, int source, int width = 32) {
    return zfcpu::shuffle(lanes, value, (zfcpu::lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned lanes, T value, int mask, int width = 32) {
    int source = zfcpu::lane() ^ mask;
    return zfcpu::shuffle(lanes, value, source > zfcpu::last_lane(width) ? zfcpu::lane() : source);
}
template <class T> T __shfl_down_sync(unsigned lanes, T value, unsigned delta, int width = 32) {
    int source = zfcpu::lane() + delta;
    return zfcpu::shuffle(lanes, value, source > zfcpu::last_lane(width) ? zfcpu::lane() : source);
}
template <class T> T __shfl_up_sync(unsigned lanes, T value, unsigned delta, int width = 32) {
    int source = zfcpu::lane() - (int)delta;
    return zfcpu::shuffle(lanes, value, source < (zfcpu::lane() & ~(width - 1)) ? zfcpu::lane() : source);
}
inline unsigned __ballot_sync(unsigned lanes, int predicate) {
    return zfcpu::exchange(lanes, (uint64_t)(predicate != 0), [&](const uint64_t *slots) {
        unsigned set = 0;
        for (int i = 0; i < 32; i++) set |= unsigned(slots[i] == 1) << i;
        return set & lanes;
    });
}
inline int __any_sync(unsigned lanes, int predicate) { return __ballot_sync(lanes, predicate) != 0; }
inline int __all_sync(unsigned lanes, int predicate) { return __ballot_sync(lanes, !predicate) == 0; }
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { zfcpu::die("trap"); }

template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> void __stcs(T *p, T value) { *p = value; }
template <class T> void __stcg(T *p, T value) { *p = value; }

template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) { return b < a ? b : a; }
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) { return a < b ? b : a; }

template <class To, class From> To zfcpu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return zfcpu_bits<unsigned>(x); }
inline int __float_as_int(float x) { return zfcpu_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return zfcpu_bits<float>(x); }
inline float __int_as_float(int x) { return zfcpu_bits<float>(x); }

inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
// Never joined into one operation with another, as in CUDA.
__attribute__((noinline)) inline float __fmul_rn(float a, float b) { return a * b; }
__attribute__((noinline)) inline float __fadd_rn(float a, float b) { return a + b; }
__attribute__((noinline)) inline float __fsub_rn(float a, float b) { return a - b; }
