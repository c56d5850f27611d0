// Tries the stand-in for NCCL, and several devices of the one for CUDA's driver: known answers, and mistakes that must
// be noticed. `build.sh` makes it as OUTDIR/nccl/try; it runs with LD_LIBRARY_PATH=OUTDIR:OUTDIR/nccl.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <condition_variable>
#include <string>
#include <thread>
#include <vector>

// ---- what the libraries have ----

using Comm = struct Communicator *;
using Stream = struct StreamHandle *;
using Event = struct EventHandle *;
using Address = unsigned long long;
struct Id { char bytes[128]; };
struct Config { size_t size; unsigned magic, version; int blocking; };
enum { SUCCESS, UNHANDLED_CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR, IN_PROGRESS };
enum { INT32 = 2, UINT32 = 3, FLOAT32 = 7, SUM = 0, MAX = 2 };
enum { INVALID_HANDLE = 400, NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719 };
extern "C" {
int ncclGetVersion(int *);
const char *ncclGetErrorString(int);
const char *ncclGetLastError(Comm);
int ncclGetUniqueId(Id *);
int ncclCommInitRank(Comm *, int, Id, int);
int ncclCommInitRankConfig(Comm *, int, Id, int, Config *);
int ncclCommInitAll(Comm *, int, const int *);
int ncclCommCount(Comm, int *);
int ncclCommUserRank(Comm, int *);
int ncclCommCuDevice(Comm, int *);
int ncclCommGetAsyncError(Comm, int *);
int ncclCommFinalize(Comm);
int ncclCommDestroy(Comm);
int ncclCommAbort(Comm);
int ncclGroupStart();
int ncclGroupEnd();
int ncclSend(Address, size_t, int, int, Comm, Stream);
int ncclRecv(Address, size_t, int, int, Comm, Stream);
int ncclBroadcast(Address, Address, size_t, int, int, Comm, Stream);
int ncclAllGather(Address, Address, size_t, int, Comm, Stream);
int ncclAllReduce(Address, Address, size_t, int, int, Comm, Stream);
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void **, int);
int cuCtxSetCurrent(void *);
int cuStreamCreate(Stream *, unsigned);
int cuStreamSynchronize(Stream);
int cuStreamQuery(Stream);
int cuStreamWaitEvent(Stream, Event, unsigned);
int cuEventCreate(Event *, unsigned);
int cuEventRecord(Event, Stream);
int cuMemAlloc_v2(Address *, size_t);
int cuMemFree_v2(Address);
int cuMemFreeAsync(Address, Stream);
int cuStreamBeginCapture_v2(Stream, int);
int cuStreamEndCapture(Stream, void **);
int cuMemsetD32Async(Address, unsigned, size_t, Stream);
int cuMemcpyHtoDAsync_v2(Address, const void *, size_t, Stream);
int cuMemcpyDtoHAsync_v2(void *, Address, size_t, Stream);
int cuModuleLoadData(void **, const void *);
int cuModuleGetFunction(void **, void *, const char *);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void **, void **);
}

// ---- what the tests use ----

std::string test;
std::mutex lock;
int failures = 0;

template <class A, class B> void expect_at(int line, const char *what, A found, B expected) {
    if (found == (A)expected) return;
    std::lock_guard guard(lock);
    printf("try_nccl.cpp:%d: %s: %s is %lld, expected %lld (%s)\n", line, test.c_str(), what, (long long)found, (long long)expected, ncclGetLastError(nullptr));
    failures++;
}
#define expect(found, expected) expect_at(__LINE__, #found, found, expected)
// The last complaint has these words.
void told_at(int line, const char *words) {
    const std::string told = ncclGetLastError(nullptr);
    if (told.find(words) != std::string::npos) return;
    printf("try_nccl.cpp:%d: %s: expected «%s», was told «%s»\n", line, test.c_str(), words, told.c_str());
    failures++;
}
#define told(words) told_at(__LINE__, words)

