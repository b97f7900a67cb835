"""Tabulate and draw what a run has left in its folder.

    python plot.py        show the newest run in results/ again
    python plot.py 3      show run 3, the folder results/3, again
    python plot.py 3 5    what changed from run 3 to run 5, and what did it do?

Nothing is trained here, and no picture of a run needs its models: its files hold all."""

import argparse
import csv
import difflib
import json
import math
import re
import sys
import textwrap
import warnings
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"  # a number on the command line is a folder in it
LOSS_OF_GUESSING = math.log(10)  # cross-entropy, if all ten digits are equally likely
MEASURES = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy")
COMPARED = ("description", "checksum", "seeds", "python", "torch", "numpy")  # in settings.json
COLUMNS = ("epoch", *MEASURES, "seconds", "learning_rate")  # of a CSV
UNIT = "percentage points; with several seeds, ± the standard error of their differences"

# So that no table and no picture grows without bound:
MOST_LINES = 20  # of an edit of one file
MOST_MISTAKES = 24  # of an experiment
MOST_MAPS = 64  # of a layer
MOST_LAYERS = 20  # of a model
MOST_DIGITS = 500  # of your own


# The files of a run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What the files of a run hold. Losses are averages per image, accuracies fractions."""

    folder: Path
    settings: dict  # settings.json
    stats: dict  # {experiment: {seed: {column: an array with a number per epoch}}}
    records: dict  # {experiment: {seed: {name: array}}}, of trainings that have finished
    code: dict  # {path in code/, such as "models/lenet.py": its lines, see read_code}

    @property
    def data(self):
        """What it was trained and tested on, as a sentence."""
        return self.settings["description"]

    @property
    def title(self):
        """The title of its curves."""
        count = len(self.settings["seeds"])
        return f"{self.data}, mean and range of {count} seeds" if count > 1 else self.data

    @property
    def headings(self):
        """{column of a CSV: what tables and axes call it}."""
        kind = self.settings["kind"]
        return dict(zip(MEASURES, ("training loss", "training accuracy", f"{kind} loss", f"{kind} accuracy")))

    def measured(self, name):
        """Return all losses and accuracies of an experiment: {seed: four lists, a number per epoch}."""
        seeds = self.stats.get(name, {})
        return {seed: [columns[column].tolist() for column in MEASURES] for seed, columns in seeds.items()}


def run_folders(results_dir):
    """Return the folders of all runs, the newest first."""
    folders = [path.parent for path in Path(results_dir).glob("*/settings.json")]
    numbered = [folder for folder in folders if folder.name.isdecimal()]
    return sorted(numbered, key=lambda folder: int(folder.name), reverse=True)


def newest_run(folders, is_wanted):
    """Return the first Run in some folders for which is_wanted(run) holds, or None. Those on the way to it
    that can't be read, such as results of another version, cost one line on standard error."""
    wanted = None
    unreadable = []
    for folder in folders:
        try:
            run = read_run(folder)
        except ValueError:
            unreadable.append(str(folder))
            continue
        if is_wanted(run):
            wanted = run
            break
    if unreadable:
        reason = "they can't be read (made by another version?)"
        print(f"warning: left out, since {reason}: {', '.join(unreadable)}", file=sys.stderr)
    return wanted


def read_run(folder):
    """Return the Run in a folder. Trainings without a finished epoch are left out. Raises ValueError that
    names a file that can't be read."""
    folder = Path(folder).resolve()
    stats = {}
    records = {}
    code = {}
    path = folder / "settings.json"  # what an error is about
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        for name in settings["experiments"]:
            for seed in settings["seeds"]:
                path = folder / f"{name}-seed{seed}.csv"
                columns = read_csv(path) if path.exists() else {}
                if not columns:
                    continue
                stats.setdefault(name, {})[seed] = columns
                path = folder / f"{name}-seed{seed}.npz"
                if path.exists():
                    with np.load(path) as arrays:
                        records.setdefault(name, {})[seed] = dict(arrays)
        for path in folder.glob("code/**/*.py"):
            code[path.relative_to(folder / "code").as_posix()] = read_code(path)
    except Exception as error:  # json, numpy and zipfile raise many kinds
        raise ValueError(f"{path} can't be read: {error!r}") from error
    return Run(folder, settings, stats, records, code)


def read_csv(path):
    """Return {column: an array with a number per epoch}, or {} if no epoch has finished."""
    text = path.read_text(encoding="utf-8")
    whole_lines = text.rpartition("\n")[0]  # a full disk may have left half a line at the end
    rows = list(csv.DictReader(whole_lines.splitlines()))
    if not rows:
        return {}
    return {column: np.array([float(row[column]) for row in rows]) for column in COLUMNS}


