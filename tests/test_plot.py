"""Curves, tables and pictures, from small hand-made files and without training."""

import json
import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

import plot

COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "learning_rate")
HEADER = ",".join(COLUMNS)
LENET = [
    [
        (1, 0.30, 0.20, 0.10, 0.970, 5, 0.01),
        (2, 0.10, 0.97, 0.05, 0.985, 5, 0.02),
        (3, 0.05, 0.985, 0.04, 0.990, 5, 0),
    ],
    [
        (1, 0.40, 0.30, 0.20, 0.950, 5, 0.01),
        (2, 0.20, 0.95, 0.15, 0.975, 5, 0.02),
        (3, 0.15, 0.995, 0.06, 0.992, 5, 0),
    ],
]
MLP = [[(epoch, 2.3, 0.1124, 2.3, 0.1135, 1, 0.01) for epoch in (1, 2, 3)]]
FIGURES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


def write_csv(path, lines, header=HEADER):
    path.write_text(
        "\n".join([header, *(",".join(map(str, line)) for line in lines)]) + "\n", encoding="utf-8"
    )


def write_settings(folder, description="three images from here", **changes):
    row = {"epochs": 3, "learning_rate": 0.02, "transform": None}
    settings = {
        "EPOCHS": 3,
        "SEEDS": [0, 1],
        "BASELINE": "LeNet",
        "EXPERIMENTS": {"MLP": row, "LeNet": row},
        "data": {"description": description},
        "parameters": {"LeNet": 61706},
    }
    (folder / "settings.json").write_text(json.dumps(settings | changes), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """The folder of a run: LeNet with two seeds, MLP with one."""
    for seed, lines in enumerate(LENET):
        write_csv(tmp_path / f"LeNet-seed{seed}.csv", lines)
    write_csv(tmp_path / "MLP-seed0.csv", MLP[0])
    write_settings(tmp_path)
    return tmp_path


def other_run(folder, name="other", **changes):
    """A copy of the run in another folder, with changed settings."""
    other = folder / name
    other.mkdir()
    for path in folder.glob("*.csv"):
        (other / path.name).write_bytes(path.read_bytes())
    write_settings(other, **changes)
    return other


def column(training, name, factor=1):
    return [factor * line[COLUMNS.index(name)] for line in training]


def errors(training, name):
    """What is drawn of an accuracy: errors in percent."""
    return [100 - 100 * value for value in column(training, name)]


def lines_of(axes):
    return [list(line.get_ydata()) for line in axes.lines]


def result_table(run):
    return plot.result_table(run, plot.gains_over_baseline(run))


def after(folder, before):
    """The run in a folder, to be compared with the run before."""
    return replace(plot.read_run(folder), before=before)


def legend_of(figure):
    figure.draw_without_rendering()
    (legend,) = figure.legends
    return legend, [text.get_text().strip() for text in legend.get_texts()]


def test_read_run_gives_the_numbers_in_the_order_of_the_settings(folder):
    stats = plot.read_run(folder).stats
    assert list(stats) == ["MLP", "LeNet"] and list(stats["LeNet"]) == [0, 1]
    for name in COLUMNS:
        assert list(stats["LeNet"][1][name]) == column(LENET[1], name)


def test_seeds_are_ordered_as_numbers_and_other_files_passed_over(tmp_path):
    for seed in (10, 9):
        write_csv(tmp_path / f"A-seed1-seed{seed}.csv", MLP[0])
    (tmp_path / "A-seedx.csv").write_text("what is this", encoding="utf-8")
    stats = plot.read_run(tmp_path).stats
    assert {name: list(seeds) for name, seeds in stats.items()} == {"A-seed1": [9, 10]}


def test_a_further_column_and_a_missing_one_do_no_harm(tmp_path):
    further = [(line[0], 7, *line[1:]) for line in LENET[0]]
    write_csv(tmp_path / "A-seed0.csv", further, HEADER.replace("epoch,", "epoch,norm_of_weights,"))
    header = HEADER.replace(",train_accuracy", "").replace(",seconds", "")
    missing = [(line[0], line[1], line[3], line[4], line[6]) for line in LENET[0]]
    write_csv(tmp_path / "B-seed0.csv", missing, header)
    run = plot.read_run(tmp_path)
    table = result_table(run)
    rows = {row[0]: dict(zip(table[0], row)) for row in table[1:]}
    assert rows["A"]["val acc"] == rows["B"]["val acc"] == "99.00%" and rows["A"]["seconds"] == "15"
    assert rows["A"]["train acc"] == "98.50%" and rows["B"]["train acc"] == ""
    plot.draw_run(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"A", "B", "comparison"}


def test_experiment_has_its_four_curves_and_the_learning_rate(folder):
    loss, accuracy, rate = plot.plot_experiment(plot.read_run(folder), "MLP").axes
    assert lines_of(loss)[:2] == [column(MLP[0], "train_loss"), column(MLP[0], "val_loss")]
    for line, name in zip(lines_of(accuracy), ("train_accuracy", "val_accuracy")):
        assert line == pytest.approx(errors(MLP[0], name))
    assert lines_of(rate) == [column(MLP[0], "learning_rate")]
    assert not loss.collections  # no band for a single seed


def test_learning_rate_is_that_of_every_step(folder):
    rates = np.sin(np.linspace(0, 3, 50))
    write_outputs(folder, "LeNet-seed0", *wrong_answers(3), learning_rates=rates)
    figure = plot.plot_experiment(plot.read_run(folder), "LeNet")
    (line,) = figure.axes[2].lines
    assert list(line.get_ydata()) == list(rates)
    assert line.get_xdata()[0] == 0 and line.get_xdata()[-1] == 3  # epochs


def test_several_seeds_are_a_mean_with_a_band_of_their_range(folder):
    figure = plot.plot_comparison(plot.read_run(folder))
    panels = {axes.get_title(): axes for axes in figure.axes}
    for name, heading in plot.HEADINGS.items():
        axes = panels[heading]
        values = np.array([column(training, name) for training in LENET])
        mlp_values = np.array(column(MLP[0], name))
        if "accuracy" in name:
            values, mlp_values = 100 - 100 * values, 100 - 100 * mlp_values
        mlp, lenet = lines_of(axes)[:2]
        assert lenet == pytest.approx(values.mean(axis=0))
        assert mlp == pytest.approx(mlp_values)
        (band,) = axes.collections
        drawn = {tuple(point) for point in band.get_paths()[0].vertices.round(6)}
        for epoch in (1, 2, 3):
            for edge in (values.min(axis=0), values.max(axis=0)):
                assert (epoch, edge[epoch - 1].round(6)) in drawn


def test_training_and_validation_share_their_scale(folder):
    figure = plot.plot_comparison(plot.read_run(folder))
    figure.draw_without_rendering()
    panels = {axes.get_title(): axes for axes in figure.axes}
    for quantity in ("loss", "accuracy"):
        limits = panels[f"training {quantity}"].get_ylim()
        assert limits == panels[f"validation {quantity}"].get_ylim()
    low, high = panels["validation accuracy"].get_ylim()
    assert low > high  # errors upside down: better is higher


def test_guessing_is_marked_where_curves_come_near_it(folder):
    figure = plot.plot_comparison(plot.read_run(folder))
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert np.log(10) == pytest.approx(lines_of(panels["training loss"])[-1][0])
    assert lines_of(panels["validation accuracy"])[-1] == [90, 90]
    (folder / "MLP-seed0.csv").unlink()
    for axes in plot.plot_comparison(plot.read_run(folder)).axes:
        if axes.get_title() == "validation accuracy":
            assert len(axes.lines) == 1


@pytest.mark.parametrize("experiments", [2, 8, 40])
def test_one_legend_names_every_line_states_its_end_and_hides_nothing(tmp_path, experiments):
    for index in range(experiments):
        name = f"_{chr(65 + index % 26)}{chr(65 + index // 26)}"
        lines = [(1, 1, 0.5, 1, 0.5, 1, 0.1), (2, 0.3, 0.9, 0.3, 0.98, 1, 0)]
        write_csv(tmp_path / f"{name}-seed0.csv", lines)
    figure = plot.plot_comparison(plot.read_run(tmp_path))
    legend, texts = legend_of(figure)
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert box.y0 >= 0 and box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert len(texts) == experiments
    assert all("98.00%" in text for text in texts)
    looks = [(to_hex(line.get_color()), line.get_marker()) for line in figure.axes[0].lines]
    assert len(set(looks)) == experiments


def test_a_sweep_has_shades_in_the_order_of_its_numbers():
    names = ["LeNet5", "rate 0.05", "rate 0.005", "rate 0.01"]
    looks = plot.looks_of(names)
    darkness = [sum(looks[name]["color"][:3]) for name in ("rate 0.005", "rate 0.01", "rate 0.05")]
    assert darkness == sorted(darkness) and looks["LeNet5"]["color"] == plot.COLORS[0]


@pytest.mark.parametrize("epochs", [1, 3, 10, 30, 200])
def test_epochs_have_round_ticks_and_axes_are_named(tmp_path, epochs):
    write_csv(
        tmp_path / "A-seed0.csv", [(epoch, 1 / epoch, 0.5, 1, 0.5, 1, 0.1) for epoch in range(1, epochs + 1)]
    )
    run = plot.read_run(tmp_path)
    for figure, panel in ((plot.plot_comparison(run), 2), (plot.plot_experiment(run, "A"), 1)):
        figure.draw_without_rendering()
        axes = figure.axes[panel]
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert 1 <= len(ticks) < 12 and all(tick == round(tick) for tick in ticks)
        assert axes.get_xlabel() and axes.get_ylabel()


def test_99_and_99_2_percent_are_far_apart_though_another_curve_lies_at_11(folder):
    figure = plot.plot_comparison(plot.read_run(folder))
    figure.draw_without_rendering()
    accuracy = figure.axes[2]
    low, high = (accuracy.transData.transform((3, error))[1] for error in (1.0, 0.8))
    assert (high - low) / accuracy.bbox.height > 0.03
    errors = accuracy.get_yticks()  # locators may add some that lie outside
    assert len([error for error in errors if 1 <= error <= 10]) >= 3


def test_curves_near_to_each_other_get_ticks_of_their_own(tmp_path):
    write_csv(
        tmp_path / "A-seed0.csv",
        [(1, 0.031, 0.9911, 0.031, 0.9911, 1, 0), (2, 0.03, 0.9913, 0.03, 0.9913, 1, 0)],
    )
    for axes in plot.plot_experiment(plot.read_run(tmp_path), "A").axes[:2]:
        low, high = sorted(axes.get_ylim())
        assert len([tick for tick in axes.get_yticks() if low <= tick <= high]) >= 3


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("column", FIGURES)
def test_a_column_that_all_lack_is_left_out(tmp_path, column):
    index = COLUMNS.index(column)
    header = HEADER.replace(f",{column}", "")
    for name in ("LeNet", "MLP"):
        lines = [(*line[:index], *line[index + 1 :]) for line in LENET[0]]
        write_csv(tmp_path / f"{name}-seed0.csv", lines, header)
    write_settings(tmp_path, SEEDS=[0])
    plot.draw_run(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"LeNet", "MLP", "comparison"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss, accuracy", [(1e-9, 1), (1e-9, 0.9999), (2.3, 0.1135), (1e9, 0)])
def test_every_value_can_be_drawn(tmp_path, loss, accuracy):
    write_csv(tmp_path / "A-seed0.csv", [(1, loss, accuracy, loss, accuracy, 1, 0.1)])
    write_csv(
        tmp_path / "B-seed0.csv", [(1, 1, 0.5, 1, 0.5, 1, 0.1), (2, loss, accuracy, loss, accuracy, 1, 0)]
    )
    write_csv(tmp_path / "B-seed1.csv", [(1, 1, 0.5, 1, 0.5, 1, 0.1)])
    plot.draw_run(tmp_path)
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("A", "B", "comparison"))


def test_summary_holds_means_deviations_and_gains(folder):
    write_settings(folder, BASELINE="MLP", SEEDS=[0])
    headings, mlp, lenet = result_table(plot.read_run(folder))
    assert headings == [
        "experiment",
        "train acc ± SD",
        "val loss ± SD",
        "val acc ± SD",
        "gain ± SE",
        "seconds",
    ]
    accuracies = [100 * column(training, "val_accuracy")[-1] for training in LENET]
    losses = [column(training, "val_loss")[-1] for training in LENET]
    assert lenet[0] == "LeNet" and mlp[4] == "" and lenet[4] == "+87.75" and lenet[5] == "15"
    assert lenet[2] == f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}"
    assert lenet[3] == f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}%"


