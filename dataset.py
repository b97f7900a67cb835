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

    Raises FileNotFoundError if there is no such tar, and ValueError if it holds anything
    but such images; the message names the tar and the member.
    """

    def __init__(self, tar_path, transform=None):
        self.images, self.labels = read_tar(tar_path)
        self.transform = transform

    def to(self, device):
        """Move all images and labels to a device, where batches are then made."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)

    def subset(self, index):
        """Return a Dataset of only these images. A slice shares their memory."""
        subset = copy.copy(self)
        subset.images, subset.labels = self.images[index], self.labels[index]
        return subset

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if isinstance(index, list) and index and min(index) >= 0:
            # The usual case during training. index_select takes a third of the time of
            # self.images[index], but does not accept negative ones.
            index = torch.tensor(index, device=self.images.device)
            images, labels = self.images.index_select(0, index), self.labels.index_select(0, index)
        else:
            images, labels = self.images[index], self.labels[index]
        images = normalize(images)
        if self.transform is not None:
            batch = self.transform(images.view(-1, 1, 28, 28))  # a single image is a batch of one
            if batch.shape[-3:] != (1, 28, 28):
                raise ValueError(f"the transform must keep (B, 1, 28, 28), but returned {tuple(batch.shape)}")
            images = batch.view(images.shape)
        return images, labels


def batches(images, batch_size, shuffle=False, drop_last=False):
    """Return a loader that asks a Dataset for a whole batch of indices at once."""
    sampler = RandomSampler(images) if shuffle else SequentialSampler(images)
    return DataLoader(images, batch_size=None, sampler=BatchSampler(sampler, batch_size, drop_last))


