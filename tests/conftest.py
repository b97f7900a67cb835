import ast
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


def edit(path, **constants):
    """Replace the values of constants in a copy of main.py by other source text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assigned = [node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.Assign)]
    for node in reversed(assigned):
        if (name := node.targets[0].id) in constants:
            lines[node.lineno - 1 : node.end_lineno] = [f"{name} = {constants.pop(name)}"]
    assert not constants
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def copy_project(folder, sample=True, **constants):
    """Copy what a clone of the project contains, with edited constants in main.py, given as
    source text. With the sample in data/, nothing is downloaded."""
    for path in PROJECT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(dataset.SAMPLE_DIR, folder / "data" / "sample")
    edit(folder / "main.py", **constants)
    if sample:
        for name in ("train.tar", "test.tar"):
            (folder / "data" / name).symlink_to(folder / "data" / "sample" / name)
    return folder


def results_of(folder):
    """The folder of the only run in a copy of the project."""
    (results,) = (folder / "results").iterdir()
    return results


# All ways to the internet closed, and a warning is an error: a user should see none.
ENVIRONMENT = {
    "PATH": "",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "PYTHONWARNINGS": "error",
}


def run(folder, *arguments, **environment):
    """Run python in the folder, without a network."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
