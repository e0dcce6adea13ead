# Every recipe is one line; what is longer is in tools/.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help setup run run-kafka test test-full check build fmt doc bench bench-quick instructions soak
.DEFAULT_GOAL := help

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

setup: ## Installs what the other targets need, if it is not there
	@tools/setup.sh run test kafka redis

run: ## The gateway with its embedded engine, and a live departures board
	@tools/setup.sh run && exec cargo run --release --locked -p tidegate -- serve --demo

run-kafka: ## The same board on Kafka and Redis: a materializer and two nodes, any of which may be killed
	@tools/setup.sh run kafka redis && cargo build --release --locked -p tidegate --features kafka && exec tools/run-kafka.sh

test: ## Every behaviour, in a real browser too
	@tools/setup.sh run test kafka redis && tools/test.sh fmt clippy rust model board sdk browser

test-full: ## The same, a delivery's instructions, the model at length, ten minutes of faults, a soak, a minute of fuzzing for each decoder
	@tools/setup.sh run test kafka redis instructions && tools/test.sh fmt clippy doc rust model-full board sdk browser fleet instructions soak fuzz

check: ## What needs no browser: format, lints, documentation, tests in Rust
	@tools/setup.sh run lint kafka redis && tools/test.sh fmt clippy doc rust

build: ## The release
	@tools/setup.sh run && cargo build --release --locked -p tidegate --features kafka

fmt: ## Formats the code
	@tools/setup.sh run lint && tools/test.sh format

doc: ## The API's pages
	@tools/setup.sh run && cargo doc --no-deps --locked -p tidegate

bench: ## Every figure beside the limits, Bun and NATS; MEASURE=connect for one
	@tools/setup.sh run && load/bench.sh $(or $(MEASURE),all)

instructions: ## The instructions of a delivery beside those of the last release
	@tools/setup.sh run instructions && load/instructions.sh

soak: ## Two minutes of coming and going, and whether anything of it stays
	@tools/setup.sh run && load/soak.sh

bench-quick: ## Tidegate beside the bare-socket limits, in five minutes
	@tools/setup.sh run && load/bench-quick.sh
