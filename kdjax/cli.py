"""The command line: `kdjax train | distill | evaluate | compare | predict | convert | methods | data`."""

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path

from kdjax import __version__
from kdjax.command_line import (
    CompareOptions,
    DistillOptions,
    ReproduceOptions,
    RunOptions,
    configure_jax,
    for_described,
    parse,
    read_config,
)
from kdjax.endings import fail, guarded
from kdjax.finished_commands import convert, evaluate, export, predict
from kdjax.places import local
from kdjax.references import label
from kdjax.terminal import Unheard, make_console, say_all

USAGE = """usage: kdjax COMMAND ...

commands:
  train CONFIG                  train the networks of a config that need no teacher
  distill CONFIG --method NAME  train a student with its teacher
  compare CONFIG --methods ...  several methods and seeds side by side, with a report
  reproduce FOLDER --pairs ...  the same for several pairs of networks, such as those of cifar100
  evaluate RUN                  evaluate the networks of a run
  export RUN                    write a finished network to a file for other programs
  predict RUN IMAGE ...         classes of pictures, with probabilities
  convert FILE --network NAME   make published weights a finished network, to teach or to be evaluated
  methods [WORDS]               list the methods, find some by any word, or explain one
  configs [copy NAME FILE]      list the configs that come with kdjax, or copy one to change it
  data prepare NAME             make a data set ready
  data check NAME               read a whole data set, also pictures of one's own, and name what is wrong

Every command takes `--import FILE.py` first of all, for a run whose task is one's own.
`kdjax COMMAND --help` says more; `kdjax distill CONFIG --help` lists the fields of that config one needs first.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit status. Errors a user can mend are one sentence."""
    given = list(sys.argv[1:] if argv is None else argv)
    say_all()
    commands = {
        "train": train, "distill": distill, "compare": compare, "reproduce": reproduce, "evaluate": evaluate, "export": export,
        "predict": predict, "convert": convert,
        "methods": methods, "configs": configs, "data": data,
    }  # fmt: skip
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if given else 2
    if given[0] == "--version":
        print(f"kdjax {__version__}")
        return 0
    if given[0] not in commands:
        from difflib import get_close_matches

        near = get_close_matches(given[0], commands, n=1)
        return fail(f"Unknown command {given[0]!r}; " + (f"did you mean {near[0]!r}?" if near else "see kdjax --help."))
    return guarded(lambda: run_command(given, commands), own_process=argv is None)


def run_command(argv: list[str], commands: dict) -> int:
    status = for_described(argv, [sys.executable, "-m", "kdjax.cli"])
    if status is None:
        argv = import_own(argv)
        status = commands[argv[0]](argv[1:]) or 0
    sys.stdout.flush()
    return status


def import_own(argv: list[str]) -> list[str]:
    """Imports the files and modules that `--import` names, and returns the command line without them."""
    if "--import" not in argv:
        return argv
    from kdjax.experiment.spec import ExperimentError
    from kdjax.references import import_place

    at = argv.index("--import")
    if at + 1 == len(argv):
        raise ExperimentError("--import names no file; say --import my_task.py, or a module.")
    try:
        import_place(argv[at + 1])
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    return import_own(argv[:at] + argv[at + 2 :])


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
    from kdjax.experiment.spec import ExperimentError

    experiments, options = {}, early
    for name in early.methods:
        experiment, options = parse("compare", argv, config(name), early)
        if label(name) in experiments:
            raise ExperimentError(f"Two methods are called {label(name)!r}; give each its own name.")
        experiments[label(name)] = experiment
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
        return 0
    task = next(iter(experiments.values())).data
    written = write_report(folder, comparison, task)
    show_comparison(comparison, task, console)
    console.print(f"Report: {written}", soft_wrap=True)
    return 0


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
    from kdjax.experiment import configs
    from kdjax.experiment.compare import BASELINE
    from kdjax.experiment.config import load_config
    from kdjax.experiment.program import Builder
    from kdjax.experiment.reproduce import reproduce as run_pairs
    from kdjax.experiment.spec import ExperimentError
    from kdjax.experiment.summary import show_summary
    from kdjax.training.progress import Heard, make_progress

    methods = list(dict.fromkeys((BASELINE, *known.methods)))
    pairs: dict = {}
    for pair, path in configs.of_folder(argv[0], known.pairs).items():
        config = load_config(str(path))
        made = {label(name): parse("reproduce", argv, config(name), ReproduceOptions()) for name in methods}
        pairs[pair] = {name: experiment for name, (experiment, _) in made.items()}
        options = next(iter(made.values()))[1]
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
        progress=first_only(Heard(make_progress())), together=options.together,
        announce=lambda line: first_only(True) and announce(console, line),
    )  # fmt: skip
    if first_only(True):
        show_summary(results, next(iter(next(iter(pairs.values())).values())).data, console)
        console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    return 1 if results["failed"] else 0


