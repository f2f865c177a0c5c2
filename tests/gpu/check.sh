#!/usr/bin/env bash
# Check wiseft on a CUDA machine: is it right, does it keep its contracts, how fast is it, what
# bounds it.
#
#     bash tests/gpu/check.sh OUT          writes OUT/gpu.json, OUT/gpu.md and OUT/log
#     bash tests/gpu/check.sh OUT --cpu    the same code on a small scale, without a GPU
#
# OUT may come from the environment. No network is needed: packages that are missing are installed
# from the wheels in $WHEELS (default .wheels, see wheels.txt) into a temporary folder. Further
# options: --minutes N for everything (default 6), --only=PART,PART. Exit codes: 0 every check that
# ran passed, 1 one failed, 2 there is no GPU or the command line is wrong.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=${OUT:-}
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then out=$1; shift; fi
[ -n "$out" ] || { echo "usage: bash tests/gpu/check.sh OUT [--cpu]" >&2; exit 2; }
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

export PYTHONPATH="$root:$scratch/site" PYTHONUNBUFFERED=1 MPLBACKEND=Agg HF_HUB_OFFLINE=1
export XDG_CACHE_HOME="$scratch/cache"

check() {
    cd "$root"
    "$python" -m tests.gpu.packages "${WHEELS:-$root/.wheels}" >"$scratch/wheels" || return 1
    if [ -s "$scratch/wheels" ]; then
        xargs -d '\n' "$python" -m pip install --quiet --no-index --no-deps --no-compile \
            --target "$scratch/site" <"$scratch/wheels" || return 1
    fi
    "$python" -m tests.gpu.check --out "$out" --work "$scratch/work" "$@"
}

set +e
check "$@" 2>&1 | tee "$out/log"
exit "${PIPESTATUS[0]}"
