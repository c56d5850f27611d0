#!/bin/sh
# Builds OUTDIR/libcuda.so.1, the stand-in for the CUDA driver, from kernels/*.cu, and those for cuBLASLt,
# OUTDIR/blas/libcublasLt.so, and NCCL, OUTDIR/nccl/libnccl.so.2, and programs that try some of it. Needs g++ 12 or later. What
# has not changed since the last time is not compiled again.
#
#   tests/standin/build.sh OUTDIR
#   LD_LIBRARY_PATH=/ABSOLUTE/OUTDIR \
#     cargo test --release -p zfnet --features cuda --test backend -- --include-ignored cuda
#   LD_LIBRARY_PATH=/ABSOLUTE/OUTDIR:/ABSOLUTE/OUTDIR/blas ...    fully connected layers by cuBLASLt
#
# KERNELS=DIR      other kernels than the repository's
# SANITIZE=KIND    address (with bounds and alignment), or thread (each CUDA thread an OS thread)
set -eu
export LC_ALL=C
[ $# = 1 ] || { echo "usage: $0 OUTDIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
kernels=$(cd "${KERNELS:-$here/../../kernels}" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
CXX=${CXX:-g++}

flags="-std=c++17 -fPIC -fvisibility=hidden -pthread -DZFNET_STANDIN -I$here -Wall -Wextra -Wno-unknown-pragmas"
# In kernels these are right: an unsigned compared with a template's 0, a helper or a parameter that
# not every variant needs.
kernel_flags="-Wno-type-limits -Wno-unused-function -Wno-unused-parameter"
case "${SANITIZE:-}" in
    "") flags="$flags -O2 -march=native" ;; # it runs where it is built
    address) flags="$flags -O1 -g -fno-omit-frame-pointer -fsanitize=address,bounds,alignment -fno-sanitize-recover=bounds,alignment" ;;
    thread) flags="$flags -O1 -g -fsanitize=thread -DZFNET_THREADS" ;;
    *) echo "SANITIZE=$SANITIZE: address or thread" >&2; exit 2 ;;
esac
if [ "$(cat "$out/flags" 2>/dev/null)" != "$CXX $flags" ]; then
    rm -f "$out"/*.o
    echo "$CXX $flags" > "$out/flags"
fi

# Whether object $1 is newer than all that it is made of: the rest, and every header.
up_to_date() {
    object=$1
    [ -e "$object" ] || return 1
    shift
    for part in "$@" "$here"/*.h "$here/build.sh" "$kernels"/*.cuh; do
        [ "$part" -ot "$object" ] || return 1
    done
}

if ! up_to_date "$out/libcuda.o" "$here/libcuda.cpp"; then
    $CXX $flags -c "$here/libcuda.cpp" -o "$out/libcuda.o"
fi
# compile SOURCE: kernels to $out/NAME.o.
compile() {
    source=$1
    name=$(basename "$source" .cu)
    # The exported kernels, also those that a macro writes.
    text=$($CXX $flags -w -D__global__=__global__ -I"$kernels" -E -P -x c++ "$source" | tr -s '[:space:]' ' ')
    exports=$(echo "$text" | grep -aoE 'extern "C" __global__ void [A-Za-z0-9_]+' | sed 's/.* //')
    if [ -z "$exports" ] || [ "$(echo "$text" | grep -ao '__global__' | wc -l)" != "$(echo "$exports" | wc -w)" ]; then
        echo "$source: every __global__ function is to be written extern \"C\" __global__ void NAME" >&2
        exit 1
    fi
    {
        for header in "$kernels"/*.cuh; do echo "#include \"$header\""; done
        # Every file by itself, as for nvcc: two may have helpers of one name.
        echo "namespace file_$name {"
        echo "#include \"$source\""
        echo "[[maybe_unused]] const bool added[] = {"
        for kernel in $exports; do echo "    zfcpu::add_kernel(\"$kernel\", \"$name\", $kernel),"; done
        echo "};"
        echo "}"
    } > "$out/$name.cpp"
    $CXX $flags $kernel_flags -c "$out/$name.cpp" -o "$out/$name.o"
}
# As many at a time as there are processors.
objects=$out/libcuda.o
set --
for source in "$kernels"/*.cu; do
    object=$out/$(basename "$source" .cu).o
    objects="$objects $object"
    up_to_date "$object" "$source" && continue
    compile "$source" &
    set -- "$@" $!
    if [ $# -ge "$(nproc)" ]; then
        wait "$1"
        shift
    fi
done
for job; do wait "$job"; done
$CXX $flags -shared -Wl,-soname,libcuda.so.1 -o "$out/libcuda.so.1" $objects
# Under the name that is looked for first: a real one must not be found before it.
ln -sf libcuda.so.1 "$out/libcuda.so"

mkdir -p "$out/blas"
if ! up_to_date "$out/blas/libcublasLt.so" "$here/libcublaslt.cpp"; then
    $CXX $flags -shared -o "$out/blas/libcublasLt.so" "$here/libcublaslt.cpp" -ldl
fi

# The one for NCCL, and a program that tries it (and several devices).
mkdir -p "$out/nccl"
if ! up_to_date "$out/nccl/libnccl.so.2" "$here/libnccl.cpp"; then
    $CXX $flags -shared -Wl,-soname,libnccl.so.2 -o "$out/nccl/libnccl.so.2" "$here/libnccl.cpp" -ldl
fi
if ! up_to_date "$out/nccl/try" "$here/try_nccl.cpp"; then
    $CXX $flags -o "$out/nccl/try" "$here/try_nccl.cpp" "$out/nccl/libnccl.so.2" "$out/libcuda.so.1"
fi

# A program that tries what stands in for Hopper's instructions: its kernels, and the driver.
if ! up_to_date "$out/try-hopper" "$here/try_hopper.cpp" "$here/try_hopper.cu" "$out/libcuda.o"; then
    $CXX $flags $kernel_flags -I"$kernels" -o "$out/try-hopper" "$here/try_hopper.cpp" "$out/libcuda.o"
fi
