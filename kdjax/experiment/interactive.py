"""Runs and comparisons from Python, as the commands do them; what they return shows itself in a notebook."""

import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdjax.experiment import grid_report, summary, tables
from kdjax.experiment.compare import BASELINE
from kdjax.experiment.compare import compare as run_comparison
from kdjax.experiment.config import by_method, called, configs_of_folder, load_config
from kdjax.experiment.folder import run_place
from kdjax.experiment.grid import Axis
from kdjax.experiment.grid import grid as run_grid
from kdjax.experiment.program import Builder
from kdjax.experiment.report import embedded, listed, write_report
from kdjax.experiment.reproduce import reproduce as run_pairs
from kdjax.experiment.run import run as run_experiment
from kdjax.experiment.spec import Experiment, ExperimentError
from kdjax.experiment.trained import Trained, trained_of
from kdjax.places import local
from kdjax.references import label
from kdjax.tasks import Task
from kdjax.terminal import make_console
from kdjax.training.progress import Heard, Progress, make_progress


class Results(dict):
    """The result of every phase by name.

    Attributes:
      experiment, folder: what was run, and where its files are.
    """

    def __init__(self, results: dict[str, Any], experiment: Experiment, folder: Path):
        super().__init__(results)
        self.experiment, self.folder = experiment, folder

    def trained(self, phase: str | None = None) -> Trained:
        """A network of the run, the student if no phase is named, as a function from inputs to its output."""
        return trained_of(self.experiment, self.folder, phase or self.experiment.student.name)

    def __repr__(self):
        return _text(lambda console: tables.show_results(self.experiment, self, self.folder, console))

    def _repr_html_(self):
        return f"<pre>{html.escape(repr(self))}</pre>"


class Comparison(dict):
    """A comparison as data.

    Attributes:
      experiment, folder: what was compared, and where its files are; `report` is the page.
    """

    def __init__(self, comparison: dict[str, Any], experiment: Experiment, folder: Path, report: Path):
        super().__init__(comparison)
        self.experiment, self.folder, self.report = experiment, folder, report

    def __repr__(self):
        return _text(lambda console: tables.show_comparison(self, self.experiment.data, console))

    def _repr_html_(self):
        task = self.experiment.data
        head = "".join(f"<th>{html.escape(title)}</th>" for title in tables.headings(self, task))
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in tables.rows_of(self, task))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        said = listed((*tables.verdicts(self, task), *tables.shared_note(self)))
        picture = embedded("Where every seed ended", "by method, a dot a seed", self.folder / "comparison.png")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><ul>{said}</ul>{picture}"


def run(
    config: Experiment | str | Path,
    *,
    method: str | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    data_dir: str | None = None,
    progress: Progress | None = None,
) -> Results:
    """Runs an experiment: its teacher, then its student.

    Args:
      config: an `Experiment`; or a config's file or name, as on the command line.
      method: objective of the student, one of `kdjax methods` or a reference to one's own; the config's own if not given.
      folder: of the run; `runs/NAME` if not given, with the method behind it.
      resume: go on with the run that is there.
      overwrite: delete the run that is there.
      data_dir: folder of prepared data sets; that of TFDS if not given.
      progress: what a person sees; a bar on a terminal or in a notebook if not given.

    Raises:
      ExperimentError, DataError, TrainingError, CheckpointError: what is wrong, in one sentence.
    """
    experiment = _experiment(config, method)
    folder = _place(folder, "-".join([experiment.name, *([label(method)] if method else [])]))
    results = run_experiment(
        experiment, folder, resume=resume, overwrite=overwrite, builder=Builder(data_dir),
        progress=progress or Heard(make_progress()),
    )  # fmt: skip
    return Results(results, experiment, folder)


def compare(
    config: Experiment | str | Path,
    methods: Sequence[str] = ("labels", "kd", "dkd"),
    seeds: Sequence[int] = (0, 1, 2),
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    together: bool = False,
    data_dir: str | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = print,
) -> Comparison:
    """Trains the student by several methods and seeds at equal budget, and writes a report.

    Args:
      config, folder, resume, overwrite, data_dir, progress: as in `run`.
      methods: objectives to compare; "labels" is the baseline.
      seeds: each method is trained once with each.
      together: train the seeds of a method as one program.
      announce: is told which run begins.

    Raises:
      ExperimentError, DataError, TrainingError, CheckpointError: what is wrong, in one sentence.
    """
    experiments = {name: _experiment(config, one) for name, one in zip(called(methods), methods, strict=True)}
    first = next(iter(experiments.values()), None) or _experiment(config, None)
    folder = _place(folder, f"{first.name}-compare")
    comparison = run_comparison(
        experiments, seeds, folder, resume=resume, overwrite=overwrite, builder=Builder(data_dir),
        progress=progress or Heard(make_progress()), announce=announce, together=together,
    )  # fmt: skip
    return Comparison(comparison, first, folder, write_report(folder, comparison, first.data))


