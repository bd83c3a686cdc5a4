"""Names of classes."""

import collections
from collections.abc import Hashable, Iterable


def named_twice(names: Iterable[Hashable]) -> Hashable | None:
    """The first name that comes more than once; None where each comes once."""
    return next((name for name, times in collections.Counter(names).items() if times > 1), None)
