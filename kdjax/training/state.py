"""What training carries from step to step, and the teacher, which it does not carry."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax.objectives import Bound
from kdjax.types import Array, Network, Tree, pytree


@pytree
class TrainState:
    """All that a step changes; checkpoints hold exactly this.

    Attributes:
      step: int32, optimizer steps done in this phase.
      params: {"student": ..., "objective": ...}, what the optimizer trains.
      state: {"student": ..., "objective": ...}, BatchNorm statistics, memory banks; and "teacher" if its statistics go on.
      opt_state: the optimizer's.
      ema: moving average of what `deployable` gives, or None.
      keys: {"train": dropout and objectives, "data": views}: one follows `seed`, the other `data_seed`.
    """

    step: Array
    params: dict[str, Tree]
    state: dict[str, Tree]
    opt_state: Tree
    ema: Tree | None
    keys: dict[str, Array]


@pytree
class Variables:
    """A network's values. The teacher's are an argument of the step: never donated, optimized or checkpointed.

    Attributes:
      params: what is trained.
      state: BatchNorm statistics.
      gradient: of a teacher, the mean gradient of the task over a whole data set, for the unbiased control variate; in the
        structure of `params`, else None.
    """

    params: Tree
    state: Tree
    gradient: Tree | None = None


def init_state(
    student: Network,
    objective: Bound,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    data_seed: int | None = None,
    ema: bool = False,
    start: tuple[Tree, Tree] | None = None,
    teacher_state: Tree | None = None,
) -> TrainState:
    """The state before the first step. Pure: jit it with the output shardings wanted.

    Args:
      student: the network to train.
      objective: bound to it.
      optimizer: an optax transformation over `{"student", "objective"}`.
      seed: for initial weights, dropout and objectives.
      data_seed: for views of the data; `seed` if not given.
      ema: whether to keep a moving average of the student's parameters and statistics.
      start: the student's `(params, state)` to begin from, instead of fresh ones. Floats become the types that `student.init`
        gives: weights of a file in half precision are trained in float32, where small updates are not lost.
      teacher_state: the teacher's BatchNorm statistics, if the objective has them go on (`teacher_mode`): they are then
        part of this state and move, while the teacher itself stays as it is.

    Raises:
      ValueError: if the objective wants the teacher's statistics and they are not given.
    """
    key = jax.random.key(seed)
    student_params, student_state = _begun(student, start) if start else student.init(jax.random.fold_in(key, 0))
    objective_params, objective_state = objective.init(jax.random.fold_in(key, 1))
    params = {"student": student_params, "objective": objective_params}
    state = {"student": student_state, "objective": objective_state}
    if objective.teacher_mode == "train":
        if teacher_state is None:
            raise ValueError("The objective has the teacher's statistics go on; pass teacher_state=teacher.state.")
        state["teacher"] = jax.tree.map(jnp.copy, teacher_state)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        state=state,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, deployable(objective, params, state)) if ema else None,
        keys={
            "train": jax.random.fold_in(key, 2),
            "data": jax.random.key(seed if data_seed is None else data_seed),
        },
    )


def check_trainable(params: Tree) -> None:
    """Refuses parameters without a gradient.

    Raises:
      ValueError: one is of integers.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"{jax.tree_util.keystr(path, simple=True, separator='/')} is {leaf.dtype}, of which there is no gradient; keep "
                "it in a variable that is no parameter (an nnx.Variable of its own class, or another collection of Linen's)."
            )


def deployable(objective: Bound, params: dict[str, Tree], state: dict[str, Tree]) -> dict[str, dict[str, Tree]]:
    """Of a training state's `{"params": ..., "state": ...}` what is of the network that is used after training: the student, and
    what the objective leaves on it."""
    name = objective.deployed and objective.deployed[0]
    pick = lambda tree: {"student": tree["student"], "objective": {name: tree["objective"][name]} if name else {}}
    return {"params": pick(params), "state": pick(state)}


def averaged(
    ema: dict[str, dict[str, Tree]], new: dict[str, dict[str, Tree]], decay: float
) -> dict[str, dict[str, Tree]]:
    """A moving average one step on: of parameters, and of BatchNorm's statistics, which are those of the weights that they are
    used with. What is no number with a fraction, such as a counter, is the newest."""
    mean = lambda old, x: old + (1 - decay) * (x - old) if jnp.issubdtype(x.dtype, jnp.inexact) else x
    return {
        "params": optax.incremental_update(new["params"], ema["params"], step_size=1.0 - decay),
        "state": jax.tree.map(mean, ema["state"], new["state"]),
    }


def _begun(student: Network, start: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """A copy of `start`, for it may be somebody's teacher, and a step gives its state's memory up; floats of the types that the
    student's own first values have."""
    fresh = jax.eval_shape(student.init, jax.random.key(0))
    types = {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(fresh)}

    def copied(path, x):
        own = types.get(jax.tree_util.keystr(path))
        floats = own is not None and all(jnp.issubdtype(t, jnp.floating) for t in (own, jnp.result_type(x)))
        return jnp.array(x, own if floats else None)

    return jax.tree_util.tree_map_with_path(copied, tuple(start))


def content_hash(params: Tree, state: Tree) -> str:
    """Identity of a network's weights: sha256 over the name, type, shape and bytes of every array, 16 hex digits."""
    digest = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path((params, state)), key=lambda item: str(item[0])):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def count_parameters(params: Tree) -> int:
    """Number of trained values."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
