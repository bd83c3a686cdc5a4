"""What importing the losses costs, what the package promises by name, and that its examples are true."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

from kdjax import losses

MODULES = [module.name for module in pkgutil.walk_packages(losses.__path__, "kdjax.losses.") if not module.ispkg]
HEAVY = ["flax", "optax", "orbax", "clu", "tensorflow", "tensorflow_datasets", "grain", "torch", "scipy", "matplotlib"]


def in_a_fresh_process(program):
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return found.stdout.split()


def test_import_loads_nothing_heavy():
    program = "import sys, kdjax.losses; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = in_a_fresh_process(program)
    assert "chex" in loaded
    assert not set(HEAVY) & set(loaded)


def test_import_adds_only_the_losses_to_jax_and_chex():
    program = "import sys, jax, chex; old = set(sys.modules); import kdjax.losses; print(*set(sys.modules) - old)"
    added = in_a_fresh_process(program)
    assert {"kdjax", "kdjax.losses"} < set(added)
    assert [name for name in added if name != "kdjax" and not name.startswith("kdjax.losses")] == []


def test_every_public_name_is_listed_and_explained():
    public = {
        name: value
        for name, value in vars(losses).items()
        if inspect.isfunction(value) and value.__module__.startswith("kdjax.losses") and name[0] != "_"
    }
    assert sorted(public) == sorted(name for name in losses.__all__ if name.islower())
    for name, function in public.items():
        text = inspect.getdoc(function)
        for part in ("Args:", "Returns:", "Raises:", ">>> "):
            assert part in text, f"{name} does not say {part}"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    outcome = doctest.testmod(module)
    assert outcome.failed == 0
    public = [f for f in losses.__all__ if getattr(losses, f).__module__ == module.__name__]
    assert outcome.attempted >= len(public)
