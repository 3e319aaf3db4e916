# `make help` lists the targets. Everything that is built or downloaded goes to
# the user's cache folder, or to build/ and .wisp/, which git ignores.

GO ?= go
PLATFORM := build/platform

# Of these packages, the tests need a whole platform: they run after the others,
# one package at a time, and share one.
E2E := ./test/platform ./test/e2e/...

# This needs network namespaces as well, which not every user may make.
CONFORMANCE := ./test/conformance ./test/conformance/images

# And this takes root.
IMAGE := ./test/image

# Tools, pinned. They are built from source by `go run`.
GOFUMPT       := mvdan.cc/gofumpt@v0.9.1
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.5.0

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What needs no race detector is built without cgo, all of it, so that the
# compiled packages are shared: on an empty cache that saves minutes.
.PHONY: build
build: ## Build wisp into build/
	CGO_ENABLED=0 $(GO) build -buildvcs=false -o build/wisp ./cmd/wisp

.PHONY: $(PLATFORM)
$(PLATFORM):
	@test -e $@ || echo 'build $@: minutes, on an empty cache'
	@CGO_ENABLED=0 $(GO) build -buildvcs=false -o $@ ./test/platform/cmd/platform

.PHONY: tools
tools: $(PLATFORM) ## Build or install what the platform and the tests run: Kubernetes, Knative, Envoy, a C compiler
	@$(PLATFORM) build

.PHONY: samples
samples: build/sort.wasm build/hello.wasm build/greet.wasm build/notes.wasm build/words.wasm build/jq.wasm ## Compile the samples into build/

# Each compiler knows by itself whether anything has changed.
.PHONY: build/sort.wasm build/hello.wasm build/greet.wasm build/notes.wasm build/words.wasm build/jq.wasm

build/sort.wasm build/hello.wasm: build/%.wasm: $(PLATFORM)
	@module=$$($(PLATFORM) guest samples/$*/$*.c) && cp "$$module" $@

WASI := CGO_ENABLED=0 GOOS=wasip1 GOARCH=wasm $(GO) build -buildvcs=false -trimpath -ldflags='-s -w'

build/greet.wasm:
	$(WASI) -o $@ ./samples/greet

build/notes.wasm: build
	build/wisp build -buildvcs=false -trimpath -ldflags='-s -w' -o $@ ./samples/notes

# WASI has another name in a rustc before 1.78, such as Debian 12's.
RUST_WASI = $(firstword $(foreach target,wasm32-wasip1 wasm32-wasi,$(shell \
	test -d "$$(rustc --print target-libdir --target $(target) 2>/dev/null)" && echo $(target))))

build/words.wasm:
	@mkdir -p $(@D)
	@if [ -n "$(RUST_WASI)" ]; then \
		echo "rustc samples/words/words.rs"; rustc --edition 2021 --target $(RUST_WASI) -O -C strip=symbols -o $@ samples/words/words.rs; \
	else echo "samples/words is not built: it takes rustc with the target wasm32-wasip1"; rm -f $@; fi

build/jq.wasm:
	cd samples/jq && GOWORK=off $(WASI) -o ../../$@ github.com/itchyny/gojq/cmd/gojq

.PHONY: workloads
workloads: $(PLATFORM)
	@module=$$($(PLATFORM) guest test/guests/workloads/workloads.c) && cp "$$module" build/workloads.wasm

.PHONY: up
up: build/sort.wasm ## Start Kubernetes, Knative, Envoy and Wisp here, and call a function (UP='--port gateway=8090')
	@$(PLATFORM) up $(UP)
	@$(PLATFORM) demo build/sort.wasm

.PHONY: down
down: $(PLATFORM) ## Stop what `make up` has started (WIPE=1 removes its state too)
	@$(PLATFORM) down $(if $(WIPE),--wipe)

.PHONY: status
status: $(PLATFORM) ## Show each component: pid, address, uptime, log
	@$(PLATFORM) status

