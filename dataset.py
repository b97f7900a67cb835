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
import sys
import tarfile
import tempfile
import textwrap
import time
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from PIL.PngImagePlugin import PngImageFile
from torch.nn.functional import affine_grid, grid_sample, interpolate
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

# Mean and standard deviation of all pixels of MNIST's training images, scaled to [0, 1].
MEAN = 0.1307
STD = 0.3081

IMAGE_NAME = re.compile(r"(?:.*/)?([0-9]+)_([0-9])\.png", re.DOTALL | re.IGNORECASE)  # number, label
MAX_FILE_SIZE = 10**6  # bytes; a 28 x 28 image needs a few hundred, with colours and metadata a few thousand
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk of every PNG

MIN_CACHED = 6_000  # images; fewer are decoded in half a second
CODE_CHECKSUM = f"{zlib.crc32(Path(__file__).read_bytes()):08x}"  # at once: the file may be edited meanwhile

PROJECT = Path(__file__).resolve().parent
DEFAULT_DIR = PROJECT / "data"  # the only folder that MNIST is downloaded to
SAMPLE_DIR = DEFAULT_DIR / "sample"


def in_project(folder):
    """Return the path of a folder. A relative one is in the project's folder, whatever the current folder is;
    ~ is the home folder."""
    return PROJECT / Path(folder).expanduser()


class UserError(ValueError):
    """Says what is wrong, in words for the person at the shell."""


# The images as a Dataset ----------------------------------------------------------------------------


class MNIST(Dataset):
    """The images and labels of one tar, decoded once and kept in memory.

    tar_path: a tar, plain or compressed (gz, bz2, xz), of 28 x 28 grey PNG images named
        {number}_{label}.png in any folder, such as train/00000_5.png.
    transform: maps a normalized batch, float32 (B, 1, 28, 28), to a batch of the same
        shape, for example an `Augmentation`. It gets the whole batch at once. A random transform
        of torchvision, such as `rotate`, would treat all images alike. This treats each on its own:

        def rotate_each(images):
            return torch.stack([rotate(image) for image in images])

    images: uint8 (N, 28, 28), ordered by number; 0 is background, 255 is ink.
    labels: int64 (N,), 0 to 9.

    `dataset[index]` returns (images, labels), the images normalized. An int gives one image
    (1, 28, 28) and its label. A list of ints, a tensor or a slice gives a whole batch
    (B, 1, 28, 28), (B,), many times faster than one image at a time.

    Raises OSError if the tar can't be read, and UserError if it holds anything but such images, folders
    and what macOS and Windows add; the message names the tar and the member.
    """

    def __init__(self, tar_path, transform=None):
        self.images, self.labels = read_images(Path(tar_path))
        self.transform = transform

    def to(self, device):
        """Move all images and labels to a device, where batches are then made. Return the Dataset."""
        self.images = self.images.to(device)
        self.labels = self.labels.to(device)
        return self

    def subset(self, index):
        """Return a Dataset of only these images. A slice shares their memory."""
        subset = copy.copy(self)
        subset.images = self.images[index]
        subset.labels = self.labels[index]
        return subset

    def some(self, count):
        """Return a Dataset of at most `count` images in their order, chosen at random but always the same
        ones."""
        return self.subset(fixed_permutation(len(self))[:count].sort().values)

    def checksum(self):
        """Return a text that identifies the images and labels: their CRC-32, 8 hexadecimal digits."""
        return f"{zlib.crc32(self.labels.numpy(), zlib.crc32(self.images.numpy())):08x}"

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        images = normalize(self.images[index])
        if self.transform is not None:
            batch = images.view(-1, 1, 28, 28)  # a single image is a batch of one
            transformed = self.transform(batch)
            expected, returned = kind_of(batch), kind_of(transformed)
            if returned != expected:
                raise UserError(f"the transform must return {expected}, but returned {returned}")
            images = transformed.view(images.shape)
        return images, self.labels[index]


