// A stand-in for libcuda.so.1 on machines without a GPU: the part of the driver's interface that the
// CUDA backend uses, on host memory, running kernels/*.cu as cuda_cpu.h compiles them.
//
// It is as late as a driver may be. What is given to a stream waits in a queue, with its arguments
// copied, until something makes it necessary; then just what leads there is run, following waits
// from stream to stream. So a missing wait, and a buffer that is used again too early, show as wrong
// values. And it is as strict: pointers have to lie in live allocations of the device that uses them, writes beyond
// one are noticed after the launch, and fresh memory is NaN (0xFF).
//
// Several devices may be used at once, each by threads of its own. What one of them waits for another may run: a
// device is no thread here. Only a call that another thread has yet to make (of NCCL, libnccl.cpp) is waited for.
//
// Environment:
//   ZFNET_STANDIN_DEVICES     number of devices, 1; with 0 cuInit fails
//   ZFNET_STANDIN_DRIVER      the driver's version, 13000
//   ZFNET_STANDIN_CAPABILITY  compute capability, 90
//   ZFNET_STANDIN_MEMORY      bytes of memory of a device, 16 GiB; BYTES@DEVICE of that one alone
//   ZFNET_STANDIN_THREADS     OS threads that run kernels, one a core
//   ZFNET_STANDIN_EARLY       if set: asynchronous copies, NCCL's too, land as early as they may
//   ZFNET_STANDIN_PATIENCE    seconds without any call after which what waits for one is given up, 20
//   ZFNET_STANDIN_TRACE       a file: launches are written there, a line each, and nothing is computed; all
//                             memory is then zero
//   ZFNET_STANDIN_WRONG       a kernel that computes wrong: a bit of what its first pointer points at
#include "cuda_cpu.h"
#include "driver.h"
#include "tensor_map.h"
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <pthread.h>
#include <set>
#include <string>

namespace {

enum Error {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_MERGE = 902,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
};
constexpr struct { int code; const char *name, *text; } ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
};

using standin::Address, standin::BLOCKED, standin::Operation, standin::Ticket;
using std::shared_ptr;

size_t from_environment(const char *name, size_t otherwise) {
    const char *value = getenv(name);
    return value && *value ? strtoull(value, nullptr, 10) : otherwise;
}
size_t device_count() { static const size_t n = from_environment("ZFNET_STANDIN_DEVICES", 1); return n; }
size_t total_memory(int device) {
    static const size_t n = from_environment("ZFNET_STANDIN_MEMORY", (size_t)16 << 30);
    static const char *value = getenv("ZFNET_STANDIN_MEMORY"), *of_one = value ? strchr(value, '@') : nullptr;
    return of_one && atoi(of_one + 1) != device ? (size_t)16 << 30 : n;
}
int capability() { static const int n = from_environment("ZFNET_STANDIN_CAPABILITY", 90); return n; }
int dynamic_limit() { // bytes that a kernel may ask for with its attribute raised
    int c = capability();
    return (c >= 90 ? 227 : c == 80 || c == 87 ? 163 : c >= 86 ? 99 : c >= 75 ? 64 : 48) * 1024;
}

FILE *trace_file() {
    static FILE *file = [] {
        const char *name = getenv("ZFNET_STANDIN_TRACE");
        return name ? fopen(name, "w") : nullptr;
    }();
    return file;
}

// ---- what the driver knows ----

struct Stream;
struct Capture;

struct Context {
    int device, retained = 0;
    size_t used = 0;
};

struct Allocation {
    Context *context;
    size_t size;
    unsigned char *guarded; // what malloc gave: a guard, the bytes, a guard
};
// Bytes before an allocation and behind it that must stay 0xFF. As many behind it as it has, so that
// values twice as wide as they should be do no harm to anything else.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t guard_before() { return 0; }
constexpr size_t guard_behind(size_t) { return 0; } // AddressSanitizer has its own
#else
constexpr size_t guard_before() { return 256; }
constexpr size_t guard_behind(size_t bytes) { return 256 + std::min(bytes, (size_t)1 << 20); }
#endif

// One recording of an event: a place in a stream.
struct Record {
    Stream *stream;
    bool done = false;
    std::chrono::steady_clock::time_point time{};
    shared_ptr<Capture> capture; // if the stream was being captured
    size_t captured = 0;         // and how much of it
};

struct Event {
    Context *context;
    bool timed;
    shared_ptr<Record> record; // the last one
};

struct Stream {
    Context *context;
    bool blocking; // waits for the legacy stream, and it for this one
    struct Queued { Operation run; Ticket ticket; };
    std::deque<Queued> queue = {};
    bool running = false;         // the first of the queue
    const char *reserved = nullptr; // why nobody but NCCL may use it now
    // The error of something that ran: nothing runs any more, and every later call returns it. (In a
    // driver it breaks the whole context; here other tests of the process can go on.)
    int broken = SUCCESS;
    shared_ptr<Capture> capture = nullptr;
    size_t captured = 0, joined = 0; // operations in the capture, and how many of them were waited for
};

struct Capture {
    Stream *origin;
    int mode; // 0: of all threads, 1: of this thread, 2: relaxed
    pthread_t thread;
    bool valid = true;
    std::set<Stream *> members;
    std::vector<Operation> nodes;
};

struct Graph { shared_ptr<std::vector<Operation>> nodes; };

struct Function {
    const zfcpu::Kernel *kernel;
    Context *context;
    int dynamic_limit = 48 * 1024;
};
struct Module {
    Context *context;
    std::string file; // which of kernels/*.cu it is: that of the first kernel it was asked for
    std::map<std::string, Function> functions;
};

