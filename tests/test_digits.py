"""A digit from a photo: redrawn digits, and a drawing for each fault that real pictures have."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps

import dataset
from dataset import UserError
from helpers import PAPERS, paper

PAPER, INK = 225, 60  # grey levels
BLACK = 25


def drawn(points, size=(300, 400), width=14, ink=INK):
    """A grey picture (height, width) with strokes along these points, lists of (x, y)."""
    picture = Image.new("L", (4 * size[1], 4 * size[0]), PAPER)
    pen = ImageDraw.Draw(picture)
    for stroke in points:
        stroke = [(4 * x, 4 * y) for x, y in stroke]
        pen.line(stroke, fill=ink, width=4 * width, joint="curve")
        for x, y in stroke:
            pen.ellipse((x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width), fill=ink)
    return picture.resize((size[1], size[0]), Image.Resampling.BOX)


# In the middle of 400 x 300.
SEVEN = [[(150, 80), (250, 80), (180, 220)]]
FOUR = [[(190, 80), (150, 160), (250, 160)], [(225, 110), (215, 220)]]
FIVE = [[(165, 90), (160, 140), (220, 140), (240, 170), (220, 210), (160, 220)], [(180, 80), (240, 78)]]
FIVE_APART = [FIVE[0], [(195, 72), (245, 68)]]  # its bar does not touch the rest
DIGITS = {"7": SEVEN, "4": FOUR, "5": FIVE}


def moved(points, dx, dy=0):
    return [[(x + dx, y + dy) for x, y in stroke] for stroke in points]


def half(points):
    return [[(x / 2, y / 2) for x, y in stroke] for stroke in points]


def read(picture, tmp_path):
    """What read_digit makes of a picture, as integers."""
    path = tmp_path / "digit.png"
    picture.save(path)
    return dataset.read_digit(path).int()


def is_same(first, second):
    """Whether two prepared digits differ by less than a shift of one pixel, or strokes twice as wide."""
    return (first - second).abs().float().mean() < 18


def difference(first, second):
    """The mean difference of two prepared digits, without a shift by one pixel, which rounding may cause."""
    shifts = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)]
    shifted = torch.stack([second.roll(shift, (0, 1)) for shift in shifts])
    return (first - shifted).abs().float().mean(dim=(1, 2)).min()


def with_lines(picture, level, step=40, vertical=False):
    """The same on ruled or squared paper."""
    pen = ImageDraw.Draw(picture)
    for place in range(20, picture.height, step):
        pen.line([(0, place), (picture.width, place)], fill=level, width=2)
    if vertical:
        for place in range(20, picture.width, step):
            pen.line([(place, 0), (place, picture.height)], fill=level, width=2)
    return picture


def with_border(picture):
    """The same on a dark table, seen on two sides."""
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, 25, picture.height), fill=BLACK)
    pen.polygon([(0, picture.height), (picture.width, picture.height), (picture.width, 265)], fill=BLACK)
    return picture


def with_shadow(picture):
    """The same with the sharp edge of a shadow across it."""
    light = np.ones((picture.height, picture.width))
    light[:, 200:] = 0.6
    return Image.fromarray(np.uint8(np.asarray(picture) * light)).filter(ImageFilter.GaussianBlur(2))


def lit(picture):
    """The same in light that falls off to the lower right by more than half."""
    down, across = np.mgrid[0 : picture.height, 0 : picture.width]
    light = 1 - 0.3 * down / picture.height - 0.3 * across / picture.width
    return Image.fromarray(np.uint8(np.asarray(picture) * light))


def with_soft_shadow(picture):
    """The same with half of it in the shadow of a hand."""
    across = np.linspace(-1, 1, picture.width)
    light = 1 - 0.5 / (1 + np.exp(-8 * across))
    return Image.fromarray(np.uint8(np.asarray(picture) * light))


def with_box(picture):
    """The same with a box drawn around the digit, as forms have them."""
    roomy = ImageOps.expand(picture, border=60, fill=picture.getpixel((0, 0)))
    left, top, right, bottom = ImageOps.invert(roomy).point(lambda value: 255 * (value > 60)).getbbox()
    ImageDraw.Draw(roomy).rectangle((left - 30, top - 30, right + 30, bottom + 30), outline=INK, width=4)
    return roomy


def thinned(picture):
    """The same with strokes that are thinner by 4 pixels."""
    return picture.filter(ImageFilter.MaxFilter(5))


def thickened(picture):
    """The same with strokes that are thicker by 8 pixels."""
    return picture.filter(ImageFilter.MinFilter(9))


def paled(picture):
    """The same with ink that is a fifth as dark."""
    return Image.blend(Image.new("L", picture.size, PAPER), picture, 0.2)


def with_neighbour(picture):
    """The same with a part of the next digit at the edge."""
    ImageDraw.Draw(picture).line([(392, 60), (385, 220)], fill=INK, width=24)
    return picture


FAULTS = {
    "pale lines": lambda picture: with_lines(picture, 190),
    "dark lines": lambda picture: with_lines(picture, 150),
    "squares": lambda picture: with_lines(picture, 170, vertical=True),
    "dark border": with_border,
    "shadow": with_shadow,
    "light on dark": lambda picture: ImageOps.invert(with_shadow(picture)),
    "neighbour": with_neighbour,
}
REAL_FAULTS = {
    "light that falls off": lit,
    "soft shadow": with_soft_shadow,
    "thin strokes": thinned,
    "pale strokes": paled,
    "light on dark": ImageOps.invert,
    "box": with_box,
}


@pytest.mark.parametrize("points", DIGITS.values(), ids=DIGITS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_lies_around_a_digit_is_left_out(tmp_path, fault, points):
    assert is_same(read(fault(drawn(points)), tmp_path), read(drawn(points), tmp_path))


@pytest.mark.parametrize("fault", REAL_FAULTS.values(), ids=REAL_FAULTS)
def test_real_digits_are_read_alike_with_and_without_a_fault(tmp_path, test_set, fault):
    for index in range(12):
        picture = paper(test_set.images[index].numpy(), seed=index)
        assert difference(read(fault(picture), tmp_path), read(picture, tmp_path)) < 15, index


@pytest.mark.parametrize("light", [False, True])
def test_real_digits_with_thick_strokes_that_touch_the_edge_are_read(tmp_path, test_set, light):
    for index in range(12):
        thick = thickened(paper(test_set.images[index].numpy(), seed=index))
        tight = without_margin(thick)
        picture = ImageOps.invert(tight) if light else tight
        assert difference(read(picture, tmp_path), read(thick, tmp_path)) < 15, index


def test_a_digit_in_a_corner_is_read_though_a_line_runs_through_the_picture(tmp_path):
    corner = moved(FOUR, 300, -20)
    sheet = drawn(corner, size=(600, 800))
    ImageDraw.Draw(sheet).line([(0, 20), (800, 20)], fill=INK, width=5)
    assert is_same(read(sheet, tmp_path), read(drawn(FOUR), tmp_path))


@pytest.mark.parametrize("width", [2, 8])
def test_thin_strokes_become_as_wide_and_bright_as_mnists(tmp_path, width):
    digit = read(drawn(SEVEN, width=width), tmp_path)
    assert 1.5 < dataset.stroke_width(digit.numpy() / 255) < 3
    assert (digit > 200).sum() > 30


def test_pale_strokes_become_full_ink_on_smooth_and_on_grainy_paper(tmp_path):
    """Grains as bright as their neighbours are dark must not pass for the paper's own grey."""
    pale = drawn(FOUR, ink=PAPER - 25)
    coarse = drawn(FOUR, ink=PAPER - 60).resize((150, 112))
    noise = np.random.default_rng(0).normal(0, 8, (112, 150))
    grainy = Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))
    for picture in (pale, grainy):
        digit = read(picture, tmp_path)
        assert is_same(digit, read(drawn(FOUR), tmp_path)) and digit.max() > 240


