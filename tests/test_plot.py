"""Curves, tables and pictures, from small hand-made files and without training."""

import json
import re
import statistics

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

import plot

HEADER = ",".join(plot.COLUMNS)
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


def write_csv(path, lines):
    path.write_text("\n".join([HEADER, *(",".join(map(str, line)) for line in lines)]) + "\n")


def write_settings(folder, description="three images from here", **changes):
    row = {"epochs": 3, "learning_rate": 0.02, "augmentation": {}}
    settings = {
        "EPOCHS": 3,
        "SEEDS": [0, 1],
        "EXPERIMENTS": {"MLP": row, "LeNet": row},
        "data": {"description": description},
        "parameters": {"LeNet": 61706},
    }
    (folder / "settings.json").write_text(json.dumps(settings | changes))


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
    return [factor * line[plot.COLUMNS.index(name)] for line in training]


def lines_of(axes):
    return [list(line.get_ydata()) for line in axes.lines]


def legend_of(figure):
    figure.draw_without_rendering()
    (legend,) = figure.legends
    return legend, [text.get_text().strip() for text in legend.get_texts()]


def test_read_run_gives_the_numbers_in_the_order_of_the_settings(folder):
    stats = plot.read_run(folder).stats
    assert list(stats) == ["MLP", "LeNet"] and list(stats["LeNet"]) == [0, 1]
    for name in plot.COLUMNS:
        assert list(stats["LeNet"][1][name]) == column(LENET[1], name)


def test_seeds_are_ordered_as_numbers_and_other_files_passed_over(tmp_path):
    for seed in (10, 9):
        write_csv(tmp_path / f"A-seed1-seed{seed}.csv", MLP[0])
    (tmp_path / "A-seedx.csv").write_text("what is this")
    stats = plot.read_run(tmp_path).stats
    assert {name: list(seeds) for name, seeds in stats.items()} == {"A-seed1": [9, 10]}


def test_experiment_has_its_four_curves_and_the_learning_rate(folder):
    loss, accuracy, rate = plot.plot_experiment(plot.read_run(folder), "MLP").axes
    assert lines_of(loss) == [column(MLP[0], "train_loss"), column(MLP[0], "val_loss")]
    for line, name in zip(lines_of(accuracy), ("train_accuracy", "val_accuracy"), strict=True):
        assert line == pytest.approx(column(MLP[0], name, 100))
    assert lines_of(rate) == [column(MLP[0], "learning_rate")]
    assert not loss.collections  # no band for a single seed


def test_several_seeds_are_a_mean_with_a_band_of_their_range(folder):
    figure = plot.plot_comparison([plot.read_run(folder)])
    for axes, name, factor in zip(figure.axes, FIGURES, (1, 100, 1, 100), strict=True):
        values = np.array([column(training, name, factor) for training in LENET])
        mlp, lenet = lines_of(axes)
        assert lenet == pytest.approx(values.mean(axis=0))
        assert mlp == pytest.approx(column(MLP[0], name, factor))
        (band,) = axes.collections
        drawn = {tuple(point) for point in band.get_paths()[0].vertices.round(6)}
        for epoch in (1, 2, 3):
            for edge in (values.min(axis=0), values.max(axis=0)):
                assert (epoch, edge[epoch - 1].round(6)) in drawn


