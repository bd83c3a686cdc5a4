"""Folders of Hugging Face: read and written back, in both dialects of configuration; what does not fit is said."""

import json
import shutil

import jax
import numpy as np
import pytest

from kdjax.models.transformers import Head, read_folder, transformer, write_folder
from kdjax.models.transformers.folders import WEIGHTS, write_safetensors
from kdjax.models.weights.beginning import flat
from kdjax.models.weights.files import WeightsError, read_weights
from tests.golden_cases import FOLDER

NAMES = sorted(path.name for path in (FOLDER / "hf").iterdir())


def copied(name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(FOLDER / "hf" / name, folder)
    return folder


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_weights(folder, change):
    arrays = {name: np.array(array) for name, array in read_weights(folder / WEIGHTS).items()}
    write_safetensors(folder / WEIGHTS, change(arrays))


@pytest.mark.parametrize("name", NAMES)
def test_written_back_it_is_the_same(name, tmp_path):
    found = read_folder(FOLDER / "hf" / name)
    assert not found.fresh and set(found.unused) <= {"embeddings.position_ids"}
    write_folder(tmp_path, found.architecture, found.head, found.params, class_names=found.class_names)
    again = read_folder(tmp_path)
    assert (again.architecture, again.head) == (found.architecture, found.head)
    assert again.class_names == (found.class_names or tuple(f"LABEL_{i}" for i in range(found.head.classes)))
    assert not again.unused and not again.fresh
    first, second = flat(found.params), flat(again.params)
    assert first.keys() == second.keys()
    for path, array in first.items():
        np.testing.assert_array_equal(second[path], array)


@pytest.mark.parametrize("name", [name for name in NAMES if "bf16" not in name])
def test_the_entries_are_those_of_the_original(name, tmp_path):
    """By name, shape and number: a program that reads the one reads the other."""
    found = read_folder(FOLDER / "hf" / name)
    write_folder(tmp_path, found.architecture, found.head, found.params)
    ours, theirs = read_weights(tmp_path / WEIGHTS), read_weights(FOLDER / "hf" / name / WEIGHTS)
    modern = lambda key: key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    theirs = {modern(key): array for key, array in theirs.items()}
    for key, array in ours.items():
        there = next(k for k in (key, key.partition(".")[2]) if k in theirs)
        np.testing.assert_array_equal(array, theirs[there])


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_what_is_written(name, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    found = read_folder(FOLDER / "hf" / name)
    write_folder(tmp_path, found.architecture, found.head, found.params)
    kinds = {"classes": "AutoModelForSequenceClassification", "none": "AutoModel"}
    masked = "AutoModelForCausalLM" if found.architecture.causal else "AutoModelForMaskedLM"
    kind = getattr(transformers, kinds.get(found.head.kind, masked))
    theirs, said = kind.from_pretrained(str(tmp_path), output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    ids = np.random.default_rng(0).integers(1, found.architecture.vocabulary, (2, 7))
    with torch.no_grad():
        output = theirs.eval()(input_ids=torch.tensor(ids))
    net = transformer(found.architecture, found.head, weights=found.params)
    ours = jax.jit(lambda p, s, x: net.apply(p, s, {"input_ids": x}, train=False)[0])(*net.init(jax.random.key(0)), ids)
    pair = (ours.logits, output.logits) if found.head.kind != "none" else (ours.embedding, output.pooler_output)
    np.testing.assert_allclose(pair[0], pair[1].numpy(), rtol=1e-4, atol=1e-4)


SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 60}


@pytest.mark.parametrize("family, head", [("Roberta", "SequenceClassification"), ("Roberta", "MaskedLM"),
                                          ("GPT2", "SequenceClassification"), ("Llama", "SequenceClassification")])  # fmt: skip
def test_what_transformers_writes_is_read(family, head, tmp_path):
    """Those of which no numbers are kept here: with padding on the right, by other weights in every run of the test."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    own = {"pad_token_id": 1, "num_labels": 3, "max_position_embeddings": 20}
    config = getattr(transformers, f"{family}Config")(**SMALL, **own)
    with torch.no_grad():
        theirs = getattr(transformers, f"{family}For{head}")(config).eval()
        for weights in theirs.parameters():
            weights.add_(0.3 * torch.randn_like(weights))
        theirs.save_pretrained(tmp_path)
        mask = np.arange(9)[None] < np.array([[9], [5]])
        ids = np.where(mask, np.random.default_rng(0).integers(2, 60, (2, 9)), 1)
        wanted = theirs(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int))).logits.numpy()
    found = read_folder(tmp_path)
    assert not found.unused and not found.fresh
    net = transformer(found.architecture, found.head, weights=found.params)
    output, _ = net.apply(*net.init(jax.random.key(0)), {"input_ids": ids, "attention_mask": mask}, train=False)
    chosen = mask if head == "MaskedLM" else slice(None)
    np.testing.assert_allclose(output.logits[chosen], wanted[chosen], rtol=1e-3, atol=1e-4)


def test_old_names_of_norms_and_buffers_and_prefixes(tmp_path):
    folder = copied("bert_cls", tmp_path)
    wanted = flat(read_folder(folder).params)
    old = lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    change_weights(folder, lambda arrays: {old(key): array for key, array in arrays.items()})
    assert any(key.endswith("gamma") for key in read_weights(folder / WEIGHTS))
    np.testing.assert_equal(flat(read_folder(folder).params), wanted)

    folder = copied("gpt2", tmp_path)
    wanted = flat(read_folder(folder).params)
    bare = lambda arrays: {key.removeprefix("transformer."): array for key, array in arrays.items()}
    mask = {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32), "lm_head.weight": wanted["embeddings/tokens"]}
    change_weights(folder, lambda arrays: bare(arrays) | mask)
    found = read_folder(folder)
    assert not found.unused
    np.testing.assert_equal(flat(found.params), wanted)


def test_blocks_may_be_chosen():
    whole = read_folder(FOLDER / "hf" / "bert")
    part = read_folder(FOLDER / "hf" / "bert", layers=(0, 2))
    assert part.architecture.depth == 2
    path = "blocks/mlp/up/kernel"
    np.testing.assert_array_equal(flat(part.params)[path], flat(whole.params)[path][[0, 2]])
    with pytest.raises(WeightsError, match="layers names 3; use 0 to 2"):
        read_folder(FOLDER / "hf" / "bert", layers=(3,))


def test_another_head_begins_fresh():
    found = read_folder(FOLDER / "hf" / "bert_mlm", Head(kind="classes", classes=5))
    assert {path.split("/")[0] for path in found.fresh} == {"pooler", "classifier"}
    assert all(name.startswith("cls.predictions.") for name in found.unused) and found.unused
    net = transformer(found.architecture, found.head, weights=found.params)
    params, _ = jax.jit(net.init)(jax.random.key(0))
    np.testing.assert_array_equal(params["embeddings"]["tokens"], found.params["embeddings"]["tokens"])
    assert params["classifier"]["kernel"].shape == (24, 5) and np.any(params["classifier"]["kernel"])


LLAMA, BERT = "llama", "bert_cls"


@pytest.mark.parametrize(
    "name, changes, said",
    [
        (LLAMA, {"rope_scaling": {"rope_type": "longrope"}}, "kind 'longrope', which is not supported; there are default"),
        (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "kind 'dynamic', which is not supported"),
        (LLAMA, {"hidden_act": "xielu"}, "its activation is 'xielu'"),
        (LLAMA, {"model_type": "mamba"}, "of the type 'mamba', which is not supported; there are bert"),
        (LLAMA, {"layer_types": ["full_attention", "sliding_attention"]}, "see a window alone"),
        (LLAMA, {"num_key_value_heads": 3}, "let these divide them"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaled by the number of the block"),
        ("gpt2", {"embd_pdrop": 0.3}, "two rates"),
        (BERT, {"position_embedding_type": "relative_key"}, "its positions are relative"),
        (BERT, {"architectures": ["BertForQuestionAnswering"]}, "whose head is not supported"),
        (BERT, {"hidden_size": 25}, "expected"),
        (BERT, {"num_hidden_layers": 4}, "lacks the entries bert.encoder.layer.3"),
        (BERT, {"hidden_size": "wide"}, "another type"),
    ],
)  # fmt: skip
def test_what_is_not_supported_or_does_not_fit_is_said(name, changes, said, tmp_path):
    folder = copied(name, tmp_path)
    change_config(folder, **changes)
    with pytest.raises(WeightsError, match=said) as caught:
        read_folder(folder)
    assert str(folder) in str(caught.value) and str(caught.value).endswith(".")


def test_what_is_missing_or_damaged_is_said(tmp_path):
    folder = copied("llama_tied_bf16", tmp_path)
    index = folder / "model.safetensors.index.json"
    whole = index.read_text()
    index.write_text(whole.replace("model.norm.weight", "model.norm.other"))
    with pytest.raises(WeightsError, match=r"lacks model\.norm\.other"):
        read_folder(folder)
    index.write_text("{")
    with pytest.raises(WeightsError, match="is no JSON"):
        read_folder(folder)
    index.write_text(whole)
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(WeightsError, match="is not there"):
        read_folder(folder)
    folder = copied("bert_cls", tmp_path)
    change_weights(folder, lambda arrays: {k: a for k, a in arrays.items() if k != "classifier.bias"})
    with pytest.raises(WeightsError, match=r"lacks the entries classifier\.bias; copy"):
        read_folder(folder)
    change_weights(folder, lambda arrays: arrays | {"classifier.bias": np.full(3, np.nan, np.float32)})
    with pytest.raises(WeightsError, match=r"'classifier\.bias' has nan"):
        read_folder(folder)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_folder(tmp_path / "nowhere")


def test_a_sentence_encoder_is_known_by_its_modules(tmp_path):
    found = read_folder(FOLDER / "hf" / "bert", Head(kind="sentence"))
    write_folder(tmp_path, found.architecture, found.head, found.params)
    assert read_folder(tmp_path).head == Head(kind="sentence")
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"pooling_mode_cls_token": True}))
    with pytest.raises(WeightsError, match="pools by pooling_mode_cls_token"):
        read_folder(tmp_path)
