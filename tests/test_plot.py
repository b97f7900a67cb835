"""Tables and pictures of runs. The trainings in them are real, on few images of the sample."""

import io
import json
import os
import re
import shutil
import statistics
import sys
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.text import Text
from torch import nn

import dataset
import main
import plot
from helpers import make_row
from helpers import rows as csv_rows
from helpers import run as run_script
from model import CustomMLP, LeNet5

EPOCHS = 3
CODE = {
    "main.py": "EPOCHS = 3\n\nEXPERIMENTS = [\n    Experiment(\n        LeNet5,\n        0.02,\n    ),\n]\n",
    "model.py": "class A:\n    activation = nn.ReLU()\n",
}


def train(name, model, seed, folder, train_set, test_set):
    """Return the rows of the CSV and the record that a training on few images leaves."""
    row = make_row(name, model, 0.003, optimizer=torch.optim.Adam, epochs=EPOCHS)
    data = main.Data(train_set.subset(slice(500)), test_set.subset(slice(300)))
    main.run_training(row, data, seed, folder, quiet=True)
    path = folder / f"{name}-seed{seed}"
    rows = [[float(value) for value in row.values()] for row in csv_rows(f"{path}.csv")]
    with np.load(f"{path}.npz") as record:
        return rows, dict(record)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train_set, test_set):
    """{experiment: {seed: (rows of the CSV, record)}}"""
    folder = tmp_path_factory.mktemp("trained")
    trainings = {}
    for model in (LeNet5, CustomMLP):
        name = model.__name__
        seeds = {seed: train(name, model, seed, folder, train_set, test_set) for seed in (0, 1)}
        trainings[name] = seeds
    return trainings


def make_run(folder, trainings, code=CODE, **changes):
    """Write the folder of a run. A training whose record is None has not finished."""
    folder.mkdir(parents=True)
    (folder / "code").mkdir()
    for name, source in code.items():
        (folder / "code" / name).parent.mkdir(exist_ok=True)
        (folder / "code" / name).write_bytes(source if isinstance(source, bytes) else source.encode())
    facts = {"epochs": EPOCHS, "parameters": 61706, "row": "Experiment(...)"}
    settings = {
        "date": "2026-01-01 12:00:00",
        "description": "1,000 images from here",
        "kind": "test",
        "train_checksum": "abc",
        "eval_checksum": "def",
        "python": "3.11.7",
        "torch": "2.14.1",
        "numpy": "2.4.6",
        "seeds": sorted({seed for seeds in trainings.values() for seed in seeds}),
        "workers": 1,
        "baseline": "LeNet5",
        "compared_with": None,
        "edit": ["Not compared", ""],
        "experiments": {name: facts for name in trainings},
    }
    (folder / "settings.json").write_text(json.dumps(settings | changes), encoding="utf-8")
    for name, seeds in trainings.items():
        for seed, (rows, record) in seeds.items():
            lines = [",".join(map(str, row)) for row in (plot.COLUMNS, *rows)]
            text = "\n".join(lines) + "\n"
            (folder / f"{name}-seed{seed}.csv").write_text(text, encoding="utf-8")
            if record is not None:
                np.savez(folder / f"{name}-seed{seed}.npz", **record)
    return folder


def shown(folder, name=None):
    """A run, with one of its pictures if it is named."""
    run = plot.read_run(folder)
    if name is None:
        return run
    figure = plot.plot_experiment(run, name) if name in run.stats else getattr(plot, f"plot_{name}")(run)
    figure.draw_without_rendering()
    return figure


def edited(before, after):
    """The Edit that led from the run in a folder to that in another one."""
    return plot.Edit(plot.read_run(before), plot.read_run(after))


def only(trained, seed=0):
    """LeNet5 with one of its trainings, called seed 0."""
    return {"LeNet5": {0: trained["LeNet5"][seed]}}


def swapped(seeds):
    """Trainings whose seeds 0 and 1 have changed places: other figures of each, but the same mean."""
    return {0: seeds[1], 1: seeds[0]}


def chosen(folder, trainings, code=CODE, **changes):
    """The run that a new one is compared with before it has trained, and the lines that it prints."""
    new = {name: {seed: ([], None) for seed in seeds} for name, seeds in trainings.items()}
    path = make_run(folder, new, code, **changes) / "settings.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    del settings["compared_with"], settings["edit"]  # which are not known yet
    path.unlink()
    return plot.choose_run_before(folder, settings)


def record_of(rights):
    """What the tables use of a record: all labels are 0, and the answers are 0 where they are right, else 1.
    rights: an array (N,)."""
    return {"labels": np.zeros(len(rights), int), "logits": np.eye(10, dtype=np.float32)[1 - rights]}


def column(training, name):
    """A figure of all epochs, from the rows of a training."""
    rows, _ = training
    return np.array([row[plot.COLUMNS.index(name)] for row in rows])


def cells(lines):
    """The rows of the tables in some lines, as lists of texts."""
    rows = [line for line in lines if line.startswith("|") and not line.startswith("| --")]
    return [[text.strip() for text in row.split("|")[1:-1]] for row in rows]


def by_title(figure):
    return {axes.get_title(): axes for axes in figure.axes}


@pytest.fixture
def folder(tmp_path, trained):
    """The folder of a run: two experiments with two seeds."""
    return make_run(tmp_path / "1", trained)


# The files of a run


def test_read_run_gives_what_the_files_hold_in_the_order_of_the_settings(tmp_path, trained):
    run = shown(make_run(tmp_path / "1", trained, seeds=[1, 0]))
    assert list(run.stats) == ["LeNet5", "CustomMLP"] and list(run.stats["LeNet5"]) == [1, 0]
    for name in plot.COLUMNS:
        assert np.array_equal(run.stats["LeNet5"][1][name], column(trained["LeNet5"][1], name))
    assert np.array_equal(run.records["LeNet5"][0]["logits"], trained["LeNet5"][0][1]["logits"])
    assert run.code["main.py"][3] == "EXPERIMENTS = ["
    assert run.code["model.py"] == dict(enumerate(CODE["model.py"].splitlines(), start=1))


def test_runs_are_those_folders_that_are_numbers_the_newest_first(tmp_path):
    for name in ("1", "9", "10", "old", "9_copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").touch()
    (tmp_path / "11").mkdir()  # a run that ended before it began
    assert [folder.name for folder in plot.run_folders(tmp_path)] == ["10", "9", "1"]


def test_epochs_that_have_not_finished_are_left_out_and_counted(folder):
    (folder / "CustomMLP-seed0.csv").unlink()
    (folder / "CustomMLP-seed1.csv").write_text("", encoding="utf-8")
    path = folder / "LeNet5-seed1.csv"
    path.write_text(path.read_text(encoding="utf-8").rpartition("\n3")[0], encoding="utf-8")
    (folder / "LeNet5-seed1.npz").unlink()
    run = shown(folder)
    assert list(run.stats) == ["LeNet5"] and list(run.stats["LeNet5"][1]["epoch"]) == [1, 2]
    assert re.findall("Not finished: (.*)", "\n".join(plot.summary(run))) == [
        "LeNet5, seed 1: 2 of 3 epochs",
        "CustomMLP, seed 0: 0 of 3 epochs",
        "CustomMLP, seed 1: 0 of 3 epochs",
    ]


