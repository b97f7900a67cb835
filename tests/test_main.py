"""The training, and the whole program as a user runs it."""

import json
import os
import re
import shutil
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import dataset
import main
import plot
from dataset import Augmentation
from helpers import PROJECT, copy_project, figures, own_lines, paper, results_of, rows, run
from main import Experiment, Training
from model import CustomMLP, LeNet5, RegularizedLeNet5

EXPERIMENTS = ("LeNet5", "CustomMLP", "RegularizedLeNet5")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A copy of the project in which `python main.py` has run, with pictures of two digits, and
    what it printed."""
    folder = copy_project(tmp_path_factory.mktemp("project"), EPOCHS="3", SEEDS="range(0, 4, 3)")
    (folder / "data" / "my_digits").mkdir()
    images = dataset.MNIST(folder / "data" / "test.tar").images
    for index in range(2):
        paper(images[index].numpy()).save(folder / "data" / "my_digits" / f"{index}.png")
    process = run(folder, "main.py")
    assert process.returncode == 0, process.stderr
    return folder, process


@pytest.fixture(scope="module")
def results(finished):
    return results_of(finished[0])


def test_results_folder_holds_the_files_of_every_training(results):
    assert results.name == "1"
    ends = ("csv", "pt", "npz", "layers.npz")
    trainings = {f"{name}-seed{seed}.{end}" for name in EXPERIMENTS for seed in (0, 3) for end in ends}
    plots = {
        f"{name}.png"
        for name in (*EXPERIMENTS, "comparison", "confusion", "images", "layers", "mistakes", "my_digits")
    }
    others = {"settings.json", "summary.md", "my_digits.npz", "images.npz", "code"}
    assert {path.name for path in results.iterdir()} == trainings | plots | others
    for path in results.glob("*.csv"):
        assert [row["epoch"] for row in rows(path)] == ["1", "2", "3"]
    for path in PROJECT.glob("*.py"):
        assert (results / "code" / path.name).exists()
    assert (results / "code" / "main.py").read_bytes() == (results.parent.parent / "main.py").read_bytes()


def test_training_on_the_sample_reaches_a_sensible_accuracy(results):
    for path in results.glob("*.csv"):
        first, *_, last = rows(path)
        assert float(last["val_accuracy"]) > (0.8 if "MLP" in path.name else 0.92)
        assert float(last["train_accuracy"]) > float(first["train_accuracy"])
        assert float(last["train_loss"]) < float(first["train_loss"])


@pytest.mark.parametrize("model_class", [LeNet5, CustomMLP, RegularizedLeNet5])
def test_saved_weights_and_answers_are_those_that_were_validated(results, test_set, model_class):
    path = results / f"{model_class.__name__}-seed3"
    model = model_class()
    model.load_state_dict(torch.load(f"{path}.pt", weights_only=True))
    loss, accuracy = main.test(model, dataset.batches(test_set, 1000), "cpu", cross_entropy)
    last = rows(Path(f"{path}.csv"))[-1]
    assert float(last["val_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(last["val_accuracy"]) == pytest.approx(accuracy)
    answers = np.load(f"{path}.npz")
    with torch.no_grad():
        logits = model(test_set[:][0])
        digits = model(dataset.normalize(torch.from_numpy(np.load(results / "my_digits.npz")["images"])))
    assert np.allclose(answers["logits"], logits, atol=1e-4)
    assert np.allclose(answers["digit_logits"], digits, atol=1e-4)
    assert np.array_equal(answers["labels"], test_set.labels)
    wrong = logits.argmax(dim=1) != test_set.labels
    assert wrong.any() and np.array_equal(answers["mistakes"], test_set.images[wrong])


def test_batch_norm_averages_unaugmented_images(results, train_set):
    model = RegularizedLeNet5()
    model.load_state_dict(torch.load(results / "RegularizedLeNet5-seed3.pt", weights_only=True))
    with torch.no_grad():
        outputs = model.pool(model.conv1(train_set[:][0]))
    # torch's own sums over a batch of 1,000 images are exact to three digits only
    assert torch.allclose(model.norm1.running_mean, outputs.mean(dim=(0, 2, 3)), atol=0.002)
    assert torch.allclose(model.norm1.running_var, outputs.var(dim=(0, 2, 3)), rtol=0.005)


def test_learning_rate_rises_to_its_peak_and_falls_to_almost_0(results):
    rates = [float(row["learning_rate"]) for row in rows(results / "LeNet5-seed0.csv")]
    assert 0.002 < rates[0] <= max(rates) <= 0.02 and rates[-1] < 1e-4 < rates[-2]
    every_step = np.load(results / "LeNet5-seed0.npz")["learning_rates"]
    assert len(every_step) == 3 * (4000 // 32)
    assert every_step.max() == pytest.approx(0.02, rel=0.01) and np.argmax(every_step) == pytest.approx(
        112, abs=2
    )


def test_settings_tell_constants_data_parameters_and_versions(results):
    settings = json.loads((results / "settings.json").read_text(encoding="utf-8"))
    constants = re.findall(r"^([A-Z_]+) = ", (PROJECT / "main.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*constants, "data", "date", "layers", "parameters", "versions"} == set(settings)
    assert settings["EPOCHS"] == 3 and settings["SEEDS"] == [0, 3]
    row = settings["EXPERIMENTS"]["CustomMLP"]
    assert (row["model"], row["epochs"]) == ("CustomMLP", 3)
    assert row["optimizer"] == {"class": "SGD", "momentum": 0.9}
    assert settings["EXPERIMENTS"]["RegularizedLeNet5"]["transform"] == {
        "class": "Augmentation",
        "rotation": 8,
        "shift": 1.4,
        "scaling": 0.1,
        "elastic": 0.4,
    }
    assert settings["data"]["train_images"] == 4000 and settings["data"]["test_images"] == 1000
    assert settings["parameters"] == {"LeNet5": 61706, "CustomMLP": 61720, "RegularizedLeNet5": 62158}
    assert settings["versions"]["torch"] == torch.__version__


def test_prints_every_epoch_the_table_and_the_pictures(finished, results):
    out = finished[1].stdout
    for path in results.glob("*.csv"):
        name, seed = path.stem.split("-seed")
        mine = re.findall(rf"^{name} +{seed} .*", out, re.MULTILINE)
        assert len(mine) == 3
        for number, (line, row) in enumerate(zip(mine, rows(path)), start=1):
            assert f"{number}/3" in line
            assert f"{float(row['val_accuracy']):.2%}" in line and f"{float(row['train_loss']):.4f}" in line
    assert (results / "summary.md").read_text(encoding="utf-8").partition("\n\n## ")[0] in out
    for path in results.glob("*.png"):
        assert path.name in out or path.stem in EXPERIMENTS
    for model_class in (LeNet5, CustomMLP, RegularizedLeNet5):
        assert f"{sum(parameter.numel() for parameter in model_class().parameters()):,}" in out
    assert max(len(line) for line in out.splitlines()) <= 100
    assert own_lines(finished[1].stderr) == []


def test_options_print_the_help_and_train_nothing(finished):
    process = run(finished[0], "main.py", "--epochs", "3")
    assert process.returncode != 0 and "python main.py" in process.stderr
    assert results_of(finished[0])  # the only run


def test_trained_models_are_asked_without_training_again(finished, results):
    (finished[0] / "0_mine.png").write_bytes((finished[0] / "data" / "my_digits" / "0.png").read_bytes())
    process = run(finished[0], "main.py", "0_mine.png", "data/my_digits/1.png")
    assert process.returncode == 0, process.stderr
    run_digits = plot.read_run(results)
    logits = {name: seeds[0]["digit_logits"] for name, seeds in run_digits.outputs.items()}
    for index in range(2):  # the same answers as those of the run
        for answer in plot.digit_answers(run_digits.digits, logits, index).values():
            assert answer in process.stdout
    assert " right" in process.stdout
    picture = finished[0] / "results" / "my_digits.png"
    assert picture.stat().st_size > 10_000 and str(Path("results") / "my_digits.png") in process.stdout
    picture.unlink()


def test_what_cannot_be_asked_is_named(monkeypatch, finished, capsys):
    monkeypatch.setattr(main, "RESULTS_DIR", str(finished[0] / "results"))
    digit = str(finished[0] / "data" / "my_digits" / "0.png")
    rows = {"LeNet5": Experiment(CustomMLP, 0.01), "CustomMLP": Experiment(CustomMLP, 0.01)}
    monkeypatch.setattr(main, "EXPERIMENTS", rows)
    assert main.ask([digit, "nowhere.png"]) == 1
    printed = capsys.readouterr()
    picture, row = own_lines(printed.err)
    assert "nowhere.png" in picture and "'LeNet5'" in row
    assert "CustomMLP" in printed.out and "| LeNet5" not in printed.out
    assert main.ask(["nowhere.png"]) == 2
    capsys.readouterr()
    source = finished[0] / "results" / "1" / "code" / "model.py"
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("nn.ReLU()\n", "nn.Tanh()\n", 1), encoding="utf-8")
    main.ask([digit])
    assert "nn.Tanh() -> nn.ReLU()" in capsys.readouterr().err  # not the model that was trained
    source.write_text(text, encoding="utf-8")
    monkeypatch.setattr(main, "RESULTS_DIR", str(finished[0] / "nothing"))
    assert main.ask([digit]) == 2
    assert "nothing" in capsys.readouterr().err
    (finished[0] / "results" / "my_digits.png").unlink()


def cut_short(folder):
    path = folder / "CustomMLP-seed0.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:2]), encoding="utf-8")


def cut_weights(folder):
    path = folder / "CustomMLP-seed0.pt"
    path.write_bytes(path.read_bytes()[:1000])


def break_weights(folder):
    path = folder / "CustomMLP-seed0.pt"
    weights = torch.load(path, weights_only=True)
    weights["layers.1.weight"][0, 0] = float("nan")
    torch.save(weights, path)


def change_options(folder):
    path = folder / "settings.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"model": "CustomMLP"', '"model": "AnotherMLP"'), encoding="utf-8")


@pytest.mark.parametrize("damage", [cut_short, cut_weights, break_weights, change_options])
def test_a_model_that_cannot_answer_is_named_and_the_others_answer(
    monkeypatch, finished, tmp_path, capsys, damage
):
    shutil.copytree(finished[0] / "results", tmp_path / "results")
    monkeypatch.setattr(main, "RESULTS_DIR", str(tmp_path / "results"))
    damage(tmp_path / "results" / "1")
    assert main.ask([str(finished[0] / "data" / "my_digits" / "0.png")]) == 1
    printed = capsys.readouterr()
    (line,) = own_lines(printed.err)
    assert "'CustomMLP'" in line
    assert "RegularizedLeNet5" in printed.out and "CustomMLP" not in printed.out


@pytest.mark.parametrize("name", ["settings.json", "LeNet5-seed0.csv", "code/model.py"])
def test_a_damaged_file_of_the_run_that_is_asked_is_named(monkeypatch, finished, tmp_path, capsys, name):
    shutil.copytree(finished[0] / "results", tmp_path / "results")
    monkeypatch.setattr(main, "RESULTS_DIR", str(tmp_path / "results"))
    (tmp_path / "results" / "1" / name).write_text("a, (\n1\n", encoding="utf-8")
    assert main.ask([str(finished[0] / "data" / "my_digits" / "0.png")]) == 2
    (line,) = own_lines(capsys.readouterr().err)
    assert Path(name).name in line


def test_plot_rebuilds_all_that_a_run_made(finished, results, monkeypatch):
    made = {path: path.read_bytes() for path in (*results.glob("*.png"), results / "summary.md")}
    monkeypatch.chdir(finished[0])
    for arguments in ([], ["1"], [str(results)]):
        for path in made:
            path.unlink()
        assert plot.main(arguments) == 0
        assert {path: path.read_bytes() for path in (*results.glob("*.png"), results / "summary.md")} == made


def test_readme_snippets_work_when_pasted_after_a_run(finished):
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(snippets) > 1
    for old, new in (("photo.jpg", "data/my_digits/0.png"), ("range(5)", "(0, 3)"), ("range(1, 4)", "(1,)")):
        snippets = [snippet.replace(old, new) for snippet in snippets]
    # each with names of its own, but in one process, since importing torch takes seconds
    process = run(finished[0], "-c", f"for code in {snippets}: exec(code, {{}}); print('next')")
    assert process.returncode == 0, process.stderr
    assert all(part.strip() for part in process.stdout.split("next\n")[:-1])


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The same without data, without a network, and in a terminal that knows ASCII only."""
    rows = '{"A": Experiment(CustomMLP, 0.01)}'
    folder = tmp_path_factory.mktemp("bare")
    copy_project(folder, sample=False, EPOCHS="1", SEEDS="(0, 1)", EXPERIMENTS=rows)
    process = run(folder, "main.py", PYTHONIOENCODING="ascii")
    assert process.returncode == 0, process.stderr
    return folder, process


