"""MNIST as a Dataset: tar of PNG images -> uint8 tensor -> normalized batches.

train_set = MNIST("data/train.tar")
image, label = train_set[0]            # float32 (1, 28, 28), int64 scalar
images, labels = train_set[[4, 2, 0]]  # float32 (3, 1, 28, 28), int64 (3,)
digit = read_digit("photo.jpg")        # uint8 (28, 28), your own handwriting
"""

import copy
import http.client
import io
import math
import os
import re
import socket
import struct
import sys
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import affine_grid, grid_sample, interpolate
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

# Mean and standard deviation of all pixels of MNIST's training images, scaled to [0, 1].
MEAN = 0.1307
STD = 0.3081

# Bytes. A 28 x 28 image needs a few hundred, with colours and metadata a few thousand.
MAX_FILE_SIZE = 10**6

SAMPLE_DIR = Path(__file__).parent / "data" / "sample"


class DataError(ValueError):
    """Says what is wrong with the data, in words for the person at the shell. Names the file."""


class MNIST(Dataset):
    """The images and labels of one tar, decoded once and kept in memory.

    tar_path: a tar, plain or compressed (gz, bz2, xz), of 28 x 28 grey PNG images named
        {number}_{label}.png in any folder, such as train/00000_5.png.
    transform: maps a normalized batch, float32 (B, 1, 28, 28), to a batch of the same
        shape, for example an `Augmentation`. It gets the whole batch at once: a random
        transform of torchvision would treat all images alike. To randomize each image separately:
        transform=lambda images: torch.stack([rotate(image) for image in images])

    images: uint8 (N, 28, 28), ordered by number; 0 is background, 255 is ink.
    labels: int64 (N,), 0 to 9.

    `dataset[index]` returns (images, labels), the images normalized. An int gives one image
    (1, 28, 28) and its label. A list, a tensor of indices or a slice gives a whole batch
    (B, 1, 28, 28), (B,), many times faster than one image at a time.

    Raises FileNotFoundError if there is no such tar, and DataError if it holds anything
    but such images; the message names the tar and the member.
    """

    def __init__(self, tar_path, transform=None):
        self.images, self.labels = read_tar(tar_path)
        self.transform = transform

    def to(self, device):
        """Move all images and labels to a device, where batches are then made."""
        self.images = self.images.to(device)
        self.labels = self.labels.to(device)

    def subset(self, index):
        """Return a Dataset of only these images. A slice shares their memory."""
        subset = copy.copy(self)
        subset.images = self.images[index]
        subset.labels = self.labels[index]
        return subset

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if isinstance(index, list) and index and min(index) >= 0:
            # The usual case during training. index_select takes a third of the time of
            # self.images[index], but does not accept negative ones.
            index = torch.tensor(index, device=self.images.device)
            images = self.images.index_select(0, index)
            labels = self.labels.index_select(0, index)
        else:
            images = self.images[index]
            labels = self.labels[index]
        images = normalize(images)
        if self.transform is not None:
            batch = self.transform(images.view(-1, 1, 28, 28))  # a single image is a batch of one
            if batch.shape[-3:] != (1, 28, 28):
                raise DataError(f"the transform must keep (B, 1, 28, 28), but returned {tuple(batch.shape)}")
            images = batch.view(images.shape)
        return images, labels


def batches(image_set, batch_size, shuffle=False, drop_last=False):
    """Return a loader that asks a Dataset for a whole batch of indices at once."""
    sampler = RandomSampler(image_set) if shuffle else SequentialSampler(image_set)
    return DataLoader(image_set, batch_size=None, sampler=BatchSampler(sampler, batch_size, drop_last))


def normalize(images):
    """Scale images to [0, 1], subtract MEAN and divide by STD: uint8 (..., 28, 28) -> float32
    (..., 1, 28, 28), as the models expect them."""
    return images.unsqueeze(-3).float().div_(255).sub_(MEAN).div_(STD)


