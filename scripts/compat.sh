#!/usr/bin/env bash
# Test the wheel as users get it: in an environment that already has a set of versions.
# Usage: scripts/compat.sh oldest|colab|newest|nightly [options of pytest]
#
# Creates build/compat/SET, installs scripts/compat/SET.txt, then our wheel with its dependencies, then
# pytest and the set's extras, and runs the tests marked `compat`. pip freeze before and after the wheel
# is in before.txt and after.txt there.
set -euo pipefail
cd "$(dirname "$0")/.."
name="${1:-}"
file="scripts/compat/$name.txt"
[ -n "$name" ] && [ -f "$file" ] ||
    { echo "usage: scripts/compat.sh oldest|colab|newest|nightly [options of pytest]" >&2; exit 2; }
shift

header() { sed -n "s/^# $1: *//p" "$file"; }

find_python() { # of a version, on the path or among pyenv's
    local found
    for found in "$(command -v "python$1" || true)" "$(pyenv root 2> /dev/null)/versions/$1".*/bin/python"$1"; do
        if [ -n "$found" ] && "$found" -c '' 2> /dev/null; then
            echo "$found"
            return
        fi
    done
    echo "The set $name needs Python $1, which is not installed." >&2
    return 1
}

python="$(find_python "$(header python)")"
environment="$PWD/build/compat/$name"
pip="$environment/bin/python -m pip --disable-pip-version-check --quiet"
started=$SECONDS
rm -rf "$environment"
"$python" -m venv "$environment"
# promise, which tensorflow-datasets needs, has no wheel; what else has none would be compiled here.
$pip install --no-compile --only-binary :all: --no-binary promise --requirement "$file"
$pip freeze --all > "$environment/before.txt"
$pip wheel --no-deps --wheel-dir "$environment/dist" .
wheel="$(echo "$environment"/dist/keras_transfer-*.whl)"
$pip install --no-compile $(header wheel) "$wheel"
$pip freeze --all > "$environment/after.txt"
extras="$(header extras | tr ' ' ',')"
$pip install --no-compile --only-binary :all: --no-binary promise --constraint "$file" pytest pytest-xdist ${extras:+"$wheel[$extras]"}
"$environment/bin/python" -c '
import importlib.metadata, platform, sys
print(sys.argv[1] + ":", "Python", platform.python_version(), *(
    f"{d.name} {d.version}" for d in sorted(importlib.metadata.distributions(), key=lambda d: d.name.lower())
    if d.name in ("tensorflow", "tf-nightly", "keras", "keras-nightly", "keras-hub", "tensorflow-text",
                  "tf_keras", "numpy", "pillow", "scikit-learn", "scipy", "onnxruntime", "openvino")))' "$name"
echo "$name: installed in $((SECONDS - started)) s" >&2
# From another folder, or Python would import the checkout instead of the installed package.
tests="$(grep -l "mark.compat" -r tests | sort | sed "s|^|$PWD/|")"
(cd "$environment" && KERAS_TRANSFER_COMPAT="$environment" bin/pytest --rootdir "$OLDPWD" \
    --config-file "$OLDPWD/setup.cfg" -m compat --numprocesses 3 --disable-warnings "$@" $tests)
echo "$name: $((SECONDS - started)) s in all" >&2
