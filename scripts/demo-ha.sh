#!/bin/sh
# A host dies, and its machine goes on at another one. Three daemons in network namespaces of this host are made a cluster that
# agrees by etcd; a guest counts the lines it gets over one TCP connection, and a client outside checks each count. Needs root,
# ip and nsenter; without etcd (Debian's etcd-server), a directory of this host takes its place.
set -eu
cd "$(dirname "$0")/.."

hv=$PWD/${CARGO_TARGET_DIR:-target}/release/queztl-hv
[ ! -x "${QUEZTL_HV:-}" ] || hv=$QUEZTL_HV
[ "$(id -u)" = 0 ] || {
	echo "demo-ha: network namespaces need root: run it as root" >&2
	exit 2
}
if [ ! -x "$hv" ]; then
	cargo build --release -p queztl-hv
fi

guest=10.77.0.2
outside=10.77.0.1
hosts="one two three"
place=$(mktemp -d /tmp/qha.XXXXXX)
kernels=${QUEZTL_HOME:-/var/lib/queztl}/kernels
name=$(basename "$place")
daemons=""
# Hosts whose daemon runs: a command at another one would start it again.
alive=""

say() {
	echo "==> $*" >&2
}

# on HOST COMMAND...: in the host's network, with its daemon.
on() {
	host=$1
	shift
	QUEZTL_HOME=$place/$host nsenter --net="/run/netns/$name-$host" "$@"
}

clean_up() {
	status=$?
	trap - EXIT INT TERM
	[ -z "${client:-}" ] || kill "$client" 2>/dev/null || true
	[ -z "${etcd:-}" ] || kill "$etcd" 2>/dev/null || true
	for host in $alive; do
		on "$host" timeout 20 "$hv" delete --force counter >/dev/null 2>&1 || true
	done
	# shellcheck disable=SC2086 # one word for each process
	[ -z "$daemons" ] || kill $daemons 2>/dev/null || true
	sleep 1
	for net in $hosts switch; do
		ip netns del "$name-$net" 2>/dev/null || true
	done
	rm -rf "$place"
	exit "$status"
}
trap clean_up EXIT INT TERM

add_network() {
	ip netns add "$name-switch"
	ip -n "$name-switch" link add br0 type bridge
	ip -n "$name-switch" addr add "$outside/24" dev br0
	ip -n "$name-switch" link set lo up
	ip -n "$name-switch" link set br0 up
	number=10
	for host in $hosts; do
		number=$((number + 1))
		eval "address_$host=10.77.0.$number"
		ip netns add "$name-$host"
		ip -n "$name-switch" link add "to-$host" type veth peer name up0 netns "$name-$host"
		ip -n "$name-switch" link set "to-$host" master br0 up
		ip -n "$name-$host" link add br0 type bridge
		ip -n "$name-$host" tuntap add dev qtap0 mode tap vnet_hdr
		for port in br0 lo qtap0 up0; do
			ip -n "$name-$host" link set "$port" up
		done
		ip -n "$name-$host" addr add "10.77.0.$number/24" dev br0
		ip -n "$name-$host" link set qtap0 master br0
		ip -n "$name-$host" link set up0 master br0
	done
}

start_daemon() {
	mkdir -p "$place/$1"
	ln -s "$kernels" "$place/$1/kernels"
	QUEZTL_HOME=$place/$1 nsenter --net="/run/netns/$name-$1" "$hv" daemon >"$place/$1.log" 2>&1 &
	daemons="$daemons $!"
	eval "daemon_$1=$!"
	alive="$alive $1"
	while [ ! -S "$place/$1/daemon.sock" ]; do sleep 0.1; done
}

