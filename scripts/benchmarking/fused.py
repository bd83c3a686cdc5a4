"""Distillation from hidden states beside the dense loss: time, and memory by the number of rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarking.timing import Row, Subject, figure, of_samples, turns
from kdjax.losses import forward_kl, fused_linear_kd, jsd

DENSE = {"forward_kl": forward_kl, "jsd": jsd}


@dataclasses.dataclass(frozen=True)
class Heads:
    """Sizes: `[rows, width]` hidden states of both networks and heads `[width, tokens]`, in `dtype`."""

    width: int
    tokens: int
    rows: tuple[int, ...]
    chunk: int
    dtype: str
    flat_from: int  # rows from which on it must be as fast as the dense loss


SMALL = Heads(128, 8192, (512, 1024, 2048), 256, "float32", 4096)
LARGE = Heads(4096, 128_256, (1024, 4096, 8192), 1024, "bfloat16", 4096)


def fused(divergence: str, heads: Heads, rounds: int) -> list[Row]:
    """Time by the number of rows, and how temporaries grow with it."""
    rows, memory = [], {}
    for count in heads.rows:
        arguments = draw(heads, count)
        programs = {name: _compiled(loss, arguments) for name, loss in _losses(divergence, heads).items()}
        memory[count] = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
        right, said = agreement(programs["fused"](*arguments), programs["dense"](*arguments), heads.dtype)
        subjects = [Subject(name, functools.partial(program, *arguments)) for name, program in programs.items()]
        seconds = turns(subjects, rounds, budget=20)
        taken = {name: f"{bytes / 2**20:,.0f} MiB" for name, bytes in memory[count].items()}
        rows.append(
            of_samples(f"fused {divergence} ÷ dense, {count} rows", seconds["fused"] / seconds["dense"],
                       **({"most": 1.0} if count >= heads.flat_from else {}), check=said, correct=right,
                       note=f"{figure(1e3 * np.median(seconds['fused']), 'ms')}; temporaries {taken['fused']}, "
                            f"dense {taken['dense']}")
        )  # fmt: skip
    most = max(heads.rows)
    times = memory[most]["dense"] / memory[most]["fused"]
    # 6 times less is wanted of 8,192 rows of a vocabulary of 128 thousand.
    target = {"target": "≥ 6", "met": times >= 6} if heads == LARGE else {}
    saved = Row(f"temporaries of dense {divergence} ÷ fused, {most} rows", times, **target)
    return [*rows, saved, flatness(divergence, heads, memory)]


def flatness(divergence: str, heads: Heads, memory: dict[int, dict[str, int]]) -> Row:
    """How temporaries grow from the fewest rows to the most, as a share of what the dense loss adds."""
    few, many = min(heads.rows), max(heads.rows)
    grown = {name: memory[many][name] - memory[few][name] for name in ("fused", "dense")}
    share = grown["fused"] / grown["dense"]
    # What is kept by row are hidden states of both networks and a gradient, in float32 at most, and small vectors.
    most = (many - few) * (3 * heads.width + 16) * 4
    gradient = heads.width * heads.tokens * 4
    note = (f"from {few} to {many} rows {grown['fused'] / 2**20:.2f} MiB more (hidden states may take {most / 2**20:.2f}), "
            f"dense {grown['dense'] / 2**20:,.0f}; at {many} rows {(memory[many]['fused'] - gradient) / 2**20:,.1f} MiB "
            "beyond the head's gradient")  # fmt: skip
    return Row(f"temporaries of fused {divergence} by rows, share of dense", share, target="hidden states alone",
               met=grown["fused"] <= most, note=note)  # fmt: skip


def draw(heads: Heads, rows: int) -> tuple[jax.Array, ...]:
    """Hidden state and head of the student, and of the teacher."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(rows, heads.width), (heads.width, heads.tokens)] * 2
    scale = heads.width**-0.5
    arrays = [jax.random.normal(key, shape, heads.dtype) for key, shape in zip(keys, shapes, strict=True)]
    return arrays[0], arrays[1] * scale, arrays[2], arrays[3] * scale


def _losses(divergence: str, heads: Heads):
    def chunked(hidden, head, taught, teacher_head):
        return fused_linear_kd(hidden, head, taught, teacher_head, divergence=divergence, chunk_size=heads.chunk).sum

    def dense(hidden, head, taught, teacher_head):
        product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
        return jnp.sum(DENSE[divergence](product(hidden, head), product(taught, teacher_head)))

    return {"fused": chunked, "dense": dense}


def _compiled(loss, arguments):
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()


def agreement(found, wanted, dtype: str) -> tuple[bool, str]:
    """Whether value and gradients are those of the dense loss, to rounding, and how far they are."""
    (value, gradients), (expected, dense) = jax.device_get((found, wanted))
    apart = [abs(value - expected) / abs(expected)]
    for ours, theirs in zip(gradients, dense, strict=True):
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        apart.append(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    exact = dtype == "float32" and jax.default_backend() == "cpu"
    worst = float(np.max(apart))
    return worst <= (1e-4 if exact else 2e-2), f"value {apart[0]:.1e}, gradients {max(apart[1:]):.1e}"
