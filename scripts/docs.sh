#!/usr/bin/env bash
# Build the pages of docs/ and the API reference in build/site; broken links and missing names are errors.
# Docstrings are read from the source, so only the packages of the extra `docs` are installed (build/docs-venv).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=build/docs-venv
if [ ! -e "$venv/.installed" ]; then
    python="$(command -v python3.11 || command -v python3)"
    "$python" -m venv "$venv"
    "$python" - > "$venv/requirements.txt" << 'END'
from configparser import ConfigParser
settings = ConfigParser()
settings.read("setup.cfg", encoding="utf-8")
print(settings["options.extras_require"]["docs"])
END
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$venv/requirements.txt"
    touch "$venv/.installed"
fi
PATH="$PWD/$venv/bin:$PATH" mkdocs build --strict