def test_without_data_and_network_trains_on_the_sample_and_says_so(bare):
    folder, process = bare
    assert str(folder / "data") in process.stderr
    data = json.loads((results_of(folder) / "settings.json").read_text(encoding="utf-8"))["data"]
    assert "sample" in data["description"] and data["train_images"] == 4000
    # nothing of the failed download is left
    assert [path.name for path in (folder / "data").iterdir()] == ["sample"]


def test_a_terminal_without_the_character_gets_a_replacement(bare):
    folder, process = bare
    assert "mean ? standard" in process.stdout
    assert "mean ± standard" in (results_of(folder) / "summary.md").read_text(encoding="utf-8")


BAD_CONSTANTS = [
    *(("EPOCHS", value) for value in (0, 1.5, "10", None)),
    *(("MOMENTUM", value) for value in (1, -0.1, "0.9", float("nan"))),
    *(("SEEDS", value) for value in ((), 0, (0, 0), (-1,), (0.5,), "01", (2**64,))),
    *(("VALIDATION_IMAGES", value) for value in (-1, "10", 10**6)),
    *(("WORKERS", value) for value in (0, 1.5, "2")),
    *(("DEVICE", value) for value in ("abacus", "cuda:99", None, "meta")),
    *(("EXPERIMENTS", value) for value in ({}, [], None)),
]


