#!/bin/sh
# Builds the kernel's own x86 self tests, statically: build.sh KERNEL_SOURCE OUTPUT_DIRECTORY. Prints the name of each test
# built; a test whose source this compiler refuses is named on standard error and left out.
set -eu
source=$1
output=$2
tests=$source/tools/testing/selftests/x86
cd "$tests"
for name in single_step_syscall sysret_ss_attrs syscall_nt test_mremap_vdso check_initial_reg_state sigreturn iopl ioperm \
	test_vsyscall mov_ss_trap sigtrap_loop syscall_arg_fault fsgsbase_restore sigaltstack nx_stack fsgsbase sysret_rip \
	syscall_numbering corrupt_xstate_header amx test_shadow_stack ldt_gdt ptrace_syscall test_FCMOV test_FCOMI \
	test_FISTTP; do
	case $name in
	sysret_ss_attrs) extra=thunks.S ;;
	fsgsbase_restore | sysret_rip) extra=clang_helpers_64.S ;;
	nx_stack) extra='-Wl,-z,noexecstack' ;;
	check_initial_reg_state) extra='-Wl,-ereal_start' ;;
	*) extra= ;;
	esac
	# shellcheck disable=SC2086
	if gcc -O2 -std=gnu99 -pthread -w -no-pie -static -m64 -I"$source/tools/include" -I.. -o "$output/$name" "$name.c" \
		$extra -lrt -ldl -lm 2>"$output/$name.log"; then
		strip "$output/$name"
		echo "$name"
	else
		echo "left out, does not compile here: $name" >&2
	fi
	rm -f "$output/$name.log"
done