struct Driver : standin::Driver {
    std::atomic<bool> initialized{false};
    pthread_key_t current; // the thread's context
    std::vector<Context> contexts;
    std::map<Address, Allocation> memory;
    std::map<Address, size_t> pinned;
    std::map<Context *, Stream> legacy;
    std::set<Stream *> streams;
    std::set<Event *> events;
    std::set<Graph *> graphs;
    std::set<Module *> modules;
    std::set<Function *> functions;
    Driver() { pthread_key_create(&current, nullptr); }

    int devices() override { return contexts.size(); }
    int current_device() override;
    std::string refuse_stream(void *stream, int device) override;
    std::string refuse_memory(Address at, size_t bytes, int device) override;
    void reserve(void *stream, const char *why) override { ((Stream *)stream)->reserved = why; }
    int enqueue(void *stream, Ticket ticket, Operation operation) override;
    int bring_to_front(void *stream, Ticket ticket) override;
    int finish(void *stream, Ticket ticket) override;
    void hurry(void *stream) override;
    int unblocked(std::unique_lock<std::mutex> &lock, const Operation &work) override;
};
Driver &driver = *new Driver; // outlives whatever is dropped at the end of the program

template <class T> bool known(const std::set<T *> &all, const void *one) { return all.count((T *)one) != 0; }
Context *current() { return (Context *)pthread_getspecific(driver.current); }

int complain(int error, const std::string &what) {
    fprintf(stderr, "stand-in: %s\n", what.c_str());
    return error;
}

// ---- memory ----

// The live allocation that holds these bytes.
Allocation *allocation(Address at, size_t bytes, Address *begin = nullptr) {
    auto next = driver.memory.upper_bound(at);
    if (next == driver.memory.begin()) return nullptr;
    auto &[start, found] = *--next;
    if (begin) *begin = start;
    return at - start <= found.size && bytes <= found.size - (at - start) ? &found : nullptr;
}
bool is_pinned(const void *at) {
    auto next = driver.pinned.upper_bound((Address)at);
    if (next == driver.pinned.begin()) return false;
    --next;
    return (Address)at - next->first < next->second;
}
bool untouched(const unsigned char *at, size_t bytes) {
    return bytes == 0 || (at[0] == 0xFF && memcmp(at, at + 1, bytes - 1) == 0);
}
bool intact(const Allocation &a) {
    if (trace_file()) return true;
    return untouched(a.guarded, guard_before()) && untouched(a.guarded + guard_before() + a.size, guard_behind(a.size));
}
int out_of_memory(Context *context, size_t bytes) {
    const size_t total = total_memory(context->device);
    return bytes > total - std::min(context->used, total) ? OUT_OF_MEMORY : SUCCESS;
}
int allocate(Address *out, Context *context, size_t bytes) {
    if (int error = out_of_memory(context, bytes)) return error;
    void *memory;
    const size_t all = guard_before() + bytes + guard_behind(bytes);
    if (posix_memalign(&memory, 256, all)) return OUT_OF_MEMORY;
    memset(memory, trace_file() ? 0 : 0xFF, all);
    *out = (Address)memory + guard_before();
    driver.memory[*out] = {context, bytes, (unsigned char *)memory};
    context->used += bytes;
    return SUCCESS;
}
int release(Address at) {
    auto found = driver.memory.find(at);
    if (found == driver.memory.end()) return INVALID_VALUE;
    bool good = intact(found->second);
    found->second.context->used -= found->second.size;
    free(found->second.guarded);
    driver.memory.erase(found);
    return good ? SUCCESS : complain(ILLEGAL_ADDRESS, "something wrote beyond an allocation");
}

// ---- running what is queued ----

// Any of these may return BLOCKED.

int run_one(Stream &stream) {
    if (stream.running) return complain(LAUNCH_FAILED, "a deadlock: work waits for what comes after it");
    stream.running = true;
    const int error = stream.queue.front().run();
    stream.running = false;
    if (error == BLOCKED) return BLOCKED;
    stream.queue.pop_front();
    return stream.broken = error;
}
int run_all(Stream &stream) {
    while (!stream.broken && !stream.queue.empty())
        if (int error = run_one(stream)) return error;
    return stream.broken;
}
int run_until(Record &record) {
    while (!record.done && !record.stream->broken)
        if (int error = run_one(*record.stream)) return error;
    return record.done ? SUCCESS : record.stream->broken;
}
Stream &legacy(Context *context) {
    return driver.legacy.try_emplace(context, Stream{context, true}).first->second;
}
int run_everything(Context *context) {
    int error = run_all(legacy(context));
    bool blocked = false;
    for (Stream *stream : driver.streams) {
        if (stream->context != context) continue;
        if (run_all(*stream) == BLOCKED) blocked = true;
        else if (!error) error = stream->broken;
    }
    return blocked ? BLOCKED : error;
}

// The stream of a handle, or null.
Stream *stream_of(void *handle, Context *context) {
    if (handle == nullptr || handle == (void *)1) return &legacy(context);
    return known(driver.streams, handle) ? (Stream *)handle : nullptr;
}

// The legacy stream and blocking ones wait for each other; others take no notice of it.
int order_with_legacy(Stream &stream) {
    Stream &null = legacy(stream.context);
    if (&stream != &null) return stream.blocking ? run_all(null) : SUCCESS;
    for (Stream *other : driver.streams)
        if (other->blocking && other->context == stream.context) {
            if (other->capture) {
                other->capture->valid = false;
                return CAPTURE_IMPLICIT;
            }
            if (int error = run_all(*other)) return error;
        }
    return SUCCESS;
}

