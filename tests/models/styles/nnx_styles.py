"""Small NNX models in the styles in which others write them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx


class Mnist(nnx.Module):
    """Flax's MNIST example: a stream among the arguments of the call."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 4, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm1, self.dropout1 = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(rate=0.025)
        self.avg_pool = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.linear2 = nnx.Linear(4 * 16, 3, rngs=rngs)

    def __call__(self, x, rngs: nnx.Rngs | None = None):
        x = self.avg_pool(nnx.relu(self.batch_norm1(self.dropout1(self.conv1(x), rngs=rngs))))
        return self.linear2(x.reshape(x.shape[0], -1))


@dataclasses.dataclass(frozen=True)
class VitConfig:
    width: int = 8
    layers: int = 1
    patch: int = 4

    @classmethod
    def tiny(cls):
        return cls()


class EncoderBlock(nnx.Module):
    def __init__(self, cfg: VitConfig, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(cfg.width, rngs=rngs), nnx.LayerNorm(cfg.width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, cfg.width, dropout_rate=0.1, decode=False, rngs=rngs)
        self.mlp = nnx.Sequential(nnx.Linear(cfg.width, 16, rngs=rngs), nnx.gelu, nnx.Linear(16, cfg.width, rngs=rngs))
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, *, rngs: nnx.Rngs | None):
        x = x + self.attention(self.norm1(x), rngs=rngs)
        return x + self.dropout(self.mlp(self.norm2(x)), rngs=rngs)


class ViT(nnx.Module):
    """bonsai's ViT: a config and keyword-only streams, in the constructor and in every call."""

    def __init__(self, cfg: VitConfig, *, rngs: nnx.Rngs):
        self.patches = nnx.Conv(3, cfg.width, (cfg.patch, cfg.patch), (cfg.patch, cfg.patch), rngs=rngs)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, cfg.width)))
        self.pos_embed = nnx.Param(jax.random.normal(rngs.params(), (1, 5, cfg.width)))
        self.layers = nnx.List([EncoderBlock(cfg, rngs=rngs) for _ in range(cfg.layers)])
        self.norm, self.classifier = nnx.LayerNorm(cfg.width, rngs=rngs), nnx.Linear(cfg.width, 3, rngs=rngs)

    def __call__(self, x, *, rngs: nnx.Rngs | None):
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[-1])), x], axis=1)
        x = x + self.pos_embed[...]
        for layer in self.layers:
            x = layer(x, rngs=rngs)
        return self.classifier(self.norm(x)[:, 0])


class ConvNeXtBlock(nnx.Module):
    """Layer scale, stochastic depth by the stream of the call, a rate that is a plain array."""

    def __init__(self, width, rate, *, rngs):
        self.dwconv = nnx.Conv(width, width, (3, 3), feature_group_count=width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.pwconv1, self.pwconv2 = nnx.Linear(width, 8, rngs=rngs), nnx.Linear(8, width, rngs=rngs)
        self.gamma, self.rate = nnx.Param(jnp.full(width, 0.1)), rate

    def __call__(self, x, *, rngs, train):
        y = self.pwconv2(nnx.gelu(self.pwconv1(self.norm(self.dwconv(x))))) * self.gamma[...][None, None, None]
        if train:
            y = y * jax.random.bernoulli(rngs.dropout(), 1 - self.rate, (x.shape[0], 1, 1, 1)) / (1 - self.rate)
        return x + y


class ConvNeXt(nnx.Module):
    """bonsai's ConvNeXt: normalisation constants as plain arrays, drop rates of `jnp.linspace`, `train` beside `rngs`."""

    def __init__(self, *, rngs):
        self.mean, rates = jnp.array([0.5, 0.5, 0.5]), jnp.linspace(0.0, 0.2, 2)[1:]
        self.stem = nnx.Conv(3, 4, (4, 4), (4, 4), rngs=rngs)
        self.stages = nnx.List([ConvNeXtBlock(4, rate, rngs=rngs) for rate in rates])
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x, *, rngs=None, train=False):
        x = self.stem(x - self.mean[None, None, None])
        for stage in self.stages:
            x = stage(x, rngs=rngs, train=train)
        return self.head(x.mean((1, 2)))


class EfficientNet(nnx.Module):
    """bonsai's EfficientNet and ResNet: BatchNorm, squeeze and excitation, blocks in a Sequential, a dict of heads."""

    def __init__(self, rngs):
        norm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-3, rngs=rngs)
        self.stem = nnx.Sequential(nnx.Conv(3, 4, (3, 3), (2, 2), use_bias=False, rngs=rngs), norm(4), nnx.silu)
        self.squeeze, self.excite = nnx.Linear(4, 2, rngs=rngs), nnx.Linear(2, 4, rngs=rngs)
        self.blocks = nnx.List([nnx.Sequential(nnx.Conv(4, 4, (3, 3), rngs=rngs), norm(4), nnx.silu)])
        self.heads = nnx.Dict(main=nnx.Linear(4, 3, rngs=rngs))

    def __call__(self, x):
        x = self.stem(x)
        scale = nnx.sigmoid(self.excite(nnx.silu(self.squeeze(x.mean((1, 2))))))
        x = x * scale[:, None, None]
        for block in self.blocks:
            x = x + block(x)
        return self.heads["main"](x.mean((1, 2)))


class LoRA(nnx.Module):
    """Adapters beside weights that stay."""

    def __init__(self, rngs):
        self.base = nnx.Linear(8 * 8 * 3, 8, rngs=rngs)
        self.adapted = nnx.LoRA(8 * 8 * 3, 2, 8, base_module=self.base, b_initializer=nnx.initializers.ones, rngs=rngs)
        self.head = nnx.LoRALinear(8, 3, lora_rank=2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.adapted(x.reshape(x.shape[0], -1))))


class ScanBlock(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(8, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(nnx.relu(self.norm(self.linear(x))))


class Scan(nnx.Module):
    """One set of stacked weights for all layers, run by `nnx.scan`."""

    def __init__(self, rngs):
        self.stem, self.head = nnx.Conv(3, 8, (4, 4), (4, 4), rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.layers = nnx.split_rngs(splits=2)(nnx.vmap(ScanBlock, in_axes=0, out_axes=0))(rngs)

    def __call__(self, x):
        x = self.stem(x)
        x = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.layers, x)
        return self.head(x.mean((1, 2)))