def normalize(images):
    """Scale images to [0, 1], subtract MEAN and divide by STD: uint8 (..., 28, 28) -> float32
    (..., 1, 28, 28), as the models expect them."""
    return images.unsqueeze(-3).float().div_(255).sub_(MEAN).div_(STD)


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
    interpolated; what enters from outside is background. Raises ValueError if a limit is out of range.
    """

    def __init__(self, rotation=0, shift=0, scaling=0, elastic=0):
        if not (0 <= rotation <= 180 and 0 <= shift <= 28 and 0 <= scaling < 1 and 0 <= elastic <= 14):
            raise ValueError(
                f"rotation = {rotation} must be 0 to 180 degrees, shift = {shift} 0 to 28 pixels, "
                f"scaling = {scaling} 0 to below 1, elastic = {elastic} 0 to 14 pixels"
            )
        # grid_sample's coordinates run from -1 to 1, so a pixel is 1/14.
        self.limits = math.radians(rotation), scaling, shift / 14, shift / 14
        self.elastic = elastic / 14
        pixels = affine_grid(torch.eye(2, 3).unsqueeze(0), (1, 1, 28, 28), align_corners=False)
        # One row of 784 pixels for each term: x, y, 1 and, for the elastic displacement, 49
        # smooth bumps around the points of a 7 x 7 grid.
        bumps = interpolate(torch.eye(49).view(49, 1, 7, 7), 28, mode="bicubic", align_corners=True)
        rows = [pixels.view(784, 2).T, torch.ones(1, 784), bumps.view(49, 784)]
        self.terms = torch.cat(rows if elastic else rows[:2])

    def __call__(self, images):
        random = 2 * torch.rand(4, len(images), device=images.device) - 1
        angle, zoom, dx, dy = (limit * amount for limit, amount in zip(self.limits, random))
        cos, sin = angle.cos() / (1 + zoom), angle.sin() / (1 + zoom)
        factors = torch.stack([cos, -sin, dx, sin, cos, dy], dim=1).view(-1, 3)
        if self.elastic:
            heights = self.elastic * torch.randn(len(factors), 49, device=images.device)
            factors = torch.cat([factors, heights], dim=1)
        # Where each pixel comes from: all terms of the whole batch in one multiplication.
        sources = (factors @ self.terms.to(images.device)).view(-1, 2, 28, 28).movedim(1, -1)
        background = -MEAN / STD  # grid_sample fills in zeros
        return grid_sample(images - background, sources, align_corners=False) + background


def load_data(data_dir, validation_images=0):
    """Return the training set, the test set and a description of both, a dict.

    data_dir: folder of train.tar and test.tar. If both are missing, MNIST is downloaded to it; if
        that fails, the shipped sample is used, with a warning on standard error.
    validation_images: 0, or how many of the last training images replace the test set.

    Raises OSError or ValueError, with a message for the user, if the data can't be used.
    """
    folder = find_data(Path(data_dir))
    train_set, test_set = MNIST(folder / "train.tar"), MNIST(folder / "test.tar")
    for warning in check_sets(train_set, test_set):
        print(f"warning: {warning}", file=sys.stderr)
    if validation_images >= len(train_set):
        raise ValueError(
            f"VALIDATION_IMAGES = {validation_images} leaves none of the {len(train_set):,} images in "
            f"{folder / 'train.tar'} to train on"
        )
    if validation_images:
        test_set = train_set.subset(slice(-validation_images, None))
        train_set = train_set.subset(slice(-validation_images))
    kind = "held-out" if validation_images else "test"
    source = "the shipped sample" if folder == SAMPLE_DIR else f"{Path(data_dir)}/"
    description = f"{len(train_set):,} training and {len(test_set):,} {kind} images from {source}"
    return train_set, test_set, {
        "description": description,
        "folder": str(folder.resolve()),
        "train_images": len(train_set),
        "test_images": len(test_set),
    }


def find_data(data_dir):
    """Return the folder to read the tars from, as `load_data` describes."""
    if data_dir.is_file():
        raise NotADirectoryError(f"{data_dir} is a file, but must be the folder of train.tar and test.tar")
    # A dangling link is not missing: to replace it would hide a mistake.
    if any(os.path.lexists(data_dir / name) for name in ("train.tar", "test.tar")):
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
            f"  Reason: {' '.join(str(error).split())}\n{line}\n",
            file=sys.stderr,
            flush=True,
        )
        return SAMPLE_DIR


def check_sets(train_set, test_set):
    """Return warnings, one text each, about training and test images. Raises ValueError if most images
    of one set are in the other as well: testing on memorized images proves nothing."""
    sides = [[image.tobytes() for image in images.images.numpy()] for images in (train_set, test_set)]
    in_both = set(sides[0]) & set(sides[1])
    fraction = max(sum(image in in_both for image in images) / len(images) for images in sides)
    text = f"{len(in_both):,} images are in both train.tar and test.tar"
    if fraction > 0.5:
        raise ValueError(f"{text}, {fraction:.0%} of one of them: test images must be new to the model")
    missing = sorted(set(range(10)) - set(train_set.labels.tolist()))
    warnings = [text] if in_both else []
    if missing:
        warnings.append(f"train.tar has no image of {', '.join(map(str, missing))}, so no model can learn it")
    return warnings


def download(data_dir, timeout=10):
    """Download MNIST and write it to `data_dir` as train.tar and test.tar. Raises RuntimeError if the
    download fails or a server is silent for `timeout` seconds, OSError if `data_dir` can't be made."""
    data_dir.mkdir(parents=True, exist_ok=True)
    print(f"Downloading MNIST (4 files, 11.6 MB) to {data_dir} ...", flush=True)
    # Use a temporary folder, so a failed download leaves nothing behind.
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
            raise RuntimeError(str(error) or repr(error)) from error
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

    Raises OSError if it can't be read, and ValueError if it shows no digit.
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
        raise ValueError(f"{path} shows no digit: no ink stands out from the background")
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


def read_digits(folder):
    """Read every picture in a folder with `read_digit`, in the order of their names.

    Returns a dict of arrays: names (M,); images, uint8 (M, 28, 28); originals, uint8
    (M, 112, 112, 3), thumbnails. It is empty if there is no folder or no picture in it.
    A picture that can't be read is named on standard error and left out.
    """
    found = []
    for path in sorted(Path(folder).glob("[!.]*")):
        try:
            if not path.is_file():  # opening a pipe would wait forever
                raise ValueError(f"{path} is not a file")
            original = ImageOps.pad(open_picture(path), (112, 112), color="white")
            found.append((path.name, read_digit(path).numpy(), np.asarray(original)))
        except Exception as error:  # Pillow raises many kinds
            reason = str(error) if str(path) in str(error) else f"{path}: {error}"
            print(f"warning: {' '.join(reason.split())}", file=sys.stderr)
    return dict(zip(("names", "images", "originals"), map(np.stack, zip(*found))))


