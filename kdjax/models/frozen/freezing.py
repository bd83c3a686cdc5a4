"""A teacher that never changes, made cheap: constants computed once, scales in kernels, fewer bits, and what that costs."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from kdjax.models.frozen.constants import Constants, Known
from kdjax.models.frozen.folding import Interpreter
from kdjax.types import Array, Axis, ModelOutput, Network, Tree

Precision = Literal["float32", "bfloat16", "int8"]


@dataclasses.dataclass(frozen=True)
class FreezeReport:
    """What freezing a network changed, measured on a sample.

    Attributes:
      name: of the network.
      precision: of the frozen one.
      folded: kernels that took a scale of their output channels in which parameters have a part: a BatchNorm's mostly.
      largest_change, mean_change: of a logit, absolute.
      agreement: share of the examples whose most probable class is the same.
      examples: of the sample.
      bytes_before, bytes_after: of parameters and state.
      bytes_of_parts: of the original parameters and state, kept besides for `parts`.
      parts: the names of these.
    """

    name: str
    precision: str
    folded: int
    largest_change: float
    mean_change: float
    agreement: float
    examples: int
    bytes_before: int
    bytes_after: int
    bytes_of_parts: int = 0
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        plural = "" if self.folded == 1 else "s"
        kept = f" (and the original {_size(self.bytes_of_parts)} for {', '.join(self.parts)})" if self.parts else ""
        return (
            f"{self.name} in {self.precision}: {self.folded} normalisation{plural} folded, {_size(self.bytes_before)} → "
            f"{_size(self.bytes_after)}{kept}; on {self.examples} examples {100 * self.agreement:.1f} % of the predictions "
            f"are the same, logits change by {self.mean_change:.2g} on average, {self.largest_change:.2g} at most"
        )


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A frozen network, its variables, and what freezing changed."""

    network: Network
    params: Tree
    state: Tree
    report: FreezeReport


def freeze(
    network: Network,
    params: Tree,
    state: Tree,
    sample: Any,
    *,
    fold: bool = True,
    precision: Precision = "float32",
    parts: Sequence[str] | None = None,
    tolerance: float = 1e-4,
) -> Frozen:
    """Makes a network that is evaluated only, as a teacher is, cheaper.

    What it computes of its parameters alone is computed now. With `fold`, a BatchNorm (or any scale and shift of channels)
    behind a convolution or dense layer becomes part of that layer; one behind anything else, or behind a layer that
    something else reads too, stays. Both hold for any network in float32, whatever framework it was written in; loops
    (`lax.scan`) and functions with a derivative of their own are left as they are.

    - "float32": equal to the network up to rounding, which is checked on the sample.
    - "bfloat16": kernels, the inputs of convolutions and products, and what several operations read are bfloat16; sums and
      elementwise functions are float32, and so is what the network gives. Loops and functions with a derivative of their own
      run in float32.
    - "int8": kernels and the inputs of convolutions and dense layers are int8, sums are int32, all else is float32. Each
      output channel of a kernel and each example (each row, in a dense layer) has a scale of its own, `max |x| / 127`;
      nothing is calibrated and examples do not influence each other. Grouped convolutions stay float32: XLA's int8 ones
      have been wrong on GPUs (openxla/xla issue 49123). It is here and not left to qwix, which quantises modules of Flax,
      because a `Network` need not be one and scales must be folded first. Whether it is any faster is up to the device.

    All are differentiable in their inputs; the derivative of int8 is that of the product with the kernel as rounded.

    An ensemble may be frozen, but its members are better frozen and then joined: what several read is then not rounded on
    the way to their mean, and no convolution is grouped.

    Args:
      network: any.
      params, state: its variables.
      sample: inputs as it will see them, a few hundred for a report that means something.
      fold: whether scales go into kernels.
      precision: one of the three above.
      parts: names of the `network.parts` to keep, all if not given. They run on the original parameters in float32, all of
        which are then kept too: with `parts=()` only those of the frozen network are.
      tolerance: how far any output may go from the original's in float32, relative to the largest value of that output or
        to 1, whichever is more.

    Returns:
      The network, which refuses to train; its `(params, state)`, which hold the constants it needs by the name of the
      parameter that each was made of; and a report.

    Raises:
      ValueError: the precision or a part is unknown, the network gives no logits, outputs in float32 go further from the
        original's than `tolerance`, or logits are no longer finite. When it is run: with `train=True`, with other
        parameters, or on inputs of a shape for which it needs other constants.
    """
    freezer = Freezer(network, sample, (params, state), fold=fold, precision=precision, parts=parts)
    frozen = freezer.convert(params, state)
    return Frozen(freezer.network, *frozen, freezer.compare(params, state, sample, tolerance=tolerance))