void use(int device) {
    void *context;
    expect(cuDevicePrimaryCtxRetain(&context, device), 0);
    expect(cuCtxSetCurrent(context), 0);
}
Stream stream() {
    Stream stream;
    expect(cuStreamCreate(&stream, 1), 0);
    return stream;
}
Address memory(size_t values) {
    Address at;
    expect(cuMemAlloc_v2(&at, 4 * values), 0);
    return at;
}
template <class T> std::vector<T> read(Address at, size_t count, Stream stream) {
    std::vector<T> values(count);
    expect(cuMemcpyDtoHAsync_v2(values.data(), at, sizeof(T) * count, stream), 0);
    return values;
}
template <class T> void write(Address at, std::vector<T> values, Stream stream) {
    expect(cuMemcpyHtoDAsync_v2(at, values.data(), sizeof(T) * values.size(), stream), 0);
    expect(cuStreamSynchronize(stream), 0);
}
// `later` waits for what `earlier` has been given so far.
void order(Stream later, Stream earlier) {
    Event event;
    expect(cuEventCreate(&event, 2), 0);
    expect(cuEventRecord(event, earlier), 0);
    expect(cuStreamWaitEvent(later, event, 0), 0);
}

// What several threads do, one after another.
struct Sequence {
    std::mutex mutex;
    std::condition_variable changed;
    int passed = 0;
    void pass() {
        std::lock_guard guard(mutex);
        passed++;
        changed.notify_all();
    }
    // Returns when so many have passed.
    void after(int number) {
        std::unique_lock guard(mutex);
        changed.wait(guard, [&] { return passed >= number; });
    }
};

struct Rank {
    int rank;
    Comm comm;
    Stream compute, stream; // and one for NCCL
    Sequence &ready, &sequence;
};
// Runs `work` as every rank, each in a thread.
void ranks(const char *name, int count, std::function<void(Rank)> work) {
    test = name;
    Id id;
    expect(ncclGetUniqueId(&id), SUCCESS);
    Sequence ready, sequence;
    std::vector<std::thread> threads;
    for (int rank = 0; rank < count; rank++)
        threads.emplace_back([&, rank] {
            use(rank);
            Comm comm;
            expect(ncclCommInitRank(&comm, count, id, rank), SUCCESS);
            work({rank, comm, stream(), stream(), ready, sequence});
        });
    for (auto &thread : threads) thread.join();
    printf("%s\n", name);
}

// One value to the other of two ranks, and one from there.
int exchange(const Rank &r, Address send, Address receive) {
    ncclGroupStart();
    expect(ncclSend(send, 1, UINT32, 1 - r.rank, r.comm, r.stream), SUCCESS);
    expect(ncclRecv(receive, 1, UINT32, 1 - r.rank, r.comm, r.stream), SUCCESS);
    return ncclGroupEnd();
}
// The same of two ranks that have all connections: no call waits for the other rank any more.
void pairs(const char *name, std::function<void(Rank)> work) {
    ranks(name, 2, [=](Rank r) {
        Address at = memory(2);
        expect(exchange(r, at, at + 4), SUCCESS);
        expect(ncclAllReduce(at, at, 1, UINT32, MAX, r.comm, r.stream), SUCCESS);
        expect(cuStreamSynchronize(r.stream), 0);
        r.ready.pass();
        r.ready.after(2);
        work(r);
    });
}

// ---- known answers ----

