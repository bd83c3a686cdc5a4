"""Kinds of errors and what each costs, on scenes whose answer is known by hand."""

import numpy as np
import pytest

from kdjax.tasks.detection.average_precision import evaluate
from kdjax.tasks.detection.errors import KINDS, edge_differences, edge_errors, edge_errors_by_level, split_errors
from kdjax.tasks.detection.matching import Detections, Objects


def box(left, top=0, width=40, height=40):
    return [left, top, left + width, top + height]


def detections(*rows):
    """`(box, score, label, image)` each."""
    boxes, scores, labels, images = zip(*rows, strict=True) if rows else [[]] * 4
    return Detections(np.reshape(boxes, (-1, 4)), np.array(scores), np.array(labels, int), np.array(images, int))


def objects(*rows, **more):
    """`(box, label, image)` each."""
    boxes, labels, images = zip(*rows, strict=True) if rows else [[]] * 3
    return Objects(np.reshape(boxes, (-1, 4)), np.array(labels, int), np.array(images, int), **more)


# One image: IoU with the first object of a box that is moved by 20 is 1/3, by 36 is 1/19 = 0.05.
THERE = objects((box(0), 0, 0), (box(200), 1, 0), (box(400), 0, 0))
RIGHT = box(0), 0.9, 0, 0


def only(kind, *, missed=0):
    return {name: int(name == kind) for name in KINDS} | {"missed": missed}


@pytest.mark.parametrize(
    "wrong, kind, target, missed",
    [
        ((box(420), 0.5, 0, 0), "localization", 2, 1),
        ((box(200, height=38), 0.5, 0, 0), "classification", 1, 1),
        ((box(0, height=38), 0.5, 0, 0), "duplicate", 0, 2),
        ((box(436), 0.5, 0, 0), "background", -1, 2),
        ((box(220), 0.5, 0, 0), "both", -1, 2),
        ((box(400), 0.5, 0, 1), "background", -1, 2),  # of another image
        ((box(600), 0.5, 2, 0), "background", -1, 2),  # of a class without objects
    ],
)
def test_each_kind_is_told_from_the_others(wrong, kind, target, missed):
    split = split_errors(detections(wrong, RIGHT), THERE, 3)
    assert split.counts == only(kind, missed=missed)
    np.testing.assert_array_equal(split.kinds, [KINDS.index(kind), -1])
    np.testing.assert_array_equal(split.targets, [target, -1])
    assert not split.missed[0] and split.missed.sum() == missed


def test_bounds_belong_to_where_they_are_said_to():
    # IoU of exactly 1/2 (width 20 of 40) finds; exactly 1/4 is a localization error at a background of 1/4.
    there = objects((box(0), 0, 0))
    assert split_errors(detections((box(0, width=20), 0.5, 0, 0)), there, 1).counts == only(None)
    quarter = detections((box(0, width=10), 0.5, 0, 0))
    assert split_errors(quarter, there, 1, background=0.25).counts == only("localization")
    assert split_errors(detections((box(0, width=10), 0.5, 1, 0)), there, 2, background=0.25).counts == only(
        "background", missed=1
    )
    assert split_errors(detections((box(0, width=20), 0.5, 1, 0)), there, 2).counts == only("classification")


def test_what_each_kind_costs():
    """Two objects of class 0, one found below an error: precision 1/2 up to recall 1/2, of 101 recalls 51."""
    there = objects((box(0), 0, 0), (box(400), 0, 0))
    right = box(0), 0.5, 0, 0
    reached, half, whole = 51 / 101, 51 / 101 / 2, 1.0

    def lost(*wrong):
        split = split_errors(detections(right, *wrong), there, 1)
        assert split.ap == pytest.approx(half)
        return {name: value for name, value in split.lost.items() if abs(value) > 1e-9}

    assert lost((box(436), 0.9, 0, 0)) == pytest.approx({"background": reached - half, "missed": 0.5 - half})
    assert lost((box(420), 0.9, 0, 0)) == pytest.approx({"localization": whole - half})
    # The surer duplicate is the one that is right, so an error that is less sure costs nothing.
    doubled = split_errors(detections(right, (box(0, height=38), 0.4, 0, 0)), there, 1)
    assert doubled.counts["duplicate"] == 1 and doubled.lost["duplicate"] == pytest.approx(0)
    assert doubled.ap == pytest.approx(reached)