def read_code(path):
    """Return {number of a line: the line} of a script, without blank lines."""
    text = path.read_text(encoding="utf-8-sig", errors="backslashreplace")  # shows what is no UTF-8, too
    lines = enumerate(text.splitlines(), start=1)
    return {number: line for number, line in lines if line.strip()}


def is_finished(run, name):
    """Whether all trainings of an experiment have run through all of their epochs."""
    return len(run.records.get(name, {})) == len(run.settings["seeds"])


def first_records(run):
    """Return {experiment: (seed, record)}, the first finished seed of each. Pictures of images and layers
    show only this one."""
    return {name: next(iter(records.items())) for name, records in run.records.items()}


def layers_of(record):
    """Return name, kind, number of parameters and output of each layer of a model, in the order of use."""
    outputs = [record[f"output_{index}"] for index in range(len(record["layer_names"]))]
    return list(zip(record["layer_names"], record["layer_kinds"], record["layer_parameters"], outputs))


# Tables ---------------------------------------------------------------------------------------------


def markdown(table):
    """Return the lines of a table, given as rows of strings; the first row holds the headings."""
    widths = [max(len(text) for text in column) for column in zip(*table)]
    lines = []
    for row in [table[0], ["-" * width for width in widths], *table[1:]]:
        cells = [text.ljust(width) for text, width in zip(row, widths)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def values_of(seeds, column, epoch=-1):
    """Return a number per seed, an array (S,), and a number format. The number is the loss, or the accuracy
    in percent, of this epoch, by default the last one. seeds: {seed: {column: array}}."""
    values = np.array([columns[column][epoch] for columns in seeds.values()])
    if column.endswith("accuracy"):
        return 100 * values, ".2f"
    return values, ".4f"


def cell(seeds, column, epoch=-1):
    """Return the mean of the seeds as text, such as "98.91 ± 0.05%": ± is the standard deviation."""
    values, form = values_of(seeds, column, epoch)
    text = f"{values.mean():{form}}"
    if len(values) > 1:
        text += f" ± {values.std(ddof=1):{form}}"
    return f"{text}%" if column.endswith("accuracy") else text


def difference(before, after, column):
    """Return the change in the last epoch as text, such as "+0.12"; of an accuracy, in percentage points. If
    both have the same seeds, two or more, with ± the standard error of the differences, seed by seed."""
    old, form = values_of(before, column)
    new, _ = values_of(after, column)
    text = f"{new.mean() - old.mean():+{form}}"
    if list(before) == list(after) and len(new) > 1:
        text += f" ± {(new - old).std(ddof=1) / math.sqrt(len(new)):{form}}"
    return text


def summary(run):
    """Return what was reached, as lines: a table of the last epochs, and remarks."""
    kind = run.settings["kind"]
    baseline = run.settings["baseline"]
    count = len(run.settings["seeds"])
    how = f"mean ± standard deviation of {count} seeds" if count > 1 else "1 seed"
    has_gain = False
    table = [["experiment", "train acc", f"{kind} loss", f"{kind} acc", "gain", "seconds"]]
    for name, seeds in run.stats.items():
        gain = ""
        if name != baseline and is_finished(run, name) and is_finished(run, baseline):
            gain = difference(run.stats[baseline], seeds, "eval_accuracy")
            has_gain = True
        row = [name, *(cell(seeds, column) for column in ("train_accuracy", "eval_loss", "eval_accuracy"))]
        seconds = np.mean([columns["seconds"].sum() for columns in seeds.values()])
        table.append([*row, gain, f"{seconds:.0f}"])
    lines = [f"Run {run.folder.name}, {run.settings['date']}: {run.data}", f"Last epoch, {how}", ""]
    lines += markdown(table)
    remarks = training_remarks(run)
    if has_gain:
        remarks.insert(0, f"gain: {kind} accuracy over {baseline}, in {UNIT}")
    elif len(run.settings["experiments"]) > 1:
        remarks.insert(0, f"No gain is given: it needs BASELINE ({baseline}) and another row, both finished")
    return [*lines, "", *remarks] if remarks else lines


def training_remarks(run):
    """Return a line for each training that has not finished, or is no better than guessing."""
    lines = []
    for name, facts in run.settings["experiments"].items():
        for seed in run.settings["seeds"]:
            columns = run.stats.get(name, {}).get(seed, {"epoch": []})
            if seed not in run.records.get(name, {}):
                epochs = f"{len(columns['epoch'])} of {facts['epochs']} epochs"
                lines.append(f"Not finished: {name}, seed {seed}: {epochs}")
                continue
            has_high_loss = columns["eval_loss"][-1] > 0.95 * LOSS_OF_GUESSING
            if has_high_loss and columns["eval_accuracy"][-1] < 0.2:
                advice = "try another learning_rate or activation, and no softmax at the end"
                lines.append(f"Warning: {name}, seed {seed} has learned nothing: {advice}")
    return lines


def details(run):
    """Return what summary.md also holds, as lines: row, layers and epochs of each experiment."""
    lines = []
    for name, facts in run.settings["experiments"].items():
        lines += ["", f"## {name}", "", f"    {facts['row']}"]  # four spaces: Markdown shows it as code
        if name in run.records:
            _, record = first_records(run)[name]
            table = [["layer", "kind", "output", "parameters"]]
            for layer, kind, parameters, output in layers_of(record):
                table.append([layer, kind, shape_text(output), f"{parameters:,}"])
            table.append(["total", "", "", f"{facts['parameters']:,}"])
            lines += ["", *markdown(table)]
        if name in run.stats:
            seeds = run.stats[name]
            table = [["epoch", *run.headings.values()]]
            for epoch in range(min(len(columns["epoch"]) for columns in seeds.values())):
                table.append([str(epoch + 1), *(cell(seeds, column, epoch) for column in MEASURES)])
            lines += ["", *markdown(table)]
    return lines


def shape_text(array):
    """Return a shape such as "6 x 28 x 28"."""
    return " x ".join(str(size) for size in array.shape)


# What did my edit do? -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """What differs between two runs."""

    before: Run
    after: Run
    changes: list  # lines of the code that differ, without blank ones, and data, seeds and versions
    experiments: list  # names of those whose losses or accuracies differ, or that are new
    unfinished: list  # names of those that have not finished in both runs, and are not compared


def find_edit(before, after):
    """Return the Edit that led from one run to another."""
    changes = []
    for name in sorted(before.code | after.code, key=lambda name: (name != "main.py", name)):
        if name not in before.code or name not in after.code:
            changes.append(f"{name} is {'new' if name in after.code else 'gone'}")
            continue
        old = before.code[name]
        new = after.code[name]
        removed = [f"{name}, line {number}: - {line}" for number, line in old.items()]
        added = [f"{name}, line {number}: + {line}" for number, line in new.items()]
        matcher = difflib.SequenceMatcher(None, list(old.values()), list(new.values()), autojunk=False)
        lines = []
        for kind, old_start, old_end, new_start, new_end in matcher.get_opcodes():
            if kind != "equal":
                lines += removed[old_start:old_end] + added[new_start:new_end]
        changes += lines[:MOST_LINES]
        if len(lines) > MOST_LINES:
            changes.append(f"{name}: {len(lines) - MOST_LINES} more lines")
    for key in COMPARED:
        if before.settings[key] != after.settings[key]:
            changes.append(f"{key}: {before.settings[key]} -> {after.settings[key]}")
    experiments = []
    unfinished = []
    for name in after.settings["experiments"]:
        is_new = name not in before.settings["experiments"]
        if not is_finished(after, name) or not (is_new or is_finished(before, name)):
            unfinished.append(name)
        elif before.measured(name) != after.measured(name):
            experiments.append(name)
    return Edit(before, after, changes, experiments, unfinished)


def run_before(run):
    """Return the newest Run before this one that has finished, on the same data, or None."""

    def is_comparable(before):
        has_finished = all(is_finished(before, name) for name in before.settings["experiments"])
        return has_finished and before.settings["checksum"] == run.settings["checksum"]

    folders = run_folders(run.folder.parent)
    if run.folder not in folders:
        return None
    return newest_run(folders[folders.index(run.folder) + 1 :], is_comparable)


def edit_lines(edit):
    """Return what has changed since the run before and what it did, as lines."""
    number = edit.before.folder.name
    lines = [""]
    if edit.changes:
        lines += [f"What has changed since run {number}:", ""]
        lines += [f"    {change}" for change in edit.changes]  # four spaces: Markdown shows it as code
    elif edit.experiments:
        lines.append(f"No code has changed since run {number}, but results have. Possible causes:")
        lines.append("another script or computer, random numbers without the seed, a file that code/ lacks")
    elif edit.unfinished:
        lines.append(f"No code has changed since run {number}")
    else:
        lines.append(f"Nothing has changed since run {number}")
    if edit.experiments:
        lines += ["", *edit_table(edit)]
    elif edit.before.settings["seeds"] != edit.after.settings["seeds"] and not edit.unfinished:
        command = f"python plot.py {number} {edit.after.folder.name}"
        lines += ["", f"Not compared, since the seeds differ: {command}"]
    elif edit.changes and not edit.unfinished:
        lines += ["", "This changed no loss and no accuracy"]
    if edit.unfinished:
        lines += ["", f"Not compared, since not finished: {', '.join(edit.unfinished)}"]
    return lines


def edit_table(edit):
    """Return a table of the experiments that an edit has changed, before and after it, as lines."""
    kind = edit.after.settings["kind"]
    table = [["experiment", "run", f"{kind} acc", "change", f"{kind} loss", "change"]]
    for name in edit.experiments:
        old = edit.before.stats.get(name)
        new = edit.after.stats[name]
        accuracy = loss = ""
        if old:
            number = edit.before.folder.name
            table.append([name, number, cell(old, "eval_accuracy"), "", cell(old, "eval_loss"), ""])
            accuracy = difference(old, new, "eval_accuracy")
            loss = difference(old, new, "eval_loss")
        number = edit.after.folder.name
        table.append([name, number, cell(new, "eval_accuracy"), accuracy, cell(new, "eval_loss"), loss])
    return [*markdown(table), "", f"change in accuracy: {UNIT}"]


# Curves ---------------------------------------------------------------------------------------------


# Okabe and Ito's palette: colour-blind people can tell these apart, too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "^", "s", "x", "v", "d")

# Fonts for names in Chinese, Japanese and Korean, as Windows, macOS and Linux call theirs.
FONTS = re.compile("CJK|Gothic|Hei|Song|Ming|PingFang|Hiragino|Nanum|Droid Sans Fallback")


def draw(path, make_figure, *data):
    """Write the Figure that is made from some data as a PNG file. It has matplotlib's own style, whatever a
    matplotlibrc says. Return whether it could be drawn; if not, a line on standard error says why."""
    import matplotlib  # takes 0.4 s, for which the trainings need not wait
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.font_manager import fontManager

    fonts = filter(FONTS.search, fontManager.get_font_names())
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *sorted(fonts)]
        matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of an experiment is just a $
        warnings.filterwarnings("ignore", "Glyph")  # one that no font has is drawn as a box
        try:
            figure = make_figure(*data)
            # figure.savefig would go through all artists twice, and compress twice as long for few bytes.
            FigureCanvasAgg(figure).print_png(path, pil_kwargs={"compress_level": 1})
        except Exception as error:  # matplotlib raises many kinds
            print(f"error: {path} can't be drawn: {error!r}", file=sys.stderr)
            return False
    return True


