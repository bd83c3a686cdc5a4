"""JSON files of a run: written whole or not at all, with a checksum, and read with a sentence for what is wrong.

A file is UTF-8 whatever the locale. Its last two entries are the version of its form and a SHA-256 of all others, which are
taken off again when it is read; a file written by hand, or by an older kdjax, need not have them.
"""

import hashlib
import json
import math
import os
import secrets
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np

VERSION, CHECKSUM = "version", "checksum"
FORM = 1  # of the files that are written now
LARGEST = 64 * 2**20  # bytes of a file that is read
NUMBER = int | float
SCHEME = "sha256:"


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes a file whole or not at all; it is on the disk when this returns. What is not finite is written as null."""
    # As it will be read: keys that are numbers are texts then, and sorted as such.
    data = json.loads(json.dumps(_finite(data))) | {VERSION: FORM}
    write_whole(path, json.dumps({**data, CHECKSUM: checksum(data)}, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a text in UTF-8, whole or not at all, also where others write the same file; it is on the disk when this
    returns."""
    temporary = own_name(path)
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # gives the room back where there was too little
        raise
    sync_folder(path.parent)


def own_name(path: Path) -> Path:
    """The name of a file that no other process writes, to be renamed to `path`."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def sync_folder(folder: Path) -> None:
    """Brings names in a folder to the disk: a rename is otherwise lost where power is. Some file systems cannot."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def read_json(
    path: Path,
    error: type[Exception],
    mend: str,
    fields: dict[str, Any] | None = None,
    changed: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The object in a file.

    Args:
      path: of the file.
      error: what to raise where it holds no sound JSON object.
      mend: how the sentence ends, such as "delete it and go on with --resume".
      fields: types of some of its entries, see `wrong_field`.
      changed: is told of a checksum that does not match, of a file that people may edit; if not given, that is an error.

    Raises:
      error: in one sentence, with the path: it is empty, cut off, not to be read, of another version, changed since it was
        written, or an entry is of another type.
    """
    try:
        found = _parsed(path)
    except OSError as caught:
        raise error(f"{path} cannot be read ({caught.strerror or caught}); {mend}.") from caught
    except (ValueError, RecursionError) as caught:
        raise error(f"{path} {_what_is_wrong(path, caught)}; {mend}.") from caught
    if not isinstance(found, dict):
        raise error(f"{path} is damaged: it holds a {type(found).__name__} and no object; {mend}.")
    sealed = [name for name, value in found.items() if name == CHECKSUM or str(value).startswith(SCHEME)]
    if sealed:
        said = found.pop(sealed[0])
        if sealed != [CHECKSUM] or said != checksum(found):
            wrong = f"{path} is not as it was written: its {CHECKSUM} does not match what is in it"
            if changed is None:
                raise error(f"{wrong}; {mend}.")
            changed(wrong)
    version = found.pop(VERSION, FORM)
    if version != FORM or isinstance(version, bool):
        raise error(
            f"{path} is of version {version!r}, and this kdjax reads version {FORM}; use the kdjax that wrote it."
        )
    wrong = wrong_field(found, fields or {})
    if wrong:
        raise error(f"{path} is damaged: {wrong}; {mend}.")
    return found


def wrong_field(found: dict[str, Any], fields: dict[str, Any], where: str = "") -> str:
    """What is wrong with the entries of an object, or "".

    Args:
      found: the object.
      fields: types by name: those of `isinstance`, `list[T]`, `dict[str, T]`, an object of fields as a dict, or a union of
        these with None. A name that ends in "?" may be missing.
      where: the entry that the object is.
    """
    for name, kind in fields.items():
        key = name.removesuffix("?")
        if key not in found:
            if key == name:
                return f"it has no {where}{key}"
            continue
        wrong = _wrong(found[key], kind, f"{where}{key}")
        if wrong:
            return wrong
    return ""


def _wrong(value: Any, kind: Any, where: str) -> str:
    if isinstance(kind, dict):
        return wrong_field(value, kind, f"{where}.") if isinstance(value, dict) else _not(value, "an object", where)
    if isinstance(kind, tuple):  # one of these
        said = [_wrong(value, one, where) for one in kind]
        return "" if "" in said else said[0]
    if get_origin(kind) is list:
        if not isinstance(value, list):
            return _not(value, "a list", where)
        return next(filter(None, (_wrong(x, *get_args(kind), f"{where}[{i}]") for i, x in enumerate(value))), "")
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            return _not(value, "an object", where)
        return next(filter(None, (_wrong(x, get_args(kind)[1], f"{where}.{k}") for k, x in value.items())), "")
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return ""
    names = [part.__name__ for part in (get_args(kind) if isinstance(kind, types.UnionType) else (kind,))]
    return _not(value, " or ".join(name.replace("NoneType", "null") for name in names), where)


def _not(value: Any, wanted: str, where: str) -> str:
    return f"{where} is {shown(value)} and not {wanted}"


def shown(value: Any) -> str:
    """A value in a sentence: its first letters where it is long."""
    text = repr(value)
    return text if len(text) < 60 else text[:56] + " ..."


def _parsed(path: Path) -> Any:
    if not path.is_file() and path.exists() and not path.is_dir():
        raise OSError(0, "it is no regular file")
    if path.is_file() and path.stat().st_size > LARGEST:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, and no file of a run has more than {LARGEST:,}")
    found = parse(path.read_bytes().decode("utf-8-sig"))
    json.dumps(found, ensure_ascii=False).encode()  # half a letter, as "\ud800", cannot be shown or written
    return found


def parse(text: str) -> Any:
    """A JSON text, strictly: no NaN, no number beyond float64 and int64, no key twice.

    Raises:
      ValueError, RecursionError: what is wrong.
    """
    return json.loads(
        text, parse_constant=_no_constant, parse_int=_integer, parse_float=_float, object_pairs_hook=_unique
    )


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no JSON")


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"it holds an integer of {len(text):,} digits")
    return int(text)


def _float(text: str) -> float:
    if len(text) > 1000 or not math.isfinite(float(text)):
        raise ValueError(f"it holds {text[:20]}, which is too large a number")
    return float(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(n for n in names if names.count(n) > 1)!r} twice")
    return found


def _what_is_wrong(path: Path, caught: Exception) -> str:
    if path.is_file() and not path.stat().st_size:
        return "is empty"
    if isinstance(caught, RecursionError):
        return "is damaged: its brackets are nested too deeply"
    if isinstance(caught, json.JSONDecodeError | UnicodeDecodeError):
        return "is damaged: it is no JSON, or cut off"
    if isinstance(caught, UnicodeEncodeError):
        return "is damaged: it holds half a letter"
    return f"is damaged: {caught}"


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, np.generic):
        data = data.item()
    return None if isinstance(data, float) and not math.isfinite(data) else data


def checksum(data: dict[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return SCHEME + hashlib.sha256(text.encode()).hexdigest()