def test_gain_has_a_standard_error(folder):
    for seed, lines in enumerate(LENET):
        changed = [(*line[:4], line[4] - 0.01, *line[5:]) for line in lines]
        write_csv(folder / f"A-seed{seed}.csv", changed)
    write_settings(folder, BASELINE="A")
    table = {row[0]: row[4] for row in result_table(plot.read_run(folder))}
    values = [100 * lines[-1][4] for lines in LENET]
    assert table["LeNet"] == f"+1.00 ± {statistics.stdev(values):.2f}"  # sqrt(s²/2 + s²/2)


def test_no_gain_is_given_unless_both_have_finished(folder):
    write_settings(folder, SEEDS=[0])
    run = plot.read_run(folder)
    assert result_table(run)[1][4] == "-87.75"
    for name, lines in (("MLP", MLP[0]), ("LeNet", LENET[0])):
        write_csv(folder / f"{name}-seed0.csv", lines[:2])
        run = plot.read_run(folder)
        assert not plot.gains_over_baseline(run)
        assert any("No gain" in line for line in plot.summary(run))
        write_csv(folder / f"{name}-seed0.csv", lines)


def test_a_baseline_that_is_no_row_is_named(folder):
    write_settings(folder, BASELINE="Le Net", SEEDS=[0])
    (line,) = [line for line in plot.summary(plot.read_run(folder)) if "gain" in line]
    assert "'Le Net'" in line


