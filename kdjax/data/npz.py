"""Reads .npz files of anybody: nothing is unpickled, and no array is made larger than the file says it is."""

import math
import struct
import zipfile
import zlib
from pathlib import Path

from numpy.lib import format as npy

# What the readers of zip and npy files raise for a damaged one.
BROKEN = (
    OSError, ValueError, EOFError, KeyError, TypeError, IndexError, AttributeError, NotImplementedError, RuntimeError,
    OverflowError, MemoryError, RecursionError, SyntaxError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def check_npz(path: Path) -> list[str]:
    """Names of the arrays in an .npz file, whose headers agree with how much there is of each.

    Raises:
      one of BROKEN: they do not, or this is no .npz file.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = npy.read_magic(file)
                shape, _, dtype = (
                    npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
                )
                name = member.filename.removesuffix(".npy")
                if dtype.hasobject:
                    raise ValueError(f"{name} holds objects")
                if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                    raise ValueError(f"{name} says that it is {list(shape)} {dtype}, and there is not as much")
        return [member.filename.removesuffix(".npy") for member in archive.infolist()]


def why(error: Exception) -> str:
    """The first line of what was wrong."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]