@pytest.fixture
def small_run(monkeypatch, tmp_path, train_set, test_set):
    """Make main.main() train CustomMLP for an epoch on two small tars, and return the folder of
    the tars and of results/."""
    monkeypatch.setattr(main, "EXPERIMENTS", {"CustomMLP": Experiment(CustomMLP, 0.01, epochs=1)})
    monkeypatch.setattr(main, "WORKERS", 1)
    monkeypatch.setattr(main, "DATA_DIR", tmp_path)
    monkeypatch.setattr(main, "RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setattr(main, "DIGITS_DIR", str(tmp_path / "digits"))
    dataset.write_tar(tmp_path / "train.tar", train_set.images[:96], train_set.labels[:96])
    dataset.write_tar(tmp_path / "test.tar", test_set.images[:30], test_set.labels[:30])
    return tmp_path


@pytest.mark.parametrize("name, value", BAD_CONSTANTS)
def test_bad_constants_are_named_in_one_line(monkeypatch, small_run, capsys, name, value):
    monkeypatch.setattr(main, name, value)
    assert main.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line and repr(value) in line
    assert not (small_run / "results").exists()


class Tutorial(nn.Module):
    """The network of PyTorch's old MNIST example, which flattens with `view`."""

    def __init__(self, outputs=10, width=320, break_it=False):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, kernel_size=5), nn.Conv2d(10, 20, kernel_size=5)
        self.fc1, self.fc2 = nn.Linear(width, 50), nn.Linear(50, outputs)
        self.break_it = break_it

    def forward(self, x):
        x = nn.functional.max_pool2d(self.conv1(x), 2).relu()
        x = nn.functional.max_pool2d(self.conv2(x), 2).relu()
        x = x.view(-1, 320)
        if self.break_it:
            x = F.relu(x)  # noqa: F821, an import is missing
        return self.fc2(self.fc1(x).relu())


