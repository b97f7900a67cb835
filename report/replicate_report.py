"""Measure again what the original report measured, faults included.

    python report/replicate_report.py

Trains variations of the three models on the complete MNIST in data/, as the report did, and prints
the report's figures beside its own, epoch by epoch. Then it lets the regularized LeNet-5 train on, and
trains the MLP without each of two faults, with three seeds. Takes 13 minutes.

The report does not state all of its settings. Tanh, average pooling, the places and the strength of
dropout, momentum, learning rate and weight decay were found by trying until the figures were like its own.

What it repeats; report/README.md explains the faults:

* The models end in a softmax, and the cross-entropy applies another one.
* The batches hold 64 images, not 32 as the report says, always the same ones, in the order of
  the file.
* The loss is the sum of the averages of all batches, divided by the number of images.
* The MLP has dropout in front of each of its seven hidden activations.
* The training accuracy, counted with dropout on, is compared with the validation accuracy, without.
"""

import sys
from functools import partial
from itertools import product, zip_longest
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))

import dataset
from model import CustomMLP, RegularizedLeNet5

BATCH_SIZE = 64
LEARNING_RATE = 0.01  # the same in all steps
MOMENTUM = 0.9
EPOCHS = 10
LONGER = 30  # epochs: the report expects the regularized LeNet-5's loss to fall if there are more than 10

# The report's figures: training loss and accuracy, validation loss and accuracy of each epoch.
REPORT = {
    "LeNet-5": [
        (0.0305, 0.5823, 0.0253, 0.8932),
        (0.0244, 0.9149, 0.0241, 0.9343),
        (0.02389, 0.9427, 0.02379, 0.9530),
        (0.0235, 0.9598, 0.02356, 0.9677),
        (0.0234, 0.9691, 0.0234, 0.9739),
        (0.0233, 0.9751, 0.0233, 0.9781),
        (0.0232, 0.9790, 0.0233, 0.9810),
        (0.0231, 0.9814, 0.0232, 0.9827),
        (0.0231, 0.9830, 0.0232, 0.9839),
        (0.0231, 0.9837, 0.0232, 0.9831),
    ],
    "Custom MLP": [
        (0.0360, 0.0979, 0.0361, 0.0958),
        (0.0360, 0.0981, 0.0362, 0.1010),
        (0.0360, 0.1059, 0.0361, 0.1135),
        (0.0360, 0.1121, 0.0361, 0.1135),
        (0.0360, 0.1124, 0.0361, 0.1135),
        (0.0360, 0.1124, 0.0361, 0.1135),
        (0.0360, 0.1124, 0.0361, 0.1135),
        (0.0360, 0.1124, 0.0361, 0.1135),
        (0.0360, 0.1124, 0.0361, 0.1135),
        (0.0360, 0.1144, 0.0360, 0.1135),
    ],
    "Regularized LeNet-5": [
        (0.0269, 0.8041, 0.0238, 0.9601),
        (0.0240, 0.9483, 0.0235, 0.9747),
        (0.0238, 0.9581, 0.0235, 0.9734),
        (0.0237, 0.9629, 0.0234, 0.9778),
        (0.0236, 0.9652, 0.0234, 0.9810),
        (0.0236, 0.9670, 0.0234, 0.9804),
        (0.0236, 0.9675, 0.0234, 0.9813),
        (0.0236, 0.9688, 0.0235, 0.9783),
        (0.0236, 0.9692, 0.0234, 0.9829),
        (0.0236, 0.9688, 0.0234, 0.9834),
    ],
}


class ReportLeNet5(RegularizedLeNet5):
    """The report's LeNet-5s: tanh, average pooling behind it, and a softmax at the end."""

    def __init__(self, regularized):
        super().__init__(dropout=0.5 if regularized else 0, batch_norm=regularized)
        self.activation = nn.Tanh()
        self.pool = nn.AvgPool2d(2)

    def forward(self, images):
        x = self.pool(self.activation(self.norm1(self.conv1(images))))
        x = self.dropout(self.pool(self.activation(self.norm2(self.conv2(x)))))
        x = x.flatten(start_dim=1)
        x = self.dropout(self.activation(self.norm3(self.fc1(x))))
        x = self.activation(self.norm4(self.fc2(x)))
        return self.fc3(x).softmax(dim=1)


