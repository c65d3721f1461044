#!/bin/bash
# Sets everything up and runs every test of the workspace. The last line counts them: "N passed, N failed".
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh test

# Before the program, which takes it in.
echo "==> dashboard"
scripts/dashboard.sh build

# The guests of the tests boot this kernel and root file system.
echo "==> guest kernel and root file system"
cargo run --quiet -p queztl-guest-image --example make -- minimal

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
if cargo nextest --version >/dev/null 2>&1; then
	echo "==> cargo nextest"
	cargo nextest run --workspace --no-fail-fast 2>&1 | tee "$log" || status=1
	echo "==> documentation tests"
	cargo test --workspace --doc --no-fail-fast 2>&1 | tee -a "$log" || status=1
else
	echo "==> cargo test"
	cargo test --workspace --no-fail-fast 2>&1 | tee "$log" || status=1
fi

echo "==> Python SDK"
scripts/sdk.sh 2>&1 | tee -a "$log" || status=1
echo "==> dashboard: units, then in a browser"
for part in test browse; do
	scripts/dashboard.sh $part 2>&1 | tee -a "$log" || status=1
done

# nextest: "Summary [ 1.2s] 9 tests run: 8 passed (1 slow), 1 failed, 0 skipped"; cargo: "test result: ok. 8 passed; 1 failed; …"
# pytest: "1 failed, 27 passed in 53.36s"; vitest: "  Tests  43 passed (43)"; Playwright: "  1 failed", "  19 passed (2.3m)"
summary='tests? run:|^test result:|^[0-9]+ (passed|failed|skipped).* in [0-9.]+s|^ +Tests |^ +[0-9]+ (passed|failed)( |$)'
count() {
	sed 's/\x1b\[[0-9;]*m//g' "$log" | grep -E "$summary" | grep -oE "[0-9]+ $1" | awk '{ n += $1 } END { print n + 0 }' || true
}
passed=$(count passed)
failed=$(($(count failed) + $(count 'timed out')))
# Something that does not compile fails no test, yet the run.
if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
	failed=1
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