def new_figure(width, height, title):
    """Return an empty Figure, its size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    lines = [textwrap.fill(" ".join(line.split()), int(12 * width)) for line in title.splitlines()]
    figure.suptitle("\n".join(lines), fontsize=11)
    return figure


def plot_experiment(run, name):
    """Return a Figure with the four curves of one experiment and its learning rate."""
    seeds = run.stats[name]
    figure = new_figure(8.6, 5.6, f"{name}\n{run.title}")
    panels = figure.subplot_mosaic([["loss", "accuracy"], ["rate", "rate"]], height_ratios=[4, 1])
    for quantity in ("loss", "accuracy"):
        for part, color in zip(("train", "eval"), COLORS):
            column = f"{part}_{quantity}"
            label = f"{run.headings[column]} {cell(seeds, column)}"
            draw_curve(panels[quantity], seeds, column, {"label": label, "color": color, "marker": "o"})
        finish_axes(panels[quantity], quantity)
        panels[quantity].legend(fontsize=8)
    axes = panels["rate"]
    if name in run.records:
        seed, record = first_records(run)[name]
        rates = record["learning_rates"]  # of each step
        axes.plot(np.linspace(0, len(seeds[seed]["epoch"]), len(rates)), rates, color="gray", linewidth=1)
    else:
        for columns in seeds.values():  # at the end of each epoch
            axes.plot(columns["epoch"], columns["learning_rate"], color="gray", marker=".", linewidth=1)
    axes.set(xlabel="epoch", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return figure


def plot_comparison(run):
    """Return a Figure with the curves of all experiments."""
    return plot_panels(run, run.title, list(run.stats))


def plot_edit(edit):
    """Return a Figure with the curves of the experiments that an edit has changed, before and after it."""
    title = [edit.after.title, *edit.changes[:8]]
    if len(edit.changes) > 8:
        title.append(f"and {len(edit.changes) - 8} more lines")
    return plot_panels(edit.after, "\n".join(title), edit.experiments, edit.before)


def plot_panels(run, title, names, before=None):
    """Return a Figure with four panels: loss and accuracy, training and test, of the experiments with these
    names, and what they were in the run before. The two panels of a quantity have the same scale."""
    styles = line_styles(run.stats)
    curves = []
    for name in names:
        seeds = run.stats[name]
        label = f"{name}  {cell(seeds, 'eval_accuracy')}"
        if before is not None and name in before.stats:
            old = before.stats[name]
            old_label = f"{name}, run {before.folder.name}  {cell(old, 'eval_accuracy')}"
            label += f" ({difference(old, seeds, 'eval_accuracy')})"
            style = {"label": old_label, "linestyle": "--", "markerfacecolor": "white"}
            curves.append((old, style | styles[name]))
        curves.append((seeds, {"label": label} | styles[name]))
    figure = new_figure(10, 7.5 + 0.2 * (len(curves) + title.count("\n")), title)
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for axes, column in zip(panels.flat, ("train_loss", "eval_loss", "train_accuracy", "eval_accuracy")):
        for seeds, style in curves:
            draw_curve(axes, seeds, column, style)
        axes.set_title(run.headings[column])
        finish_axes(axes, column)
        axes.label_outer()
    lines = panels[0, 0].lines[: len(curves)]
    figure.legend(handles=lines, loc="outside lower center", fontsize=9)
    return figure


def line_styles(names):
    """Return {name: color and marker}. If there are more names than colors, they get shades, in order."""
    colors = COLORS
    if len(names) > len(COLORS):
        from matplotlib import colormaps

        colors = colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    styles = {}
    for index, name in enumerate(names):
        styles[name] = {"color": colors[index], "marker": MARKERS[index % len(MARKERS)]}
    return styles


# Accuracies are drawn as errors in percent, 100 - accuracy, on a logarithmic scale, upside down and with
# labels that say accuracy. That spreads out 98 to 99.9%. Smaller errors are drawn here, since log(0) does
# not exist.
LEAST_ERROR = 0.01


def draw_curve(axes, seeds, column, style):
    """Draw the mean of the seeds as a line and their range as a band."""
    # (epochs, seeds); an interrupted training lacks the later epochs.
    curves = (columns[column] for columns in seeds.values())
    values = np.array(list(zip_longest(*curves, fillvalue=np.nan)))
    if column.endswith("accuracy"):
        values = np.maximum(100 - 100 * values, LEAST_ERROR)
    epochs = range(1, len(values) + 1)
    (line,) = axes.plot(epochs, np.nanmean(values, axis=1), markersize=3, linewidth=1.3, **style)
    if len(seeds) > 1:
        low = np.nanmin(values, axis=1)
        high = np.nanmax(values, axis=1)
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=1.5)


def finish_axes(axes, column):
    """Label and scale axes whose curves are drawn. If one is about as bad as guessing, add a dotted line."""
    from matplotlib.ticker import AutoLocator, LogLocator, MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_xlim(0.5, axes.dataLim.xmax + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_yscale("log")
    locator = LogLocator(subs=(1, 2, 5))
    low, high = sorted(axes.get_ylim())
    if sum(low <= tick <= high for tick in locator.tick_values(low, high)) < 3:
        locator = AutoLocator()
    axes.yaxis.set_major_locator(locator)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if column.endswith("loss"):
        guessing = LOSS_OF_GUESSING
        axes.set_ylabel("loss per image, logarithmic")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        guessing = 90
        axes.set_ylabel("accuracy in %, logarithmic in the error")
        axes.yaxis.set_major_formatter(accuracy_label)
        axes.yaxis.set_inverted(True)
    if max(max(line.get_ydata()) for line in axes.lines) > 0.8 * guessing:
        axes.axhline(guessing, color="gray", linestyle=":", linewidth=1)
        place = axes.get_yaxis_transform()  # x from 0, left, to 1, right
        axes.text(0.99, guessing, "guessing", ha="right", va="bottom", fontsize=7, transform=place)


def accuracy_label(error, position):
    """Return what an axis of errors says at a tick."""
    at_least = "\u2265 " if error <= LEAST_ERROR else ""
    return f"{at_least}{100 - error:g}"


# Images ---------------------------------------------------------------------------------------------


def bare_panels(title, count, columns, width, height):
    """Return a Figure and `count` axes without frames and ticks, in rows of at most `columns`. width and
    height of each are in inches."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = new_figure(max(width * columns, 6), 0.6 + height * rows, title)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.set(xticks=[], yticks=[], frame_on=False)
    return figure, panels[:count]


