"""Folders of Hugging Face, in and out: `config.json` and `model.safetensors`, also in pieces. Nothing in them is executed."""

import dataclasses
import functools
import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from flax import nnx

from kdjax.models.transformers.architecture import Architecture, Head
from kdjax.models.transformers.configurations import architecture_of, config_of, head_of
from kdjax.models.transformers.keys import IGNORED, keys, laid_out, renamed, taken
from kdjax.models.transformers.transformer import Transformer
from kdjax.models.weights.beginning import flat
from kdjax.models.weights.files import SAFETENSORS, WeightsError, read_weights

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """What a folder holds.

    Attributes:
      architecture, head: of the network.
      params: nested dicts of float32 arrays, as `Transformer` names them, without those of `fresh`.
      unused: names of entries that say nothing of this network.
      fresh: paths of parameters of a head that the folder does not have; they are to be drawn.
      class_names: of its classes, as far as it says them.
    """

    architecture: Architecture
    head: Head
    params: dict[str, Any]
    unused: tuple[str, ...]
    fresh: tuple[str, ...]
    class_names: tuple[str, ...] = ()


def read_folder(folder: str | Path, head: Head | None = None, *, layers: Sequence[int] = ()) -> Pretrained:
    """The network of a folder.

    Args:
      folder: with `config.json`, and `model.safetensors` or its pieces and their index.
      head: the head that is wanted; if not given, the one it has: a sentence encoder's where `modules.json` says that tokens are
        averaged. Of another one than it has, what is missing is `fresh`.
      layers: numbers of the blocks to take, in order, for a shallower network that begins with some of a deeper one's; all if not
        given.

    Raises:
      WeightsError: something is missing, damaged, of another shape, or of a network that is not supported; the sentence names
        the file and the entries.
    """
    folder = Path(folder)
    config = _json(folder / CONFIG)
    try:
        architecture = architecture_of(config)
        own = head_of(config, sentence=_averages(folder))
    except ValueError as error:
        raise WeightsError(f"{folder / CONFIG} is not read: {str(error).rstrip('.')}.") from error
    wanted = head or own
    shapes = parameter_shapes(architecture, wanted)
    entries = keys(architecture, wanted, shapes)
    found = _entries(folder)
    names = renamed(found, {entry.name for entry in entries})
    arrays = {ours: found[theirs] for ours, theirs in names.items()}
    missing = {entry.name: entry for entry in entries if entry.name not in arrays}
    lost = [name for name, entry in missing.items() if not entry.of_head or wanted == own]
    if lost:
        more = f", and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise WeightsError(f"{folder} lacks the entries {', '.join(lost[:3])}{more}; copy all of its files.")
    try:
        params = taken(entries, shapes, arrays)
    except ValueError as error:
        raise WeightsError(f"{folder} is not read: {str(error).rstrip('.')}.") from error
    fresh = tuple(sorted({"/".join(entry.path) for entry in missing.values()}))
    used = {entry.name for entry in entries}
    copies = {"lm_head.weight"} if architecture.tied else set()
    unused = tuple(theirs for ours, theirs in names.items() if ours not in used | copies and not IGNORED.search(theirs))
    if layers:
        architecture, params = _chosen(folder, architecture, params, tuple(layers))
    named = config.get("id2label") or {}
    known = tuple(str(named[key]) for key in sorted(named, key=int)) if own.kind == "classes" else ()
    return Pretrained(architecture, wanted, nested(params), unused, fresh, known)


