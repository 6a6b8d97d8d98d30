"""Results of a long benchmark in a CSV file that is extended after each run, so that it can resume."""

import csv
from pathlib import Path


class Rows:
    """The rows of a CSV file; it is created with the first new row.

    Attributes:
        rows: all rows, with text in every column.
    """

    def __init__(self, path: Path, fields: tuple[str, ...]):
        self._path, self._fields = path, fields
        self.rows = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [dict.fromkeys(fields, "") | row for row in csv.DictReader(file)]

    def contains(self, key: dict[str, str]) -> bool:
        """Return whether a row has these values."""
        return any(key.items() <= row.items() for row in self.rows)

    def write(self, row: dict) -> None:
        """Append a row to the file, whole or not at all, and print it."""
        row = {name: str(row[name]) for name in self._fields}
        part = self._path.with_name(self._path.name + ".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*self.rows, row])
        part.replace(self._path)
        self.rows.append(row)
        print(" ".join(row.values()), flush=True)
