#!/bin/sh
# Format, lints, shell scripts, licences and sources of the dependencies.
set -eu
cd "$(dirname "$0")/.."

scripts/setup.sh lint

echo "==> cargo fmt"
cargo fmt --all --check
echo "==> cargo clippy"
cargo clippy --quiet --workspace --all-targets -- -D warnings
echo "==> shellcheck"
shellcheck scripts/*.sh .ci/run guest/rootfs/network guest/debian/*
echo "==> cargo deny"
# Kept beside the build, for it takes minutes to compile; the list of vulnerabilities needs GitHub and is not asked here.
version=0.20.2
tools=${CARGO_TARGET_DIR:-target}/tools
if ! cargo deny --version >/dev/null 2>&1 && [ ! -x "$tools/bin/cargo-deny" ]; then
	echo "    installing cargo-deny $version into $tools (once)"
	cargo install --quiet --locked --debug --no-default-features --root "$tools" --version "$version" cargo-deny
fi
PATH="$PATH:$PWD/$tools/bin" cargo deny --log-level error check licenses bans sources
