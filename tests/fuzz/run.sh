#!/bin/sh
# Searches for inputs that break a promise: tests/fuzz/run.sh SECONDS [TARGET…]
# Builds with the pinned compiler (RUSTC_BOOTSTRAP opens its coverage and sanitizer switches; no nightly, no
# cargo-fuzz), then runs each target for SECONDS, starting from its seeds. What it finds stays in target/found; an input
# that breaks a promise is kept in target/broken/TARGET: fix what is wrong and keep the input in seeds/TARGET.
set -eu
seconds=${1:?"usage: $0 SECONDS [TARGET…]"}
shift
cd "$(dirname "$0")"
target_dir=${CARGO_TARGET_DIR:-$PWD/target}
host=$(rustc -vV | sed -n 's/^host: //p')
[ $# -gt 0 ] || set -- $(ls src/bin | sed 's/\.rs$//')

RUSTC_BOOTSTRAP=1 RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module \
  -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
  cargo build --release --quiet --locked --target "$host" --target-dir "$target_dir"

passed=0
failed=0
for target in "$@"; do
  found=$target_dir/found/$target
  broken=$target_dir/broken/$target
  mkdir -p "$found" "$broken"
  echo "== $target: $seconds s"
  if timeout "$((seconds + 60))" "$target_dir/$host/release/$target" "$found" "seeds/$target" \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1 \
    -artifact_prefix="$broken/" 2>"$broken/log"; then
    passed=$((passed + 1))
    grep -E '^stat::(number_of_executed_units|peak_rss_mb)|^Done' "$broken/log"
  else
    failed=$((failed + 1))
    tail -n 40 "$broken/log"
  fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