@pytest.mark.parametrize("experiments, runs", [(2, 1), (40, 1), (7, 2)])
def test_one_legend_names_every_line_states_its_end_and_hides_nothing(tmp_path, experiments, runs):
    folders = [tmp_path / str(number) for number in range(runs)]
    for folder in folders:
        folder.mkdir()
        for index in range(experiments):
            write_csv(
                folder / f"_{index}-seed0.csv", [(1, 1, 0.5, 1, 0.5, 1, 0.1), (2, 0.3, 0.9, 0.3, 0.98, 1, 0)]
            )
    figure = plot.plot_comparison([plot.read_run(folder) for folder in folders])
    legend, texts = legend_of(figure)
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert box.y0 >= 0 and box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert all(box.contains(*text.get_window_extent().min) for text in legend.get_texts())
    _, *rows = texts
    assert len(rows) == experiments * runs
    assert all("0.3" in row and "90.00%" in row and "98.00%" in row for row in rows)
    looks = [
        (to_hex(line.get_color()), line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines
    ]
    assert len(set(looks)) == experiments * runs
    # without the markers, which are small, colour and style tell 28 apart
    assert len({look[:2] for look in looks}) >= min(28, experiments * runs)


def test_equal_curves_are_said_to_be_equal(folder):
    runs = [plot.read_run(folder), plot.read_run(other_run(folder), "B")]
    _, (_, *rows) = legend_of(plot.plot_comparison(runs))
    assert [bool(re.search("= (MLP|LeNet), A", row)) for row in rows] == [False, True, False, True]


@pytest.mark.parametrize("epochs", [1, 3, 10, 30, 200])
def test_epochs_have_round_ticks_and_axes_are_named(tmp_path, epochs):
    write_csv(
        tmp_path / "A-seed0.csv", [(epoch, 1 / epoch, 0.5, 1, 0.5, 1, 0.1) for epoch in range(1, epochs + 1)]
    )
    run = plot.read_run(tmp_path)
    for figure in (plot.plot_comparison([run]), plot.plot_experiment(run, "A")):
        figure.draw_without_rendering()
        for axes in figure.axes[:2]:
            first, *others = axes.get_xticks()
            assert first == 1 and len(others) < 10 and all(tick % 5 == 0 or epochs < 9 for tick in others)
            assert axes.get_xlabel() and axes.get_ylabel()


def test_99_and_99_2_percent_are_far_apart_though_another_curve_lies_at_11(folder):
    accuracy = plot.plot_comparison([plot.read_run(folder)]).axes[3]
    low, high = (accuracy.transData.transform((3, percent))[1] for percent in (99.0, 99.2))
    assert (high - low) / accuracy.bbox.height > 0.03
    assert len([tick for tick in accuracy.get_yticks() if tick >= 90]) >= 3


def test_curves_near_to_each_other_get_ticks_of_their_own(tmp_path):
    write_csv(
        tmp_path / "A-seed0.csv",
        [(1, 0.031, 0.9911, 0.031, 0.9911, 1, 0), (2, 0.03, 0.9913, 0.03, 0.9913, 1, 0)],
    )
    for axes in plot.plot_experiment(plot.read_run(tmp_path), "A").axes[:2]:
        low, high = axes.get_ylim()
        assert len([tick for tick in axes.get_yticks() if low <= tick <= high]) >= 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss, accuracy", [(1e-9, 1), (1e-9, 0.9999), (2.3, 0.1135), (1e9, 0)])
def test_every_value_can_be_drawn(tmp_path, loss, accuracy):
    write_csv(tmp_path / "A-seed0.csv", [(1, loss, accuracy, loss, accuracy, 1, 0.1)])
    write_csv(
        tmp_path / "B-seed0.csv", [(1, 1, 0.5, 1, 0.5, 1, 0.1), (2, loss, accuracy, loss, accuracy, 1, 0)]
    )
    write_csv(tmp_path / "B-seed1.csv", [(1, 1, 0.5, 1, 0.5, 1, 0.1)])
    plot.save_plots(plot.read_run(tmp_path))
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("A", "B", "comparison"))


def cells(line):
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_summary_holds_means_deviations_and_gains(folder):
    write_settings(folder, BASELINE="MLP")
    text, _ = plot.summary(plot.read_run(folder))
    heading, _, mlp, lenet = (cells(line) for line in text.splitlines() if line.startswith("|"))
    expected = ["LeNet", "61,706"]
    for name in FIGURES:
        values = [column(training, name)[-1] for training in LENET]
        form = ".2%" if "accuracy" in name else ".4f"
        expected.append(f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}")
    assert lenet[:6] == expected
    assert heading[6] == "gain over MLP" and mlp[6] == "" and lenet[6] == "+87.75"
    assert heading[7] == "seconds" and lenet[7] == "15 ± 0"


def test_gain_is_over_lenet5_wherever_it_stands_and_has_a_standard_error(folder):
    for name, shift in (("LeNet5", 0.01), ("A", 0)):
        for seed, lines in enumerate(LENET):
            changed = [(*line[:4], line[4] - shift, *line[5:]) for line in lines]
            write_csv(folder / f"{name}-seed{seed}.csv", changed)
    text, _ = plot.summary(plot.read_run(folder))
    table = {cells(line)[0]: cells(line)[6] for line in text.splitlines() if line.startswith("|")}
    assert table["experiment"] == "gain over LeNet5" and table["LeNet5"] == ""
    values = [100 * lines[-1][4] for lines in LENET]
    assert table["A"] == f"+1.00 ± {statistics.stdev(values):.2f}"  # sqrt(s²/2 + s²/2)


def test_summary_holds_every_epoch(folder):
    _, text = plot.summary(plot.read_run(folder))
    mlp, lenet = text.split("## ")[1:]
    assert mlp.startswith("MLP") and lenet.startswith("LeNet")
    rows = [cells(line) for line in lenet.splitlines() if line.startswith("|")][2:]
    for epoch, row in enumerate(rows):
        values = [training[epoch][3] for training in LENET]
        assert row[0] == str(epoch + 1)
        assert row[3] == f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
    assert len(rows) == 3


