"""The training step, written once: teacher inference and student update as one program.

    step(state, teacher, batch) -> (state, metrics)

A runner decides how it is compiled. All it knows of devices is the name of the mapped axis, if there is one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from kdjax.objectives import Bound
from kdjax.reduction import group_losses, per_example, sum_over_devices, term_metrics
from kdjax.training.state import TrainState, Variables
from kdjax.types import Array, Axis, Batch, Clock, Context, ModelOutput, Network, Tree

# {name: (sum, count)} over all devices; the host divides.
Metrics = dict[str, tuple[Array, Array]]
Step = Callable[[TrainState, Variables | None, Batch], tuple[TrainState, Metrics]]
# (inputs, index, epoch, key) -> what the networks see
Views = Callable[[Array, Array, Array, Array], Array]


def as_given(inputs, index, epoch, key):
    """Views that leave the inputs as they are."""
    return inputs


def make_step(
    student: Network,
    teacher: Network | None,
    objective: Bound,
    optimizer: optax.GradientTransformation,
    *,
    clock: Clock = Clock(),
    views: Views = as_given,
    axis: Axis = None,
    ema_decay: float | None = None,
) -> Step:
    """Builds the step.

    Args:
      student: the network that is trained.
      teacher: the frozen one, or None for objectives that read none.
      objective: bound to both.
      optimizer: an optax transformation over `{"student", "objective"}` parameters.
      clock: total steps, steps an epoch and batch size, for schedules.
      views: augmentation and normalisation on the device.
      axis: name of the mapped axis if the step will run under pmap or shard_map; None under jit.
      ema_decay: decay of the moving average of the student, if the state has one.

    Returns:
      A pure function, to be compiled once; gradients are of the global batch in every case.
    """
    if teacher is None and objective.needs_teacher:
        raise ValueError("The objective reads a teacher, and there is none; pass teacher=.")
    combine = objective.combine

    def step(state: TrainState, teacher_variables: Variables | None, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.keys["train"], state.step)
        student_key, objective_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        inputs = views(batch.inputs, batch.index, clock.pass_index(state.step), state.keys["data"])
        teacher_output, teacher_call = run_teacher(teacher, teacher_variables, inputs, axis)

        def losses_of(params):
            with jax.named_scope("student"):
                output, student_state = student.apply(
                    params["student"], state.state["student"], inputs, train=True, rngs=student_key, axis=axis
                )
            ctx = Context(
                student=output,
                teacher=teacher_output,
                batch=batch,
                progress=clock.at(state.step),
                key=objective_key,
                axis=axis,
                teacher_call=teacher_call,
            )
            with jax.named_scope("objective"):
                terms, objective_state = objective.apply(params["objective"], state.state["objective"], ctx, train=True)
            new_state = {"student": student_state, "objective": objective_state}
            return group_losses(terms, axis), (new_state, terms, output)

        gradients, (new_state, terms, output) = grouped_gradients(losses_of, state.params, combine, axis)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = term_metrics(terms, axis)
        metrics |= fit_metrics(output, teacher_output, batch, axis)
        one = jnp.ones(())
        metrics["gradient_norm"] = (optax.tree.norm(gradients), one)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params["student"], ema, step_size=1.0 - ema_decay)
        return TrainState(state.step + 1, params, new_state, opt_state, ema, state.keys), metrics

    step.axis = axis  # runners refuse a step made for another one
    return step


def run_teacher(teacher: Network | None, variables: Variables | None, inputs, axis: Axis):
    """The teacher's output under `stop_gradient`, and its parts as functions differentiable in their inputs."""
    if teacher is None:
        return None, None
    params, state = lax.stop_gradient((variables.params, variables.state))
    with jax.named_scope("teacher"):
        output, _ = teacher.apply(params, state, inputs, train=False, axis=axis)

    def call(part, *arrays):
        return teacher.parts[part](params, state, *arrays)

    return lax.stop_gradient(output), call


def grouped_gradients(losses_of, params: Tree, combine, axis: Axis):
    """Gradients over all devices, and the auxiliary output of `losses_of`.

    Groups are added unless a method combines them itself; then each gets its own pull-back of one shared forward pass,
    summed over devices first, since a combination need not be linear.
    """
    if combine is None:

        def total(params):
            losses, aux = losses_of(params)
            return sum(losses.values()), aux

        gradients, aux = jax.grad(total, has_aux=True)(params)
        return sum_over_devices(gradients, axis), aux
    losses, pull, aux = jax.vjp(losses_of, params, has_aux=True)
    gradients = {
        group: pull({other: jnp.ones_like(v) if other == group else jnp.zeros_like(v) for other, v in losses.items()})[
            0
        ]
        for group in losses
    }
    return combine(sum_over_devices(gradients, axis)), aux


def fit_metrics(output: ModelOutput, teacher_output: ModelOutput | None, batch: Batch, axis: Axis) -> Metrics:
    """Top-1 accuracy on the rows with labels, and agreement with the teacher on all, as far as there are logits."""
    if output.logits is None:
        return {}
    predicted = jnp.argmax(output.logits, axis=-1)
    terms = {"top1": (predicted == batch.labels, batch.where & batch.labelled)}
    if teacher_output is not None and same_classes(output, teacher_output):
        terms["agreement"] = (predicted == jnp.argmax(teacher_output.logits, axis=-1), batch.where)
    sums = {name: per_example(hit.astype(jnp.float32), where) for name, (hit, where) in terms.items()}
    return sum_over_devices({name: (term.sum, term.count) for name, term in sums.items()}, axis)


def same_classes(student: ModelOutput, teacher: ModelOutput) -> bool:
    """Whether both give logits over the same number of classes, so that their predictions can be compared."""
    both = student.logits is not None and teacher.logits is not None
    return both and student.logits.shape[-1] == teacher.logits.shape[-1]
