"""The tar parsing, the Dataset and where the data comes from."""

import copy
import gzip
import hashlib
import http.server
import io
import multiprocessing
import os
import random
import re
import shutil
import socket
import struct
import tarfile
import textwrap
import threading
import zlib

import pytest
import torch
import torchvision
from PIL import Image
from torch.nn.functional import affine_grid, grid_sample, interpolate
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from torchvision.transforms import v2
from torchvision.transforms.functional import normalize, to_tensor

import dataset
from dataset import UserError, MNIST
from helpers import idx


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


@pytest.mark.parametrize(
    "index", [[4, 2, 0], torch.tensor([4, 2, 0]), slice(10, 20), [7], [-1, 3], [], slice(0, 0)], ids=str
)
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


def test_indexing_leaves_the_stored_images_alone(test_set):
    before = test_set.images.clone()
    test_set[0], test_set[[1, 2]], test_set[:]
    assert torch.equal(test_set.images, before)


def test_transform_maps_normalized_batches(test_set):
    shapes = []

    def darken(images):
        shapes.append(tuple(images.shape))
        return images - 1

    darker = MNIST(dataset.SAMPLE_DIR / "test.tar", transform=darken)
    assert torch.equal(darker[[3, 5]][0], test_set[[3, 5]][0] - 1)
    assert torch.equal(darker[3][0], test_set[3][0] - 1)
    assert shapes == [(2, 1, 28, 28), (1, 1, 28, 28)]


def test_transform_of_another_shape_is_named(test_set):
    smaller = test_set.subset(slice(None))
    smaller.transform = v2.CenterCrop(20)
    with pytest.raises(UserError) as error:
        smaller[[3, 5]]
    assert "20" in str(error.value)
    smaller.transform = lambda images: images[:1]
    with pytest.raises(UserError):
        smaller[[3, 5]]


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


def moments(images):
    """Centre of the ink, (B, 2), and its covariances, (B, 2, 2), in pixels, x before y."""
    ink = (images * dataset.STD + dataset.MEAN).clamp(min=0).flatten(1).double()
    ink /= ink.sum(dim=1, keepdim=True)
    places = torch.cartesian_prod(torch.arange(28.0), torch.arange(28.0)).double().flip(1)
    centre = ink @ places
    offsets = places - centre.unsqueeze(1)
    return centre, torch.einsum("bp,bpi,bpj->bij", ink, offsets, offsets)


def spread_over(amounts, limit):
    """Whether amounts lie within -limit and limit and make use of all of that, around 0."""
    amounts = amounts.double()
    return (
        amounts.abs().max() < 1.02 * limit
        and amounts.max() > 0.95 * limit
        and amounts.min() < -0.95 * limit
        and amounts.mean().abs() < 0.1 * limit
    )


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


def test_augmentation_shifts_up_to_the_limit(bars):
    right, down = (moments(dataset.Augmentation(shift=1.4)(bars))[0] - moments(bars)[0]).T
    assert spread_over(right, 1.4) and spread_over(down, 1.4)
    assert torch.corrcoef(torch.stack([right, down]))[0, 1].abs() < 0.1  # each direction for itself


def test_augmentation_rotates_up_to_the_limit(bars):
    before, after = moments(bars), moments(dataset.Augmentation(rotation=8)(bars))
    assert torch.allclose(before[0], after[0], atol=0.05)  # around the middle
    covariance = after[1]
    angle = 0.5 * torch.atan2(2 * covariance[:, 0, 1], covariance[:, 1, 1] - covariance[:, 0, 0])
    assert spread_over(angle.rad2deg(), 8)
    assert torch.allclose(
        covariance.det(), before[1].det(), rtol=0.25
    )  # neither wider nor narrower, but blurred


def test_augmentation_scales_up_to_the_limit(bars):
    before, after = moments(bars), moments(dataset.Augmentation(scaling=0.2)(bars))
    assert torch.allclose(before[0], after[0], atol=0.05)
    height = (after[1][:, 1, 1] / before[1][:, 1, 1]).sqrt()
    assert spread_over(height - 1, 0.2)


