#!/usr/bin/env bash
# Honest subscribers alone and beside connections that mean harm, in interleaved pairs.
#
#   load/hostile.sh                      five pairs, about two minutes
#   PAIRS=1 HOSTILE=1000 load/hostile.sh
#
# PAIRS        pairs of measures (5)              HOSTILE      connections that mean harm (10000)
# SUBSCRIBERS  honest ones, of one channel (1000) RATE         publications a second (50)
# RUN_SECONDS  publishing time of each measure (6), behind WARM_UP_SECONDS (0.5) that are not measured: the kernel acknowledges a
#              new connection's first sixteen segments one by one, and for so long p99 would be theirs
# NO_BUILD     takes the binaries as they are
# OUT          directory for figures.jsonl and the logs; figures are appended, and all of them are summed up
# SERVER_CORE, DRIVER_CORE   cores to pin to (0, 1); on a machine with one core nothing is pinned
# HOSTILE_ARGS further arguments of `tidegate-load hostile`, as --together or --kinds flood
#
# The hostile ones have a process of their own, in the class of the idle; but both processes and what the kernel does for
# ten thousand clients share a core, and what is asked is what an attack does to the server. So a delivery lasts from the writing
# of its publication until the kernel has it for the subscriber (--kernel-times). What the honest driver sees once it has got to
# read ("read"), and how late it was to publish ("late"), stand beside it.
#
# In odd pairs the honest ones are measured alone first, in even ones beside the hostile ones first. The hostile ones do not
# come again: a measure beside them begins when all are connected, and the next one when the server has ended all.
set -euo pipefail
cd "$(dirname "$0")/.."

PAIRS=${PAIRS:-5}
HOSTILE=${HOSTILE:-10000}
SUBSCRIBERS=${SUBSCRIBERS:-1000}
RATE=${RATE:-50}
RUN_SECONDS=${RUN_SECONDS:-6}
WARM_UP_SECONDS=${WARM_UP_SECONDS:-0.5}
HOSTILE_ARGS=${HOSTILE_ARGS:-}
OUT=${OUT:-${CARGO_TARGET_DIR:-$PWD/target}/hostile/$(date -u +%Y%m%dT%H%M%SZ)}
SERVERS=tidegate
MODE=events
EXTRA_CONFIG='[limits]
message_timeout = "10s"'
HOSTILE_PID=
. load/lib.sh

end() {
    if [[ -n $HOSTILE_PID ]]; then
        kill "$HOSTILE_PID" 2>/dev/null || true
        wait "$HOSTILE_PID" 2>/dev/null || true
    fi
    stop
}
trap end EXIT

memory() { sed -n "s/^$1:[^0-9]*\([0-9]*\) kB/\1/p" "/proc/$SERVER_PID/status"; }

# honest NAME PAIR: one measure of the honest ones.
honest() {
    (pinned "$DRIVER_CORE" "$TARGET/release/tidegate-load" fanout --label "$1" --round "$2" --address "127.0.0.1:$PORT" \
        --server-pid "$SERVER_PID" --json "$OUT/figures.jsonl" --subscribers "$SUBSCRIBERS" --rate "$RATE" --seconds "$RUN_SECONDS" \
        --warm-up "$WARM_UP_SECONDS" --kernel-times)
}

beside() {
    local log=$OUT/hostile.$1.log
    # shellcheck disable=SC2086 # a list of arguments
    (pinned "$DRIVER_CORE" chrt --idle 0 "$TARGET/release/tidegate-load" hostile --address "127.0.0.1:$PORT" \
        --connections "$HOSTILE" $HOSTILE_ARGS) >"$log" 2>&1 &
    HOSTILE_PID=$!
    until grep -q '^opened' "$log"; do
        kill -0 "$HOSTILE_PID"
        sleep 0.05
    done
    echo "server memory with all connected: $(memory VmRSS) KiB"
    honest beside "$1"
    wait "$HOSTILE_PID"
    HOSTILE_PID=
    cat "$log"
    echo "server memory after them: $(memory VmRSS) KiB, at most $(memory VmHWM) KiB"
}

figure() { sed -n "s/.*\"$2\":\([0-9.]*\).*/\1/p" <<<"$1"; }

# median COLUMN NAME: of the ratios beside / alone.
median() {
    cut -d' ' -f"$1" "$OUT/ratios" | sort -n | awk -v name="$2" '
        { r[NR] = $1 }
        END {
            median = NR % 2 ? r[(NR + 1) / 2] : (r[NR / 2] + r[NR / 2 + 1]) / 2
            printf "%s beside / alone: median %.3f, from %.3f to %.3f, %d pairs\n", name, median, r[1], r[NR], NR
        }'
}

# All pairs that the file has, and the ratios of p99.
summary() {
    local line name pair key
    declare -A figures
    echo "pair: who  p50 p99 ms  read p99  late p99  server CPU us a delivery  lost"
    while read -r line; do
        name=$(sed -n 's/.*"label":"\([a-z]*\)".*/\1/p' <<<"$line")
        pair=$(figure "$line" round)
        for key in p50_ms p99_ms read_p99_ms written_late_p99_ms server_cpu_us_per_delivery lost; do
            figures[$name.$pair]+="$(figure "$line" "$key") "
        done
        echo "$pair: $name  ${figures[$name.$pair]}"
    done <"$OUT/figures.jsonl"
    for pair in $(sed -n 's/.*"round":\([0-9]*\).*/\1/p' "$OUT/figures.jsonl" | sort -nu); do
        echo "${figures[alone.$pair]}${figures[beside.$pair]}"
    done | awk '{ print $8 / $2, $9 / $3, $11 / $5 }' >"$OUT/ratios"
    median 1 "p99"
    median 2 "p99 as read"
    median 3 "server CPU a delivery"
}

mkdir -p "$OUT"
build
start tidegate
touch "$OUT/figures.jsonl"
first=$(($(wc -l <"$OUT/figures.jsonl") / 2 + 1))
for ((pair = first; pair < first + PAIRS; pair++)); do
    echo "pair $pair"
    if ((pair % 2)); then
        honest alone "$pair"
        beside "$pair"
    else
        beside "$pair"
        honest alone "$pair"
    fi
done
stop
echo "- date: $(date -u +%Y-%m-%dT%H:%MZ), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(uname -sr), $(nproc) cores"
echo "- command: PAIRS=$PAIRS HOSTILE=$HOSTILE SUBSCRIBERS=$SUBSCRIBERS RATE=$RATE RUN_SECONDS=$RUN_SECONDS load/hostile.sh"
summary
