"""Where a step goes on a CPU: every convolution and normalisation of the pair by itself, as kdjax computes it and in PyTorch, in
turns; kernels' gradients also as XLA itself would."""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jax import lax

from benchmarking import timing
from benchmarking.pair import Pair
from benchmarking.torch_peer import copied
from kdjax.models import kernel_gradients
from kdjax.models.functional import functionalise
from kdjax.models.zoo.normalization import BatchNorm


class Convolution(NamedTuple):
    """A convolution of the network: `[B, size, size, before]` to `[B, size / stride, size / stride, after]`."""

    before: int
    after: int
    kernel: int
    stride: int
    size: int

    def __str__(self) -> str:
        return f"{self.kernel}×{self.kernel}/{self.stride}, {self.before} → {self.after} channels at {self.size}²"


class Normalization(NamedTuple):
    """BatchNorm over `[B, size, size, channels]` and a ReLU."""

    channels: int
    size: int

    def __str__(self) -> str:
        return f"BatchNorm and ReLU, {self.channels} channels at {self.size}²"


def parts_of(network: torch.nn.Module, size: int) -> list[Convolution | Normalization]:
    """Convolutions and normalisations of a PyTorch network in the order they are run in, for images of `size` pixels."""
    found: list[Convolution | Normalization] = []

    def see(module, inputs, _):
        wide = inputs[0].shape[-1]
        if isinstance(module, torch.nn.Conv2d):
            found.append(
                Convolution(module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0], wide)
            )
        else:
            found.append(Normalization(module.num_features, wide))

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d):
            module.register_forward_hook(see)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size))
    return found


def convolution(part: Convolution, rows: int, what: str) -> tuple[timing.Subject, timing.Subject]:
    """One of "forward", "input gradient", "kernel gradient" in both, each in its own layout; or "kernel gradient by XLA"."""
    pad, draw = part.kernel // 2, np.random.default_rng(0).standard_normal
    x = draw((rows, part.size, part.size, part.before), dtype=np.float32)
    kernel = draw((part.kernel, part.kernel, part.before, part.after), dtype=np.float32)
    convolve = lax.conv_general_dilated if what.endswith("XLA") else kernel_gradients.conv_general_dilated
    run = lambda x, kernel: convolve(
        x, kernel, (part.stride,) * 2, [(pad, pad)] * 2, dimension_numbers=kernel_gradients.LAYOUT
    )
    out = jax.eval_shape(run, x, kernel)
    g = draw(out.shape, dtype=np.float32)
    programs: dict[str, Callable[..., Any]] = {
        "forward": lambda x, kernel, g: run(x, kernel),
        "input gradient": lambda x, kernel, g: jax.vjp(lambda x: run(x, kernel), x)[1](g),
        "kernel gradient": lambda x, kernel, g: jax.vjp(lambda k: run(x, k), kernel)[1](g),
    }
    kind = what.removesuffix(" by XLA")
    ours = jax.jit(programs[kind])
    given = tuple(map(jnp.asarray, (x, kernel, g)))
    tx, tg = (torch.from_numpy(v.transpose(0, 3, 1, 2).copy()) for v in (x, g))
    tk = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    stride, padding, wanted = (
        (part.stride,) * 2,
        (pad,) * 2,
        [kind == "input gradient", kind == "kernel gradient", False],
    )

    def theirs():
        with torch.no_grad():
            if what == "forward":
                return F.conv2d(tx, tk, stride=part.stride, padding=pad)
            return torch.ops.aten.convolution_backward(
                tg, tx, tk, None, stride, padding, (1, 1), False, (0, 0), 1, wanted
            )

    return _pair(lambda: ours(*given), theirs)


def normalization(part: Normalization, rows: int, what: str) -> tuple[timing.Subject, timing.Subject]:
    """BatchNorm over the batch and ReLU: "forward" or "both ways", in both frameworks."""
    draw = np.random.default_rng(0).standard_normal
    x, g = (draw((rows, part.size, part.size, part.channels), dtype=np.float32) for _ in range(2))
    layer = functionalise(lambda rngs: BatchNorm(part.channels))
    params, state = layer.init(jax.random.key(0))

    def run(x, params):
        out, new = layer.call(params, state, lambda module: module(x), train=True)
        return jax.nn.relu(out), new

    both = lambda x, params, g: jax.vjp(lambda *a: run(*a)[0], x, params)[1](g)
    ours = jax.jit(lambda x, params, g: run(x, params) if what == "forward" else both(x, params, g))
    given = jnp.asarray(x), params, jnp.asarray(g)
    theirs_layer = torch.nn.BatchNorm2d(part.channels)
    tx, tg = (torch.from_numpy(v.transpose(0, 3, 1, 2).copy()) for v in (x, g))
    tx.requires_grad_(what != "forward")

    def theirs():
        with torch.set_grad_enabled(what != "forward"):
            out = F.relu(theirs_layer(tx))
        return out if what == "forward" else torch.autograd.grad(out, (tx, *theirs_layer.parameters()), tg)

    return _pair(lambda: ours(*given), theirs)


def _pair(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[timing.Subject, timing.Subject]:
    return timing.Subject("kdjax", ours), timing.Subject("PyTorch", theirs, wait=lambda _: None)


def rows_of(pair: Pair, rounds: int, show: Callable[[str], Any]) -> dict[str, dict[str, float]]:
    """Times every operation of a step, prints a Markdown table, and returns seconds by kind and framework.

    A step is the teacher's forward pass, and the student's forward and backward passes without the gradient of its first
    convolution's input. What is left out: shortcuts' sums, pooling, the linear layer, the loss, the optimizer, dispatch.
    """
    size, rows, state = pair.setting.size, pair.setting.batch_size, pair.state()
    teacher = parts_of(copied(pair.variables.params, pair.variables.state), size)
    student = parts_of(copied(state.params["student"], state.state["student"]), size)
    wanted: collections.Counter = collections.Counter()
    for part in teacher:
        if isinstance(part, Convolution):
            wanted["teacher's convolutions", part, "forward"] += 1
    for number, part in enumerate(student):
        if isinstance(part, Normalization):
            wanted["student's normalisations", part, "both ways"] += 1
            continue
        for what in ("forward", "input gradient", "kernel gradient", "kernel gradient by XLA"):
            if number or what != "input gradient":
                wanted[f"student's convolutions, {what}", part, what] += 1
    total: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
    show(
        "| operation | times a step | kdjax, ms | PyTorch, ms | PyTorch ÷ kdjax |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for (kind, part, what), times in sorted(wanted.items(), key=lambda item: item[0][0]):
        make = convolution if isinstance(part, Convolution) else normalization
        seconds = timing.turns(list(make(part, rows, what)), rounds)
        ms = {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}
        for name, value in ms.items():
            total[kind][name] += times * value
        show(
            f"| {part}, {what} | {times} | {ms['kdjax']:.2f} | {ms['PyTorch']:.2f} | {ms['PyTorch'] / ms['kdjax']:.2f} |"
        )
    show("\n| of a step | kdjax, ms | PyTorch, ms | PyTorch ÷ kdjax |\n| --- | ---: | ---: | ---: |")
    for kind, ms in total.items():
        show(f"| {kind} | {ms['kdjax']:.1f} | {ms['PyTorch']:.1f} | {ms['PyTorch'] / ms['kdjax']:.2f} |")
    return total
