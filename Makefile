# Each target does its own set-up: no server has to be installed or started by hand.
SHELL := /bin/bash
CARGO ?= cargo

.PHONY: help setup demo demo-dynamodb test crash bench fuzz lint

help:
	@echo "make demo    replicates a small shop, kills the pipeline on the way, compares every row"
	@echo "make demo-dynamodb  the same between two DynamoDB, and between DynamoDB and PostgreSQL both ways"
	@echo "make test    formatting, all tests, crash runs of 50 kills for each pair of databases"
	@echo "make crash   long crash runs: KILLS=1000 for each pair; SEED= replays one"
	@echo "make bench   loads, beside the databases' own replication; BENCH_CHANGES=, BENCH_HUGE=, BENCH_COPY= size them"
	@echo "make fuzz    a minute of each fuzz target; FUZZ_SECONDS= for longer"
	@echo "make lint    clippy and documentation, warnings are errors"
	@echo "make setup   fetches the servers that the others start"

# PostgreSQL 15 and 18, MariaDB, the Cloud Spanner emulator. Never fails: tests without their server print "skipped".
setup:
	@tests/servers/setup.sh

demo: setup
	$(CARGO) build --quiet -p anabranch-cli
	$(CARGO) run --quiet --example demo

demo-dynamodb: setup
	$(CARGO) build --quiet -p anabranch-cli
	$(CARGO) run --quiet --example demo_dynamodb

test: setup
	$(CARGO) fmt --all --check
	$(CARGO) build -p anabranch-cli
	$(CARGO) test --workspace --no-fail-fast

crash: setup
	$(CARGO) build -p anabranch-cli
	KILLS=$${KILLS:-1000} $(CARGO) test --all-features --test main -- crash two_jobs --nocapture --test-threads=1

bench: setup
	$(CARGO) bench --bench load
	$(CARGO) bench -p anabranch-dynamodb --bench streams

fuzz:
	fuzz/run.sh

lint:
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; else echo "skipped: cargo deny is not installed"; fi
