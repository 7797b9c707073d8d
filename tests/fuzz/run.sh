#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds the fuzzers with clang in a build directory of their own and runs each for SECONDS, from
# the seeds on.  Inputs that find something are left in BUILD/findings; then it exits with 1.
#
# usage: tests/fuzz/run.sh [SECONDS [TARGET...]]     GODWIT_FUZZ_BUILD: the build directory
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=${GODWIT_FUZZ_BUILD:-$root/build-fuzz}
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(link message stream page_server pagemap)

if [ ! -f "$build/build.ninja" ]; then
    # The library is instrumented for coverage, without libFuzzer's main().
    CC=clang /usr/bin/python3 /usr/bin/meson setup "$build" "$root" -Dfuzz=true -Db_lundef=false \
        -Db_sanitize=address,undefined -Dc_args=-fsanitize=fuzzer-no-link \
        -Dc_link_args=-fsanitize=fuzzer-no-link
fi
ninja -C "$build" "${targets[@]/#/tests/fuzz/fuzz_}"

mkdir -p "$build/findings"
status=0
for target in "${targets[@]}"; do
    corpus=$build/corpus/$target
    mkdir -p "$corpus"
    echo "== fuzz_$target, $seconds s"
    log=$build/fuzz_$target.log
    # Leaks are looked for; undefined behaviour ends the program like any other finding.
    if UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
        "$build/tests/fuzz/fuzz_$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 \
        -max_len=20000 -print_final_stats=1 -artifact_prefix="$build/findings/$target-" \
        "$corpus" "$here/seeds/fuzz_$target" >"$log" 2>&1; then
        grep -E 'stat::number_of_executed_units|stat::average_exec_per_sec' "$log" || true
    else
        status=1
        tail -n 60 "$log"
        echo "fuzz_$target: a finding: see $build/findings and $log" >&2
    fi
done
exit "$status"
