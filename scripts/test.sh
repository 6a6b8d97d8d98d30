#!/usr/bin/env bash
# Makes .venv and runs the tests; options go to pytest.
set -euo pipefail
source "$(dirname "$0")/environment.sh" dev
exec .venv/bin/python -m pytest --numprocesses 3 --dist worksteal "$@"
