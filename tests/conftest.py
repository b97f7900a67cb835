import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))

import dataset  # noqa: E402

torch.set_num_threads(1)  # as main.py does


@pytest.fixture(scope="session")
def train_set():
    """The 4,000 training images of the shipped sample."""
    return dataset.MNIST(dataset.SAMPLE_DIR / "train.tar")


@pytest.fixture(scope="session")
def test_set():
    """The 1,000 test images of the shipped sample."""
    return dataset.MNIST(dataset.SAMPLE_DIR / "test.tar")


def idx(tensor):
    """A tensor as a uint8 IDX file, the form in which MNIST is served."""
    header = struct.pack(f">HBB{tensor.dim()}I", 0, 8, tensor.dim(), *tensor.shape)
    return header + tensor.to(torch.uint8).numpy().tobytes()


def copy_project(folder, **constants):
    """Copy what a clone of the project contains, with edited constants in main.py, as a
    person would edit them."""
    for path in PROJECT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(dataset.SAMPLE_DIR, folder / "data" / "sample")
    lines = (folder / "main.py").read_text().splitlines()
    for name, value in constants.items():
        (index,) = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
        lines[index] = f"{name} = {value!r}"
    (folder / "main.py").write_text("\n".join(lines) + "\n")
    return folder


def use_sample(folder):
    """Put the sample where a copy of the project looks for MNIST, so that nothing is downloaded."""
    for name in ("train.tar", "test.tar"):
        (folder / "data" / name).symlink_to(folder / "data" / "sample" / name)


# All ways to the internet closed, and a warning is an error: a user should see none.
ENVIRONMENT = {
    "PATH": "",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "PYTHONWARNINGS": "error",
}


def run(folder, *arguments):
    """Run python in the folder, without a network."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