class Freezer:
    """`freeze` in two halves: the frozen network before there are any weights, and then those of the original.

    Attributes:
      network: the frozen one; its `init` converts what the original's gives.
    """

    def __init__(
        self,
        network: Network,
        inputs: Any,
        variables: tuple[Tree, Tree] | None = None,
        *,
        fold: bool = True,
        precision: Precision = "float32",
        parts: Sequence[str] | None = None,
    ):
        """Makes the frozen network.

        Args:
          network: the original.
          inputs: what it will see, or their shapes.
          variables: `(params, state)` or their shapes; those of `network.init` if not given.
          fold, precision, parts: as for `freeze`.
        """
        if precision not in get_args(Precision):
            raise ValueError(f"precision={precision!r}; it must be one of {', '.join(get_args(Precision))}.")
        self.parts = tuple(network.parts if parts is None else parts)
        unknown = [part for part in self.parts if part not in network.parts]
        if unknown:
            known = ", ".join(network.parts) or "none"
            raise ValueError(f"parts has {unknown[0]!r}, and the parts of {network.name} are: {known}.")
        shapes = jax.eval_shape(network.init, jax.random.key(0)) if variables is None else variables
        self._original, self._precision = network, precision
        self._exact = _Program(network, shapes, inputs, fold, "float32")
        self._program = self._exact if precision == "float32" else _Program(network, shapes, inputs, fold, precision)
        kept = {name: _on_original(network.parts[name]) for name in self.parts}
        self.network = Network(lambda key: self.convert(*network.init(key)), self._apply, kept, network.name)

    def convert(self, params: Tree, state: Tree) -> tuple[Tree, Tree]:
        """The frozen network's `(params, state)` of the original's."""
        constants = self._program.collect(params, state)
        return ({"frozen": constants, "parts": params}, {"parts": state}) if self.parts else ({"frozen": constants}, {})

    def compare(self, params: Tree, state: Tree, sample: Any, *, tolerance: float = 1e-4) -> FreezeReport:
        """What freezing the original with these variables changes; see `freeze` for what it raises."""
        original, program = self._original, self._program
        exact, constants = self._exact.collect(params, state), program.collect(params, state)
        with jax.default_matmul_precision("highest"):  # a device's shortcuts would hide what is compared
            expected = jax.jit(lambda p, s, x: original.apply(p, s, x, train=False)[0])(params, state, sample)
            if expected.logits is None:
                raise ValueError(f"{original.name} gives no logits, by which a frozen network is compared.")
            output = jax.jit(self._exact.run)(exact, sample)
            _check_equal(original.name, output, expected, tolerance)
            if program is not self._exact:
                output = jax.jit(program.run)(constants, sample)
        report = FreezeReport(
            name=original.name,
            precision=self._precision,
            folded=program.folded,
            **_changes(output.logits, expected.logits),
            bytes_before=_bytes((params, state)),
            bytes_after=_bytes(constants),
            bytes_of_parts=_bytes((params, state)) if self.parts else 0,
            parts=self.parts,
        )
        if not math.isfinite(report.largest_change):
            raise ValueError(
                f"{original.name} in {self._precision} gives logits that are not finite; use another precision."
            )
        return report

    def _apply(self, params, state, inputs, *, train, rngs=None, axis=None):
        if train:
            raise ValueError(
                f"{self._original.name} is frozen: its statistics became part of its kernels, so it cannot be run in training "
                "mode. An objective that has the teacher's statistics go on needs the network as it was."
            )
        return self._program.run(params.get("frozen", {}), inputs, axis), state


