"""Every method by the name the command line knows. Each file of objectives declares its own, in its `METHODS`."""

from difflib import get_close_matches

from kdjax.objectives.base import Method, Objective
from kdjax.objectives.detection import centred, crops, gfl, imitation, localization, retinanet, ssd
from kdjax.objectives.features import classifier_reuse, factor, fsp, ofd, projection, review, semckd, stages
from kdjax.objectives.logits import (
    control_variate,
    correction,
    correlation,
    decoupled,
    heads,
    logit,
    multi_label,
    multi_teacher,
    own,
    supervised,
    teacher_free,
    wrappers,
)
from kdjax.objectives.relations import contrastive, relational
from kdjax.objectives.tokens import divergences, states, written
from kdjax.references import is_reference, load_reference

FILES = (
    supervised, teacher_free, multi_label, logit, decoupled, correction, wrappers, own, control_variate, multi_teacher, heads,
    correlation, divergences, stages, fsp, factor, projection, relational, contrastive, ofd, review, semckd, classifier_reuse,
    gfl, retinanet, centred, ssd, crops, localization, imitation, states, written,
)  # fmt: skip

FAMILIES = (
    "labels", "logit", "head", "batch", "divergence", "feature", "relational", "contrastive", "text", "detection",
)  # fmt: skip

METHODS: dict[str, Method] = dict(
    sorted(
        ((name, entry) for file in FILES for name, entry in file.METHODS.items()),
        key=lambda item: FAMILIES.index(item[1].family),
    )
)


def method(name: str) -> Method:
    """The method called `name`, or the user's own by reference, such as "my_method.py:mine".

    Raises:
      ValueError: there is none; the sentence names the nearest.
    """
    if is_reference(name):
        return own_method(name)
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}."
        raise ValueError(f"Unknown method {name!r}; {hint} `kdjax methods` lists them all.")
    return METHODS[name]


def own_method(reference: str) -> Method:
    """The method that a reference names: a `Method`, an objective, its class, or a function that returns one of these.

    Raises:
      ValueError: it is none of these.
    """
    found = load_reference(reference)
    if callable(found):
        try:
            found = found()
        except TypeError as error:
            raise ValueError(f"{reference} must be called without arguments to be a method: {error}.") from error
    if isinstance(found, Objective):
        family = (
            "logit" if any(read.startswith("teacher.") for part in found.parts for read in part.reads) else "labels"
        )
        return Method(found, family, f"of {reference}")
    if not isinstance(found, Method):
        raise ValueError(
            f"{reference} is a {type(found).__name__}; a method is an Objective, a sum of them, or a Method."
        )
    return found
