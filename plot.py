"""Draw and tabulate the results in the folder of a run.

    python plot.py                        the newest run in results/, again
    python plot.py results/A              that run
    python plot.py results/A results/B    both in one picture and one table: what did my edit do?
"""

import json
import math
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

# What a CSV holds for each epoch, and the headings of its losses and accuracies.
COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "learning_rate")
HEADINGS = {name: name.replace("train_", "training ").replace("val_", "validation ") for name in COLUMNS[1:5]}

# The pictures of a whole run. No experiment can have one of these names.
PICTURES = ("comparison", "mistakes", "confusion", "filters", "my_digits")

# Okabe and Ito's palette without its yellow: colour-blind people can tell these apart, too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "^", "s", "x", "v", "d")
ACCURACY_TICKS = (10, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 100)  # in %, where the curves come near


@dataclass(eq=False)
class Run:
    """The files of a run, each read once. Losses are averages per image, accuracies fractions."""

    folder: Path
    letter: str  # its name in a comparison
    settings: dict  # settings.json
    stats: dict  # {experiment: {seed: {column: array with a number per epoch}}}
    outputs: dict  # {experiment: {seed: the arrays of its .npz, and the answers}}, if finished
    first: dict  # {"experiment, seed k": its outputs}, for the first finished seed of each
    filters: dict  # {"experiment, seed k": weights of its first layer}
    digits: dict  # the arrays of my_digits.npz
    seeds: int = 1  # the largest number of seeds of an experiment
    data: str = "unknown data"
    heading: str = ""  # of its pictures


def read_run(folder, letter="A"):
    """Return the Run in a folder, its experiments in the order of settings.json. Trainings without a
    finished epoch are left out. Raises ValueError that names a damaged file."""
    run = Run(Path(folder), letter, {}, {}, {}, {}, {}, {})
    try:
        path = run.folder / "settings.json"
        run.settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, kind in {"EXPERIMENTS": dict, "SEEDS": list, "data": dict, "parameters": dict}.items():
            run.settings[name] = kind(run.settings.get(name, ()))  # an error if it is of another kind
        run.data = run.settings["data"] = run.settings["data"].get("description", run.data)
        stats = {name: {} for name, row in run.settings["EXPERIMENTS"].items() if dict(row)}
        for path in sorted(run.folder.glob("*-seed*.csv")):
            name, _, seed = path.stem.rpartition("-seed")
            if seed.isdecimal() and (values := read_csv(path)):  # other files do not belong to the run
                stats.setdefault(name, {})[int(seed)] = values
        run.stats = {name: dict(sorted(seeds.items())) for name, seeds in stats.items() if seeds}
        run.seeds = max(map(len, run.stats.values()), default=1)
        run.heading = run.data + f", mean and range of {run.seeds} seeds" * (run.seeds > 1)
        for name, seed in [(name, seed) for name, seeds in run.stats.items() for seed in seeds]:
            path = run.folder / f"{name}-seed{seed}.npz"
            if path.exists():
                arrays = dict(np.load(path))
                arrays["answers"] = arrays["logits"].argmax(axis=1)
                if name not in run.outputs:  # the pictures show one seed
                    run.first[f"{name}, seed {seed}"] = arrays
                    layers = torch.load(path := path.with_suffix(".pt"), weights_only=True).values()
                    weights = next((layer.numpy() for layer in layers if layer.dim() > 1), np.empty(0))
                    run.filters[f"{name}, seed {seed}"] = weights
                run.outputs.setdefault(name, {})[seed] = arrays
        path = run.folder / "my_digits.npz"
        run.digits = dict(np.load(path)) if path.exists() else {}
    except Exception as error:  # json, numpy, zipfile and torch raise many kinds
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
    return run