# start_etcd: in the switch's namespace, so that it outlives the hosts.
start_etcd() {
	nsenter --net="/run/netns/$name-switch" etcd --data-dir "$place/etcd" \
		--listen-client-urls "http://$outside:2379" --advertise-client-urls "http://$outside:2379" \
		--listen-peer-urls "http://$outside:2380" --initial-advertise-peer-urls "http://$outside:2380" \
		--initial-cluster "default=http://$outside:2380" >"$place/etcd.log" 2>&1 &
	etcd=$!
	tries=0
	until nsenter --net="/run/netns/$name-switch" busybox wget -q -O /dev/null "http://$outside:2379/version" 2>/dev/null; do
		tries=$((tries + 1))
		[ "$tries" -lt 300 ] || {
			echo "demo-ha: etcd does not start: $(tail -n 1 "$place/etcd.log")" >&2
			exit 1
		}
		sleep 0.1
	done
}

# make_cluster: host one is the founder, the others join with a token each.
make_cluster() {
	# shellcheck disable=SC2154 # set by add_network, and below
	on one "$hv" node init --name one --listen "$address_one:7444" "$@"
	for host in two three; do
		eval "listen=\$address_$host:7444"
		# shellcheck disable=SC2154 # by eval
		on one "$hv" node token | on "$host" "$hv" node join - --name "$host" --listen "$listen"
	done
	until [ "$(on one "$hv" node list | grep -c ' ready ')" = 3 ]; do sleep 0.1; done
	on one "$hv" node list
}

last() {
	tail -n 1 "$place/counts"
}

say "three hosts and a switch, in network namespaces"
add_network
for host in $hosts; do start_daemon "$host"; done

if command -v etcd >/dev/null; then
	say "a cluster of them, which agrees by etcd"
	start_etcd
	make_cluster --coordinator "etcd://$outside:2379"
	register=""
else
	say "a cluster of them; there is no etcd here (apt-get install etcd-server), so that a directory of this host is the register"
	make_cluster
	register="--register file:$place/register"
fi

say "a guest at host one that counts what it hears"
on one "$hv" spawn counter --ram 128M --accel soft --net tap=qtap0 --append queztl.net=off
# shellcheck disable=SC2016 # the guest's shell expands it
on one "$hv" exec counter --wait 60 -- sh -c "ip link set lo up; ip addr add $guest/24 dev eth0; ip link set eth0 up
printf '#!/bin/sh\nn=0\nwhile read -r x; do n=\$((n+1)); echo \$n; done\n' >/tmp/count; chmod +x /tmp/count
nc -ll -p 7 -e /tmp/count </dev/null >/dev/null 2>&1 &
until nc 127.0.0.1 7 </dev/null 2>/dev/null; do sleep 0.1; done"

say "a client that asks it ten times a second, on one connection"
while sleep 0.1; do echo count; done | nsenter --net="/run/netns/$name-switch" busybox nc "$guest" 7 >"$place/counts" &
client=$!
sleep 2
[ -n "$(last)" ] || {
	echo "demo-ha: the guest does not answer" >&2
	exit 1
}

say "two other hosts keep copies, one of which must have what the guest says before it is let out"
# shellcheck disable=SC2086 # an option and its value, or nothing
on one "$hv" protect counter --backups 2 --acks 1 $register
sleep 2
echo "counted so far: $(last)"

say "host one dies: kill -9 of its daemon and of all its machines"
machine=$(on one "$hv" info counter -o json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -n 1)
# shellcheck disable=SC2154 # set by start_daemon
kill -9 "$daemon_one" "$machine"
alive="two three"
before=$(last)
killed=$(($(date +%s%N) / 1000000))
while [ "$(last)" = "$before" ]; do
	[ $(($(date +%s%N) / 1000000 - killed)) -lt 60000 ] || {
		echo "demo-ha: nobody answers after a minute" >&2
		exit 1
	}
	sleep 0.01
done
echo "the next answer came $(($(date +%s%N) / 1000000 - killed)) ms later: $(last) follows $before"

sleep 2
for host in two three; do
	[ "$(on "$host" "$hv" info counter -o json | sed -n 's/^  "state": *"\([a-z]*\)".*/\1/p')" = running ] || continue
	say "the machine is at host $host"
	on "$host" "$hv" list
	on "$host" "$hv" node list
done
awk '$1 != NR { print "count " NR " is missing: " $1; exit 1 }' "$place/counts"
echo "all $(last) counts came, each once, on one connection"
