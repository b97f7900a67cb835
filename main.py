"""Train LeNet-5, an MLP of the same size and a regularized LeNet-5 on MNIST and compare them.

    python main.py              a line per epoch, a table and curves, in a new folder: results/1, 2, ...
    python main.py photo.jpg    which digit do the models of the newest run see in this picture?
    python main.py --run 2 photo.jpg    and those of run 2?

Edit the settings in main.py and run it again: it compares the two runs. Unedited, a run takes 160
seconds on two cores: LeNet5 99.27%, CustomMLP 97.56%, RegularizedLeNet5 99.55% of the test images."""

import argparse
import copy
import csv
import io
import json
import multiprocessing
import pickle
import random
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
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
TRAINING_IMAGES = None  # None: all of them; 1_000: as many, chosen at random but always the same ones
VALIDATION_IMAGES = 0  # 0: measure on the test images; 10_000: hold out as many training images instead
WORKERS = None  # trainings at the same time, each on its own core; None: one per core; with a GPU always 1
AUGMENTATION = Augmentation(rotation=8, shift=1.4, scaling=0.1, elastic=0.4)  # a transform, see dataset.py
BASELINE = "LeNet5"  # the tables state the gain over this experiment
DATA_DIR = "data"  # folder of train.tar and test.tar; MNIST is downloaded to "data" if both are missing
DIGITS_DIR = "data/my_digits"  # pictures of your own digits; the trained models classify them