void answers() {
    int version;
    expect(ncclGetVersion(&version), SUCCESS);
    expect(version, 22800);
    expect(strcmp(ncclGetErrorString(INVALID_USAGE), "invalid usage"), 0);

    ranks("communicators know their size, rank and device", 3, [](Rank r) {
        int count, rank, device;
        expect(ncclCommCount(r.comm, &count), SUCCESS);
        expect(ncclCommUserRank(r.comm, &rank), SUCCESS);
        expect(ncclCommCuDevice(r.comm, &device), SUCCESS);
        expect(count, 3), expect(rank, r.rank), expect(device, r.rank);
        expect(ncclCommFinalize(r.comm), SUCCESS);
        expect(ncclCommDestroy(r.comm), SUCCESS);
    });
    ranks("every rank sends its number to all, itself too", 4, [](Rank r) {
        Address out = memory(1), in = memory(4);
        cuMemsetD32Async(out, 100 + r.rank, 1, r.compute);
        order(r.stream, r.compute);
        ncclGroupStart();
        for (int peer = 0; peer < 4; peer++) {
            expect(ncclSend(out, 1, UINT32, peer, r.comm, r.stream), SUCCESS);
            expect(ncclRecv(in + 4 * peer, 1, UINT32, peer, r.comm, r.stream), SUCCESS);
        }
        expect(ncclGroupEnd(), SUCCESS);
        order(r.compute, r.stream);
        auto values = read<uint32_t>(in, 4, r.compute);
        for (int peer = 0; peer < 4; peer++) expect(values[peer], 100 + peer);
        expect(ncclCommDestroy(r.comm), SUCCESS);
    });
    ranks("several messages between two ranks arrive in their order", 2, [](Rank r) {
        Address out = memory(2), in = memory(2);
        write<uint32_t>(out, {10u + r.rank, 20u + r.rank}, r.compute);
        ncclGroupStart();
        for (int i = 0; i < 2; i++) {
            ncclSend(out + 4 * i, 1, UINT32, 1 - r.rank, r.comm, r.stream);
            ncclRecv(in + 4 * i, 1, UINT32, 1 - r.rank, r.comm, r.stream);
        }
        expect(ncclGroupEnd(), SUCCESS);
        auto values = read<uint32_t>(in, 2, r.stream);
        expect(values[0], 11u - r.rank), expect(values[1], 21u - r.rank);
    });
    ranks("broadcasts, in place and not", 3, [](Rank r) {
        Address at = memory(2);
        write<uint32_t>(at, {40u + r.rank, 50u + r.rank}, r.compute);
        expect(ncclBroadcast(at, at, 1, UINT32, 1, r.comm, r.stream), SUCCESS);
        expect(ncclBroadcast(at, at + 4, 1, UINT32, 2, r.comm, r.stream), SUCCESS);
        auto values = read<uint32_t>(at, 2, r.stream);
        expect(values[0], 41), expect(values[1], 41);
    });
    ranks("all-gather, in place and not", 3, [](Rank r) {
        Address one = memory(1), all = memory(3);
        write<uint32_t>(one, {60u + r.rank}, r.compute);
        write<uint32_t>(all + 4 * r.rank, {70u + r.rank}, r.compute);
        expect(ncclAllGather(all + 4 * r.rank, all, 1, UINT32, r.comm, r.stream), SUCCESS);
        auto values = read<uint32_t>(all, 3, r.stream);
        expect(values[0], 70), expect(values[1], 71), expect(values[2], 72);
        expect(ncclAllGather(one, all, 1, UINT32, r.comm, r.stream), SUCCESS);
        values = read<uint32_t>(all, 3, r.stream);
        expect(values[0], 60), expect(values[1], 61), expect(values[2], 62);
    });
    ranks("all-reduce: sums and largest values", 3, [](Rank r) {
        Address at = memory(3), out = memory(1);
        write<float>(at, {0.5f + r.rank}, r.compute);
        expect(ncclAllReduce(at, out, 1, FLOAT32, SUM, r.comm, r.stream), SUCCESS);
        expect(read<float>(out, 1, r.stream)[0] == 4.5f, true);
        write<int32_t>(at + 4, {-5 - r.rank}, r.compute);
        expect(ncclAllReduce(at + 4, at + 4, 1, INT32, MAX, r.comm, r.stream), SUCCESS);
        expect(read<int32_t>(at + 4, 1, r.stream)[0], -5);
        write<uint32_t>(at + 8, {r.rank == 1 ? 0x80000000u : 7u}, r.compute);
        expect(ncclAllReduce(at + 8, at + 8, 1, UINT32, MAX, r.comm, r.stream), SUCCESS);
        expect(read<uint32_t>(at + 8, 1, r.stream)[0], 0x80000000u);
    });
    ranks("sums of floats are added in an order that changes", 3, [](Rank r) {
        Address at = memory(1), out = memory(1);
        write<float>(at, {r.rank == 0 ? 1e8f : r.rank == 1 ? -1e8f : 1.5f}, r.compute);
        bool exact = false, rounded = false;
        for (int i = 0; i < 3; i++) {
            expect(ncclAllReduce(at, out, 1, FLOAT32, SUM, r.comm, r.stream), SUCCESS);
            const float sum = read<float>(out, 1, r.stream)[0];
            exact |= sum == 1.5f, rounded |= sum != 1.5f;
        }
        expect(exact && rounded, true);
    });

    test = "one thread with several ranks";
    Comm all[2];
    expect(ncclCommInitAll(all, 2, nullptr), SUCCESS);
    Stream streams[2];
    Address at[2];
    for (int i = 0; i < 2; i++) use(i), streams[i] = stream(), at[i] = memory(1), write<uint32_t>(at[i], {80u + i}, streams[i]);
    ncclGroupStart();
    for (int i = 0; i < 2; i++) expect(ncclAllReduce(at[i], at[i], 1, UINT32, SUM, all[i], streams[i]), SUCCESS);
    expect(ncclGroupEnd(), SUCCESS);
    for (int i = 0; i < 2; i++) use(i), expect(read<uint32_t>(at[i], 1, streams[i])[0], 161);
    expect(ncclAllReduce(at[0], at[0], 1, UINT32, SUM, all[0], streams[0]), INVALID_USAGE);
    told("outside a group by a thread that has several ranks");
}