def read_tar(tar_path):
    """Return the images, uint8 (N, 28, 28), and labels, int64 (N,), of a tar as `MNIST`
    describes it, ordered by number. Raises what `MNIST` raises."""
    if not os.path.exists(tar_path):
        kind = "a link to a missing file" if os.path.islink(tar_path) else "no such file"
        raise FileNotFoundError(f"{tar_path}: {kind}; a run needs train.tar and test.tar")
    if not os.path.isfile(tar_path):  # opening a pipe would wait forever
        raise ValueError(f"{tar_path} is not a file, but a folder, a pipe or a device")
    pixels = bytearray()
    labels_by_number = {}
    try:
        with tarfile.open(tar_path) as tar:
            for member in tar:
                where = f"{tar_path}: {member.name!r}"  # quoted, because it may hold anything
                if member.size < 0:  # would send tarfile back to a member that it has read
                    raise BadData(f"{where}: the tar is damaged")
                *folders, name = member.name.split("/")
                # macOS adds files of its own to the tars that it makes.
                if member.isdir() or "__MACOSX" in folders or name.startswith("._") or name == ".DS_Store":
                    continue
                match = re.fullmatch(r"([0-9]+)_([0-9])\.png", name)
                if not member.isfile() or not match:
                    raise BadData(
                        f"{where} is not an image named {{number}}_{{label}}.png with a label from 0 to 9"
                    )
                number = match[1].lstrip("0")
                if number in labels_by_number:
                    raise BadData(f"{where}: there is another image with the number {match[1]}")
                if member.size > MAX_FILE_SIZE:
                    raise BadData(f"{where} has {member.size:,} bytes, too many for a 28 x 28 image")
                labels_by_number[number] = int(match[2])
                pixels += decode(tar.extractfile(member).read(), where)
            check_end(tar, tar_path)
    except BadData:
        raise
    except Exception as error:  # tarfile and the decompressors raise many kinds
        reason = str(error).partition("\n")[0].rstrip(":")
        raise ValueError(f"{tar_path} can't be read as a tar: {reason}") from error
    if not labels_by_number:
        raise ValueError(f"{tar_path} contains no image")

    numbers = list(labels_by_number)
    # by length, then by digits: numeric order, even for numbers too long for int()
    by_number = sorted(range(len(numbers)), key=lambda index: (len(numbers[index]), numbers[index]))
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 28, 28)
    labels = torch.tensor(list(labels_by_number.values()))
    return images[by_number], labels[by_number]


class BadData(ValueError):
    """A ValueError whose message already names the tar and the member."""


def check_end(tar, tar_path):
    """Raise BadData unless a tar that was read to its end stops there, followed only by
    zeros: tarfile takes a cut or damaged header for the end."""
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise BadData(f"{tar_path} is cut off: get the complete file")
    while rest:
        if rest.strip(b"\0"):
            raise BadData(f"{tar_path} is damaged at byte {tar.offset:,}: get an intact file")
        rest = tar.fileobj.read(2**20)


def decode(png, where):
    """Return the 784 bytes of a 28 x 28 grey PNG, also of one with fewer than 8 bits or in a colour
    format that holds only opaque grey. Raises BadData, starting with `where`, for anything else."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 33:
        raise BadData(f"{where} is not a PNG")
    # Read here, because Pillow has its own ideas about huge images.
    width, height, bits = struct.unpack(">IIB", png[16:25])
    if (width, height) != (28, 28):
        raise BadData(f"{where} is {width} x {height}, not 28 x 28 pixels")
    if bits == 16:
        raise BadData(f"{where} has 16 bits per channel: save it with 8")
    try:
        check_sums(png)
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.mode == "L" and "transparency" not in image.info:
                return image.tobytes()
            red, green, blue, alpha = (band.tobytes() for band in image.convert("RGBA").split())
    except Exception as error:  # Pillow raises many kinds
        raise BadData(f"{where} is damaged: {error}") from error
    if not (red == green == blue and alpha == bytes([255]) * 784):
        raise BadData(f"{where} has colours or transparency: save it as grey")
    return red


def check_sums(png):
    """Raise an error unless all chunks of a PNG are complete and their checksums right. Pillow
    does not check those of the pixels."""
    position, kind = 8, None
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", png, position)
        kind, end = png[position + 4 : position + 8], position + 8 + length
        if struct.unpack_from(">I", png, end) != (zlib.crc32(png[position + 4 : end]),):
            raise ValueError(f"wrong checksum of its chunk {kind.decode('ascii', 'replace')}")
        position = end + 4
