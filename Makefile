# Everything that a person does with this repository. `make` alone explains.
.POSIX:
.PHONY: help demo demo-ha build dashboard browse test lint bench fuzz guest debian-image clean

help:
	@echo "make demo          build all, boot a guest, run a command inside, clone it ten times; says how long each step took"
	@echo "make demo-ha       a host dies and its machine goes on at another one (root, ip, nsenter)"
	@echo "make build         the program: target/release/queztl-hv"
	@echo "make dashboard     the page that the daemon serves; part of build where there is npm"
	@echo "make guest         the minimal guest kernel and the small root file system"
	@echo "make debian-image  a disk with Debian, its kernel and RAM disk (root, some minutes)"
	@echo "make browse        the dashboard in a browser, with real machines"
	@echo "make test          everything that must pass"
	@echo "make fuzz          every fuzz target for SECONDS=60 each (nightly compiler)"
	@echo "make lint          format, lints, licences"
	@echo "make bench         Queztl beside its peers"
	@echo "make clean         removes what was built here, but not the kernels and images of QUEZTL_HOME"

demo:
	@scripts/demo.sh

demo-ha:
	@scripts/demo-ha.sh

build: dashboard
	@scripts/setup.sh build
	cargo build --release -p queztl-hv

dashboard:
	@scripts/dashboard.sh build

browse: build
	@scripts/dashboard.sh browse

guest: build
	target/release/queztl-hv kernel build --profile minimal

debian-image:
	@scripts/setup.sh build
	cargo run --release --quiet -p queztl-guest-image --example make -- debian

test:
	@scripts/test.sh

fuzz:
	@scripts/fuzz.sh $(SECONDS)

lint:
	@scripts/lint.sh

bench:
	@scripts/setup.sh bench
	cargo build --release -p queztl-hv -p queztl-bench
	target/release/queztl-bench start
	target/release/queztl-bench overhead
	if [ -e /dev/kvm ]; then target/release/queztl-bench ring3; else echo "ring3: skipped: no /dev/kvm"; fi
	target/release/queztl-bench block
	target/release/queztl-bench snapshots
	target/release/queztl-bench clones
	target/release/queztl-bench protection
	target/release/queztl-bench migration
	target/release/queztl-bench qhp
	target/release/queztl-bench api
	target/release/queztl-bench cpu

clean:
	cargo clean
