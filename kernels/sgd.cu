// The update of the weights, the limit on their size, and what steers a step.
//
//   v = momentum v + (g + decay w);   w = w - rate v
//   w = w limit / rms for every filter whose root mean square is above the limit
//
// Weights are f32; beside them may stand their copy in bf16 for the tensor cores, kept up to date
// here. A step whose loss was not finite has set state->halted, and then nothing changes.
#include "common.cuh"

namespace sgd {

constexpr unsigned N = 4;     // values of a thread
constexpr unsigned MOST = 16; // tensors of a launch

// A tensor that is updated. Blocks first_block and on are its own, up to the next tensor's.
struct Update {
    float *w;
    bf16 *copy; // null, or w in bf16
    float *v;
    const float *g;
    size_t len;
    float momentum, decay;
    unsigned first_block, unused;
};
struct Updates { Update of[MOST]; unsigned count, unused; };

// A tensor of filters, a block each.
struct Limit {
    float *w;
    bf16 *copy; // null, or w in bf16
    unsigned per_filter;
    float limit;
    unsigned first_block, unused;
};
struct Limits { Limit of[MOST]; unsigned count, unused; };

// Whose block this is.
template <class Tensors> __device__ __forceinline__ const auto &tensor_of(const Tensors &tensors) {
    unsigned i = tensors.count - 1;
    while (tensors.of[i].first_block > blockIdx.x) i--; // the first begins at 0
    return tensors.of[i];
}

} // namespace sgd

// sgd_step: every tensor [len], `first_block`s ascending from 0, ceil(len / 1024) blocks each.
// Grid the sum of these, block 256.
extern "C" __global__ void sgd_step(sgd::Updates updates, const StepState *state) {
    constexpr unsigned N = sgd::N;
    const sgd::Update &t = sgd::tensor_of(updates);
    size_t first = ((size_t)(blockIdx.x - t.first_block) * blockDim.x + threadIdx.x) * N;
    if (first >= t.len || state->halted) return;
    Pack<float, N> weights = load_pack<N>(t.w, first, t.len);
    Pack<float, N> velocities = load_pack<N>(t.v, first, t.len);
    Pack<float, N> gradients = load_pack<N>(t.g, first, t.len);
    Pack<bf16, N> rounded;
    float rate = state->rate;
    for (unsigned i = 0; i < N; i++) {
        float weight = weights.of[i];
        float velocity = t.momentum * velocities.of[i] + (gradients.of[i] + t.decay * weight);
        weight -= rate * velocity;
        velocities.of[i] = velocity;
        weights.of[i] = weight;
        rounded.of[i] = narrow<bf16>(weight);
    }
    store_pack(t.v, first, t.len, velocities);
    store_pack(t.w, first, t.len, weights);
    if (t.copy) store_pack(t.copy, first, t.len, rounded);
}

// limit_rms: every tensor [filters, per_filter]; the copies are up to date before. `first_block`s
// ascending from 0. Grid all filters, block 256.
extern "C" __global__ void limit_rms(sgd::Limits limits, const StepState *state) {
    if (state->halted) return;
    const sgd::Limit &t = sgd::tensor_of(limits);
    size_t first = (size_t)(blockIdx.x - t.first_block) * t.per_filter;
    double squares = 0;
    for (size_t i = threadIdx.x; i < t.per_filter; i += blockDim.x) {
        squares += (double)t.w[first + i] * t.w[first + i];
    }
    squares = block_reduce(squares, [](double a, double b) { return a + b; });
    double rms = sqrt(squares / t.per_filter);
    if (!(rms > t.limit)) return;
    float factor = (float)(t.limit / rms);
    for (size_t i = threadIdx.x; i < t.per_filter; i += blockDim.x) {
        float weight = t.w[first + i] * factor;
        t.w[first + i] = weight;
        if (t.copy) t.copy[first + i] = narrow<bf16>(weight);
    }
}

// add: y += x, both [len]. Grid ceil(len / 1024) or more, block 256.
extern "C" __global__ void add(float *y, const float *x, size_t len) {
    size_t first = global_index() * sgd::N;
    if (first >= len) return;
    Pack<float, sgd::N> sums = load_pack<sgd::N>(y, first, len);
    Pack<float, sgd::N> addends = load_pack<sgd::N>(x, first, len);
    for (unsigned i = 0; i < sgd::N; i++) sums.of[i] += addends.of[i];
    store_pack(y, first, len, sums);
}

// set_state: leaves `halted` as it is. Grid 1, block 1.
extern "C" __global__ void set_state(StepState *state, unsigned long long seed, unsigned step,
                                     unsigned first_sample, float rate) {
    state->seed = seed;
    state->step = step;
    state->first_sample = first_sample;
    state->rate = rate;
}

// to_bf16: y and x [len]. Grid ceil(len / 1024) or more, block 256.
extern "C" __global__ void to_bf16(bf16 *y, const float *x, size_t len) {
    size_t first = global_index() * sgd::N;
    if (first >= len) return;
    Pack<float, sgd::N> wide = load_pack<sgd::N>(x, first, len);
    Pack<bf16, sgd::N> narrowed;
    for (unsigned i = 0; i < sgd::N; i++) narrowed.of[i] = narrow<bf16>(wide.of[i]);
    store_pack(y, first, len, narrowed);
}