def sheet(images, columns):
    """Return images (N, H, W) as one image, in rows of `columns`, with a line between them."""
    missing = -len(images) % columns
    spaces = ((0, missing), (0, 1), (0, 1))
    images = np.pad(images.astype(float), spaces, constant_values=np.nan)  # which is drawn white
    rows = np.split(images, len(images) // columns)
    return np.vstack([np.hstack(row) for row in rows])


def softmax(logits):
    """Return probabilities, in double precision, so that 0.99999999 does not become 1."""
    powers = np.exp(logits.astype(float) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def confidence(probability):
    """Return a probability in percent, rounded down: 99.99% rather than 100%."""
    return f"{min(math.floor(1e4 * probability), 9999) / 100:.2f}%"


def plot_images(run):
    """Return a Figure of some training images and, for each experiment with a transform, of random versions
    of them."""
    sheets = {}
    for name, (_, record) in first_records(run).items():
        originals = record["originals"]
        sheets["as they are"] = sheet(originals, len(originals))
        if "versions" in record:
            images = record["versions"].reshape(-1, 28, 28)
            sheets[f"{name}: random versions of each"] = sheet(images, len(originals))
    heights = [len(image) for image in sheets.values()]
    figure = new_figure(7, 1.2 + sum(heights) / 32, f"Training images\n{run.data}")
    panels = figure.subplots(len(sheets), 1, height_ratios=heights, squeeze=False).flatten()
    for axes, (title, image) in zip(panels, sheets.items()):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure


def plot_mistakes(run):
    """Return a Figure with the most confident mistakes of each experiment, at most MOST_MISTAKES."""
    title = f"Mistakes, the most confident first: label \u2192 prediction\n{run.data}"
    figure, panels = bare_panels(title, len(run.records), columns=1, width=9, height=2)
    for axes, (name, (seed, record)) in zip(panels, first_records(run).items()):
        labels = record["labels"]
        predictions = record["logits"].argmax(axis=1)
        wrong = predictions != labels
        probabilities = softmax(record["logits"][wrong]).max(axis=1)
        order = np.argsort(-probabilities, kind="stable")[:MOST_MISTAKES]
        title = f"{name}, seed {seed}: {wrong.sum():,} mistakes"
        if len(order):
            highest = confidence(probabilities[order[0]])
            lowest = confidence(probabilities[order[-1]])
            title += f"; confidence of these {highest} to {lowest}"
        axes.set_title(title, fontsize=9)
        places = np.full((MOST_MISTAKES, 42, 28), np.nan)  # with room for a text below each image
        places[: len(order), :28] = record["mistakes"][order]
        axes.imshow(sheet(places, 12), cmap="gray", vmin=0, vmax=255)
        for index, (label, prediction) in enumerate(zip(labels[wrong][order], predictions[wrong][order])):
            row, column = divmod(index, 12)
            text = f"{label} \u2192 {prediction}"
            axes.text(14 + 29 * column, 34 + 43 * row, text, ha="center", va="center", in_layout=False)
    return figure


def plot_confusion(run):
    """Return a Figure that counts the predictions for each label; only mistakes are coloured."""
    title = f"Confusion matrices, numbers of images\n{run.data}"
    figure, panels = bare_panels(title, len(run.records), columns=3, width=3.6, height=3.95)
    most = 1
    for axes, (name, (seed, record)) in zip(panels, first_records(run).items()):
        pairs = 10 * record["labels"] + record["logits"].argmax(axis=1)
        counts = np.bincount(pairs, minlength=100).reshape(10, 10)
        mistakes = counts - np.diag(np.diag(counts))
        most = max(most, mistakes.max())
        axes.imshow(mistakes, cmap="Oranges")
        style = {
            "ha": "center",
            "va": "center",
            "fontsize": 7,
            "family": "DejaVu Sans",  # which has bold digits: matplotlib complains about fonts without
            "in_layout": False,  # laid out faster
        }
        for label, prediction in np.argwhere(counts):
            weight = "bold" if label == prediction else "normal"
            axes.text(prediction, label, counts[label, prediction], weight=weight, **style)
        axes.set(xticks=range(10), yticks=range(10), xlabel="prediction", ylabel="label")
        axes.set_title(f"{name}, seed {seed}", fontsize=9)
    for axes in panels:
        axes.images[0].set_clim(0, 1.5 * most)  # one scale for all; dark text stays readable
    return figure


def plot_layers(run):
    """Return a Figure of one digit on its way through each model: what comes out of its layers."""
    title = f"One digit on its way through the layers\n{run.data}"
    figure, panels = bare_panels(title, len(run.records), columns=4, width=4, height=1)
    depth = 0
    for axes, (name, (_, record)) in zip(panels, first_records(run).items()):
        axes.set_title(name, fontsize=10)
        bottom = draw_step(axes, "input", record["input"][None], top=15)
        if "filters" in record:
            filters = record["filters"]
            most = np.abs(filters).max()
            style = {"cmap": "RdBu", "vmin": -most, "vmax": most}
            bottom = draw_step(axes, "filters, blue is positive, red negative", filters, bottom + 15, **style)
        drawn = 0
        for layer, kind, parameters, output in layers_of(record):
            # Only layers with weights, but not batch norm. Those of one that is used twice count once.
            if not parameters or "Norm" in kind or not 1 <= output.ndim <= 3:
                continue
            if drawn == MOST_LAYERS:
                axes.set_title(f"{name}, the first {MOST_LAYERS} layers", fontsize=10)
                break
            bottom = draw_step(axes, layer, output, bottom + 15)
            drawn += 1
        draw_probabilities(axes, softmax(record["input_logits"]), bottom + 15)
        depth = max(depth, bottom + 45)
    for axes in panels:
        axes.set(xlim=(0, 8 * 29), ylim=(depth, 0))
    figure.set_figheight(0.6 + math.ceil(len(panels) / 4) * (0.3 + depth / 60))
    return figure


def draw_step(axes, step, values, top, **style):
    """Draw maps (C, H, W) in rows of eight, or numbers (N,) as a strip. Return the y at which the drawing
    ends. The unit is a pixel of MNIST: a map of 28 x 28 and its gap take 29."""
    axes.text(0, top - 3, f"{step}: {shape_text(values)}", fontsize=8)
    bottom = top + 15 * values.ndim
    if values.ndim == 3:
        style = {"cmap": "gray"} | style
        bottom = top + 29 * math.ceil(min(len(values), MOST_MAPS) / 8)
        values = sheet(values[:MOST_MAPS], 8)
    axes.imshow(np.atleast_2d(values), extent=(0, 8 * 29, bottom, top), **style)
    return bottom


def draw_probabilities(axes, probabilities, top):
    """Draw a bar for each digit."""
    axes.text(0, top - 3, "probabilities of the digits: 10", fontsize=8)
    places = 11 + 23 * np.arange(10)
    axes.bar(places, -15 * probabilities, bottom=top + 15, width=18, color=COLORS[0])
    for digit, place in enumerate(places):
        axes.text(place, top + 24, digit, ha="center", fontsize=7)


def plot_digits(digits, logits):
    """Return a Figure of digits, see `dataset.read_digits`: as taken, as the models see them, and the answers
    of {model: logits (M, 10)}."""
    count = min(len(digits["names"]), MOST_DIGITS)
    title = f"My digits: the picture, and what the models see ({count} of {len(digits['names'])})"
    columns = 5 if count <= 30 else 10
    height = 1.7 + 0.12 * len(logits)  # inches; the second part for a line of text
    figure, panels = bare_panels(title, count, columns, width=2.4, height=height)
    for index, axes in enumerate(panels):
        seen = np.kron(digits["images"][index], np.ones((4, 4), dtype=np.uint8))  # as large as the picture
        seen = np.stack([seen, seen, seen], axis=2)
        axes.imshow(np.hstack([digits["originals"][index], seen]))
        axes.set_anchor("N")  # leaves room for the answers below
        axes.set_title(str(digits["names"][index])[-30:], fontsize=8)
        for line, (model, answer) in enumerate(digit_answers(digits, logits, index).items()):
            color = COLORS[1] if answer.endswith("wrong") else "black"
            text = "\n" * line + f"{model}: {answer}"  # below the answers of the models before
            axes.text(112, 116, text, color=color, fontsize=7, ha="center", va="top")
    return figure


def digit_answers(digits, logits, index):
    """Return {model: its answer to one digit, with its probability}, as strings. If the picture's name
    begins with the true digit, as 7.png or 7_a.jpg, the answer ends in "right" or "wrong"."""
    name = Path(str(digits["names"][index])).name
    label = re.match(r"[0-9](?![^\W_])", name)  # stands alone: not in 28.png or 2nd.png
    answers = {}
    for model, model_logits in logits.items():
        probabilities = softmax(model_logits[index])
        answer = probabilities.argmax()
        answers[model] = f"{answer} ({confidence(probabilities[answer])})"
        if label:
            answers[model] += " right" if int(label[0]) == answer else " wrong"
    return answers


def digit_table(digits, logits):
    """Return the answers of all models to all digits as the lines of a table."""
    table = [["picture", *logits]]
    for index, name in enumerate(digits["names"]):
        table.append([str(name), *digit_answers(digits, logits, index).values()])
    return markdown(table)


# All together ---------------------------------------------------------------------------------------


IMAGES = {  # pictures of trainings that have finished
    "images": plot_images,
    "mistakes": plot_mistakes,
    "confusion": plot_confusion,
    "layers": plot_layers,
}
# No experiment can have one of these names: its own picture would have the same.
PICTURES = ("comparison", "edit", "my_digits", *IMAGES)


def show_run(folder):
    """Write summary.md and all pictures of a run into its folder. Print what was reached, what the edit did
    and where the pictures are. Return whether all could be drawn. Raises ValueError that names a file that
    can't be read, and OSError if summary.md or standard output can't be written."""
    run = read_run(folder)
    lines = summary(run)
    before = run_before(run)
    edit = None
    if before is not None:
        edit = find_edit(before, run)
        if before.settings["seeds"] != run.settings["seeds"]:
            edit = replace(edit, experiments=[])  # other seeds change the results, too
        lines += edit_lines(edit)
    text = "\n".join([*lines, *details(run)])
    (run.folder / "summary.md").write_text(f"{text}\n", encoding="utf-8")
    try:
        print("", *lines, "", "Drawing the pictures ...", sep="\n", flush=True)
    finally:  # even if printing fails, as in python main.py | head
        drawn, all_drawn = draw_pictures(run, edit)
    print(f"In {run.folder}: {', '.join(['summary.md', *drawn])}", flush=True)
    return all_drawn


def draw_pictures(run, edit):
    """Draw all pictures of a run and its edit into its folder. Return the names of those that could be drawn
    and whether these are all."""
    pictures = {}
    if edit is not None and edit.experiments:
        pictures["edit"] = partial(plot_edit, edit)
    if run.stats:
        pictures["comparison"] = partial(plot_comparison, run)
    if run.records:
        pictures |= {name: partial(make_figure, run) for name, make_figure in IMAGES.items()}
    pictures |= {name: partial(plot_experiment, run, name) for name in run.stats}
    drawn = []
    for name, make_figure in pictures.items():
        path = run.folder / f"{name}.png"
        if draw(path, make_figure):
            drawn.append(path.name)
    return drawn, len(drawn) == len(pictures)


def compare_runs(before_folder, after_folder):
    """Print what changed from one run to another and what that did, and draw it beside their folders. Return
    whether it could be drawn. Raises ValueError that names a file that can't be read."""
    edit = find_edit(read_run(before_folder), read_run(after_folder))
    print(*edit_lines(edit), sep="\n")
    if not edit.experiments:
        return True
    folder = edit.after.folder
    path = folder.parent / f"edit_{edit.before.folder.name}_{folder.name}.png"
    print("", f"Drawing {path} ...", sep="\n", flush=True)
    return draw(path, plot_edit, edit)


def main(arguments):
    """Show the run with this number or path again, or compare two. Return the exit code."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("runs", nargs="*", help="at most two: their numbers in results/, or their folders")
    runs = parser.parse_args(arguments).runs
    if len(runs) > 2:
        parser.error("only two runs can be compared")
    folders = [RESULTS / run if run.isdecimal() else Path(run) for run in runs]
    try:
        if len(folders) == 2:
            return 0 if compare_runs(*folders) else 1
        folders += run_folders(RESULTS)  # the run that is named, or else the newest, is the first
        if not folders:
            raise FileNotFoundError(f"no run is in {RESULTS}: first run main.py")
        return 0 if show_run(folders[0]) else 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def prepare_output():
    """Let a terminal that has no "±" show a "?" instead."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has not
        sys.stdout.reconfigure(errors="replace")


if __name__ == "__main__":
    prepare_output()
    sys.exit(main(sys.argv[1:]))
