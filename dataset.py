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
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch.nn.functional import affine_grid, grid_sample, interpolate
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

# Mean and standard deviation of all pixels of MNIST's training images, scaled to [0, 1].
MEAN = 0.1307
STD = 0.3081

# Bytes. A 28 x 28 image needs a few hundred, with colours and metadata a few thousand. A larger file is
# not read: a damaged tar could fill the memory.
MAX_FILE_SIZE = 10**6

SAMPLE_DIR = Path(__file__).parent / "data" / "sample"


class UserError(ValueError):
    """Says what is wrong with the data, in words for the person at the shell. Names the file."""


# The images as a Dataset ----------------------------------------------------------------------------


class MNIST(Dataset):
    """The images and labels of one tar, decoded once and kept in memory.

    tar_path: a tar, plain or compressed (gz, bz2, xz), of 28 x 28 grey PNG images named
        {number}_{label}.png in any folder, such as train/00000_5.png.
    transform: maps a normalized batch, float32 (B, 1, 28, 28), to a batch of the same
        shape, for example an `Augmentation`. It gets the whole batch at once. A random transform
        of torchvision, such as `rotate`, would treat all images alike; for each image anew:

        def rotate_each(images):
            return torch.stack([rotate(image) for image in images])

    images: uint8 (N, 28, 28), ordered by number; 0 is background, 255 is ink.
    labels: int64 (N,), 0 to 9.

    `dataset[index]` returns (images, labels), the images normalized. An int gives one image
    (1, 28, 28) and its label. A list of ints, a tensor or a slice gives a whole batch
    (B, 1, 28, 28), (B,), many times faster than one image at a time.

    Raises FileNotFoundError if there is no such tar, and UserError if it holds anything but such
    images, folders and what macOS adds; the message names the tar and the member.
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
            batch = images.view(-1, 1, 28, 28)  # a single image is a batch of one
            transformed = self.transform(batch)
            if transformed.shape != batch.shape:
                raise UserError(
                    f"the transform must keep {tuple(batch.shape)}, but returned {tuple(transformed.shape)}"
                )
            images = transformed.view(images.shape)
        return images, labels


def batches(image_set, batch_size, shuffle=False, drop_last=False):
    """Return a loader of images (B, 1, 28, 28) and labels (B,). It asks the Dataset for a whole batch at
    once, which is many times faster. drop_last leaves out an incomplete last batch."""
    sampler = RandomSampler(image_set) if shuffle else SequentialSampler(image_set)
    return DataLoader(image_set, batch_size=None, sampler=BatchSampler(sampler, batch_size, drop_last))


def normalize(images):
    """Scale images to [0, 1], subtract MEAN and divide by STD: uint8 (..., 28, 28) -> float32
    (..., 1, 28, 28), as the models expect them."""
    return images.unsqueeze(-3).float().div_(255).sub_(MEAN).div_(STD)


def denormalize(images):
    """Undo `normalize`: float32 (..., 1, 28, 28) -> uint8 (..., 28, 28)."""
    return images.squeeze(-3).mul(STD).add(MEAN).mul(255).round().clamp(0, 255).byte()


# Random changes of the training images --------------------------------------------------------------


# The coordinates of `grid_sample` run from -1 to 1 over 28 pixels.
PIXEL = 2 / 28


@dataclass(frozen=True)
class Augmentation:
    """A transform that rotates, shifts, scales and distorts every image of a batch by its own
    random amounts, so the model never sees quite the same image twice. `torch.manual_seed`
    makes it reproducible.

    rotation: at most this many degrees to either side, 0 to 180.
    shift: at most this many pixels in each direction, before scaling, 0 to 28.
    scaling: grow or shrink by at most this fraction, 0 to below 1.
    elastic: standard deviation, in pixels, of a random displacement at the points of a 7 x 7 grid,
        smooth between them, 0 to 14, after Simard, Steinkraus, Platt (2003), "Best Practices for
        Convolutional Neural Networks Applied to Visual Document Analysis".

    Maps a normalized batch, float32 (B, 1, 28, 28), to a batch of the same shape. Pixel values are
    interpolated; pixels from outside the image are background. Raises UserError when it is first used if
    a limit is out of range.

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
        count = len(images)
        device = images.device
        # Each option draws its own random numbers, and only if it is on: rotation, scaling, shift, elastic.
        # A further option that is drawn last leaves the results without it as they are.
        angle = zoom = across = along = torch.zeros(count, device=device)
        if self.rotation:
            angle = math.radians(self.rotation) * random_amounts(count, device)
        if self.scaling:
            zoom = self.scaling * random_amounts(count, device)
        if self.shift:
            across, along = PIXEL * self.shift * random_amounts((2, count), device)
        cos = angle.cos() / (1 + zoom)
        sin = angle.sin() / (1 + zoom)
        # for each image, a row for the x and one for the y coordinates of where its pixels come from
        coefficients = torch.stack([cos, -sin, across, sin, cos, along], dim=1).view(2 * count, 3)
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
        """Raise UserError if a limit is out of range."""
        if not 0 <= self.rotation <= 180:
            raise UserError(f"rotation = {self.rotation} must be 0 to 180 degrees")
        if not 0 <= self.shift <= 28:
            raise UserError(f"shift = {self.shift} must be 0 to 28 pixels")
        if not 0 <= self.scaling < 1:
            raise UserError(f"scaling = {self.scaling} must be 0 to below 1")
        if not 0 <= self.elastic <= 14:
            raise UserError(f"elastic = {self.elastic} must be 0 to 14 pixels")


