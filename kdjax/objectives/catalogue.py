"""The methods for a reader: as a table, and one explained."""

import dataclasses
import functools
import inspect
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import jax
import numpy as np

from kdjax.models.detectors import DetectorOutput
from kdjax.objectives.base import Objective, part_names, snake_case
from kdjax.objectives.binding import bind
from kdjax.objectives.logits.logit import KD
from kdjax.objectives.methods import METHODS, Method, method
from kdjax.objectives.tokens.states import OfTokens
from kdjax.schedules import Schedule
from kdjax.types import DataInfo, ModelOutput

HEADINGS = ("method", "source", "family", "reads", "trains", "objective, with its weights", "what it does")


def rows(names: Iterable[str] = METHODS) -> list[tuple[str, ...]]:
    """What the table says of methods, in the order of `HEADINGS`."""
    return [
        (
            name,
            source(entry),
            entry.family,
            reads(entry.objective),
            trains(entry.objective),
            written(entry.objective),
            entry.summary,
        )
        for name, entry in ((name, METHODS[name]) for name in names)
    ]


def find_methods(words: Sequence[str]) -> list[str]:
    """Methods of which all these words are said: name, purpose, family, or title, authors, venue, year and arXiv number of its
    papers, and failing these its docstrings. All methods if there are no words.

    Raises:
      ValueError: there is none; the sentence names the nearest.
    """
    wanted = [word.lower() for phrase in words for word in phrase.split()]
    for described in (facts_of, text_of):
        found = [name for name in METHODS if all(word in described(name) for word in wanted)]
        if found:
            return found
    near = get_close_matches("_".join(wanted), METHODS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "try another word."
    raise ValueError(f"No method is about {' '.join(words)!r}; {hint} `kdjax methods` lists them all.")


def facts_of(name: str) -> str:
    """What a method can be found by, in small letters."""
    entry = METHODS[name]
    papers = [entry.paper, *(part.paper for part in all_parts(entry.objective))]
    return " ".join(
        [name, name.replace("_", " "), entry.summary, entry.family, *part_names(entry.objective)]
        + [f"{p.title} {p.authors} {p.venue} {p.year} {p.arxiv}" for p in papers if p is not None]
    ).lower()


def text_of(name: str) -> str:
    """The same with what its docstrings say."""
    parts = all_parts(METHODS[name].objective)
    return " ".join([facts_of(name), *(inspect.getdoc(type(part)) or "" for part in parts)]).lower()


def all_parts(objective: Objective) -> list[Objective]:
    """The parts of an objective, and those that they wrap."""
    found = []
    for part in objective.parts:
        inner = [getattr(part, field.name) for field in dataclasses.fields(part)]
        found += [part, *(deep for value in inner if isinstance(value, Objective) for deep in all_parts(value))]
    return found


def markdown() -> str:
    """The methods as the table that the README carries."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "| " + " | ".join("---" for _ in HEADINGS) + " |"]
    lines += [f"| `{name}` | {paper} | {family} | {read} | {trained} | `{objective}` | {summary} |"
              for name, paper, family, read, trained, objective, summary in rows()]  # fmt: skip
    return "\n".join(lines)


def show_methods(console: Any, names: Iterable[str] = METHODS) -> None:
    """Prints methods by family: what each does, and below it its source, what it reads and trains, and its objective."""
    from rich.padding import Padding
    from rich.text import Text

    family = None
    for name, paper, of_family, read, trained, objective, summary in rows(names):
        if of_family != family:
            family = of_family
            console.print(f"\n{family}", style="bold")
        console.print(f"{name:<20}{summary}", highlight=False, soft_wrap=True)
        facts = [paper, f"reads {read}", "" if trained == "–" else f"trains {trained}", objective]
        console.print(Padding(Text("; ".join(filter(None, facts)), "dim"), (0, 0, 0, 20)))
    count = f"{len(list(names))} of {len(METHODS)}" if list(names) != list(METHODS) else str(len(METHODS))
    console.print(f"\n{count} methods. `kdjax methods NAME` explains one, with its formula and hyperparameters.")


def show_method(name: str, console: Any) -> None:
    from rich.text import Text

    entry = method(name)

    def line(text: str, **style: Any) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True, **style)

    console.print(Text.assemble((name, "bold"), f": {entry.summary}"), soft_wrap=True)
    line(written(entry.objective))
    line(f"weights from: {entry.setting or 'no published setting; see the objective'}")
    if entry.on_policy:
        mixed = f", drawn from a mixture with {entry.teacher_writes} of the teacher" if entry.teacher_writes else ""
        line(f"share of the steps whose examples the student writes: {entry.on_policy}{mixed}")
    if any(part.trains for part in entry.objective.parts):
        line(f"trains beside the student: {trains(entry.objective)}")
    for part_name, part in part_names(entry.objective).items():
        line(f"\n{part.weight} × {part_name}", style="bold")
        explain(part, line)


def explain(part: Objective, line: Any) -> None:
    """Prints formula, text, fields and paper of one objective, and of the one it wraps."""
    if part.formula:
        line(f"  {part.formula}")
    line(inspect.getdoc(type(part)))
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name != "weight":
            line(f"  {field.name} = {written(value) if isinstance(value, Objective) else value}")
    if part.paper is not None:
        paper = part.paper
        arxiv = f", arXiv {paper.arxiv}" if paper.arxiv else ""
        line(f"  {paper.authors}: {paper.title}. {paper.venue} {paper.year}{arxiv}")
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Objective):
            line(f"\n{field.name}: {next(iter(part_names(value)))}")
            explain(value, line)


def written(objective: Objective) -> str:
    """An objective as a person would write it down: "0.1 * cross_entropy + 0.9 * kd(temperature=4.0)".

    Fields that have their usual value are left out, but for numbers, which are the method's hyperparameters.
    """
    texts = []
    for part in part_names(objective).values():
        arguments = []
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.name == "weight" or (value == field.default and isinstance(value, str | bool | tuple | None)):
                continue
            arguments.append(f"{field.name}={written(value) if isinstance(value, Objective) else value}")
        stem = snake_case(type(part).__name__)
        weight = f"({part.weight}) * " if isinstance(part.weight, Schedule) else f"{part.weight} * "
        weight = "" if part.weight == 1.0 else weight
        texts.append(f"{weight}{stem}({', '.join(arguments)})" if arguments else f"{weight}{stem}")
    return " + ".join(texts)


def source(entry: Method) -> str:
    """Authors, venue and year of a method: of its own paper, or of that of its first objective that is more than a
    cross-entropy or KD, or of the first at all."""
    papers = [part.paper for part in entry.objective.parts if part.paper is not None and not isinstance(part, KD)]
    papers += [part.paper for part in entry.objective.parts if isinstance(part, KD)]
    paper = entry.paper or next(iter(papers), None)
    return f"{paper.authors}, {paper.venue} {paper.year}" if paper else ""


def reads(objective: Objective) -> str:
    """What its parts look at: "labels, student logits, teacher logits + features"."""
    found: dict[str, list[str]] = {}
    for part in objective.parts:
        for read in part.reads:
            role, _, field = read.partition(".")
            fields = found.setdefault(role, [])
            if field not in fields:
                fields.append(field)
    return ", ".join(f"{role} {' + '.join(fields)}".strip() for role, fields in sorted(found.items()))


def trains(objective: Objective) -> str:
    """What its parts train beside the student, and how many parameters that is from resnet32x4 to resnet8x4."""
    names = ", ".join(part.trains for part in objective.parts if part.trains)
    count = extra_parameters(objective)
    return f"{names} ({count:,})" if count else names or "–"


@functools.cache  # its modules are traced
def extra_parameters(objective: Objective) -> int:
    """Parameters of an objective's own modules for the usual pair: resnet32x4 teaches resnet8x4 100 classes; of detectors, two
    with pyramids of 256 channels; of texts, two transformers as wide as BERT-base."""
    shape = lambda *sizes: jax.ShapeDtypeStruct((64, *sizes), np.float32)
    stages = (shape(32, 32, 32), shape(32, 32, 64), shape(16, 16, 128), shape(8, 8, 256))
    output: Any = ModelOutput(logits=shape(100), features=stages, preactivations=stages, embedding=shape(256))
    targets: tuple[str, ...] = ("labels", "multi_hot", "written", "drawn")
    if any("boxes" in part.reads for part in objective.parts):
        sizes, targets = ((8, 8), (4, 4)), ("labels", "boxes")
        pyramid = tuple(shape(*size, 256) for size in sizes)
        heads = [part.kind for part in objective.parts if hasattr(part, "kind")]
        output = DetectorOutput(
            shape(80, 80), shape(80, 4, 17), pyramid, strides=(8, 16), regression=shape(80, 4), centreness=shape(80),
            head=heads[0] if heads else "gfl", taps={"image": shape(64, 64, 3)},
        )  # fmt: skip
    if any(isinstance(part, OfTokens) for part in objective.parts):
        heads = {name: shape(6, 128, 12, 64) for name in ("queries", "keys", "values")}
        tokens = (shape(128, 1, 768),) * 7
        output = ModelOutput(logits=shape(100), features=tokens, taps={**heads, "scores": shape(6, 12, 128, 128)})
    roles = {"student": output, "teacher": output}
    for part in objective.parts:
        if judge := getattr(part, "judge", ""):  # of crops of objects
            roles[judge] = ModelOutput(logits=shape(8, 80))
    classes = roles["student"].logits.shape[-1]
    params, _ = jax.eval_shape(
        bind(objective, roles["student"], roles["teacher"], DataInfo(classes, 50_000, targets=targets)).init,
        jax.random.key(0),
    )
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
