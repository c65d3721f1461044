#!/bin/sh
# From a fresh clone to a command inside a guest, then to ten clones of it, and how long each step took. The second time
# finds everything made.
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

# The machines of this demonstration, by their label, so that nobody else's are touched.
machines() {
	"$hv" list -o name -l made-by=demo
}

# shellcheck disable=SC2046 # one word for each name
clean_up() {
	[ -z "$(machines)" ] || "$hv" delete --force $(machines)
	[ -n "$had_daemon" ] || "$hv" daemon stop
}

# shellcheck disable=SC2016 # the shells of the guests expand them
manage() {
	"$hv" spawn demo --vcpus 2 --ram 256M --label made-by=demo
	"$hv" exec demo --wait 60 -- sh -c 'echo "$(hostname) says hello"; echo shared >/tmp/note'
	"$hv" snapshot demo --name clean-state
	begun=$(now_ms)
	"$hv" clone demo --count 10 >/dev/null
	echo "ten clones, each with its own name, clock and entropy: $(($(now_ms) - begun)) ms"
	"$hv" exec demo-10 -- sh -c 'echo "$(hostname) has the note too: $(cat /tmp/note)"; echo mine >/tmp/note'
	"$hv" exec demo -- sh -c 'echo "$(hostname) has kept its own: $(cat /tmp/note)"'
	"$hv" list -l made-by=demo
}

step "tools and packages" scripts/setup.sh build
step "the program (cargo build --release)" cargo build --release --quiet -p queztl-hv
step "a guest kernel (queztl-hv kernel build)" "$hv" kernel build
step "boot, run a command inside, power off (queztl-hv run)" boot
had_daemon=""
"$hv" daemon status >/dev/null 2>&1 && had_daemon=yes
trap clean_up EXIT
step "spawn, exec, snapshot, ten clones (the daemon starts by itself)" manage
step "delete them" clean_up
trap - EXIT

printf '\nWhat each step took:\n%s\n' "$times"
echo "Your turn: $hv spawn alpine-dev --vcpus 2 --ram 2GB && $hv console alpine-dev"