DAMAGED = {
    "no JSON": ("settings.json", b"{"),
    "of an earlier version": (
        "settings.json",
        b'{"seeds": [0, 1], "experiments": {"LeNet5": {"epochs": 3}}}',
    ),
    "of another program": ("settings.json", b'{"EXPERIMENTS": {}}'),
    "a column is missing": ("LeNet5-seed0.csv", b"epoch,train_loss,train_accuracy\n1,0.5,0.9\n"),
    "a word": ("LeNet5-seed0.csv", f"{','.join(plot.COLUMNS)}\n1,high,0.5,1,0.5,1,1\n".encode()),
    "no archive": ("LeNet5-seed0.npz", b"no archive"),
}


@pytest.mark.parametrize("name, content", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_cannot_be_read_is_named_in_one_line(folder, tmp_path, trained, capsys, name, content):
    later = make_run(tmp_path / "2", trained | {"LeNet5": swapped(trained["LeNet5"])})
    (folder / name).write_bytes(content)
    for arguments in ([str(folder)], [str(folder), str(later)]):
        assert plot.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(folder / name) in line


# Tables


def test_the_table_holds_means_deviations_and_gains(folder, trained):
    headings, *rows = cells(plot.summary(shown(folder)))
    table = {row[0]: dict(zip(headings, row)) for row in rows}
    for name, seeds in trained.items():
        ends = [100 * column(training, "eval_accuracy")[-1] for training in seeds.values()]
        losses = [column(training, "eval_loss")[-1] for training in seeds.values()]
        # from the record: the CSV's is of the last epoch, while the model still learned
        train = [100 * record["train_accuracy"] for _, record in seeds.values()]
        assert table[name]["test acc"] == f"{statistics.mean(ends):.2f} ± {statistics.stdev(ends):.2f}%"
        assert table[name]["test loss"] == f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}"
        assert table[name]["train acc"] == f"{np.mean(train):.2f} ± {np.std(train, ddof=1):.2f}%"
        assert abs(np.mean(train) / 100 - column(seeds[0], "train_accuracy")[-1]) > 0.005
    run = shown(folder)
    gain = plot.change_text(run.records["LeNet5"], run.records["CustomMLP"], "eval_accuracy")
    assert table["CustomMLP"]["gain"] == gain
    assert table["LeNet5"]["gain"] == ""


def test_no_gain_is_given_unless_both_have_finished(folder, trained):
    for name in trained:
        (folder / f"{name}-seed1.npz").rename(folder / "kept")
        assert [row[4] for row in cells(plot.summary(shown(folder)))] == ["gain", "", ""]
        (folder / "kept").rename(folder / f"{name}-seed1.npz")


def test_tables_and_pictures_say_validation_where_they_mean_it(tmp_path, trained):
    run = shown(make_run(tmp_path / "1", trained, kind="validation", description="images"))
    texts = [*plot.summary(run), *plot.details(run)]
    for figure in (plot.plot_comparison(run), plot.plot_experiment(run, "LeNet5")):
        texts += [text.get_text() for text in figure.findobj(Text)]
    text = "\n".join(texts)
    assert "validation acc" in text and "validation loss" in text and "test" not in text


def test_a_model_that_guesses_is_named(tmp_path, trained):
    flat = [(epoch, 2.3, 0.11, 2.3, 0.11, 1, 0.01) for epoch in (1, 2, 3)]
    large_loss = [(epoch, 300, 0.9, 3.1, 0.9, 1, 0.01) for epoch in (1, 2, 3)]  # but it has learned
    record = trained["LeNet5"][0][1]
    trainings = {"guesses": {0: (flat, record)}, "learned": {0: (large_loss, record)}}
    text = "\n".join(plot.summary(shown(make_run(tmp_path / "1", trainings))))
    assert re.findall("Warning: (.*), seed 0", text) == ["guesses"]


def test_seeds_that_make_no_difference_are_remarked(tmp_path, trained):
    same = {"same": dict.fromkeys((0, 1), trained["LeNet5"][0])}
    (line,) = plot.training_remarks(shown(make_run(tmp_path / "1", trained | same)))
    assert line.startswith("Warning: same")


def test_summary_md_holds_row_and_layers(tmp_path, trained):
    facts = {"epochs": EPOCHS, "parameters": 61706, "row": "Experiment('LeNet5', ...)"}
    folder = make_run(tmp_path / "1", {"LeNet5": trained["LeNet5"]}, experiments={"LeNet5": facts})
    lines = plot.details(shown(folder))
    assert any(facts["row"] in line for line in lines)
    rows = cells(lines)
    assert ["conv1", "Conv2d", "6 x 28 x 28", "156"] in rows and ["fc1", "Linear", "120", "48,120"] in rows
    assert ["total", "", "", "61,706"] in rows


# What a change means


def test_the_error_of_one_seed_is_the_root_of_the_number_of_changed_answers():
    before, fixed, broken = (np.ones(10_000, int) for _ in range(3))
    before[:50] = 0
    for count, text in ((48, "+0.24 ± 0.08, may be chance"), (49, "+0.26 ± 0.08")):  # 3 errors are 0.2545
        after = before.copy()
        after[:count] = 1
        after[50 : 50 + 72 - count] = 0
        records = {0: record_of(before)}, {0: record_of(after)}
        assert plot.mean_change(*records, "eval_accuracy")[1] == pytest.approx(72**0.5 / 100, rel=1e-3)
        assert plot.change_text(*records, "eval_accuracy") == text
        assert re.fullmatch(r"-0\.\d{4} ± 0\.\d{4}", plot.change_text(*records, "eval_loss"))  # no verdict
        assert plot.change_text(*reversed(records), "eval_accuracy") == text.replace("+", "-")
    assert plot.change_text(records[0], records[0], "eval_accuracy") == "+0.00 ± 0.00"


def random_records(rng, seeds, images):
    labels = rng.integers(10, size=images)
    return {
        seed: {"labels": labels, "logits": rng.normal(1000, 2, (images, 10)).astype(np.float32)}
        for seed in range(seeds)
    }


def losses_and_accuracies(record):
    """As PyTorch computes them: a number per image."""
    logits, labels = torch.from_numpy(record["logits"]).double(), torch.from_numpy(record["labels"])
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return losses.numpy(), 100.0 * (logits.argmax(dim=1) == labels).numpy()


def test_the_error_of_several_seeds_is_that_of_two_way_random_effects():
    """The textbook's mean squares, sum by sum."""
    larger = []
    for number in range(5):
        rng = np.random.default_rng(number)
        before, after = (random_records(rng, seeds=3, images=20) for _ in range(2))
        for seed in after:
            after[seed]["labels"] = before[seed]["labels"]
            for label, logits in zip(after[seed]["labels"], after[seed]["logits"]):
                logits[label] += 3 * seed  # so the seeds differ
        for index, name in enumerate(("eval_loss", "eval_accuracy")):
            changes = [
                losses_and_accuracies(after[seed])[index] - losses_and_accuracies(before[seed])[index]
                for seed in before
            ]
            mean = sum(sum(row) for row in changes) / 60
            of_seeds = [sum(row) / 20 for row in changes]
            of_images = [sum(row[image] for row in changes) / 3 for image in range(20)]
            square_of_seeds = 20 * sum((value - mean) ** 2 for value in of_seeds) / 2
            square_of_images = 3 * sum((value - mean) ** 2 for value in of_images) / 19
            square_of_rest = sum(
                (changes[seed][image] - of_seeds[seed] - of_images[image] + mean) ** 2
                for seed in range(3)
                for image in range(20)
            ) / (2 * 19)
            part_of_seeds = square_of_seeds - square_of_rest
            error = ((square_of_images + max(0, part_of_seeds)) / 60) ** 0.5
            assert plot.mean_change(before, after, name) == pytest.approx((mean, error))
            larger.append(part_of_seeds > 0)
    assert any(larger)


