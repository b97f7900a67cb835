"""Draw loss and accuracy curves from the CSVs of a run, and its worst mistakes.

    python plot.py                        the newest run in results/, again
    python plot.py results/A              that run
    python plot.py results/A results/B    both runs in one comparison
"""

import csv
import json
import math
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# The figures of a CSV, and what people read above them.
HEADINGS = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
}
COLUMNS = ("epoch", *HEADINGS, "seconds")

# Okabe and Ito's palette without its yellow: told apart by colour-blind people, too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")

# Where losses and accuracies (in %) get a tick, if the curves come near.
LOSS_TICKS = [digit * 10.0**power for power in range(-8, 4) for digit in (1, 2, 5)]
ACCURACY_TICKS = [10, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 100]


def read_run(folder):
    """Return {experiment: {seed: {column: values}}} from the CSVs in `folder`.

    The values are arrays with one number per epoch; losses are averages per image,
    accuracies fractions. Trainings without a finished epoch are left out. The experiments
    have the order of settings.json, where there is one.

    Raises FileNotFoundError if the folder has no figures, ValueError, naming the file, if
    a CSV isn't one that main.py wrote.
    """
    folder = Path(folder)
    order = list(read_settings(folder).get("EXPERIMENTS", {}))
    run = {name: {} for name in order}
    for path in sorted(folder.glob("*-seed*.csv")):
        name, seed = re.fullmatch(r"(.+)-seed(\d+)", path.stem).groups()
        text = path.read_text(encoding="utf-8", errors="replace")
        # A run that was killed may have left half a line at the end.
        header, *rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [[]]
        if tuple(header) != COLUMNS:
            raise ValueError(f"{path}: the first line must be {','.join(COLUMNS)}")
        try:
            values = [dict(zip(COLUMNS, map(float, row), strict=True)) for row in rows]
        except ValueError as error:
            raise ValueError(f"{path}: every line must hold {len(COLUMNS)} numbers ({error})") from error
        if values:
            stats = {column: np.array([row[column] for row in values]) for column in COLUMNS}
            run.setdefault(name, {})[int(seed)] = stats
    run = {name: dict(sorted(seeds.items())) for name, seeds in run.items() if seeds}
    if not run:
        raise FileNotFoundError(f"{folder} contains no figures of a run (<experiment>-seed<k>.csv)")
    return run


def read_settings(folder):
    """Return the settings.json of a run as a dict, empty if there is none."""
    path = Path(folder) / "settings.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def plot_experiment(folder, name):
    """Return a Figure with the four curves of one experiment: loss and accuracy, each in
    training and validation."""
    seeds = read_run(folder)[name]
    figure = Figure(figsize=(8, 4.2), dpi=120, layout="constrained")
    figure.suptitle(title(folder, name, len(seeds)), fontsize=11)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for label, prefix, color in (("training", "train", COLORS[0]), ("validation", "val", COLORS[1])):
            draw_curve(axes, seeds, f"{prefix}_{quantity}", label, color, "-")
        finish(axes, quantity, quantity)
    return figure


def plot_comparison(folders):
    """Return a Figure with training and validation loss and accuracy of all experiments of
    one or more runs: a colour for each experiment, a line style for each run."""
    runs = {folder: read_run(folder) for folder in folders}
    names = list(dict.fromkeys(name for run in runs.values() for name in run))
    entries = sum(len(run) for run in runs.values())
    figure = Figure(figsize=(7.2, 6.4 + 0.4 * entries), dpi=150, layout="constrained")
    titles = [
        title(folder, run_label(folder, folders), max(map(len, run.values()))) for folder, run in runs.items()
    ]
    figure.suptitle("\n".join(titles), fontsize=11)
    for axes, (column, heading) in zip(figure.subplots(2, 2).flat, HEADINGS.items()):
        for index, (folder, run) in enumerate(runs.items()):
            for name, seeds in run.items():
                label = name if len(folders) == 1 else f"{name}, {run_label(folder, folders)}"
                color = COLORS[names.index(name) % len(COLORS)]
                draw_curve(axes, seeds, column, label, color, LINE_STYLES[index % len(LINE_STYLES)])
        finish(axes, heading, column.split("_")[1])
    return figure


def plot_mistakes(folder):
    """Return a Figure with the images that each experiment got wrong with the highest
    confidence, up to 5 x 5, the true label and the answer above each. Of several seeds it
    shows the first. Returns None if no training was finished.

    Raises ValueError, naming the file, if a file of mistakes isn't one that main.py wrote.
    """
    finished = {}
    for name, seeds in read_run(folder).items():
        paths = {f"{name}, seed {seed}": Path(folder) / f"{name}-seed{seed}.npz" for seed in seeds}
        finished |= [(training, path) for training, path in paths.items() if path.exists()][:1]
    if not finished:
        return None
    columns = min(len(finished), 2)
    rows = math.ceil(len(finished) / columns)
    figure = Figure(figsize=(7.2, 0.7 + 4.7 * rows), dpi=150, layout="constrained")
    figure.suptitle(title(folder, "Worst mistakes, label \N{RIGHTWARDS ARROW} answer", 1), fontsize=11)
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in all_axes:
        axes.set_axis_off()
    for axes, (training, path) in zip(all_axes, finished.items()):
        draw_mistakes(axes, training, read_mistakes(path))
    return figure


