"""COCO's evaluation: the whole tables of pycocotools, stored ones and, where it is installed, those of random cases."""

import contextlib
import doctest
import importlib
import io

import numpy as np
import pytest

from kdjax.tasks.detection.average_precision import THRESHOLDS, evaluate
from kdjax.tasks.detection.matching import AREAS, Detections, Objects, match
from tests.golden_cases import cases

TABLES, NUMBERS = cases("coco_eval"), cases("coco_map")
STATS = ["AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR1", "AR10", "AR100", "AR_S", "AR_M", "AR_L"]


def corners(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def read(gt, dt, image_ids, cat_ids):
    """Our arrays of COCO's tables: images that are not evaluated left out, categories by their place, widths as given."""
    categories = np.unique(cat_ids)
    gt, dt = (
        rows[np.isin(rows[:, 0], image_ids) & np.isin(rows[:, 1], categories)]
        for rows in (np.float64(gt), np.float64(dt))
    )
    place = lambda rows: np.searchsorted(categories, rows[:, 1])
    objects = Objects(corners(gt[:, 2:6]), place(gt), gt[:, 0], gt[:, 6], gt[:, 7] > 0)
    area = dt[:, 4] * dt[:, 5]
    return Detections(corners(dt[:, 2:6]), dt[:, 6], place(dt), dt[:, 0], area), objects, len(categories)


def of(case):
    return read(*(case.inputs[name] for name in ("gt", "dt", "image_ids", "cat_ids")))


def close(actual, expected):
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", TABLES, ids=repr)
def test_tables_golden(case):
    most = case.hyper["max_dets"]
    ours = evaluate(*of(case), max_detections=most, class_agnostic=not case.hyper["use_cats"])
    expected = case.outputs["f64"]
    assert (expected["precision"] > 0).any()
    for name in ("precision", "recall", "scores"):
        close(getattr(ours, name), expected[name])
    if "stats" in expected:
        close(list(ours.summary().values()), expected["stats"])
        assert list(ours.summary()) == STATS


@pytest.mark.parametrize("case", TABLES, ids=repr)
def test_matches_golden(case):
    """Of the first image and category: which object each detection takes."""
    gt, (image, category), agnostic = case.inputs["gt"], case.outputs["f64"]["first"], not case.hyper["use_cats"]
    detections, objects, _ = of(case)
    most = max(case.hyper["max_dets"])
    matches = match(detections, objects, thresholds=THRESHOLDS, max_detections=most, class_agnostic=agnostic)
    label = np.searchsorted(np.unique(case.inputs["cat_ids"]), category)
    chosen = (agnostic | (detections.labels[matches.rows] == label)) & (detections.images[matches.rows] == image)
    kept = np.isin(gt[:, 0], case.inputs["image_ids"]) & np.isin(gt[:, 1], case.inputs["cat_ids"])
    rows = np.append(np.flatnonzero(kept) + 1, 0)
    np.testing.assert_array_equal(rows[matches.found[0]][:, chosen], case.outputs["f64"]["match_dt"])


@pytest.mark.parametrize("case", NUMBERS, ids=repr)
def test_numbers_golden(case):
    ours, expected = evaluate(*of(case)), case.outputs["f64"]
    close(ours.precision[..., 0, -1], expected["precision"])
    close(ours.recall[..., 0, -1], expected["recall"])
    close(list(ours.summary().values()), expected["stats"])
    close(ours.by_class(), expected["ap_per_cat"])


# --- against pycocotools itself ---


def annotation(number, row, **more):
    return {"id": number, "image_id": int(row[0]), "category_id": int(row[1]), "bbox": list(row[2:6]), **more}


def reference(gt, dt, image_ids, cat_ids, most, agnostic):
    """precision, recall, scores and the twelve numbers by pycocotools."""
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "images": [{"id": int(i)} for i in image_ids],
            "categories": [{"id": int(c)} for c in cat_ids],
            "annotations": [annotation(n, row, area=row[6], iscrowd=int(row[7])) for n, row in enumerate(gt, 1)],
        }
        truth.createIndex()
        found = coco.COCO()
        boxes = [annotation(n, row, area=row[4] * row[5], score=row[6], iscrowd=0) for n, row in enumerate(dt, 1)]
        found.dataset = {**truth.dataset, "annotations": boxes}
        found.createIndex()
        run = evaluation.COCOeval(truth, found, "bbox")
        run.params.maxDets, run.params.useCats = list(most), int(not agnostic)
        run.evaluate()
        run.accumulate()
        if list(most) == [1, 10, 100]:
            run.summarize()
    return run.eval["precision"], run.eval["recall"], run.eval["scores"], run.stats


