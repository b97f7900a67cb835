"""How far does one get without a gradient? Two classifiers that compare pixels.

    python report/baselines.py

Prints their accuracy on the test images of the complete MNIST in data/. Takes a minute.
"""

import sys
from pathlib import Path

import torch

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import dataset
import plot


def pixels(image_set):
    """Return the images of a dataset as rows (N, 784) of numbers from 0 to 1."""
    return image_set.images.flatten(1) / 255


def nearest(images, centres):
    """Return for each image (N, 784) the index of the nearest centre (M, 784), by Euclidean distance."""
    return torch.cat([torch.cdist(part, centres).argmin(dim=1) for part in images.split(500)])


def main():
    """Print the accuracies."""
    try:
        train_set = dataset.MNIST(PROJECT / "data" / "train.tar")
        test_set = dataset.MNIST(PROJECT / "data" / "test.tar")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}: this needs the complete MNIST, which main.py downloads")
    train_images = pixels(train_set)
    means = torch.stack([train_images[train_set.labels == digit].mean(dim=0) for digit in range(10)])
    test_images = pixels(test_set)
    answers = {
        "the nearest of the ten digits' mean images": nearest(test_images, means),
        "the nearest training image": train_set.labels[nearest(test_images, train_images)],
    }
    table = [["answer with the label of", "test accuracy"]]
    for what, digits in answers.items():
        table.append([what, f"{(digits == test_set.labels).float().mean():.2%}"])
    print(*plot.markdown(table), sep="\n")


if __name__ == "__main__":
    main()