def read_mistakes(path):
    """Return the arrays that main.py saved of the mistakes of a training, as a dict."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in ("images", "labels", "answers", "confidences", "mistakes")}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def draw_mistakes(axes, training, mistakes):
    """Draw the images in rows of five, and say above them how many mistakes there are in all."""
    confidences = mistakes["confidences"]
    heading = f"{training}: {mistakes['mistakes']:,} mistakes"
    if len(confidences):
        heading += f"\nthese with {confidences.min():.0%} to {confidences.max():.0%} confidence"
    axes.set_title(heading, fontsize=12)
    picture = np.full((5 * 40, 5 * 32), 255, dtype=np.uint8)  # white, 32 x 40 for an image and its labels
    for place, image in enumerate(mistakes["images"]):
        top, left = 40 * (place // 5) + 12, 32 * (place % 5) + 2
        picture[top : top + 28, left : left + 28] = image
        labels = f"{mistakes['labels'][place]} \N{RIGHTWARDS ARROW} {mistakes['answers'][place]}"
        axes.text(left + 14, top - 1.5, labels, ha="center", va="bottom", fontsize=14)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)


def draw_curve(axes, seeds, column, label, color, line_style):
    """Draw one column against the epochs: the mean over the seeds as a line, their range as
    a band. The label in the legend ends with the mean of the last epoch."""
    percent = column.endswith("accuracy")
    curves = [stats[column] * (100 if percent else 1) for stats in seeds.values()]
    epochs = range(1, max(map(len, curves)) + 1)
    # a training that was interrupted has no figures of the later epochs
    values = [[curve[epoch - 1] for curve in curves if len(curve) >= epoch] for epoch in epochs]
    mean = [np.mean(seeds_values) for seeds_values in values]
    last = f"{mean[-1]:.2f}%" if percent else f"{mean[-1]:.3g}"
    axes.plot(epochs, mean, line_style, color=color, label=f"{label}: {last}", marker="o", markersize=3)
    if len(seeds) > 1:
        axes.fill_between(epochs, [*map(min, values)], [*map(max, values)], color=color, alpha=0.2, linewidth=0)


def finish(axes, heading, quantity):
    """Give axes that hold their curves a heading, names, units, scales and a legend."""
    axes.set_title(heading, fontsize=11)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    if quantity == "loss":
        axes.set_ylabel("cross-entropy per image")
        axes.set_yscale("log")
        ticks = LOSS_TICKS
    else:
        axes.set_ylabel("accuracy in %")
        axes.set_yscale("function", functions=(spread_accuracy, unspread_accuracy))
        ticks = ACCURACY_TICKS
    low, high = axes.get_ylim()
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) > 11:
        ticks = ticks[::3]  # of 1, 2, 5, 10, ... one of each power of ten
    if len(ticks) < 3:  # curves so near to each other that these ticks are too far apart
        ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    # Below the axes, where it can't hide a curve.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9)


def spread_accuracy(percent):
    """Map accuracies to the logarithm of the error, which spreads out 98 to 99.9% and yet has
    room for 20%. The 0.02 keeps 100% finite, the maximum what matplotlib tries beyond."""
    return -np.log10(np.maximum(100.02 - percent, 0.01))


def unspread_accuracy(spread):
    """The inverse of `spread_accuracy`."""
    return 100.02 - 10.0**-spread


def title(folder, name, seeds):
    """Return the heading of a figure: a name, the data of the run, the number of seeds."""
    data = read_settings(folder).get("data", {}).get("description", "unknown data")
    return name + (f", mean and range of {seeds} seeds" if seeds > 1 else "") + f"\n{data}"


def run_label(folder, folders):
    """Return what tells a run from the others: its folder's name, or the whole path where
    another run's folder has the same name."""
    folder = Path(folder)
    same_name = [other for other in folders if Path(other).name == folder.name]
    return folder.name if len(same_name) == 1 else str(folder)


def save_plots(folder):
    """Write <experiment>.png for each experiment, comparison.png and mistakes.png into the
    folder of a run, over those of an earlier call. Return their paths."""
    folder = Path(folder)
    figures = {name: plot_experiment(folder, name) for name in read_run(folder)}
    figures["comparison"] = plot_comparison([folder])
    if mistakes := plot_mistakes(folder):
        figures["mistakes"] = mistakes
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def newest_run(results_dir):
    """Return the newest folder that main.py made in `results_dir`. Raises
    FileNotFoundError if there is none."""
    runs = sorted(Path(results_dir).glob("????-??-??_??-??-??"))
    if not runs:
        raise FileNotFoundError(f"no run in {results_dir}: first run main.py, or name the folder of a run")
    return runs[-1]


def main(folders):
    """Draw the runs in these folders; without one, the newest in results/. Return the exit code."""
    try:
        folders = [Path(folder) for folder in folders] or [newest_run("results")]
        if len(folders) == 1:
            paths = save_plots(folders[0])
        else:
            # beside the first run, not in it: it belongs to all of them
            paths = [folders[0].parent / f"comparison_{'_'.join(folder.name for folder in folders)}.png"]
            plot_comparison(folders).savefig(paths[0])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
