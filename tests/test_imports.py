"""What importing costs: losses need jax and chex; the core needs flax and optax too; data and files only the command."""

import subprocess
import sys

import pytest

HEAVY = {
    "orbax", "tensorflow_datasets", "tensorflow", "grain", "array_record", "tyro", "rich", "tensorboardX", "matplotlib",
    "sklearn", "PIL", "scipy.stats",
}  # fmt: skip


def loaded(*modules):
    """Names in sys.modules of a fresh process after importing."""
    code = f"import sys, {', '.join(modules)}; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_core_loads_no_data_files_or_command_line_library():
    names = loaded("kdjax.losses", "kdjax.objectives", "kdjax.models", "kdjax.training", "kdjax.models.zoo.catalogue")
    assert {"flax", "optax"} <= names
    assert HEAVY & names <= {"rich"}, "flax itself loads rich"


@pytest.mark.parametrize("module", ["kdjax", "kdjax.cli"])
def test_the_command_starts_light(module):
    names = loaded(module)
    assert not (HEAVY | {"jax", "flax"}) & names


def test_rooms_call_each_other_one_way():
    """losses know nothing of kdjax; models and data nothing of objectives and training."""
    assert not {n for n in loaded("kdjax.losses") if n.startswith("kdjax.") and not n.startswith("kdjax.losses")}
    for room in ("kdjax.models", "kdjax.data"):
        assert not {n for n in loaded(room) if n.startswith(("kdjax.objectives", "kdjax.training", "kdjax.experiment"))}
    assert not {n for n in loaded("kdjax.objectives") if n.startswith(("kdjax.training", "kdjax.data"))}
