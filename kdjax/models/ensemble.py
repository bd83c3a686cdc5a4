"""Several networks as one: their probabilities averaged, and each one's logits beside."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax.types import ModelOutput, Network, Tree


def ensemble(networks: Sequence[Network]) -> Network:
    """A network that is several, to be used as a teacher.

    Its logits are `log(1/M sum_m softmax(z_m))`, the logarithm of the members' mean probability, and its tap "members"
    holds each member's own, `[B, M, C]`, for objectives that weigh teachers. Nothing else of the members is given.

    Args:
      networks: at least one. Where all are the same network (the same object, as in `[network] * 3`) they run as one
        program over stacked parameters, else one after the other. The variables of the ensemble are made from those of the
        members by `join_members`.

    Raises:
      ValueError: there are none, or they differ in their classes.
    """
    if not networks:
        raise ValueError("An ensemble needs at least one network; give it some.")
    variables = [jax.eval_shape(network.init, jax.random.key(0)) for network in networks]
    stacked = [stackable(list(trees)) for trees in zip(*variables, strict=True)]
    names = [network.name for network in networks]
    alike = all(stacked) and all(network.apply is networks[0].apply for network in networks)

    def init(key):
        made = [network.init(jax.random.fold_in(key, i)) for i, network in enumerate(networks)]
        return tuple(join_members([member[part] for member in made]) for part in (0, 1))

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        def member(network, params, state):
            output, after = network.apply(params, state, inputs, train=train, rngs=rngs, axis=axis)
            return output.logits, after

        if alike:
            logits, state = jax.vmap(functools.partial(member, networks[0]))(params, state)
        else:
            said = []
            for i, network in enumerate(networks):
                own = [take_member(tree, i, one) for tree, one in zip((params, state), stacked, strict=True)]
                said.append(member(network, *own))
            if len({logits.shape for logits, _ in said}) > 1:
                classes = ", ".join(str(logits.shape[-1]) for logits, _ in said)
                raise ValueError(f"The members of the ensemble have {classes} classes; they must have the same.")
            logits, state = jnp.stack([logits for logits, _ in said]), join_members([after for _, after in said])
        log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
        mean = jax.nn.logsumexp(log_p, axis=0) - jnp.log(float(len(networks)))
        return ModelOutput(logits=mean, taps={"members": jnp.moveaxis(logits, 0, -2)}), state

    name = f"{len(names)} × {names[0]}" if len(set(names)) == 1 else " + ".join(names)
    return Network(init, apply, {}, name)


def join_members(trees: Sequence[Tree]) -> Tree:
    """The parameters (or states) of an ensemble from those of its members: stacked if alike, else a dict by number."""
    if stackable(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return {str(i): tree for i, tree in enumerate(trees)}


def take_member(tree: Tree, number: int, stacked: bool) -> Tree:
    """One member's part of what `join_members` made."""
    return jax.tree.map(lambda x: x[number], tree) if stacked else tree[str(number)]


def stackable(trees: Sequence[Tree]) -> bool:
    """Whether all have the same names, shapes and types."""
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in trees]
    return all(shape == shapes[0] for shape in shapes)
