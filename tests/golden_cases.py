"""Reads tests/golden: what the original implementation of each method gave for stated inputs.

    for case in cases("kd"):
        case.check(ours, "out", "loss", "f64")

Arrays are as the reference has them: images NCHW, convolution weights OIHW. `nhwc` and `nchw` turn feature maps over.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "golden"
PRECISIONS = ("f64", "f32")
KINDS = {"out": "outputs", "grad": "grads", "gparam": "gparams", "buffer_after": "buffer_after"}

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One call of a reference implementation.

    Attributes:
      method, id: the case is `<id>` of the set `<method>`.
      symbol: the function or class that was run, and `source` the repository it is from.
      tags: what is special about the inputs.
      hyper: hyperparameters by the reference's names.
      inputs: float32 and integer arrays by name; lists of features are `student_0`, `student_1`, ...
      params: float32 values of learnable parameters and BatchNorm statistics before the call.
      outputs, grads, gparams, buffer_after: by precision ("f64", "f32"), then by name. Some are stored in float64 only;
        integer outputs are in both.
      finite: by precision, whether the reference's value and gradients are finite. Where not, it is no target.
      note: what else to know, "" if nothing.
    """

    method: str
    id: str
    symbol: str
    source: str
    tags: tuple[str, ...]
    hyper: dict[str, Any]
    inputs: Arrays
    params: Arrays
    outputs: dict[str, Arrays]
    grads: dict[str, Arrays]
    gparams: dict[str, Arrays]
    buffer_after: dict[str, Arrays]
    finite: dict[str, bool]
    note: str
    advice: dict[str, float | None]

    def __repr__(self):
        return f"{self.method}/{self.id}"

    def stages(self, name: str) -> list[np.ndarray]:
        """The feature list `name_0`, `name_1`, ... of the inputs, as NHWC."""
        count = sum(key.startswith(f"{name}_") for key in self.inputs)
        return [nhwc(self.inputs[f"{name}_{i}"]) for i in range(count)]

    def tolerance(self, kind: str, precision: str) -> dict[str, float]:
        """`rtol` and `atol` for values ("out", "buffer_after") or gradients ("grad", "gparam")."""
        if precision == "f64":
            return {"rtol": self.advice["f64_rtol"], "atol": self.advice.get("f64_atol", 1e-12)}
        side = "grad" if kind in ("grad", "gparam") else "out"
        # Without advice where the reference is not finite in float32: as close as it asks of the others.
        rtol = self.advice[f"f32_rtol_{side}"]
        return {"rtol": 2e-5 if rtol is None else rtol, "atol": self.advice[f"f32_atol_{side}"]}

    def check(self, actual, kind: str, name: str, precision: str) -> None:
        """Asserts that an array computed in `precision` equals the reference's float64 numbers."""
        expected = getattr(self, KINDS[kind])["f64"][name]
        actual = np.asarray(actual)
        if np.issubdtype(expected.dtype, np.floating):
            # A float64 check of float32 numbers, or the reverse, would not say what its name promises.
            assert actual.dtype == {"f64": np.float64, "f32": np.float32}[precision], f"{name} is {actual.dtype}"
        assert actual.shape == expected.shape, f"{self}: {name} is {actual.shape}, the reference {expected.shape}"
        np.testing.assert_allclose(
            actual, expected, err_msg=f"{self} {kind} {name} {precision}", **self.tolerance(kind, precision)
        )


def cases(method: str, *, symbol: str | None = None, tag: str | None = None) -> list[Case]:
    """The cases of one set, or those of them whose `symbol` or a tag is as given. Never empty."""
    found = [
        case
        for case in _read(method)
        if (symbol is None or case.symbol == symbol) and (tag is None or tag in case.tags)
    ]
    if not found:
        raise LookupError(f"no case in {method} with symbol={symbol}, tag={tag}")
    return found


def notes(method: str) -> list[str]:
    """Quirks of the reference that its numbers carry."""
    return _manifest()[method]["notes"]


def nhwc(array):
    """`[B, K, H, W]` to `[B, H, W, K]`; other ranks unchanged."""
    return np.transpose(array, (0, 2, 3, 1)) if np.ndim(array) == 4 else array


def nchw(array):
    """`[B, H, W, K]` to `[B, K, H, W]`; other ranks unchanged."""
    return np.transpose(array, (0, 3, 1, 2)) if np.ndim(array) == 4 else array


@functools.cache
def _manifest() -> dict:
    read = lambda name: json.loads((FOLDER / name).read_text())["methods"]
    return (
        read("manifest.json")
        | read("manifest_detectors.json")
        | read("manifest_text.json")
        | read("manifest_language.json")
    )


@functools.cache
def _read(method: str) -> list[Case]:
    entry = _manifest()[method]
    with np.load(FOLDER / entry["file"]) as stored:
        arrays = {key: stored[key] for key in stored.files}
    for array in arrays.values():
        array.setflags(write=False)  # shared by all tests of a run
    return [_case(method, name, facts, arrays) for name, facts in entry["cases"].items()]


def _case(method: str, name: str, facts: dict, arrays: Arrays) -> Case:
    plain: dict[str, Arrays] = {"in": {}, "param": {}}
    finite = facts.get("finite", {"main": True, "f32": True})  # evaluations have no such entry
    precise: dict[str, dict[str, Arrays]] = {kind: {p: {} for p in PRECISIONS} for kind in KINDS}
    for key in facts["arrays"]:
        kind, _, label = key.partition("/")
        array = arrays[f"{name}/{key}"]
        stem, _, suffix = label.rpartition(".")
        if kind in plain:
            plain[kind][label] = array
        elif suffix in PRECISIONS:
            precise[kind][suffix][stem] = array
        else:
            for precision in PRECISIONS:
                precise[kind][precision][label] = array
    return Case(
        method=method,
        id=name,
        symbol=facts.get("symbol", ""),
        source=facts.get("source", ""),
        tags=tuple(facts.get("tags", ())),
        hyper=facts.get("hyper", {}),
        inputs=plain["in"],
        params=plain["param"],
        **{KINDS[kind]: values for kind, values in precise.items()},
        finite={"f64": finite["main"], "f32": finite["f32"]},
        note=facts.get("note", ""),
        advice=facts["tol_advice"],
    )
