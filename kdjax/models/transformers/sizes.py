"""Transformers by name: the published shapes, and small ones for trying things out."""

import dataclasses
from typing import Any

from kdjax.models.transformers.architecture import Architecture
from kdjax.models.transformers.rope import Rope


def bert(width: int, depth: int, heads: int, hidden: int, **more: Any) -> Architecture:
    """Devlin et al., BERT, NAACL 2019, arXiv 1810.04805; uncased."""
    usual: dict[str, Any] = {"vocabulary": 30522, "length": 512, "token_types": 2, "dropout": 0.1, "padding": 0}
    usual |= {"attention_dropout": 0.1, "classifier_dropout": 0.1}
    return Architecture(
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        hidden=hidden,
        **(usual | more),
    )


def roberta(width: int, depth: int, heads: int, hidden: int, **more: Any) -> Architecture:
    """Liu et al., RoBERTa, arXiv 1907.11692."""
    usual = {"vocabulary": 50265, "length": 514, "token_types": 1, "epsilon": 1e-5, "padding": 1, "first_position": 2}
    return bert(width, depth, heads, hidden, family="roberta", **(usual | more))


def distilbert(width: int, depth: int, heads: int, hidden: int, **more: Any) -> Architecture:
    """Sanh et al., DistilBERT, arXiv 1910.01108."""
    usual = {"token_types": 0, "classifier_dropout": 0.2}
    return bert(width, depth, heads, hidden, family="distilbert", **(usual | more))


def gpt2(width: int, depth: int, heads: int, **more: Any) -> Architecture:
    """Radford et al., Language Models are Unsupervised Multitask Learners, 2019."""
    usual: dict[str, Any] = {
        "vocabulary": 50257, "length": 1024, "epsilon": 1e-5, "dropout": 0.1, "attention_dropout": 0.1,
        "classifier_dropout": 0.0,
    }  # fmt: skip
    return Architecture(
        family="gpt2", width=width, depth=depth, heads=heads, kv_heads=heads, head_width=width // heads, hidden=4 * width,
        causal=True, norm_first=True, activation="gelu_tanh", **(usual | more),
    )  # fmt: skip


def llama(width: int, depth: int, heads: int, kv_heads: int, hidden: int, **more: Any) -> Architecture:
    """Touvron et al., LLaMA, arXiv 2302.13971; Grattafiori et al., The Llama 3 Herd of Models, arXiv 2407.21783."""
    usual: dict[str, Any] = {
        "family": "llama", "length": 2048, "epsilon": 1e-5, "head_width": width // heads, "rope": Rope(), "qkv_bias": False,
        "tied": False,
    }  # fmt: skip
    return Architecture(
        width=width, depth=depth, heads=heads, kv_heads=kv_heads, hidden=hidden, causal=True, norm="rms", norm_first=True,
        activation="silu", gated=True, out_bias=False, mlp_bias=False, **(usual | more),
    )  # fmt: skip


def qwen2(width: int, depth: int, heads: int, kv_heads: int, hidden: int, **more: Any) -> Architecture:
    """Yang et al., Qwen2 Technical Report, arXiv 2407.10671; Qwen2.5 has the same shapes."""
    usual = {"family": "qwen2", "vocabulary": 151936, "length": 32768, "epsilon": 1e-6, "rope": Rope(theta=1e6)}
    return llama(width, depth, heads, kv_heads, hidden, **(usual | {"qkv_bias": True} | more))


def qwen3(width: int, depth: int, heads: int, kv_heads: int, hidden: int, **more: Any) -> Architecture:
    """Yang et al., Qwen3 Technical Report, arXiv 2505.09388."""
    usual = {"family": "qwen3", "length": 40960, "head_width": 128, "qkv_bias": False, "qk_norm": True}
    return qwen2(width, depth, heads, kv_heads, hidden, **(usual | more))


SMOLLM = {"vocabulary": 49152, "rope": Rope(theta=1e4), "tied": True}
SIZES: dict[str, Architecture] = {
    "bert_base": bert(768, 12, 12, 3072),
    "bert_large": bert(1024, 24, 16, 4096),
    "bert_mini": bert(256, 4, 4, 1024),
    "bert_tiny": bert(128, 2, 2, 512),
    "distilbert": distilbert(768, 6, 12, 3072),
    "roberta_base": roberta(768, 12, 12, 3072),
    "roberta_large": roberta(1024, 24, 16, 4096),
    "distilroberta": roberta(768, 6, 12, 3072),
    "minilm_l6": bert(384, 6, 12, 1536),
    "minilm_l12": bert(384, 12, 12, 1536),
    "tinybert_l4": bert(312, 4, 12, 1200),
    "tinybert_l6": bert(768, 6, 12, 3072),
    "gpt2": gpt2(768, 12, 12),
    "gpt2_medium": gpt2(1024, 24, 16),
    "gpt2_large": gpt2(1280, 36, 20),
    "gpt2_xl": gpt2(1600, 48, 25),
    "distilgpt2": gpt2(768, 6, 12),
    "smollm_135m": llama(576, 30, 9, 3, 1536, **SMOLLM),
    "smollm_360m": llama(960, 32, 15, 5, 2560, **SMOLLM),
    "tinyllama": llama(2048, 22, 32, 4, 5632, vocabulary=32000),
    "llama3_1b": llama(
        2048, 16, 32, 8, 8192, vocabulary=128256, length=131072, tied=True,
        rope=Rope(kind="llama3", theta=5e5, factor=32.0, original=8192),
    ),
    "qwen2_0.5b": qwen2(896, 24, 14, 2, 4864, tied=True),
    "qwen2_1.5b": qwen2(1536, 28, 12, 2, 8960, tied=True),
    "qwen3_0.6b": qwen3(1024, 28, 16, 8, 3072, tied=True),
    "qwen3_1.7b": qwen3(2048, 28, 16, 8, 6144, tied=True),
}  # fmt: skip


def resized(a: Architecture, *, width: int = 0, depth: int = 0) -> Architecture:
    """The architecture with another width or depth; 0 leaves them. Heads keep their width as far as it divides, the perceptron
    its ratio."""
    if width and width != a.width:
        heads = next(n for n in range(max(1, min(a.heads, width // a.head_width)), 0, -1) if width % n == 0)
        head_width = width // heads
        head_width += head_width % 2 if a.rope is not None else 0
        kv_heads = next(n for n in range(min(a.kv_heads, heads), 0, -1) if heads % n == 0)
        a = dataclasses.replace(
            a, width=width, heads=heads, kv_heads=kv_heads, head_width=head_width, hidden=a.hidden * width // a.width
        )
    return dataclasses.replace(a, depth=depth or a.depth)
