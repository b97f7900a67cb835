"""Train LeNet-5, an MLP of the same size and a regularized LeNet-5 on MNIST and compare them.

    python main.py              a line per epoch, a table and curves, in a new folder: results/1, 2, ...
    python main.py photo.jpg    which digit do the models of the newest run see in this picture?

Edit the settings in main.py and run it again: it compares the two runs. Unedited, a run takes 90
seconds on two cores: LeNet5 99.30%, CustomMLP 97.55%, RegularizedLeNet5 99.43% of the test images."""

import argparse
import copy
import csv
import json
import multiprocessing
import pickle
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import dataset
import plot
from dataset import Augmentation, UserError
from model import CustomMLP, LeNet5, RegularizedLeNet5

# What is trained, and how ---------------------------------------------------------------------------

EPOCHS = 10  # passes over the training images; 1 for a first look, 10 to 30 for good results
BATCH_SIZE = 32  # images per step; 16 to 256; larger batches need a larger learning rate
MOMENTUM = 0.9  # fraction of the last step that is added to the next; 0 to 0.99
SEEDS = (0,)  # each experiment is trained once per seed; (0, 1, 2) shows how much is random
DEVICE = "cpu"  # "cpu", "cuda" (NVIDIA), "mps" (Apple); a run on "cpu" can be repeated exactly
VALIDATION_IMAGES = 0  # 0: measure on the test images; 10_000: hold out the last 10,000 training images
WORKERS = None  # trainings at the same time, each on its own core; None: one per core; with a GPU always 1
AUGMENTATION = Augmentation(rotation=8, shift=1.4, scaling=0.1, elastic=0.4)  # random changes to the images
BASELINE = "LeNet5"  # the tables state the gain over this experiment
DATA_DIR = "data"  # folder of train.tar and test.tar; MNIST is downloaded to "data" if both are missing
RESULTS_DIR = "results"  # each run makes a new folder in it; plot.py looks for numbers in "results" only
DIGITS_DIR = "data/my_digits"  # pictures of your own digits; the trained models classify them


@dataclass(frozen=True)
class Experiment:
    """What is trained, and how. A row of EXPERIMENTS states only what differs from the defaults."""

    name: str  # in tables, pictures and the names of files
    model: Callable[..., nn.Module]  # a class that maps images (B, 1, 28, 28) to logits (B, 10), see model.py
    learning_rate: float  # its peak, see build; 0.005 to 0.03, with batch norm up to 0.1; a tenth for Adam
    options: dict = field(default_factory=dict)  # arguments of the model
    transform: Callable | None = None  # changes the training images, batch by batch, such as AUGMENTATION
    loss: Callable = nn.CrossEntropyLoss()  # what training minimizes; testing reports cross-entropy
    # SGD with MOMENTUM, or a class of torch.optim such as torch.optim.AdamW, which ignores MOMENTUM.
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.SGD, momentum=MOMENTUM)
    optimizer_options: dict = field(default_factory=dict)  # further arguments, such as weight_decay
    batch_size: int = BATCH_SIZE
    epochs: int = EPOCHS
    device: str = DEVICE


# The learning rates were chosen on held-out training images, see report/README.md.
EXPERIMENTS = [
    Experiment("LeNet5", LeNet5, learning_rate=0.02),
    Experiment("CustomMLP", CustomMLP, learning_rate=0.01),
    Experiment(
        "RegularizedLeNet5",
        RegularizedLeNet5,
        learning_rate=0.05,
        transform=AUGMENTATION,
        optimizer_options={"weight_decay": 2e-4},  # pulls the weights towards 0 in each step
    ),
]

CORES = torch.get_num_threads()  # as PyTorch counts them, before a run sets its threads to 1

# How a model learns ---------------------------------------------------------------------------------


