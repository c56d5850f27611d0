#!/usr/bin/env bash
# `./check.sh`: everything that must hold before a change lands: format, lints, docs and tests, among
# which is a short demo from end to end. `.ci/run` calls this.
# `./check.sh quick`: what one runs every few minutes: format, lints, the tests of single functions,
# and those of operations on the CPU.
set -euo pipefail
cd "$(dirname "$0")"
case ${1:-} in
'' | quick) ;;
*) echo "check.sh: expected nothing or quick, found $1" >&2 && exit 2 ;;
esac

echo "== format"
cargo fmt --check
echo "== every source file opens with what it is"
missing=$(git ls-files '*.rs' | while read -r file; do
  head -n 1 "$file" | grep -q '^//!' || echo "$file"
done)
if [ -n "$missing" ]; then
  echo "no //! line opens: $missing"
  exit 1
fi
# All in one profile, so that what crates are made of is built once.
echo "== lints"
cargo clippy --release --workspace --all-targets -- -D warnings
cargo clippy --release -p zfnet --lib --no-default-features -- -D warnings
if [ "${1:-}" = quick ]; then
  echo "== tests of functions and operations"
  cargo test --release --lib
  cargo test --release --test backend -- operations::cpu
  exit
fi
echo "== docs"
RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps
echo "== tests"
cargo test --release
echo "== examples"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
example() { cargo run --release -q --example "$@"; }
"${CARGO_TARGET_DIR:-target}/release/zfnet" demo --quick --out "$work/demo" 2>"$work/log"
example train -- "$work/demo/data" "$work/run"
image=$(find "$work/demo/data/val" -name '*.png' | sort | sed -n 1p) # reads on, so that sort is not cut short
example classify -- "$work/run" "$image"
example project -- "$work/run" conv1 "$image" "$work/pictures"
[ "$(find "$work/pictures" -name '*.png' | wc -l)" = 9 ]
