"""What the README states: the arithmetic of the original report's figures, the number of
parameters, rows to paste."""

import math
import re

import pytest
import torch
from torch import nn

import main
import replicate_report
from conftest import PROJECT
from model import CustomMLP, LeNet5, RegularizedLeNet5

README = (PROJECT / "README.md").read_text()


def section(heading):
    """The text of a section of the README."""
    _, _, rest = README.partition(f"\n## {heading}\n")
    assert rest, f"no section {heading!r}"
    return rest.partition("\n## ")[0]


def original_report():
    return section("The report").partition("\n### What the original report measured\n")[2]


def calculations(text):
    """(left side, right side) of every `calculation = number` in a text."""
    return re.findall(r"`([^`=]+) = ([0-9.,]+)`", text)


@pytest.mark.parametrize("left, right", calculations(original_report()))
def test_arithmetic_of_the_report(left, right):
    value = eval(left.replace(",", ""), {"ln": math.log, "e": math.e})
    decimals = len(right.partition(".")[2])
    assert round(value, decimals) == float(right.replace(",", ""))


def test_the_four_findings_are_calculated():
    lefts, rights = zip(*calculations(original_report()))
    assert {*lefts} >= {
        "2.3026 / 0.0360",
        "(ln(e + 9) - 1) / 64",
        "1135 / 10000",
        "6742 / 60000",
        "0.9834 - 0.9688",
    }
    assert {*rights} >= {"64", "2.3026", "0.0360", "1.4612", "0.0228", "0.1135", "0.1124"}


class Always(nn.Module):
    """A model that knows the labels, or, without them, holds all digits for equally likely.
    Like the report's it gives probabilities."""

    def __init__(self, labels=None):
        super().__init__()
        self.labels = labels

    def forward(self, images):
        if self.labels is None:
            return torch.full((len(images), 10), 0.1)
        labels, self.labels = self.labels.split([len(images), len(self.labels) - len(images)])
        return nn.functional.one_hot(labels, 10).float()


def test_loss_of_guessing_is_the_mlps_and_that_of_knowing_the_floor(train_set):
    whole_batches = train_set.subset(slice(640))
    guessing, _ = replicate_report.run_epoch(Always(), whole_batches)
    assert guessing == pytest.approx(math.log(10) / 64, rel=1e-5)
    knowing, accuracy = replicate_report.run_epoch(Always(whole_batches.labels), whole_batches)
    assert knowing == pytest.approx((math.log(math.e + 9) - 1) / 64, rel=1e-5) and accuracy == 1
    # what the report measured lies between these, the MLP at the upper end
    for name, epochs in replicate_report.REPORT.items():
        assert len(epochs) == 10
        for train_loss, _, val_loss, _ in epochs:
            assert knowing < train_loss < guessing + 2e-4 and knowing < val_loss < guessing + 3e-4
            assert (train_loss > 0.035) == (name == "Custom MLP")


def test_the_reports_mlp_always_answered_1():
    # of MNIST's 60,000 training and 10,000 test images so many show a 1
    for _, train_accuracy, _, val_accuracy in replicate_report.REPORT["Custom MLP"][4:9]:
        assert (train_accuracy, val_accuracy) == (round(6742 / 60000, 4), round(1135 / 10000, 4))


@pytest.mark.parametrize("name", replicate_report.TRAININGS)
def test_replicated_trainings(name, train_set, test_set):
    count = sum(parameter.numel() for parameter in replicate_report.TRAININGS[name][0]().parameters())
    assert count == {"LeNet-5": 61706, "Custom MLP": 61720, "Regularized LeNet-5": 62158}[name]
    first, *_, last = replicate_report.replicate(name, train_set, test_set, epochs=3)
    floor, chance = (math.log(math.e + 9) - 1) / 64, math.log(10) / 64
    if name == "Custom MLP":
        assert last[0] == pytest.approx(chance, rel=0.02) and last[3] < 0.25
    else:
        assert floor < last[0] < first[0] < 1.02 * chance and last[3] > 0.3


@pytest.mark.parametrize("name", replicate_report.TRAININGS)
def test_dropout_is_on_in_the_reports_training_only(name, test_set):
    model = replicate_report.TRAININGS[name][0]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    assert replicate_report.run_epoch(model, test_set) == replicate_report.run_epoch(model, test_set)
    first, second = (replicate_report.run_epoch(model, test_set, optimizer) for _ in range(2))
    assert (first == second) == (name == "LeNet-5")


def test_tables_of_parameters_are_those_of_the_models():
    models = section("The report").partition("### The three models")[2].partition("### Training")[0]
    tables = re.findall(r"(?:^\|.*\n)+", models, re.MULTILINE)
    for model_class, table in zip((LeNet5, CustomMLP, RegularizedLeNet5), tables, strict=True):
        rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in table.splitlines()]
        layers = {
            name: f"{sum(parameter.numel() for parameter in layer.parameters()):,}"
            for name, layer in model_class().named_modules()
            if list(layer.parameters(recurse=False))
        }
        total = f"{sum(parameter.numel() for parameter in model_class().parameters()):,}"
        *stated, last = [(row[0].strip("`"), row[-1]) for row in rows[2:]]
        assert stated == list(layers.items())
        assert last == ("together", total)
        for _, _, calculation, count in rows[2:-1]:
            assert eval(calculation.replace("x", "*").replace(",", "")) == int(count.replace(",", ""))


@pytest.fixture
def pasted_rows():
    """The rows that the README gives for its table of techniques."""
    (block,) = re.findall(r"^EXPERIMENTS = .*?^\}\n", section("The report"), re.DOTALL | re.MULTILINE)
    names = dict(vars(main))
    exec(block, names)
    return names["EXPERIMENTS"]


def test_rows_to_paste_can_be_trained(monkeypatch, train_set, pasted_rows):
    for name, row in main.EXPERIMENTS.items():
        assert pasted_rows[name] == row
    monkeypatch.setattr(main, "EXPERIMENTS", pasted_rows)
    main.check_constants()
    main.rehearse(train_set)
    # the rows of the table, in the same order
    table = section("The report").partition("### What regularization brings")[2].partition("\n### ")[0]
    lines = re.findall(r"^\| (.*?) +\|", table, re.MULTILINE)
    assert [line for line in lines if line in pasted_rows] == list(pasted_rows)


def test_examples_of_rows_can_be_trained(monkeypatch, train_set):
    rows = re.findall(r'^    (".*": Experiment\(.*\)),$', section("What to edit"), re.MULTILINE)
    examples = eval("{" + ", ".join(rows) + "}", vars(main))
    assert len(examples) == len(rows) > 1
    monkeypatch.setattr(main, "EXPERIMENTS", examples)
    main.rehearse(train_set)
