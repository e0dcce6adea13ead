# What the benches share: building, starting and stopping servers, driving them. Sourced, not run.
#
# Wants: SERVERS, OUT, MODE; has defaults for the rest. Servers listen on free loopback ports. Exactly the processes that
# were started here are ended, also when interrupted.
SERVER_CORE=${SERVER_CORE:-0}
DRIVER_CORE=${DRIVER_CORE:-1}
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
# Further arguments of `tidegate serve`, and further lines of its configuration.
SERVE_ARGS=${SERVE_ARGS:-}
EXTRA_CONFIG=${EXTRA_CONFIG:-}
HEARTBEAT=${HEARTBEAT:-25s}
# Longest time for one measure, in seconds: a server that hangs must not hang the series.
MEASURE_MAX=${MEASURE_MAX:-90}
declare -A FRAME_BYTES=([ws]=251 [sse]=290)
SERVER_PID=
PUBLISH_PORT=
FAILED=0

measured() { [[ " $SERVERS " == *" $1 "* ]]; }

pinned() {
    local core=$1
    shift
    if (($(nproc) > 1)); then exec taskset -c "$core" "$@"; else exec "$@"; fi
}

# NO_BUILD=1: what was built before is measured.
build() {
    BUN=$TARGET/peers/bun/node_modules/.bin/bun
    if [[ -n ${NO_BUILD:-} ]]; then return; fi
    local packages=(-p tidegate-load)
    if measured tidegate; then packages+=(-p tidegate); fi
    cargo build --quiet --release --locked "${packages[@]}" --target-dir "$TARGET"
    cargo build --quiet --release --manifest-path load/limits/Cargo.toml --target-dir "$TARGET"
    if measured bun || measured nats; then tools/setup.sh peers; fi
    if measured bun; then install_bun; fi
}

# Bun's npm package holds the program itself; what it would download besides is not needed.
install_bun() {
    local wanted
    wanted=$(sed -n 's/.*"bun": "\([0-9.]*\)".*/\1/p' load/peers/bun/package.json)
    if [[ $("$BUN" --version 2>/dev/null) == "$wanted" ]]; then return; fi
    mkdir -p "$TARGET/peers/bun"
    cp load/peers/bun/package.json "$TARGET/peers/bun/"
    npm install --prefix "$TARGET/peers/bun" --no-audit --no-fund >"$TARGET/peers/bun/install.log" 2>&1 || {
        tail -n 20 "$TARGET/peers/bun/install.log" >&2
        return 1
    }
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
    cat <<CONFIG
[listen]
address = "127.0.0.1:$1"
workers = 1
[admin]
address = "127.0.0.1:$2"
[access]
anonymous = { channels = ["bench/*"], can = ["subscribe", "publish"] }
[[access.jwt_keys]]
id = "bench"
algorithm = "HS256"
file = "secret"
[session]
heartbeat = "$HEARTBEAT"
[[streams]]
name = "bench"
mode = "$MODE"
$EXTRA_CONFIG
CONFIG
}

nats_config() { sed -e "s/@PORT@/$1/" -e "s/@WEBSOCKET_PORT@/$2/" load/peers/nats/nats.conf.in; }

# start NAME: sets SERVER_PID, PORT, and for some PUBLISH_PORT or ADMIN_PORT.
start() {
    PORT=$(free_port)
    PUBLISH_PORT=
    launch "$1"
}

# launch NAME: starts it on PORT.
launch() {
    case $1 in
    tidegate)
        ADMIN_PORT=${ADMIN_PORT:-$(free_port)}
        echo "a secret for benches, no secret at all: $((1000 + PORT))" >"$OUT/secret"
        tidegate_config "$PORT" "$ADMIN_PORT" >"$OUT/tidegate.toml"
        # shellcheck disable=SC2086 # a list of arguments
        pinned "$SERVER_CORE" "$TARGET/release/tidegate" serve --config "$OUT/tidegate.toml" $SERVE_ARGS &
        ;;
    limit-*)
        pinned "$SERVER_CORE" "$TARGET/release/limit-server" --port "$PORT" --variant "${1#limit-}" --max-seconds $((MEASURE_MAX * 2)) &
        ;;
    bun)
        pinned "$SERVER_CORE" "$BUN" load/peers/bun/server.js "$PORT" &
        ;;
    nats)
        PUBLISH_PORT=$(free_port)
        nats_config "$PUBLISH_PORT" "$PORT" >"$OUT/nats.conf"
        GOMAXPROCS=1 pinned "$SERVER_CORE" "$(PATH=$PATH:/usr/sbin command -v nats-server)" --config "$OUT/nats.conf" &
        ;;
    *)
        echo "unknown server $1: tidegate, limit-write, limit-coalesce, bun or nats" >&2
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
    local name=$1 file=$2 command=$3 target=limit elsewhere=()
    shift 3
    if [[ $name == tidegate || $name == nats ]]; then target=$name; fi
    if [[ -n $PUBLISH_PORT ]]; then elsewhere=(--publish-address "127.0.0.1:$PUBLISH_PORT"); fi
    (pinned "$DRIVER_CORE" timeout "$MEASURE_MAX" "$TARGET/release/tidegate-load" "$command" --target "$target" --label "$name" \
        --address "127.0.0.1:$PORT" --server-pid "$SERVER_PID" --json "$file" "${elsewhere[@]}" "$@")
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

# The others' frames are made as long as Tidegate's: this learns their length, for as much data as a publication shall have.
learn_frames() {
    if ! measured tidegate; then return; fi
    start tidegate
    drive tidegate "$OUT/probe.jsonl" run --subscribers 1 --seconds 0.3 --transport ws,sse "$@" >>"$OUT/tidegate.log"
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

# each ROUND SKIPPED TRANSPORT COMMAND…: one measure on every server but those SKIPPED (words joined by commas).
each() {
    local round=$1 skipped=$2 name
    shift 2
    for name in $(in_turn "$round"); do
        if [[ ",$skipped," != *",$name,"* ]]; then measure "$round" "$name" "$@"; fi
    done
}

version() {
    if measured tidegate; then "$TARGET/release/tidegate" --version; fi
    "$TARGET/release/tidegate-load" --version
    if measured bun; then echo "bun $("$BUN" --version)"; fi
    if measured nats; then PATH=$PATH:/usr/sbin nats-server --version; fi
    rustc --version
}

machine() {
    echo "- date: $(date -u +%Y-%m-%dT%H:%MZ), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    echo "- machine: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores, $(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo), load average $(cut -d ' ' -f 1-3 /proc/loadavg)"
    echo "- kernel: $(uname -sr), loopback; server on core $SERVER_CORE, driver on core $DRIVER_CORE"
    echo "- versions: $(version | paste -sd ',' | sed 's/,/, /g')"
    echo "- frames: ${FRAME_BYTES[ws]} bytes (WebSocket), ${FRAME_BYTES[sse]} bytes (SSE); mode $MODE"
}
