"""What the scripts cost, measured side by side with other ways to do the same.

    python report/benchmark.py

Takes eleven to twelve minutes on data/train.tar and data/test.tar, and a few on the sample, which it uses if
these are not there. Each time is the median of several runs; the two sides take turns. The targets are
what earlier versions were held to, on another machine.
"""

import io
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms

PROJECT = Path(__file__).parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

import dataset
import main
from helpers import copy_project, idx

RUNS = 3  # of each side
SHORT_RUNS = 41  # of short epochs: the machine's speed drifts by more than the sides differ
SHORT_EPOCH = 4000  # images

# What a program pays before it does anything of its own. torch.optim.SGD imports torch._dynamo.
IMPORTS = "import torch, torch._dynamo, matplotlib.figure"

EPOCHS = 2  # of the whole program


def seconds(function, *arguments):
    """Return how long a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def side_by_side(ours, theirs, runs=RUNS):
    """Return the median times of two functions that take turns, and the median of their ratios."""
    our_times = []
    their_times = []
    ratios = []
    for _ in range(runs):
        our_times.append(seconds(ours))
        their_times.append(seconds(theirs))
        ratios.append(our_times[-1] / their_times[-1])
    return statistics.median(our_times), statistics.median(their_times), statistics.median(ratios)


# In a small process between this one and the measured one: Linux counts the memory of the
# process that starts another one as the peak of the new one, too.
LAUNCHER = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(status)
"""


def run_python(arguments, folder, exit_code=0):
    """Run python in a folder. Return what it printed and the peak memory, in MB, of its process
    or, if that is more, of one that it has started."""
    command = [sys.executable, "-c", LAUNCHER, sys.executable, *arguments]
    stderr = subprocess.DEVNULL if exit_code else None
    process = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8")
    if process.returncode != exit_code:
        sys.exit(f"python {arguments} has failed")
    *output, peak = process.stdout.splitlines()
    return "\n".join(output), float(peak)


def one_pass(loader):
    """Go through all batches of a loader."""
    for _ in loader:
        pass


def write_idx(folder, train_set, test_set):
    """Write the images as torchvision.datasets.MNIST reads them."""
    raw = Path(folder) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, images in (("train", train_set), ("t10k", test_set)):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images.images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(images.labels))


def torchvision_loader(folder, train, batch_size, augmentation=None):
    """The usual loader: one image after the other is augmented, becomes a tensor and is normalized."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    if augmentation:
        affine = transforms.RandomAffine(
            augmentation.rotation,
            translate=(augmentation.shift / 28, augmentation.shift / 28),
            scale=(1 - augmentation.scaling, 1 + augmentation.scaling),
            interpolation=transforms.InterpolationMode.BILINEAR,
        )
        transform.transforms.insert(0, affine)
    images = torchvision.datasets.MNIST(folder, train=train, transform=transform)
    return DataLoader(images, batch_size=batch_size, shuffle=train)


def compare_loaders(folder, train_set):
    """Time a pass through all training images, here and with torchvision's Dataset and transforms."""
    ours = dataset.batches(train_set, main.BATCH_SIZE, shuffle=True)
    theirs = torchvision_loader(folder, True, main.BATCH_SIZE)
    return side_by_side(lambda: one_pass(ours), lambda: one_pass(theirs))


def long_lenet5(**changes):
    """Return the row of LeNet5 with changes, and a schedule long enough for all short epochs."""
    return replace(main.EXPERIMENTS["LeNet5"], epochs=SHORT_RUNS, **changes)


def short_epoch(images, **changes):
    """Return a function that trains LeNet5 for one epoch on these images."""
    loader, model, optimizer, scheduler = main.build(long_lenet5(**changes), images)
    return lambda: main.train(model, loader, "cpu", nn.CrossEntropyLoss(), optimizer, scheduler)


def compare_steps(train_set):
    """Time `train`, and a loop that does nothing but learn from batches that were cut before."""
    images = train_set.subset(slice(SHORT_EPOCH))
    loader, model, optimizer, scheduler = main.build(long_lenet5(), images)
    cut_batches = list(loader)

    def bare_epoch():
        model.train()
        for images, labels in cut_batches:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()

    return side_by_side(short_epoch(images), bare_epoch, SHORT_RUNS)


def compare_augmentation(train_set):
    """Time an epoch with augmentation, and one without."""
    images = train_set.subset(slice(SHORT_EPOCH))
    with_augmentation = short_epoch(images, transform=main.AUGMENTATION)
    return side_by_side(with_augmentation, short_epoch(images), SHORT_RUNS)


