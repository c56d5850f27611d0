#!/bin/sh
# Runs tests on a stand-in whose kernels a sanitizer watches.
#
#   tests/standin/sanitize.sh address [COMMAND ...]   stores and loads beyond an allocation, an array
#                                                     in shared memory or a row of it, misalignment
#   tests/standin/sanitize.sh thread [COMMAND ...]    accesses to shared memory without a barrier
#                                                     between; every CUDA thread is an OS thread,
#                                                     so sizes have to be tiny
#
# Without COMMAND: tests of single operations. KERNELS=DIR as for build.sh; OUT=DIR to build in.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
kind=${1:-}
case $kind in
    address)
        default=operations::cuda
        library=libasan.so
        # Leaks: the stand-in and Rust's test runner keep things until the end.
        export ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}
        ;;
    thread)
        default="operations::cuda_f32::relu operations::cuda_bf16::relu_in operations::cuda_bf16::updates operations::cuda_f32::peaks operations::cuda_f32::moments operations::cuda_f32::rms operations::cuda_f32::softmax"
        library=libtsan.so
        # Rust's own synchronisation is not instrumented: only what kernels do is looked at.
        export TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1:${TSAN_OPTIONS:-}
        ;;
    *) echo "usage: $0 address|thread [COMMAND ...]" >&2; exit 2 ;;
esac
shift
cd "$repository"
out=${OUT:-${CARGO_TARGET_DIR:-target}/standin-$kind}
SANITIZE=$kind "$here/build.sh" "$out"
out=$(cd "$out" && pwd)
[ $# -gt 0 ] || set -- cargo test --release -p zfnet --features cuda --test backend -- --include-ignored $default

preload=LD_PRELOAD=$("${CXX:-g++}" -print-file-name=$library)
# ThreadSanitizer's memory map may not fit where addresses are very random.
fixed=$(setarch -R true 2>/dev/null && echo "setarch -R" || true)
export LD_LIBRARY_PATH="$out${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if [ "$1" = cargo ]; then # only the tests, not the compiler
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${host}_RUNNER=$fixed env $preload"
    exec "$@"
fi
exec $fixed env "$preload" "$@"