def denormalize(images):
    """Undo `normalize`: float32 (..., 1, 28, 28) -> uint8 (..., 28, 28)."""
    return images.squeeze(-3).mul(STD).add(MEAN).mul(255).round().clamp(0, 255).byte()


# The coordinates of `grid_sample` run from -1 to 1 over 28 pixels.
PIXEL = 2 / 28


@dataclass(frozen=True)
class Augmentation:
    """A transform that rotates, shifts, scales and distorts every image of a batch by its own
    random amounts, so the model never sees quite the same image twice. `torch.manual_seed`
    makes it reproducible.

    rotation: at most this many degrees to either side, 0 to 180.
    shift: at most this many pixels in each direction, 0 to 28.
    scaling: grow or shrink by at most this fraction, 0 to below 1.
    elastic: standard deviation, in pixels, of a random displacement at the points of a 7 x 7 grid,
        smooth between them, 0 to 14, after Simard, Steinkraus, Platt (2003), "Best Practices for
        Convolutional Neural Networks Applied to Visual Document Analysis".

    Maps a normalized batch, float32 (B, 1, 28, 28), to a batch of the same shape. Pixel values are
    interpolated; pixels from outside the image are background. Raises DataError when it is first used if
    a limit is out of range.

    Each option draws its own random numbers, and only if it is on, in this order: rotation, scaling,
    shift, elastic. So a further option, drawn last, leaves all figures without it as they are.

    In plain words, with an affine matrix and random displacements for each image:

        sources = affine_grid(matrices, images.shape)                        # rotate, scale, shift
        sources += interpolate(displacements, 28, mode="bicubic").movedim(1, -1)            # elastic
        images = grid_sample(images, sources)

    A displacement is a sum of smooth bumps, and an affine map a sum of x, y and 1. So both are one
    product of coefficients, random for each image, and a fixed basis. That is four times faster.
    """

    rotation: float = 0
    shift: float = 0
    scaling: float = 0
    elastic: float = 0

    def __call__(self, images):
        self._check()
        count, device = len(images), images.device
        angle = zoom = right = down = torch.zeros(count, device=device)
        if self.rotation:
            angle = math.radians(self.rotation) * random_amounts(count, device)
        if self.scaling:
            zoom = self.scaling * random_amounts(count, device)
        if self.shift:
            right, down = PIXEL * self.shift * random_amounts((2, count), device)
        cos = angle.cos() / (1 + zoom)
        sin = angle.sin() / (1 + zoom)
        # for each image, a row for the x and one for the y coordinates of where its pixels come from
        coefficients = torch.stack([cos, -sin, right, sin, cos, down], dim=1).view(2 * count, 3)
        if self.elastic:
            heights = PIXEL * self.elastic * torch.randn(2 * count, 49, device=device)
            coefficients = torch.cat([coefficients, heights], dim=1)
        sources = coefficients @ self._basis.to(device)
        sources = sources.view(count, 2, 28, 28).movedim(1, -1)
        background = -MEAN / STD  # grid_sample fills in zeros
        return grid_sample(images - background, sources, align_corners=False) + background

    @cached_property
    def _basis(self):
        """What the coefficients are multiplied with, a row of 784 pixels each: x, y, 1 and, if elastic
        is on, 49 bumps, each 1 at its point of the 7 x 7 grid and 0 at the others."""
        x, y = affine_grid(torch.eye(2, 3).unsqueeze(0), (1, 1, 28, 28), align_corners=False).view(784, 2).T
        affine = torch.stack([x, y, torch.ones(784)])
        if not self.elastic:
            return affine
        points = torch.eye(49).view(49, 1, 7, 7)
        bumps = interpolate(points, 28, mode="bicubic", align_corners=True).view(49, 784)
        return torch.cat([affine, bumps])

    def _check(self):
        """Raise DataError if a limit is out of range."""
        if not 0 <= self.rotation <= 180:
            raise DataError(f"rotation = {self.rotation} must be 0 to 180 degrees")
        if not 0 <= self.shift <= 28:
            raise DataError(f"shift = {self.shift} must be 0 to 28 pixels")
        if not 0 <= self.scaling < 1:
            raise DataError(f"scaling = {self.scaling} must be 0 to below 1")
        if not 0 <= self.elastic <= 14:
            raise DataError(f"elastic = {self.elastic} must be 0 to 14 pixels")


