"""Published numbers are data: configs and tables print them as they are, and beside nothing else."""

import ast
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from kdjax.experiment import ExperimentError, published, tables
from kdjax.experiment.config import load_config
from kdjax.experiment.summary import summary_markdown
from kdjax.json_files import read_json
from kdjax.models import zoo
from kdjax.models.transformers import SIZES
from kdjax.objectives import DKD, LD, METHODS, GFLLoss
from kdjax.recipes.cifar100 import DKD_BETA, cifar100
from kdjax.schedules import epochs
from kdjax.tasks.classification import Classification, Classifier
from kdjax.tasks.detection.networks import DENSE

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = json.loads((CONFIGS / "published.json").read_text())["rows"]
PAIRS = sorted({(row["teacher"], row["student"]) for row in ROWS if "teacher" in row and row["data"] == "cifar100"})
SHOWN = ("labels", "kd", "fitnet", "crd", "ofd", "reviewkd", "dkd", "rld")


def table() -> str:
    lines = ["| config | teacher | " + " | ".join(SHOWN) + " |", "| --- |" + " ---: |" * (len(SHOWN) + 1)]
    for teacher, student in PAIRS:
        values = published.of_pair("cifar100", teacher, student)
        cells = [values[name].text if name in values else "–" for name in SHOWN]
        taught = published.of_network("cifar100", teacher)
        lines.append(f"| `cifar100/{teacher}_{student}.py` | {taught.text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_rows_are_whole_and_each_is_there_once():
    assert len(PAIRS) == 13
    keys = [(row["data"], row.get("teacher"), row.get("student"), row.get("network"), row["method"]) for row in ROWS]
    assert len(set(keys)) == len(keys)
    for row in ROWS:
        (metric,) = {"top1", "ap", "rouge_l"} & set(row)
        value, known = row[metric], DENSE if metric == "ap" else {*zoo.NETWORKS, *SIZES}
        assert row["method"] in METHODS and 0 < value < 100 and row["source"]
        assert ("ap50" in row) == ("ap75" in row) and value < row.get("ap50", 100) > row.get("ap75", 0)
        assert row["rule"] in ("last epoch", "best epoch", "not stated")
        assert all(row[role] in known for role in ("teacher", "student", "network") if role in row)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_every_pair_has_a_config_with_its_protocol(teacher, student):
    path = CONFIGS / "cifar100" / f"{teacher}_{student}.py"
    text = " ".join(ast.get_docstring(ast.parse(path.read_text())).split())
    assert published.sentence("cifar100", teacher, student) in text
    experiment = load_config(str(path))("dkd")
    first, last = experiment.phases[0], experiment.student
    assert (first.network.name, last.network.name) == (teacher, student) and experiment.data.batch_size == 64
    rate = 0.01 if student.startswith(("mobile", "shuffle")) else 0.05
    assert (first.optimizer.learning_rate.value, last.optimizer.learning_rate.value) == (0.05, rate)
    assert first.duration == last.duration == epochs(240)
    assert f"learning rate {rate}" in text
    (beta,) = (part.beta for part in last.objective.parts if isinstance(part, DKD))
    assert beta == DKD_BETA.get((teacher, student), 8.0)
    assert published.of_experiment(experiment)["kd"] == published.of_pair("cifar100", teacher, student)["kd"]


@pytest.mark.parametrize(("file", "beta"), [("resnet34_resnet18", 0.5), ("resnet50_mobilenetv1", 2.0)])
def test_imagenet_has_its_protocol(file, beta):
    path = CONFIGS / "imagenet" / f"{file}.py"
    text = " ".join(ast.get_docstring(ast.parse(path.read_text())).split())
    for name, batch, rate in (("dkd", 512, 0.2), ("crd", 256, 0.1)):
        experiment = load_config(str(path))(name)
        assert experiment.problems() == [] and experiment.data.batch_size == batch
        student, teacher = experiment.student, experiment.phases[0]
        assert student.optimizer.learning_rate.value == rate and student.duration == epochs(100)
        assert published.sentence("imagenet2012", teacher.network.name, student.network.name) in text
    assert [part.beta for part in load_config(str(path))("dkd").student.objective.parts if isinstance(part, DKD)] == [
        beta
    ]


DETECTORS = sorted({(row["data"], row["teacher"], row["student"]) for row in ROWS if "ap" in row and "teacher" in row})


@pytest.mark.parametrize(("data", "teacher", "student"), DETECTORS)
def test_detectors_have_their_protocol(data, teacher, student):
    """12 passes, the rate divided by 10 as released; VOC's box term is CIoU; by default the data are those of the numbers."""
    folder = data.partition("/")[0]
    path = CONFIGS / folder / f"{teacher}_{student.removeprefix('gfl_')}.py"
    text = " ".join(ast.get_docstring(ast.parse(path.read_text())).split())
    assert published.sentence(data, teacher, student) in text
    experiment = load_config(str(path))("ld")
    assert experiment.problems() == [] and published.of_experiment(experiment) == published.of_pair(
        data, teacher, student
    )
    last, voc = experiment.student, folder == "voc"
    batch = experiment.data.batch_size
    assert batch == (4 if student == "gfl_r50" and not voc else 6)
    steps = last.optimizer.learning_rate.first
    assert steps.value == pytest.approx(0.01 * batch / 16) and steps.boundaries == ((9.0,) if voc else (8.0, 11.0))
    (loss,) = (part for part in last.objective.parts if isinstance(part, GFLLoss))
    assert loss.box == ("ciou" if voc else "giou") and last.duration == epochs(12)
    assert any(isinstance(part, LD) for part in last.objective.parts)


def test_networks_or_data_that_are_not_as_published_have_nothing_beside_them():
    experiment = cifar100("resnet32x4", "resnet8x4")
    assert published.of_experiment(experiment)["dkd"].text == "76.32"
    narrow = experiment.replace_phase("student", network=Classifier(name="resnet8x4", width=32))
    other = experiment.replace_phase("student", network=Classifier(name="small_cnn"))
    elsewhere = dataclasses.replace(experiment, data=Classification(name="cifar10"))
    alone = dataclasses.replace(experiment, phases=experiment.phases[:1])
    for one in (narrow, other, elsewhere, alone):
        assert published.of_experiment(one) == {}


def test_a_comparison_shows_them_with_their_sources():
    values = published.of_pair("cifar100", "resnet32x4", "resnet8x4")
    spread = {"mean": 0.7, "sd": 0.01, "values": [0.69, 0.71]}
    methods = {
        name: {"parameters": 5, "extra_parameters": 0, "metrics": {"top1": spread}, "examples_per_s": spread,
               "seconds": spread, "examples_visited": 7,
               **({"published": values[name]._asdict()} if name in values else {})}
        for name in ("kd", "dkd", "rld", "nkd")
    }  # fmt: skip
    comparison = {"name": "x", "methods": methods, "teacher": None, "steps": 1, "batch_size": 2, "together": None,
                  "data": {"labelled": 1, "trained_on": 1, "evaluated": 1, "evaluated_on": "test"}}  # fmt: skip
    console = Console(file=io.StringIO(), width=300)
    tables.show_comparison(comparison, Classification(), console)
    text = console.file.getvalue()
    for line in (r"kd .* 73\.33 ", r"dkd .* 76\.32 \(best epoch\)", r"rld .* 76\.64 \(\?\)", r"nkd .* – "):
        assert re.search(rf"^ *{line}", text, re.M), line
    assert "Published values are of others: RepDistiller, README of its code (kd); Zhao et al., CVPR 2022 (dkd)" in text
    assert "published" not in tables.headings({"methods": {"nkd": methods["nkd"]}}, Classification())


def test_the_table_of_the_configs_is_the_data():
    text = (CONFIGS / "README.md").read_text()
    assert re.search(r"<!-- pairs: begin -->\n(.*?)<!-- pairs: end -->", text, re.S).group(1).strip() == table()


@pytest.mark.parametrize(
    ("folder", "config", "method", "seeds"),
    [("fashion_mnist", "study_few_labels", "kd", 5), ("boxes", "gfl", "ld", 3)],
)
def test_results_obtained_here_are_those_of_the_runs(folder, config, method, seeds):
    """The tables beside the configs are made of the runs' own numbers, none of which was touched."""
    results = read_json(CONFIGS / folder / "results.json", ExperimentError, "run it again", {"pairs": dict})
    text = (CONFIGS / folder / "README.md").read_text()
    shown = re.search(r"<!-- results: begin -->\n(.*)<!-- results: end -->", text, flags=re.S).group(1).strip()
    assert shown == summary_markdown(results, load_config(f"{folder}/{config}")(method).data).strip()
    assert all(len(m["seeds"]) == seeds for pair in results["pairs"].values() for m in pair["methods"].values())
