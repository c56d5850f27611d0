#!/bin/sh
# CUDA 13.0's compiler and disassemblers for a machine without CUDA, from PyPI: no GPU, no driver
# and no root needed (about 110 MB to fetch, 280 MB on disk).
#
#     eval "$(scripts/install-nvcc.sh [DIR])"        DIR: ~/.cache/zfnet-cuda-13.0
#
# Standard output is the two `export` lines that make it the CUDA of this shell, and nothing else.
# Where it is installed already, it only prints them.
set -eu

# Every package is pinned and fetched without its dependencies: left to itself pip joins 13.0's
# compiler with a newer ptxas, which refuses it. The disassemblers were first published for 13.2;
# they read what 13.0 writes.
packages='
  nvidia-cuda-nvcc==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85
  nvidia-cuda-cuobjdump==13.2.78
  nvidia-cuda-nvdisasm==13.2.78'

stop() {
  echo "install-nvcc.sh: $*" >&2
  exit 1
}

dir=${1:-${HOME:?expected HOME, or a folder as the argument}/.cache/zfnet-cuda-13.0}
mkdir -p -- "$dir" || stop "cannot make the folder $dir"
dir=$(cd -- "$dir" && pwd)
cuda=$dir/nvidia/cu13
done_mark=$dir/installed-packages # written last, so that an interrupted installation starts again

if [ ! -x "$cuda/bin/nvcc" ] || [ "$(cat "$done_mark" 2>/dev/null)" != "$packages" ]; then
  command -v python3 >/dev/null || stop "python3 is missing"
  python3 -m pip --version >/dev/null 2>&1 ||
    stop "python3 has no pip (on Debian and Ubuntu: apt install python3-pip)"
  rm -f -- "$done_mark"
  # One call: with --target and --upgrade a second one would replace the folder that they share.
  # shellcheck disable=SC2086 # the list is meant to be split
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check \
    --no-compile --no-deps --only-binary :all: --upgrade --target "$dir" $packages >&2 ||
    stop "pip could not fetch the packages: is there a network, and a way to PyPI? (there are
packages for Linux on x86-64 and aarch64 and for Windows only)"
  ln -sfn lib "$cuda/lib64" # where nvcc's own configuration looks
  echo "$packages" >"$done_mark"
fi

command -v gcc >/dev/null || echo "install-nvcc.sh: note: nvcc needs gcc, which is missing" >&2

# In single quotes, whatever the path holds.
quoted=$(printf '%s\n' "$cuda" | sed "s/'/'\\\\''/g")
echo "export CUDA_HOME='$quoted'"
echo "export PATH='$quoted/bin':\"\$PATH\""