class Squeezing(LeNet5):
    """A model that gives a single image's logits without the batch."""

    def forward(self, images):
        return super().forward(images).squeeze()


class FaultInModelPy(RegularizedLeNet5):
    """A model whose fault shows in a line of model.py."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(7)


class Constant(nn.Module):
    """A model that answers the same for every image, whatever it learns."""

    def __init__(self):
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(10))

    def forward(self, images):
        return self.answer.expand(len(images), 10)


class EndsInSoftmax(LeNet5):
    """The fault of the original report's models."""

    def forward(self, images):
        return super().forward(images).softmax(dim=1)


BAD_ROWS = {
    "wrong width": (Experiment(Tutorial, 0.01, {"width": 300}), "Linear|shapes|self.fc1"),
    "9 outputs": (Experiment(Tutorial, 0.01, {"outputs": 9}), "9"),
    "12 outputs": (Experiment(Tutorial, 0.01, {"outputs": 12}), "12"),
    "no batch": (Experiment(Squeezing, 0.01), r"\(10,\)"),
    "missing import": (Experiment(Tutorial, 0.01, {"break_it": True}), "'F'"),
    "line of one's own code": (Experiment(FaultInModelPy, 0.01), r"model\.py, line \d+: x = .*self\.norm1"),
    "Adam with momentum": (
        Experiment(LeNet5, 0.01, optimizer=torch.optim.Adam, optimizer_options={"momentum": 0.9}),
        "momentum",
    ),
    "LBFGS, which needs a closure": (Experiment(LeNet5, 0.01, optimizer=torch.optim.LBFGS), "closure"),
    "unknown option": (Experiment(LeNet5, 0.01, {"dropout": 0.5}), "dropout"),
    "dropout of 2": (Experiment(RegularizedLeNet5, 0.01, {"dropout": 2}), "dropout"),
    "no class": (Experiment("LeNet5", 0.01), "str"),
    "no row": (dict(model=LeNet5), "dict"),
    "negative learning rate": (Experiment(LeNet5, -1), "-1"),
    "exploding": (Experiment(LeNet5, 1e30), "learning_rate"),
    "negative weight decay": (Experiment(LeNet5, 0.01, optimizer_options={"weight_decay": -1}), "-1"),
    "transform that changes the shape": (
        Experiment(LeNet5, 0.01, transform=lambda batch: batch[:, :, 1:]),
        "27",
    ),
    "bad augmentation": (Experiment(LeNet5, 0.01, transform=Augmentation(shift=-1)), "shift"),
    "loss of another shape": (Experiment(LeNet5, 0.01, loss=nn.MSELoss()), "MSE|size"),
    "single images": (Experiment(RegularizedLeNet5, 0.01, batch_size=1), "1"),
    "too large a batch": (Experiment(LeNet5, 0.01, batch_size=97), "97"),
    "no epochs": (Experiment(LeNet5, 0.01, epochs=0), "0"),
}


@pytest.mark.parametrize("row, reason", BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_that_cannot_be_trained_are_named_in_one_line(monkeypatch, small_run, capsys, row, reason):
    monkeypatch.setattr(main, "EXPERIMENTS", {"good": Experiment(LeNet5, 0.01), "my model": row})
    assert main.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "my model" in line and re.search(reason, line)
    assert not (small_run / "results").exists()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b",
        "../a",
        "a\\b",
        "a:b",
        "a\0b",
        "a\nb",
        "\u20ac" * 100,
        "a\ud800",
        5,
        "comparison",
        "Mistakes",
    ],
)
def test_names_that_are_no_file_names_are_refused(monkeypatch, small_run, capsys, name):
    monkeypatch.setattr(main, "EXPERIMENTS", {name: Experiment(CustomMLP, 0.01, epochs=1)})
    assert main.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert repr(name) in line


@pytest.mark.filterwarnings("error:Glyph")
def test_strange_names_are_plotted_as_written(monkeypatch, small_run, capsys):
    names = ("_hidden $x^2$ {", "5% of 100_000", "é" * 100)
    monkeypatch.setattr(main, "EXPERIMENTS", dict.fromkeys(names, Experiment(CustomMLP, 0.01, epochs=1)))
    assert main.main() == 0
    (folder,) = (small_run / "results").iterdir()
    assert {path.stem for path in folder.glob("*.png")} >= {*names, "comparison"}


@pytest.mark.parametrize("model, options", [(Tutorial, {}), (LeNet5, {"optimizer": torch.optim.Adam})])
def test_ones_own_model_and_another_optimizer_train(train_set, test_set, tmp_path, model, options):
    experiment = Experiment(model, 0.003, epochs=2, **options)
    main.run_training(Training("mine", experiment, 0, train_set, test_set, {}, tmp_path))
    first, last = rows(tmp_path / "mine-seed0.csv")
    assert float(last["train_loss"]) < float(first["train_loss"]) and float(last["val_accuracy"]) > 0.3


