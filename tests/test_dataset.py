"""The tar parsing, the Dataset and where the data comes from."""

import copy
import gzip
import hashlib
import http.server
import importlib.util
import io
import multiprocessing
import os
import re
import shutil
import socket
import struct
import sys
import tarfile
import textwrap
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn.functional import affine_grid, grid_sample, interpolate
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.functional import normalize, to_tensor

import dataset
from dataset import MNIST, UserError
from helpers import idx, own_lines


def png(image=None, **save_options):
    """A PNG file's bytes: the given Pillow image, or a black 28 x 28 one."""
    file = io.BytesIO()
    (image or Image.new("L", (28, 28))).save(file, **{"format": "PNG", **save_options})
    return file.getvalue()


def make_tar(path, members, mode="w"):
    """Write a tar with these (name, bytes) members; None instead of bytes makes a folder."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def sample_members(count):
    """The first (name, PNG bytes) of the shipped sample's training images."""
    with tarfile.open(dataset.SAMPLE_DIR / "train.tar") as tar:
        return [(name, tar.extractfile(name).read()) for name in tar.getnames()[:count]]


def test_pixels_and_labels_are_those_of_the_pngs(test_set):
    with tarfile.open(dataset.SAMPLE_DIR / "test.tar") as tar:
        for name in tar.getnames():
            number, label = name.removeprefix("test/").removesuffix(".png").split("_")
            image = Image.open(tar.extractfile(name))
            assert test_set.labels[int(number)] == int(label)
            assert bytes(test_set.images[int(number)].flatten()) == image.tobytes()


def test_sample_has_400_and_100_images_of_each_digit(train_set, test_set):
    assert train_set.images.shape == (4000, 28, 28) and train_set.images.dtype == torch.uint8
    assert test_set.images.shape == (1000, 28, 28) and test_set.labels.dtype == torch.int64
    assert train_set.labels.bincount().tolist() == [400] * 10
    assert test_set.labels.bincount().tolist() == [100] * 10


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_images_are_ordered_by_number_in_any_folder_and_compression(tmp_path, train_set, mode):
    # numbers of different lengths: 2 stands before 10, which it does not as text
    pngs = [content for _, content in sample_members(3)]
    members = [
        ("a/", None),
        ("a/10_1.png", pngs[1]),
        ("a/deeper/00002_0.png", pngs[0]),
        ("300_2.png", pngs[2]),
        ("a/._10_1.png", b"what macOS adds"),
        ("__MACOSX/a/10_1.png", b"what macOS adds"),
    ]
    images = MNIST(make_tar(tmp_path / "some.tar", members, mode))
    assert torch.equal(images.images, train_set.images[:3])
    assert images.labels.tolist() == [0, 1, 2]


def test_images_are_scaled_then_normalized_as_torchvision_does_it(test_set):
    for index in range(20):
        image, label = test_set[index]
        expected = normalize(to_tensor(Image.fromarray(test_set.images[index].numpy())), [0.1307], [0.3081])
        assert image.shape == (1, 28, 28) and image.dtype == torch.float32
        assert torch.equal(image, expected)
        assert label.shape == () and label.dtype == torch.int64 and label == test_set.labels[index]


@pytest.mark.parametrize("index", [[4, 2, 0], torch.tensor([4, 2, 0]), slice(10, 20), [-1, 3], []], ids=str)
def test_list_tensor_and_slice_give_batches(test_set, index):
    images, labels = test_set[index]
    chosen = list(range(len(test_set)))[index] if isinstance(index, slice) else [int(i) for i in index]
    assert images.shape == (len(chosen), 1, 28, 28) and images.dtype == torch.float32
    assert labels.shape == (len(chosen),) and labels.dtype == torch.int64
    for image, label, i in zip(images, labels, chosen):
        assert torch.equal(image, test_set[i][0]) and label == test_set[i][1]


def test_indexing_like_a_sequence(test_set):
    assert len(test_set) == 1000
    assert torch.equal(test_set[-1][0], test_set[999][0])
    with pytest.raises(IndexError):
        test_set[1000]


