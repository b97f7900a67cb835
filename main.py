"""Train LeNet-5, an MLP of the same size and a regularized LeNet-5 on MNIST and compare them.

    python main.py

prints a line per epoch, then a table, and draws the curves. Every run gets its own folder: results/1,
results/2, ... Edit the constants below and run it again: it says and draws what your edit did.

    python main.py photo.jpg ...

asks the models of the newest finished run which digits these pictures show.
"""

import copy
import csv
import gc
import inspect
import json
import multiprocessing.connection
import os
import pickle
import platform
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

# A spawned process of a training imports all this anew. Ctrl-C meanwhile is for its parent.
if __name__ == "__mp_main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import dataset
import plot
from dataset import Augmentation
from model import CustomMLP, LeNet5, RegularizedLeNet5

# What is trained, and how ---------------------------------------------------------------------------

EPOCHS = 10  # passes over the training images; 1 for a first look, 10 to 30 for good results
BATCH_SIZE = 32  # images per step; 16 to 256; larger batches need a larger learning rate
MOMENTUM = 0.9  # fraction of the last step that is added to the next; 0 to 0.99
SEEDS = (0,)  # each experiment is trained once per seed; (0, 1, 2) shows how much is random
DEVICE = "cpu"  # "cpu", "cuda" (NVIDIA), "mps" (Apple); a run on "cpu" can be repeated exactly
VALIDATION_IMAGES = 0  # 0: validate on the test images; 10_000: on the last 10,000 training images
WORKERS = None  # trainings at the same time, each on its own core; None: one per core, 1 on a GPU
AUGMENTATION = Augmentation(rotation=8, shift=1.4, scaling=0.1, elastic=0.4)  # random changes to the images
BASELINE = "LeNet5"  # the tables state the gain over this experiment
DATA_DIR = "data"  # folder of train.tar and test.tar; MNIST is downloaded to it if both are missing
RESULTS_DIR = "results"  # each run makes a new folder in it; plot.py takes numbers for this one only
DIGITS_DIR = "data/my_digits"  # pictures of your own digits; the trained models classify them


@dataclass(frozen=True)
class Experiment:
    """What is trained, and how. A row of EXPERIMENTS states only what differs from the defaults."""

    model: type  # a class that maps images (B, 1, 28, 28) to logits (B, 10), such as those in model.py
    learning_rate: float  # peak of the schedule; 0.005 to 0.1 for SGD, a tenth for Adam; too high: explodes
    options: dict = field(default_factory=dict)  # arguments of the model
    transform: object = None  # changes the training images, batch by batch, such as AUGMENTATION
    loss: object = nn.CrossEntropyLoss()  # what training minimizes; validation reports cross-entropy
    # SGD with MOMENTUM, or a class of torch.optim such as torch.optim.AdamW, which has its own defaults.
    optimizer: object = partial(torch.optim.SGD, momentum=MOMENTUM)
    optimizer_options: dict = field(default_factory=dict)  # further arguments, such as weight_decay
    batch_size: int = BATCH_SIZE
    epochs: int = EPOCHS
    device: str = DEVICE


EXPERIMENTS = {  # the names appear in plots and file names
    "LeNet5": Experiment(LeNet5, learning_rate=0.02),
    "CustomMLP": Experiment(CustomMLP, learning_rate=0.01),
    "RegularizedLeNet5": Experiment(
        RegularizedLeNet5,
        learning_rate=0.05,
        transform=AUGMENTATION,
        optimizer_options={"weight_decay": 2e-4},  # pulls the weights towards 0 in each step
    ),
}


class UserError(ValueError):
    """Says what is wrong and what to do, in words for the person at the shell."""


# How a model learns ---------------------------------------------------------------------------------


