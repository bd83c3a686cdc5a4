"""The training step, written once: teacher inference and student update as one program.

    step(state, teacher, batch) -> (state, metrics)

A runner decides how it is compiled. All it knows of devices is the name of the mapped axis, if there is one. What some
methods need beyond it (the teacher's gradient, two students, optimizers that keep two momenta) hangs on its pieces.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from kdjax.objectives import Bound
from kdjax.reduction import group_losses, sum_over_devices, term_metrics
from kdjax.training import finite, metrics
from kdjax.training.inputs import (
    Moved,
    StepInputs,
    Views,
    as_given,
    check_cacheable,
    check_mixable,
    make_views,
    run_peer,
    run_teacher,
    same_architecture,
    whole_teacher,
)
from kdjax.training.optimizers import GroupedTransformation, schedules_of
from kdjax.training.state import TrainState, Variables, averaged, check_trainable, deployable
from kdjax.types import Array, Axis, Batch, Clock, Context, Network, Term, Tree

# {name: (sum, count)} over all devices; the host divides.
Metrics = dict[str, tuple[Array, Array]]
Step = Callable[..., tuple[TrainState, Metrics]]
# (student output, teacher output or None, batch) -> what is measured beside the loss
Fit = Callable[[Any, Any, Batch], dict[str, Term]]


def make_step(
    student: Network,
    teacher: Network | None,
    objective: Bound,
    optimizer: optax.GradientTransformation,
    *,
    clock: Clock = Clock(),
    views: Views = as_given,
    moved: Moved | None = None,
    mix: float = 0.0,
    cut: float = 0.0,
    fit: Fit = metrics.fit,
    axis: Axis = None,
    ema_decay: float | None = None,
    cached: bool = False,
    skip: bool = False,
    in_chunks: bool = False,
) -> Step:
    """Builds the step.

    Args:
      student: the network that is trained.
      teacher: the frozen one, or None for objectives that read none.
      objective: bound to both.
      optimizer: an optax transformation over `{"student", "objective"}` parameters, or one that takes the gradient of
        each group apart (`kdjax.training.optimizers.GroupedTransformation`).
      clock: total steps, steps an epoch and batch size, for schedules.
      views: augmentation and normalisation on the device; what it returns is the main view, or a `MultiView` of several.
      moved: the targets of what the main view shows, of the same arguments as `views` with the targets in place of the inputs,
        where views move them: boxes in a mirrored image. None: they are those of the batch.
      fit: `(student output, teacher output or None, batch) -> {name: Term}`, measured for the log at every step.
      mix: strength of mixup, Beta(mix, mix), teacher and student seeing the same mixed input; 0 for none. Labels are mixed
        with the inputs, see `kdjax.training.mixup`.
      cut: strength of CutMix, Beta(cut, cut); with both, each example is mixed one way or the other.
      axis: name of the mapped axis if the step will run under pmap or shard_map; None under jit.
      ema_decay: decay of the moving average of the student, if the state has one.
      cached: whether batches bring what the teacher says, `Batch.teacher`, so that it need not run: for objectives that read
        its logits alone.
      in_chunks: make logits of tokens a few at a time, where both networks have the part "token_weights" and all of the objective
        is `in_chunks`; nothing is then measured beside the loss.
      skip: leave everything but the count of steps as it was where the loss, the gradient or what the step makes is not
        finite.

    Returns:
      A pure function, to be compiled once; gradients are of the global batch in every case. A fourth argument is the peer
      of mutual learning, see `kdjax.training.mutual`.

    Raises:
      ValueError: if the objective needs a teacher that is not there or not of the student's architecture, if it reads targets
        that are not mixed with the inputs, or if it and the optimizer both want the gradients of the groups.
    """
    if mix or cut:
        check_mixable(objective)
    if cached:
        check_cacheable(objective)
    elif teacher is None and objective.needs_teacher:
        raise ValueError("The objective reads a teacher, and there is none; pass teacher=.")
    combine, correct = objective.combine, objective.correct
    grouped = isinstance(optimizer, GroupedTransformation)
    if grouped and (combine or correct):
        raise ValueError("The objective and the optimizer each treat the gradients of the groups in their own way; use "
                         "another optimizer.")  # fmt: skip
    if correct:
        same_architecture(student, teacher)
    losses_of = make_losses(student, objective, clock, axis, in_chunks, summed=not (grouped or combine or correct))

    def step(state: TrainState, teacher_variables: Variables | None, batch: Batch, peer: Variables | None = None):
        check_trainable(state.params)
        shown, batch = make_views(state, batch, views, objective.views, clock, axis, mix, cut, moved)
        if cached:
            said, teacher_call, goes_on = lax.stop_gradient({"main": batch.teacher}), None, None
        else:
            said, teacher_call, goes_on = run_teacher(
                teacher, teacher_variables, shown, axis, state.state.get("teacher")
            )
        peer_key = jax.random.fold_in(jax.random.fold_in(state.keys["train"], state.step), 2)
        inputs = StepInputs(batch, shown, said, teacher_call, run_peer(student, peer, shown, peer_key, axis))

        def losses(params):
            return losses_of(params, state.state, inputs, state)

        if grouped or combine:
            gradients, aux = group_gradients(losses, state.params, axis)
            update = gradients if grouped else combine(gradients)
            total = jax.tree.map(lambda *leaves: sum(leaves), *gradients.values()) if grouped else update
        else:
            update, aux = total_gradient(losses, state.params, axis)
            total = update
        if correct:

            def at_teacher(params):
                there = {"student": teacher_variables.state, "objective": state.state["objective"]}
                return losses_of({**state.params, "student": params}, there, inputs, state)

            own, _ = total_gradient(at_teacher, teacher_variables.params, axis, groups=("task",))
            progress = clock.at(state.step)
            corrected = correct(update["student"], own, teacher_variables.gradient, progress)
            update = total = {**update, "student": corrected}
        new_state, terms, output = aux
        if goes_on is not None:
            new_state["teacher"] = goes_on
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(update, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        logged = term_metrics(terms, axis)
        if (
            objective.deployed is None and not in_chunks
        ):  # else the student's own logits are not what is used, or not there
            measured = fit(output, said.get("main"), batch)
            logged |= sum_over_devices({name: (term.sum, term.count) for name, term in measured.items()}, axis)
        logged["gradient_norm"] = (optax.tree.norm(total), jnp.ones(()))
        ema = state.ema
        if ema is not None:
            if ema_decay is None:
                raise ValueError("The state keeps a moving average; make the step with ema_decay=.")
            ema = averaged(ema, deployable(objective, params, new_state), ema_decay)
        made = finite.all_finite((params, new_state["student"], ema))
        logged[finite.FINITE] = (made.astype(jnp.float32), jnp.ones(()))
        if skip:
            ok = made & jnp.isfinite(logged["loss"][0]) & jnp.isfinite(logged["gradient_norm"][0])
            old = state.params, state.state, state.opt_state, state.ema
            kept = finite.chosen(ok, (params, new_state, opt_state, ema), old)
            params, new_state, opt_state, ema = kept[0], kept[1], schedules_of(opt_state, kept[2]), kept[3]
        return TrainState(state.step + 1, params, new_state, opt_state, ema, state.keys), logged

    step.axis = axis  # runners refuse a step made for another one
    return step


def make_teacher_gradient(
    student: Network, objective: Bound, *, clock: Clock = Clock(), views: Views = as_given, moved: Moved | None = None,
    axis: Axis = None,
):  # fmt: skip
    """The task's gradient at the teacher's weights: `(state, teacher, batch) -> (gradient, number of labels)` over all devices.

    Averaged over a data set by these counts it is the `gradient` that `Variables` may carry.
    """
    losses_of = make_losses(student, objective, clock, axis)

    def gradient(state: TrainState, teacher: Variables, batch: Batch):
        shown, batch = make_views(state, batch, views, objective.views, clock, axis, moved=moved)
        inputs = StepInputs(batch, shown, *run_teacher(student, teacher, shown, axis)[:2], {})
        there = {"student": teacher.state, "objective": state.state["objective"]}

        def losses(params):
            return losses_of({**state.params, "student": params}, there, inputs, state)

        own, _ = total_gradient(losses, teacher.params, axis, groups=("task",))
        return own, sum_over_devices(jnp.sum(batch.mask(batch.labels.shape, labelled=True)), axis)

    gradient.axis = axis
    return gradient


def make_losses(
    student: Network, objective: Bound, clock: Clock, axis: Axis, in_chunks: bool = False, *, summed: bool = False
):
    """The forward pass of student and objective: `(params, state, inputs, train state) -> (share of each group's loss,
    (new state, terms, the student's output on the main view))`."""

    def losses(params, model_state, inputs: StepInputs, state: TrainState):
        key = jax.random.fold_in(state.keys["train"], state.step)
        student_key, objective_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        outputs, student_state = {}, model_state["student"]
        for i, (name, view) in enumerate(inputs.views.items()):
            rngs = jax.random.fold_in(student_key, i) if i else student_key
            with jax.named_scope("student"):
                outputs[name], student_state = student.apply(
                    params["student"], student_state, view, train=True, rngs=rngs, axis=axis
                )
        call = lambda part, *arrays: student.parts[part](params["student"], student_state, *arrays)
        said = inputs.teacher.get("main")
        ctx = Context(
            student=outputs["main"],
            teacher=said if in_chunks else whole_teacher(said, outputs["main"]),
            peer=inputs.peer.get("main"),
            batch=inputs.batch,
            progress=clock.at(state.step),
            key=objective_key,
            axis=axis,
            teacher_call=inputs.teacher_call,
            student_call=call if in_chunks else None,
            summed=summed,
        )
        others = {
            name: dataclasses.replace(ctx, student=output, teacher=inputs.teacher.get(name), peer=inputs.peer.get(name))
            for name, output in outputs.items()
            if name != "main"
        }
        with jax.named_scope("objective"):
            terms, objective_state = objective.apply(
                params["objective"], model_state["objective"], dataclasses.replace(ctx, views=others), train=True
            )
        new_state = {"student": student_state, "objective": objective_state}
        return group_losses(terms, axis), (new_state, terms, outputs["main"])

    return losses


def total_gradient(losses, params: Tree, axis: Axis, groups: tuple[str, ...] | None = None):
    """Gradient over all devices of the sum of the groups (of those named), and the auxiliary output of `losses`."""

    def total(params):
        values, aux = losses(params)
        return sum((v for g, v in values.items() if groups is None or g in groups), start=jnp.zeros(())), aux

    gradient, aux = jax.grad(total, has_aux=True)(params)
    return sum_over_devices(gradient, axis), aux


def group_gradients(losses, params: Tree, axis: Axis):
    """Gradient of every group over all devices, by one shared forward pass and a pull-back each, and the auxiliary output.

    Summed over devices first, since what is made of them need not be linear.
    """
    values, pull, aux = jax.vjp(losses, params, has_aux=True)
    gradients = {
        group: pull({other: jnp.ones_like(v) if other == group else jnp.zeros_like(v) for other, v in values.items()})[
            0
        ]
        for group in values
    }
    return sum_over_devices(gradients, axis), aux
