#!/usr/bin/env bash
# Run the offline demo on a fresh machine: create .venv, then run `keras-transfer demo`.
# Options are passed to the command; without --out it replaces demo/.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
if [[ " $* " != *" --out"* ]]; then
    rm -rf demo
fi
exec .venv/bin/keras-transfer demo "$@"