def test_a_training_that_learns_nothing_says_so(monkeypatch, small_run, capsys):
    experiment = Experiment(Constant, 0.01, epochs=1)
    monkeypatch.setattr(
        main, "EXPERIMENTS", {"good": replace(experiment, model=LeNet5, epochs=40), "bad": experiment}
    )
    monkeypatch.setattr(main, "SEEDS", (7,))
    assert main.main() == 0
    (warning,) = re.findall(".*learned nothing.*", capsys.readouterr().out)
    assert "bad" in warning and "7" in warning and "learning_rate" in warning


def test_train_and_test_serve_a_loop_of_ones_own(test_set):
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), nn.CrossEntropyLoss()
    loader = DataLoader(dataset.MNIST(dataset.SAMPLE_DIR / "train.tar"), batch_size=32, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters())
    first, second = (main.train(model, loader, "cpu", criterion, optimizer) for _ in range(2))
    assert second[0] < first[0] and second[1] > first[1]
    assert optimizer.param_groups[0]["lr"] == 0.001
    loss, accuracy = main.test(model, DataLoader(test_set, batch_size=64), "cpu", criterion)
    assert accuracy > 0.8 and 0 < loss < 1


@pytest.mark.parametrize("batch_size", [7, 32, 1000])
def test_losses_are_per_image_whatever_the_batch_size(batch_size, test_set):
    torch.manual_seed(0)
    model, criterion = LeNet5(), nn.CrossEntropyLoss()
    images, labels = test_set[:]
    with torch.no_grad():
        logits = model(images)
    expected = (cross_entropy(logits, labels).item(), (logits.argmax(dim=1) == labels).float().mean().item())
    loader = dataset.batches(test_set, batch_size)
    assert main.test(model, loader, "cpu", criterion) == pytest.approx(expected, rel=1e-5)
    # with a learning rate of 0 the model stays as it is, and training sees the same
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    assert main.train(model, loader, "cpu", criterion, optimizer) == pytest.approx(expected, rel=1e-5)


