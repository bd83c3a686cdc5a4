"""Does distillation reduce the variance of gradients? (Safaryan, Peste, Alistarh, NeurIPS 2023)"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.analysis import gradient_identity, gradient_noise
from kdjax.data.fashion_mnist import embedded
from kdjax.experiment.plots import COLOURS, figure, plain_texts, save
from kdjax.losses import cross_entropy
from kdjax.studies.finding import Finding, Size, Table

PAPERS = (
    "Safaryan, Peste, Alistarh, Knowledge Distillation Performs Partial Variance Reduction, NeurIPS 2023, arXiv 2305.17581",
)
STRENGTHS = (0.0, 0.3, 0.7, 1.0)
DECAY = 1e-2  # of the squared weights: there is one solution, and SGD comes near it in hundreds of steps
RATE, BATCH = 0.5, 10
CORRECTIONS = ("distillation", "unbiased")


def study(size: Size, folder: Path, *, announce: Callable[[str], None], **unused: Any) -> Finding:
    """A softmax regression on images, whose solution is known to machine precision, with teachers of three qualities."""
    del unused  # no networks are trained by runs
    count, steps, seeds = {"tiny": (60, 50, 2), "default": (2000, 6000, 5), "full": (12_000, 60_000, 10)}[size]
    with jax.enable_x64(True):
        inputs, labels = data(count)
        announce("the solution")
        best, left = solution(inputs, labels)
        teachers = {"perfect": best} | {
            f"after {n:,} steps": descend(inputs, labels, best, best, 0.0, n, "distillation", 100)[1]
            for n in (max(steps // 60, 1), max(steps // 6, 2))
        }
        other = jax.random.normal(jax.random.key(1), best.shape, best.dtype)
        identity = gradient_identity(apply, best + 0.1 * other, other, inputs, labels, 0.7)
        deep = two_layers(inputs, labels)
        noise = {
            name: gradient_noise(apply, best, theta, inputs, labels, 1.0, centred=True)
            for name, theta in teachers.items()
        }
        ends: dict[str, dict[str, dict[str, list[float]]]] = {}
        curves: dict[str, np.ndarray] = {}
        for name, theta in teachers.items():
            announce(f"teacher {name}")
            ends[name] = {}
            for correction in CORRECTIONS:
                ends[name][correction] = {}
                for strength in STRENGTHS:
                    run = functools.partial(descend, inputs, labels, theta, best, strength, steps, correction)
                    path = np.asarray(jax.vmap(run)(jnp.arange(seeds))[0])
                    ends[name][correction][f"{strength:g}"] = [float(p[-(len(p) // 5) :].mean()) for p in path]
                    if name == "perfect" and correction == "unbiased":
                        curves[f"{strength:g}"] = np.mean(path, axis=0)
        plot(curves, steps, folder / "distance.png")
    plain = np.mean(ends["perfect"]["unbiased"]["0"])
    ratio = {name: {s: float(np.mean(v)) / plain for s, v in by["unbiased"].items()} for name, by in ends.items()}
    biased = {name: {s: float(np.mean(v)) / plain for s, v in by["distillation"].items()} for name, by in ends.items()}
    poor = list(teachers)[1]
    verdict = (
        f"For a linear network KD's gradient is the student's less λ times the teacher's to {float(identity.gap):.0e} of its "
        f"size, and for one with a hidden layer it is not ({float(deep):.2f}). With a perfect teacher and λ = 1 the squared "
        f"distance from the solution at which SGD stays is {ratio['perfect']['1']:.1e} of the one without a teacher; with one "
        f"trained for {poor.removeprefix('after ')} it is {ratio[poor]['1']:.3f} (the distance {ratio[poor]['1'] ** 0.5:.2f}), "
        f"its best λ being {float(noise[poor].best):.2f}, which explains {100 * float(noise[poor].explained):.0f} % of the "
        f"variance. Without the correction of its bias the squared distance ends at {biased[poor]['1']:.0f} times that without a "
        f"teacher (the distance at {biased[poor]['1'] ** 0.5:.1f}) with that teacher."
    )
    return Finding(
        question="Does distillation reduce the variance of gradients?",
        papers=PAPERS,
        design=(
            f"Softmax regression on {count:,} images of Fashion-MNIST in float64 with a weight decay of {DECAY:g}, so "
            f"that there is one solution, found to a gradient of {left:.0e}. SGD from zero with batches of {BATCH}, drawn with "
            f"repetition, at a rate of {RATE:g}, {steps:,} steps, {seeds} seeds, the teacher's gradient on the batch "
            f"subtracted λ "
            "times: as distillation does, and with the teacher's mean gradient added back (unbiased). Squared distances are "
            "|x - x*|², the mean of the last fifth of the run."
        ),
        verdict=verdict,
        published=(
            "The paper proves the identity for linear models and a neighbourhood that shrinks with λ and the "
            "teacher's quality, and shows MNIST at λ = 0.7, batch 10, rate 0.05. The constants of its theorem were not "
            "compared; data, decay and rate are others. Under weight decay not even a perfect teacher's gradient is zero in "
            "the mean, so that plain distillation is biased here with every teacher."
        ),
        tables=(_noise(noise), *(_ends(name, by, plain) for name, by in ends.items())),
        pictures=(("Squared distance from the solution, perfect teacher, unbiased", "over steps by λ", folder / "distance.png"),),
        numbers={
            "identity_gap_linear": float(identity.gap), "identity_gap_two_layers": float(deep), "gradient_at_solution": left,
            "noise": {name: {k: float(v) for k, v in n._asdict().items()} for name, n in noise.items()}, "distances": ends,
        },
    )  # fmt: skip


def apply(params: Any, inputs: Any) -> Any:
    """A linear network: `[N, D]` to `[N, 10]`."""
    return inputs @ params


def data(count: int) -> tuple[Any, Any]:
    """The first images, as vectors of length at most one with a constant entry, and their labels."""
    images, labels, _ = embedded("train")
    place = np.linspace(0, len(images) - 1, count).astype(int)
    flat = images[place].reshape(count, -1).astype(np.float64) / 255
    flat = np.concatenate([flat, np.ones((count, 1))], axis=1)
    return jnp.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True)), jnp.asarray(labels[place].astype(np.int32))


def task(params: Any, inputs: Any, labels: Any) -> Any:
    return jnp.mean(cross_entropy(apply(params, inputs), labels=labels))


def loss(params: Any, inputs: Any, labels: Any) -> Any:
    return task(params, inputs, labels) + DECAY / 2 * jnp.sum(jnp.square(params))


def solution(inputs: Any, labels: Any) -> tuple[Any, float]:
    """`(weights, largest entry of the gradient left)` of the regression, by SciPy's L-BFGS."""
    from scipy.optimize import minimize

    shape = (inputs.shape[1], 10)
    both = jax.jit(jax.value_and_grad(lambda flat: loss(flat.reshape(shape), inputs, labels)))

    def function(flat):
        value, gradient = both(jnp.asarray(flat))
        return float(value), np.asarray(gradient)

    found = minimize(
        function, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B",
        options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 0.0, "gtol": 1e-10, "maxcor": 50},
    )  # fmt: skip
    return jnp.asarray(found.x).reshape(shape), float(np.abs(found.jac).max())


