// A stand-in for libcublasLt on machines without a GPU: the calls that src/backend/cuda/blas.rs makes,
// on host memory, naively.
//
//   D = alpha op(A) op(B) + beta C          column-major, sums in f32
//
// It is stricter than the library where that shows a mistake: descriptors must be alive and of the
// right kind, an algorithm must have been chosen for exactly the product that it is used for, and
// there must be one. From a depth of 64 on, sums are split in three, so that the workspace is really
// used. Of the schemes that the caller admits the worst is taken: INPLACE, whose order is not promised,
// adds the parts in another order at every second run, and OUTPUT_TYPE rounds them.
//
// Work goes to the stream through cuLaunchHostFunc of the libcuda that is loaded, so that it waits
// there, and is captured, like a kernel. Without a libcuda it is done at once.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <vector>

namespace {

// ---- the library's constants ----

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum DataType { R_32F = 0, R_16BF = 14 };
enum ComputeType { COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77 };
enum Operation { OP_N = 0, OP_T = 1 };
enum OperationAttribute { TRANSA = 3, TRANSB = 4 };
enum PreferenceAttribute { MAX_WORKSPACE_BYTES = 1, REDUCTION_SCHEME_MASK = 3, MIN_ALIGNMENT_A_BYTES = 5, MIN_ALIGNMENT_D_BYTES = 8 };
enum ReductionScheme : uint32_t { NONE = 0, INPLACE = 1, COMPUTE_TYPE = 2, OUTPUT_TYPE = 4 };

// ---- descriptors ----

struct Handle {};

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t ld;
    bool operator==(const Layout &other) const {
        return type == other.type && rows == other.rows && columns == other.columns && ld == other.ld;
    }
};

struct Multiplication {
    int compute, scale;
    int32_t op[2]; // of A and B
};

struct Preference {
    uint64_t workspace = 0;
    uint32_t schemes = INPLACE | COMPUTE_TYPE | OUTPUT_TYPE;
    uint32_t alignment[4] = {256, 256, 256, 256}; // of A, B, C, D
};

// What fills the caller's 64 bytes for an algorithm.
struct Algorithm {
    uint64_t product; // a hash of all that it was chosen for
    uint64_t workspace;
    uint32_t splits, scheme;
    uint32_t alignment[4];
    uint64_t unused[3];
};
static_assert(sizeof(Algorithm) == 64, "cublasLtMatmulAlgo_t has 64 bytes");

struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

// All that was created and not yet destroyed, with its kind.
enum Kind { HANDLE = 1, LAYOUT, MULTIPLICATION, PREFERENCE };
std::mutex lock;
std::map<const void *, Kind> alive;

template <class T> int create(T **out, Kind kind, const T &value) {
    if (!out) return INVALID_VALUE;
    *out = new T(value);
    std::lock_guard<std::mutex> guard(lock);
    alive[*out] = kind;
    return SUCCESS;
}

bool is(const void *object, Kind kind) {
    std::lock_guard<std::mutex> guard(lock);
    auto found = alive.find(object);
    return found != alive.end() && found->second == kind;
}

template <class T> int destroy(T *object, Kind kind) {
    if (!is(object, kind)) return INVALID_VALUE;
    std::lock_guard<std::mutex> guard(lock);
    alive.erase(object);
    delete object;
    return SUCCESS;
}

template <class T> int set(T &attribute, const void *value, size_t size) {
    if (!value || size != sizeof(T)) return INVALID_VALUE;
    memcpy(&attribute, value, size);
    return SUCCESS;
}

// ---- products ----

size_t size_of(int type) { return type == R_16BF ? 2 : 4; }

// What is there to be multiplied, by value: A is m x depth and B is depth x n after their operations.
struct Product {
    Multiplication multiplication;
    Layout a, b, c, d;
    uint64_t m, n, depth;

    uint64_t hash() const {
        uint64_t sum = 0xcbf29ce484222325u;
        const Layout *layouts[] = {&a, &b, &c, &d};
        auto mix = [&](uint64_t value) { sum = (sum ^ value) * 0x100000001b3u; };
        for (uint64_t value : {multiplication.compute, multiplication.op[0], multiplication.op[1]}) mix(value);
        for (auto layout : layouts)
            for (uint64_t value : {(uint64_t)layout->type, layout->rows, layout->columns, (uint64_t)layout->ld}) mix(value);
        return sum;
    }
};

