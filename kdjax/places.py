"""Where things of a user lie on this machine: paths as they are written, and the folder of caches."""

import errno
import logging
import os
import re
import tempfile
from pathlib import Path

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^\\]*")  # a Path makes one slash of two


def is_address(path: str | os.PathLike) -> bool:
    """Whether this is an address, such as gs://bucket/run, and no path; also after it has been a `Path`."""
    return ADDRESS.fullmatch(str(path)) is not None


def local(path: str | os.PathLike, error: type[Exception], what: str = "A folder or file") -> Path:
    """A path that somebody wrote, with ~ as the home folder.

    Args:
      path: what was written.
      error: what to raise.
      what: it is, for the message.

    Raises:
      error: it is an address, has a zero in it, or there is no home folder.
    """
    if is_address(path):
        raise error(f"{what} is on this machine's disks, and {path} is an address; copy it there and give its path.")
    if "\0" in str(path):
        raise error(f"{what} cannot be called {str(path)!r}: there is a zero byte in it; give another name.")
    try:
        str(path).encode()
    except UnicodeEncodeError as caught:
        raise error(
            f"{what} cannot be called {str(path)!r}: this locale has no letters for it; set PYTHONUTF8=1, or give a plain name."
        ) from caught
    try:
        return Path(path).expanduser()
    except RuntimeError as caught:
        raise error(
            f"{path} is below a home folder that is not known here; set HOME, or give a whole path."
        ) from caught


def cache_folder(name: str) -> Path:
    """The folder of one of kdjax's caches: in XDG_CACHE_HOME, or ~/.cache, or where there is no home in the temporary folder."""
    place = os.environ.get("XDG_CACHE_HOME")
    if not place:
        try:
            place = Path.home() / ".cache"
        except RuntimeError:
            place = Path(tempfile.gettempdir()) / f"cache-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    return Path(place) / "kdjax" / name


# What the system says where there is no room, or no right, to write.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
SPOKEN = {
    "No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT, "File too large": errno.EFBIG,
    "Read-only file system": errno.EROFS, "Permission denied": errno.EACCES, "Input/output error": errno.EIO,
}  # fmt: skip


def disk_fault(error: BaseException) -> str | None:
    """What the disk had against it, in a sentence, where that is behind an error or any of its causes; else None."""
    for found in causes(error):
        number = found.errno if isinstance(found, OSError) else None
        if number not in (*NO_ROOM, *NO_RIGHT, errno.EIO):
            number = next((n for words, n in SPOKEN.items() if words in str(found)), None)
        if number is None:
            continue
        place = _place(found)
        if number in NO_ROOM:
            why = {errno.EDQUOT: "your quota there is used up", errno.EFBIG: "files may not be as large there"}
            return (
                f"The disk of {place} is full ({why.get(number, 'no space is left')}); make room, and say --resume: what was "
                "saved before is kept."
            )
        if number in NO_RIGHT:
            return f"{place} cannot be written ({os.strerror(number)}); give it free, or name another folder."
        return f"The disk of {place} fails ({os.strerror(number)}); save what is on it, and go on on another."
    return None


class NotAgain(logging.Filter):
    """Drops what a writer logs of a fault of the disk, or of being stopped: it comes up in the foreground and is said there."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        return error is None or (isinstance(error, Exception) and disk_fault(error) is None)


def hear_once() -> None:
    """Lets faults of the disk be said once, in the foreground, and not also by every thread that writes."""
    logger = logging.getLogger("absl")
    if not any(isinstance(one, NotAgain) for one in logger.filters):
        logger.addFilter(NotAgain())


def causes(error: BaseException) -> list[BaseException]:
    """An error and everything behind it, also what a group holds, each once."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or any(one is other for other in found):
            continue
        found.append(one)
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return found


def _place(error: BaseException) -> str:
    """The path that an error is about, as far as it says."""
    for name in ("filename2", "filename"):
        if isinstance(getattr(error, name, None), str | bytes | Path):
            return os.fsdecode(getattr(error, name))
    quoted = re.search(r"""(?:["'](/[^"'\n]+)["'])|((?<!\w)/[^\s"':;,)\]]+)""", str(error))
    return next(filter(None, quoted.groups())) if quoted else "the run"
