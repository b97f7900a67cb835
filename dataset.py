"""MNIST as a Dataset: tar of PNG images -> uint8 tensor -> normalized batches.

    train_set = MNIST("data/train.tar")
    image, label = train_set[0]            # float32 (1, 28, 28), int64 scalar
    images, labels = train_set[[4, 2, 0]]  # float32 (3, 1, 28, 28), int64 (3,)
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

import torch
import torchvision
from PIL import Image
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import Dataset

# Mean and standard deviation of all pixels of MNIST's training images, scaled to [0, 1].
MEAN = 0.1307
STD = 0.3081

# Bytes; a 28 x 28 image needs a few hundred, with colours and metadata a few thousand.
MAX_FILE_SIZE = 10**6

SAMPLE_DIR = Path(__file__).parent / "data" / "sample"


class MNIST(Dataset):
    """The images and labels of one tar, decoded once and held in memory.

    tar_path: a tar, plain or compressed (gz, bz2, xz), of 28 x 28 grey PNG images named
        {number}_{label}.png in any folder, such as train/00000_5.png.
    transform: maps a normalized batch, float32 (B, 1, 28, 28), to a batch of the same
        shape, such as an `Augmentation` of training images.

    images: uint8 (N, 28, 28), ordered by number, 0 background to 255 ink.
    labels: int64 (N,), 0 to 9.

    `dataset[index]` gives (images, labels), the images scaled to [0, 1], then minus MEAN,
    divided by STD. An int gives one image (1, 28, 28) and its label. A list, a tensor of
    indices or a slice gives a whole batch (B, 1, 28, 28), (B,) at once, which is many
    times faster than image by image.

    Raises FileNotFoundError if there is no such tar, and ValueError, naming the tar and
    the member, for anything in it that is not such an image.
    """

    def __init__(self, tar_path, transform=None):
        self.images, self.labels = read_tar(tar_path)
        self.transform = transform

    def to(self, device):
        """Move all images and labels to a device, on which batches are then made."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)

    def subset(self, index):
        """Return a Dataset of these images only, which shares their memory if `index` is a slice."""
        subset = copy.copy(self)
        subset.images, subset.labels = self.images[index], self.labels[index]
        return subset

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if isinstance(index, list) and index and min(index) >= 0:
            # Copies whole images, where plain indexing goes pixel by pixel, but knows no
            # negative indices. The most frequent case, which costs a third this way.
            index = torch.tensor(index, device=self.images.device)
            images, labels = self.images.index_select(0, index), self.labels.index_select(0, index)
        else:
            images, labels = self.images[index], self.labels[index]
        images = images.unsqueeze(-3).float().div_(255).sub_(MEAN).div_(STD)
        if self.transform is not None:
            # a transform only ever sees batches, hence a batch of one for a single image
            images = self.transform(images.view(-1, 1, 28, 28)).view(images.shape)
        return images, labels


class Augmentation:
    """A transform that turns, moves and zooms every image of a batch, each by an amount of its
    own, drawn anew each time from all up to these limits, so that the model never sees quite
    the same image twice. Like all chance of a training it obeys `torch.manual_seed`.

    rotation: degrees to either side, 0 to 180.
    shift: pixels in each direction, 0 to 28.
    scaling: share of its size by which an image grows or shrinks, 0 to below 1.

    `augmentation(images)` maps a normalized batch, float32 (B, 1, 28, 28), to a batch of the
    same shape. Pixels between the old ones are interpolated; what comes in from outside the
    image has the value of the background.

    Raises ValueError for limits that are none of these.
    """

    def __init__(self, rotation=0, shift=0, scaling=0):
        if not (0 <= rotation <= 180 and 0 <= shift <= 28 and 0 <= scaling < 1):
            raise ValueError(
                f"rotation = {rotation} must be 0 to 180 degrees, shift = {shift} 0 to 28 pixels, "
                f"scaling = {scaling} 0 to below 1"
            )
        # grid_sample measures in halves of the image: -1 is the left or upper edge, 1 the other
        self.limits = math.radians(rotation), scaling, shift / 14, shift / 14
        pixels = affine_grid(torch.eye(2, 3).unsqueeze(0), (1, 1, 28, 28), align_corners=False)
        self.pixels = torch.cat([pixels.view(784, 2).T, torch.ones(1, 784)])  # rows x, y, 1

    def __call__(self, images):
        random = 2 * torch.rand(4, len(images), device=images.device) - 1
        angle, zoom, right, down = (limit * share for limit, share in zip(self.limits, random))
        cos, sin = angle.cos() / (1 + zoom), angle.sin() / (1 + zoom)
        matrices = torch.stack([cos, -sin, right, sin, cos, down], dim=1).view(-1, 3)
        # Where each pixel comes from. What affine_grid does for each image by itself, as one
        # multiplication for the whole batch: a tenth of the time.
        sources = (matrices @ self.pixels.to(images.device)).view(-1, 2, 28, 28).movedim(1, -1)
        background = -MEAN / STD  # grid_sample fills in zeros
        return grid_sample(images - background, sources, align_corners=False) + background