def random_amounts(size, device):
    """Return random numbers, uniformly distributed between -1 and 1."""
    return 2 * torch.rand(size, device=device) - 1


def load_data(data_dir, validation_images=0):
    """Return the training set, the test set and a description of both, a dict.

    data_dir: folder of train.tar and test.tar. If both are missing, MNIST is downloaded to it; if
        that fails, the shipped sample is used, with a warning on standard error.
    validation_images: 0, or how many of the last training images replace the test set.

    The description's `checksum` identifies the images and labels, whatever their folder.
    Raises OSError or DataError, with a message for the user, if the data can't be used.
    """
    folder = find_data(Path(data_dir))
    train_set = MNIST(folder / "train.tar")
    test_set = MNIST(folder / "test.tar")
    for warning in check_sets(train_set, test_set):
        print(f"warning: {warning}", file=sys.stderr)
    kind = "test"
    if validation_images:
        if validation_images >= len(train_set):
            raise DataError(
                f"VALIDATION_IMAGES = {validation_images} leaves none of the {len(train_set):,} images in "
                f"{folder / 'train.tar'} to train on"
            )
        kind = "held-out"
        test_set = train_set.subset(slice(-validation_images, None))
        train_set = train_set.subset(slice(-validation_images))
    source = "the shipped sample" if folder == SAMPLE_DIR else f"{Path(data_dir)}/"
    data = {
        "description": f"{len(train_set):,} training and {len(test_set):,} {kind} images from {source}",
        "folder": str(folder.resolve()),
        "train_images": len(train_set),
        "test_images": len(test_set),
        "checksum": checksum(train_set, test_set),
    }
    return train_set, test_set, data


def checksum(*image_sets):
    """Return a CRC-32 of all images and labels as 8 hexadecimal digits."""
    value = 0
    for image_set in image_sets:
        value = zlib.crc32(image_set.images.numpy(), value)
        value = zlib.crc32(image_set.labels.numpy(), value)
    return f"{value:08x}"


def find_data(data_dir):
    """Return the folder to read the tars from, as `load_data` describes."""
    if data_dir.is_file():
        raise NotADirectoryError(f"{data_dir} is a file, but must be the folder of train.tar and test.tar")
    for name in ("train.tar", "test.tar"):
        # A dangling link is not missing: to replace it would hide a mistake.
        if os.path.lexists(data_dir / name):
            return data_dir
    try:
        download(data_dir)
        return data_dir
    except RuntimeError as error:
        line = "!" * 88
        print(
            f"\n{line}\n  MNIST COULD NOT BE DOWNLOADED. THIS RUN USES THE SMALL SAMPLE IN {SAMPLE_DIR}:\n"
            "  4,000 training and 1,000 test images instead of 60,000 and 10,000, so the accuracies\n"
            "  will be lower. To get the complete MNIST, connect to the internet and run again, or put\n"
            f"  train.tar and test.tar into {data_dir.resolve()}\n"
            f"  Reason: {error}\n{line}\n",
            file=sys.stderr,
            flush=True,
        )
        return SAMPLE_DIR