def test_details_hold_every_epoch(folder):
    text = "\n".join(plot.details(plot.read_run(folder)))
    mlp, lenet = text.split("## ")[1:]
    assert mlp.startswith("MLP") and lenet.startswith("LeNet")
    for epoch, row in enumerate(plot.epoch_table(plot.read_run(folder).stats["LeNet"])[1:]):
        values = [training[epoch][3] for training in LENET]
        assert row[0] == str(epoch + 1)
        assert row[3] == f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
    assert epoch == 2


def test_summary_names_what_did_not_finish(folder):
    write_csv(folder / "LeNet-seed1.csv", LENET[1][:2])
    text = "\n".join(plot.summary(plot.read_run(folder)))
    assert re.findall(r"Not finished: (.*)", text) == [
        "MLP, seed 1: 0 of 3 epochs",
        "LeNet, seed 1: 2 of 3 epochs",
    ]


def test_a_run_without_a_finished_epoch_still_has_a_summary(tmp_path):
    write_settings(tmp_path)
    plot.draw_run(tmp_path)
    assert "Not finished: MLP, seed 0" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("sizes", [[3], [8], [20, 20]])
def test_the_table_fits_into_a_screen(tmp_path, sizes):
    for index, size in enumerate(sizes):
        for seed in range(2):
            write_csv(tmp_path / f"{chr(65 + index) * size}-seed{seed}.csv", LENET[seed])
    rows = {chr(65 + index) * size: {"epochs": 3} for index, size in enumerate(sizes)}
    write_settings(tmp_path, EXPERIMENTS=rows, BASELINE="A" * sizes[0])
    assert max(len(line) for line in plot.summary(plot.read_run(tmp_path))) <= 100
    assert "| A" in "\n".join(plot.summary(plot.read_run(tmp_path)))
    figures = {"epoch": 10, "train_loss": 0.5, "train_accuracy": 1, "val_loss": 0.5, "val_accuracy": 1}
    assert len(plot.progress("A" * sizes[0], 0, 10, figures | {"seconds": 100})) <= 100


