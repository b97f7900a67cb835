import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import dataset

torch.set_num_threads(1)  # as main.py does


@pytest.fixture(scope="session")
def train_set():
    """The 4,000 training images of the shipped sample."""
    return dataset.MNIST(dataset.SAMPLE_DIR / "train.tar")


@pytest.fixture(scope="session")
def test_set():
    """The 1,000 test images of the shipped sample."""
    return dataset.MNIST(dataset.SAMPLE_DIR / "test.tar")