def train(model, loader, device, criterion, optimizer, scheduler=None):
    """Train for one epoch. Return the average loss per image and the accuracy (0 to 1).

    Each batch is scored before the model learns from it, with dropout on and augmentation if
    there is any. So the loss is often higher, and the accuracy lower, than `test`'s.

    loader: batches of images (B, 1, 28, 28) and labels (B,), from any DataLoader.
    criterion: maps logits (B, 10) and labels to the average loss, such as nn.CrossEntropyLoss().
    scheduler: makes a step after each batch; None leaves the learning rate alone.

    Raises UserError if the loader is empty or the loss is not finite.
    """
    model.train()
    total_loss = correct = count = 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        loss = criterion(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        # The last batch may be smaller, and its images must not count for more. The totals stay
        # tensors, since .item() would wait for a GPU after every batch.
        total_loss += loss.detach() * len(labels)
        correct += (logits.argmax(dim=1) == labels).sum()
        count += len(labels)
    return average(total_loss, correct, count)


@torch.no_grad()
def test(model, loader, device, criterion):
    """Return the average loss per image and the accuracy (0 to 1), with dropout off."""
    model.eval()
    total_loss = correct = count = 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        total_loss += criterion(logits, labels) * len(labels)
        correct += (logits.argmax(dim=1) == labels).sum()
        count += len(labels)
    return average(total_loss, correct, count)


def average(total_loss, correct, count):
    """Return the loss per image and the accuracy. Raises UserError if there was no image, or if the loss is
    not finite."""
    if count == 0:
        raise UserError("the loader has no batch")
    if not total_loss.isfinite():
        raise UserError("the loss exploded: try a lower learning_rate")
    return total_loss.item() / count, correct.item() / count


def build(experiment, train_set):
    """Return what an experiment is trained with: batches, model, optimizer and schedule."""
    train_set = copy.copy(train_set)  # other experiments get the images unchanged
    train_set.to(experiment.device)
    train_set.transform = experiment.transform
    # An incomplete batch is dropped: batch norm can't compute the deviation of a single image.
    loader = dataset.batches(train_set, experiment.batch_size, shuffle=True, drop_last=True)
    if len(loader) == 0:
        raise UserError(f"{len(train_set):,} training images do not fill a batch of {experiment.batch_size}")
    model = experiment.model(**experiment.options).to(experiment.device)
    optimizer = experiment.optimizer(
        model.parameters(), lr=experiment.learning_rate, **experiment.optimizer_options
    )
    # The learning rate rises for 30% of the steps, then falls to almost 0: large steps
    # first, fine tuning last (Smith, Topin 2018, "Super-Convergence").
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, experiment.learning_rate, experiment.epochs * len(loader), cycle_momentum=False
    )
    return loader, model, optimizer, scheduler


# One training ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """One experiment with one seed, and all that its process needs to know."""

    name: str  # of the experiment
    experiment: Experiment
    seed: int
    train_set: dataset.MNIST
    test_set: dataset.MNIST
    digits: dict  # see dataset.read_digits
    folder: Path  # of the run

    def path(self, ending):
        """Return the path of one of its files."""
        return self.folder / f"{self.name}-seed{self.seed}{ending}"


def run_training(training):
    """Train one experiment with one seed. Each finished epoch adds a row to <name>-seed<seed>.csv and
    saves the weights in <name>-seed<seed>.pt. At the end, the outputs for all validation images go to
    <name>-seed<seed>.npz, and those of all layers for one digit to <name>-seed<seed>.layers.npz."""
    experiment = training.experiment
    device = experiment.device
    torch.manual_seed(training.seed)  # decides initial weights, order of images, dropout, augmentation
    train_loader, model, optimizer, scheduler = build(experiment, training.train_set)
    test_loader = dataset.batches(training.test_set, 1000)  # without gradients, larger batches are faster
    rates = []

    def note_rate(optimizer, args, kwargs):
        rates.append(optimizer.param_groups[0]["lr"])

    optimizer.register_step_pre_hook(note_rate)  # before each step: the rate that this step uses

    for epoch in range(1, experiment.epochs + 1):
        start = time.perf_counter()
        train_loss, train_accuracy = train(model, train_loader, device, experiment.loss, optimizer, scheduler)
        refresh_batch_norm(model, training.train_set, experiment)
        val_loss, val_accuracy = test(model, test_loader, device, nn.CrossEntropyLoss())
        figures = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "seconds": time.perf_counter() - start,
            "learning_rate": scheduler.get_last_lr()[0],
        }
        add_row(training.path(".csv"), figures)
        save_weights(training.path(".pt"), model)
        say(plot.progress(training.name, training.seed, experiment.epochs, figures))
    save_outputs(training, model, rates)
    save_layers(training, model)


