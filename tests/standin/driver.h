// What the stand-in for CUDA's driver lets the one for NCCL do, which is another library: look at memory, and
// queue work that waits for other devices.
#pragma once
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>

namespace standin {

using Address = unsigned long long; // CUdeviceptr

// Work in a stream. It returns a CUresult, or BLOCKED where it has to wait for a call that another thread has yet
// to make: then it has changed nothing that others see, and will be run again.
using Operation = std::function<int()>;
constexpr int BLOCKED = -1;

// A driver's work that waits is queued with a number.
using Ticket = unsigned long long;

struct Driver {
    // Held in every call, and while anything runs.
    std::mutex mutex;
    // Told when something was queued or given up.
    std::condition_variable changed;
    // Set by an operation that is BLOCKED: what it waits for, and what to do if nobody is left to make that call.
    std::string waits_for;
    std::function<void()> give_up;

    size_t calls = 0; // of all threads, to either library

    // All of these with the mutex held.

    virtual int devices() = 0;
    // The number of the calling thread's device, or -1.
    virtual int current_device() = 0;
    // Why NCCL cannot use this stream for a communicator of this device, or "".
    virtual std::string refuse_stream(void *stream, int device) = 0;
    // Why NCCL cannot use these bytes on this device, or "".
    virtual std::string refuse_memory(Address at, size_t bytes, int device) = 0;
    // Whether the program must leave a stream alone, and why: nothing is to be queued or waited for there.
    virtual void reserve(void *stream, const char *why) = 0;
    virtual int enqueue(void *stream, Ticket ticket, Operation operation) = 0;
    // Runs what is queued before the operation with that ticket, which is not done yet.
    virtual int bring_to_front(void *stream, Ticket ticket) = 0;
    // The same, and that operation.
    virtual int finish(void *stream, Ticket ticket) = 0;
    // Runs what can be run, if copies are to land as early as they may.
    virtual void hurry(void *stream) = 0;
    // Runs `work` until it is not BLOCKED. If meanwhile no thread calls anything for a time, it is given up.
    virtual int unblocked(std::unique_lock<std::mutex> &lock, const Operation &work) = 0;

protected:
    ~Driver() = default;
};

} // namespace standin
