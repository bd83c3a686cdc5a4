"""Several methods, several seeds, one teacher, one budget: side by side."""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdjax.analysis.statistics import holm, paired_gain, spread
from kdjax.experiment import published
from kdjax.experiment.artifacts import check_sources
from kdjax.experiment.folder import COMPARISON, open_run
from kdjax.experiment.lock import locked
from kdjax.experiment.program import Builder
from kdjax.experiment.replicas import run_together
from kdjax.experiment.run import run
from kdjax.experiment.spec import Experiment, ExperimentError
from kdjax.json_files import write_json
from kdjax.schedules import Duration
from kdjax.training.loop import TrainingError
from kdjax.training.processes import by_first
from kdjax.training.progress import Progress

BASELINE = "labels"


def compare(
    experiments: dict[str, Experiment],
    seeds: Sequence[int],
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    builder: Builder | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda line: None,
    profile: bool = False,
    together: bool = False,
) -> dict[str, Any]:
    """Trains the earlier phases once, then the student by every method and seed.

    Args:
      experiments: one a method, alike but for their last phase's objective.
      seeds: for initial weights and data order alike.
      folder: of the comparison; each run has a folder in it.
      resume: finished runs are kept, an unfinished one is gone on with.
      overwrite: delete a comparison that is there.
      announce: is told which run begins.
      profile: write a profile of some steps of each run.
      together: train the seeds of a method as one program, with one pass of the teacher; they then share the order and views
        of the examples (the data seed of the first), so that their spread is that of initial weights and dropout.

    Returns:
      The comparison as data; also written to comparison.json. A method whose training failed is not among its methods, but
      with the reason in `failed`.

    Raises:
      ExperimentError: something does not fit.
      TrainingError: no method could be trained.
    """
    builder = builder or Builder()
    check_alike(experiments)
    try:
        seeds = [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise ExperimentError(f"seeds are {seeds}; give whole numbers, such as (0, 1, 2).") from error
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ExperimentError(f"seeds are {seeds}; give at least one, each once.")
    first = next(iter(experiments.values()))
    for seed in seeds:
        if found := dataclasses.replace(first, seed=seed, data_seed=seed).problems():
            raise ExperimentError(found[0])
    for experiment in experiments.values():  # what does not fit is said before anything is written
        programs = {phase.name: builder.program(experiment, phase) for phase in experiment.phases}
        check_sources(experiment, programs, folder / "teacher")

    def begin():
        open_run(folder, first, resume=resume, overwrite=overwrite)
        if not (folder / COMPARISON).exists():
            write_json(folder / COMPARISON, {"methods": list(experiments), "seeds": list(seeds), "finished": False})

    with locked([folder]):
        by_first(begin, ExperimentError)
        teacher: dict[str, Any] = {}
        earlier = tuple(phase for phase in first.phases if phase not in first.lineage)
        if earlier:
            announce("teacher")
            base = dataclasses.replace(first, name=f"{first.name}-teacher", phases=earlier)
            teacher = run(base, folder / "teacher", resume=True, builder=builder, progress=progress, profile=profile)
        runs: dict[str, list[dict[str, Any]]] = {}
        failed: dict[str, str] = {}
        for name, experiment in experiments.items():
            ones, places = [], [folder / name / f"seed{seed}" for seed in seeds]
            for seed in seeds:
                # From the run's own folder, NAME/seedN, so that a comparison can be moved as a whole.
                phases = tuple(
                    p if p.network.trained else dataclasses.replace(p, weights=f"../../teacher/{p.name}")
                    for p in earlier
                )
                one = dataclasses.replace(
                    experiment, name=f"{first.name}-{name}-seed{seed}", seed=seed, data_seed=seeds[0] if together else seed,
                    phases=(*phases, *experiment.lineage),
                )  # fmt: skip
                ones.append(one)
            try:
                if together:
                    announce(f"{name}, seeds {', '.join(map(str, seeds))} together")
                    results = run_together(ones, places, folder / name / "together", builder=builder, progress=progress)
                else:
                    results = []
                    for seed, one, place in zip(seeds, ones, places, strict=True):
                        announce(f"{name}, seed {seed}")
                        results.append(
                            run(one, place, resume=True, builder=builder, progress=progress, profile=profile)
                        )
            except TrainingError as error:
                failed[name] = str(error)
                if len(failed) == len(experiments):
                    raise
                announce(f"{name} failed, the others go on: {error}")
                continue
            runs[name] = [_whole(result, experiment) for result in results]
        comparison = summarise(first, runs, teacher, builder)
        comparison |= {"together": len(seeds) if together else None, "failed": failed}
        by_first(lambda: write_json(folder / COMPARISON, comparison), ExperimentError)
        return comparison


def _whole(result: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    """What the student came to, with the time of the phases before that trained it too."""
    seconds = [result[phase.name].get("seconds") for phase in experiment.lineage]
    known = [s for s in seconds if s is not None]
    return result[experiment.student.name] | {"seconds": sum(known) if known else None}


def check_alike(experiments: dict[str, Experiment]) -> None:
    """Refuses to compare methods whose budgets or teachers differ.

    A method may train the student in more than one phase; their lengths must add up to the same. It may have the student write.
    """
    if not experiments:
        raise ExperimentError("There is nothing to compare; name at least one method.")
    first_name, first = next(iter(experiments.items()))
    for name, experiment in experiments.items():
        alike = [
            (
                {dataclasses.replace(p, name="", objective=first.student.objective, start="", duration=Duration(),
                                     on_policy=0.0, teacher_writes=0.0,  # who writes the examples is a method's own
                                     teacher_cache=p.teacher_cache.removeprefix("float32"))  # kept whole: no difference
                 for p in e.lineage},
                {p.duration.unit for p in e.lineage},
                round(sum(p.duration.amount for p in e.lineage), 6),
                [p for p in e.phases if p not in e.lineage],
                e.data,
            )
            for e in (first, experiment)
        ]  # fmt: skip
        if alike[0] != alike[1]:
            raise ExperimentError(
                f"Methods {first_name!r} and {name!r} differ in more than their objective (teacher, data, length or "
                "optimizer), so their comparison would not be fair; let the config change the objective only."
            )


def summarise(
    experiment: Experiment, runs: dict[str, list[dict[str, Any]]], teacher: dict[str, Any], builder: Builder
) -> dict[str, Any]:
    """The comparison as data: what was compared, and mean and spread over seeds of every method."""
    task, dataset = experiment.data, builder.dataset(experiment.data)
    student = builder.program(experiment, experiment.student)
    key = task.metric.name
    methods = {}
    for name, results in runs.items():
        last = [result["last"]["student"] for result in results]
        best = [result["best"]["student"][key] for result in results]
        methods[name] = {
            "parameters": results[0]["parameters"],
            "extra_parameters": results[0]["extra_parameters"],
            "examples_visited": results[0]["examples_visited"],
            "seeds": [result["seed"] for result in results],
            "metrics": {metric: spread([row[metric] for row in last]) for metric in last[0]},
            "best": spread(best),
            "examples_per_s": spread([result["examples_per_s"] or 0.0 for result in results]),
            "seconds": spread([result["seconds"] for result in results]),
        }
    for name, value in published.of_experiment(experiment).items():
        if name in methods:
            methods[name]["published"] = value._asdict()
    if BASELINE in methods:
        for name, summary in methods.items():
            if name != BASELINE:
                summary["gain"] = paired_gain(
                    summary["metrics"][key]["values"], methods[BASELINE]["metrics"][key]["values"]
                )
        gains = {name: summary["gain"] for name, summary in methods.items() if "gain" in summary}
        # Where every seed has the same difference there is no p, and the comparison is one of the family all the same.
        several = {name: gain["p"] for name, gain in gains.items() if gain["half_width"] is not None}
        for name, p in holm({name: 1.0 if p is None else p for name, p in several.items()}).items():
            gains[name]["p_holm"] = p
    name, result = next(reversed(teacher.items())) if teacher else (None, None)
    return {
        "finished": True,
        "name": experiment.name,
        "data": {
            "name": dataset.train.name,
            "trained_on": len(dataset.train_index),
            "labelled": int(dataset.labelled[dataset.train_index].sum()),
            "evaluated_on": dataset.evaluated_on,
            "evaluated": len(dataset.held_index),
            "description": dataset.description,
        },
        "steps": sum(builder.program(experiment, p).compiled.clock.total_steps for p in experiment.lineage),
        "batch_size": task.batch_size,
        "student": student.networks.student.name,
        "teacher": None if result is None else {
            "name": name, "network": result["network"], "parameters": result["parameters"], "hash": result["hash"],
            "metrics": result["last"]["student"], "labels": experiment.phase(name).labels,
            "seconds": result.get("seconds"), "examples_per_s": result.get("examples_per_s"),
        },
        # By its own tokens, so that numbers a token are of other things.
        **({"teacher_apart": True} if "aligned" in student.dataset.info.targets else {}),
        "device": next(iter(runs.values()))[0]["device"],
        "methods": methods,
    }  # fmt: skip
