"""The command line: finds the command; those that train and those on finished networks have files of their own."""

import argparse
import sys

from kdjax import __version__
from kdjax.command_line import for_described
from kdjax.endings import fail, guarded
from kdjax.finished_commands import convert, evaluate, export, predict
from kdjax.run_commands import compare, distill, grid, reproduce, study, train
from kdjax.terminal import make_console, say_all

USAGE = """usage: kdjax COMMAND ...

commands:
  train CONFIG                  train the networks of a config that need no teacher
  distill CONFIG --method NAME  train a student with its teacher
  compare CONFIG --methods ...  several methods and seeds side by side, with a report
  reproduce FOLDER --pairs ...  the same for several pairs of networks, such as those of cifar100
  grid CONFIG --over NAME=...   settings of a method tried on validation examples, the best one on the test ones
  study NAME                    a study of what distillation transfers, with a page and a verdict
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
        "train": train, "distill": distill, "compare": compare, "reproduce": reproduce, "grid": grid, "study": study,
        "evaluate": evaluate, "export": export,
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


if __name__ == "__main__":
    sys.exit(main())
