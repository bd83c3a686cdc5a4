"""What a teacher said of each training example, from a file that any program may have written."""

import hashlib
from pathlib import Path

import numpy as np

from kdjax.data.errors import DataError
from kdjax.data.npz import BROKEN, check_npz, why
from kdjax.json_files import parse
from kdjax.places import local

SUFFIXES = (".npz", ".jsonl")


def read_outputs(path: str | Path, examples: int) -> np.ndarray:
    """Logits `[examples, C]` or `[examples, L, C]` float32, a row an example in the order of the training split.

    Args:
      path: `.npz` with `logits` (or `probs`, whose logarithm is taken), and `index` if the rows are in another order or not of
        all examples; or JSON lines `{"index": 0, "logits": [...]}`.
      examples: size of the training split. An example that the file does not have is nan.

    Raises:
      DataError: no such file, or not these contents; in one sentence.
    """
    path = local(path, DataError, "A file of a teacher's outputs")
    if not path.is_file():
        raise DataError(f"There is no file {path} with a teacher's outputs.")
    try:
        found = _lines(path) if path.suffix == ".jsonl" else _arrays(path)
    except BROKEN as error:
        raise DataError(
            f"{path} cannot be read as a teacher's outputs: {type(error).__name__}: {why(error)}; write it anew."
        ) from error
    name = next((name for name in ("logits", "probs") if name in found), None)
    if name is None:
        raise DataError(f"{path} has {', '.join(found) or 'nothing'}, and neither logits nor probs.")
    said, index = found[name], found.get("index")
    if said.ndim < 2 or not np.issubdtype(said.dtype, np.floating):
        raise DataError(f"{name} of {path} is {said.dtype} {list(said.shape)}; it must be floats [N, C].")
    if not said.size:
        raise DataError(f"{name} of {path} is empty, {list(said.shape)}; it must be floats [N, C].")
    if np.isnan(said).any():
        row = int(np.argwhere(np.isnan(said))[0][0])
        raise DataError(f"{name} of {path} is nan in row {row}; leave the row out, and name the others by index.")
    with np.errstate(over="ignore"):  # what is beyond float32 is infinite
        wrong = np.argwhere(~np.isfinite(said.max(axis=-1).astype(np.float32)))
    if len(wrong):  # -inf is a class that cannot be
        raise DataError(
            f"{name} of {path} is infinite in row {int(wrong[0][0])}; leave the row out, and name the others by index."
        )
    if name == "probs":
        if (said < 0).any() or not np.allclose(said.sum(-1), 1, atol=1e-3):
            raise DataError(f"probs of {path} do not add up to 1 in every row; are they logits?")
        short = said.astype(np.float32)
        small = (short == 0) & (said > 0)  # float64 goes far below float32
        with np.errstate(divide="ignore"):
            short = np.log(short)
        short[small] = np.log(said[small])
        said = short
    elif said.shape[-1] > 1 and (said >= 0).all() and np.allclose(said.sum(-1), 1, atol=1e-3):
        raise DataError(
            f"logits of {path} are all at least 0 and add up to 1 in every row, as probabilities do; call them probs."
        )
    with np.errstate(over="ignore"):
        said = said.astype(np.float32)
    index = np.arange(len(said)) if index is None else index
    if index.shape != said.shape[:1] or not np.issubdtype(index.dtype, np.integer):
        raise DataError(f"index of {path} is {index.dtype} {list(index.shape)}; it must be integers [{len(said)}].")
    beyond = index[(index < 0) | (index >= examples)]
    if len(beyond):
        raise DataError(f"{path} is of example {beyond[0]}, and there are {examples}, from 0; is it of another set?")
    ordered = np.sort(index)
    if (ordered[1:] == ordered[:-1]).any():
        raise DataError(f"{path} has example {ordered[1:][ordered[1:] == ordered[:-1]][0]} twice.")
    rows = np.full((examples, *said.shape[1:]), np.nan, np.float32)
    rows[index] = said
    return rows


def check_covered(said: np.ndarray, rows: np.ndarray, path: str | Path) -> None:
    """Raises DataError unless there are outputs of all these examples."""
    missing = rows[np.isnan(said[rows].reshape(len(rows), -1)).any(-1)]
    if len(missing):
        raise DataError(
            f"{path} lacks {len(missing)} of the {len(rows)} examples to train on, the first is {missing[0]}."
        )


def outputs_hash(said: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(said)).hexdigest()[:16]


def _lines(path: Path) -> dict[str, np.ndarray]:
    """Rows of JSON lines."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is no JSON ({why(error)})") from error
        name = next((key for key in ("logits", "probs") if isinstance(row, dict) and key in row), None)
        if name is None or type(row.get("index")) is not int or not _numbers(row[name]):
            raise ValueError(f'line {number} is not {{"index": 0, "logits": [...]}}')
        rows.append((name, row["index"], row[name]))
    names = {name for name, _, _ in rows}
    if len(names) != 1:
        raise ValueError("it has both logits and probs" if names else "it is empty")
    said = [row for _, _, row in rows]
    with np.errstate(over="ignore"):  # infinite, and refused as such
        logits = np.asarray(said, np.float32)
    return {names.pop(): logits, "index": np.asarray([index for _, index, _ in rows], np.int64)}


def _numbers(value) -> bool:
    """Whether this is a list of numbers, or of such lists."""
    return isinstance(value, list) and all(type(x) in (int, float) or _numbers(x) for x in value)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    names = check_npz(path)
    wanted = [name for name in names if name in ("logits", "probs", "index")]
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in wanted or names}