def scene(seed):
    """Boxes on a grid of quarter pixels, where all arithmetic is exact: ties of score and IoU, exact areas, crowds."""
    rng = np.random.default_rng(seed)
    images, categories = np.arange(1, 9) * 3, np.array([2, 5, 7, 40])
    sides = [8, 16, 32, 32.25, 31.75, 96, 96.25, 60]
    gt = np.stack([
        rng.choice(images[:-2], 50), rng.choice(categories[:-1], 50), *rng.integers(0, 160, (2, 50)) / 4,
        *rng.choice(sides, (2, 50)), rng.choice([100, 1024, 1024.5, 9216, 9215.5], 50), rng.random(50) < 0.15,
    ], axis=1)  # fmt: skip
    near = gt[rng.integers(0, 50, 120)][:, :6] + np.pad(rng.integers(-12, 13, (120, 4)) / 4, ((0, 0), (2, 0)))
    random = np.stack([
        rng.choice(images, 60), rng.choice(categories, 60), *rng.integers(0, 160, (2, 60)) / 4, *rng.choice([0, *sides], (2, 60))
    ], axis=1)  # fmt: skip
    dt = np.concatenate([near, gt[:20, :6], random])
    dt = np.concatenate([dt, rng.integers(1, 9, (len(dt), 1)) / 8], axis=1)
    return gt, rng.permutation(dt), images, categories


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most, agnostic", [((1, 10, 100), False), ((1, 3, 7), False), ((1, 10, 100), True)])
def test_random_cases_are_those_of_pycocotools(seed, most, agnostic):
    tables = scene(seed)
    *expected, stats = reference(*tables, most, agnostic)
    ours = evaluate(*read(*tables), max_detections=most, class_agnostic=agnostic)
    for actual, table in zip((ours.precision, ours.recall, ours.scores), expected, strict=True):
        close(actual, table)
    if most == (1, 10, 100):
        close(list(ours.summary().values()), stats)


@pytest.mark.parametrize("missing", ["detections", "objects", "both"])
def test_nothing_found_or_nothing_there(missing):
    gt, dt, *rest = scene(0)
    gt, dt = gt[: 0 if missing != "detections" else None], dt[: 0 if missing != "objects" else None]
    *expected, stats = reference(gt, dt, *rest, (1, 10, 100), False)
    ours = evaluate(*read(gt, dt, *rest))
    for actual, table in zip((ours.precision, ours.recall, ours.scores), expected, strict=True):
        close(actual, table)
    close(list(ours.summary().values()), stats)
    assert ours.summary()["AP"] == (0 if missing == "detections" else -1)


# --- by hand ---

SQUARE = np.array([[0.0, 0.0, 40.0, 40.0]])
ZERO = np.array([0])


def found(*rows):
    """Detections of class 0 in image 0: `(left, top, right, bottom, score)` each."""
    rows = np.array(rows, float)
    return Detections(rows[:, :4], rows[:, 4], np.zeros(len(rows), int), np.zeros(len(rows), int))


def test_difficult_objects_are_neither_asked_for_nor_held_against():
    boxes = np.concatenate([SQUARE, SQUARE + 100])
    twice = found((100, 100, 140, 140, 0.9), (100, 100, 140, 139, 0.8), (0, 0, 40, 40, 0.7))
    labels = images = np.zeros(2, int)
    difficult = Objects(boxes, labels, images, difficult=np.array([False, True]))
    close(evaluate(twice, difficult, 1, thresholds=(0.5,)).summary()["AP"], 1)
    # As an ordinary object, its second detection is wrong: precision 1 up to recall 0.5 (51 of 101), 2/3 after.
    ordinary = evaluate(twice, Objects(boxes, labels, images), 1, thresholds=(0.5,))
    close(ordinary.summary()["AP"], (51 + 50 * 2 / 3) / 101)
    # By its IoU, not by the share of a detection inside, as of a crowd.
    inside = found((100, 100, 120, 120, 0.9), (0, 0, 40, 40, 0.7))
    close(evaluate(inside, difficult, 1, thresholds=(0.5,)).summary()["AP"], 0.5)
    crowd = Objects(boxes, labels, images, crowd=np.array([False, True]))
    close(evaluate(inside, crowd, 1, thresholds=(0.5,)).summary()["AP"], 1)


