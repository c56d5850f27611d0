#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, docs and tests, among which is a
# short demo from end to end. `.ci/run` calls this.
set -euo pipefail
cd "$(dirname "$0")"

echo "== format"
cargo fmt --check
echo "== lints"
cargo clippy --release --all-targets -- -D warnings
echo "== every source file opens with what it is"
missing=$(git ls-files 'src/*.rs' 'tests/*.rs' 'benches/*.rs' | while read -r file; do
  head -n 1 "$file" | grep -q '^//!' || echo "$file"
done)
if [ -n "$missing" ]; then
  echo "no //! line opens: $missing"
  exit 1
fi
echo "== docs"
RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps
echo "== tests"
cargo test --release
