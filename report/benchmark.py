"""What the scripts cost, beside other ways to do the same.

    python report/benchmark.py

Each row of the table compares two sides, with a slash between their names. They take turns, and their
figures are medians. Needs the complete MNIST in data/, and Linux for the rows on memory. Takes
15 minutes on two cores.

main.py runs in copies of the project, with EPOCHS = 1. Its first step has come when it says where the
results go: everything is imported, the images are read, each row has been tried, the trainings begin.
"""

import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import dataset
import main
from dataset import SAMPLE_DIR
from main import AUGMENTATION, Experiment
from model import LeNet5

DATA = PROJECT / "data"
SHORT_EPOCH = 4000  # images
SHORT_EPOCHS = 41  # many, since the machine's speed drifts by more than the two sides differ


@dataclass(frozen=True)
class Row:
    """A row of the table. `measure` returns a figure for each side."""

    what: str
    unit: str
    runs: int
    measure: Callable[[], tuple[float, float]]


def all_rows(train_set, idx_folder):
    """Return the rows of the table.

    idx_folder: where torchvision finds the images.
    """
    return [
        Row("first run, until its first step / import torch", "s", 3, partial(first_run, DATA)),
        Row("second run, until its first step / import torch", "s", 3, partial(second_run, DATA)),
        Row("run on the sample, until its first step / import torch", "s", 3, partial(first_run, SAMPLE_DIR)),
        Row("from the last epoch until the table / until the last picture", "s", 3, after_last_epoch),
        Row("first run / the same in the way of pytorch/examples", "s", 3, partial(whole_run, idx_folder)),
        Row("first run, WORKERS = 2 / WORKERS = 1", "s", 3, two_workers),
        Row("a pass through the loader / torchvision's", "s", 3, partial(one_pass, train_set, idx_folder)),
        Row("train(), 4,000 images / a bare loop", "s", SHORT_EPOCHS, bare_loop(train_set)),
        Row("train(), 4,000 images, augmented / as they are", "s", SHORT_EPOCHS, augmented(train_set)),
        Row("memory of a run, WORKERS = 1 / of its imports", "MB", 1, memory_of_one),
        Row("memory of a run, WORKERS = 2 / WORKERS = 1", "MB", 1, memory_of_two),
    ]


def print_table():
    """Measure and print all rows."""
    torch.set_num_threads(1)  # as main.py does
    train_set = dataset.MNIST(DATA / "train.tar")
    test_set = dataset.MNIST(DATA / "test.tar")
    print(f"{len(train_set):,} training images, {os.cpu_count()} cores, torch {torch.__version__}\n")
    print("| measured | ours | other | ratio | runs of each |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as idx_folder:
        write_idx(Path(idx_folder), train_set, test_set)
        for row in all_rows(train_set, idx_folder):
            print_row(row)


def print_row(row):
    """Measure and print a row: the medians of both sides and of their ratios."""
    pairs = [row.measure() for _ in range(row.runs)]
    ours = statistics.median(first for first, _ in pairs)
    other = statistics.median(second for _, second in pairs)
    ratio = statistics.median(first / second for first, second in pairs)
    digits = 2 if row.unit == "s" else 0
    figures = f"{ours:.{digits}f} {row.unit} | {other:.{digits}f} {row.unit} | {ratio:.2f}"
    print(f"| {row.what} | {figures} | {row.runs} |", flush=True)


# Whole runs of main.py ------------------------------------------------------------------------------


@contextmanager
def project_copy(data_dir=DATA, **constants):
    """Provide a copy of the project in which nothing has run yet, with these tars and edited constants."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        for path in PROJECT.glob("*.py"):
            shutil.copy(path, project)
        (project / "data").mkdir()
        for name in ("train.tar", "test.tar"):
            shutil.copy(data_dir / name, project / "data")
        text = (project / "main.py").read_text(encoding="utf-8")
        for name, value in {"EPOCHS": "1", **constants}.items():
            text = re.sub(rf"^{name} = .*", f"{name} = {value}", text, flags=re.MULTILINE)
        (project / "main.py").write_text(text, encoding="utf-8")
        yield project


def python(folder, *arguments):
    """Run Python in a folder and return how long it takes. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def start_main(project):
    """Start main.py in a copy of the project, with its output in a pipe."""
    command = [sys.executable, "main.py"]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, encoding="utf-8")


def until_first_step(project):
    """Return how long main.py takes until its first step, and end it there."""
    start = time.perf_counter()
    with start_main(project) as process:
        for line in process.stdout:
            if line.startswith("The results go to"):
                seconds = time.perf_counter() - start
                process.kill()
                process.stdout.read()  # ends when all of its processes have ended
                return seconds
    raise RuntimeError("main.py has ended before its first step")


def first_run(data_dir):
    """A run that reads the tars, beside what no program with torch can avoid."""
    with project_copy(data_dir) as project:
        return until_first_step(project), python(project, "-c", "import torch")


def second_run(data_dir):
    """A run that finds the copy of the images that the run before has kept."""
    with project_copy(data_dir) as project:
        until_first_step(project)
        return until_first_step(project), python(project, "-c", "import torch")


def after_last_epoch():
    """From the line of the last epoch to the last line of the table, and to the last line of all, which says
    where the pictures are."""
    with project_copy() as project, start_main(project) as process:
        for line in process.stdout:
            now = time.perf_counter()
            if " 1/1 " in line:
                epoch_end = now
            if line.startswith("|"):
                table_end = now
    return table_end - epoch_end, now - epoch_end


def two_workers():
    """Two trainings at a time, and one after the other."""
    with project_copy(WORKERS="2") as two, project_copy(WORKERS="1") as one:
        return python(two, "main.py"), python(one, "main.py")