def train(model, loader, device, criterion, optimizer, scheduler=None):
    """Train for one epoch. Return the average loss per image and the accuracy (0 to 1).

    Each batch is scored before the model learns from it, with dropout on and augmentation if
    there is any. So the loss is often higher, and the accuracy lower, than `test`'s.

    loader: batches of images (B, 1, 28, 28) and labels (B,), from any DataLoader.
    criterion: maps logits (B, 10) and labels to the average loss, such as nn.CrossEntropyLoss().
    scheduler: changes the learning rate after each batch; None leaves it alone.

    Raises UserError if logits and labels do not fit, if there is no batch, or if the loss is not finite.
    """
    model.train()  # dropout on
    total_loss = correct = count = 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        check_shapes(logits, labels)
        loss = criterion(logits, labels)
        optimizer.zero_grad()  # backward adds to the gradients of the last batch
        loss.backward()  # computes the gradient of the loss for each weight
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        # The last batch of a loader may be smaller, and its images must not count for more. The totals
        # stay tensors, since .item() would wait for a GPU after every batch.
        total_loss += loss.detach() * len(labels)
        correct += (logits.argmax(dim=1) == labels).sum()
        count += len(labels)
    return average(total_loss, correct, count)


@torch.no_grad()
def test(model, loader, device, criterion):
    """Return the average loss per image and the accuracy (0 to 1), with dropout off. Raises UserError
    as `train` does."""
    model.eval()  # dropout off
    total_loss = correct = count = 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        check_shapes(logits, labels)
        total_loss += criterion(logits, labels) * len(labels)
        correct += (logits.argmax(dim=1) == labels).sum()
        count += len(labels)
    return average(total_loss, correct, count)


def check_shapes(logits, labels):
    """Raise UserError unless logits have ten numbers for each label. Other shapes can give a wrong accuracy
    without an error."""
    if not isinstance(logits, torch.Tensor):
        raise UserError(f"the model must return logits, a tensor (B, 10), not a {type(logits).__name__}")
    if logits.shape != (len(labels), 10) or labels.dim() != 1:
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise UserError(f"logits and labels must have the shapes (B, 10) and (B,), not {shapes}")


def average(total_loss, correct, count):
    """Return the loss per image and the accuracy. Raises UserError if there was no image, or if the loss is
    not finite."""
    if count == 0:
        raise UserError("the loader has no batch")
    if not total_loss.isfinite():
        raise UserError(
            "the loss is not finite: try a lower learning_rate, or another loss (NLLLoss, for example, "
            "expects a log_softmax at the end of the model)"
        )
    return total_loss.item() / count, correct.item() / count


def build(experiment, train_set):
    """Return what an experiment is trained with: batches, model, optimizer and schedule."""
    train_set = copy.copy(train_set)  # other experiments get the images unchanged
    train_set.to(experiment.device)
    train_set.transform = experiment.transform
    # An incomplete batch is dropped: after a linear layer, batch norm can't normalize a single image.
    loader = dataset.batches(train_set, experiment.batch_size, shuffle=True, drop_last=True)
    if len(loader) == 0:
        raise UserError(f"{len(train_set):,} training images do not fill a batch of {experiment.batch_size}")
    model = experiment.model(**experiment.options).to(experiment.device)
    optimizer = experiment.optimizer(
        model.parameters(), lr=experiment.learning_rate, **experiment.optimizer_options
    )
    # The learning rate starts at 1/25 of its peak, rises for 30% of the steps and then falls to almost
    # 0: a careful start, large steps, fine tuning (Smith, Topin 2018, "Super-Convergence").
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[float(group["lr"]) for group in optimizer.param_groups],  # an optimizer may have several
        total_steps=experiment.epochs * len(loader),
        cycle_momentum=False,
    )
    return loader, model, optimizer, scheduler


# One training ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """What all trainings share."""

    train_set: dataset.MNIST
    test_set: dataset.MNIST  # or the images that are held out
    digits: dict  # your own, see dataset.read_digits