def fixed_permutation(count):
    """Return the numbers below `count` in a random order that is always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def kind_of(value):
    """Return what a message calls a tensor, such as torch.float32 (32, 1, 28, 28), or another object."""
    if torch.is_tensor(value):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"an object of type {type(value).__name__}"


def batches(image_set, batch_size, shuffle=False, drop_last=False):
    """Return a loader of images (B, 1, 28, 28) and labels (B,). Its sampler gives it lists of indices, so
    it asks the Dataset for a whole batch at once, which is many times faster, and needs no batch_size of its
    own. drop_last leaves out an incomplete last batch."""
    sampler = RandomSampler(image_set) if shuffle else SequentialSampler(image_set)
    return DataLoader(image_set, batch_size=None, sampler=BatchSampler(sampler, batch_size, drop_last))


def normalize(images):
    """Scale images to [0, 1], subtract MEAN and divide by STD: uint8 (..., 28, 28) -> float32
    (..., 1, 28, 28), as the models expect them."""
    return images.unsqueeze(-3).float().div_(255).sub_(MEAN).div_(STD)


def denormalize(images):
    """Undo `normalize`: float32 (..., 1, 28, 28) -> uint8 (..., 28, 28)."""
    return images.squeeze(-3).mul(STD).add(MEAN).mul(255).round().clamp(0, 255).byte()


# Augmentation ---------------------------------------------------------------------------------------


# The coordinates of `grid_sample` run from -1 to 1 over 28 pixels.
PIXEL = 2 / 28


@dataclass(frozen=True)
class Augmentation:
    """A transform that rotates, shifts, scales and distorts every image of a batch by its own
    random amounts, so the model never sees quite the same image twice. `torch.manual_seed`
    makes it reproducible.

    rotation: at most this many degrees to either side.
    shift: at most this many pixels in each direction, before scaling.
    scaling: grow or shrink by at most this fraction, 0 to below 1.
    elastic: standard deviation, in pixels, of a random displacement at the points of a 7 x 7 grid,
        smooth between them, after Simard, Steinkraus, Platt (2003), "Best Practices for
        Convolutional Neural Networks Applied to Visual Document Analysis".

    Maps a normalized batch, float32 (B, 1, 28, 28), to a batch of the same shape. Pixel values are
    interpolated; pixels from outside the image are background.

    For each pixel of the new image, compute where in the old image its value comes from (`sources`), and
    read the old image there (`grid_sample`). Rotation, scaling and shift give sources a x + b y + c; elastic
    distortion adds a weighted sum of 49 smooth bumps. So all sources are one matrix product: coefficients,
    random for each image, times x, y, 1 and the bumps, which are always the same (`_basis`).
    """

    rotation: float = 0
    shift: float = 0
    scaling: float = 0
    elastic: float = 0

    def __call__(self, images):
        count = len(images)
        device = images.device
        # An option that is off draws no random numbers. So a new option, while it is off, changes no run.
        angle = zoom = across = along = torch.zeros(count, device=device)
        if self.rotation:
            angle = math.radians(self.rotation) * random_amounts(count, device)
        if self.scaling:
            zoom = self.scaling * random_amounts(count, device)
        if self.shift:
            across, along = PIXEL * self.shift * random_amounts((2, count), device)
        cos = angle.cos() / (1 + zoom)
        sin = angle.sin() / (1 + zoom)
        # Two rows for each image: the weights of x, y and 1 for the x of the sources, and for their y.
        coefficients = torch.stack([cos, -sin, across, sin, cos, along], dim=1).view(2 * count, 3)
        if self.elastic:
            heights = PIXEL * self.elastic * torch.randn(2 * count, 49, device=device)
            coefficients = torch.cat([coefficients, heights], dim=1)
        sources = coefficients @ self._basis.to(device)
        sources = sources.view(count, 2, 28, 28).movedim(1, -1)
        background = -MEAN / STD  # becomes 0 below, since grid_sample fills in zeros
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


def random_amounts(size, device):
    """Return random numbers, uniformly distributed between -1 and 1."""
    return 2 * torch.rand(size, device=device) - 1


# Reading and writing a tar --------------------------------------------------------------------------


def read_images(tar_path):
    """Return the images and the labels in a tar, as `MNIST` describes them. What was decoded from a large tar
    is cached beside it: decoding takes four seconds, reading the cache a tenth of one."""
    content = tar_path.read_bytes()
    source = f"{zlib.crc32(content):08x} {CODE_CHECKSUM}"
    cache_path = tar_path.with_name(f"{tar_path.name}.decoded")
    arrays = read_cache(cache_path, source)
    if arrays is None:
        arrays = read_tar(tar_path, content)
        if len(arrays["labels"]) >= MIN_CACHED:
            with suppress(OSError), whole_file(cache_path) as file:  # else the next run decodes the tar
                np.savez(file, source=source, **arrays)
    return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])


def read_cache(cache_path, source):
    """Return the images and labels in a cache, a dict of arrays. Return None if there is none, if it was made
    from another tar or by another version of this module, or if it is damaged, as its checksums tell."""
    # numpy and zipfile raise many kinds
    with suppress(Exception), open(cache_path, "rb") as file, np.load(file) as cache:
        # numpy reads only as much as a stored shape asks for: a damaged shape would escape the checksum
        if cache.zip.testzip() is None and cache["source"] == source:
            return {"images": cache["images"], "labels": cache["labels"]}
    return None


@contextmanager
def whole_file(path):
    """Open a file for writing that gets its name only when it is complete. Otherwise it is removed. Raises
    OSError that names the file."""
    unfinished = Path(f"{path}.{os.getpid()}.part")  # two processes may write the same file
    try:
        with open(unfinished, "wb") as file:
            yield file
        replace_patiently(unfinished, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk is said without it
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def replace_patiently(source, path):
    """Rename a file, and try again for two seconds: a virus scanner or a synchronized folder may hold it."""
    for _ in range(20):
        with suppress(PermissionError):
            return source.replace(path)
        time.sleep(0.1)
    return source.replace(path)


def read_tar(tar_path, content):
    """Return the images and labels in the content of a tar, a dict of arrays. Raises UserError, as `MNIST`
    does."""
    pixels = {}  # bytes, by number
    labels = {}
    where = tar_path  # what an error is about
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in tar:
                where = f"{tar_path}: {member.name!r}"  # quoted, because it may hold anything
                # A damaged size could fill the memory, and a negative one sends tarfile in circles.
                if not 0 <= member.size <= MAX_FILE_SIZE:
                    raise ValueError(f"{member.size:,} bytes is no size of a 28 x 28 image")
                if member.isdir() or is_added_by_system(member.name):
                    continue
                number, label = parse_name(member)
                if number in pixels:
                    raise ValueError(f"another image has the number {number}")
                with tar.extractfile(member) as file:
                    pixels[number] = decode(file.read())
                labels[number] = label
            where = tar_path
            check_end(tar)
        if not pixels:
            raise ValueError("it holds no image")
    except Exception as error:  # tarfile, Pillow and the decompressors raise many kinds
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UserError(f"{where} can't be used: {reason}") from error
    order = sorted(pixels)
    images = bytearray().join(pixels[number] for number in order)
    return {
        "images": np.frombuffer(images, dtype=np.uint8).reshape(-1, 28, 28),
        "labels": np.array([labels[number] for number in order], dtype=np.int64),
    }


def is_added_by_system(name):
    """Whether a member is one of those that macOS adds to every tar, and Windows to folders."""
    *folders, file_name = name.split("/")
    is_hidden = file_name.lower() in (".ds_store", "thumbs.db", "desktop.ini")
    return is_hidden or file_name.startswith("._") or "__MACOSX" in folders


def parse_name(member):
    """Return the number and the label in a member's name. Raises ValueError if it is no image of MNIST."""
    match = IMAGE_NAME.fullmatch(member.name)
    if match and member.isfile():
        return int(match[1]), int(match[2])
    if member.issym() or member.islnk():
        raise ValueError("it is a link: put the image itself into the tar")
    raise ValueError("it is not an image named {number}_{label}.png with a label from 0 to 9")


