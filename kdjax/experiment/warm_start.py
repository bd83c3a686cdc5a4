"""What an objective has trained in one phase and needs in the next: projectors that go on, a paraphraser made ready."""

import dataclasses

import jax
import jax.numpy as jnp

from kdjax.experiment.spec import ExperimentError
from kdjax.objectives import Bound
from kdjax.training import TrainState, Variables
from kdjax.types import Tree


def warm_start(state: TrainState, objective: Bound, earlier: Variables | None, phase: str) -> TrainState:
    """The fresh state with what an earlier phase's objective trained, where the two have it in common.

    Common is a part of the same name and shapes, which goes on, and every submodule that an objective `carries`, from
    whichever part of the earlier objective had one of that name.

    Args:
      state: of the phase that begins.
      objective: its objective.
      earlier: variables of the objective of the phase that it starts from, or None.
      phase: its name, for messages.

    Raises:
      ExperimentError: if an objective carries something that the earlier phase did not train.
    """
    if earlier is None and not any(part.carries for part in objective.parts.values()):
        return state
    params, kept = dict(state.params["objective"]), dict(state.state["objective"])
    for name, part in objective.parts.items():
        if name not in params:
            continue
        there = None if earlier is None else (earlier.params.get(name), earlier.state.get(name))
        if there is not None and there[0] is not None and _alike((params[name], kept[name]), there):
            params[name], kept[name] = there
        for submodule in part.carries:
            found = _submodule(earlier, submodule)
            here = (params[name].get(submodule, {}), kept[name].get(submodule, {}))
            if found is None or not _alike(_together(*here), _together(*found)):
                raise ExperimentError(
                    f"Objective {name!r} of phase {phase!r} takes its {submodule} from the phase it starts from, which has "
                    "trained none of these shapes; set start to a phase that does."
                )
            params[name], kept[name] = dict(params[name]), dict(kept[name])
            for tree in (params[name], kept[name]):
                if submodule in tree:
                    tree[submodule] = _those_of(tree[submodule], _together(*found))
    # Copies: a step gives its state's memory up, and the earlier phase keeps its own.
    params, kept = jax.tree.map(jnp.copy, (params, kept))
    return dataclasses.replace(
        state, params={**state.params, "objective": params}, state={**state.state, "objective": kept}
    )


def _submodule(earlier: Variables | None, name: str) -> tuple[Tree, Tree] | None:
    if earlier is None:
        return None
    for part, tree in earlier.params.items():
        if name in tree:
            return tree[name], earlier.state.get(part, {}).get(name, {})
    return None


def _together(params: Tree, state: Tree) -> Tree:
    """Both in one tree: what is a parameter in one phase may be frozen, and state, in another."""
    if not (isinstance(params, dict) and isinstance(state, dict)):
        return params
    return {
        key: _together(params[key], state[key]) if key in params and key in state else (params | state)[key]
        for key in sorted({*params, *state})
    }


def _those_of(template: Tree, values: Tree) -> Tree:
    return {key: _those_of(sub, values[key]) for key, sub in template.items()} if isinstance(template, dict) else values


def _alike(first: Tree, second: Tree) -> bool:
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (first, second)]
    return shapes[0] == shapes[1]
