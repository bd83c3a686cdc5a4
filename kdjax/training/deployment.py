"""What is evaluated and kept of a training state: the student, and what a method leaves on it (SimKD's projector)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.models import output_shapes
from kdjax.objectives import Bound
from kdjax.training.state import TrainState, Variables
from kdjax.types import Network, Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Deployment:
    """The student as it is used after training, as a network and as the variables of one.

    Attributes:
      network: the student itself, or with what the objective deploys behind it.
      keeps: which of the teacher's `(params, state)` the deployed student needs; None where nothing is deployed.
    """

    network: Network
    objective: Bound
    keeps: Any = None

    def variables(self, state: TrainState, teacher: Variables | None = None) -> Variables:
        """The deployed student's variables; their moving average, if there is one."""
        there = {"params": state.params, "state": state.state} if state.ema is None else state.ema
        params, statistics = there["params"], there["state"]
        if self.keeps is None:
            return Variables(params["student"], statistics["student"])
        name, _ = self.objective.deployed
        theirs = tuple(trim(*pair) for pair in zip((teacher.params, teacher.state), self.keeps, strict=True))
        return Variables(
            {"student": params["student"], "objective": params["objective"][name], "teacher": theirs[0]},
            {"student": statistics["student"], "objective": statistics["objective"][name], "teacher": theirs[1]},
        )


def deploy(student: Network, teacher: Network | None, objective: Bound, inputs: jax.ShapeDtypeStruct) -> Deployment:
    """How a student is deployed; `inputs` is the shape of what it sees."""
    if objective.deployed is None:
        return Deployment(student, objective)
    name, part = objective.deployed
    module = objective.modules[name]

    their_shapes = jax.eval_shape(teacher.init, jax.random.key(0))

    def said_in_the_end(theirs, own, said):
        def call(which, *arrays):
            return teacher.parts[which](*theirs, *arrays)

        return module.call(*own, lambda m: part.deploy(m, said, call), train=False)[0]

    own_shapes = jax.eval_shape(lambda key: tuple(tree[name] for tree in objective.init(key)), jax.random.key(0))
    keeps = read_by(said_in_the_end, their_shapes, own_shapes, output_shapes(student, inputs))

    def init(key):
        student_params, student_state = student.init(key)
        own_params, own_state = (tree[name] for tree in objective.init(key))
        their_params, their_state = (trim(*pair) for pair in zip(teacher.init(key), keeps, strict=True))
        return (
            {"student": student_params, "objective": own_params, "teacher": their_params},
            {"student": student_state, "objective": own_state, "teacher": their_state},
        )

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        if train:
            raise ValueError(f"{student.name} is deployed with its {name} behind it and is not trained further.")
        said, _ = student.apply(params["student"], state["student"], inputs, train=False, axis=axis)
        theirs = tuple(
            fill(tree["teacher"], shapes) for tree, shapes in zip((params, state), their_shapes, strict=True)
        )
        return said_in_the_end(theirs, (params["objective"], state["objective"]), said), state

    return Deployment(Network(init, apply, {}, f"{student.name} + {name}"), objective, keeps)


def read_by(function, first: Tree, *rest: Tree) -> Tree:
    """Which leaves of its first argument a function reads, as a tree of bools."""
    jaxpr = jax.make_jaxpr(function)(first, *rest).jaxpr
    read = {id(var) for equation in jaxpr.eqns for var in equation.invars} | {id(var) for var in jaxpr.outvars}
    leaves, structure = jax.tree.flatten(first)
    return jax.tree.unflatten(structure, [id(var) in read for var in jaxpr.invars[: len(leaves)]])


def trim(tree: Tree, keeps: Tree) -> dict[str, jax.Array]:
    """The leaves that are kept, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path): leaf for (path, leaf), kept in zip(leaves, jax.tree.leaves(keeps), strict=True) if kept}


def fill(kept: dict[str, jax.Array], shapes: Tree) -> Tree:
    """What `trim` was made of, with zeros for what was not kept."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: kept[path_of(path)] if path_of(path) in kept else jnp.zeros(leaf.shape, leaf.dtype), shapes
    )


def path_of(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
