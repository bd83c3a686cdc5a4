"""What a command line says: the options of each command, the fields of its config, and how JAX is to be set up for it."""

import argparse
import dataclasses
import functools
import os
import re
import subprocess
import sys
from typing import Annotated, Any

from kdjax.places import cache_folder


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a command runs; the same for every config."""

    run: str = ""
    """run folder; runs/NAME-COMMAND if not given, with the method after it for distill"""
    resume: bool = False
    """go on with the run that is in the folder"""
    overwrite: bool = False
    """delete the run that is in the folder"""
    tiny: bool = False
    """shrink everything to seconds, to see that it works"""
    dry_run: bool = False
    """print shapes, sizes, costs and problems, and train nothing"""
    data_dir: str = ""
    """folder of prepared data sets; that of TFDS if not given"""
    profile: bool = False
    """write a profile of ten steps of each phase into its folder, for TensorBoard or xprof"""
    distributed: str = ""
    """for a run of several processes, the same line on every host: auto (TPU pod, Slurm), or HOST:PORT,COUNT,INDEX"""


@dataclasses.dataclass(frozen=True)
class DistillOptions(RunOptions):
    """Options of `kdjax distill`."""

    method: str = ""
    """objective of the student, one of `kdjax methods`; the config's own if not given"""
    for_: str = ""
    """with --dry-run: accelerators that are not here to compile for, such as v5e:16x16 or h100:8"""
    teacher: str = ""
    """folder of a finished run that teaches, or of Hugging Face; or a file of weights (.pth) or of outputs (.npz, .jsonl)"""


