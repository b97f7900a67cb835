"""How well are test images recognized that are shifted to the right?

    python report/shift.py [FOLDER]

Prints the accuracy of the three models of a run (by default the newest in results/), means of all
its seeds. Needs the complete MNIST in data/. Takes a minute.
"""

import statistics
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))

import torch

import dataset
import plot
from model import CustomMLP, LeNet5, RegularizedLeNet5

SHIFTS = range(4)  # pixels


def shift(images, pixels):
    """Return images, uint8 (N, 28, 28), moved to the right. What leaves them is lost."""
    shifted = torch.zeros_like(images)
    shifted[:, :, pixels:] = images[:, :, : 28 - pixels]
    return shifted


def accuracy(path, model, images, labels):
    """Return the accuracy (0 to 1) of a model with the weights in a file on images, uint8 (N, 28, 28)."""
    model.load_state_dict(torch.load(path, weights_only=True))
    model.eval()
    with torch.no_grad():
        answers = model(dataset.normalize(images)).argmax(dim=1)
    return (answers == labels).float().mean().item()


def print_table(folder):
    """Print the accuracies of the models of a run."""
    torch.set_num_threads(1)  # as main.py does
    test_set = dataset.MNIST(PROJECT / "data" / "test.tar")
    table = [["model", "seeds", *map(str, SHIFTS)]]
    for model_class in (LeNet5, CustomMLP, RegularizedLeNet5):
        paths = list(folder.glob(f"{model_class.__name__}-seed*.pt"))
        if not paths:
            raise FileNotFoundError(f"{folder} has no weights of {model_class.__name__}")
        row = [model_class.__name__, str(len(paths))]
        for pixels in SHIFTS:
            images = shift(test_set.images, pixels)
            accuracies = [accuracy(path, model_class(), images, test_set.labels) for path in paths]
            row.append(f"{statistics.mean(accuracies):.2%}")
        table.append(row)
    print(f"{folder}, shifted by so many pixels", "", *plot.markdown(table), sep="\n")


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:]] or plot.run_folders(plot.RESULTS)
    if not folders:
        sys.exit("error: there is no run in results/: first run main.py")
    try:
        print_table(folders[0])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