int describe(Product &product, const Multiplication *multiplication, const Layout *a, const Layout *b, const Layout *c, const Layout *d) {
    if (!is(multiplication, MULTIPLICATION)) return INVALID_VALUE;
    for (auto layout : {a, b, c, d}) {
        if (!is(layout, LAYOUT)) return INVALID_VALUE;
        if (!layout->rows || !layout->columns || layout->ld < (int64_t)layout->rows) return INVALID_VALUE;
    }
    product = {*multiplication, *a, *b, *c, *d, d->rows, d->columns, 0};
    bool turn_a = multiplication->op[0] == OP_T, turn_b = multiplication->op[1] == OP_T;
    product.depth = turn_a ? a->rows : a->columns;
    if ((turn_a ? a->columns : a->rows) != product.m) return INVALID_VALUE;
    if ((turn_b ? b->columns : b->rows) != product.depth) return INVALID_VALUE;
    if ((turn_b ? b->rows : b->columns) != product.n) return INVALID_VALUE;
    if (c->rows != d->rows || c->columns != d->columns) return INVALID_VALUE;
    // NVIDIA's table of types, as far as we go.
    if (multiplication->scale != R_32F || a->type != b->type || c->type != d->type) return NOT_SUPPORTED;
    bool f32 = a->type == R_32F && d->type == R_32F;
    bool bf16 = a->type == R_16BF && (d->type == R_32F || d->type == R_16BF) && multiplication->compute == COMPUTE_32F;
    return f32 || bf16 ? SUCCESS : NOT_SUPPORTED;
}

float widen(const void *matrix, size_t index, int type, bool tf32) {
    uint32_t bits;
    if (type == R_16BF) {
        bits = (uint32_t)((const uint16_t *)matrix)[index] << 16;
    } else {
        bits = ((const uint32_t *)matrix)[index];
        if (tf32) bits &= 0xffffe000u; // the tensor cores read no more, and round nothing
    }
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// One call of cublasLtMatmul, to be run when the stream comes to it.
struct Job {
    Product product;
    Algorithm algorithm;
    float alpha, beta;
    const void *a, *b, *c;
    void *d, *workspace;

    // An operand in f32, [depth][width], from a matrix that is width x depth (or its transpose).
    static std::vector<float> operand(const void *matrix, const Layout &layout, bool depth_is_rows, bool tf32) {
        std::vector<float> values;
        values.reserve(layout.rows * layout.columns);
        uint64_t depth = depth_is_rows ? layout.rows : layout.columns;
        uint64_t width = depth_is_rows ? layout.columns : layout.rows;
        for (uint64_t l = 0; l < depth; l++)
            for (uint64_t i = 0; i < width; i++)
                values.push_back(widen(matrix, depth_is_rows ? l + i * layout.ld : i + l * layout.ld, layout.type, tf32));
        return values;
    }

    void run() {
        const uint64_t m = product.m, n = product.n, depth = product.depth, splits = algorithm.splits;
        const bool tf32 = product.multiplication.compute == COMPUTE_32F_FAST_TF32;
        const auto left = operand(a, product.a, product.multiplication.op[0] == OP_T, tf32);
        const auto right = operand(b, product.b, product.multiplication.op[1] == OP_N, tf32);
        std::vector<float> own;
        float *parts = (float *)workspace; // [splits][n][m]
        if (algorithm.workspace < splits * m * n * sizeof(float)) {
            own.resize(splits * m * n);
            parts = own.data();
        }
        for (uint64_t split = 0; split < splits; split++)
            for (uint64_t j = 0; j < n; j++) {
                float *sums = parts + (split * n + j) * m;
                for (uint64_t i = 0; i < m; i++) sums[i] = 0;
                for (uint64_t l = split * depth / splits; l < (split + 1) * depth / splits; l++) {
                    const float factor = right[l * n + j], *column = &left[l * m];
                    for (uint64_t i = 0; i < m; i++) sums[i] += column[i] * factor;
                }
            }
        static std::atomic<uint64_t> runs{0};
        const bool backwards = algorithm.scheme == INPLACE && runs++ % 2;
        const bool rounded = algorithm.scheme == OUTPUT_TYPE && product.d.type == R_16BF;
        for (uint64_t j = 0; j < n; j++)
            for (uint64_t i = 0; i < m; i++) {
                float sum = 0;
                for (uint64_t turn = 0; turn < splits; turn++) {
                    float part = parts[((backwards ? splits - 1 - turn : turn) * n + j) * m + i];
                    if (rounded) {
                        uint16_t bits = to_bf16(part);
                        part = widen(&bits, 0, R_16BF, false);
                    }
                    sum += part;
                }
                sum *= alpha;
                if (beta != 0) sum += beta * widen(c, i + j * product.c.ld, product.c.type, false);
                size_t index = i + j * product.d.ld;
                if (product.d.type == R_16BF) ((uint16_t *)d)[index] = to_bf16(sum);
                else ((float *)d)[index] = sum;
            }
    }
};

int enqueue(void *stream, Job *job) {
    auto run = [](void *job) { ((Job *)job)->run(); };
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (!driver) {
        run(job);
        delete job;
        return SUCCESS;
    }
    // The job is never deleted: a graph may run it again.
    typedef int (*LaunchHostFunc)(void *, void (*)(void *), void *);
    auto launch = (LaunchHostFunc)dlsym(driver, "cuLaunchHostFunc");
    if (!launch) fprintf(stderr, "cuBLASLt stand-in: this libcuda has no cuLaunchHostFunc\n");
    return launch && launch(stream, run, job) == 0 ? SUCCESS : EXECUTION_FAILED;
}

} // namespace

#define API extern "C" __attribute__((visibility("default")))

// Not of the library: how many handles and descriptors are alive, for tests.
API size_t cublasLtStandInAlive() {
    std::lock_guard<std::mutex> guard(lock);
    return alive.size();
}

