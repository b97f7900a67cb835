"""Train LeNet-5, an MLP of the same size and a regularized LeNet-5 on MNIST and compare them.

    python main.py

prints a line per epoch, then a table, and draws the curves. Every run gets its own folder in results/.
Edit the constants below and run it again; `python plot.py results/A results/B` shows what your edit did.
"""

import gc
import json
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import dataset
import plot
from model import CustomMLP, LeNet5, RegularizedLeNet5

EPOCHS = 10  # passes over the training images; 1 for a first look, 10 to 30 for good results
BATCH_SIZE = 32  # images per step; 16 to 256; larger batches need a larger learning rate
MOMENTUM = 0.9  # fraction of the last step that is added to the next; 0 to 0.99
SEEDS = (0,)  # each experiment is trained once per seed; (0, 1, 2) shows how much is random
DEVICE = "cpu"  # "cpu", "cuda" (NVIDIA), "mps" (Apple); "cpu" repeats a run exactly on one machine
VALIDATION_IMAGES = 0  # 0: validate on the test images; 10_000: on the last 10,000 training images
WORKERS = None  # trainings at the same time, each on its own core; None: one per core, 1 on a GPU
AUGMENTATION = {"rotation": 8, "shift": 1.4, "scaling": 0.1, "elastic": 0.4}  # see dataset.Augmentation
BASELINE = "LeNet5"  # the tables state the gain over this experiment, if there is one of that name
DATA_DIR = "data"  # folder of train.tar and test.tar; MNIST is downloaded to it if both are missing
RESULTS_DIR = "results"  # each run makes a new folder in it
DIGITS_DIR = "data/my_digits"  # pictures of your own digits; the trained models classify them


@dataclass(frozen=True)
class Experiment:
    """What is trained, and how. A row of EXPERIMENTS states only what differs from the defaults."""

    model: type  # a class that maps images (B, 1, 28, 28) to logits (B, 10), such as those in model.py
    learning_rate: float  # peak of the schedule; 0.01 to 0.1; the loss explodes if it is too high
    options: dict = field(default_factory=dict)  # arguments of the model
    weight_decay: float = 0  # pulls the weights towards 0 in each step; 0 (off) to 0.001
    augmentation: dict = field(default_factory=dict)  # arguments of dataset.Augmentation; {} is off
    optimizer: type = torch.optim.SGD  # or one of torch.optim with a weight decay, such as torch.optim.Adam
    momentum: float = MOMENTUM  # of SGD; other optimizers ignore it
    batch_size: int = BATCH_SIZE
    epochs: int = EPOCHS
    device: str = DEVICE


EXPERIMENTS = {  # the names appear in plots and file names
    "LeNet5": Experiment(LeNet5, learning_rate=0.02),
    "CustomMLP": Experiment(CustomMLP, learning_rate=0.01),
    "RegularizedLeNet5": Experiment(RegularizedLeNet5, 0.05, weight_decay=2e-4, augmentation=AUGMENTATION),
}


