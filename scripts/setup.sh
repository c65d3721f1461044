#!/bin/sh
# Makes sure that the host has what a purpose needs: installs Debian packages when it may (root, apt-get), else says what
# to install and fails.
#
# usage: setup.sh build|test|lint|bench...
set -eu

# file or program, and the package that brings it
build="cc:gcc ld:binutils make:make /usr/include/stdio.h:libc6-dev flex:flex bison:bison bc:bc perl:perl xz:xz-utils
tar:tar /usr/include/gelf.h:libelf-dev /usr/include/openssl/opensslv.h:libssl-dev
/usr/src/linux-source-6.12.tar.xz:linux-source-6.12 /bin/busybox:busybox-static"
test="$build cpio:cpio ip:iproute2 passt:passt nasm:nasm qemu-img:qemu-utils"
lint="cc:gcc /usr/include/stdio.h:libc6-dev shellcheck:shellcheck"
bench="$build qemu-system-x86_64:qemu-system-x86 fio:fio"

say() {
	echo "setup: $*" >&2
}

# Prints the packages of the given list whose file or program is not there.
missing() {
	for need in $1; do
		what=${need%%:*}
		case $what in
		/*) [ -e "$what" ] || echo "${need#*:}" ;;
		*) PATH="$PATH:/usr/sbin:/sbin" command -v "$what" >/dev/null 2>&1 || echo "${need#*:}" ;;
		esac
	done | sort -u
}

install() {
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || [ -n "${QUEZTL_NO_INSTALL:-}" ]; then
		say "this host lacks $* : run 'apt-get install $*' as root, then try again"
		exit 1
	fi
	say "installing $*"
	log=$(mktemp)
	export DEBIAN_FRONTEND=noninteractive
	if ! { apt-get -q update && apt-get -q -y --no-install-recommends install "$@"; } >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		say "apt-get failed; the lines above are its last, the whole output is in $log"
		exit 1
	fi
	rm -f "$log"
}

check_rust() {
	if ! command -v cargo >/dev/null 2>&1 && [ -x "$HOME/.cargo/bin/cargo" ]; then
		say "cargo is in $HOME/.cargo/bin, which is not in PATH: add it, then try again"
		exit 1
	fi
	if ! command -v cargo >/dev/null 2>&1; then
		say "Rust is missing: install version 1.92 or newer with rustup (https://rustup.rs), then try again"
		exit 1
	fi
	version=$(rustc --version | cut -d' ' -f2)
	if [ "$(printf '1.92.0\n%s\n' "$version" | sort -V | head -n 1)" != 1.92.0 ]; then
		say "Rust $version is too old: run 'rustup update stable' for 1.92 or newer, then try again"
		exit 1
	fi
}

# A component of the Rust toolchain, by the program that it brings.
component() {
	command -v "$1" >/dev/null 2>&1 && "$1" --version >/dev/null 2>&1 && return
	say "installing the Rust component $2"
	if ! rustup component add "$2" >&2; then
		say "the Rust component $2 is missing: run 'rustup component add $2', then try again"
		exit 1
	fi
}

check_rust
for purpose in "$@"; do
	case $purpose in
	build) needs=$build ;;
	test) needs=$test ;;
	bench) needs=$bench ;;
	lint)
		needs=$lint
		component cargo-clippy clippy
		component rustfmt rustfmt
		;;
	*)
		say "no purpose is called $purpose; there are build, test, lint and bench"
		exit 2
		;;
	esac
	packages=$(missing "$needs")
	# shellcheck disable=SC2086 # a list of words
	[ -z "$packages" ] || install $packages
done
