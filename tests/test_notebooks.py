"""The notebooks run as they are, in their tiny form."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "scripts" / "notebooks"


def code(name: str) -> list[str]:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(name: str, folder: Path, monkeypatch, *changes: tuple[str, str]) -> dict:
    """The names that the cells leave, after they were run one after the other in a folder, `changes` being made in them."""
    monkeypatch.chdir(folder)
    cells, names = code(name), {"__name__": name}
    for before, after in (("TINY = False", "TINY = True"), *changes):
        assert sum(cell.count(before) for cell in cells) == 1
        cells = [cell.replace(before, after) for cell in cells]
    for i, cell in enumerate(cells):
        exec(compile(cell, f"{name}, cell {i}", "exec"), names)
    return names


def test_they_are_notebooks_without_what_a_run_left():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {
        "quickstart", "own_network_and_pictures", "reproduce_cifar100",
    }  # fmt: skip
    for path in NOTEBOOKS.glob("*.ipynb"):
        made = json.loads(path.read_text(encoding="utf-8"))
        assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
        ids = [cell["id"] for cell in made["cells"]]
        assert len(set(ids)) == len(ids) and made["cells"][0]["cell_type"] == "markdown"
        assert all(cell["outputs"] == [] for cell in made["cells"] if cell["cell_type"] == "code")


@pytest.mark.slow  # the same calls as README's, which are run
def test_quickstart(tmp_path, monkeypatch):
    names = run("quickstart", tmp_path, monkeypatch)
    assert set(names["found"]["methods"]) == {"labels", "kd", "dkd"}
    assert "<table>" in names["found"]._repr_html_() and "top-1" in names["student"]._repr_html_()


def test_own_network_and_pictures(tmp_path, monkeypatch):
    names = run("own_network_and_pictures", tmp_path, monkeypatch)
    file, said = names["file"], names["said"]  # of the last picture
    assert file in names["files"] and said[0][0] in names["student"].trained().classes and 0 < said[0][1] <= 1
    assert len(names["files"]) == 3 and names["student"]["student"]["teacher_hash"]


@pytest.mark.slow  # the same path on small networks: tests/experiment/test_reproduce.py
def test_reproduce(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=80):
        names = run("reproduce_cifar100", tmp_path, monkeypatch, ('["labels", "kd", "dkd"]', '["kd"]'))
    found = names["results"]["pairs"]["resnet32x4_resnet8x4"]
    assert list(found["methods"]) == ["labels", "kd"] and not names["results"]["failed"]
