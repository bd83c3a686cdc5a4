"""What importing costs: losses need jax and chex; the core needs flax and optax too; data and files only the command."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kdjax

HEAVY = {
    "orbax", "tensorflow_datasets", "tensorflow", "grain", "array_record", "tyro", "rich", "tensorboardX", "matplotlib",
    "sklearn", "PIL", "scipy.stats",
}  # fmt: skip


def loaded(*modules):
    """Names in sys.modules of a fresh process after importing."""
    return in_turn(*modules)[-1]


def in_turn(*modules):
    """Names in sys.modules of a fresh process after importing the first of these, the second as well, and so on."""
    code = "\n".join(["import sys", *(f"import {module}; print(*sys.modules)" for module in modules)])
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return [set(line.split()) for line in printed.splitlines()]


def test_the_core_loads_no_data_files_or_command_line_library():
    names = loaded("kdjax.losses", "kdjax.objectives", "kdjax.models", "kdjax.training", "kdjax.models.zoo.catalogue")
    assert {"flax", "optax"} <= names
    assert HEAVY & names <= {"rich"}, "flax itself loads rich"


@pytest.mark.parametrize("module", ["kdjax", "kdjax.cli"])
def test_the_command_starts_light(module):
    names = loaded(module)
    assert not (HEAVY | {"jax", "flax"}) & names


# The rooms from the ground up; each may call those below it, and no other. `tasks/task.py` is all that is known of tasks.
GROUND = {"types", "reduction", "schedules", "references", "json_files", "places", "terminal", "endings", "__init__"}
FLOORS = [
    GROUND, {"losses", "data", "models"}, {"analysis", "objectives"}, {"training"}, {"tasks"}, {"experiment"},
    {"studies"}, {"command_line"},
    {"finished_commands", "run_commands"}, {"cli"},
    {"recipes"},
]  # fmt: skip
ALONE = {"losses", "data", "models"}  # of one floor, and strangers to each other


def imports() -> dict[str, set[str]]:
    """What every module of kdjax imports of kdjax, wherever in the file."""
    root = Path(kdjax.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        name = ".".join(("kdjax", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found[name] |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name: {m for m in theirs if m in found and m != name and m != "kdjax"} for name, theirs in found.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_rooms_call_each_other_one_way():
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    for module, theirs in imports().items():
        for other in theirs if module != "kdjax" else ():  # which imports when it is asked, see above
            here, there = room(module), room(other)
            assert floor[there] <= floor[here], f"{module} imports {other}, which is above it"
            assert here == there or not {here, there} <= ALONE, f"{module} imports {other}, its neighbour"


def test_a_task_is_known_to_nobody_but_itself():
    folders = {
        path.name for path in (Path(kdjax.__file__).parent / "tasks").iterdir() if path.is_dir() and path.name[0] != "_"
    }
    assert {"classification", "detection"} <= folders
    for module, theirs in imports().items():
        for folder in folders:
            if not module.startswith(
                (f"kdjax.tasks.{folder}", "kdjax.recipes")
            ):  # which are experiments, as configs are
                assert not {m for m in theirs if m.startswith(f"kdjax.tasks.{folder}")}, f"{module} knows of {folder}"


def test_no_modules_import_each_other_in_a_circle():
    """A package's `__init__` collects what its modules define, and may be imported by others of its room."""
    graph = {m: {o for o in theirs if o.count(".") != 1} for m, theirs in imports().items() if m.count(".") > 1}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        path.append(module)
        for other in graph.get(module, ()):
            visit(other)
        path.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_what_is_loaded_keeps_to_the_rooms():
    """As the imports say, in a fresh process: losses know nothing of kdjax; models and data nothing of what trains them."""
    above = ("kdjax.objectives", "kdjax.training", "kdjax.tasks", "kdjax.experiment")
    losses, models, objectives, training, run = in_turn(
        "kdjax.losses", "kdjax.models", "kdjax.objectives", "kdjax.training", "kdjax.experiment.run"
    )
    assert not {n for n in losses if n.startswith("kdjax.") and not n.startswith("kdjax.losses")}
    for names in (models, loaded("kdjax.data")):
        assert not {n for n in names if n.startswith(above)}
    assert not {n for n in objectives if n.startswith((*above[1:], "kdjax.data"))}
    assert not {n for n in training if n.startswith((*above[2:], "kdjax.data"))}
    assert not {n for n in run if n.startswith("kdjax.tasks.classification")}


def test_what_is_public_is_said_as_type_checkers_read_it():
    """A list of words goes on by `+= module.__all__` alone: of a loop pyright takes every name for private."""
    from kdjax import objectives
    from kdjax.objectives.methods import FILES

    for path in Path(kdjax.__file__).parent.rglob("__init__.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AugAssign) and getattr(node.target, "id", "") == "__all__":
                assert isinstance(node.value, ast.Attribute) and node.value.attr == "__all__", path
    assert {name for file in FILES for name in file.__all__} <= set(objectives.__all__)