HEADINGS = (
    "experiment              seed    epoch  training: loss  accuracy  {kind:>10}: loss  accuracy  seconds"
)
PROGRESS = (
    "{name:<22}  {seed:>4}  {epoch:>4}/{epochs:<2}  {train_loss:>14.4f}  {train_accuracy:>8.2%}  "
    "{eval_loss:>16.4f}  {eval_accuracy:>8.2%}  {seconds:>7.1f}"
)


def run_training(experiment, images, seed, folder, quiet=False):
    """Train one experiment with one seed. Its files in the folder begin with <name>-seed<seed>:

    .csv  loss, accuracy and time, a row per epoch
    .pt   the weights, replaced after each epoch
    .npz  written at the end, so it marks a finished training: what else tables and pictures show of it

    quiet: print nothing.
    """
    path = folder / f"{experiment.name}-seed{seed}"
    device = experiment.device
    set_seed(seed)
    train_loader, model, optimizer, scheduler = build(experiment, images.train_set)
    test_loader = dataset.batches(images.test_set, 1000)  # without gradients, larger batches are faster
    learning_rates = []

    def note_learning_rate(optimizer, args, kwargs):  # PyTorch calls it before each step
        learning_rates.append(float(optimizer.param_groups[0]["lr"]))

    optimizer.register_step_pre_hook(note_learning_rate)
    for epoch in range(1, experiment.epochs + 1):
        start = time.perf_counter()
        train_loss, train_accuracy = train(model, train_loader, device, experiment.loss, optimizer, scheduler)
        refresh_batch_norm(model, images.train_set, experiment)
        eval_loss, eval_accuracy = test(model, test_loader, device, nn.CrossEntropyLoss())
        results = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "eval_loss": eval_loss,  # of the test images, unless VALIDATION_IMAGES are held out
            "eval_accuracy": eval_accuracy,
            "seconds": time.perf_counter() - start,
            "learning_rate": float(scheduler.get_last_lr()[0]),
        }
        add_row(f"{path}.csv", results)
        weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        with dataset.whole_file(f"{path}.pt") as file:
            torch.save(weights, file)
        if not quiet:
            line = PROGRESS.format(name=experiment.name, seed=seed, epochs=experiment.epochs, **results)
            print(f"{line}\n", end="", flush=True)  # one write, so that lines of several processes stay whole
    record = {"learning_rates": np.array(learning_rates)}
    record |= answers(model, images, device)
    record |= layer_outputs(model, images, device)
    record |= samples(experiment, images.train_set)
    with dataset.whole_file(f"{path}.npz") as file:
        np.savez(file, **record)


