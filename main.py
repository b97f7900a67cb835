"""Train LeNet-5, an MLP of the same size and a regularized LeNet-5 on MNIST and compare them.

    python main.py

Change the constants below and run it again: every run has a folder of its own in results/.
"""

import copy
import io
import json
import math
import multiprocessing.connection
import os
import platform
import re
import signal
import statistics
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing
import torchvision
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

import dataset
import plot
from model import CustomMLP, LeNet5, RegularizedLeNet5

EPOCHS = 10  # passes over the training images; 1 for a first look, 10 to 30 for good figures
BATCH_SIZE = 32  # images per step; 16 to 256, a larger one wants a larger learning rate
MOMENTUM = 0.9  # share of the last step that is added to the next; 0 to 0.99
SEEDS = (0,)  # each experiment is trained once per seed; (0, 1, 2) shows how much is chance
DEVICE = "cpu"  # "cpu", "cuda" (NVIDIA) or "mps" (Apple); only "cpu" repeats a run to the last digit
VALIDATION_IMAGES = 0  # to choose settings: the last so many training images (10_000) replace the test set
WORKERS = None  # trainings at a time, each on a core of its own; None: one per core, on a GPU 1
DATA_DIR = "data"  # folder of train.tar and test.tar; MNIST is downloaded to it if there are none
RESULTS_DIR = "results"  # folder in which each run makes a new one

# A line for each model to train. Its name appears in plots and file names.
#   model          one of the classes in model.py, called with options
#   learning_rate  the highest of the schedule; 0.01 to 0.1; the loss explodes if it is too high
#   weight_decay   pulls the weights towards 0 in each step; 0 (off) to 0.001
#   augmentation   turns, moves and zooms the training images by up to so many degrees, pixels
#                  and this share of their size; {} (off)
EXPERIMENTS = {
    "LeNet5": dict(model=LeNet5, options={}, learning_rate=0.02, weight_decay=0, augmentation={}),
    "CustomMLP": dict(model=CustomMLP, options={}, learning_rate=0.01, weight_decay=0, augmentation={}),
    "RegularizedLeNet5": dict(
        model=RegularizedLeNet5,
        options={"dropout": 0},  # on held-out images more than 0 gained nothing beside the rest
        learning_rate=0.05,
        weight_decay=1e-4,
        augmentation={"rotation": 8, "shift": 1.4, "scaling": 0.05},
    ),
}


def train(model, loader, optimizer, scheduler):
    """Train for one epoch. Return the average loss per image and the accuracy (0 to 1).

    Both are those seen while training: each batch counts as the model answered it before
    it learned from it, with dropout on. So they can lie below those of `test`.
    """
    model.train()
    answers = []
    for images, labels in loader:
        logits = model(images)
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        answers.append((logits.detach(), labels))
    return loss_and_accuracy(answers)


@torch.no_grad()
def test(model, loader):
    """Return the average loss per image and the accuracy (0 to 1) of the model as it is,
    with dropout off."""
    model.eval()
    return loss_and_accuracy([(model(images), labels) for images, labels in loader])


def loss_and_accuracy(answers):
    """Return both for the (logits, labels) of all batches.

    Taken over all images at once, so that a smaller last batch gets no more weight than it
    has images, and the processor need not wait for a figure after every batch.
    """
    logits, labels = (torch.cat(parts) for parts in zip(*answers))
    correct = (logits.argmax(dim=1) == labels).sum().item()
    return cross_entropy(logits, labels).item(), correct / len(labels)


