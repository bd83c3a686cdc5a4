"""What the README prints is true: its examples run as printed, its tables are the generated ones."""

import re
from pathlib import Path

import pytest

from kdjax.objectives.catalogue import markdown

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.S)


def between(name):
    return (
        re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", README.read_text(), flags=re.S)
        .group(1)
        .strip()
    )


def test_the_loss_example_runs_alone(capsys):
    exec(compile(blocks("python")[0], "README", "exec"), {})
    assert "Array" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_step_examples_run_one_after_the_other(capsys):
    """The second replaces the two lines that make the networks, so it goes on from the first."""
    scope = {}
    exec(compile(blocks("python")[1], "README", "exec"), scope)
    assert "dkd" in capsys.readouterr().out and int(scope["state"].step) == 3
    exec(compile(blocks("python")[2], "README", "exec"), scope)
    assert int(scope["state"].step) == 1 and set(scope["metrics"]) >= {"loss", "cross_entropy", "dkd", "top1"}
    exec(compile(blocks("python")[3], "README", "exec"), scope)
    count = scope["metrics"]["forward_kl"][1]
    assert count == scope["metrics"]["cross_entropy"][1] == scope["metrics"]["top1"][1] == scope["real"].sum()


def test_the_table_of_methods_is_the_generated_one():
    assert between("methods table") == markdown()


def test_commands_name_configs_that_exist():
    named = re.findall(r"configs/\S+\.py", README.read_text())
    assert named and all((README.parent / path).exists() for path in named)
