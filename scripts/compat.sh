#!/usr/bin/env bash
# Test the wheel as users get it: in an environment that already has a set of versions.
# Usage: scripts/compat.sh oldest|colab|newest|nightly [--install-only | --installed] [options of pytest]
#
# Creates build/compat/SET, installs scripts/compat/SET.txt, then our wheel with its dependencies, then
# pytest and the set's extras, and runs the tests marked `compat`. pip freeze before and after the wheel
# is in before.txt and after.txt there. `--install-only` ends before the tests; `--installed` runs the
# tests in the environment which that left, once.
set -euo pipefail
cd "$(dirname "$0")/.."
name="${1:-}"
file="scripts/compat/$name.txt"
[ -n "$name" ] && [ -f "$file" ] ||
    { echo "usage: scripts/compat.sh oldest|colab|newest|nightly [--install-only | --installed] [options of pytest]" >&2; exit 2; }
shift
step="both"
case "${1:-}" in --install-only | --installed) step="$1"; shift ;; esac

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

environment="$PWD/build/compat/$name"
ready="$environment/installed" # the last thing that an installation writes
started=$SECONDS
unset PYTHONDONTWRITEBYTECODE # where it is set, each process would compile TensorFlow anew

# From another folder, or Python would import the checkout instead of the installed package.
tests() { # options of pytest
    local files
    files="$(grep -l "mark.compat" -r tests | sort | sed "s|^|$PWD/|")"
    (cd "$environment" && KERAS_TRANSFER_COMPAT="$environment" bin/pytest --rootdir "$OLDPWD" \
        --config-file "$OLDPWD/setup.cfg" -m compat --disable-warnings "$@" $files)
}

install() {
    local python pip wheel extras
    python="$(find_python "$(header python)")"
    pip="$environment/bin/python -m pip --disable-pip-version-check --quiet"
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
    # Once here, what is imported is compiled: three processes of tests would do so three times.
    tests --collect-only -qq > /dev/null
    touch "$ready"
    echo "$name: installed in $((SECONDS - started)) s" >&2
}

if [ "$step" = --installed ]; then
    [ -e "$ready" ] || { echo "$environment is not complete: run scripts/compat.sh $name --install-only" >&2; exit 2; }
    rm "$ready" # the tests leave files in it
else
    install
fi
[ "$step" != --install-only ] || exit 0
tests --numprocesses 3 "$@"
echo "$name: $((SECONDS - started)) s in all" >&2