def test_seeds_that_agree_make_no_error_smaller_than_that_of_the_images():
    before = {seed: record_of(np.zeros(300, int)) for seed in range(3)}
    # Each seed has fixed as many images, but others: what the seeds' means vary by is estimated below 0.
    images = np.arange(300)
    fixed = [(images < 90) | (images >= 290), images // 100 == 1, images // 100 == 2]
    after = {seed: record_of(right.astype(int)) for seed, right in enumerate(fixed)}
    of_images = np.mean(100 * np.array(fixed), axis=0)
    change, error = plot.mean_change(before, after, "eval_accuracy")
    assert change == pytest.approx(100 / 3)
    assert error == pytest.approx(of_images.std(ddof=1) / 300**0.5)


@pytest.mark.parametrize("of_seeds", [0, 0.1])
def test_the_error_is_as_large_as_changes_vary_from_draw_to_draw(of_seeds):
    """Draws of seeds and images whose variances are known: losses of 2 that fall by 0.1 on average."""
    rng = np.random.default_rng(0)
    seeds, images = 8, 60
    before = {seed: record_with_losses(np.full(images, 2.0)) for seed in range(seeds)}
    squares = []
    for _ in range(500):
        losses = 1.9 + of_seeds * rng.normal(size=(seeds, 1)) + 0.2 * rng.normal(size=images)
        losses += 0.2 * rng.normal(size=(seeds, images))
        after = {seed: record_with_losses(losses[seed]) for seed in range(seeds)}
        change, error = plot.mean_change(before, after, "eval_loss")
        squares.append(((change + 0.1) / error) ** 2)
    assert 0.75 < np.mean(squares) < 1.35


def record_with_losses(losses):
    logits = np.zeros((len(losses), 10))
    logits[:, 0] = -np.log((np.exp(losses) - 1) / 9)
    return {"labels": np.zeros(len(losses), int), "logits": logits}


# What did my edit do?


def test_the_edit_is_the_lines_that_differ_with_their_places(folder, tmp_path, trained):
    source = CODE["main.py"].replace("0.02", "0.005").replace("EPOCHS = 3", "# more\n\nEPOCHS = 3  # fast")
    code = CODE | {"main.py": source, "model.py": CODE["model.py"] + "\n    pool = 5\n    # pool = 6\n"}
    later = make_run(tmp_path / "2", trained, code | {"models/mine.py": "x = 1\n"})
    assert edited(folder, later).changes == [
        "main.py, line 6: -         0.02,",
        "main.py, line 8: +         0.005,",
        "model.py, line 4: +     pool = 5",
        "models/mine.py is new",
    ]
    assert "models/mine.py is gone" in edited(later, folder).changes


def test_the_row_of_a_notebook_is_an_edit_too(folder, tmp_path, trained):
    row = "Experiment(name='LeNet5', learning_rate={}, epochs=3)"
    facts = [{"epochs": 3, "parameters": 61706, "row": row.format(rate)} for rate in (0.02, 0.01)]
    before, after = (
        make_run(tmp_path / f"{index}" / "1", only(trained), experiments={"LeNet5": facts[index]})
        for index in range(2)
    )
    assert edited(before, after).changes == ["row 'LeNet5': learning_rate=0.01"]


def test_a_long_edit_is_cut_and_its_length_said(folder, tmp_path, trained):
    long = "".join(f"x{number} = {number}\n\n" for number in range(50))
    later = make_run(tmp_path / "2", trained, CODE | {"model.py": CODE["model.py"] + long})
    lines = [line for line in plot.edit_lines(edited(folder, later)) if line.startswith("    ")]
    assert len(lines) == plot.MOST_LINES + 1 and "30 more" in lines[-1]


def test_code_in_any_encoding_is_compared(tmp_path, trained):
    old = make_run(tmp_path / "1", only(trained), {"model.py": b"\xef\xbb\xbfname = '#1'\n"})
    new = make_run(tmp_path / "2", only(trained), {"model.py": b"# coding: latin-1\nname = '\xff'\n"})
    assert edited(old, new).changes == [
        "model.py, line 1: - name = '#1'",
        "model.py, line 2: + name = '\xff'",
    ]


def test_experiments_whose_figures_differ_are_compared(folder, tmp_path, trained):
    other = {0: trained["CustomMLP"][1], 1: trained["LeNet5"][1]}
    trainings = trained | {"CustomMLP": other, "new": trained["LeNet5"]}
    edit = edited(folder, make_run(tmp_path / "2", trainings, CODE | {"model.py": ""}))
    assert edit.experiments == ["CustomMLP"]  # LeNet5 has not changed, and "new" is not in both
    records = edit.before.records["CustomMLP"], edit.after.records["CustomMLP"]
    headings, accuracy, loss, images = cells(plot.edit_lines(edit))
    assert headings[2:4] == ["run 1", "run 2"] and accuracy[0] == "CustomMLP"
    for row, name, scale in ((accuracy, "eval_accuracy", 100), (loss, "eval_loss", 1)):
        for text, seeds in zip(row[2:4], (trained["CustomMLP"], other)):
            ends = [scale * column(training, name)[-1] for training in seeds.values()]
            mean, error = text.rstrip("%").split(" ± ")
            assert float(mean) == pytest.approx(statistics.mean(ends), abs=0.006 * scale / 100)
            assert float(error) == pytest.approx(statistics.stdev(ends), abs=0.006 * scale / 100)
        assert row[4] == plot.change_text(*records, name)
    old, now = (record["logits"].argmax(axis=1) for _, record in (trained["CustomMLP"][0], other[0]))
    labels = other[0][1]["labels"]
    fixed, broken = ((old != labels) & (now == labels)).sum(), ((old == labels) & (now != labels)).sum()
    assert re.findall(r"\d+", images[4]) == ["0", str(fixed), str(broken)]  # of seed 0
    figure = plot.plot_comparison(edit.after, edit)
    assert sorted(line.get_linestyle() for line in figure.axes[0].lines[:2]) == ["-", "--"]
    assert "nn.ReLU" in figure.get_suptitle()


def test_a_table_of_three_seeds_is_no_wider_than_a_terminal(tmp_path, trained):
    names = ("LeNet5", "CustomMLP", "RegularizedLeNet5")
    seeds = trained["LeNet5"] | {2: trained["CustomMLP"][0]}
    before = make_run(tmp_path / "1", dict.fromkeys(names, seeds))
    after = make_run(tmp_path / "2", dict.fromkeys(names, seeds | swapped(seeds)))
    lines = plot.edit_lines(edited(before, after))
    assert len(cells(lines)) == 10 and all(row[4].startswith("+0.00") for row in cells(lines)[1::3])
    assert max(map(len, lines)) <= plot.WIDTH


def test_an_experiment_that_has_not_finished_is_not_compared(folder, tmp_path, trained):
    rows, _ = trained["LeNet5"][0]
    unfinished = trained | {"LeNet5": {0: (rows[:1], None), 1: trained["LeNet5"][1]}}
    later = make_run(tmp_path / "2", unfinished, CODE | {"model.py": ""})
    for edit in (edited(folder, later), edited(later, folder)):
        assert not edit.experiments
        lines = plot.edit_lines(edit)
        assert not cells(lines) and edit.finished == [name for name in trained if name != "LeNet5"]


def test_what_is_said_if_code_or_figures_have_not_changed(folder, tmp_path, trained):
    code = CODE | {"model.py": CODE["model.py"] + "\n# better\n"}
    (line,) = filter(None, plot.edit_lines(edited(folder, make_run(tmp_path / "2", trained, code))))
    assert line == "Nothing has changed since run 1."
    other = trained | {"LeNet5": swapped(trained["LeNet5"])}  # the same mean
    other_text = "\n".join(plot.edit_lines(edited(folder, make_run(tmp_path / "3", other))))
    assert "random" in other_text and "| LeNet5" in other_text and "| CustomMLP" not in other_text
    code = CODE | {"model.py": CODE["model.py"] + "x = 1\n"}
    same_text = "\n".join(plot.edit_lines(edited(folder, make_run(tmp_path / "4", trained, code))))
    assert "+ x = 1" in same_text and "no loss" in same_text
    edit = edited(folder, make_run(tmp_path / "5", other, torch="2.15.0"))
    assert edit.changes == ["torch: 2.14.1 -> 2.15.0"]


def test_other_seeds_or_images_are_compared_if_asked_for_but_without_an_error(
    tmp_path, monkeypatch, capsys, trained
):
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    make_run(tmp_path / "1", {"LeNet5": trained["LeNet5"]})
    make_run(tmp_path / "2", {"LeNet5": {seed + 2: each for seed, each in trained["CustomMLP"].items()}})
    others = {"description": "others", "eval_checksum": "xyz"}
    make_run(tmp_path / "3", {"LeNet5": trained["CustomMLP"]}, **others)
    reasons = []
    for number, change in (("2", "[0, 1] -> [2, 3]"), ("3", "1,000 images from here -> others")):
        assert plot.main(["1", number]) == 0
        out = capsys.readouterr().out
        _, *rows = cells(out.splitlines())
        assert change in out and len(rows) == 2  # no images are fixed or broken
        assert "±" in rows[0][2] and "±" in rows[0][3] and "±" not in rows[0][4] + rows[1][4]
        reasons.append(rows[0][4])
        (picture,) = tmp_path.glob("*.png")  # of the curves, and none of images
        assert picture.stat().st_size > 10_000 and f"In {tmp_path}: {picture.name}" in out
        picture.unlink()
    assert all(reasons) and reasons[0] != reasons[1]


# Which run is it compared with?


RATE = {"main.py": CODE["main.py"].replace("0.02", "0.005")}  # an exercise
TANH = {"model.py": CODE["model.py"].replace("ReLU", "Tanh")}  # another one


def test_an_exercise_is_compared_with_the_unedited_run_and_not_with_the_exercise_before_it(tmp_path, trained):
    for number, code in (("1", CODE), ("2", CODE), ("3", CODE | RATE)):
        make_run(tmp_path / number, only(trained), code)
    number, lines = chosen(tmp_path / "4", only(trained), CODE | TANH)
    assert number == "1"  # 1 and 2 are equally near
    assert "    model.py, line 2: +     activation = nn.Tanh()" in lines and len(lines) == 4
    both = CODE | RATE | TANH
    assert chosen(tmp_path / "5", only(trained), both | {"a.py": "x = 1\n"})[0] == "3"
    rows, _ = trained["LeNet5"][0]
    make_run(tmp_path / "6", {"LeNet5": {0: (rows, None)}}, both)  # interrupted
    assert chosen(tmp_path / "7", only(trained), both)[0] == "3"
    make_run(tmp_path / "10", only(trained), both)
    assert chosen(tmp_path / "11", only(trained), both)[0] == "10"


def test_a_run_that_cannot_be_compared_says_so(tmp_path, trained):
    one = only(trained)
    others = (
        {"trainings": {"LeNet5": {0: ([], None)}}},  # not finished
        {"trainings": one, "eval_checksum": "xyz"},
        {"trainings": {"LeNet5": {1: one["LeNet5"][0]}}},
        {"trainings": {"A": one["LeNet5"]}},
    )
    for index, other in enumerate(others):
        make_run(tmp_path / str(index) / "1", **other)
        number, (line, *_) = chosen(tmp_path / str(index) / "2", one)
        assert number is None and line.startswith("Not compared")
    # Other training images, and a row of several, can be compared.
    make_run(tmp_path / "9" / "1", one | {"A": one["LeNet5"]}, train_checksum="xyz")
    assert chosen(tmp_path / "9" / "2", one | {"B": one["LeNet5"]})[0] == "1"


def test_earlier_runs_that_cannot_be_read_cost_one_line_in_all(tmp_path, trained, capsys):
    make_run(tmp_path / "1", only(trained))
    make_run(tmp_path / "6", only(trained))
    (tmp_path / "6" / "LeNet5-seed0.csv").write_text("epoch\nword\n", encoding="utf-8")
    older = make_run(tmp_path / "7", only(trained)) / "LeNet5-seed0.csv"  # of an earlier version
    older.write_text(older.read_text(encoding="utf-8").replace("eval_", "val_"), encoding="utf-8")
    assert chosen(tmp_path / "8", only(trained))[0] == "1"
    (line,) = capsys.readouterr().err.splitlines()
    assert "6, 7" in line


def test_pictures_of_an_edit_go_with_the_run_that_it_was_compared_with(tmp_path, trained, capsys):
    before = make_run(tmp_path / "1", only(trained))
    after = make_run(tmp_path / "2", only(trained, seed=1), compared_with="1")
    pictures = [after / "edit.png", after / "fixed.png"]
    record = before / "LeNet5-seed0.npz"
    plot.show_run(after)
    assert all(path.exists() for path in pictures) and not capsys.readouterr().err
    content = record.read_bytes()
    record.write_bytes(b"no archive")
    assert plot.run_before(shown(after)) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert str(record) in line
    record.write_bytes(content)
    assert plot.run_before(shown(after)).folder == before
    shutil.rmtree(before)
    plot.show_run(after)
    assert not any(path.exists() for path in pictures) and (after / "images.png").exists()
    assert "run 1" not in (after / "summary.md").read_text(encoding="utf-8")
    (line,) = capsys.readouterr().err.splitlines()
    assert str(before) in line


# The list of runs


def test_the_list_tells_runs_apart_and_reads_no_record(tmp_path, trained, monkeypatch, capsys):
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    make_run(tmp_path / "9", trained)
    code = CODE | {"model.py": CODE["model.py"] + f"    long = [{'1, ' * 50}]\n"}
    facts = {"epochs": 17, "parameters": 61706, "row": "Experiment(...)"}
    names = ("LeNet5", "CustomMLP", "RegularizedLeNet5")
    experiments = dict.fromkeys(names, facts)
    three = dict.fromkeys(names, trained["LeNet5"])
    make_run(
        tmp_path / "10",
        three,
        code,
        experiments=experiments,
        edit=["Compared with run 9:", "", "    model.py, line 3: +     long = [1, 1"],
    )
    make_run(tmp_path / "11", {"LeNet5": {0: ([], None)}})
    for number in ("12", "13"):
        make_run(tmp_path / number, trained)
        (tmp_path / number / "settings.json").write_text("{", encoding="utf-8")
    for path in tmp_path.glob("*/*.npz"):
        path.write_bytes(b"no archive")
    assert plot.main([]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    _, nine, ten, eleven = cells(lines)
    assert [nine[0], ten[0], eleven[0]] == ["9", "10", "11"]
    assert [nine[2:4], ten[2:4], eleven[2:]] == [["3", "2"], ["17", "2"], ["3", "1", ""]]
    for name, seeds in trained.items():
        accuracies = [100 * column(training, "eval_accuracy")[-1] for training in seeds.values()]
        assert f"{name} {np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}" in nine[4]
    assert nine[4].split("; ")[0] in ten[4]
    changes = {line.partition(":")[0]: line for line in lines if re.match(r"\d+: ", line)}
    assert "run 9" in changes["10"] and "model.py, line 3: + long = [1, 1" in changes["10"]
    assert set(changes) == {"9", "10", "11"}
    (warning,) = err.splitlines()
    assert "12, 13" in warning
    assert max(map(len, lines)) <= plot.WIDTH


# Curves


def test_an_experiment_has_its_four_curves_and_the_rate_of_every_step(tmp_path, trained):
    folder = make_run(tmp_path / "1", only(trained))
    loss, accuracy, rate = shown(folder, "LeNet5").axes
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for line, part in zip(axes.lines, ("train", "eval")):
            values = column(trained["LeNet5"][0], f"{part}_{quantity}")
            assert line.get_ydata() == pytest.approx(100 - 100 * values if quantity == "accuracy" else values)
        assert not axes.collections  # no band for a single seed
    (line,) = rate.lines
    assert np.array_equal(line.get_ydata(), trained["LeNet5"][0][1]["learning_rates"])
    assert (line.get_xdata()[-1], loss.lines[0].get_xdata()[-1]) == (EPOCHS, EPOCHS)
    for axes in (loss, accuracy):  # a rate stands below its epoch
        assert axes.transData.transform((2, 1))[0] == rate.transData.transform((2, 1))[0]


def test_without_a_record_of_rates_those_of_the_epochs_are_drawn(tmp_path, trained):
    rows, whole = trained["LeNet5"][0]
    for number, record in enumerate([None, whole | {"learning_rates": np.array([])}]):
        folder = make_run(tmp_path / str(number), {"LeNet5": {0: (rows, record)}})
        (line,) = shown(folder, "LeNet5").axes[2].lines
        assert np.array_equal(line.get_ydata(), column((rows, record), "learning_rate"))
        assert np.array_equal(line.get_xdata(), [1, 2, 3])


def test_several_seeds_are_a_mean_with_a_band_of_their_range(folder, trained):
    panels = by_title(shown(folder, "comparison"))
    for name, heading in shown(folder).headings.items():
        values = np.array([column(training, name) for training in trained["LeNet5"].values()])
        if "accuracy" in name:
            values = 100 - 100 * values
        assert panels[heading].lines[0].get_ydata() == pytest.approx(values.mean(axis=0))
        drawn = {tuple(point) for point in panels[heading].collections[0].get_paths()[0].vertices.round(6)}
        for epoch in range(EPOCHS):
            for edge in (values.min(axis=0), values.max(axis=0)):
                assert (epoch + 1, edge[epoch].round(6)) in drawn
    headings = shown(folder).headings
    for quantity in ("loss", "accuracy"):
        train, test = (panels[headings[f"{part}_{quantity}"]] for part in ("train", "eval"))
        assert train.get_ylim() == test.get_ylim()
    low, high = panels["test accuracy"].get_ylim()
    assert low > high  # errors upside down: better is higher


def test_an_interrupted_seed_counts_in_the_epochs_that_it_has_finished(tmp_path, trained):
    seeds = {0: trained["LeNet5"][0], 1: (trained["LeNet5"][1][0][:1], None)}
    figure = shown(make_run(tmp_path / "1", {"LeNet5": seeds}), "comparison")
    first, second = (column(trained["LeNet5"][seed], "eval_loss") for seed in (0, 1))
    curve = by_title(figure)["test loss"].lines[0].get_ydata()
    assert curve == pytest.approx([(first[0] + second[0]) / 2, first[1], first[2]])


def write_curves(folder, curves):
    """A run with made-up curves: {name: [(loss, accuracy) of each epoch]}."""
    trainings = {}
    for name, points in curves.items():
        rows = [(epoch, *point, *point, 1, 0.1) for epoch, point in enumerate(points, start=1)]
        trainings[name] = {0: (rows, None)}
    return make_run(folder, trainings)


def test_guessing_is_marked_where_curves_come_near_it(tmp_path):
    flat = write_curves(tmp_path / "1", {"A": [(2.3, 0.11), (2.2, 0.2)]})
    loss, accuracy, _ = shown(flat, "A").axes
    assert np.log(10) == pytest.approx(loss.lines[-1].get_ydata()[-1])
    assert list(accuracy.lines[-1].get_ydata()) == [90, 90]
    good = write_curves(tmp_path / "2", {"A": [(0.3, 0.9), (0.1, 0.97)]})
    assert [len(axes.lines) for axes in shown(good, "A").axes[:2]] == [2, 2]


@pytest.mark.parametrize("epochs", [1, 5, 40])
def test_guessing_stands_inside_the_frame_and_on_no_curve(tmp_path, epochs):
    curves = {"A": [(2.3026, 0.1)] * epochs, "B": [(0.05, 0.985)] * epochs}
    for name, panels in (("comparison", 4), ("A", 2)):
        figure = shown(write_curves(tmp_path / name, curves), name)
        for axes in figure.axes[:panels]:
            (text,) = axes.texts
            box, frame = text.get_window_extent(), axes.bbox
            assert frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            assert all(box.x0 > axes.transData.transform((epochs, 1))[0] for line in axes.lines)


def legend_of(figure):
    """The only legend of a figure with several experiments."""
    (legend,) = figure.legends
    return legend


@pytest.mark.parametrize("experiments", [2, 6, 40])
def test_one_legend_names_every_line_the_best_first_and_hides_nothing(tmp_path, experiments):
    names = [f"_{chr(65 + index % 26)}{chr(65 + index // 26)}" for index in range(experiments)]
    curves = {name: [(1, 0.5), (0.3, 0.9 + 0.002 * index)] for index, name in enumerate(names)}
    figure = shown(write_curves(tmp_path / "1", curves), "comparison")
    legend = legend_of(figure)
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert box.y0 >= 0 and box.x0 >= 0 and box.x1 <= figure.bbox.x1
    texts = [text.get_text() for text in legend.get_texts()]
    assert [text.split()[-1] for text in texts] == names[::-1]
    assert "90.00%" in texts[-1]
    looks = [(to_hex(line.get_color()), line.get_marker()) for line in figure.axes[0].lines]
    assert len(set(looks)) == experiments


def test_a_long_name_leaves_room_for_the_curves_and_is_shown_whole(tmp_path):
    name = "a very long name " * 8
    figure = shown(write_curves(tmp_path / "1", {name: [(0.4, 0.9)], "A": [(0.4, 0.9)]}), "comparison")
    assert legend_of(figure).get_window_extent().x1 <= figure.bbox.x1
    assert all(axes.bbox.width > figure.bbox.width / 3 for axes in figure.axes)
    assert " ".join(legend_of(figure).get_texts()[0].get_text().split()).endswith(name.strip())


def test_before_and_after_an_edit_look_different_and_share_an_entry_of_the_legend(tmp_path, trained):
    _, record = trained["LeNet5"][0]
    names = list("ABCDEFGHI")
    old = ([(1, 0.5, 0.85, 0.5, 0.85, 1, 0.1)], record)
    new = ([(1, 0.4, 0.9, 0.4, 0.9, 1, 0.1)], record)
    before = make_run(tmp_path / "1", {name: {0: old} for name in names})
    after = make_run(tmp_path / "2", {name: {0: new} for name in names})
    edit = edited(before, after)
    figure = plot.plot_comparison(edit.after, edit)
    texts = {text.get_text().split()[-1]: text.get_text() for text in legend_of(figure).get_texts()}
    assert list(texts) == names
    for name in names:
        assert texts[name].index("85.00%") < texts[name].index("90.00%")
    looks = set()
    for line in figure.axes[0].lines:
        assert line.get_marker() in Line2D.filled_markers  # others look the same if they are hollow
        looks.add((line.get_marker(), to_hex(line.get_color()), to_hex(line.get_markerfacecolor())))
    assert len(looks) == 2 * len(names)


def test_nine_experiments_have_colours_that_differ_and_stay_if_one_is_missing(tmp_path):
    names = list("ABCDEFGHI")
    folder = write_curves(tmp_path / "1", dict.fromkeys(names, [(0.5, 0.9)]))
    lines = shown(folder, "comparison").axes[0].lines
    colours = [line.get_color() for line in lines]
    rgb = np.array([to_rgb(colour) for colour in colours])
    distances = np.linalg.norm(rgb[:, None] - rgb, axis=2)
    assert (distances[~np.eye(9, dtype=bool)] > 0.25).all()
    (folder / "C-seed0.csv").unlink()
    del colours[2]
    assert [line.get_color() for line in shown(folder, "comparison").axes[0].lines] == colours


def test_a_closer_look_tells_near_ends_apart_beside_a_model_that_guesses(tmp_path):
    curves = {"A": [(2.3, 0.1)] * 10}
    for index in range(8):
        curves[f"B{index}"] = [(0.1, 0.97)] * 5 + [(0.02, 0.99 + 0.0001 * index)] * 5
    figure = shown(write_curves(tmp_path / "1", curves), "comparison")
    axes = figure.axes[4]
    assert axes.get_xlim()[0] > 5
    ends = [line.get_ydata()[-1] for line in axes.lines if len(line.get_ydata()) == 10]
    near = np.sort([axes.transData.transform((10, end))[1] for end in ends])[1:]
    assert (np.diff(near) / axes.bbox.height > 0.03).all()
    assert axes.bbox.y0 < near[0] and near[-1] < axes.bbox.y1


def test_what_is_there_is_drawn_while_a_run_goes_on(tmp_path, trained):
    rows, _ = trained["LeNet5"][1]
    trainings = {"LeNet5": {0: trained["LeNet5"][0], 1: (rows[:1], None), 2: ([], None)}}
    trainings |= {"CustomMLP": {0: (rows[:2], None), 1: ([], None), 2: ([], None)}, "A": {0: ([], None)}}
    run = shown(make_run(tmp_path / "1", trainings))
    path = tmp_path / "comparison.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot.draw(path, plot.plot_comparison, run)
        assert all(plot.draw(path, plot.plot_experiment, run, name) for name in run.stats)
    assert path.stat().st_size > 10_000


@pytest.mark.filterwarnings("error")
def test_a_negative_loss_is_drawn_on_a_linear_scale(tmp_path):
    rows = [(epoch, -0.5 * epoch, 0.5, 0.3, 0.9, 1, 0.1) for epoch in (1, 2, 3)]
    folder = make_run(tmp_path / "1", {"A": {0: (rows, None)}})
    panels = [*shown(folder, "A").axes[:1], *shown(folder, "comparison").axes[:2]]
    for axes in panels:
        assert axes.get_yscale() == "linear"
        low, high = axes.get_ylim()
        assert low < axes.lines[0].get_ydata().min() and axes.lines[0].get_ydata().max() < high
    assert shown(folder, "comparison").axes[2].get_yscale() == "log"


@pytest.mark.parametrize("epochs", [1, 10, 200])
def test_epochs_have_round_ticks_and_axes_are_named(tmp_path, epochs):
    folder = write_curves(tmp_path / "1", {"A": [(1 / epoch, 0.5) for epoch in range(1, epochs + 1)]})
    for name, panel in (("comparison", 2), ("A", 2)):
        axes = shown(folder, name).axes[panel]
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert 1 <= len(ticks) < 12 and all(tick == round(tick) for tick in ticks)
        assert axes.get_xlabel() and axes.get_ylabel()


def test_near_values_are_told_apart_far_from_and_without_another_curve(tmp_path):
    curves = {"A": [(2.3, 0.1124)] * 3, "B": [(0.1, 0.97), (0.05, 0.985), (0.04, 0.992)]}
    accuracy = shown(write_curves(tmp_path / "1", curves), "comparison").axes[2]
    low, high = (accuracy.transData.transform((3, error))[1] for error in (1.0, 0.8))
    assert (high - low) / accuracy.bbox.height > 0.03
    near = write_curves(tmp_path / "2", {"A": [(0.55, 0.9911), (0.16, 0.9913)]})
    for axes in (accuracy, *shown(near, "A").axes[:2]):
        low, high = sorted(axes.get_ylim())
        assert len([tick for tick in axes.get_yticks() if low <= tick <= high]) >= 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss, accuracy", [(1e-9, 1), (1e9, 0)])
def test_every_value_can_be_drawn(tmp_path, loss, accuracy):
    curves = {"A": [(loss, accuracy)], "B": [(1, 0.5), (loss, accuracy)]}
    folder = write_curves(tmp_path / "1", curves)
    assert plot.show_run(folder)
    assert all((folder / f"{name}.png").stat().st_size > 10_000 for name in ("A", "B", "comparison"))


# Images


@pytest.mark.parametrize("count", [30, 7, 0])
def test_mistakes_show_the_most_confident_first_each_above_its_label_and_answer(tmp_path, trained, count):
    labels = np.arange(100) % 10
    answers = np.where(np.arange(100) < count, (labels + 1) % 10, labels)
    logits = np.zeros((100, 10), dtype=np.float32)
    logits[range(100), answers] = np.linspace(40, 3, 100)  # confidence falls
    images = np.arange(1, 101, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    rows, record = trained["LeNet5"][0]
    record = record | {"labels": labels, "logits": logits, "mistakes": images[answers != labels]}
    figure = shown(make_run(tmp_path / "1", {"LeNet5": {1: (rows, record)}}), "mistakes")
    title = figure.axes[0].get_title()
    assert "LeNet5, seed 1" in title and f"{count} mistakes" in title and "100%" not in title
    (axes,) = figure.axes
    assert len(axes.texts) == min(count, 24)
    for number, text in enumerate(axes.texts, start=1):
        x, y = text.get_position()
        assert axes.images[0].get_array()[y - 10, x] == number  # the text stands below its image
        label, answer, *_ = (int(digit) for digit in re.findall(r"\d", text.get_text()))
        assert (label, answer) == ((number - 1) % 10, number % 10)
        powers = np.exp(logits[number - 1].astype(float))
        assert plot.confidence(powers.max() / powers.sum()) in text.get_text()


def test_no_confidence_is_complete():
    texts = {0.57: "57.00%", 0.99999: "99.99%", 1 - 1e-12: "99.99%", 1: "99.99%", 0: "0.00%", 0.29: "29.00%"}
    assert {probability: plot.confidence(probability) for probability in texts} == texts


@pytest.mark.parametrize("fixed, broken", [(3, 1), (0, 2), (0, 0)])
def test_fixed_and_broken_images_stand_above_the_wrong_answer(tmp_path, trained, fixed, broken):
    rows, record = trained["LeNet5"][0]
    labels = np.zeros(20, dtype=int)
    images = np.arange(1, 21, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    runs = []
    for number, answer, wrong in (("1", 4, range(fixed)), ("2", 7, range(10, 10 + broken))):
        logits = np.eye(10)[np.where(np.isin(range(20), wrong), answer, 0)]
        changed = record | {"labels": labels, "logits": logits, "mistakes": images[list(wrong)]}
        loss = [[*row[:3], row[3] + int(number), *row[4:]] for row in rows]
        runs.append(make_run(tmp_path / number, {"LeNet5": {0: (loss, changed)}}))
    figure = plot.plot_fixed(edited(*runs))
    figure.draw_without_rendering()
    for axes, first, answer, count in zip(figure.axes, (1, 11), (4, 7), (fixed, broken)):
        picture = axes.images[0].get_array()
        assert len(axes.texts) == count and f" {count} " in axes.get_title()
        assert picture.shape[1] == 29 * max(fixed, broken, 1)  # no place stays white in the longer row
        for number, text in enumerate(axes.texts, start=first):
            x, y = text.get_position()
            assert picture[y - 10, x] == number
            assert re.findall(r"\d", text.get_text())[:2] == ["0", str(answer)]


def test_pictures_show_the_first_finished_seed(tmp_path, trained):
    rows, record = trained["LeNet5"][1]
    folder = make_run(tmp_path / "1", {"LeNet5": {0: (rows[:1], None), 1: (rows, record)}})
    for name in ("mistakes", "confusion"):
        assert "seed 1" in shown(folder, name).axes[0].get_title()


def test_confusion_counts_answers_and_colours_mistakes_only(folder, trained):
    figure = shown(folder, "confusion")
    for axes, name in zip(figure.axes, trained):
        record = trained[name][0][1]
        answers = record["logits"].argmax(axis=1)
        counts = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
        colours = axes.images[0].get_array()
        for label in range(10):
            for answer in range(10):
                count = ((record["labels"] == label) & (answers == answer)).sum()
                assert int(counts.pop((label, answer), 0)) == count
                assert colours[label, answer] == (0 if label == answer else count)
        right = 100 * (record["labels"] == answers)
        for (label, x), text in counts.items():  # on the right, what is left over
            accuracy = right[record["labels"] == label].mean()
            assert x > 9 and float(text[:-1]) == pytest.approx(accuracy, abs=0.1)
        assert len(counts) == 10
        assert axes.get_ylabel() == "label" and axes.get_xlabel() == "prediction"
        assert colours.max() < axes.images[0].get_clim()[1] <= 2 * colours.max()  # whatever the others are


def steps_of(axes):
    """The names of what `layers` shows of a model."""
    parts = [text.get_text().partition(":") for text in axes.texts]
    return [name for name, colon, _ in parts if colon]


def test_layers_show_all_layers_of_the_table_and_probabilities(folder, trained):
    lenet, mlp = shown(folder, "layers").axes
    for axes, name in ((lenet, "LeNet5"), (mlp, "CustomMLP")):
        record = trained[name][0][1]
        assert axes.get_title() == name
        assert [step.partition(",")[0] for step in steps_of(axes)[2:-1]] == list(record["layer_names"])
        for index, image in enumerate(axes.images[2:]):
            shown_numbers = np.ma.compressed(image.get_array())
            numbers = record[f"output_{index}"].ravel()
            assert np.allclose(np.sort(shown_numbers), np.sort(numbers))
        most = np.abs(record["filters"]).max()
        assert axes.images[1].get_clim() == (-most, most)  # a weight of 0 is white
        assert axes.images[1].get_array().count() == record["filters"].size
        probabilities = np.exp(record["input_logits"]) / np.exp(record["input_logits"]).sum()
        whole, heights = np.reshape([abs(bar.get_height()) for bar in axes.patches], (2, 10))
        assert heights / whole == pytest.approx(probabilities, abs=1e-5)


def half_dead():
    """A model whose second ReLU puts out next to nothing, and whose third nothing."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU())
    for scale, bias in ((1e-3, 0), (0, -1)):
        layer = nn.Linear(20, 20)
        layer.weight.data *= scale
        layer.bias.data.fill_(bias)
        model.extend([layer, nn.ReLU()])
    return model.append(nn.Linear(20, 10))


def test_strips_of_one_kind_have_one_scale_on_which_a_dead_layer_is_black(tmp_path, train_set, test_set):
    training = train("A", half_dead, 0, tmp_path, train_set, test_set)
    (axes,) = shown(make_run(tmp_path / "1", {"A": {0: training}}), "layers").axes
    steps = zip(steps_of(axes), axes.images)
    alive, faint, dead = [image for step, image in steps if step.endswith("ReLU")]
    brightness = [image.to_rgba(image.get_array())[..., :3].max() for image in (alive, faint, dead)]
    assert brightness[0] == 1 and brightness[1] < 0.5 and brightness[2] == 0


def deep():
    """A model with a norm, an output (T, H) and more layers than a picture shows."""
    layers = [nn.Flatten(2), nn.Linear(784, 10), nn.LayerNorm(10), nn.Flatten(1)]
    return nn.Sequential(*layers, *(nn.Linear(10, 10) for _ in range(30)))


def test_a_deep_model_makes_no_picture_without_bound(tmp_path, train_set, test_set):
    training = train("Deep", deep, 0, tmp_path, train_set, test_set)
    figure = shown(make_run(tmp_path / "1", {"Deep": {0: training}}), "layers")
    (axes,) = figure.axes
    steps = steps_of(axes)
    assert len(steps) == 3 + plot.MOST_LAYERS  # also the input, the weights and the probabilities
    assert "first 20" in axes.get_title() and figure.bbox.height < 3000


def test_images_show_the_originals_and_each_transform(tmp_path, trained, train_set):
    batch = train_set.subset(slice(8))
    batch.transform = dataset.Augmentation(rotation=8, shift=1.4, scaling=0.1, elastic=0.4)
    versions = np.stack([dataset.denormalize(batch[:][0]).numpy() for _ in range(4)])
    rows, record = trained["LeNet5"][0]
    trainings = only(trained) | {"A": {0: (rows, record | {"versions": versions})}}
    originals, a = shown(make_run(tmp_path / "1", trainings), "images").axes
    for axes, images in ((originals, batch.images.numpy()), (a, versions)):
        assert sorted(axes.images[0].get_array().compressed()) == sorted(images.ravel())
    assert a.get_title().startswith("A:")


def sevens(names):
    """Pictures with these names, and the logits of a model that sees a 7 in each."""
    count = len(names)
    digits = {
        "names": np.array(names),
        "images": np.full((count, 28, 28), 9, np.uint8),
        "originals": np.full((count, 112, 112, 3), 200, dtype=np.uint8),
    }
    logits = np.zeros((count, 10), dtype=np.float32)
    logits[:, 7] = 6
    return digits, logits


TRUE_DIGITS = {"7.png": "right", "2_a.jpg": "wrong", "2 (1).png": "wrong", "a/7.png": "right"}
NO_TRUE_DIGITS = ["a.png", "$b$.png", "28.png", "2nd try.png", "7a.png", "IMG_7.png", "7/a.png"]


def test_digits_show_picture_prepared_image_and_answers(tmp_path):
    names = [*TRUE_DIGITS, *NO_TRUE_DIGITS]
    digits, logits = sevens(names)
    probability = np.exp(6) / (np.exp(6) + 9)
    answer = f"7 ({100 * probability:.2f}%)"
    expected = [f"{answer} {TRUE_DIGITS.get(name, '')}".strip() for name in names]
    for axes, name, text in zip(plot.plot_digits(digits, {"LeNet5": logits}).axes, names, expected):
        assert axes.get_title() == name
        picture = axes.images[0].get_array()
        assert (picture[:, :112] == 200).all() and (picture[:, 112:] == 9).all()
        assert [shown.get_text() for shown in axes.texts] == [f"LeNet5: {text}"]
    table = cells(plot.digit_table(digits, {"LeNet5": logits}))
    assert table == [["picture", "LeNet5"], *([name, text] for name, text in zip(names, expected))]
    assert plot.draw(tmp_path / "digits.png", plot.plot_digits, digits, {"LeNet5": logits})
    assert (tmp_path / "digits.png").stat().st_size > 10_000


def test_only_a_wrong_answer_is_coloured_and_no_answer_hides_another():
    digits, logits = sevens(["7.png", "2.png"])
    eights = np.roll(logits, 1, axis=1)
    figure = plot.plot_digits(digits, {"A": logits, "B": eights, "C": logits})
    figure.draw_without_rendering()
    for axes, right in zip(figure.axes, (["A", "C"], [])):
        black = [text for text in axes.texts if to_hex(text.get_color()) == "#000000"]
        assert [text.get_text().strip()[0] for text in black] == right
        lines = [text.get_window_extent() for text in axes.texts]
        assert axes.bbox.y0 > lines[0].y0 > lines[1].y0 > lines[2].y0 >= 0


def test_many_digits_stay_readable():
    count = 120
    digits, logits = sevens([f"{index}.png" for index in range(count)])
    figure = plot.plot_digits(digits, {"LeNet5": logits})
    assert figure.bbox.width < 3000 and figure.bbox.height < 9000 and len(figure.axes) == count


# All together


def test_all_pictures_are_drawn_and_named(tmp_path, trained, capsys):
    make_run(tmp_path / "1", only(trained))
    trainings = only(trained, seed=1) | {"A": {0: trained["LeNet5"][0]}}
    folder = make_run(tmp_path / "2", trainings, compared_with="1")
    assert plot.show_run(folder)
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures | {"my_digits"} == {*plot.PICTURES, "LeNet5", "A"}
    out = capsys.readouterr().out
    last_line = out.splitlines()[-1]
    assert all(name in last_line for name in pictures) and str(folder) in last_line
    assert out.index("| LeNet5") < out.index("run 1", out.index("| LeNet5")) < out.index(last_line)


def test_if_nobody_reads_the_table_pictures_are_drawn_all_the_same(tmp_path, trained, monkeypatch):
    folder = make_run(tmp_path / "1", only(trained))
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w", encoding="utf-8", buffering=1) as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        with pytest.raises(BrokenPipeError):
            plot.show_run(folder)
        with pytest.raises(BrokenPipeError):
            output.close()
    assert (folder / "comparison.png").exists() and (folder / "LeNet5.png").exists()


def test_a_picture_that_fails_costs_no_other(tmp_path, trained, capsys):
    before = make_run(tmp_path / "0", only(trained, seed=1))
    folder = make_run(tmp_path / "1", only(trained))
    (folder / "mistakes.png").mkdir()
    assert not plot.show_run(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert "mistakes.png" in line
    for name in ("comparison", "confusion", "layers", "LeNet5"):
        assert (folder / f"{name}.png").is_file()
    (tmp_path / "edit_0_1.png").mkdir()
    assert plot.main([str(before), str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "edit_0_1.png" in line


def test_settings_of_matplotlib_neither_change_the_pictures_nor_are_changed(tmp_path):
    folder = write_curves(tmp_path / "1", {"A": [(0.5, 0.9)]})
    plot.show_run(folder)
    expected = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    with matplotlib.rc_context({"font.size": 30, "font.family": ["serif"], "savefig.dpi": 30}):
        before = dict(matplotlib.rcParams)
        plot.show_run(folder)
        assert dict(matplotlib.rcParams) == before
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == expected


def test_names_in_other_scripts_and_with_dollars_make_no_warning(tmp_path):
    names = ["卷积网络 정규화 ネットワーク", "$a \U00013000"]  # the last sign is in no usual font
    folder = write_curves(tmp_path / "1", dict.fromkeys(names, [(0.5, 0.9)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot.show_run(folder)


def test_installed_fonts_are_found_by_a_pattern_and_may_lack_bold(folder, monkeypatch, caplog):
    monkeypatch.setattr(plot, "FONTS", re.compile("cmr10"))  # comes with matplotlib, without bold
    families = []

    def confusion(run):
        families.extend(matplotlib.rcParams["font.family"])
        return plot.plot_confusion(run)

    assert plot.draw(folder / "confusion.png", confusion, shown(folder))
    assert families == ["DejaVu Sans", "cmr10"]
    assert not caplog.records


def test_a_run_without_a_finished_epoch_has_a_summary_and_any_standard_output_will_do(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "1", {"정규화": {0: ([], None)}})
    for output in (None, io.StringIO()):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            assert plot.main([str(folder)]) == 0
    assert "Not finished: 정규화, seed 0" in (folder / "summary.md").read_text(encoding="utf-8")
    assert not list(folder.glob("*.png"))
    process = run_script(folder, plot.__file__, str(folder), PYTHONIOENCODING="ascii")  # lacks the letters
    assert process.returncode == 0, process.stderr


def test_usage_and_runs_that_do_not_exist(tmp_path, monkeypatch, capsys):
    for arguments, code in ((["--help"], 0), (["--fast"], 2), (["3", "5", "3"], 2)):
        with pytest.raises(SystemExit) as end:
            plot.main(arguments)
        assert end.value.code == code
    assert "plot.py 3 5" in capsys.readouterr().out
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    for existing in ([], ["9", "10"]):
        for number in existing:
            make_run(tmp_path / number, {"LeNet5": {0: ([], None)}})
        for arguments in (["7"], ["nowhere"], ["7", "9"]):
            assert plot.main(arguments) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert arguments[0] in line and str(tmp_path) in line
    assert plot.main(["10"]) == 0
    assert "Run 10," in capsys.readouterr().out
