"""Commands that train: `kdjax train | distill | compare | reproduce | grid | study`."""

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path

from kdjax.command_line import (
    CompareOptions,
    DistillOptions,
    GridOptions,
    ReproduceOptions,
    RunOptions,
    configure_jax,
    parse,
    read_config,
)
from kdjax.endings import fail
from kdjax.places import local
from kdjax.references import label
from kdjax.terminal import Unheard, make_console


def train(argv):
    config, options = read_config("train", argv, RunOptions)
    if config is None:
        return 0
    experiment, options = parse("train", argv, config(None), options)
    phases = tuple(phase for phase in experiment.phases if not phase.taught)
    if not phases:
        from kdjax.experiment.spec import ExperimentError

        raise ExperimentError("Every phase of this config is taught; use kdjax distill.")
    return execute(dataclasses.replace(experiment, phases=phases), options, "train")


def distill(argv):
    config, options = read_config("distill", argv, DistillOptions)
    if config is None:
        return 0
    experiment, options = parse("distill", argv, config(options.method or None), options)
    return execute(experiment, options, label(options.method) or "distill", options.teacher)


def compare(argv):
    config, early = read_config("compare", argv, CompareOptions)
    if config is None:
        return 0
    experiments, options = parsed_methods("compare", argv, config, early.methods, early)
    from kdjax.experiment.compare import compare as run_comparison
    from kdjax.experiment.program import Builder
    from kdjax.experiment.report import write_report
    from kdjax.experiment.tables import show_comparison
    from kdjax.training.progress import Heard, make_progress

    builder = Builder(options.data_dir or None)
    experiments = {name: with_teacher(experiment, options.teacher, builder) for name, experiment in experiments.items()}
    if options.dry_run:
        return max(dry_run(experiment, builder) for experiment in experiments.values())
    console = make_console()
    folder = run_folder(options, f"{next(iter(experiments.values())).name}-compare")
    comparison = run_comparison(
        experiments, options.seeds, folder, resume=options.resume, overwrite=options.overwrite, builder=builder,
        progress=first_only(Heard(make_progress())), profile=options.profile, together=options.together,
        announce=lambda line: first_only(True) and announce(console, line),
    )  # fmt: skip
    if not first_only(True):
        return 1 if comparison["failed"] else 0
    task = next(iter(experiments.values())).data
    written = write_report(folder, comparison, task)
    show_comparison(comparison, task, console)
    console.print(f"Report: {written}", soft_wrap=True)
    return 1 if comparison["failed"] else 0


def reproduce(argv):
    if not argv or argv[0].startswith("-"):
        parse("reproduce", argv, None, ReproduceOptions())
        return fail("kdjax reproduce needs a folder of configs first, such as kdjax reproduce cifar100.")
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--pairs", nargs="+", default=["all"])
    early.add_argument("--methods", nargs="+", default=list(ReproduceOptions.methods))
    early.add_argument("--distributed", default="")
    known, _ = early.parse_known_args(argv[1:])
    configure_jax(known.distributed)
    from kdjax.experiment.compare import BASELINE
    from kdjax.experiment.config import configs_of_folder, load_config
    from kdjax.experiment.program import Builder
    from kdjax.experiment.reproduce import reproduce as run_pairs
    from kdjax.experiment.spec import ExperimentError
    from kdjax.experiment.summary import show_summary
    from kdjax.training.progress import Heard, make_progress

    methods = list(dict.fromkeys((BASELINE, *known.methods)))
    pairs: dict = {}
    for pair, path in configs_of_folder(argv[0], known.pairs).items():
        pairs[pair], options = parsed_methods("reproduce", argv, load_config(str(path)), methods, ReproduceOptions())
    builder = Builder(options.data_dir or None)
    if options.dry_run:
        return max(
            dry_run(experiment, builder) for experiments in pairs.values() for experiment in experiments.values()
        )
    console = make_console()
    folder = run_folder(options, f"{Path(argv[0]).name}-reproduce")
    results = run_pairs(
        pairs, options.seeds, folder, resume=options.resume, overwrite=options.overwrite, builder=builder,
        teachers=local(options.teachers, ExperimentError, "Teachers") if options.teachers else None,
        progress=first_only(Heard(make_progress())), together=options.together, profile=options.profile,
        announce=lambda line: first_only(True) and announce(console, line),
    )  # fmt: skip
    if first_only(True):
        show_summary(results, next(iter(next(iter(pairs.values())).values())).data, console)
        console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    return 1 if results["failed"] or any(pair["failed"] for pair in results["pairs"].values()) else 0


