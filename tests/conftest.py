import sys
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "report")]

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