@torch.no_grad()
def worst_mistakes(model, loader, count=25):
    """Return what the model answers wrongly with the highest confidence, that first, as a dict
    of arrays: images, uint8 (count, 28, 28); labels, the true ones; answers, those of the
    model; confidences, their probabilities; and mistakes, the number of all wrong answers.

    The loader must go through its images in their order.
    """
    model.eval()
    # in double precision, in which few probabilities are rounded to 1
    probabilities = torch.cat([model(images) for images, _ in loader]).double().softmax(dim=1)
    confidences, answers = probabilities.max(dim=1)
    images, labels = loader.dataset.images, loader.dataset.labels
    wrong = (answers != labels).nonzero().squeeze(1)
    worst = wrong[confidences[wrong].argsort(descending=True, stable=True)[:count]]
    found = {"images": images, "labels": labels, "answers": answers, "confidences": confidences}
    return {name: values[worst].cpu().numpy() for name, values in found.items()} | {"mistakes": len(wrong)}


def batches(image_set, sampler, batch_size, drop_last=False):
    """Return a loader that asks the Dataset for a whole batch of indices at once."""
    return DataLoader(image_set, batch_size=None, sampler=BatchSampler(sampler, batch_size, drop_last))


def leaves_single_image(train_set):
    """Tell whether the last batch of an epoch would be a single image, which batch norm can't
    normalize by itself."""
    return len(train_set) % BATCH_SIZE == 1 < BATCH_SIZE


def build_model(name):
    """Return the untrained model of an experiment."""
    model = EXPERIMENTS[name]["model"](**EXPERIMENTS[name]["options"])
    # The order of the numbers in memory that convolutions are fastest with.
    return model.to(DEVICE, memory_format=torch.channels_last)


def build(name, steps):
    """Return the model of an experiment, its optimizer and its learning rate schedule for a
    training of so many steps."""
    experiment = EXPERIMENTS[name]
    model = build_model(name)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=experiment["learning_rate"],
        momentum=MOMENTUM,
        weight_decay=experiment["weight_decay"],
    )
    # The learning rate rises for 30% of the steps, then falls to almost 0: large steps
    # first, fine tuning last (Smith, Topin 2018, "Super-Convergence").
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=experiment["learning_rate"], total_steps=steps, cycle_momentum=False
    )
    return model, optimizer, scheduler


def run_training(name, seed, train_set, test_set, folder):
    """Train one experiment with one seed for EPOCHS epochs.

    Writes <name>-seed<seed>.csv into the folder, a line as soon as an epoch is finished,
    and at the end the trained weights as <name>-seed<seed>.pt and its worst mistakes, the
    arrays of `worst_mistakes`, as <name>-seed<seed>.npz.

    Raises FloatingPointError if the loss is no longer a finite number, and OSError if a file
    can't be written.
    """
    train_set.to(DEVICE)
    test_set.to(DEVICE)
    plain_images = train_set.subset(slice(10_000))
    plain_loader = batches(plain_images, SequentialSampler(plain_images), 1000, drop_last=len(plain_images) > 1000)
    if augmentation := EXPERIMENTS[name]["augmentation"]:
        train_set = copy.copy(train_set)  # the other experiments get the images as they are
        train_set.transform = dataset.Augmentation(**augmentation)
    train_loader = batches(
        train_set, RandomSampler(train_set), BATCH_SIZE, drop_last=leaves_single_image(train_set)
    )
    # No gradients to keep, so larger batches fit, and are faster.
    test_loader = batches(test_set, SequentialSampler(test_set), 1000)
    # Decides the initial weights, the order of the images, what dropout sets to zero and how
    # images are augmented.
    torch.manual_seed(seed)
    model, optimizer, scheduler = build(name, EPOCHS * len(train_loader))

    path = Path(folder) / f"{name}-seed{seed}"
    with open(f"{path}.csv", "x", buffering=1) as file:
        file.write(",".join(plot.COLUMNS) + "\n")
        for epoch in range(1, EPOCHS + 1):
            start = time.perf_counter()
            train_loss, train_accuracy = train(model, train_loader, optimizer, scheduler)
            # Batch norm remembers the averages of the last augmented batches. Those of many images
            # as they are fit the images to validate better. (Does nothing without batch norm.)
            update_bn(plain_loader, model)
            val_loss, val_accuracy = test(model, test_loader)
            seconds = time.perf_counter() - start
            if not math.isfinite(train_loss + val_loss):
                rate = EXPERIMENTS[name]["learning_rate"]
                raise FloatingPointError(f"the loss exploded in epoch {epoch}: try a learning_rate below {rate}")
            file.write(
                f"{epoch},{train_loss:.6g},{train_accuracy:.6g},{val_loss:.6g},{val_accuracy:.6g},{seconds:.2f}\n"
            )
            print(
                f"{name:{max(map(len, EXPERIMENTS))}}  seed {seed}  epoch {epoch:2}/{EPOCHS}"
                f"  training: loss {train_loss:.4f}, accuracy {train_accuracy:7.2%}"
                f"  validation: loss {val_loss:.4f}, accuracy {val_accuracy:7.2%}  {seconds:.1f} s\n",
                end="",  # the line in one piece, so that those of several processes don't mix
                flush=True,
            )
    weights, mistakes = io.BytesIO(), io.BytesIO()
    torch.save(model.state_dict(), weights)
    write_whole(f"{path}.pt", weights.getvalue())
    np.savez(mistakes, **worst_mistakes(model, test_loader))
    write_whole(f"{path}.npz", mistakes.getvalue())


