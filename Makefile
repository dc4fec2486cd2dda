# What people and machines run. `make` alone says what there is.

GO       ?= go
FUZZTIME ?= 10s
# The linters and the test runner, pinned in a module of their own.
TOOL     := $(GO) tool -modfile=$(CURDIR)/tools/go.mod
# A line for each package as go test prints it, and the counts at the end. The end-to-end tests are one package, of which each test is a line.
TEST     := $(TOOL) gotestsum --format standard-quiet --
EACHTEST := $(TOOL) gotestsum --format testname --
TIMED    := $(CURDIR)/scripts/timed

.PHONY: help build deb image test unit whole debs e2e nix roots check lint linters race ci fuzz soak record bench

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build ./firn, static
	CGO_ENABLED=0 $(GO) build -trimpath -o firn ./cmd/firn

# Where packages appear.
DIST     ?= $(CURDIR)/dist

# What packages are made for, by Go's names.
ARCH     ?= amd64,arm64

deb: ## Make Debian packages in dist/; ARCH=amd64 for one architecture
	cd packaging && $(GO) run . -dist $(abspath $(DIST)) -arch $(ARCH) deb

image: ## Make the image for containers in dist/
	cd packaging && $(GO) run . -dist $(abspath $(DIST)) image

# The packages whose tests take longest, which begin first: so that at the end no core waits for one of them.
SLOW     := ./cmd/firn ./internal/depot ./internal/zstdcache ./internal/decompress ./nix/nar

unit: ## Run the tests that need Go and nothing else: no root, no other programs
	@$(TIMED) "tests that need Go only" $(TEST) -timeout=10m $(SLOW) ./...

test: nix ## Run every test, against real Nix (installs what is missing: see make nix)
	@echo "make test runs the tests of all packages and the end-to-end tests: in all some 12 minutes on two cores, and a few more the first time,"
	@echo "which makes small Debian systems in ~/.cache/firn-e2e. They are kept; FIRN_E2E_CACHE names another directory."
	@$(MAKE) --no-print-directory -k -j2 whole e2e

# Tests that run other programs, or need root, are behind a build tag.
TAGGED   := -tags=programs -timeout=30m -parallel=4

# The tests of all packages, those of `unit` and those behind the tag.
whole:
	@$(TIMED) "tests of all packages" $(TEST) $(TAGGED) $(SLOW) ./...
	@$(MAKE) --no-print-directory debs

debs:
	@cd packaging && $(TIMED) "tests of the packages for Debian and containers" $(TEST) $(TAGGED) ./...
	@cd bench && $(TIMED) "tests of the benchmark" $(TEST) ./...

# The Debian systems whose Nix the end-to-end tests run, and the one that they boot; made once, then kept, all at once: they mostly wait for the network.
# One that cannot be had is left to the tests to report.
roots:
	@for suite in bullseye trixie sid; do e2e/nixroot $$suite >/dev/null & done; e2e/bootroot bookworm >/dev/null & wait

e2e: roots
	@cd e2e && $(TIMED) "end-to-end tests" $(EACHTEST) -timeout=20m -parallel=4 .

nix: ## Install the programs that the tests run (Debian and Ubuntu, as root; elsewhere it says which)
	@scripts/bring nix-store=nix-bin debootstrap=debootstrap nginx=nginx-light caddy=caddy curl=curl ssh=openssh-client \
		bsdcat=libarchive-tools brotli=brotli bzip2=bzip2 lz4=lz4 lzip=lzip xz=xz-utils zstd=zstd python3=python3 systemd-analyze=systemd logrotate=logrotate \
		dpkg-deb=dpkg lintian=lintian umoci=umoci podman=podman ip=iproute2 chromium=chromium

check: lint race ## Run the checks: formatting, vet, staticcheck, vulnerabilities, races

# The import rules are a test, internal/testing/archtest, which `race` runs with the others.
lint:
	@$(TIMED) "formatting, vet, staticcheck, vulnerabilities" $(MAKE) --no-print-directory linters

linters:
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags=programs ./...
	GOOS=darwin CGO_ENABLED=0 $(GO) vet ./...
	cd e2e && $(GO) vet ./...
	cd packaging && $(GO) vet -tags=programs ./...
	cd bench && $(GO) vet ./...
	$(TOOL) staticcheck -tags=programs ./...
	cd e2e && $(TOOL) staticcheck ./...
	cd packaging && $(TOOL) staticcheck -tags=programs ./...
	cd bench && $(TOOL) staticcheck ./...
	@scripts/vulns

# SQLite is compiled from C and has memory of its own, about which the race detector knows nothing: to watch it there finds nothing.
UNWATCHED := $(foreach package,modernc.org/sqlite/lib modernc.org/libc modernc.org/memory,-gcflags=$(package)=-race=false)

# What the race detector would see nothing in is run beside it: packages that do nothing at once, and files with the build tag !race.
# `lint` has done what go test would vet.
race: nix
	@$(TIMED) "tests under the race detector" $(TEST) -vet=off -race $(UNWATCHED) $(TAGGED) $(SLOW) $$(scripts/packages concurrent)
	@$(TIMED) "tests of packages that do nothing at once" $(TEST) -vet=off $(TAGGED) $$(scripts/packages serial)
	@$(TIMED) "tests that the race detector leaves out" $(TEST) -vet=off $(TAGGED) $$(scripts/unseen)

# Each test is run once, and what waits beside what computes.
ci: nix ## Run what a change must pass: make test and make check, each test once
	@closing=$$(mktemp); FIRN_CLOSING=$$closing $(MAKE) --no-print-directory -k -j3 lint e2e race debs; status=$$?; \
		echo; cat "$$closing"; rm -f "$$closing"; exit $$status

fuzz: ## Run every fuzz target in turn, FUZZTIME each (10s)
	@scripts/fuzz $(FUZZTIME)

# How often a process is killed in each test that does so.
KILLS    ?= 60

soak: nix ## Run what takes minutes: crowds of 15,000 connections, and KILLS rounds of kill -9 in each test (60)
	FIRN_SOAK=1 $(TEST) -tags=programs -timeout=10m -count=1 -run '^TestCrowds$$' ./cmd/firn
	FIRN_KILL_ROUNDS=$(KILLS) $(TEST) -timeout=60m -count=1 -run '^TestKilled$$' ./internal/depot
	cd e2e && FIRN_KILL_ROUNDS=$(KILLS) $(TEST) -timeout=60m -count=1 -run '^TestKilledWhilePushing$$' .

record: nix roots ## Record again what each Nix says over SSH, for internal/session to replay
	cd e2e && $(GO) test -run '^TestConversations$$' -count=1 . -record

bench: nix ## Measure firn against nginx and the least; BENCHFLAGS="--quick" for a short run
	@scripts/bring sshd=openssh-server
	cd bench && $(GO) run . $(BENCHFLAGS)
