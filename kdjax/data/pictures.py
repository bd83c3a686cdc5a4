"""One picture read right: a file of any format and mode as uint8 `[H, W, C]`, or what is wrong with it in a word or two."""

import contextlib
import dataclasses
import errno
import io
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.crops import Crop, crop_draws

# What is read, by Pillow's names (of several pictures in a file the first); what it also knows, such as documents, is no image
# here. JPEG has MPO in it, which telephones write.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# EXIF: how a picture lies in its file, and Pillow's name for what puts it upright.
_ORIENTATION = 0x0112
_UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
            7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF: bits of a pixel; 0 where 0 is white
_GREY16 = ("I;16", "I;16B", "I;16L", "I;16N")
AT_ONCE = 2**22  # bytes of a file up to which it is read whole
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}  # what the last bytes of a whole file have


class Unreadable(Exception):
    """A picture that cannot be read; the message is what is wrong, as the end of a sentence that begins with its name."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How pictures become arrays.

    Attributes:
      size: pixels a side of the square that is cropped; 0 for pictures as they are.
      channels: 3 (RGB) or 1 (grey, ITU-R 601 luma).
      crop: which part of a picture the square shows.
      background: 0 to 255, what shows through where a picture is transparent.
      skip_unreadable: leave out what cannot be read, and say how many, instead of refusing the whole set.
    """

    size: int = 0
    channels: int = 3
    crop: Crop = Crop()
    background: int = 255
    skip_unreadable: bool = False

    def decode(self, file: str | bytes, draws: np.ndarray | None = None) -> np.ndarray:
        """A picture as uint8 `[H, W, C]`.

        For a training crop, large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where the crop still has all its pixels.
        For evaluation they are not: its pixels are those that everybody's are.

        Args:
          file: path of the file, or its content.
          draws: of a training crop, see `kdjax.data.crops.crop_draws`; None for that of evaluation.

        Raises:
          Unreadable: what is wrong with it.
        """
        with _explained(file), _open(file) as image:
            if image.format not in ("JPEG", "MPO"):  # of others, the note how they lie may come after the pixels
                image.load()
            turn = _orientation(image)
            width, height = image.size if turn < 5 else image.size[::-1]
            box = self.crop.box(width, height, self.size, draws) if self.size else None
            if box is not None and draws is not None:
                _reduce(image, min(box[2] - box[0], box[3] - box[1]) / self.size)
            image.load()
            image = _plain(image, self.channels, self.background)
            image = _turned(image, turn)
            if box is not None:
                x, y = image.width / width, image.height / height
                box = (box[0] * x, box[1] * y, min(box[2] * x, image.width), min(box[3] * y, image.height))
                image = image.resize((self.size, self.size), _filter(self.crop.interpolation), box=box)
            array = np.asarray(image)
            return array[..., None] if self.channels == 1 else array

    def facts(self) -> dict[str, Any]:
        """What the pixels of evaluation depend on, JSON-like."""
        return {"size": self.size, "channels": self.channels, "background": self.background, "share": self.crop.share,
                "interpolation": self.crop.interpolation}  # fmt: skip