class _Program:
    """The program of a network in evaluation mode, without its parameters."""

    def __init__(self, network: Network, variables: tuple[Tree, Tree], inputs: Any, fold: bool, precision: Precision):
        self.network, self.fold, self.precision = network, fold, precision
        self.shapes, self.inputs = _shapes(tuple(variables)), _shapes(inputs)
        self._compiled = jax.jit(self._collect)
        jax.eval_shape(self._compiled, self.shapes)  # finds the names

    def collect(self, params: Tree, state: Tree) -> Tree:
        """The constants that it needs."""
        told = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        if told(_shapes((params, state))) != told(self.shapes):
            raise ValueError(f"These are not variables of {self.network.name}: their names, shapes or types differ.")
        with jax.default_matmul_precision("highest"):  # kernels may be made of products
            return self._compiled((params, state))

    def _collect(self, variables):
        leaves = [lambda leaf=leaf: leaf for leaf in jax.tree.leaves(variables)]
        interpreter = Interpreter(Constants(), fold=self.fold, precision=self.precision)
        self._pass(interpreter, leaves, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.inputs), axis=None)
        self.names, self.folded = interpreter.constants.names, interpreter.folded
        return interpreter.constants.values

    def run(self, constants: Tree, inputs: Any, axis: Axis = None) -> ModelOutput:
        """What the network says of a batch."""
        interpreter = Interpreter(Constants(constants, self.names), fold=self.fold, precision=self.precision)
        return self._pass(interpreter, itertools.repeat(None), jax.tree.map(jnp.asarray, inputs), axis)

    def _pass(self, interpreter: Interpreter, leaves: Iterable, inputs: Any, axis: Axis) -> ModelOutput:
        said = lambda params, state, inputs: self.network.apply(params, state, inputs, train=False, axis=axis)[0]
        program, shapes = jax.make_jaxpr(said, return_shape=True)(*self.shapes, _shapes(inputs))
        names = [(keystr(path, simple=True, separator="/"), like)
                 for tree in self.shapes for path, like in tree_leaves_with_path(tree)]  # fmt: skip
        known = [
            Known(name, like, leaf, ("parameter", i))
            for i, ((name, like), leaf) in enumerate(zip(names, leaves, strict=False))
        ]
        outputs = interpreter.run(program.jaxpr, program.consts, [*known, *jax.tree.leaves(inputs)])
        return jax.tree.unflatten(jax.tree.structure(shapes), [interpreter.output(x) for x in outputs])


def _on_original(part):
    return lambda params, state, *arrays: part(params["parts"], state["parts"], *arrays)


def _shapes(tree: Tree) -> Tree:
    return jax.eval_shape(lambda tree: tree, tree)


def _check_equal(name: str, output: ModelOutput, expected: ModelOutput, tolerance: float) -> None:
    for path, change in tree_leaves_with_path(_relative_changes(output, expected)):
        if not float(change) <= tolerance:
            raise ValueError(
                f"Freezing {name} changes its output{keystr(path)} in float32 by {change:.3g} of the largest value, more than "
                f"tolerance={tolerance:g}: pass fold=False, or a larger tolerance if that is rounding."
            )


@jax.jit
def _relative_changes(output: ModelOutput, expected: ModelOutput) -> ModelOutput:
    """By how much of its largest value, or of 1, each output changes at most."""

    def largest(ours, theirs):
        size = jnp.max(jnp.where(jnp.isfinite(theirs), jnp.abs(theirs), 0), initial=1)
        return jnp.max(_change(ours, theirs), initial=0) / size

    return jax.tree.map(largest, output, expected)


def _change(ours: Array, theirs: Array) -> Array:
    return jnp.where(ours == theirs, 0, jnp.abs(ours - theirs))  # a class may have minus infinity in both


def _changes(logits: Array, expected: Array) -> dict[str, Any]:
    largest, mean, agreement = map(float, _logit_changes(logits, expected))
    examples = math.prod(logits.shape[:-1])
    return {"largest_change": largest, "mean_change": mean, "agreement": agreement, "examples": examples}


@jax.jit
def _logit_changes(logits: Array, expected: Array) -> tuple[Array, Array, Array]:
    change, same = _change(logits, expected), jnp.argmax(logits, -1) == jnp.argmax(expected, -1)
    return jnp.max(change), jnp.mean(change), jnp.mean(same)


def _bytes(tree: Tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _size(count: int) -> str:
    unit = next((unit for unit in (1e9, 1e6, 1e3) if count >= unit), 1)
    names = {1e9: "GB", 1e6: "MB", 1e3: "kB", 1: "bytes"}
    return f"{count / unit:.3g} {names[unit]}"
