"""Tables and pictures of runs. The trainings in them are real, on few images of the sample."""

import io
import json
import os
import re
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
        "checksum": "abc",
        "python": "3.11.7",
        "torch": "2.14.1",
        "numpy": "2.4.6",
        "seeds": sorted({seed for seeds in trainings.values() for seed in seeds}),
        "baseline": "LeNet5",
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
    return plot.find_edit(plot.read_run(before), plot.read_run(after))


def only(trained, seed=0):
    """LeNet5 with one of its trainings, called seed 0."""
    return {"LeNet5": {0: trained["LeNet5"][seed]}}


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
    (folder / "CustomMLP-seed1.csv").write_text("", encoding="utf-8")  # a full disk
    path = folder / "LeNet5-seed1.csv"
    path.write_text(path.read_text(encoding="utf-8")[:-2], encoding="utf-8")  # half of the last line
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
    "of another program": ("settings.json", b'{"EXPERIMENTS": {}}'),
    "a column is missing": ("LeNet5-seed0.csv", b"epoch,train_loss,train_accuracy\n1,0.5,0.9\n"),
    "a word": ("LeNet5-seed0.csv", f"{','.join(plot.COLUMNS)}\n1,high,0.5,1,0.5,1,1\n".encode()),
    "no archive": ("LeNet5-seed0.npz", b"no archive"),
}


