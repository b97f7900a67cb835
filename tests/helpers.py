"""What several test files use: a copy of the project to run, and data made by hand."""

import csv
import os
import re
import shutil
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

import dataset
import main
from recognition import PAPERS, paper  # noqa: F401, which tests of pictures use

PROJECT = Path(__file__).parent.parent

# The settings that main.py is shipped with, as source text. Tests run with these, whatever a user has
# edited in main.py.
SETTINGS = {
    "EPOCHS": "10",
    "BATCH_SIZE": "32",
    "MOMENTUM": "0.9",
    "SEEDS": "(0,)",
    "DEVICE": '"cpu"',
    "TRAINING_IMAGES": "None",
    "VALIDATION_IMAGES": "0",
    "WORKERS": "None",
    "AUGMENTATION": "Augmentation(rotation=8, shift=1.4, scaling=0.1, elastic=0.4)",
    "BASELINE": '"LeNet5"',
    "DATA_DIR": '"data"',
    "DIGITS_DIR": '"data/my_digits"',
    "EXPERIMENTS": """[
    Experiment("LeNet5", LeNet5, learning_rate=0.02),
    Experiment("CustomMLP", CustomMLP, learning_rate=0.01),
    Experiment(
        "RegularizedLeNet5",
        RegularizedLeNet5,
        learning_rate=0.05,
        transform=AUGMENTATION,
        optimizer_options={"weight_decay": 2e-4},
        update_bn=True,
    ),
]""",
}

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


def is_edited():
    """Whether main.py has other settings than those it is shipped with."""
    return any(repr(getattr(main, name)) != repr(eval(text, vars(main))) for name, text in SETTINGS.items())


def make_row(name, model, learning_rate=0.01, **settings):
    """A row of EXPERIMENTS that trains for an epoch, if it does not say otherwise."""
    fixed = {
        "optimizer": partial(torch.optim.SGD, momentum=0.9),
        "batch_size": 32,
        "epochs": 1,
        "device": "cpu",
    }
    return main.Experiment(name, model, learning_rate, **fixed | settings)


def copy_project(folder, sample=True, **constants):
    """Copy what a clone of the project contains. main.py has the SETTINGS or, where they are given, other
    ones. With the sample in data/, nothing is downloaded."""
    folder.mkdir(exist_ok=True)
    for path in PROJECT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(dataset.SAMPLE_DIR, folder / "data" / "sample")
    edit(folder / "main.py", **SETTINGS | constants)
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
