"""What a method is: frozen hyperparameters, the loss terms they make of a context, and the modules they train.

Objectives add and weigh, `CrossEntropy() + 8.0 * DKD(temperature=4.0)`, and are bound to two networks' shapes by
`kdjax.objectives.binding.bind`, after which training sees only `init` and `apply`.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax.schedules import Adaptive, Schedule, WarmUp, epochs, multiply, value_at
from kdjax.types import Array, Context, DataInfo, ModelOutput, Progress, Term, Terms, Tree


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

      reads: what it looks at: targets by name ("labels"), and fields of the networks' outputs as "student.logits",
        "teacher.features", or "peer.logits" of a network trained alongside; "teacher.gradient" is the gradient of the task
        at the teacher.
      views: the views of each example that it compares; the networks run once on each. The first is the main one.
      teacher_mode: "eval", or "train" for methods whose teacher normalises by the batch and keeps updating its statistics.
      deploys: whether something of it stays on the deployed student, see `deploy`.
      carries: submodules of its own module that an earlier phase trains; they are taken from the phase that the network
        begins with (`start`). A part of the same name goes on by itself.
      group: which gradient group its terms belong to, "task" or "distill", unless a term says otherwise.
      trains: what module of its own it trains, in a word or two.
      decays: whether weight decay applies to the parameters of its own modules.
      mixes: whether it takes the targets of mixed inputs, `kdjax.types.Mixed`, and soft labels.
      any_classes: whether the two networks may know different classes.
      formula: the loss in a line of plain text.
      paper: where it comes from.
    """

    weight: float | Schedule = 1.0
    """what the term is multiplied by: a number, or a schedule"""

    reads: ClassVar[tuple[str, ...]] = ("student.logits", "teacher.logits")
    views: ClassVar[tuple[str, ...]] = ("main",)
    teacher_mode: ClassVar[Literal["eval", "train"]] = "eval"
    deploys: ClassVar[bool] = False
    carries: ClassVar[tuple[str, ...]] = ()
    group: ClassVar[str] = "distill"
    trains: ClassVar[str] = ""
    decays: ClassVar[bool] = True
    mixes: ClassVar[bool] = False
    any_classes: ClassVar[bool] = False
    formula: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, float | int) and not isinstance(value, bool)
            if number and not math.isfinite(value):
                raise ValueError(f"{type(self).__name__}.{field.name} is {value}; it must be finite.")
            if number and field.name.endswith("temperature") and value <= 0:
                raise ValueError(
                    f"{type(self).__name__}.{field.name} is {value}; it divides logits and must be above 0."
                )

    def build(
        self, student: ModelOutput, teacher: ModelOutput | None, data: DataInfo, rngs: nnx.Rngs
    ) -> nnx.Module | None:
        """The module this method trains (projector, head, bank), made for two networks' output shapes; or None."""
        return None

    def terms(self, module: nnx.Module | None, ctx: Context) -> Term | Terms:
        """The unweighted loss terms of one batch; several are a dict by name."""
        raise TypeError(f"{type(self).__name__} does not say its loss; define terms(module, ctx).")

    def now(self, progress: Progress, *names: str) -> dict[str, Any]:
        """The named hyperparameters as they are now: a schedule's value, or what was given."""
        return {name: value_at(getattr(self, name), progress) for name in names}

    @property
    def combines(self) -> bool:
        """Whether the gradients of the groups are to be combined by `combine`, at the price of a backward pass each."""
        return False

    def combine(self, gradients: dict[str, Tree]) -> Tree:
        """Makes one gradient of those of every group, summed over devices."""
        return jax.tree.map(lambda *leaves: sum(leaves), *gradients.values())

    def correct(self, gradient: Tree, at_teacher: Tree, over_data: Tree | None, progress: Progress) -> Tree:
        """For an objective that reads "teacher.gradient": the student's gradient, corrected by the task's gradient at the
        teacher's weights on this batch, and its mean over the data set where one was given."""
        raise TypeError(f"{type(self).__name__} does not say its correction; define correct.")

    def deploy(self, module: nnx.Module | None, output: ModelOutput, teacher_call: Callable[..., Any]) -> ModelOutput:
        """For an objective that `deploys`: what the deployed student says, of what its network said. Evaluation mode."""
        return output

    def check_teacher(self, said: ModelOutput) -> str:
        """What is wrong with a teacher, by what it says of some examples, in a sentence; "" if nothing. Asked before training."""
        return ""

    @property
    def corrects_over_data(self) -> bool:
        """Whether `correct` wants the task's mean gradient over the whole data set."""
        return False

    @property
    def in_chunks(self) -> bool:
        """Whether its terms can be had without logits `[B, L, V]` that are there at once, see `Context.student_call`."""
        return False

    @property
    def of_top_k(self) -> bool:
        """Whether that is so of a teacher, too, of which the most likely classes alone are kept."""
        return self.in_chunks and not any(read.startswith("teacher.") for read in self.reads)

    @property
    def per_element(self) -> bool:
        """Whether rows may have elements (tokens, pixels), `[B, L, ...]`, each of which then counts by itself. Else it takes
        logits `[B, C]` and embeddings `[B, D]`, and features where no element of a row is masked: it would count those."""
        return not any(read.partition(".")[2] in ("features", "preactivations", "embedding") for read in self.reads)

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