def test_dropout_is_on_in_training_and_off_in_validation(test_set):
    torch.manual_seed(0)
    model = RegularizedLeNet5(dropout=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    arguments = model, dataset.batches(test_set, 1000), "cpu", nn.CrossEntropyLoss()
    assert main.test(*arguments) == main.test(*arguments)
    # nothing is learned, so only dropout makes a difference
    assert main.train(*arguments, optimizer) != main.train(*arguments, optimizer)
    assert main.test(*arguments) == main.test(*arguments)


@pytest.mark.parametrize(
    "images, batch_size, steps", [(65, 32, 2), (63, 31, 2), (1001, 1000, 1), (20, 1, 20)]
)
def test_incomplete_batches_are_left_out_of_training(
    tmp_path, train_set, test_set, images, batch_size, steps
):
    model = LeNet5 if batch_size == 1 else RegularizedLeNet5
    experiment = Experiment(model, 0.01, batch_size=batch_size, epochs=1)
    few = train_set.subset(slice(images))
    assert len(main.build(experiment, few)[0]) == steps
    main.run_training(Training("A", experiment, 0, few, test_set, {}, tmp_path))
    assert len(rows(tmp_path / "A-seed0.csv")) == 1


def test_every_validation_image_counts(tmp_path, train_set):
    images = train_set.subset(slice(1001))  # one more than a batch
    main.run_training(Training("A", Experiment(CustomMLP, 0.01, epochs=1), 0, images, images, {}, tmp_path))
    accuracy = float(rows(tmp_path / "A-seed0.csv")[0]["val_accuracy"])
    assert 0 < accuracy < 1 and accuracy * 1001 == pytest.approx(round(accuracy * 1001), abs=0.002)


def test_augmentation_is_for_the_training_images_of_its_experiment_only(tmp_path, train_set, test_set):
    # learns nothing, so that all differences come from the images
    still = Experiment(CustomMLP, 1e-20, epochs=1)
    moved = replace(still, transform=Augmentation(rotation=8, shift=1.4, scaling=0.05))
    seen = {}
    for name, experiment in (("moved", moved), ("still", still)):
        main.run_training(Training(name, experiment, 0, train_set, test_set, {}, tmp_path))
        (seen[name],) = rows(tmp_path / f"{name}-seed0.csv")
    torch.manual_seed(0)
    loss, _ = main.test(CustomMLP(), dataset.batches(train_set, 1000), "cpu", nn.CrossEntropyLoss())
    assert float(seen["still"]["train_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(seen["moved"]["train_loss"]) != pytest.approx(loss, rel=1e-4)
    assert seen["moved"]["val_loss"] == seen["still"]["val_loss"]


def test_training_set_as_test_set_is_refused(small_run, capsys):
    (small_run / "test.tar").write_bytes((small_run / "train.tar").read_bytes())
    assert main.main() == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (small_run / "results").exists()


def test_bad_images_are_named_in_one_line(small_run, capsys):
    (small_run / "test.tar").unlink()
    dataset.write_tar(small_run / "test.tar", torch.zeros(2, 32, 32, dtype=torch.uint8), torch.tensor([3, 8]))
    assert main.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(small_run / "test.tar") in line and "test/00000_3.png" in line


def test_warnings_about_the_data_are_printed(small_run, capsys, train_set):
    assert main.main() == 0
    assert capsys.readouterr().err == ""
    kept = [index for index in range(96) if train_set.labels[index] != 7]
    for name, images in (("train", train_set.subset(kept)), ("test", train_set.subset(slice(94, 130)))):
        (small_run / f"{name}.tar").unlink()
        dataset.write_tar(small_run / f"{name}.tar", images.images, images.labels)
    assert main.main() == 0
    both, digit = capsys.readouterr().err.splitlines()
    assert "2" in both and "7" in digit


def test_unreadable_pictures_are_named_and_the_run_goes_on(small_run, capsys, test_set):
    (small_run / "digits").mkdir()
    (small_run / "digits" / "notes.txt").write_text("no picture", encoding="utf-8")
    paper(test_set.images[0].numpy()).save(small_run / "digits" / "seven.png")
    assert main.main() == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "notes.txt" in line
    (folder,) = (small_run / "results").iterdir()
    assert np.load(folder / "my_digits.npz")["names"].tolist() == ["seven.png"]
    assert (folder / "my_digits.png").exists()


def test_results_folder_that_cannot_be_made_is_named(monkeypatch, small_run, capsys):
    (small_run / "file").touch()
    monkeypatch.setattr(main, "RESULTS_DIR", small_run / "file")
    assert main.main() == 2
    (line,) = own_lines(capsys.readouterr().err)
    assert str(small_run / "file") in line


def test_same_seed_same_figures_to_the_last_digit(tmp_path, train_set, test_set):
    # RegularizedLeNet5 draws most from the random generator
    experiment = replace(main.EXPERIMENTS["RegularizedLeNet5"], epochs=2, options={"dropout": 0.5})
    few, found = train_set.subset(slice(1000)), []
    for folder, seed in (("first", 0), ("second", 0), ("third", 1)):
        (tmp_path / folder).mkdir()
        torch.rand(7)  # whatever happened before must not matter
        main.run_training(Training("A", experiment, seed, few, test_set, {}, tmp_path / folder))
        path = tmp_path / folder / f"A-seed{seed}"
        found.append((figures(Path(f"{path}.csv")), torch.load(f"{path}.pt", weights_only=True)))
    (first, weights), (second, same_weights), (third, _) = found
    assert first == second != third and len(first) == 2
    assert all(torch.equal(weights[key], same_weights[key]) for key in weights)


NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")


@pytest.mark.parametrize("platform", [pytest.param("linux", marks=NEEDS_FORK), "darwin", "win32"])
def test_figures_do_not_depend_on_the_workers(monkeypatch, tmp_path, train_set, test_set, platform):
    # elsewhere than on Linux, processes are spawned instead of forked
    monkeypatch.setattr(main.sys, "platform", platform)
    names = EXPERIMENTS if platform == "linux" else EXPERIMENTS[1:]  # all three, or two
    few = train_set.subset(slice(1000))
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        trainings = []
        for name in names:
            experiment = replace(main.EXPERIMENTS[name], epochs=2)
            trainings.append(Training(name, experiment, 1, few, test_set, {}, folder))
        assert main.run_trainings(trainings, workers)
    for name in names:
        alone, beside = (figures(tmp_path / workers / f"{name}-seed1.csv") for workers in ("1", "2"))
        assert alone == beside and len(alone) == 2
        weights, others = (
            torch.load(tmp_path / workers / f"{name}-seed1.pt", weights_only=True) for workers in ("1", "2")
        )
        assert all(torch.equal(weights[key], others[key]) for key in weights)
    if platform == "linux":  # a fork needs no shared memory, of which a container may have little
        assert not few.images.is_shared()


def test_longest_training_starts_first(monkeypatch, small_run, capsys):
    rows = {f"{epochs} epochs": Experiment(CustomMLP, 0.01, epochs=epochs) for epochs in (1, 30, 6)}
    monkeypatch.setattr(main, "EXPERIMENTS", rows)
    assert main.main() == 0
    started = dict.fromkeys(re.findall(r"^(\d+ epochs) +0 ", capsys.readouterr().out, re.MULTILINE))
    assert list(started) == ["30 epochs", "6 epochs", "1 epochs"]


def test_finished_epochs_are_on_disk_at_once(tmp_path, train_set, test_set):
    seen = []

    class Watched(CustomMLP):
        def train(self, mode=True):  # called when an epoch begins
            path = tmp_path / "A-seed0.csv"
            if mode and path.exists():
                weights = torch.load(tmp_path / "A-seed0.pt", weights_only=True)
                assert torch.equal(weights["layers.1.weight"], self.layers[1].weight)
                seen.append(len(rows(path)))
            return super().train(mode)

    experiment = Experiment(Watched, 0.01, epochs=3)
    main.run_training(Training("A", experiment, 0, train_set, test_set, {}, tmp_path))
    assert list(dict.fromkeys(seen)) == [1, 2]


def test_runs_get_the_next_number(tmp_path):
    results = tmp_path / "results"
    for number in (1, 2):
        assert main.make_folder(results) == results / str(number)
    (results / "7").mkdir()
    (results / "2026-11-23_22-00-51").mkdir()
    assert main.make_folder(results) == results / "8"


def test_two_runs_that_start_at_once_get_two_numbers(monkeypatch, tmp_path):
    results = tmp_path / "results"
    main.make_folder(results)
    monkeypatch.setattr(Path, "iterdir", lambda path: [])  # neither has seen the other's folder
    assert main.make_folder(results) == results / "2"


def one_epoch(experiment, train_set, test_set, folder):
    """The figures of an epoch of an experiment on few images."""
    few = train_set.subset(slice(320))
    main.run_training(Training("A", replace(experiment, epochs=1), 0, few, test_set, {}, folder))
    (row,) = rows(folder / "A-seed0.csv")
    (folder / "A-seed0.csv").unlink()
    return row


def test_the_optimizer_gets_what_the_row_states_and_nothing_else(train_set):
    experiment = Experiment(LeNet5, 0.01)
    for row, expected in (
        (experiment, {"momentum": 0.9, "weight_decay": 0, "nesterov": False}),
        (
            replace(experiment, optimizer_options={"weight_decay": 0.1}),
            {"momentum": 0.9, "weight_decay": 0.1},
        ),
        (replace(experiment, optimizer=torch.optim.SGD), {"momentum": 0}),
        (
            replace(experiment, optimizer=partial(torch.optim.SGD, foreach=True)),
            {"momentum": 0, "foreach": True},
        ),
        (
            replace(
                experiment,
                optimizer=torch.optim.SGD,
                optimizer_options={"momentum": 0.5, "nesterov": True},
            ),
            {"momentum": 0.5, "nesterov": True},
        ),
        (replace(experiment, optimizer=torch.optim.AdamW), {"weight_decay": 0.01, "betas": (0.9, 0.999)}),
        (replace(experiment, optimizer=torch.optim.Rprop), {}),
    ):
        _, _, optimizer, _ = main.build(row, train_set)
        (group,) = optimizer.param_groups
        assert {name: group[name] for name in expected} == expected


def test_settings_say_what_the_row_states():
    @dataclass
    class Noise:
        strength: float

    described = {
        partial(torch.optim.SGD, momentum=0.9): {"class": "SGD", "momentum": 0.9},
        torch.optim.AdamW: "AdamW",
        Augmentation(shift=1): {
            "class": "Augmentation",
            "rotation": 0,
            "shift": 1,
            "scaling": 0,
            "elastic": 0,
        },
    }
    for value, expected in described.items():
        assert main.as_json(value) == expected
    assert main.as_json(Noise(2)) == {"class": "Noise", "strength": 2}
    assert main.as_json(nn.CrossEntropyLoss(label_smoothing=0.1))["label_smoothing"] == 0.1
    weighted = json.dumps(nn.CrossEntropyLoss(weight=torch.tensor([0.25, 4])), default=main.as_json)
    assert "0.25" in weighted
    dropping = json.dumps(nn.Sequential(nn.Dropout(0.3)), default=main.as_json)
    assert "0.3" in dropping and "training" not in dropping
    assert "0.125" in main.as_json(lambda images: images + 0.125)
    assert main.as_json(partial(max, 3))["args"] == (3,)
    assert main.as_json(object()) == main.as_json(object())  # no address, which differs in each run
    json.dumps(vars(Experiment(LeNet5, 0.01, transform=Augmentation(shift=1))), default=main.as_json)


def test_another_loss_is_trained_with_and_validation_reports_cross_entropy(tmp_path, train_set, test_set):
    still = Experiment(LeNet5, 1e-20)  # learns nothing, so that all differences come from the loss
    plain = one_epoch(still, train_set, test_set, tmp_path)
    smooth = one_epoch(
        replace(still, loss=nn.CrossEntropyLoss(label_smoothing=0.5)), train_set, test_set, tmp_path
    )
    assert plain["train_loss"] != smooth["train_loss"]
    assert plain["val_loss"] == smooth["val_loss"]


def test_any_transform_of_a_batch_is_trained_with(tmp_path, train_set, test_set):
    still = Experiment(LeNet5, 1e-20)
    plain = one_epoch(still, train_set, test_set, tmp_path)
    noisy = one_epoch(replace(still, transform=lambda images: images + 1), train_set, test_set, tmp_path)
    assert plain["train_loss"] != noisy["train_loss"] and plain["val_loss"] == noisy["val_loss"]


def test_a_model_that_ends_in_a_softmax_is_named(monkeypatch, small_run, capsys):
    row = Experiment(EndsInSoftmax, 0.01, epochs=1)
    monkeypatch.setattr(main, "EXPERIMENTS", {"good": replace(row, model=LeNet5), "soft": row})
    assert main.main() == 0
    (warning,) = own_lines(capsys.readouterr().err)
    assert "soft" in warning and "good" not in warning


def test_a_missing_baseline_is_named(monkeypatch, small_run, capsys):
    row = Experiment(CustomMLP, 0.01, epochs=1)
    monkeypatch.setattr(main, "EXPERIMENTS", {"A": row, "B": row})
    assert main.main() == 0
    assert "'LeNet5'" in capsys.readouterr().out


class Residual(nn.Module):
    """A model of one's own: a layer that is used twice, a sum, a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, kernel_size=3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, kernel_size=3, padding=1), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(1))
        self.last = nn.Linear(4 * 49, 10)

    def forward(self, images):
        x = self.first(images)
        x = x + self.scale * self.block(self.block(x))
        return self.last(nn.functional.max_pool2d(x, 4).flatten(1))


def test_layers_are_listed_where_they_are_used(test_set):
    logits, layers = main.trace(Residual(), test_set[:1][0])
    assert logits.shape == (1, 10)
    assert [(layer["name"], layer["kind"], layer["parameters"]) for layer in layers] == [
        ("first", "Conv2d", 40),
        ("block.0", "Conv2d", 148),
        ("block.1", "ReLU", 0),
        ("block.0", "Conv2d", 0),  # counted above
        ("block.1", "ReLU", 0),
        ("last", "Linear", 1970),
        ("(model)", "Residual", 1),
    ]
    assert layers[0]["output"] == [4, 28, 28] and layers[5]["output"] == [10]
    model = Residual()
    main.trace(model, test_set[:1][0])
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_of_ones_own_model_are_saved_and_drawn(monkeypatch, small_run, test_set):
    monkeypatch.setattr(main, "EXPERIMENTS", {"mine": Experiment(Residual, 0.01, epochs=1)})
    assert main.main() == 0
    folder = small_run / "results" / "1"
    assert (folder / "layers.png").exists()
    assert re.search(r"\| block.0 +\| Conv2d", (folder / "summary.md").read_text(encoding="utf-8"))
    arrays = dict(np.load(folder / "mine-seed0.layers.npz"))
    assert list(arrays) == [
        "input",
        "filters",
        "layer first",
        "layer block.0",
        "layer block.0'",
        "layer last",
        "probabilities",
    ]
    model = Residual()
    model.load_state_dict(torch.load(folder / "mine-seed0.pt", weights_only=True))
    assert np.array_equal(arrays["input"][0], test_set.images[0])
    assert np.array_equal(arrays["filters"], model.first.weight[:, 0].detach())
    with torch.no_grad():
        assert np.allclose(arrays["layer first"], model.first(test_set[:1][0])[0], atol=1e-4)
        assert np.allclose(arrays["probabilities"], model(test_set[:1][0])[0].softmax(0), atol=1e-4)


def test_layers_note_what_came_out_of_them(test_set):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.ReLU(inplace=True))
    _, layers = main.trace(model, test_set[:1][0])
    assert layers[1]["values"].min() < 0 == layers[2]["values"].min()  # before and after ReLU

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(28, 32, batch_first=True)
            self.out = nn.Linear(32, 10)

        def forward(self, images):
            outputs, _ = self.lstm(images[:, 0])
            return self.out(outputs[:, -1])

    _, layers = main.trace(Rows(), test_set[:1][0])
    assert [layer["name"] for layer in layers] == ["lstm", "out"]


def test_a_transform_may_work_in_place_and_need_whole_batches(monkeypatch, small_run):
    noise = torch.rand(32, 1, 28, 28)

    def darken(images):
        return images.sub_(noise)

    rows = {name: Experiment(CustomMLP, 0.01, transform=darken, epochs=1) for name in "AB"}
    monkeypatch.setattr(main, "EXPERIMENTS", rows)
    assert main.main() == 0
    versions = np.load(small_run / "results" / "1" / "images.npz")["versions"]
    assert np.array_equal(versions[0][0], versions[1][3])  # it does the same each time


def test_rows_that_cannot_reach_a_spawned_process_are_named(monkeypatch, small_run, capsys):
    row = Experiment(CustomMLP, 0.01, transform=lambda images: images, epochs=1)
    monkeypatch.setattr(main, "EXPERIMENTS", {"my row": row})
    monkeypatch.setattr(main.sys, "platform", "darwin")
    assert main.main() == 2
    (line,) = own_lines(capsys.readouterr().err)
    assert "my row" in line and "lambda" in line


def test_train_and_test_name_an_empty_loader():
    model = LeNet5()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(main.UserError):
        main.train(model, [], "cpu", nn.CrossEntropyLoss(), optimizer)
    with pytest.raises(main.UserError):
        main.test(model, [], "cpu", nn.CrossEntropyLoss())


def test_signals_are_held_back_and_not_lost():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with main.signals_held_back():
            signal.raise_signal(signal.SIGTERM)
            assert not received
        assert received == [signal.SIGTERM]
        with pytest.raises(OSError), main.signals_held_back():
            raise OSError
        signal.raise_signal(signal.SIGTERM)
        assert len(received) == 2  # its handler is back
    finally:
        signal.signal(signal.SIGTERM, before)


def test_images_show_what_each_experiment_with_a_transform_trains_on(results, train_set):
    arrays = np.load(results / "images.npz")
    assert np.array_equal(arrays["originals"], train_set.images[:8])
    assert arrays["names"].tolist() == ["RegularizedLeNet5"]
    (versions,) = arrays["versions"]
    assert versions.shape == (4, 8, 28, 28) and versions.dtype == np.uint8
    change = np.abs(versions.astype(int) - arrays["originals"]).mean()
    assert 2 < change < 40  # moved, and still the same digits
    assert not np.array_equal(versions[0], versions[1])


def test_eight_images_are_shown_whatever_the_size_of_a_batch(monkeypatch, train_set):
    rows = {f"{size}": Experiment(CustomMLP, 0.01, transform=abs, batch_size=size) for size in (4, 32)}
    monkeypatch.setattr(main, "EXPERIMENTS", rows)
    assert main.sample_images(train_set)["versions"].shape == (2, 4, 8, 28, 28)
