"""What importing the losses costs, what the package promises by name, and that its examples are true."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

from kdjax import losses

MODULES = [module.name for module in pkgutil.iter_modules(losses.__path__)]
HEAVY = (
    "clu,flax,grain,kdjax.analysis,kdjax.data,kdjax.models,kdjax.objectives,kdjax.reduction,kdjax.training,kdjax.types,"
    "matplotlib,ml_collections,optax,orbax,pandas,PIL,scipy,sklearn,tensorboardX,tensorflow,tensorflow_datasets,torch"
).split(",")


def test_import_is_as_light_as_jax_and_chex():
    program = f"import sys, kdjax.losses; print(','.join(name for name in {HEAVY} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_every_public_name_is_listed_and_explained():
    public = {
        name: value
        for name, value in vars(losses).items()
        if inspect.isfunction(value) and value.__module__.startswith("kdjax.losses")
    }
    assert sorted(public) == sorted(losses.__all__)
    for name, function in public.items():
        text = inspect.getdoc(function)
        for part in ("Args:", "Returns:", "Raises:", ">>> "):
            assert part in text, f"{name} does not say {part}"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"kdjax.losses.{name}")
    outcome = doctest.testmod(module)
    assert outcome.failed == 0
    public = [f for f in losses.__all__ if getattr(losses, f).__module__ == module.__name__]
    assert outcome.attempted >= 2 * len(public)
