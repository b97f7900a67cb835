"""The curves: what the figures hold, whatever lies in the folder."""

import json
import re

import numpy as np
import pytest

import plot

HEADER = ",".join(plot.COLUMNS)
LENET = [
    [(1, 0.30, 0.20, 0.10, 0.970, 5), (2, 0.10, 0.97, 0.05, 0.985, 5), (3, 0.05, 0.985, 0.04, 0.990, 5)],
    [(1, 0.40, 0.30, 0.20, 0.950, 5), (2, 0.20, 0.95, 0.15, 0.975, 5), (3, 0.15, 0.995, 0.06, 0.992, 5)],
]
MLP = [[(1, 2.3, 0.1124, 2.3, 0.1135, 1), (2, 2.3, 0.1124, 2.3, 0.1135, 1), (3, 2.3, 0.1124, 2.3, 0.1135, 1)]]


def write_csv(path, lines):
    path.write_text("\n".join([HEADER, *(",".join(map(str, line)) for line in lines)]) + "\n")


@pytest.fixture
def folder(tmp_path):
    """The folder of a run: LeNet with two seeds, MLP with one."""
    for seed, lines in enumerate(LENET):
        write_csv(tmp_path / f"LeNet-seed{seed}.csv", lines)
    write_csv(tmp_path / "MLP-seed0.csv", MLP[0])
    settings = {"EXPERIMENTS": {"MLP": {}, "LeNet": {}}, "data": {"description": "three images from here"}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    return tmp_path


def lines_of(axes):
    """{label without the last value: y values} of the drawn lines."""
    for line in axes.lines:
        assert list(line.get_xdata()) == list(range(1, len(line.get_xdata()) + 1))
    return {line.get_label().rpartition(":")[0]: list(line.get_ydata()) for line in axes.lines}


def column(training, name, factor=1):
    return [factor * line[plot.COLUMNS.index(name)] for line in training]


def test_read_run_gives_the_numbers_in_the_order_of_the_settings(folder):
    run = plot.read_run(folder)
    assert list(run) == ["MLP", "LeNet"] and list(run["LeNet"]) == [0, 1]
    for name in plot.COLUMNS:
        assert list(run["LeNet"][1][name]) == column(LENET[1], name)


def test_seeds_are_ordered_as_numbers(tmp_path):
    for seed in (10, 9):
        write_csv(tmp_path / f"A-seed1-seed{seed}.csv", [(1, 1, 0.5, 1, 0.5, 1)])
    assert list(plot.read_run(tmp_path)["A-seed1"]) == [9, 10]


def test_experiment_has_four_curves_with_the_numbers_of_the_csv(folder):
    loss, accuracy = plot.plot_experiment(folder, "MLP").axes
    assert lines_of(loss) == {"training": column(MLP[0], "train_loss"), "validation": column(MLP[0], "val_loss")}
    assert lines_of(accuracy) == {
        "training": pytest.approx(column(MLP[0], "train_accuracy", 100)),
        "validation": pytest.approx(column(MLP[0], "val_accuracy", 100)),
    }
    assert not loss.collections  # no band for a single seed


def test_several_seeds_are_a_mean_with_a_band_of_their_range(folder):
    for axes, name, factor in zip(
        plot.plot_comparison([folder]).axes,
        ("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
        (1, 100, 1, 100),
    ):
        values = np.array([column(training, name, factor) for training in LENET])
        assert lines_of(axes)["LeNet"] == pytest.approx(values.mean(axis=0))
        assert lines_of(axes)["MLP"] == pytest.approx(column(MLP[0], name, factor))
        (band,) = axes.collections
        drawn = {tuple(point) for point in band.get_paths()[0].vertices.round(6)}
        for epoch in (1, 2, 3):
            for edge in (values.min(axis=0), values.max(axis=0)):
                assert (epoch, edge[epoch - 1].round(6)) in drawn


def test_legends_state_the_last_value_and_hide_no_curve(folder):
    figure = plot.plot_comparison([folder])
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend()
        box = legend.get_window_extent()
        assert not any(box.overlaps(other.get_window_extent()) for other in figure.axes)
        assert box.y0 >= 0 and box.x0 >= 0 and box.x1 <= figure.bbox.x1
        last = {
            text.get_text().rpartition(": ")[0]: text.get_text().rpartition(": ")[2] for text in legend.get_texts()
        }
        for label, values in lines_of(axes).items():
            assert float(last[label].rstrip("%")) == pytest.approx(values[-1], rel=0.005)


def test_epochs_are_whole_numbers_and_axes_are_named(folder):
    for figure in (plot.plot_comparison([folder]), plot.plot_experiment(folder, "LeNet")):
        figure.draw_without_rendering()
        for axes in figure.axes:
            assert all(tick == int(tick) for tick in axes.get_xticks())
            assert axes.get_xlabel() and axes.get_ylabel()


def test_99_and_99_2_percent_are_far_apart_though_another_curve_lies_at_11(folder):
    accuracy = plot.plot_comparison([folder]).axes[3]
    low, high = (accuracy.transData.transform((3, percent))[1] for percent in (99.0, 99.2))
    assert (high - low) / accuracy.bbox.height > 0.03
    assert len([tick for tick in accuracy.get_yticks() if tick >= 90]) >= 3


def test_curves_near_to_each_other_get_ticks_of_their_own(tmp_path):
    write_csv(tmp_path / "A-seed0.csv", [(1, 0.031, 0.9911, 0.031, 0.9911, 1), (2, 0.03, 0.9913, 0.03, 0.9913, 1)])
    for axes in plot.plot_experiment(tmp_path, "A").axes:
        assert len(axes.get_yticks()) >= 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "loss, accuracy", [(0, 1), (1e-9, 0.9999), (2.3, 0.1135), (1e9, 0), (float("nan"), 0.1), (float("inf"), 0.1)]
)
def test_every_value_can_be_drawn(tmp_path, loss, accuracy):
    write_csv(tmp_path / "A-seed0.csv", [(1, loss or 1e-9, accuracy, loss or 1e-9, accuracy, 1)])
    write_csv(tmp_path / "B-seed0.csv", [(1, 1, 0.5, 1, 0.5, 1), (2, loss, accuracy, loss, accuracy, 1)])
    write_csv(tmp_path / "B-seed1.csv", [(1, 1, 0.5, 1, 0.5, 1)])
    assert all(path.stat().st_size > 10_000 for path in plot.save_plots(tmp_path))


def write_mistakes(path, count):
    """Write mistakes of a training: the first of `count` has an image full of 1s, the label 1
    and the answer 2, and so on."""
    numbers = np.arange(1, count + 1)
    images = np.broadcast_to(numbers.astype(np.uint8)[:, None, None], (count, 28, 28))
    labels, answers = numbers % 10, (numbers + 1) % 10
    confidences = np.linspace(0.9, 0.5, count)
    np.savez(path, images=images, labels=labels, answers=answers, confidences=confidences, mistakes=1234)


@pytest.mark.parametrize("count", [25, 7, 1, 0])
def test_mistakes_show_every_image_below_its_label_and_answer(folder, count):
    write_mistakes(folder / "LeNet-seed1.npz", count)
    write_mistakes(folder / "MLP-seed0.npz", 1)
    figure = plot.plot_mistakes(folder)
    figure.draw_without_rendering()
    _, axes = figure.axes
    assert "LeNet" in axes.get_title() and "seed 1" in axes.get_title() and "1,234" in axes.get_title()
    picture = axes.images[0].get_array()
    for number in range(1, count + 1):
        assert (picture == number).sum() == 28 * 28
    texts = sorted(axes.texts, key=lambda text: (text.get_position()[1], text.get_position()[0]))
    assert len(texts) == count
    for number, text in enumerate(texts, start=1):
        label, answer = (int(digit) for digit in re.findall(r"\d", text.get_text()))
        assert (label, answer) == (number % 10, (number + 1) % 10)
        x, y = text.get_position()
        assert picture[int(y) + 3, int(x)] == number  # the text stands right above its image
        box = text.get_window_extent()
        assert not any(box.overlaps(other.get_window_extent()) for other in texts if other is not text)
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_mistakes_of_the_first_seed_that_was_finished(folder):
    assert plot.plot_mistakes(folder) is None
    for seed in (1, 0):
        write_mistakes(folder / f"LeNet-seed{seed}.npz", 3)
        assert f"seed {seed}" in plot.plot_mistakes(folder).axes[0].get_title()


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_damaged_mistakes_are_errors_that_name_the_file(folder, capsys, content):
    path = folder / "LeNet-seed0.npz"
    np.savez(path, images=np.zeros((1, 28, 28)))
    if content is not None:
        path.write_bytes(content)
    assert plot.main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line


def test_several_runs_are_told_apart_by_folder_and_line_style(folder, tmp_path):
    other = tmp_path / "other" / folder.name
    other.mkdir(parents=True)
    write_csv(other / "LeNet-seed0.csv", LENET[0][:2])
    axes = plot.plot_comparison([folder, other]).axes[0]
    assert len(lines_of(axes)) == 3  # labels differ although the folders have the same name
    (lenet,) = [line for line in axes.lines if len(line.get_ydata()) == 2]
    (same,) = [line for line in axes.lines if line.get_color() == lenet.get_color() and line is not lenet]
    assert lenet.get_linestyle() != same.get_linestyle()


def test_many_experiments_have_different_colors(tmp_path):
    for index in range(7):
        write_csv(tmp_path / f"{index}-seed0.csv", MLP[0])
    axes = plot.plot_comparison([tmp_path]).axes[0]
    assert len({line.get_color() for line in axes.lines}) == 7


def test_trainings_without_figures_are_left_out(folder):
    write_csv(folder / "LeNet-seed2.csv", [])
    write_csv(folder / "Unfinished-seed0.csv", [])
    run = plot.read_run(folder)
    assert list(run) == ["MLP", "LeNet"] and list(run["LeNet"]) == [0, 1]


def test_unfinished_last_line_is_passed_over(folder):
    path = folder / "MLP-seed0.csv"
    path.write_text(path.read_text().rstrip("\n")[:-1])  # a number in it could still be read, but is not whole
    assert list(plot.read_run(folder)["MLP"][0]["epoch"]) == [1, 2]


def test_damaged_settings_are_named(folder, capsys):
    (folder / "settings.json").write_text("{")
    assert plot.main([str(folder)]) == 2
    assert "settings.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", HEADER + "\n1,high,0.5,1,0.5,1\n", HEADER + "\n1,1,0.5\n2,1,0.5\n"]
)
def test_foreign_csvs_are_errors_that_name_the_file(tmp_path, capsys, content):
    path = tmp_path / "A-seed0.csv"
    path.write_text(content)
    assert plot.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line


def test_no_run_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["nowhere"], [str(tmp_path)]):
        assert plot.main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
