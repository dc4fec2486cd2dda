# What people and machines run. `make` alone says what there is.

GO       ?= go
FUZZTIME ?= 10s
# The linters and the test runner, pinned in a module of their own.
TOOL     := $(GO) tool -modfile=$(CURDIR)/tools/go.mod
# Test lines as go test prints them, and the counts at the end.
TEST     := $(TOOL) gotestsum --format standard-quiet --

.PHONY: help build deb image test unit e2e nix roots check lint vulns race ci fuzz record bench

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build ./firn, static
	CGO_ENABLED=0 $(GO) build -trimpath -o firn ./cmd/firn

# Where packages appear.
DIST     ?= $(CURDIR)/dist

deb: ## Make Debian packages in dist/
	cd packaging && $(GO) run . -dist $(abspath $(DIST)) deb

image: ## Make the image for containers in dist/
	cd packaging && $(GO) run . -dist $(abspath $(DIST)) image

test: nix ## Run every test, against real Nix (installed where it is missing)
	@$(MAKE) --no-print-directory -j2 --output-sync=target unit roots
	@$(MAKE) --no-print-directory e2e

# The packages whose tests take longest, which begin first: so that at the end no core waits for one of them.
SLOW     := ./cmd/firn ./internal/depot ./internal/zstdcache ./bench ./internal/codec ./nix/nar

unit:
	$(TEST) -timeout=10m $(SLOW) ./...
	cd packaging && $(TEST) ./...

# The Debian systems whose Nix the end-to-end tests run; made once, then kept.
# One that cannot be had is left to the tests to report.
roots:
	@for suite in bullseye trixie sid; do e2e/nixroot $$suite >/dev/null || true; done

e2e:
	cd e2e && $(TEST) -timeout=20m -parallel=4 .

nix:
	@scripts/bring nix-store=nix-bin debootstrap=debootstrap nginx=nginx-light caddy=caddy curl=curl ssh=openssh-client \
		bsdcat=libarchive-tools brotli=brotli bzip2=bzip2 lz4=lz4 lzip=lzip xz=xz-utils zstd=zstd python3=python3 sqlite3=sqlite3 rsync=rsync systemd-analyze=systemd logrotate=logrotate \
		dpkg-deb=dpkg lintian=lintian umoci=umoci podman=podman ip=iproute2 chromium=chromium

check: lint race ## Run the checks: formatting, vet, staticcheck, vulnerabilities, races

# The import rules are a test, internal/archtest, which `race` runs with the others.
lint:
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...
	cd e2e && $(GO) vet ./...
	cd packaging && $(GO) vet ./...
	$(TOOL) staticcheck ./...
	cd e2e && $(TOOL) staticcheck ./...
	cd packaging && $(TOOL) staticcheck ./...
	@scripts/vulns

# SQLite is compiled from C and has memory of its own, about which the race detector knows nothing: to watch it there finds nothing.
UNWATCHED := $(foreach package,modernc.org/sqlite/lib modernc.org/libc modernc.org/memory,-gcflags=$(package)=-race=false)

race: nix
	$(TEST) -race $(UNWATCHED) -timeout=15m $(SLOW) ./...

ci: test check ## Run what a change must pass

fuzz: ## Run every fuzz target in turn, FUZZTIME each (10s)
	@scripts/fuzz $(FUZZTIME)

record: nix roots ## Record anew what each Nix says over SSH, for internal/session to replay
	cd e2e && $(GO) test -run '^TestConversations$$' -count=1 . -record

bench: nix ## Measure against nginx with the same store; BENCHFLAGS="--quick" for a short run
	$(GO) run ./bench $(BENCHFLAGS)