def read_csv(path):
    """Return {column: array}, or {} if no epoch was finished."""
    text = path.read_text(encoding="utf-8", errors="replace")
    # A run that was killed may have left half a line at the end.
    header, *rows = text[: text.rfind("\n") + 1].splitlines() or [""]
    if header not in ("", ",".join(COLUMNS)):
        raise ValueError(f"the first line must be {','.join(COLUMNS)}")
    if not rows:
        return {}
    values = np.loadtxt(rows, delimiter=",", ndmin=2).T
    if not np.isfinite(values).all():
        raise ValueError("it holds a number that is not finite")
    return dict(zip(COLUMNS, values, strict=True))


def progress(name, seed, epochs, values):
    """Return what is printed after an epoch, values as in COLUMNS."""
    form = "seed {}  epoch {:2}/{}  training: loss {:.4f}, accuracy {:7.2%}"
    form += "  validation: loss {:.4f}, accuracy {:7.2%}  {:.1f} s"
    return f"{name:18} " + form.format(seed, values[0], epochs, *values[1:6])


def summary(run):
    """Return the table of the last epochs with remarks, and the tables of all epochs."""
    baseline, parameters = run.settings.get("BASELINE", "LeNet5"), run.settings["parameters"]
    gains = baseline in run.stats and len(run.stats) > 1
    table = [["experiment", "parameters", *HEADINGS.values(), *[f"gain over {baseline}"] * gains, "seconds"]]
    every_epoch = []
    for name, seeds in run.stats.items():
        gain = difference(run.stats[baseline], seeds, "val_accuracy") if gains and name != baseline else ""
        seconds = mean_and_deviation([values["seconds"].sum() for values in seeds.values()], ".0f")
        size = f"{parameters[name]:,}" if name in parameters else ""
        table.append([name, size, *cells(seeds, -1), *[gain] * gains, seconds])
        epochs = range(min(len(values["epoch"]) for values in seeds.values()))
        rows = [["epoch", *HEADINGS.values()]] + [[str(i + 1), *cells(seeds, i)] for i in epochs]
        every_epoch += ["", f"## {name}, epoch by epoch", "", *markdown(rows)]
    averages = f"mean ± standard deviation of {run.seeds} seeds" if run.seeds > 1 else "1 seed"
    lines = [f"{run.data}, last epoch, {averages}", "", *markdown(table), ""]
    lines += ["Gain: validation accuracy in percentage points; with several seeds, ± standard error"] * gains
    return "\n".join(lines + remarks(run)), "\n".join(every_epoch)


def remarks(run):
    """Return a line for each training that has not finished, or has not learned."""
    lines = []
    for name, row in run.settings["EXPERIMENTS"].items():
        for seed in run.settings["SEEDS"]:
            values, outputs = (part.get(name, {}).get(seed) for part in (run.stats, run.outputs))
            epochs, all_epochs = len(values["epoch"]) if values else 0, row.get("epochs", 0)
            if epochs < all_epochs:
                lines.append(f"Not finished: {name}, seed {seed}: {epochs} of {all_epochs} epochs")
            elif outputs:
                same = np.ptp(outputs["answers"]) == 0 < np.ptp(outputs["labels"])
                if same or values["train_loss"][-1] > 0.95 * math.log(10):  # guessing has a loss of ln 10
                    advice = f"try another learning_rate (now {row.get('learning_rate')}) or activation"
                    lines.append(f"Warning: {name}, seed {seed} has learned nothing: {advice}")
    return lines


def markdown(table):
    """Return the lines of a table, given as rows of texts; the first row holds the headings."""
    widths = [max(map(len, column)) for column in zip(*table)]
    rows = [table[0], ["-" * width for width in widths], *table[1:]]
    return ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]


def cells(seeds, epoch, columns=tuple(HEADINGS)):
    """Return the cells of a table row: the figures of an epoch, over all seeds."""
    forms = [".2%" if column.endswith("accuracy") else ".4f" for column in columns]
    values = [[stats[column][epoch] for stats in seeds.values()] for column in columns]
    return list(map(mean_and_deviation, values, forms))