def refresh_batch_norm(model, train_set, experiment):
    """Compute the running averages of batch norm anew from 10,000 training images, if the model has any.

    During training, batch norm has averaged the last, augmented batches. Averages of many
    unaugmented images fit the validation images better. (`update_bn` leaves dropout on.)
    """
    images = train_set.subset(slice(10_000))
    batch_size = min(experiment.batch_size, 1000)  # several batches, however large those of training
    update_bn(dataset.batches(images, batch_size, drop_last=True), model, experiment.device)


@torch.no_grad()
def predict(model, images, device):
    """Return the logits (N, 10) of images, uint8 (N, 28, 28), with dropout off."""
    model.eval()
    logits = []
    for batch in images.split(1000):
        logits.append(model(dataset.normalize(batch).to(device)).cpu())
    return torch.cat(logits)


# What a training leaves in the folder of its run ----------------------------------------------------


def add_row(path, figures):
    """Add a row to a CSV file. A new file begins with the names of the columns."""
    is_new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, figures, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow({name: f"{value:.6g}" for name, value in figures.items()})


def save_whole(path, write):
    """Write a file so that it is there whole or not at all: `write` receives the open file."""
    unfinished = Path(f"{path}.part")
    try:
        with open(unfinished, "wb") as file:
            write(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def save_weights(path, model):
    """Write the weights of a model in place of those of the epoch before."""
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    save_whole(path, lambda file: torch.save(weights, file))


def save_outputs(training, model, learning_rates):
    """Write what the pictures show of a training: logits (N, 10) and labels (N,) of the validation images,
    the misclassified images, the learning rate of each step, digit_logits (M, 10) of your own digits."""
    device = training.experiment.device
    images = training.test_set.images
    labels = training.test_set.labels
    logits = predict(model, images, device)
    arrays = {
        "logits": logits,
        "labels": labels,
        "mistakes": images[logits.argmax(dim=1) != labels],
        "learning_rates": np.array(learning_rates, dtype=np.float32),
    }
    if training.digits:
        digits = torch.from_numpy(training.digits["images"])
        arrays["digit_logits"] = predict(model, digits, device)
    save_whole(training.path(".npz"), lambda file: np.savez(file, **arrays))


@torch.no_grad()
def trace(model, image):
    """Send one image (1, 1, 28, 28) through a model, with dropout off. Return the logits (1, 10) and a dict
    for each layer, in the order of use: its name, kind, number of parameters, the shape of its output
    without the batch, the module and the values of its output."""
    layers = []
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Identity):  # stands for a layer that is left out
            continue
        is_leaf = not list(module.children())
        if is_leaf or list(module.parameters(recurse=False)):
            hooks.append(module.register_forward_hook(partial(note_layer, layers, name)))
    model.eval()
    logits = model(image)
    for hook in hooks:
        hook.remove()
    return logits, layers


def note_layer(layers, name, module, inputs, output):
    """Add a layer to a list when an image has passed through it. A hook, see `trace`."""
    if isinstance(output, tuple):
        output = output[0]  # of an LSTM, the rest is its state
    if not isinstance(output, torch.Tensor):
        return
    parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    if any(layer["module"] is module for layer in layers):
        parameters = 0  # counted where the layer is used first
    layers.append(
        {
            "name": name or "(model)",
            "kind": type(module).__name__,
            "output": list(output.shape[1:]),
            "parameters": parameters,
            "module": module,
            "values": output.clone(),  # the next layer may work in place
        }
    )