def random_amounts(size, device):
    """Return random numbers, uniformly distributed between -1 and 1."""
    return 2 * torch.rand(size, device=device) - 1


# Reading and writing a tar --------------------------------------------------------------------------


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
                    raise UserError(f"{where}: the tar is damaged")
                if member.isdir() or is_added_by_macos(member.name):
                    continue
                number, label = parse_name(member, where)
                if number in seen:
                    raise UserError(f"{where}: there is another image with the number {number}")
                pixels += decode(tar.extractfile(member).read(), where)
                seen.add(number)
                numbers.append(number)
                labels.append(label)
            check_end(tar, tar_path)
    except UserError:
        raise
    except Exception as error:  # tarfile and the decompressors raise many kinds
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UserError(f"{tar_path} can't be read as a tar: {reason}") from error
    if not numbers:
        raise UserError(f"{tar_path} contains no image")
    by_number = sorted(range(len(numbers)), key=numbers.__getitem__)
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 28, 28)
    return images[by_number], torch.tensor(labels)[by_number]


def check_is_file(tar_path):
    """Raise FileNotFoundError or UserError, naming the tar, if it is no file."""
    if os.path.isfile(tar_path):
        return
    if os.path.exists(tar_path):  # opening a pipe would wait forever
        raise UserError(f"{tar_path} is not a file, but a folder, a pipe or a device")
    kind = "a link to a missing file" if os.path.islink(tar_path) else "no such file"
    raise FileNotFoundError(f"{tar_path}: {kind}; a run needs train.tar and test.tar")


def is_added_by_macos(name):
    """Whether a member is one of those that macOS adds to every tar that it makes."""
    *folders, file_name = name.split("/")
    return "__MACOSX" in folders or file_name.startswith("._") or file_name == ".DS_Store"


def parse_name(member, where):
    """Return the number and the label in a member's name. Raises UserError, starting with `where`, if
    the member can't be an image of MNIST."""
    match = re.fullmatch(r"(?:.*/)?([0-9]+)_([0-9])\.png", member.name, re.DOTALL)
    if not member.isfile() or not match:
        raise UserError(f"{where} is not an image named {{number}}_{{label}}.png with a label from 0 to 9")
    if member.size > MAX_FILE_SIZE:
        raise UserError(f"{where} has {member.size:,} bytes, too many for a 28 x 28 image")
    return int(match[1]), int(match[2])


def check_end(tar, tar_path):
    """Raise UserError if a tar that was read goes on with anything but zeros, or ends without any: tarfile
    takes a cut or damaged header for the end."""
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise UserError(f"{tar_path} is cut off: get the complete file")
    while rest:
        if rest.strip(b"\0"):
            raise UserError(f"{tar_path} is damaged at byte {tar.offset:,}: get an intact file")
        rest = tar.fileobj.read(2**20)