def test_summary_names_what_did_not_finish(folder):
    write_csv(folder / "LeNet-seed1.csv", LENET[1][:2])
    text, _ = plot.summary(plot.read_run(folder))
    assert re.findall(r"Not finished: (.*)", text) == [
        "MLP, seed 1: 0 of 3 epochs",
        "LeNet, seed 1: 2 of 3 epochs",
    ]


def test_a_run_without_a_finished_epoch_still_has_a_summary(tmp_path):
    write_settings(tmp_path)
    plot.save_plots(plot.read_run(tmp_path))
    assert "Not finished: MLP, seed 0" in (tmp_path / "summary.md").read_text()
    assert not list(tmp_path.glob("*.png"))


def test_two_runs_say_what_differs_and_by_how_much(folder, capsys):
    rows = {
        "MLP": {"epochs": 5, "learning_rate": 0.02, "augmentation": {}},  # follows EPOCHS
        "LeNet": {"epochs": 5, "learning_rate": 0.005, "augmentation": {"shift": 1}},
        "New": {"epochs": 5},
    }
    other = other_run(folder, EPOCHS=5, EXPERIMENTS=rows)
    write_csv(other / "LeNet-seed0.csv", LENET[1])
    runs = [plot.read_run(folder), plot.read_run(other, "B")]
    edits = plot.changes(runs)[0].partition(": ")[2]
    expected = [
        "EPOCHS 3 -> 5",
        "LeNet: learning_rate 0.02 -> 0.005",
        "LeNet: augmentation {} -> {'shift': 1}",
    ]
    assert edits == ", ".join([*expected, "New added"])
    figure = plot.plot_comparison(runs)
    assert all(edit in figure.get_suptitle().replace("\n", " ") for edit in expected)
    assert plot.main([str(folder), str(other)]) == 0
    out = capsys.readouterr().out
    assert edits in out
    (row,) = [cells(line) for line in out.splitlines() if line.startswith("| LeNet ") and "| B " in line]
    deviation = statistics.stdev([99.0, 99.2])
    assert row[2] == "99.20% ± 0.00%" and row[4] == f"+0.10 ± {deviation / 2**0.5:.2f}"
    (picture,) = folder.parent.glob("comparison_*.png")
    assert picture.stat().st_size > 10_000 and str(picture) in out
    picture.unlink()


def write_answers(folder, training, logits, labels, weights=None, **more):
    wrong = logits.argmax(axis=1) != labels
    images = np.broadcast_to(
        np.arange(1, len(labels) + 1, dtype=np.uint8)[:, None, None], (len(labels), 28, 28)
    )
    np.savez(folder / f"{training}.npz", logits=logits, labels=labels, mistakes=images[wrong], **more)
    torch.save(
        {"layer.weight": torch.ones(6, 1, 5, 5) if weights is None else weights}, folder / f"{training}.pt"
    )


def wrong_answers(count):
    """Logits and labels of 100 images; the first `count` are misclassified: label k % 10, answer
    one more, confidence falling. Image number k is full of the value k + 1."""
    labels = np.arange(100) % 10
    answers = np.where(np.arange(100) < count, (labels + 1) % 10, labels)
    logits = np.zeros((100, 10), dtype=np.float32)
    logits[range(100), answers] = np.linspace(40, 3, 100)
    return logits, labels


@pytest.mark.parametrize("count", [30, 25, 7, 1, 0])
def test_mistakes_show_every_image_below_its_label_and_answer(folder, count):
    write_answers(folder, "LeNet-seed1", *wrong_answers(count))
    figure = plot.plot_mistakes(plot.read_run(folder))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert "LeNet, seed 1" in axes.get_title() and f"{count} mistakes" in axes.get_title()
    assert "100%" not in axes.get_title() and "100.0" not in axes.get_title()
    picture = axes.images[0].get_array()
    texts = sorted(axes.texts, key=lambda text: (text.get_position()[1], text.get_position()[0]))
    assert len(texts) == min(count, 25)
    for number, text in enumerate(texts, start=1):
        assert (picture == number).sum() == 28 * 28
        label, answer = (int(digit) for digit in re.findall(r"\d", text.get_text()))
        assert (label, answer) == ((number - 1) % 10, number % 10)
        x, y = text.get_position()
        assert picture[int(y) + 3, int(x)] == number  # the text stands right above its image
        box = text.get_window_extent()
        assert not any(box.overlaps(other.get_window_extent()) for other in texts if other is not text)
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_pictures_show_the_first_finished_seed(folder):
    run = plot.read_run(folder)
    assert not run.outputs and not run.filters
    for seed in (1, 0):
        write_answers(folder, f"LeNet-seed{seed}", *wrong_answers(3))
        for figure in (plot.plot_mistakes, plot.plot_confusion, plot.plot_filters):
            assert f"seed {seed}" in figure(plot.read_run(folder)).axes[0].get_title()


