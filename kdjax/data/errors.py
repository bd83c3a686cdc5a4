"""What is wrong with data, and what is worth knowing of it."""

import contextlib
import functools
import sys

from kdjax.terminal import visible


class DataError(Exception):
    """Data is missing, unknown or unfit; the message is one sentence that names the mend."""


@functools.cache
def note(sentence: str) -> None:
    """Says once, on stderr, how data was read where that is not what everybody expects."""
    with contextlib.suppress(OSError):  # nobody is listening
        print(f"kdjax: {visible(sentence)}.", file=sys.stderr)
