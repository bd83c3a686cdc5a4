"""What `torch.save` pickles, read without executing anything.

A pickle is a program for a small stack machine, which may call any function of any module. This is that machine with a list of
what may be called, none of which is PyTorch's or Python's own: an entry of the list is a few lines here that make a dict or a
NumPy array. Everything else is refused by name. What a pickle claims is compared with what is there before memory is taken.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8,
    "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
LARGEST = 2**40  # numbers of a storage, or of an axis
PLAIN = (
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
)  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}


class Refused(ValueError):
    """A pickle that asks for something else than tensors, or that does not hold what it claims; a sentence without its file."""


class Global(NamedTuple):
    """A name of a module that a pickle asks for; nothing is imported."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"[:100]


class Claim(NamedTuple):
    """Numbers that a pickle says are elsewhere in its file: their name there, type and count."""

    key: str
    dtype: np.dtype
    count: int


_MARK = object()


def unpickle(file: BinaryIO, storage: Callable[[Claim], np.ndarray]) -> Any:
    """Dicts, lists, tuples, strings, numbers and arrays that a pickle describes; the file stands behind it afterwards.

    Args:
      file: whose `read(n)` takes no more memory than is left to be read, such as `io.BytesIO` and `mmap`.
      storage: the numbers, `[count]`, of a claim.

    Raises:
      Refused: it asks for something else, or is damaged.
    """
    machine = _Machine(storage)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.run(opcode.name, argument)
    except Refused:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError, AttributeError) as error:
        raise Refused("its pickle is damaged or cut short") from error
    raise Refused("its pickle is cut short")


class _Machine:
    def __init__(self, storage: Callable[[Claim], np.ndarray]):
        self.storage = storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """One instruction."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case _ if name in PLAIN:
                stack.append(CONSTANTS.get(name, argument))
            case _ if name in EMPTY:
                stack.append(EMPTY[name]())
            case "MARK":
                stack.append(_MARK)
            case "TUPLE" | "LIST":
                stack.append((tuple if name == "TUPLE" else list)(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                taken = [stack.pop() for _ in range(count)]
                stack.append(tuple(reversed(taken)))
            case "DICT":
                stack.append(_pairs(self._marked()))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _of(stack[-1], dict).update(_pairs([key, value]))
            case "SETITEMS":
                items = self._marked()
                _of(stack[-1], dict).update(_pairs(items))
            case "APPEND":
                value = stack.pop()
                _of(stack[-1], list).append(value)
            case "APPENDS" | "ADDITEMS":
                items = self._marked()
                _of(stack[-1], list).extend(items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[int(argument)])
            case "POP":
                stack.pop()
            case "GLOBAL":
                module, _, name = argument.partition(" ")
                stack.append(_allowed(Global(module, name)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_allowed(Global(_of(module, str), _of(name, str))))
            case "BINPERSID":
                stack.append(self.storage(_claim(stack.pop())))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(_of(function, Global), _of(arguments, tuple)))
            case "BUILD":  # of an ordered dict, what PyTorch notes beside its entries
                stack.pop()
                _of(stack[-1], dict)
            case _:
                raise Refused(f"its pickle has the instruction {name}, which no tensors need")

    def _marked(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        taken: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            taken.append(value)
        return taken[::-1]


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (kind is tuple and isinstance(value, Global)):
        raise Refused("its pickle is damaged (an instruction finds something else than it works on)")
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    for key in items[::2]:  # a deep tuple's hash would overflow
        _of(key, str | int)
    return dict(zip(items[::2], items[1::2], strict=True))


FUNCTIONS = {
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter", "torch.Size", "torch.device",
}  # fmt: skip


def _allowed(what: Global) -> Global:
    if str(what) in FUNCTIONS or (what.module in ("torch", "torch.cuda") and what.name in DTYPES):
        return what
    raise Refused(
        f"it holds a {what}, and only tensors are read, for a pickle may run anything; where it was written, save the state "
        "dict alone: torch.save(model.state_dict(), FILE)"
    )


def _call(function: Global, arguments: tuple[Any, ...]) -> Any:
    match str(function), arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (pairs,):
            return _pairs([part for key, value in pairs for part in (key, value)])
        case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor", (storage, offset, shape, strides, *_):
            return _tensor(storage, offset, shape, strides)
        case "torch._utils._rebuild_parameter", (tensor, *_):
            return _of(tensor, np.ndarray)
        case "torch.Size", (sizes,):
            return tuple(sizes)
        case "torch.device", _:
            return None
    raise Refused(f"its pickle calls {function} as no tensors need")


def _claim(described: Any) -> Claim:
    """What the name of a storage says: `("storage", type, key, device, count)`, and None for old files' views."""
    kind, dtype, key, _, count, *views = _of(described, tuple)
    if kind != "storage" or any(view is not None for view in views):
        raise Refused("its pickle names numbers in a way that is not known here; save it anew with a newer PyTorch")
    if not isinstance(key, str) or not _is_size(count):
        raise Refused("its pickle is damaged (a storage without a name or size)")
    return Claim(key, np.dtype(DTYPES[_of(dtype, Global).name]), count)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """A view of a storage; never more numbers than that has."""
    flat = _of(storage, np.ndarray)
    sizes = (offset, *_of(shape, tuple), *_of(strides, tuple))
    if flat.ndim != 1 or len(shape) != len(strides) or len(shape) > 32 or not all(_is_size(size) for size in sizes):
        raise Refused("its pickle is damaged (a tensor without a shape)")
    count, last = 1, offset
    for size, stride in zip(shape, strides, strict=True):
        count, last = count * size, last + max(size - 1, 0) * stride
    if count > flat.size or (count and last >= flat.size):
        raise Refused("its pickle is damaged (a tensor is larger than its numbers)")
    if not count:
        return np.zeros(shape, flat.dtype)
    steps = tuple(stride * flat.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
