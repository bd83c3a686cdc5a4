"""Published results, data of `configs/published.json`: what others obtained, never what kdjax did."""

import functools
from typing import NamedTuple

from kdjax.experiment import configs
from kdjax.experiment.spec import Experiment, ExperimentError
from kdjax.json_files import read_json


class Published(NamedTuple):
    """One value of a table.

    Attributes:
      text: accuracy in %, average precision in points or ROUGE-L, as it is printed; with AP50 and AP75 where they are known.
      rule: of which epoch ("last epoch", "best epoch"), or "not stated".
      source: paper or code that prints it.
      n: runs that it is the mean of; 0 if that is not said.
    """

    text: str
    rule: str
    source: str
    n: int = 0


@functools.cache
def _rows() -> tuple[dict, ...]:
    path = configs.folder() / "published.json"
    return tuple(read_json(path, ExperimentError, "install kdjax anew", {"rows": list})["rows"])


def _value(row: dict) -> Published:
    if "top1" in row:
        text = f"{row['top1']:.2f}"
    elif "rouge_l" in row:
        text = f"ROUGE-L {row['rouge_l']:.1f}"
    else:
        text = f"{row['ap']:.1f}" + (f" ({row['ap50']:.1f} / {row['ap75']:.1f})" if "ap50" in row else "")
    return Published(text, row["rule"], row["source"], row.get("n", 0))


def of_pair(data: str, teacher: str, student: str) -> dict[str, Published]:
    """What was published for a pair of networks, by method; "labels" is the student alone."""
    found = {row["method"]: _value(row) for row in _rows()
             if (row["data"], row.get("teacher"), row.get("student")) == (data, teacher, student)}  # fmt: skip
    alone = of_network(data, student)
    return {"labels": alone, **found} if found and alone else found


def of_network(data: str, network: str) -> Published | None:
    """What was published for a network trained on labels."""
    rows = (row for row in _rows() if (row["data"], row.get("network")) == (data, network))
    return next(map(_value, rows), None)


def of_experiment(experiment: Experiment) -> dict[str, Published]:
    """What was published for the networks of an experiment, where they are as published: by method."""
    student, phases = experiment.student, {phase.name: phase for phase in experiment.phases}
    teacher = phases.get(student.teacher)
    models = [getattr(phase, "network", None) for phase in (teacher, student)]
    if teacher is None or any(getattr(model, "width", 1) for model in models):
        return {}
    return of_pair(experiment.data.name, *(model.name for model in models))


def sentence(data: str, teacher: str, student: str) -> str:
    """The published values of a pair, for the head of its config."""
    values = of_pair(data, teacher, student)
    taught = of_network(data, teacher)
    parts = ([f"teacher {taught.text}"] if taught else []) + [f"{name} {value.text}" for name, value in values.items()]
    metric = "AP (AP50 / AP75)" if any("ap" in row for row in _rows() if row["data"] == data) else "top-1"
    return f"Published {metric}, not reproduced here: {', '.join(parts)}."
