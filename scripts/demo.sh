#!/bin/sh
# From a fresh clone to a command inside a guest, and how long each step took. The second time finds everything made.
set -eu
cd "$(dirname "$0")/.."

now_ms() {
	echo $(($(date +%s%N) / 1000000))
}

# step TEXT COMMAND...: runs the command and remembers how long it took.
times=""
step() {
	text=$1
	shift
	echo "==> $text" >&2
	start=$(now_ms)
	"$@" || {
		status=$?
		echo "demo: this step failed ($text, exit status $status); its reason is above" >&2
		exit 1
	}
	took=$(($(now_ms) - start))
	times="$times$(printf '%6d.%03d s  %s' $((took / 1000)) $((took % 1000)) "$text")
"
}

hv=${CARGO_TARGET_DIR:-target}/release/queztl-hv

# shellcheck disable=SC2016 # the guest's shell expands it
inside='echo Hello from $(uname -sr) on $(nproc) processors, up $(cut -d\  -f1 /proc/uptime) s'

boot() {
	"$hv" run --boot-timer --vcpus 2 --ram 256M --timeout 120 --append "queztl.run=\"$inside\"" </dev/null
}

step "tools and packages" scripts/setup.sh build
step "the program (cargo build --release)" cargo build --release --quiet -p queztl-hv
step "a guest kernel (queztl-hv kernel build)" "$hv" kernel build
step "boot, run a command inside, power off (queztl-hv run)" boot

printf '\nWhat each step took:\n%s\n' "$times"
echo "Your turn: $hv run"
