"""Pictures with boxes in folders: which there are and what is in them, by the files of COCO, of Pascal VOC or of YOLO."""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from kdjax.data.class_names import named_twice
from kdjax.data.errors import DataError, note
from kdjax.data.folders import SPLITS
from kdjax.data.pictures import Unreadable, picture_size
from kdjax.data.text_files import read_text
from kdjax.data.yolo import class_names, described

COCO, VOC, YOLO = "annotations", "Annotations", "labels"  # the folders of descriptions
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
TEXT_LIMIT = 64 * 2**20  # bytes of a description of one picture


@dataclasses.dataclass(frozen=True, eq=False)
class Annotated:
    """One picture.

    Attributes:
      path: of its file; of a picture in another file, what messages call it.
      boxes: `[n, 4]` float64 corners (left, top, right, bottom) in pixels of the upright picture.
      labels: `[n]` int32 classes.
      area: `[n]` by which objects are large or small: COCO's is that of the mask, else width times height.
      crowd: `[n]` bool, boxes around many objects.
      difficult: `[n]` bool, objects that need not be found.
      tall: whether the upright picture is higher than wide; None where its description does not say so.
      size: height and width by its description, where it says them.
    """

    path: str
    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    tall: bool | None = None
    size: tuple[float, float] | None = None

    def check_size(self, height: int, width: int) -> None:
        """Refuses an upright picture that is not the one described, whose boxes are of other pixels. Sides that are confused in
        the description alone, as in some of Pascal VOC's, are of no harm."""
        if self.size is None or self.size == (height, width):
            return
        swapped = self.size == (width, height)
        fits = not len(self.boxes) or (self.boxes[:, 2:].max(axis=0) <= np.array([width, height]) + 1).all()
        if not (swapped and fits):
            turned = " Its EXIF turns it; save it upright." if swapped else ""
            raise DataError(
                f"{self.path} is {width} x {height} pixels, and its boxes are of {self.size[1]:g} x {self.size[0]:g}; give the "
                f"pictures that the description is of.{turned}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotatedSplit:
    """The pictures of a split, in the order of its files, and the classes' names."""

    pictures: tuple[Annotated, ...]
    class_names: tuple[str, ...]

    def file(self, one: Annotated) -> str | bytes:
        """A picture's file: its path, or its content."""
        return one.path

    def fingerprint(self) -> str:
        """SHA-256 of names, sizes and annotations."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for one in self.pictures:
            digest.update(
                f"{os.path.basename(one.path)}\0{os.path.getsize(one.path)}\0".encode(errors="surrogateescape")
            )
            for array in (one.boxes, one.labels, one.area, one.crowd, one.difficult):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def has_boxes(root: Path) -> bool:
    """Whether a folder is one of pictures with boxes."""
    return root.is_dir() and bool({COCO, VOC, YOLO} & set(os.listdir(root)))


def open_annotated(root: Path, split: str) -> AnnotatedSplit:
    """The pictures with boxes of a folder.

    It holds `annotations/*.json` (COCO: the file whose name has the split in it), or `Annotations/*.xml` and
    `ImageSets/Main/*.txt` (Pascal VOC), or `images/SPLIT`, `labels/SPLIT/*.txt` and the classes' names in `classes.txt` or
    `data.yaml` (YOLO). Splits are called as in `kdjax.data.folders.SPLITS`; where there is no "test" that has boxes it is
    "validation".

    Raises:
      DataError: it is none of these; a file, a class or a picture is missing; or a box is no box.
    """
    for there, reader in ((COCO, _coco), (VOC, _voc), (YOLO, _yolo)):
        if there in (os.listdir(root) if root.is_dir() else ()):  # names as they are written, on any file system
            names = [split, *(("validation",) if split == "test" else ())]
            for name in names:
                found = reader(root, SPLITS[name])
                if found is not None:
                    if not found.pictures:
                        raise DataError(f"{root} has no pictures in its split {name!r}.")
                    return found
            raise DataError(f"{root} has no annotations of a split {' or '.join(map(repr, names))}, called "
                            f"{', '.join(word for name in names for word in SPLITS[name])}.")  # fmt: skip
    raise DataError(
        f"{root} holds no boxes: it must have annotations/*.json (COCO), Annotations/*.xml with ImageSets/Main (Pascal VOC), or "
        "images and labels (YOLO)."
    )


def _made(
    path: str, boxes: Any, labels: Any, where: str, *, area=None, crowd=None, difficult=None, size: Any = None
) -> Annotated:
    """A picture; `size` is its height and width as its description has them, where it has."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    count = len(boxes)
    if not np.isfinite(boxes).all():
        raise DataError(f"{where} has a box that is not finite, {boxes[~np.isfinite(boxes).all(axis=1)][0].tolist()}.")
    sides = boxes[:, 2:] - boxes[:, :2]
    if (sides < 0).any():
        raise DataError(f"{where} has a box that ends before it begins, {boxes[(sides < 0).any(axis=1)][0].tolist()}.")
    of = lambda given, default: np.asarray(default if given is None else given)
    own = sides[:, 0] * sides[:, 1]
    area = own if area is None else np.array(area, np.float64)  # None is nan
    return Annotated(
        path, boxes, np.asarray(labels, np.int32).reshape(count), np.where(area > 0, area, own),
        of(crowd, np.zeros(count)).astype(bool), of(difficult, np.zeros(count)).astype(bool),
        bool(size[0] > size[1]) if size and all(size) else None,
        tuple(map(float, size)) if size and all(size) else None,
    )  # fmt: skip


def _there(path: Path, where: str) -> str:
    if not path.is_file():
        raise DataError(f"{where} names the picture {path}, which is not there.")
    return str(path)


def _coco(root: Path, words: tuple[str, ...]) -> AnnotatedSplit | None:
    files = sorted((root / "annotations").glob("*.json"))
    words = (*words, "trainval") if words == SPLITS["train"] else words
    chosen = [f for f in files if set(words) & set(re.findall("[a-z]+", f.stem.lower()))]
    # Captions and keypoints lie beside, and the pictures of a test split that has no boxes.
    chosen = [f for f in chosen if not f.stem.lower().startswith(("caption", "image_info"))]
    chosen = [f for f in chosen if "instances" in f.stem] or chosen
    if not chosen:
        return None
    if len(chosen) > 1:
        note(f"{root} has {len(chosen)} files of that split; {chosen[-1].name} is read")
    file = chosen[-1]
    try:
        whole = json.loads(file.read_bytes())
        categories = sorted(whole["categories"], key=lambda c: c["id"])
        images, objects = whole["images"], whole["annotations"]
        place = {c["id"]: i for i, c in enumerate(categories)}
        names = tuple(str(c.get("name", c["id"])) for c in categories)
        for listed in names, [c["id"] for c in categories]:
            twice = named_twice(listed)
            if twice is not None:
                raise DataError(f"{file} lists the category {twice} twice; give each a number and a name of its own.")
        by_image: dict[Any, list] = {image["id"]: [] for image in images}
        for one in objects:
            if one["category_id"] not in place or one["image_id"] not in by_image:
                what = "category" if one["category_id"] not in place else "image"
                raise DataError(f"{file} has an object of {what} {one[f'{what}_id']}, which it does not list.")
            if len(one["bbox"]) != 4:
                raise DataError(
                    f"{file} has an object whose bbox is {one['bbox']}; it must be left, top, width and height."
                )
            by_image[one["image_id"]].append(one)
        folder = _coco_folder(root, file, images)
        pictures = []
        for image in images:
            there = by_image[image["id"]]
            left, top, width, height = np.array([o["bbox"] for o in there], np.float64).reshape(-1, 4).T
            pictures.append(
                _made(
                    _there(folder / image["file_name"], str(file)),
                    np.stack([left, top, left + width, top + height], axis=-1), [place[o["category_id"]] for o in there],
                    f"{file}: {image['file_name']}", area=[o.get("area") for o in there],
                    crowd=[o.get("iscrowd", 0) for o in there], size=(image.get("height"), image.get("width")),
                )
            )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is no annotation file of COCO: {type(error).__name__} {error}.") from error
    return AnnotatedSplit(tuple(pictures), names)


def _coco_folder(root: Path, file: Path, images: list) -> Path:
    """Where the pictures of an annotation file are: in a folder called like its end, in `images`, or beside."""
    if not images:
        return root
    ending = file.stem.rpartition("_")[2]
    for folder in (root / ending, root / "images" / ending, root / "images", root):
        if (folder / images[0]["file_name"]).is_file():
            return folder
    return root / ending


def _voc(root: Path, words: tuple[str, ...]) -> AnnotatedSplit | None:
    lists = root / "ImageSets" / "Main"
    if words == SPLITS["train"] and (lists / "trainval.txt").is_file() and not (lists / "test.txt").is_file():
        words = ("train", *words)
    elif words == SPLITS["train"]:
        words = ("trainval", *words)  # with a test split of its own, as is usual, both are trained on
    file = next((lists / f"{word}.txt" for word in words if (lists / f"{word}.txt").is_file()), None)
    if file is None:
        return None
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    # Behind a name may stand whether a class is in the picture; in it may be blanks.
    names = [line if (root / "Annotations" / f"{line}.xml").is_file() else line.split()[0] for line in lines]
    read = [_voc_one(root / "Annotations" / f"{name}.xml") for name in names]
    classes = sorted(
        {label for found in map(_voc_one, sorted((root / "Annotations").glob("*.xml"))) for label in found[1]}
    )
    pictures = []
    for name, (boxes, labels, difficult, size) in zip(names, read, strict=True):
        path = next(
            (p for s in SUFFIXES if (p := root / "JPEGImages" / f"{name}{s}").is_file()),
            root / f"JPEGImages/{name}.jpg",
        )
        pictures.append(
            _made(
                _there(path, str(file)),
                boxes,
                [classes.index(label) for label in labels],
                name,
                difficult=difficult,
                size=size,
            )
        )
    return AnnotatedSplit(tuple(pictures), tuple(classes))


def _voc_one(file: Path) -> tuple[list, list, list, tuple[float, float]]:
    """Boxes, names and difficulty of a picture, and its size, 0 where it is not said. Edges are as they are written: whole pixels
    from 1 on, not shifted."""
    if not file.is_file():
        raise DataError(f"{file} is not there, and its picture is listed.")
    if file.stat().st_size > TEXT_LIMIT:
        raise DataError(f"{file} is larger than any description of a picture.")
    try:
        boxes, labels, difficult = [], [], []
        written = file.read_bytes()
        # Of which a few make gigabytes; looked for in each kind of encoding that the parser takes.
        if any("<!ENTITY".encode(encoding) in written for encoding in ("ascii", "utf-16-le", "utf-16-be")):
            raise DataError(f"{file} defines entities, which are not read.")
        whole = ElementTree.fromstring(written)  # in the encoding that it says
        size = tuple(float((whole.findtext(f"size/{side}") or "").strip() or 0) for side in ("height", "width"))
        for one in whole.iter("object"):
            box = one.find("bndbox")
            boxes.append([float(box.findtext(edge)) for edge in ("xmin", "ymin", "xmax", "ymax")])
            labels.append(one.findtext("name").strip())
            difficult.append((one.findtext("difficult") or "0").strip() == "1")
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{file} is no description of Pascal VOC: {error}.") from error
    return boxes, labels, difficult, size


def _yolo(root: Path, words: tuple[str, ...]) -> AnnotatedSplit | None:
    folder = next((root / "images" / word for word in words if (root / "images" / word).is_dir()), None)
    if folder is None:
        return None
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    beside_of = lambda file: (root / "labels" / file.relative_to(root / "images")).with_suffix(".txt")
    pictures = []
    for file in files:
        beside = beside_of(file)
        rows = described(beside)
        try:
            height, width = picture_size(str(file))
        except Unreadable as error:
            raise DataError(f"{file} {error}.") from error
        centre, size = rows[:, 1:3], rows[:, 3:5]
        boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1) * [width, height, width, height]
        pictures.append(_made(str(file), boxes, rows[:, 0].astype(np.int64), str(beside), size=(height, width)))
    if files and not any(map(Path.is_file, map(beside_of, files))):
        raise DataError(
            f"{root} describes none of the {len(files)} pictures of {folder}; put labels/{folder.name}/NAME.txt there."
        )
    names = class_names(root, np.concatenate([one.labels for one in pictures]) if pictures else np.zeros(0))
    return AnnotatedSplit(tuple(pictures), names)
