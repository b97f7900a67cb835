"""What the texts state: rows and scripts to copy, exercises, arithmetic, numbers of parameters, links."""

import math
import re

import numpy as np
import pytest

import dataset
import main
from helpers import PROJECT, copy_project, is_edited, make_row, own_lines, paper, run
from model import CustomMLP, LeNet5, RegularizedLeNet5

TEXTS = {}
for name in ("README.md", "data/README.md", "report/README.md", "report/exercises.md", "report/answers.md"):
    TEXTS[name] = (PROJECT / name).read_text(encoding="utf-8")
ALL_TEXTS = "\n".join(TEXTS.values())

# What the texts say of main.py holds for its settings as they are shipped.
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
    """Every block that holds rows of EXPERIMENTS, as the list that it makes, but for those of exercises."""
    lists = []
    text = ALL_TEXTS.replace(TEXTS["report/exercises.md"], "")
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
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


# The edits of each run of each exercise, made to the project as it is shipped: (place, old text, new text).
# A place is a file, or a class in model.py. If a number stands for the new text, it is that of a block of the
# exercise, which goes behind the old text. What exercises 5 and 8 ask for, their answers tell.
ROWS = ("main.py", "EXPERIMENTS = [\n", 0)
LENET_ALONE = [("comment out", "CustomMLP", "RegularizedLeNet5"), ROWS]
EXERCISES = {
    "A softmax at the end": [[("LeNet5", "return self.fc3(x)", "return self.fc3(x).softmax(dim=1)")]],
    "Larger batches": [[("main.py", "BATCH_SIZE = 32", "BATCH_SIZE = 256")]],
    "A high learning rate": [[("main.py", "learning_rate=0.02", "learning_rate=0.5")]],
    "Sigmoid": [[("CustomMLP", "nn.ReLU()", "nn.Sigmoid()")]],
    "No padding": [[("LeNet5", ", padding=2", ""), ("LeNet5", "nn.Linear(400, 120)", "nn.Linear(256, 120)")]],
    "Augmentation for the MLP": [
        [("main.py", "learning_rate=0.01", "learning_rate=0.01, transform=AUGMENTATION")]
    ],
    "Is it better?": [LENET_ALONE, [*LENET_ALONE, ("main.py", "SEEDS = (0,)", "SEEDS = (0, 1, 2, 3, 4)")]],
    "Parameters by hand": [
        [
            ("LeNet5", "nn.Conv2d(6, 16, kernel_size=5)", "nn.Conv2d(6, 32, kernel_size=5)"),
            ("LeNet5", "nn.Linear(400, 120)", "nn.Linear(800, 120)"),
            ("RegularizedLeNet5", "nn.BatchNorm2d(16)", "nn.BatchNorm2d(32)"),
        ]
    ],
    "Shuffled pixels": [
        [
            ("model.py", "from torch import nn\n", 0),
            ("LeNet5", "def forward(self, images):\n", 1),
            ("CustomMLP", "def forward(self, images):\n", 1),
        ]
    ],
    "A constant rate against the schedule": [LENET_ALONE],
    "The best of many": [LENET_ALONE],
    "Choose on held-out images": [
        [*LENET_ALONE, ("main.py", "VALIDATION_IMAGES = 0", "VALIDATION_IMAGES = 10_000")],
        [("main.py", "learning_rate=0.02", "learning_rate=0.01")],
    ],
    "Fewer images": [
        [("main.py", "TRAINING_IMAGES = None", "TRAINING_IMAGES = 300")],
        [("main.py", "TRAINING_IMAGES = None", "TRAINING_IMAGES = 1_000")],
        [("main.py", "TRAINING_IMAGES = None", "TRAINING_IMAGES = 10_000")],
        [
            ("main.py", "TRAINING_IMAGES = None", "TRAINING_IMAGES = 300"),
            ("main.py", "EPOCHS = 10\n", "EPOCHS = 50\n"),
        ],
    ],
    "Three epochs without batch norm": [
        [
            ("comment out", "LeNet5", "CustomMLP"),
            ("main.py", "EPOCHS = 10\n", "EPOCHS = 3\n"),
            ("main.py", 'BASELINE = "LeNet5"', 'BASELINE = "RegularizedLeNet5"'),
            ROWS,
        ]
    ],
}