@pytest.mark.parametrize("name, content", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_cannot_be_read_is_named_in_one_line(folder, capsys, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        plot.read_run(folder)
    for arguments in ([str(folder)], [str(folder), str(folder)]):
        assert plot.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(folder / name) in line


# Tables


def test_the_table_holds_means_deviations_and_paired_gains(folder, trained):
    headings, *rows = cells(plot.summary(shown(folder)))
    table = {row[0]: dict(zip(headings, row)) for row in rows}
    ends = {}
    for name, seeds in trained.items():
        ends[name] = [100 * column(training, "eval_accuracy")[-1] for training in seeds.values()]
        losses = [column(training, "eval_loss")[-1] for training in seeds.values()]
        accuracy = f"{statistics.mean(ends[name]):.2f} ± {statistics.stdev(ends[name]):.2f}%"
        loss = f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}"
        assert table[name]["test acc"] == accuracy and table[name]["test loss"] == loss
    differences = [mlp - lenet for mlp, lenet in zip(ends["CustomMLP"], ends["LeNet5"])]
    gain = f"{statistics.mean(differences):+.2f} ± {statistics.stdev(differences) / 2**0.5:.2f}"
    assert table["CustomMLP"]["gain"] == gain and table["LeNet5"]["gain"] == ""


def test_no_gain_is_given_unless_both_have_finished(folder, trained):
    for name in trained:
        (folder / f"{name}-seed1.npz").rename(folder / "kept")
        lines = plot.summary(shown(folder))
        assert all(row[4] == "" for row in cells(lines)[1:]) and any("No gain" in line for line in lines)
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


def test_summary_md_holds_row_layers_and_epochs(tmp_path, trained):
    facts = {"epochs": EPOCHS, "parameters": 61706, "row": "Experiment('LeNet5', ...)"}
    folder = make_run(tmp_path / "1", {"LeNet5": trained["LeNet5"]}, experiments={"LeNet5": facts})
    lines = plot.details(shown(folder))
    assert any(facts["row"] in line for line in lines)
    rows = cells(lines)
    assert ["conv1", "Conv2d", "6 x 28 x 28", "156"] in rows and ["fc1", "Linear", "120", "48,120"] in rows
    assert ["total", "", "", "61,706"] in rows
    for epoch in range(EPOCHS):
        values = [column(training, "eval_loss")[epoch] for training in trained["LeNet5"].values()]
        text = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
        assert [row[3] for row in rows if row[0] == str(epoch + 1)] == [text]


# What did my edit do?


def test_the_edit_is_the_lines_that_differ_with_their_places(folder, tmp_path, trained):
    code = CODE | {"main.py": CODE["main.py"].replace("0.02", "0.005").replace("EPOCHS", "\nEPOCHS", 1)}
    code |= {"model.py": CODE["model.py"] + "\n    pool = 5\n", "models/mine.py": "x = 1\n"}
    later = make_run(tmp_path / "2", trained, code)
    assert edited(folder, later).changes == [
        "main.py, line 6: -         0.02,",
        "main.py, line 7: +         0.005,",
        "model.py, line 4: +     pool = 5",
        "models/mine.py is new",
    ]
    assert "models/mine.py is gone" in edited(later, folder).changes


def test_a_long_edit_is_cut_and_its_length_said(folder, tmp_path, trained):
    long = "".join(f"x{number} = {number}\n\n" for number in range(50))
    later = make_run(tmp_path / "2", trained, CODE | {"model.py": CODE["model.py"] + long})
    changes = edited(folder, later).changes
    assert len(changes) == plot.MOST_LINES + 1 and "30 more" in changes[-1]


def test_code_in_any_encoding_is_compared(tmp_path, trained):
    old = make_run(tmp_path / "1", only(trained), {"model.py": b"\xef\xbb\xbfname = '\xfe'\n"})
    new = make_run(tmp_path / "2", only(trained), {"model.py": b"name = '\xff'\n"})
    removed, added = edited(old, new).changes
    assert removed.endswith(r"- name = '\xfe'") and added.endswith(r"+ name = '\xff'")


def test_experiments_whose_figures_differ_are_compared_seed_by_seed(folder, tmp_path, trained):
    other = {0: trained["CustomMLP"][1], 1: trained["CustomMLP"][1]}
    trainings = trained | {"CustomMLP": other, "new": trained["LeNet5"]}
    edit = edited(folder, make_run(tmp_path / "2", trainings, CODE | {"model.py": ""}))
    assert edit.experiments == ["CustomMLP", "new"]  # LeNet5 has not changed
    _, before, after, new_row = cells(plot.edit_lines(edit))
    assert before[:2] == ["CustomMLP", "1"] and after[:2] == ["CustomMLP", "2"]
    old, new = (100 * column(trained["CustomMLP"][seed], "eval_accuracy")[-1] for seed in (0, 1))
    assert before[2] == f"{(old + new) / 2:.2f} ± {statistics.stdev([old, new]):.2f}%"
    assert after[3] == f"{(new - old) / 2:+.2f} ± {statistics.stdev([new - old, 0]) / 2**0.5:.2f}"
    assert new_row[:2] == ["new", "2"] and new_row[3] == ""
    figure = plot.plot_edit(edit)
    assert [line.get_linestyle() for line in figure.axes[0].lines[:3]] == ["--", "-", "-"]
    assert "nn.ReLU" in figure.get_suptitle()


def test_the_same_mean_from_other_seeds_is_a_change(folder, tmp_path, trained):
    swapped = {"LeNet5": {0: trained["LeNet5"][1], 1: trained["LeNet5"][0]}}
    later = make_run(tmp_path / "2", trained | swapped)
    assert edited(folder, later).experiments == ["LeNet5"]
    reordered = make_run(tmp_path / "3", trained, seeds=[1, 0])
    runs = (shown(folder), shown(reordered))
    assert "±" not in plot.difference(*(run.stats["LeNet5"] for run in runs), "eval_accuracy")


def test_an_experiment_that_has_not_finished_is_not_compared(folder, tmp_path, trained):
    rows, _ = trained["LeNet5"][0]
    unfinished = trained | {"LeNet5": {0: (rows[:1], None), 1: trained["LeNet5"][1]}}
    edit = edited(folder, make_run(tmp_path / "2", unfinished, CODE | {"model.py": ""}))
    text = "\n".join(plot.edit_lines(edit))
    assert "not finished: LeNet5" in text and "no loss" not in text
    back = edited(tmp_path / "2", make_run(tmp_path / "3", trained))
    assert "not finished: LeNet5" in "\n".join(plot.edit_lines(back)) and not back.experiments


def test_what_is_said_if_code_or_figures_have_not_changed(folder, tmp_path, trained):
    (line,) = filter(None, plot.edit_lines(edited(folder, make_run(tmp_path / "2", trained))))
    assert line == "Nothing has changed since run 1"
    other = trained | {"LeNet5": {0: trained["LeNet5"][1], 1: trained["LeNet5"][0]}}
    other_text = "\n".join(plot.edit_lines(edited(folder, make_run(tmp_path / "3", other))))
    assert "Nothing" not in other_text and "random" in other_text and "| LeNet5" in other_text
    comment = CODE | {"model.py": CODE["model.py"] + "# better\n"}
    same_text = "\n".join(plot.edit_lines(edited(folder, make_run(tmp_path / "4", trained, comment))))
    assert "# better" in same_text and "no loss" in same_text
    edit = edited(folder, make_run(tmp_path / "5", other, torch="2.15.0"))
    assert edit.changes == ["torch: 2.14.1 -> 2.15.0"]


def test_a_run_is_compared_with_the_newest_finished_one_before_it_on_the_same_data(tmp_path, trained, capsys):
    make_run(tmp_path / "1", only(trained))
    make_run(tmp_path / "2", only(trained))
    make_run(tmp_path / "3", {"LeNet5": {0: (trained["LeNet5"][0][0], None)}})  # interrupted
    for number, changes in (("4", {"checksum": "xyz"}), ("5", {"checksum": "abc-10", "kind": "validation"})):
        make_run(tmp_path / number, only(trained), **changes)
    make_run(tmp_path / "6", only(trained))
    (tmp_path / "6" / "LeNet5-seed0.csv").write_text("epoch\nword\n", encoding="utf-8")
    older = make_run(tmp_path / "7", only(trained)) / "LeNet5-seed0.csv"  # of an earlier version
    older.write_text(older.read_text(encoding="utf-8").replace("eval_", "val_"), encoding="utf-8")
    make_run(tmp_path / "12", only(trained))
    last = make_run(tmp_path / "10", only(trained))
    assert plot.run_before(shown(last)).folder == tmp_path / "2"
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "6") in line and str(tmp_path / "7") in line
    assert plot.run_before(shown(tmp_path / "1")) is None
    assert not capsys.readouterr().err


