#!/bin/bash
# Builds the dashboard into dashboard/dist, or tests it. Without npm both are left out, with a word.
#
# usage: dashboard.sh build|test|browse|load [daemon|frames|paint]
# browse: tests in a browser, with real machines
# load: measures what many machines and many open pages cost: the daemon's processor time, the frames of the tree, the first paint;
#       MACHINES=100 PAGES=20 SECONDS_EACH=60 TREE_MACHINES=1000 are what is usual
set -eu
cd "$(dirname "$0")/../dashboard"

say() {
	echo "dashboard: $*"
}

# The packages that package-lock.json names, installed anew when it has changed. What a browser's test would download is not
# wanted: the browser is the system's.
packages() {
	[ node_modules/.package-lock.json -nt package-lock.json ] && return
	say "installing packages (once)"
	# Not `npm ci`: that refuses a lock that does not name the optional packages of every platform.
	PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm install --no-save --no-audit --no-fund --loglevel=error
}

# Builds only when something has changed since.
build() {
	if [ -e dist/index.html.br ] && [ -z "$(find src public index.html package-lock.json vite.config.ts scripts ../docs/openapi.json -newer dist/index.html.br -type f ! -name schema.d.ts | head -n 1)" ]; then
		say "is up to date"
		return
	fi
	packages
	say "building the page"
	npm run --silent build
}

# Whether all is there for a browser and real machines; says what is not.
browser() {
	chromium=${CHROMIUM:-$(command -v chromium || true)}
	kernels=${QUEZTL_HOME:-/var/lib/queztl}/kernels
	if [ -z "$chromium" ]; then
		say "skipped: chromium is missing; 'apt-get install chromium' brings it"
	elif [ -z "$(ls -A "$kernels" 2>/dev/null)" ]; then
		say "skipped: there is no guest kernel in $kernels; 'make guest' builds it"
	elif [ ! -e dist/index.html.br ]; then
		say "skipped: the page is not built; 'make build' builds it into the program"
	else
		return 0
	fi
	return 1
}

if ! command -v npm >/dev/null 2>&1; then
	say "skipped: npm is missing; install Node.js 20 or newer for the page (the daemon works without it)"
	exit 0
fi
case ${1:-} in
build) build ;;
test)
	packages
	npm run --silent check
	npm run --silent test
	;;
browse)
	if browser; then
		packages
		CHROMIUM=$chromium npm run --silent e2e
	fi
	;;
load)
	shift
	if browser; then
		packages
		CHROMIUM=$chromium npx playwright test --config playwright.load.config.ts "$@"
	fi
	;;
*)
	echo "usage: dashboard.sh build|test|browse|load" >&2
	exit 2
	;;
esac
