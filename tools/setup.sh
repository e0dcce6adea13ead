#!/bin/sh
# Installs what building and testing need, from Debian's packages, and says what: tools/setup.sh [run] [lint] [test] [kafka] …
#   run   a Rust compiler and a C linker        lint   clippy and rustfmt
#   test  both, Python, Node with npm, and Chromium
#   kafka  Java and the jars of a Kafka broker, in target/services/kafka; what the tests' second client needs to be built
#   redis   redis-server, redis-cli and redis-sentinel, and openssl for the tests' certificates
#   instructions   valgrind                     peers  Node with npm, and nats-server: what Tidegate is measured beside
# What is there already is left alone, so that a second run does nothing. rustup, where it is installed, is preferred:
# it takes the version that rust-toolchain.toml pins.
set -eu
cd "$(dirname "$0")/.."
RUST_MIN=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
NODE_MIN=18
PYTHON_MIN=3.10
JAVA_MIN=17
KAFKA=target/services/kafka
wanted=
after=

have() { command -v "$1" >/dev/null 2>&1; }
want() { wanted="$wanted $*"; }

# at_least MIN VERSION
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

rust_is_new_enough() {
  have cargo && have rustc || return 1
  at_least "$RUST_MIN" "$(rustc --version | cut -d ' ' -f 2)"
}

need_rust() {
  if have rustup; then
    rustup show active-toolchain >/dev/null 2>&1 || rustup toolchain install
  elif ! rust_is_new_enough; then
    want rustc-web cargo-web
  fi
  have cc || want gcc libc6-dev
}

need_lints() {
  if have rustup; then return; fi
  have cargo-clippy || want rust-web-clippy
  have cargo-fmt || want rustfmt-web
}

need_node() {
  if ! have node || ! at_least "$NODE_MIN" "$(node --version | tr -d v)"; then want nodejs; fi
  have npm || want npm
}

need_python() {
  if ! have python3 || ! at_least "$PYTHON_MIN" "$(python3 --version | cut -d ' ' -f 2)"; then want python3; fi
}

need_browser() {
  need_node
  have "${CHROMIUM:-chromium}" || want chromium
}

java_is_new_enough() {
  have java || return 1
  at_least "$JAVA_MIN" "$(java -version 2>&1 | sed -n 's/.* version "\([0-9.]*\).*/\1/p')"
}

need_kafka() {
  java_is_new_enough || want openjdk-17-jre-headless
  kafka_is_there || have mvn || want maven
  have cmake || want cmake
  have c++ || want g++
  have make || want make
  have openssl || want openssl
  [ -e /usr/include/zlib.h ] || want zlib1g-dev
}

kafka_is_there() { [ -e "$KAFKA/complete" ] && cmp -s tools/kafka/SHA256SUMS "$KAFKA/complete"; }

# The jars come from Maven Central, in the versions of tools/kafka/pom.xml, and are what SHA256SUMS says, or nothing is there.
# Whoever comes second waits: test programs may ask at the same time.
install_kafka() (
  mkdir -p "$KAFKA"
  exec 9>"$KAFKA/lock"
  flock 9
  kafka_is_there && return
  echo "setup: getting Kafka's jars by Maven (55 MB)"
  rm -rf "$KAFKA/jars"
  if ! mvn -B -q -f tools/kafka/pom.xml dependency:copy-dependencies -DincludeScope=runtime \
    -DoutputDirectory="$PWD/$KAFKA/jars" >"$KAFKA/maven.log" 2>&1; then
    tail -n 30 "$KAFKA/maven.log" >&2
    echo "setup: Maven could not get Kafka's jars; all that it said is in $KAFKA/maven.log" >&2
    return 1
  fi
  if ! (cd "$KAFKA/jars" && sha256sum --quiet --strict -c -) <tools/kafka/SHA256SUMS >&2; then
    echo "setup: Kafka's jars are not those of tools/kafka/SHA256SUMS: they were changed, or tools/kafka/pom.xml was" >&2
    return 1
  fi
  cp tools/kafka/SHA256SUMS "$KAFKA/complete"
)

need_redis() {
  have redis-server || want redis-server
  have redis-cli || want redis-tools
  have redis-sentinel || want redis-sentinel
  have openssl || want openssl
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    echo "setup: run this as root, or install sudo: $*" >&2
    return 1
  fi
}

install_wanted() {
  [ -n "$wanted" ] || return 0
  if ! have apt-get; then
    echo "setup: please install what these packages of Debian hold (Rust $RUST_MIN: https://rustup.rs):$wanted" >&2
    return 1
  fi
  echo "setup: installing by apt:$wanted"
  log=$(mktemp)
  # shellcheck disable=SC2086 # a list of packages
  if as_root env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get update -q && apt-get install -qy --no-install-recommends "$@"' \
    sh $wanted >"$log" 2>&1; then
    rm -f "$log"
  else
    tail -n 30 "$log" >&2
    echo "setup: apt could not install them; all that it said is in $log" >&2
    return 1
  fi
}

for part in "$@"; do
  case $part in
  run) need_rust ;;
  lint) need_lints ;;
  test)
    need_lints
    need_python
    need_browser
    ;;
  kafka)
    need_kafka
    after=install_kafka
    ;;
  redis) need_redis ;;
  instructions) have valgrind || want valgrind ;;
  peers)
    need_node
    have nats-server || want nats-server
    ;;
  *)
    echo "usage: $0 [run] [lint] [test] [kafka] [redis] [instructions] [peers]" >&2
    exit 2
    ;;
  esac
done
install_wanted
$after
if ! rust_is_new_enough; then
  echo "setup: Rust $RUST_MIN or newer is needed, and $(rustc --version 2>/dev/null || echo none) is there: https://rustup.rs" >&2
  exit 1
fi
