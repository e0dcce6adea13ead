#!/usr/bin/env bash
# Tidegate beside the bare-socket limits, in interleaved rounds, in less than five minutes.
#
#   load/bench-quick.sh                                        all of it
#   ROUNDS=1 SERVERS="limit-write limit-coalesce" load/bench-quick.sh
#
# ROUNDS       rounds of all measures (3)                 SERVERS      what is measured; order within odd rounds
# RUN_SECONDS  publishing time of each measure (3)        SUBSCRIBERS  of the large channels (10000)
# MODE         Tidegate's stream: events or view          OUT          directory for figures.jsonl and table.md
# SERVER_CORE, DRIVER_CORE   cores to pin to (0, 1); on a machine with one core nothing is pinned
set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=${ROUNDS:-3}
SERVERS=${SERVERS:-tidegate limit-write limit-coalesce}
RUN_SECONDS=${RUN_SECONDS:-3}
SUBSCRIBERS=${SUBSCRIBERS:-10000}
MODE=${MODE:-events}
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
OUT=${OUT:-$TARGET/bench/$(date -u +%Y%m%dT%H%M%SZ)}
FIGURES=$OUT/figures.jsonl
. load/lib.sh

rounds() {
    local round many=(--subscribers "$SUBSCRIBERS") time=(--seconds "$RUN_SECONDS")
    for ((round = 1; round <= ROUNDS; round++)); do
        echo "round $round of $ROUNDS"
        if ((round == 1)); then
            each 1 limit-coalesce ws idle "${many[@]}" --seconds 2
            each 1 limit-coalesce sse idle "${many[@]}" --seconds 2
        fi
        each "$round" limit-coalesce ws fanout "${many[@]}" "${time[@]}"
        each "$round" limit-coalesce sse fanout "${many[@]}" "${time[@]}"
        each "$round" limit-coalesce ws beside "${many[@]}" "${time[@]}"
        each "$round" none ws run --subscribers 1000 --rate 0 "${time[@]}"
        each "$round" none ws stream --subscribers 1000 "${time[@]}"
        each "$round" none ws stream --subscribers "$SUBSCRIBERS" "${time[@]}"
    done
}

mkdir -p "$OUT"
build
learn_frames
rounds
{
    machine
    echo "- command: ROUNDS=$ROUNDS RUN_SECONDS=$RUN_SECONDS SUBSCRIBERS=$SUBSCRIBERS MODE=$MODE SERVERS=\"$SERVERS\" load/bench-quick.sh"
    echo
    "$TARGET/release/tidegate-load" table "$FIGURES"
} | tee "$OUT/table.md"
echo "figures: $FIGURES, table: $OUT/table.md, $SECONDS s in all"
exit "$FAILED"