int enqueue(Stream &stream, Operation operation, Ticket ticket = 0) {
    if (stream.capture) {
        if (!stream.capture->valid) return CAPTURE_INVALIDATED;
        stream.capture->nodes.push_back(std::move(operation));
        stream.captured++;
        return SUCCESS;
    }
    if (int error = order_with_legacy(stream)) return error == BLOCKED ? complain(LAUNCH_FAILED, "the legacy stream waits for NCCL") : error;
    stream.queue.push_back({std::move(operation), ticket});
    return SUCCESS;
}

// A call that waits for this stream, or cannot be recorded.
int not_captured(Stream &stream) {
    if (!stream.capture) return SUCCESS;
    stream.capture->valid = false;
    return CAPTURE_UNSUPPORTED;
}
// A call that must not be made while something is captured, unless the capture is relaxed.
int nothing_captured() {
    for (Stream *stream : driver.streams) {
        if (!stream->capture) continue;
        Capture &capture = *stream->capture;
        if (capture.mode == 0 || (capture.mode == 1 && pthread_equal(capture.thread, pthread_self()))) {
            capture.valid = false;
            return CAPTURE_UNSUPPORTED;
        }
    }
    return SUCCESS;
}

// ---- copies ----

// Copies from pinned memory are late like all else, or with this as early as they may be: a copy on a
// stream of its own that nothing orders behind what it may overtake shows in one of the two.
const bool copies_land_early = getenv("ZFNET_STANDIN_EARLY") != nullptr;

int check(Address at, size_t bytes, Context *context) {
    Allocation *found = allocation(at, bytes);
    if (found && found->context != context)
        return complain(ILLEGAL_ADDRESS, "device " + std::to_string(context->device) + " uses memory of device " + std::to_string(found->context->device));
    return found ? SUCCESS : ILLEGAL_ADDRESS;
}

// Checked when it is queued, and again when it runs: the memory may be gone by then.
int queue_copy(Stream &stream, Address to, size_t bytes, std::function<const void *()> from, Address device_from = 0) {
    auto checked = [=, context = stream.context] {
        if (int error = check(to, bytes, context)) return error;
        return device_from ? check(device_from, bytes, context) : (int)SUCCESS;
    };
    if (int error = checked()) return error;
    return enqueue(stream, [=]() -> int {
        if (int error = checked()) return error;
        memmove((void *)to, from(), bytes);
        return SUCCESS;
    });
}
int copy_in(Stream &stream, Address to, const void *from, size_t bytes) {
    if (bytes == 0) return SUCCESS;
    if (is_pinned(from)) {
        int error = queue_copy(stream, to, bytes, [=] { return from; });
        // Nothing before it in its stream: as early as a driver may be, whatever other streams do.
        const bool first = !stream.capture && stream.queue.size() == 1;
        if (!error && first && copies_land_early) error = run_all(stream);
        return error == BLOCKED ? (int)SUCCESS : error;
    }
    if (int error = not_captured(stream)) return error; // where would the bytes be at the replay
    return queue_copy(stream, to, bytes, [=] { return from; }); // pageable memory too is read when it may be last
}
int copy_out(Stream &stream, void *to, Address from, size_t bytes) {
    if (bytes == 0) return SUCCESS;
    if (int error = check(from, bytes, stream.context)) return error;
    if (!is_pinned(to))
        if (int error = not_captured(stream)) return error;
    return enqueue(stream, [=, context = stream.context]() -> int {
        if (int error = check(from, bytes, context)) return error;
        memcpy(to, (const void *)from, bytes);
        return SUCCESS;
    });
}
int copy_within(Stream &stream, Address to, Address from, size_t bytes) {
    if (bytes == 0) return SUCCESS;
    return queue_copy(stream, to, bytes, [=] { return (const void *)from; }, from);
}
template <class T> int fill(Stream &stream, Address to, T value, size_t count) {
    if (count == 0) return SUCCESS;
    if (to % sizeof(T)) return INVALID_VALUE;
    if (int error = check(to, count * sizeof(T), stream.context)) return error;
    return enqueue(stream, [=, context = stream.context]() -> int {
        if (int error = check(to, count * sizeof(T), context)) return error;
        std::fill_n((T *)to, count, value);
        return SUCCESS;
    });
}

// ---- launches ----

// An argument of a kernel, at a place where any type may stand.
struct Argument {
    struct alignas(64) Line { char bytes[64]; };
    std::vector<Line> lines;
    size_t size;
    Argument(const void *from, size_t size) : lines((size + 63) / 64), size(size) { memcpy(lines.data(), from, size); }
    char *data() { return (char *)lines.data(); }
    const TensorMap *tensor_map() {
        auto *map = (const TensorMap *)data();
        return size == sizeof *map && map->magic == TensorMap::MAGIC ? map : nullptr;
    }
};

