#!/usr/bin/env bash
# One figure each, beside those who are to be beaten: load/bench.sh MEASURE…
#
#   stream     1 channel × 1,000, saturated through one stream of publications                    limit-coalesce, bun
#   rate       1 channel × 10,000, streamed: the highest rate with p99 < 200 ms                   limit-coalesce, bun
#   channels   1,000 channels × 10: the highest rate with p99 < 200 ms                            bun, nats
#   one        1 channel × 1,000 and × 10,000, one request in flight                              limit-write, bun, nats
#   fanout     100,000 deliveries/s to 10,000, WebSocket and SSE                                  limit-write, bun
#   memory     an idle connection with a token of its own: 1 channel, 10 channels; after churn    –
#   connect    10,000 connect, show a token of their own, subscribe                               limit-write, bun (no tokens)
#   slow       50 of 1,000 stop reading; one reads slowly                                         –
#   publish    records of 800 bytes through one stream of publications                            –
#   resume     10,000 come again after the node was started anew                                  –
#   all        all of them
#
# ROUNDS       rounds of what is compared (5)             SERVERS      those to measure (each measure has its own)
# FIRST_ROUND  number of the first round (1): with the same OUT a series goes on
# RUN_SECONDS  publishing time of each measure (3)        SUBSCRIBERS  of the large channels (10000)
# WINDOW       stream: publications that may wait for their answer (256). A limit server batches no more than that, while
#              Tidegate, which answers before it fans out, batches what gathers: with few, the limit is no limit
# SERVE_ARGS   further arguments of `tidegate serve`      OUT          directory for figures.jsonl and table.md
# EXTRA_CONFIG further lines of its configuration         DURABLE=1    resume: the log outlives the node (by SERVE_ARGS)
# SERVER_CORE, DRIVER_CORE   cores to pin to (0, 1); on a machine with one core nothing is pinned
set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=${ROUNDS:-5}
FIRST_ROUND=${FIRST_ROUND:-1}
RUN_SECONDS=${RUN_SECONDS:-3}
SUBSCRIBERS=${SUBSCRIBERS:-10000}
WINDOW=${WINDOW:-256}
ONLY=${SERVERS:-}
DURABLE=${DURABLE:-}
MODE=events
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
OUT=${OUT:-$TARGET/bench/$(date -u +%Y%m%dT%H%M%SZ)}
FIGURES=$OUT/figures.jsonl
. load/lib.sh

usage() {
    sed -n '2,/^# SERVER_CORE/s/^# \{0,1\}//p' "$0"
    exit 2
}

# among NAME…: the servers of this measure, or those of them that were asked for.
among() {
    local name
    SERVERS=
    for name in "$@"; do
        if [[ -z $ONLY || " $ONLY " == *" $name "* ]]; then SERVERS+="${SERVERS:+ }$name"; fi
    done
    build
    learn_frames
}

# rounds TRANSPORT COMMAND…: interleaved rounds of all servers of this measure.
rounds() {
    local round
    for ((round = FIRST_ROUND; round < FIRST_ROUND + ROUNDS; round++)); do
        each "$round" none "$@"
    done
}

bench_stream() {
    among tidegate limit-coalesce bun
    rounds ws stream --subscribers 1000 --window "$WINDOW" --seconds "$RUN_SECONDS"
}

bench_rate() {
    among tidegate limit-coalesce bun
    rounds ws sweep --subscribers "$SUBSCRIBERS" --channels 1 --rate 50 --window "$WINDOW"
}

bench_channels() {
    among tidegate bun nats
    rounds ws sweep --subscribers "$SUBSCRIBERS" --channels 1000
}

bench_one() {
    among tidegate limit-write bun nats
    rounds ws run --subscribers 1000 --rate 0 --seconds "$RUN_SECONDS"
    rounds ws run --subscribers "$SUBSCRIBERS" --rate 0 --seconds "$RUN_SECONDS"
}

bench_fanout() {
    local round
    among tidegate limit-write bun
    for ((round = FIRST_ROUND; round < FIRST_ROUND + ROUNDS; round++)); do
        each "$round" none ws fanout --subscribers "$SUBSCRIBERS" --seconds "$RUN_SECONDS"
        each "$round" bun sse fanout --subscribers "$SUBSCRIBERS" --seconds "$RUN_SECONDS"
    done
}