def set_seed(seed):
    """Make all random numbers repeatable: initial weights, order of images, dropout, augmentation."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def refresh_batch_norm(model, train_set, experiment):
    """Compute the stored averages of batch norm anew, if the model has any.

    Batch norm normalizes with the mean and the variance of each batch in training, and with stored
    averages in testing. After an epoch, these come from the last, augmented batches. Averages of up to
    10,000 unaugmented images fit the test images better. Dropout stays on, as in training.
    """
    images = train_set.subset(slice(10_000))
    batch_size = min(experiment.batch_size, 1000)  # large batches of training would be too few
    loader = dataset.batches(images, batch_size, drop_last=True)
    torch.optim.swa_utils.update_bn(loader, model, experiment.device)


@torch.no_grad()
def predict(model, images, device):
    """Return the logits, float32 (N, 10), of images, uint8 (N, 28, 28), with dropout off. Raises UserError if
    the model returns another shape."""
    model.eval()
    logits = []
    for batch in images.split(1000):
        logits.append(model(dataset.normalize(batch).to(device)).float().cpu())
    logits = torch.cat(logits)
    if logits.shape != (len(images), 10):
        shapes = f"({len(images)}, 10) for as many images, not {tuple(logits.shape)}"
        raise UserError(f"the model must return logits of the shape {shapes}")
    return logits


def add_row(path, results):
    """Add a row to a CSV file. A new file begins with the names of the columns."""
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, results, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow({name: f"{value:.6g}" for name, value in results.items()})


# What tables and pictures show of a training --------------------------------------------------------


def answers(model, images, device):
    """Return a dict for np.savez: logits (N, 10), labels (N,) and mistakes, uint8 (M, 28, 28), of the test
    images, and your own digits with their logits, if there are any."""
    test_set = images.test_set
    logits = predict(model, test_set.images, device)
    record = {
        "logits": logits,
        "labels": test_set.labels,
        "mistakes": test_set.images[logits.argmax(dim=1) != test_set.labels],
    }
    if images.digits:
        record |= {f"digit_{name}": array for name, array in images.digits.items()}
        record["digit_logits"] = predict(model, images.digits["images"], device)
    return record


def layer_outputs(model, images, device):
    """Return a dict for np.savez: one digit, the first of your own or else the first test image, its logits,
    and the name, kind, number of parameters and output of each layer, in the order of use. If the first layer
    is a convolution, `filters` has its weights. Containers such as nn.Sequential do not count."""
    image = images.digits.get("images", images.test_set.images)[:1]
    used = []

    def note_output(module, inputs, output):  # PyTorch calls it after each module
        if isinstance(output, tuple):
            output = output[0]  # of an LSTM, the rest is its state
        if isinstance(output, torch.Tensor) and output.dim() > 0:
            used.append((module, output[0].float().cpu().clone()))  # the next layer may work in place

    model = getattr(model, "_orig_mod", model)  # a compiled model hides its layers
    with nn.modules.module.register_module_forward_hook(note_output):
        logits = predict(model, image, device)
    record = {"input": image[0], "input_logits": logits[0]}
    module_names = {module: name for name, module in model.named_modules()}
    record |= {"layer_names": [], "layer_kinds": [], "layer_parameters": []}
    counted = set()  # a layer that is used twice counts its parameters once
    for module, output in used:
        own_parameters = list(module.parameters(recurse=False))
        is_container = list(module.children()) and not own_parameters
        if is_container or isinstance(module, nn.Identity):  # which stands for a layer that is left out
            continue
        if isinstance(module, nn.Conv2d) and not counted:
            record["filters"] = module.weight[:, 0].detach().float().cpu()
        if module in counted:
            own_parameters = []
        counted.add(module)
        record[f"output_{len(record['layer_names'])}"] = output
        record["layer_names"].append(module_names.get(module) or "(model)")
        record["layer_kinds"].append(type(module).__name__)
        record["layer_parameters"].append(sum(parameter.numel() for parameter in own_parameters))
    return record


def samples(experiment, train_set):
    """Return a dict for np.savez: the first eight training images, uint8 (8, 28, 28), and four versions of
    them, uint8 (4, 8, 28, 28), as the transform of the experiment makes them, if it has one."""
    subset = train_set.subset(slice(experiment.batch_size))
    record = {"originals": subset.images[:8]}
    if experiment.transform is not None:
        subset.to(experiment.device)
        subset.transform = experiment.transform
        versions = []
        for _ in range(4):
            images, _ = subset[:]
            versions.append(dataset.denormalize(images[:8]).cpu())
        record["versions"] = torch.stack(versions)
    return record


# A dry run ------------------------------------------------------------------------------------------


def dry_run(experiment, images):
    """Try an experiment, so that a mistake shows before the real work.

    Do all that a training does, to its end, with one batch of images. Then load the weights into a new
    model, which should give the same answers, and time a few more batches.

    Return a dict: the number of `parameters`, roughly how many `seconds` a training takes, and `warnings`.
    """
    check_row(experiment)
    few = Images(
        train_set=images.train_set.subset(slice(experiment.batch_size)),
        test_set=images.test_set.subset(slice(100)),
        digits=images.digits,
    )
    with tempfile.TemporaryDirectory() as folder:
        run_training(replace(experiment, epochs=1), few, 0, Path(folder), quiet=True)
        path = Path(folder) / f"{experiment.name}-seed0"
        weights = torch.load(f"{path}.pt", weights_only=True)
        with np.load(f"{path}.npz") as record:
            logits = torch.from_numpy(record["logits"])
    loader, model, optimizer, _ = build(experiment, images.train_set)
    model.load_state_dict(weights)
    restored_logits = predict(model, few.test_set.images, experiment.device)
    return {
        "row": repr(experiment),
        "epochs": experiment.epochs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": time_batch(experiment, loader, model, optimizer) * len(loader) * experiment.epochs,
        "warnings": warnings_about(experiment, logits, restored_logits),
    }


def time_batch(experiment, loader, model, optimizer):
    """Return how many seconds it takes to train on a batch, from at most ten batches or two seconds."""
    first = next(iter(loader))
    train(model, [first], experiment.device, experiment.loss, optimizer)  # a warm-up
    start = time.perf_counter()
    for count, batch in enumerate(loader, start=1):
        train(model, [batch], experiment.device, experiment.loss, optimizer)
        seconds = time.perf_counter() - start
        if count == 10 or seconds > 2:
            break
    return seconds / count


def check_row(experiment):
    """Raise UserError if model or optimizer is an object instead of a class, or transform or loss a class
    instead of an object."""
    for setting in ("model", "optimizer"):
        value = getattr(experiment, setting)
        if isinstance(value, (nn.Module, torch.optim.Optimizer)):
            kind = type(value).__name__
            raise UserError(f"each seed needs a new {setting}: name its class, {kind}, not {kind}(...)")
    for setting in ("transform", "loss"):
        value = getattr(experiment, setting)
        if isinstance(value, type):
            kind = value.__name__
            raise UserError(f"{setting}={kind} is a class: write {setting}={kind}(...)")


def warnings_about(experiment, logits, restored_logits):
    """Return warnings about a model, given its logits (N, 10) and those of a new model with its weights."""
    warnings = []
    if not torch.allclose(logits, restored_logits, atol=1e-3):
        warnings.append(
            "the same weights do not give the same answers. Either the model is random even when it is "
            "evaluated (F.dropout needs training=self.training), or some layers are in a list or dict, where "
            "PyTorch does not find them (use nn.ModuleList or nn.ModuleDict)."
        )
    if logits.min() > 0 and logits.max() < 1:
        warning = "the model returns numbers between 0 and 1, as after a softmax or sigmoid, and no logits. "
        if isinstance(experiment.loss, nn.CrossEntropyLoss):
            warning += "The loss applies a softmax itself, and the model learns better without its own."
        else:
            warning += "So the loss in tables and the confidence in pictures are not what they say."
        warnings.append(warning)
    return warnings


# Several trainings at the same time -----------------------------------------------------------------


shared = {}  # "experiments" by name, and "images"; each process that trains has its own, filled at its start


@contextmanager
def worker_pool(workers, images):
    """Provide a pool of processes in which trainings run; None, if one worker is enough. However the block
    ends, no process is left."""
    experiments = {experiment.name: experiment for experiment in EXPERIMENTS}
    shared.update(experiments=experiments, images=images)
    if workers == 1:
        yield None
        return
    # A fork starts at once, with everything loaded, but only on Linux is it safe with PyTorch. Elsewhere, a
    # new interpreter imports everything anew and gets a copy of the rest.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    if sys.platform != "linux":
        check_can_be_copied()
    pool = ProcessPoolExecutor(workers, context, start_worker, (experiments, images))
    try:
        yield pool
    finally:
        with signals_held_back():
            for worker in multiprocessing.active_children():
                worker.kill()
            pool.shutdown()


def check_can_be_copied():
    """Raise UserError if a row can't be sent to another process."""
    for experiment in EXPERIMENTS:
        try:
            pickle.dumps(experiment)
        except Exception as error:  # pickle raises many kinds
            raise UserError(
                f"{row_of(experiment)}: it can't be copied to another process. Use functions made with def, "
                "not lambda, or set WORKERS = 1"
            ) from error