def decode(png, where):
    """Return the 784 bytes of a 28 x 28 grey PNG, also of one with fewer than 8 bits or in a colour
    format that holds only opaque grey. Raises UserError, starting with `where`, for anything else."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 33:
        raise UserError(f"{where} is not a PNG")
    # Read here, because Pillow has its own ideas about huge images.
    width, height, bits = struct.unpack(">IIB", png[16:25])
    if (width, height) != (28, 28):
        raise UserError(f"{where} is {width} x {height}, not 28 x 28 pixels")
    if bits == 16:
        raise UserError(f"{where} has 16 bits per channel: save it with 8")
    try:
        check_sums(png)
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.mode == "L" and "transparency" not in image.info:
                return image.tobytes()
            bands = image.convert("RGBA").split()
    except Exception as error:  # Pillow raises many kinds
        raise UserError(f"{where} is damaged: {error}") from error
    red, green, blue, alpha = (band.tobytes() for band in bands)
    if not (red == green == blue and alpha == bytes([255]) * 784):
        raise UserError(f"{where} has colours or transparency: save it as grey")
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


# Where the data come from ---------------------------------------------------------------------------


def load_data(data_dir, validation_images=0):
    """Return the training set, the test set and a description of both, a dict.

    data_dir: folder of train.tar and test.tar. If both are missing, MNIST is downloaded to it; if
        that fails, the shipped sample is used, with a warning on standard error.
    validation_images: 0, or how many of the last training images replace the test set.

    The description holds a sentence for the user (`description`), the absolute path (`folder`), the numbers
    of images (`train_images`, `test_images`), and a `checksum` of the images and labels, which identifies
    them whatever their folder.
    Raises OSError or UserError, with a message for the user, if the data can't be used.
    """
    folder = find_data(Path(data_dir))
    train_set = MNIST(folder / "train.tar")
    test_set = MNIST(folder / "test.tar")
    for warning in check_sets(train_set, test_set):
        print(f"warning: {warning}", file=sys.stderr)
    kind = "test"
    if validation_images:
        if validation_images >= len(train_set):
            raise UserError(
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
    """Return a list of warnings about training and test images. Raises UserError if most images of one set
    are in the other as well: testing on memorized images proves nothing."""
    train_images = [image.tobytes() for image in train_set.images.numpy()]
    test_images = [image.tobytes() for image in test_set.images.numpy()]
    in_both = set(train_images) & set(test_images)
    warnings = []
    if in_both:
        text = f"{len(in_both):,} images are in both train.tar and test.tar"
        for name, images in (("train.tar", train_images), ("test.tar", test_images)):
            fraction = sum(image in in_both for image in images) / len(images)
            if fraction > 0.5:
                raise UserError(f"{text}, {fraction:.0%} of {name}: test images must be new to the model")
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
    with tempfile.TemporaryDirectory(prefix="download-", dir=data_dir) as unfinished_folder:
        unfinished = Path(unfinished_folder)
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


# A digit from a photo -------------------------------------------------------------------------------

OPEN_SIDE = 600  # pixels: a large JPEG is decoded at this size or up to twice as large
MOST_PIXELS = 10**8  # to decode: they take 400 MB
SIDE = 150  # pixels of the longer side: enough to see a thin pen, and few enough to average noise away
SURROUNDINGS = 0.25  # of the longer side: how far those of a pixel reach; farther than any stroke is wide
MIDDLE_TONES = 0.2  # of all pixels: fewer have a middle tone, at the edges of strokes, if the light is even
BROADEST = 0.22  # of the longer side: what is broader is no stroke, but a shadow or a table
LEAST_CONTRAST = 12  # of 255 grey levels: paler ink can't be told from stains
LEAST_SIGNAL = 4  # times the roughness of the paper: weaker ink can't be told from its grain
LEVEL = 0.4  # of full ink: a pixel with more belongs to a stroke, one with less to a pale line
FAINT = 0.3  # of full ink: the blurred edge of a stroke holds less
TALL = 0.4  # of the height of the largest group: one that is taller may be a digit
BESIDE = 0.3  # of the narrower one's width: two digits of a number share less
NEAR = 0.15  # of the longer side of the largest group: what is nearer is a part of the same digit
STROKE = 2  # pixels when the digit is 20 long: four of five digits of MNIST have wider strokes

Image.MAX_IMAGE_PIXELS = None  # Pillow would refuse a phone's largest JPEGs, which are decoded small


def read_digit(path):
    """Read a photo or drawing of one digit and return it as MNIST's makers prepared theirs
    (LeCun et al. 1998, section III.A): uint8 (28, 28), 0 background to 255 ink, the longer
    side of the ink 20 pixels, its centre of mass in the middle.

    path: any picture that Pillow reads, dark on light or light on dark, in any size. The digit should
        fill it. Uneven light, ruled lines, a frame and the edge of the paper do no harm.

    1. Bring the picture to the size that all others have.
    2. Find out whether the ink is light or dark, and how much of it each pixel holds.
    3. Gather ink that hangs together into groups.
    4. Leave out the groups that touch the edge of the picture and those that are frames.
    5. See that the rest is one digit: the largest group and what lies near it.
    6. Cut it out, thicken thin strokes, reduce it to 20 pixels and centre it.

    Raises UserError, which names the file, if it can't be read, or if it shows no digit or more than
    one.
    """
    picture = open_picture(path)
    try:
        ink = find_ink(ImageOps.contain(picture.convert("L"), (SIDE, SIDE)))
        groups = find_groups(ink)
        groups = leave_out_edge(groups)
        groups = leave_out_frames(groups)
        check_single(groups)
        return centre(thicken(cut_out(ink, groups)))
    except ValueError as error:
        raise UserError(f"{path} {error}") from error


def open_picture(path):
    """Open a picture: upright as the camera says, on paper where it is transparent, in RGB, its longer
    side at most 2 * OPEN_SIDE pixels. Raises UserError, which names the file, if it can't be read."""
    if not os.path.isfile(path):  # opening a pipe would wait forever
        raise UserError(f"{path} is not a file")
    try:
        with Image.open(path) as picture:
            picture.draft(None, (OPEN_SIDE, OPEN_SIDE))  # decodes a large JPEG in a fraction of the time
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"only a JPEG may have more than {MOST_PIXELS:,} pixels")
            picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow raises many kinds
        raise UserError(f"{path} can't be read: save it as PNG or JPEG ({error})") from error
    if picture.mode[0] in "IF":
        raise UserError(f"{path} has more than 8 bits per pixel: save it as PNG or JPEG with 8")
    picture = picture.convert("RGBA")
    picture.thumbnail((2 * OPEN_SIDE, 2 * OPEN_SIDE), Image.Resampling.BOX)
    grey, opacity = picture.convert("LA").split()
    drawn = np.asarray(opacity) > 127
    # A white drawing on nothing needs black paper. One that fills the picture has its own.
    is_light = 0 < drawn.mean() < 0.5 and np.asarray(grey)[drawn].mean() > 127
    paper = Image.new("RGBA", picture.size, "black" if is_light else "white")
    return Image.alpha_composite(paper, picture).convert("RGB")


