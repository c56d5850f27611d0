// A stand-in for libnccl.so.2 whose ranks are threads of one process, on devices of the stand-in for CUDA's driver:
// the part of NCCL that src/backend/cuda/nccl.rs calls and a little more, from NVIDIA's user guide and nccl.h.
//
// It is as late as NCCL may be. What a group does waits in its stream. It begins when all before it in that stream is
// done, and ends when every call that belongs to one of its own has begun at the other ranks too; only then is what it
// sends read, and what it receives written. With ZFNET_STANDIN_EARLY it is as early as it may be instead.
//
// And it is as strict: calls that do not belong together, communicators used from two threads, for another device or
// after their end, memory that is not theirs are errors with a sentence, here and at the other ranks; what waits for a
// call that nobody makes ends some time after the last call of any thread.
//
// A communicator that does not block is `ncclInProgress` at its beginning, at the end of the first group with a rank
// or with all of them, and when it is finalized: until all that it takes have come that far, and it has been asked.
//
// Environment:
//   ZFNET_STANDIN_NCCL_VERSION   the library's version, 22800
#include "driver.h"
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <pthread.h>
#include <set>
#include <utility>
#include <vector>

namespace {

using standin::Address, standin::BLOCKED, standin::Ticket;
using std::shared_ptr, std::string, std::to_string;

// ---- the library's constants ----

enum Result { SUCCESS = 0, UNHANDLED_CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR, IN_PROGRESS };
const char *const RESULTS[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error", "invalid argument", "invalid usage", "remote process exited or there was a network error", "NCCL operation in progress"};
enum Type { INT32 = 2, UINT32 = 3, FLOAT32 = 7, TYPES = 10 };
constexpr size_t BYTES[TYPES] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
enum Reduction { SUM = 0, MAX = 2 };
enum Kind { SEND, RECEIVE, BROADCAST, ALL_GATHER, ALL_REDUCE };
const char *const NAMES[] = {"ncclSend", "ncclRecv", "ncclBroadcast", "ncclAllGather", "ncclAllReduce"};
// Of the driver.
constexpr int LAUNCH_FAILED = 719;

struct Id { char bytes[128]; };
struct Config { // of 2.14; later versions have more behind it
    size_t size;
    unsigned magic, version;
    int blocking;
};

// ---- what it knows ----

struct Comm;
struct Launch;
struct Meeting;

struct Call {
    Kind kind;
    Address send, receive;
    size_t count;
    int type, reduction, peer; // or root
    bool collective() const { return kind >= BROADCAST; }
    size_t bytes() const { return count * BYTES[type]; }
    string text() const { return string(NAMES[kind]) + " of " + to_string(count) + " values of type " + to_string(type); }
};

// Calls that belong together, of all ranks or of a sender (0) and a receiver (1).
struct Meeting {
    struct Member {
        shared_ptr<Launch> launch;
        Call call;
        std::vector<char> sent = {};
    };
    std::map<int, Member> members;
    int size;
    size_t number = 0; // of a collective
    bool read = false; // all that is sent
};

// What a group does at one rank.
struct Launch {
    Comm *comm;
    void *stream;
    Ticket ticket;
    struct Part {
        Call call;
        shared_ptr<Meeting> meeting;
    };
    std::vector<Part> parts = {};
    bool done = false;
};

struct Clique {
    int ranks;
    std::map<int, Comm *> members = {};
    std::set<std::pair<int, int>> called = {};               // by which rank which other has been called; -1: all
    std::map<std::pair<int, int>, std::deque<shared_ptr<Meeting>>> messages = {}; // from, to: those that lack one end
    std::map<size_t, shared_ptr<Meeting>> collectives = {};  // in order; those that lack a rank
};

enum State { JOINING, READY, FINALIZING, FINALIZED, DESTROYED, ABORTED };
struct Comm {
    shared_ptr<Clique> clique;
    int rank, device;
    bool blocking;
    pthread_t thread; // that made it
    State state = JOINING;
    int error = SUCCESS; // asynchronous
    size_t collectives = 0;
    std::vector<Call> held = {}; // a group that waits for connections
    void *stream = nullptr;      // and where it goes
    bool grouped = false;        // in a group that is not over
    pthread_t grouped_by{};
    std::vector<shared_ptr<Launch>> launches = {};
    string name() const { return "rank " + to_string(rank) + " of " + to_string(clique->ranks); }
};

// A thread's open group.
struct Group {
    int depth = 0;
    struct Calls {
        Comm *comm;
        void *stream;
        std::vector<Call> calls;
    };
    std::vector<Calls> calls = {};
    std::vector<Comm *> begun = {};
    int error = SUCCESS;
};

thread_local Group group;
struct Library {
    size_t ids = 0, tickets = 0;
    std::map<size_t, shared_ptr<Clique>> cliques;
    std::set<Comm *> comms; // never freed: whoever uses one too long is to be told
    string last_error;
};
Library &library = *new Library;

standin::Driver *driver() {
    static standin::Driver *found = [] {
        void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
        auto stand_in = cuda ? (standin::Driver * (*)()) dlsym(cuda, "zfnetStandIn") : nullptr;
        if (!stand_in) {
            fprintf(stderr, "stand-in for NCCL: needs the stand-in for CUDA's driver\n");
            abort();
        }
        return stand_in();
    }();
    return found;
}

int complain(int error, const string &what) {
    fprintf(stderr, "stand-in for NCCL: %s\n", what.c_str());
    library.last_error = what;
    return error;
}
// Something is wrong with a communicator: all ranks come to know of it.
int fail(Clique &clique, int error, const string &what) {
    for (auto &[rank, comm] : clique.members)
        if (!comm->error || comm->error == IN_PROGRESS) comm->error = error;
    driver()->changed.notify_all();
    return complain(error, what);
}

// What every call does first.
struct Entry {
    std::unique_lock<std::mutex> lock{driver()->mutex};
    Entry() { driver()->calls++; }
    // Waits in a call that blocks.
    int wait(const string &what, const std::function<bool()> &is_over) {
        bool gave_up = false;
        return driver()->unblocked(lock, [&] {
            driver()->waits_for = what;
            driver()->give_up = [&] { gave_up = true; };
            return is_over() ? (int)SUCCESS : gave_up ? (int)SYSTEM_ERROR : BLOCKED;
        });
    }
};

// ---- what a launch does ----

int blocked(Comm &comm, const string &by) {
    driver()->waits_for = comm.name() + " waits for " + by;
    driver()->give_up = [&comm, what = driver()->waits_for] { fail(*comm.clique, SYSTEM_ERROR, what); };
    return BLOCKED;
}

// Whether all members of a meeting have come to it, as far as their streams' order lets them.
int gather(Comm &comm, const Launch::Part &part) {
    Meeting &meeting = *part.meeting;
    if (meeting.read) return SUCCESS;
    for (int i = 0; i < meeting.size; i++) {
        auto found = meeting.members.find(i);
        if (found == meeting.members.end()) {
            const int missing = part.call.collective() ? i : part.call.peer;
            const char *name = NAMES[part.call.collective() ? part.call.kind : i ? RECEIVE : SEND];
            return blocked(comm, string(name) + " by rank " + to_string(missing) + ", with which its own " + part.call.text() + " belongs together");
        }
        const shared_ptr<Launch> other = found->second.launch;
        if (other->done) continue;
        if (other->comm->state == ABORTED) return blocked(comm, other->comm->name() + ", which has given up");
        const int error = driver()->bring_to_front(other->stream, other->ticket);
        if (error == BLOCKED) return BLOCKED;
        if (error) {
            fail(*comm.clique, UNHANDLED_CUDA_ERROR, comm.name() + ": " + part.call.text() + " cannot be done: something failed in a stream of " + other->comm->name());
            return error;
        }
    }
    return SUCCESS;
}

int use(Comm &comm, const Call &call, Address at, size_t bytes) {
    const string wrong = bytes ? driver()->refuse_memory(at, bytes, comm.device) : "";
    if (wrong.empty()) return SUCCESS;
    return fail(*comm.clique, INVALID_ARGUMENT, comm.name() + ": a buffer of " + call.text() + " " + wrong);
}
// Bytes at each end of a call.
size_t sent(const Comm &comm, const Call &call) {
    return call.kind == RECEIVE || (call.kind == BROADCAST && comm.rank != call.peer) ? 0 : call.bytes();
}
size_t received(const Comm &comm, const Call &call) {
    return call.kind == SEND ? 0 : call.kind == ALL_GATHER ? call.bytes() * comm.clique->ranks : call.bytes();
}

template <class T> void reduce_as(std::vector<char> &out, const std::vector<const char *> &inputs, int reduction) {
    for (size_t i = 0; i < out.size() / sizeof(T); i++) {
        T result = ((const T *)inputs[0])[i];
        for (size_t k = 1; k < inputs.size(); k++) {
            const T value = ((const T *)inputs[k])[i];
            result = reduction == SUM ? result + value : std::max(result, value);
        }
        ((T *)out.data())[i] = result;
    }
}
// In which order values are added is not promised: it is another from one call to the next.
void reduce(std::vector<char> &out, Meeting &meeting, const Call &call) {
    std::vector<const char *> inputs;
    for (int i = 0; i < meeting.size; i++) inputs.push_back(meeting.members.at((i + meeting.number) % meeting.size).sent.data());
    switch (call.type) {
        case INT32: return reduce_as<int32_t>(out, inputs, call.reduction);
        case UINT32: return reduce_as<uint32_t>(out, inputs, call.reduction);
        default: return reduce_as<float>(out, inputs, call.reduction);
    }
}

int run(Launch &launch) {
    Comm &comm = *launch.comm;
    if (comm.state == ABORTED) { // what it was to receive is anything now
        for (auto &[call, meeting] : launch.parts)
            if (size_t bytes = received(comm, call); bytes && driver()->refuse_memory(call.receive, bytes, comm.device).empty())
                memset((void *)call.receive, 0xFF, bytes);
        launch.done = true;
        launch.parts.clear();
        return SUCCESS;
    }
    if (comm.error && comm.error != IN_PROGRESS) return LAUNCH_FAILED;
    for (auto &part : launch.parts)
        if (int error = gather(comm, part)) return error;
    for (auto &[call, meeting] : launch.parts) {
        if (meeting->read) continue;
        for (auto &[key, member] : meeting->members) {
            const size_t bytes = sent(*member.launch->comm, member.call);
            if (use(*member.launch->comm, member.call, member.call.send, bytes)) return LAUNCH_FAILED;
            member.sent.assign((const char *)member.call.send, (const char *)member.call.send + bytes);
        }
        meeting->read = true;
    }
    for (auto &[call, meeting] : launch.parts) {
        const size_t bytes = received(comm, call);
        if (use(comm, call, call.receive, bytes)) return LAUNCH_FAILED;
        std::vector<char> out;
        switch (call.kind) {
            case SEND: break;
            case RECEIVE: out = meeting->members.at(0).sent; break;
            case BROADCAST: out = meeting->members.at(call.peer).sent; break;
            case ALL_GATHER:
                for (auto &[rank, member] : meeting->members) out.insert(out.end(), member.sent.begin(), member.sent.end());
                break;
            case ALL_REDUCE:
                out.resize(bytes);
                reduce(out, *meeting, call);
        }
        if (bytes) memcpy((void *)call.receive, out.data(), bytes);
    }
    launch.done = true;
    launch.parts.clear();
    return SUCCESS;
}

// ---- from calls to launches ----

// The meeting of a call, if it is one that its other members can have meant.
int meet(const shared_ptr<Launch> &launch, const Call &call) {
    Comm &comm = *launch->comm;
    Clique &clique = *comm.clique;
    shared_ptr<Meeting> meeting;
    int key = comm.rank;
    if (call.collective()) {
        auto &at = clique.collectives[comm.collectives];
        if (!at) at = std::make_shared<Meeting>(Meeting{{}, clique.ranks, comm.collectives});
        meeting = at;
        if ((int)meeting->members.size() + 1 == clique.ranks) clique.collectives.erase(comm.collectives);
        comm.collectives++;
    } else {
        key = call.kind == RECEIVE;
        auto &waiting = clique.messages[key ? std::pair(call.peer, comm.rank) : std::pair(comm.rank, call.peer)];
        if (!waiting.empty() && !waiting.front()->members.count(key)) {
            meeting = waiting.front();
            waiting.pop_front();
        } else {
            meeting = std::make_shared<Meeting>(Meeting{{}, 2});
            waiting.push_back(meeting);
        }
    }
    for (auto &[other, member] : meeting->members) {
        const Call &its = member.call;
        const bool alike = its.count == call.count && its.type == call.type
            && (!call.collective() || (its.kind == call.kind && its.peer == call.peer && its.reduction == call.reduction));
        if (!alike)
            return fail(clique, INVALID_USAGE, comm.name() + ": " + call.text() + " does not fit " + its.text() + " by rank " + to_string(member.launch->comm->rank) + (call.collective() ? ", the next of all ranks in order" : ", the next between these two in order"));
    }
    meeting->members.emplace(key, Meeting::Member{launch, call});
    launch->parts.push_back({call, meeting});
    return SUCCESS;
}

bool overlap(Address a, size_t a_bytes, Address b, size_t b_bytes) { return a_bytes && b_bytes && a < b + b_bytes && b < a + a_bytes; }
// Buffers of a group that something else in it is received into.
int check_overlaps(Comm &comm, const std::vector<Call> &calls) {
    for (size_t i = 0; i < calls.size(); i++)
        for (size_t j = 0; j < calls.size(); j++) {
            const Call &a = calls[i], &b = calls[j];
            const Address in_place = a.kind == ALL_GATHER ? a.receive + comm.rank * a.bytes() : a.receive;
            const bool both = i != j && overlap(a.receive, received(comm, a), b.receive, received(comm, b));
            const bool read = overlap(a.receive, received(comm, a), b.send, sent(comm, b)) && !(i == j && a.send == in_place);
            if (both || read) return fail(*comm.clique, INVALID_USAGE, comm.name() + ": " + a.text() + " writes what " + b.text() + (both ? " writes" : " reads") + ", in one group");
        }
    return SUCCESS;
}

// Gives a group to its stream.
int launch(Comm &comm, void *stream, const std::vector<Call> &calls) {
    const string wrong = driver()->refuse_stream(stream, comm.device);
    if (!wrong.empty()) return fail(*comm.clique, INVALID_USAGE, comm.name() + " is used with " + wrong);
    auto launch = std::make_shared<Launch>(Launch{&comm, stream, ++library.tickets});
    auto &all = comm.launches;
    all.erase(std::remove_if(all.begin(), all.end(), [](auto &launch) { return launch->done; }), all.end());
    for (const Call &call : calls)
        if (int error = meet(launch, call)) return error;
    if (driver()->enqueue(stream, launch->ticket, [launch] { return run(*launch); })) return fail(*comm.clique, UNHANDLED_CUDA_ERROR, comm.name() + ": nothing can be queued in the stream");
    comm.launches.push_back(launch);
    driver()->changed.notify_all();
    for (auto &[rank, member] : comm.clique->members)
        for (auto &launch : member->launches)
            if (!launch->done) driver()->hurry(launch->stream);
    return SUCCESS;
}

// Whether a group has connections to all whom it calls; that takes a call on both sides, once.
bool connected(Comm &comm, const std::vector<Call> &calls) {
    auto &called = comm.clique->called;
    return std::all_of(calls.begin(), calls.end(), [&](const Call &call) {
        if (!call.collective()) return called.count({call.peer, comm.rank}) != 0;
        int all = 0;
        for (int rank = 0; rank < comm.clique->ranks; rank++) all += called.count({rank, -1});
        return all == comm.clique->ranks;
    });
}
void connect(Comm &comm, const std::vector<Call> &calls) {
    for (const Call &call : calls) comm.clique->called.insert({comm.rank, call.collective() ? -1 : call.peer});
    driver()->changed.notify_all();
}
int start(Entry &entry, Comm &comm, void *stream, const std::vector<Call> &calls) {
    if (comm.error) return comm.error;
    if (int error = check_overlaps(comm, calls)) return error;
    if (!connected(comm, calls) && !comm.blocking) {
        comm.held = calls;
        comm.stream = stream;
        driver()->reserve(stream, "before a group of NCCL calls has been queued there: ncclCommGetAsyncError has to be asked until it has");
        return comm.error = IN_PROGRESS;
    }
    if (int error = entry.wait(comm.name() + " waits for others to connect", [&] { return comm.error || connected(comm, calls); })) return fail(*comm.clique, error, comm.name() + " could not connect");
    return comm.error ? comm.error : launch(comm, stream, calls);
}

// ---- communicators ----

bool joined(const Comm &comm) { return (int)comm.clique->members.size() == comm.clique->ranks; }

// What becomes of a communicator in the background.
void progress(Comm &comm) {
    if (comm.error && comm.error != IN_PROGRESS) return;
    if (comm.state == JOINING && joined(comm)) comm.state = READY, comm.error = SUCCESS;
    if (!comm.held.empty() && connected(comm, comm.held)) {
        driver()->reserve(comm.stream, nullptr);
        comm.error = SUCCESS;
        launch(comm, comm.stream, std::exchange(comm.held, {}));
    }
    if (comm.state == FINALIZING) {
        for (auto &launch : comm.launches)
            if (!launch->done && driver()->finish(launch->stream, launch->ticket)) return;
        for (auto &[rank, member] : comm.clique->members)
            if (member->state < FINALIZING || member->state == ABORTED) return;
        comm.state = FINALIZED;
        comm.error = SUCCESS;
        driver()->changed.notify_all();
    }
}

// Whether a communicator may be used now, by this thread, for `what`.
int usable(Comm *comm, const char *what, bool even_broken = false) {
    if (!library.comms.count(comm)) return complain(INVALID_ARGUMENT, string(what) + ": no communicator");
    if (comm->state >= DESTROYED) return complain(INVALID_ARGUMENT, string(what) + ": a communicator that has been given back");
    if (comm->grouped && !pthread_equal(comm->grouped_by, pthread_self())) return complain(INVALID_USAGE, string(what) + ": " + comm->name() + " is in a group of another thread");
    if (even_broken) return SUCCESS;
    if (comm->error == IN_PROGRESS) return complain(INVALID_USAGE, string(what) + ": " + comm->name() + " is in progress with something else");
    if (comm->state >= FINALIZING) return complain(INVALID_USAGE, string(what) + ": " + comm->name() + " is finalized");
    if (comm->error) return complain(comm->error, string(what) + ": " + comm->name() + " has failed before");
    return SUCCESS;
}

int join(Comm **out, int ranks, const Id &id, int rank, int device, bool blocking) {
    size_t number;
    memcpy(&number, id.bytes, sizeof number);
    auto found = library.cliques.find(number);
    if (found == library.cliques.end()) return complain(INVALID_ARGUMENT, "an identifier that ncclGetUniqueId has not made");
    if (ranks < 1 || rank < 0 || rank >= ranks) return complain(INVALID_ARGUMENT, "rank " + to_string(rank) + " of " + to_string(ranks));
    if (device < 0 || device >= driver()->devices()) return complain(INVALID_ARGUMENT, "no device is current");
    auto &clique = found->second;
    if (!clique) clique = std::make_shared<Clique>(Clique{ranks});
    if (clique->ranks != ranks) return complain(INVALID_ARGUMENT, "a communicator of " + to_string(ranks) + " ranks for one and of " + to_string(clique->ranks) + " for another");
    for (auto &[other, comm] : clique->members)
        if (other == rank || comm->device == device) return complain(INVALID_USAGE, "two ranks of a communicator have the same " + string(other == rank ? "number" : "device"));
    auto *comm = new Comm{clique, rank, device, blocking, pthread_self()};
    comm->error = IN_PROGRESS;
    library.comms.insert(comm);
    clique->members[rank] = comm;
    *out = comm;
    driver()->changed.notify_all();
    return SUCCESS;
}
// Waits for a communicator that blocks, and says how far it is.
int begun(Entry &entry, Comm &comm) {
    if (comm.blocking) {
        if (int error = entry.wait(comm.name() + " waits for the others to begin", [&] { return joined(comm); })) return fail(*comm.clique, error, comm.name() + " could not begin");
        progress(comm);
    }
    return comm.error;
}
int begin(Comm **out, int ranks, const Id &id, int rank, bool blocking) {
    Entry entry;
    if (group.depth && !group.calls.empty()) return complain(INVALID_USAGE, "ncclCommInitRank in a group with operations");
    if (int error = join(out, ranks, id, rank, driver()->current_device(), blocking)) return error;
    if (!group.depth) return begun(entry, **out);
    group.begun.push_back(*out);
    return SUCCESS;
}

int issue(const Call &call, Comm *comm, void *stream) {
    Entry entry;
    if (int error = usable(comm, NAMES[call.kind])) return error;
    const auto refuse = [&](const string &why) { return complain(INVALID_ARGUMENT, comm->name() + ": " + NAMES[call.kind] + " " + why); };
    if (call.type < 0 || call.type >= TYPES) return refuse("of an unknown type");
    if (call.peer < 0 || call.peer >= comm->clique->ranks) return refuse("with rank " + to_string(call.peer));
    if (call.kind == ALL_REDUCE && ((call.reduction != SUM && call.reduction != MAX) || (call.type != INT32 && call.type != UINT32 && call.type != FLOAT32)))
        return refuse("of a type or by an operation that is not played here");
    for (auto [at, bytes] : {std::pair(call.send, sent(*comm, call)), std::pair(call.receive, received(*comm, call))}) {
        const string wrong = bytes ? driver()->refuse_memory(at, bytes, comm->device) : "";
        if (!wrong.empty()) return refuse("of " + to_string(call.count) + " values: the buffer " + wrong);
        if (at % BYTES[call.type]) return refuse("of values that are not aligned");
    }
    if (const string wrong = driver()->refuse_stream(stream, comm->device); !wrong.empty()) return complain(INVALID_USAGE, comm->name() + ": " + NAMES[call.kind] + " with " + wrong);
    if (!group.depth) {
        for (auto &[rank, other] : comm->clique->members)
            if (other != comm && other->state < DESTROYED && pthread_equal(other->thread, pthread_self()))
                return complain(INVALID_USAGE, string(NAMES[call.kind]) + " outside a group by a thread that has several ranks");
        connect(*comm, {call});
        return start(entry, *comm, stream, {call});
    }
    if (!group.begun.empty()) return complain(INVALID_USAGE, string(NAMES[call.kind]) + " in a group with ncclCommInitRank");
    auto at = std::find_if(group.calls.begin(), group.calls.end(), [&](auto &calls) { return calls.comm == comm; });
    if (at == group.calls.end()) at = group.calls.insert(at, {comm, stream, {}});
    if (at->stream != stream) return complain(INVALID_USAGE, comm->name() + ": a group with two streams: that is not played here");
    at->calls.push_back(call);
    comm->grouped = true;
    comm->grouped_by = pthread_self();
    driver()->reserve(stream, "between ncclGroupStart and ncclGroupEnd");
    return SUCCESS;
}

} // namespace

#define API extern "C" __attribute__((visibility("default")))

API int ncclGetVersion(int *version) {
    const char *wanted = getenv("ZFNET_STANDIN_NCCL_VERSION");
    *version = wanted ? atoi(wanted) : 22800;
    return SUCCESS;
}
API const char *ncclGetErrorString(int result) { return result >= 0 && result <= IN_PROGRESS ? RESULTS[result] : "unknown result code"; }
API const char *ncclGetLastError(Comm *) {
    static thread_local string copy;
    Entry entry;
    copy = library.last_error;
    return copy.c_str();
}
API int ncclGetUniqueId(Id *id) {
    std::lock_guard lock(driver()->mutex);
    memset(id, 0x5a, sizeof *id); // no zeros in it that a program could take for its end
    const size_t number = 0x0102030405060000 + ++library.ids;
    memcpy(id->bytes, &number, sizeof number);
    library.cliques[number] = nullptr;
    return SUCCESS;
}

API int ncclCommInitRankConfig(Comm **out, int ranks, Id id, int rank, Config *config) {
    if (config && (config->magic != 0xcafebeef || config->version < 21400 || config->size < sizeof(Config)))
        return complain(INVALID_ARGUMENT, "a configuration that was not made by NCCL_CONFIG_INITIALIZER");
    return begin(out, ranks, id, rank, !config || config->blocking != 0);
}
API int ncclCommInitRank(Comm **out, int ranks, Id id, int rank) { return begin(out, ranks, id, rank, true); }
API int ncclCommInitAll(Comm **out, int count, const int *devices) {
    Id id;
    ncclGetUniqueId(&id);
    Entry entry;
    for (int rank = 0; rank < count; rank++)
        if (int error = join(out + rank, count, id, rank, devices ? devices[rank] : rank, true)) return error;
    for (int rank = 0; rank < count; rank++) progress(*out[rank]);
    return SUCCESS;
}
API int ncclCommCount(Comm *comm, int *count) {
    Entry entry;
    if (int error = usable(comm, "ncclCommCount")) return error;
    *count = comm->clique->ranks;
    return SUCCESS;
}
API int ncclCommUserRank(Comm *comm, int *rank) {
    Entry entry;
    if (int error = usable(comm, "ncclCommUserRank")) return error;
    *rank = comm->rank;
    return SUCCESS;
}
API int ncclCommCuDevice(Comm *comm, int *device) {
    Entry entry;
    if (int error = usable(comm, "ncclCommCuDevice")) return error;
    *device = comm->device;
    return SUCCESS;
}
API int ncclCommGetAsyncError(Comm *comm, int *error) {
    Entry entry;
    if (int error = usable(comm, "ncclCommGetAsyncError", true)) return error;
    progress(*comm);
    *error = comm->error;
    return SUCCESS;
}
API int ncclCommFinalize(Comm *comm) {
    Entry entry;
    if (int error = usable(comm, "ncclCommFinalize")) return error;
    if (comm->grouped) return complain(INVALID_USAGE, "ncclCommFinalize in a group with operations");
    comm->state = FINALIZING;
    comm->error = IN_PROGRESS;
    driver()->changed.notify_all();
    if (!comm->blocking) return IN_PROGRESS;
    const auto is_over = [&] { return progress(*comm), comm->state == FINALIZED || comm->error != IN_PROGRESS; };
    if (int error = entry.wait(comm->name() + " waits for all to finalize", is_over)) return fail(*comm->clique, error, comm->name() + " could not be finalized");
    return comm->error;
}
API int ncclCommDestroy(Comm *comm) {
    Entry entry;
    if (int error = usable(comm, "ncclCommDestroy", true)) return error;
    if (comm->grouped) return complain(INVALID_USAGE, "ncclCommDestroy in a group with operations");
    if (comm->error) return complain(INVALID_USAGE, "ncclCommDestroy: " + comm->name() + (comm->error == IN_PROGRESS ? " is in progress with something else" : " has failed: only ncclCommAbort is left"));
    if (comm->state != FINALIZED) {
        comm->state = FINALIZING;
        comm->error = IN_PROGRESS;
        driver()->changed.notify_all();
        const auto is_over = [&] { return progress(*comm), comm->state == FINALIZED || comm->error != IN_PROGRESS; };
        if (int error = entry.wait(comm->name() + " waits for all to be destroyed", is_over)) return fail(*comm->clique, error, comm->name() + " could not be destroyed");
        if (comm->error) return comm->error;
    }
    comm->state = DESTROYED;
    return SUCCESS;
}
API int ncclCommAbort(Comm *comm) {
    Entry entry;
    if (int error = usable(comm, "ncclCommAbort", true)) return error;
    if (comm->grouped) return complain(INVALID_USAGE, "ncclCommAbort in a group with operations");
    if (!comm->held.empty()) driver()->reserve(comm->stream, nullptr);
    comm->held.clear();
    comm->state = ABORTED;
    driver()->changed.notify_all();
    return SUCCESS;
}

API int ncclGroupStart() {
    group.depth++;
    return SUCCESS;
}
API int ncclGroupEnd() {
    Entry entry;
    if (group.depth == 0) return complain(INVALID_USAGE, "ncclGroupEnd without ncclGroupStart");
    if (--group.depth) return SUCCESS;
    const auto [calls, begins] = std::pair(std::exchange(group.calls, {}), std::exchange(group.begun, {}));
    for (auto &[comm, stream, all] : calls) {
        comm->grouped = false;
        driver()->reserve(stream, nullptr);
        connect(*comm, all);
    }
    int state = SUCCESS;
    const auto note = [&](int error) { if (error && (!state || state == IN_PROGRESS)) state = error; };
    for (Comm *comm : begins) note(begun(entry, *comm));
    for (auto &[comm, stream, all] : calls) note(start(entry, *comm, stream, all));
    return state;
}

API int ncclSend(const void *buffer, size_t count, int type, int peer, Comm *comm, void *stream) {
    return issue({SEND, (Address)buffer, 0, count, type, 0, peer}, comm, stream);
}
API int ncclRecv(void *buffer, size_t count, int type, int peer, Comm *comm, void *stream) {
    return issue({RECEIVE, 0, (Address)buffer, count, type, 0, peer}, comm, stream);
}
API int ncclBroadcast(const void *send, void *receive, size_t count, int type, int root, Comm *comm, void *stream) {
    return issue({BROADCAST, (Address)send, (Address)receive, count, type, 0, root}, comm, stream);
}
API int ncclAllGather(const void *send, void *receive, size_t count, int type, Comm *comm, void *stream) {
    return issue({ALL_GATHER, (Address)send, (Address)receive, count, type, 0, 0}, comm, stream);
}
API int ncclAllReduce(const void *send, void *receive, size_t count, int type, int reduction, Comm *comm, void *stream) {
    return issue({ALL_REDUCE, (Address)send, (Address)receive, count, type, reduction, 0}, comm, stream);
}