def train(model, loader, device, criterion, optimizer, scheduler=None):
    """Train for one epoch. Return the average loss per image and the accuracy (0 to 1).

    Each batch is scored before the model learns from it, with dropout on and augmentation if
    there is any. So the loss is often higher, and the accuracy lower, than `test`'s.

    loader: batches of images (B, 1, 28, 28) and labels (B,), from any DataLoader.
    criterion: maps logits (B, 10) and labels to the average loss, such as nn.CrossEntropyLoss().
    scheduler: makes a step after each batch; None leaves the learning rate alone.
    """
    model.train()
    outputs = []
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        loss = criterion(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        outputs.append((logits.detach(), labels))
    # All images at once: the last batch may be smaller, and its images must not count for
    # more. It also avoids waiting for a GPU after every batch.
    return score(*map(torch.cat, zip(*outputs)), criterion)


def test(model, loader, device, criterion):
    """Return the average loss per image and the accuracy (0 to 1), with dropout off."""
    return score(*predict(model, loader, device), criterion)


@torch.no_grad()
def predict(model, loader, device):
    """Return the logits (N, 10) and labels (N,) of all images, with dropout off."""
    model.eval()
    outputs = [(model(images.to(device)), labels.to(device)) for images, labels in loader]
    return [torch.cat(parts) for parts in zip(*outputs)]


def score(logits, labels, criterion):
    """Return the average loss and the accuracy. Raises FloatingPointError if the loss explodes."""
    loss = criterion(logits, labels)
    if not loss.isfinite():
        raise FloatingPointError("the loss exploded: try a lower learning_rate")
    return loss.item(), (logits.argmax(dim=1) == labels).sum().item() / len(labels)


def build(experiment, train_set):
    """Return what an experiment is trained with: batches, model, optimizer and schedule."""
    train_set = train_set.subset(slice(None))  # a copy: other experiments get the images unchanged
    train_set.to(experiment.device)
    if experiment.augmentation:
        train_set.transform = dataset.Augmentation(**experiment.augmentation)
    # An incomplete batch is dropped: batch norm can't compute the deviation of a single image.
    loader = dataset.batches(train_set, experiment.batch_size, shuffle=True, drop_last=True)
    if len(loader) == 0:
        raise ValueError(f"{len(train_set):,} training images do not fill a batch of {experiment.batch_size}")
    model = experiment.model(**experiment.options).to(experiment.device)
    momentum = {"momentum": experiment.momentum} if experiment.optimizer is torch.optim.SGD else {}
    optimizer = experiment.optimizer(
        model.parameters(), lr=experiment.learning_rate, weight_decay=experiment.weight_decay, **momentum
    )
    # The learning rate rises for 30% of the steps, then falls to almost 0: large steps
    # first, fine tuning last (Smith, Topin 2018, "Super-Convergence").
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, experiment.learning_rate, experiment.epochs * len(loader), cycle_momentum=False
    )
    return loader, model, optimizer, scheduler


def run_training(name, experiment, seed, train_set, test_set, digits, folder):
    """Train one experiment with one seed. Each finished epoch adds a line to <name>-seed<seed>.csv in the
    folder; at the end, the weights go to <name>-seed<seed>.pt, the outputs to <name>-seed<seed>.npz."""
    device, criterion = experiment.device, nn.CrossEntropyLoss()
    torch.manual_seed(seed)  # decides initial weights, order of images, dropout, augmentation
    train_loader, model, optimizer, scheduler = build(experiment, train_set)
    test_loader = dataset.batches(test_set, 1000)  # without gradients, larger batches fit and are faster
    plain_images = train_set.subset(slice(10_000))
    plain_loader = dataset.batches(plain_images, min(experiment.batch_size, 1000), drop_last=True)

    path = Path(folder) / f"{name}-seed{seed}"
    with open(f"{path}.csv", "x", buffering=1) as file:
        print(*plot.COLUMNS, sep=",", file=file)
        for epoch in range(1, experiment.epochs + 1):
            start = time.perf_counter()
            training = train(model, train_loader, device, criterion, optimizer, scheduler)
            # Batch norm has averaged the last, augmented batches. Averages of many unaugmented
            # images fit the validation images better. (Does nothing without batch norm.)
            update_bn(plain_loader, model, device)
            validation = test(model, test_loader, device, criterion)
            stats = (epoch, *training, *validation, time.perf_counter() - start, scheduler.get_last_lr()[0])
            print(*(f"{value:.6g}" for value in stats), sep=",", file=file)
            say(plot.progress(name, seed, experiment.epochs, stats))
    save_model(path, model, test_loader, digits, device)


def save_model(path, model, test_loader, digits, device):
    """Write the weights to <path>.pt, and the outputs to <path>.npz: logits (N, 10) and labels (N,) of
    the validation images, the misclassified ones, digit_logits (M, 10) of the pictures in DIGITS_DIR."""
    logits, labels = (outputs.cpu() for outputs in predict(model, test_loader, device))
    mistakes = test_loader.dataset.images.cpu()[logits.argmax(dim=1) != labels]
    arrays = {"logits": logits, "labels": labels, "mistakes": mistakes}
    model.cpu()
    if digits:
        images = dataset.normalize(torch.from_numpy(digits["images"]))
        arrays["digit_logits"], _ = predict(model, [(images, images)], "cpu")
    plot.write_whole(f"{path}.pt", lambda file: torch.save(model.state_dict(), file))
    plot.write_whole(f"{path}.npz", lambda file: np.savez(file, **arrays))


