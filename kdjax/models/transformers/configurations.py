"""Configuration files of Hugging Face: `config.json` to an architecture, of transformers 4's dialect and 5's, and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdjax.models.transformers.architecture import Architecture, Head
from kdjax.models.transformers.rope import rope_config, rope_of

Config = Mapping[str, Any]

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
               "silu": "silu", "swish": "silu", "relu": "relu"}  # fmt: skip
THEIRS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu", "relu": "relu"}
# Class names by family: of the body, and of its heads of classes and tokens.
CLASSES = {
    "bert": ("BertModel", "BertForSequenceClassification", "BertForMaskedLM"),
    "roberta": ("RobertaModel", "RobertaForSequenceClassification", "RobertaForMaskedLM"),
    "distilbert": ("DistilBertModel", "DistilBertForSequenceClassification", "DistilBertForMaskedLM"),
    "gpt2": ("GPT2Model", "GPT2ForSequenceClassification", "GPT2LMHeadModel"),
    "llama": ("LlamaModel", "LlamaForSequenceClassification", "LlamaForCausalLM"),
    "qwen2": ("Qwen2Model", "Qwen2ForSequenceClassification", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Model", "Qwen3ForSequenceClassification", "Qwen3ForCausalLM"),
}
# Values that would make another network of it than this one.
REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("position_embedding_type", ("absolute", None), "its positions are relative"),
    ("is_decoder", (False, None), "it is an encoder made a decoder"),
    ("add_cross_attention", (False, None), "it attends to another network"),
    ("scale_attn_weights", (True, None), "its attention is not scaled"),
    ("scale_attn_by_inverse_layer_idx", (False, None), "its attention is scaled by the number of the block"),
    ("use_sliding_window", (False, None), "its tokens see a window alone"),
    ("chunk_size_feed_forward", (0, None), "its perceptron runs in pieces"),
)


def architecture_of(config: Config) -> Architecture:
    """The architecture of a configuration.

    Raises:
      ValueError: it is of another kind of network, or has a switch that is not known here; the sentence lacks the file's name.
    """
    family = config.get("model_type")
    if family not in READERS:
        raise ValueError(
            f"it is a network of the type {family!r}, which is not supported; there are {', '.join(READERS)}"
        )
    for name, allowed, what in REFUSED:
        if config.get(name) not in allowed:
            raise ValueError(f"{what} ({name}={config[name]!r}), which is not supported")
    if "sliding_attention" in (config.get("layer_types") or ()):
        raise ValueError("its tokens see a window alone (layer_types), which is not supported")
    try:
        return READERS[family](config)
    except KeyError as error:
        raise ValueError(f"it does not say {error.args[0]!r}") from error
    except TypeError as error:
        raise ValueError(f"a value of it is of another type than expected ({error})") from error


def _bert(c: Config) -> Architecture:
    family, padding = c["model_type"], _padding(c)
    dropout = c.get("hidden_dropout_prob", 0.1)
    last = c.get("classifier_dropout")
    return Architecture(
        family=family, vocabulary=c["vocab_size"], width=c["hidden_size"], depth=c["num_hidden_layers"],
        heads=c["num_attention_heads"], kv_heads=c["num_attention_heads"],
        head_width=c["hidden_size"] // c["num_attention_heads"], hidden=c["intermediate_size"],
        length=c["max_position_embeddings"], token_types=c.get("type_vocab_size", 2), epsilon=c.get("layer_norm_eps", 1e-12),
        first_position=padding + 1 if family == "roberta" else 0, activation=_activation(c.get("hidden_act", "gelu")),
        tied=c.get("tie_word_embeddings", True), dropout=dropout, attention_dropout=c.get("attention_probs_dropout_prob", 0.1),
        classifier_dropout=dropout if last is None else last, deviation=c.get("initializer_range", 0.02), padding=padding,
    )  # fmt: skip


def _distilbert(c: Config) -> Architecture:
    return Architecture(
        family="distilbert", vocabulary=c["vocab_size"], width=c["dim"], depth=c["n_layers"], heads=c["n_heads"],
        kv_heads=c["n_heads"], head_width=c["dim"] // c["n_heads"], hidden=c["hidden_dim"],
        length=c["max_position_embeddings"], activation=_activation(c.get("activation", "gelu")),
        tied=c.get("tie_word_embeddings", True), dropout=c.get("dropout", 0.1),
        attention_dropout=c.get("attention_dropout", 0.1), classifier_dropout=c.get("seq_classif_dropout", 0.2),
        deviation=c.get("initializer_range", 0.02), padding=_padding(c),
    )  # fmt: skip


def _gpt2(c: Config) -> Architecture:
    dropout, embedded = c.get("resid_pdrop", 0.1), c.get("embd_pdrop", 0.1)
    if dropout != embedded:
        raise ValueError(
            f"it drops embeddings and branches at two rates (embd_pdrop={embedded}, resid_pdrop={dropout}); give one"
        )
    return Architecture(
        family="gpt2", vocabulary=c["vocab_size"], width=c["n_embd"], depth=c["n_layer"], heads=c["n_head"],
        kv_heads=c["n_head"], head_width=c["n_embd"] // c["n_head"], hidden=c.get("n_inner") or 4 * c["n_embd"],
        length=c["n_positions"], causal=True, norm_first=True, epsilon=c.get("layer_norm_epsilon", 1e-5),
        activation=_activation(c.get("activation_function", "gelu_new")), tied=c.get("tie_word_embeddings", True),
        dropout=dropout, attention_dropout=c.get("attn_pdrop", 0.1), deviation=c.get("initializer_range", 0.02),
        padding=_padding(c),
    )  # fmt: skip


def _llama(c: Config) -> Architecture:
    family, heads = c["model_type"], c["num_attention_heads"]
    bias = c.get("attention_bias", False)
    return Architecture(
        family=family, vocabulary=c["vocab_size"], width=c["hidden_size"], depth=c["num_hidden_layers"], heads=heads,
        kv_heads=c.get("num_key_value_heads") or heads, head_width=c.get("head_dim") or c["hidden_size"] // heads,
        hidden=c["intermediate_size"], length=c["max_position_embeddings"], causal=True, norm="rms", norm_first=True,
        epsilon=c["rms_norm_eps"], rope=rope_of(c), activation=_activation(c.get("hidden_act", "silu")), gated=True,
        qkv_bias=True if family == "qwen2" else bias, out_bias=False if family == "qwen2" else bias,
        mlp_bias=c.get("mlp_bias", False), qk_norm=family == "qwen3", tied=c.get("tie_word_embeddings", False),
        attention_dropout=c.get("attention_dropout", 0.0), deviation=c.get("initializer_range", 0.02),
        padding=_padding(c),
    )  # fmt: skip


READERS: dict[str, Callable[[Config], Architecture]] = {
    "bert": _bert, "roberta": _bert, "distilbert": _distilbert, "gpt2": _gpt2, "llama": _llama, "qwen2": _llama, "qwen3": _llama,
}  # fmt: skip


def _padding(c: Config) -> int:
    number = c.get("pad_token_id")
    return -1 if number is None else number


def _activation(name: str) -> Any:
    if name not in ACTIVATIONS:
        raise ValueError(f"its activation is {name!r}, which is not supported; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def head_of(config: Config, *, sentence: bool = False) -> Head:
    """The head that a configuration says its file has; none where it says nothing. `sentence`: a bare body is one of sentences.

    Raises:
      ValueError: it is another one, such as that of question answering.
    """
    body, classes, tokens = CLASSES[config["model_type"]]
    said = (config.get("architectures") or [body])[0]
    if said == classes:
        named = config.get("id2label") or {}
        return Head(kind="classes", classes=len(named) or config.get("num_labels", 2))
    if said == tokens or said in ("BertForPreTraining",):
        return Head(kind="tokens")
    if said != body:
        raise ValueError(f"it is a {said}, whose head is not supported; there are {body}, {classes} and {tokens}")
    return Head(kind="sentence" if sentence else "none")


def config_of(a: Architecture, head: Head, class_names: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of an architecture, as transformers 5 writes it, and 4 reads it too.

    Raises:
      ValueError: switches that this family has not in such files.
    """
    body, classes, tokens = CLASSES[a.family]
    config: dict[str, Any] = {
        "architectures": [{"classes": classes, "tokens": tokens}.get(head.kind, body)], "model_type": a.family,
        "dtype": "float32", "torch_dtype": "float32", "vocab_size": a.vocabulary, "tie_word_embeddings": a.tied,
        "initializer_range": a.deviation, "pad_token_id": None if a.padding < 0 else a.padding,
    }  # fmt: skip
    active = THEIRS[a.activation]
    match a.family:
        case "bert" | "roberta":
            config |= {
                "hidden_size": a.width, "num_hidden_layers": a.depth, "num_attention_heads": a.heads,
                "intermediate_size": a.hidden, "hidden_act": active, "hidden_dropout_prob": a.dropout,
                "attention_probs_dropout_prob": a.attention_dropout, "classifier_dropout": a.classifier_dropout,
                "max_position_embeddings": a.length, "type_vocab_size": a.token_types, "layer_norm_eps": a.epsilon,
            }  # fmt: skip
        case "distilbert":
            config |= {
                "dim": a.width, "n_layers": a.depth, "n_heads": a.heads, "hidden_dim": a.hidden, "activation": active,
                "dropout": a.dropout, "attention_dropout": a.attention_dropout, "seq_classif_dropout": a.classifier_dropout,
                "max_position_embeddings": a.length, "sinusoidal_pos_embds": False,
            }  # fmt: skip
        case "gpt2":
            config |= {
                "n_embd": a.width, "n_layer": a.depth, "n_head": a.heads, "n_inner": a.hidden, "n_positions": a.length,
                "activation_function": active, "embd_pdrop": a.dropout, "resid_pdrop": a.dropout,
                "attn_pdrop": a.attention_dropout, "layer_norm_epsilon": a.epsilon,
            }  # fmt: skip
        case _:
            config |= {
                "hidden_size": a.width, "num_hidden_layers": a.depth, "num_attention_heads": a.heads,
                "num_key_value_heads": a.kv_heads, "head_dim": a.head_width, "intermediate_size": a.hidden,
                "hidden_act": active, "max_position_embeddings": a.length, "rms_norm_eps": a.epsilon,
                "attention_dropout": a.attention_dropout,
            }  # fmt: skip
            config |= {} if a.rope is None else rope_config(a.rope)
            config |= {"attention_bias": a.qkv_bias, "mlp_bias": a.mlp_bias} if a.family != "qwen2" else {}
            config |= {"use_sliding_window": False} if a.family != "llama" else {}
    if head.kind == "classes":
        names = tuple(class_names) or tuple(f"LABEL_{i}" for i in range(head.classes))
        config |= {
            "id2label": {str(i): name for i, name in enumerate(names)},
            "label2id": {n: i for i, n in enumerate(names)},
        }
    read = architecture_of(config)
    if read != a:
        other = next(name for name in vars(a) if getattr(read, name) != getattr(a, name))
        raise ValueError(
            f"Files of {a.family} do not say {other}={getattr(a, other)!r}; they would mean {getattr(read, other)!r}."
        )
    return config