def one_cycle(optimizer, total_steps):
    """Return the default schedule. The learning rate starts at 1/25 of its peak, rises for 30% of the steps
    and then falls to almost 0: a careful start, large steps, fine tuning (Smith, Topin 2018,
    "Super-Convergence")."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[float(group["lr"]) for group in optimizer.param_groups],  # an optimizer may have several
        total_steps=total_steps,
        cycle_momentum=False,
    )


@dataclass(frozen=True)
class Experiment:
    """What is trained, and how. A row of EXPERIMENTS states only what differs from the defaults."""

    name: str  # in tables, pictures and the names of files
    model: Callable[..., nn.Module]  # a class that maps images (B, 1, 28, 28) to logits (B, 10), see model.py
    learning_rate: float  # the peak of one_cycle; 0.005 to 0.03, with batch norm up to 0.1; a tenth for Adam
    options: dict = field(default_factory=dict)  # arguments of the model
    transform: Callable | None = None  # changes the training images, batch by batch, such as AUGMENTATION
    loss: Callable = nn.CrossEntropyLoss()  # what training minimizes; testing reports cross-entropy
    # SGD with MOMENTUM, or a class of torch.optim such as torch.optim.AdamW, which ignores MOMENTUM.
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.SGD, momentum=MOMENTUM)
    optimizer_options: dict = field(default_factory=dict)  # further arguments, such as weight_decay
    # None for a constant rate, or a function like one_cycle that returns a scheduler, stepped per batch.
    schedule: Callable | None = one_cycle
    update_bn: bool = False  # whether batch norm's averages are computed again, see update_batch_norm
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
        update_bn=True,
    ),
]

# How a model learns ---------------------------------------------------------------------------------


def train(model, loader, device, criterion, optimizer, scheduler=None):
    """Train for one epoch. Return the average loss per image and the accuracy (0 to 1).

    Each batch is scored before the model learns from it, with dropout on and augmentation if
    there is any. So the loss is often higher, and the accuracy lower, than `test`'s.

    loader: batches of images (B, 1, 28, 28), normalized, and labels (B,), from any DataLoader.
    criterion: maps logits (B, 10) and labels to the average loss, such as nn.CrossEntropyLoss().
    scheduler: changes the learning rate after each batch; None leaves it alone.

    Raises UserError if logits and labels do not fit, if there is no batch, or if the loss is not finite.
    """
    model.train()  # dropout on, batch norm with the averages of each batch
    total_loss = correct = count = 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        check_shapes(logits, labels)
        loss = criterion(logits, labels)
        optimizer.zero_grad()  # backward adds to the gradients of the last batch
        loss.backward()  # computes the gradient of the loss for each weight
        optimizer.step()  # changes each weight so that the loss falls
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
    """Return the average loss per image and the accuracy (0 to 1), with dropout off and without computing
    gradients. Raises UserError as `train` does."""
    model.eval()  # dropout off, batch norm with its stored averages
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
    """Return what an experiment is trained with: batches, model, optimizer and scheduler, or None instead of
    a scheduler if the learning rate is constant."""
    train_set = copy.copy(train_set).to(experiment.device)  # other experiments get the images unchanged
    train_set.transform = experiment.transform
    # An incomplete batch is dropped: after a linear layer, batch norm can't normalize a single image.
    loader = dataset.batches(train_set, experiment.batch_size, shuffle=True, drop_last=True)
    if len(loader) == 0:
        raise UserError(f"{len(train_set):,} training images do not fill a batch of {experiment.batch_size}")
    model = experiment.model(**experiment.options).to(experiment.device)
    parameters = list(model.parameters())
    if isinstance(experiment.loss, nn.Module):  # a loss may have parameters, too, or a weight for each class
        parameters += experiment.loss.to(experiment.device).parameters()
    optimizer = experiment.optimizer(parameters, lr=experiment.learning_rate, **experiment.optimizer_options)
    scheduler = None
    if experiment.schedule is not None:
        scheduler = experiment.schedule(optimizer, experiment.epochs * len(loader))
    return loader, model, optimizer, scheduler


# One training ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """What all trainings share."""

    train_set: dataset.MNIST
    test_set: dataset.MNIST  # or the images that are held out


HEADINGS = (
    "experiment              seed    epoch  training: loss  accuracy  {kind:>10}: loss  accuracy  seconds"
)
PROGRESS = (
    "{name:<22}  {seed:>4}  {epoch:>4}/{epochs:<2}  {train_loss:>14.4f}  {train_accuracy:>8.2%}  "
    "{eval_loss:>16.4f}  {eval_accuracy:>8.2%}  {seconds:>7.1f}"
)


def run_training(experiment, data, seed, folder, quiet=False):
    """Train one experiment with one seed. Its files in the folder begin with <name>-seed<seed>:

    .csv  loss, accuracy and time, a row per epoch
    .pt   the weights, replaced after each epoch
    .npz  written at the end, so it marks a finished training: what else tables and pictures show of it

    quiet: print nothing.
    """
    path = folder / f"{experiment.name}-seed{seed}"
    device = experiment.device
    set_seed(seed)
    train_loader, model, optimizer, scheduler = build(experiment, data.train_set)
    test_loader = dataset.batches(data.test_set, 1000)  # without gradients, larger batches are faster
    learning_rates = record_learning_rates(optimizer)
    history = []
    for epoch in range(1, experiment.epochs + 1):
        start = time.perf_counter()
        train_loss, train_accuracy = train(model, train_loader, device, experiment.loss, optimizer, scheduler)
        if experiment.update_bn:
            update_batch_norm(model, data.train_set, experiment)
        eval_loss, eval_accuracy = test(model, test_loader, device, nn.CrossEntropyLoss())
        results = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "eval_loss": eval_loss,  # of the test images, unless VALIDATION_IMAGES are held out
            "eval_accuracy": eval_accuracy,
            "seconds": time.perf_counter() - start,
            "learning_rate": float(optimizer.param_groups[0]["lr"]),
        }
        save_weights(f"{path}.pt", model)
        history.append(results)
        try:
            write_csv(f"{path}.csv", history)
        except PermissionError as error:  # a spreadsheet may hold the file; the next epoch writes all
            if epoch == experiment.epochs:
                raise
            print(f"warning: {error}: close it", file=sys.stderr)
        if not quiet:
            line = PROGRESS.format(name=experiment.name, seed=seed, epochs=experiment.epochs, **results)
            print(f"{line}\n", end="", flush=True)  # one write, so that lines of several processes stay whole
    with dataset.whole_file(f"{path}.npz") as file:
        np.savez(file, learning_rates=learning_rates, **record_of(model, experiment, data))


def set_seed(seed):
    """Make all random numbers repeatable: initial weights, order of images, dropout, augmentation."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def record_learning_rates(optimizer):
    """Return a list to which each step of an optimizer will add its learning rate."""
    learning_rates = []

    def note(optimizer, args, kwargs):  # PyTorch calls it before each step
        learning_rates.append(float(optimizer.param_groups[0]["lr"]))

    with suppress(AttributeError):  # an optimizer from elsewhere may have no hooks
        optimizer.register_step_pre_hook(note)
    return learning_rates


def update_batch_norm(model, train_set, experiment):
    """Compute the stored averages of batch norm again, if the model has any.

    Batch norm normalizes with the mean and the variance of each batch in training, and with stored
    averages in testing. After an epoch, these come from the last, augmented batches. Averages of up to
    10,000 unaugmented images fit the test images better. Dropout stays on, as in training.
    """
    batch_size = min(experiment.batch_size, 1000)  # of larger ones, 10,000 images are too few
    loader = dataset.batches(train_set.some(10_000), batch_size, drop_last=True)
    torch.optim.swa_utils.update_bn(loader, model, experiment.device)


