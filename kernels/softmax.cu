// Softmax and cross-entropy of one row of logits, and the gradient.
//
//   p[j]       = exp(l[j] - max) / sum of exp(l - max)
//   loss       = ln(sum of exp(l - max)) - (l[label] - max)
//   dlogits[j] = scale * (p[j] - (j == label))
//
// The sum is in f64, so that a row of any length costs no accuracy. The maximum passes over NaN,
// but the sum does not: a NaN among the logits makes the loss NaN.
#include "common.cuh"

namespace softmax {

template <class T>
__device__ void cross_entropy(float *losses, T *dlogits, const float *logits,
                              const unsigned *labels, unsigned classes, float scale,
                              StepState *state) {
    size_t row = blockIdx.x;
    logits += row * classes;
    dlogits += row * classes;
    unsigned label = labels[row];
    float max = -INFINITY;
    for (size_t j = threadIdx.x; j < classes; j += blockDim.x) max = fmaxf(max, logits[j]);
    max = block_reduce(max, [](float a, float b) { return fmaxf(a, b); });
    double sum = 0;
    for (size_t j = threadIdx.x; j < classes; j += blockDim.x) sum += expf(logits[j] - max);
    sum = block_reduce(sum, [](double a, double b) { return a + b; });
    float factor = (float)(1 / sum);
    for (size_t j = threadIdx.x; j < classes; j += blockDim.x) {
        float target = j == label ? 1.0f : 0.0f;
        dlogits[j] = narrow<T>((expf(logits[j] - max) * factor - target) * scale);
    }
    if (threadIdx.x == 0) {
        float loss = (float)(log(sum) - (double)(logits[label] - max));
        losses[row] = loss;
        if (!(fabsf(loss) < INFINITY)) state->halted = 1; // blocks that write it write the same
    }
}

} // namespace softmax

// softmax_cross_entropy: losses [rows], dlogits and logits [rows, classes], labels [rows].
// Grid rows, block 256. A loss that is not finite sets state->halted.
#define EXPORT(T, suffix)                                                                          \
    extern "C" __global__ void softmax_cross_entropy_##suffix(                                     \
        float *losses, T *dlogits, const float *logits, const unsigned *labels, unsigned classes,  \
        float scale, StepState *state) {                                                           \
        softmax::cross_entropy<T>(losses, dlogits, logits, labels, classes, scale, state);         \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
#undef EXPORT