int launch(Stream &stream, const Function &function, dim3 grid, dim3 block, unsigned shared, void **arguments) {
    const bool grid_fits = grid.x - 1 < 0x7fffffffu && grid.y - 1 < 65535 && grid.z - 1 < 65535; // nor 0
    const bool block_fits = block.x - 1 < 1024 && block.y - 1 < 1024 && block.z - 1 < 64 && block.x * block.y * block.z <= 1024;
    if (!grid_fits || !block_fits || shared > (unsigned)function.dynamic_limit || !arguments) return INVALID_VALUE;
    const zfcpu::Kernel &kernel = *function.kernel;
    if (FILE *file = trace_file()) {
        // Name, grid, block, shared memory, then the arguments as words.
        fprintf(file, "%s %u,%u,%u %u,%u,%u %u", kernel.name, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared);
        for (size_t i = 0; i < kernel.arguments.size(); i++)
            for (size_t word = 0; word < kernel.arguments[i].size / 4; word++)
                fprintf(file, "%c%u", word ? ',' : ' ', ((const unsigned *)arguments[i])[word]);
        fputc('\n', file);
        fflush(file);
        return SUCCESS;
    }
    std::vector<Argument> copied;
    for (size_t i = 0; i < kernel.arguments.size(); i++) copied.emplace_back(arguments[i], kernel.arguments[i].size);
    return enqueue(stream, [=, &kernel, context = stream.context]() mutable -> int {
        char what[200];
        std::vector<void *> places;
        std::vector<Allocation *> touched;
        unsigned char *first = nullptr; // the first pointer among the arguments, to what the kernel writes
        for (size_t i = 0; i < copied.size(); i++) {
            places.push_back(copied[i].data());
            // Pointers may also be words of a struct.
            for (size_t word = 0; word + sizeof(Address) <= copied[i].size; word += sizeof(Address)) {
                Address at;
                memcpy(&at, copied[i].data() + word, sizeof at);
                Allocation *a = allocation(at, 0);
                if (!a || a->context == context) continue;
                snprintf(what, sizeof what, "kernel %s on device %d: argument %zu is memory of device %d", kernel.name, context->device, i, a->context->device);
                return complain(ILLEGAL_ADDRESS, what);
            }
            const TensorMap *map = copied[i].tensor_map();
            if (map && !allocation(map->address, map->extent())) {
                snprintf(what, sizeof what, "kernel %s: argument %zu is a tensor map of memory that is not live", kernel.name, i);
                return complain(ILLEGAL_ADDRESS, what);
            }
            Address at;
            if (!kernel.arguments[i].pointer) continue;
            memcpy(&at, copied[i].data(), sizeof at);
            if (at == 0) continue;
            if (Allocation *a = allocation(at, 0)) {
                if (touched.empty()) first = (unsigned char *)at;
                touched.push_back(a);
            } else {
                snprintf(what, sizeof what, "kernel %s: argument %zu is no pointer to live device memory", kernel.name, i);
                return complain(ILLEGAL_ADDRESS, what);
            }
        }
        zfcpu::launch(kernel.name, grid, block, shared, [&] { kernel.call(places.data()); });
        static const char *wrong = getenv("ZFNET_STANDIN_WRONG");
        if (wrong && strcmp(wrong, kernel.name) == 0 && first) first[1] ^= 0x40;
        for (Allocation *a : touched) {
            if (intact(*a)) continue;
            snprintf(what, sizeof what, "kernel %s: wrote beyond an allocation of %zu bytes", kernel.name, a->size);
            return complain(ILLEGAL_ADDRESS, what);
        }
        return SUCCESS;
    });
}

// What every call does first: one thread at a time, in a context.
struct Entry {
    std::unique_lock<std::mutex> lock{driver.mutex};
    Context *context = current();
    int error = !driver.initialized ? NOT_INITIALIZED : !context ? INVALID_CONTEXT : SUCCESS;
    Entry() { driver.calls++; }
    int unblocked(const Operation &work) { return driver.unblocked(lock, work); }
};

// Whether a thread whose context is `current` may use a stream now.
int refuse(const Stream &stream, Context *current) {
    if (stream.context != current)
        return complain(INVALID_HANDLE, "a stream of device " + std::to_string(stream.context->device) + " is used while device " + std::to_string(current->device) + " is current");
    if (stream.reserved) return complain(INVALID_HANDLE, std::string("a stream is used ") + stream.reserved);
    return stream.broken;
}

// ---- for NCCL ----

int Driver::current_device() { return ::current() ? ::current()->device : -1; }
std::string Driver::refuse_stream(void *handle, int device) {
    Stream *stream = stream_of(handle, &contexts[device]);
    if (!stream) return "a stream that does not exist";
    if (stream->context->device != device) return "a stream of device " + std::to_string(stream->context->device) + ", of a communicator of device " + std::to_string(device);
    if (stream->blocking) return "a stream that waits for the legacy stream: that is not played here";
    if (stream->capture) return "a stream that is captured: that is not played here";
    if (stream->broken) return "a stream in which something has failed";
    return "";
}
std::string Driver::refuse_memory(Address at, size_t bytes, int device) {
    Address begin = 0;
    Allocation *found = allocation(at, bytes, &begin);
    if (found && found->context->device != device) return "is memory of device " + std::to_string(found->context->device) + ", of a communicator of device " + std::to_string(device);
    if (found) return "";
    found = begin ? &memory[begin] : nullptr;
    if (found && at - begin < found->size) return "reaches beyond an allocation of " + std::to_string(found->size) + " bytes";
    return "is no live memory of a device";
}
int Driver::enqueue(void *stream, Ticket ticket, Operation operation) {
    return ::enqueue(*(Stream *)stream, std::move(operation), ticket);
}
int Driver::bring_to_front(void *handle, Ticket ticket) {
    Stream &stream = *(Stream *)handle;
    while (!stream.broken && stream.queue.front().ticket != ticket)
        if (int error = run_one(stream)) return error;
    return stream.broken;
}
int Driver::finish(void *stream, Ticket ticket) {
    if (int error = bring_to_front(stream, ticket)) return error;
    return run_one(*(Stream *)stream);
}
void Driver::hurry(void *stream) {
    if (copies_land_early) run_all(*(Stream *)stream);
}
int Driver::unblocked(std::unique_lock<std::mutex> &lock, const Operation &work) {
    static const std::chrono::seconds patience(from_environment("ZFNET_STANDIN_PATIENCE", 20));
    for (;;) {
        if (int error = work(); error != BLOCKED) return error;
        const size_t before = calls;
        const std::string what = waits_for;
        const std::function<void()> end = give_up;
        if (changed.wait_for(lock, patience) == std::cv_status::no_timeout || calls != before) continue;
        complain(0, "nobody calls anything any more, and " + what);
        end();
    }
}

} // namespace

