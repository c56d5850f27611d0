#!/usr/bin/env bash
# What must hold of the CUDA backend on a machine without a GPU: the kernels compile without a
# warning or a spill and use the tensor cores; the backend builds, and passes its tests on the
# stand-in for CUDA's driver. What takes long and depends on little (the kernels' code, docs, the tests of single operations;
# those of whole networks and of ranks; those of studies) is run if that has changed since it was last seen to pass
# (tests/standin/checked).
# `scripts/check-cuda.sh all` runs these in any case, and then plants bugs in the kernels, which the tests have to notice,
# and runs sanitizers: after changes to kernels/, tests/standin or src/backend/cuda.
# Needs g++, python3 with pip (for a compiler, if there is no nvcc) and an x86-64 machine.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v nvcc > /dev/null || ! command -v cuobjdump > /dev/null || ! command -v nvdisasm > /dev/null; then
  exports=$(scripts/install-nvcc.sh)
  eval "$exports"
fi
# Of the kernels, the stand-in, what calls them, and the tests that are to notice.
checked=tests/standin/checked
hash() { git ls-files -s kernels tests/standin src/backend/cuda "$@" | grep -vE '\.md$|/checked$' | git hash-object --stdin; }
now=$(hash tests/backend/operations.rs)
networks=$(hash src/backend src/model src/train src/ranks crates/core tests/backend tests/common)
studies=$(hash src/backend src/model src/study tests/studies tests/common)
changed() { [ "${1:-}" = all ] || ! grep -qx "$2" "$checked"; }
operations=true
changed "${1:-}" "$now" || operations=false
if $operations; then
  echo "== kernels: warnings, spills, tensor cores"
  scripts/check-kernels.sh
  echo "== docs with the feature cuda"
  RUSTDOCFLAGS="-D warnings" cargo doc --release -p zfnet --no-deps --features cuda
fi
echo "== lints with the feature cuda"
cargo clippy --release -p zfnet --all-targets --features cuda -- -D warnings
echo "== tests on the stand-in"
standin=${CARGO_TARGET_DIR:-target}/standin
tests/standin/build.sh "$standin"
standin=$(cd "$standin" && pwd)
LD_LIBRARY_PATH=$standin cargo test --release -p zfnet --features cuda --lib --test allocation -- --include-ignored cuda
known=()
$operations || known=(--skip operations:: --skip _plain)
if changed "${1:-}" "$networks"; then
  LD_LIBRARY_PATH=$standin cargo test --release -p zfnet --features cuda --test backend -- \
    --include-ignored cuda --skip both_libraries "${known[@]}"
  echo "== the same network, with batches in flight, recorded steps, broken machines and cuBLASLt"
  LD_LIBRARY_PATH=$standin:$standin/blas cargo test --release -p zfnet --features cuda --test backend -- --include-ignored cuda::
  echo "== with asynchronous copies that land early, and fully connected layers by cuBLASLt"
  LD_LIBRARY_PATH=$standin:$standin/blas ZFNET_STANDIN_EARLY=1 \
    cargo test --release -p zfnet --features cuda --test backend -- --include-ignored \
    operations::cuda_bf16::conv operations::cuda_bf16_mma::conv operations::cuda_tf32::conv operations::cuda_f32::conv \
    operations::cuda_bf16::pooled operations::cuda_tf32::pooled a_first_layer parts_is_close repeatable --skip ::cpu "${known[@]}"
  echo "== several GPUs that exchange values by NCCL"
  for early in "" ZFNET_STANDIN_EARLY=1; do
    env $early "LD_LIBRARY_PATH=$standin:$standin/nccl" ZFNET_STANDIN_DEVICES=8 \
      cargo test --release -p zfnet --features cuda --test backend -- --include-ignored nccl::
  done
fi
if changed "${1:-}" "$studies"; then
  # By the fast kernels alone: what the plain ones compute, tests of operations and networks say.
  LD_LIBRARY_PATH=$standin cargo test --release -p zfnet --features cuda --test studies -- --include-ignored cuda --skip _plain
fi
echo "== instructions of a whole step"
scripts/expected-step --standin "$standin" --zfnet "${CARGO_TARGET_DIR:-target}/release/zfnet" --most 1330 | grep launches
echo "== what stands in for Hopper's instructions, and for NCCL"
for early in "" ZFNET_STANDIN_EARLY=1; do
  env $early "$standin/try-hopper" > /dev/null
  env $early "LD_LIBRARY_PATH=$standin:$standin/nccl" "$standin/nccl/try"
done
echo "== the program on several GPUs"
env "LD_LIBRARY_PATH=$standin:$standin/nccl" ZFNET_STANDIN_DEVICES=8 \
  cargo test --release -p zfnet --features cuda --test program -- --include-ignored gpus::
printf '%s\n' "$now" "$networks" "$studies" > "$checked" # to be committed
if [ "${1:-}" != all ]; then
  exit
fi
echo "== planted bugs"
tests/standin/planted-bugs.sh \
  cargo test --release -p zfnet --features cuda --test backend -- --include-ignored \
  operations::cuda_f32:: operations::cuda_bf16::convolutions_are operations::cuda_bf16_mma::convolutions_are \
  operations::cuda_bf16::pool --skip of_reals
echo "== sanitizers"
tests/standin/sanitize.sh address cargo test --release -p zfnet --features cuda --test backend -- --include-ignored \
  operations::cuda_f32:: operations::cuda_bf16:: operations::cuda_bf16_mma::conv operations::cuda_tf32::conv --skip of_reals
tests/standin/sanitize.sh thread
