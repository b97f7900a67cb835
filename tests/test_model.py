"""The three models: parameter counts, logits, the ability to learn."""

import re

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, max_pool2d, relu

from helpers import PROJECT
from model import CustomMLP, LeNet5, RegularizedLeNet5

COUNTS = {
    LeNet5: {"conv1": 156, "conv2": 2416, "fc1": 48120, "fc2": 10164, "fc3": 850},
    CustomMLP: {
        f"layers.{index}": count
        for index, count in zip(range(1, 16, 2), (50240, 4160, 4160, 2080, 528, 272, 170, 110), strict=True)
    },
}
COUNTS[RegularizedLeNet5] = {**COUNTS[LeNet5], "norm1": 12, "norm2": 32, "norm3": 240, "norm4": 168}
TOTALS = {LeNet5: 61706, CustomMLP: 61720, RegularizedLeNet5: 62158}

each_model = pytest.mark.parametrize("model_class", [LeNet5, CustomMLP, RegularizedLeNet5])


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@each_model
def test_parameters_of_each_layer(model_class):
    model = model_class()
    layers = {name: parameters(layer) for name, layer in model.named_modules() if not list(layer.children())}
    assert {name: count for name, count in layers.items() if count} == COUNTS[model_class]
    assert parameters(model) == TOTALS[model_class]


def test_comments_state_the_parameters_of_their_layers():
    source = (PROJECT / "model.py").read_text(encoding="utf-8")
    lines = re.findall(r"(nn\.(?:Conv2d|Linear|BatchNorm.d)\(.*?\)),?  # (.*) = ([0-9,]+)\n", source)
    assert len(lines) == 5 + 4 + 8
    for layer, arithmetic, count in lines:
        count = int(count.replace(",", ""))
        assert count == parameters(eval(layer, {"nn": nn})) == eval(arithmetic.replace("x", "*"))


@each_model
def test_outputs_are_logits(model_class, test_set):
    logits = model_class().eval()(test_set[:50][0])
    assert logits.shape == (50, 10) and logits.dtype == torch.float32
    # a softmax would make them probabilities: none below 0, together 1; a log-softmax logarithms of these
    assert logits.min() < 0 < logits.max()
    assert not torch.allclose(logits.exp().sum(dim=1), torch.ones(50), atol=0.01)


@each_model
def test_every_parameter_has_a_part_in_the_answer(model_class, train_set):
    model = model_class()
    images, labels = train_set[:64]
    cross_entropy(model(images), labels).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_lenet5_is_convolution_relu_pooling(test_set):
    model, images = LeNet5(), test_set[:50][0]
    x = max_pool2d(relu(model.conv1(images)), 2)
    x = max_pool2d(relu(model.conv2(x)), 2).flatten(1)
    x = model.fc3(relu(model.fc2(relu(model.fc1(x)))))
    assert torch.allclose(model(images), x, atol=1e-5)  # another memory format rounds differently


@each_model
def test_an_optimizer_may_view_a_gradient_as_one_row(model_class, train_set):
    images, labels = train_set[:64]
    model = model_class()
    cross_entropy(model(images), labels).backward()
    for parameter in model.parameters():
        assert parameter.grad.view(-1).shape == (parameter.numel(),)


def test_regularization_is_off_in_evaluation(train_set):
    images, _ = train_set[:64]
    model = RegularizedLeNet5(dropout=0.5)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    # batch norm now uses what it remembers, not what is in the batch
    assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-5)


def test_regularizations_can_be_left_out_one_by_one(train_set):
    images, _ = train_set[:64]
    for options in (
        {"dropout": 0, "batch_norm": False},
        {"dropout": 0.5, "batch_norm": False},
        {"dropout": 0},
    ):
        torch.manual_seed(0)
        plain = LeNet5()
        torch.manual_seed(0)
        model = RegularizedLeNet5(**options)
        normalizes, drops = options.get("batch_norm", True), options["dropout"] > 0
        assert parameters(model) == (TOTALS[RegularizedLeNet5] if normalizes else TOTALS[LeNet5])
        assert torch.equal(model(images), plain(images)) == (not normalizes and not drops)
        assert torch.equal(model.eval()(images), plain.eval()(images)) == (not normalizes)


def test_dropout_0_drops_nothing(train_set):
    model = RegularizedLeNet5(dropout=0)
    assert torch.equal(model(train_set[:64][0]), model(train_set[:64][0]))


@pytest.mark.parametrize("seed", range(2))
@each_model
def test_fits_a_small_batch(model_class, seed, train_set):
    torch.manual_seed(seed)
    images, labels = train_set[:64]
    model = model_class()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in range(1000):
        model.train()
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        if step % 20 == 0 and (model.eval()(images).argmax(dim=1) == labels).all():
            return
    pytest.fail("not all of 64 images are learned after 1000 steps")
