"""Several networks as one: their probabilities averaged, and each one's logits beside."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax.types import ModelOutput, Network, Tree


def ensemble(networks: Sequence[Network]) -> Network:
    """A network that is several, to be used as a teacher.

    Its logits are `log(1/M sum_m softmax(z_m))`, the logarithm of the members' mean probability, and its tap "members"
    holds each member's own, `[B, M, C]`, for objectives that weigh teachers. Nothing else of the members is given. Networks
    of one architecture run as one program over stacked parameters, others one after the other.

    Args:
      networks: at least one. Its variables are made from the members' by `join_members`.

    Raises:
      ValueError: there are none, or they differ in their classes.
    """
    if not networks:
        raise ValueError("An ensemble needs at least one network; give it some.")
    alike = stackable([jax.eval_shape(network.init, jax.random.key(0)) for network in networks])

    def init(key):
        made = [network.init(jax.random.fold_in(key, i)) for i, network in enumerate(networks)]
        return tuple(join_members([member[part] for member in made]) for part in (0, 1))

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        if alike:

            def member(params, state):
                output, after = networks[0].apply(params, state, inputs, train=train, rngs=rngs, axis=axis)
                return output.logits, after

            logits, state = jax.vmap(member)(params, state)
        else:
            said = []
            state = dict(state)
            for i, network in enumerate(networks):
                output, state[str(i)] = network.apply(
                    params[str(i)], state[str(i)], inputs, train=train, rngs=rngs, axis=axis
                )
                said.append(output.logits)
            if len({logits.shape for logits in said}) > 1:
                classes = ", ".join(str(logits.shape[-1]) for logits in said)
                raise ValueError(f"The members of the ensemble have {classes} classes; they must have the same.")
            logits = jnp.stack(said)
        mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(float(len(networks)))
        return ModelOutput(logits=mean, taps={"members": jnp.moveaxis(logits, 0, -2)}), state

    names = [network.name for network in networks]
    name = f"{len(names)} × {names[0]}" if len(set(names)) == 1 else " + ".join(names)
    return Network(init, apply, {}, name)


def join_members(trees: Sequence[Tree]) -> Tree:
    """The parameters (or states) of an ensemble from those of its members: stacked if alike, else a dict by number."""
    if stackable(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return {str(i): tree for i, tree in enumerate(trees)}


def stackable(trees: Sequence[Tree]) -> bool:
    """Whether all have the same names, shapes and types."""
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in trees]
    return all(shape == shapes[0] for shape in shapes)