#define API extern "C" __attribute__((visibility("default"))) int
#define ENTER                     \
    Entry entry;                  \
    Context *ctx = entry.context; \
    if (entry.error) return entry.error
#define ENTER_STREAM(handle)                   \
    ENTER;                                     \
    Stream *stream = stream_of(handle, ctx);   \
    if (!stream) return INVALID_HANDLE;        \
    if (int error = refuse(*stream, ctx)) return error
#define ENTER_EVENT(handle)                                        \
    ENTER;                                                         \
    Event *event = (Event *)handle;                                \
    if (!known(driver.events, event)) return INVALID_HANDLE
#define TRY(call) if (int error = call) return error
// Of calls whose context matters only for the check.
#define IGNORE (void)ctx

// ---- devices and contexts ----

// Not of the driver.
extern "C" __attribute__((visibility("default"))) standin::Driver *zfnetStandIn() { return &driver; }

API cuInit(unsigned) {
    std::lock_guard lock(driver.mutex);
    if (device_count() == 0) return NO_DEVICE;
    if (!driver.initialized)
        for (int i = 0; i < (int)device_count(); i++) driver.contexts.push_back({i});
    driver.initialized = true;
    return SUCCESS;
}
API cuDriverGetVersion(int *version) { *version = from_environment("ZFNET_STANDIN_DRIVER", 13000); return SUCCESS; }
API cuDeviceGetCount(int *count) {
    if (!driver.initialized) return NOT_INITIALIZED;
    *count = device_count();
    return SUCCESS;
}
API cuDeviceGet(int *device, int ordinal) {
    if (!driver.initialized) return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= (int)device_count()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}
API cuDeviceGetName(char *name, int room, int) { snprintf(name, room, "CPU stand-in (no GPU)"); return SUCCESS; }
API cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = total_memory(device); return SUCCESS; }
API cuDeviceGetUuid(char *uuid, int device) { memset(uuid, 0, 16); uuid[15] = device; return SUCCESS; }
API cuDeviceGetUuid_v2(char *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
API cuDeviceGetAttribute(int *value, int attribute, int) {
    static const std::map<int, int> values = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},        // threads a block
        {5, 0x7fffffff}, {6, 65535}, {7, 65535},         // blocks a grid
        {8, 48 * 1024},                                  // shared memory a block, without asking for more
        {10, 32},                                        // warp
        {12, 65536},                                     // registers a block
        {13, 1980000},                                   // clock, kHz
        {16, 132},                                       // multiprocessors
        {31, 1}, {40, 3}, {41, 1},                       // concurrent kernels, copy engines, unified addressing
        {36, 3201000}, {37, 6144}, {38, 60 << 20},       // memory: clock, bus, L2
        {39, 2048},                                      // threads a multiprocessor
        {75, capability() / 10}, {76, capability() % 10}, // compute capability
        {81, dynamic_limit() + 1024}, {97, dynamic_limit()}, // shared memory a multiprocessor, and a block
        {82, 65536},                                     // registers a multiprocessor
        {115, 1},                                        // memory pools
    };
    auto found = values.find(attribute);
    *value = found == values.end() ? 0 : found->second;
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void **out, int device) {
    std::lock_guard lock(driver.mutex);
    if (!driver.initialized) return NOT_INITIALIZED;
    if (device < 0 || device >= (int)device_count()) return INVALID_DEVICE;
    driver.contexts[device].retained++;
    *out = &driver.contexts[device];
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int device) {
    std::lock_guard lock(driver.mutex);
    if (!driver.initialized) return NOT_INITIALIZED;
    Context &context = driver.contexts[device];
    if (context.retained == 0) return INVALID_CONTEXT;
    context.retained--;
    return SUCCESS;
}
API cuCtxSetCurrent(void *context) { pthread_setspecific(driver.current, context); return SUCCESS; }
API cuCtxGetCurrent(void **context) { *context = current(); return driver.initialized ? SUCCESS : NOT_INITIALIZED; }
API cuCtxGetDevice(int *device) { ENTER; *device = ctx->device; return SUCCESS; }
API cuCtxSetFlags(unsigned) { return SUCCESS; }
API cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return SUCCESS; }
API cuCtxSynchronize() {
    ENTER;
    TRY(nothing_captured());
    return entry.unblocked([&] { return run_everything(ctx); });
}
API cuGetErrorName(int code, const char **name) {
    for (auto &error : ERRORS)
        if (error.code == code) return *name = error.name, SUCCESS;
    return *name = nullptr, INVALID_VALUE;
}
API cuGetErrorString(int code, const char **text) {
    for (auto &error : ERRORS)
        if (error.code == code) return *text = error.text, SUCCESS;
    return *text = nullptr, INVALID_VALUE;
}
API cuProfilerStart() { return SUCCESS; }
API cuProfilerStop() { return SUCCESS; }

// ---- memory ----