# Tries all rows of the main.py in each folder on a few batches, with as many images as MNIST has.
TRY_EXPERIMENTS = """
import sys, torch
torch.set_num_threads(1)
train_set = None
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    import main
    if train_set is None:
        sample, test_set, _ = main.dataset.load_data("data/sample")
        train_set = sample.subset([index % len(sample) for index in range(60_000)])
    main.check_settings(main.EXPERIMENTS, main.SEEDS)
    data = main.Data(train_set, test_set)
    if main.TRAINING_IMAGES or main.VALIDATION_IMAGES:
        chosen, _ = main.dataset.split(train_set, main.TRAINING_IMAGES, main.VALIDATION_IMAGES)
        data = main.Data(chosen, test_set)
    main.try_experiments(main.EXPERIMENTS, data, 0)
    sys.path.pop(0)
    for module in ("main", "dataset", "model", "plot"):
        del sys.modules[module]
"""


def sections(name):
    """{title: text} of the numbered sections of a text."""
    parts = re.split(r"^## \d+\. (.*)\n", TEXTS[name], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def make_edit(folder, task, answer, place, old, new):
    """Make one edit in a copy of the project, if the exercise or its answer tells it."""
    told = " ".join(f"{task} {answer}".split())
    if place == "comment out":
        assert f"comment out the rows {old} and {new}" in told
        for name in (old, new):
            comment_out(folder / "main.py", name)
        return
    if isinstance(new, int):
        new = old + blocks(task, "py")[new]
    else:
        assert (new or old).strip() in told, (place, new or old)
    path = folder / (place if place.endswith(".py") else "model.py")
    whole = path.read_text(encoding="utf-8")
    part = whole
    if not place.endswith(".py"):
        (part,) = re.findall(rf"^class {place}\(.*?(?=^class |\Z)", whole, re.MULTILINE | re.DOTALL)
    assert old in part, (place, old)
    path.write_text(whole.replace(part, part.replace(old, new)), encoding="utf-8")


def comment_out(path, name):
    """Comment out a row of EXPERIMENTS."""
    text = path.read_text(encoding="utf-8")
    (row,) = re.findall(rf'^    Experiment\(\s*"{name}",.*?\),$', text, re.MULTILINE | re.DOTALL)
    commented = "\n".join(f"# {line}" for line in row.splitlines())
    path.write_text(text.replace(row, commented), encoding="utf-8")


def test_exercises_can_be_done_as_they_are_told(tmp_path):
    tasks, answers = sections("report/exercises.md"), sections("report/answers.md")
    assert list(tasks) == list(answers) == list(EXERCISES)
    for title, runs in EXERCISES.items():
        for number, edits in enumerate(runs, start=1):
            folder = tmp_path / f"{title.rstrip('?')} {number}"
            copy_project(folder, sample=False, WORKERS="1", TRAINING_IMAGES="None")
            for edit in edits:
                make_edit(folder, tasks[title], answers[title], *edit)
    process = run(tmp_path, "-c", TRY_EXPERIMENTS, *map(str, sorted(tmp_path.iterdir())))
    assert process.returncode == 0, process.stderr
    (warning,) = own_lines(process.stderr)
    assert "softmax" in warning


def test_exercises_of_the_readme_are_among_them():
    told = re.findall(r"^\d+\. \*\*(.*?)\.?\*\*", TEXTS["README.md"], re.MULTILINE)
    assert {*told} <= {*EXERCISES}


def test_the_best_on_one_half_is_worse_on_the_other(tmp_path, train_set, test_set):
    """The script of exercise 11, with four trainings that are equally good, but for luck."""
    folder = tmp_path / "results" / "4"
    folder.mkdir(parents=True)
    main.run_training(make_row("LeNet5", LeNet5), main.Data(train_set, test_set), 0, folder, quiet=True)
    with np.load(folder / "LeNet5-seed0.npz") as record:
        logits, labels = record["logits"], record["labels"]
    accuracies = []
    for seed in range(4):
        noisy = logits + np.random.default_rng(seed).normal(size=logits.shape)
        accuracies.append(100 * (noisy.argmax(axis=1) == labels).mean())
        name = f"LeNet5, {seed}" if seed else "LeNet5"
        np.savez(folder / f"{name}-seed0.npz", logits=noisy, labels=labels)
    (script,) = blocks(TEXTS["report/exercises.md"], "python")
    chosen, honest = percentages(run(tmp_path, "-c", script))
    # of each training, the mean of two halves is its accuracy
    assert honest < max(accuracies) < chosen and (chosen + honest) / 2 < max(accuracies) + 0.01
    without_choice = script.replace("right[:, order[:half]].mean(axis=1).argmax()", "0")
    chosen, honest = percentages(run(tmp_path, "-c", without_choice))
    assert chosen == pytest.approx(honest, abs=0.4)  # a standard error is 0.07


def percentages(process):
    """The percentages that a process has printed."""
    assert process.returncode == 0, process.stderr
    return [float(number) for number in re.findall(r"([0-9.]+)%", process.stdout)]