def test_transform_maps_normalized_batches(test_set):
    shapes = []

    def darken(images):
        shapes.append(tuple(images.shape))
        return images - 1

    darker = MNIST(dataset.SAMPLE_DIR / "test.tar", transform=darken)
    assert torch.equal(darker[[3, 5]][0], test_set[[3, 5]][0] - 1)
    assert torch.equal(darker[3][0], test_set[3][0] - 1)
    assert shapes == [(2, 1, 28, 28), (1, 1, 28, 28)]


@pytest.mark.parametrize(
    "transform, named",
    [
        (v2.CenterCrop(20), "(2, 1, 20, 20)"),
        (lambda images: images.double(), "float64"),
        (lambda images: print(end=""), "NoneType"),
    ],
    ids=["smaller", "double", "nothing"],
)
def test_what_a_transform_must_not_return_is_named(test_set, transform, named):
    transformed = test_set.subset(slice(None))
    transformed.transform = transform
    with pytest.raises(UserError) as error:
        transformed[[3, 5]]
    assert named in str(error.value)


def test_random_transform_per_image_as_the_docstring_shows(test_set):
    (function,) = re.findall(r" +def rotate_each.*\n.*\n", MNIST.__doc__)
    names = {"torch": torch, "rotate": v2.RandomRotation(40)}
    exec(textwrap.dedent(function), names)
    rotated = test_set.subset(slice(None))
    rotated.images = test_set.images[:1].expand(8, 28, 28)
    rotated.transform = names["rotate_each"]
    images = rotated[:8][0]
    assert len({image.numpy().tobytes() for image in images}) > 4  # a batch turned as a whole: 1


def test_subset_has_these_images_only_and_leaves_the_whole_alone(test_set):
    last = test_set.subset(slice(-300, None))
    assert len(last) == 300 and len(test_set) == 1000
    for mine, original in zip(last[[0, 299]], test_set[[700, 999]]):
        assert torch.equal(mine, original)
    assert last.images.data_ptr() == test_set.images[700].data_ptr()  # not copied


@pytest.fixture
def bars():
    """A normalized batch of 1,000 images of the same thick upright bar. Seeds the chance."""
    torch.manual_seed(0)
    images = torch.zeros(1000, 1, 28, 28)
    images[..., 6:22, 12:16] = 1
    return (images - dataset.MEAN) / dataset.STD


def test_augmentation_without_limits_changes_nothing(test_set):
    images, _ = test_set[:]
    assert torch.allclose(dataset.Augmentation()(images), images, atol=1e-4)


def test_augmented_images_lie_on_background_and_do_not_mix(bars):
    background = -dataset.MEAN / dataset.STD
    bars[500:] = background
    augmented = dataset.Augmentation(rotation=20, shift=12, scaling=0.3)(bars)
    assert augmented.shape == bars.shape and augmented.dtype == torch.float32
    assert torch.allclose(augmented[500:], torch.tensor(background))
    assert augmented.min() > background - 1e-4 and augmented.max() < bars.max() + 1e-4
    full = dataset.Augmentation(shift=12)(torch.full((1000, 1, 28, 28), bars.max()))
    assert full.amin(dim=(1, 2, 3)).median() == pytest.approx(background)


def test_augmentation_obeys_the_seed(test_set):
    augmentation, images = dataset.Augmentation(rotation=8, shift=1.4, scaling=0.05), test_set[:100][0]

    def augmented(seed):
        torch.manual_seed(seed)
        return augmentation(images)

    first = augmented(0)
    assert not torch.equal(first, augmentation(images))
    assert torch.equal(first, augmented(0)) and not torch.equal(first, augmented(1))


def test_a_later_option_leaves_the_earlier_ones_as_they_are(bars):
    shifted = {}
    for elastic in (0, 1e-6):  # too small to be seen
        torch.manual_seed(0)
        shifted[elastic] = dataset.Augmentation(rotation=8, scaling=0.1, shift=1.4, elastic=elastic)(bars)
    assert torch.allclose(shifted[0], shifted[1e-6], atol=1e-3)