class Reproduced(dict):
    """Several comparisons as data: `pairs`, one each, and `failed`.

    Attributes:
      folder: where their files are; `report` is the page.
    """

    def __init__(self, results: dict[str, Any], task: Task, folder: Path):
        super().__init__(results)
        self.folder, self.report, self._task = folder, folder / "report.html", task

    def __repr__(self):
        return _text(lambda console: summary.show_summary(self, self._task, console))

    def _repr_html_(self):
        return _framed(self.report)


class Grid(dict):
    """A grid as data: `axes`, `points`, `chosen`, `edges`, and the comparisons `validation` and `test`.

    Attributes:
      folder: where its files are; `report` is the page.
    """

    def __init__(self, found: dict[str, Any], task: Task, folder: Path, report: Path):
        super().__init__(found)
        self.folder, self.report, self._task = folder, report, task

    def __repr__(self):
        return _text(lambda console: grid_report.show_grid(self, self._task, console))

    def _repr_html_(self):
        return _framed(self.report)


def reproduce(
    configs: str | Path | Mapping[str, Callable[[str], Experiment]],
    pairs: Sequence[str] = ("all",),
    methods: Sequence[str] = ("labels", "kd", "dkd"),
    seeds: Sequence[int] = (0, 1, 2),
    *,
    teachers: str | Path | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    together: bool = False,
    data_dir: str | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = print,
) -> Reproduced:
    """Compares methods for several pairs of networks, each teacher trained once: the rows of a published table.

    Args:
      configs: folder of configs, such as "cifar100"; or by name a function from a method's name to its experiment.
      pairs: which of them; "all" for those called TEACHER_STUDENT.
      methods: objectives to compare; "labels", the baseline, always goes with them.
      seeds: each method is trained once with each.
      teachers: folder of trained teachers by the name of the network, see `kdjax.experiment.reproduce.find_teacher`.
      folder, resume, overwrite, together, data_dir, progress, announce: as in `compare`.

    Raises:
      ExperimentError, DataError, TrainingError, CheckpointError: what is wrong, in one sentence.
    """
    named = {n: load_config(str(p)) for n, p in configs_of_folder(str(configs), pairs).items()} if isinstance(
        configs, str | Path) else dict(configs)  # fmt: skip
    wanted = dict.fromkeys((BASELINE, *methods))
    wanted = dict(zip(called(wanted), wanted, strict=True))
    experiments = {name: {m: config(one) for m, one in wanted.items()} for name, config in named.items()}
    place = _place(folder, f"{Path(configs).name if isinstance(configs, str | Path) else 'pairs'}-reproduce")
    results = run_pairs(
        experiments, seeds, place, teachers=None if teachers is None else local(teachers, ExperimentError, "Teachers"),
        resume=resume, overwrite=overwrite, builder=Builder(data_dir), progress=progress or Heard(make_progress()),
        announce=announce, together=together,
    )  # fmt: skip
    return Reproduced(results, next(iter(next(iter(experiments.values())).values())).data, place)


def grid(
    config: Experiment | str | Path,
    over: Mapping[str, Sequence[Any]],
    method: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    data_dir: str | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = print,
) -> Grid:
    """Tries settings of a method on examples held out of the training split, and the best one on the test examples.

    Args:
      config: as in `run`; its data must hold validation examples out.
      over: settings of the student's objective and what to try, `{"kd.temperature": (1.0, 2.0, 4.0)}`; all combinations.
      method, folder, resume, overwrite, data_dir, progress: as in `run`.
      seeds: each combination is trained once with each.
      announce: is told which run begins.

    Raises:
      ExperimentError, DataError, TrainingError, CheckpointError: what is wrong, in one sentence.
    """
    experiment = _experiment(config, method)
    axes = [Axis(path, tuple(values)) for path, values in over.items()]
    place = _place(folder, f"{experiment.name}-grid")
    found = run_grid(
        experiment, label(method) if method else "student", axes, seeds, place, baseline=_experiment(config, BASELINE),
        resume=resume, overwrite=overwrite, builder=Builder(data_dir), progress=progress or Heard(make_progress()),
        announce=announce,
    )  # fmt: skip
    return Grid(found, experiment.data, place, grid_report.write_grid_report(place, found, experiment.data))


def _framed(page: Path) -> str:
    """A page in a frame, within which its style stays."""
    return f'<iframe srcdoc="{html.escape(page.read_text(encoding="utf-8"))}" width="100%" height="900"></iframe>'


def _experiment(config: Experiment | str | Path, method: str | None) -> Experiment:
    if not isinstance(config, Experiment):
        return load_config(str(config))(method)
    return config if method is None else by_method(config, method)


def _place(folder: str | Path | None, name: str) -> Path:
    return run_place(folder or Path("runs") / name)


def _text(show: Callable[[Any], None]) -> str:
    console = make_console(file=io.StringIO(), width=140)
    show(console)
    return console.file.getvalue()
