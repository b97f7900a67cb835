"""What does each regularization bring? Train LeNet5 with each alone, with several, and with all.

    python report/study.py              train all rows with ten seeds, then print the tables of the report
    python report/study.py results/7    print the tables of a run that has finished

A run like any other, with these rows in place of those in main.py. Takes 75 minutes on two cores.
"""

import sys
from dataclasses import replace
from pathlib import Path

from torch import nn

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import main
import plot
from dataset import Augmentation
from main import AUGMENTATION, Experiment
from model import CustomMLP, LeNet5, RegularizedLeNet5

SEEDS = range(10)


class LeNet1998(LeNet5):
    """LeNet5 with the activation and the pooling of 1998, though without trainable weights in the latter."""

    def __init__(self):
        super().__init__()
        self.activation = nn.Tanh()
        self.pool = nn.AvgPool2d(2)


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
    Experiment("tanh, average pooling", LeNet1998, 0.02),
]

GAIN = ["gain ± error", "gain / error", "helps"]

# All rows are compared with LeNet5. These are compared with another row, too.
FURTHER = [
    ("batch norm, dropout", "+ batch norm"),
    ("the same, 30 epochs", "RegularizedLeNet5"),
    ("CustomMLP, augmented", "CustomMLP"),
]


def study_tables(folder):
    """Return the lines of two tables: what each row reached and gained over LeNet5, and FURTHER. Raises
    OSError that names a row that has not finished."""
    run = plot.read_run(folder)
    table = [["row", "training accuracy", "test loss", "test accuracy", *GAIN]]
    for experiment in EXPERIMENTS:
        name = experiment.name
        if len(run.records.get(name, {})) < len(SEEDS):
            raise OSError(f"{name} has not finished in {folder}")
        cells = [plot.cell(run.records[name], "train_accuracy")]
        cells += [plot.cell(run.stats[name], column) for column in ("eval_loss", "eval_accuracy")]
        table.append([name, *cells, *gain(run, "LeNet5", name)])
    further = [["row", "compared with", *GAIN]]
    for name, other in FURTHER:
        further.append([name, other, *gain(run, other, name)])
    return [*plot.markdown(table), "", *plot.markdown(further)]


def gain(run, before, after):
    """Return the cells under GAIN: the difference in test accuracy between two rows, in percentage points,
    with its standard error, from the choice of test images and seeds. A row helps from three errors on."""
    if before == after:
        return ["", "", ""]
    text = plot.change_text((run, before), (run, after), "eval_accuracy").partition(",")[0]
    change, error = plot.mean_change(run.records[before], run.records[after], "eval_accuracy")
    return [text, f"{change / error:+.1f}", "yes" if change > 3 * error else "no"]


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
