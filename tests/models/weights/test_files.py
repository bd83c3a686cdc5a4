"""Files of weights: what is in them comes out, and nothing else happens, whatever they say."""

import io
import json
import pathlib
import pickle
import struct
import zipfile

import flax.serialization
import ml_dtypes
import numpy as np
import pytest

from kdjax.models.weights.files import WeightsError, read_weights
from kdjax.models.weights.wrapping import unwrapped

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
BASE = np.arange(24, dtype=np.float32)
# What PyTorch 2.13 was given to save in torch_zip.pth and torch_legacy.pth.
SAVED = {
    "plain": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
    "transposed": BASE.reshape(4, 6).T,
    "part": BASE[5:9],
    "double": np.array([1 / 3, -2.0]),
    "half": np.array([0.5, 1.5], np.float16),
    "bfloat16": np.array([1.0, -3.0, 0.15625], ml_dtypes.bfloat16),
    "counter": np.array(7),
    "flags": np.array([True, False]),
    "nothing": np.zeros((0, 3), np.float32),
    "parameter": np.full((2, 2), 2.5, np.float32),
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


def safetensors(entries, *, header=None, cut=0, more=b""):
    """The bytes of such a file; `header` changes its description."""
    codes = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype(np.int64): "I64"}
    described, numbers = {"__metadata__": {"format": "pt"}}, b""
    for name, value in entries.items():
        span = [len(numbers), len(numbers) + value.nbytes]
        described[name] = {"dtype": codes[value.dtype], "shape": list(value.shape), "data_offsets": span}
        numbers += value.tobytes()
    text = json.dumps(described if header is None else header(described)).encode()
    return struct.pack("<Q", len(text)) + text + numbers[: len(numbers) - cut] + more


ENTRIES = {"a": SAVED["plain"], "b": SAVED["bfloat16"], "c": SAVED["counter"], "none": np.zeros((0, 3), np.float32)}


@pytest.mark.parametrize("file", ["torch_zip.pth", "torch_legacy.pth"])
def test_what_pytorch_saved(file):
    found = read_weights(GOLDEN / file)
    assert {name: found[name] for name in ("epoch", "lr", "best", "shape", "names")} == {
        "epoch": 3, "lr": 0.1, "best": None, "shape": (2, 3), "names": ["a", "b"]
    }  # fmt: skip
    same(unwrapped(found), SAVED)


def test_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(ENTRIES))
    same(read_weights(path), ENTRIES)
    library = pytest.importorskip("safetensors.numpy")
    path.write_bytes(library.save({"x": SAVED["plain"], "y": SAVED["half"]}))
    same(read_weights(path), {"x": SAVED["plain"], "y": SAVED["half"]})