def start_worker(experiments, images):
    """Prepare a process of the pool."""
    shared.update(experiments=experiments, images=images)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    plot.prepare_output()
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """Wait until the parent process has ended, even if it was killed, then end this one."""
    multiprocessing.parent_process().join()
    signal.raise_signal(signal.SIGTERM)


@contextmanager
def signals_held_back():
    """Let the block end before Ctrl-C or SIGTERM, a request to end, raises KeyboardInterrupt."""
    received = []
    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            raise KeyboardInterrupt


def run_jobs(pool, function, jobs):
    """Call a function for many jobs: in a pool, several at a time, or here, one after the other. Yield each
    job and what `run_job` returns, in the order in which they finish.

    jobs: tuples of the name of an experiment and further arguments.
    """
    if pool is None:
        for job in jobs:
            yield job, run_job(function, *job)
        return
    with signals_held_back():  # Ctrl-C can be lost while processes start
        futures = {pool.submit(run_job, function, *job): job for job in jobs}
    while futures:
        # On Windows, Ctrl-C is noticed only between two waits.
        finished, _ = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in finished:
            yield futures.pop(future), future.result()


def run_job(function, name, *arguments):
    """Call function(experiment, images, *arguments). Return its result, or a UserError that says why it
    failed. Each job gets its own copy of the experiment: a loss or a transform may have a state."""
    try:
        experiment = copy.deepcopy(shared["experiments"][name])
        return function(experiment, shared["images"], *arguments)
    except (Exception, SystemExit) as error:  # a user's own model may raise anything
        return UserError(describe(error))