def custom_mlp(dropout=True, softmax=True):
    """CustomMLP with PyTorch's default weights, dropout in front of every activation and a softmax."""
    layers = []
    for layer in CustomMLP().layers:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
        if isinstance(layer, nn.ReLU) and dropout:
            layers.append(nn.Dropout(0.5))
        layers.append(layer)
    if softmax:
        layers.append(nn.Softmax(dim=1))
    return nn.Sequential(*layers)


# The models and their weight decay.
TRAININGS = {
    "LeNet-5": (partial(ReportLeNet5, regularized=False), 0),
    "Custom MLP": (custom_mlp, 0),
    "Regularized LeNet-5": (partial(ReportLeNet5, regularized=True), 0.001),
}


def run_epoch(model, image_set, optimizer=None):
    """Train for one epoch, or validate if there is no optimizer. Return loss and accuracy in the
    way of the report."""
    training = optimizer is not None
    model.train(training)
    loss_sum = correct = 0
    with torch.set_grad_enabled(training):
        for images, labels in dataset.batches(image_set, BATCH_SIZE):
            outputs = model(images)
            loss = cross_entropy(outputs, labels)  # which takes probabilities for logits, too
            if training:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss_sum += loss.item()
            correct += (outputs.argmax(dim=1) == labels).sum().item()
    return loss_sum / len(image_set), correct / len(image_set)


def replicate(build, weight_decay, train_set, test_set, epochs, seed=0):
    """Train a model as the report did. Yield its four figures of each epoch, in the order of REPORT."""
    torch.manual_seed(seed)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=weight_decay)
    for _ in range(epochs):
        yield *run_epoch(model, train_set, optimizer), *run_epoch(model, test_set)


def print_replication(train_set, test_set):
    """Print the report's figures and those of the same trainings here, and some later epochs."""
    print(f"report / here, {len(train_set):,} training and {len(test_set):,} test images\n")
    print("| model | epoch | training loss | training accuracy | validation loss | validation accuracy |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, report in REPORT.items():
        epochs = LONGER if name == "Regularized LeNet-5" else len(report)
        replicated = replicate(*TRAININGS[name], train_set, test_set, epochs)
        for epoch, (stated, measured) in enumerate(zip_longest(report, replicated), start=1):
            cells = [f"{figure:.4f}" for figure in measured]
            if stated:
                cells = [f"{figure:.4f} / {cell}" for figure, cell in zip(stated, cells)]
            print(f"| {name} | {epoch} |", " | ".join(cells), "|", flush=True)


def print_causes(train_set, test_set):
    """Print what the MLP reaches with and without its dropout and its softmax, all else as in the report."""
    print("\n| custom MLP | seed | validation accuracy after epoch 5 | epoch 10 |")
    print("| --- | --- | --- | --- |")
    for dropout, softmax in product((True, False), repeat=2):
        build = partial(custom_mlp, dropout, softmax)
        what = f"{'with' if dropout else 'without'} dropout, {'two softmaxes' if softmax else 'one softmax'}"
        for seed in range(3):
            epochs = list(replicate(build, 0, train_set, test_set, EPOCHS, seed))
            print(f"| {what} | {seed} | {epochs[4][-1]:.4f} | {epochs[-1][-1]:.4f} |", flush=True)


if __name__ == "__main__":
    try:
        train_set = dataset.MNIST(PROJECT / "data" / "train.tar")
        test_set = dataset.MNIST(PROJECT / "data" / "test.tar")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}: this needs the complete MNIST, which main.py downloads")
    torch.set_num_threads(1)  # as main.py does
    print_replication(train_set, test_set)
    print_causes(train_set, test_set)
