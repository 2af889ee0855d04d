#!/bin/bash
# Runs each fuzz target for FUZZ_SECONDS, or only those named. The folder is laid out
# for cargo-fuzz, but does without it: these are its flags, and RUSTC_BOOTSTRAP lets a stable compiler take them.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${FUZZ_SECONDS:-60}
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(pgoutput connection stream copy_row config checkpoint)
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
cargo build --release --target "$host" --target-dir "${FUZZ_TARGET_DIR:-target}" $(printf -- '--bin %s ' "${targets[@]}")
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target"
    echo "== $target: $seconds s"
    "${FUZZ_TARGET_DIR:-target}/$host/release/$target" -max_total_time="$seconds" -max_len=65536 -print_final_stats=1 \
        -verbosity=0 "corpus/$target"
done