def run_trainings(trainings, workers, *shared):
    """Run all trainings, (name, experiment, seed) each; shared are the other arguments of `run_training`.
    Return whether all finished. With one worker, they run here, one after the other; with more, each in
    its own process, which writes its own files. If one fails or dies, the others go on."""
    if workers == 1:
        return all([attempt(*training, *shared) for training in trainings])  # a list: one failure stops none
    # A fork starts at once, with everything loaded. It would lose the threads that torch keeps
    # for a GPU; there, and where forks are not safe, a new interpreter loads all again.
    forks = sys.platform == "linux" and not torch.accelerator.is_available()
    context = multiprocessing.get_context("fork" if forks else "spawn")
    gc.freeze()  # else the garbage collector of each process would copy what they share
    waiting, running, finished = list(trainings), {}, True
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                training = waiting.pop(0)
                process = context.Process(target=run_in_process, args=(*training, *shared), daemon=True)
                process.start()
                running[process.sentinel] = process, training
            for sentinel in multiprocessing.connection.wait(running):
                process, (name, _, seed) = running.pop(sentinel)
                process.join()
                finished = finished and process.exitcode == 0
                if process.exitcode not in (0, 1):  # 1: the process has said why
                    say(f"error: {name}, seed {seed}: its process died, code {process.exitcode}", sys.stderr)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()
    return finished


def run_in_process(*training):
    """Run one training in a process of its own, which ends when its parent does, even if killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: os._exit(parent.join() or 1), daemon=True).start()
    os._exit(0 if attempt(*training) else 1)


def attempt(name, experiment, seed, *shared):
    """Run a training. Return whether it finished; say why if it did not."""
    try:
        run_training(name, experiment, seed, *shared)
        return True
    except Exception as error:  # a user's own model may raise anything
        say(f"error: {name}, seed {seed}: {describe(error)}", sys.stderr)
        return False


def describe(error):
    """Return an error as one line, with the line of the user's own code that led to it."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent == Path(__file__).parent][-1]
    if isinstance(error, OSError) or (own is frames[-1] and own.line.startswith("raise")):
        return text  # the message was written for the user
    return f"{type(error).__name__}: {text} ({Path(own.filename).name}, line {own.lineno}: {own.line})"


def say(text, file=None):
    """Print a line at once. A closed pipe or a full disk costs the lines, not the training."""
    try:
        print(f"{text}\n", end="", file=file or sys.stdout, flush=True)  # one write keeps lines whole
    except (OSError, UnicodeError):
        sys.stdout = sys.stdout if file else None  # print() now does nothing


def rehearse(train_set):
    """Train each experiment on a few batches, so that mistakes show before the real work: raise
    ValueError that names the experiment. Return {name: parameters} and {name: relative duration}."""
    parameters, durations = {}, {}
    for name, experiment in EXPERIMENTS.items():
        try:
            few = train_set.subset(slice(3 * experiment.batch_size))
            for _ in range(2):  # the first time takes longer
                loader, model, *rest = build(experiment, few)
                start = time.perf_counter()
                train(model, loader, experiment.device, nn.CrossEntropyLoss(), *rest)
                durations[name] = (time.perf_counter() - start) * experiment.epochs / len(few)
            logits, _ = predict(model, [few[:1]], experiment.device)
            if logits.shape != (1, 10):
                raise ValueError(f"the model must return logits (1, 10) for an image, not {(*logits.shape,)}")
            parameters[name] = sum(parameter.numel() for parameter in model.parameters())
        except Exception as error:
            raise ValueError(f"EXPERIMENTS[{name!r}] in main.py: {describe(error)}") from error
    return parameters, durations


def check_constants():
    """Raise ValueError, naming the constant and what is allowed, if one can't be used."""
    whole = lambda value, least: isinstance(value, int) and least <= value < 2**63  # noqa: E731
    devices = {"cpu", str(torch.accelerator.current_accelerator(check_available=True) or "cpu")}
    are_seeds = isinstance(SEEDS, (tuple, list, range)) and all(whole(seed, 0) for seed in SEEDS)
    rules = {
        "EPOCHS": (whole(EPOCHS, 1), "a whole number from 1"),
        "BATCH_SIZE": (whole(BATCH_SIZE, 1), "a whole number from 1"),
        "MOMENTUM": (isinstance(MOMENTUM, (int, float)) and 0 <= MOMENTUM < 1, "a number from 0 to below 1"),
        "SEEDS": (are_seeds and 0 < len(SEEDS) == len({*SEEDS}), "distinct whole numbers, such as (0, 1, 2)"),
        "DEVICE": (DEVICE in devices, f"one of {sorted(devices)} on this machine"),
        "VALIDATION_IMAGES": (whole(VALIDATION_IMAGES, 0), "a whole number from 0"),
        "WORKERS": (WORKERS is None or whole(WORKERS, 1), "None or a whole number from 1"),
        "BASELINE": (isinstance(BASELINE, str), "the name of an experiment"),
        "EXPERIMENTS": (isinstance(EXPERIMENTS, dict) and EXPERIMENTS, "a table of at least one row"),
    }
    for constant in ("DATA_DIR", "RESULTS_DIR", "DIGITS_DIR"):
        rules[constant] = isinstance(globals()[constant], (str, Path)), "the path of a folder"
    for constant, (allowed, rule) in rules.items():
        if not allowed:
            raise ValueError(f"{constant} = {globals()[constant]!r} in main.py must be {rule}")
    taken = [str(name).casefold() for name in (*plot.PICTURES, *EXPERIMENTS)]
    for name in EXPERIMENTS:
        # what every file system takes: no control characters, and not too many bytes
        fits = isinstance(name, str) and name.isprintable() and not {*name} & {*'/\\:*?"<>|'}
        if not fits or not 0 < len(name.encode()) <= 200 or taken.count(name.casefold()) > 1:
            raise ValueError(f"EXPERIMENTS[{name!r}] in main.py: files need a different or shorter name")


