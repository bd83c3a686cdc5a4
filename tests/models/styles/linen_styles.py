"""Small Linen models in the styles in which others write them."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class ResNet(nn.Module):
    """Flax's ImageNet example: layers by partial, the mapped axis written into BatchNorm, `train` with a default."""

    width: int = 4

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, axis_name="batch")
        x = nn.relu(norm(name="bn_init")(conv(self.width, (3, 3), name="conv_init")(x)))
        for i in range(2):
            y = norm(scale_init=nn.initializers.zeros_init())(conv(self.width, (3, 3))(x))
            x = nn.relu(norm(name=f"norm_proj{i}")(conv(self.width, (1, 1), (2, 2))(x + y)))
        return nn.Dense(3)(jnp.mean(x, axis=(1, 2)))


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    vocabulary: int = 7
    width: int = 8
    dropout: float = 0.1
    deterministic: bool = False
    kernel_init: Any = nn.initializers.xavier_uniform()


class DecoderBlock(nn.Module):
    config: LanguageConfig

    @nn.compact
    def __call__(self, x, mask, deterministic: bool):
        attention = nn.MultiHeadDotProductAttention(
            num_heads=2,
            kernel_init=self.config.kernel_init,
            dropout_rate=self.config.dropout,
            deterministic=deterministic,
        )
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        y = nn.Dense(self.config.width)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return x + nn.Dropout(self.config.dropout)(y, deterministic=deterministic)


class Language(nn.Module):
    """Flax's lm1b example: a config object, tied embedding, `nn.with_logical_partitioning`, the mode as a field."""

    config: LanguageConfig
    train: bool = True

    @nn.compact
    def __call__(self, ids):
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
        embed = nn.Embed(self.config.vocabulary, self.config.width, embedding_init=init, name="embed")
        x, mask = embed(ids), nn.make_causal_mask(ids)
        for i in range(1):
            x = DecoderBlock(self.config, name=f"block_{i}")(x, mask, not self.train)
        return embed.attend(nn.LayerNorm(name="norm")(x))


@dataclasses.dataclass
class ClassifierOutput:
    logits: Any
    hidden_states: Any = None
    attentions: Any = None


class HuggingFace(nn.Module):
    """Hugging Face's Flax modules: `setup`, several inputs, `deterministic=True`, `return_dict`, an output object."""

    def setup(self):
        self.embeddings, self.encoder = nn.Embed(11, 8), nn.Dense(8)
        self.dropout, self.classifier = nn.Dropout(rate=0.1), nn.Dense(3)

    def __call__(self, input_ids, attention_mask, deterministic: bool = True, return_dict: bool = True):
        hidden = nn.gelu(self.encoder(self.embeddings(input_ids)))
        weights = attention_mask[..., None] / jnp.sum(attention_mask, axis=-1)[:, None, None]
        pooled = jnp.sum(weights * hidden, axis=1)
        logits = self.classifier(self.dropout(pooled, deterministic=deterministic))
        return ClassifierOutput(logits) if return_dict else (logits, hidden)


class Expert(nn.Module):
    """MaxText's layers: partitioned kernels, constraints on activations, a balance loss that is noted down."""

    @nn.compact
    def __call__(self, x, _):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        share = nn.softmax(nn.Dense(2, kernel_init=init, name="router")(x))
        self.sow("intermediates", "moe_lb_loss", 2 * jnp.sum(jnp.mean(share, axis=(0, 1)) ** 2))
        wide = nn.Dense(16, kernel_init=init, name="wi")(x)
        wide = nn.with_logical_constraint(nn.gelu(wide), ("batch", "length", "mlp"))
        experts = nn.DenseGeneral((2, 8), name="wo")(wide)
        return x + jnp.sum(share[..., None] * experts, axis=-2), None


class Partitioned(nn.Module):
    """MaxText: layers under `nn.remat(nn.scan)`, boxes of partitioned parameters."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(7, 8, embedding_init=nn.with_partitioning(nn.initializers.normal(1.0), (None, "model")))(ids)
        layers = nn.scan(
            nn.remat(Expert), variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True}, length=2,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )  # fmt: skip
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(7, name="logits")(x)