def test_augmentation_is_the_plain_form_of_its_docstring(test_set):
    images, _ = test_set[:20]
    augmentation = dataset.Augmentation(rotation=8, scaling=0.1, shift=1.4, elastic=0.4)
    torch.manual_seed(0)
    angle = torch.deg2rad(8 * (2 * torch.rand(20) - 1))
    zoom = 1 + 0.1 * (2 * torch.rand(20) - 1)
    right, down = 1.4 / 14 * (2 * torch.rand(2, 20) - 1)
    displacements = 0.4 / 14 * torch.randn(20, 2, 7, 7)
    matrices = torch.stack(
        [angle.cos() / zoom, -angle.sin() / zoom, right, angle.sin() / zoom, angle.cos() / zoom, down], dim=1
    ).view(20, 2, 3)
    sources = affine_grid(matrices, images.shape, align_corners=False)
    sources += interpolate(displacements, 28, mode="bicubic", align_corners=True).movedim(1, -1)
    background = -dataset.MEAN / dataset.STD
    expected = grid_sample(images - background, sources, align_corners=False) + background
    torch.manual_seed(0)
    assert torch.allclose(augmentation(images), expected, atol=1e-4)


def test_denormalize_undoes_normalize(test_set):
    assert torch.equal(dataset.denormalize(test_set[:][0]), test_set.images)


def sums(images):
    return sorted(image.sum().item() for image in images)


def test_plain_dataloader_with_workers_gives_every_image_once(test_set):
    loader = DataLoader(test_set, batch_size=32, shuffle=True, num_workers=2)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [32] * 31 + [8]
    assert batches[0][0].shape == (32, 1, 28, 28) and batches[0][1].dtype == torch.int64
    images, labels = (torch.cat(parts) for parts in zip(*batches))
    assert not torch.equal(labels, test_set.labels) and torch.equal(
        labels.bincount(), test_set.labels.bincount()
    )
    assert sums(images) == sums(test_set[:][0])


def with_chunk(content, kind, data):
    """A PNG with one chunk's data replaced, and a checksum that fits it."""
    start = content.index(kind) - 4
    (length,) = struct.unpack_from(">I", content, start)
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content[:start] + chunk + content[start + 12 + length :]


def with_flipped_bit(content, position):
    content = bytearray(content)
    content[position] ^= 1
    return bytes(content)


def painted(mode, pixel):
    """A 28 x 28 image of this mode in which one pixel differs from the others."""
    image = Image.new(mode, (28, 28))
    image.putpixel((3, 5), pixel)
    return image


BAD_MEMBERS = {
    "flipped bit": ("train/00001_5.png", with_flipped_bit(png(), png().index(b"IDAT") + 9)),
    "pixels that can't be inflated": ("train/00001_5.png", with_chunk(png(), b"IDAT", b"no zlib stream")),
    "header of 50,000 x 50,000": (
        "train/00001_5.png",
        with_chunk(png(), b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)),
    ),
    "too many bytes": ("train/00001_5.png", png() + bytes(dataset.MAX_FILE_SIZE)),
    "transparent grey level": ("train/00001_5.png", png(painted("L", 255), transparency=255)),
    "16 bits": ("train/00001_5.png", png(Image.new("I;16", (28, 28)))),
    "label of two digits": ("train/00001_12.png", png()),
    "no number and label": ("train/five.png", png()),
    "number of the member before": ("train/00000_5.png", png()),
    "too large": ("train/00001_5.png", png(Image.new("L", (32, 32)))),
    "colour": ("train/00001_5.png", png(painted("RGB", (255, 0, 0)))),
    "JPEG": ("train/00001_5.png", png(format="JPEG")),
    "cut off": ("train/00001_5.png", png()[:50]),
}


@pytest.mark.parametrize("name, content", BAD_MEMBERS.values(), ids=BAD_MEMBERS)
def test_bad_members_are_errors_that_name_tar_and_member(tmp_path, name, content):
    path = make_tar(tmp_path / "bad.tar", [("train/00000_0.png", png()), (name, content)])
    with pytest.raises(UserError) as error:
        MNIST(path)
    assert str(path) in str(error.value) and name in str(error.value)