def start_run(data, parameters, digits):
    """Make and return a new folder in RESULTS_DIR, with settings.json and my_digits.npz."""
    Path(RESULTS_DIR).mkdir(parents=True, exist_ok=True)
    folder = Path(RESULTS_DIR) / time.strftime("%Y-%m-%d_%H-%M-%S")
    try:
        folder.mkdir()
    except FileExistsError:  # another run started in the same second
        time.sleep(1)
        return start_run(data, parameters, digits)
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    settings = {name: value for name, value in globals().items() if name.isupper()}
    settings |= {"SEEDS": list(SEEDS), "EXPERIMENTS": {name: vars(row) for name, row in EXPERIMENTS.items()}}
    settings |= {"data": data, "parameters": parameters, "versions": versions}
    text = json.dumps(settings, indent=2, default=lambda value: getattr(value, "__name__", str(value)))
    plot.write_whole(folder / "settings.json", lambda file: file.write(text.encode()))
    if digits:
        plot.write_whole(folder / "my_digits.npz", lambda file: np.savez(file, **digits))
    return folder


def main():
    """Train every experiment with every seed, then plot. Return the exit code: 0, 1 if a training
    or a plot failed, 2 if the run could not start, 130 if interrupted."""
    cores = torch.get_num_threads()
    # In models this small, threads mostly wait for each other; their number would change the last digits.
    torch.set_num_threads(1)
    try:
        check_constants()
        train_set, test_set, data = dataset.load_data(DATA_DIR, VALIDATION_IMAGES)
        digits = dataset.read_digits(DIGITS_DIR)
        parameters, durations = rehearse(train_set)
        folder = start_run(data, parameters, digits)
    except (OSError, TypeError, ValueError) as error:
        say(f"error: {describe(error)}", sys.stderr)
        return 2
    trainings = [(name, experiment, seed) for name, experiment in EXPERIMENTS.items() for seed in SEEDS]
    trainings.sort(key=lambda training: -durations[training[0]])  # longest first: none runs alone at the end
    workers = min(len(trainings), WORKERS or (cores if DEVICE == "cpu" else 1))
    say(f"{data['description']}, results in {folder}\n{len(trainings)} trainings, {workers} at a time")
    try:
        exit_code = 0 if run_trainings(trainings, workers, train_set, test_set, digits, folder) else 1
    except KeyboardInterrupt:
        say(f"interrupted; the finished epochs are in {folder}", sys.stderr)
        exit_code = 130
    except Exception as error:  # no process could be started
        say(f"error: {describe(error)}", sys.stderr)
        exit_code = 1
    try:
        say(plot.save_plots(plot.read_run(folder)))
        if sys.stdout is None:
            raise OSError(f"standard output is closed or full; the results are in {folder}")
    except (OSError, ValueError) as error:
        say(f"error: {describe(error)}", sys.stderr)
        exit_code = exit_code or 1
    return exit_code


def interrupt(number, frame):
    """Handle the first Ctrl-C or SIGTERM. Later ones must not disturb the clean-up."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    if sys.stdout:
        sys.stdout.reconfigure(errors="replace")  # a terminal without "±" still gets its table
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        sys.exit(main() if len(sys.argv) == 1 else __doc__)
    except KeyboardInterrupt:
        sys.exit(130)
