#!/bin/bash
# trial.sh: in a system with systemd and control groups of version 2, runs the daemon as a service and guests of this guest.
# One line `check NAME ok` or `check NAME failed` each, with what was said after a failure, and `time NAME SECONDS`.
groups=/sys/fs/cgroup/queztl
log=/tmp/trial.log

check() {
	local name=$1
	shift
	if timeout 300 "$@" >$log 2>&1; then
		echo "check $name ok"
	else
		echo "check $name failed"
		head -n 20 $log
	fi
}
shell() { check "$1" bash -o pipefail -c "$2"; }
is_running() { test "$(queztl-hv list -o name | sort | tr '\n' ' ')" = "$1 "; }
export -f is_running

systemctl daemon-reload
check socket systemctl enable --now queztl.socket
shell daemon-is-not-needed-yet '! systemctl is-active queztl.service'
check first-command queztl-hv list
check daemon-was-started systemctl is-active queztl.service

check spawn queztl-hv spawn one --ram 128M
# A guest of a guest takes its time to boot.
shell exec 'for i in $(seq 7); do queztl-hv exec one -- true && exit; done; exit 1'
shell own-group "test -n \"\$(cat $groups/*/cgroup.procs)\""
# The daemon, and the process that machines begin as.
shell no-machine-is-in-the-group-of-the-service '! ps -o args= $(cat /sys/fs/cgroup/system.slice/queztl.service/cgroup.procs) | grep "vmm /"'
check quota queztl-hv limits one --cpu-quota 30 --cpu-weight 50
shell quota-is-in-force "grep -x '30000 100000' $groups/*/cpu.max && grep -x 50 $groups/*/cpu.weight"
check busy queztl-hv exec one -- sh -c 'i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done'
shell throttled "grep -v 'nr_throttled 0' $groups/*/cpu.stat | grep nr_throttled"
check no-quota queztl-hv limits one --cpu-quota none
shell no-quota-is-in-force "grep -x 'max 100000' $groups/*/cpu.max"

check clone queztl-hv clone one --count 2
shell clones-answer 'queztl-hv exec one-1 -- hostname | grep -x one-1 && queztl-hv exec one-2 -- hostname | grep -x one-2'
check restart systemctl restart queztl.service
shell machines-outlive-a-restart 'is_running "one one-1 one-2" && queztl-hv exec one-1 -- true'
check kill systemctl kill -s KILL --kill-who=main queztl.service
shell daemon-comes-back 'for i in $(seq 50); do systemctl is-active queztl.service && exit; sleep 0.2; done; exit 1'
shell machines-outlive-its-death 'is_running "one one-1 one-2" && queztl-hv exec one-2 -- true'
check stop-of-the-service systemctl stop queztl.service queztl.socket
shell machines-go-on 'test $(pgrep -c -f "^/usr/local/bin/queztl-hv vmm") = 3'
check socket-again systemctl start queztl.socket

check snapshot queztl-hv snapshot one --name kept
check stop queztl-hv stop one
check restore queztl-hv restore one kept
check restored-answers queztl-hv exec one -- true
shell delete 'for name in one one-1 one-2; do queztl-hv delete $name --force || exit; done'
shell nothing-is-left "! ls -d $groups/*/ && ! pgrep -f '^/usr/local/bin/queztl-hv vmm /'"

queztl-hv run --accel soft --boot-timer --append 'quiet queztl.run=true' </dev/null >$log 2>&1
sed -n 's/.*first user process runs after \([0-9.]*\) ms.*/time guest-of-a-guest-boots \1/p' $log
