"""Files of weights: safetensors, PyTorch's `.pth`, Flax' msgpack, and folders of orbax.

Nothing in a file is executed, what it claims is compared with what is there before memory is taken for it, and what is wrong is
said in one sentence.
"""

import io
import json
import math
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kdjax.models.weights.pickled import Claim, Refused, unpickle

SAFETENSORS = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64,
    "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
SUFFIXES = (".safetensors", ".msgpack", ".pth", ".pt", ".bin", ".ckpt", ".tar")
HEADER = 100 * 2**20  # bytes of a safetensors' header, at most
LEGACY = (0x1950A86A20F9469CFC6C, 1001)  # what PyTorch's files before 1.6 begin with


class WeightsError(ValueError):
    """What is wrong with a file of weights, and the mend, in one sentence."""


def read_weights(path: str | Path) -> dict[str, Any]:
    """What a file of weights holds: arrays by name, or nested dicts of them.

    Args:
      path: `.safetensors`; `.pth`, `.pt`, `.bin`, `.ckpt` or `.tar`, as `torch.save` writes; `.msgpack` of Flax; or a folder of
        orbax.

    Returns:
      Arrays of the types that they are stored as, bfloat16 included; a PyTorch checkpoint's other entries beside them.

    Raises:
      WeightsError: there is none, it is damaged, or it holds something else than numbers.
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"{path} is not there; give a file of weights.")
    readers: dict[str, Callable[[Path], Any]] = {".safetensors": read_safetensors, ".msgpack": read_msgpack}
    if not path.is_dir() and path.suffix not in SUFFIXES:
        raise WeightsError(
            f"{path} ends in none of {', '.join(SUFFIXES)} and is no folder; rename it after what it is."
        )
    reader = read_orbax if path.is_dir() else readers.get(path.suffix, read_torch)
    try:
        found = reader(path)
    except Refused as error:
        raise WeightsError(f"{path} cannot be read: {error}.") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror or error}); mend that, and try again.") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds a {type(found).__name__} instead of weights by name; save a state dict.")
    return found


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """A header of JSON, then the numbers one after the other, all in little-endian order, with nothing between or behind them."""
    with path.open("rb") as file:
        size = path.stat().st_size
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else HEADER + 1
        if length > min(size - 8, HEADER):
            raise Refused("it is cut short, or no safetensors")
        try:
            header = json.loads(file.read(length).decode())
        except (ValueError, RecursionError) as error:
            raise Refused("its header is damaged") from error
        numbers = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size > 8 + length else b""
    if not isinstance(header, dict):
        raise Refused("its header is damaged")
    found, spans = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, first, last = _described(name, entry)
        if math.prod(shape) * dtype.itemsize != last - first or last > size - 8 - length:
            raise Refused(f"its entry {name[:100]!r} is not as large as it says")
        spans.append((first, last))
        flat = (
            np.frombuffer(numbers, dtype, math.prod(shape), 8 + length + first) if last > first else np.zeros(0, dtype)
        )
        found[name] = flat.reshape(shape)
    ends = [0, *(last for _, last in sorted(spans))]
    if [first for first, _ in sorted(spans)] != ends[:-1] or ends[-1] != size - 8 - length:
        raise Refused("its entries lie one over the other, or leave something out")
    return found


def _described(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    try:
        dtype, shape, (first, last) = SAFETENSORS[entry["dtype"]], entry["shape"], entry["data_offsets"]
        sound = all(type(size) is int and 0 <= size < 2**48 for size in (*shape, first, last)) and first <= last
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound or len(shape) > 32:
        raise Refused(f"the description of its entry {name[:100]!r} is damaged")
    return np.dtype(dtype), tuple(shape), first, last


def read_torch(path: Path) -> Any:
    """A zip archive, as `torch.save` has written since 1.6, or the older form: pickles, and the numbers behind them."""
    if path.stat().st_size == 0:
        raise Refused("it is empty")
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return _zipped(file, path.stat().st_size)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _legacy(mapped)


def _zipped(file: Any, size: int) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
                raise Refused("it is a compressed archive, which torch.save does not write")
            if sum(info.file_size for info in entries.values()) > size:
                raise Refused("its entries are larger than itself")
            main = next((name for name in entries if name.rpartition("/")[2] == "data.pkl"), None)
            if main is None:
                raise Refused(
                    "it has no data.pkl; a program for TorchScript or an archive of something else is not read"
                )
            folder = main.removesuffix("data.pkl")
            if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder").strip() != b"little":
                raise Refused("its numbers are big-endian; save it anew on another machine")
            kept: dict[str, np.ndarray] = {}

            def storage(claim: Claim) -> np.ndarray:
                if claim.key not in kept:
                    entry = entries.get(f"{folder}data/{claim.key}")
                    if entry is None or entry.file_size != claim.count * claim.dtype.itemsize:
                        raise Refused(f"its numbers {claim.key[:40]!r} are missing, or not as many as it says")
                    kept[claim.key] = np.frombuffer(archive.read(entry), np.uint8)
                if kept[claim.key].nbytes != claim.count * claim.dtype.itemsize:
                    raise Refused(f"its numbers {claim.key[:40]!r} are not as many as it says")
                return kept[claim.key].view(claim.dtype)

            return unpickle(io.BytesIO(archive.read(main)), storage)
    except (zipfile.BadZipFile, struct.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise Refused(
            f"it is a damaged archive ({str(error).splitlines()[0][:80] if str(error) else 'cut short'})"
        ) from error


def _legacy(mapped: mmap.mmap) -> Any:
    """The pickle is run twice, for its numbers come behind it: once to learn what these are, and with them."""
    claims: dict[str, Claim] = {}

    def note(claim: Claim) -> np.ndarray:
        if claims.setdefault(claim.key, claim) != claim:
            raise Refused(f"its numbers {claim.key[:40]!r} are of two kinds")
        return np.broadcast_to(np.zeros((), claim.dtype), claim.count)

    def nothing(claim: Claim) -> np.ndarray:
        raise Refused("it is no file of torch.save")

    try:
        begins = tuple(unpickle(mapped, nothing) for _ in LEGACY)
    except Refused as error:
        raise Refused("it is cut short, or no file of torch.save") from error
    if begins != LEGACY:
        raise Refused("it is no file of torch.save")
    system = unpickle(mapped, nothing)
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise Refused("its numbers are big-endian; save it anew on another machine")
    start = mapped.tell()
    unpickle(mapped, note)
    keys, found = unpickle(mapped, nothing), {}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(claims):
        raise Refused("its list of numbers is damaged")
    for key in keys:
        claim, count = claims[key], mapped.read(8)
        if len(count) < 8 or struct.unpack("<q", count)[0] != claim.count:
            raise Refused(f"its numbers {key[:40]!r} are not as many as it says, or cut short")
        if claim.count * claim.dtype.itemsize > mapped.size() - mapped.tell():
            raise Refused("it is cut short")
        found[key] = np.frombuffer(mapped.read(claim.count * claim.dtype.itemsize), claim.dtype)
    mapped.seek(start)
    return unpickle(mapped, lambda claim: found[claim.key])


def read_msgpack(path: Path) -> Any:
    """Nested dicts, as `flax.serialization.to_bytes` writes them."""
    from flax.serialization import msgpack_restore

    try:
        return msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack, NumPy and Flax raise many kinds for a damaged file
        raise Refused(f"it is damaged, or no msgpack of Flax ({type(error).__name__})") from error


def read_orbax(path: Path) -> Any:
    """Nested dicts, as orbax' `StandardCheckpointer` writes them; Flax' `TrainState` among them is a dict too."""
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise Refused("a folder is read by orbax, which is not installed; run pip install 'kdjax[train]'") from error
    import jax

    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return jax.tree.map(np.asarray, checkpointer.restore(path.absolute()))
    except Exception as error:  # orbax and tensorstore raise many kinds
        raise Refused(f"it is damaged, or no folder of orbax ({type(error).__name__})") from error
