#!/usr/bin/env bash
# Runs the tests in Python on a compiled module: tests/run.sh path/to/lib_anabranch.so [arguments of pytest]
# Their packages are in a virtual environment in the cache folder, which is made once. Without Python, or
# without its packages, it says "skipped".
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
module="$(realpath "$1")"
shift
cache="${ANABRANCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/anabranch}"

skipped() { echo "skipped: the tests of the Python module: $*"; exit 0; }

python=""
for name in ${ANABRANCH_PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
  # A name may be a stand-in that starts nothing.
  if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then python="$name"; break; fi
done
[ -n "$python" ] || skipped "there is no Python 3.10 or later with venv"

packages="pytest mypy nbclient ipykernel pyarrow tqdm"
version="$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')"
venv="$cache/python-tests/$version-$(echo "$packages" | cksum | cut -d" " -f1)"
if [ ! -e "$venv/ready" ]; then
  mkdir -p "$cache/python-tests"
  # Two of these at once would step on each other.
  if command -v flock >/dev/null; then exec 9>"$cache/python-tests/lock" && flock 9; fi
  if [ ! -e "$venv/ready" ]; then
    rm -rf "$venv"
    log="$cache/python-tests/setup.log"
    "$python" -m venv "$venv" >"$log" 2>&1 || skipped "cannot make a virtual environment, see $log"
    # shellcheck disable=SC2086 # they are several
    "$venv/bin/python" -m pip install --quiet $packages >>"$log" 2>&1 || skipped "cannot install $packages, see $log"
    touch "$venv/ready"
  fi
  exec 9>&- || true
fi

# The package as a wheel has it, for this run alone.
staged="$(mktemp -d)"
trap 'rm -rf "$staged"' EXIT
cp -r "$here/python/anabranch" "$staged/anabranch"
rm -f "$staged"/anabranch/_anabranch*.so
# Linked, not copied: with what a debugger needs it is large.
ln -s "$module" "$staged/anabranch/_anabranch.abi3.so"
cd "$here"
PYTHONPATH="$staged" PYTHONDONTWRITEBYTECODE=1 ANABRANCH_STAGED="$staged" \
  "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