def check_end(tar):
    """Raise ValueError if a tar that was read goes on with anything but zeros, or ends without any: tarfile
    takes a cut or damaged header for the end."""
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read()
    if len(rest) < tarfile.BLOCKSIZE:
        raise ValueError("it is cut off: get the complete file")
    if rest.strip(b"\0"):
        raise ValueError(f"it is damaged at byte {tar.offset:,}: get an intact file")


def decode(png):
    """Return the 784 bytes of a 28 x 28 grey PNG, also of one with fewer than 8 bits or in a colour
    format that holds only opaque grey. Raises ValueError, or what Pillow raises, for anything else."""
    image = PngImageFile(io.BytesIO(png))
    if image.size != (28, 28):
        raise ValueError(f"it has {image.width} x {image.height} instead of 28 x 28 pixels")
    if png[24] == 16:  # Pillow would drop eight of them
        raise ValueError("it has 16 bits per channel: save it with 8")
    image.verify()  # checks the checksums of all chunks but the last, and closes the image
    if PNG_END not in png:
        raise ValueError("it is cut off or damaged")
    image = PngImageFile(io.BytesIO(png))
    if image.mode == "L" and "transparency" not in image.info:
        return image.tobytes()
    red, green, blue, alpha = (band.tobytes() for band in image.convert("RGBA").split())
    if not (red == green == blue and alpha == bytes([255]) * 784):
        raise ValueError("it has colours or transparency: save it as grey")
    return red


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


