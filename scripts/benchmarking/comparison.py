"""What peers are measured by: the same networks, batches and loss, and checks that they are the same."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from benchmarking.pair import Pair, last_loss
from benchmarking.timing import Subject
from kdjax.training.feed import ahead
from kdjax.types import Network

TEMPERATURE, SHARE, RATE, MOMENTUM = 4.0, 0.9, 0.01, 0.9  # those of the objective "kd" and of the pair's optimizer
CHECKED = 5  # steps on one batch, in which the loss must fall


@dataclasses.dataclass
class Peer:
    """A way of training the pair.

    Attributes:
      name: of it.
      parameters: (teacher's, student's), trained values.
      operations: (teacher's, student's), multiplications in convolutions and dense layers for one image, forward.
      losses: `images, labels, n -> ` the losses of n steps on one batch, from the beginning.
      train: starts steps on batches given as numpy `(images, labels)`; returns what `wait` waits for.
      wait: until the device is done.
      note: for the table.
    """

    name: str
    parameters: tuple[int, int]
    operations: tuple[int, int]
    losses: Callable[[np.ndarray, np.ndarray, int], list[float]]
    train: Callable[[list[tuple[np.ndarray, np.ndarray]]], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready
    note: str = ""

    def subject(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> Subject:
        """Timed on these batches, which it is handed anew each time."""
        return Subject(self.name, lambda: self.train(batches), units=len(batches), wait=self.wait)


def kdjax_peer(pair: Pair) -> Peer:
    """The step of kdjax, fed from the host as the command does it."""

    def batch(images, labels):
        return dataclasses.replace(pair.host_batch(), inputs=images, targets=labels)

    def losses(images, labels, count):
        state, found = pair.state(), []
        for _ in range(count):
            state, metrics = pair.live(state, pair.variables, pair.runner.place_batch(batch(images, labels)))
            found.append(float(last_loss(metrics)))
        return found

    kept = [pair.state()]

    def train(batches):
        for given in ahead((batch(*given) for given in batches), pair.runner.place_batch):
            kept[0], metrics = pair.live(kept[0], pair.variables, given)
        return kept[0], metrics

    networks = pair.teacher, pair.student
    size = pair.setting.size
    return Peer("kdjax", tuple(map(parameters, networks)), tuple(operations(n, size) for n in networks), losses, train)


def parameters(network: Network) -> int:
    """How many values are trained."""
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def operations(network: Network, size: int) -> int:
    """Multiplications in convolutions and products of one image `[size, size, 3]`, read off the program."""
    shape = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    logits = lambda p, s, x: network.apply(p, s, x, train=False)[0].logits
    program = jax.make_jaxpr(logits)(*variables, shape)
    return _count(program.jaxpr)


def _count(program: Any) -> int:
    total = 0
    for equation in program.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            channels = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += out.size * kernel.size // channels
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += out.size * int(np.prod([equation.invars[0].aval.shape[axis] for axis in contracted]))
        for inner in jaxprs_in_params(equation.params):
            total += _count(inner)
    return total


def same(peer: Peer, ours: Peer, images: np.ndarray, labels: np.ndarray, tolerance: float) -> tuple[bool, str]:
    """Whether a peer trains the same networks by the same loss, and how far that is so."""
    expected, found = ours.losses(images, labels, CHECKED), peer.losses(images, labels, CHECKED)
    apart = abs(found[0] - expected[0]) / abs(expected[0])
    counted = peer.parameters == ours.parameters and peer.operations == ours.operations
    falls = found[-1] < found[0] and expected[-1] < expected[0]
    sizes = "parameters and operations equal"
    if not counted:
        sizes = (f"parameters {peer.parameters} beside {ours.parameters}, operations {peer.operations} beside "
                 f"{ours.operations}")  # fmt: skip
    said = (f"{sizes}, first loss differs by {apart:.1e}, {CHECKED} steps on a batch: {found[0]:.4g} → {found[-1]:.4g}, "
            f"kdjax {expected[0]:.4g} → {expected[-1]:.4g}")  # fmt: skip
    return counted and falls and apart <= tolerance, said
