"""How well are digits recognized that come from a picture instead of a tar?

    python report/recognition.py [FOLDER]

Redraws 2,000 test digits of data/test.tar on paper, reads them with `read_digit`, and prints the
accuracy of the models of a run (by default the newest in results/), trained with seed 0: on the
originals, on the pictures only inverted and resized, and on what `read_digit` makes of them. Takes
ten minutes.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))

import dataset
import plot
from model import CustomMLP, LeNet5, RegularizedLeNet5

COUNT = 2000

# Kinds of paper: arguments of `paper`.
PAPERS = {
    "dark on light": {},
    "light on dark": {"light": True},
    "gradient and noise": {"gradient": 0.4, "noise": 6},
    "twice as large": {"gradient": 0.4, "noise": 6, "scale": 2},
}


def paper(digit, light=False, gradient=0, noise=0, scale=1, seed=0):
    """Return a digit, uint8 (28, 28), redrawn 140 pixels high somewhere on 400 x 300 grey paper."""
    generator = np.random.default_rng(seed)
    image = Image.fromarray(digit)
    image = image.crop(image.getbbox())
    height = 140 * scale
    width = min(round(image.width * height / image.height), 390 * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    ink = np.zeros((300 * scale, 400 * scale))
    top, left = generator.integers(1, ink.shape[0] - height), generator.integers(1, ink.shape[1] - width)
    ink[top : top + height, left : left + width] = np.asarray(image) / 255
    grey = 10 + 230 * ink if light else 230 - 180 * ink
    grey = grey * np.linspace(1 - gradient, 1, ink.shape[1]) + generator.normal(0, 1, ink.shape) * noise
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


def accuracies(models, images, labels):
    """Return the accuracy of each model on images, uint8 (N, 28, 28), as cells of a table."""
    with torch.no_grad():
        answers = [model(dataset.normalize(images)).argmax(dim=1) for model in models]
    return [f"{(answer == labels).float().mean():.2%}" for answer in answers]


def resized(path):
    """Return a picture as 28 x 28 pixels, inverted if it is light, without looking for the digit."""
    picture = Image.open(path).convert("L")
    light = np.median(np.asarray(picture)) > 127
    picture = (ImageOps.invert(picture) if light else picture).resize((28, 28))
    return torch.from_numpy(np.array(picture))


def read(path):
    """Return what `read_digit` makes of a picture, or an empty image if it refuses it, which is named."""
    try:
        return dataset.read_digit(path)
    except dataset.UserError as error:
        print(error, file=sys.stderr)
        return torch.zeros(28, 28, dtype=torch.uint8)


def load_models(folder):
    """Return the three models of a run, trained with seed 0."""
    models = []
    for model_class in (LeNet5, CustomMLP, RegularizedLeNet5):
        model = model_class()
        model.load_state_dict(torch.load(folder / f"{model_class.__name__}-seed0.pt", weights_only=True))
        models.append(model.eval())
    return models


def print_table(folder):
    """Print the accuracies of the models of a run."""
    torch.set_num_threads(1)
    models = load_models(folder)
    test_set = dataset.MNIST(PROJECT / "data" / "test.tar")
    chosen = torch.randperm(len(test_set), generator=torch.Generator().manual_seed(0))[:COUNT]
    test_set = test_set.subset(chosen)
    table = [["pictures", *(type(model).__name__ for model in models)]]
    table.append(["originals", *accuracies(models, test_set.images, test_set.labels)])
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "digit.png"
        for name, options in PAPERS.items():
            digits = []
            plain = []
            for seed, image in enumerate(test_set.images):
                paper(image.numpy(), **options, seed=seed).save(path, compress_level=1)
                digits.append(read(path))
                plain.append(resized(path))
            table.append([f"{name}: resized", *accuracies(models, torch.stack(plain), test_set.labels)])
            table.append([f"{name}: read_digit", *accuracies(models, torch.stack(digits), test_set.labels)])
    print("\n".join(plot.markdown(table)))


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:]] or plot.run_folders(plot.RESULTS)
    if not folders:
        sys.exit("error: there is no run in results/: first run main.py")
    try:
        print_table(folders[0])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
