# Each target does its own set-up: no server has to be installed or started by hand.
SHELL := /bin/bash
CARGO ?= cargo

.PHONY: help setup demo demo-dynamodb demo-spanner test crash bench bench-python fuzz lint features wheel

help:
	@echo "make demo    replicates a small shop, kills the pipeline on the way, compares every row"
	@echo "make demo-dynamodb  the same between two DynamoDB, and between DynamoDB and PostgreSQL both ways"
	@echo "make demo-spanner  the same with the Cloud Spanner emulator, back into two MariaDB databases"
	@echo "make test    formatting, all tests, crash runs of 50 kills for each pair of databases"
	@echo "make crash   long crash runs: KILLS=1000 for each pair; SEED= replays one"
	@echo "make bench   loads, beside the databases' own replication; BENCH_CHANGES=, BENCH_HUGE=, BENCH_COPY= size them"
	@echo "make bench-python  the same pipelines from Rust and through the wheel, sinks in Python, batches to Arrow"
	@echo "make fuzz    a minute of each fuzz target; FUZZ_SECONDS= for longer"
	@echo "make lint    clippy and documentation, warnings are errors"
	@echo "make features  compiles the library with each of its features alone, and with none"
	@echo "make wheel   the Python wheel, tried in a clean virtual environment; MATURIN= for its arguments"
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

demo-spanner: setup
	$(CARGO) build --quiet -p anabranch-cli
	$(CARGO) run --quiet --example demo_spanner

test: setup
	$(CARGO) fmt --all --check
	$(CARGO) build -p anabranch-cli
	$(CARGO) test --workspace --features anabranch-python/testkit --no-fail-fast

crash: setup
	$(CARGO) build -p anabranch-cli
	KILLS=$${KILLS:-1000} $(CARGO) test --all-features --test main -- crash two_jobs yugabyte --nocapture --test-threads=1
	KILLS=$${KILLS:-1000} $(CARGO) test --test spanner -- crash --nocapture --test-threads=1

bench: setup
	$(CARGO) bench --bench load
	$(CARGO) bench --bench verify
	$(CARGO) bench --features spanner --bench spanner
	$(CARGO) bench -p anabranch-dynamodb --bench streams
	@$(MAKE) bench-python

# With the wheel that a user would get, in an environment of its own.
bench-python: TARGET = $${CARGO_TARGET_DIR:-$(CURDIR)/target}
bench-python: setup
	@if ! python3 -c 'import sys, venv; sys.exit(sys.version_info < (3, 9))' >/dev/null 2>&1; then \
	  echo "skipped: bench-python: there is no Python 3.9 or later with venv"; exit 0; fi; \
	set -e; \
	$(MAKE) wheel; \
	python3 -m venv --clear $(TARGET)/wheel-bench; \
	$(TARGET)/wheel-bench/bin/pip install --quiet pyarrow $(TARGET)/python-wheels/*.whl; \
	BENCH_PYTHON=$(TARGET)/wheel-bench/bin/python $(CARGO) bench --bench load -- python

fuzz:
	fuzz/run.sh

lint:
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; else echo "skipped: cargo deny is not installed"; fi

# Not within `make test`: it compiles the library a dozen times.
features:
	@sed -n '/^\[features\]/,/^$$/s/^\([a-z_]*\) = .*/\1/p' Cargo.toml | grep -v '^default$$' | { \
	  echo "== no feature"; $(CARGO) check --quiet -p anabranch --no-default-features || exit 1; \
	  seen=0; \
	  while read -r feature; do \
	    echo "== $$feature"; $(CARGO) check --quiet -p anabranch --no-default-features --features "$$feature" || exit 1; \
	    seen=$$((seen + 1)); \
	  done; \
	  test $$seen -ge 5 || { echo "the features are not found in Cargo.toml"; exit 1; }; }

# For Linux with this C library or a later one: only the link is another than that of `cargo build`. GLIBC= for
# this machine's own; MATURIN="--zig --compatibility manylinux2014" compiles everything for an older one.
GLIBC ?= $(if $(filter Linux,$(shell uname -s)),2.28)
wheel: TARGET = $${CARGO_TARGET_DIR:-$(CURDIR)/target}
wheel: LINK = $(if $(GLIBC),--compatibility manylinux_$(subst .,_,$(GLIBC)) -- -C linker=$(CURDIR)/bindings/python/tests/zig-linker.sh)
wheel:
	python3 -m venv $(TARGET)/wheel-tools
	$(TARGET)/wheel-tools/bin/pip install --quiet 'maturin[zig]>=1.9,<2'
	rm -rf $(TARGET)/python-wheels
	GLIBC=$(GLIBC) MATURIN_PROGRAM=$(TARGET)/wheel-tools/bin/maturin $(TARGET)/wheel-tools/bin/maturin build --release \
	  --manifest-path bindings/python/Cargo.toml --out $(TARGET)/python-wheels $(or $(MATURIN),$(LINK))
	bindings/python/tests/wheel.sh $(TARGET)/python-wheels/*.whl