def mean_and_deviation(values, form):
    """Return the mean in this format, with "± standard deviation" if there are several values."""
    deviation = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{deviation}"


def difference(old_seeds, new_seeds, column):
    """Return the change of a last figure ± its standard error; accuracies are in percentage points."""
    factor, form = (100, ".2f") if column.endswith("accuracy") else (1, ".4f")
    old, new = ([factor * stats[column][-1] for stats in seeds.values()] for seeds in (old_seeds, new_seeds))
    text = f"{np.mean(new) - np.mean(old):+{form}}"
    if min(len(old), len(new)) > 1:
        text += f" ± {math.hypot(*(np.std(each, ddof=1) / len(each) ** 0.5 for each in (old, new))):{form}}"
    return text


def compare(runs):
    """Return the differences between the settings of several runs and a table of their results."""
    columns = ("val_accuracy", "val_loss")
    table = [["experiment", "run", *(HEADINGS[column] for column in columns), "accuracy - A's", "loss - A's"]]
    for name in dict.fromkeys(name for run in runs for name in run.stats):
        first = runs[0].stats.get(name)
        for run in runs:
            if seeds := run.stats.get(name):
                gains = [difference(first, seeds, c) if first and run is not runs[0] else "" for c in columns]
                table.append([name, run.letter, *cells(seeds, -1, columns), *gains])
    lines = [*(f"{run.letter} = {run.folder}" for run in runs), *changes(runs), "", *markdown(table)]
    return "\n".join([*lines, "", "Last epochs; gains in accuracy in percentage points"])


def changes(runs):
    """Return a line for each further run: what differs from the settings of the first one."""
    lines, old = [], runs[0].settings
    for run in runs[1:]:
        new, found = run.settings, []
        for key in old | new:
            if key not in ("EXPERIMENTS", "RESULTS_DIR", "parameters") and old.get(key) != new.get(key):
                found.append(f"{key} {old.get(key)} -> {new.get(key)}")
        for name in old["EXPERIMENTS"] | new["EXPERIMENTS"]:
            before, after = (settings["EXPERIMENTS"].get(name) for settings in (old, new))
            if not (before and after):
                found.append(f"{name} {'added' if after else 'removed'}")
                continue
            for key in before | after:
                pair, constant = (before.get(key), after.get(key)), key.upper()
                # what only follows a changed constant is not listed again
                if pair[0] != pair[1] and pair != (old.get(constant), new.get(constant)):
                    found.append(f"{name}: {key} {pair[0]} -> {pair[1]}")
        lines.append(f"A -> {run.letter}: {', '.join(found) or 'the same settings in main.py'}")
    return lines


