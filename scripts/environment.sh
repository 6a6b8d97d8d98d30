# Sourced by the other scripts: creates .venv if it is missing or setup.cfg has changed.
# Usage: source scripts/environment.sh [extra]; PYTHON names the interpreter.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
extra="${1:-}"
stamp=".venv/.installed-$extra-$(cksum < setup.cfg | tr -d ' ')"
if [ ! -e "$stamp" ]; then
    python="${PYTHON:-$(command -v python3.11 || command -v python3)}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "keras_transfer needs Python 3.11 or newer; $python is older" >&2; exit 1; }
    echo "creating .venv (once; TensorFlow is a large download)" >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" || exit 1; }
    install --editable ".${extra:+[$extra]}"
    # Its dependencies exclude today's TensorFlow, and its converter of SavedModels needs none of them.
    [ "$extra" != dev ] || install --no-deps "tensorflowjs>=4.22,<5"
    touch "$stamp"
fi