def describe(error):
    """Return an error as one line. If its message was not written for the person at the shell, add its
    type and the line of the project's code that led to it."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, (OSError, UserError)):
        return text
    if isinstance(error, BrokenExecutor):
        return "a process has ended, perhaps killed since memory ran out: try WORKERS = 1"
    own_line = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename).resolve()
        if path.parent == dataset.PROJECT and path.suffix == ".py":  # not a .pyx of numpy, without a path
            own_line = f" ({path.name}, line {frame.lineno}: {frame.line})"
    return f"{type(error).__name__}: {text}{own_line}"


# A run, from its settings to its pictures -----------------------------------------------------------


def main():
    """Train every experiment with every seed, then tabulate and plot. Return the exit code: 0, 1 if a
    training or a picture failed, 2 if the run could not start, 130 if interrupted."""
    # Models this small gain nothing from several threads, and their number would change the rounding.
    torch.set_num_threads(1)
    folder = None
    exit_code = 0
    try:
        # at once, since the code may be edited while the images are read
        code = {path.name: path.read_bytes() for path in dataset.PROJECT.glob("*.py")}
        check_settings()
        print(f"Reading the images in {DATA_DIR} ...", flush=True)
        train_set, test_set, data = dataset.load_data(DATA_DIR, VALIDATION_IMAGES)
        digits = dataset.read_digits(dataset.pictures_in(dataset.in_project(DIGITS_DIR)))
        workers = choose_workers()
        with worker_pool(workers, Images(train_set, test_set, digits)) as pool:
            facts = try_experiments(pool)
            folder = start_run(code, data, facts)
            print_opening(data, folder, facts, workers)
            if not run_trainings(pool, facts, folder):
                exit_code = 1
    except KeyboardInterrupt:
        kept = f"the finished epochs are in {folder}" if folder else "nothing was trained"
        print(f"interrupted; {kept}", file=sys.stderr)
        exit_code = 130
    except Exception as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        exit_code = 1 if folder else 2
    if folder is None:
        return exit_code
    # A second Ctrl-C must not cost the pictures.
    with signals_held_back() if exit_code == 130 else nullcontext():
        try:
            all_drawn = plot.show_run(folder)
        except Exception as error:  # the figures are on disk, and plot.py can draw them later
            print(f"error: {describe(error)}", file=sys.stderr)
            all_drawn = False
    if not all_drawn and exit_code == 0:
        exit_code = 1
    return exit_code


def check_settings():
    """Raise an error for mistakes that nothing else would report: no experiment, no seed or the same one
    twice, names that can't be those of files or are taken."""
    if not EXPERIMENTS or not SEEDS:
        raise UserError("main.py: EXPERIMENTS needs at least one row, and SEEDS at least one seed")
    if len(set(SEEDS)) < len(SEEDS):
        raise UserError(f"main.py: {SEEDS = } holds a seed twice")
    for seed in SEEDS:
        set_seed(seed)  # numpy raises an error for what can't be a seed, such as -1
    taken = set(plot.PICTURES)
    for experiment in EXPERIMENTS:
        row = row_of(experiment)
        for character in experiment.name:
            if character in '/\\:*?"<>|' or not character.isprintable():
                raise UserError(f"{row}: the name of a file can't contain {character!r}")
        if experiment.name.casefold() in taken:
            raise UserError(f"{row}: another row or a picture of the run has this name")
        taken.add(experiment.name.casefold())