def run_trainings(trainings, workers, train_set, test_set, folder):
    """Run all trainings, (name, seed) each, and return those that failed.

    With one worker they run here, one after the other; with more, each in a process of its
    own, at most `workers` at a time, the longest first, so that no long one is left for the
    end. The images are shared with the processes, not copied, and nothing has to come back:
    each training writes its own files. One that fails or dies takes no other with it.
    """
    if workers == 1:
        return [training for training in trainings if not attempt(*training, train_set, test_set, folder)]

    seconds = {name: seconds_per_step(name, train_set) for name in EXPERIMENTS}
    waiting = sorted(trainings, key=lambda training: -seconds[training[0]])
    running, failed = {}, []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                training = waiting.pop(0)
                process = start_process(*training, train_set, test_set, folder)
                running[process.sentinel] = process, training
            for sentinel in multiprocessing.connection.wait(running):
                process, training = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    failed.append(training)
                if process.exitcode not in (0, 1):  # after 1 it has said itself why
                    name, seed = training
                    print(
                        f"error: {name}, seed {seed}: its process has died (exit code {process.exitcode})",
                        file=sys.stderr,
                    )
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()
    return failed


def start_process(*training):
    """Start a process that runs a training, and return it."""
    # A fresh interpreter ("spawn"): a fork of one that has used torch may hang.
    process = torch.multiprocessing.get_context("spawn").Process(
        target=run_in_process, args=(constants(), *training), daemon=True
    )
    # Ctrl-C reaches all processes of a terminal, but only this one shall act on it. A new
    # process goes on ignoring what is ignored where it is started.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    return process


def run_in_process(parents_constants, *training):
    """Run one training in a process that has just imported this module anew: first take over
    the constants of the parent, which may differ from those above."""
    globals().update(parents_constants)
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.exit(0 if attempt(*training) else 1)