@pytest.mark.filterwarnings("error")  # those of Pillow would be a second line for the user
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"?"])
def test_links_and_devices_are_errors(tmp_path, kind):
    path = make_tar(tmp_path / "links.tar", sample_members(1))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("train/00001_5.png")
        link.type, link.linkname = kind, tar.getnames()[0]
        tar.addfile(link)
    with pytest.raises(UserError) as error:
        MNIST(path)
    assert str(path) in str(error.value) and "train/00001_5.png" in str(error.value)
    assert ("link" in str(error.value).replace(str(path), "")) == (kind in (tarfile.SYMTYPE, tarfile.LNKTYPE))


@pytest.mark.parametrize("form", ["before the pixels", "after the pixels", "with a palette"])
def test_an_image_with_a_flipped_bit_anywhere_or_cut_anywhere_is_an_error(form):
    note = b"tEXt" + b"Comment\0a digit"
    chunk = struct.pack(">I", len(note) - 4) + note + struct.pack(">I", zlib.crc32(note))
    content = png(painted("L", 200).convert("P" if "palette" in form else "L"))
    end = content.index(b"IDAT") - 4 if "before" in form else len(content) - 12
    content = content[:end] + chunk + content[end:]
    assert len(dataset.decode(content)) == 784
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        for wrong in (bytes(damaged), content[:position]):
            with pytest.raises(Exception):  # noqa: B017, Pillow raises many kinds
                dataset.decode(wrong)


GREY = {
    "colour": Image.merge("RGB", [painted("L", 200)] * 3),
    "opaque alpha": Image.merge("RGBA", [painted("L", 200)] * 3 + [Image.new("L", (28, 28), 255)]),
    "grey and opaque alpha": Image.merge("LA", [painted("L", 200), Image.new("L", (28, 28), 255)]),
    "palette": painted("L", 200).convert("P"),
}


@pytest.mark.parametrize("image", GREY.values(), ids=GREY)
def test_grey_in_another_form_is_read(tmp_path, image):
    images = MNIST(make_tar(tmp_path / "some.tar", [("0_7.png", png(image))])).images
    assert bytes(images.flatten()) == painted("L", 200).tobytes()