def load_data(data_dir, training_images=None, validation_images=0):
    """Return the training set, the test set and a dict that describes both.

    data_dir: folder of train.tar and test.tar, which may be compressed, such as train.tar.gz. It is
        relative to the project's folder; ~ is the home folder. If there are no tars in the default, data,
        MNIST is downloaded to it; if that fails, the shipped sample is used, with a warning.
    training_images: how many of the training images are used, or None for all of them.
    validation_images: 0, or how many training images are held out and replace the test set.
    Both are chosen at random, but are always the same ones.

    The dict holds a sentence for the user (`description`), the `kind` of the second set, "test" or
    "validation", and the checksums of both.
    Raises OSError or UserError, with a message for the user, if the data can't be used.
    """
    print(f"Reading the images in {data_dir} ...", flush=True)
    folder = in_project(data_dir)
    has_tars = find_tars(folder, "train") or find_tars(folder, "test")
    if folder.resolve() == DEFAULT_DIR.resolve() and not has_tars:
        try:
            download(folder)
        except (ImportError, OSError, RuntimeError, http.client.HTTPException) as error:
            # torchvision lists every mirror and what it answered, one below the other
            reason = str(error).strip() or repr(error)
            print(
                f"warning: MNIST can't be downloaded to {folder}: {reason.splitlines()[-1].strip('<>')}\n"
                "warning: this run uses the small sample in data/sample, so its accuracies will be lower",
                file=sys.stderr,
                flush=True,
            )
            folder = SAMPLE_DIR
    train_set = load_set(folder, "train")
    test_set = load_set(folder, "test")
    check_overlap(train_set, test_set)
    kind = "validation" if validation_images else "test"
    if training_images is not None or validation_images:
        train_set, held_out = split(train_set, training_images, validation_images)
        test_set = held_out if validation_images else test_set
    source = "the shipped sample" if folder == SAMPLE_DIR else f"{Path(data_dir)}/"
    about = {
        "description": f"{len(train_set):,} training and {len(test_set):,} {kind} images from {source}",
        "kind": kind,
        "train_checksum": train_set.checksum(),
        "eval_checksum": test_set.checksum(),
    }
    return train_set, test_set, about


def split(train_set, training_images, validation_images):
    """Return two Datasets: as many training images, or all if None, and as many others that are held out."""
    order = fixed_permutation(len(train_set))
    left = len(order) - validation_images
    if not 0 <= validation_images < len(order):
        raise UserError(
            f"VALIDATION_IMAGES = {validation_images} must be 0 to {len(order) - 1:,}, fewer than there are"
        )
    if training_images is not None and not 1 <= training_images <= left:
        raise UserError(
            f"TRAINING_IMAGES = {training_images} must be None or 1 to {left:,}, as many as there are"
        )
    chosen = order[:left][:training_images]
    return train_set.subset(chosen.sort().values), train_set.subset(order[left:].sort().values)