def end_with_parent():
    """End this process as soon as its parent has ended, even if that was killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def attempt(name, seed, *arguments):
    """Run a training. Return whether it was finished; say why if it was not."""
    try:
        run_training(name, seed, *arguments)
    except (FloatingPointError, OSError) as error:
        print(f"error: {name}, seed {seed}: {error}\n", end="", file=sys.stderr, flush=True)
        return False
    return True


def seconds_per_step(name, train_set):
    """Return roughly how long the model of an experiment takes to learn from one batch."""
    model = build_model(name)
    images, labels = train_set[:BATCH_SIZE]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        cross_entropy(model(images), labels).backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def available_cores():
    """Return the number of processor cores that this process may use."""
    # only Linux can tell which of the cores these are
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def hold_out(train_set):
    """Split off the last VALIDATION_IMAGES training images. Return the rest and these.

    Raises ValueError if they leave fewer than two to train on.
    """
    if VALIDATION_IMAGES > len(train_set) - 2:
        raise ValueError(
            f"VALIDATION_IMAGES = {VALIDATION_IMAGES} in main.py must leave some of the {len(train_set):,} images "
            "in train.tar to train on"
        )
    return train_set.subset(slice(-VALIDATION_IMAGES)), train_set.subset(slice(-VALIDATION_IMAGES, None))


def constants():
    """Return the constants at the top as {name: value}."""
    return {name: value for name, value in globals().items() if name.isupper()}


def new_folder():
    """Make and return a new folder in RESULTS_DIR, named after the date and time."""
    while True:
        folder = Path(RESULTS_DIR) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # of another run that began in the same second
            time.sleep(0.1)


def write_settings(folder, data):
    """Write all constants, the data used and the versions into settings.json."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "system": platform.platform(),
    }
    settings = {**constants(), "data": data, "versions": versions}
    text = json.dumps(settings, indent=2, default=lambda model: model.__name__)
    write_whole(folder / "settings.json", f"{text}\n".encode())


def write_whole(path, content):
    """Write a file so that it is there whole or not at all."""
    unfinished = Path(f"{path}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_summary(folder, data, trainings):
    """Write the figures of the last epochs as a table into summary.md, and below it a table of
    all epochs for each experiment. Return the text of the first."""
    run = plot.read_run(folder)
    baseline, *_ = run
    table = [["experiment", "parameters", *plot.HEADINGS.values(), f"gain over {baseline}", "seconds"]]
    for name, seeds in run.items():
        parameters = sum(parameter.numel() for parameter in build_model(name).parameters())
        figures = [figure(column, seeds, -1) for column in plot.HEADINGS]
        seconds = mean_and_deviation([stats["seconds"].sum() for stats in seeds.values()], ".0f")
        table.append([name, f"{parameters:,}", *figures, gain(seeds, run[baseline]), seconds])

    averages = "1 seed" if len(SEEDS) == 1 else f"mean ± standard deviation of {len(SEEDS)} seeds"
    lines = [f"{data['description']}, last of {EPOCHS} epochs, {averages}", "", *markdown(table), ""]
    lines.append(
        "Gain: in validation accuracy, percentage points" + (" ± standard error" if len(SEEDS) > 1 else "")
    )
    for name, seed in trainings:
        epochs = len(run.get(name, {}).get(seed, {}).get("epoch", ()))
        if epochs < EPOCHS:
            lines.append(f"\nNot finished: {name}, seed {seed}, {epochs} of {EPOCHS} epochs")
    text = "\n".join(lines) + "\n"

    for name, seeds in run.items():
        epochs = range(min(len(stats["epoch"]) for stats in seeds.values()))
        table = [["epoch", *plot.HEADINGS.values()]]
        table += [
            [str(epoch + 1), *(figure(column, seeds, epoch) for column in plot.HEADINGS)] for epoch in epochs
        ]
        lines += ["", f"## {name}, epoch by epoch", "", *markdown(table)]
    write_whole(folder / "summary.md", ("\n".join(lines) + "\n").encode())
    return text


def markdown(table):
    """Return the lines of a table, a list of rows of texts, the first of them the headings."""
    widths = [max(map(len, column)) for column in zip(*table)]
    rows = [table[0], ["-" * width for width in widths], *table[1:]]
    return ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]


def figure(column, seeds, epoch):
    """Return a cell of the tables: the figure of a column after an epoch, over the seeds."""
    form = ".2%" if column.endswith("accuracy") else ".4f"
    return mean_and_deviation([stats[column][epoch] for stats in seeds.values()], form)


def mean_and_deviation(values, form):
    """Return the mean in this format, with "± standard deviation" where there are several values."""
    deviation = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


