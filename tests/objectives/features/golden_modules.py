"""A golden case's parameters in the modules of an objective, and the objective's numbers under the reference's names."""

import jax
import numpy as np

from kdjax.types import Batch, Clock, Context
from tests.golden_cases import nchw, nhwc
from tests.losses.computing import computing_in

STATISTICS = {"running_mean": "mean", "running_var": "var"}


def classes(case):
    """How many the case has by its logits; the objectives of a case without take any number."""
    logits = [array for name, array in case.inputs.items() if "logits" in name]
    heads = [value for name, value in case.params.items() if name == "cls_t.bias"]
    return next((array.shape[-1] for array in logits + heads), 2)


def path_of(name, value, places):
    """Where the module keeps what the reference calls `name`: `places` maps modules, such as {"conv1.0": "embed/conv"}."""
    prefix, _, leaf = name.rpartition(".")
    if leaf == "weight":
        leaf = "scale" if value.ndim == 1 else "kernel"
    return (*places[prefix].split("/"), STATISTICS.get(leaf, leaf))


def from_torch(value):
    """OIHW to HWIO; a matrix of a linear layer is transposed."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def to_torch(value):
    value = np.asarray(value)
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def variables(case, places, real):
    """`(params, state)`, of every parameter of the case whose module has a place."""
    trees = {}, {}
    for name, value in case.params.items():
        if name.rpartition(".")[0] in places:
            *path, leaf = path_of(name, value, places)
            node = trees[leaf in STATISTICS.values()]
            for key in path:
                node = node.setdefault(key, {})
            node[leaf] = real(from_torch(value))
    return trees


def run(case, bound, places, outputs, precision, teacher_call=None):
    """One batch of a bound objective that has one part, in training mode, with the case's parameters.

    Args:
      outputs: `(inputs, "student" or "teacher") -> ModelOutput`, of the case's inputs as NHWC.
      teacher_call: `real -> teacher_call`.

    Returns:
      `(weighted mean loss, gradients by input, gradients by parameter, statistics after)`, under the reference's names.
    """
    with computing_in(precision) as real:
        (name,) = bound.modules
        params, state = variables(case, places, real)
        inputs = {key: real(nhwc(value)) for key, value in case.inputs.items()}
        own = {key: value for key, value in inputs.items() if "student" in key}
        rows = next(iter(own.values())).shape[0]

        def loss(params, own):
            ctx = Context(
                student=outputs(own, "student"),
                teacher=outputs(inputs, "teacher"),
                batch=Batch.of(np.zeros(rows), np.zeros(rows, np.int32)),
                progress=Clock().at(0),
                teacher_call=teacher_call and teacher_call(real),
            )
            terms, after = bound.apply({name: params}, {name: state}, ctx, train=True)
            (term,) = terms.values()
            return term.weight * term.sum / term.count, after[name]

        ((value, after), (by_params, by_inputs)) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
            params, own
        )
        paths = {n: path_of(n, v, places) for n, v in case.params.items() if n.rpartition(".")[0] in places}
        moved = {n: to_torch(at(after if p[-1] in STATISTICS.values() else by_params, p)) for n, p in paths.items()}
        statistics = {n: moved.pop(n) for n, p in paths.items() if p[-1] in STATISTICS.values()}
        return value, {key: nchw(np.asarray(g)) for key, g in by_inputs.items()}, moved, statistics


def check(case, found, precision, unused=()):
    """Compares `run`'s numbers with the case's; every gradient and statistic of the case that is not in `unused`.

    Gradients in float32 to a hundred-thousandth of the largest entry: single entries are sums that cancel.
    """
    value, by_inputs, by_params, statistics = found
    case.check(value, "out", "loss", precision)
    for name, statistic in statistics.items():
        case.check(statistic, "buffer_after", name, precision)
    expected = {**case.grads["f64"], **case.gparams["f64"]}
    assert {*by_inputs, *by_params} == {name for name in expected if not name.startswith(tuple(unused))}
    assert set(statistics) == set(case.buffer_after["f64"])
    for name, gradient in (by_inputs | by_params).items():
        kind = "grad" if name in by_inputs else "gparam"
        if precision == "f64":
            case.check(gradient, kind, name, "f64")
        else:
            assert gradient.dtype == np.float32
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-5 * scale, err_msg=name)
