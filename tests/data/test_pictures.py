"""Pictures of every format and mode, and where crops lie: right to the pixel, or named."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from kdjax.data.crops import Crop, crop_draws
from kdjax.data.pictures import Reading, Unreadable, picture_size

RED, WHITE = (250, 10, 10), (255, 255, 255)
UPRIGHT = np.zeros((6, 4, 3), np.uint8)  # a corner that tells every orientation apart
UPRIGHT[0, 0], UPRIGHT[0, 3] = RED, WHITE


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def gradient(width=40, height=30):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8))


def half_clear():
    image = Image.new("RGBA", (4, 4), (*RED, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 51))  # a fifth of it
    return image


def palette_with_alpha():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((0, 0), 0)
    return image


def half(file):
    return file[: len(file) // 2]


PLAIN = {
    "png": saved(Image.new("RGB", (4, 4), RED), "PNG"),
    "palette": saved(Image.new("RGB", (4, 4), RED).convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "bmp": saved(Image.new("RGB", (4, 4), RED), "BMP"),
    "webp": saved(Image.new("RGB", (4, 4), RED), "WEBP", lossless=True),
    "first frame": saved(Image.new("RGB", (4, 4), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4))]),
    "tiff": saved(Image.new("RGB", (4, 4), RED), "TIFF"),
    "rgba": saved(Image.new("RGBA", (4, 4), (*RED, 255)), "PNG"),
}


@pytest.mark.parametrize("form", PLAIN)
def test_every_format_gives_its_colours(form):
    np.testing.assert_array_equal(Reading().decode(PLAIN[form]), np.full((4, 4, 3), RED, np.uint8))
    assert picture_size(PLAIN[form]) == (4, 4)


def test_what_is_transparent_shows_the_background():
    for file in (saved(half_clear(), "PNG"), saved(half_clear(), "WEBP", lossless=True)):
        shown = Reading().decode(file)
        assert tuple(shown[0, 0]) == WHITE and tuple(shown[3, 3]) == RED
        np.testing.assert_allclose(shown[0, 1], [254, 206, 206], atol=1)
        assert tuple(Reading(background=0).decode(file)[0, 0]) == (0, 0, 0)
    for form in ("PNG", "GIF"):
        shown = Reading().decode(saved(palette_with_alpha(), form, transparency=0))
        assert tuple(shown[0, 0]) == WHITE and tuple(shown[3, 3]) == RED
    grey = Image.new("LA", (2, 1), (100, 255))
    grey.putpixel((0, 0), (100, 0))
    assert Reading(channels=1).decode(saved(grey, "PNG"))[..., 0].tolist() == [[255, 100]]


def test_grey_and_sixteen_bits():
    grey = saved(Image.new("L", (4, 4), 77), "PNG")
    assert (Reading().decode(grey) == 77).all() and Reading(channels=1).decode(grey).shape == (4, 4, 1)
    assert Reading(channels=1).decode(PLAIN["png"])[0, 0, 0] == round(0.299 * 250 + 0.587 * 10 + 0.114 * 10)
    deep = saved(Image.fromarray(np.array([[300, 65535, 0x8040]], np.uint16)), "PNG")
    assert Reading(channels=1).decode(deep)[..., 0].tolist() == [[1, 255, 0x80]]
    assert Reading(channels=1).decode(saved(Image.new("1", (1, 1), 1), "PNG")).item() == 255
    assert Reading(channels=1).decode(b"P5 2 1 65535\n" + bytes([1, 44, 0x80, 0x40]))[..., 0].tolist() == [[1, 0x80]]
    with pytest.raises(Unreadable, match="pixels of 32 bits"):
        Reading().decode(saved(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


def tiff(bits, kind, data):
    """A grey picture of two pixels; `kind` 0 where 0 is white, 1 where it is black."""
    tags = [
        (256, 2),
        (257, 1),
        (258, bits),
        (259, 1),
        (262, kind),
        (273, 8 + 2 + 9 * 12 + 4),
        (277, 1),
        (278, 1),
        (279, len(data)),
    ]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize("bits, kind, data, shown", [
    (8, 1, bytes([0, 255]), [0, 255]), (8, 0, bytes([0, 255]), [255, 0]),
    (12, 1, bytes([0xFF, 0xF8, 0x00]), [255, 0x80]),
    (16, 1, struct.pack("<HH", 0x8040, 65535), [0x80, 255]), (16, 0, struct.pack("<HH", 0, 65535), [255, 0]),
])  # fmt: skip
def test_grey_of_tiff_has_any_bits_and_either_end_white(bits, kind, data, shown):
    assert Reading(channels=1).decode(tiff(bits, kind, data))[..., 0].tolist() == [shown]


def png(depth, kind, line, clear):
    """Two pixels of a depth and a kind (0 grey, 2 RGB), of which one colour is transparent."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0))
    pixels = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) + chunk(b"IDAT", zlib.compress(b"\0" + line))
    return b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth, line, clear, shown", [
    (1, bytes([0b01000000]), 1, [0, 7]), (2, bytes([0b01110000]), 1, [7, 255]), (4, bytes([0x2F]), 2, [7, 255]),
    (8, bytes([34, 255]), 34, [7, 255]), (16, struct.pack(">HH", 500, 65535), 500, [7, 255]),
])  # fmt: skip
def test_the_transparent_grey_of_a_png_has_its_bits(depth, line, clear, shown):
    assert Reading(channels=1, background=7).decode(png(depth, 0, line, [clear]))[..., 0].tolist() == [shown]