API size_t cublasLtGetVersion() { return 0; }

API int cublasLtCreate(Handle **handle) { return create(handle, HANDLE, Handle()); }
API int cublasLtDestroy(Handle *handle) { return destroy(handle, HANDLE); }

API int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    if (type != R_32F && type != R_16BF) return INVALID_VALUE;
    return create(layout, LAYOUT, Layout{type, rows, columns, ld});
}
API int cublasLtMatrixLayoutDestroy(Layout *layout) { return destroy(layout, LAYOUT); }

API int cublasLtMatmulDescCreate(Multiplication **multiplication, int compute, int scale) {
    if (compute != COMPUTE_32F && compute != COMPUTE_32F_FAST_TF32) return INVALID_VALUE;
    return create(multiplication, MULTIPLICATION, Multiplication{compute, scale, {OP_N, OP_N}});
}
API int cublasLtMatmulDescSetAttribute(Multiplication *multiplication, int attribute, const void *value, size_t size) {
    if (!is(multiplication, MULTIPLICATION) || (attribute != TRANSA && attribute != TRANSB)) return INVALID_VALUE;
    int32_t op;
    if (int status = set(op, value, size)) return status;
    if (op != OP_N && op != OP_T) return INVALID_VALUE;
    multiplication->op[attribute - TRANSA] = op;
    return SUCCESS;
}
API int cublasLtMatmulDescDestroy(Multiplication *multiplication) { return destroy(multiplication, MULTIPLICATION); }

API int cublasLtMatmulPreferenceCreate(Preference **preference) { return create(preference, PREFERENCE, Preference()); }
API int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value, size_t size) {
    if (!is(preference, PREFERENCE)) return INVALID_VALUE;
    if (attribute == MAX_WORKSPACE_BYTES) return set(preference->workspace, value, size);
    if (attribute == REDUCTION_SCHEME_MASK) return set(preference->schemes, value, size);
    if (attribute < MIN_ALIGNMENT_A_BYTES || attribute > MIN_ALIGNMENT_D_BYTES) return INVALID_VALUE;
    return set(preference->alignment[attribute - MIN_ALIGNMENT_A_BYTES], value, size);
}
API int cublasLtMatmulPreferenceDestroy(Preference *preference) { return destroy(preference, PREFERENCE); }

API int cublasLtMatmulAlgoGetHeuristic(Handle *handle, Multiplication *multiplication, Layout *a, Layout *b, Layout *c, Layout *d,
                                       Preference *preference, int requested, HeuristicResult *results, int *returned) {
    if (!is(handle, HANDLE)) return NOT_INITIALIZED;
    if (!is(preference, PREFERENCE) || requested < 1 || !results || !returned) return INVALID_VALUE;
    Product product;
    *returned = 0;
    if (int status = describe(product, multiplication, a, b, c, d)) return status;

    Algorithm algorithm = {};
    algorithm.product = product.hash();
    algorithm.splits = 1;
    memcpy(algorithm.alignment, preference->alignment, sizeof algorithm.alignment);
    if (product.depth >= 64 && preference->schemes) {
        uint32_t scheme = preference->schemes & -preference->schemes; // its lowest bit
        uint64_t bytes = scheme == INPLACE ? 256 : 3 * product.m * product.n * sizeof(float);
        if (bytes <= preference->workspace) {
            algorithm.splits = 3;
            algorithm.scheme = scheme;
            algorithm.workspace = bytes;
        }
    }
    *results = {algorithm, algorithm.workspace, SUCCESS, 1, {}};
    *returned = 1;
    return SUCCESS;
}

API int cublasLtMatmul(Handle *handle, Multiplication *multiplication, const float *alpha, const void *a, Layout *a_layout, const void *b,
                       Layout *b_layout, const float *beta, const void *c, Layout *c_layout, void *d, Layout *d_layout,
                       const Algorithm *algorithm, void *workspace, size_t workspace_size, void *stream) {
    if (!is(handle, HANDLE)) return NOT_INITIALIZED;
    Product product;
    if (int status = describe(product, multiplication, a_layout, b_layout, c_layout, d_layout)) return status;
    if (!alpha || !beta || !a || !b || !d || (*beta != 0 && !c)) return INVALID_VALUE;
    // The library would choose for itself if there were no algorithm.
    if (!algorithm || algorithm->product != product.hash()) return INVALID_VALUE;
    if (c == d && !(product.c == product.d)) return INVALID_VALUE;
    const void *matrices[] = {a, b, c, d};
    const Layout *layouts[] = {a_layout, b_layout, c_layout, d_layout};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)matrices[i] % algorithm->alignment[i] || (uintptr_t)matrices[i] % size_of(layouts[i]->type)) return INVALID_VALUE;
    if (algorithm->workspace && (!workspace || workspace_size < algorithm->workspace)) return INVALID_VALUE;
    if ((uintptr_t)workspace % 256) return INVALID_VALUE;
    Job *job = new Job{product, *algorithm, *alpha, *beta, a, b, c, d, workspace};
    return enqueue(stream, job);
}
