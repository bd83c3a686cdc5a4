"""Cross-entropy and a divergence of logits that are made a few tokens at a time: made once for both."""

from kdjax.objectives.base import Objective
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.objectives.tokens import chunked
from kdjax.objectives.tokens.divergences import Divergence
from kdjax.schedules import value_at
from kdjax.types import Context, Term


def taken_together(parts: dict[str, Objective], ctx: Context) -> dict[str, Term]:
    """The terms of the first divergence and of the labels by the names of their parts; none where each goes by itself, as a
    subclass does that has terms of its own."""
    having = lambda kind: [name for name, part in parts.items() if type(part).terms is kind.terms]
    labels, taught = having(CrossEntropy), having(Divergence)
    if ctx.student_call is None or not ctx.summed or not labels or not taught or chunked.kept(ctx.teacher) is not None:
        return {}
    names = taught[0], labels[0]
    weights = tuple(value_at(parts[name].weight, ctx.progress) for name in names)
    divergence = parts[names[0]]
    terms = chunked.terms_together(ctx, divergence.chunked, weights, **divergence.in_pieces(ctx.progress))
    return dict(zip(names, terms, strict=True))