@torch.no_grad()
def save_layers(training, model):
    """Write the outputs, maps (C, H, W) or numbers (N,), of the layers with weights for one digit: the first
    of your own, else the first validation image. Before the first of them, the filters of a convolution."""
    images = training.test_set.images
    if training.digits:
        images = torch.from_numpy(training.digits["images"])
    image = images[:1]
    logits, layers = trace(model, dataset.normalize(image).to(training.experiment.device))
    arrays = {"input": image}
    for layer in layers:
        weights = getattr(layer["module"], "weight", None)
        output = layer["values"][0].cpu()
        if weights is None or weights.dim() < 2 or output.dim() not in (1, 3):
            continue
        is_first = list(arrays) == ["input"]
        is_convolution = weights.dim() == 4
        if is_first and is_convolution:
            arrays["filters"] = weights[:, 0].cpu()
        name = f"layer {layer['name']}"
        while name in arrays:  # used more than once
            name += "'"
        arrays[name] = output
    arrays["probabilities"] = logits[0].softmax(dim=0).cpu()
    save_whole(training.path(".layers.npz"), lambda file: np.savez(file, **arrays))


# Several trainings at the same time -----------------------------------------------------------------


def run_trainings(trainings, workers):
    """Run all trainings and return whether all finished.

    With one worker, they run here, one after the other. With more, each runs in a process of its
    own, which writes its own files. If one fails or dies, the others go on.
    """
    if workers == 1:
        finished = [attempt(training) for training in trainings]  # a list: a failure must not end the loop
        return all(finished)
    context = multiprocessing.get_context("fork" if can_fork() else "spawn")
    gc.freeze()  # else the garbage collector of each process would copy what they share
    waiting = list(trainings)
    running = {}  # {sentinel: (process, training)}; a sentinel is what `wait` can wait for
    all_finished = True
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                training = waiting.pop(0)
                process = context.Process(target=run_in_process, args=(training,), daemon=True)
                with signals_held_back():  # a process that is not in `running` would not be ended
                    process.start()
                    running[process.sentinel] = process, training
            for sentinel in multiprocessing.connection.wait(running):
                process, training = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    all_finished = False
                if process.exitcode not in (0, 1):  # 1: it has said why
                    where = f"{training.name}, seed {training.seed}"
                    say(f"error: {where}: its process died, code {process.exitcode}", sys.stderr)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()
    return all_finished


def can_fork():
    """Whether processes are forks, which start at once, with everything loaded. A fork would lose the threads
    that torch keeps for a GPU. There, and where forks are not safe, a new interpreter imports everything."""
    return sys.platform == "linux" and available_devices() == ["cpu"]


@contextmanager
def signals_held_back():
    """Deliver Ctrl-C and SIGTERM only when the block has ended."""
    received = []
    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in received:
        signal.raise_signal(number)


def run_in_process(training):
    """Run a training in a process of its own, which ends when its parent does, even if killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    plot.prepare_output()
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.exit(0 if attempt(training) else 1)


def end_with_parent():
    """Wait until the parent process has ended, then end this one."""
    multiprocessing.parent_process().join()
    os._exit(1)


def attempt(training):
    """Run a training. Return whether it finished; say why if it did not."""
    try:
        run_training(training)
        return True
    except Exception as error:  # a user's own model may raise anything
        say(f"error: {training.name}, seed {training.seed}: {describe(error)}", sys.stderr)
        return False


# What is said to the person at the shell ------------------------------------------------------------


def describe(error):
    """Return an error as one line. If its message was not written for the person at the shell, add its
    type and the line of the project's code that led to it."""
    text = " ".join(str(error).split())
    if isinstance(error, (OSError, UserError, dataset.UserError, plot.RunError)):
        return text
    project = Path(__file__).parent
    own_lines = []
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).parent == project:
            own_lines.append(f"{Path(frame.filename).name}, line {frame.lineno}: {frame.line}")
    return f"{type(error).__name__}: {text} ({own_lines[-1]})"


