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
#
# Servers listen on free loopback ports. Exactly the processes started here are ended, also when interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=${ROUNDS:-3}
SERVERS=${SERVERS:-tidegate limit-write limit-coalesce}
RUN_SECONDS=${RUN_SECONDS:-3}
SUBSCRIBERS=${SUBSCRIBERS:-10000}
MODE=${MODE:-events}
SERVER_CORE=${SERVER_CORE:-0}
DRIVER_CORE=${DRIVER_CORE:-1}
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
OUT=${OUT:-$TARGET/bench/$(date -u +%Y%m%dT%H%M%SZ)}
FIGURES=$OUT/figures.jsonl
# Longest time for one measure, in seconds: a server that hangs must not hang the series.
MEASURE_MAX=90
declare -A FRAME_BYTES=([ws]=251 [sse]=290)
SERVER_PID=
FAILED=0

measured() { [[ " $SERVERS " == *" $1 "* ]]; }

pinned() {
    local core=$1
    shift
    if (($(nproc) > 1)); then exec taskset -c "$core" "$@"; else exec "$@"; fi
}

build() {
    local packages=(-p tidegate-load)
    if measured tidegate; then packages+=(-p tidegate); fi
    cargo build --quiet --release "${packages[@]}" --target-dir "$TARGET"
    cargo build --quiet --release --manifest-path load/limits/Cargo.toml --target-dir "$TARGET"
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Below the ephemeral ports, so that no subscriber takes it meanwhile.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 10000))
        if ! listens "$port"; then
            echo "$port"
            return
        fi
    done
    echo "no free port found between 20000 and 29999" >&2
    return 1
}

tidegate_config() {
    cat <<END
[listen]
address = "127.0.0.1:$1"
workers = 1
[admin]
address = "127.0.0.1:$2"
[access]
anonymous = { channels = ["bench/*"], can = ["subscribe", "publish"] }
[[streams]]
name = "bench"
mode = "$MODE"
END
}

# start NAME: sets SERVER_PID and PORT.
start() {
    PORT=$(free_port)
    case $1 in
    tidegate)
        tidegate_config "$PORT" "$(free_port)" >"$OUT/tidegate.toml"
        pinned "$SERVER_CORE" "$TARGET/release/tidegate" serve --config "$OUT/tidegate.toml" --listen "127.0.0.1:$PORT" &
        ;;
    limit-*)
        pinned "$SERVER_CORE" "$TARGET/release/limit-server" --port "$PORT" --variant "${1#limit-}" --max-seconds $((MEASURE_MAX * 2)) &
        ;;
    *)
        echo "unknown server $1: tidegate, limit-write or limit-coalesce" >&2
        return 1
        ;;
    esac >>"$OUT/$1.log" 2>&1
    SERVER_PID=$!
    for _ in {1..100}; do
        if listens "$PORT"; then return; fi
        if ! kill -0 "$SERVER_PID" 2>/dev/null; then break; fi
        sleep 0.05
    done
    echo "$1 does not listen on port $PORT; see $OUT/$1.log" >&2
    stop
    return 1
}

stop() {
    if [[ -z $SERVER_PID ]]; then return; fi
    local pid=$SERVER_PID
    SERVER_PID=
    kill "$pid" 2>/dev/null || true
    for _ in {1..60}; do
        if ! kill -0 "$pid" 2>/dev/null; then break; fi
        sleep 0.05
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}
trap stop EXIT
trap 'exit 130' INT TERM

# drive NAME FILE COMMAND…: runs the driver against the started server.
drive() {
    local name=$1 file=$2 command=$3 target=tidegate
    shift 3
    if [[ $name != tidegate ]]; then target=limit; fi
    (pinned "$DRIVER_CORE" timeout "$MEASURE_MAX" "$TARGET/release/tidegate-load" "$command" --target "$target" --label "$name" \
        --address "127.0.0.1:$PORT" --server-pid "$SERVER_PID" --json "$file" "$@")
}

# measure ROUND NAME TRANSPORT COMMAND…: one measure on a fresh server.
measure() {
    local round=$1 name=$2 transport=$3
    shift 3
    if start "$name" && drive "$name" "$FIGURES" "$@" --transport "$transport" --round "$round" --frame-bytes "${FRAME_BYTES[$transport]}"; then
        stop
    else
        stop
        echo "failed: $name $transport $*" >&2
        FAILED=1
    fi
}

# The limits' frames are made as long as Tidegate's: this learns their length.
learn_frames() {
    if ! measured tidegate; then return; fi
    start tidegate
    drive tidegate "$OUT/probe.jsonl" run --subscribers 1 --seconds 0.3 --transport ws,sse >>"$OUT/tidegate.log"
    stop
    local transport bytes
    for transport in ws sse; do
        bytes=$(sed -n "/\"transport\":\"$transport\"/s/.*\"frame_bytes\":\([0-9]*\).*/\1/p" "$OUT/probe.jsonl" | tail -n 1)
        if ((bytes > 0)); then FRAME_BYTES[$transport]=$bytes; fi
    done
}

in_turn() {
    if (($1 % 2)); then echo "$SERVERS"; else tr ' ' '\n' <<<"$SERVERS" | tac | tr '\n' ' '; fi
}

# each ROUND SKIPPED TRANSPORT COMMAND…: one measure on every server but SKIPPED.
each() {
    local round=$1 skipped=$2 name
    shift 2
    for name in $(in_turn "$round"); do
        if [[ $name != "$skipped" ]]; then measure "$round" "$name" "$@"; fi
    done
}

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

version() {
    if measured tidegate; then "$TARGET/release/tidegate" --version; fi
    "$TARGET/release/tidegate-load" --version
    rustc --version
}

machine() {
    echo "- date: $(date -u +%Y-%m-%dT%H:%MZ), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    echo "- machine: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores, $(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo), load average $(cut -d ' ' -f 1-3 /proc/loadavg)"
    echo "- kernel: $(uname -sr), loopback; server on core $SERVER_CORE, driver on core $DRIVER_CORE"
    echo "- versions: $(version | paste -sd ',' | sed 's/,/, /g')"
    echo "- frames: ${FRAME_BYTES[ws]} bytes (WebSocket), ${FRAME_BYTES[sse]} bytes (SSE); mode $MODE"
    echo "- command: ROUNDS=$ROUNDS RUN_SECONDS=$RUN_SECONDS SUBSCRIBERS=$SUBSCRIBERS MODE=$MODE SERVERS=\"$SERVERS\" load/bench-quick.sh"
}

mkdir -p "$OUT"
build
learn_frames
rounds
{
    machine
    echo
    "$TARGET/release/tidegate-load" table "$FIGURES"
} | tee "$OUT/table.md"
echo "figures: $FIGURES, table: $OUT/table.md, $SECONDS s in all"
exit "$FAILED"