def edited_run(folder, **changes):
    """A later run with changed settings, LeNet's first seed and its code."""
    other = other_run(folder, "later", **changes)
    write_csv(other / "LeNet-seed0.csv", LENET[1])
    return other


def test_an_edit_is_named_with_what_it_did(folder):
    rows = {
        "MLP": {"epochs": 3, "learning_rate": 0.02, "transform": None},
        "LeNet": {"epochs": 3, "learning_rate": 0.005, "transform": {"class": "Noise", "strength": 1}},
    }
    write_settings(folder, SEEDS=[0])
    other = edited_run(folder, EXPERIMENTS=rows, SEEDS=[0])
    run = after(other, plot.read_run(folder))
    lines = plot.edit_lines(run)
    assert "* LeNet: learning_rate 0.02 -> 0.005, transform None -> Noise(strength=1)" in lines
    table = plot.edit_table(run)
    deviation = statistics.stdev([99.0, 99.2])
    assert table[1][:4] == ["LeNet", folder.name, f"99.10 ± {deviation:.2f}%", ""]
    assert table[2][:4] == ["LeNet", "later", "99.20 ± 0.00%", f"+0.10 ± {deviation / 2**0.5:.2f}"]
    assert not any(line.startswith("| MLP") for line in lines)  # it has not changed
    figure = plot.plot_edit(run)
    title = figure.get_suptitle().replace("\n", " ")
    assert "learning_rate 0.02 -> 0.005" in title and "+0.10" in title
    styles = [line.get_linestyle() for line in figure.axes[0].lines[:2]]
    assert styles == ["--", "-"]  # before, after


def test_an_edit_that_has_not_finished_is_not_compared(folder):
    write_settings(folder, SEEDS=[0])
    rows = {"LeNet": {"epochs": 3, "learning_rate": 9}, "MLP": {"epochs": 3, "learning_rate": 9}}
    other = edited_run(folder, EXPERIMENTS=rows, SEEDS=[0])
    write_csv(other / "LeNet-seed0.csv", LENET[0][:1])  # interrupted
    (other / "MLP-seed0.csv").unlink()  # its loss exploded
    text = "\n".join(plot.edit_lines(after(other, plot.read_run(folder))))
    assert "not finished: LeNet, MLP" in text and "changed no figure" not in text


