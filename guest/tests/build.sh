#!/bin/sh
# Builds one test guest: build.sh SOURCE.c OUTPUT. Needs gcc and binutils for x86-64.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
gcc -m64 -O2 -std=gnu17 -Wall -Wextra -Werror -Wno-array-bounds -ffreestanding -nostdlib -static -no-pie -fno-pic \
    -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none -fno-tree-loop-distribute-patterns \
    -mno-red-zone -mgeneral-regs-only -mcmodel=small -I"$here/common" -Wl,-T,"$here/common/link.ld" \
    -Wl,--build-id=none -Wl,--no-warn-rwx-segments \
    -o "$2.elf64" "$here/common/boot.S" "$here/common/runtime.c" "$1"
objcopy -O elf32-i386 "$2.elf64" "$2"
