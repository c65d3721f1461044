#!/bin/bash
# Throws generated requests (Schemathesis) at a real daemon with a home of its own, for SECONDS (120 unless told): no answer
# may be a fault of the daemon, and each must be as docs/openapi.json says.
#
# usage: api-fuzz.sh [SECONDS]
#
# No machine is started, and no file of the host is read or written but those of the daemon's home. What was found is told
# at the end; the exit status is not 0 then. QUEZTL_HV names another program than the one built here.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-120}
case $seconds in
*[!0-9]* | "") echo "api-fuzz: $seconds is no number of seconds" >&2 && exit 2 ;;
esac
hv=${QUEZTL_HV:-${CARGO_TARGET_DIR:-target}/debug/queztl-hv}
if [ -z "${QUEZTL_HV:-}" ]; then
	cargo build --quiet -p queztl-hv
fi
tools=${CARGO_TARGET_DIR:-target}/tools/schemathesis
if [ ! -x "$tools/bin/schemathesis" ]; then
	echo "==> installing schemathesis into $tools (once)"
	python3 -m venv "$tools"
	"$tools/bin/pip" install --quiet 'schemathesis>=4.32,<5'
fi

home=$(mktemp -d)
export QUEZTL_HOME=$home
daemon=
# shellcheck disable=SC2317 # the trap calls it
finish() {
	if [ -n "$daemon" ] && kill "$daemon" 2>/dev/null; then
		wait "$daemon" || true
	fi
	rm -rf "$home"
}
trap finish EXIT

# Port 0 would not tell which; this one is asked for until it is free.
port=
for _ in 1 2 3 4 5; do
	port=$((20000 + RANDOM % 20000))
	"$hv" daemon --listen "127.0.0.1:$port" 2>"$home/daemon.err" &
	daemon=$!
	for _ in $(seq 100); do
		if [ -S "$home/daemon.sock" ] || ! kill -0 "$daemon" 2>/dev/null; then break; fi
		sleep 0.1
	done
	kill -0 "$daemon" 2>/dev/null && break
	daemon=
done
if [ -z "$daemon" ]; then
	echo "api-fuzz: the daemon does not start: $(tail -n 1 "$home/daemon.err")" >&2
	exit 1
fi
token=$("$hv" token create fuzz --scope admin -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["secret"])')

# Something of each kind to ask for. Nothing generated would guess their names, so the paths of the description get them.
ask() {
	curl --fail --silent --show-error --unix-socket "$home/daemon.sock" -H 'content-type: application/json' \
		"http://localhost/v1/$1" -d "$2" >/dev/null
}
ask vms '{"name": "web", "spec": {"ram_bytes": 67108864}}'
ask images '{"name": "base", "format": "qcow2", "size_bytes": 16777216}'
python3 - "$home/openapi.json" <<'PYTHON'
import json, sys

names = {"vm": ["web", "none"], "image": ["base", "none"], "token": ["none"]}
document = json.load(open("docs/openapi.json"))
for item in document["paths"].values():
    for operation in item.values():
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path" and parameter["name"] in names:
                parameter["schema"] = {"type": "string", "enum": names[parameter["name"]]}
# A start would boot the guest kernel, or build it first.
document["components"]["schemas"]["CreateVm"]["properties"]["start"] = {"type": "boolean", "enum": [False]}
json.dump(document, open(sys.argv[1], "w"))
PYTHON

echo "==> schemathesis for $seconds s"
status=0
# Machines are made and never started. Streams are no HTTP; a path of the host is not to be guessed at, and imports of
# images would read it; what is there to be asked for stays.
"$tools/bin/schemathesis" run "$home/openapi.json" --url "https://127.0.0.1:$port" \
	--tls-verify "$home/tls/certificate.pem" --header "Authorization: Bearer $token" --max-time "$seconds" \
	--request-timeout 70 --workers 2 --no-color \
	--checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method \
	--exclude-path-regex '/(stream|console|start|reboot|import|wait)$' --exclude-method DELETE || status=$?

if ! "$hv" daemon status >/dev/null; then
	echo "api-fuzz: the daemon does not answer any more: $(tail -n 3 "$home/daemon.err")" >&2
	status=1
fi
if grep -n "panicked" "$home/daemon.err" >&2; then
	status=1
fi
exit "$status"