def find_ink(grey):
    """Return how much ink each pixel holds, float (H, W): 0 paper, 1 full ink. Full ink is the median of
    all pixels at least half as dark as the darkest, so pale strokes count as much as dark ones."""
    if not is_dark_on_light(grey):
        grey = ImageOps.invert(grey)
    darkness = find_paper(grey) - np.asarray(grey)
    half = darkness.max() / 2
    full = np.median(darkness[darkness >= half])
    # A rough paper has darker and brighter pixels.
    roughness = np.median(darkness[darkness <= half])
    if full < max(LEAST_SIGNAL * roughness, LEAST_CONTRAST):
        raise ValueError("shows no digit: no ink stands out from the background")
    blank = 2 * roughness  # few pixels of the paper are darker than this
    return ((darkness - blank) / (full - blank)).clip(0, 1)


def is_dark_on_light(grey):
    """Whether strokes are darker than what surrounds them. The cube keeps the sign and lets the few
    pixels that stand out most decide. Both sides of an edge stand out alike and cancel each other."""
    surroundings = grey.filter(ImageFilter.GaussianBlur(SURROUNDINGS * max(grey.size)))
    difference = np.asarray(grey, dtype=float) - np.asarray(surroundings)
    return np.sum(difference**3) < 0


def find_paper(grey):
    """Return how bright the paper is under each pixel, float (H, W).

    In even light a picture has two tones, paper and ink, and the paper is the brighter one, however
    thick the strokes are. Otherwise it is a grey closing: the bright paper grows over all that is
    narrow, and then shrinks back. Shadows, tables and other broad areas count as paper.
    """
    tones = np.asarray(grey, dtype=float)
    darkest, brightest = grey.getextrema()
    middle = (darkest + brightest) / 2
    quarter = (brightest - darkest) / 4
    if np.mean(abs(tones - middle) < quarter) < MIDDLE_TONES:
        bright = tones[tones >= middle]
        return np.full(tones.shape, np.median(bright))
    small = grey.reduce(2)  # averages bright grains away, which would grow as well
    width = 2 * round(BROADEST * max(small.size) / 2) + 1
    paper = small.filter(ImageFilter.MaxFilter(width)).filter(ImageFilter.MinFilter(width))
    paper = paper.resize(grey.size, Image.Resampling.BILINEAR)
    return np.asarray(paper, dtype=float)