def check_sets(train_set, test_set):
    """Return warnings, one text each, about training and test images. Raises DataError if most images
    of one set are in the other as well: testing on memorized images proves nothing."""
    train_images = [image.tobytes() for image in train_set.images.numpy()]
    test_images = [image.tobytes() for image in test_set.images.numpy()]
    in_both = set(train_images) & set(test_images)
    warnings = []
    if in_both:
        text = f"{len(in_both):,} images are in both train.tar and test.tar"
        for images in (train_images, test_images):
            fraction = sum(image in in_both for image in images) / len(images)
            if fraction > 0.5:
                raise DataError(
                    f"{text}, {fraction:.0%} of one of them: test images must be new to the model"
                )
        warnings.append(text)
    missing = sorted(set(range(10)) - set(train_set.labels.tolist()))
    if missing:
        digits = ", ".join(str(digit) for digit in missing)
        warnings.append(f"train.tar has no image of {digits}, so no model can learn it")
    return warnings


def download(data_dir, timeout=10):
    """Download MNIST and write it to `data_dir` as train.tar and test.tar. Raises RuntimeError with a
    short reason if the download fails or a server is silent for `timeout` seconds, OSError if
    `data_dir` can't be made."""
    data_dir.mkdir(parents=True, exist_ok=True)
    print(f"Downloading MNIST (4 files, 11.6 MB) to {data_dir} ...", flush=True)
    # A failed download must leave nothing behind.
    with tempfile.TemporaryDirectory(prefix="download-", dir=data_dir) as unfinished:
        unfinished = Path(unfinished)
        default_timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(timeout)
        try:
            from torchvision import datasets  # takes more than a second, and most runs don't need it

            mnist = {
                "train": datasets.MNIST(unfinished, train=True, download=True),
                "test": datasets.MNIST(unfinished, train=False),
            }
        except (ImportError, OSError, RuntimeError, http.client.HTTPException) as error:
            # torchvision lists every mirror and what it answered, one below the other
            reason = str(error).strip() or repr(error)
            raise RuntimeError(reason.splitlines()[-1].strip("<>")) from error
        finally:
            socket.setdefaulttimeout(default_timeout)
        for name, images in mnist.items():
            print(f"Writing {data_dir / name}.tar, {len(images):,} images ...", flush=True)
            write_tar(unfinished / f"{name}.tar", images.data, images.targets)
        for name in mnist:
            os.replace(unfinished / f"{name}.tar", data_dir / f"{name}.tar")


def write_tar(tar_path, images, labels):
    """Write images, uint8 (N, 28, 28), and labels, (N,), as a new tar that `MNIST` can read, numbered
    from 0. Raises FileExistsError rather than overwrite a tar."""
    folder = Path(tar_path).stem
    with tarfile.open(tar_path, "x") as tar:
        for number, (image, label) in enumerate(zip(images, labels)):
            png = io.BytesIO()
            Image.fromarray(image.numpy()).save(png, format="PNG", optimize=True)
            member = tarfile.TarInfo(f"{folder}/{number:05}_{int(label)}.png")
            member.size = png.tell()
            png.seek(0)
            tar.addfile(member, png)


