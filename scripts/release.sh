#!/usr/bin/env bash
# Rehearse a release: build the source distribution and, from it, the wheel; check both; test the wheel on
# Python 3.11 and 3.13. Uploads nothing. What is not committed is not part of it.
set -euo pipefail
cd "$(dirname "$0")/.."
work="$PWD/build/release"
python="$(command -v python3.11 || command -v python3)"
rm -rf "$work"
mkdir -p "$work/source"
git archive HEAD | tar -x -C "$work/source"
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check build twine check-wheel-contents
"$work/venv/bin/python" -m build --outdir "$work/dist" "$work/source" > "$work/build.log" ||
    { tail -n 20 "$work/build.log" >&2; exit 1; }
"$work/venv/bin/twine" check --strict "$work"/dist/*
"$work/venv/bin/check-wheel-contents" "$work"/dist/*.whl
./scripts/test.sh -m "large or not large"        # those that .ci/run leaves out, too
./scripts/compat.sh newest -q -k test_compat.py # Python 3.11, an empty environment
./scripts/compat.sh colab -q                    # Python 3.13, Colab's packages
ls -l "$work/dist"