def save_weights(path, model):
    """Write the weights of a model, on the CPU, as a file that `torch.load` reads."""
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    content = io.BytesIO()
    torch.save(weights, content)  # writing to a file itself, it hides that the disk is full
    with dataset.whole_file(path) as file:
        file.write(content.getvalue())


def write_csv(path, history):
    """Write a CSV file: the names of the columns, then a row for each dict in the history."""
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0], lineterminator="\n")
    writer.writeheader()
    for results in history:
        writer.writerow({name: f"{value:.6g}" for name, value in results.items()})
    with dataset.whole_file(path) as file:
        file.write(text.getvalue().encode())


# A run ----------------------------------------------------------------------------------------------


def run(experiments, seeds):
    """Train every experiment with every seed, then tabulate and draw. Return the exit code: 0, or 1 if a
    training or a picture failed.

    Raises UserError or OSError, with a message for the user, if a setting, a row or a file is at fault, and
    KeyboardInterrupt after Ctrl-C or SIGTERM, when the finished epochs are drawn.
    """
    code = code_of_run()  # at once: it may be edited while the images are read
    check_settings(experiments, seeds)
    train_set, test_set, about_data = dataset.load_data(DATA_DIR, TRAINING_IMAGES, VALIDATION_IMAGES)
    data = Data(train_set, test_set)
    facts = try_experiments(experiments, data, seeds[0])
    folder = start_run(code, about_data, facts, experiments, seeds)
    jobs = [(experiment, data, seed, folder) for experiment in experiments for seed in seeds]
    jobs.sort(key=lambda job: facts[job[0].name]["seconds"], reverse=True)  # no long one is left for the end
    print_opening(about_data, facts, jobs, folder)
    train_one = partial(train_and_report, facts, len(seeds), time.time())
    try:
        all_finished = run_jobs(train_one, jobs, meanwhile=partial(plot.draw_comparison, folder))
    finally:  # also after Ctrl-C; a second one must not cost the pictures
        with interrupts_held_back():
            all_drawn = plot.show_run(folder)
    answer_my_digits(experiments, folder)
    return 0 if all_finished and all_drawn else 1


# What is checked first ------------------------------------------------------------------------------


STANDARD_LIBRARY = Path(traceback.__file__).resolve().parent


def code_of_run():
    """Return {path within the project: source}, in bytes, of all modules that this process has imported from
    the project's folder.

    The first run of a process notes the sources. Raises UserError if one has been edited since: a notebook
    goes on with what it has imported.
    """
    this = Path(__file__).resolve()
    code = {this.name: this.read_bytes()}  # under a profiler, __main__ is another module
    for module in [*sys.modules.values()]:
        path = getattr(module, "__file__", None)
        if path is None or not is_own_code(path):
            continue
        name = Path(path).resolve().relative_to(dataset.PROJECT).as_posix()
        code[name] = Path(path).read_bytes()
        spec = module.__spec__  # a reload makes a new one; a script has none, and is read by each run
        if spec is not None and vars(spec).setdefault("noted_source", code[name]) != code[name]:
            raise UserError(f"{name} was edited after it was imported: restart the kernel, then run again")
    return code


def is_own_code(path):
    """Whether a path is that of a Python file in the project's folder, and not installed there."""
    path = Path(path).resolve()
    return path.is_relative_to(dataset.PROJECT) and path.is_file() and not is_installed(path)


def is_installed(path):
    """Whether a file belongs to Python or a library. All that is no .py file counts as well, such as compiled
    code."""
    path = Path(path).resolve()
    is_library = {"site-packages", ".venv"} & set(path.parts) or path.is_relative_to(STANDARD_LIBRARY)
    return bool(is_library) or path.suffix != ".py"


