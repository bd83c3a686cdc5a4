"""Every method by the name the command line knows. Each file of objectives declares its own, in its `METHODS`."""

from difflib import get_close_matches

from kdjax.objectives import (
    contrastive,
    correction,
    correlation,
    decoupled,
    divergence,
    factor,
    feature,
    flow,
    heads,
    logit,
    ofd,
    projection,
    relational,
    reuse,
    review,
    semckd,
    several,
    supervised,
    teacher_free,
    variance,
    wrappers,
)  # fmt: skip
from kdjax.objectives.base import Method

FILES = (
    supervised, teacher_free, logit, decoupled, correction, wrappers, variance, several, heads, correlation, divergence,
    feature, flow, factor, projection, relational, contrastive, ofd, review, semckd, reuse,
)  # fmt: skip

FAMILIES = ("labels", "logit", "head", "batch", "divergence", "feature", "relational", "contrastive")

METHODS: dict[str, Method] = dict(
    sorted(
        ((name, entry) for file in FILES for name, entry in file.METHODS.items()),
        key=lambda item: FAMILIES.index(item[1].family),
    )
)


def method(name: str) -> Method:
    """The method called `name`; an unknown name is answered with the nearest known one."""
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}."
        raise ValueError(f"Unknown method {name!r}; {hint} `kdjax methods` lists them all.")
    return METHODS[name]
