# What a person types, and what CI runs. Guests are WebAssembly components: scripts/ finds or prepares the toolchain
# that builds them. `make serve ARGS="--listen 127.0.0.1:3000 --workers 2"` passes flags on.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
ARGS ?=
COMPARE ?=
RUN_BENCH = $(CARGO) run --release -p wasmcluster-bench --
BENCHED = build
# PGO=1: what `make pgo` makes, which is made anew when the code has changed.
ifneq ($(filter-out 0,$(PGO)),)
ifneq ($(COMPARE),)
$(error PGO and COMPARE exclude each other: the other revision is built without a profile)
endif
PGO_BUILT := $(TARGET)/pgo/$(shell rustc -vV | sed -n 's/^host: //p')/release
RUN_BENCH = WASMCLUSTER=$(PGO_BUILT)/wasmcluster $(PGO_BUILT)/wasmcluster-bench
BENCHED = $(PGO_BUILT)/wasmcluster-bench
$(BENCHED): $(shell git ls-files Cargo.lock Cargo.toml host bench)
	scripts/pgo
	touch $@
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
# Under `make -j` cargo would look for a job server that recipes do not get.
unexport MAKEFLAGS MFLAGS
.PHONY: help serve test quick fuzz check soak pgo bench count profile machines map pages book lint build guests hello install dist fmt clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "make %-9s %s\n", $$1, $$2 }'

# With the profile to try it, which is built in minutes; `make build` makes the optimised binary.
serve: hello ## Serve examples/hello on http://127.0.0.1:8080 (flags: ARGS="…")
	$(CARGO) build --profile try -p wasmcluster
	exec $(TARGET)/try/wasmcluster serve $(TARGET)/wasm32-wasip2/guest/hello.wasm $(ARGS)

test: guests ## Run every test
	CARGO="$(CARGO)" scripts/test

# Only the guests that it needs.
quick: ## Run the unit tests and one test of each suite, in minutes
	scripts/build-guests hello scenarios whoami hostile-p2 hostile-p3
	CARGO="$(CARGO)" scripts/test --quick

check: lint test ## Run everything that CI runs: formatting, clippy, documentation, tests

soak: guests ## Send hostile and good traffic together for minutes (SOAK_SECONDS=120), and very large bodies
	$(CARGO) test -p wasmcluster --test safety --test serving soak -- --ignored --nocapture

fuzz: ## Fuzz each target for FUZZ_SECONDS (30)
	scripts/fuzz

# Forty minutes on two cores; scripts/pgo says what it needs, and where the program is.
pgo: ## Build the server by a profile of itself under load, as releases are: a quarter to a half faster
	scripts/pgo

# It takes forty minutes. PGO=1 measures the program that `make pgo` makes; COMPARE=REV instead this build beside one of that
# revision, in pairs. BENCH_QUICK=1, BENCH_ROUNDS=5, BENCH_SECONDS=3, BENCH_ONLY=hello,growth: less or more of it.
# WASMTIME=PATH, WASMCLUSTER=PATH: other programs than those that are found. All of them are variables for the program.
# Guests in Python and JavaScript that could not be built are left out, which the table says.
bench: guests $(BENCHED) ## Compare with other servers, into docs/benchmark.md (BENCH_PEERS=all fetches them, BENCH_QUICK=1, PGO=1)
	$(RUN_BENCH)$(if $(COMPARE), compare '$(COMPARE)')

# COUNT_ONLY=ROW,… alone, COUNT_REQUESTS=1000 of each, COUNT_KEEP=FOLDER for what callgrind writes, WASMTIME=PATH.
count: guests $(BENCHED) ## Count instructions and cache misses of a request under valgrind (COUNT_ONLY=…, PGO=1)
	$(RUN_BENCH) count

# GUEST=hello_p3 or a path, BIN=PATH for another server program, PROFILE_SECONDS=5: variables for the script.
profile: $(if $(BIN),,build) ## Profile a worker under load with perf: where the time of a request goes (flags: ARGS="…")
	scripts/profile $(ARGS)

# Needs root, HAProxy, Redis and wrk.
machines: guests build ## Measure several hosts, in network namespaces behind HAProxy, for docs/many-machines.md
	WASMCLUSTER=$(abspath $(TARGET))/release/wasmcluster \
		$(CARGO) test -p wasmcluster --test deploy machines::figures -- --ignored --nocapture --test-threads 1

map: ## Redraw the map in ARCHITECTURE.md from the code
	WASMCLUSTER_MAP=draw $(CARGO) test -q -p wasmcluster --lib layers::the_map_is_that_of_the_code

pages: ## Write docs/cli.md anew, from what --help says
	WASMCLUSTER_PAGES=write $(CARGO) test -q -p wasmcluster --test tooling site::the_page_of_commands

book: ## Make a site of README and docs/ with mdBook: target/book/html/index.html
	scripts/book --install
	scripts/book

lint: ## Run what check does before the tests
	$(CARGO) fmt --all --check
	rustfmt --check --edition 2024 templates/*/src/*.rs
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	scripts/build-guests --clippy
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --workspace

build: ## Build the optimised server, with its debug information in a file beside it
	$(CARGO) build --release -p wasmcluster
	scripts/separate-debug $(TARGET)/release/wasmcluster

guests: ## Build all guests: examples/ and tests/guests/, and those in Python and JavaScript if possible
	scripts/build-guests
	-scripts/build-foreign-guests

hello:
	scripts/build-guests hello

install: ## Install the wasmcluster command
	$(CARGO) install --path host --locked

dist: ## Build what a release consists of, into target/dist: tarball, Debian package, debug information, checksums
	scripts/release

fmt: ## Format the code
	$(CARGO) fmt --all
	rustfmt --edition 2024 templates/*/src/*.rs

clean: ## Remove everything that was built
	$(CARGO) clean
