"""What a task is: what an example is, and what is asked of a network. All else knows tasks by this file and `dataset.py`.

A task is one folder beside this file. Its class is what a config writes as an experiment's `data`; its fields say which
examples and how they are shown, its methods what becomes of them. `training`, `objectives` and `experiment` call these and
import no task; no task imports another.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kdjax.tasks.dataset import Dataset
from kdjax.training import metrics
from kdjax.training.evaluation import Sums
from kdjax.training.metrics import Metric
from kdjax.types import Array, Batch, MultiView, Network, Term, Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A network by name. Every task has its own kind of this, with the options of its networks.

    Class attributes:
      trained: whether it brings its weights, and is taken as it is instead of being trained.
    """

    name: str = ""
    """which network"""

    trained: ClassVar[bool] = False

    def known_classes(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the classes that the network itself knows, of which those of the data are `names`."""
        return names


class Published(NamedTuple):
    """What a file of published weights holds.

    Attributes:
      trees: the arrays by path, such as "params/head/classes/kernel".
      num_classes: that it knows; `channels` of its pictures.
      inputs: what it takes, as facts of a data set have it; `targets` what such a set has.
      mean, std: what it was normalised by, of each channel or one for all.
      names: whose names the arrays had, "published" or "kdjax".
    """

    trees: dict[str, Any]
    num_classes: int
    channels: int
    inputs: Any
    targets: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: str = "published"


@dataclasses.dataclass(frozen=True)
class NumberedViews:
    """The views of a training example where they are so few that each has a number: what a teacher cache needs.

    Attributes:
      count: how many there are.
      numbers: `(index, pass, key) -> [B]` int32, which one each example shows in a pass.
      show: `(inputs, numbers) -> what a network sees`.
      facts: what they depend on, JSON-like, so that outputs are never kept for other views.
    """

    count: int
    numbers: Callable[[Array, Any, Array], Array]
    show: Callable[[Any, Array], Any]
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Base of the tasks. A subclass is a frozen dataclass: its fields are an experiment's `data`.

    Class attributes say how results are read:

      metric: the number that counts: by it the best weights are kept and methods compared.
      columns: further numbers of a table, as far as there are any.
      noun: what examples are called in reports.
      legend: what a reader must know of the columns, in a sentence or two.
    """

    name: str = ""
    """data set"""
    batch_size: int = 128
    """examples in one optimizer step, over all devices"""
    eval_batch_size: int = 512
    """examples in one evaluation step, over all devices"""

    metric: ClassVar[Metric] = Metric("top1", "top-1 %", 100, 2, unit="points")
    columns: ClassVar[tuple[Metric, ...]] = ()
    noun: ClassVar[str] = "examples"
    legend: ClassVar[str] = ""

    # --- data ---

    def load(self, data_dir: str | None = None) -> Dataset:
        """Reads and splits the examples that the fields ask for."""
        raise TypeError(f"{type(self).__name__} does not say where its examples are; define load(data_dir).")

    def stand_in(self, data_dir: str | None = None) -> Dataset | None:
        """Examples of the right shapes with nothing in them, for a dry run where the data is not there; None if not known."""
        return None

    def problems(self) -> list[str]:
        """What is wrong with the fields, a sentence each."""
        return []

    def tuned(self) -> "Task":
        """The same task, evaluated on examples that are held out of its training split: for choosing settings.

        Raises:
          ValueError: none are held out.
        """
        raise ValueError(f"{type(self).__name__} holds no validation examples out, so that settings would be chosen on the "
                         "test examples; define tuned().")  # fmt: skip

    def shrunk(self) -> "Task":
        """A copy that takes seconds, for `--tiny`."""
        return dataclasses.replace(self, batch_size=min(self.batch_size, 32))

    @property
    def one_shape(self) -> bool:
        """Whether all batches have one shape. Those of several are dispatched one by one, and FLOPs are not counted."""
        return True

    # --- views: functions of (data seed, pass, example index) and nothing else ---

    @property
    def mixup(self) -> float:
        """Strength of mixing each input with its neighbour's, see `kdjax.training.mixup`; 0 for none."""
        return 0.0

    @property
    def cutmix(self) -> float:
        """Strength of cutting a part of its neighbour's into each input, of images alone; 0 for none."""
        return 0.0

    def train_views(self, inputs: Any, index: Array, epoch: Array, key: Array, *, names: tuple[str, ...]) -> Any:
        """What a network sees of a training batch: one view, or a `MultiView` of those named.

        Args:
          inputs: of the batch.
          index: `[B]` positions of the examples.
          epoch: int32, passes done.
          key: of the data seed.
          names: views that the objective compares, "main" first.

        Raises:
          ValueError: a view that there is not.
        """
        if names != ("main",):
            raise ValueError(f"The objective compares the views {', '.join(names)}; {self.noun} have one, 'main'.")
        return MultiView({"main": self.evaluation_view(inputs)})

    def train_targets(self, targets: Any, index: Array, epoch: Array, key: Array) -> Any:
        """The targets of what the main view of `train_views` shows, by its other arguments: boxes in a mirrored image, say."""
        return targets

    def evaluation_view(self, inputs: Any) -> Any:
        """What a network sees of a batch that is evaluated."""
        return inputs

    def decoded(self, file: Any, inputs: Any) -> Any:
        """One example's inputs of a file, as the data set stores them: for `kdjax predict`.

        Args:
          file: its path; or as `str` a text itself, of tasks that read texts.
          inputs: shapes of a batch of them.

        Raises:
          ValueError: it cannot be read, or these are not read from files.
        """
        raise ValueError(
            f"{type(self).__name__} does not read {self.noun} from files; call kdjax.load_trained from Python."
        )

    def as_trained(self, model: Any, other: "Task", classes: Sequence[str], dataset: Dataset) -> Any:
        """A network that was trained on another task of this kind, for this one's data: with its own normalisation, say.

        Args:
          model: the network as it was trained.
          other: the task.
          classes: names of the classes that it knows.
          dataset: of this task.
        """
        return model

    def unlike(self, other: "Task", model: Any) -> str:
        """What is otherwise with inputs than where a network was trained, `other`, that it can hardly know; empty if nothing."""
        return ""

    @classmethod
    def knows_published(cls, network: str) -> bool:
        """Whether published weights of this network are read by the task itself; see `read_published`."""
        return False

    @classmethod
    def read_published(
        cls, path: Path, network: str, *, data: str, width: int, image_size: int, mean: tuple[float, ...],
        std: tuple[float, ...], ema: bool,
    ) -> "tuple[Published, Callable[[Sequence[float], Sequence[float]], Task], Model]":  # fmt: skip
        """What a file of published weights holds, the task that it is for by mean and standard deviation, and the network.

        Raises:
          ValueError: the file is damaged or of another network.
        """
        raise TypeError(f"{cls.__name__} reads no published weights; define read_published.")

    def for_networks(self, network: Model, teachers: Sequence[Model], *, writes: bool = False) -> "Task":
        """The task as a phase's networks need it: with tokens of a teacher that has its own beside the student's, say.

        Args:
          network: that is trained or evaluated.
          teachers: those that teach it.
          writes: whether it learns from what it writes itself.

        Raises:
          ValueError: they cannot be shown the same examples.
        """
        return self

    def written_out(self, model: Model) -> Model:
        """A network with what it has of the task because it says nothing of its own, such as the tokenizer: for phases whose
        networks differ in it."""
        return model

    def taken(self, model: Model, folder: Path) -> Model:
        """The network of a folder of Hugging Face as it is, with the weights and the classes or tokens that it has: for
        `--teacher FOLDER`.

        Args:
          model: the network in whose place it comes, which says what of it is read.
          folder: with `config.json` and `model.safetensors`.

        Raises:
          ValueError: networks of this task do not come in such folders.
        """
        raise ValueError(f"{folder} is a folder of Hugging Face, from which networks for {self.noun} are not taken; give the "
                         "folder of a finished run, or a file of weights.")  # fmt: skip

    def write_network(self, model: Model, params: Tree, classes: Sequence[str], folder: Path) -> None:
        """Writes a finished network as a folder of Hugging Face: for `kdjax export`.

        Args:
          model, params: the network.
          classes: names of those that it knows.
          folder: to be made.

        Raises:
          ValueError: networks of this task do not come in such folders.
        """
        raise ValueError(f"Networks for {self.noun} are not written as folders of Hugging Face; export stablehlo, safetensors "
                         "or npz.")  # fmt: skip

    def numbered_views(self) -> NumberedViews:
        """The training views by number.

        Raises:
          ValueError: they have none, in one sentence.
        """
        raise ValueError(f"The views of {self.noun} are not numbered, so what a teacher says of them cannot be kept; "
                         "set teacher_cache to empty.")  # fmt: skip

    # --- networks ---

    def network(self, model: Model, dataset: Dataset, *, remat: bool = False) -> Network:
        """A network for this data; with `remat` its blocks are computed again in the backward pass."""
        raise TypeError(f"{type(self).__name__} does not say which networks solve it; define network(model, dataset).")

    def shrunk_network(self, model: Model) -> Model:
        """A narrow copy, for `--tiny`."""
        return model

    def written(
        self, network: Network, params: Tree, state: Tree, batch: Batch, key: Array, beside: Any = None
    ) -> Batch:
        """A batch of the same shapes with what a network writes itself in place of the data, for phases with `on_policy`. What it
        wrote is no label: `labelled` is False.

        Args:
          network, params, state: which network, and its variables.
          batch: of the data.
          key: of the draws, of this step; rows are told apart by their `index`.
          beside: a teacher that has a share in what is drawn, `kdjax.models.transformers.sampling.Beside`; or None.

        Raises:
          ValueError: the network does not write.
        """
        raise ValueError(f"Networks do not write {self.noun} themselves; set on_policy to 0.")

    # --- metrics ---

    def fit(self, student: Any, teacher: Any, batch: Batch) -> dict[str, Term]:
        """What the log says of every training step beside the loss."""
        return metrics.fit(student, teacher, batch)

    def sums(self, student: Any, teacher: Any, batch: Batch) -> Sums:
        """Sums over one batch of this device, for "student" and "teacher" each. The teacher's output may be None.

        What is no sum (boxes found in an image, say) is wrapped in `kdjax.training.evaluation.PerExample`."""
        return metrics.class_sums(student, teacher, batch)

    def means(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        """What the sums of one role over the whole data set come to; `metric.name` must be among it. What was `PerExample` is
        `[N, ...]`, rows in no certain order, padding included."""
        return metrics.class_means(sums)

    # --- a finished network ---

    def answers(self, inputs: Any, output: Any, names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
        """What a network said of each row, in words, the surest first: `(what, how sure)`, at most `top` of them.

        Args:
          inputs: the rows, as `decoded` gives them.
          output: of the network, as NumPy arrays.
          names: of the classes, as far as they are known.
          top: how many.

        Raises:
          ValueError: it says no class of a row.
        """
        logits = np.asarray(output.logits, np.float32)
        if logits.ndim != 2:
            raise ValueError(f"The network gives logits {list(logits.shape)}, not one class of a file.")
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        called = names if len(names) == logits.shape[1] else tuple(map(str, range(logits.shape[1])))
        return [[(called[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:top]] for row in shares]

    def drawn(self, inputs: Any, output: Any, names: Sequence[str], path: Path) -> None:
        """Draws what a network said of a batch of one row into a picture file.

        Raises:
          ValueError: there is nothing to draw.
        """
        raise ValueError(f"What is said of {self.noun} is not drawn; leave --draw out.")

    # --- report ---

    def pictures(
        self, comparison: dict[str, Any], folder: Path, load: Callable[[Path], Callable[[Any], Any]]
    ) -> Sequence[tuple[str, str, Path]]:
        """Draws further pictures for a comparison's report: `(heading, what it shows, file)`. `load` gives the finished network
        of a run's folder as a function from inputs to its output, with its `network` and `variables`."""
        return ()
