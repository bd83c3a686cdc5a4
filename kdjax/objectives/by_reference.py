"""An objective of the user's own as saved experiments hold it: by where its class is, not as code."""

import dataclasses
import functools
from typing import ClassVar

from kdjax.objectives.base import Objective
from kdjax.references import load_reference, read_options, reference_to, write_options


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByReference(Objective):
    """Stands for an objective defined elsewhere. Its file or module is imported when its `parts` are asked for, not before."""

    reference: str = ""
    """FILE.py:CLASS or package.module:CLASS"""
    options: tuple[str, ...] = ()
    """its hyperparameters, as name=value"""

    reads: ClassVar = ()

    @property
    def parts(self):
        return tuple(self.weight * part for part in resolve(self.reference, self.options).parts)


@functools.lru_cache
def resolve(reference: str, options: tuple[str, ...]) -> Objective:
    """The objective that a reference and its options mean.

    Raises:
      ValueError: it is no class of objectives, or has other fields.
    """
    found = load_reference(reference)
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ValueError(f"{reference} is no class of objectives.")
    try:
        return found(**read_options(options))
    except TypeError as error:
        raise ValueError(f"{reference} does not take {', '.join(options)}: {error}.") from error


def by_reference(objective: Objective) -> ByReference:
    """What stands for an objective whose class is not kdjax's.

    Raises:
      ValueError: a hyperparameter that cannot be written down.
    """
    fields = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective) if f.name != "weight"}
    return ByReference(weight=objective.weight, reference=reference_to(type(objective)), options=write_options(fields))