def compare_parsing(tar_path, train_set):
    """Time reading a tar, and what tarfile and Pillow alone need for it."""

    def bare():
        images = np.empty(train_set.images.shape, dtype=np.uint8)
        with tarfile.open(tar_path) as tar:
            files = (tar.extractfile(member).read() for member in tar if member.isfile())
            for index, file in enumerate(files):
                images[index] = np.asarray(Image.open(io.BytesIO(file)))

    return side_by_side(lambda: dataset.MNIST(tar_path), bare)


def train_like_the_example(folder, epochs):
    """Train the three models one after the other in the manner of pytorch/examples'
    mnist/main.py: transforms per image, PyTorch's default number of threads."""
    for name, experiment in main.EXPERIMENTS.items():
        model = experiment.model(**experiment.options)
        train_loader = torchvision_loader(folder, True, main.BATCH_SIZE, experiment.transform)
        test_loader = torchvision_loader(folder, False, 1000)
        rate = experiment.learning_rate
        optimizer = experiment.optimizer(model.parameters(), lr=rate, **experiment.optimizer_options)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=epochs * len(train_loader), cycle_momentum=False
        )
        for epoch in range(1, epochs + 1):
            model.train()
            for images, labels in train_loader:
                optimizer.zero_grad()
                loss = cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                scheduler.step()
            model.eval()
            test_loss = correct = 0
            with torch.no_grad():
                for images, labels in test_loader:
                    logits = model(images)
                    test_loss += cross_entropy(logits, labels, reduction="sum").item()
                    correct += (logits.argmax(dim=1) == labels).sum().item()
            print(name, epoch, test_loss / len(test_loader.dataset), correct / len(test_loader.dataset))


def run_main(folder, workers, epochs=EPOCHS):
    """Run a copy of the project on the tars in `folder`. Return what `run_python` returns."""
    with tempfile.TemporaryDirectory() as project:
        data_dir = repr(str(folder))
        copy_project(Path(project), False, EPOCHS=str(epochs), WORKERS=str(workers), DATA_DIR=data_dir)
        return run_python(["main.py"], project)


def compare_workers(folder):
    """Time the whole program with two trainings at a time, and with one."""
    return side_by_side(lambda: run_main(folder, 2), lambda: run_main(folder, 1), 2)


def compare_with_the_example(folder, idx_folder):
    """Time the whole program, and the manner of pytorch/examples."""
    code = f"import benchmark; benchmark.train_like_the_example({str(idx_folder)!r}, {EPOCHS})"
    return side_by_side(
        lambda: run_main(folder, None), lambda: run_python(["-c", code], PROJECT / "report"), 2
    )


# Ends every process that has been started for a training at its first step.
STOP = """

import multiprocessing
import os

def stop(forward):
    return lambda *inputs: os._exit(1) if multiprocessing.parent_process() else forward(*inputs)

for model in (LeNet5, CustomMLP, RegularizedLeNet5):
    model.forward = stop(model.forward)
"""


def compare_starts(folder):
    """Compare main.py until the first step of each training with what no program can do without."""
    bare = "import sys, torch, dataset; dataset.MNIST(sys.argv[1]), dataset.MNIST(sys.argv[2])"
    tars = [str(folder / f"{name}.tar") for name in ("train", "test")]
    with tempfile.TemporaryDirectory() as project:
        copy_project(Path(project), False, WORKERS="2", DATA_DIR=repr(str(folder)))
        with open(Path(project) / "model.py", "a") as file:
            file.write(STOP)
        return side_by_side(
            lambda: run_python(["main.py"], project, exit_code=1),
            lambda: run_python(["-c", bare, *tars], PROJECT),
        )


def memory(folder):
    """Return the peak memory of main.py in one process, in MB, beyond that of a process that only
    imports the same libraries."""
    return run_main(folder, 1, epochs=1)[1] - run_python(["-c", IMPORTS], folder)[1]


