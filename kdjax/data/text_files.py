"""Texts in files: tables of a text a row, and files of one text each."""

import csv
import json
from pathlib import Path
from typing import Any, TextIO

from kdjax.data.columns import Columns, chosen_columns
from kdjax.data.errors import DataError

FILES = (".csv", ".tsv", ".jsonl")
LARGEST = 2**31  # bytes of a file


def read_table(path: Path, columns: Columns) -> tuple[tuple[str, ...], tuple[str, ...] | None, tuple[str, ...]]:
    """Texts, second texts or None, and labels of a .csv, .tsv or .jsonl.

    Raises:
      DataError: it cannot be read, or lacks something.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path} has more than 2 GiB, and texts are read into memory; give a part of it.")
        rows = json_lines(path) if path.suffix == ".jsonl" else _separated(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); give another file.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 (byte {error.start:,}); save it as UTF-8.") from error
    if not rows:
        raise DataError(f"{path} has no rows; give it some, or leave that file out.")
    keys = chosen_columns(str(path), tuple(rows[0][1]), columns)
    parts: list[tuple[str, ...]] = []
    for key in filter(None, keys):
        lost = next((number for number, row in rows if not isinstance(row.get(key), str) or not row[key]), None)
        if lost is not None:
            raise DataError(
                f"{path} has nothing in the column {key!r} of row {lost}; fill it in, or leave the row out."
            )
        parts.append(tuple(row[key] for _, row in rows))
    return parts[0], parts[1] if keys[1] else None, parts[-1]


def _separated(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows of a .csv or .tsv, whose first line names the columns, with the numbers of their last lines.

    Quotation marks in a .tsv are part of the text, as in GLUE's files, unless all of them are a writer's: around whole cells, and
    doubled within.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        tabs = path.suffix == ".tsv"
        csv.field_size_limit(LARGEST - 1)
        plain = tabs and not _quoted(file)
        file.seek(0)
        reader = csv.DictReader(
            file, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
        )
        try:
            rows = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise DataError(f"{path} is damaged at line {reader.line_num} ({error}); mend it.") from error
    wrong = next((number for number, row in rows if None in row), None)
    if wrong is not None:
        raise DataError(
            f"{path} has more values in line {wrong} than columns; put texts with commas into quotation marks."
        )
    return rows


def _quoted(file: TextIO) -> bool:
    """Whether quotation marks are around cells, as writers of tables set them where a text has some."""
    cells = [cell for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) for cell in row if '"' in cell]
    whole = (len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "") for cell in cells)
    return any('""' in cell[1:-1] for cell in cells) and all(whole)


def json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Rows of a .jsonl, an object a line, with the numbers of their lines.

    Raises:
      DataError: it cannot be read, or a line holds something else.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} has no JSON in line {number}; mend it.") from error
        if not isinstance(row, dict):
            raise DataError(f"{path} has no object in line {number}; write {{'text': ..., 'label': ...}} a line.")
        rows.append((number, {str(key): _plain(value) for key, value in row.items()}))
    return rows


def _plain(value: Any) -> Any:
    """Numbers and truth as text; what is no label and no text as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return str(int(value)) if whole else value


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
      DataError: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); mend or delete it.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 (byte {error.start:,}); save it as UTF-8, or delete it.") from error


def text_of(file: Any) -> str:
    """A text that is given as such, or that of a file.

    Raises:
      ValueError: it cannot be read.
    """
    if isinstance(file, str):
        return file
    try:
        return read_text(Path(file))
    except DataError as error:
        raise ValueError(str(error)) from error
