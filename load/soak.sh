#!/usr/bin/env bash
# Two minutes of coming and going on a real server, and whether anything of it stays: load/soak.sh [ARGUMENT…]
# Arguments are those of `tidegate-load soak --help`: --seconds, --joins, --rate …
#
# NO_BUILD     takes the binaries as they are
# OUT          directory for the configuration, the key and the server's log
# SERVER_CORE, DRIVER_CORE   cores to run on (0-1 both); on a machine with one core nothing is pinned
#
# What the server may keep is small on purpose, so that it has all of it within the warm-up of 40 s: logs and tails hold five
# seconds, two MiB at most, and the thousand names of channels that a partition keeps in any case (ARCHITECTURE.md, "Every
# queue") are invented in 35 s. What is then still growing is not data. Ends with 1 when a bar is missed.
set -euo pipefail
cd "$(dirname "$0")/.."

SERVER_CORE=${SERVER_CORE:-0-1}
DRIVER_CORE=${DRIVER_CORE:-0-1}
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
OUT=${OUT:-$TARGET/soak/$(date -u +%Y%m%dT%H%M%SZ)}
SERVERS=tidegate
. load/lib.sh

tidegate_config() {
    cat <<CONFIG
[listen]
address = "127.0.0.1:$1"
workers = 2
[admin]
address = "127.0.0.1:$2"
[[access.jwt_keys]]
id = "bench"
algorithm = "HS256"
file = "secret"
[session]
heartbeat = "2s"
[limits]
record_bytes = "64KiB"
[[streams]]
name = "views"
mode = "view"
freshness_slo = "1s"
source = { kind = "embedded", retention = { bytes = "2MiB", age = "5s" } }
tail = { bytes = "2MiB", age = "5s" }
[[streams]]
name = "events"
mode = "events"
freshness_slo = "1s"
source = { kind = "embedded", retention = { bytes = "2MiB", age = "5s" } }
tail = { bytes = "2MiB", age = "5s" }
CONFIG
}

mkdir -p "$OUT"
if [[ -z ${NO_BUILD:-} ]]; then
    cargo build --quiet --release --locked -p tidegate -p tidegate-load --target-dir "$TARGET"
fi
start tidegate
(pinned "$DRIVER_CORE" "$TARGET/release/tidegate-load" soak --address "127.0.0.1:$PORT" --admin "127.0.0.1:$ADMIN_PORT" \
    --server-pid "$SERVER_PID" --jwt-secret "$OUT/secret" "$@")
stop
echo "the server's log: $OUT/tidegate.log"
