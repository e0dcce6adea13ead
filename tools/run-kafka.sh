#!/bin/bash
# The departures board on real engines: Kafka, Redis, a materializer, two nodes. What is killed is started again 5 s later, so
# that the board can be watched meanwhile: it says how old it is and why, and heals. Everything lies in target/run-kafka and is
# gone with the next start. Ctrl-C ends it all.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly HOME_DIR=target/run-kafka JARS=target/services/kafka/jars
readonly BROKER=9792 CONTROLLER=9793 REDIS=9736 RESTART_AFTER=5
readonly NODE_1=9700 NODE_2=9710 MATERIALIZER_ADMIN=9721
# A broker that nothing is asked of but a demo's day.
readonly JAVA=(java -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$JARS/*")

# What is done to make each of them run: its process takes the shell's place.
run_kafka() { exec "${JAVA[@]}" "-Dlog4j2.configurationFile=$HOME_DIR/logging.properties" kafka.Kafka "$HOME_DIR/server.properties"; }
run_redis() { exec redis-server --bind 127.0.0.1 --port $REDIS --save "" --appendonly yes --dir "$HOME_DIR/redis" --maxmemory-policy noeviction; }
run_materializer() { TIDEGATE_ADMIN_ADDRESS=127.0.0.1:$MATERIALIZER_ADMIN exec target/release/tidegate materialize --config deploy/demo/kafka.toml; }
run_node_1() { serve $NODE_1 --demo; }
run_node_2() { serve $NODE_2; }
serve() {
  local port=$1
  shift
  export TIDEGATE_LISTEN_ADDRESS=127.0.0.1:$port TIDEGATE_ADMIN_ADDRESS=127.0.0.1:$((port + 1)) TIDEGATE_LISTEN_WORKERS=1
  exec target/release/tidegate serve --config deploy/demo/kafka.toml "$@"
}

declare -A pid
start() {
  "run_$1" >>"$HOME_DIR/$1.log" 2>&1 </dev/null &
  pid[$1]=$!
}

end() {
  trap - EXIT INT TERM
  local name
  for name in node_1 node_2 materializer kafka redis; do
    [ -z "${pid[$name]-}" ] || kill "${pid[$name]}" 2>/dev/null || true
  done
  for name in "${!pid[@]}"; do
    for _ in {1..100}; do
      kill -0 "${pid[$name]}" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "${pid[$name]}" 2>/dev/null || true
  done
}
trap end EXIT
trap 'exit 130' INT TERM

prepare() {
  rm -rf "$HOME_DIR"
  mkdir -p "$HOME_DIR/redis"
  cat >"$HOME_DIR/logging.properties" <<'L'
appender.console.type=Console
appender.console.name=STDOUT
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=WARN
rootLogger.appenderRef.stdout.ref=STDOUT
L
  cat >"$HOME_DIR/server.properties" <<P
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:$BROKER,CONTROLLER://127.0.0.1:$CONTROLLER
advertised.listeners=PLAINTEXT://127.0.0.1:$BROKER
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:$CONTROLLER
log.dirs=$HOME_DIR/kafka
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
auto.create.topics.enable=false
P
  "${JAVA[@]}" kafka.tools.StorageTool format -t "$(head -c 16 /dev/urandom | base64 | tr '/+' '_-' | cut -c1-22)" \
    -c "$HOME_DIR/server.properties" >"$HOME_DIR/kafka.log" 2>&1
}

# Tries a command until it succeeds, a minute at most.
until_it_works() {
  local what=$1
  shift
  for _ in {1..60}; do
    "$@" >"$HOME_DIR/try.log" 2>&1 && return
    sleep 1
  done
  echo "run-kafka: $what did not come up; see $HOME_DIR" >&2
  cat "$HOME_DIR/try.log" >&2
  exit 1
}

create_topic() {
  "${JAVA[@]}" org.apache.kafka.tools.TopicCommand --bootstrap-server 127.0.0.1:$BROKER --create --if-not-exists --topic departures \
    --partitions 3 --replication-factor 1 --config cleanup.policy=compact --config min.compaction.lag.ms=60000
}

prepare
start redis
start kafka
until_it_works Redis redis-cli -p $REDIS ping
until_it_works Kafka create_topic
for name in materializer node_1 node_2; do start $name; done
until_it_works "the first node" curl -fsS "http://127.0.0.1:$((NODE_1 + 1))/ready"

echo
echo "The board:  http://127.0.0.1:$NODE_1  and, of the second node,  http://127.0.0.1:$NODE_2"
echo "Operators:  http://127.0.0.1:$((NODE_1 + 1))/inspect/partitions  http://127.0.0.1:$MATERIALIZER_ADMIN/inspect/materializer"
echo "Logs:       $HOME_DIR"
echo "Kill any of these and watch; it is started again after $RESTART_AFTER s:"
for name in redis kafka materializer node_1 node_2; do echo "  kill -9 ${pid[$name]}   # $name"; done

while sleep 1; do
  for name in "${!pid[@]}"; do
    kill -0 "${pid[$name]}" 2>/dev/null && continue
    wait "${pid[$name]}" 2>/dev/null || true
    echo "$(date +%T) $name is gone"
    sleep $RESTART_AFTER
    start "$name"
    echo "$(date +%T) $name is started again:  kill -9 ${pid[$name]}"
  done
done
