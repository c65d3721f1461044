#!/bin/bash
# Lints, types and tests of the Python SDK, the tests with a real daemon and real machines where there is a program
# (target/, or QUEZTL_HV) and a guest kernel; else they say what they lack.
#
# usage: sdk.sh [ARGUMENT OF PYTEST...]
set -euo pipefail
cd "$(dirname "$0")/.."

if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv >/dev/null
	else
		echo "sdk: Python cannot make virtual environments: install python3-venv" >&2
		exit 1
	fi
fi
tools=$(realpath -m "${CARGO_TARGET_DIR:-target}/tools/python")
if [ ! -x "$tools/bin/ruff" ]; then
	echo "==> Python tools into $tools (once)"
	python3 -m venv "$tools"
	"$tools/bin/pip" install --quiet --disable-pip-version-check --editable 'sdk/python[test]'
fi
cd sdk/python
echo "==> ruff"
"$tools/bin/ruff" check --quiet .
echo "==> mypy"
"$tools/bin/mypy" --no-error-summary src tests tools
echo "==> pytest"
"$tools/bin/python" -m pytest -q "$@"