@functools.partial(jax.jit, static_argnames=("steps", "correction"))
def descend(inputs, labels, theta, best, strength, steps, correction, seed):
    """`(|x - x*|² after every step, weights at the end)` of SGD from zero, the teacher's gradient subtracted "
    "`strength` times."""
    mean = jax.grad(task)(theta, inputs, labels) if correction == "unbiased" else jnp.zeros_like(theta)

    def step(params, key):
        rows = jax.random.randint(key, (BATCH,), 0, inputs.shape[0])
        own = jax.grad(loss)(params, inputs[rows], labels[rows])
        taught = jax.grad(task)(theta, inputs[rows], labels[rows])  # the teacher's weights do not decay
        params = params - RATE * (own - strength * (taught - mean))
        return params, jnp.sum(jnp.square(params - best))

    end, path = jax.lax.scan(step, jnp.zeros_like(theta), jax.random.split(jax.random.key(seed), steps))
    return path, end


def two_layers(inputs: Any, labels: Any, width: int = 16) -> Any:
    """How far both sides of the identity are apart for a network with a hidden layer."""
    deep = lambda params, x: jnp.tanh(x @ params["u"]) @ params["w"]

    def draw(seed):
        keys = jax.random.split(jax.random.key(seed))
        shapes = {"u": (inputs.shape[1], width), "w": (width, 10)}
        return {n: jax.random.normal(k, s, inputs.dtype) for (n, s), k in zip(shapes.items(), keys, strict=True)}

    return gradient_identity(deep, draw(0), draw(1), inputs, labels, 0.7).gap


@plain_texts
def plot(curves: dict[str, np.ndarray], steps: int, path: Path) -> None:
    made, axes = figure(7.2, 3.6)
    for i, (strength, curve) in enumerate(curves.items()):
        shown = np.unique(np.linspace(0, steps - 1, 400).astype(int))
        axes.plot(shown + 1, curve[shown], color=COLOURS[i], label=f"λ = {strength}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    axes.set_xlabel("steps")
    axes.set_ylabel("|x - x*|², mean over seeds")
    axes.legend(frameon=False, fontsize=8)
    save(made, path)


def _noise(noise: dict[str, Any]) -> Table:
    rows = [("teacher", "variance without", "with it, λ = 1", "best λ", "explained")]
    rows += [
        (
            name,
            f"{float(n.plain):.3g}",
            f"{float(n.corrected):.3g}",
            f"{float(n.best):.3f}",
            f"{100 * float(n.explained):.1f} %",
        )
        for name, n in noise.items()
    ]
    return Table("Variance of single examples' gradients at the solution", rows)


def _ends(name: str, by: dict[str, dict[str, list[float]]], plain: float) -> Table:
    rows = [("λ", *CORRECTIONS)]
    text = lambda v: f"{np.mean(v):.3g} ± {np.std(v, ddof=1):.1g} ({np.mean(v) / plain:.2g})"
    rows += [(f"{s:g}", *(text(by[c][f"{s:g}"]) for c in CORRECTIONS)) for s in STRENGTHS]
    return Table(
        f"Squared distance from the solution, teacher {name}",
        rows,
        "Mean ± standard deviation over seeds; (relative to λ = 0).",
    )