def test_a_mended_class_moves_to_where_it_belongs():
    there = objects((box(0), 0, 0), (box(200), 1, 0))
    split = split_errors(detections((box(0), 0.5, 0, 0), (box(200), 0.9, 0, 0)), there, 2)
    # Class 0 has precision 1/2 at all recalls, class 1 none; mended both are whole.
    assert split.ap == pytest.approx(0.25) and split.counts == only("classification")
    assert split.lost["classification"] == pytest.approx(0.75)
    assert split.lost["missed"] == 0, "the object is not missed but taken for another"


def test_of_several_errors_about_one_object_the_surest_mends_it():
    there = objects((box(0), 0, 0))
    split = split_errors(detections((box(20), 0.5, 0, 0), (box(-20), 0.9, 0, 0)), there, 1)
    assert split.counts["localization"] == 2 and split.ap == 0
    assert split.lost["localization"] == pytest.approx(1)
    # Of an object that is found both are left out.
    split = split_errors(detections((box(20), 0.8, 0, 0), (box(-20), 0.9, 0, 0), (box(0), 0.5, 0, 0)), there, 1)
    assert split.ap == pytest.approx(1 / 3) and split.lost["localization"] == pytest.approx(2 / 3)


def test_an_object_is_found_by_the_surest_of_both_kinds():
    split = split_errors(detections((box(0), 0.9, 1, 0), (box(20), 0.5, 0, 0)), objects((box(0), 0, 0)), 2)
    assert split.counts == only("classification") | {"localization": 1} and split.ap == 0
    assert split.lost["classification"] == pytest.approx(1) and split.lost["localization"] == 0


def test_no_object_is_found_twice_by_mending():
    """Of two objects the second is missed, so that no more than half can be found."""
    there, half = objects((box(0), 0, 0), (box(400), 0, 0)), 51 / 101
    split = split_errors(detections((box(20), 0.5, 0, 0), (box(-20), 0.9, 0, 0)), there, 1)
    assert split.lost["localization"] == pytest.approx(half)
    split = split_errors(detections((box(20), 0.9, 0, 0), (box(0), 0.5, 0, 0)), there, 1)
    assert split.ap == pytest.approx(half / 2) and split.lost["localization"] == pytest.approx(half / 2)


def test_what_finds_a_crowd_or_a_difficult_object_is_no_error():
    boxes = (box(0), 0, 0), (box(200, width=80), 0, 0)
    within = (box(0), 0.5, 0, 0), (box(210, width=10, height=10), 0.9, 0, 0)
    split = split_errors(detections(*within), objects(*boxes, crowd=np.array([False, True])), 1)
    assert split.counts == only(None) and split.ap == pytest.approx(1)
    split = split_errors(detections(*within), objects(*boxes, difficult=np.array([False, True])), 1)
    assert split.counts == only("background"), "an error may be near a difficult object, but is not about it"


def test_nothing_there_and_nothing_found():
    for found, there, expected in (
        (detections(), objects(), {}),
        (detections(), objects((box(0), 0, 0)), {"missed": 1}),
        (detections((box(0), 0.5, 0, 0)), objects(), {"background": 1}),
    ):
        split = split_errors(found, there, 2)
        assert {name: count for name, count in split.counts.items() if count} == expected
        assert all(np.isfinite(value) for value in split.lost.values())
    assert split_errors(detections(), objects((box(0), 0, 0)), 1).lost["missed"] == 1


def test_the_average_precision_is_that_of_the_evaluation_and_all_detections_are_accounted_for():
    rng = np.random.default_rng(0)
    place = lambda n: np.concatenate([rng.integers(0, 60, (n, 2)), rng.integers(70, 120, (n, 2))], axis=1)
    labels, images = (lambda n: rng.integers(0, 3, n)), (lambda n: rng.integers(0, 20, n))
    there = Objects(place(60), labels(60), images(60), crowd=rng.random(60) < 0.1, difficult=rng.random(60) < 0.1)
    near, random = rng.integers(0, 60, 200), Detections(place(200), np.ones(200), labels(200), images(200))
    names = "boxes", "labels", "images"
    boxes, theirs, where = (np.concatenate([getattr(there, n)[near], getattr(random, n)]) for n in names)
    theirs = np.where(rng.random(400) < 0.8, theirs, labels(400))
    found = Detections(boxes + rng.integers(-6, 7, (400, 4)), rng.integers(0, 50, 400) / 50, theirs, where)
    split = split_errors(found, there, 3, threshold=0.75, max_detections=5)
    assert split.ap > 0.1
    assert split.ap == pytest.approx(evaluate(found, there, 3, max_detections=(5,)).summary()["AP75"], abs=1e-12)
    assert all(split.counts.values()) and all(lost >= -1e-12 for lost in split.lost.values())
    assert sum(split.counts[kind] for kind in KINDS) == (split.kinds >= 0).sum()
    assert split.missed.sum() == split.counts["missed"]