def test_settings_that_one_version_lacks_are_no_edit(folder):
    write_settings(folder, SEEDS=[0], OLD=1)
    row = {"epochs": 3, "learning_rate": 0.02, "transform": None}
    rows = {name: row | {"added_later": 5} for name in ("MLP", "LeNet")}
    other = other_run(folder, SEEDS=[0], NEW=1, EXPERIMENTS=rows)
    edit = plot.find_edit(plot.read_run(folder), plot.read_run(other))
    assert not edit.general and not edit.rows


def test_removed_rows_are_named(folder):
    other = other_run(folder, SEEDS=[0], EXPERIMENTS={"LeNet": {"epochs": 3}})
    edit = plot.find_edit(plot.read_run(folder), plot.read_run(other))
    assert edit.rows["MLP"] == ["removed"]


def test_what_follows_a_constant_is_named_once(folder):
    row = {"epochs": 2, "learning_rate": 0.02, "transform": {"class": "Augmentation", "elastic": 0.8}}
    for path in folder.glob("*.csv"):
        write_csv(path, LENET[0][:2])
    old = row | {"epochs": 3, "transform": {"class": "Augmentation", "elastic": 0.4}}
    write_settings(folder, EXPERIMENTS={"LeNet": old}, AUGMENTATION=old["transform"], SEEDS=[0])
    changes = {"EPOCHS": 2, "AUGMENTATION": row["transform"], "EXPERIMENTS": {"LeNet": row}, "SEEDS": [0]}
    other = other_run(folder, **changes)
    edit = plot.find_edit(plot.read_run(folder), plot.read_run(other))
    assert edit.general == ["EPOCHS 3 -> 2", "AUGMENTATION.elastic 0.4 -> 0.8"]
    assert edit.rows == {"LeNet": []}


def test_new_rows_have_no_before(folder):
    write_settings(folder, EXPERIMENTS={"MLP": {"epochs": 3}}, SEEDS=[0])
    other = edited_run(folder, EXPERIMENTS={"MLP": {"epochs": 3}, "LeNet": {"epochs": 3}}, SEEDS=[0])
    before = plot.read_run(folder)
    before.stats.pop("LeNet")
    run = after(other, before)
    lines = plot.edit_lines(run)
    assert "* LeNet: new" in lines
    assert [line.split("|")[2].strip() for line in lines if line.startswith("| LeNet")] == ["later"]
    assert len(plot.plot_edit(run).axes[0].lines) == 1


def test_nothing_changed_is_said_in_one_line(folder):
    run = after(other_run(folder, SEEDS=[0]), plot.read_run(folder))
    write_settings(folder, SEEDS=[0])
    run = after(other_run(folder, "same", SEEDS=[0]), plot.read_run(folder))
    (line,) = plot.edit_lines(run)
    assert folder.name in line and plot.plot_edit(run) is None


CODE = {
    "main.py": "EPOCHS = 3\n\n\ndef train():\n    return loss  # the average\n",
    "model.py": "class A:\n    def __init__(self):\n        self.activation = nn.ReLU()\n",
}


def write_code(folder, **sources):
    """Write the copy of the code in the folder of a run."""
    (folder / "code").mkdir()
    for name, source in (CODE | {f"{name}.py": source for name, source in sources.items()}).items():
        (folder / "code" / name).write_text(source, encoding="utf-8")


@pytest.mark.parametrize(
    "sources, expected",
    [
        ({}, []),
        ({"main": CODE["main.py"].replace("EPOCHS = 3", "EPOCHS = (\n    4\n)")}, []),  # a setting
        ({"main": CODE["main.py"].replace("  # the average", "")}, []),  # a comment
        (
            {"main": CODE["main.py"].replace("return loss", "return 2 * loss")},
            ["main.py: return loss -> 2 * loss"],
        ),
        (
            {"model": CODE["model.py"].replace("ReLU", "Tanh")},
            ["model.py: self.activation = nn.ReLU() -> nn.Tanh()"],
        ),
        ({"model": CODE["model.py"] + "        self.pool = 5\n"}, ["model.py: + self.pool = 5"]),
        ({"model": "x = 1\ny = 2\n"}, ["model.py: 6 lines differ"]),
        ({"mine": "x = 1\n"}, ["mine.py: new"]),
    ],
)
def test_code_that_differs_is_named_with_its_line(folder, sources, expected):
    write_settings(folder, SEEDS=[0])
    other = edited_run(folder, SEEDS=[0])
    write_code(folder)
    write_code(other, **sources)
    edit = plot.find_edit(plot.read_run(folder), plot.read_run(other))
    assert edit.general == expected
    assert edit.experiments == (["LeNet"] if expected else [])  # whose figures differ


