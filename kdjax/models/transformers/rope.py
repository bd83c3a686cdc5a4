"""Rotary positions: by which angle a pair of entries turns from one token to the next.

Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv 2104.09864. The scalings for longer texts follow
the papers and the configuration files of Hugging Face: linear (Chen et al., arXiv 2306.15595), llama3 (Llama 3.1's files), yarn
(Peng et al., arXiv 2309.00071).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from kdjax.types import Array

KINDS = ("default", "linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Angles of one dialect.

    Attributes:
      kind: how frequencies are scaled.
      theta: base of the frequencies, `theta ** (-2 i / head_width)`.
      factor: by how much longer texts may be than those trained on.
      original: tokens that were trained on before that.
      low, high: of llama3: of a frequency with fewer turns than `low` within `original` tokens the whole is scaled, of one with
        more than `high` nothing.
      fast, slow: of yarn: turns within `original` tokens from which on nothing, and up to which the whole, is scaled.
      attention_factor: what cosines and sines are multiplied by; None for yarn's own, and else 1.
      truncate: of yarn: whether the ends of the ramp are whole numbers.
    """

    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def frequencies(self, head_width: int) -> np.ndarray:
        """`[head_width / 2]` radians a token, float64."""
        plain = self.theta ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
        match self.kind:
            case "linear":
                return plain / self.factor
            case "llama3":
                turns = self.original * plain / (2 * math.pi)
                kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
            case "yarn":
                place = lambda turns: (
                    head_width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))
                )
                first, last = place(self.fast), place(self.slow)
                if self.truncate:
                    first, last = math.floor(first), math.ceil(last)
                first, last = max(first, 0), min(last, head_width - 1)
                ramp = (np.arange(head_width // 2) - first) / max(last - first, 1e-3)
                kept = 1 - np.clip(ramp, 0, 1)
            case _:
                return plain
        return plain * kept + plain / self.factor * (1 - kept)

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1 if self.kind == "yarn" and self.factor > 1 else 1.0

    def rotation(self, positions: Array, head_width: int, dtype: Any) -> tuple[Array, Array]:
        """Cosines and sines `[B, L, 1, head_width / 2]` at positions `[B, L]`, in `dtype`, float32 or wider."""
        angles = positions[:, :, None].astype(dtype) * jnp.asarray(self.frequencies(head_width), dtype)[None, None]
        magnitude = jnp.asarray(self.magnitude, dtype)
        return jnp.cos(angles)[:, :, None] * magnitude, jnp.sin(angles)[:, :, None] * magnitude


def rotated(x: Array, rotation: tuple[Array, Array]) -> Array:
    """`[B, L, heads, head_width]` turned; a pair is an entry of the first half and that of the second. Computed in the rotation's
    type."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rope_of(config: Mapping[str, Any]) -> Rope:
    """The rotary positions of a Hugging Face configuration, of either dialect.

    Files up to transformers 4 have `rope_theta` and `rope_scaling`, whose kind may be called `type`; those of transformers 5 have
    all in `rope_parameters`.

    Raises:
      ValueError: a kind that is not known here.
    """
    said = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = said.get("rope_type", said.get("type", "default"))
    if kind not in KINDS:
        raise ValueError(
            f"its rotary positions are of the kind {kind!r}, which is not supported; there are {', '.join(KINDS)}"
        )
    longest = config.get("max_position_embeddings", 0)
    original = int(
        said.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or longest
    )
    if kind == "yarn" and any(said.get(name) for name in ("mscale", "mscale_all_dim")):
        raise ValueError("its rotary positions have mscale, which is not supported; take a network without")
    factor = said.get("factor")
    if factor is None:
        factor = longest / original if kind == "yarn" and original else 1.0
    return Rope(
        kind=kind, theta=float(said.get("rope_theta", config.get("rope_theta", 10000.0))), factor=float(factor),
        original=original if kind in ("llama3", "yarn") else 0, low=float(said.get("low_freq_factor", 1.0)),
        high=float(said.get("high_freq_factor", 4.0)), fast=float(said.get("beta_fast") or 32.0),
        slow=float(said.get("beta_slow") or 1.0), attention_factor=said.get("attention_factor"),
        truncate=bool(said.get("truncate", True)),
    )  # fmt: skip


def rope_config(rope: Rope) -> dict[str, Any]:
    """The inverse of `rope_of`, as transformers 5 writes it, with what transformers 4 reads beside it."""
    said: dict[str, Any] = {"rope_type": rope.kind}
    if rope.kind != "default":
        said["factor"] = rope.factor
    if rope.kind == "llama3":
        said |= {"low_freq_factor": rope.low, "high_freq_factor": rope.high}
    if rope.kind == "yarn":
        said |= {"beta_fast": rope.fast, "beta_slow": rope.slow, "truncate": rope.truncate}
        said |= {} if rope.attention_factor is None else {"attention_factor": rope.attention_factor}
    if rope.original:
        said["original_max_position_embeddings"] = rope.original
    old = {} if rope.kind == "default" else {"rope_scaling": said}
    return {"rope_parameters": {**said, "rope_theta": rope.theta}, "rope_theta": rope.theta, **old}
