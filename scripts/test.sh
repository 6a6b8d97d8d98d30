#!/usr/bin/env bash
# Create .venv and run the tests; options are passed to pytest.
set -euo pipefail
source "$(dirname "$0")/environment.sh" dev
exec .venv/bin/python -m pytest --numprocesses 3 --dist worksteal "$@"
