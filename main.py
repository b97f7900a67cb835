"""Train LeNet-5, an MLP of the same size and a regularized LeNet-5 on MNIST and compare them.

    python main.py

Change the constants below and run it again: every run has a folder of its own in results/.
"""

import json
import multiprocessing.connection
import os
import platform
import statistics
import sys
import time
from datetime import datetime
from pathlib import Path

import torch
import torch.multiprocessing
import torchvision
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

import dataset
import plot
from model import CustomMLP, LeNet5, RegularizedLeNet5

EPOCHS = 10  # passes over the training images; 1 for a first look, 10 to 30 for good figures
BATCH_SIZE = 32  # images per step; 16 to 256, a larger one wants a larger learning rate
MOMENTUM = 0.9  # share of the last step that is added to the next; 0 to 0.99
SEEDS = (0,)  # each experiment is trained once per seed; (0, 1, 2) shows how much is chance
DEVICE = "cpu"  # "cpu", "cuda" (NVIDIA) or "mps" (Apple); only "cpu" repeats a run to the last digit
WORKERS = None  # trainings at a time, each on a core of its own; None: one per core, on a GPU 1
DATA_DIR = "data"  # folder of train.tar and test.tar; MNIST is downloaded to it if there are none
RESULTS_DIR = "results"  # folder in which each run makes a new one