def shared_memory(folder, workers):
    """Return the peak memory of all processes of main.py together, in MB; what several of them
    share counts once (PSS, Linux only)."""
    with tempfile.TemporaryDirectory() as project:
        copy_project(Path(project), False, EPOCHS="1", WORKERS=str(workers), DATA_DIR=repr(str(folder)))
        process = subprocess.Popen([sys.executable, "main.py"], cwd=project, stdout=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            total = 0
            for path in Path("/proc").glob("[0-9]*"):
                try:
                    parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                    if process.pid in (int(path.name), parent):
                        total += int(re.search(r"Pss: +(\d+)", (path / "smaps_rollup").read_text())[1])
                except (OSError, TypeError):  # the process has just ended
                    pass
            peak = max(peak, total / 1024)
            time.sleep(0.1)
        return peak


# The peak memory while loading, reset after the imports, whose own peak would hide it (Linux only).
LOADING = """
import re, sys, time
import dataset
def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")
before, start = kilobytes("VmRSS"), time.perf_counter()
images = dataset.MNIST(sys.argv[1])
print(time.perf_counter() - start, (kilobytes("VmHWM") - before) / 1024)
"""


def loading(folder, images, labels):
    """Return the seconds and the memory in MB that loading these images takes in a new process."""
    tar_path = Path(folder) / f"{len(images)}.tar"
    dataset.write_tar(tar_path, images, labels)
    runs = [run_python(["-c", LOADING, str(tar_path)], PROJECT)[0].split() for _ in range(RUNS)]
    return [statistics.median(map(float, side)) for side in zip(*runs)]


def print_row(*cells):
    """Print a row of a table."""
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def print_times(number, what, target, times):
    """Print a row that compares two times, from what `side_by_side` returns."""
    ours, theirs, ratio = times
    print_row(number, what, f"{ours:.2f} s", f"{theirs:.2f} s", f"{ratio:.3f}", target)


def print_memory(folder, temporary, train_set):
    """Print the rows on memory, and those that compare ten times as many images with a tenth."""
    # one process that does everything; the peak of one that it started would contain its own
    what = "peak memory of a training beyond the imports"
    print_row(8, what, f"{memory(folder):.0f} MB", "", "", "<= 150 MB")
    two, one = shared_memory(folder, 2), shared_memory(folder, 1)
    what = "memory of all processes, WORKERS = 2 / 1"
    print_row(9, what, f"{two:.0f} MB", f"{one:.0f} MB", f"{two / one:.2f}", "<= 1.3")
    tenth = train_set.subset(slice(len(train_set) // 10))
    few_seconds, few_megabytes = loading(temporary, tenth.images, tenth.labels)
    seconds, megabytes = loading(temporary, train_set.images, train_set.labels)
    images = f"{len(train_set):,} / {len(tenth):,} images"
    ratio = f"{seconds / few_seconds:.1f}"
    print_row(10, f"loading time, {images}", f"{seconds:.2f} s", f"{few_seconds:.2f} s", ratio, "10")
    ratio = f"{megabytes / few_megabytes:.1f}"
    print_row(10, f"loading memory, {images}", f"{megabytes:.0f} MB", f"{few_megabytes:.0f} MB", ratio, "10")


def measure():
    """Print the table."""
    torch.set_num_threads(1)  # as main.py does
    folder = PROJECT / "data"
    if not (folder / "train.tar").exists():
        folder = dataset.SAMPLE_DIR
    train_set = dataset.MNIST(folder / "train.tar")
    test_set = dataset.MNIST(folder / "test.tar")
    print(f"{len(train_set):,} training images, {os.cpu_count()} cores, torch {torch.__version__}\n")
    print_row("", "measured", "ours", "other", "ratio", "target")
    print_row(*["---"] * 6)
    with tempfile.TemporaryDirectory() as temporary:
        write_idx(temporary, train_set, test_set)
        print_times(
            1, "one pass through the loader / torchvision's", "<= 0.03", compare_loaders(temporary, train_set)
        )
        what = "one epoch of train(), 4,000 images / bare loop over batches made before"
        print_times(2, what, "<= 1.05", compare_steps(train_set))
        what = "MNIST(train.tar) / tarfile and Pillow"
        print_times(3, what, "<= 1.1", compare_parsing(folder / "train.tar", train_set))
        what = "one epoch of train(), 4,000 images, with / without augmentation"
        print_times(4, what, "<= 1.2", compare_augmentation(train_set))
        print_times(5, f"main.py, {EPOCHS} epochs, WORKERS = 2 / 1", "<= 0.70", compare_workers(folder))
        what = f"main.py, {EPOCHS} epochs / as in pytorch/examples"
        print_times(6, what, "<= 0.40", compare_with_the_example(folder, temporary))
        what = "main.py until its first steps / import torch and MNIST() of both tars"
        print_times(7, what, "<= 1.3", compare_starts(folder))
        print_memory(folder, temporary, train_set)


if __name__ == "__main__":
    measure()