def check_settings(experiments, seeds):
    """Raise UserError that names a setting whose value can't be used."""
    for setting in ("BASELINE", "DATA_DIR", "DIGITS_DIR"):
        value = globals()[setting]
        if not isinstance(value, str | Path) or value == "":
            raise UserError(f"main.py: {setting} = {value!r} must be a text in quotes")
    for setting in ("WORKERS", "TRAINING_IMAGES"):
        value = globals()[setting]
        if value is not None and not is_count(value):
            raise UserError(f"main.py: {setting} = {value!r} must be None or a whole number, at least 1")
    if VALIDATION_IMAGES != 0 and not is_count(VALIDATION_IMAGES):
        raise UserError(f"main.py: {VALIDATION_IMAGES = } must be a whole number, at least 0")
    are_numbers = isinstance(seeds, list | tuple | range) and all(isinstance(seed, int) for seed in seeds)
    if not are_numbers or not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
        rule = "must be different whole numbers from 0 to 2**32 - 1, also a single one as (0,)"
        raise UserError(f"main.py: SEEDS = {seeds!r} {rule}")
    if not isinstance(experiments, list) or not experiments:
        raise UserError("main.py: EXPERIMENTS must be a list of rows, at least one: [Experiment(...)]")
    taken = set(plot.PICTURES)
    for experiment in experiments:
        check_row(experiment, taken)
        taken.add(experiment.name.casefold())


def check_row(experiment, taken):
    """Raise UserError that names a row of which no training can begin. taken: the names of others, in small
    letters."""
    if not isinstance(experiment, Experiment) or not isinstance(experiment.name, str):
        raise UserError(f"main.py: a row of EXPERIMENTS must be Experiment('name', ...), not {experiment!r}")
    row = row_of(experiment)
    for character in experiment.name:
        if character in '/\\:*?"<>|' or not character.isprintable():
            raise UserError(f"{row}: the name of a file can't contain {character!r}")
    if experiment.name.casefold() in taken:
        raise UserError(f"{row}: another row or a picture of the run has this name")
    for setting in ("epochs", "batch_size"):
        value = getattr(experiment, setting)
        if not is_count(value):
            name = f"{setting.upper()} or {setting}"
            raise UserError(f"{row}: {name} = {value!r} must be a whole number, at least 1")
    try:
        torch.empty(0, device=experiment.device)
    except Exception as error:  # PyTorch raises many kinds
        reason = str(error).partition("\n")[0]
        raise UserError(f"{row}: DEVICE or device = {experiment.device!r} can't be used: {reason}") from error


def is_count(value):
    """Whether a value is a whole number, at least 1."""
    return isinstance(value, int) and value >= 1


def row_of(experiment):
    """Return how messages name a row."""
    return f"EXPERIMENTS, row {experiment.name!r}"


# A dry run ------------------------------------------------------------------------------------------


