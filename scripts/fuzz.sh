#!/bin/sh
# Gives every target of crates/fuzz-targets to libFuzzer, one after another, each for SECONDS (60 unless told).
#
# usage: fuzz.sh [SECONDS [TARGET...]]
#
# SANITIZER=none leaves AddressSanitizer out, which is faster. Needs a nightly compiler. What is found is in fuzz/artifacts/TARGET; inputs that reached new code stay in fuzz/corpus.
set -eu
cd "$(dirname "$0")/.."

seconds=${1:-60}
[ $# = 0 ] || shift
[ $# != 0 ] || set -- boot cpu devices disks frames handshake qcow2 qhp states

if ! cargo +nightly --version >/dev/null 2>&1; then
	echo "fuzz: fuzzing needs a nightly compiler: run 'rustup toolchain install nightly', then try again" >&2
	exit 1
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
	echo "==> installing cargo-fuzz (once)"
	cargo install --quiet --locked cargo-fuzz
fi

echo "==> seeds"
cargo run --quiet -p queztl-fuzz-targets --example seeds -- fuzz/corpus
status=0
for target in "$@"; do
	echo "==> $target for $seconds s"
	# With AddressSanitizer, for what is behind `unsafe`: rings, guest memory, system calls; code that the software CPU
	# generates is not instrumented. Memory that is kept is not looked for, since devices' threads are still ending.
	(cd fuzz && cargo +nightly fuzz run --fuzz-dir . -s "${SANITIZER:-address}" -O -a "$target" "corpus/$target" -- \
		-max_total_time="$seconds" -timeout=60 -rss_limit_mb=6000 -max_len=4096 -detect_leaks=0 \
		-print_final_stats=1) || status=1
done
exit $status
