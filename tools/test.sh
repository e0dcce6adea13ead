#!/bin/sh
# Runs kinds of checks, goes on when one fails, and ends with one line that sums them up: tools/test.sh KIND…
#   fmt clippy doc   each counts as one check
#   rust             unit tests, properties, the stored inputs of fuzzing, the gateway from end to end
#   model            the model of the algorithms: a few seeds of each configuration hold, each deliberate bug is caught
#   model-full       the same with MODEL_SEEDS (3,000) seeds of each configuration
#   fleet            the fleet's oracle: it finds five seeded bugs; without a cache and with one, each fault in turn, the long
#                    ones, and FLEET_SECONDS (600) of them at random; with three brokers, with sentinels, with a cluster
#                    of Redis, what only these have
#   board browser    the board's unit tests; the board and the SDK in Chromium, before a gateway
#   sdk              the SDK: types, units, properties, size, the packed package, a gateway that is killed and paused
#   instructions     the instructions of a delivery, beside those of the last release
#   soak             two minutes of coming and going: memory, descriptors, losses
#   fuzz             each target of tests/fuzz for FUZZ_SECONDS (60)
#   format           formats instead of checking
# Logs are in target/test. The exit code is 0 only when nothing failed.
set -u
cd "$(dirname "$0")/.." || exit 1
FUZZ_SECONDS=${FUZZ_SECONDS:-60}
MODEL_SEEDS=${MODEL_SEEDS:-3000}
FLEET_SECONDS=${FLEET_SECONDS:-600}
FLEET_SEED=${FLEET_SEED:-$(date +%s)}
FAILED_LINES=150
target=${CARGO_TARGET_DIR:-$PWD/target}
logs=$target/test
mkdir -p "$logs"
passed=0
failed=0
# What a runner's log says of its numbers: `N passed, M failed`.
COUNT_PASSED='s/^\([0-9]*\) passed, [0-9]* failed$/\1/p'
COUNT_FAILED='s/^[0-9]* passed, \([0-9]*\) failed$/\1/p'

# sum SCRIPT LOG: adds up the numbers that a sed script prints.
sum() { sed -n "$1" "$2" | awk '{ total += $1 } END { print total + 0 }'; }

# judge NAME STATUS PASSED FAILED SECONDS: a runner that failed without counting a failure has failed once.
judge() {
  count=$4
  if [ "$2" -ne 0 ] && [ "$count" -eq 0 ]; then count=1; fi
  if [ "$2" -eq 0 ] && [ "$3" -eq 0 ]; then
    count=1
    echo "$1 ran nothing" >>"$logs/$1.log"
  fi
  if [ "$count" -gt 0 ]; then
    tail -n "$FAILED_LINES" "$logs/$1.log"
    echo "== $1 failed; all of it: $logs/$1.log"
  fi
  echo "== $1: $3 passed, $count failed, $5 s"
  passed=$((passed + $3))
  failed=$((failed + count))
}

# runner NAME PASSED-SCRIPT FAILED-SCRIPT COMMAND…: a runner whose log tells its numbers.
runner() {
  name=$1 passes=$2 fails=$3
  shift 3
  start=$(date +%s)
  "$@" >"$logs/$name.log" 2>&1 </dev/null
  status=$?
  judge "$name" "$status" "$(sum "$passes" "$logs/$name.log")" "$(sum "$fails" "$logs/$name.log")" "$(($(date +%s) - start))"
}

# check NAME COMMAND…: one check.
check() {
  name=$1
  shift
  start=$(date +%s)
  if "$@" >"$logs/$name.log" 2>&1 </dev/null; then
    judge "$name" 0 1 0 "$(($(date +%s) - start))"
  else
    judge "$name" 1 0 1 "$(($(date +%s) - start))"
  fi
}

format() {
  cargo fmt --all "$@" &&
    cargo fmt --all --manifest-path tests/fuzz/Cargo.toml "$@"
}

document() { RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked -p tidegate; }

# model SEEDS: a configuration that holds and a bug that is caught count as one each.
model() {
  python3 -B tests/model/run.py --seeds "$1"
  held=$?
  python3 -B tests/model/run.py --rules bugs --seeds 8 && [ "$held" -eq 0 ]
}

# fleet: each bug that is found counts as one, and so does each run in which nothing is.
fleet() {
  cargo build --locked --bins -p tidegate -p tidegate-tests || return
  held=0
  for bug in lose double swap hide misplace; do
    "$target/debug/fleet" --bug "$bug" --seconds 20 || held=1
  done
  for cache in "" "--cache one"; do
    "$target/debug/fleet" $cache --fault each --fault long --seed "$FLEET_SEED" || held=1
    "$target/debug/fleet" $cache --fault random --seconds "$FLEET_SECONDS" --seed "$FLEET_SEED" || held=1
  done
  leaders="--fault leader-kill --fault leader-freeze --fault broker-kill"
  "$target/debug/fleet" --brokers 3 $leaders $leaders --seed "$FLEET_SEED" || held=1
  of_cache="--fault cache-failover --fault cache-freeze --fault cache-empty --fault materializer-kill"
  for cache in sentinel cluster; do
    "$target/debug/fleet" --cache "$cache" $of_cache $of_cache --seed "$FLEET_SEED" || held=1
  done
  return "$held"
}

board() { (cd client-js/board && node --test --test-reporter=tap); }

# sdk: before the gateway that TIDEGATE_BIN names, else the one of this tree.
sdk() {
  [ -n "${TIDEGATE_BIN:-}" ] || cargo build --locked --bins -p tidegate || return
  (cd client-js && npm ci --ignore-scripts --no-audit --no-fund &&
    TIDEGATE_BIN="${TIDEGATE_BIN:-$target/debug/tidegate}" npm test)
}

browser() {
  cargo build --locked --bins -p tidegate -p tidegate-tests || return
  (cd client-js && npm ci --ignore-scripts --no-audit --no-fund && npm run build) || return
  (cd tests/browser && npm ci --ignore-scripts --no-audit --no-fund) || return
  CHROMIUM=$(command -v "${CHROMIUM:-chromium}") || return
  export CHROMIUM
  (cd tests/browser && TIDEGATE_BIN="$target/debug/tidegate" node --test --test-reporter=tap)
}

for kind in "$@"; do
  case $kind in
  format) format || exit ;;
  fmt) check fmt format --check ;;
  clippy) check clippy cargo clippy --workspace --all-targets --locked -- -D warnings ;;
  doc) check doc document ;;
  instructions) check instructions load/instructions.sh ;;
  soak) check soak load/soak.sh ;;
  rust)
    runner rust 's/^test result: .* \([0-9]*\) passed;.*/\1/p' 's/^test result: .* \([0-9]*\) failed;.*/\1/p' \
      cargo test --workspace --locked --no-fail-fast
    ;;
  board | sdk | browser) runner "$kind" 's/^# pass \([0-9]*\)$/\1/p' 's/^# fail \([0-9]*\)$/\1/p' "$kind" ;;
  model) runner model "$COUNT_PASSED" "$COUNT_FAILED" model 10 ;;
  model-full) runner model-full "$COUNT_PASSED" "$COUNT_FAILED" model "$MODEL_SEEDS" ;;
  fleet) runner fleet "$COUNT_PASSED" "$COUNT_FAILED" fleet ;;
  fuzz) runner fuzz "$COUNT_PASSED" "$COUNT_FAILED" tests/fuzz/run.sh "$FUZZ_SECONDS" ;;
  *)
    echo "$0: unknown kind $kind" >&2
    exit 2
    ;;
  esac
done
[ "$*" = format ] && exit 0
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