def test_names_that_lead_elsewhere_are_just_names(tmp_path):
    content = sample_members(1)[0][1]
    path = make_tar(tmp_path / "some.tar", [("/0_0.png", content), ("../../1_0.png", content)])
    assert len(MNIST(path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["some.tar"]


def test_names_in_capitals_count_and_what_a_system_adds_does_not(tmp_path, train_set):
    pngs = [content for _, content in sample_members(2)]
    junk = [".DS_Store", "a/Desktop.ini", "Thumbs.db", "a/b/THUMBS.DB", "__MACOSX/a/5_5.png", "a/._0_0.PNG"]
    members = [("A/1_1.Png", pngs[1]), *((name, b"no image") for name in junk), ("A/0_0.PNG", pngs[0])]
    images = MNIST(make_tar(tmp_path / "some.tar", members))
    assert torch.equal(images.images, train_set.images[:2]) and images.labels.tolist() == [0, 1]
    with pytest.raises(UserError):  # nothing else is passed over
        MNIST(make_tar(tmp_path / "other.tar", [*members, ("a/notes.ini", b"no image")]))


def test_numbers_may_be_of_any_length(tmp_path):
    black = png()
    MNIST(make_tar(tmp_path / "long.tar", [(f"{'9' * 200}_1.png", black), ("2_1.png", black)], "w"))
    with pytest.raises(UserError):
        MNIST(make_tar(tmp_path / "twice.tar", [("1_1.png", black), ("001_1.png", black)]))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_tars_cut_off_anywhere_are_errors(tmp_path, mode):
    path = make_tar(tmp_path / "whole.tar", sample_members(3), mode)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        second, third = tar.getmembers()[1:]
    if mode == "w":
        # inside a header, after it, inside an image, between two members, after the last
        end = third.offset_data + 512
        cuts = [
            second.offset + 100,
            second.offset_data,
            second.offset_data + 100,
            third.offset,
            end,
            end + 100,
        ]
    else:
        cuts = range(1, len(whole) - 1, len(whole) // 20)
    cut_path = tmp_path / "cut.tar"
    for cut in cuts:
        cut_path.write_bytes(whole[:cut])
        with pytest.raises(UserError) as error:
            MNIST(cut_path)
        assert str(cut_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["flipped bit in a header", "something behind the end"])
def test_members_that_tarfile_does_not_see_are_errors(tmp_path, what):
    path = make_tar(tmp_path / "damaged.tar", sample_members(3))
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1]
    content = path.read_bytes()
    if what == "flipped bit in a header":
        path.write_bytes(with_flipped_bit(content, second.offset + 3))
    else:
        path.write_bytes(content + content)
    with pytest.raises(UserError) as error:
        MNIST(path)
    assert str(path) in str(error.value)


def test_negative_sizes_do_not_send_tarfile_in_circles(tmp_path):
    path = make_tar(tmp_path / "damaged.tar", sample_members(1))
    # a member that ends where it begins
    header = bytearray(path.read_bytes()[:512])
    header[124:136] = (-512 & (256**12 - 1)).to_bytes(12, "big")
    header[:100] = b"._skipped".ljust(100, b"\0")
    header[156:157] = b"?"  # a kind of member for which tarfile believes any size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(path.read_bytes()[:1024] + header + bytes(1024))
    with pytest.raises(UserError):
        MNIST(path)


def test_training_and_test_images_must_differ(train_set, test_set, capsys):
    dataset.check_overlap(train_set, test_set)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError):
        dataset.check_overlap(test_set, test_set)
    # most of the smaller set is enough, whichever that is
    for train, test in ((test_set.subset(slice(100)), test_set), (test_set, test_set.subset(slice(100)))):
        with pytest.raises(UserError):
            dataset.check_overlap(train, test)
    mixed = copy.copy(test_set)
    mixed.images = torch.cat([train_set.images[:37], test_set.images[37:]])
    dataset.check_overlap(train_set, mixed)
    (warning,) = capsys.readouterr().err.splitlines()
    assert "37" in warning


def test_bad_tars_are_errors_that_name_the_tar(tmp_path):
    (tmp_path / "text.tar").write_text("no tar", encoding="utf-8")
    make_tar(tmp_path / "empty.tar", [("train/", None)])
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "nothing.tar").touch()
    for name, exception in (
        ("absent.tar", FileNotFoundError),
        ("text.tar", UserError),
        ("empty.tar", UserError),
        ("folder.tar", OSError),
        ("nothing.tar", UserError),
    ):
        with pytest.raises(exception) as error:
            MNIST(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def mirror(tmp_path, monkeypatch, train_set, test_set):
    """The folder of a server on loopback, which torchvision takes for the only one of
    MNIST: 30 training and 20 test images."""
    files = {
        "train-images-idx3-ubyte.gz": gzip.compress(idx(train_set.images[:30])),
        "train-labels-idx1-ubyte.gz": gzip.compress(idx(train_set.labels[:30])),
        "t10k-images-idx3-ubyte.gz": gzip.compress(idx(test_set.images[:20])),
        "t10k-labels-idx1-ubyte.gz": gzip.compress(idx(test_set.labels[:20])),
    }
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        use_mirror(monkeypatch, server.server_address[1])
        monkeypatch.setattr(
            torchvision.datasets.MNIST,
            "resources",
            [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()],
        )
        yield folder
        server.shutdown()


def use_mirror(monkeypatch, port):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])


@pytest.fixture
def default_dir(tmp_path, monkeypatch):
    """A folder that does not exist yet, as the one that MNIST is downloaded to."""
    monkeypatch.setattr(dataset, "DEFAULT_DIR", tmp_path / "data")
    return tmp_path / "data"


def test_mnist_is_downloaded_to_the_default_folder_as_two_tars(default_dir, mirror, train_set, test_set):
    downloaded, downloaded_test, data = dataset.load_data(default_dir)
    assert sorted(path.name for path in default_dir.iterdir()) == ["test.tar", "train.tar"]
    assert torch.equal(downloaded.images, train_set.images[:30])
    assert torch.equal(downloaded.labels, train_set.labels[:30])
    assert torch.equal(downloaded_test.images, test_set.images[:20])
    assert torch.equal(downloaded_test.labels, test_set.labels[:20])
    assert str(default_dir) in data["description"]
    with tarfile.open(default_dir / "train.tar") as tar:
        assert tar.getnames()[7] == f"train/00007_{train_set.labels[7]}.png"