.PHONY: logs
logs: $(PLATFORM) ## Follow the log of a component (C=wisp-node)
	@$(PLATFORM) logs --follow $(or $(C),$(error name a component: make logs C=wisp-node))

.PHONY: test
test: vet unit e2e ## Run every test: unit tests, then those on a real platform

.PHONY: vet
vet:
	CGO_ENABLED=0 $(GO) vet ./...

.PHONY: unit
unit: tools ## Run the unit tests, with the race detector
	$(GO) test -race $$($(GO) list ./... | grep -v -x -f <($(GO) list $(E2E) $(CONFORMANCE) $(IMAGE)))

# All of them together have to need each permission in the chart: build/permissions.txt
# says what for.
.PHONY: e2e
e2e: $(PLATFORM) ## Run the tests that need a platform, on one of their own
	$(PLATFORM) run --race --permissions build/permissions.txt -- $(GO) test -race -count=1 -p 1 -timeout 45m $(E2E)

# Not part of `make test`: it takes root, or a kernel that gives users namespaces.
.PHONY: conformance
conformance: ## Run Knative's conformance suites, in network namespaces (as root, or where users may make them)
	CGO_ENABLED=0 $(GO) test -v -count=1 -timeout 30m $(CONFORMANCE)

.PHONY: image
image: ## Build the image by the Dockerfile and try it (as root; takes buildah)
	CGO_ENABLED=0 $(GO) test -v -count=1 -timeout 20m $(IMAGE)

.PHONY: bench
bench: tools build/sort.wasm build/hello.wasm workloads ## Run the benchmarks: those of packages, then pods, then cold against warm through Envoy
	WISP_SORT_WASM=$(CURDIR)/build/sort.wasm WISP_HELLO_WASM=$(CURDIR)/build/hello.wasm WISP_WORKLOADS_WASM=$(CURDIR)/build/workloads.wasm $(GO) test -run '^$$' -bench . -benchmem $$($(GO) list ./... | grep -v -x -f <($(GO) list $(E2E) $(CONFORMANCE) $(IMAGE)))
	$(MAKE) bench-pods
	$(MAKE) bench-scaling

.PHONY: bench-pods
bench-pods: $(PLATFORM) ## Measure how long 1, 100 and 1,000 pods take to run and to go, beside a node that runs nothing
	$(PLATFORM) run -- $(GO) test -run '^$$' -bench Pods -benchtime 3x -timeout 30m ./test/e2e

# How often functions go to zero and back, and how many idle services there are.
CYCLES ?= 200
SERVICES ?= 1000

.PHONY: bench-scaling
bench-scaling: $(PLATFORM) ## Measure scaling from zero, bursts, load, and many idle services (CYCLES=200 SERVICES=1000)
	$(PLATFORM) run -- $(GO) test -run '^$$' -bench ColdAgainstWarm -benchtime $(CYCLES)x -timeout 3h ./test/e2e
	$(PLATFORM) run -- $(GO) test -run '^$$' -bench ColdBurst -benchtime 5x -timeout 10m ./test/e2e
	$(GO) test -run '^$$' -bench StepLoad -benchtime 1x -timeout 10m ./test/e2e
	WISP_BENCH_SERVICES=$(SERVICES) $(GO) test -run '^$$' -bench ManyServices -benchtime 100x -timeout 2h ./test/e2e
	@cat build/bench/cold.txt build/bench/services.txt

.PHONY: golden
golden: ## Rewrite the golden files of tests
	$(GO) test ./xds/translate ./test/chart -update

.PHONY: check
check: ## Format, tidy, vet and lint; fails if that changes anything or finds something
	$(GO) run $(GOFUMPT) -w .
	$(GO) mod tidy
	CGO_ENABLED=0 $(GO) vet ./...
	$(GO) run $(GOLANGCI_LINT) run
	@git diff --exit-code && test -z "$$(git status --porcelain)" || { git status --short; echo 'check: the tree is not clean'; exit 1; }

.PHONY: clean
clean: ## Remove what was built here; the platform's state stays (see down)
	rm -rf build

# <(…) is bash's.
SHELL := /bin/bash