def new_figure(width, height, title):
    """Return an empty Figure, its size in inches."""
    import matplotlib.figure  # takes 0.4 s, for which the trainings need not wait

    matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of an experiment is just a $
    figure = matplotlib.figure.Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def plot_experiment(run, name):
    """Return a Figure with the four curves of one experiment and its learning rate."""
    figure = new_figure(8.6, 4.4, f"{name}\n{run.heading}")
    labels = ["training: ", "validation: ", "learning rate (gray axis)"]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for index, prefix in enumerate(("train", "val")):
            last = draw_curve(axes, run.stats[name], f"{prefix}_{quantity}", COLORS[index], "-", "o")
            labels[index] += f"{quantity} {last}  "
        finish(axes, quantity)
    rate = figure.axes[0].twinx()
    longest = max(run.stats[name].values(), key=lambda values: len(values["epoch"]))
    rate.plot(longest["epoch"], longest["learning_rate"], color="gray", linewidth=0.8, marker=".")
    rate.set_ylim(bottom=0)
    rate.tick_params(colors="gray", labelsize=7)
    lines = [*figure.axes[1].lines, *rate.lines]
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_comparison(runs):
    """Return a Figure with the curves of all experiments, above a table that says which line is which."""
    names = list(dict.fromkeys(name for run in runs for name in run.stats))
    entries = [(name, run) for name in names for run in runs if name in run.stats]
    labels = [f"{name}, {run.letter}" if len(runs) > 1 else name for name, run in entries]
    width = max(map(len, labels)) + 2
    edits = [part for line in changes(runs) for part in textwrap.wrap(line, 100)]
    title = "\n".join([runs[0].heading, *edits])
    figure = new_figure(max(9, 2 + 0.07 * (width + 70)), 8.5 + 0.19 * len(entries), title)
    all_axes = figure.subplots(2, 2).flatten()
    rows, same = [" " * (width + 1) + "".join(f"{title:<20}" for title in HEADINGS.values())], {}
    for label, (name, run) in zip(labels, entries):
        number, group, seeds = names.index(name), runs.index(run), run.stats[name]
        look = COLORS[number % 7], LINE_STYLES[(number // 7 + group) % 4], MARKERS[(number // 28 + group) % 6]
        ends = [draw_curve(axes, seeds, column, *look) for axes, column in zip(all_axes, HEADINGS)]
        curves = str([stats[column].tolist() for stats in seeds.values() for column in HEADINGS])
        equal = same.setdefault(curves, label)  # equal curves hide each other
        row = f" {label:{width}}" + "".join(f"{end:<20}" for end in ends)  # " ": an initial _ would hide it
        rows.append(row + f"= {equal}" * (equal != label))
    for axes, title in zip(all_axes, HEADINGS.values()):
        finish(axes, title)
    handles = [figure.patch, *all_axes[0].lines]  # a white patch stands beside the headings
    figure.legend(handles, rows, loc="outside lower center", prop={"family": "monospace", "size": 8})
    return figure


def draw_curve(axes, seeds, column, color, style, marker):
    """Draw the mean of the seeds as a line and their range as a band. Return the last mean as a text."""
    percent = column.endswith("accuracy")
    curves = [values[column] * (100 if percent else 1) for values in seeds.values()]
    epochs = range(1, max(map(len, curves)) + 1)
    # An interrupted training has no figures of the later epochs.
    values = [[curve[epoch - 1] for curve in curves if len(curve) >= epoch] for epoch in epochs]
    mean = [np.mean(of_seeds) for of_seeds in values]
    axes.plot(epochs, mean, style, color=color, marker=marker, markersize=3, linewidth=1.3)
    if len(seeds) > 1:
        low, high = ([limit(of_seeds) for of_seeds in values] for limit in (min, max))
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=1.5)  # seen at 1 epoch, too
    return f"{mean[-1]:.2f}%" if percent else f"{mean[-1]:.3g}"


def finish(axes, title):
    """Give axes that hold their curves of a loss or an accuracy a title, names, units and scales."""
    axes.set(title=title, xlabel="epoch")
    epochs = max(len(line.get_xdata()) for line in axes.lines)
    step = next(step for step in (1, 5, 10, 20, 50, 100, 200, 500, 10**3, 10**4, 10**6) if epochs <= 8 * step)
    axes.set_xticks([1, *range(max(step, 2), epochs + 1, step)])
    axes.grid(alpha=0.3)
    if title.endswith("loss"):
        axes.set(ylabel="cross-entropy per image", yscale="log")
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    else:
        axes.set_ylabel("accuracy in %")
        # The logarithm of the error spreads out 98 to 99.9% and still has room for 20%. The 0.02
        # keeps 100% finite, the maximum what matplotlib tries beyond.
        spread = lambda value: -np.log10(np.maximum(100.02 - value, 0.01))  # noqa: E731
        axes.set_yscale("function", functions=(spread, lambda place: 100.02 - 10.0**-place))
        axes.autoscale_view()
        low, high = axes.get_ylim()
        ticks = [tick for tick in ACCURACY_TICKS if low <= tick <= high]
        axes.set_yticks(ticks if len(ticks) > 2 else axes.get_yticks())  # matplotlib's own, if few fit
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def panels(run, title, count, columns, width, height):
    """Return a Figure and its first `count` axes, bare, in rows of at most `columns`."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = new_figure(max(width * columns, 6), 0.9 + height * rows, f"{title}\n{run.data}\n")
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in all_axes:
        axes.set(xticks=[], yticks=[], frame_on=False)
    return figure, all_axes[:count]


def softmax(logits):
    """Return probabilities in double precision, which keeps apart what is almost 1."""
    powers = np.exp(logits.astype(float) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def confidence(probabilities):
    """Return the largest probability in percent, rounded down: 99.99% rather than 100%."""
    return f"{min(math.floor(1e4 * probabilities.max()), 9999) / 100:.2f}%"


def plot_mistakes(run):
    """Return a Figure with the wrong answers of highest confidence, up to 25 per experiment."""
    figure, all_axes = panels(run, "Worst mistakes: label \u2192 answer", len(run.outputs), 3, 3.6, 4.5)
    for axes, (training, arrays) in zip(all_axes, run.first.items()):
        wrong = arrays["answers"] != arrays["labels"]
        chances, labels = softmax(arrays["logits"][wrong]), arrays["labels"][wrong]
        worst = np.argsort(-chances.max(axis=1), kind="stable")[:25]
        title = f"{training}: {wrong.sum():,} mistakes"
        if len(worst):
            title += f"\nconfidence {confidence(chances[worst[-1]])} to {confidence(chances[worst[0]])}"
        axes.set_title(title, fontsize=9)
        picture = np.full((5 * 40, 5 * 32), 255, dtype=np.uint8)  # white, 32 x 40 for an image and its text
        for place, index in enumerate(worst):
            top, left = 40 * (place // 5) + 12, 32 * (place % 5) + 2
            picture[top : top + 28, left : left + 28] = arrays["mistakes"][index]
            text = f"{labels[index]} \u2192 {chances[index].argmax()}"
            axes.text(left + 14, top - 1.5, text, ha="center", va="bottom", fontsize=11)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    return figure


def plot_confusion(run):
    """Return a Figure that counts the answers to each label; only mistakes are coloured."""
    figure, all_axes = panels(run, "Label (row) and answer (column)", len(run.outputs), 3, 3.6, 3.9)
    for axes, (training, arrays) in zip(all_axes, run.first.items()):
        counts = np.bincount(10 * arrays["labels"] + arrays["answers"], minlength=100).reshape(10, 10)
        mistakes = counts * (1 - np.eye(10))
        axes.imshow(mistakes, cmap="Oranges", vmax=1.5 * max(mistakes.max(), 1))
        for (label, answer), count in np.ndenumerate(counts):
            weight = "bold" if label == answer else "normal"
            axes.text(answer, label, count or "", ha="center", va="center", fontsize=7, weight=weight)
        axes.set_title(training, fontsize=9)
        axes.set(xticks=range(10), yticks=range(10))
    return figure


def plot_filters(run):
    """Return a Figure of each first layer: a convolution on one channel or a linear one on 784 pixels."""
    filters = {
        training: weights.reshape(len(weights), *(weights.shape[2:] or (28, 28)))
        for training, weights in run.filters.items()
        if weights.shape[1:] == (784,) or (weights.ndim == 4 and weights.shape[1] == 1)
    }
    if not filters:
        return None
    title = "Weights of the first layer: blue is positive, red negative"
    figure, all_axes = panels(run, title, len(filters), 3, 3.6, 3.9)
    for axes, (training, images) in zip(all_axes, filters.items()):
        count, height, width = images.shape
        columns = math.ceil(math.sqrt(count))
        rows = math.ceil(count / columns)
        space = (0, rows * columns - count), (0, 1 + height // 20), (0, 1 + width // 20)
        sheet = np.split(np.pad(images, space, constant_values=np.nan), rows)
        most = np.abs(images).max()
        axes.imshow(np.vstack([np.hstack(row) for row in sheet]), cmap="RdBu", vmin=-most, vmax=most)
        axes.set_title(f"{training}: {count} of {height} x {width}", fontsize=9)
    return figure


def plot_digits(run):
    """Return a Figure of own digits: as taken, as the models see them, and each model's probabilities."""
    outputs = {training: arrays for training, arrays in run.first.items() if "digit_logits" in arrays}
    names, columns = run.digits["names"][:100], 2 + len(outputs)  # more would make too high a picture
    figure, all_axes = panels(run, "My digits", columns * len(names), columns, 1.7, 1.9)
    for row, (original, seen, *rest) in enumerate(all_axes.reshape(-1, columns)):
        original.imshow(run.digits["originals"][row])
        original.set_title(str(names[row])[:24], fontsize=8)
        seen.imshow(run.digits["images"][row], cmap="gray", vmin=0, vmax=255)
        seen.set_title("as the models see it", fontsize=8)
        for axes, (training, arrays) in zip(rest, outputs.items()):
            chances = softmax(arrays["digit_logits"][row])
            axes.bar(range(10), chances, color=np.where(chances == chances.max(), COLORS[1], COLORS[0]))
            axes.set_title(f"{training}\n{chances.argmax()}: {confidence(chances)}", fontsize=8)
            axes.set_xticks(range(10), range(10), fontsize=7)
            axes.set_ylim(0, 1)
    return figure


def write_whole(path, write):
    """Write a file so that it is there whole or not at all: `write` receives the open file."""
    unfinished = Path(f"{path}.part")
    try:
        with open(unfinished, "wb") as file:
            write(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def save_plots(run):
    """Write summary.md and all pictures of a run into its folder. Return a text to print: table and paths."""
    text, every_epoch = summary(run)
    write_whole(run.folder / "summary.md", lambda file: file.write(f"{text}\n{every_epoch}\n".encode()))
    pictures = {name: plot_experiment(run, name) for name in run.stats}
    if run.stats:
        pictures["comparison"] = plot_comparison([run])
    if run.outputs:
        pictures |= {"mistakes": plot_mistakes(run), "confusion": plot_confusion(run)}
        pictures |= {"filters": plot_filters(run), "my_digits": plot_digits(run) if run.digits else None}
    paths = {run.folder / f"{name}.png": picture for name, picture in pictures.items() if picture}
    for path, picture in paths.items():
        write_whole(path, picture.savefig)
    return "\n".join(["", text, "", *map(str, paths)])


def newest_run(results_dir):
    """Return the newest folder in `results_dir` with a finished epoch, or raise FileNotFoundError."""
    for folder in sorted(Path(results_dir).glob("????-??-??_??-??-??"), reverse=True):
        if any(path.read_bytes().count(b"\n") > 1 for path in folder.glob("*-seed*.csv")):
            return folder
    raise FileNotFoundError(f"no run in {results_dir}: first run main.py, or name the folder of a run")


def main(folders):
    """Draw the runs in these folders; without one, the newest in results/. Return the exit code."""
    try:
        folders = [Path(folder) for folder in folders] or [newest_run("results")]
        runs = [read_run(folder, chr(ord("A") + number)) for number, folder in enumerate(folders)]
        if empty := [str(run.folder) for run in runs if not run.stats]:
            raise FileNotFoundError(f"{empty[0]} has no <experiment>-seed<k>.csv with a finished epoch")
        if len(runs) == 1:
            print(save_plots(runs[0]))
        else:  # the picture belongs to all runs, so it lies beside the first one
            path = folders[0].parent / f"comparison_{'_'.join(folder.name for folder in folders)[:200]}.png"
            write_whole(path, plot_comparison(runs).savefig)
            print(compare(runs), path, sep="\n\n")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal without "±" still gets its table
    sys.exit(main(sys.argv[1:]))