def announce(console, line: str) -> None:
    with contextlib.suppress(Unheard):  # the runs go on
        console.print(line, style="bold")


def methods(argv):
    parser = argparse.ArgumentParser("kdjax methods", description="Lists the methods, finds some, or explains one.")
    parser.add_argument(
        "words",
        nargs="*",
        help="a method to explain; or words of its purpose, its paper's title, authors, venue or year",
    )
    words = parser.parse_args(argv).words
    from kdjax.objectives.catalogue import METHODS, find_methods, show_method, show_methods

    if len(words) == 1 and words[0] in METHODS:
        show_method(words[0], make_console())
        return 0
    try:
        show_methods(make_console(), find_methods(words))
    except ValueError as error:
        return fail(str(error))
    return 0


def configs(argv):
    parser = argparse.ArgumentParser(
        "kdjax configs", description="Lists the configs that come with kdjax, or copies one."
    )
    commands = parser.add_subparsers(dest="command")
    copy_parser = commands.add_parser("copy", help="copy one, to change it")
    copy_parser.add_argument("name", help="such as digits/smoke")
    copy_parser.add_argument("to", nargs="?", default=".", help="file or folder; this folder if not given")
    options = parser.parse_args(argv)
    from kdjax.experiment import configs

    console = make_console()
    if options.command == "copy":
        console.print(f"{options.name} is copied to {configs.copy(options.name, options.to)}", soft_wrap=True)
        return 0
    for name in configs.names():
        console.print(f"{name:<36}{configs.summary(name)}", soft_wrap=True)
    console.print("\n`kdjax distill NAME` runs one, `kdjax configs copy NAME FILE` copies it.")
    return 0


def data(argv):
    parser = argparse.ArgumentParser("kdjax data", description="Makes data sets ready.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare_parser = commands.add_parser("prepare", help="download or build a data set, once")
    prepare_parser.add_argument("name", help="fashion_mnist/subset, fashion_mnist/full, digits, cifar10, cifar100, ...")
    prepare_parser.add_argument("--data-dir", default="", help="where to; the TFDS folder if not given")
    check_parser = commands.add_parser("check", help="read a whole data set, and name what cannot be read")
    check_parser.add_argument("name", help="a folder of pictures, an .npz file, or a prepared set")
    check_parser.add_argument("--data-dir", default="", help="folder of prepared data sets; that of TFDS if not given")
    options = parser.parse_args(argv)
    if options.command == "check":
        from kdjax.data.check import check

        return 1 if check(options.name, options.data_dir or None) else 0
    from kdjax.data.prepare import prepare

    prepare(options.name, options.data_dir or None)
    return 0


def with_teacher(experiment, teacher: str, builder):
    """The experiment with its student's teacher taken from a finished run, whatever network and normalisation that has."""
    if not teacher:
        return experiment
    from kdjax.experiment.artifacts import taught_by
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


if __name__ == "__main__":
    sys.exit(main())
