// The update of the weights, the limit on their size, and what steers a step.
//
//   v = momentum v + (g + decay w);   w = w - rate v
//   w = w limit / rms for every filter whose root mean square is above the limit
//
// Weights are f32; beside them may stand their copy in bf16 for the tensor cores, kept up to date
// here. A step whose loss was not finite has set state->halted, and then nothing changes.
#include "common.cuh"

namespace sgd {

constexpr unsigned N = 4; // values of a thread

} // namespace sgd

// sgd_step: w, v and g [len], copy [len] or null. Grid ceil(len / 1024) or more, block 256.
extern "C" __global__ void sgd_step(float *w, bf16 *copy, float *v, const float *g, size_t len,
                                    float momentum, float decay, const StepState *state) {
    constexpr unsigned N = sgd::N;
    size_t first = global_index() * N;
    if (first >= len || state->halted) return;
    Pack<float, N> weights = load_pack<N>(w, first, len), velocities = load_pack<N>(v, first, len);
    Pack<float, N> gradients = load_pack<N>(g, first, len);
    Pack<bf16, N> rounded;
    float rate = state->rate;
    for (unsigned i = 0; i < N; i++) {
        float weight = weights.of[i];
        float velocity = momentum * velocities.of[i] + (gradients.of[i] + decay * weight);
        weight -= rate * velocity;
        velocities.of[i] = velocity;
        weights.of[i] = weight;
        rounded.of[i] = narrow<bf16>(weight);
    }
    store_pack(v, first, len, velocities);
    store_pack(w, first, len, weights);
    if (copy) store_pack(copy, first, len, rounded);
}

// limit_rms: w [filters, per_filter], copy the same or null; the copy is up to date before.
// Grid filters, block 256.
extern "C" __global__ void limit_rms(float *w, bf16 *copy, unsigned per_filter, float limit,
                                     const StepState *state) {
    if (state->halted) return;
    size_t first = (size_t)blockIdx.x * per_filter;
    double squares = 0;
    for (size_t i = threadIdx.x; i < per_filter; i += blockDim.x) {
        squares += (double)w[first + i] * w[first + i];
    }
    squares = block_reduce(squares, [](double a, double b) { return a + b; });
    double rms = sqrt(squares / per_filter);
    if (!(rms > limit)) return;
    float factor = (float)(limit / rms);
    for (size_t i = threadIdx.x; i < per_filter; i += blockDim.x) {
        float weight = w[first + i] * factor;
        w[first + i] = weight;
        if (copy) copy[first + i] = narrow<bf16>(weight);
    }
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