def gain(seeds, baseline):
    """Return by how many percentage points the last validation accuracy lies above that of
    another experiment, on average, with its standard error where both have several seeds."""
    if seeds is baseline:
        return ""
    ours, theirs = ([100 * stats["val_accuracy"][-1] for stats in each.values()] for each in (seeds, baseline))
    text = f"{statistics.mean(ours) - statistics.mean(theirs):+.2f}"
    if min(len(ours), len(theirs)) > 1:
        text += f" ± {math.hypot(*(statistics.stdev(each) / math.sqrt(len(each)) for each in (ours, theirs))):.2f}"
    return text


def check_constants():
    """Raise ValueError, naming the constant, its value and what is allowed, for the first of
    the constants that can't be used."""
    checks = [
        ("EPOCHS", EPOCHS, is_whole(EPOCHS, 1), "a whole number from 1"),
        ("BATCH_SIZE", BATCH_SIZE, is_whole(BATCH_SIZE, 1), "a whole number from 1"),
        ("MOMENTUM", MOMENTUM, is_number(MOMENTUM) and 0 <= MOMENTUM < 1, "a number from 0 to below 1"),
        (
            "SEEDS",
            SEEDS,
            are_seeds(SEEDS),
            "different whole numbers from 0 in brackets, such as (0,) or (0, 1, 2)",
        ),
        ("VALIDATION_IMAGES", VALIDATION_IMAGES, is_whole(VALIDATION_IMAGES, 0), "a whole number from 0"),
        ("WORKERS", WORKERS, WORKERS is None or is_whole(WORKERS, 1), "None or a whole number from 1"),
        ("DEVICE", DEVICE, is_device(DEVICE), '"cpu" or an accelerator of this machine, such as "cuda" or "mps"'),
        ("DATA_DIR", DATA_DIR, isinstance(DATA_DIR, (str, Path)), "the path of a folder in quotes"),
        ("RESULTS_DIR", RESULTS_DIR, isinstance(RESULTS_DIR, (str, Path)), "the path of a folder in quotes"),
        (
            "EXPERIMENTS",
            EXPERIMENTS,
            isinstance(EXPERIMENTS, dict) and EXPERIMENTS,
            "a table of at least one line",
        ),
    ]
    for constant, value, allowed, rule in checks:
        if not allowed:
            raise ValueError(f"{constant} = {value!r} in main.py must be {rule}")
    file_names = set()
    for name, row in EXPERIMENTS.items():
        check_experiment(name, row)
        if name.casefold() in file_names:
            raise ValueError(f"EXPERIMENTS in main.py: {name!r} leads to the same file name as another experiment")
        file_names.add(name.casefold())


def check_experiment(name, row):
    """Raise ValueError, naming the experiment and the field, if it can't be trained."""
    where = f"EXPERIMENTS[{name!r}] in main.py"
    # what any file system takes, and no name that a file of the run has already
    if (
        not (isinstance(name, str) and re.fullmatch(r"[^\0-\x1f/\\:*?\"<>|]{1,100}", name))
        or name.strip(" .") != name
    ):
        raise ValueError(f"{where}: the name must be one that a file can have")
    if name.casefold() in ("comparison", "mistakes"):
        raise ValueError(f"{where}: the name must be another one, for there is a plot of that name")
    fields = ("model", "options", "learning_rate", "weight_decay", "augmentation")
    if not isinstance(row, dict) or set(row) != set(fields):
        raise ValueError(f"{where} must be dict({'=..., '.join(fields)}=...), not {row!r}")
    model, options, learning_rate, weight_decay, augmentation = (row[field] for field in fields)
    is_class = isinstance(model, type) and issubclass(model, torch.nn.Module)
    checks = [
        ("model", is_class, "a class of model.py, without brackets"),
        ("options", isinstance(options, dict), 'what the model takes, such as {"dropout": 0.3}, or {}'),
        ("learning_rate", is_number(learning_rate) and learning_rate > 0, "a number above 0"),
        ("weight_decay", is_number(weight_decay) and weight_decay >= 0, "a number from 0"),
        ("augmentation", isinstance(augmentation, dict), 'limits, such as {"rotation": 8, "shift": 1.4}, or {}'),
    ]
    for field, allowed, rule in checks:
        if not allowed:
            raise ValueError(f"{where}: {field} = {row[field]!r} must be {rule}")
    try:
        layers = model(**options).modules()
    except Exception as error:  # whatever the model objects to
        raise ValueError(f"{where}: options = {options!r} don't fit {model.__name__}: {error}") from error
    try:
        dataset.Augmentation(**augmentation)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: augmentation = {augmentation!r} can't be used: {error}") from error
    if BATCH_SIZE == 1 and any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in layers):
        raise ValueError(
            f"BATCH_SIZE = 1 in main.py must be at least 2 for {name!r}: batch norm can't normalize one image"
        )