def test_elastic_displacements_are_smooth_and_have_the_stated_size(test_set):
    torch.manual_seed(0)
    # a slope as the image: its change is the displacement of each pixel
    slope = torch.linspace(-1, 1, 28).expand(1000, 1, 28, 28) * 13.5
    change = (dataset.Augmentation(elastic=0.5)(slope) - slope)[..., 4:-4, 4:-4]
    point = change[:, 0, 5, 5]  # pixel 9 is a point of the 7 x 7 grid
    assert point.std() == pytest.approx(0.5, rel=0.15) and point.mean().abs() < 0.05
    assert (change[..., 1:] - change[..., :-1]).abs().max() < 1  # 3, if pixels were independent
    assert not torch.allclose(change[0], change[1], atol=0.1)


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


@pytest.mark.parametrize(
    "limits",
    [
        {"rotation": -1},
        {"rotation": 181},
        {"shift": 29},
        {"scaling": 1},
        {"shift": float("nan")},
        {"elastic": -1},
    ],
)
def test_augmentation_refuses_other_limits(test_set, limits):
    (name,) = limits
    with pytest.raises(UserError, match=name):
        dataset.Augmentation(**limits)(test_set[:2][0])


def test_an_option_that_is_off_draws_no_random_numbers(test_set):
    images = test_set[:10][0]
    options = {"rotation": 8, "scaling": 0.1, "shift": 1.4, "elastic": 0.4}
    for name, value in options.items():
        torch.manual_seed(0)
        dataset.Augmentation(**{name: value})(images)
        after = torch.rand(1)
        torch.manual_seed(0)
        dataset.Augmentation()(images)
        assert torch.rand(1) != after  # it draws
        torch.manual_seed(0)
        dataset.Augmentation(**options | {name: 0})(images)
        without = torch.rand(1)
        torch.manual_seed(0)
        dataset.Augmentation(**options)(images)
        assert torch.rand(1) != without


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


def test_batch_sampler_gives_every_image_once(test_set):
    sampler = BatchSampler(RandomSampler(test_set), 32, drop_last=False)
    batches = list(DataLoader(test_set, batch_size=None, sampler=sampler))
    assert [len(labels) for _, labels in batches] == [32] * 31 + [8]
    assert sums(torch.cat([images for images, _ in batches])) == sums(test_set[:][0])


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


IDAT = png().index(b"IDAT")

BAD_MEMBERS = {
    "flipped bit in the pixels": ("train/00001_5.png", with_flipped_bit(png(), IDAT + 9)),
    "wrong checksum of the pixels": ("train/00001_5.png", with_flipped_bit(png(), png().index(b"IEND") - 5)),
    "wrong checksum of the end": ("train/00001_5.png", with_flipped_bit(png(), len(png()) - 1)),
    "pixels that can't be inflated": ("train/00001_5.png", with_chunk(png(), b"IDAT", b"no zlib stream")),
    "header of 50,000 x 50,000": (
        "train/00001_5.png",
        with_chunk(png(), b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)),
    ),
    "header of 10,000 x 10,000": (
        "train/00001_5.png",
        with_chunk(png(), b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)),
    ),
    "too many bytes": ("train/00001_5.png", png() + bytes(dataset.MAX_FILE_SIZE)),
    "colour in a palette": ("train/00001_5.png", png(painted("RGB", (255, 0, 0)).convert("P"))),
    "transparent pixel": ("train/00001_5.png", png(painted("LA", (255, 255)))),
    "transparent grey level": ("train/00001_5.png", png(painted("L", 255), transparency=255)),
    "16 bits": ("train/00001_5.png", png(Image.new("I;16", (28, 28)))),
    "label of two digits": ("train/00001_12.png", png()),
    "label no digit": ("train/00001_x.png", png()),
    "no number and label": ("train/five.png", png()),
    "no image": ("train/00001_5.txt", b"five"),
    "number of the member before": ("train/00000_5.png", png()),
    "too large": ("train/00001_5.png", png(Image.new("L", (32, 32)))),
    "colour": ("train/00001_5.png", png(painted("RGB", (255, 0, 0)))),
    "JPEG": ("train/00001_5.png", png(format="JPEG")),
    "cut off": ("train/00001_5.png", png()[:50]),
    "empty": ("train/00001_5.png", b""),
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


