"""What does each regularization bring? Train LeNet5 with each alone, with several, and with all.

    python report/study.py              train all rows with ten seeds, then print the tables of the report
    python report/study.py results/7    print the tables of a run that has finished

A run like any other, with these rows in place of those in main.py. Takes 75 minutes on two cores.
"""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import main
import plot
from dataset import Augmentation
from main import AUGMENTATION, Experiment
from model import CustomMLP, LeNet5, RegularizedLeNet5

SEEDS = range(10)
T_QUANTILE = 2.26  # of ten seeds: a row "helps" if its gain exceeds so many errors, one in 40 by chance


class LeNet1998(LeNet5):
    """LeNet5 with the activation and the pooling of 1998, though without trainable weights in the latter."""

    def __init__(self):
        super().__init__()
        self.activation = nn.Tanh()
        self.pool = nn.AvgPool2d(2)


# Each technique has the strength that it has in RegularizedLeNet5. Rows with batch norm have a peak
# learning rate of 0.05, the best on held-out images; without it, 0.02.
WEIGHT_DECAY = {"weight_decay": 2e-4}
MOVED = Augmentation(rotation=8, shift=1.4, scaling=0.1)
DISTORTED = Augmentation(elastic=0.4)
ALL = Experiment(
    "RegularizedLeNet5", RegularizedLeNet5, 0.05, transform=AUGMENTATION, optimizer_options=WEIGHT_DECAY
)
EXPERIMENTS = [
    Experiment("LeNet5", LeNet5, 0.02),
    Experiment("+ batch norm", RegularizedLeNet5, 0.05, options={"dropout": 0}),
    Experiment("+ dropout", RegularizedLeNet5, 0.02, options={"batch_norm": False}),
    Experiment("+ weight decay", LeNet5, 0.02, optimizer_options=WEIGHT_DECAY),
    Experiment("+ rotation and so on", LeNet5, 0.02, transform=MOVED),
    Experiment("+ elastic distortion", LeNet5, 0.02, transform=DISTORTED),
    Experiment("batch norm, dropout", RegularizedLeNet5, 0.05),
    ALL,
    replace(ALL, name="the same, 30 epochs", epochs=30),
    Experiment("CustomMLP", CustomMLP, 0.01),
    Experiment("CustomMLP, augmented", CustomMLP, 0.01, transform=AUGMENTATION),
    Experiment("tanh, average pooling", LeNet1998, 0.02),
]

GAIN = ["gain ± SE", "gain / SE", "helps"]

# All rows are compared with LeNet5. These are compared with another row, too.
FURTHER = [
    ("batch norm, dropout", "+ batch norm"),
    ("the same, 30 epochs", "RegularizedLeNet5"),
    ("CustomMLP, augmented", "CustomMLP"),
]


def last_epochs(folder, experiment):
    """Return the figures of the last epoch of an experiment, {column of the CSV: array of a value per seed}.
    Raises ValueError if a training has not finished."""
    figures = []
    for seed in SEEDS:
        path = folder / f"{experiment.name}-seed{seed}.csv"
        with open(path, newline="", encoding="utf-8") as file:
            *_, last = csv.DictReader(file)
        if int(last["epoch"]) < experiment.epochs:
            raise ValueError(f"{path} ends after {last['epoch']} of {experiment.epochs} epochs")
        figures.append(last)
    return {column: np.array([float(last[column]) for last in figures]) for column in figures[0]}


def study_tables(folder):
    """Return the lines of two tables: what each row reached and gained over LeNet5, and FURTHER."""
    reached = {experiment.name: last_epochs(folder, experiment) for experiment in EXPERIMENTS}
    table = [["row", "training accuracy", "test loss", "test accuracy", *GAIN]]
    for name, figures in reached.items():
        cells = [
            name,
            mean_and_deviation(100 * figures["train_accuracy"], ".2f") + "%",
            mean_and_deviation(figures["val_loss"], ".4f"),
            mean_and_deviation(100 * figures["val_accuracy"], ".2f") + "%",
        ]
        table.append(cells + gain(figures, reached["LeNet5"]))
    further = [["row", "compared with", *GAIN]]
    for name, other in FURTHER:
        further.append([name, other, *gain(reached[name], reached[other])])
    return [*plot.markdown(table), "", *plot.markdown(further)]


def mean_and_deviation(values, form):
    """Return the mean and the standard deviation of the seeds as a cell of a table."""
    return f"{values.mean():{form}} ± {values.std(ddof=1):{form}}"


def gain(figures, other_figures):
    """Return the cells under GAIN: what an experiment gains in test accuracy over another one, in percentage
    points, with the standard error (SE) of the mean of the differences, seed by seed."""
    if figures is other_figures:
        return ["", "", ""]
    differences = 100 * (figures["val_accuracy"] - other_figures["val_accuracy"])
    mean = differences.mean()
    error = differences.std(ddof=1) / len(SEEDS) ** 0.5
    helps = "yes" if mean > T_QUANTILE * error else "no"
    return [f"{mean:+.2f} ± {error:.2f}", f"{mean / error:+.1f}", helps]


def run():
    """Train all rows and print the tables. Return the exit code."""
    main.EXPERIMENTS = EXPERIMENTS
    main.SEEDS = SEEDS
    exit_code = main.main()
    if exit_code == 0:
        folder = plot.run_folders(main.in_project(main.RESULTS_DIR))[0]
        print("", *study_tables(folder), sep="\n")
    return exit_code


if __name__ == "__main__":
    try:
        if len(sys.argv) == 1:
            sys.exit(run())
        print("\n".join(study_tables(Path(sys.argv[1]))))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