API cuMemGetInfo_v2(size_t *unused, size_t *total) {
    ENTER;
    *total = total_memory(ctx->device);
    *unused = *total - std::min(ctx->used, *total);
    return SUCCESS;
}
API cuMemAlloc_v2(Address *out, size_t bytes) {
    ENTER;
    if (bytes == 0) return INVALID_VALUE;
    TRY(nothing_captured());
    return allocate(out, ctx, bytes);
}
API cuMemFree_v2(Address at) {
    ENTER;
    if (at == 0) return SUCCESS;
    TRY(nothing_captured());
    if (Allocation *found = allocation(at, 0)) ctx = found->context;
    entry.unblocked([&] { return run_everything(ctx); }); // errors stay with their streams
    return release(at);
}
API cuMemAllocAsync(Address *out, size_t bytes, void *handle) {
    ENTER_STREAM(handle);
    if (bytes == 0) return INVALID_VALUE;
    TRY(not_captured(*stream)); // a driver could; but a recorded step allocates nothing
    if (out_of_memory(ctx, bytes)) run_everything(ctx); // something may be waiting to be freed
    return allocate(out, ctx, bytes);
}
API cuMemFreeAsync(Address at, void *handle) {
    ENTER_STREAM(handle);
    if (at == 0) return SUCCESS;
    TRY(not_captured(*stream));
    if (!driver.memory.count(at)) return INVALID_VALUE;
    return enqueue(*stream, [=] { return release(at); });
}
API cuMemHostAlloc(void **out, size_t bytes, unsigned) {
    ENTER;
    IGNORE;
    TRY(nothing_captured());
    if (bytes == 0 || posix_memalign(out, 4096, bytes)) return bytes ? OUT_OF_MEMORY : INVALID_VALUE;
    memset(*out, 0xFF, bytes);
    driver.pinned[(Address)*out] = bytes;
    return SUCCESS;
}
API cuMemFreeHost(void *at) {
    ENTER;
    if (!driver.pinned.count((Address)at)) return INVALID_VALUE;
    TRY(nothing_captured());
    entry.unblocked([&] { return run_everything(ctx); });
    driver.pinned.erase((Address)at);
    free(at);
    return SUCCESS;
}
API cuDeviceGetDefaultMemPool(void **pool, int) { *pool = (void *)1; return SUCCESS; }
API cuDeviceGetMemPool(void **pool, int) { *pool = (void *)1; return SUCCESS; }
API cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
API cuMemPoolTrimTo(void *, size_t) { return SUCCESS; }

API cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *handle) {
    ENTER_STREAM(handle);
    return copy_in(*stream, to, from, bytes);
}
API cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *handle) {
    ENTER_STREAM(handle);
    TRY(copy_out(*stream, to, from, bytes));
    return is_pinned(to) ? (int)SUCCESS : entry.unblocked([&] { return run_all(*stream); });
}
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *handle) {
    ENTER_STREAM(handle);
    return copy_within(*stream, to, from, bytes);
}
API cuMemsetD8Async(Address to, unsigned char value, size_t count, void *handle) {
    ENTER_STREAM(handle);
    return fill(*stream, to, value, count);
}
API cuMemsetD32Async(Address to, unsigned value, size_t count, void *handle) {
    ENTER_STREAM(handle);
    return fill(*stream, to, value, count);
}
// Those without a stream are made in the legacy one, and waited for.
API cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) {
    ENTER_STREAM(nullptr);
    TRY(nothing_captured());
    TRY(copy_in(*stream, to, from, bytes));
    return entry.unblocked([&] { return run_all(*stream); });
}
API cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) {
    ENTER_STREAM(nullptr);
    TRY(nothing_captured());
    TRY(copy_out(*stream, to, from, bytes));
    return entry.unblocked([&] { return run_all(*stream); });
}
API cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
    ENTER_STREAM(nullptr);
    TRY(nothing_captured());
    return copy_within(*stream, to, from, bytes);
}
API cuMemsetD8_v2(Address to, unsigned char value, size_t count) {
    ENTER_STREAM(nullptr);
    TRY(nothing_captured());
    return fill(*stream, to, value, count);
}

// ---- streams and events ----

