#!/usr/bin/env bash
# Whether the tests of several GPUs would notice: plants one mistake at a time in a copy of what they exchange by NCCL,
# and fails unless a test then fails, with copies as late or as early as they may be. Before, all have to pass.
#
#   tests/standin/planted-exchange.sh STANDIN
#
# STANDIN is what build.sh has made; ONLY=NAME plants just that mistake. The copy is target/planted-exchange.
set -euo pipefail
standin=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
mkdir -p "${CARGO_TARGET_DIR:-target}"
CARGO_TARGET_DIR=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
export CARGO_TARGET_DIR LD_LIBRARY_PATH=$standin:$standin/nccl ZFNET_STANDIN_DEVICES=8
work=$CARGO_TARGET_DIR/planted-exchange
rm -rf "$work"
mkdir -p "$work/tree"
# As new files: cargo goes by their times.
git ls-files -z | tar -c --null -T - | tar -xm -C "$work/tree"
cd "$work/tree"
cargo=(cargo test --release --config "profile.release.package.zfnet-cpu.codegen-units=64"
  -p zfnet --features cuda --test backend)

# Whether the tests pass; it is no mistake found if they do not compile.
tests() {
  if ! env -u LD_LIBRARY_PATH "${cargo[@]}" --no-run > "$work/log" 2>&1; then
    tail -40 "$work/log" >&2
    exit 1
  fi
  "${cargo[@]}" -- --include-ignored nccl:: > "$work/log" 2>&1 &&
    ZFNET_STANDIN_EARLY=1 "${cargo[@]}" -- --include-ignored nccl:: > "$work/log" 2>&1
}

if ! tests; then
  tail -40 "$work/log" >&2
  echo "planted-exchange.sh: the tests fail without any mistake" >&2
  exit 1
fi
echo "passed   without a mistake: $(grep '^test result' "$work/log")"
tried=0 missed=()
# A line of the list: name | file | change, an extended regular expression of sed.
while IFS='|' read -r name file change; do
  [ "${ONLY:-$name}" = "$name" ] || continue
  tried=$((tried + 1))
  cp "$file" "$work/whole"
  sed -i -E "$change" "$file"
  if cmp -s "$work/whole" "$file"; then
    echo "planted-exchange.sh: nothing in $file is changed by $change" >&2
    exit 1
  fi
  if tests < /dev/null; then
    echo "MISSED   $name"
    missed+=("$name")
  else
    failed=$(sed -nE 's/^test (.*) \.\.\. FAILED$/\1/p' "$work/log" | sort)
    echo "noticed  $name: $(wc -l <<< "$failed") tests, first $(head -n 1 <<< "$failed")"
  fi
  cp "$work/whole" "$file"
done << 'LIST'
gradients are sent before they are made|src/backend/cuda/exchange.rs|/fn begin/,/group\(\)/s/self\.communicator\.after_operations\(\)\?;//
gradients are added before they have come|src/backend/cuda/exchange.rs|/fn sums/,/under_way/s/self\.communicator\.before_operations\(\)\?;//
weights are sent before they have moved|src/backend/cuda/exchange.rs|/fn gather/,/group\(\)/s/self\.communicator\.after_operations\(\)\?;//
weights are used before they have come|src/backend/cuda/exchange.rs|/fn gather/,/renew_copy/s/self\.communicator\.before_operations\(\)\?;//
momentum is read before it has come|src/backend/cuda/exchange.rs|/fn collect/,/^}/s/self\.communicator\.before_operations\(\)/Ok(())/
the wait for what is exchanged is one for the operations|src/backend/cuda/nccl.rs|s/self\.exchanged\.record\(&self\.stream\)/self.exchanged.record(\&self.device.stream)/
each rank is sent the slice of the next|src/backend/cuda/exchange.rs|/fn begin/,/fn halt/s/values\(layer, rank\)/values(layer, (rank + 1) % self.communicator.ranks())/
slices are received where a tensor begins|src/backend/cuda/exchange.rs|/fn gather/,/fn collect/s/group\.receive\(other, tensor, theirs\)/group.receive(other, tensor, 0..theirs.len())/
layers are begun in another order at one rank|tests/backend/nccl.rs|s/for \(layer, gradient\) in (gradients\.layers\.iter_mut\(\)\.enumerate\(\))\.rev\(\)/let mut layers: Vec<_> = \1.collect();\nif ranks.rank() != 1 { layers.reverse(); }\nfor (layer, gradient) in layers/
layers are gathered in another order at one rank|src/backend/cuda/exchange.rs|s/for \(layer, param\) in (weights\.layers\.iter_mut\(\)\.enumerate\(\))/let mut layers: Vec<_> = \1.collect();\nif self.communicator.rank() == 1 { layers.reverse(); }\nfor (layer, param) in layers/
biases come before weights at one rank|src/backend/cuda/exchange.rs|s/for tensor in \[weight, bias\]/for tensor in if from == 1 { [bias, weight] } else { [weight, bias] }/
sums are added along no tree|src/backend/cuda/exchange.rs|s/in tree_additions\(senders\)/in (1..senders).map(|other| (0, other))/
ranks without a gradient are added|src/backend/cuda/exchange.rs|s/push\(\(layer, senders\)\)/push((layer, self.communicator.ranks()))/
a rank's own gradient is left out|src/backend/cuda/exchange.rs|s/\.chain\(\[self\.communicator\.rank\(\)\]\)//
convolutions read the old weights in bf16|src/backend/cuda/exchange.rs|s/if copy == 0/if copy != 1/
a bad loss halts its own rank only|src/backend/cuda/exchange.rs|s/group\.halt\(state\);/let _ = state;/
memory is given back while others receive it|src/backend/cuda/device.rs|s/communicator\.settle\(\);.*/let _ = communicator;/
LIST
[ "$tried" -gt 0 ] || { echo "planted-exchange.sh: no mistake is called $ONLY" >&2; exit 1; }
if [ ${#missed[@]} -gt 0 ]; then
  echo "planted-exchange.sh: ${#missed[@]} not noticed" >&2
  exit 1
fi