# A line for each model to train. Its name appears in plots and file names.
#   model          one of the classes in model.py, called with options
#   learning_rate  the highest of the schedule; 0.01 to 0.1; the loss explodes if it is too high
#   weight_decay   pulls the weights towards 0 in each step; 0 (off) to 0.001
EXPERIMENTS = {
    "LeNet5": dict(model=LeNet5, options={}, learning_rate=0.02, weight_decay=0),
    "CustomMLP": dict(model=CustomMLP, options={}, learning_rate=0.01, weight_decay=0),
    "RegularizedLeNet5": dict(model=RegularizedLeNet5, options={"dropout": 0.3}, learning_rate=0.05, weight_decay=0.0002),
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


def batches(image_set, sampler, batch_size):
    """Return a loader that asks the Dataset for a whole batch of indices at once."""
    return DataLoader(image_set, batch_size=None, sampler=BatchSampler(sampler, batch_size, drop_last=False))


def build(name, steps):
    """Return the model of an experiment, its optimizer and its learning rate schedule for a
    training of so many steps."""
    experiment = EXPERIMENTS[name]
    model = experiment["model"](**experiment["options"])
    # The order of the numbers in memory that convolutions are fastest with.
    model = model.to(DEVICE, memory_format=torch.channels_last)
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
    and at the end the trained weights as <name>-seed<seed>.pt.
    """
    train_set.to(DEVICE)
    test_set.to(DEVICE)
    train_loader = batches(train_set, RandomSampler(train_set), BATCH_SIZE)
    # No gradients to keep, so larger batches fit, and are faster.
    test_loader = batches(test_set, SequentialSampler(test_set), 1000)
    # Decides the initial weights, the order of the images and what dropout sets to zero.
    torch.manual_seed(seed)
    model, optimizer, scheduler = build(name, EPOCHS * len(train_loader))

    path = Path(folder) / f"{name}-seed{seed}"
    with open(f"{path}.csv", "x", buffering=1) as file:
        file.write(",".join(plot.COLUMNS) + "\n")
        for epoch in range(1, EPOCHS + 1):
            start = time.perf_counter()
            train_loss, train_accuracy = train(model, train_loader, optimizer, scheduler)
            val_loss, val_accuracy = test(model, test_loader)
            seconds = time.perf_counter() - start
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
    torch.save(model.state_dict(), f"{path}.pt")


def run_trainings(trainings, workers, train_set, test_set, folder):
    """Run all trainings, (name, seed) each, and return those whose process has died.

    With one worker they run here, one after the other; with more, each in a process of its
    own, at most `workers` at a time, the longest first, so that no long one is left for the
    end. The images are shared with the processes, not copied, and nothing has to come back:
    each training writes its own files.
    """
    if workers == 1:
        for name, seed in trainings:
            run_training(name, seed, train_set, test_set, folder)
        return []

    seconds = {name: seconds_per_step(name, train_set) for name in EXPERIMENTS}
    waiting = sorted(trainings, key=lambda training: -seconds[training[0]])
    running, died = {}, []
    while waiting or running:
        while waiting and len(running) < workers:
            training = waiting.pop(0)
            # A fresh interpreter ("spawn"): a fork of one that has used torch may hang.
            process = torch.multiprocessing.get_context("spawn").Process(
                target=run_in_process, args=(constants(), *training, train_set, test_set, folder), daemon=True
            )
            process.start()
            running[process.sentinel] = process, training
        for sentinel in multiprocessing.connection.wait(running):
            process, training = running.pop(sentinel)
            process.join()
            if process.exitcode != 0:
                died.append(training)
    return died


def run_in_process(parents_constants, name, seed, train_set, test_set, folder):
    """Run one training in a process that has just imported this module anew: first take over
    the constants of the parent, which may differ from those above."""
    globals().update(parents_constants)
    torch.set_num_threads(1)
    run_training(name, seed, train_set, test_set, folder)


def seconds_per_step(name, train_set):
    """Return roughly how long the model of an experiment takes to learn from one batch."""
    model, _, _ = build(name, steps=5)
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
    (folder / "settings.json").write_text(text + "\n", encoding="utf-8")


def write_summary(folder, data):
    """Write the figures of the last epoch as a table into summary.md. Return its text."""
    table = [
        (
            "experiment",
            "parameters",
            "training loss",
            "training accuracy",
            "validation loss",
            "validation accuracy",
            "seconds",
        )
    ]
    for name, seeds in plot.read_run(folder).items():
        model, _, _ = build(name, steps=1)
        last = {column: [stats[column][-1] for stats in seeds.values()] for column in plot.COLUMNS}
        table.append(
            (
                name,
                f"{sum(parameter.numel() for parameter in model.parameters()):,}",
                mean_and_deviation(last["train_loss"], ".4f"),
                mean_and_deviation(last["train_accuracy"], ".2%"),
                mean_and_deviation(last["val_loss"], ".4f"),
                mean_and_deviation(last["val_accuracy"], ".2%"),
                mean_and_deviation([stats["seconds"].sum() for stats in seeds.values()], ".0f"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*table)]
    table.insert(1, ["-" * width for width in widths])
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in table]
    seeds = "1 seed" if len(SEEDS) == 1 else f"mean ± standard deviation of {len(SEEDS)} seeds"
    text = "\n".join([f"{data['description']}, epoch {EPOCHS} of {EPOCHS}, {seeds}", "", *lines, ""])
    (folder / "summary.md").write_text(text, encoding="utf-8")
    return text


def mean_and_deviation(values, form):
    """Return the mean in this format, with "± standard deviation" where there are several values."""
    deviation = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


def main():
    """Train every experiment with every seed, write and plot the results. Return the exit code."""
    # These models are so small that threads wait for each other longer than they compute,
    # and the order in which several add up changes the last digits.
    torch.set_num_threads(1)
    try:
        data_dir = dataset.find_data(DATA_DIR)
        train_set = dataset.MNIST(data_dir / "train.tar")
        test_set = dataset.MNIST(data_dir / "test.tar")
        folder = new_folder()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    source = "the shipped sample" if data_dir == dataset.SAMPLE_DIR else f"{Path(DATA_DIR)}/"
    data = {
        "description": f"{len(train_set):,} training and {len(test_set):,} test images from {source}",
        "folder": str(data_dir.resolve()),
        "train_images": len(train_set),
        "test_images": len(test_set),
    }
    write_settings(folder, data)

    trainings = [(name, seed) for name in EXPERIMENTS for seed in SEEDS]
    workers = WORKERS or (available_cores() if DEVICE == "cpu" else 1)
    print(f"{data['description']}, results in {folder}")
    print(
        f"trainings: {len(trainings)} ({len(EXPERIMENTS)} experiments x {len(SEEDS)} seeds), "
        f"up to {workers} at a time, epochs each: {EPOCHS}",
        flush=True,
    )
    died = run_trainings(trainings, workers, train_set, test_set, folder)
    for name, seed in died:
        print(f"error: the process of {name}, seed {seed}, has died", file=sys.stderr)

    print(f"\n{write_summary(folder, data)}")
    print(*plot.save_plots(folder), sep="\n")
    return 1 if died else 0


if __name__ == "__main__":
    sys.exit(main())
