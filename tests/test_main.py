"""The training, and the whole program as a user runs it."""

import importlib
import io
import json
import random
import re
import shutil
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout
from torch.utils.data import DataLoader

import dataset
import main
import plot
from dataset import Augmentation
from helpers import PROJECT, copy_project, make_row, own_lines, paper, results_of, rows, run
from main import Data, Experiment
from model import CustomMLP, LeNet5, RegularizedLeNet5

NAMES = ("LeNet5", "CustomMLP", "RegularizedLeNet5")

# The whole program ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A copy of the project in which `python main.py` has run, with pictures of two digits, and
    what it printed. A script of one's own and the lock file of an editor lie beside main.py."""
    folder = copy_project(tmp_path_factory.mktemp("project"), EPOCHS="2", SEEDS="range(0, 4, 3)")
    (folder / "mine.py").write_text("raise SystemExit\n", encoding="utf-8")
    (folder / ".#main.py").write_text("nobody@nowhere", encoding="utf-8")
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
    ends = ("csv", "pt", "npz")
    trainings = {f"{name}-seed{seed}.{end}" for name in NAMES for seed in (0, 3) for end in ends}
    pictures = ("comparison", "confusion", "images", "layers", "mistakes", "my_digits")
    plots = {f"{name}.png" for name in (*NAMES, *pictures)}
    others = {"settings.json", "summary.md", "code"}
    assert {path.name for path in results.iterdir()} == trainings | plots | others
    for path in results.glob("*.csv"):
        assert [row["epoch"] for row in rows(path)] == ["1", "2"]


def test_the_code_of_a_run_is_what_it_has_imported(results):
    files = {path.name: path.read_bytes() for path in (results / "code").iterdir()}
    assert set(files) == {"main.py", "dataset.py", "model.py", "plot.py"}
    for name, source in files.items():
        assert source == (results.parent.parent / name).read_bytes()


def test_training_on_the_sample_reaches_a_sensible_accuracy(results):
    for path in results.glob("*.csv"):
        first, last = rows(path)
        assert float(last["eval_accuracy"]) > (0.8 if "MLP" in path.name else 0.92)
        assert float(last["train_accuracy"]) > float(first["train_accuracy"])
        assert float(last["train_loss"]) < float(first["train_loss"])