lost_lines = []  # what could not be printed


def say(text, file=None):
    """Print a line at once. A closed pipe or a full disk costs the lines, not the training."""
    file = file or sys.stdout
    try:
        print(f"{text}\n", end="", file=file, flush=True)  # one write keeps lines whole
    except (OSError, ValueError):
        lost_lines.append(text)
        # What is still buffered must not fail again when the program ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError):  # not every stream is a file
            os.dup2(nowhere, file.fileno())


# A run, from its settings to its pictures -----------------------------------------------------------


def usable_cores():
    """Return how many cores this process may use: those that it is bound to, or fewer if it runs in a
    container with a quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limits = Path("/sys/fs/cgroup/cpu.max")  # such as "150000 100000": 1.5 cores; or "max 100000"
    if limits.exists():
        quota, period = limits.read_text(encoding="utf-8").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def available_devices():
    """Return the names of the devices on which this machine can train."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def check_constants():
    """Raise UserError for a constant that would otherwise fail late, silently or in words that nobody
    understands. Whether a row can be trained shows when it is rehearsed."""
    if not isinstance(SEEDS, (tuple, list, range)) or len(SEEDS) == 0:
        raise UserError(f"{SEEDS = } in main.py must be a tuple of whole numbers, such as (0, 1, 2)")
    for seed in SEEDS:
        if not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise UserError(f"{SEEDS = } in main.py: {seed!r} must be a whole number from 0")
    if len(set(SEEDS)) < len(SEEDS):
        raise UserError(f"{SEEDS = } in main.py: each seed can be trained once")
    if not isinstance(EPOCHS, int) or EPOCHS < 1:
        raise UserError(f"{EPOCHS = } in main.py must be a whole number from 1")
    if not isinstance(MOMENTUM, (int, float)) or not 0 <= MOMENTUM < 1:
        raise UserError(f"{MOMENTUM = } in main.py must be a number from 0 to below 1")
    if DEVICE not in available_devices():
        raise UserError(f"{DEVICE = } in main.py must be one of {available_devices()} on this machine")
    if not isinstance(VALIDATION_IMAGES, int) or VALIDATION_IMAGES < 0:
        raise UserError(f"{VALIDATION_IMAGES = } in main.py must be a whole number from 0")
    if WORKERS is not None and (not isinstance(WORKERS, int) or WORKERS < 1):
        raise UserError(f"{WORKERS = } in main.py must be None or a whole number from 1")
    if not isinstance(EXPERIMENTS, dict) or not EXPERIMENTS:
        raise UserError(f"{EXPERIMENTS = } in main.py must be a table of at least one row")
    check_names()


def check_names():
    """Raise UserError for a name of an experiment that can't be the name of its files."""
    taken = set(plot.PICTURES)
    for name in EXPERIMENTS:
        row = f"EXPERIMENTS[{name!r}] in main.py"
        if not isinstance(name, str) or not name or not name.isprintable():
            raise UserError(f"{row}: the name must be a string of printable characters")
        for character in '/\\:*?"<>|':
            if character in name:
                raise UserError(f"{row}: the name of a file can't contain {character}")
        if len(name.encode()) > 200:
            raise UserError(f"{row}: the name is too long for a file")
        if name.casefold() in taken:
            raise UserError(f"{row}: another experiment or a picture of the run has this name")
        taken.add(name.casefold())