class Group:
    """Ink that hangs together: ink, float (H, W), 0 elsewhere; amount, in pixels of full ink; and the
    smallest box around it, whose bottom and right are just outside."""

    def __init__(self, ink):
        self.ink = ink
        self.amount = ink.sum()
        self.left, self.top, self.right, self.bottom = Image.fromarray(ink > 0).getbbox()
        self.height = self.bottom - self.top
        self.width = self.right - self.left


def find_groups(ink):
    """Return the groups of ink, those with most ink first. Paint is poured on a pixel and runs over all
    that hangs together, until no ink is left without paint. The ink is grown before, so that small gaps
    do not part a stroke."""
    mask = ink > LEVEL
    canvas = Image.fromarray(grow(mask).astype(np.int32))  # 0 paper, 1 ink without paint
    paint = 1
    for y, x in np.argwhere(mask).tolist():
        if canvas.getpixel((x, y)) == 1:
            paint += 1
            ImageDraw.floodfill(canvas, (x, y), paint)
    labels = np.asarray(canvas) * mask
    groups = [Group(ink * (labels == number)) for number in range(2, paint + 1)]
    return sorted(groups, key=lambda group: group.amount, reverse=True)


def grow(mask):
    """Return a mask that reaches one pixel further in all directions."""
    picture = Image.fromarray(mask).convert("L")
    return np.asarray(picture.filter(ImageFilter.MaxFilter(3))) > 0


