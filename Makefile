# `make` lists the targets. Every one needs Go and nothing else; what a target
# wants beside it is installed, downloaded or left out with a line that says so.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# The race detector needs a C compiler; `make setup` says so if there is none.
race = $$([ "$$(go env CGO_ENABLED)" = 1 ] && command -v "$$(go env CC)" >/dev/null && echo -race || true)
FUZZTIME ?= 30s
VERSIONS ?= 14 15 16 17 18
BENCHFLAGS ?=
IQFLAGS ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## throwaway Postgres and Redis, a shop under load, and the stale-set race refused
	@go run ./cmd/lethe demo

.PHONY: shop
shop: ## the example service: two instances behind one Lethe, until Ctrl-C
	@go run ./examples/shop/try

.PHONY: build
build: ## bin/lethe, static
	CGO_ENABLED=0 go build -trimpath -o bin/lethe ./cmd/lethe

.PHONY: generate
generate: ## run go generate
	go generate ./...

.PHONY: setup
setup: ## install and download what the tests run on (Debian packages only as root)
	@go run ./internal/setup

.PHONY: test
test: setup check test-race test-versions fuzz ## everything that CI runs: setup, checks, tests, Postgres 14 to 18, fuzzing

.PHONY: check
check: ## go vet, gofmt, the modules beside this one, and golangci-lint if it is on PATH
	go vet ./...
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	@if go -C bench/client mod download 2>/dev/null; then go -C bench/client vet ./... && go -C bench/client test ./...; \
	else echo "bench/client: its modules are not to be had here: left out"; fi
	@if command -v golangci-lint >/dev/null; then golangci-lint run; \
	else echo "lint: golangci-lint is not on PATH: left out (make lint fetches it)"; fi

.PHONY: lint
lint: ## golangci-lint, fetched if it is not on PATH
	@if command -v golangci-lint >/dev/null; then golangci-lint run; \
	else go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.12.2 run; fi

.PHONY: test-race
test-race: ## all tests under the race detector, on the system's Postgres
	go test $(race) -timeout 30m ./...

# One shard for each version: the tests whose name says that the server's version
# matters. The rest would only be repeated.
.PHONY: test-versions
test-versions: ## tests named TestServer... on each embedded Postgres
	@packages=$$(grep -rl --include='*_test.go' '^func TestServer[A-Z]' . | xargs -n1 dirname | sort -u); \
	for version in $(VERSIONS); do \
		echo "go test -run '^TestServer[A-Z]' on Postgres $$version"; \
		LETHE_TEST_POSTGRES=$$version go test $(race) -timeout 20m -run '^TestServer[A-Z]' $$packages; \
	done

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (30s) each
	@go run ./internal/fuzz -time $(FUZZTIME)

.PHONY: bench-quick
bench-quick: ## the main ratios in about two minutes
	@go run ./bench -quick $(BENCHFLAGS)

.PHONY: bench
bench: ## all ratios at full size
	@go run ./bench $(BENCHFLAGS)

# A module of its own: what the client is compared with is not in Lethe's go.mod.
.PHONY: bench-client
bench-client: ## the client beside otter, go-redis, rueidis, sturdyc and gocache, in two minutes
	@go -C bench/client run . $(BENCHFLAGS)

.PHONY: iq
iq: ## the published experiment: wrong reads of plain deletes, leases and Lethe, in three minutes
	@go run ./bench/iq $(IQFLAGS)

.PHONY: bench-tags
bench-tags: ## purges of names with 1 to 1,000,000 members, in five minutes, into docs/tags.md
	@go run ./bench/tags -o docs/tags.md $(BENCHFLAGS)

.PHONY: bench-warm
bench-warm: ## a cold start of 1,000,000 entries, into docs/warm.svg
	@go run ./bench/warm -o docs/warm.svg $(BENCHFLAGS)

.PHONY: compose-check
compose-check: ## check docker-compose.yml where docker compose is there
	@if docker compose version >/dev/null 2>&1; then docker compose config --quiet && echo "docker-compose.yml is valid"; \
	else echo "compose-check: docker compose is not on this machine: left out"; fi