def test_of_equal_objects_the_last_is_taken_which_is_that_of_the_last_class_where_classes_are_one():
    twice, labels, images = np.concatenate([SQUARE, SQUARE]), np.array([1, 0]), np.zeros(2, int)
    ours = found((0, 0, 40, 40, 0.5))
    for classes, agnostic, row in ((np.zeros(2, int), False, 1), (np.zeros(2, int), True, 1), (labels, True, 0)):
        matches = match(ours, Objects(twice, classes, images), thresholds=(0.5,), class_agnostic=agnostic)
        np.testing.assert_array_equal(matches.found[0], [[row]])


def test_other_ranges_and_thresholds_have_their_own_names():
    found_it, there = found((0, 0, 40, 40, 0.5)), Objects(SQUARE, ZERO, ZERO)
    areas = {"all": AREAS["all"], "tiny": (0, 9)}
    ours = evaluate(found_it, there, 2, thresholds=(0.6,), areas=areas, max_detections=(5,))
    assert ours.summary() == pytest.approx({"AP": 1.0, "AP_tiny": -1.0, "AR5": 1.0, "AR_tiny": -1.0}, abs=1e-12)
    close(ours.by_class(), [1, -1])


def test_padded_batches_become_lists():
    """A detector that is always right, but for one of the two objects of the second image."""
    boxes = np.array([[[0, 0, 40, 40], [np.nan] * 4], [[9, 9, 20, 20], [50, 50, 90, 90]]])
    labels, mask = np.array([[1, -1], [0, 1]]), np.array([[True, False], [True, True]])
    there = Objects.of_batch(boxes, labels, mask, [8, 4], difficult=np.array([[False, True], [True, False]]))
    np.testing.assert_array_equal(there.images, [8, 4, 4])
    np.testing.assert_array_equal(there.difficult, [False, True, False])
    ours = Detections.of_batch(boxes, np.array([[0.9, 0], [0, 0.8]]), labels, [8, 4])
    np.testing.assert_array_equal(ours.images, [8, 4])
    close(evaluate(ours, there, 2).by_class(), [-1, 1])
    close(evaluate(ours, Objects.of_batch(boxes, labels, mask, [8, 4]), 2).by_class(), [0, 1])


@pytest.mark.parametrize("name", ["average_precision", "suppression", "decoding"])
def test_examples_in_docstrings(name):
    outcome = doctest.testmod(importlib.import_module(f"kdjax.tasks.detection.{name}"))
    assert outcome.attempted > 0 and outcome.failed == 0


def test_refuses_what_does_not_fit():
    one = Objects(SQUARE, ZERO, ZERO)
    with pytest.raises(ValueError, match=r"objects.labels is 3 in row 0, there are 3 classes"):
        evaluate(found((0, 0, 1, 1, 0.5)), Objects(SQUARE, ZERO + 3, ZERO), 3)
    with pytest.raises(ValueError, match=r"detections.scores is nan in row 1"):
        found((0, 0, 1, 1, 0.5), (0, 0, 1, 1, np.nan))
    with pytest.raises(ValueError, match=r"objects.boxes is nan in row 0"):
        Objects(SQUARE * np.nan, ZERO, ZERO)
    with pytest.raises(ValueError, match=r"objects.labels is -1 in row 0; leave padding out"):
        Objects(SQUARE, ZERO - 1, ZERO)
    with pytest.raises(ValueError, match=r"objects.images has shape \(2,\), there are 1 boxes"):
        Objects(SQUARE, ZERO, np.zeros(2))
    with pytest.raises(ValueError, match=r"objects.boxes has shape \(1, 1, 4\)"):
        Objects(SQUARE[None], ZERO, ZERO)
    with pytest.raises(ValueError, match=r"max_detections is \(10, 1\)"):
        evaluate(found((0, 0, 1, 1, 0.5)), one, 1, max_detections=(10, 1))