def try_experiments(experiments, data, seed):
    """Return {name: what the dry run of the experiment has found}. Raises UserError if one can't be trained,
    after the reason was printed."""
    print("Trying each experiment on a few batches ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(experiment, data, seed, Path(folder)) for experiment in experiments]
        if not run_jobs(dry_run, jobs):
            raise UserError("nothing was trained: fix the rows named above")
        facts = {}
        for experiment in experiments:
            text = Path(folder, f"{experiment.name}.json").read_text(encoding="utf-8")
            facts[experiment.name] = json.loads(text)
    for experiment in experiments:
        for warning in facts[experiment.name]["warnings"]:
            print(f"warning: {row_of(experiment)}: {warning}", file=sys.stderr)
    return facts


def dry_run(experiment, data, seed, folder):
    """Train on four batches for two epochs, so that a mistake shows before the real work.

    What it finds is written to <name>.json, as settings.json keeps it: the `row` and its `epochs`, the
    number of `parameters`, roughly how many `seconds` a training takes, and `warnings`.
    """
    check_classes(experiment)
    few = Data(data.train_set.subset(slice(4 * experiment.batch_size)), data.test_set.subset(slice(100)))
    short = replace(experiment, epochs=2)
    if experiment.schedule is not None:
        # It is that of the whole training, since a warm-up may be longer than these eight steps.
        steps = max(8, experiment.epochs * (len(data.train_set) // experiment.batch_size))
        short = replace(short, schedule=lambda optimizer, total_steps: experiment.schedule(optimizer, steps))
    run_training(short, few, seed, folder, quiet=True)
    path = folder / f"{experiment.name}-seed{seed}"
    model, answers_again = load_model(experiment, path)
    with np.load(f"{path}.npz") as record:
        warnings = warnings_about(experiment, record, answers_again)
    seconds = plot.read_csv(Path(f"{path}.csv"))["seconds"]
    found = {
        "row": re.sub(" at 0x[0-9a-f]+", "", repr(experiment)),  # of functions
        "epochs": experiment.epochs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        # of the second epoch, since the first one includes what is done only once
        "seconds": seconds[1] * len(data.train_set) / len(few.train_set) * experiment.epochs,
        "warnings": warnings,
    }
    Path(folder, f"{experiment.name}.json").write_text(json.dumps(found), encoding="utf-8")


def check_classes(experiment):
    """Raise UserError if model or optimizer is an object instead of a class, or transform, loss or schedule
    a class instead of an object."""
    for setting in ("model", "optimizer"):
        value = getattr(experiment, setting)
        if not callable(value):
            raise UserError(f"{setting}={value!r} must be a class, without quotes")
        if isinstance(value, (nn.Module, torch.optim.Optimizer)):
            kind = type(value).__name__
            raise UserError(f"each seed needs a new {setting}: name its class, {kind}, not {kind}(...)")
    for setting in ("transform", "loss"):
        value = getattr(experiment, setting)
        if isinstance(value, type):
            kind = value.__name__
            raise UserError(f"{setting}={kind} is a class: write {setting}={kind}(...)")
    if isinstance(experiment.schedule, type):
        kind = experiment.schedule.__name__
        raise UserError(
            f"schedule={kind} lacks its settings: write a function like one_cycle that returns it"
        )


def warnings_about(experiment, record, answers_again):
    """Return warnings about a model, given the record that its training has left, and whether a new model
    with the same weights gives the same answers."""
    warnings = []
    logits = record["logits"]
    if not answers_again:
        warnings.append(
            "the same weights do not give the same answers. Either the model is random even when it is "
            "evaluated (F.dropout needs training=self.training), or some layers are in a list or dict, where "
            "PyTorch does not find them (use nn.ModuleList or nn.ModuleDict)."
        )
    elif not same_logits(logits[record["input_index"]], record["input_logits"]):
        warnings.append(
            "an image gets a different answer alone than in a batch. Batch norm needs its stored averages "
            "(track_running_stats=True), and a model must not mix the images of a batch."
        )
    if logits.min() > 0 and logits.max() < 1:
        warning = "the model returns numbers between 0 and 1, as after a softmax or sigmoid, and no logits. "
        if isinstance(experiment.loss, nn.CrossEntropyLoss):
            warning += "The loss applies a softmax itself, and the model learns better without its own."
        elif isinstance(experiment.loss, nn.NLLLoss):
            warning += "NLLLoss expects a log_softmax."
        else:
            warning += "So the loss in tables and the confidence in pictures are not what they say."
        warnings.append(warning)
    return warnings


def same_logits(logits, others):
    """Whether two sets of logits agree up to rounding, which is coarser on a GPU."""
    return np.allclose(logits, others, rtol=0, atol=0.02 * np.abs(others).max())


# Several trainings at the same time -----------------------------------------------------------------


CORES = torch.get_num_threads()  # as PyTorch counts them
FAILED = 3  # exit code of a process after an error of its own; systems use 1 and negative numbers


def run_jobs(function, jobs, meanwhile=None):
    """Call function(*job) for each job, several at the same time, each in a process of its own. With one
    worker, call it in this process, where a debugger works.

    jobs: tuples (experiment, data, seed, folder). What a function has found, it writes into the folder.
    meanwhile: a function that this process calls now and then while it waits for the others.

    If one fails, the others go on. Return whether all ended well. Raises KeyboardInterrupt after Ctrl-C or
    SIGTERM, when no process is left.
    """
    workers = choose_workers([experiment for experiment, *_ in jobs])
    if workers == 1:
        torch.set_num_threads(1)  # models this small gain nothing from more, which would change the rounding
        try:
            return all([run_job(function, *job) for job in jobs])
        finally:
            torch.set_num_threads(CORES)
    # A fork starts at once, with everything loaded, but only on Linux is it safe with PyTorch. Elsewhere, a
    # new interpreter imports everything again and gets a copy of the rest.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    if sys.platform != "linux":
        check_can_be_copied(jobs)
    try:
        numbers = context.SimpleQueue()
    except OSError as error:  # without a usable /dev/shm
        raise UserError(f"processes can't share a queue here: set WORKERS = 1 ({error})") from error
    processes = [context.Process(target=work, args=(numbers, function, jobs)) for _ in range(workers)]
    with interrupts_held_back(processes) as interrupts:
        try:
            for process in processes:
                process.start()
            for number in [*range(len(jobs)), *[None] * workers]:
                numbers.put(number)
            wait_for(processes, interrupts, meanwhile)
        finally:
            for process in kill_started(processes):
                process.join()
    exit_codes = [process.exitcode for process in processes]
    if any(exit_code not in (0, FAILED) for exit_code in exit_codes):
        reason = "a process ended unexpectedly, perhaps because memory ran out: try WORKERS = 1"
        print(f"error: {reason}", file=sys.stderr)
    return not any(exit_codes)


def wait_for(processes, interrupts, meanwhile):
    """Wait until all processes have ended, or a request to end comes. Call a function every 30 seconds, or
    less often if it would take more than 2% of the time."""
    next_call = time.monotonic() + 30
    while any(process.is_alive() for process in processes) and not interrupts:
        time.sleep(0.05)
        start = time.monotonic()
        if meanwhile is not None and start > next_call:
            meanwhile()
            next_call = start + max(30, 50 * (time.monotonic() - start))


def choose_workers(experiments):
    """Return how many trainings run at the same time. experiments: a list with one for each training."""
    if any(str(experiment.device) != "cpu" for experiment in experiments):
        return 1  # several would share the GPU
    return min(CORES if WORKERS is None else WORKERS, len(experiments))


def check_can_be_copied(jobs):
    """Raise UserError if a row can't be sent to another process."""
    for experiment, *_ in jobs:
        try:
            pickle.dumps(experiment)
        except Exception as error:  # pickle raises many kinds
            raise UserError(
                f"{row_of(experiment)}: it can't be copied to another process. Use functions made with def, "
                "not lambda, or set WORKERS = 1"
            ) from error


def work(numbers, function, jobs):
    """Do the jobs whose numbers come from a queue, in a process of its own, until None comes. The exit code
    is FAILED if one has failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    plot.prepare_output()
    all_ended_well = True
    while (number := numbers.get()) is not None:
        if not run_job(function, *jobs[number]):
            all_ended_well = False
    sys.exit(0 if all_ended_well else FAILED)


def end_with_parent():
    """Wait until the parent process has ended, even if it was killed, then end this one."""
    multiprocessing.parent_process().join()
    signal.raise_signal(signal.SIGTERM)


def run_job(function, experiment, data, seed, folder):
    """Do one job. Print the error if it fails, and return whether it ended well. Each job gets its own copy
    of the experiment: a loss or a transform may have a state."""
    try:
        function(copy.deepcopy(experiment), data, seed, folder)
        return True
    except (Exception, SystemExit) as error:  # a user's own model may raise anything
        print_error(error, f"{row_of(experiment)}, seed {seed}")
        return False


def print_error(error, place=None):
    """Print an error on standard error: as one line, if its message was written for the person at the shell.
    A mistake in one's own code is printed as Python does it, but only with the lines of one's own files.

    place: what to name at the end, such as a row.
    """
    if isinstance(error, (OSError, UserError)):
        text = " ".join(str(error).split())
        lines = f"error: {place}: {text}" if place else f"error: {text}"
    else:
        lines = own_traceback(error)
        if place:
            lines += f"error: {place}: {type(error).__name__}, see above"
    print(lines, file=sys.stderr, flush=True)


def own_traceback(error):
    """Return the traceback of an error and of those that caused it, without the lines of installed code."""
    whole = traceback.TracebackException.from_exception(error)
    part = whole
    while part is not None:
        part.stack[:] = [frame for frame in part.stack if not is_installed(frame.filename)]
        part = part.__cause__ or part.__context__
    return "".join(whole.format())


@contextmanager
def interrupts_held_back(processes=()):
    """Let the block end before Ctrl-C or SIGTERM, a request to end, raises KeyboardInterrupt. Provide a list
    that holds what has come. Kill some processes at once, whatever the block is doing."""
    received = []
    handlers = {}

    def note(number, frame):
        received.append(number)
        kill_started(processes)

    in_main_thread = threading.current_thread() is threading.main_thread()  # only there, Python allows it
    for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread else ():
        handlers[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def kill_started(processes):
    """Kill those of some processes that have started, and return them."""
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.kill()
    return started


# The folder of a run --------------------------------------------------------------------------------


def start_run(code, about_data, facts, experiments, seeds):
    """Make the folder of a run, named by the next number. Write settings.json and copies of the code into it.
    Print which run it is compared with, and what was edited since. Return its path."""
    settings = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        **about_data,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "seeds": sorted(seeds),
        "workers": choose_workers(experiments * len(seeds)),
        "baseline": BASELINE,
        "experiments": facts,
    }
    plot.RESULTS.mkdir(exist_ok=True)
    numbers = [int(path.name) for path in plot.RESULTS.iterdir() if path.name.isdecimal()]
    folder = plot.RESULTS / str(max(numbers, default=0) + 1)
    folder.mkdir()
    for name, source in code.items():
        path = folder / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source)
    settings["compared_with"], settings["edit"] = plot.choose_run_before(folder, settings)
    (folder / "settings.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    print(*settings["edit"], "", sep="\n")
    return folder


def print_opening(about_data, facts, jobs, folder):
    """Print what is trained, how long it takes, and the headings of the progress lines."""
    workers = choose_workers([experiment for experiment, *_ in jobs])
    seconds = [facts[experiment.name]["seconds"] for experiment, *_ in jobs]
    # at least the longest training, and at least all the work divided among the workers
    duration = duration_text(max(max(seconds), sum(seconds) / workers))
    parameters = [f"{name} {found['parameters']:,}" for name, found in facts.items()]
    print(about_data["description"])
    print(f"Parameters: {'; '.join(parameters)}")
    print(f"Trainings: {len(jobs)}, {workers} at a time, about {duration}")
    print(f"The results go to {folder}\n")
    print(HEADINGS.format(kind=about_data["kind"]), flush=True)


def train_and_report(facts, seed_count, start, experiment, data, seed, folder):
    """Do one training of a run. Then print how many have finished, and how long the others will take: in
    proportion to the seconds that the dry runs have found. start: when the first one began."""
    run_training(experiment, data, seed, folder)
    finished = len(list(folder.glob("*.npz")))
    total = len(facts) * seed_count
    done = 0  # seconds, also of trainings that have not finished
    with suppress(OSError):  # a CSV may be held by another program
        for path in folder.glob("*.csv"):
            found = facts[path.stem.rpartition("-seed")[0]]
            done += found["seconds"] * len(plot.read_csv(path)["epoch"]) / found["epochs"]
    left = sum(found["seconds"] for found in facts.values()) * seed_count - done
    line = f"{experiment.name}, seed {seed} has finished: {finished} of {total}"
    if finished < total and done > 0:
        line += f", about {duration_text((time.time() - start) * left / done)} left"
    print(f"{line}\n", end="", flush=True)


def duration_text(seconds):
    """Return a duration as text, in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


# What tables and pictures show of a training --------------------------------------------------------


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


def record_of(model, experiment, data):
    """Return a dict for np.savez, what tables and pictures show of a trained model:

    * its accuracy on up to 10,000 training images, as they are
    * logits (N, 10), labels (N,) and mistakes, uint8 (M, 28, 28), of the test images
    * the outputs of its layers for that one of the first hundred of which it is least certain
    * what the transform makes of some training images
    """
    device = experiment.device
    loader = dataset.batches(data.train_set.some(10_000), 1000)
    _, train_accuracy = test(model, loader, device, nn.CrossEntropyLoss())
    images, labels = data.test_set.images, data.test_set.labels
    logits = predict(model, images, device)
    least_sure = logits[:100].softmax(dim=1).amax(dim=1).argmin()
    record = {
        "train_accuracy": train_accuracy,
        "logits": logits,
        "labels": labels,
        "mistakes": images[logits.argmax(dim=1) != labels],
        "input_index": least_sure,
    }
    record |= layer_outputs(model, images[least_sure], device)
    record |= samples(experiment, data.train_set)
    return record


def layer_outputs(model, image, device):
    """Return a dict for np.savez: one digit, uint8 (28, 28), as `input`, its logits, and the name, kind,
    number of parameters and output of each layer, in the order of use. If the first layer with weights sees
    the pixels, `filters` has its weights as images. Containers such as nn.Sequential do not count."""
    used = []

    def note_output(module, inputs, output):  # PyTorch calls it after each module
        if isinstance(output, tuple):
            output = output[0]  # of an LSTM, the rest is its state
        if isinstance(output, torch.Tensor) and output.dim() > 0:
            used.append((module, output[0].float().cpu().clone()))  # the next layer may work in place

    model = getattr(model, "_orig_mod", model)  # a compiled model hides its layers
    with nn.modules.module.register_module_forward_hook(note_output):
        logits = predict(model, image[None], device)
    record = {"input": image, "input_logits": logits[0]}
    module_names = {module: name for name, module in model.named_modules()}
    record |= {"layer_names": [], "layer_kinds": [], "layer_parameters": []}
    counted = set()  # a layer that is used twice counts its parameters once
    for module, output in used:
        own_parameters = list(module.parameters(recurse=False))
        is_container = list(module.children()) and not own_parameters
        if is_container or isinstance(module, nn.Identity):  # which stands for a layer that is left out
            continue
        if own_parameters and not any(record["layer_parameters"]):  # the first layer with weights
            if isinstance(module, nn.Conv2d):
                record["filters"] = module.weight[:, 0].detach().float().cpu()
            if isinstance(module, nn.Linear) and module.in_features == 784:
                record["filters"] = module.weight.detach().view(-1, 28, 28).float().cpu()
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
    eight = train_set.subset(slice(8)).to(experiment.device)
    eight.transform = experiment.transform
    record = {"originals": eight.images.cpu()}
    if experiment.transform is not None:
        versions = [dataset.denormalize(eight[:][0]).cpu() for _ in range(4)]
        record["versions"] = torch.stack(versions)
    return record


# Asking trained models ------------------------------------------------------------------------------


def load_model(experiment, path):
    """Return a new model with the weights that a training has left, on the CPU, and whether it still gives
    the stored digit its stored logits.

    path: that of the files of a training, without the ending.
    """
    model = experiment.model(**experiment.options)
    model.load_state_dict(torch.load(f"{path}.pt", weights_only=True))
    with np.load(f"{path}.npz") as record:
        logits = predict(model, torch.from_numpy(record["input"])[None], "cpu")[0]
        return model, same_logits(logits.numpy(), record["input_logits"])


def ask(pictures, experiments, folder, drawing):
    """Print and draw which digit each model of a run sees in pictures, with the weights of the first
    finished seed. Return whether all pictures could be read and all models have answered.

    pictures: paths. folder: that of the run. drawing: the path of the PNG to draw.
    """
    digits = dataset.read_digits(pictures)
    if not digits:
        print("error: there is no picture to ask about", file=sys.stderr)
        return False
    trained = plot.read_run(folder)
    records = trained.records
    logits = {}
    for experiment in experiments:
        name = experiment.name
        try:
            if name not in records:
                raise UserError("it has no finished training in this run")
            seed = next(iter(records[name]))
            model, answers_again = load_model(experiment, folder / f"{name}-seed{seed}")
            if not answers_again:
                raise UserError("the same weights give other answers")
            logits[name] = predict(model, digits["images"], "cpu").numpy()
        except Exception as error:  # a user's own model may raise anything
            reason = " ".join(str(error).split())[:300]
            advice = f"Has its code or its row changed since? That of the run is in {folder / 'code'}"
            print(f"error: {row_of(experiment)} can't answer: {reason}. {advice}", file=sys.stderr)
    if not logits:
        return False
    print("", *plot.digit_table(digits, logits), sep="\n")
    drawn = plot.draw(drawing, plot.plot_digits, digits, logits)
    print(f"\nThe models are those of {folder}: {trained.description}. {drawing} shows what they saw.")
    return drawn and len(logits) == len(experiments) and len(digits["names"]) == len(pictures)


def answer_my_digits(experiments, folder):
    """Ask the models of a run about the pictures in DIGITS_DIR, if there are any."""
    pictures = dataset.pictures_in(dataset.in_project(DIGITS_DIR))
    if pictures:
        ask(pictures, experiments, folder, folder / "my_digits.png")


def newest_run():
    """Return the folder of the newest run that has finished a training. Raises UserError if there is none."""
    for folder in plot.run_folders(plot.RESULTS):
        if any(folder.glob("*.npz")):
            return folder
    raise UserError(f"no training in {plot.RESULTS} has finished: first run main.py")


# The command line -----------------------------------------------------------------------------------


def main(arguments):
    """Run what is asked for on the command line. Return the exit code: that of `run`, 1 if a picture or a
    model was left out, 2 after an error message, 130 if interrupted."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("pictures", nargs="*", help="of one digit each, or folders of them")
    parser.add_argument("--run", metavar="NUMBER", help="ask the models of this run instead")
    chosen = parser.parse_args(arguments)
    try:
        if not chosen.pictures:
            if chosen.run:
                parser.error("--run needs a picture")
            return run(EXPERIMENTS, SEEDS)
        folder = plot.find_run(chosen.run) if chosen.run else newest_run()
        pictures = []
        for path in map(Path, chosen.pictures):
            pictures += dataset.pictures_in(path) if path.is_dir() else [path]
        return 0 if ask(pictures, EXPERIMENTS, folder, plot.RESULTS / "my_digits.png") else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        print_error(error)
        return 2


if __name__ == "__main__":
    plot.prepare_output()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # treat it like Ctrl-C
    sys.exit(main(sys.argv[1:]))