@pytest.mark.parametrize("model_class", [LeNet5, CustomMLP, RegularizedLeNet5])
def test_saved_weights_and_answers_are_those_that_were_tested(results, test_set, model_class):
    path = results / f"{model_class.__name__}-seed3"
    model = model_class()
    model.load_state_dict(torch.load(f"{path}.pt", weights_only=True))
    loss, accuracy = main.test(model, dataset.batches(test_set, 1000), "cpu", cross_entropy)
    last = rows(Path(f"{path}.csv"))[-1]
    assert float(last["eval_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(last["eval_accuracy"]) == pytest.approx(accuracy)
    record = np.load(f"{path}.npz")
    with torch.no_grad():
        logits = model(test_set[:][0])
    assert np.allclose(record["logits"], logits, atol=1e-4)
    # the digit that the layers are shown for: the least sure answer of the first hundred
    index = logits[:100].softmax(dim=1).amax(dim=1).argmin()
    assert np.array_equal(record["input"], test_set.images[index])
    assert np.allclose(record["input_logits"], logits[index], atol=1e-4)
    assert np.array_equal(record["labels"], test_set.labels)
    wrong = logits.argmax(dim=1) != test_set.labels
    assert wrong.any() and np.array_equal(record["mistakes"], test_set.images[wrong])


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
    assert rates[0] > 0.002 and rates[1] < 1e-4
    every_step = np.load(results / "LeNet5-seed0.npz")["learning_rates"]
    assert len(every_step) == 2 * (4000 // 32)
    assert every_step.max() == pytest.approx(0.02, rel=0.01)
    assert np.argmax(every_step) == pytest.approx(75, abs=2)


def test_settings_tell_data_seeds_rows_and_versions(results):
    settings = json.loads((results / "settings.json").read_text(encoding="utf-8"))
    assert settings["seeds"] == [0, 3] and settings["baseline"] == "LeNet5"
    assert list(settings["experiments"]) == list(NAMES)
    parameters = [row["parameters"] for row in settings["experiments"].values()]
    assert parameters == [61706, 61720, 62158]
    row = settings["experiments"]["RegularizedLeNet5"]
    assert row["epochs"] == 2 and "weight_decay" in row["row"] and "elastic=0.4" in row["row"]
    assert settings["kind"] == "test"
    assert settings["torch"] == torch.__version__


def test_images_show_what_each_transform_makes_of_the_training_images(results, train_set):
    assert "versions" not in np.load(results / "LeNet5-seed0.npz")
    record = np.load(results / "RegularizedLeNet5-seed0.npz")
    assert np.array_equal(record["originals"], train_set.images[:8])
    versions = record["versions"]
    assert versions.shape == (4, 8, 28, 28) and versions.dtype == np.uint8
    change = np.abs(versions.astype(int) - record["originals"]).mean()
    assert 2 < change < 40  # moved, and still the same digits
    assert not np.array_equal(versions[0], versions[1])


def test_prints_every_epoch_the_table_and_the_pictures(finished, results):
    out = finished[1].stdout
    for path in results.glob("*.csv"):
        name, seed = path.stem.split("-seed")
        mine = re.findall(rf"^{name} +{seed} .*", out, re.MULTILINE)
        assert len(mine) == 2
        for number, (line, row) in enumerate(zip(mine, rows(path)), start=1):
            assert f"{number}/2" in line
            assert f"{float(row['eval_accuracy']):.2%}" in line and f"{float(row['train_loss']):.4f}" in line
    table = (results / "summary.md").read_text(encoding="utf-8").partition("\n\n## ")[0]
    assert table in out
    for model_class in (LeNet5, CustomMLP, RegularizedLeNet5):
        assert f"{sum(parameter.numel() for parameter in model_class().parameters()):,}" in out
    assert own_lines(finished[1].stderr) == []


def test_there_are_no_options(finished):
    process = run(finished[0], "main.py", "--epochs", "3")
    assert process.returncode == 2 and "--epochs" in process.stderr
    assert results_of(finished[0])  # the only run


def test_plot_rebuilds_all_that_a_run_made(finished, results):
    made = {path: path.read_bytes() for path in (*results.glob("*.png"), results / "summary.md")}
    del made[results / "my_digits.png"]  # which the models have drawn
    for path in made:
        path.unlink()
    process = run(finished[0], "plot.py", "1")
    assert process.returncode == 0, process.stderr
    assert {path: path.read_bytes() for path in made} == made


def test_readme_snippets_work_when_pasted_after_a_run(finished):
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert snippets
    for old, new in (("photo.jpg", "data/my_digits/0.png"), ("range(1, 4)", "(1,)")):
        snippets = [snippet.replace(old, new) for snippet in snippets]
    # each with names of its own, but in one process, since importing torch takes seconds
    process = run(finished[0], "-c", f"for code in {snippets}: exec(code, {{}}); print('next')")
    assert process.returncode == 0, process.stderr
    assert all(part.strip() for part in process.stdout.split("next\n")[:-1])


def test_from_another_folder_all_is_the_same(tmp_path):
    """No data, no network, a link to main.py, a terminal that knows ASCII only."""
    folder = tmp_path / "project"
    folder.mkdir()
    row = '[Experiment("A", CustomMLP, 0.01)]'
    copy_project(folder, sample=False, EPOCHS="1", SEEDS="(0, 1)", VALIDATION_IMAGES="3000", EXPERIMENTS=row)
    try:
        (tmp_path / "train.py").symlink_to(folder / "main.py")
    except OSError:  # Windows may refuse
        pytest.skip("no links here")
    process = run(tmp_path, "train.py", PYTHONIOENCODING="ascii")
    assert process.returncode == 0, process.stderr
    assert "sample" in process.stderr
    settings = json.loads((results_of(folder) / "settings.json").read_text(encoding="utf-8"))
    assert "1,000 training" in settings["description"]
    # nothing of the failed download is left
    assert [path.name for path in (folder / "data").iterdir()] == ["sample"]
    assert " ? " in process.stdout
    assert " ± " in (results_of(folder) / "summary.md").read_text(encoding="utf-8")


# Mistakes -------------------------------------------------------------------------------------------


@pytest.fixture
def small_run(monkeypatch, tmp_path, train_set, test_set):
    """Let a run in this process train CustomMLP for an epoch on two small tars. Return the folder of
    the tars and of results/."""
    settings = {
        "EXPERIMENTS": [make_row("CustomMLP", CustomMLP)],
        "SEEDS": (0,),
        "VALIDATION_IMAGES": 0,
        "WORKERS": 1,
        "BASELINE": "LeNet5",
        "DATA_DIR": tmp_path,
        "DIGITS_DIR": tmp_path / "digits",
    }
    for name, value in settings.items():
        monkeypatch.setattr(main, name, value)
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "results")
    dataset.write_tar(tmp_path / "train.tar", train_set.images[:160], train_set.labels[:160])
    dataset.write_tar(tmp_path / "test.tar", test_set.images[:30], test_set.labels[:30])
    return tmp_path


BAD_SETTINGS = [
    *(("SEEDS", value) for value in ((), (0, 0), (-1,), (2**64,), (0.5,), 3)),
    *(("TRAINING_IMAGES", value) for value in (0, 10**6)),
    *(("VALIDATION_IMAGES", value) for value in (-1, 10**6)),
    ("WORKERS", 0),
    *(
        ("EXPERIMENTS", value)
        for value in ([], [{}], make_row("alone", LeNet5), [make_row(LeNet5, "swapped")])
    ),
]


@pytest.mark.parametrize("name, value", BAD_SETTINGS)
def test_bad_settings_end_in_one_line_before_anything_is_trained(monkeypatch, small_run, capsys, name, value):
    monkeypatch.setattr(main, name, value)
    assert main.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert not (small_run / "results").exists()


ROWS_WITH_BAD_SETTINGS = [
    ("epochs", 0),
    ("epochs", 1.5),
    ("batch_size", 0),
    ("device", "abacus"),
    ("device", "cuda:99"),
]


@pytest.mark.parametrize("setting, value", ROWS_WITH_BAD_SETTINGS)
def test_bad_settings_of_a_row_are_named_as_they_are_written(small_run, setting, value):
    rows = [make_row("good", CustomMLP), make_row("my model", CustomMLP, **{setting: value})]
    with pytest.raises(main.UserError, match=rf"my model.*{setting.upper()} or {setting} = {value!r}"):
        main.run(rows, (0,))
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


class Returning(CustomMLP):
    """A model whose logits go through a function before it returns them."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(super().forward(images))


class Careless(torch.optim.Optimizer):
    """An optimizer of one's own that does not call super().__init__()."""

    def __init__(self, parameters, lr):
        self.param_groups = [{"params": list(parameters), "lr": lr}]


def row(model, learning_rate=0.01, **settings):
    """A row of EXPERIMENTS that trains for an epoch."""
    return make_row("my model", model, learning_rate, **settings)


def returning(function, **settings):
    return row(Returning, options={"function": function}, **settings)


BAD_ROWS = {
    "wrong width": (row(Tutorial, options={"width": 300}), "shapes"),
    "9 outputs": (row(Tutorial, options={"outputs": 9}), r"\(B, 10\).*9"),
    "12 outputs": (row(Tutorial, options={"outputs": 12}), "12"),
    "no batch": (returning(torch.squeeze), r"\(10,\)"),
    "a tuple": (returning(lambda logits: (logits, None)), "tuple"),
    "missing import": (row(Tutorial, options={"break_it": True}), r"x = F\.relu\(x\)"),
    "an object for a class": (row(LeNet5()), r"LeNet5, not LeNet5\("),
    "a class for an object": (row(LeNet5, loss=nn.CrossEntropyLoss), r"loss=CrossEntropyLoss\("),
    "an optimizer without super().__init__()": (row(LeNet5, optimizer=Careless), "Careless"),
    "unknown option": (row(LeNet5, options={"dropout": 0.5}), "dropout"),
    "exploding": (row(LeNet5, 1e30), "learning_rate"),
    "a transform that changes the shape": (row(LeNet5, transform=lambda batch: batch[:, :, 1:]), "27"),
    "a transform that changes the type": (row(LeNet5, transform=torch.Tensor.double), "float64"),
    "loss of another shape": (row(LeNet5, loss=nn.MSELoss()), "size"),
    "too large a batch": (row(LeNet5, batch_size=161), "161"),
}


@pytest.mark.parametrize("bad_row, reason", BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_that_cannot_be_trained_are_named(monkeypatch, small_run, capsys, bad_row, reason):
    monkeypatch.setattr(main, "EXPERIMENTS", [make_row("good", CustomMLP), bad_row])
    assert main.main([]) == 2
    err = capsys.readouterr().err
    line, _ = own_lines(err)
    assert "EXPERIMENTS, row 'my model', seed 0" in line and re.search(reason, err)
    # Python's traceback, without the lines of installed code
    assert str(Path(torch.__file__).parent) not in err
    assert not (small_run / "results").exists()


def test_all_bad_rows_are_named(monkeypatch, small_run, capsys):
    bad_rows = [make_row("first", LeNet5()), make_row("second", Tutorial, options={"width": 300})]
    monkeypatch.setattr(main, "EXPERIMENTS", [bad_rows[0], make_row("good", CustomMLP), bad_rows[1]])
    assert main.main([]) == 2
    first, second, _ = own_lines(capsys.readouterr().err)
    assert "'first'" in first and "'second'" in second


BAD_NAMES = ["a/b", "a\\b", "a:b", "a\0b", "a\nb", "\u20ac" * 100, "comparison", "My_Digits", "custommlp"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_no_file_names_or_taken_are_refused(monkeypatch, small_run, capsys, name):
    monkeypatch.setattr(main, "EXPERIMENTS", [*main.EXPERIMENTS, make_row(name, CustomMLP)])
    assert main.main([]) == 2
    assert repr(name) in capsys.readouterr().err.splitlines()[0]
    assert not (small_run / "results").exists()


def hides_layers():
    """A model whose layers PyTorch does not find, beside one that it does."""
    model = CustomMLP()
    hidden = [nn.Linear(10, 10)]
    model.layers.register_forward_hook(lambda module, inputs, output: hidden[0](output))
    return model


class Scaled(CustomMLP):
    """A model whose logits depend on the other images of the batch."""

    def forward(self, images):
        return super().forward(images) * images[:, :, 13:15, 13:15].mean()


def without_averages():
    """A model whose batch norm keeps no averages."""
    return nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(784, 10))


WARNED_ROWS = {
    "softmax and cross-entropy": (returning(partial(torch.softmax, dim=1)), "applies a softmax"),
    "softmax and another loss": (
        returning(partial(torch.softmax, dim=1), loss=lambda outputs, labels: -outputs.mean()),
        "tables",
    ),
    "softmax and NLLLoss": (returning(partial(torch.softmax, dim=1), loss=nn.NLLLoss()), "log_softmax"),
    "batch norm without averages": (row(without_averages, learning_rate=0.1), "track_running_stats"),
    "a look at the whole batch": (row(Scaled, learning_rate=0.1), "track_running_stats"),
    "dropout in evaluation": (returning(dropout), "dropout"),
    "layers in a list": (row(hides_layers), "ModuleList"),
}


def try_row(monkeypatch, train_set, test_set, row):
    """Do the dry run of a row and of a good one."""
    monkeypatch.setattr(main, "WORKERS", 1)
    main.try_experiments([make_row("good", LeNet5), row], Data(train_set, test_set), 0)


@pytest.mark.parametrize("warned_row, reason", WARNED_ROWS.values(), ids=WARNED_ROWS)
def test_models_that_are_wrong_without_an_error_are_warned_of(
    monkeypatch, train_set, test_set, capsys, warned_row, reason
):
    try_row(monkeypatch, train_set, test_set, warned_row)
    (warning,) = own_lines(capsys.readouterr().err)
    assert "my model" in warning and reason in warning


@pytest.mark.parametrize(
    "good_row",
    [returning(partial(torch.log_softmax, dim=1), loss=nn.NLLLoss()), returning(torch.relu)],
    ids=["log_softmax", "ReLU"],
)
def test_other_ends_of_a_model_are_not_taken_for_a_softmax(
    monkeypatch, train_set, test_set, capsys, good_row
):
    try_row(monkeypatch, train_set, test_set, good_row)
    assert own_lines(capsys.readouterr().err) == []


def test_what_is_odd_is_said_and_the_run_goes_on(monkeypatch, small_run, capsys, test_set):
    """No baseline, a model that learns nothing, a picture that is none."""
    constant = returning(lambda logits: 0 * logits)
    monkeypatch.setattr(main, "BASELINE", "AlexNet")
    (small_run / "digits").mkdir()
    (small_run / "digits" / "notes.txt").write_text("no picture", encoding="utf-8")
    paper(test_set.images[0].numpy()).save(small_run / "digits" / "seven.png")
    assert main.run([make_row("good", LeNet5, epochs=40), constant], (7,)) == 0
    printed = capsys.readouterr()
    (warning,) = re.findall(".*learned almost nothing.*", printed.out)
    assert "my model" in warning and "7" in warning and "learning_rate" in warning
    assert "AlexNet" in printed.out
    (line,) = printed.err.splitlines()
    assert "notes.txt" in line
    assert "| seven.png" in printed.out
    assert (small_run / "results" / "1" / "my_digits.png").stat().st_size > 10_000


def test_bad_images_are_named_in_one_line(small_run, capsys):
    (small_run / "test.tar").unlink()
    dataset.write_tar(small_run / "test.tar", torch.zeros(2, 32, 32, dtype=torch.uint8), torch.tensor([3, 8]))
    assert main.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(small_run / "test.tar") in line and "test/00000_3.png" in line


def test_results_folder_that_cannot_be_made_is_named(monkeypatch, small_run, capsys):
    (small_run / "file").touch()
    monkeypatch.setattr(plot, "RESULTS", small_run / "file")
    assert main.main([]) == 2
    (line,) = own_lines(capsys.readouterr().err)
    assert str(small_run / "file") in line


def test_a_module_that_was_edited_since_its_import_stops_the_next_run(monkeypatch, small_run):
    """As in a notebook, whose kernel keeps what it has imported."""
    folder = small_run / "models"
    folder.mkdir()
    path = folder / "wide.py"
    path.write_text("from model import CustomMLP as Wide\n", encoding="utf-8")
    monkeypatch.setattr(dataset, "PROJECT", small_run)
    monkeypatch.syspath_prepend(small_run)
    wide = importlib.import_module("models.wide")
    assert main.run([make_row("wide", wide.Wide)], (0,)) == 0
    assert (small_run / "results" / "1" / "code" / "models" / "wide.py").read_bytes() == path.read_bytes()
    main.code_of_run()  # nothing has been edited
    path.write_text("from model import LeNet5 as Wide\n", encoding="utf-8")
    with pytest.raises(main.UserError, match=r"models/wide\.py"):
        main.run([make_row("wide", wide.Wide)], (0,))
    assert [path.name for path in (small_run / "results").iterdir()] == ["1"]
    importlib.reload(wide)
    assert main.code_of_run()["models/wide.py"] == path.read_bytes()


# Asking ---------------------------------------------------------------------------------------------


ROWS = [make_row(model.__name__, model) for model in (LeNet5, CustomMLP, RegularizedLeNet5)]


@pytest.fixture
def asked(monkeypatch, finished, tmp_path):
    """The folder of a copy of the finished run, the newest one, and the path of a picture."""
    shutil.copytree(finished[0] / "results", tmp_path / "results")
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(main, "EXPERIMENTS", ROWS)
    return tmp_path / "results" / "1", str(finished[0] / "data" / "my_digits" / "0.png")


def test_a_run_answers_pictures_as_its_models_do(finished, results):
    folder, process = finished
    for index in range(2):
        (line,) = re.findall(rf"^\| {index}\.png .*", process.stdout, re.MULTILINE)
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        image = dataset.read_digit(folder / "data" / "my_digits" / f"{index}.png")
        for model_class, cell in zip((LeNet5, CustomMLP, RegularizedLeNet5), cells, strict=True):
            model = model_class()
            weights = torch.load(results / f"{model_class.__name__}-seed0.pt", weights_only=True)
            model.load_state_dict(weights)
            model.eval()
            with torch.no_grad():
                probabilities = model(dataset.normalize(image[None])).softmax(dim=1)[0]
            digit = probabilities.argmax().item()
            assert cell.startswith(f"{digit} (") and cell.endswith("right" if digit == index else "wrong")
            percent = float(re.search(r"\((\d+\.\d+)%", cell)[1])
            assert percent == pytest.approx(100 * probabilities.max().item(), abs=0.02)


def test_trained_models_are_asked_without_training_again(finished):
    folder, process = finished
    (folder / "data" / "my_digits" / "Thumbs.db").write_bytes(b"of Windows")
    asked = run(folder, "main.py", "--run", "1", "data/my_digits")
    assert asked.returncode == 0, asked.stderr
    answers = re.findall(r"^\| \d\.png .*", process.stdout, re.MULTILINE)
    assert len(answers) == 2 and all(line in asked.stdout for line in answers)
    picture = folder / "results" / "my_digits.png"
    assert picture.stat().st_size > 10_000 and "my_digits.png" in asked.stdout
    picture.unlink()


def test_what_cannot_be_asked_is_named(monkeypatch, asked, capsys):
    _, digit = asked
    monkeypatch.setattr(
        main, "EXPERIMENTS", [make_row("LeNet5", CustomMLP), make_row("CustomMLP", CustomMLP)]
    )
    assert main.main([digit, "nowhere.png"]) == 1
    printed = capsys.readouterr()
    picture, row = own_lines(printed.err)
    assert "nowhere.png" in picture and "'LeNet5'" in row
    assert "CustomMLP" in printed.out and "| LeNet5" not in printed.out
    assert main.main(["nowhere.png"]) == 1
    assert "nowhere.png" in own_lines(capsys.readouterr().err)[0]
    monkeypatch.setattr(plot, "RESULTS", Path("no such folder"))
    assert main.main([digit]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no such folder" in line


def forget(folder):
    (folder / "CustomMLP-seed0.npz").unlink()
    (folder / "CustomMLP-seed3.npz").unlink()


def cut_weights(folder):
    path = folder / "CustomMLP-seed0.pt"
    path.write_bytes(path.read_bytes()[:1000])


def break_weights(folder):
    path = folder / "CustomMLP-seed0.pt"
    weights = torch.load(path, weights_only=True)
    weights["layers.1.weight"][0, 0] = float("nan")
    torch.save(weights, path)


@pytest.mark.parametrize("damage", [forget, cut_weights, break_weights])
def test_a_model_that_cannot_answer_is_named_and_the_others_answer(asked, capsys, damage):
    folder, digit = asked
    damage(folder)
    assert main.main([digit]) == 1
    printed = capsys.readouterr()
    (line,) = own_lines(printed.err)
    assert "'CustomMLP'" in line
    assert "RegularizedLeNet5" in printed.out and "CustomMLP" not in printed.out


class Edited(LeNet5):
    """LeNet5 after an edit: the weights still fit, but they mean something else."""

    def __init__(self):
        super().__init__()
        self.activation = nn.Tanh()


def test_a_model_that_was_edited_since_is_named(asked, capsys):
    folder, digit = asked
    rows = [replace(ROWS[0], model=Edited), ROWS[1]]
    assert not main.ask([digit], rows, folder, folder / "my_digits.png")
    (line,) = own_lines(capsys.readouterr().err)
    assert "'LeNet5'" in line


def test_a_damaged_file_of_the_run_that_is_asked_is_named(asked, capsys):
    folder, digit = asked
    (folder / "LeNet5-seed0.npz").write_text("a, (\n1\n", encoding="utf-8")
    assert main.main([digit]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "LeNet5-seed0.npz" in line


# One training ---------------------------------------------------------------------------------------


def train_here(experiment, train_set, test_set, folder, seed=0):
    """Train in this process. Return the rows of the CSV."""
    assert main.run_job(main.run_training, experiment, Data(train_set, test_set), seed, folder)
    path = folder / f"{experiment.name}-seed{seed}.csv"
    found = rows(path)
    path.unlink()
    return found


def one_epoch(train_set, test_set, folder, **settings):
    """The figures of an epoch on few images in which LeNet5 learns nothing, so that all differences come
    from the settings."""
    (figures,) = train_here(row(LeNet5, 1e-20, **settings), train_set.subset(slice(320)), test_set, folder)
    return figures


OWN_ROWS = [row(Tutorial, 0.02, epochs=2), row(LeNet5, 0.003, epochs=2, optimizer=torch.optim.Adam)]


@pytest.mark.parametrize("own_row", OWN_ROWS, ids=["model", "optimizer"])
def test_ones_own_model_and_another_optimizer_train(train_set, test_set, tmp_path, own_row):
    few = train_set.subset(slice(1000))
    first, last = train_here(own_row, few, test_set, tmp_path)
    assert float(last["train_loss"]) < float(first["train_loss"]) and float(last["eval_accuracy"]) > 0.3


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


def test_an_empty_loader_is_named():
    with pytest.raises(main.UserError):
        main.test(LeNet5(), [], "cpu", cross_entropy)


def test_labels_in_a_column_are_refused(test_set):
    images, labels = test_set[:]
    loader = [(images, labels[:, None])]

    def criterion(logits, labels):
        return cross_entropy(logits, labels[:, 0])

    with pytest.raises(main.UserError):
        main.test(LeNet5(), loader, "cpu", criterion)


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


def test_dropout_is_on_in_training_and_off_in_testing(test_set):
    torch.manual_seed(0)
    model = RegularizedLeNet5(dropout=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    arguments = model, dataset.batches(test_set, 1000), "cpu", nn.CrossEntropyLoss()
    assert main.test(*arguments) == main.test(*arguments)
    # nothing is learned, so only dropout makes a difference
    assert main.train(*arguments, optimizer) != main.train(*arguments, optimizer)
    assert main.test(*arguments) == main.test(*arguments)


@pytest.mark.parametrize("images, batch_size, steps", [(65, 32, 2), (20, 1, 20)])
def test_incomplete_batches_are_left_out_of_training(
    tmp_path, train_set, test_set, images, batch_size, steps
):
    experiment = row(LeNet5 if batch_size == 1 else RegularizedLeNet5, batch_size=batch_size)
    few = train_set.subset(slice(images))
    assert len(main.build(experiment, few)[0]) == steps
    assert len(train_here(experiment, few, test_set, tmp_path)) == 1


def test_every_test_image_counts(tmp_path, train_set):
    images = train_set.subset(slice(1001))  # one more than a batch
    (figures,) = train_here(row(CustomMLP), images, images, tmp_path)
    accuracy = float(figures["eval_accuracy"])
    assert 0 < accuracy < 1 and accuracy * 1001 == pytest.approx(round(accuracy * 1001), abs=0.002)


def test_augmentation_is_for_the_training_images_of_its_experiment_only(tmp_path, train_set, test_set):
    moved = one_epoch(train_set, test_set, tmp_path, transform=Augmentation(rotation=8, shift=1.4))
    still = one_epoch(train_set, test_set, tmp_path)
    torch.manual_seed(0)
    few = train_set.subset(slice(320))
    loss, _ = main.test(LeNet5(), dataset.batches(few, 1000), "cpu", nn.CrossEntropyLoss())
    assert float(still["train_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(moved["train_loss"]) != pytest.approx(loss, rel=1e-4)
    assert moved["eval_loss"] == still["eval_loss"]


def test_another_loss_is_trained_with_and_testing_reports_cross_entropy(tmp_path, train_set, test_set):
    plain = one_epoch(train_set, test_set, tmp_path)
    smooth = one_epoch(train_set, test_set, tmp_path, loss=nn.CrossEntropyLoss(label_smoothing=0.5))
    assert plain["train_loss"] != smooth["train_loss"]
    assert plain["eval_loss"] == smooth["eval_loss"]


def test_a_transform_may_work_in_place(tmp_path, train_set, test_set):
    def darken(images):
        return images.sub_(0.5)

    for _ in range(2):  # the training images stay as they are
        figures = one_epoch(train_set, test_set, tmp_path, transform=darken)
        assert figures["eval_loss"] == one_epoch(train_set, test_set, tmp_path)["eval_loss"]
    versions = np.load(tmp_path / "my model-seed0.npz")
    assert np.array_equal(versions["originals"], train_set.images[:8])


class CountingLoss(nn.CrossEntropyLoss):
    """A loss with a state: it grows with each call."""

    calls = 0

    def forward(self, logits, labels):
        self.calls += 1
        return self.calls * super().forward(logits, labels)


def noisy(images):
    """A transform that draws from all generators of random numbers."""
    return images + random.random() + np.random.rand() + 0.1 * torch.rand_like(images)


def test_same_seed_same_figures_to_the_last_digit(tmp_path, train_set, test_set):
    # whatever a training has drawn, counted or changed before must not matter
    experiment = make_row(
        "A",
        RegularizedLeNet5,
        torch.tensor(0.05),  # which the schedule changes in place
        options={"dropout": 0.5},
        transform=noisy,
        loss=CountingLoss(),
        epochs=2,
    )
    few = train_set.subset(slice(500))
    found = []
    for seed in (0, 0, 1):
        random.random(), np.random.rand(), torch.rand(7)
        csv = train_here(experiment, few, test_set, tmp_path, seed)
        for line in csv:
            del line["seconds"]
        found.append((csv, torch.load(tmp_path / f"A-seed{seed}.pt", weights_only=True)))
    (first, weights), (second, same_weights), (third, _) = found
    assert first == second != third and len(first) == 2
    rates = np.load(tmp_path / "A-seed1.npz")["learning_rates"]
    assert rates.max() == pytest.approx(0.05, rel=0.01)
    assert all(torch.equal(weights[key], same_weights[key]) for key in weights)


def test_finished_epochs_are_on_disk_at_once(tmp_path, train_set, test_set):
    seen = []

    class Watched(CustomMLP):
        def train(self, mode=True):  # called when an epoch begins
            path = tmp_path / "my model-seed0.csv"
            if mode and path.exists():
                weights = torch.load(tmp_path / "my model-seed0.pt", weights_only=True)
                assert torch.equal(weights["layers.1.weight"], self.layers[1].weight)
                seen.append(len(rows(path)))
            return super().train(mode)

    train_here(row(Watched, epochs=3), train_set, test_set, tmp_path)
    assert list(dict.fromkeys(seen)) == [1, 2]


def test_runs_get_the_next_number(monkeypatch, tmp_path):
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    (tmp_path / "notes").mkdir()
    for number in ("1", "2", "12"):
        about = dict.fromkeys(("description", "kind", "train_checksum", "eval_checksum"), "the same")
        assert main.start_run({}, about, {}, [], (0,)) == tmp_path / number
        if number == "2":
            (tmp_path / "11").mkdir()


OPTIMIZERS = [
    ({}, {"momentum": main.MOMENTUM, "weight_decay": 0, "nesterov": False}),
    ({"optimizer_options": {"weight_decay": 0.1}}, {"momentum": main.MOMENTUM, "weight_decay": 0.1}),
    ({"optimizer": torch.optim.SGD}, {"momentum": 0}),
    ({"optimizer": torch.optim.AdamW}, {"weight_decay": 0.01, "betas": (0.9, 0.999)}),
]


@pytest.mark.parametrize("settings, expected", OPTIMIZERS)
def test_the_optimizer_gets_what_the_row_states_and_nothing_else(train_set, settings, expected):
    experiment = Experiment("my model", LeNet5, 0.01, epochs=1, batch_size=32, device="cpu", **settings)
    _, _, optimizer, _ = main.build(experiment, train_set)
    (group,) = optimizer.param_groups
    assert {name: group[name] for name in expected} == expected


def test_each_group_of_parameters_keeps_its_own_learning_rate(train_set):
    def two_groups(parameters, lr):
        weights = list(parameters)
        return torch.optim.SGD([{"params": weights[:4]}, {"params": weights[4:], "lr": lr / 10}], lr=lr)

    _, _, _, scheduler = main.build(row(LeNet5, 0.02, optimizer=two_groups), train_set)
    first, second = scheduler.get_last_lr()
    assert first == pytest.approx(10 * second)


class Temperature(nn.Module):
    """A loss with a parameter that is learned, and a weight for each class."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("weight", torch.ones(10))

    def forward(self, logits, labels):
        return cross_entropy(self.scale * logits, labels, weight=self.weight)


def test_parameters_of_a_loss_are_learned(train_set):
    experiment = row(CustomMLP, loss=Temperature())
    loader, model, optimizer, _ = main.build(experiment, train_set.subset(slice(320)))
    main.train(model, loader, "cpu", experiment.loss, optimizer)
    assert experiment.loss.scale != 1


def test_an_optimizer_may_read_the_parameters_twice(train_set):
    def two_groups(parameters, lr):
        weights = [parameter for parameter in parameters if parameter.dim() > 1]
        biases = [parameter for parameter in parameters if parameter.dim() == 1]
        return torch.optim.SGD([{"params": weights}, {"params": biases}], lr=lr)

    _, model, optimizer, _ = main.build(row(LeNet5, optimizer=two_groups), train_set)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


class Lookahead(torch.optim.Optimizer):
    """An optimizer around another one, which does not call super().__init__() and so has no hooks."""

    def __init__(self, parameters, lr):
        self.inner = torch.optim.SGD(parameters, lr)
        self.param_groups, self.state, self.defaults = self.inner.param_groups, self.inner.state, {}

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    def step(self, closure=None):
        return self.inner.step(closure)


def test_an_optimizer_without_hooks_trains(tmp_path, train_set, test_set):
    first, last = train_here(
        row(LeNet5, 0.05, optimizer=Lookahead, epochs=2), train_set.subset(slice(500)), test_set, tmp_path
    )
    assert float(last["train_loss"]) < float(first["train_loss"])
    assert float(first["learning_rate"]) > float(last["learning_rate"]) > 0


def halved(optimizer, total_steps):
    """A schedule of one's own: half the rate in the second half."""
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=total_steps // 2, gamma=0.5)


@pytest.mark.parametrize("schedule, rates", [(None, [0.02] * 20), (halved, [0.02] * 10 + [0.01] * 10)])
def test_schedules_are_stepped_after_each_batch(tmp_path, train_set, test_set, schedule, rates):
    train_here(row(LeNet5, 0.02, schedule=schedule), train_set.subset(slice(640)), test_set, tmp_path)
    record = np.load(tmp_path / "my model-seed0.npz")
    assert record["learning_rates"] == pytest.approx(rates)


def test_averages_of_batch_norm_are_computed_again_only_where_a_row_asks_for_it(
    tmp_path, train_set, test_set
):
    few = train_set.subset(slice(320))
    off, on = (
        train_here(row(RegularizedLeNet5, update_bn=update_bn), few, test_set, tmp_path)[0]
        for update_bn in (False, True)
    )
    torch.manual_seed(0)  # what PyTorch alone does
    loader, model, optimizer, scheduler = main.build(row(RegularizedLeNet5), few)
    main.train(model, loader, "cpu", nn.CrossEntropyLoss(), optimizer, scheduler)
    loss, _ = main.test(model, dataset.batches(test_set, 1000), "cpu", nn.CrossEntropyLoss())
    assert float(off["eval_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(on["eval_loss"]) != pytest.approx(loss, rel=1e-3)


def test_training_accuracy_is_measured_like_test_accuracy(tmp_path, train_set, test_set):
    few = train_set.subset(slice(320))
    augmented = row(RegularizedLeNet5, transform=Augmentation(rotation=40, shift=4), options={"dropout": 0.5})
    train_here(augmented, few, test_set, tmp_path)
    model = RegularizedLeNet5()
    model.load_state_dict(torch.load(tmp_path / "my model-seed0.pt", weights_only=True))
    _, accuracy = main.test(model, dataset.batches(few, 1000), "cpu", nn.CrossEntropyLoss())
    assert np.load(tmp_path / "my model-seed0.npz")["train_accuracy"] == pytest.approx(accuracy)


class Held:
    """Lets no file of a kind get its name, as a spreadsheet or a virus scanner does on Windows, so often."""

    def __init__(self, monkeypatch, ending, times):
        self.times, self.ending, self.replace = times, ending, Path.replace
        monkeypatch.setattr(Path, "replace", lambda source, target: self.rename(source, target))
        monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def rename(self, source, target):
        if str(target).endswith(self.ending) and self.times > 0:
            self.times -= 1
            raise PermissionError(13, "Access is denied", str(target))
        return self.replace(source, target)


TRIES = 21  # to rename a file, in two seconds


@pytest.mark.parametrize(
    "ending, times", [(".pt", TRIES - 1), (".csv", TRIES + 3)], ids=["weights", "figures"]
)
def test_a_file_that_is_held_costs_no_training(monkeypatch, tmp_path, train_set, test_set, ending, times):
    Held(monkeypatch, ending, times)
    found = train_here(row(CustomMLP, epochs=2), train_set.subset(slice(64)), test_set, tmp_path)
    assert [line["epoch"] for line in found] == ["1", "2"]


def test_figures_that_can_not_be_written_at_the_end_fail_the_training(
    monkeypatch, tmp_path, train_set, test_set, capsys
):
    Held(monkeypatch, ".csv", 10**6)
    data = Data(train_set.subset(slice(64)), test_set)
    assert not main.run_job(main.run_training, row(CustomMLP, epochs=2), data, 0, tmp_path)
    err = capsys.readouterr().err
    assert "my model-seed0.csv" in own_lines(err)[-1] and "Traceback" not in err
    assert torch.load(tmp_path / "my model-seed0.pt", weights_only=True)
    assert not (tmp_path / "my model-seed0.npz").exists()


# Layers ---------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A model of one's own: a layer that is used twice, one that returns a number, a sum, a parameter."""

    class Number(nn.Module):
        def forward(self, images):
            return 1

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, kernel_size=3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, kernel_size=3, padding=1), nn.ReLU(inplace=True))
        self.scale = nn.Parameter(torch.ones(1))
        self.number = self.Number()
        self.last = nn.Linear(4 * 49, 10)

    def forward(self, images):
        x = self.first(images)
        x = x + self.number(x) * self.scale * self.block(self.block(x))
        return self.last(nn.functional.max_pool2d(x, 4).flatten(1))


class Rows(nn.Module):
    """A recurrent network that reads an image row by row, in low precision."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(28, 32, batch_first=True)
        self.out = nn.Linear(32, 10)

    def forward(self, images):
        outputs, _ = self.lstm(images[:, 0])
        return self.out(outputs[:, -1]).bfloat16()


def compiled():
    """A compiled model. This backend needs no compiler."""
    return torch.compile(LeNet5(), backend="eager")


def test_layers_are_listed_where_they_are_used(test_set):
    model = Residual()
    record = main.layer_outputs(model, test_set.images[0], "cpu")
    layers = zip(record["layer_names"], record["layer_kinds"], record["layer_parameters"])
    assert list(layers) == [
        ("first", "Conv2d", 40),
        ("block.0", "Conv2d", 148),
        ("block.1", "ReLU", 0),
        ("block.0", "Conv2d", 0),  # counted above
        ("block.1", "ReLU", 0),
        ("last", "Linear", 1970),
        ("(model)", "Residual", 1),
    ]
    with torch.no_grad():
        image, _ = test_set[:1]
        assert torch.allclose(record["output_0"], model.first(image)[0], atol=1e-5)
        assert torch.equal(record["filters"], model.first.weight[:, 0])
        assert torch.equal(record["output_6"], record["input_logits"])
    assert record["output_1"].min() < 0 == record["output_2"].min()  # before and after ReLU
    assert not any(module._forward_hooks for module in model.modules())


def test_models_of_ones_own_run_to_the_end(monkeypatch, small_run, capsys):
    monkeypatch.setattr(main, "WORKERS", 2)  # torch.compile changes optimizers in its process
    names = {"residual": Residual, "recurrent": Rows, "compiled": compiled}
    assert main.run([make_row(name, model) for name, model in names.items()], (0,)) == 0
    assert own_lines(capsys.readouterr().err) == []
    folder = small_run / "results" / "1"
    kinds = {name: np.load(folder / f"{name}-seed0.npz")["layer_kinds"].tolist() for name in names}
    assert kinds["recurrent"] == ["LSTM", "Linear"]
    assert kinds["compiled"][0] == "Conv2d" and kinds["compiled"][-1] == "Linear"


def test_weights_that_see_the_pixels_are_kept_as_images(test_set):
    model = CustomMLP()
    record = main.layer_outputs(model, test_set.images[0], "cpu")
    assert torch.equal(record["filters"].flatten(1), model.layers[1].weight)


def test_a_run_in_a_thread_of_another_program_ends_well(monkeypatch, small_run):
    monkeypatch.setattr(main, "WORKERS", 2)
    found = []
    rows = [make_row(name, CustomMLP) for name in "AB"]
    thread = threading.Thread(target=lambda: found.append(main.run(rows, (0,))))
    thread.start()
    thread.join()
    assert found == [0]


def test_a_run_under_a_profiler_keeps_its_code(tmp_path):
    """A profiler runs the code of main.py, which then is no module of its own."""
    folder = copy_project(tmp_path)
    profiler = "exec(compile(open('main.py', 'rb').read(), 'main.py', 'exec'), scope)"
    code = (
        f"scope = {{'__name__': 'none', '__file__': 'main.py'}}; {profiler}; print(*scope['code_of_run']())"
    )
    process = run(folder, "-c", code)
    assert set(process.stdout.split()) == {"main.py", "dataset.py", "model.py", "plot.py"}, process.stderr


def test_any_standard_output_will_do(monkeypatch, small_run):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    plot.prepare_output()
    assert main.main([]) == 0
    assert "CustomMLP" in sys.stdout.getvalue()
