"""The method that CONTRIBUTING adds as an example works as printed."""

import dataclasses
import re
import types
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.losses import checks
from kdjax.objectives import CrossEntropy, Method, Objective, Paper, bind
from kdjax.reduction import per_example
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


def test_the_example_method():
    loss, objective, line, test = re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(), flags=re.S)
    scope = {"checks": checks, "jnp": jnp}
    exec(loss, scope)
    scope |= {
        "dataclasses": dataclasses, "ClassVar": ClassVar, "Objective": Objective, "Paper": Paper, "per_example": per_example,
        "losses": types.SimpleNamespace(**vars(losses), euclid=scope["euclid"]),
    }  # fmt: skip
    exec(objective, scope)
    methods = eval("{" + line + "}", scope | {"Method": Method, "CrossEntropy": CrossEntropy})

    assert eval("{" + test + "}", scope)["euclid"](jnp.array([3.0, 4.0]), jnp.zeros(2), None) == 5.0

    student, teacher = jnp.array([[3.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 4.0], [1.0, 1.0]])
    bound = bind(methods["euclid"].objective, ModelOutput(logits=student), ModelOutput(logits=teacher), DataInfo(2))

    def total(student):
        outputs = ModelOutput(logits=student), ModelOutput(logits=teacher)
        ctx = Context(*outputs, batch=Batch.of(student, [0, 1]), progress=Clock().at(0))
        terms, _ = bound.apply({}, {}, ctx, train=True)
        return terms["euclid"].sum, terms

    gradient, terms = jax.grad(total, has_aux=True)(student)
    assert terms["euclid"].sum == 5.0 and terms["euclid"].count == 2 and terms["euclid"].weight == 0.5
    assert jnp.allclose(gradient, jnp.array([[0.6, -0.8], [0.0, 0.0]])), "finite where the logits are equal"
