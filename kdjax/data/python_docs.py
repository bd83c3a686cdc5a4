"""What Python's standard library says of itself: its docstrings, each with the kind of module that it is from.

Real English of the machine's own Python, which needs no download: about five thousand texts in seven classes, a fifth of them to
test on. The sources are read, not run. Another version of Python says a few things otherwise; that of the texts is in their
fingerprint. Python's licence (PSF) covers them; nothing is copied into this package.
"""

import ast
import functools
import sys
import sysconfig
import zlib
from pathlib import Path

import numpy as np

from kdjax.data.errors import DataError

NAME = "python_docs"
LEAST = 5  # words of a docstring
MODULES = {
    "concurrency": "asyncio threading multiprocessing concurrent queue sched subprocess selectors contextlib signal",
    "files": "os posixpath ntpath genericpath pathlib shutil tempfile glob fnmatch zipfile tarfile gzip bz2 lzma fileinput "
    "filecmp mimetypes _pyio io",
    "language": "ast inspect importlib dis tokenize types typing abc dataclasses enum functools pickle pickletools copy "
    "traceback runpy pkgutil compileall symtable modulefinder",
    "network": "email http urllib socket ssl ftplib imaplib smtplib poplib socketserver wsgiref xmlrpc ipaddress mailbox",
    "numbers": "decimal _pydecimal fractions statistics random numbers datetime _pydatetime calendar colorsys _strptime zoneinfo",
    "testing": "unittest doctest pdb bdb cmd trace timeit profile cProfile pstats logging warnings tracemalloc pydoc code codeop",
    "text": "re string textwrap difflib json csv configparser argparse optparse getopt gettext html xml plistlib shlex codecs "
    "encodings locale pprint tomllib",
}
CLASSES = tuple(MODULES)


def read(split: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The texts of "train" or "test", and their classes `[N]` int32; a text is in one of the two by a checksum.

    Raises:
      DataError: this Python has no sources.
    """
    texts, labels = zip(
        *((text, label) for text, label in docstrings() if (_number(text) % 5 == 0) == (split == "test")), strict=True
    )
    return texts, np.array(labels, np.int32)


@functools.cache
def docstrings() -> tuple[tuple[str, int], ...]:
    """Every docstring of five words or more with its class, each text once, in the order of modules and lines."""
    root, found = Path(sysconfig.get_paths()["stdlib"]), {}
    for label, names in enumerate(MODULES.values()):
        for name in names.split():
            for path in _sources(root, name):
                for text in _docstrings(path):
                    found.setdefault(text, label)
    if len(set(found.values())) < len(CLASSES):
        raise DataError(f"Python {sys.version.split()[0]} has no sources in {root}; use another data set than {NAME}.")
    return tuple(found.items())


def _sources(root: Path, name: str) -> list[Path]:
    file = root / f"{name}.py"
    inside = lambda path: not {"test", "tests"} & set(path.relative_to(root).parts)
    return [file] if file.exists() else sorted(path for path in (root / name).rglob("*.py") if inside(path))


def _docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split())
            found += [text] if len(text.split()) >= LEAST else []
    return found


def _number(text: str) -> int:
    return zlib.crc32(text.encode())