# Two heartbeats pass while the connections rest.
bench_memory() {
    among tidegate
    local transport HEARTBEAT=2s tokens=(--jwt-secret "$OUT/secret" --subscribers "$SUBSCRIBERS" --seconds 5 --churn 20000)
    for transport in ws sse; do
        measure "$FIRST_ROUND" tidegate "$transport" idle "${tokens[@]}"
        measure "$FIRST_ROUND" tidegate "$transport" idle "${tokens[@]}" --channels 1000 --each 10
    done
}

bench_connect() {
    local round
    among tidegate limit-write bun
    for ((round = FIRST_ROUND; round < FIRST_ROUND + ROUNDS; round++)); do
        each "$round" limit-write,bun ws idle --subscribers "$SUBSCRIBERS" --seconds 0.3 --jwt-secret "$OUT/secret"
        each "$round" tidegate ws idle --subscribers "$SUBSCRIBERS" --seconds 0.3
    done
}

# Rows, since only they may be conflated. Log and tail keep little, so that what grows is not what was published.
bench_slow() {
    local MODE=view time=(--seconds "${SLOW_SECONDS:-20}") kept='{ bytes = "2MiB", age = "1h" }'
    local EXTRA_CONFIG="$EXTRA_CONFIG
source = { kind = \"embedded\", retention = $kept }
tail = $kept"
    among tidegate
    measure "$FIRST_ROUND" tidegate ws slow --bytes 8192 "${time[@]}"
}

bench_publish() {
    local round
    among tidegate
    for ((round = FIRST_ROUND; round < FIRST_ROUND + ROUNDS; round++)); do
        measure "$round" tidegate ws publish --bytes 768 --seconds "$RUN_SECONDS"
    done
}

# A metric of the node that runs.
metric() {
    exec 3<>"/dev/tcp/127.0.0.1/$ADMIN_PORT"
    printf 'GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' >&3
    sed -n "s/^$1\(_total\)\{0,1\} \([0-9.]*\).*/\2/p" <&3 | head -n 1
    exec 3>&-
}

bench_resume() {
    local MODE=view ready=$OUT/ready driver forgets=(--forgets)
    if [[ -n $DURABLE ]]; then forgets=(); fi
    among tidegate
    rm -f "$ready"
    start tidegate
    drive tidegate "$FIGURES" resume --subscribers "$SUBSCRIBERS" --channels 10 --transport ws --round "$FIRST_ROUND" --ready "$ready" "${forgets[@]}" &
    driver=$!
    until [[ -e $ready ]] || ! kill -0 "$driver" 2>/dev/null; do sleep 0.05; done
    kill -KILL "$SERVER_PID" 2>/dev/null || true
    wait "$SERVER_PID" 2>/dev/null || true
    launch tidegate
    wait "$driver" || FAILED=1
    echo "parts of snapshots encoded for 10 channels: $(metric tidegate_frame_encoded_parts)"
    stop
}

MEASURES="stream rate channels one fanout memory connect slow publish resume"
wanted=()
for name in "$@"; do
    if [[ $name == all ]]; then
        read -ra wanted <<<"$MEASURES"
    elif [[ " $MEASURES " == *" $name "* ]]; then
        wanted+=("$name")
    else
        usage
    fi
done
((${#wanted[@]})) || usage
mkdir -p "$OUT"
for name in "${wanted[@]}"; do
    echo "== $name"
    "bench_$name"
done
SERVERS=${ONLY:-tidegate limit-write limit-coalesce bun nats}
{
    machine
    echo "- command: ROUNDS=$ROUNDS RUN_SECONDS=$RUN_SECONDS SUBSCRIBERS=$SUBSCRIBERS SERVE_ARGS=\"$SERVE_ARGS\" load/bench.sh ${wanted[*]}"
    echo
    "$TARGET/release/tidegate-load" table "$FIGURES"
} | tee "$OUT/table.md"
echo "figures: $FIGURES, table: $OUT/table.md, $SECONDS s in all"
exit "$FAILED"