def test_other_seeds_and_data_are_compared_only_if_asked_for(tmp_path, monkeypatch, capsys, trained):
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    make_run(tmp_path / "1", {"LeNet5": trained["LeNet5"]})
    later = make_run(tmp_path / "2", {"LeNet5": {seed + 2: each for seed, each in trained["LeNet5"].items()}})
    plot.show_run(later)
    out = capsys.readouterr().out
    assert "[0, 1] -> [2, 3]" in out and "seeds differ" in out and not (later / "edit.png").exists()
    trainings = {"LeNet5": {5: trained["LeNet5"][0], 6: trained["LeNet5"][0]}}
    make_run(tmp_path / "3", trainings, CODE | {"model.py": ""}, description="others", checksum="xyz")
    assert plot.main(["1", "3"]) == 0
    out = capsys.readouterr().out
    assert "- class A" in out and "1,000 images from here -> others" in out
    _, before, after = cells(out.splitlines())
    assert "±" in before[2] and re.fullmatch(r"[+-]\d+\.\d\d", after[3])  # no error of the differences
    (picture,) = tmp_path.glob("*.png")
    assert picture.stat().st_size > 10_000 and str(picture) in out


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
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    return legend


@pytest.mark.parametrize("experiments", [2, 6, 40])
def test_one_legend_names_every_line_the_best_first_and_hides_nothing(tmp_path, experiments):
    names = [f"_{chr(65 + index % 26)}{chr(65 + index // 26)}" for index in range(experiments)]
    curves = {name: [(1, 0.5), (0.3, 0.9 + 0.002 * index)] for index, name in enumerate(names)}
    figure = shown(write_curves(tmp_path / "1", curves), "comparison")
    legend = legend_of(figure)
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes if axes is not legend.axes)
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
    before = make_run(tmp_path / "1", {name: {0: old} for name in names[1:]})
    after = make_run(tmp_path / "2", {name: {0: new} for name in names})
    figure = plot.plot_edit(edited(before, after))
    texts = {text.get_text().split()[-1]: text.get_text() for text in legend_of(figure).get_texts()}
    assert list(texts) == names
    assert "85.00%" not in texts["A"]
    for name in names[1:]:
        assert texts[name].index("85.00%") < texts[name].index("90.00%")
    looks = set()
    for line in figure.axes[0].lines:
        assert line.get_marker() in Line2D.filled_markers  # others look the same if they are hollow
        looks.add((line.get_marker(), to_hex(line.get_color()), to_hex(line.get_markerfacecolor())))
    assert len(looks) == 2 * len(names) - 1


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


def test_confidence_is_rounded_down():
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
    answer = f"7 ({100 * probability - 0.005:.2f}%)"  # rounded down
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
    folder = make_run(tmp_path / "2", only(trained, seed=1) | {"A": {0: trained["LeNet5"][0]}})
    assert plot.show_run(folder)
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures | {"my_digits"} == {*plot.PICTURES, "LeNet5", "A"}
    out = capsys.readouterr().out
    assert all(f"{name}.png" in out for name in pictures) and str(folder) in out
    assert out.index("| LeNet5") < out.index("since run 1") < out.index("comparison.png")


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


def test_usage_missing_runs_and_the_newest_run(tmp_path, monkeypatch, capsys):
    for arguments, code in ((["--help"], 0), (["--fast"], 2), (["3", "5", "3"], 2)):
        with pytest.raises(SystemExit) as end:
            plot.main(arguments)
        assert end.value.code == code
    assert "plot.py 3 5" in capsys.readouterr().out
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    for arguments in ([], ["7"], ["nowhere"], ["3", "4"]):
        assert plot.main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    for number in ("9", "10"):
        make_run(tmp_path / number, {"LeNet5": {0: ([], None)}})
    assert plot.main([]) == 0
    assert "Run 10," in capsys.readouterr().out
