"""An objective bound to the shapes of two networks: all that training sees of a method."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.models.functional import FunctionalModule, NoModule, functionalise
from kdjax.objectives.base import Objective, part_names, weighted
from kdjax.objectives.tokens.together import taken_together
from kdjax.types import Array, Batch, Context, DataInfo, ModelOutput, Terms, Tree

ROLES = ("student", "teacher", "peer")


@dataclasses.dataclass(frozen=True)
class Bound:
    """An objective with its modules as pure functions.

    Attributes:
      parts: the objectives it adds up, by unique name, in order of writing.
      modules: the functional module of every part that trains one.
    """

    parts: dict[str, Objective]
    modules: dict[str, FunctionalModule]

    def init(self, key: Array) -> tuple[Tree, Tree]:
        """`(params, state)` of the parts' own modules, one sub-dict a part that has one."""
        params, state = {}, {}
        for i, (name, module) in enumerate(self.modules.items()):
            params[name], state[name] = module.init(jax.random.fold_in(key, i))
        return params, state

    def apply(self, params: Tree, state: Tree, ctx: Context, *, train: bool) -> tuple[Terms, Tree]:
        """Terms of one batch by part name ("dkd", or "dkd/tckd" for one of several), and the new state."""
        self._check_elements(ctx.batch)
        ctx = without_nonsense(ctx)
        terms: Terms = {}
        new_state = {}
        together = taken_together(self.parts, ctx)
        for i, (name, part) in enumerate(self.parts.items()):
            part_ctx = ctx if ctx.key is None else dataclasses.replace(ctx, key=jax.random.fold_in(ctx.key, i))
            module = self.modules.get(name)
            with jax.named_scope(name):
                if name in together:
                    values = together[name]
                elif module is None:
                    values = part.terms(None, part_ctx)
                else:
                    values, new_state[name] = module.call(
                        params[name],
                        state[name],
                        lambda m, part=part, part_ctx=part_ctx: part.terms(m, part_ctx),
                        train=train,
                        key=part_ctx.key,
                        axis=ctx.axis,
                    )
            for term_name, term in weighted(part, values, ctx).items():
                terms[f"{name}/{term_name}" if term_name else name] = term
        return terms, new_state

    def _check_elements(self, batch: Batch) -> None:
        """Refuses features of rows with padding inside, where a part would count the padding."""
        for name, part in self.parts.items():
            whole = [r for r in part.reads if r.partition(".")[2] in ("features", "preactivations")]
            if batch.elements is not None and whole and not part.per_element:
                raise ValueError(
                    f"Objective {name!r} takes {whole[0]} of whole rows, and the batch masks elements of its rows, whose padding "
                    "it would count; use objectives of logits, or batches without elements=."
                )

    @property
    def combine(self):
        """The one part's own way to combine group gradients, or None where they are simply added."""
        part = self._only(lambda part: part.combines, "combines the gradients of task and distillation in its own way")
        return part and part.combine

    @property
    def correct(self):
        """The one part's correction by the teacher's gradient, or None."""
        part = self._only(lambda part: "teacher.gradient" in part.reads, "corrects the gradient by the teacher's")
        return part and part.correct

    def _only(self, condition, what):
        found = [part for part in self.parts.values() if condition(part)]
        if len(found) > 1:
            names = " and ".join(type(part).__name__ for part in found)
            raise ValueError(f"{names}: each {what}; use one of them at a time.")
        return found[0] if found else None

    @property
    def corrects_over_data(self) -> bool:
        """Whether the step wants the teacher's mean gradient over the data."""
        return any(part.corrects_over_data for part in self.parts.values())

    @property
    def needs_teacher(self) -> bool:
        return reads_teacher(self.parts.values())

    @property
    def unmixed(self) -> dict[str, str]:
        """Parts that read targets and do not take those of mixed inputs, and which targets."""
        return unmixed(self.parts)

    @property
    def in_chunks(self) -> bool:
        """Whether no part wants logits of tokens whole."""
        return all(part.in_chunks for part in self.parts.values())

    @property
    def teacher_mode(self) -> str:
        """ "train" if a part wants the teacher to normalise by the batch and to keep updating its statistics."""
        return "train" if any(part.teacher_mode == "train" for part in self.parts.values()) else "eval"

    @property
    def deployed(self) -> tuple[str, Objective] | None:
        """Name and objective of the one part that leaves something on the deployed student, or None."""
        part = self._only(lambda part: part.deploys, "leaves something of its own on the deployed student")
        return next(((name, own) for name, own in self.parts.items() if own is part), None)

    @property
    def needs_peer(self) -> bool:
        """Whether a second network is to be trained alongside, each the other's teacher."""
        return any(read.startswith("peer.") for part in self.parts.values() for read in part.reads)

    @property
    def peer_order(self) -> str:
        """In which order the student and its peer are updated."""
        return next(part.order for part in self.parts.values() if any(r.startswith("peer.") for r in part.reads))

    @property
    def views(self) -> tuple[str, ...]:
        """The views of each example that the networks must see, the main one first."""
        return ("main", *sorted({view for part in self.parts.values() for view in part.views} - {"main"}))

    def decay_mask(self, params: Tree) -> Tree:
        """True for the parameters that weight decay applies to, in the structure of `init`'s params."""
        return {name: jax.tree.map(lambda _, part=self.parts[name]: part.decays, tree) for name, tree in params.items()}


