#!/usr/bin/env bash
# Whether the tests would notice: plants one bug at a time in a copy of the code, builds the tests that it
# is for, and fails unless some of them fail. Before, they have to pass without any. For the CPU's code they
# are those of backends, for what is written to disk those of power losses (on Linux).
#
#   tests/planted-bugs.sh [FILTER ...]
#
# FILTER chooses tests of backends (all of the program `backend`); ONLY=NAME plants just that bug. The
# copy and what is built of it stay in target/planted. The bug in bf16 needs a CPU with AVX512-BF16.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
mkdir -p "${CARGO_TARGET_DIR:-target}/planted"
work=$(cd "${CARGO_TARGET_DIR:-target}/planted" && pwd)
export CARGO_TARGET_DIR=$work/build
rm -rf "$work/tree"
mkdir "$work/tree"
# As new files: cargo goes by their times, and an earlier bug may still be in what was built.
git ls-files -z | tar -c --null -T - | tar -xm -C "$work/tree"
cd "$work/tree"

# What is built again for each bug need not be fast.
cargo=(cargo test --release --config "profile.release.package.zfnet-cpu.codegen-units=64"
  -p zfnet)

# tests FILE [FILTER ...]: whether those for bugs in FILE pass; it is no bug found if they do not compile.
tests() {
  local file=$1 program=backend
  shift
  case $file in
  crates/cpu/*) ;;
  *) program=program && set -- power_loss ;;
  esac
  if ! "${cargo[@]}" --test "$program" --no-run >"$work/log" 2>&1; then
    tail -40 "$work/log" >&2
    exit 1
  fi
  "${cargo[@]}" --test "$program" -- "$@" >"$work/log" 2>&1
}

for file in crates/cpu/ crates/core/; do
  if ! tests "$file" "$@"; then
    tail -40 "$work/log" >&2
    echo "planted-bugs.sh: the tests fail without any bug" >&2
    exit 1
  fi
  echo "passed   without a bug: $(grep '^test result' "$work/log")"
done
tried=0 missed=()
# A line of the list: name | file | change, an extended regular expression of sed.
while IFS='|' read -r name file change; do
  [ "${ONLY:-$name}" = "$name" ] || continue
  tried=$((tried + 1))
  sed -i -E "$change" "$file"
  if cmp -s "$root/$file" "$file"; then
    echo "planted-bugs.sh: nothing in $file is changed by $change" >&2
    exit 1
  fi
  if tests "$file" "$@" </dev/null; then
    echo "MISSED   $name"
    missed+=("$name")
  else
    failed=$(sed -nE 's/^test (.*) \.\.\. FAILED$/\1/p' "$work/log" | sort)
    echo "noticed  $name: $(wc -l <<<"$failed") tests, first $(head -n 1 <<<"$failed")"
  fi
  cp "$root/$file" "$file"
done <<'LIST'
a wrong constant in Winograd's filter transformation|crates/cpu/src/conv/winograd.rs|s/AT_B \* B, g\[1\]/AT_B * A, g[1]/
no bias in Winograd's method|crates/cpu/src/conv/winograd.rs|s/S::add\(value, bias\)/value/
the last row of a tile that is not whole is lost|crates/cpu/src/gemm.rs|s/\.take\(out\.rows\)/.take(out.rows.max(2) - 1)/
padding on the right keeps what was packed before|crates/cpu/src/conv/mod.rs|/visit\(start \+ last \* channels/d
filter gradients are not accumulated|crates/cpu/src/conv/direct.rs|s/\*dw = if accumulate/*dw = if false/
the last of equal values wins a window of three by three|crates/cpu/src/pool.rs|s/for i in \(0\.\.9u8\)\.rev\(\)/for i in 0..9u8/
normalisation over an even number of channels leans the other way backward|crates/cpu/src/lrn.rs|s/\(size \/ 2, \(size - 1\) \/ 2\)/((size - 1) \/ 2, size \/ 2)/
relu's mask is open at zero|crates/cpu/src/pointwise.rs|s/\*y > 0\.0 \{ \*dy/*y >= 0.0 { *dy/
dropout numbers the values of maps as they lie in memory|crates/cpu/src/pointwise.rs|s/let element = .*;/let element = i;/
weights are updated before the velocity|crates/cpu/src/pointwise.rs|/\*v = momentum/{N;s/(.*)\n(.*)/\2\n\1/}
switches of a window are cut as if it began at the map's edge|crates/cpu/src/window.rs|s/first\(1, x \+ column\)/first(1, column)/
ties are rounded away from zero in bf16|crates/cpu/src/pointwise.rs|s/0x7FFF \+ \(bits >> 16 & 1\)/0x8000/
files are not synced|crates/core/src/disk.rs|s/file\.sync_all\(\)$/Ok(())/
the name of a new folder is not synced|crates/core/src/disk.rs|s/made\.map\(folder_of\)/made.take(0).map(folder_of)/
the name of a file that takes another's place is not synced|crates/core/src/disk.rs|s/^    sync_folder\(folder_of\(path\)\)/    Ok(())/
LIST
[ "$tried" -gt 0 ] || { echo "planted-bugs.sh: no bug is called $ONLY" >&2; exit 1; }
if [ ${#missed[@]} -gt 0 ]; then
  echo "planted-bugs.sh: ${#missed[@]} not noticed" >&2
  exit 1
fi