def row_of(experiment):
    """Return what messages call an experiment."""
    return f"EXPERIMENTS in main.py, row {experiment.name!r}"


def choose_workers():
    """Return how many trainings run at the same time."""
    if any(str(experiment.device) != "cpu" for experiment in EXPERIMENTS):
        return 1  # several would share the GPU
    workers = CORES if WORKERS is None else WORKERS
    return min(workers, len(EXPERIMENTS) * len(SEEDS))


def try_experiments(pool):
    """Return {name: what the dry run of the experiment has found}. Raises UserError, which names the row, if
    one can't be trained."""
    print("Trying each experiment on a few batches ...", flush=True)
    jobs = [(experiment.name,) for experiment in EXPERIMENTS]
    found = {name: result for (name,), result in run_jobs(pool, dry_run, jobs)}
    for experiment in EXPERIMENTS:
        result = found[experiment.name]
        if isinstance(result, UserError):
            raise UserError(f"{row_of(experiment)}: {result}")
        for warning in result["warnings"]:
            print(f"warning: {row_of(experiment)}: {warning}", file=sys.stderr)
    return {experiment.name: found[experiment.name] for experiment in EXPERIMENTS}


def start_run(code, data, facts):
    """Make the folder of a run, named by the next number. Write settings.json and copies of the code into it.
    Return its path."""
    settings = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        **data,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "seeds": sorted(int(seed) for seed in SEEDS),
        "baseline": BASELINE,
        "experiments": facts,
    }
    text = json.dumps(settings, indent=2)
    results_dir = dataset.in_project(RESULTS_DIR)
    results_dir.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name) for path in results_dir.iterdir() if path.name.isdecimal()]
    folder = results_dir / str(max(numbers, default=0) + 1)
    folder.mkdir()
    (folder / "settings.json").write_text(text, encoding="utf-8")
    (folder / "code").mkdir()
    for name, source in code.items():
        (folder / "code" / name).write_bytes(source)
    return folder


def run_trainings(pool, facts, folder):
    """Train every experiment with every seed, the longest first, so that no long one is left for the end. If
    one fails, the others go on. Return whether all finished."""
    jobs = [(experiment.name, seed, folder) for experiment in EXPERIMENTS for seed in SEEDS]
    jobs.sort(key=lambda job: facts[job[0]]["seconds"], reverse=True)
    all_finished = True
    for (name, seed, _), result in run_jobs(pool, run_training, jobs):
        if isinstance(result, UserError):
            print(f"error: {name}, seed {seed}: {result}", file=sys.stderr)
            all_finished = False
    return all_finished