// ---- waits that are missing ----

constexpr uint32_t OLD = 0xFFFFFFFF; // what fresh memory holds

void missing_waits() {
    ranks("what is not waited for is not sent", 2, [](Rank r) {
        Address out = memory(1), in = memory(1);
        cuMemsetD32Async(out, 5, 1, r.compute);
        expect(exchange(r, out, in), SUCCESS);
        expect(read<uint32_t>(in, 1, r.stream)[0], OLD);
    });
    pairs("what is not waited for has not arrived, or is there too early", [](Rank r) {
        Address out = memory(1), in = memory(1);
        write<uint32_t>(out, {6}, r.compute);
        write<uint32_t>(in, {7}, r.compute);
        expect(exchange(r, out, in), SUCCESS);
        r.sequence.pass();
        r.sequence.after(2);
        expect(read<uint32_t>(in, 1, r.compute)[0], getenv("ZFNET_STANDIN_EARLY") ? 6 : 7);
    });
    if (getenv("ZFNET_STANDIN_EARLY")) return;
    pairs("what is written again too early is sent wrong", [](Rank r) {
        Address out = memory(1), in = memory(1);
        write<uint32_t>(out, {8}, r.compute);
        expect(exchange(r, out, in), SUCCESS);
        cuMemsetD32Async(out, 9, 1, r.compute);
        expect(cuStreamSynchronize(r.compute), 0);
        r.sequence.pass();
        r.sequence.after(2);
        expect(read<uint32_t>(in, 1, r.stream)[0], 9);
    });
}

// ---- communicators that do not block ----

void settle(Comm comm, int expected = SUCCESS) {
    int state = IN_PROGRESS;
    while (state == IN_PROGRESS) expect(ncclCommGetAsyncError(comm, &state), SUCCESS);
    expect(state, expected);
}
void nonblocking() {
    test = "communicators that do not block";
    Id id;
    ncclGetUniqueId(&id);
    Sequence ready, sequence;
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 2; rank++)
        threads.emplace_back([&, rank] {
            use(rank);
            Rank r{rank, nullptr, stream(), stream(), ready, sequence};
            Config wrong{24, 0, 21400, 0}, config{24, 0xcafebeef, 21400, 0};
            expect(ncclCommInitRankConfig(&r.comm, 2, id, rank, &wrong), INVALID_ARGUMENT);
            expect(ncclCommInitRankConfig(&r.comm, 2, id, rank, &config), IN_PROGRESS);
            Address out = memory(2), in = memory(2);
            settle(r.comm);
            // In this order: rank 0 begins a group that rank 1 has not begun.
            if (rank == 0) {
                expect(exchange(r, out, in), IN_PROGRESS);
                int count;
                expect(ncclCommCount(r.comm, &count), INVALID_USAGE);
                told("is in progress with something else");
                expect(cuMemsetD32Async(in, 0, 1, r.stream), INVALID_HANDLE);
                int state;
                ncclCommGetAsyncError(r.comm, &state);
                expect(state, IN_PROGRESS);
                sequence.pass();
                settle(r.comm);
            } else {
                sequence.after(1);
                expect(exchange(r, out, in), SUCCESS);
            }
            expect(cuStreamSynchronize(r.stream), 0);
            expect(exchange(r, out, in), SUCCESS); // connected by now
            write<uint32_t>(out, {3u + rank}, r.compute);
            expect(exchange(r, out, in), SUCCESS);
            expect(ncclCommFinalize(r.comm), IN_PROGRESS);
            settle(r.comm);
            expect(read<uint32_t>(in, 1, r.stream)[0], 4u - rank);
            expect(ncclCommDestroy(r.comm), SUCCESS);
            expect(ncclCommDestroy(r.comm), INVALID_ARGUMENT);
            told("has been given back");
        });
    for (auto &thread : threads) thread.join();
    puts(test.c_str());
}