def test_the_transparent_colour_of_a_png_has_eight_bits():
    shown = Reading(background=7).decode(png(8, 2, bytes([5, 6, 7, 255, 1, 2]), [5, 6, 7]))
    assert shown.tolist() == [[[7, 7, 7], [255, 1, 2]]]
    with pytest.raises(Unreadable, match="has a transparent colour of 16 bits"):
        Reading().decode(png(16, 2, struct.pack(">6H", 500, 600, 700, 65535, 1, 2), [500, 600, 700]))


def test_cmyk_as_its_ink_says():
    """With Adobe's note the values are inverted, and without it they are not."""
    ink = Image.new("CMYK", (16, 16), (0, 200, 200, 0))
    adobe = saved(ink, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in adobe
    np.testing.assert_allclose(Reading().decode(adobe)[8, 8], [255, 55, 55], atol=3)
    inverted = saved(Image.eval(ink, lambda v: 255 - v), "JPEG", quality=100, subsampling=0)
    at = inverted.index(b"\xff\xee")
    (length,) = struct.unpack(">H", inverted[at + 2 : at + 4])
    without = inverted[:at] + inverted[at + 2 + length :]
    np.testing.assert_allclose(Reading().decode(without)[8, 8], [255, 55, 55], atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_put_upright_as_exif_says(orientation):
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE",
            8: "ROTATE_270"}  # fmt: skip
    image = Image.fromarray(UPRIGHT)
    if orientation in undo:
        image = image.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("PNG", "TIFF"):
        file = saved(image, form, exif=exif)
        np.testing.assert_array_equal(Reading().decode(file), UPRIGHT)
    big = Image.fromarray(np.kron(UPRIGHT, np.ones((16, 16, 1), np.uint8)))
    if orientation in undo:
        big = big.transpose(Image.Transpose[undo[orientation]])
    file = saved(big, "JPEG", quality=95, exif=exif)
    assert picture_size(file) == (96, 64)
    if features.check("avif"):
        assert picture_size(saved(big, "AVIF", exif=exif)) == (96, 64)
    shown = Reading().decode(file)[8::16, 8::16]
    np.testing.assert_allclose(shown.astype(int), UPRIGHT, atol=6)
    square = Reading(size=4, crop=Crop(share=1.0)).decode(file)  # the middle, also where the file is decoded smaller
    upright = Reading(size=4, crop=Crop(share=1.0)).decode(saved(big_upright(), "PNG"))
    np.testing.assert_allclose(square.astype(int), upright, atol=8)


def big_upright():
    return Image.fromarray(np.kron(UPRIGHT, np.ones((16, 16, 1), np.uint8)))


@pytest.mark.parametrize("note", [
    struct.pack("<HHIHH", 0x0112, 3, 1, 9, 0), struct.pack("<HHIHH", 0x0112, 3, 1, 0, 0),
    struct.pack("<HHI4s", 0x0112, 2, 2, b"6"), struct.pack("<HHI4s", 0x0112, 7, 1, b"\x06"), b"rubbish",
])  # fmt: skip
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_is_none_is_upright(form, note):
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + note + bytes(4) if len(note) == 12 else b"Exif\0\0" + note
    plain, noted = saved(gradient(64, 32), form), saved(gradient(64, 32), form, exif=exif)
    assert picture_size(noted) == (32, 64)
    for reading in (Reading(), Reading(size=16)):
        np.testing.assert_array_equal(reading.decode(noted), reading.decode(plain))


@pytest.mark.parametrize(
    "file, what",
    [
        (b"", "is empty"),
        (b"some text", "is no image"),
        (half(saved(gradient(), "PNG")), "is cut off"),
        (PLAIN["png"][:30], "is cut off"),
        (half(saved(gradient(400, 300), "JPEG")), "is cut off"),
        ("nowhere.png", "is not there"),
        ("a" * 300 + ".png", "is not there"),
        (".", "is no file"),
    ],
)
def test_what_cannot_be_read_says_why(file, what):
    for read in (Reading().decode, picture_size):
        with pytest.raises(Unreadable, match=what):
            read(file)


def test_a_pipe_is_not_waited_at(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (Reading().decode, picture_size):
        with pytest.raises(Unreadable, match="is no file"):
            read(str(tmp_path / "a.png"))


# --- crops ---


def by_torchvision(image, size, share):
    """`Resize(int(size / share))` and `CenterCrop(size)` as torchvision does them to a PIL image."""
    short = int(size / share)
    width, height = image.size
    wide = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    image = image.resize(wide, Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("shape", [(50, 37), (37, 50), (40, 40), (20, 30)])
def test_evaluation_is_resize_and_centre_crop(shape):
    image = gradient(*shape)
    want = by_torchvision(image, 24, 0.875).astype(int)
    np.testing.assert_allclose(Reading(size=24).decode(saved(image, "PNG")), want, atol=1)


def test_a_jpeg_decoded_smaller_shows_the_same():
    """A training crop of a large picture, from a file that is decoded at a quarter of its size, and from one that is not."""
    x, y = np.meshgrid(np.arange(1000), np.arange(750))
    smooth = Image.fromarray(np.stack([x // 4, y // 3, 128 + 100 * np.sin(x / 90)], -1).astype(np.uint8))
    jpeg, png = saved(smooth, "JPEG", quality=95), saved(smooth, "PNG")
    crop = Reading(size=64, crop=Crop(scale=(0.3, 1.0)))
    for index in range(5):
        draws = crop_draws(0, 0, index)
        difference = np.abs(crop.decode(jpeg, draws).astype(int) - crop.decode(png, draws))
        assert difference.max() <= 4 and difference.mean() < 1
    np.testing.assert_allclose(
        Reading(size=64).decode(jpeg), by_torchvision(Image.open(io.BytesIO(jpeg)), 64, 0.875).astype(int), atol=1
    )


def test_inception_crops_have_the_areas_and_shapes_asked_for():
    crop = Crop(scale=(0.2, 0.6), ratio=(0.5, 2.0))
    boxes = np.array([crop.box(100, 80, 32, crop_draws(0, 0, index)) for index in range(2000)])
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 100 and boxes[:, 3].max() <= 80
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas = width * height / 8000
    assert 0.19 < areas.min() < 0.22 and 0.55 < areas.max() < 0.61
    ratios = np.log(width / height)
    assert ratios.min() > np.log(0.48) and ratios.max() < np.log(2.1) and abs(ratios.mean()) < 0.12
    corner = boxes[:, 0] / (100 - width + 1e-9)
    np.testing.assert_allclose(np.histogram(corner, 4, (0, 1))[0] / 500, 1, atol=0.2)


def test_a_picture_in_which_no_shape_fits_shows_its_middle():
    assert Crop().box(400, 10, 8, crop_draws(0, 0, 0)) == (193, 0, 206, 10)


def test_crops_depend_on_seed_pass_and_example_alone():
    """Numbers that must never change: a run resumed with a later version goes on as it began."""
    np.testing.assert_allclose(crop_draws(3, 1, 7)[:3], DRAWN, atol=1e-9)
    draws = [crop_draws(seed, epoch, index)[0] for seed in (0, 1) for epoch in (0, 1) for index in (0, 1)]
    assert len(set(draws)) == 8
    file, reading = saved(gradient(), "PNG"), Reading(size=8)
    first = reading.decode(file, crop_draws(0, 0, 5))
    np.testing.assert_array_equal(reading.decode(file, crop_draws(0, 0, 5)), first)
    assert (reading.decode(file, crop_draws(0, 1, 5)) != first).any()
    fixed = Reading(size=8, crop=Crop(train="center"))
    np.testing.assert_array_equal(fixed.decode(file, crop_draws(0, 0, 5)), fixed.decode(file))


DRAWN = [0.5197698596939516, 0.051894157650655526, 0.7288922003395659]


def test_resize_crops_are_squares_anywhere():
    crop = Crop(train="resize", share=0.5)
    boxes = np.array([crop.box(100, 50, 10, crop_draws(0, 0, index)) for index in range(400)])
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], 25)  # the shorter side to 20, of which 10 are shown
    assert boxes[:, 0].min() == 0 and boxes[:, 0].max() == 75 and boxes[:, 1].max() == 25


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scale": (0.5, 0.1)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"ratio": (1.0,)}, "ratio"),
        ({"share": 0.0}, "share"),
    ],
)
def test_errors_of_crops(options, message):
    with pytest.raises(ValueError, match=f"Crop.{message} is"):
        Crop(**options)
