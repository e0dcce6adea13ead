#!/usr/bin/env bash
# The instructions that a delivery costs in the worker, counted by valgrind, and whether they are more than those of the
# last release: load/instructions.sh [--store]
#   --store   writes today's figures to load/gates.toml instead of comparing them
#
# Sockets are simulated, so that nothing but this crate's code and its allocator is counted; what a process does before
# the first batch is taken off by comparing two runs that differ in their batches alone. The figures are exact for a
# compiler and differ a little between compilers.
set -euo pipefail
cd "$(dirname "$0")/.."

STORED=load/gates.toml
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
SUBSCRIBERS=1000
# Batches of both runs.
FEW=40
MANY=140
# name: updates of a batch, transport
CASES="ws_1:1:ws ws_20:20:ws sse_1:1:sse"

command -v valgrind >/dev/null || {
    echo "valgrind is needed: tools/setup.sh instructions" >&2
    exit 1
}
cargo build --quiet --release --locked -p tidegate-tests --no-default-features --bin deliveries --target-dir "$TARGET"

# instructions BATCHES UPDATES TRANSPORT
instructions() {
    local log
    log=$(mktemp)
    if ! valgrind --tool=callgrind --callgrind-out-file=/dev/null "$TARGET/release/deliveries" "$SUBSCRIBERS" "$@" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
    sed -n 's/^==[0-9]*== Collected : *\([0-9]*\)$/\1/p' "$log"
    rm -f "$log"
}

stored() { sed -n "s/^$1 *= *\([0-9.]*\).*/\1/p" "$STORED"; }

bound=$(stored bound_percent)
failed=0
figures=
for case in $CASES; do
    IFS=: read -r name updates transport <<<"$case"
    few=$(instructions "$FEW" "$updates" "$transport")
    many=$(instructions "$MANY" "$updates" "$transport")
    each=$(awk -v few="$few" -v many="$many" -v deliveries="$(((MANY - FEW) * SUBSCRIBERS * updates))" 'BEGIN { printf "%.2f", (many - few) / deliveries }')
    before=$(stored "$name")
    figures+="$name = $each"$'\n'
    echo "$name: $each instructions a delivery, $before in the last release"
    if [[ ${1:-} != --store ]] && ! awk -v now="$each" -v before="${before:-0}" -v bound="$bound" 'BEGIN { exit !(now <= before * (1 + bound / 100)) }'; then
        echo "$name: more than $bound % above the last release: callgrind_annotate says where; load/instructions.sh --store accepts it" >&2
        failed=1
    fi
done
if [[ ${1:-} == --store ]]; then
    {
        sed '/^\[instructions_per_delivery\]$/,$d' "$STORED"
        echo "[instructions_per_delivery]"
        echo "# $(rustc --version | cut -d ' ' -f 1-2), $(date -u +%Y-%m-%d)"
        printf '%s' "$figures"
    } >"$STORED.new"
    mv "$STORED.new" "$STORED"
    exit 0
fi
[[ $failed == 0 ]] && echo "every case is within $bound %"
exit "$failed"
