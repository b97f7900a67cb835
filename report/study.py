"""What does each regularization bring? Train LeNet5 with each alone, with several, and with all.

    python report/study.py        started in the project's folder

A run like any other, with these rows in place of those in main.py: it prints the table, and its folder
in results/ has the curves. Takes three quarters of an hour on two cores.
"""

import sys
from dataclasses import replace
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import main
from dataset import Augmentation
from main import AUGMENTATION, Experiment
from model import CustomMLP, LeNet5, RegularizedLeNet5


class LeNet1998(LeNet5):
    """LeNet5 with the activation and the pooling of 1998, though without trainable weights in the latter."""

    def __init__(self):
        super().__init__()
        self.activation = nn.Tanh()
        self.pool = nn.AvgPool2d(2)


# Each technique has the strength that it has in RegularizedLeNet5. Rows with batch norm have a peak
# learning rate of 0.05, the best on held-out images; without it, 0.02.
WEIGHT_DECAY = {"weight_decay": 2e-4}
ALL = Experiment(RegularizedLeNet5, 0.05, transform=AUGMENTATION, optimizer_options=WEIGHT_DECAY)
ROWS = {
    "LeNet5": Experiment(LeNet5, 0.02),
    "+ batch norm": Experiment(RegularizedLeNet5, 0.05, options={"dropout": 0}),
    "+ dropout": Experiment(RegularizedLeNet5, 0.02, options={"batch_norm": False}),
    "+ weight decay": Experiment(LeNet5, 0.02, optimizer_options=WEIGHT_DECAY),
    "+ rotation and so on": Experiment(
        LeNet5, 0.02, transform=Augmentation(rotation=8, shift=1.4, scaling=0.1)
    ),
    "+ elastic distortion": Experiment(LeNet5, 0.02, transform=Augmentation(elastic=0.4)),
    "batch norm, dropout": Experiment(RegularizedLeNet5, 0.05),
    "RegularizedLeNet5": ALL,
    "the same, 30 epochs": replace(ALL, epochs=30),
    "CustomMLP": Experiment(CustomMLP, 0.01),
    "CustomMLP, augmented": Experiment(CustomMLP, 0.01, transform=AUGMENTATION),
    "tanh, average pooling": Experiment(LeNet1998, 0.02),
}

if __name__ == "__main__":
    main.EXPERIMENTS = ROWS
    main.SEEDS = range(5)
    sys.exit(main.main())