def read_tar(tar_path):
    """Return the images, uint8 (N, 28, 28), and labels, int64 (N,), of a tar in the form
    that `MNIST` describes, ordered by number. Raises what `MNIST` raises."""
    pixels = bytearray()
    labels_by_number = {}
    try:
        with tarfile.open(tar_path) as tar:
            for member in tar:
                where = f"{tar_path}: {member.name!r}"  # quoted, for it may hold anything
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
    except FileNotFoundError:
        raise FileNotFoundError(f"{tar_path}: no such file") from None
    except BadData:
        raise
    except Exception as error:  # tarfile and the decompressors raise many kinds
        reason = str(error).partition("\n")[0].rstrip(":")
        raise ValueError(f"{tar_path} can't be read as a tar: {reason}") from error
    if not labels_by_number:
        raise ValueError(f"{tar_path} contains no image")

    numbers = list(labels_by_number)
    # by length, then by digits: the order of the numbers, however long they are
    by_number = sorted(range(len(numbers)), key=lambda index: (len(numbers[index]), numbers[index]))
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 28, 28)
    labels = torch.tensor(list(labels_by_number.values()))
    return images[by_number], labels[by_number]


class BadData(ValueError):
    """A ValueError whose message already names tar and member."""


def check_end(tar, tar_path):
    """Raise BadData unless nothing but zeros follows the members of a tar that was read to its
    end, at least a block of them: tarfile takes a cut or damaged header for the end."""
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise BadData(f"{tar_path} is cut off: get the complete file")
    while rest:
        if rest.strip(b"\0"):
            raise BadData(f"{tar_path} is damaged at byte {tar.offset:,}: get an intact file")
        rest = tar.fileobj.read(2**20)


def decode(png, where):
    """Return the 784 bytes of a 28 x 28 grey PNG. Raises BadData, beginning with `where`, if
    it isn't one.

    Grey with less than 8 bits and colour images that hold nothing but opaque grey are read,
    too, for they leave nothing to guess. 16 bits would have to be rounded.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 33:
        raise BadData(f"{where} is not a PNG")
    # Looked up here, not asked of Pillow, which has limits of its own for huge images.
    width, height, bits = struct.unpack(">IIB", png[16:25])
    if (width, height) != (28, 28):
        raise BadData(f"{where} is {width} x {height}, not 28 x 28 pixels")
    if bits == 16:
        raise BadData(f"{where} has 16 bits per channel: save it with 8")
    try:
        check_sums(png)
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.mode != "L" or "transparency" in image.info:
                red, green, blue, alpha = (band.tobytes() for band in image.convert("RGBA").split())
                if not (red == green == blue and alpha == bytes([255]) * 784):
                    raise BadData(f"{where} has colours or transparency: save it as grey")
                return red
            return image.tobytes()
    except BadData:
        raise
    except Exception as error:  # Pillow raises many kinds
        raise BadData(f"{where} is damaged: {error}") from error


def check_sums(png):
    """Raise an error unless all chunks of a PNG are complete and have the right checksum, which
    Pillow doesn't look at for the pixels."""
    position, kind = 8, None
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", png, position)
        kind, end = png[position + 4 : position + 8], position + 8 + length
        if struct.unpack_from(">I", png, end) != (zlib.crc32(png[position + 4 : end]),):
            raise ValueError(f"wrong checksum of its chunk {kind}")
        position = end + 4


