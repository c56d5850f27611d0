#!/usr/bin/env bash
# Compiles every kernels/*.cu as build.rs does and looks at what the compiler made of it. Needs
# CUDA 13.0's nvcc, cuobjdump and nvdisasm (scripts/install-nvcc.sh), but no GPU.
#
#     scripts/check-kernels.sh [FOLDER]        FOLDER: kernels
#
# Fails on a warning of nvcc or ptxas, on a register spill, where a kernel that is meant for tensor cores
# is missing or has no instruction for them (or one meant for Hopper's own none of those, or another's), and where one has
# more instructions than are recorded.
set -euo pipefail

# Kernels that must use tensor cores: the name, and the operand type that their MMA instructions
# must name.
tensor_kernels='
conv_forward_bf16                BF16
conv_forward_bf16_any            BF16
conv_forward_bf16_narrow         BF16
conv_backward_data_bf16          BF16
conv_backward_data_bf16_any      BF16
conv_backward_data_bf16_narrow   BF16
conv_forward_bf16_medium         BF16
conv_backward_data_bf16_medium   BF16
conv_forward_first_bf16          BF16
conv_backward_filter_first_8_bf16  BF16
conv_backward_filter_first_12_bf16 BF16
conv_backward_filter_first_pooled_8_bf16  BF16
conv_backward_filter_first_pooled_12_bf16 BF16
conv_backward_filter_bf16        BF16
conv_backward_filter_bf16_any    BF16
conv_forward_bf16_f32            BF16
conv_forward_bf16_f32_any        BF16
conv_forward_bf16_f32_narrow     BF16
conv_forward_tf32                TF32
conv_forward_tf32_any            TF32
conv_forward_tf32_narrow         TF32
conv_backward_data_tf32          TF32
conv_backward_data_tf32_any      TF32
conv_backward_data_tf32_narrow   TF32
conv_backward_filter_tf32        TF32
conv_backward_filter_tf32_any    TF32
conv_forward_tf32_medium         TF32
conv_backward_data_tf32_medium   TF32
conv_forward_first_tf32          TF32
conv_backward_filter_first_8_tf32  TF32
conv_backward_filter_first_12_tf32 TF32
conv_backward_filter_first_pooled_8_tf32  TF32
conv_backward_filter_first_pooled_12_tf32 TF32
peak_bf16                        BF16
peak_tf32                        TF32
'
# Kernels that must use Hopper's own instead: products of warpgroups, and TMA, of tiles and by im2col.
hopper_kernels='
conv_forward_hopper_64
conv_forward_hopper_32
conv_backward_data_hopper
conv_backward_data_hopper_medium
conv_backward_filter_hopper_64
conv_backward_filter_hopper_32
'
chips='sm_80 sm_90a' # those that tensor instructions are looked for on, and that the table shows

flags=(-fatbin -std=c++17 -O3 -lineinfo "-Xptxas=-v,-warn-spills")
hopper=("-gencode=arch=compute_90a,code=sm_90a")
everywhere=("-gencode=arch=compute_80,code=sm_80" "${hopper[@]}")
with_tensor_cores=("-gencode=arch=compute_80,code=compute_80")
without_tensor_cores=(
  "-gencode=arch=compute_75,code=sm_75"
  "-gencode=arch=compute_75,code=compute_75"
)

folder=${1:-$(dirname "$0")/../kernels}
PATH=${CUDA_HOME:+$CUDA_HOME/bin:}$PATH
for tool in nvcc cuobjdump nvdisasm; do
  if ! command -v "$tool" >/dev/null; then
    echo "check-kernels.sh: no $tool: eval \"\$(scripts/install-nvcc.sh)\" installs it" >&2
    exit 2
  fi
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

failures=0
fail() {
  echo "FAILED: $*" >&2
  failures=$((failures + 1))
}

# Of ptxas -v's report: a line for each kernel and chip: kernel, chip, registers, bytes of static
# shared memory, of stack, and of spills (its own and those of functions that it calls).
resources() {
  awk '
    function number_before(words,  at) { # the number in front of these words, 0 if there is none
      at = match($0, "[0-9]+ " words)
      return at ? substr($0, RSTART, RLENGTH) + 0 : 0
    }
    /Compiling entry function/ {
      split($0, quoted, "\047")
      kernel = quoted[2]; chip = quoted[4]; stack = spills = 0
    }
    /bytes stack frame/ {
      stack += number_before("bytes stack frame")
      spills += number_before("bytes spill stores") + number_before("bytes spill loads")
    }
    /Used [0-9]+ registers/ && kernel != "" {
      print kernel, chip, number_before("registers"), number_before("bytes smem"), stack, spills
      kernel = ""
    }' "$1"
}