def leave_out_edge(groups):
    """Return the groups that do not touch the edge of the picture, as lines, a table and a part of the
    next digit do. If they hold less than half of the ink in the middle, the digit itself touches the
    edge, and all groups are returned."""
    height, width = groups[0].ink.shape
    middle = np.s_[height // 4 : height - height // 4, width // 4 : width - width // 4]
    loose = []
    balance = 0  # ink in the middle that is loose, less the ink there that is not
    for group in groups:
        amount = group.ink[middle].sum()
        if group.top == 0 or group.left == 0 or group.bottom == height or group.right == width:
            balance -= amount
        else:
            balance += amount
            loose.append(group)
    return loose if loose and balance >= 0 else groups


def leave_out_frames(groups):
    """Return the groups without those drawn around another one."""
    return [group for group in groups if not any(surrounds(group, other) for other in groups)]


def surrounds(frame, group):
    """Whether a tall group lies inside another one that has no ink in its box. (A stroke of a
    broken 4 can lie inside the box of the others, but one of them runs up to it.)"""
    inside = (
        frame.top < group.top
        and frame.left < group.left
        and group.bottom < frame.bottom
        and group.right < frame.right
    )
    hole = frame.ink[group.top : group.bottom, group.left : group.right]
    return inside and not hole.any() and group.height > TALL * frame.height


def check_single(groups):
    """Raise ValueError if a tall group stands beside the largest one, which comes first, as the digits of
    a number do, or if it lies far from it and has at least half as much ink."""
    largest = groups[0]
    for group in groups[1:]:
        is_tall = group.height > TALL * largest.height
        is_heavy = group.amount >= largest.amount / 2
        is_apart = is_heavy and not is_near(largest, group)
        if is_tall and (is_apart or is_beside(largest, group)):
            raise ValueError("shows more than one digit: keep one of them")


def is_beside(largest, group):
    """Whether two groups share more than half of their height and little of their width."""
    shared_height = min(largest.bottom, group.bottom) - max(largest.top, group.top)
    shared_width = min(largest.right, group.right) - max(largest.left, group.left)
    in_line = shared_height > max(largest.height, group.height) / 2
    return in_line and shared_width < BESIDE * min(largest.width, group.width)


def is_near(largest, group):
    """Whether the boxes of two groups overlap, or little paper lies between them."""
    down = max(largest.top, group.top) - min(largest.bottom, group.bottom)
    across = max(largest.left, group.left) - min(largest.right, group.right)
    return max(down, across) < NEAR * max(largest.height, largest.width)


def cut_out(ink, groups):
    """Return the ink of the digit: of the largest group, which comes first, and of what lies near it,
    such as the bar of a 5."""
    digit = sum(group.ink for group in groups if is_near(groups[0], group))
    ink = ink * grow(digit > 0)
    left, top, right, bottom = Image.fromarray(ink > FAINT).getbbox()
    return ink[top:bottom, left:right]


def thicken(ink):
    """Return ink whose strokes are not much thinner than MNIST's: they would fade to grey when the digit
    is reduced to 20 pixels."""
    pixel = max(ink.shape) / 20  # how many pixels of `ink` become one
    missing = STROKE * pixel - stroke_width(ink)
    steps = max(0, round(missing / 2))  # each adds a pixel on both sides
    picture = Image.fromarray(np.uint8(255 * np.pad(ink, steps)))
    for _ in range(steps):
        picture = picture.filter(ImageFilter.MaxFilter(3))
    return np.asarray(picture) / 255


def stroke_width(ink):
    """Return the average width of the strokes in pixels: a stroke's area is its length times its width,
    and its outline is twice its length. Counted along the sides of pixels, an outline is on average
    4 / pi times too long."""
    mask = np.pad(ink > ink.max() / 2, 1)
    area = np.sum(mask)
    outline = np.sum(mask[1:] != mask[:-1]) + np.sum(mask[:, 1:] != mask[:, :-1])
    return 2 * area / (outline * math.pi / 4)


def centre(ink):
    """Return ink reduced to a longer side of 20 pixels, as a uint8 tensor (28, 28) with its centre of
    mass in the middle. In MNIST's own images, that is the middle of pixel 14, counted from 0."""
    digit = ImageOps.contain(Image.fromarray(np.float32(255 * ink)), (20, 20), Image.Resampling.BOX)
    mass = np.asarray(digit) / np.sum(digit)
    rows = np.arange(digit.height)
    columns = np.arange(digit.width)
    top = round(14 - rows @ mass.sum(axis=1))
    left = round(14 - columns @ mass.sum(axis=0))
    image = Image.new("F", (28, 28))
    image.paste(digit, (left, top))
    return torch.from_numpy(np.asarray(image).round().astype(np.uint8))


def pictures_in(folder):
    """Return the paths of everything in a folder but hidden files, ordered by name; none if there is no
    such folder."""
    return sorted(Path(folder).glob("[!.]*"))


def read_digits(paths):
    """Read pictures of own digits with `read_digit`.

    Returns a dict of arrays: names (M,), with their folders if two have the same name; images, uint8
    (M, 28, 28); originals, uint8 (M, 112, 112, 3), thumbnails. It is empty if no picture can be read.
    A picture that can't be read is named on standard error and left out.
    """
    read = []
    images = []
    originals = []
    for path in map(Path, paths):
        try:
            image = read_digit(path)
        except UserError as error:
            print(f"warning: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        read.append(path)
        images.append(image.numpy())
        originals.append(np.asarray(ImageOps.pad(open_picture(path), (112, 112), color="white")))
    if not read:
        return {}
    names = [path.name for path in read]
    if len(set(names)) < len(names):
        names = [path.as_posix() for path in read]
    names = ["".join(letter if letter.isprintable() else "?" for letter in name) for name in names]
    return {"names": np.array(names), "images": np.stack(images), "originals": np.stack(originals)}