def grid(argv):
    config, early = read_config("grid", argv, GridOptions)
    if config is None:
        return 0
    from kdjax.experiment.compare import BASELINE
    from kdjax.experiment.grid import axes_of
    from kdjax.experiment.grid import grid as run_grid
    from kdjax.experiment.grid_report import show_grid, write_grid_report
    from kdjax.experiment.program import Builder
    from kdjax.training.progress import Heard, make_progress

    entries = {"": config(early.method or None), BASELINE: config(BASELINE)}
    parsed, options = parsed_methods("grid", argv, entries.get, list(entries), early)
    experiment, baseline = parsed[""], parsed[BASELINE]
    axes = axes_of(options.over)
    builder = Builder(options.data_dir or None)
    if options.dry_run:
        return dry_run(experiment, builder)
    console = make_console()
    folder = run_folder(options, f"{experiment.name}-grid")
    found = run_grid(
        experiment, label(options.method) or "student", axes, options.seeds, folder, baseline=baseline, resume=options.resume,
        overwrite=options.overwrite, builder=builder, progress=first_only(Heard(make_progress())), profile=options.profile,
        announce=lambda line: first_only(True) and announce(console, line),
    )  # fmt: skip
    if first_only(True):
        written = write_grid_report(folder, found, experiment.data)
        show_grid(found, experiment.data, console)
        console.print(f"Report: {written}", soft_wrap=True)
    return 1 if found["validation"]["failed"] or found["test"]["failed"] else 0


def study(argv):
    from kdjax.studies import STUDIES, run_study

    asked = "; ".join(f"{name}: {question}" for name, question in STUDIES.items())
    parser = argparse.ArgumentParser("kdjax study", description=f"Runs a study of what distillation transfers. {asked}")
    parser.add_argument("name", choices=[*STUDIES, "all"])
    parser.add_argument("--run", default="", help="folder; runs/study-NAME if not given")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--tiny", action="store_true", help="a minute, to see that it works")
    sizes.add_argument("--full", action="store_true", help="larger, where the default takes minutes on two CPU cores")
    parser.add_argument("--resume", action="store_true", help="keep the networks that are trained in the folder")
    parser.add_argument("--overwrite", action="store_true", help="write a study that is there anew")
    parser.add_argument("--data-dir", default="", help="folder of prepared data sets; that of TFDS if not given")
    options = parser.parse_args(argv)
    configure_jax()
    from kdjax.training.progress import Heard, make_progress

    console, size = make_console(), "tiny" if options.tiny else "full" if options.full else "default"
    for name in STUDIES if options.name == "all" else [options.name]:
        folder = run_folder(options, "study-" + name)
        folder = folder / name if options.run and options.name == "all" else folder
        written = run_study(
            name, folder, size, data_dir=options.data_dir or None, resume=options.resume, overwrite=options.overwrite,
            progress=Heard(make_progress()), announce=lambda line: announce(console, line),
        )  # fmt: skip
        verdict = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))["verdict"]
        console.print(f"{name}: {verdict}\nPage: {written}", soft_wrap=True)
    return 0


def parsed_methods(command, argv, config, methods, options):
    """`(experiments by method, options)` of a command line for several methods, of which some have settings others have not."""
    from kdjax.experiment.config import called, of_each

    names = called(methods)
    made = {name: config(name) for name in methods}
    words = of_each(
        argv, {name: experiment.tiny() if "--tiny" in argv else experiment for name, experiment in made.items()}
    )
    parsed = {name: parse(command, words[one], made[one], options) for name, one in zip(names, methods, strict=True)}
    return {name: experiment for name, (experiment, _) in parsed.items()}, next(iter(parsed.values()), (None, options))[
        1
    ]


def announce(console, line: str) -> None:
    with contextlib.suppress(Unheard):  # the runs go on
        console.print(line, style="bold")


def with_teacher(experiment, teacher: str, builder):
    """The experiment with its student's teacher taken from a finished run, whatever network and normalisation that has."""
    if not teacher:
        return experiment
    from kdjax.experiment.given_teacher import taught_by
    from kdjax.experiment.spec import ExperimentError

    return taught_by(experiment, local(teacher, ExperimentError, "A teacher").absolute(), builder)


def execute(experiment, options, suffix: str, teacher: str = "") -> int:
    """Runs an experiment as a command does: dry, or in a folder with a report at the end."""
    from kdjax.experiment.program import Builder
    from kdjax.experiment.run import run
    from kdjax.experiment.tables import show_results
    from kdjax.training.progress import Heard, make_progress

    described = getattr(options, "for_", "")
    builder = Builder(options.data_dir or None, described_devices(options) if described else None)
    experiment = with_teacher(experiment, teacher, builder)
    if options.dry_run:
        return dry_run(experiment, builder, described)
    folder = run_folder(options, f"{experiment.name}-{suffix}")
    results = run(
        experiment,
        folder,
        resume=options.resume,
        overwrite=options.overwrite,
        builder=builder,
        progress=first_only(Heard(make_progress())),
        profile=options.profile,
    )
    if first_only(True):
        show_results(experiment, results, folder, make_console())
    return 0


def described_devices(options):
    """The devices that `--for` names, which are not here."""
    from kdjax.experiment.ahead.slices import described
    from kdjax.experiment.spec import ExperimentError

    if not options.dry_run:
        raise ExperimentError(f"--for {options.for_} is for a dry run, which trains nothing; say --dry-run too.")
    return described(options.for_)


def dry_run(experiment, builder, described: str = "") -> int:
    from kdjax.experiment.dry_run import inspect_experiment, show

    return 1 if show(inspect_experiment(experiment, builder, described), make_console()) else 0


def run_folder(options, name: str) -> Path:
    from kdjax.experiment.folder import run_place

    return run_place(options.run or Path("runs") / name)


def first_only(value):
    """What the first process of a run uses, None in the others, which keep quiet."""
    from kdjax.training.processes import is_first

    return value if is_first() else None