def read_digit(path):
    """Read a photo or drawing of one digit and return it as MNIST's makers prepared theirs
    (LeCun et al. 1998, section III.A): uint8 (28, 28), 0 background to 255 ink, the longer
    side of the ink 20 pixels, its centre of mass in the middle.

    path: any picture that Pillow reads, dark on light or light on dark, in any size. Nothing
        but the digit and its background should be on it; uneven light does no harm.

    Raises OSError if it can't be read, and DataError if it shows no digit.
    """
    picture = open_picture(path).convert("L")
    picture.thumbnail((300, 300), Image.Resampling.BOX)  # averages noise away, and saves time
    grey = np.asarray(picture, dtype=float)
    height, width = grey.shape

    # Light falls unevenly. Fit a smooth surface to the grey values, then again without what
    # stands out from it, until only the background is left.
    y, x = (axis.ravel() for axis in np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j])
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    background = np.full(grey.size, np.median(grey))
    for _ in range(5):
        distance = np.abs(grey.ravel() - background)
        plain = distance <= max(2.5 * np.median(distance), 2)
        background = terms @ np.linalg.lstsq(terms[plain], grey.ravel()[plain], rcond=None)[0]
    ink = grey - background.reshape(grey.shape)
    if np.sum(ink**3) < 0:  # the few pixels that stand out are darker: dark ink on light paper
        ink = -ink

    noise = 1.5 * np.median(np.abs(ink))  # the standard deviation, if most pixels are background
    full = np.quantile(ink[ink > ink.max() / 2], 0.5) if ink.max() > 0 else 0
    if full < max(6 * noise, 20):
        raise DataError(f"{path} shows no digit: no ink stands out from the background")
    ink = ((ink - 2 * noise) / (full - 2 * noise)).clip(0, 1)
    rows, columns = (np.flatnonzero((ink > 0.3).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    scale = 20 / max(ink.shape)
    size = [max(1, round(scale * side)) for side in reversed(ink.shape)]
    digit = np.asarray(Image.fromarray(np.float32(255 * ink)).resize(size, Image.Resampling.BOX))
    # In MNIST's own images, the centre of mass lies in the middle of pixel 14, counted from 0.
    sums = digit.sum(axis=1), digit.sum(axis=0)
    top, left = (round(14 - np.arange(len(side)) @ side / digit.sum()) for side in sums)
    image = Image.new("F", (28, 28))
    image.paste(Image.fromarray(digit), (left, top))
    return torch.from_numpy(np.asarray(image).round().astype(np.uint8))


def open_picture(path):
    """Return a picture as a Pillow image in RGB, upright, transparent parts white."""
    with Image.open(path) as picture:
        picture = ImageOps.exif_transpose(picture).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def pictures_in(folder):
    """Return the paths of all files in a folder, ordered by name, none if there is no such folder."""
    return sorted(Path(folder).glob("[!.]*"))


def read_digits(paths):
    """Read pictures of own digits with `read_digit`.

    Returns a dict of arrays: names (M,); images, uint8 (M, 28, 28); originals, uint8
    (M, 112, 112, 3), thumbnails. It is empty if no picture can be read.
    A picture that can't be read is named on standard error and left out.
    """
    names = []
    images = []
    originals = []
    for path in map(Path, paths):
        try:
            if path.exists() and not path.is_file():  # opening a pipe would wait forever
                raise DataError(f"{path} is not a file")
            image = read_digit(path).numpy()
            original = np.asarray(ImageOps.pad(open_picture(path), (112, 112), color="white"))
        except Exception as error:  # Pillow raises many kinds
            reason = str(error) if str(path) in str(error) else f"{path}: {error}"
            print(f"warning: {' '.join(reason.split())}", file=sys.stderr)
            continue
        names.append(path.name)
        images.append(image)
        originals.append(original)
    if not names:
        return {}
    return {"names": np.array(names), "images": np.stack(images), "originals": np.stack(originals)}


def read_tar(tar_path):
    """Return the images, uint8 (N, 28, 28), and labels, int64 (N,), of a tar as `MNIST`
    describes it, ordered by number. Raises what `MNIST` raises."""
    check_is_file(tar_path)
    pixels = bytearray()
    numbers = []
    labels = []
    seen = set()
    try:
        with tarfile.open(tar_path) as tar:
            for member in tar:
                where = f"{tar_path}: {member.name!r}"  # quoted, because it may hold anything
                if member.size < 0:  # would send tarfile back to a member that it has read
                    raise DataError(f"{where}: the tar is damaged")
                if member.isdir() or is_added_by_macos(member.name):
                    continue
                number, label = parse_name(member, where)
                if number in seen:
                    raise DataError(f"{where}: there is another image with the number {number}")
                pixels += decode(tar.extractfile(member).read(), where)
                seen.add(number)
                numbers.append(number)
                labels.append(label)
            check_end(tar, tar_path)
    except DataError:
        raise
    except Exception as error:  # tarfile and the decompressors raise many kinds
        reason = str(error).partition("\n")[0].rstrip(":")
        raise DataError(f"{tar_path} can't be read as a tar: {reason}") from error
    if not numbers:
        raise DataError(f"{tar_path} contains no image")
    by_number = sorted(range(len(numbers)), key=numbers.__getitem__)
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 28, 28)
    return images[by_number], torch.tensor(labels)[by_number]


def check_is_file(tar_path):
    """Raise FileNotFoundError or DataError, naming the tar, if it is no file."""
    if os.path.isfile(tar_path):
        return
    if os.path.exists(tar_path):  # opening a pipe would wait forever
        raise DataError(f"{tar_path} is not a file, but a folder, a pipe or a device")
    kind = "a link to a missing file" if os.path.islink(tar_path) else "no such file"
    raise FileNotFoundError(f"{tar_path}: {kind}; a run needs train.tar and test.tar")


def is_added_by_macos(name):
    """Whether a member is one of those that macOS adds to every tar that it makes."""
    *folders, file_name = name.split("/")
    return "__MACOSX" in folders or file_name.startswith("._") or file_name == ".DS_Store"


def parse_name(member, where):
    """Return the number and the label in a member's name. Raises DataError, starting with `where`, if
    the member can't be an image of MNIST."""
    match = re.fullmatch(r"(?:.*/)?([0-9]+)_([0-9])\.png", member.name, re.DOTALL)
    if not member.isfile() or not match:
        raise DataError(f"{where} is not an image named {{number}}_{{label}}.png with a label from 0 to 9")
    if member.size > MAX_FILE_SIZE:
        raise DataError(f"{where} has {member.size:,} bytes, too many for a 28 x 28 image")
    return int(match[1]), int(match[2])


def check_end(tar, tar_path):
    """Raise DataError unless a tar that was read to its end stops there, followed only by
    zeros: tarfile takes a cut or damaged header for the end."""
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise DataError(f"{tar_path} is cut off: get the complete file")
    while rest:
        if rest.strip(b"\0"):
            raise DataError(f"{tar_path} is damaged at byte {tar.offset:,}: get an intact file")
        rest = tar.fileobj.read(2**20)


def decode(png, where):
    """Return the 784 bytes of a 28 x 28 grey PNG, also of one with fewer than 8 bits or in a colour
    format that holds only opaque grey. Raises DataError, starting with `where`, for anything else."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 33:
        raise DataError(f"{where} is not a PNG")
    # Read here, because Pillow has its own ideas about huge images.
    width, height, bits = struct.unpack(">IIB", png[16:25])
    if (width, height) != (28, 28):
        raise DataError(f"{where} is {width} x {height}, not 28 x 28 pixels")
    if bits == 16:
        raise DataError(f"{where} has 16 bits per channel: save it with 8")
    try:
        check_sums(png)
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.mode == "L" and "transparency" not in image.info:
                return image.tobytes()
            bands = image.convert("RGBA").split()
    except Exception as error:  # Pillow raises many kinds
        raise DataError(f"{where} is damaged: {error}") from error
    red, green, blue, alpha = (band.tobytes() for band in bands)
    if not (red == green == blue and alpha == bytes([255]) * 784):
        raise DataError(f"{where} has colours or transparency: save it as grey")
    return red


def check_sums(png):
    """Raise ValueError unless all chunks of a PNG are complete and their checksums right. Pillow
    does not check those of the pixels."""
    position = 8
    kind = None
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", png, position)
        kind = png[position + 4 : position + 8]
        end = position + 8 + length
        (stated,) = struct.unpack_from(">I", png, end)
        if stated != zlib.crc32(png[position + 4 : end]):
            raise ValueError(f"wrong checksum of its chunk {kind.decode('ascii', 'replace')}")
        position = end + 4
