"""What distinguishes one transformer for text from another, as data."""

import dataclasses
from typing import Literal

from kdjax.models.transformers.rope import Rope

Family = Literal["bert", "roberta", "distilbert", "gpt2", "llama", "qwen2", "qwen3"]
HEADS = ("none", "classes", "tokens", "sentence")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """The switches of the one block, and the sizes. What is left out is as in BERT.

    Attributes:
      family: whose names its weights have in files, and which head follows.
      vocabulary: tokens `V`.
      width: `D` of every token.
      depth: blocks.
      heads, kv_heads: of queries, and of keys and values, whose number divides that of the queries.
      head_width: of each head.
      hidden: of the perceptron.
      length: tokens that there are positions for.
      token_types: segments that have an embedding each; 0 for none.
      causal: whether a token sees those before it alone.
      norm: layer normalisation; or that by the root of the mean square, without mean and bias.
      norm_first: whether a branch normalises what it is given, with one more behind the last block; or what is added up.
      epsilon: of the normalisation.
      rope: rotary positions; None for learned ones.
      first_position: number of the first learned position: RoBERTa leaves out as many as its padding token says, and one.
      activation: of the perceptron: GELU of `erf`, its approximation by `tanh`, or SiLU; or ReLU.
      gated: whether a second branch of the perceptron is multiplied by the activation.
      qkv_bias, out_bias, mlp_bias: which linear layers have biases.
      qk_norm: whether queries and keys are normalised, each head by itself.
      tied: whether the embedding of the tokens is also what scores them.
      dropout, attention_dropout, classifier_dropout: rates: of embeddings and branches, of the attention's weights, before
        the classifier.
      deviation: of fresh weights.
      padding: number of the padding token, whose embedding is not trained (but in GPT-2); -1 where there is none.
    """

    family: Family = "bert"
    vocabulary: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    length: int
    token_types: int = 0
    causal: bool = False
    norm: Literal["layer", "rms"] = "layer"
    norm_first: bool = False
    epsilon: float = 1e-12
    rope: Rope | None = None
    first_position: int = 0
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu"
    gated: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    tied: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    classifier_dropout: float = 0.0
    deviation: float = 0.02
    padding: int = -1

    def __post_init__(self):
        for name in ("vocabulary", "width", "depth", "heads", "kv_heads", "head_width", "hidden", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"The transformer's {name} is {getattr(self, name)}; use 1 or more.")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} heads of queries do not share {self.kv_heads} of keys evenly; let these divide them."
            )
        if self.rope is not None and self.head_width % 2:
            raise ValueError(f"Rotary positions turn pairs, and a head is {self.head_width} wide; use an even width.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """What is read off the last block.

    Attributes:
      kind: "classes" scores a row, of its first token, or of a decoder its last; "tokens" scores the vocabulary at every token;
        "sentence" is the mean over the tokens of a row at length 1; "none" is BERT's pooled first token where there is one.
      classes: of "classes".
    """

    kind: Literal["none", "classes", "tokens", "sentence"] = "none"
    classes: int = 0

    def __post_init__(self):
        if self.kind not in HEADS:
            raise ValueError(f"There is no head {self.kind!r}; there are {', '.join(HEADS)}.")
        if self.kind == "classes" and self.classes < 1:
            raise ValueError(f"A head of classes has {self.classes} of them; use 1 or more.")