touch "$work/resources" "$work/mma"
found=0
for source in "$folder"/*.cu; do
  [ -e "$source" ] || break
  found=$((found + 1))
  name=$(basename "$source" .cu)
  targets=("${everywhere[@]}")
  case $name in
    *hopper*) targets=("${hopper[@]}") ;;
    *tensor*) targets+=("${with_tensor_cores[@]}") ;;
    *) targets+=("${without_tensor_cores[@]}") ;;
  esac
  log=$work/$name.log
  if ! nvcc "${flags[@]}" "${targets[@]}" -o "$work/$name.fatbin" "$source" >"$log" 2>&1; then
    grep -v '^ptxas info' "$log" >&2 || true
    fail "$source does not compile"
    continue
  fi
  # ptxas calls it information when it has to serialise wgmma.
  if grep -iE 'warning|Potential Performance Loss' "$log" >&2; then
    fail "$source: warnings"
  fi
  resources "$log" >"$work/$name.resources"
  kernels=$(grep -c 'Compiling entry function' "$log" || true)
  if [ "$(wc -l <"$work/$name.resources")" -ne "$kernels" ]; then
    fail "$source: ptxas -v reports in a way that this script cannot read"
  fi
  while read -r kernel chip _ _ _ spills; do
    [ "$spills" -eq 0 ] || fail "$source: $kernel spills $spills bytes of registers on $chip"
  done <"$work/$name.resources"
  cat "$work/$name.resources" >>"$work/resources"

  # Each kernel's MMA instructions: kernel, chip, instruction with its types.
  cuobjdump -sass -arch sm_90a "$work/$name.fatbin" >>"$work/sass" || true # what fails is told below
  for chip in $chips; do
    [[ ${targets[*]} == *$chip* ]] || continue
    cuobjdump -sass -arch "$chip" "$work/$name.fatbin" | awk -v chip="$chip" '
      /Function : / { kernel = $NF }
      match($0, /(HG?MMA|UTMALDG)\.[A-Za-z0-9.]+/) { print kernel, chip, substr($0, RSTART, RLENGTH) }
    ' >>"$work/mma" || fail "$source: cannot disassemble $chip"
  done
done
[ "$found" -gt 0 ] || fail "no .cu file in $folder"

# Instructions: of each kernel no more than are recorded for it, and 3 %. KERNEL_INSTRUCTIONS=write records
# those of today.
recorded=$(dirname "$0")/kernel-instructions.tsv
if [ "${KERNEL_INSTRUCTIONS:-}" = write ]; then
  {
    echo "# Of kernels for sm_90a by nvcc 13.0: the kernel, instructions on its path, and in its loops (sass.py)."
    python3 "$(dirname "$0")/sass.py" <"$work/sass"
  } >"$work/recorded" && mv "$work/recorded" "$recorded"
elif ! python3 "$(dirname "$0")/sass.py" "$recorded" <"$work/sass"; then
  fail "kernels with more instructions than scripts/kernel-instructions.tsv records"
fi

while read -r kernel type; do
  [ -n "$kernel" ] || continue
  for chip in $chips; do
    if ! grep -q "^$kernel $chip " "$work/resources"; then
      fail "$kernel: no such kernel for $chip"
    elif ! grep -qE "^$kernel $chip .*\.$type(\.|\$)" "$work/mma"; then
      fail "$kernel: no tensor-core instruction of type $type on $chip"
    fi
  done
done <<<"$tensor_kernels"
for kernel in $hopper_kernels; do
  for instruction in 'HGMMA.*BF16' 'UTMALDG\.[23]D' 'UTMALDG\.4D\.IM2COL'; do
    grep -qE "^$kernel sm_90a $instruction" "$work/mma" || fail "$kernel: no instruction $instruction"
  done
  if grep -qE "^$kernel sm_90a HMMA" "$work/mma"; then
    fail "$kernel: products of single warps"
  fi
done

# The table: a row for each kernel, three columns for each chip.
awk -v chips="$chips" '
  !($1 in seen) { seen[$1]; kernels[++count] = $1 }
  { used[$1, $2] = sprintf("%5d %6d %5d", $3, $4, $5) }
  END {
    chip_count = split(chips, chip, " ")
    printf "%-40s", "kernel"
    for (c = 1; c <= chip_count; c++) printf "  %-6s  regs  smem stack", chip[c]
    print ""
    for (k = 1; k <= count; k++) {
      printf "%-40s", kernels[k]
      for (c = 1; c <= chip_count; c++) printf "  %6s %s", "", used[kernels[k], chip[c]]
      print ""
    }
  }' "$work/resources"

if [ "$failures" -gt 0 ]; then
  echo "check-kernels.sh: $failures failure(s)" >&2
  exit 1
fi
echo "$found files: no warnings, no spills, tensor cores where they are meant to be"