API cuStreamCreate(void **out, unsigned flags) {
    ENTER;
    auto *stream = new Stream{ctx, !(flags & 1)};
    driver.streams.insert(stream);
    *out = stream;
    return SUCCESS;
}
API cuStreamCreateWithPriority(void **out, unsigned flags, int) { return cuStreamCreate(out, flags); }
API cuStreamDestroy_v2(void *handle) {
    ENTER;
    IGNORE;
    if (!known(driver.streams, handle)) return INVALID_HANDLE;
    auto *stream = (Stream *)handle;
    if (stream->capture) stream->capture->valid = false, stream->capture->members.erase(stream);
    int error = run_all(*stream);
    driver.streams.erase(stream); // but kept: recorded events name it
    return error == BLOCKED ? (int)SUCCESS : error;
}
API cuStreamSynchronize(void *handle) {
    ENTER_STREAM(handle);
    TRY(not_captured(*stream));
    return entry.unblocked([&] {
        TRY(order_with_legacy(*stream));
        return run_all(*stream);
    });
}
API cuStreamQuery(void *handle) {
    ENTER_STREAM(handle);
    TRY(not_captured(*stream));
    if (stream->queue.empty()) return SUCCESS;
    int error = run_one(*stream);
    return error && error != BLOCKED ? error : (int)NOT_READY;
}
API cuStreamWaitEvent(void *handle, void *event_handle, unsigned) {
    ENTER_STREAM(handle);
    if (!known(driver.events, event_handle)) return INVALID_HANDLE;
    shared_ptr<Record> record = ((Event *)event_handle)->record;
    if (!record) return SUCCESS;
    if (!record->capture) {
        if (!stream->capture) return enqueue(*stream, [=] { return run_until(*record); });
        stream->capture->valid = false;
        return CAPTURE_ISOLATION;
    }
    // Within a capture: the waiting stream joins it, if it is not in it already.
    if (stream->capture && stream->capture != record->capture) {
        stream->capture->valid = record->capture->valid = false;
        return CAPTURE_MERGE;
    }
    if (!known(record->capture->members, record->stream)) return CAPTURED_EVENT; // that capture is over
    if (!record->capture->valid) return CAPTURE_INVALIDATED;
    if (!stream->capture) {
        if (!stream->queue.empty()) { // what waits there is no part of the capture
            record->capture->valid = false;
            return CAPTURE_ISOLATION;
        }
        stream->capture = record->capture;
        stream->capture->members.insert(stream);
    }
    record->stream->joined = std::max(record->stream->joined, record->captured);
    if (stream != record->stream) stream->captured++; // has to be joined itself
    return SUCCESS;
}
API cuLaunchHostFunc(void *handle, void (*function)(void *), void *argument) {
    ENTER_STREAM(handle);
    if (!function) return INVALID_VALUE;
    return enqueue(*stream, [=]() -> int {
        function(argument);
        return SUCCESS;
    });
}
API cuEventCreate(void **out, unsigned flags) {
    ENTER;
    auto *event = new Event{ctx, !(flags & 2), nullptr};
    driver.events.insert(event);
    *out = event;
    return SUCCESS;
}
API cuEventDestroy_v2(void *handle) {
    ENTER_EVENT(handle);
    IGNORE;
    driver.events.erase(event);
    delete event;
    return SUCCESS;
}
API cuEventRecord(void *handle, void *stream_handle) {
    ENTER_EVENT(handle);
    Stream *stream = stream_of(stream_handle, ctx);
    if (!stream) return INVALID_HANDLE;
    TRY(refuse(*stream, ctx));
    if (event->context != ctx) return complain(INVALID_HANDLE, "an event of another device is recorded");
    auto record = std::make_shared<Record>();
    record->stream = stream;
    if (stream->capture) {
        if (!stream->capture->valid) return CAPTURE_INVALIDATED;
        record->capture = stream->capture;
        record->captured = stream->captured;
    } else {
        TRY(enqueue(*stream, [=]() -> int {
            record->done = true;
            record->time = std::chrono::steady_clock::now();
            return SUCCESS;
        }));
    }
    event->record = record;
    return SUCCESS;
}
API cuEventSynchronize(void *handle) {
    ENTER_EVENT(handle);
    IGNORE;
    if (!event->record) return SUCCESS;
    if (event->record->capture) return CAPTURED_EVENT;
    return entry.unblocked([record = event->record] { return run_until(*record); });
}
API cuEventQuery(void *handle) {
    ENTER_EVENT(handle);
    IGNORE;
    if (!event->record) return SUCCESS;
    Record &record = *event->record;
    if (record.capture) return CAPTURED_EVENT;
    if (record.done) return SUCCESS;
    if (record.stream->broken) return record.stream->broken;
    int error = run_one(*record.stream); // so that whoever asks for ever gets an answer
    return error && error != BLOCKED ? error : (int)NOT_READY;
}
API cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    ENTER;
    IGNORE;
    if (!known(driver.events, start) || !known(driver.events, end)) return INVALID_HANDLE;
    auto *a = (Event *)start, *b = (Event *)end;
    if (!a->timed || !b->timed || !a->record || !b->record) return INVALID_HANDLE;
    if (!a->record->done || !b->record->done) return NOT_READY;
    if (trace_file()) return *milliseconds = 1000, SUCCESS; // nothing is measured, and whoever waits for a time gets one
    *milliseconds = std::chrono::duration<float, std::milli>(b->record->time - a->record->time).count();
    return SUCCESS;
}
API cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) { return cuEventElapsedTime(milliseconds, start, end); }

// ---- graphs ----

API cuStreamBeginCapture_v2(void *handle, int mode) {
    ENTER_STREAM(handle);
    if (stream == &legacy(ctx)) return CAPTURE_UNSUPPORTED;
    if (stream->capture) return INVALID_VALUE;
    auto capture = std::make_shared<Capture>();
    capture->origin = stream;
    capture->mode = mode;
    capture->thread = pthread_self();
    capture->members = {stream};
    stream->capture = capture;
    stream->captured = stream->joined = 0;
    return SUCCESS;
}
API cuStreamIsCapturing(void *handle, int *status) {
    ENTER_STREAM(handle);
    *status = !stream->capture ? 0 : stream->capture->valid ? 1 : 2;
    return SUCCESS;
}
API cuStreamEndCapture(void *handle, void **out) {
    ENTER_STREAM(handle);
    *out = nullptr;
    shared_ptr<Capture> capture = stream->capture;
    if (!capture) return INVALID_VALUE;
    int error = SUCCESS;
    if (capture->origin != stream) {
        capture->valid = false;
        return CAPTURE_UNMATCHED;
    }
    if (!capture->valid) error = CAPTURE_INVALIDATED;
    for (Stream *member : capture->members) {
        if (member != stream && member->joined < member->captured && !error) error = CAPTURE_UNJOINED;
        member->capture = nullptr;
        member->captured = member->joined = 0;
    }
    capture->members.clear();
    if (error) return error;
    auto *graph = new Graph{std::make_shared<std::vector<Operation>>(std::move(capture->nodes))};
    driver.graphs.insert(graph);
    *out = graph;
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long) {
    ENTER;
    IGNORE;
    if (!known(driver.graphs, graph)) return INVALID_VALUE;
    auto *executable = new Graph(*(Graph *)graph);
    driver.graphs.insert(executable);
    *out = executable;
    return SUCCESS;
}
API cuGraphUpload(void *graph, void *handle) {
    ENTER_STREAM(handle);
    return known(driver.graphs, graph) ? SUCCESS : INVALID_VALUE;
}
API cuGraphLaunch(void *graph, void *handle) {
    ENTER_STREAM(handle);
    if (!known(driver.graphs, graph)) return INVALID_VALUE;
    return enqueue(*stream, [nodes = ((Graph *)graph)->nodes]() -> int {
        for (Operation &node : *nodes) TRY(node());
        return SUCCESS;
    });
}
API cuGraphDestroy(void *graph) {
    ENTER;
    IGNORE;
    if (!driver.graphs.erase((Graph *)graph)) return INVALID_VALUE;
    delete (Graph *)graph;
    return SUCCESS;
}
API cuGraphExecDestroy(void *graph) { return cuGraphDestroy(graph); }

