"""What a method is: frozen hyperparameters, the loss terms they make of a context, and the modules they train.

Objectives add and weigh, `CrossEntropy() + 8.0 * DKD(temperature=4.0)`, and are bound to two networks' shapes by
`kdjax.objectives.binding.bind`, after which training sees only `init` and `apply`.
"""

import dataclasses
import re
from typing import ClassVar

import jax
from flax import nnx

from kdjax.schedules import Schedule, multiply, value_at
from kdjax.types import Context, DataInfo, ModelOutput, Term, Terms, Tree


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    authors: str
    venue: str
    year: int
    arxiv: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Base of every method. Subclasses are frozen dataclasses: comparable, printable, saved as data.

    Class attributes say what a method needs; the dry run shows them and binding checks them:

      reads: what it looks at: "labels", and fields of `ModelOutput` as "student.logits", "teacher.features", ...
      group: which gradient group its terms belong to, "task" or "distill".
      trains: what module of its own it trains, in a word or two.
      decays: whether weight decay applies to the parameters of its own modules.
      paper: where it comes from.
    """

    weight: float | Schedule = 1.0
    """what the term is multiplied by: a number, or a schedule"""

    reads: ClassVar[tuple[str, ...]] = ("student.logits", "teacher.logits")
    group: ClassVar[str] = "distill"
    trains: ClassVar[str] = ""
    decays: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = None

    def build(
        self, student: ModelOutput, teacher: ModelOutput | None, data: DataInfo, rngs: nnx.Rngs
    ) -> nnx.Module | None:
        """The module this method trains (projector, head, bank), made for two networks' output shapes; or None."""
        return None

    def terms(self, module: nnx.Module | None, ctx: Context) -> Term | Terms:
        """The unweighted loss terms of one batch; several are a dict by name."""
        raise TypeError(f"{type(self).__name__} does not say its loss; define terms(module, ctx).")

    def combine(self, gradients: dict[str, Tree]) -> Tree:
        """Makes one gradient of those of every group, summed over devices; override it to do more than add them."""
        return jax.tree.map(lambda *leaves: sum(leaves), *gradients.values())

    @property
    def parts(self) -> "tuple[Objective, ...]":
        return (self,)

    def __add__(self, other: "Objective") -> "Sum":
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum(objectives=self.parts + other.parts)

    def __mul__(self, factor: float | Schedule) -> "Objective":
        return dataclasses.replace(self, weight=multiply(self.weight, factor))

    __rmul__ = __mul__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sum(Objective):
    """Several objectives added up; a factor multiplies the weight of each."""

    objectives: tuple[Objective, ...] = ()

    @property
    def parts(self):
        return tuple(self.weight * part for part in self.objectives)

    def __mul__(self, factor):
        return Sum(objectives=tuple(factor * part for part in self.parts))

    __rmul__ = __mul__


def part_names(objective: Objective) -> dict[str, Objective]:
    """Name of every part in order of writing: "fitnet", and "fitnet_2" for the second of a kind."""
    names: dict[str, Objective] = {}
    for part in objective.parts:
        stem = snake_case(type(part).__name__)
        count = 1 + sum(name == stem or re.fullmatch(rf"{stem}_\d+", name) is not None for name in names)
        names[stem if count == 1 else f"{stem}_{count}"] = part
    return names


def snake_case(name: str) -> str:
    """`CrossEntropy` to `cross_entropy`, `FitNet` to `fitnet`, `KD` to `kd`."""
    words = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z][a-z0-9]*", name)
    return SPELLINGS.get(name, "_".join(words).lower())


# Names whose parts are not words of their own.
SPELLINGS = {"FitNet": "fitnet"}


def weighted(part: Objective, terms: Term | Terms, ctx: Context) -> Terms:
    """The terms of a part by name ("" for a single one), with the part's weight and group of now."""
    terms = {"": terms} if isinstance(terms, Term) else terms
    weight = value_at(part.weight, ctx.progress)
    return {
        name: dataclasses.replace(term, weight=term.weight * weight, group=part.group) for name, term in terms.items()
    }