def test_two_names_of_the_same_data_are_no_edit(folder):
    data = {"description": "the sample", "checksum": "abc"}
    write_settings(folder, data=data, SEEDS=[0], DATA_DIR="data")
    for changed, expected in (
        ({"description": "data/sample", "checksum": "abc"}, []),
        ({"description": "others", "checksum": "xyz"}, ["data: the sample -> others"]),
    ):
        other = other_run(folder, changed["checksum"], data=changed, SEEDS=[0], DATA_DIR="data/sample")
        assert plot.find_edit(plot.read_run(folder), plot.read_run(other)).general == expected


def numbered(tmp_path, number, lines=LENET[0], **changes):
    """A run of one experiment with a number."""
    folder = tmp_path / str(number)
    folder.mkdir()
    write_csv(folder / "LeNet-seed0.csv", lines)
    data = changes.pop("data", {"description": "the sample", "checksum": "abc"})
    row = {"epochs": 3, "learning_rate": number}
    write_settings(folder, data=data, SEEDS=[0], EXPERIMENTS={"LeNet": row}, **changes)
    return folder


def test_a_run_is_compared_with_the_newest_finished_one_before_it_on_the_same_data(tmp_path):
    numbered(tmp_path, 1)
    numbered(tmp_path, 2)
    numbered(tmp_path, 3, LENET[0][:2])  # interrupted
    numbered(tmp_path, 4, data={"description": "others", "checksum": "xyz"})
    numbered(tmp_path, 12)
    last = numbered(tmp_path, 10)
    assert plot.run_before(plot.read_run(last)).folder == tmp_path / "2"
    assert plot.run_before(plot.read_run(tmp_path / "1")) is None


def test_a_damaged_earlier_run_costs_a_later_one_nothing(tmp_path):
    numbered(tmp_path, 1)
    (numbered(tmp_path, 2) / "LeNet-seed0.csv").write_text("epoch\nnan\n", encoding="utf-8")
    assert plot.run_before(plot.read_run(numbered(tmp_path, 3))).folder == tmp_path / "1"
    plot.draw_run(tmp_path / "3")
    assert (tmp_path / "3" / "edit.png").exists()


