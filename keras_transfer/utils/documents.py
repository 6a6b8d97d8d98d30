"""The documents of a run: JSON, CSV and settings, as they are written and as they differ."""

import csv
import json
from pathlib import Path

from keras_transfer.errors import InputError

RENAMED_SINCE_0_1 = {"pictures": "images"}  # counts and fingerprints


def read_json(path: Path, optional: bool = False):
    """Read a JSON file, with the names that 0.1 gave to counts replaced by today's."""
    if optional and not path.is_file():
        return None

    def renamed(values):
        for old, new in RENAMED_SINCE_0_1.items():
            if isinstance(values.get(old), int) and new not in values:  # a class may have that name
                values = {new if key == old else key: value for key, value in values.items()}
        return values

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=renamed)
    except ValueError:
        raise damaged(path) from None


def damaged(path) -> InputError:
    """Return the error for a file of a run that cannot be parsed."""
    return InputError(f"{path} is damaged or incomplete: restore it from a copy, or train again.")


def read_rows(path: Path) -> list[dict]:
    """Return the rows of a CSV file of a run, such as `split.csv`: path, label, split."""
    # File names need not be UTF-8; their bytes are preserved.
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def changed_settings(before, now, name=""):
    """Yield `name: old is now new` for each leaf in which nested plain data differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys(), key=str):
            inner = f"{name}.{key}" if name else str(key)
            yield from changed_settings(before.get(key), now.get(key), inner)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now)):
            yield from changed_settings(*pair, f"{name}[{i}]")
    elif before != now:
        yield f"{name}: {before!r} is now {now!r}"


def dump_settings(settings: dict, file: str) -> str:
    """Return settings as the text of a file, `.json` or `.yaml`."""
    if file.endswith(".json"):
        return json.dumps(settings, indent=2) + "\n"
    import yaml

    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def parse_settings(text: str, file: str) -> dict:
    """Return the settings in the text of a file, `.json` or `.yaml`."""
    if file.endswith(".json"):
        return json.loads(text)
    import yaml

    return yaml.safe_load(text)
