"""Seeds trained as one program: a run folder each, as if they had been trained alone on the same data."""

import dataclasses
import functools

import pytest

from kdjax.experiment import ExperimentError
from kdjax.experiment import replicas as together_module
from kdjax.experiment.artifacts import evaluate_run
from kdjax.experiment.compare import compare
from kdjax.experiment.replicas import run_together
from kdjax.experiment.run import run
from kdjax.experiment.trained import load_trained
from kdjax.objectives import KD, CrossEntropy, FitNet
from kdjax.training.loop import Stopped
from kdjax.training.writers import read_metrics
from tests.experiment.conftest import small
from tests.experiment.test_resume import StopAt

SEEDS = (3, 4)
OBJECTIVE = CrossEntropy() + KD(temperature=2.0) + FitNet(stage=1)


def experiments(teacher, **options):
    """They differ in their seed alone."""
    base = small(OBJECTIVE, length=9, data_seed=3, student={"ema_decay": 0.5} | options)
    base = base.replace_phase("teacher", weights=str(teacher))
    return [dataclasses.replace(base, name=f"seed{seed}", seed=seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, builder):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    run(small(length=1), folder, builder=builder)
    return folder / "teacher"


@pytest.fixture(scope="module")
def together(teacher, tmp_path_factory, builder):
    folder = tmp_path_factory.mktemp("together")
    places = [folder / f"seed{seed}" for seed in SEEDS]
    return places, run_together(experiments(teacher), places, folder / "together", how="unrolled", builder=builder)


def test_each_comes_to_what_it_comes_to_alone(together, teacher, tmp_path, builder):
    places, results = together
    for experiment, place, result in zip(experiments(teacher), places, results, strict=True):
        wanted = run(experiment, tmp_path / experiment.name, builder=builder)["student"]
        found = result["student"]
        assert found["last"]["student"] == pytest.approx(wanted["last"]["student"], rel=1e-3)
        assert found["seed"] == experiment.seed and found["data_seed"] == 3 and found["together"] == len(SEEDS)
        alone, shared = (read_metrics(root / "student/metrics.jsonl") for root in (tmp_path / experiment.name, place))
        for row, other in zip(alone, shared, strict=True):
            assert row.pop("kind") == other.pop("kind")
            row.pop("examples_per_s", None), other.pop("examples_per_s", None)
            assert other == pytest.approx(row, rel=1e-3)
    assert results[0]["student"]["hash"] != results[1]["student"]["hash"]


def test_each_folder_is_a_run(together):
    places, results = together
    for place, result in zip(places, results, strict=True):
        again = evaluate_run(place, str(place))["student"]
        assert again["top1"] == pytest.approx(result["student"]["last"]["student"]["top1"])
        assert load_trained(place).network.name.startswith("SmallCNN")


def test_stopped_together_they_go_on_together(together, teacher, tmp_path, builder):
    places = [tmp_path / f"seed{seed}" for seed in SEEDS]
    run = functools.partial(run_together, experiments(teacher), places, tmp_path / "t", how="unrolled", builder=builder)
    with pytest.raises(Stopped):
        run(progress=StopAt(4))
    results = run()
    for found, wanted in zip(results, together[1], strict=True):
        assert found["student"]["hash"] == wanted["student"]["hash"]
        assert found["student"]["last"] == wanted["student"]["last"]
    assert run() == results, "finished"
    other = [
        dataclasses.replace(one, name=f"seed{seed}", seed=seed)
        for one, seed in zip(experiments(teacher), (3, 5), strict=True)
    ]
    more = run_together(
        other, [places[0], tmp_path / "seed5"], tmp_path / "t", how="unrolled", builder=builder
    )  # among others
    assert more[0]["student"]["hash"] == results[0]["student"]["hash"]
    assert more[1]["student"]["hash"] not in [one["student"]["hash"] for one in results]


@pytest.mark.parametrize("fastest", ["vmapped", "apart"])
def test_the_fastest_way_is_taken_and_kept(together, teacher, tmp_path, builder, monkeypatch, fastest):
    measured = []

    def measure(*arguments):
        measured.append(real(*arguments))
        return dict.fromkeys(measured[-1], 2.0) | {fastest: 1.0}

    real = together_module.measure
    monkeypatch.setattr(together_module, "measure", measure)
    places = [tmp_path / f"seed{seed}" for seed in SEEDS]
    run = functools.partial(run_together, experiments(teacher), places, tmp_path / "t", builder=builder)
    with pytest.raises(Stopped):
        run(progress=StopAt(4))
    monkeypatch.setattr(together_module, "measure", None)
    for found, wanted in zip(run(), together[1], strict=True):
        assert found["student"].get("form", "apart") == fastest
        assert found["student"]["last"]["student"] == pytest.approx(wanted["student"]["last"]["student"], rel=1e-3)
    (seconds,) = measured
    assert set(seconds) == {"unrolled", "vmapped", "apart"} and min(seconds.values()) > 0


@pytest.mark.slow  # two comparisons
def test_a_comparison_says_that_its_seeds_share_their_data(tmp_path, builder, data_dir):
    methods = {"labels": small(CrossEntropy(), length=3), "kd": small(OBJECTIVE, length=3)}
    comparison = compare(methods, (0, 1), tmp_path / "run", builder=builder, together=True)
    assert comparison["together"] == 2
    assert (tmp_path / "run/kd/seed1/student/result.json").exists()
    again = compare(methods, (0, 1), tmp_path / "run", builder=builder, together=True, resume=True)
    assert again["methods"]["kd"]["metrics"] == comparison["methods"]["kd"]["metrics"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"runner": "pmap"}, "need runner=jit, this is pmap"),
        ({"log_every": 3}, "differ in their seed alone"),
        ({"data_seed": None}, "and have one data_seed"),
    ],
)
def test_what_cannot_be_one_program_is_refused(change, why, teacher, tmp_path, builder):
    first, second = experiments(teacher)
    changed = [
        dataclasses.replace(first, **change),
        second if "log_every" in change else dataclasses.replace(second, **change),
    ]
    with pytest.raises(ExperimentError, match=why):
        run_together(changed, [tmp_path / "a", tmp_path / "b"], tmp_path / "t", builder=builder)
    with pytest.raises(ExperimentError, match="keeps its best weights"):
        run_together(
            experiments(teacher, keep="best"), [tmp_path / "a", tmp_path / "b"], tmp_path / "t", builder=builder
        )
    assert not list(tmp_path.iterdir())
