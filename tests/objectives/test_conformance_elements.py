"""The one mask convention, for every objective: rows that exist, and within them elements (tokens, pixels) that do.

An objective takes each element by itself, and then it is the same as with the elements that count as its rows; or it takes
rows whole, and refuses rows with elements in words where it would count their padding. There are as many elements as rows
here, so that a mask of the one could land on the other.
"""

import dataclasses

import jax
import numpy as np
import pytest

from kdjax.objectives import bind
from kdjax.reduction import group_losses
from kdjax.types import Batch, Context, DataInfo, ModelOutput
from tests.objectives.conformance import (
    CLASSES,
    CLOCK,
    QUICK,
    STEP,
    VIEWS,
    expected,
    reason,
    subjects,
    targets,
    with_a_loss,
)

SIZE = 4  # rows, and elements of a row
INFO = DataInfo(CLASSES, 100, targets=("labels", "multi_hot"), labels=np.arange(100, dtype=np.int32) % CLASSES)
WHERE = np.array([True, True, False, True])
LABELLED = np.array([True, False, True, True])
ELEMENTS = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]], bool)
PROMPTS = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
COUNTED = WHERE[:, None] & ELEMENTS
USABLE = COUNTED & LABELLED[:, None] & ~PROMPTS


def of_elements(part) -> bool:
    """Whether all that it reads of the networks is of elements."""
    read = {r.partition(".")[2] for r in part.reads} - {""}
    return part.per_element and read <= {"logits"}


def names(elements: bool) -> list[str]:
    return [name for name in with_a_loss() if of_elements(subjects()[name]) == elements]


def logits(seed: int) -> dict[str, dict[str, ModelOutput]]:
    """`[B, L, C]` of every role and view, nan where an element does not count; the teacher has two members."""
    rng = np.random.default_rng(seed)

    def one(members):
        z = 3 * rng.standard_normal((SIZE, SIZE, CLASSES)).astype(np.float32)
        many = {"members": 3 * rng.standard_normal((SIZE, SIZE, 2, CLASSES)).astype(np.float32)} if members else {}
        return jax.tree.map(lambda x: np.where(np.reshape(COUNTED, (SIZE, SIZE) + (1,) * (x.ndim - 2)), x, np.nan),
                            ModelOutput(logits=z, taps=many))  # fmt: skip

    return {role: {view: one(role == "teacher") for view in VIEWS} for role in ("student", "teacher", "peer")}


def evaluate(bound, said, rows):
    """`(loss, terms)` and its gradient by all that the student says."""

    def loss(student):
        contexts = {
            view: Context(student[view], said["teacher"][view], rows, CLOCK.at(STEP), peer=said["peer"][view],
                          key=jax.random.key(3))
            for view in VIEWS
        }  # fmt: skip
        ctx = dataclasses.replace(contexts["main"], views={"strong": contexts["strong"]})
        terms, _ = bound.apply(*bound.init(jax.random.key(1)), ctx, train=True)
        return sum(group_losses(terms).values()), terms

    return jax.value_and_grad(loss, has_aux=True)(said["student"])


@pytest.mark.parametrize("subject", names(elements=True))
def test_every_element_counts_by_itself_and_no_other_does(subject):
    said = logits(0)
    labels = np.random.default_rng(1).integers(0, CLASSES, (SIZE, SIZE)).astype(np.int32)
    labels[~COUNTED | PROMPTS] = -100
    index = np.arange(SIZE, dtype=np.int32)
    masks = {"elements": ELEMENTS, "labelled_elements": ~PROMPTS}
    rows = Batch({}, targets(labels), index, WHERE, LABELLED, **masks)
    flat = lambda tree: jax.tree.map(lambda x: x[COUNTED], tree)
    alone = Batch(
        {},
        flat(targets(labels)),
        np.arange(COUNTED.sum(), dtype=np.int32),
        np.ones(COUNTED.sum(), bool),
        USABLE[COUNTED],
    )
    part = subjects()[subject]
    whole, single = (
        bind(part, x["student"]["main"], x["teacher"]["main"], INFO)
        for x in (said, {role: flat(views) for role, views in said.items()})
    )
    both = jax.jit(
        lambda said, flat, rows, alone: (evaluate(whole, said, rows), evaluate(single, flat, alone)),
        compiler_options=QUICK,
    )
    found, wanted = jax.device_get(both(said, {role: flat(views) for role, views in said.items()}, rows, alone))
    with expected("every element counts by itself", subject):
        ((value, terms), gradient), ((value_alone, terms_alone), gradient_alone) = found, wanted
        np.testing.assert_allclose(value, value_alone, rtol=1e-5, atol=1e-6)
        for name, term in terms.items():
            assert term.count == terms_alone[name].count
        for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_alone), strict=True):
            np.testing.assert_allclose(ours[COUNTED], theirs, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(ours[~COUNTED], 0)
        assert all(np.isfinite(term.sum) for term in terms.values())


@pytest.mark.parametrize("subject", names(elements=False))
def test_what_takes_rows_whole_refuses_rows_with_elements_or_does_not_see_them(subject):
    """Logits `[B, L, C]`, or features with padding inside; an embedding `[B, D]` is of the row, whatever it is made of."""
    part = subjects()[subject]
    fields = {read.partition(".")[2] for read in part.reads}
    output = ModelOutput(
        logits=np.zeros((SIZE, SIZE, CLASSES), np.float32), embedding=np.zeros((SIZE, 4), np.float32),
        features=(np.zeros((SIZE, 4, 4, 4), np.float32),) * 3, preactivations=(np.zeros((SIZE, 4, 4, 4), np.float32),) * 3,
    )  # fmt: skip
    if "logits" in fields and not part.per_element:
        with pytest.raises(ValueError, match=r"of whole rows, \[B, C\]"):
            bind(part, output, output, INFO)
    if fields & {"embedding"}:
        with pytest.raises(ValueError, match=r"of whole rows, \[B, D\]|of whole rows, \[B, C\]"):
            bind(part, dataclasses.replace(output, embedding=output.logits), output, INFO)
    if fields & {"features", "preactivations"}:
        rows = dataclasses.replace(output, logits=np.zeros((SIZE, CLASSES), np.float32))
        bound = bind(part, rows, rows, INFO)
        batch = Batch.of({}, np.zeros(SIZE, np.int32), elements=ELEMENTS)
        ctx = Context(rows, rows, batch, CLOCK.at(0))
        with pytest.raises(ValueError, match="of whole rows, and the batch masks elements"):
            bound.apply({}, {}, ctx, train=True)


def test_every_objective_is_one_or_the_other():
    assert sorted(names(True) + names(False)) == sorted(with_a_loss())
    assert len(names(True)) > 30
    assert all(reason("every element counts by itself", name) is None for name in ("kd", "dkd", "cross_entropy"))