def rehearse(train_set):
    """Train each experiment on a few batches, so that mistakes show before the real work.

    Returns {name: facts about the experiment}, see `rehearse_experiment`. Raises UserError,
    which names the row, if an experiment can't be trained.
    """
    rehearsed = {}
    for name, experiment in EXPERIMENTS.items():
        try:
            rehearsed[name] = rehearse_experiment(experiment, train_set)
        except Exception as error:
            raise UserError(f"EXPERIMENTS[{name!r}] in main.py: {describe(error)}") from error
        if rehearsed[name]["ends_in_softmax"]:
            say(
                f"warning: EXPERIMENTS[{name!r}] in main.py: the model ends in a softmax, and the loss "
                "applies another one. It learns better without its own.",
                sys.stderr,
            )
    return rehearsed


def rehearse_experiment(experiment, train_set):
    """Return a dict: the number of `parameters`, the `layers`, roughly how many `seconds` a training
    takes, and whether the model `ends_in_softmax`."""
    check_portable(experiment)
    few = train_set.subset(slice(10 * experiment.batch_size))  # ten batches: enough for a rough duration
    for _ in range(2):  # the first time takes longer
        loader, model, optimizer, scheduler = build(experiment, few)
        start = time.perf_counter()
        train(model, loader, experiment.device, experiment.loss, optimizer, scheduler)
        seconds = time.perf_counter() - start
    image, _ = few[:1]  # a model that squeezes its output fails only for a single image
    logits, layers = trace(model, image.to(experiment.device))
    if logits.shape != (1, 10):
        raise UserError(f"the model must return logits (1, 10) for an image, not {tuple(logits.shape)}")
    for layer in layers:
        del layer["module"], layer["values"]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": layers,
        "seconds": seconds / len(few) * len(train_set) * experiment.epochs,
        "ends_in_softmax": logits.min() >= 0 and abs(logits.sum() - 1) < 1e-4,
    }


def check_portable(experiment):
    """Raise UserError if a row can't be sent to a new interpreter, where trainings are not forks."""
    if can_fork():
        return
    try:
        pickle.dumps(experiment)
    except Exception as error:  # pickle raises many kinds
        raise UserError("it must reach another process: use functions made with def, not lambda") from error


def sample_images(train_set):
    """Return a dict of arrays: eight `originals`, uint8 (8, 28, 28), the `names` (E,) of experiments with a
    transform, and random `versions` (E, 4, 8, 28, 28) of the originals that it makes."""
    torch.manual_seed(0)  # the same picture in every run with the same settings
    names = []
    versions = []
    for name, experiment in EXPERIMENTS.items():
        if experiment.transform is not None:
            batch = train_set.subset(slice(max(8, experiment.batch_size)))  # as in training
            batch.to(experiment.device)
            batch.transform = experiment.transform
            names.append(name)
            versions.append([eight_images(batch) for _ in range(4)])
    return {
        "originals": train_set.images[:8],
        "names": np.array(names, dtype=str),
        "versions": np.array(versions),
    }


def eight_images(batch):
    """Return the first images of a Dataset as its transform makes them now, uint8 (8, 28, 28)."""
    images, _ = batch[:]
    return dataset.denormalize(images[:8]).cpu().numpy()


def own_code():
    """Return {file name: source} of the four modules, as bytes, which can be copied as they are."""
    code = {}
    for name in ("main.py", "dataset.py", "model.py", "plot.py"):
        code[name] = (Path(__file__).parent / name).read_bytes()
    return code


def start_run(code, data, digits, images, rehearsed):
    """Make and return the folder of a new run, with what is known before the first training."""
    folder = make_folder(Path(RESULTS_DIR))
    save_settings(folder / "settings.json", data, rehearsed)
    (folder / "code").mkdir()
    for name, source in code.items():
        (folder / "code" / name).write_bytes(source)
    save_whole(folder / "images.npz", lambda file: np.savez(file, **images))
    if digits:
        save_whole(folder / "my_digits.npz", lambda file: np.savez(file, **digits))
    return folder