@dataclasses.dataclass(frozen=True)
class Method:
    """A named, weighted objective, as a paper or its code uses it.

    Attributes:
      objective: with the weights of the source.
      family: "labels" (no teacher), "logit" (row by row), "head" (trains something beside), "batch" (compares rows),
        "divergence" (from language models), "feature", "relational", "contrastive", "detection" (of detectors) or "text" (of
        transformers).
      summary: what it does, in a line.
      setting: where the weights come from.
      paper: where the method comes from, if not from its first objective's.
      before: what the student (or something beside it) is trained by in a phase of its own, before; None for most.
      on_policy, teacher_writes: of language models, the share of the steps whose examples the student writes itself, and the
        teacher's share in what it draws from; fields of the same names of the phase. 0 for most.
    """

    objective: Objective
    family: str
    summary: str
    setting: str = ""
    paper: Paper | None = None
    before: Objective | None = None
    on_policy: float | Schedule | Adaptive = 0.0
    teacher_writes: float = 0.0


# Where weights come from, most often; and the warm-up that some of them have.
CIFAR = "CIFAR-100, released benchmark code"
RELEASED = "the released code's default"
RAMP = WarmUp(length=epochs(20), staircase=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targeted(Objective):
    """Base of the methods that need a target class for every row."""

    unlabelled: Literal["skip", "teacher"] = "teacher"
    """rows whose label may not be used: leave them out, or take the teacher's most likely class as target"""

    reads: ClassVar = ("student.logits", "teacher.logits", "labels")

    def targets(self, ctx: Context) -> tuple[Array, Array]:
        """`(labels, where)`: the target class of each row or element, and which of them count."""
        labels = ctx.batch.labels
        usable = ctx.batch.mask(labels.shape, labelled=True)
        if self.unlabelled == "skip":
            return labels, usable
        guess = jnp.argmax(ctx.teacher.logits, axis=-1)
        return jnp.where(usable, labels, guess), ctx.batch.mask(labels.shape)


def seen(ctx: Context, view: str) -> Context:
    """The context of a view."""
    return ctx if view == "main" else ctx.views[view]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sum(Objective):
    """Several objectives added up; a factor multiplies the weight of each."""

    objectives: tuple[Objective, ...] = ()

    @property
    def parts(self):
        return tuple(self.weight * part for objective in self.objectives for part in objective.parts)

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
SPELLINGS = {
    "DistiLLM2": "distillm2", "FitNet": "fitnet", "LoCa": "loca", "MiniLLM": "minillm", "ReviewKD": "reviewkd",
    "SemCKD": "semckd", "SimKD": "simkd",
}  # fmt: skip


def weighted(part: Objective, terms: Term | Terms, ctx: Context) -> Terms:
    """The terms of a part by name ("" for a single one), with the part's weight of now, and its group if they have none."""
    terms = {"": terms} if isinstance(terms, Term) else terms
    weight = value_at(part.weight, ctx.progress)
    return {
        name: dataclasses.replace(term, weight=term.weight * weight, group=term.group or part.group)
        for name, term in terms.items()
    }