def whole_run(idx_folder):
    """A first run, and the same trainings in the way of pytorch/examples."""
    with project_copy() as project:
        code = f"import benchmark; benchmark.train_like_the_example({str(idx_folder)!r}, epochs=1)"
        return python(project, "main.py"), python(PROJECT / "report", "-c", code)


def train_like_the_example(idx_folder, epochs):
    """Train and test the three models one after the other like mnist/main.py in pytorch/examples: in one
    process, with transforms per image. There is no elastic distortion and no picture."""
    for experiment in main.EXPERIMENTS:
        model = experiment.model(**experiment.options)
        train_loader = torchvision_loader(idx_folder, True, experiment.batch_size, experiment.transform)
        test_loader = torchvision_loader(idx_folder, False, 1000)
        rate = experiment.learning_rate
        optimizer = experiment.optimizer(model.parameters(), lr=rate, **experiment.optimizer_options)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=epochs * len(train_loader), cycle_momentum=False
        )
        for epoch in range(1, epochs + 1):
            bare_epoch(train_loader, model, optimizer, scheduler)
            model.eval()
            test_loss = correct = 0
            with torch.no_grad():
                for images, labels in test_loader:
                    logits = model(images)
                    test_loss += cross_entropy(logits, labels, reduction="sum").item()
                    correct += (logits.argmax(dim=1) == labels).sum().item()
            count = len(test_loader.dataset)
            print(experiment.name, epoch, test_loss / count, correct / count)


# Loaders and steps ----------------------------------------------------------------------------------


def write_idx(folder, train_set, test_set):
    """Write the images as torchvision.datasets.MNIST reads them: a header with the shape, then bytes."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, image_set in (("train", train_set), ("t10k", test_set)):
        images, labels = image_set.images, image_set.labels
        header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        header = struct.pack(">4B1I", 0, 0, 8, 1, *labels.shape)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.byte().numpy().tobytes())


def torchvision_loader(idx_folder, train, batch_size, augmentation=None):
    """The usual loader: one image after the other is augmented, becomes a tensor and is normalized."""
    steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    if augmentation:
        affine = transforms.RandomAffine(
            augmentation.rotation,
            translate=(augmentation.shift / 28, augmentation.shift / 28),
            scale=(1 - augmentation.scaling, 1 + augmentation.scaling),
            interpolation=transforms.InterpolationMode.BILINEAR,
        )
        steps.insert(0, affine)
    images = MNIST(idx_folder, train=train, transform=transforms.Compose(steps))
    return DataLoader(images, batch_size=batch_size, shuffle=train)


def seconds_of(function, *arguments):
    """Return how long a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def go_through(loader):
    """Make all batches of a loader."""
    for _ in loader:
        pass


def one_pass(train_set, idx_folder):
    """A pass through all batches, here and with torchvision's dataset and transforms."""
    ours = dataset.batches(train_set, main.BATCH_SIZE, shuffle=True)
    other = torchvision_loader(idx_folder, True, main.BATCH_SIZE)
    return seconds_of(go_through, ours), seconds_of(go_through, other)


def short_training(train_set, transform=None):
    """Return what LeNet5 is trained with on a few images: batches, model, optimizer and schedule."""
    experiment = Experiment("LeNet5", LeNet5, 0.02, transform=transform, epochs=SHORT_EPOCHS)
    return main.build(experiment, train_set.subset(slice(SHORT_EPOCH)))


def our_epoch(loader, model, optimizer, scheduler):
    """Train for one epoch as main.py does."""
    main.train(model, loader, "cpu", nn.CrossEntropyLoss(), optimizer, scheduler)


def bare_epoch(loader, model, optimizer, scheduler):
    """Train for one epoch and do nothing else."""
    model.train()
    for images, labels in loader:
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def bare_loop(train_set):
    """An epoch of `train`, and one without measuring, from batches that were made before."""
    ours = short_training(train_set)
    loader, *other = short_training(train_set)
    batches = list(loader)
    return lambda: (seconds_of(our_epoch, *ours), seconds_of(bare_epoch, batches, *other))


def augmented(train_set):
    """An epoch of `train` with augmentation, and one without."""
    ours = short_training(train_set, AUGMENTATION)
    other = short_training(train_set)
    return lambda: (seconds_of(our_epoch, *ours), seconds_of(our_epoch, *other))


# Memory ---------------------------------------------------------------------------------------------


def memory(folder, *arguments):
    """Run Python in a folder. Return the most memory, in MB, that it and its child processes have at the same
    time, without files in memory, such as the code of libraries, which other programs share."""
    process = subprocess.Popen([sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        time.sleep(0.05)
        try:
            children = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")]
            kilobytes = 0
            for number in [process.pid, *" ".join(children).split()]:
                rollup = Path(f"/proc/{number}/smaps_rollup").read_text()
                kilobytes += sum(int(amount) for amount in re.findall(r"Pss_Anon: +(\d+)", rollup))
        except OSError:  # one of them has just ended
            continue
        peak = max(peak, kilobytes / 1024)
    return peak


def memory_of_one():
    """Everything in one process, and what it imports. (torch.optim.SGD imports torch._dynamo.)"""
    with project_copy(WORKERS="1") as project:
        imports = "import main, time, torch._dynamo; time.sleep(1)"  # long enough to be measured
        return memory(project, "main.py"), memory(project, "-c", imports)


def memory_of_two():
    """Two trainings at a time, and one after the other."""
    with project_copy(WORKERS="2") as two, project_copy(WORKERS="1") as one:
        return memory(two, "main.py"), memory(one, "main.py")


if __name__ == "__main__":
    print_table()