def print_opening(data, folder, facts, workers):
    """Print what is trained, how long it takes, and the headings of the progress lines."""
    seconds = [found["seconds"] for found in facts.values()]
    # at least the longest training, and at least all the work divided among the workers
    minutes = max(max(seconds), len(SEEDS) * sum(seconds) / workers) / 60
    parameters = [f"{name} {found['parameters']:,}" for name, found in facts.items()]
    print(data["description"])
    print(f"Parameters: {'; '.join(parameters)}")
    print(f"Trainings: {len(facts) * len(SEEDS)}, {workers} at a time, about {minutes:.1f} minutes")
    print(f"The results go to {folder}\n")
    print(HEADINGS.format(kind=data["kind"]), flush=True)


# Asking trained models ------------------------------------------------------------------------------


def ask(paths):
    """Print and draw which digits the models in EXPERIMENTS see in pictures, with the weights of the newest
    run that has finished a training. Return the exit code: 0, or 1 if a picture or a model was left out.

    Raises UserError or another ValueError, with a message for the user, if nothing can be answered.
    """
    torch.set_num_threads(1)
    results_dir = dataset.in_project(RESULTS_DIR)
    finished = [folder for folder in plot.run_folders(results_dir) if any(folder.glob("*.npz"))]
    if not finished:
        raise UserError(f"no training in {results_dir} has finished: first run main.py")
    run = plot.read_run(finished[0])
    digits = dataset.read_digits(paths)
    if not digits:
        raise UserError("there is no picture to ask about")
    logits = {}
    for experiment in EXPERIMENTS:
        try:
            logits[experiment.name] = ask_model(experiment, run, digits["images"])
        except UserError as error:
            print(f"error: {row_of(experiment)}: {error}", file=sys.stderr)
    if not logits:
        raise UserError("no model can answer")
    digits = {part: np.asarray(values) for part, values in digits.items()}
    picture = results_dir / "my_digits.png"
    print("\n".join(plot.digit_table(digits, logits)))
    plot.draw(picture, plot.plot_digits, digits, logits)
    print(f"\nThe models are those of {run.folder}. {picture} shows what they saw.")
    all_answered = len(logits) == len(EXPERIMENTS) and len(digits["names"]) == len(paths)
    return 0 if all_answered else 1


def ask_model(experiment, run, images):
    """Return the logits (M, 10) of images, uint8 (M, 28, 28), from the model of the first finished seed.
    Raises UserError if there is none, if the weights do not fit, or if the model no longer gives a known
    image the logits of the end of its training."""
    if experiment.name not in run.records:
        raise UserError(f"it has no finished training in {run.folder}: run main.py again")
    seed, record = next(iter(run.records[experiment.name].items()))
    path = run.folder / f"{experiment.name}-seed{seed}.pt"
    known_image = torch.from_numpy(record["input"])
    known_logits = torch.from_numpy(record["input_logits"])
    try:
        model = experiment.model(**experiment.options)
        model.load_state_dict(torch.load(path, weights_only=True))
        known_again = predict(model, known_image[None], "cpu")[0]
        logits = predict(model, images, "cpu").numpy()
    except Exception as error:  # a user's own model may raise anything
        reason = "has the model changed since? Then run main.py again"
        raise UserError(f"{path} does not fit: {reason} ({describe(error)})") from error
    if not torch.allclose(known_again, known_logits, atol=0.1):  # a GPU rounds differently
        raise UserError(f"it no longer answers as in {run.folder}: has its code changed? Run main.py again")
    return logits


if __name__ == "__main__":
    plot.prepare_output()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # treat it like Ctrl-C
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("pictures", nargs="*", help="of one digit each, for the models of the newest run")
    paths = parser.parse_args().pictures
    try:
        sys.exit(ask(paths) if paths else main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
