#!/bin/sh
# Whether the tests would notice: plants one bug at a time in a copy of the kernels, builds the
# stand-in from it, and fails unless the tests then fail. Before, they have to pass without any.
# At the end AddressSanitizer has to name the line of a store out of bounds, and ThreadSanitizer
# that of a missing barrier.
#
#   tests/standin/planted-bugs.sh [COMMAND ...]
#
# COMMAND runs the tests; ONLY=NAME plants just that bug.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$here/../.."
[ $# -gt 0 ] || set -- cargo test --release -p zfnet --features cuda --test backend -- --include-ignored operations::cuda

quietly() { "$@" > "$work/log" 2>&1 || { tail -40 "$work/log" >&2; exit 1; }; }
# tests FOLDER COMMAND: with the stand-in there.
tests() { folder=$1; shift; LD_LIBRARY_PATH=$folder "$@" > "$work/log" 2>&1; }

# plant FILE SED: $work/kernels with one change.
plant() {
    rm -rf "$work/kernels"
    cp -rp kernels "$work/kernels"
    sed -i -E "$2" "$work/kernels/$1"
    if cmp -s "kernels/$1" "$work/kernels/$1"; then
        echo "planted-bugs.sh: nothing in $1 is changed by $2" >&2
        exit 1
    fi
}

# bugs COMMAND: plants each in turn. A line of the list: name | file | change.
bugs() {
    missed= tried=0
    while IFS='|' read -r name file change; do
        [ -n "$name" ] || continue
        [ "${ONLY:-$name}" = "$name" ] || continue
        tried=$((tried + 1))
        plant "$file" "$change"
        rm -rf "$work/mutant"
        cp -rp "$work/whole" "$work/mutant" # only what changed is compiled again
        KERNELS=$work/kernels quietly "$here/build.sh" "$work/mutant"
        if tests "$work/mutant" "$@" < /dev/null; then
            echo "MISSED   $name"
            missed="$missed, $name"
        else
            echo "noticed  $name: $(grep -m1 -aE '^stand-in:|FAILED' "$work/log" || tail -1 "$work/log")"
        fi
    done <<'LIST'
a barrier between the tiles of a convolution|conv.cu|/carrier_b\.store\(/{n;s/__syncthreads\(\);/;/}
a barrier in a sum over channels|lrn.cu|/terms\[i\] = scaled/,/__syncthreads/s/__syncthreads\(\);//
a barrier before a block's strongest values are joined|look.cu|0,/__syncthreads\(\);/s///
a barrier before the moments of a block's rows are joined|look.cu|/found\[i\]\[thread\] = moments/,/__syncthreads/s/__syncthreads\(\);//
a barrier between the stages of the tensor cores|conv_tensor.cu|/else wait_copies<0>/,/__syncthreads/s/__syncthreads\(\);//
a barrier between unpooling a tile and its product|conv_tensor.cu|/unpool_tile\(\(T/{n;s/__syncthreads\(\);/;/}
a wait for asynchronous copies|conv_tensor.cu|s/wait_copies<MOST_STAGES - 2>\(\);/;/
a store one column too far|conv.cu|s/if \(column \+ j < columns\) y\[at/if (column + j <= columns) y[at/
a store one value too far|pool.cu|s/if \(index >= count\)/if (index > count)/
weights in the place of velocities|sgd.cu|s/load_pack<N>\(t\.v,/load_pack<N>(t.w,/
the first of several tensors in the place of the others|sgd.cu|s/tensors\.count - 1;/0;/
two inputs swapped|lrn.cu|s/T \*dx, const T \*dy, const T \*x, const unsigned \*images, size_t pixels_per/T *dx, const T *x, const T *dy, const unsigned *images, size_t pixels_per/
the last of equal values wins a window|pool.cu|s/value > best\[i\]/value >= best[i]/
a neighbour counted twice|lrn.cu|s/pairs\[i \+ 2\]/pairs[i + 1]/
a switch of the wrong half of a word|pool.cu|s/winners\[i\] >> 16/winners[i] >> 8/
a group of pixels one too early|conv_tensor.cu|s/4 \* \(place - row \* per_row\.divisor\)\)/4 * (place - row * per_row.divisor) - 1)/
moments of a rest that every stretch adds|look.cu|s/blockIdx\.y == 0 && threadIdx\.y == 0/threadIdx.y == 0/
moments of stretches that overlap|look.cu|s/\(blockIdx\.y \+ 1\) \* share, periods/(blockIdx.y + 1) * share + 1, periods/
the last of equal values is the peak|look.cu|s/(a\.value == b\.value .. a\.position) < /\1 > /
a swizzle that is not the copy's|conv_hopper.cu|s/CHUNK == 64 \? SWIZZLE_128B/CHUNK != 64 ? SWIZZLE_128B/
a descriptor's stride of half as many rows|conv_hopper.cu|s/0, 8 \* PITCH/0, 4 * PITCH/
a phase off by one|conv_hopper.cu|s/\(&empty\[stage\], parity \^ 1\)/(\&empty[stage], parity)/
sums added to those before where the depth is split|conv_hopper.cu|s/accumulate .. cut\.splits == 1/accumulate/
a parity that stays the same|conv_hopper.cu|s/stage = 0, parity \^= 1/stage = 0/
no wait for a stage's bytes|conv_hopper.cu|s/ring\.wait\(\);//
a stage that is given back while it is read|conv_hopper.cu|s/wgmma_wait_group<1>\(\);//
a stage of an item's end that nobody gives back|conv_hopper.cu|/wgmma_wait_group<0>\(\)/{n;s/ring\.release_last\(\);//}
accumulators without a fence before the first product|conv_hopper.cu|s/wgmma_fence\(\);//
mbarriers that TMA may not know|conv_hopper.cu|s/fence_mbarrier_init\(\);//
sums that go on from the item before|conv_hopper.cu|s/slice > 0 .. step > item\.step/true/
a box one pixel off at the corner|conv_hopper.cu|s/column = first\.column \* d\.stride\[1\] - d\.pad\[1\];/column = first.column * d.stride[1] - d.pad[1] + 1;/
a tap from the wrong end|conv_hopper.cu|s/last_right - right, last_down - down/right, last_down - down/
a box behind the last that is not zeros|conv_hopper.cu|s/box < of\.boxes\.count \? chunk \* CHUNK : d\.c/chunk * CHUNK/
a class written over another|conv_hopper.cu|s/d\.stride\[1\] \+ c\.right\.parity/d.stride[1]/
a row too many in a class|conv_hopper.cu|s/row < c\.pixels\.count\}/row <= c.pixels.count}/
words that are not exchanged|conv_hopper.cu|s/transpose_quad\(words\);//
LIST
    [ "$tried" -gt 0 ] || { echo "no bug is called $ONLY" >&2; exit 1; }
    [ -z "$missed" ] || { echo "not noticed${missed#,}" >&2; exit 1; }
}

# sanitizer KIND FILE SED TEST REPORT: its report has to name a line of the file.
sanitizer() {
    plant "$2" "$3"
    find "$work/kernels" -name '*.cu' ! -name "$2" -delete # the rest is not needed
    export KERNELS="$work/kernels" OUT="$work/$1"
    if "$here/sanitize.sh" "$1" cargo test --release -p zfnet --features cuda --test backend -- --include-ignored "operations::$4" --exact > "$work/log" 2>&1; then
        echo "MISSED   by the $1 sanitizer: $2" >&2
        exit 1
    fi
    grep -aq "$5" "$work/log" && line=$(grep -m1 -aoE "$2:[0-9]+" "$work/log") || { tail -40 "$work/log" >&2; exit 1; }
    echo "noticed  by the $1 sanitizer: $5, $line"
}

quietly "$here/build.sh" "$work/whole"
if ! tests "$work/whole" "$@"; then
    tail -40 "$work/log" >&2
    echo "the tests fail without any bug" >&2
    exit 1
fi
echo "passed   without a bug"
bugs "$@"
[ -z "${ONLY:-}" ] || exit 0
sanitizer address pool.cu 's/if \(index >= count\)/if (index > count)/' cuda_f32::unpooling AddressSanitizer
sanitizer thread look.cu '0,/__syncthreads\(\);/s///' cuda_f32::peaks_sums_and_seeds "data race"