def bind(objective: Objective, student: ModelOutput, teacher: ModelOutput | None, data: DataInfo) -> Bound:
    """Binds an objective to what two networks give, and checks that they give what it reads.

    Args:
      objective: a method, or a sum of them.
      student: shapes of the student's output (`kdjax.models.output_shapes`, or arrays).
      teacher: shapes of the teacher's, or None where there is no teacher.
      data: number of classes and examples.

    Raises:
      ValueError: one sentence for the first thing that does not fit.
    """
    problems = check(objective, student, teacher, data)
    if problems:
        raise ValueError(problems[0])
    parts = part_names(objective)
    modules = {}
    for name, part in parts.items():

        def build(rngs, part=part):
            return part.build(student, teacher, data, rngs)

        with contextlib.suppress(NoModule):
            modules[name] = functionalise(build)
    return Bound(parts, modules)


def without_nonsense(ctx: Context) -> Context:
    """The context with 0 in place of inf and nan in rows and elements that do not count.

    A loss that leaves such a one out would still send 0 * nan back to the network. What is finite there stays: it may enter
    the statistics of a BatchNorm.
    """
    student, teacher, peer = _cleared((ctx.student, ctx.teacher, ctx.peer), ctx.batch.where, ctx.batch.elements)
    views = {name: without_nonsense(view) for name, view in ctx.views.items()}
    return dataclasses.replace(ctx, student=student, teacher=teacher, peer=peer, views=views)


@jax.jit  # traced once for outputs of the same shapes, not for every objective and program anew
def _cleared(outputs, where, elements):
    masks = Batch({}, None, None, where, where, elements)
    shape = () if elements is None else elements.shape

    def clear(x):
        if x.shape[:1] != where.shape:
            return x
        of_elements = shape and x.shape[: len(shape)] == shape
        kept = masks.mask(shape if of_elements else x.shape[:1])
        return jnp.where(jnp.reshape(kept, kept.shape + (1,) * (x.ndim - kept.ndim)) | jnp.isfinite(x), x, 0)

    return jax.tree.map(clear, outputs)