def save_settings(path, data, rehearsed):
    """Write all constants of this module, and what else made a run what it is, as JSON."""
    settings = {name: value for name, value in globals().items() if name.isupper()}
    settings["SEEDS"] = list(SEEDS)  # it may be a range
    settings["EXPERIMENTS"] = {name: vars(experiment) for name, experiment in EXPERIMENTS.items()}
    settings["date"] = time.strftime("%Y-%m-%d %H:%M:%S")
    settings["data"] = data
    settings["parameters"] = {name: facts["parameters"] for name, facts in rehearsed.items()}
    settings["layers"] = {name: facts["layers"] for name, facts in rehearsed.items()}
    settings["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    text = json.dumps(settings, indent=2, default=as_json)
    save_whole(path, lambda file: file.write(text.encode()))


def as_json(value):
    """Return a value that JSON can't hold as one that it can: a class or function as its name, an object as
    a dict of its class and its public attributes, anything else as a string."""
    if isinstance(value, partial):
        positional = {"args": value.args} if value.args else {}
        return {"class": value.func.__name__, **value.keywords, **positional}
    if getattr(value, "__name__", None) == "<lambda>":
        return " ".join(inspect.getsource(value).split())
    if hasattr(value, "__name__"):
        return value.__name__
    attributes = {}
    for name, attribute in getattr(value, "__dict__", {}).items():
        if not name.startswith("_") and name != "training":  # whether a module is in training mode
            attributes[name] = attribute
    if isinstance(value, nn.Module):  # which keeps these apart
        attributes |= dict(value.named_buffers(recurse=False))
        attributes |= dict(value.named_children())
    if attributes or type(value).__repr__ is object.__repr__:
        return {"class": type(value).__name__, **attributes}
    return str(value)


def make_folder(results_dir):
    """Make and return the folder of a new run, named by the next number."""
    results_dir.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name) for path in results_dir.iterdir() if path.name.isdecimal()]
    number = max(numbers, default=0) + 1
    while True:
        folder = results_dir / str(number)
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another run has just taken this number
            number += 1


def plan_trainings(rehearsed, train_set, test_set, digits, folder):
    """Return all trainings, the longest first, so that no long one is left for the end."""
    trainings = []
    for name, experiment in EXPERIMENTS.items():
        for seed in SEEDS:
            training = Training(
                name=name,
                experiment=experiment,
                seed=seed,
                train_set=train_set,
                test_set=test_set,
                digits=digits,
                folder=folder,
            )
            trainings.append(training)
    trainings.sort(key=lambda training: rehearsed[training.name]["seconds"], reverse=True)
    return trainings


def choose_workers(trainings):
    """Return how many of the trainings run at the same time."""
    if WORKERS is not None:
        return min(WORKERS, len(trainings))
    if any(training.experiment.device != "cpu" for training in trainings):
        return 1  # several would share the GPU
    return min(usable_cores(), len(trainings))


def main():
    """Train every experiment with every seed, then plot. Return the exit code: 0, 1 if a training
    or a plot failed, 2 if the run could not start, 130 if interrupted."""
    # In models this small, threads mostly wait for each other; their number would change the last digits.
    torch.set_num_threads(1)
    try:
        code = own_code()  # at once: it may be edited while the images are read
        check_constants()
        say(f"Reading the images in {DATA_DIR} ...")
        train_set, test_set, data = dataset.load_data(DATA_DIR, VALIDATION_IMAGES)
        digits = dataset.read_digits(dataset.pictures_in(DIGITS_DIR))
        rehearsed = rehearse(train_set)
        images = sample_images(train_set)
        folder = start_run(code, data, digits, images, rehearsed)
    except (OSError, TypeError, ValueError) as error:  # TypeError: a folder that is not a string
        say(f"error: {describe(error)}", sys.stderr)
        return 2
    trainings = plan_trainings(rehearsed, train_set, test_set, digits, folder)
    workers = choose_workers(trainings)
    seconds = [rehearsed[training.name]["seconds"] for training in trainings]
    say(plot.opening(data, folder, rehearsed, seconds, workers))
    try:
        exit_code = 0 if run_trainings(trainings, workers) else 1
    except KeyboardInterrupt:
        say(f"interrupted; the finished epochs are in {folder}", sys.stderr)
        exit_code = 130
    except Exception as error:  # no process could be started
        say(f"error: {describe(error)}", sys.stderr)
        exit_code = 1
    try:
        say(plot.draw_run(folder))
    except (OSError, plot.RunError) as error:
        say(f"error: {describe(error)}", sys.stderr)
        exit_code = exit_code or 1
    if lost_lines:
        say(f"error: standard output is closed or full; the results are in {folder}", sys.stderr)
        exit_code = exit_code or 1
    return exit_code