def test_one_bit_is_black_and_white(tmp_path):
    images = MNIST(make_tar(tmp_path / "some.tar", [("0_7.png", png(painted("1", 1)))])).images
    assert bytes(images.flatten()) == painted("L", 255).tobytes()


def test_names_that_lead_elsewhere_are_just_names(tmp_path, train_set):
    members = [
        (f"{folder}{number}_0.png", sample_members(1)[0][1]) for number, folder in enumerate(("/", "../../"))
    ]
    make_tar(tmp_path / "some.tar", members + [(".DS_Store", b"what macOS adds")])
    assert len(MNIST(tmp_path / "some.tar")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["some.tar"]


def test_numbers_may_be_of_any_length(tmp_path):
    black = png()
    MNIST(make_tar(tmp_path / "long.tar", [(f"{'9' * 200}_1.png", black), ("2_1.png", black)], "w"))
    with pytest.raises(UserError):
        MNIST(make_tar(tmp_path / "twice.tar", [("1_1.png", black), ("001_1.png", black)]))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
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


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_random_damage_gives_a_dataset_or_a_clear_error(tmp_path, mode):
    whole = make_tar(tmp_path / "whole.tar", [("train/", None), *sample_members(2)], mode).read_bytes()
    path = tmp_path / "damaged.tar"
    outcomes = set()
    for seed in range(200):
        generator = random.Random(seed)
        content = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            start, end = sorted(generator.choices(range(len(content) + 1), k=2))
            damage = generator.choice(("byte", "byte", "byte", "cut", "duplicate", "end"))
            if damage == "byte" and start < len(content):
                content[start] = generator.randrange(256)
            elif damage == "cut":
                del content[start : min(end, start + 1024)]
            elif damage == "duplicate":
                content[start:start] = content[start : min(end, start + 1024)]
            elif damage == "end":
                del content[end:]
        path.write_bytes(content)
        try:
            MNIST(path)[:]
            outcomes.add("data set")
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            outcomes.add("error")
    assert "error" in outcomes and (outcomes == {"data set", "error"} or mode == "w:gz")


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


def test_training_and_test_images_must_differ(train_set, test_set):
    assert dataset.check_sets(train_set, test_set) == []
    with pytest.raises(UserError):
        dataset.check_sets(test_set, test_set)
    # most of the smaller set is enough, whichever that is
    for train, test in ((test_set.subset(slice(100)), test_set), (test_set, test_set.subset(slice(100)))):
        with pytest.raises(UserError):
            dataset.check_sets(train, test)
    mixed = copy.copy(test_set)
    mixed.images = torch.cat([train_set.images[:37], test_set.images[37:]])
    (warning,) = dataset.check_sets(train_set, mixed)
    assert "37" in warning


def test_digits_without_training_images_are_named(train_set, test_set):
    few = train_set.subset([i for i in range(100) if train_set.labels[i] not in (3, 8)])
    (warning,) = dataset.check_sets(few, test_set)
    assert re.findall(r"\d", warning) == ["3", "8"]


def test_bad_tars_are_errors_that_name_the_tar(tmp_path):
    (tmp_path / "text.tar").write_text("no tar", encoding="utf-8")
    make_tar(tmp_path / "empty.tar", [("train/", None)])
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "nothing.tar").touch()
    for name, exception in (
        ("absent.tar", FileNotFoundError),
        ("text.tar", UserError),
        ("empty.tar", UserError),
        ("folder.tar", UserError),
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
        threading.Thread(target=server.serve_forever, daemon=True).start()
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


def test_download_writes_two_tars(tmp_path, mirror, train_set, test_set):
    data_dir = tmp_path / "data"
    assert dataset.find_data(data_dir) == data_dir
    assert sorted(path.name for path in data_dir.iterdir()) == ["test.tar", "train.tar"]
    for name, source, count in (("train", train_set, 30), ("test", test_set, 20)):
        downloaded = MNIST(data_dir / f"{name}.tar")
        assert torch.equal(downloaded.images, source.images[:count])
        assert torch.equal(downloaded.labels, source.labels[:count])
        with tarfile.open(data_dir / f"{name}.tar") as tar:
            assert tar.getnames()[7] == f"{name}/00007_{source.labels[7]}.png"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_two_downloads_at_once_do_not_disturb_each_other(tmp_path, mirror):
    fork = multiprocessing.get_context("fork")  # which knows of the mirror
    processes = [fork.Process(target=dataset.download, args=(tmp_path / "data",)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["test.tar", "train.tar"]
    assert [len(MNIST(tmp_path / "data" / name)) for name in ("train.tar", "test.tar")] == [30, 20]


def test_tars_that_are_there_are_not_downloaded_again(tmp_path, mirror):
    for name in ("train.tar", "test.tar"):
        make_tar(tmp_path / name, sample_members(1))
    before = (tmp_path / "train.tar").read_bytes()
    assert dataset.find_data(tmp_path) == tmp_path
    assert (tmp_path / "train.tar").read_bytes() == before


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
        with pytest.raises(RuntimeError):
            dataset.download(tmp_path, timeout=0.2)
    assert socket.getdefaulttimeout() is None
    assert list(tmp_path.iterdir()) == []


def test_without_network_the_sample_is_used_and_this_is_said(tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed_port = server.getsockname()[1]
    use_mirror(monkeypatch, closed_port)
    assert dataset.find_data(tmp_path) == dataset.SAMPLE_DIR
    lines = capsys.readouterr().err.splitlines()
    assert any(str(tmp_path) in line for line in lines)
    (reason,) = [line for line in lines if "Reason" in line]
    assert len(reason) < 100


@pytest.mark.parametrize("present, missing", [("train.tar", "test.tar"), ("test.tar", "train.tar")])
def test_one_of_two_tars_is_an_error_that_names_the_other(tmp_path, present, missing):
    make_tar(tmp_path / present, sample_members(1))
    with pytest.raises(FileNotFoundError) as error:
        dataset.load_data(tmp_path)
    assert str(tmp_path / missing) in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_pipe_is_an_error_that_names_it(tmp_path):
    os.mkfifo(tmp_path / "train.tar")
    with pytest.raises(UserError) as error:
        MNIST(tmp_path / "train.tar")
    assert str(tmp_path / "train.tar") in str(error.value)


def test_a_dangling_link_is_named_and_neither_downloaded_nor_replaced_by_the_sample(tmp_path):
    try:
        (tmp_path / "train.tar").symlink_to(tmp_path / "gone")
    except OSError:
        pytest.skip("links need a privilege on Windows")
    with pytest.raises(FileNotFoundError) as error:
        dataset.load_data(tmp_path)
    assert str(tmp_path / "train.tar") in str(error.value)


def test_data_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as error:
        dataset.load_data(tmp_path / "file")
    assert str(tmp_path / "file") in str(error.value)


def test_the_same_images_have_the_same_checksum_in_any_folder(tmp_path):
    for name in ("train.tar", "test.tar"):
        shutil.copy(dataset.SAMPLE_DIR / name, tmp_path)
    checksums = [dataset.load_data(folder)[2]["checksum"] for folder in (tmp_path, dataset.SAMPLE_DIR)]
    assert checksums[0] == checksums[1]


def test_a_tar_is_never_overwritten(tmp_path, test_set):
    dataset.write_tar(tmp_path / "some.tar", test_set.images[:3], test_set.labels[:3])
    before = (tmp_path / "some.tar").read_bytes()
    with pytest.raises(FileExistsError):
        dataset.write_tar(tmp_path / "some.tar", test_set.images[3:6], test_set.labels[3:6])
    assert (tmp_path / "some.tar").read_bytes() == before


def test_held_out_images_are_the_last_training_images(train_set):
    few, held_out, data = dataset.load_data(dataset.SAMPLE_DIR, 1000)
    assert torch.equal(few.images, train_set.images[:3000]) and torch.equal(
        few.labels, train_set.labels[:3000]
    )
    assert torch.equal(held_out.images, train_set.images[3000:])
    assert (data["train_images"], data["test_images"]) == (3000, 1000)
    assert data["checksum"] != dataset.load_data(dataset.SAMPLE_DIR)[2]["checksum"]
    with pytest.raises(UserError) as error:
        dataset.load_data(dataset.SAMPLE_DIR, 4000)
    assert "4000" in str(error.value)