def scene(seed):
    """60 objects of three classes in 20 images, and 210 detections, most of them near one."""
    rng = np.random.default_rng(seed)
    place = lambda n: np.concatenate([rng.uniform(0, 60, (n, 2)), rng.uniform(70, 120, (n, 2))], axis=1)
    boxes, labels, images = place(60), rng.integers(0, 3, 60), rng.integers(0, 20, 60)
    near = rng.integers(0, 60, 150)
    found = np.concatenate([boxes[near] + rng.normal(0, 12, (150, 4)), place(60) - rng.uniform(0, 60, (60, 1))])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    theirs = np.where(rng.random(150) < 0.7, labels[near], rng.integers(0, 3, 150))
    theirs = np.concatenate([theirs, rng.integers(0, 3, 60)])
    where = np.concatenate([images[near], rng.integers(0, 20, 60)])
    return Detections(found, rng.permutation(210) / 210, theirs, where), Objects(boxes, labels, images)


# By tidecv 1.0.1: average precision, counts and losses in the order of KINDS, then of missed objects. Of scenes in which it does
# not matter that its recalls are x / 100 and COCO's linspace(0, 1, 101), which differ in the last bit.
TIDECV = {
    2: (0.2486598, (29, 71, 21, 27, 23, 4), [0.0354673, 0.3191887, 0.0084977, 0.0080055, 0.0322764, 0.0148974]),
    3: (0.3192545, (19, 69, 26, 29, 20, 7), [0.0249093, 0.1756076, 0.0167925, 0.0216717, 0.0362233, 0.0452119]),
    5: (0.3038496, (14, 80, 22, 35, 21, 6), [0.0210408, 0.2015139, 0.0499289, 0.017482, 0.0196029, 0.0378233]),
}


@pytest.mark.parametrize("seed", TIDECV)
def test_counts_and_losses_are_those_of_the_authors_program(seed):
    precision, counts, lost = TIDECV[seed]
    split = split_errors(*scene(seed), 3)
    assert split.ap == pytest.approx(precision, abs=1e-6)
    assert tuple(split.counts.values()) == counts
    assert list(split.lost.values()) == pytest.approx(lost, abs=1e-6)


def test_edges_are_measured_by_side_and_size():
    there = objects((box(0, width=20, height=10), 0, 0), (box(200, width=100, height=200), 0, 0), (box(500), 0, 0))
    found = detections(([1, -1, 20, 12], 0.9, 0, 0), ([190, 0, 300, 200], 0.8, 0, 0), ([535, 0, 575, 40], 0.7, 0, 0))
    rows, differences = edge_differences(found, there)
    np.testing.assert_array_equal(rows, [0, 1])
    np.testing.assert_array_equal(differences, [[1, -1, 0, 2], [-10, 0, 0, 0]])
    errors = edge_errors(found, there)
    assert list(errors) == ["all", "small", "large"] and [e.count for e in errors.values()] == [2, 1, 1]
    np.testing.assert_allclose(errors["all"].bias, [-4.5, -0.5, 0, 1])
    np.testing.assert_allclose(errors["all"].absolute, [5.5, 0.5, 0, 1])
    np.testing.assert_allclose(errors["small"].relative, [1 / 20, 1 / 10, 0, 2 / 10])
    np.testing.assert_allclose(errors["large"].relative, [0.1, 0, 0, 0])


def test_edges_are_measured_by_the_level_that_found_the_object():
    """What found nothing counts for none."""
    there = objects((box(0, width=20, height=10), 0, 0), (box(200, width=100, height=200), 0, 0), (box(500), 0, 0))
    found = detections(([1, -1, 20, 12], 0.9, 0, 0), ([535, 0, 575, 40], 0.8, 0, 0), ([190, 0, 300, 200], 0.7, 0, 0))
    errors = edge_errors_by_level(found, np.array([2, 1, 0]), there)
    assert {level: e.count for level, e in errors.items()} == {0: 1, 2: 1}
    np.testing.assert_array_equal(errors[0].absolute, [10, 0, 0, 0])
    np.testing.assert_array_equal(errors[2].bias, [1, -1, 0, 2])
    assert edge_errors_by_level(detections(), np.zeros(0, int), there) == {}


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"background is 0.5, threshold 0.5"):
        split_errors(detections(), THERE, 2, background=0.5)
    with pytest.raises(ValueError, match=r"objects.labels is 1 in row 1, there are 1 classes"):
        split_errors(detections(), THERE, 1)