@pytest.fixture
def small_dir(tmp_path, train_set, test_set):
    """A folder with tars of 30 training and 20 test images."""
    folder = tmp_path / "small"
    folder.mkdir()
    dataset.write_tar(folder / "train.tar", train_set.images[:30], train_set.labels)
    dataset.write_tar(folder / "test.tar", test_set.images[:20], test_set.labels)
    return folder


@pytest.mark.parametrize("present", [["train.tar", "test.tar"], ["train.tar"], ["TEST.tar.gz"]], ids=str)
def test_nothing_is_downloaded_to_where_a_tar_lies(default_dir, small_dir, mirror, present):
    default_dir.mkdir()
    for name in present:
        shutil.copy(small_dir / name.lower().removesuffix(".gz"), default_dir / name)
    if len(present) == 2:
        assert len(dataset.load_data(default_dir)[0]) == 30
    else:
        with pytest.raises(UserError) as error:
            dataset.load_data(default_dir)
        assert present[0] in str(error.value)
    assert sorted(path.name for path in default_dir.iterdir()) == sorted(present)


def test_two_downloads_at_once_do_not_disturb_each_other(tmp_path, mirror):
    in_processes(2, dataset.download, tmp_path / "data")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["test.tar", "train.tar"]
    assert [len(MNIST(tmp_path / "data" / name)) for name in ("train.tar", "test.tar")] == [30, 20]


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-100], lambda content: b"<html>not here</html>"],
    ids=["cut off", "error page"],
)
def test_damaged_download_leaves_nothing_behind(tmp_path, mirror, damage):
    path = mirror / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RuntimeError):
        dataset.download(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_server_without_an_answer_is_given_up(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_mirror(monkeypatch, silent.getsockname()[1])
        with pytest.raises(OSError):
            dataset.download(tmp_path, timeout=0.2)
    assert socket.getdefaulttimeout() is None
    assert list(tmp_path.iterdir()) == []


def test_without_network_the_sample_is_used_and_this_is_said(default_dir, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed_port = server.getsockname()[1]
    use_mirror(monkeypatch, closed_port)
    train_set, _, data = dataset.load_data(default_dir)
    assert len(train_set) == 4000 and "sample" in data["description"]
    error = capsys.readouterr().err
    assert str(default_dir) in error and "\n\n" not in error and len(error.splitlines()) < 4


def test_a_default_folder_that_can_not_be_written_to_gives_the_sample(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(dataset, "DEFAULT_DIR", tmp_path / "file" / "data")
    train_set, _, data = dataset.load_data(dataset.DEFAULT_DIR)
    assert len(train_set) == 4000 and "sample" in data["description"]
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize(
    "names", [[], ["train.tar"], ["test.tgz", "six.png"], ["train.tar", "TRAIN.TAR.XZ", "test.tar"]], ids=str
)
def test_a_folder_of_ones_own_without_two_tars_is_an_error_that_says_what_it_holds(tmp_path, mirror, names):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((dataset.SAMPLE_DIR / "train.tar").read_bytes())
    with pytest.raises(UserError) as error:
        dataset.load_data(folder)
    for name in [str(folder), *names]:
        assert name in str(error.value)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_folder_that_is_missing_or_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(OSError) as error:
            dataset.load_data(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


def test_a_dangling_link_is_named_and_neither_downloaded_nor_replaced_by_the_sample(default_dir, mirror):
    default_dir.mkdir()
    try:
        (default_dir / "train.tar").symlink_to("gone")
    except OSError:
        pytest.skip("links need a privilege on Windows")
    with pytest.raises(OSError) as error:
        dataset.load_data(default_dir)
    assert str(default_dir / "train.tar") in str(error.value)


@pytest.mark.parametrize("names", [("TRAIN.tar", "Test.Tar.bz2"), ("train.tgz", "test.TAR.XZ")], ids=str)
def test_names_of_tars_in_capitals_and_compressed(tmp_path, train_set, names):
    pngs = sample_members(5)
    for name, members in zip(names, (pngs[:3], pngs[3:])):
        make_tar(tmp_path / name, members, "w:" + {"tgz": "gz", "bz2": "bz2", "xz": "xz"}.get(name[-3:], ""))
    train, test, _ = dataset.load_data(tmp_path)
    assert torch.equal(train.images, train_set.images[:3])
    assert torch.equal(test.images, train_set.images[3:5])


def test_folders_are_relative_to_the_project_and_to_home(tmp_path, small_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(dataset.load_data("data/sample")[0]) == 4000
    for variable in ("HOME", "USERPROFILE"):  # Windows has the second
        monkeypatch.setenv(variable, str(tmp_path))
    train_set, _, data = dataset.load_data(f"~/{small_dir.name}")
    assert len(train_set) == 30 and small_dir.name in data["description"]


def test_images_dark_on_light_are_a_warning_that_names_the_tar(tmp_path, train_set, test_set, capsys):
    dataset.write_tar(tmp_path / "train.tar", train_set.images[:50], train_set.labels)
    dataset.write_tar(tmp_path / "test.tar", 255 - test_set.images[:50], test_set.labels)
    dataset.load_data(tmp_path)
    (warning,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "test.tar") in warning and "255 - image" in warning


def test_images_that_are_almost_black_are_a_warning_that_names_the_tar(tmp_path, train_set, test_set, capsys):
    dataset.write_tar(tmp_path / "train.tar", train_set.images[:50] // 255, train_set.labels)
    dataset.write_tar(tmp_path / "test.tar", test_set.images[:50], test_set.labels)
    dataset.load_data(tmp_path)
    (warning,) = own_lines(capsys.readouterr().err)
    assert str(tmp_path / "train.tar") in warning and "255 * image" in warning


def test_the_same_images_have_the_same_checksum_in_any_folder(tmp_path, small_dir):
    before = dataset.load_data(small_dir)[2]
    shutil.copytree(small_dir, tmp_path / "copy")
    assert dataset.load_data(tmp_path / "copy")[2]["train_checksum"] == before["train_checksum"]
    make_tar(tmp_path / "copy" / "train.tar", sample_members(29))
    after = dataset.load_data(tmp_path / "copy")[2]
    assert after["train_checksum"] != before["train_checksum"]
    assert after["eval_checksum"] == before["eval_checksum"]


def test_a_tar_is_never_overwritten(tmp_path, test_set):
    dataset.write_tar(tmp_path / "some.tar", test_set.images[:3], test_set.labels[:3])
    before = (tmp_path / "some.tar").read_bytes()
    with pytest.raises(FileExistsError):
        dataset.write_tar(tmp_path / "some.tar", test_set.images[3:6], test_set.labels[3:6])
    assert (tmp_path / "some.tar").read_bytes() == before


def test_training_and_held_out_images_are_a_fixed_random_choice_in_their_order(small_dir, train_set):
    all_images, test_images, about = dataset.load_data(small_dir)
    assert torch.equal(all_images.images, train_set.images[:30])
    order = dataset.fixed_permutation(30)
    assert sorted(order.tolist()) == list(range(30)) and torch.equal(order, dataset.fixed_permutation(30))
    few, held_out, held_out_about = dataset.load_data(small_dir, training_images=12, validation_images=10)
    for subset, numbers in ((few, order[:12]), (held_out, order[20:])):
        assert torch.equal(subset.images, all_images.images[numbers.sort().values])
        assert torch.equal(subset.labels, all_images.labels[numbers.sort().values])
    assert (about["kind"], held_out_about["kind"]) == ("test", "validation")
    assert held_out_about["eval_checksum"] != about["eval_checksum"]
    few, same_images, few_about = dataset.load_data(small_dir, training_images=12)
    assert torch.equal(same_images.images, test_images.images)
    assert few_about["eval_checksum"] == about["eval_checksum"]
    assert torch.equal(all_images.some(12).images, few.images)


def test_a_choice_of_images_in_the_order_of_their_classes_holds_all_of_them(train_set):
    order = train_set.labels.argsort()
    some = train_set.subset(order).some(400)
    assert some.labels.bincount(minlength=10).min() > 20


@pytest.mark.parametrize(
    "settings",
    [{"validation_images": 30}, {"validation_images": -1}, {"training_images": 0}, {"training_images": 31}],
)
def test_more_images_than_there_are_can_not_be_chosen(small_dir, settings):
    ((name, count),) = settings.items()
    with pytest.raises(UserError, match=f"{name.upper()} = {count} "):
        dataset.load_data(small_dir, **settings)


# The cache of a large tar


@pytest.fixture
def tar_path(small_dir, monkeypatch):
    """A tar that counts as large."""
    monkeypatch.setattr(dataset, "MIN_CACHED", 10)
    return small_dir / "train.tar"


def cache_of(tar_path):
    """The cache beside a tar. There must be no other new one."""
    (path,) = [path for path in tar_path.parent.iterdir() if path.suffix != ".tar"]
    return path


def in_processes(count, function, *arguments):
    """Run a function in forks, which know of patched constants, at the same time."""
    if not hasattr(os, "fork"):
        pytest.skip("Windows has no fork")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=function, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def assert_same_images(tar_path, train_set):
    """Whether the tar gives the first training images."""
    images = MNIST(tar_path)
    assert torch.equal(images.images, train_set.images[:30]) and images.images.dtype == torch.uint8
    assert torch.equal(images.labels, train_set.labels[:30]) and images.labels.dtype == torch.int64


def test_a_cache_is_read_and_holds_those_of_the_tar(tar_path, train_set):
    assert_same_images(tar_path, train_set)
    assert_same_images(tar_path, train_set)
    # other images from the right source show that it is this file that is read
    with np.load(cache_of(tar_path)) as cache:
        arrays = {**cache, "images": 255 - cache["images"]}
    with open(cache_of(tar_path), "wb") as file:
        np.savez(file, **arrays)
    assert torch.equal(MNIST(tar_path).images, 255 - train_set.images[:30])


def test_a_damaged_cache_is_made_again(tar_path, train_set):
    MNIST(tar_path)
    whole = cache_of(tar_path).read_bytes()
    positions = [*range(0, len(whole), 497), len(whole) - 1]
    damaged = [with_flipped_bit(whole, position) for position in positions]
    damaged += [whole[:position] for position in positions]
    damaged += [whole[784:], whole[:1000] + whole[1784:], b"no images"]
    damaged.append(whole.replace(b"(30, 28, 28)", b"(20, 28, 28)"))  # fewer images, as numpy would read them
    assert damaged[-1] != whole
    for content in damaged:
        cache_of(tar_path).write_bytes(content)
        assert_same_images(tar_path, train_set)


def test_a_cache_of_another_tar_is_made_again(tar_path, train_set, test_set):
    MNIST(tar_path)
    before = cache_of(tar_path).read_bytes()
    os.remove(tar_path)
    dataset.write_tar(tar_path, test_set.images[:30], test_set.labels)
    for _ in range(2):
        assert torch.equal(MNIST(tar_path).images, test_set.images[:30])
    assert cache_of(tar_path).read_bytes() != before


def test_a_cache_of_another_version_of_the_code_is_made_again(tmp_path, tar_path, train_set):
    source = Path(dataset.__file__).read_text(encoding="utf-8")
    source = source.replace("return image.tobytes()", "return bytes(255 - i for i in image.tobytes())")
    (tmp_path / "edited.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("edited", tmp_path / "edited.py")
    edited = importlib.util.module_from_spec(spec)
    sys.modules["edited"] = edited  # which a dataclass needs
    spec.loader.exec_module(edited)
    edited.MIN_CACHED = 10
    for _ in range(2):
        assert_same_images(tar_path, train_set)
        assert torch.equal(edited.MNIST(tar_path).images, 255 - train_set.images[:30])


def test_without_room_for_a_cache_all_works_without_a_word(tar_path, train_set, capfd):
    resource = pytest.importorskip("resource")  # not on Windows

    def read():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        assert_same_images(tar_path, train_set)

    in_processes(1, read)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tar_path.parent.glob("*") if path.suffix != ".tar"] == []


def test_processes_that_keep_images_at_the_same_time_do_not_disturb_each_other(tar_path, train_set):
    def read():
        for _ in range(20):
            tar_path.with_name("train.tar.decoded").unlink(missing_ok=True)
            assert_same_images(tar_path, train_set)

    in_processes(4, read)
    assert_same_images(tar_path, train_set)
    assert cache_of(tar_path)
