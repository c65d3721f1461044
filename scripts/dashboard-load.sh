#!/bin/bash
# Measures what many machines and many open pages cost: the daemon's processor time, and the frames of the tree.
#
# usage: dashboard-load.sh [daemon|frames]   both without an argument
# MACHINES=100 PAGES=20 SECONDS_EACH=60 TREE_MACHINES=1000 are what is usual
set -eu
cd "$(dirname "$0")/../dashboard"

say() {
	echo "dashboard-load: $*"
}

chromium=${CHROMIUM:-$(command -v chromium || true)}
kernels=${QUEZTL_HOME:-/var/lib/queztl}/kernels
if [ -z "$chromium" ]; then
	say "skipped: chromium is missing; 'apt-get install chromium' brings it"
elif [ -z "$(ls -A "$kernels" 2>/dev/null)" ]; then
	say "skipped: there is no guest kernel in $kernels; 'make guest' builds it"
elif [ ! -e dist/index.html.br ] || [ ! -d node_modules ]; then
	say "skipped: the page is not built; 'make build' builds it into the program"
else
	CHROMIUM=$chromium npx playwright test --config playwright.load.config.ts "$@"
fi