class Fitted(NamedTuple):
    """A picture on a canvas, at its left and top; the rest is black.

    Attributes:
      pixels: `[H, W, channels]` uint8.
      size: (height, width) of the picture on it.
      scale: (of width, of height), by how much it was enlarged.
      whole: (height, width) before.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    scale: tuple[float, float]
    whole: tuple[int, int]


def fitted(file: str | bytes, canvas: tuple[int, int], channels: int, *, stretch: bool = False) -> Fitted:
    """A picture, upright, as large as fits on a canvas (height, width) without changing its shape, or stretched to it; of 1 or
    3 channels.

    Raises:
      Unreadable: what is wrong with it.
    """
    from PIL import Image

    with _explained(file), _open(file) as image:
        image.load()
        turn = _orientation(image)
        whole = _turned(_plain(image, channels, 255), turn)
        scale = min(canvas[0] / whole.height, canvas[1] / whole.width)
        kept = (max(1, int(side * scale + 0.5)) for side in whole.size)
        width, height = canvas[::-1] if stretch else kept
        shown = whole.resize((width, height), Image.Resampling.BILINEAR)
        paper = Image.new(shown.mode, canvas[::-1])
        paper.paste(shown)
        array = np.asarray(paper)
        pixels = array[..., None] if channels == 1 else array
        scale = width / whole.width, height / whole.height
        return Fitted(pixels, (height, width), scale, (whole.height, whole.width))


def draws_of(view: tuple[int, int] | None, index: int) -> np.ndarray | None:
    """The chances of an example in a view `(data seed, pass)`, or None where none is asked for."""
    return None if view is None else crop_draws(*view, index)


def picture_size(file: str | bytes) -> tuple[int, int]:
    """`(height, width)` of a picture, upright, by its header. Where the end of the file is missing it is read whole.

    Raises:
      Unreadable: what is wrong with it.
    """
    with _explained(file), _open(file) as image:
        if image.format == "AVIF" or (image.format == "PNG" and _noted(file)):  # how it lies is known behind the pixels
            image.load()
        turn, size = _orientation(image), image.size
        ending = _ENDS.get(image.format)
        if ending is not None and ending not in _tail(file):
            image.load()
    return size[::-1] if turn < 5 else size


@contextlib.contextmanager
def _open(file: str | bytes):
    from PIL import Image

    with _stream(file) as stream, Image.open(stream, formats=FORMATS) as image:
        if image.format == "PNG" and "transparency" in image.info and image.tile:
            _scale_transparency(image)
        yield image


def _scale_transparency(image) -> None:
    """The transparent colour of a PNG as its pixels are: Pillow gives pixels of 2 and 4 bits as 8, and the colour as it is."""
    raw, colour = image.tile[0][3], image.info["transparency"]
    if raw == "RGB;16B":
        raise Unreadable("has a transparent colour of 16 bits; save it with an alpha channel, or with 8 bits")
    if isinstance(colour, int):
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}.get(raw, 1)


def _stream(file: str | bytes) -> io.BufferedIOBase:
    """What Pillow reads from; it asks for a header in dozens of small pieces, so that a file of usual size is read at once."""
    if isinstance(file, bytes):
        return io.BytesIO(file)
    if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would be waited at for ever
        raise Unreadable("is no file")
    stream = _Bounded(io.FileIO(file))
    if os.fstat(stream.fileno()).st_size > AT_ONCE:
        return stream
    with stream:
        return io.BytesIO(stream.read())


class _Bounded(io.BufferedReader):
    """A file of which no more is asked than there is: a damaged length would make room for gigabytes."""

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@contextlib.contextmanager
def _explained(file: str | bytes):
    """Puts whatever Pillow raises (many kinds) into words."""
    try:
        yield
    except (Unreadable, MemoryError, ImportError):
        raise
    except Exception as error:
        raise Unreadable(_reason(file, error)) from error


def _reason(file: str | bytes, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG):
        return "is a link to nothing" if isinstance(file, str) and os.path.islink(file) else "is not there"
    if isinstance(error, PermissionError):
        return "may not be read by this user"
    if not (len(file) if isinstance(file, bytes) else os.path.getsize(file)):
        return "is empty"
    if type(error).__name__ == "UnidentifiedImageError":
        return "is cut off" if _head(file).startswith(_BEGINNINGS) else "is no image (of a format that is read)"
    if "truncated" in str(error) or "Truncated" in str(error):
        return "is cut off"
    if type(error).__name__ == "DecompressionBombError":
        return "is larger than Pillow reads"
    return f"cannot be decoded ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def _head(file: str | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:16]
    with open(file, "rb") as stream:
        return stream.read(16)


def _tail(file: str | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[-1024:]
    with open(file, "rb") as stream:
        stream.seek(-min(1024, os.path.getsize(file)), os.SEEK_END)
        return stream.read()


def _orientation(image) -> int:
    """How a picture lies in its file, 1 for upright. (TIFF is put upright by Pillow.)"""
    if image.format == "TIFF" or not ("exif" in image.info or "Raw profile type exif" in image.info):
        return 1
    try:
        noted = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a note that cannot be read says nothing; Pillow raises many kinds
        return 1
    return noted if noted in _UPRIGHT else 1


def _noted(file: str | bytes) -> bool:
    """Whether a PNG may say how it lies."""
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    return b"eXIf" in content or b"Raw profile type" in content


def _reduce(image, factor: float) -> None:
    """Lets a JPEG be decoded at a fraction of its size, at least 1 / factor."""
    if factor >= 2 and hasattr(image, "draft"):
        image.draft(image.mode, tuple(max(1, int(side / factor)) for side in image.size))


def _turned(image, turn: int):
    from PIL import Image

    return image.transpose(Image.Transpose[_UPRIGHT[turn]]) if turn in _UPRIGHT else image


def _plain(image, channels: int, background: int):
    """A loaded picture as "RGB" or "L": 16 bits by their upper 8, transparency over the background, CMYK as its ink says."""
    from PIL import Image, ImageChops

    if image.mode == "I" and image.format == "PPM":  # always of 16 bits
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unreadable(f"has pixels of 32 bits (mode {image.mode}), whose range nobody knows; save it with 8 or 16")
    if image.mode in _GREY16:
        deep = np.asarray(image)
        if image.format == "TIFF":  # of 9 to 16 bits, and 0 may be white
            bits, kind = image.tag_v2.get(_BITS, (16,))[0], image.tag_v2.get(_PHOTOMETRIC, 1)
            deep = (deep ^ (2**bits - 1) if kind == 0 else deep) << (16 - bits)
        grey, clear = Image.fromarray((deep >> 8).astype(np.uint8)), image.info.get("transparency")
        if clear is not None:
            grey.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
        image = grey
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every such file for one of Adobe's, which are inverted
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (background,) * 3 + (255,)), image)
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode and image.mode not in ("L", "RGB", "1"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _filter(name: str):
    from PIL import Image

    return Image.Resampling[name.upper()]