def test_two_runs_given_by_number_are_compared(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    results.mkdir()
    for number, lines in ((3, LENET[0]), (5, LENET[1])):
        numbered(results, number, lines)
    monkeypatch.chdir(tmp_path)
    assert plot.main(["3", "5"]) == 0
    out = capsys.readouterr().out
    assert "learning_rate 3 -> 5" in out and "+0.20" in out
    (picture,) = results.glob("*.png")
    assert picture.stat().st_size > 10_000 and str(picture.relative_to(tmp_path)) in out
    assert plot.main(["3", "4"]) == 2  # there is no run 4
    assert plot.main(["3", "5", "3"]) == 2


def write_outputs(folder, training, logits, labels, **more):
    wrong = logits.argmax(axis=1) != labels
    images = np.broadcast_to(
        np.arange(1, len(labels) + 1, dtype=np.uint8)[:, None, None], (len(labels), 28, 28)
    )
    np.savez(folder / f"{training}.npz", logits=logits, labels=labels, mistakes=images[wrong], **more)


def wrong_answers(count):
    """Logits and labels of 100 images; the first `count` are misclassified: label k % 10, answer
    one more, confidence falling. Image number k is full of the value k + 1."""
    labels = np.arange(100) % 10
    answers = np.where(np.arange(100) < count, (labels + 1) % 10, labels)
    logits = np.zeros((100, 10), dtype=np.float32)
    logits[range(100), answers] = np.linspace(40, 3, 100)
    return logits, labels


@pytest.mark.parametrize("count", [30, 24, 7, 1, 0])
def test_mistakes_show_the_most_confident_first_each_above_its_label_and_answer(folder, count):
    write_outputs(folder, "LeNet-seed1", *wrong_answers(count))
    figure = plot.plot_mistakes(plot.read_run(folder))
    figure.draw_without_rendering()
    title = figure.axes[0].get_title()
    assert "LeNet, seed 1" in title and f"{count} mistakes" in title and "100%" not in title
    number = 0
    for axes in figure.axes:
        picture = axes.images[0].get_array()
        for text, place in zip(axes.get_xticklabels(), axes.get_xticks()):
            number += 1
            assert picture[10, int(place)] == number  # the text stands below its image
            label, answer = (int(digit) for digit in re.findall(r"\d", text.get_text()))
            assert (label, answer) == ((number - 1) % 10, number % 10)
    assert number == min(count, 24)


def test_pictures_show_the_first_finished_seed(folder):
    run = plot.read_run(folder)
    assert not run.outputs and plot.plot_mistakes(run) is None
    for seed in (1, 0):
        write_outputs(folder, f"LeNet-seed{seed}", *wrong_answers(3))
        for figure in (plot.plot_mistakes, plot.plot_confusion):
            assert f"seed {seed}" in figure(plot.read_run(folder)).axes[0].get_title()


def test_confusion_counts_answers_and_colours_mistakes_only(folder):
    for name, count in (("LeNet", 30), ("MLP", 100)):
        write_outputs(folder, f"{name}-seed0", *wrong_answers(count))
    panels = {axes.get_title(): axes for axes in plot.plot_confusion(plot.read_run(folder)).axes}
    axes = panels["LeNet, seed 0"]
    counts = {text.get_position()[::-1]: int(text.get_text() or 0) for text in axes.texts}
    assert len(counts) == 100 and sum(counts.values()) == 100
    assert all(counts[digit, digit] == 7 and counts[digit, (digit + 1) % 10] == 3 for digit in range(10))
    colours = axes.images[0].get_array()
    assert (np.diag(colours) == 0).all() and colours[0, 1] == 3
    assert axes.get_ylabel() == "label" and axes.get_xlabel().startswith("prediction")
    scales = {axes.images[0].get_clim() for axes in panels.values()}
    assert len(scales) == 1


def test_the_most_frequent_mistakes_are_named():
    mistakes = np.zeros((10, 10), dtype=int)
    mistakes[4, 9], mistakes[7, 2], mistakes[1, 3], mistakes[5, 6] = 8, 3, 5, 2
    assert plot.most_frequent(mistakes) == "4 \u2192 9: 8, 1 \u2192 3: 5, 7 \u2192 2: 3"
    assert "no mistakes" in plot.most_frequent(np.zeros((10, 10), dtype=int))


def test_layers_show_maps_strips_and_probabilities(folder):
    write_outputs(folder, "LeNet-seed0", *wrong_answers(0))
    maps = np.arange(100 * 16.0).reshape(100, 4, 4)
    np.savez(
        folder / "LeNet-seed0.layers.npz",
        **{
            "input": np.ones((1, 28, 28)),
            "filters": np.ones((6, 5, 5)),
            "layer conv1": maps,
            "layer fc": np.arange(120.0),
            "probabilities": np.eye(10)[3],
        },
    )
    figure = plot.plot_layers(plot.read_run(folder))
    panels = {axes.get_title().partition(":")[0]: axes for axes in figure.get_axes()}
    assert list(panels) == ["input", "filters of the first layer", "conv1", "fc", "probabilities"]
    sheet = panels["conv1"].images[0].get_array().compressed()
    assert sorted(sheet) == list(range(64 * 16))  # no more than 64 maps
    assert panels["fc"].images[0].get_array().shape == (1, 120)
    assert [bar.get_height() for bar in panels["probabilities"].patches] == list(np.eye(10)[3])


def test_images_show_the_originals_and_each_transform(folder):
    originals = np.full((8, 28, 28), 9, np.uint8)
    versions = np.arange(2 * 4 * 8, dtype=np.uint8).reshape(2, 4, 8, 1, 1) * np.ones((28, 28), np.uint8)
    np.savez(folder / "images.npz", originals=originals, names=np.array(["A", "B"]), versions=versions)
    figure = plot.plot_images(plot.read_run(folder))
    first, a, b = figure.axes
    assert set(first.images[0].get_array().compressed()) == {9}
    assert a.get_title().startswith("A:") and set(a.images[0].get_array().compressed()) == set(range(32))
    assert set(b.images[0].get_array().compressed()) == set(range(32, 64))


def write_digits(folder, names):
    """Write pictures of own digits, and LeNet's answers: 7 to each."""
    count = len(names)
    originals = np.full((count, 112, 112, 3), 200, dtype=np.uint8)
    images = np.full((count, 28, 28), 9, np.uint8)
    np.savez(folder / "my_digits.npz", names=np.array(names), images=images, originals=originals)
    digit_logits = np.zeros((count, 10), dtype=np.float32)
    digit_logits[:, 7] = 5
    write_outputs(folder, "LeNet-seed0", *wrong_answers(0), digit_logits=digit_logits)


def test_digits_show_picture_prepared_image_and_answers(folder):
    write_digits(folder, ["a.png", "$b$.png", "7.png", "2_a.jpg", "28.png"])
    run = plot.read_run(folder)
    logits = {"LeNet": run.outputs["LeNet"][0]["digit_logits"]}
    probability = np.exp(5) / (np.exp(5) + 9)
    answer = f"7 ({100 * probability - 0.005:.2f}%)"  # rounded down
    expected = [answer, answer, f"{answer} right", f"{answer} wrong", answer]
    for index, text in enumerate(expected):
        assert plot.digit_answers(run.digits, logits, index) == {"LeNet": text}
    table = plot.digit_table(run.digits, logits)
    assert [expected[index] in line for index, line in enumerate(table[2:])] == [True] * 5
    figure = plot.plot_digits(run)
    figure.draw_without_rendering()
    for axes, name, text in zip(figure.axes, run.digits["names"], expected):
        assert axes.get_title() == name
        picture = axes.images[0].get_array()
        assert (picture[:, :112] == 200).all() and (picture[:, 112:] == 9).all()
        assert axes.get_xlabel() == f"LeNet: {text}"


@pytest.mark.parametrize("count", [30, 300])
def test_many_digits_stay_readable(folder, count):
    write_digits(folder, [f"{index}.png" for index in range(count)])
    figure = plot.plot_digits(plot.read_run(folder))
    width, height = figure.bbox.width, figure.bbox.height
    assert width < 3000 and height < 9000
    assert len(figure.axes) == count


def test_a_deep_model_makes_no_picture_without_bound(folder):
    write_outputs(folder, "LeNet-seed0", *wrong_answers(0))
    maps = {f"layer conv{index}": np.ones((8, 4, 4)) for index in range(150)}
    np.savez(folder / "LeNet-seed0.layers.npz", **maps)
    figure = plot.plot_layers(plot.read_run(folder))
    assert figure.bbox.height < 3000 and "first" in figure.subfigs[0].get_suptitle()


def test_a_training_with_another_loss_can_have_learned(folder):
    lines = [(epoch, 300, 0.9, 0.2, 0.95, 1, 0.1) for epoch in (1, 2, 3)]
    write_csv(folder / "LeNet-seed0.csv", lines)
    run = plot.read_run(folder)
    assert not plot.has_learned_nothing(run, "LeNet", 0) and plot.has_learned_nothing(run, "MLP", 0)


def test_trainings_without_figures_are_left_out(folder):
    write_csv(folder / "LeNet-seed2.csv", [])
    write_csv(folder / "Unfinished-seed0.csv", [])
    (folder / "LeNet-seed3.csv").touch()  # a full disk left no room for the first line
    stats = plot.read_run(folder).stats
    assert list(stats) == ["MLP", "LeNet"] and list(stats["LeNet"]) == [0, 1]


def test_unfinished_last_line_is_passed_over(folder):
    path = folder / "MLP-seed0.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.rstrip("\n")[:-1], encoding="utf-8")  # a number that is not whole
    assert list(plot.read_run(folder).stats["MLP"][0]["epoch"]) == [1, 2]


DAMAGED = {
    "no JSON": ("settings.json", b"{"),
    "a list": ("settings.json", b"[]"),
    "data is a text": ("settings.json", b'{"data": "text"}'),
    "EXPERIMENTS is null": ("settings.json", b'{"EXPERIMENTS": null}'),
    "a row is null": ("settings.json", b'{"EXPERIMENTS": {"A": null}}'),
    "another header": ("LeNet-seed0.csv", b"a,b\n1,2\n"),
    "a word": ("LeNet-seed0.csv", f"{HEADER}\n1,high,0.5,1,0.5,1,1\n".encode()),
    "not finite": ("LeNet-seed0.csv", f"{HEADER}\n1,inf,0.5,1,0.5,1,1\n".encode()),
    "too few numbers": ("LeNet-seed0.csv", f"{HEADER}\n1,1,0.5\n2,1,0.5\n".encode()),
    "empty archive": ("LeNet-seed0.npz", b""),
    "no archive": ("LeNet-seed0.npz", b"no archive"),
    "no layers": ("LeNet-seed0.layers.npz", b"no layers"),
    "no digits": ("my_digits.npz", b"no digits"),
}


@pytest.mark.parametrize("name, content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named_in_one_line(folder, capsys, name, content):
    write_outputs(folder, "LeNet-seed0", *wrong_answers(3))
    (folder / name).write_bytes(content)
    for arguments in ([str(folder)], [str(folder), str(folder)]):
        assert plot.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line


def test_no_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["nowhere"], [str(tmp_path)]):
        assert plot.main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_newest_run_is_the_last_one_that_has_what_is_needed(tmp_path):
    for name in ("2026-01-01_00-00-00", "2026-01-02_00-00-00", "1", "9", "10"):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "A-seed0.csv", MLP[0])
    (tmp_path / "11").mkdir()  # never trained
    (tmp_path / "9" / "A-seed0.pt").touch()
    assert plot.newest_run(tmp_path).name == "10"
    assert plot.newest_run(tmp_path, "A-seed0.pt").name == "9"
    assert [folder.name for folder in plot.run_folders(tmp_path)] == [
        "2026-01-01_00-00-00",
        "2026-01-02_00-00-00",
        "1",
        "9",
        "10",
        "11",
    ]
    with pytest.raises(FileNotFoundError, match="B-seed0.pt"):
        plot.newest_run(tmp_path, "B-seed0.pt")