def ask(paths):
    """Print and draw what the models of the newest run with finished trainings answer to pictures of digits.
    Return the exit code: 0, 1 if a picture or a model had to be left out, 2 if there is nothing to ask."""
    torch.set_num_threads(1)
    try:
        check_constants()
        run = plot.newest_finished_run(RESULTS_DIR)
    except (OSError, TypeError, ValueError) as error:
        say(f"error: {describe(error)}", sys.stderr)
        return 2
    digits = dataset.read_digits(paths)
    if not digits:
        say("error: there is no picture to ask about", sys.stderr)
        return 2
    change = plot.module_change(
        "model.py", run.code, {"model.py": own_code()["model.py"].decode("utf-8-sig")}
    )
    if change:
        say(f"warning: since {run.folder} was trained, {change}", sys.stderr)
    logits = {}
    for name, experiment in EXPERIMENTS.items():
        try:
            logits[name] = ask_model(name, experiment, run, torch.from_numpy(digits["images"]))
        except UserError as error:
            say(f"error: EXPERIMENTS[{name!r}] in main.py: {error}", sys.stderr)
    if not logits:
        return 2
    say("\n".join(plot.digit_table(digits, logits)))
    picture = Path(RESULTS_DIR) / "my_digits.png"
    try:
        plot.draw_digits(digits, logits).savefig(picture)
    except OSError as error:
        say(f"error: {describe(error)}", sys.stderr)
        return 1
    say(f"\nThe models are those of {run.folder}. {picture} shows what they saw.")
    all_answered = len(logits) == len(EXPERIMENTS) and len(digits["names"]) == len(paths)
    return 0 if all_answered and not lost_lines else 1


def ask_model(name, experiment, run, images):
    """Return the logits (N, 10) of images for the model that a run has trained with its first seed. Raises
    UserError if it has not, or if the row of EXPERIMENTS no longer fits what was trained."""
    path = run.folder / f"{name}-seed{run.settings['SEEDS'][0]}.pt"
    if not path.exists():
        raise UserError(f"there is no {path}: run main.py again")
    if not plot.is_finished(run, name):
        raise UserError(f"its training in {run.folder} has not finished: run main.py again")
    row = json.loads(json.dumps(vars(experiment), default=as_json))
    for setting in ("model", "options"):
        trained = run.settings["EXPERIMENTS"][name].get(setting)
        if trained != row[setting]:
            raise UserError(f"its {setting} was {trained} in {run.folder}, but is {row[setting]}")
    try:
        weights = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise UserError(f"{path} is damaged: run main.py again") from error
    try:
        model = experiment.model(**experiment.options)
        model.load_state_dict(weights)
        logits = predict(model, images, "cpu")
    except Exception as error:  # a user's own model may raise anything
        raise UserError(f"it does not fit {path}: {describe(error)[:200]}") from error
    if logits.shape != (len(images), 10) or not logits.isfinite().all():
        raise UserError(f"with {path}, it does not return ten finite numbers for each picture")
    return logits.numpy()


def interrupt(number, frame):
    """Handle the first Ctrl-C or SIGTERM. Later ones must not disturb the clean-up."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    plot.prepare_output()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    if any(argument.startswith("-") for argument in sys.argv[1:]):  # there are no options
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    try:
        if len(sys.argv) > 1:
            sys.exit(ask(sys.argv[1:]))
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