@dataclasses.dataclass(frozen=True)
class CompareOptions(RunOptions):
    """Options of `kdjax compare`."""

    methods: tuple[str, ...] = ("labels", "kd", "dkd")
    """objectives to compare; "labels" is the baseline"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """each method is trained once with each"""
    together: bool = False
    """train the seeds of a method as one program with one pass of the teacher; they then share order and views of the data"""
    teacher: str = ""
    """folder of a finished run that teaches, or of Hugging Face; or a file of weights (.pth) or of outputs (.npz, .jsonl)"""


@dataclasses.dataclass(frozen=True)
class ReproduceOptions(RunOptions):
    """Options of `kdjax reproduce`."""

    pairs: tuple[str, ...] = ("all",)
    """configs of the folder, by name without .py; all for its pairs TEACHER_STUDENT"""
    methods: tuple[str, ...] = ("labels", "kd", "dkd")
    """objectives to compare; "labels", the baseline, always goes with them"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """each method is trained once with each"""
    together: bool = False
    """train the seeds of a method as one program with one pass of the teacher; they then share order and views of the data"""
    teachers: str = ""
    """folder of trained teachers by the name of the network: runs, files of weights, or NETWORK_vanilla/ as published ones lie"""


@dataclasses.dataclass(frozen=True)
class GridOptions(RunOptions):
    """Options of `kdjax grid`."""

    method: str = ""
    """objective of the student, one of `kdjax methods`; the config's own if not given"""
    over: tuple[str, ...] = ()
    """settings of the objective and what to try of each, such as kd.temperature=1,2,4 kd.weight=0.5,0.9; all combinations"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """each combination is trained once with each"""


def read_config(command: str, argv: list[str], options_type: type) -> tuple[Any, Any]:
    """The config that the first argument names, and the options that must be known before its fields are."""
    if not argv or argv[0].startswith("-"):
        parse(command, argv, None, options_type())
        if not {"-h", "--help"} & set(argv):
            from kdjax.experiment.spec import ExperimentError

            raise ExperimentError(
                f"kdjax {command} needs a config first, such as kdjax {command} digits/smoke; `kdjax configs` lists them."
            )
        return None, None
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--method", default="")
    early.add_argument("--methods", nargs="+", default=None)
    early.add_argument("--distributed", default="")
    known, _ = early.parse_known_args(argv[1:])
    configure_jax(known.distributed)
    from kdjax.experiment.config import load_config

    changes = {}
    if hasattr(options_type, "for_"):
        import tyro

        options_type.__annotations__["for_"] = Annotated[str, tyro.conf.arg(name="for")]  # a word of Python's own
    if hasattr(options_type, "method") and known.method:
        changes["method"] = known.method
    if hasattr(options_type, "methods") and known.methods:
        changes["methods"] = tuple(known.methods)
    return load_config(argv[0]), dataclasses.replace(options_type(), **changes)


def parse(command: str, argv: list[str], experiment: Any, options: Any) -> tuple[Any, Any]:
    """Reads the whole command line over the fields of an experiment and the options."""
    import tyro

    from kdjax.experiment.config import mirror, rebuild
    from kdjax.experiment.spec import ExperimentError

    argv, section = help_section(argv)
    tiny, asked = "--tiny" in argv, {"-h", "--help"} & set(argv)
    if experiment is not None and tiny:
        experiment = experiment.tiny()
    fields = [("options", Annotated[type(options), tyro.conf.arg(name="")], dataclasses.field(default=options))]
    if experiment is not None:
        section = section if asked else "all"  # what help does not show cannot be set either
        shown = functools.partial(is_shown, section=section, student=experiment.student.name)
        kind = mirror(experiment, "Experiment", shown)
        if section and not kind.any_shown:
            raise ExperimentError(f"There is no field {section!r} in this config; say --help, or --help all.")
        fields.append(("experiment", Annotated[kind, tyro.conf.arg(name="")], dataclasses.field(default_factory=kind)))
    arguments = dataclasses.make_dataclass("Arguments", fields, frozen=True)
    description = {
        "train": "Trains the networks of a config that need no teacher.",
        "distill": "Trains a student with its teacher, which is trained first unless --teacher names one.",
        "compare": "Trains the student by several methods and seeds at equal budget, and reports them side by side.",
        "grid": "Tries settings of a method on examples held out of the training split, and the best one on the test examples.",
        "reproduce": "Compares methods for several pairs of networks, each teacher trained once: the rows of a published table.",
    }[command]
    if experiment is not None and not section:
        description += (
            " These are the fields one needs first; `--help all` lists every one, `--help data`, `--help phases` or `--help "
            f"phases.{experiment.student.name}.optimizer` a part."
        )
    parsed = tyro.cli(
        arguments, args=[word for i, word in enumerate(argv) if i or word.startswith("-")],  # without the config
        prog=f"kdjax {command} {'FOLDER' if command == 'reproduce' else 'CONFIG'}", description=description,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
    )  # fmt: skip
    return (None if experiment is None else rebuild(experiment, parsed.experiment)), parsed.options


# What one sets first, by path.
FIRST = re.compile(
    r"seed|runner|data\.(name|batch_size|labelled)|phases\.[^.]+\.network\.name|"
    r"phases\.STUDENT\.(duration\.amount|optimizer\.learning_rate(\.start)?|objective\.[^.]+\.temperature)"
)


def help_section(argv: list[str]) -> tuple[list[str], str]:
    """The command line without the word behind --help, and that word: "" for none."""
    for i, word in enumerate(argv[:-1]):
        if word in ("-h", "--help") and not argv[i + 1].startswith("-"):
            return [*argv[: i + 1], *argv[i + 2 :]], argv[i + 1].replace("-", "_")
    return argv, ""


def is_shown(path: str, *, section: str, student: str) -> bool:
    """Whether the help says a field: the first ones, all, or those of a section."""
    if section:
        return section == "all" or f"{path}.".startswith(f"{section}.")
    return re.fullmatch(FIRST.pattern.replace("STUDENT", re.escape(student)), path) is not None


# Read when jax and libtpu are loaded: look for no accelerator, ask no metadata server, leave another process its libtpu, and keep
# nothing, since what is compiled for devices that are not here cannot be read back.
DESCRIBED = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost", "JAX_ENABLE_COMPILATION_CACHE": "false",
}  # fmt: skip


def for_described(argv: list[str], program: list[str]) -> int | None:
    """Sets this process up to compile for the devices that `--for` names, if it does; they are described and not here.

    Args:
      argv: the command line.
      program: what to run it with, in a process of its own, where jax is loaded already.

    Returns:
      The exit status of that process; None to go on here.
    """
    if not any(re.match("--for(=|$)", word) for word in argv):
        return None
    wanted = dict(DESCRIBED)
    if any("h100:" in word for word in argv):
        tuned = "--xla_gpu_autotune_level=0"  # there is nothing to try them on
        wanted |= {"CUDA_VISIBLE_DEVICES": "-1", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {tuned}".strip()}
    if "jax" in sys.modules and any(os.environ.get(name) != value for name, value in DESCRIBED.items()):
        sys.stdout.flush()
        return subprocess.run([*program, *argv], env=os.environ | wanted, check=False).returncode
    os.environ.update(wanted)
    return None


def configure_jax(distributed: str = "") -> None:
    """Joins the other processes, if there are any, and keeps compiled programs between runs, so that the second one starts
    at once.

    Virtual CPU devices get a thread each, and one program at a time: with fewer they wait for each other in a collective
    for ever.
    """
    virtual = re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if virtual:
        os.environ.setdefault("NPROC", str(4 * int(virtual.group(1))))
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if virtual:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if distributed:
        from kdjax.experiment.spec import ExperimentError
        from kdjax.training.processes import connect

        try:
            connect(distributed)
        except ValueError as error:
            raise ExperimentError(str(error)) from error
