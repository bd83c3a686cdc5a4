"""An image classifier teaches a detector: the terms are the losses of the positives and their objects; masks and extremes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.objectives import ClassifierClasses, ClassifierCrops, ObjectClasses, bind
from kdjax.objectives.detection.locations import decoded, locate
from kdjax.reduction import group_losses
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput
from tests.objectives.detection import test_ssd

ROWS, CLASSES, CROPS = 6, test_ssd.CLASSES, 12  # crops of an image at most; there are fewer positives
DATA = DataInfo(CLASSES, targets=("labels", "boxes"))
METHOD = ClassifierClasses() + ClassifierCrops(size=8, pool=2, boxes=CROPS)


def stem(part, crops):
    """A teacher's first layer: differences of neighbours."""
    assert part == "stem"
    return jnp.concatenate([crops[:, 1:] - crops[:, :-1], crops[:, :-1] ** 2], axis=-1)


def made(seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal((ROWS, *shape)).astype(np.float32)
    student = dataclasses.replace(test_ssd.said(rng, ROWS, True), taps={"image": draw(32, 40, 2)})
    student = dataclasses.replace(student, regression=0.3 * student.regression)
    return student, ModelOutput(logits=draw(3, CLASSES)), test_ssd.made(rng, ROWS)


@jax.jit
def run(student, teacher, batch):
    """`(terms, gradients)` of both parts, by what the detector says."""
    bound = bind(METHOD, student, teacher, DATA)

    def total(parts):
        said = dataclasses.replace(student, **parts)
        ctx = Context(said, teacher, batch, Clock(10).at(0), teacher_call=stem)
        terms, _ = bound.apply({}, {}, ctx, train=True)
        return sum(group_losses(terms).values()), terms

    parts = {name: getattr(student, name) for name in ("logits", "regression")}
    return jax.grad(total, has_aux=True)(parts)[::-1]


@jax.jit
def by_hand(logits, judged, boxes, targets, image, positive):
    """Both losses of one image, of all its boxes with a mask."""
    classes = losses.classifier_to_detector_kl(logits, judged, positive, temperature=2.0, avg_factor=1.0)
    judge = lambda crops: stem("stem", crops)
    options = {"pool": 2, "size": 8, "mask": positive, "avg_factor": 1.0}
    return classes, losses.crop_feature_l1(boxes, targets, image, judge, **options)


def test_terms_are_the_losses_of_positives():
    """Image by image, without picking the positives; rows that do not count hold nan."""
    student, teacher, targets = made(0)
    kept = np.array([1, 0, 1, 1, 1, 1], bool)
    bad = jax.tree.map(lambda x: np.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan), (student, teacher))
    batch = Batch.of(np.zeros((ROWS, 1)), targets, where=kept)
    terms, gradients = jax.device_get(run(*bad, batch))
    found = locate(student, batch)
    boxes = decoded(student, found)
    classes = crops = count = 0.0
    for i in np.flatnonzero(kept):
        positive, objects = np.asarray(found.positive)[i], np.maximum(found.index, 0)[i]
        assert 0 < positive.sum() <= CROPS
        one = by_hand(
            student.logits[i], teacher.logits[i][objects], boxes[i], targets["boxes"][i][objects],
            student.taps["image"][i], positive,
        )  # fmt: skip
        classes, crops, count = classes + one[0], crops + one[1], count + positive.sum()
    for name, wanted in (("classifier_classes", classes), ("classifier_crops", crops)):
        np.testing.assert_allclose(terms[name].sum, wanted, rtol=1e-4)
        assert terms[name].count == count
    for gradient in gradients.values():
        assert np.isfinite(gradient).all() and not gradient[~kept].any() and gradient[kept].any()


@pytest.mark.parametrize("what", ["nothing", "no area", "outside", "far"])
def test_extremes_are_finite(what):
    student, teacher, targets = made(1)
    if what == "nothing":
        targets = {"boxes": np.full_like(targets["boxes"], np.nan), "labels": np.full_like(targets["labels"], -1)}
    elif what == "no area":
        targets["boxes"][..., 2:] = targets["boxes"][..., :2]
    elif what == "outside":
        targets["boxes"] += 1e4
    else:
        student = dataclasses.replace(student, regression=1e3 * student.regression)
    terms, gradients = jax.device_get(run(student, teacher, Batch.of(np.zeros((ROWS, 1)), targets)))
    assert all(np.isfinite(term.sum) for term in terms.values())
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    if what == "nothing":
        assert not any(term.sum for term in terms.values())


def test_a_classifier_learns_objects_that_are_there():
    _, teacher, targets = made(2)
    kept = np.arange(ROWS) != 1
    bound = bind(ObjectClasses(), teacher, None, DATA)
    ctx = Context(teacher, None, Batch.of(np.zeros((ROWS, 1)), targets, where=kept), Clock(10).at(0))
    term = bound.apply({}, {}, ctx, train=True)[0]["object_classes"]
    log_p = np.asarray(jax.nn.log_softmax(teacher.logits))
    there = (targets["labels"] >= 0) & kept[:, None]
    wanted = -np.take_along_axis(log_p, np.maximum(targets["labels"], 0)[..., None], -1)[..., 0][there]
    np.testing.assert_allclose(term.sum / term.count, wanted.mean(), rtol=1e-5)


def test_what_does_not_fit_is_refused_in_words():
    student, teacher, _ = made(0)
    plain = dataclasses.replace(student, taps={})
    with pytest.raises(ValueError, match=r"student does not pass it on; set data\.show_boxes"):
        bind(ClassifierCrops(), plain, teacher, DATA)
    with pytest.raises(ValueError, match="wants a teacher that judges crops of the objects"):
        bind(ClassifierClasses(), student, student, DATA)
    with pytest.raises(ValueError, match="knows 2 classes and the detector 3"):
        bind(ClassifierClasses(), student, ModelOutput(logits=teacher.logits[..., :2]), DATA)