def write_folder(
    folder: str | Path, architecture: Architecture, head: Head, params: Mapping[str, Any], *,
    class_names: Sequence[str] = (), tokenizer: str | Path | None = None, settings: Mapping[str, Any] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Writes a network as transformers reads it.

    Args:
      folder: made if it is not there; files of the same names are overwritten.
      architecture, head, params: of the network, as `Pretrained` has them.
      class_names: one a class, for `id2label`.
      tokenizer: a folder, or a tokenizer.json, whose tokenizer is copied beside.
      settings: what `config.json` says besides, such as the number of the token that ends a text.

    Raises:
      ValueError: files of this family do not have such a switch.
    """
    folder = Path(folder)
    config = config_of(architecture, head, class_names) | dict(settings)
    arrays = laid_out(keys(architecture, head, parameter_shapes(architecture, head)), flat(dict(params)))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_safetensors(folder / WEIGHTS, arrays)
    if head.kind == "sentence":
        _write_sentence(folder, architecture)
    if tokenizer is not None:
        source = Path(tokenizer)
        for name in TOKENIZER if source.is_dir() else [source.name]:
            file = (source if source.is_dir() else source.parent) / name
            if file.exists() and file.resolve() != (folder / name).resolve():
                shutil.copyfile(file, folder / name)


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name as safetensors."""
    kinds = {np.dtype(kind): name for name, kind in SAFETENSORS.items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    laid = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    for name, array in laid.items():
        place = {"dtype": kinds[array.dtype], "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        header[name], end = place, end + array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in laid.values():
            file.write(array.tobytes())


@functools.lru_cache(maxsize=32)
def parameter_shapes(architecture: Architecture, head: Head) -> dict[str, Any]:
    """Shapes of a network's parameters by path."""
    module = nnx.eval_shape(lambda: Transformer(architecture, head, rngs=nnx.Rngs(0)))
    state = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {"/".join(map(str, path)): variable.get_value() for path, variable in state}


def nested(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by path as nested dicts."""
    tree: dict[str, Any] = {}
    for path, value in params.items():
        *owners, leaf = path.split("/")
        node = tree
        for name in owners:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


def _chosen(folder: Path, a: Architecture, params: dict[str, Any], layers: tuple[int, ...]):
    wrong = [layer for layer in layers if not 0 <= layer < a.depth]
    if wrong:
        raise WeightsError(f"{folder} has {a.depth} blocks, and layers names {wrong[0]}; use 0 to {a.depth - 1}.")
    pick = lambda path, x: x[np.array(layers)] if path.startswith("blocks/") else x
    return dataclasses.replace(a, depth=len(layers)), {path: pick(path, x) for path, x in params.items()}


def _entries(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of `model.safetensors`, or of all pieces that its index names."""
    if not (folder / INDEX).exists() or (folder / WEIGHTS).exists():
        if not (folder / WEIGHTS).exists() and any(folder.glob("pytorch_model*.bin")):
            raise WeightsError(
                f"{folder} has weights of PyTorch alone; save them with save_pretrained, which writes {WEIGHTS}."
            )
        return read_weights(folder / WEIGHTS)
    places = _json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) and Path(p).name == p for p in places.values()):
        raise WeightsError(f"{folder / INDEX} has no weight_map of names to files beside it; copy it anew.")
    pieces = {file: read_weights(folder / file) for file in sorted(set(places.values()))}
    lost = [name for name, file in places.items() if name not in pieces[file]]
    if lost:
        raise WeightsError(f"{folder / places[lost[0]]} lacks {lost[0]}, which {INDEX} says it has; copy it anew.")
    return {name: array for piece in pieces.values() for name, array in piece.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror or error}); give a folder with {CONFIG} and {WEIGHTS}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is no JSON; copy it anew.") from error
    if not isinstance(read, dict):
        raise WeightsError(f"{path} holds no settings by name; copy it anew.")
    return read


def _averages(folder: Path) -> bool:
    """Whether a folder is a sentence encoder's that averages its tokens.

    Raises:
      ValueError: it pools them otherwise.
    """
    if not (folder / "modules.json").exists():
        return False
    pooling = folder / "1_Pooling" / CONFIG
    modes = {
        key: on for key, on in (_json(pooling) if pooling.exists() else {}).items() if key.startswith("pooling_mode_")
    }
    other = [key for key, on in modes.items() if on and key != "pooling_mode_mean_tokens"]
    if other:
        raise ValueError(f"{pooling} pools by {other[0]}, and only the mean of tokens is supported")
    return True


def _write_sentence(folder: Path, a: Architecture) -> None:
    """The files by which sentence-transformers knows that tokens are averaged and brought to length 1."""
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for i, (path, kind) in enumerate(kinds)]  # fmt: skip
    pooling = {"word_embedding_dimension": a.width, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
               "pooling_mode_max_tokens": False}  # fmt: skip
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    (folder / "1_Pooling" / CONFIG).write_text(json.dumps(pooling, indent=2) + "\n", encoding="utf-8")