def find_tars(folder, name):
    """Return the paths of all tars of this name in a folder, in capitals or not, compressed or not."""
    names = [name + ending for ending in (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")]
    return [path for path in folder.glob("*") if path.name.lower() in names]


def load_set(folder, name):
    """Return the images of the only tar of this name in a folder. Warn if they are dark on light or black."""
    paths = find_tars(folder, name)
    if len(paths) != 1:
        content = textwrap.shorten(", ".join(sorted(os.listdir(folder))), 200, placeholder=" ...")
        raise UserError(f"{folder} must hold one {name}.tar (or .tar.gz), but holds: {content or 'nothing'}")
    image_set = MNIST(paths[0])
    some_pixels = image_set.images[:, ::4, ::4].float()  # a part is faster, and enough
    if some_pixels.mean() > 127:
        print(
            f"warning: the images in {paths[0]} are dark on light; MNIST's are light on dark, and so is what "
            "the models see of your photos. Make the tar again with 255 - image.",
            file=sys.stderr,
        )
    if some_pixels.max() < 32:
        print(
            f"warning: the images in {paths[0]} are almost black: white is 255, not 1. Make the tar again "
            "with 255 * image.",
            file=sys.stderr,
        )
    return image_set


def check_overlap(train_set, test_set):
    """Warn of images that are in both sets. Raises UserError if most images of one are in the other:
    testing on memorized images proves nothing."""
    train_images = {image.tobytes() for image in train_set.images.numpy()}
    test_images = {image.tobytes() for image in test_set.images.numpy()}
    count = len(train_images & test_images)
    if count:
        text = f"{count:,} images are both training and test images"
        if count > min(len(train_images), len(test_images)) / 2:
            raise UserError(f"{text}: test images must be new to the model")
        print(f"warning: {text}", file=sys.stderr)


def download(data_dir, timeout=10):
    """Download MNIST and write it to `data_dir` as train.tar and test.tar. Raises what torchvision raises,
    also if a server is silent for `timeout` seconds, and OSError if `data_dir` can't be written to."""
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
        finally:
            socket.setdefaulttimeout(default_timeout)
        for name, images in mnist.items():
            print(f"Writing {data_dir / name}.tar, {len(images):,} images ...", flush=True)
            write_tar(unfinished / f"{name}.tar", images.data, images.targets)
        for name in mnist:
            os.replace(unfinished / f"{name}.tar", data_dir / f"{name}.tar")


# A digit from a photo -------------------------------------------------------------------------------

LONGEST = 30  # times as long as wide: a longer picture has no room for a digit
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
HEAVY = 0.3  # of the ink of the largest part: another one with as much may be a digit
TALL = 0.4  # of the height of the largest part: another one as tall may be a digit
STROKE = 2  # pixels when the digit is 20 long: four of five digits of MNIST have wider strokes

Image.MAX_IMAGE_PIXELS = None  # Pillow would refuse a phone's largest JPEGs, which are decoded small


def read_digit(path):
    """Read a photo or drawing of one digit and return it as MNIST's makers prepared theirs
    (LeCun et al. 1998, section III.A): uint8 (28, 28), 0 background to 255 ink, the longer
    side of the ink 20 pixels, its centre of mass in the middle.

    path: any picture that Pillow reads, dark on light or light on dark, in any size. The digit should
        fill it. Uneven light, ruled lines, a box around it and the edge of the paper do no harm.

    1. Open the picture and fit it into 150 x 150 pixels.
    2. Find out whether the ink is light or dark, and how much of it each pixel holds.
    3. Leave out what is connected with the edge of the picture, and a box drawn around the digit.
    4. See that the rest is one digit, and leave out what lies beside it.
    5. Cut it out, thicken thin strokes, reduce it to 20 pixels and centre it.

    Raises UserError, which names the file, if it can't be read, or if it shows no digit or more than
    one.
    """
    picture = open_picture(path)
    try:
        ink = find_ink(ImageOps.contain(picture.convert("L"), (SIDE, SIDE)))
        ink = leave_out_edge(ink)
        ink = leave_out_box(ink)
        ink = largest_part(ink)
        ink = largest_part(ink.T).T  # digits can also stand one above the other
        return centre(thicken(cut_out(ink)))
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
        raise UserError(f"{path} can't be read: save it again as JPEG ({error})") from error
    if picture.mode[0] in "IF":
        raise UserError(f"{path} has more than 8 bits per pixel: save it as PNG or JPEG with 8")
    if max(picture.size) > LONGEST * min(picture.size):
        raise UserError(f"{path} has {picture.width} x {picture.height} pixels: too narrow to show a digit")
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


def find_strokes(ink):
    """Return where strokes are, an image (H, W) of 1 there and 0 elsewhere. They reach a pixel further than
    the strong ink, so that a small gap does not divide a stroke."""
    strong = Image.fromarray(np.uint8(ink > LEVEL))
    return strong.filter(ImageFilter.MaxFilter(3))


def leave_out_edge(ink):
    """Return the ink of the strokes, float (H, W), without those connected with the edge of the picture, as
    lines, a table and a part of the next digit are. If they hold more than half of the ink in the middle,
    the digit itself touches the edge, and they stay."""
    strokes = find_strokes(ink)
    ink = ink * np.asarray(strokes)
    # The margin connects all that touches the edge, so one flood fill removes it.
    canvas = ImageOps.expand(strokes, border=1, fill=1)
    ImageDraw.floodfill(canvas, (0, 0), 0)
    loose = ink * np.asarray(ImageOps.crop(canvas, border=1))
    height, width = ink.shape
    middle = np.s_[height // 4 : height - height // 4, width // 4 : width - width // 4]
    if not loose.any() or loose[middle].sum() < ink[middle].sum() / 2:
        return ink
    return loose


def leave_out_box(ink):
    """Return the ink, float (H, W), without a box drawn around the digit: without what is connected with the
    topmost ink, if all the rest lies inside it and is tall."""
    strokes = find_strokes(ink)
    left, top, right, bottom = strokes.getbbox()
    row, column = np.argwhere(strokes)[0].tolist()
    ImageDraw.floodfill(strokes, (column, row), 0)
    # A digit without a box is the topmost ink itself, and nothing is left.
    inner_left, inner_top, inner_right, inner_bottom = strokes.getbbox() or (left, top, right, bottom)
    is_inside = left < inner_left and top < inner_top and inner_right < right and inner_bottom < bottom
    is_tall = inner_bottom - inner_top > TALL * (bottom - top)
    if is_inside and is_tall:
        return ink * np.asarray(strokes)
    return ink


def largest_part(ink):
    """Divide the ink, float (H, W), at columns without strokes, and return the part with most ink, float
    (H, w). Raises ValueError if another part has enough ink and is tall enough to be a digit, too."""
    has_strokes = np.asarray(find_strokes(ink)).any(axis=0)
    borders = np.flatnonzero(has_strokes[1:] != has_strokes[:-1]) + 1
    *others, largest = sorted(np.split(ink, borders, axis=1), key=np.sum)
    height = largest.any(axis=1).sum()
    for part in others:
        is_heavy = part.sum() >= HEAVY * largest.sum()
        is_tall = part.any(axis=1).sum() >= TALL * height
        if is_heavy and is_tall:
            raise ValueError("shows more than one digit: keep one of them")
    return largest


def cut_out(ink):
    """Return the ink in the smallest box around the digit, float (h, w)."""
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
    """Return the paths of everything in a folder but hidden files and what macOS and Windows add, ordered by
    name; none if there is no such folder."""
    return [path for path in sorted(Path(folder).glob("[!.]*")) if not is_added_by_system(path.name)]


def read_digits(paths):
    """Read pictures of own digits with `read_digit`.

    Returns a dict: names, a list, with their folders if two have the same name; images, a uint8 tensor
    (M, 28, 28); originals, thumbnails, a uint8 tensor (M, 112, 112, 3). It is empty if no picture can be
    read. A picture that can't be read is named on standard error and left out.
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
        images.append(image)
        original = ImageOps.pad(open_picture(path), (112, 112), color="white")
        originals.append(torch.from_numpy(np.array(original)))
    if not read:
        return {}
    names = [path.name for path in read]
    if len(set(names)) < len(names):
        names = [path.as_posix() for path in read]
    names = ["".join(letter if letter.isprintable() else "?" for letter in name) for name in names]
    return {"names": names, "images": torch.stack(images), "originals": torch.stack(originals)}
