"""What several test files use: a copy of the project to run, and data made by hand."""

import csv
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dataset

PROJECT = Path(__file__).parent.parent

# A warning that a user would see is an error. So is a file that we open without an encoding, which
# differs between computers.
FILTERS = ["error::UserWarning", "error::RuntimeWarning", "error::FutureWarning"]
FILTERS += ["ignore::DeprecationWarning", "ignore::EncodingWarning"]  # which a user does not see
for module in ("__main__", "__mp_main__", "dataset", "model", "plot"):
    FILTERS.append(f"error::EncodingWarning:{module}")

# All ways to the internet closed.
ENVIRONMENT = {
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "PYTHONWARNDEFAULTENCODING": "1",
    "PYTHONWARNINGS": ",".join(FILTERS),
}
# Without these, Python or a library does not start on Windows.
for name in ("SYSTEMROOT", "TEMP", "USERPROFILE"):
    if name in os.environ:
        ENVIRONMENT[name] = os.environ[name]


def copy_project(folder, sample=True, **constants):
    """Copy what a clone of the project contains, with edited constants in main.py, given as
    source text. With the sample in data/, nothing is downloaded."""
    folder.mkdir(exist_ok=True)
    for path in PROJECT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(dataset.SAMPLE_DIR, folder / "data" / "sample")
    edit(folder / "main.py", **constants)
    if sample:
        for name in ("train.tar", "test.tar"):
            shutil.copy(folder / "data" / "sample" / name, folder / "data")
    return folder


def edit(path, **constants):
    """Replace the values of constants in a copy of main.py by other source text."""
    text = path.read_text(encoding="utf-8")
    for name, value in constants.items():
        line = f"{name} = {value}\n"
        # a value ends where the next line is not indented and does not close a bracket
        text, count = re.subn(
            rf"^{name} = .*\n([ }})\]].*\n)*", lambda _, line=line: line, text, flags=re.MULTILINE
        )
        assert count == 1, name
    path.write_text(text, encoding="utf-8")


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


def results_of(folder):
    """The folder of the only run in a copy of the project."""
    (results,) = (folder / "results").iterdir()
    return results


def own_lines(text):
    """The lines of standard error that the program has written, and not a library at its exit."""
    return [line for line in text.splitlines() if re.match("error: |warning: |interrupted", line)]


def rows(path):
    """The rows of a CSV, as dicts of texts."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def figures(path):
    """The columns of a CSV that a seed decides."""
    columns = ("epoch", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy")
    return [[row[column] for column in columns] for row in rows(path)]


def idx(tensor):
    """A tensor as a uint8 IDX file, the form in which MNIST is served."""
    header = struct.pack(f">HBB{tensor.dim()}I", 0, 8, tensor.dim(), *tensor.shape)
    return header + tensor.to(torch.uint8).numpy().tobytes()


def paper(digit, light=False, gradient=0, noise=0, scale=1, seed=0):
    """A digit, uint8 (28, 28), redrawn 140 pixels high somewhere on 400 x 300 grey paper."""
    generator = np.random.default_rng(seed)
    image = Image.fromarray(digit)
    image = image.crop(image.getbbox())
    height = 140 * scale
    width = min(round(image.width * height / image.height), 390 * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    ink = np.zeros((300 * scale, 400 * scale))
    top, left = generator.integers(1, ink.shape[0] - height), generator.integers(1, ink.shape[1] - width)
    ink[top : top + height, left : left + width] = np.asarray(image) / 255
    grey = 10 + 230 * ink if light else 230 - 180 * ink
    grey = grey * np.linspace(1 - gradient, 1, ink.shape[1]) + generator.normal(0, 1, ink.shape) * noise
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


PAPERS = {
    "dark on light": {},
    "light on dark": {"light": True},
    "gradient and noise": {"gradient": 0.4, "noise": 6},
    "twice as large": {"gradient": 0.4, "noise": 6, "scale": 2},
}
