"""JSON files of a run: written whole or not at all, in UTF-8 whatever the locale, and read with a sentence for what is wrong."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, data: Any) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    temporary.rename(path)


def read_json(path: Path, error: type[Exception], mend: str) -> dict[str, Any]:
    """The object in a file.

    Args:
      path: of the file.
      error: what to raise where it holds no JSON object: empty, cut off, not to be read.
      mend: how the sentence ends, such as "delete it and go on with --resume".

    Raises:
      error: in one sentence, with the path.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as caught:
        raise error(f"{path} cannot be read ({caught.strerror or caught}); {mend}.") from caught
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as caught:
        what = "is empty" if not path.stat().st_size else "is damaged: it is no JSON, or cut off"
        raise error(f"{path} {what}; {mend}.") from caught
    if not isinstance(found, dict):
        raise error(f"{path} is damaged: it holds a {type(found).__name__} and no object; {mend}.")
    return found
