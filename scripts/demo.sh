#!/usr/bin/env bash
# The offline demonstration on a fresh machine: makes .venv, then runs `keras-transfer demo`.
# Options go to the command; without --out it writes to demo/, anew each time.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
if [[ " $* " != *" --out"* ]]; then
    rm -rf demo
fi
exec .venv/bin/keras-transfer demo "$@"
