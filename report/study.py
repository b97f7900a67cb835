"""What does each regularization bring? Train LeNet5 with each alone, with several, and with all.

    python report/study.py              train all rows with five seeds, then print the tables of the report
    python report/study.py results/7    print the tables of a run that has finished

A run like any other, with these rows in place of those in main.py. Takes 84 minutes on two cores.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import main
import plot
from dataset import Augmentation
from main import AUGMENTATION, Experiment
from model import CustomMLP, LeNet5, RegularizedLeNet5

SEEDS = range(5)


class LeNet1998(LeNet5):
    """LeNet5 with the activation and the pooling of 1998, though without trainable weights in the latter."""

    def __init__(self):
        super().__init__()
        self.activation = nn.Tanh()
        self.pool = nn.AvgPool2d(2)


class ShuffledLeNet5(LeNet5):
    """LeNet5 whose images all have their pixels in the same random order: no pixel is lost, but neighbours
    are."""

    def __init__(self):
        super().__init__()
        order = torch.randperm(28 * 28, generator=torch.Generator().manual_seed(0))
        self.register_buffer("order", order)

    def forward(self, images):
        return super().forward(images.flatten(1)[:, self.order].view_as(images))


class OneHiddenLayer(nn.Sequential):
    """The plainest MLP with as many parameters as LeNet5: (784 + 1) x 78 + (78 + 1) x 10 = 62,020."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 78), nn.ReLU(), nn.Linear(78, 10))


# Each technique has the strength that it has in RegularizedLeNet5. Rows with batch norm have a peak
# learning rate of 0.05, the best on held-out images, but for one; without it, 0.02.
WEIGHT_DECAY = {"weight_decay": 2e-4}
MOVED = Augmentation(rotation=8, shift=1.4, scaling=0.1)
DISTORTED = Augmentation(elastic=0.4)
BATCH_NORM = Experiment("+ batch norm", RegularizedLeNet5, 0.05, options={"dropout": 0}, update_bn=True)
ALL = Experiment(
    "RegularizedLeNet5",
    RegularizedLeNet5,
    0.05,
    transform=AUGMENTATION,
    optimizer_options=WEIGHT_DECAY,
    update_bn=True,
)
EXPERIMENTS = [
    Experiment("LeNet5", LeNet5, 0.02),
    Experiment("constant rate", LeNet5, 0.005, schedule=None),
    BATCH_NORM,
    replace(BATCH_NORM, name="+ batch norm, rate 0.02", learning_rate=0.02),
    Experiment("+ dropout", RegularizedLeNet5, 0.02, options={"batch_norm": False}),
    Experiment("+ weight decay", LeNet5, 0.02, optimizer_options=WEIGHT_DECAY),
    Experiment("+ rotation and so on", LeNet5, 0.02, transform=MOVED),
    Experiment("+ elastic distortion", LeNet5, 0.02, transform=DISTORTED),
    replace(BATCH_NORM, name="batch norm, dropout", options={}),
    ALL,
    replace(ALL, name="the same, 30 epochs", epochs=30),
    Experiment("CustomMLP", CustomMLP, 0.01),
    Experiment("CustomMLP, augmented", CustomMLP, 0.01, transform=AUGMENTATION),
    Experiment("one hidden layer", OneHiddenLayer, 0.02),
    Experiment("LeNet5, shuffled pixels", ShuffledLeNet5, 0.02),
    Experiment("tanh, average pooling", LeNet1998, 0.05),
]

# All rows are compared with LeNet5. These are compared with another row, too.
FURTHER = [
    ("+ batch norm", "+ batch norm, rate 0.02"),
    ("batch norm, dropout", "+ batch norm"),
    ("the same, 30 epochs", "RegularizedLeNet5"),
    ("CustomMLP, augmented", "CustomMLP"),
    ("one hidden layer", "CustomMLP"),
    ("LeNet5, shuffled pixels", "CustomMLP"),
]

COMPARISON = ["accuracy ± error", "errors", "loss ± error", "errors"]


def study_tables(folder):
    """Return the lines of two tables: what each row reached and changed against LeNet5, and FURTHER. Raises
    OSError that names a row that has not finished."""
    run = plot.read_run(folder)
    table = [["row", "training accuracy", "test accuracy", "test loss", *COMPARISON]]
    for experiment in EXPERIMENTS:
        name = experiment.name
        if len(run.records.get(name, {})) < len(SEEDS):
            raise OSError(f"{name} has not finished in {folder}")
        cells = [plot.cell(run.records[name], "train_accuracy")]
        cells += [plot.cell(run.stats[name], column) for column in ("eval_accuracy", "eval_loss")]
        table.append([name, *cells, *comparison(run, "LeNet5", name)])
    further = [["row", "compared with", *COMPARISON]]
    for name, other in FURTHER:
        further.append([name, other, *comparison(run, other, name)])
    return [*plot.markdown(table), "", *plot.markdown(further)]


def comparison(run, before, after):
    """Return the cells under COMPARISON: the changes of test accuracy, in percentage points, and of test loss
    from one row to another, with their standard errors from the choice of test images and seeds, and how
    many of these errors the changes are."""
    if before == after:
        return [""] * len(COMPARISON)
    cells = []
    for column in ("eval_accuracy", "eval_loss"):
        change, error = plot.mean_change(run.records[before], run.records[after], column)
        form = plot.form_of(column)
        cells += [f"{change:+{form}} ± {error:{form}}", f"{change / error:+.1f}"]
    return cells


def run():
    """Train all rows and print the tables. Return the exit code."""
    exit_code = main.run(EXPERIMENTS, SEEDS)
    if exit_code == 0:
        print("", *study_tables(plot.run_folders(plot.RESULTS)[0]), sep="\n")
    return exit_code


if __name__ == "__main__":
    plot.prepare_output()
    try:
        if len(sys.argv) == 1:
            sys.exit(run())
        print("\n".join(study_tables(Path(sys.argv[1]))))
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