def test_confusion_counts_answers_and_colours_mistakes_only(folder):
    logits, labels = wrong_answers(30)
    write_answers(folder, "LeNet-seed0", logits, labels)
    (axes,) = plot.plot_confusion(plot.read_run(folder)).axes
    counts = {text.get_position()[::-1]: int(text.get_text() or 0) for text in axes.texts}
    assert len(counts) == 100 and sum(counts.values()) == 100
    assert all(counts[digit, digit] == 7 and counts[digit, (digit + 1) % 10] == 3 for digit in range(10))
    colours = axes.images[0].get_array()
    assert (np.diag(colours) == 0).all() and colours[0, 1] == 3


def test_filters_are_drawn_by_shape(folder):
    weights = torch.arange(64 * 784.0).view(64, 784)
    for name, first in (
        ("conv", torch.randn(6, 1, 5, 5)),
        ("mlp", weights),
        ("other", torch.ones(5, 3, 3, 3)),
    ):
        write_csv(folder / f"{name}-seed0.csv", MLP[0])
        write_answers(folder, f"{name}-seed0", *wrong_answers(0), first)
    figure = plot.plot_filters(plot.read_run(folder))
    drawn = {
        axes.get_title().partition(",")[0]: axes.images[0].get_array() for axes in figure.axes if axes.images
    }
    assert set(drawn) == {"conv", "mlp"}
    sheet = drawn["mlp"]
    values = sheet[~np.isnan(sheet)]
    assert sorted(values) == sorted(weights.flatten().tolist())
    assert (sheet[:28, :28] == weights[0].view(28, 28).numpy()).all()


def test_digits_show_picture_prepared_image_and_probabilities(folder):
    names = np.array(["a.png", "$b$.png"])
    originals = np.full((2, 112, 112, 3), 200, dtype=np.uint8)
    np.savez(
        folder / "my_digits.npz", names=names, images=np.full((2, 28, 28), 9, np.uint8), originals=originals
    )
    digit_logits = np.zeros((2, 10), dtype=np.float32)
    digit_logits[[0, 1], [7, 2]] = 5
    write_answers(folder, "LeNet-seed0", *wrong_answers(0), digit_logits=digit_logits)
    figure = plot.plot_digits(plot.read_run(folder))
    figure.draw_without_rendering()
    for row, (name, answer) in enumerate((("a.png", 7), ("$b$.png", 2))):
        original, seen, bars = figure.axes[3 * row : 3 * row + 3]
        assert original.get_title() == name
        assert (original.images[0].get_array() == 200).all() and (seen.images[0].get_array() == 9).all()
        heights = [bar.get_height() for bar in bars.patches]
        assert np.argmax(heights) == answer and sum(heights) == pytest.approx(1)
        assert f"{answer}: {100 * max(heights) - 0.005:.2f}%" in bars.get_title()  # rounded down


def test_trainings_without_figures_are_left_out(folder):
    write_csv(folder / "LeNet-seed2.csv", [])
    write_csv(folder / "Unfinished-seed0.csv", [])
    (folder / "LeNet-seed3.csv").touch()  # a full disk left no room for the first line
    stats = plot.read_run(folder).stats
    assert list(stats) == ["MLP", "LeNet"] and list(stats["LeNet"]) == [0, 1]


def test_unfinished_last_line_is_passed_over(folder):
    path = folder / "MLP-seed0.csv"
    path.write_text(
        path.read_text().rstrip("\n")[:-1]
    )  # a number in it could still be read, but is not whole
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
    "no weights": ("LeNet-seed0.pt", b"no weights"),
    "no digits": ("my_digits.npz", b"no digits"),
}


@pytest.mark.parametrize("name, content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named_in_one_line(folder, capsys, name, content):
    write_answers(folder, "LeNet-seed0", *wrong_answers(3))
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


def test_newest_run_is_the_last_one_with_a_finished_epoch(tmp_path):
    for day, lines in ((1, MLP[0]), (2, MLP[0]), (3, [])):
        folder = tmp_path / f"2026-01-0{day}_00-00-00"
        folder.mkdir()
        write_csv(folder / "A-seed0.csv", lines)
    (tmp_path / "2026-01-04_00-00-00").mkdir()  # never trained
    assert plot.newest_run(tmp_path).name == "2026-01-02_00-00-00"