// ---- mistakes ----

// Rank 0 does its part; rank 1 is told of a mistake, and rank 0 finds it in its communicator.
void both(const char *name, const char *words, std::function<int(Rank, Address)> part) {
    pairs(name, [=](Rank r) {
        Address at = memory(8);
        if (r.rank == 0) {
            expect(part(r, at), SUCCESS);
            r.sequence.pass();
            r.sequence.after(2);
            int error;
            expect(ncclCommGetAsyncError(r.comm, &error), SUCCESS);
            expect(error, INVALID_USAGE);
            expect(cuStreamSynchronize(r.stream), LAUNCH_FAILED);
        } else {
            r.sequence.after(1);
            expect(part(r, at), INVALID_USAGE);
            told(words);
            r.sequence.pass();
        }
        expect(ncclCommAbort(r.comm), SUCCESS);
    });
}
// Rank 0 makes a mistake, and rank 1 does nothing meanwhile.
void alone(const char *name, std::function<void(Rank, Address)> mistake) {
    pairs(name, [=](Rank r) {
        if (r.rank == 0) mistake(r, memory(8)), r.sequence.pass();
        else r.sequence.after(1);
        expect(ncclCommAbort(r.comm), SUCCESS);
    });
}

void mistakes() {
    both("another count", "ncclRecv of 2 values of type 3 does not fit ncclSend of 3 values of type 3 by rank 0", [](Rank r, Address at) {
        return r.rank == 0 ? ncclSend(at, 3, UINT32, 1, r.comm, r.stream) : ncclRecv(at, 2, UINT32, 0, r.comm, r.stream);
    });
    both("another type", "ncclRecv of 2 values of type 3 does not fit ncclSend of 2 values of type 7", [](Rank r, Address at) {
        return r.rank == 0 ? ncclSend(at, 2, FLOAT32, 1, r.comm, r.stream) : ncclRecv(at, 2, UINT32, 0, r.comm, r.stream);
    });
    both("collectives in another order", "ncclBroadcast of 2 values of type 3 does not fit ncclAllReduce", [](Rank r, Address at) {
        ncclGroupStart();
        if (r.rank == 0) ncclAllReduce(at, at, 2, UINT32, SUM, r.comm, r.stream);
        ncclBroadcast(at + 8, at + 8, 2, UINT32, 0, r.comm, r.stream);
        if (r.rank == 1) ncclAllReduce(at, at, 2, UINT32, SUM, r.comm, r.stream);
        return ncclGroupEnd();
    });
    both("another operation", "does not fit", [](Rank r, Address at) { return ncclAllReduce(at, at, 2, UINT32, r.rank ? MAX : SUM, r.comm, r.stream); });
    both("another root", "does not fit", [](Rank r, Address at) { return ncclBroadcast(at, at, 2, UINT32, r.rank, r.comm, r.stream); });
    alone("a send without a receive", [](Rank r, Address at) {
        expect(ncclSend(at, 1, UINT32, 1, r.comm, r.stream), SUCCESS);
        expect(cuStreamQuery(r.stream), NOT_READY);
        expect(cuStreamSynchronize(r.stream), LAUNCH_FAILED);
        told("rank 0 of 2 waits for ncclRecv by rank 1");
    });
    alone("a collective that another rank does not take part in", [](Rank r, Address at) {
        expect(ncclAllReduce(at, at, 1, UINT32, SUM, r.comm, r.stream), SUCCESS);
        expect(cuStreamSynchronize(r.stream), LAUNCH_FAILED);
        told("rank 0 of 2 waits for ncclAllReduce by rank 1");
    });
    pairs("both send before they receive", [](Rank r) {
        Address at = memory(2);
        expect(ncclSend(at, 1, UINT32, 1 - r.rank, r.comm, r.stream), SUCCESS);
        expect(ncclRecv(at + 4, 1, UINT32, 1 - r.rank, r.comm, r.stream), SUCCESS);
        r.sequence.pass();
        r.sequence.after(2);
        expect(cuStreamSynchronize(r.stream), LAUNCH_FAILED);
        told("something failed in a stream of rank");
        expect(ncclCommAbort(r.comm), SUCCESS);
    });
    alone("streams of another device, of the legacy kind, and captured", [](Rank r, Address at) {
        use(1);
        Stream other = stream();
        use(0);
        expect(ncclSend(at, 1, UINT32, 1, r.comm, other), INVALID_USAGE);
        told("with a stream of device 1, of a communicator of device 0");
        expect(ncclSend(at, 1, UINT32, 1, r.comm, nullptr), INVALID_USAGE);
        told("waits for the legacy stream");
        Stream captured = stream();
        expect(cuStreamBeginCapture_v2(captured, 1), 0);
        expect(ncclSend(at, 1, UINT32, 1, r.comm, captured), INVALID_USAGE);
        told("a stream that is captured");
        void *graph;
        expect(cuStreamEndCapture(captured, &graph), 0);
    });
    alone("memory that is not there, not enough, or another device's", [](Rank r, Address at) {
        expect(ncclSend(at, 9, UINT32, 1, r.comm, r.stream), INVALID_ARGUMENT);
        told("of 9 values: the buffer reaches beyond an allocation of 32 bytes");
        expect(ncclRecv(at + 28, 2, UINT32, 1, r.comm, r.stream), INVALID_ARGUMENT);
        expect(cuMemFree_v2(at), 0);
        expect(ncclSend(at, 1, UINT32, 1, r.comm, r.stream), INVALID_ARGUMENT);
        told("is no live memory of a device");
        use(1);
        Address other = memory(1);
        use(0);
        expect(ncclSend(other, 1, UINT32, 1, r.comm, r.stream), INVALID_ARGUMENT);
        told("is memory of device 1, of a communicator of device 0");
    });
    pairs("memory that is given back too early", [](Rank r) {
        Address at = memory(1), in = memory(1);
        expect(exchange(r, at, in), SUCCESS);
        r.sequence.pass();
        r.sequence.after(2);
        if (r.rank == 0) {
            expect(cuMemFreeAsync(at, r.compute), 0);
            expect(cuStreamSynchronize(r.compute), 0);
            const bool early = getenv("ZFNET_STANDIN_EARLY");
            expect(cuStreamSynchronize(r.stream), early ? 0 : (int)LAUNCH_FAILED);
            if (!early) told("a buffer of ncclSend of 1 values of type 3 is no live memory of a device");
            r.sequence.pass();
        }
        r.sequence.after(3);
        expect(ncclCommAbort(r.comm), SUCCESS);
    });
    alone("buffers of a group that overlap", [](Rank r, Address at) {
        ncclGroupStart();
        expect(ncclSend(at, 4, UINT32, 1, r.comm, r.stream), SUCCESS);
        expect(ncclRecv(at + 12, 4, UINT32, 1, r.comm, r.stream), SUCCESS);
        expect(ncclGroupEnd(), INVALID_USAGE);
        told("writes what ncclSend of 4 values of type 3 reads, in one group");
    });
    alone("a communicator in a group of another thread", [](Rank r, Address at) {
        ncclGroupStart();
        expect(ncclSend(at, 1, UINT32, 1, r.comm, r.stream), SUCCESS);
        std::thread([&] {
            use(0);
            expect(ncclRecv(at + 4, 1, UINT32, 1, r.comm, r.stream), INVALID_USAGE);
            told("ncclRecv: rank 0 of 2 is in a group of another thread");
            expect(ncclCommAbort(r.comm), INVALID_USAGE);
        }).join();
        expect(cuStreamSynchronize(r.stream), INVALID_HANDLE); // nothing is queued yet
        expect(ncclCommAbort(r.comm), INVALID_USAGE);
        expect(ncclGroupEnd(), SUCCESS);
    });
    alone("groups that were not begun, or begin communicators too", [](Rank r, Address at) {
        expect(ncclGroupEnd(), INVALID_USAGE);
        told("ncclGroupEnd without ncclGroupStart");
        Id id;
        Comm other;
        expect(ncclGetUniqueId(&id), SUCCESS);
        ncclGroupStart();
        expect(ncclSend(at, 1, UINT32, 1, r.comm, r.stream), SUCCESS);
        expect(ncclCommInitRank(&other, 1, id, 0), INVALID_USAGE);
        told("ncclCommInitRank in a group with operations");
        expect(ncclGroupEnd(), SUCCESS);
    });
    alone("ranks that cannot be", [](Rank, Address) {
        Id id, unknown{};
        Comm comm, other;
        Config config{24, 0xcafebeef, 21400, 0};
        expect(ncclGetUniqueId(&id), SUCCESS);
        expect(ncclCommInitRankConfig(&comm, 2, unknown, 0, &config), INVALID_ARGUMENT);
        told("an identifier that ncclGetUniqueId has not made");
        expect(ncclCommInitRankConfig(&comm, 2, id, 2, &config), INVALID_ARGUMENT);
        expect(ncclCommInitRankConfig(&comm, 2, id, 0, &config), IN_PROGRESS);
        expect(ncclCommInitRankConfig(&other, 3, id, 1, &config), INVALID_ARGUMENT);
        expect(ncclCommInitRankConfig(&other, 2, id, 1, &config), INVALID_USAGE);
        told("two ranks of a communicator have the same device");
        expect(ncclCommAbort(comm), SUCCESS);
    });
    pairs("a rank that has given up", [](Rank r) {
        Address at = memory(1), in = memory(1);
        if (r.rank == 1) {
            expect(ncclCommAbort(r.comm), SUCCESS);
            return r.sequence.pass();
        }
        write<uint32_t>(in, {1}, r.compute);
        r.sequence.after(1);
        expect(exchange(r, at, in), SUCCESS);
        int error;
        expect(ncclCommGetAsyncError(r.comm, &error), SUCCESS);
        expect(error, SUCCESS); // the worst that can be: nobody says so
        for (int i = 0; i < 5; i++) expect(cuStreamQuery(r.stream), NOT_READY);
        expect(ncclCommAbort(r.comm), SUCCESS);
        expect(cuStreamSynchronize(r.stream), 0);
        expect(read<uint32_t>(in, 1, r.stream)[0], OLD); // anything
        expect(ncclSend(at, 1, UINT32, 1, r.comm, r.stream), INVALID_ARGUMENT);
    });

    test = "kernels and copies of one device with memory of another";
    use(1);
    Stream other = stream();
    Address there = memory(4);
    use(0);
    expect(cuMemsetD32Async(there, 0, 1, other), INVALID_HANDLE);
    expect(cuMemsetD32Async(there, 0, 1, stream()), ILLEGAL_ADDRESS);
    Address here = memory(4);
    void *module, *kernel;
    const auto launch = [&](const char *name, std::vector<void *> arguments) {
        expect(cuModuleLoadData(&module, name), 0);
        expect(cuModuleGetFunction(&kernel, module, name), 0);
        Stream s = stream();
        expect(cuLaunchKernel(kernel, 1, 1, 1, 256, 1, 1, 0, s, arguments.data(), nullptr), 0);
        return cuStreamSynchronize(s);
    };
    size_t count = 4;
    expect(launch("to_bf16", {&here, &there, &count}), ILLEGAL_ADDRESS);
    expect(launch("to_bf16", {&there, &here, &count}), ILLEGAL_ADDRESS);
    Address within[113] = {here, 0, here, there}; // Updates of kernels/sgd.cu
    expect(launch("sgd_step", {within, &here}), ILLEGAL_ADDRESS);
    puts(test.c_str());
}

int main() {
    // What waits for nobody is to be given up soon, and there must be devices enough.
    setenv("ZFNET_STANDIN_PATIENCE", "1", 0);
    setenv("ZFNET_STANDIN_DEVICES", "4", 0);
    expect(cuInit(0), 0);
    answers();
    missing_waits();
    nonblocking();
    mistakes();
    printf(failures ? "%d mistakes\n" : "no mistake\n", failures);
    return failures != 0;
}
