#!/usr/bin/env bash
# A linker for an older C library than this machine's: that of GLIBC=2.28, say. `make wheel` gives it to the
# module's own link; everything before is compiled as always, and a symbol that the older library has not is
# an error here. It is the linker of maturin's --zig.
set -euo pipefail
tools="$(dirname "$(realpath "${MATURIN_PROGRAM:?the path of maturin}")")"
# Where ziglang is, beside maturin.
PATH="$tools:$PATH" exec "$MATURIN_PROGRAM" zig cc -- -g -target "$(uname -m)-linux-gnu.${GLIBC:?a version}" "$@"
