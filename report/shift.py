"""How well are test images recognized that are shifted to the right?

    python report/shift.py [FOLDER]

Prints the accuracy of the three models of a run (by default the newest in results/ that has them),
means of all its seeds. Takes a minute.
"""

import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))

import torch

import dataset
import plot
from model import CustomMLP, LeNet5, RegularizedLeNet5

SHIFTS = range(4)  # pixels


def accuracy(model, images, labels):
    """Return the accuracy (0 to 1) of a trained model on normalized images (N, 1, 28, 28)."""
    model.eval()
    with torch.no_grad():
        answers = model(images).argmax(dim=1)
    return (answers == labels).float().mean().item()


def main(folder):
    """Print the table."""
    torch.set_num_threads(1)  # as main.py does
    images, labels = dataset.MNIST(PROJECT / "data" / "test.tar")[:]
    table = [["shifted by", *(f"{pixels} pixels" for pixels in SHIFTS)]]
    for model_class in (LeNet5, CustomMLP, RegularizedLeNet5):
        row = [model_class.__name__]
        for pixels in SHIFTS:
            accuracies = []
            for path in folder.glob(f"{model_class.__name__}-seed*.pt"):
                model = model_class()
                model.load_state_dict(torch.load(path, weights_only=True))
                accuracies.append(accuracy(model, images.roll(pixels, dims=3), labels))
            row.append(f"{sum(accuracies) / len(accuracies):.2%}")
        table.append(row)
    print(f"{folder}, {len(accuracies)} seeds", "", *plot.markdown(table), sep="\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        main(plot.newest_run(PROJECT / "results", "RegularizedLeNet5-seed0.pt"))
