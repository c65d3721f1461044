#!/bin/sh
# Builds the benchmark and check programs, statically: build.sh PROGRAM OUTPUT, where PROGRAM is a folder beside this file.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
gcc -O2 -static -std=gnu17 -Wall -Wextra -Werror -fno-stack-protector -mno-red-zone -pthread -o "$2" "$here/$1"/*.c -lm