def test_msgpack_of_flax_and_folders_of_orbax(tmp_path):
    tree = {"params": {"dense": {"kernel": SAVED["plain"], "bias": SAVED["bfloat16"]}}, "state": {}}
    (tmp_path / "x.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    found = read_weights(tmp_path / "x.msgpack")
    same(found["params"]["dense"], tree["params"]["dense"])
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", {"params": tree["params"]})
    same(read_weights(tmp_path / "orbax")["params"]["dense"], tree["params"]["dense"])


class Asks:
    """Pickles as a call of `print`, which must not be made."""

    def __reduce__(self):
        return print, ("executed",)


def archive(path, pickled, **numbers):
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("x/data.pkl", pickled)
        for name, value in numbers.items():
            written.writestr(f"x/data/{name}", value)
    return path


def test_nothing_is_executed_and_what_is_asked_for_is_named(tmp_path, capsys):
    path = archive(tmp_path / "x.pth", pickle.dumps({"model": Asks()}, protocol=2))
    with pytest.raises(WeightsError, match=r"holds a __builtin__.print, and only tensors are read.*state_dict\(\)"):
        read_weights(path)
    raw = (GOLDEN / "torch_legacy.pth").read_bytes()
    path.write_bytes(raw.replace(b"ccollections\nOrderedDict\n", b"cos\nsystem\n"))
    with pytest.raises(WeightsError, match=r"holds a os.system"):
        read_weights(path)
    for protocol in range(6):  # every form in which a name may be asked for
        (tmp_path / "y.pth").write_bytes(pickle.dumps(Asks(), protocol=protocol))
        with pytest.raises(WeightsError):
            read_weights(tmp_path / "y.pth")
    assert "executed" not in capsys.readouterr().out


def claimed(file, old, new):
    """A saved file with a string of its pickle exchanged."""
    raw = (GOLDEN / file).read_bytes()
    assert raw.count(old) >= 1
    return raw.replace(old, new)


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("x.safetensors", b"", "cut short"),
        ("x.safetensors", b"\xff" * 40, "cut short"),
        ("x.safetensors", safetensors(ENTRIES, cut=5), "not as large as it says"),
        ("x.safetensors", safetensors(ENTRIES, more=b"1234"), "leave something out"),
        ("x.safetensors", safetensors(ENTRIES, header=lambda h: [h]), "header is damaged"),
        ("x.safetensors", safetensors(ENTRIES, header=lambda h: h | {"a": 3}), "description of its entry 'a'"),
        ("x.safetensors", safetensors(ENTRIES, header=lambda h: h | {"d": h["a"]}), "one over the other"),
        (
            "x.safetensors",
            safetensors(ENTRIES, header=lambda h: h | {"a": h["a"] | {"shape": [2**40, 2**40]}}),
            "not as large as it says",
        ),
        ("x.pth", b"", "is empty"),
        ("x.pth", b"PK\x03\x04 and so on", "damaged archive"),
        ("x.pth", b"not a pickle at all", "no file of torch.save"),
        ("x.pth", (GOLDEN / "torch_legacy.pth").read_bytes()[:-9], "cut short"),
        ("x.pth", (GOLDEN / "torch_legacy.pth").read_bytes()[:60], "cut short"),
        ("x.msgpack", b"\xc1", "no msgpack"),
        ("x.h5", b"", "ends in none of"),
    ],
    ids=range(15),
)
def test_damaged_and_false_files_are_refused_in_a_sentence(tmp_path, name, raw, said):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(WeightsError, match=said) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_what_is_claimed_is_compared_with_what_is_there(tmp_path):
    """A tensor of a billion numbers of which there are none, in each of the places that can say so."""
    huge = pickle.dumps(10**9, protocol=2)[2:-1]
    six = b"K\x06"  # the six numbers of "plain"
    for file in ("torch_zip.pth", "torch_legacy.pth"):
        raw = (GOLDEN / file).read_bytes()
        if file == "torch_zip.pth":
            with zipfile.ZipFile(io.BytesIO(raw)) as read:
                entries = {name: read.read(name) for name in read.namelist()}
            main = next(name for name in entries if name.endswith("data.pkl"))
            assert six in entries[main]
            entries[main] = entries[main].replace(six, huge, 1)
            with zipfile.ZipFile(tmp_path / "x.pth", "w") as written:
                for name, value in entries.items():
                    written.writestr(name, value)
        else:
            (tmp_path / "x.pth").write_bytes(raw.replace(six, huge, 1))
        with pytest.raises(WeightsError, match=r"missing, or not as many|not as many as it says|cut short"):
            read_weights(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("x/data.pkl", b"\0" * 10**6)
    with pytest.raises(WeightsError, match="compressed"):
        read_weights(tmp_path / "x.pth")


def test_what_is_not_there_and_what_is_no_state_dict(tmp_path):
    with pytest.raises(WeightsError, match="is not there"):
        read_weights(tmp_path / "x.pth")
    path = archive(tmp_path / "x.pth", pickle.dumps([1, 2], protocol=2))
    with pytest.raises(WeightsError, match="holds a list"):
        read_weights(path)
    with pytest.raises(WeightsError, match="no folder of orbax"):
        read_weights(tmp_path)