def without_margin(picture):
    """The same, cut so tightly that the strokes touch the edge."""
    return picture.crop(Image.eval(picture, lambda value: PAPER - value).getbbox())


@pytest.mark.parametrize("has_speck", [False, True])
def test_a_digit_without_a_margin_is_read_though_it_touches_the_edge(tmp_path, has_speck):
    whole = drawn(FOUR)
    expected = read(whole, tmp_path)
    if has_speck:
        ImageDraw.Draw(whole).ellipse((165, 200, 173, 208), fill=INK)
    assert is_same(read(without_margin(whole), tmp_path), expected)


@pytest.mark.parametrize("points", DIGITS.values(), ids=DIGITS)
@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("side", [28, 300])
def test_thick_strokes_that_fill_the_picture_and_touch_its_edges_are_ink(tmp_path, points, light, side):
    """White on black, they cover half of it: what is brighter and broader is not always the paper."""
    thick = drawn(points, width=36)
    tight = ImageOps.contain(without_margin(thick), (side, side))
    picture = Image.eval(tight, lambda value: 255 * (value < 128)) if light else tight
    assert is_same(read(picture, tmp_path), read(thick, tmp_path))


@pytest.mark.parametrize("light", [False, True])
def test_tightly_cut_digits_of_mnist_keep_all_their_strokes(tmp_path, test_set, light):
    differences = []
    for index in range(20):
        expected = test_set.images[index].int()
        digit = Image.fromarray(test_set.images[index].numpy())
        tight = ImageOps.contain(digit.crop(digit.getbbox()), (200, 200))
        picture = tight if light else Image.eval(tight, lambda value: PAPER - value * (PAPER - INK) // 255)
        differences.append((read(picture, tmp_path) - expected).abs().float().mean())
    assert np.quantile(differences, 0.9) < 18


def test_ink_of_any_colour_on_nothing_is_seen(tmp_path):
    opacity = Image.eval(drawn(FIVE), lambda value: min(255, 2 * (PAPER - value)))
    for colour in ("white", "black", "blue"):
        picture = Image.new("RGBA", opacity.size, colour)
        picture.putalpha(opacity)
        assert is_same(read(picture, tmp_path), read(drawn(FIVE), tmp_path)), colour


@pytest.mark.parametrize("fault", [lambda picture: picture, FAULTS["pale lines"], FAULTS["shadow"]])
def test_more_than_one_digit_is_an_error_that_names_the_file(tmp_path, fault):
    for several in (
        moved(SEVEN, -75) + moved(FOUR, 75),
        moved(SEVEN, -120) + FOUR + moved(FIVE, 120),
        moved(half(SEVEN), 70, 20) + moved(half(FIVE), 20, 130),  # one above the other
    ):
        with pytest.raises(UserError) as error:
            read(fault(drawn(several)), tmp_path)
        assert str(tmp_path / "digit.png") in str(error.value) and "more than one" in str(error.value)


def test_a_digit_of_several_parts_is_one(tmp_path):
    assert difference(read(drawn(FIVE_APART), tmp_path), read(drawn(FIVE), tmp_path)) < 15
    gap = drawn(FOUR)
    ImageDraw.Draw(gap).rectangle((160, 190, 240, 196), fill=PAPER)  # a stroke that the pen has skipped
    assert is_same(read(gap, tmp_path), read(drawn(FOUR), tmp_path))


@pytest.mark.filterwarnings("error")
def test_the_largest_photos_of_phones_are_read_upright(tmp_path):
    large = drawn(FOUR).rotate(90, expand=True).resize((12000, 16000), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, stored lying on its side
    large.save(tmp_path / "phone.jpg", exif=exif)
    assert is_same(dataset.read_digit(tmp_path / "phone.jpg").int(), read(drawn(FOUR), tmp_path))


@pytest.mark.filterwarnings("error")
def test_a_picture_that_would_fill_the_memory_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "large.png"
    drawn(FOUR).save(path)
    png = bytearray(path.read_bytes())
    png[16:24] = struct.pack(">II", 20000, 10000)  # its size as its header says
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    path.write_bytes(png)
    with pytest.raises(UserError) as error:
        dataset.read_digit(path)
    assert str(path) in str(error.value) and "pixels" in str(error.value)


@pytest.mark.parametrize("name", ["light on dark", "gradient and noise"])
def test_read_digit_gives_back_the_digit_that_was_redrawn(tmp_path, test_set, name):
    differences = []
    for index in range(20):
        digit = test_set.images[index].numpy()
        paper(digit, **PAPERS[name], seed=index).save(tmp_path / "digit.png")
        read = dataset.read_digit(tmp_path / "digit.png")
        assert read.shape == (28, 28) and read.dtype == torch.uint8
        differences.append(np.abs(read.numpy().astype(int) - digit).mean())
    # a shift by one pixel makes a difference of 20 or so; rounding may cause one now and then
    assert np.median(differences) < 8 and np.quantile(differences, 0.7) < 10


def test_read_digit_is_prepared_like_mnist(tmp_path, test_set):
    for index in range(10):
        paper(test_set.images[index].numpy(), seed=index).convert("RGB").save(
            tmp_path / "digit.jpg", quality=80
        )
        read = dataset.read_digit(tmp_path / "digit.jpg").double()
        rows, columns = read.any(1).nonzero(), read.any(0).nonzero()
        assert max(rows.max() - rows.min(), columns.max() - columns.min()) in (18, 19)
        assert read.max() > 240 and (read == 0).sum() > 400
        for marginal in (read.sum(1), read.sum(0)):
            assert abs((marginal @ torch.arange(28.0).double()) / marginal.sum() - 14) <= 0.6


NOT_A_DIGIT = {
    "only light and shadow": lambda: lit(Image.new("L", (400, 300), PAPER)),
    "only noise": lambda: paper(np.eye(28, dtype=np.uint8), noise=8),  # ink that nobody can see
    "a column": lambda: drawn(FOUR).crop((200, 0, 201, 300)),
    "a row": lambda: drawn(FOUR).crop((0, 150, 400, 151)),
    "a strip": lambda: drawn(FOUR).crop((198, 0, 202, 300)),
    "a pixel": lambda: drawn(FOUR).crop((200, 150, 201, 151)),
    "16 bits": lambda: Image.fromarray(np.asarray(drawn(FOUR)).astype(np.uint16) * 100),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("picture", NOT_A_DIGIT.values(), ids=NOT_A_DIGIT)
def test_what_is_no_digit_is_an_error_that_names_the_file(tmp_path, picture):
    with pytest.raises(UserError) as error:
        read(picture(), tmp_path)
    assert str(tmp_path / "digit.png") in str(error.value)


def test_read_digits_names_and_passes_over_what_is_no_digit(tmp_path, test_set, capsys):
    assert dataset.pictures_in(tmp_path / "nowhere") == [] and dataset.read_digits([]) == {}
    for index, name in enumerate(("b.png", "a.png")):
        paper(test_set.images[index].numpy()).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    digits = dataset.read_digits(dataset.pictures_in(tmp_path))
    assert digits["names"] == ["a.png", "b.png"]
    assert torch.equal(digits["images"][1], dataset.read_digit(tmp_path / "b.png"))
    assert digits["originals"].shape == (2, 112, 112, 3)
    folder, notes = capsys.readouterr().err.splitlines()
    assert "folder" in folder and "notes.txt" in notes


def test_pictures_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    paths = [tmp_path / folder / name for folder in "ab" for name in ("7.png", "4\u200b.png")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        drawn(FOUR).save(path)
    names = dataset.read_digits(paths)["names"]
    assert len(set(names)) == 4 and names[0].endswith("a/7.png") and names[2].endswith("b/7.png")
    assert dataset.read_digits(paths[:2])["names"] == ["7.png", "4?.png"]
