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
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(basename -as .c "$here"/fuzz_*.c | sed 's/^fuzz_//')

if [ ! -f "$build/build.ninja" ]; then
    # The library is instrumented for coverage, without libFuzzer's main().
    CC=clang /usr/bin/python3 /usr/bin/meson setup "$build" "$root" -Dfuzz=true -Db_lundef=false \
        -Db_sanitize=address,undefined -Dc_args=-fsanitize=fuzzer-no-link \
        -Dc_link_args=-fsanitize=fuzzer-no-link
fi
ninja -C "$build" "${targets[@]/#/tests/fuzz/fuzz_}"

mkdir -p "$build/findings"

fuzz() {
    local target=$1 corpus=$build/corpus/$1 log=$build/fuzz_$1.log
    mkdir -p "$corpus"
    # Leaks are looked for; undefined behaviour ends the program like any other finding.  What an
    # input has freed is kept beyond its end, not for thousands of others: that is twice as fast.
    if UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
        ASAN_OPTIONS=quarantine_size_mb=16:malloc_context_size=5 \
        "$build/tests/fuzz/fuzz_$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 \
        -max_len=20000 -print_final_stats=1 -artifact_prefix="$build/findings/$target-" \
        "$corpus" "$here/seeds/fuzz_$target" >"$log" 2>&1; then
        echo "fuzz_$target: $(grep -Eo 'number_of_executed_units: *[0-9]+' "$log" | tr -s ' ')"
    else
        tail -n 60 "$log"
        echo "fuzz_$target: a finding: see $build/findings and $log" >&2
        return 1
    fi
}
export -f fuzz
export build here seconds

echo "== ${#targets[@]} fuzzers, $seconds s each, as many at a time as there are processors"
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I '{}' bash -c 'fuzz {}'
