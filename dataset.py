"""MNIST as a Dataset: tar of PNG images -> uint8 tensor -> normalized batches.

    train_set = MNIST("data/train.tar")
    image, label = train_set[0]            # float32 (1, 28, 28), int64 scalar
    images, labels = train_set[[4, 2, 0]]  # float32 (3, 1, 28, 28), int64 (3,)
"""

import http.client
import io
import os
import re
import socket
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch.utils.data import Dataset

# Mean and standard deviation of all pixels of MNIST's training images, scaled to [0, 1].
MEAN = 0.1307
STD = 0.3081

SAMPLE_DIR = Path(__file__).parent / "data" / "sample"


class MNIST(Dataset):
    """The images and labels of one tar, decoded once and held in memory.

    tar_path: a tar, plain or compressed (gz, bz2, xz), of 28 x 28 grey PNG images named
        {number}_{label}.png in any folder, such as train/00000_5.png.
    transform: maps a normalized batch, float32 (B, 1, 28, 28), to a batch of the same
        shape. It is there to augment training images.

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


def read_tar(tar_path):
    """Return the images, uint8 (N, 28, 28), and labels, int64 (N,), of a tar in the form
    that `MNIST` describes, ordered by number. Raises what `MNIST` raises."""
    pixels = bytearray()
    labels_by_number = {}
    try:
        with tarfile.open(tar_path) as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                # macOS adds files of its own to the tars that it makes.
                if member.isdir() or name.startswith("._") or name == ".DS_Store" or "__MACOSX" in folder:
                    continue
                where = f"{tar_path}: {member.name}"
                match = re.fullmatch(r"([0-9]+)_([0-9])\.png", name)
                if not member.isfile() or not match:
                    raise ValueError(f"{where} is not an image named {{number}}_{{label}}.png with a label from 0 to 9")
                number, label = int(match[1]), int(match[2])
                if number in labels_by_number:
                    raise ValueError(f"{where}: there is another image with the number {number}")
                labels_by_number[number] = label
                pixels += decode(tar.extractfile(member).read(), where)
    except FileNotFoundError:
        raise FileNotFoundError(f"{tar_path}: no such file") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{tar_path} can't be read as a tar: {error}") from error
    if not labels_by_number:
        raise ValueError(f"{tar_path} contains no image")

    numbers = list(labels_by_number)
    by_number = sorted(range(len(numbers)), key=numbers.__getitem__)
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 28, 28)
    labels = torch.tensor(list(labels_by_number.values()))
    return images[by_number], labels[by_number]


def decode(png, where):
    """Return the 784 bytes of a 28 x 28 grey PNG. Raises ValueError, beginning with
    `where`, if it isn't one."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.mode != "L" or image.size != (28, 28):
                raise ValueError(f"{where} is {image.width} x {image.height}, mode {image.mode}, not 28 x 28, 8-bit grey")
            return image.tobytes()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{where} can't be read as a PNG: {error}") from error


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