def find_data(data_dir):
    """Return the folder to read train.tar and test.tar from: `data_dir`, into which MNIST
    is downloaded first if both are missing, else, if that fails, SAMPLE_DIR, with a
    warning on standard error.

    Raises FileNotFoundError if `data_dir` has only one of them, and OSError if it can't
    be written to.
    """
    data_dir = Path(data_dir)
    missing = [name for name in ("train.tar", "test.tar") if not (data_dir / name).exists()]
    if len(missing) == 1:
        raise FileNotFoundError(
            f"{data_dir / missing[0]} is missing, but the other tar is there: add it, "
            f"or move the other one away to have both downloaded"
        )
    if missing:
        try:
            download(data_dir)
        except RuntimeError as error:
            warn_of_sample(data_dir, error)
            return SAMPLE_DIR
    return data_dir


def check_sets(train_set, test_set):
    """Return warnings, a text each, about training and test images that don't fit together.

    Raises ValueError if most images of one set are in the other as well: whoever is tested
    on what they have learned by heart, proves nothing. Also if there is only one training
    image, of which no batch can be made.
    """
    if len(train_set) == 1:
        raise ValueError("train.tar contains a single image: there must be at least two")
    train_images, test_images = (
        [image.tobytes() for image in part.images.numpy()] for part in (train_set, test_set)
    )
    in_both = set(train_images) & set(test_images)
    warnings = []
    if in_both:
        shares = [
            sum(image in in_both for image in images) / len(images) for images in (train_images, test_images)
        ]
        text = f"{len(in_both):,} images are in train.tar as well as in test.tar"
        if max(shares) > 0.5:
            raise ValueError(f"{text}, {max(shares):.0%} of one of them: test images must be new to the model")
        warnings.append(text)
    missing = sorted(set(range(10)) - set(train_set.labels.tolist()))
    if missing:
        warnings.append(f"train.tar has no image of {', '.join(map(str, missing))}, so no model can learn it")
    return warnings


def download(data_dir, timeout=10):
    """Download MNIST and write it to `data_dir` as train.tar and test.tar.

    timeout: seconds without an answer after which a server is given up.

    Raises RuntimeError with the reason if there is no network, no answer or a wrong
    checksum, and OSError if `data_dir` can't be written to.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    print(f"Downloading MNIST (4 files, 11.6 MB) to {data_dir} ...", flush=True)
    # What was begun lies in a folder that vanishes, until both tars are whole.
    with tempfile.TemporaryDirectory(prefix="download-", dir=data_dir) as unfinished:
        unfinished = Path(unfinished)
        default_timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(timeout)
        try:
            mnist = {
                "train": torchvision.datasets.MNIST(unfinished, train=True, download=True),
                "test": torchvision.datasets.MNIST(unfinished, train=False),
            }
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise RuntimeError(str(error) or repr(error)) from error
        finally:
            socket.setdefaulttimeout(default_timeout)
        for name, images in mnist.items():
            print(f"Writing {data_dir / name}.tar, {len(images):,} images ...", flush=True)
            write_tar(unfinished / f"{name}.tar", images.data, images.targets)
        for name in mnist:
            os.replace(unfinished / f"{name}.tar", data_dir / f"{name}.tar")


def write_tar(tar_path, images, labels):
    """Write images, uint8 (N, 28, 28), and labels, (N,), as a tar in the form that `MNIST`
    reads. The members lie in a folder with the tar's name and are numbered from 0."""
    folder = Path(tar_path).stem
    with tarfile.open(tar_path, "w") as tar:
        for number, (image, label) in enumerate(zip(images, labels)):
            png = io.BytesIO()
            Image.fromarray(image.numpy()).save(png, format="PNG", optimize=True)
            member = tarfile.TarInfo(f"{folder}/{number:05}_{label}.png")
            member.size = png.tell()
            png.seek(0)
            tar.addfile(member, png)


def warn_of_sample(data_dir, reason):
    """Say on standard error, so that nobody overlooks it, that the run gets the sample."""
    line = "!" * 88
    print(
        f"""
{line}
  MNIST COULD NOT BE DOWNLOADED. THIS RUN USES THE SMALL SAMPLE IN {SAMPLE_DIR}:
  4,000 training and 1,000 test images instead of 60,000 and 10,000, so the accuracies
  will be lower than on the complete MNIST.

  To get the complete MNIST, connect to the internet and run again,
  or put train.tar and test.tar into {data_dir.resolve()}

  Reason: {str(reason).strip().replace(chr(10), chr(10) + "  ")}
{line}
""",
        file=sys.stderr,
        flush=True,
    )