// ---- modules and launches ----

// Whatever the image is. A module turns out to be that file whose kernel it is asked for first: a
// kernel of another file is not found in it, as in a driver.
API cuModuleLoadData(void **out, const void *image) {
    ENTER;
    if (!image) return INVALID_VALUE;
    TRY(nothing_captured());
    auto *module = new Module{ctx, {}, {}};
    driver.modules.insert(module);
    *out = module;
    return SUCCESS;
}
API cuModuleUnload(void *handle) {
    ENTER;
    if (!known(driver.modules, handle)) return INVALID_HANDLE;
    entry.unblocked([&] { return run_everything(ctx); });
    auto *module = (Module *)handle;
    for (auto &[name, function] : module->functions) driver.functions.erase(&function);
    driver.modules.erase(module);
    delete module;
    return SUCCESS;
}
API cuModuleGetFunction(void **out, void *handle, const char *name) {
    ENTER;
    IGNORE;
    if (!known(driver.modules, handle)) return INVALID_HANDLE;
    auto *module = (Module *)handle;
    for (auto &kernel : zfcpu::kernels()) {
        if (strcmp(kernel.name, name) != 0) continue;
        if (module->file.empty()) module->file = kernel.file;
        if (module->file != kernel.file) break;
        Function &function = module->functions.try_emplace(name, Function{&kernel, module->context}).first->second;
        driver.functions.insert(&function);
        *out = &function;
        return SUCCESS;
    }
    return complain(NOT_FOUND, "a kernel was looked for in a module that does not have it");
}
API cuFuncSetAttribute(void *handle, int attribute, int value) {
    ENTER;
    IGNORE;
    if (!known(driver.functions, handle)) return INVALID_HANDLE;
    if (attribute != 8) return SUCCESS;
    if (value < 0 || value > dynamic_limit()) return INVALID_VALUE;
    ((Function *)handle)->dynamic_limit = value;
    return SUCCESS;
}
API cuFuncGetAttribute(int *value, int attribute, void *handle) {
    ENTER;
    IGNORE;
    if (!known(driver.functions, handle)) return INVALID_HANDLE;
    *value = attribute == 0 ? 1024 : attribute == 8 ? ((Function *)handle)->dynamic_limit : 0;
    return SUCCESS;
}
API cuFuncSetCacheConfig(void *, int) { return SUCCESS; }
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int, size_t) { *blocks = 2; return SUCCESS; }
API cuLaunchKernel(void *handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void *stream_handle, void **arguments, void **) {
    ENTER_STREAM(stream_handle);
    if (!known(driver.functions, handle)) return INVALID_HANDLE;
    if (((Function *)handle)->context != ctx) return complain(INVALID_HANDLE, "a kernel of another device is launched");
    return launch(*stream, *(Function *)handle, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, arguments);
}

// ---- tensor maps ----

// A tensor has to lie within an allocation, which a driver does not look at.
static int finish_map(void *out, const TensorMap &map, const char *wrong, const char *function) {
    if (!wrong && (uintptr_t)out % 64) wrong = "a tensor map that is not at a multiple of 64";
    if (!wrong && capability() < 90) wrong = "a device without tensor maps";
    if (!wrong && !allocation(map.address, map.extent())) wrong = "a tensor that is not within an allocation";
    if (wrong) return complain(INVALID_VALUE, std::string(function) + ": " + wrong);
    memcpy(out, &map, sizeof map);
    return SUCCESS;
}
API cuTensorMapEncodeTiled(void *out, int type, unsigned rank, void *address, const uint64_t *dims, const uint64_t *strides, const unsigned *box,
                           const unsigned *steps, int interleave, int swizzle, int promotion, int fill) {
    ENTER;
    IGNORE;
    TensorMap map{};
    const char *wrong = rank < 1 || rank > 5 ? "a rank that is not within 1 .. 5" : nullptr;
    if (!wrong) wrong = standin::describe_tensor(map, type, rank, (Address)address, dims, strides, steps, interleave, swizzle, promotion, fill);
    if (!wrong) wrong = standin::describe_box(map, box);
    return finish_map(out, map, wrong, "cuTensorMapEncodeTiled");
}
// Corners are of W, then H: HOPPER.md.
API cuTensorMapEncodeIm2col(void *out, int type, unsigned rank, void *address, const uint64_t *dims, const uint64_t *strides, const int *lower,
                            const int *upper, unsigned channels, unsigned pixels, const unsigned *steps, int interleave, int swizzle, int promotion, int fill) {
    ENTER;
    IGNORE;
    TensorMap map{};
    const char *wrong = rank < 3 || rank > 5 ? "a rank that is not within 3 .. 5" : nullptr;
    if (!wrong) wrong = standin::describe_tensor(map, type, rank, (Address)address, dims, strides, steps, interleave, swizzle, promotion, fill);
    if (!wrong) wrong = standin::describe_pixels(map, lower, upper, channels, pixels);
    return finish_map(out, map, wrong, "cuTensorMapEncodeIm2col");
}