def check(objective: Objective, student: Any, teacher: Any, data: DataInfo | None = None) -> list[str]:
    """Everything that keeps an objective from working with two networks' outputs, and this data, a sentence each."""
    problems = []
    fields = [field.name for field in dataclasses.fields(student)]
    targets = ("labels",) if data is None else data.targets
    for name, part in part_names(objective).items():
        for read in part.reads:
            role, _, field = read.partition(".")
            if role in targets:
                if data is not None and data.soft and not part.mixes:
                    problems.append(
                        f"Objective {name!r} reads {role} as class indices, and the data has soft ones; use one that takes them "
                        "(cross_entropy, label_smoothing) or reads the teacher only."
                    )
                continue
            output = teacher if role == "teacher" else student  # a peer is another student
            if role not in ROLES and not field:
                problems.append(f"Objective {name!r} learns from targets called {role!r}, and the data has "
                                f"{', '.join(targets) or 'none'}.")  # fmt: skip
            elif role not in ROLES or not (field in fields or read == "teacher.gradient"):
                problems.append(f"Objective {name!r} reads {read!r}; it can read {', '.join(targets)}, or {'/'.join(ROLES)} "
                                f"with one of {', '.join(fields)}.")  # fmt: skip
            elif output is None:
                problems.append(f"Objective {name!r} reads {read}, but there is no teacher; give the phase one.")
            elif read != "teacher.gradient" and not _present(getattr(output, field, None)):
                problems.append(f"Objective {name!r} reads {read}, which the {role} network does not give; return them in a "
                                f"ModelOutput, or pass output= to the adapter{mend(field, output)}.")  # fmt: skip
            elif field in ("logits", "embedding") and getattr(output, field).ndim > 2 and not part.per_element:
                problems.append(
                    f"Objective {name!r} takes {read} of whole rows, {WHOLE[field][0]}, and the {role} network gives "
                    f"{list(getattr(output, field).shape)}; {WHOLE[field][1]}."
                )
    logits = {role: getattr(output, "logits", None) for role, output in (("student", student), ("teacher", teacher))}
    compares_logits = any("teacher.logits" in part.reads and not part.any_classes for part in objective.parts)
    if not problems and compares_logits and data is not None and "aligned" in data.targets:
        problems.append(
            "The teacher reads other tokens than the student, so that their logits are not of the same things; use uld, which "
            "compares sorted probabilities."
        )
    if not problems and compares_logits and not any(x is None for x in logits.values()):
        theirs, ours = logits["teacher"].shape[-1], logits["student"].shape[-1]
        if theirs != ours:
            problems.append(
                f"The teacher has {theirs} classes and the student {ours}; "
                "they must agree: set the student's number of classes, or cut the teacher's logits to the shared ones."
            )
    reads_logits = any("student.logits" in part.reads for part in objective.parts)
    single = logits["student"] is not None and logits["student"].shape[-1:] == (1,)
    if not problems and reads_logits and single and data is not None and data.num_classes > 1:
        problems.append(
            f"The student gives one logit and the data has {data.num_classes} classes: a softmax of one is always 1, so nothing "
            "would be learned; give a logit a class."
        )
    reads_labels = any({"student.logits", "labels"} <= set(part.reads) for part in objective.parts)
    if not problems and reads_labels and logits["student"] is not None and data is not None:
        ours = logits["student"].shape[-1]
        if ours < data.num_classes:
            problems.append(
                f"The student gives {ours} logits and the data has {data.num_classes} classes; give a logit a class."
            )
    return problems


def mend(field: str, output: Any) -> str:
    """What else gives a field that an output does not have."""
    taps = ", ".join(getattr(output, "taps", ())) if field in MENDS and field != "taps" else ""
    return MENDS.get(field, "") + (f"; it has the taps {taps}, which are read by name alone" if taps else "")


def reads_teacher(parts) -> bool:
    """Whether any of the objectives looks at the teacher."""
    return any(read.startswith("teacher.") for part in parts for read in part.reads)


def unmixed(parts: dict[str, Objective]) -> dict[str, str]:
    """Those of the named objectives that read targets and do not take those of mixed inputs, and the target."""
    targets = {name: [read for read in part.reads if "." not in read] for name, part in parts.items() if not part.mixes}
    return {name: reads[0] for name, reads in targets.items() if reads}


# What else gives a field that a network does not.
BY_PATH = (
    ", or name the submodules that give them, {}, by the paths that kdjax.models.module_paths(network, inputs) lists"
)
MENDS = {
    "features": BY_PATH.format('features=("PATH", ...)'),
    "preactivations": BY_PATH.format('preactivations=("PATH", ...)'),
    "embedding": BY_PATH.format('embedding="PATH" (or "PATH:input", what a module is given)'),
    "taps": ", such as output=two_heads, or taps={name: path}",
    "losses": ', or name what the model notes by sow, losses=("NAME", ...)',
}
WHOLE = {
    "logits": ("[B, C]", "use an objective that takes each element by itself, such as kd"),
    "embedding": ("[B, D]", "pool it to one vector a row"),
}


def _present(field) -> bool:
    return field is not None and not (isinstance(field, tuple | dict) and not field)