def is_whole(value, least):
    """Tell whether a value is a whole number, and not less than this."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value):
    """Tell whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def are_seeds(values):
    """Tell whether there is at least one seed, none twice, and torch takes them all."""
    if not isinstance(values, (tuple, list, range)):
        return False
    whole = all(is_whole(seed, 0) and seed < 2**63 for seed in values)
    return whole and 0 < len(values) == len(set(values))


def is_device(name):
    """Tell whether tensors can be made on a device."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError):
        return False
    return name is not None


def main():
    """Train every experiment with every seed, write and plot the results. Return the exit code:
    0, 1 if a training failed, 2 if nothing could be trained, 128 + signal if interrupted."""
    # These models are so small that threads wait for each other longer than they compute,
    # and the order in which several add up changes the last digits.
    torch.set_num_threads(1)
    try:
        check_constants()
        data_dir = dataset.find_data(DATA_DIR)
        train_set = dataset.MNIST(data_dir / "train.tar")
        test_set = dataset.MNIST(data_dir / "test.tar")
        for warning in dataset.check_sets(train_set, test_set):
            print(f"warning: {warning}", file=sys.stderr)
        if VALIDATION_IMAGES:
            train_set, test_set = hold_out(train_set)
        if leaves_single_image(train_set):
            print(
                f"warning: BATCH_SIZE = {BATCH_SIZE} leaves over a single one of the training images, which is "
                "left out, in each epoch another one",
                file=sys.stderr,
            )
        source = "the shipped sample" if data_dir == dataset.SAMPLE_DIR else f"{Path(DATA_DIR)}/"
        kind = "held-out" if VALIDATION_IMAGES else "test"
        data = {
            "description": f"{len(train_set):,} training and {len(test_set):,} {kind} images from {source}",
            "folder": str(data_dir.resolve()),
            "train_images": len(train_set),
            "test_images": len(test_set),
        }
        folder = new_folder()
        write_settings(folder, data)
    except (OSError, ValueError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)  # one line, whatever it quotes
        return 2

    trainings = [(name, seed) for name in EXPERIMENTS for seed in SEEDS]
    workers = min(len(trainings), WORKERS or (available_cores() if DEVICE == "cpu" else 1))
    print(f"{data['description']}, results in {folder}")
    print(
        f"trainings: {len(trainings)} ({len(EXPERIMENTS)} experiments x {len(SEEDS)} seeds), "
        f"up to {workers} at a time, epochs each: {EPOCHS}",
        flush=True,
    )
    try:
        exit_code = 1 if run_trainings(trainings, workers, train_set, test_set, folder) else 0
    except KeyboardInterrupt as interruption:
        exit_code = 128 + (interruption.args[0] if interruption.args else signal.SIGINT)

    # From here on everything comes from the files, whether all trainings were finished or not.
    try:
        print(f"\n{write_summary(folder, data, trainings)}")
        print(*plot.save_plots(folder), sep="\n")
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        exit_code = exit_code or 1
    if exit_code > 128:
        print(f"interrupted; what was finished is in {folder}", file=sys.stderr)
    return exit_code


def interrupt(number, frame):
    """Handle the first Ctrl-C or SIGTERM. Further ones must not disturb what it sets going."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt as interruption:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + interruption.args[0])
