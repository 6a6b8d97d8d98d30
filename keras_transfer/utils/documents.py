"""The documents of a run: JSON, CSV and settings, as they are written and as they differ."""

import json
import re
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.utils.files import csv_rows

RENAMED_SINCE_0_1 = {"pictures": "images"}  # counts and fingerprints
UNRECORDED = {
    "crop": 0.875,
    "depth": "full",
    "soup": False,
    "refit": "auto",
    "calibrate": False,
}  # settings that older runs do not record, and their value there


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


def read_yaml(path: Path):
    """Return the content of a YAML (or JSON) file that a user wrote.

    Raises:
        InputError: it is neither.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # or not UTF-8, or a date that does not exist
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def damaged(path) -> InputError:
    """Return the error for a file of a run that cannot be parsed."""
    return InputError(f"{path} is damaged or incomplete: restore it from a copy, or train again.")


def read_rows(path: Path) -> list[dict]:
    """Return the rows of a CSV file of a run, such as `split.csv`: path, label, split."""
    return list(csv_rows(path))


def changed_settings(before, now, name=""):
    """Yield `name: old is now new` for each leaf in which nested plain data differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys(), key=str):
            inner = f"{name}.{key}" if name else str(key)
            # A setting that is missing is off: it is newer than the document.
            absent = False if now.get(key) is False else None
            yield from changed_settings(before.get(key, absent), now.get(key), inner)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now)):
            yield from changed_settings(*pair, f"{name}[{i}]")
    elif before != now:
        yield f"{name}: {before!r} is now {now!r}"


def dump_settings(settings: dict, file: str) -> str:
    """Return settings as the text of a file, `.json` or `.yaml`."""
    if file.endswith(".json"):
        return json.dumps(settings, indent=2) + "\n"
    return dump_yaml(settings)


def dump_yaml(document) -> str:
    """Return plain data as YAML that reads back equal, whatever the text in it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper, value):
        # PyYAML would write these line breaks as they are, and read them as spaces.
        style = '"' if re.search("[\x85\u2028\u2029]", value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)

    Dumper.add_representer(str, text)
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def parse_settings(text: str, file: str) -> dict:
    """Return the settings in the text of a file, `.json` or `.yaml`."""
    if file.endswith(".json"):
        return json.loads(text)
    import yaml

    return yaml.safe_load(text)
