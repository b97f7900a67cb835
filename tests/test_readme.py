"""What the READMEs state: snippets and rows to copy, arithmetic, numbers of parameters, links."""

import math
import re

import pytest

import dataset
import main
from helpers import PROJECT, copy_project, is_edited, own_lines, paper, run
from model import CustomMLP, LeNet5, RegularizedLeNet5

TEXTS = {}
for path in (PROJECT / "README.md", PROJECT / "data" / "README.md", PROJECT / "report" / "README.md"):
    TEXTS[str(path.relative_to(PROJECT).as_posix())] = path.read_text(encoding="utf-8")
ALL_TEXTS = "\n".join(TEXTS.values())

# What the READMEs say of main.py holds for its settings as they are shipped.
for_shipped_settings = pytest.mark.skipif(is_edited(), reason="main.py has been edited")


def blocks(text, language):
    """The blocks of code in a text, marked with this language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def calculations():
    """(left side, right side) of every `calculation = number`."""
    return re.findall(r"`([^`=\n]*[0-9][^`=\n]*) = ([0-9][0-9.,]*)`", ALL_TEXTS)


@pytest.mark.parametrize("left, right", calculations())
def test_arithmetic(left, right):
    value = eval(left.replace(",", "").replace(" x ", " * "), {"ln": math.log, "e": math.e})
    decimals = len(right.partition(".")[2])
    assert round(value, decimals) == float(right.replace(",", ""))


def test_the_findings_on_the_original_report_are_calculated():
    lefts, rights = zip(*calculations())
    assert {*lefts} >= {
        "2.3026 / 0.0360",
        "(ln(e + 9) - 1) / 64",
        "1135 / 10000",
        "6742 / 60000",
        "0.9834 - 0.9688",
    }
    assert {*rights} >= {"64", "2.3026", "0.0360", "1.4612", "0.0228", "0.1135", "0.1124"}


def rows_of_tables():
    """The rows of all tables, as lists of cells."""
    lines = re.findall(r"^\|.*\|$", ALL_TEXTS, re.MULTILINE)
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("model_class", [LeNet5, CustomMLP, RegularizedLeNet5])
def test_numbers_of_parameters_are_those_of_the_models(model_class):
    total = sum(parameter.numel() for parameter in model_class().parameters())
    stated = [row for row in rows_of_tables() if row[0] == model_class.__name__ and f"{total:,}" in row]
    assert stated
    calculated = [row for row in rows_of_tables() if len(row) == 4 and re.search(r"\d x \d|\+ 1\) x", row[2])]
    assert calculated
    for _, _, calculation, count in calculated:
        assert eval(calculation.replace("x", "*").replace(",", "")) == int(count.replace(",", ""))


def rows_to_copy():
    """Every block that holds rows of EXPERIMENTS, as the list that it makes."""
    lists = []
    for block in re.findall(r"```\w*\n(.*?)```", ALL_TEXTS, re.DOTALL):
        if re.search(r"^    (\*\[)?Experiment\(", block, re.MULTILINE):
            lists.append(eval(f"[{block}]", vars(main)))
    return lists


@for_shipped_settings
def test_rows_to_copy_can_be_trained(monkeypatch, train_set, test_set):
    monkeypatch.setattr(main, "WORKERS", 1)
    assert rows_to_copy()
    for experiments in rows_to_copy():
        main.check_settings(experiments, (0,))
        assert len(main.try_experiments(experiments, main.Data(train_set, test_set), 0)) == len(experiments)


def test_links_lead_somewhere():
    for name, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)#]+)", text):
            if not link.startswith("http"):
                assert (PROJECT / name).parent.joinpath(link).exists(), link


def test_recipe_for_a_tar_of_own_images(tmp_path, test_set):
    (recipe,) = blocks(TEXTS["data/README.md"], "python")
    for part in ("train", "test"):
        for index in range(3):
            folder = tmp_path / "photos" / part / str(test_set.labels[index].item())
            folder.mkdir(parents=True, exist_ok=True)
            paper(test_set.images[index].numpy()).save(folder / f"{index}.png")
    twice = f"import sys; sys.path.append({str(PROJECT)!r})\nfor _ in range(2): exec({recipe!r}, {{}})"
    process = run(tmp_path, "-c", twice)
    # neither MNIST nor an earlier tar of one's own is overwritten
    assert process.returncode == 1 and "FileExistsError" in process.stderr
    (tar,) = tmp_path.rglob("train.tar")
    assert sorted(dataset.MNIST(tar).labels.tolist()) == sorted(test_set.labels[:3].tolist())


def test_main_says_what_the_readme_says():
    """The accuracies and the time at the end of main.py's docstring are those of the README's first table."""
    readme = TEXTS["README.md"]
    for model in ("LeNet5", "CustomMLP", "RegularizedLeNet5"):
        first_table = readme[: readme.index("## The result")]
        (row,) = re.findall(rf"^\| {model} .*%.*%.*\|$", first_table, re.MULTILINE)
        accuracy = row.split("|")[4].strip()
        assert f"{model} {accuracy}" in main.__doc__
    seconds = re.search(r"takes (\d+)\s+seconds on two cores", main.__doc__)[1]
    assert f"takes {seconds} seconds on two cores" in readme


# Each exercise of the README: the edits as (file, old text, new text).
EXERCISES = {
    "A softmax at the end": [
        (
            "model.py",
            "return self.fc3(x)  # (B, 10)\n\n\nclass RegularizedLeNet5",
            "return self.fc3(x).softmax(dim=1)\n\n\nclass RegularizedLeNet5",
        ),
    ],
    "Larger batches": [("main.py", "BATCH_SIZE = 32", "BATCH_SIZE = 256")],
    "A high learning rate": [
        ("main.py", '"LeNet5", LeNet5, learning_rate=0.02', '"LeNet5", LeNet5, learning_rate=0.5'),
    ],
    "Sigmoid": [("model.py", "            nn.ReLU(),", "            nn.Sigmoid(),")],
    "No padding": [
        ("model.py", ", padding=2)", ")"),
        ("model.py", "nn.Linear(400, 120)", "nn.Linear(256, 120)"),
    ],
    "Augmentation for the MLP": [
        ("main.py", "CustomMLP, learning_rate=0.01", "CustomMLP, learning_rate=0.01, transform=AUGMENTATION")
    ],
    "Is it better?": [
        (
            "main.py",
            "EXPERIMENTS = [",
            "EXPERIMENTS = [\n"
            '    Experiment("LeNet5, decay", LeNet5, 0.02, optimizer_options={"weight_decay": 2e-4}),',
        ),
        ("main.py", "SEEDS = (0,)", "SEEDS = (0, 1, 2, 3, 4)"),
    ],
    "Parameters by hand": [
        ("model.py", "nn.Conv2d(6, 16,", "nn.Conv2d(6, 32,"),
        ("model.py", "nn.Linear(400, 120)", "nn.Linear(800, 120)"),
        ("model.py", "nn.BatchNorm2d(16)", "nn.BatchNorm2d(32)"),
    ],
}

# Tries all rows of the main.py in each folder on a few batches.
TRY_EXPERIMENTS = """
import sys, torch
torch.set_num_threads(1)
train_set = None
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    import main
    if train_set is None:
        train_set, test_set, _ = main.dataset.load_data("data/sample")
    main.check_settings(main.EXPERIMENTS, main.SEEDS)
    main.try_experiments(main.EXPERIMENTS, main.Data(train_set, test_set), 0)
    sys.path.pop(0)
    for module in ("main", "dataset", "model", "plot"):
        del sys.modules[module]
"""


@for_shipped_settings
def test_exercises_can_be_done_as_they_are_told(tmp_path):
    told = re.findall(r"^\d\. \*\*(.*?)\.?\*\*", TEXTS["README.md"], re.MULTILINE)
    answers = (PROJECT / "report" / "answers.md").read_text(encoding="utf-8")
    answered = re.findall(r"^## \d\. (.*)", answers, re.MULTILINE)
    assert told == answered == list(EXERCISES)
    for title, edits in EXERCISES.items():
        folder = copy_project(tmp_path / title.rstrip("?"), WORKERS="1")
        for name, old, new in edits:
            text = (folder / name).read_text(encoding="utf-8")
            assert old in text, (title, old)
            (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    process = run(tmp_path, "-c", TRY_EXPERIMENTS, *map(str, sorted(tmp_path.iterdir())))
    assert process.returncode == 0, process.stderr
    (warning,) = own_lines(process.stderr)
    assert "softmax" in warning
