"""Tabulate and draw what a run has left in its folder.

    python plot.py        list the runs in results/
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
import tokenize
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"  # a number on the command line is a folder in it
LOSS_OF_GUESSING = math.log(10)  # cross-entropy, if all ten digits are equally likely
# The columns of a CSV.
COLUMNS = ("epoch", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy", "seconds", "learning_rate")
WIDTH = 100  # characters of a line

# So that no table and no picture grows without bound:
MOST_LINES = 20  # of an edit
MOST_MISTAKES = 24  # of an experiment, and as many fixed and broken images
MOST_MAPS = 64  # of a layer
MOST_LAYERS = 20  # of a model
MOST_DIGITS = 500  # of your own


# The files of a run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What the files of a run hold. Losses are averages per image, accuracies fractions."""

    folder: Path
    stats: dict  # {experiment: {seed: {column: an array with a number per epoch}}}
    code: dict  # {path in code/, such as "models/lenet.py": {number of a line: the line}}

    # from settings.json:
    date: str
    description: str  # what it was trained and tested on, as a sentence
    kind: str  # of the evaluated images: "test" or "validation"
    train_checksum: str
    eval_checksum: str
    python: str  # the version of it
    torch: str
    numpy: str
    seeds: list
    workers: int  # trainings at the same time
    baseline: str  # the experiment that the gains are over
    experiments: dict  # {name: {"row": as text, "epochs", "parameters" and so on}}
    compared_with: str | None  # the number of an earlier run
    edit: list  # lines that say what was edited since

    @cached_property
    def records(self):
        """{experiment: {seed: {name: array}}} of the trainings that have finished. Raises OSError that
        names a file that can't be read."""
        records = {}
        for name, seeds in self.stats.items():
            for seed in seeds:
                path = self.folder / f"{name}-seed{seed}.npz"
                if path.exists():
                    records.setdefault(name, {})[seed] = read_record(path)
        return records

    @property
    def title(self):
        """The title of its curves."""
        count = len(self.seeds)
        return f"{self.description}, mean and range of {count} seeds" if count > 1 else self.description

    @property
    def headings(self):
        """{column of a CSV: what tables and axes call it}."""
        return {
            "train_loss": "training loss during the epoch",
            "train_accuracy": "training accuracy during the epoch",
            "eval_loss": f"{self.kind} loss",
            "eval_accuracy": f"{self.kind} accuracy",
        }


def run_folders(results_dir):
    """Return the folders of all runs, the newest first."""
    folders = [path.parent for path in results_dir.glob("*/settings.json")]
    numbered = [folder for folder in folders if folder.name.isdecimal()]
    return sorted(numbered, key=lambda folder: int(folder.name), reverse=True)


def read_run(folder):
    """Return the Run in a folder. Trainings without a finished epoch are left out. Raises OSError that
    names a file that can't be read."""
    folder = Path(folder).resolve()
    path = folder / "settings.json"  # what an error is about
    try:
        run = Run(folder, {}, {}, **json.loads(path.read_text(encoding="utf-8")))
        for name in run.experiments:
            for seed in run.seeds:
                path = folder / f"{name}-seed{seed}.csv"
                columns = read_csv(path) if path.exists() else {}
                if columns:
                    run.stats.setdefault(name, {})[seed] = columns
        path = folder / "code"
        run.code.update(read_codes(folder))
    except Exception as error:  # json, csv and tokenize raise many kinds
        raise OSError(f"{path} can't be read, perhaps made by another version: {error!r}") from error
    return run


def read_runs(folders):
    """Return the Runs in some folders, given the newest first, the oldest first. Those that can't be read
    cost one line on standard error."""
    runs = []
    unreadable = []
    for folder in reversed(folders):
        try:
            runs.append(read_run(folder))
        except OSError:
            unreadable.append(folder.name)
    if unreadable:
        reason = "these runs can't be read, perhaps made by another version"
        print(f"warning: {reason}: {', '.join(unreadable)}", file=sys.stderr)
    return runs


def read_record(path):
    """Return {name: array}, what a finished training has left for tables and pictures."""
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except Exception as error:  # numpy and zipfile raise many kinds
        raise OSError(f"{path} can't be read: {error!r}") from error


def read_csv(path):
    """Return {column: an array with a number per epoch}, or {} if no epoch has finished."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return {}
    return {column: np.array([float(row[column]) for row in rows]) for column in COLUMNS}


def read_codes(folder):
    """Return the code of a run: {path in code/: {number of a line: the line}}, without blank lines and
    comments: a # at the beginning of a line or behind two spaces, and what follows it."""
    code = {}
    for path in folder.glob("code/**/*.py"):
        with tokenize.open(path) as file:  # in the encoding that it states
            lines = [re.sub(r"(^\s*|  )#.*", "", line).rstrip() for line in file]
        name = path.relative_to(folder / "code").as_posix()
        code[name] = {number: line for number, line in enumerate(lines, start=1) if line}
    return code


def is_finished(run, name):
    """Whether all trainings of an experiment have run through all of their epochs."""
    has_epochs = run.stats.get(name, {}).keys() >= set(run.seeds)
    return has_epochs and all((run.folder / f"{name}-seed{seed}.npz").exists() for seed in run.seeds)


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
    widths = [max(map(len, column)) for column in zip(*table)]
    rule = ["-" * width for width in widths]
    lines = []
    for row in [table[0], rule, *table[1:]]:
        cells = [text.ljust(width) for text, width in zip(row, widths)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def form_of(column):
    """Return the number format of a column of losses, or of accuracies in percent."""
    return ".2f" if column.endswith("accuracy") else ".4f"


def values_of(seeds, column):
    """Return a number per seed, an array (S,): the loss, or the accuracy in percent, after the last epoch.
    seeds: {seed: {column: array}}, from a CSV or a record."""
    values = np.array([columns[column].flat[-1] for columns in seeds.values()])
    return 100 * values if column.endswith("accuracy") else values


def cell(seeds, column):
    """Return the mean of the seeds as text, such as "98.91 ± 0.05%": ± is the standard deviation. Without
    any, it is empty."""
    if not seeds:
        return ""
    values = values_of(seeds, column)
    form = form_of(column)
    text = f"{values.mean():{form}}"
    if len(values) > 1:
        text += f" ± {values.std(ddof=1):{form}}"
    return text + ("%" if column.endswith("accuracy") else "")


def scores(record, column):
    """Return a number per evaluated image, an array (N,): the loss, or 100 for a right answer and 0 for a
    wrong one."""
    labels = record["labels"]
    logits = record["logits"].astype(float)
    if column == "eval_accuracy":
        return 100.0 * (logits.argmax(axis=1) == labels)
    return np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]


def mean_change(before, after, column):
    """Return how much a mean has changed from some trainings to others, and the standard error of that: of
    the loss, or of the accuracy in percentage points.

    before, after: {seed: record}, with the same seeds and evaluated images. Both are a random choice, so the
    error holds both, as in studies of several readers and cases: two-way random effects, Gallas, Pennello,
    Myers (2007), "Multireader multicase variance analysis for binary data". With one seed it holds the images
    alone: for an accuracy, the root of the number of answers that changed, as in McNemar's test.
    """
    changes = []
    for seed in before:
        changes.append(scores(after[seed], column) - scores(before[seed], column))
    changes = np.array(changes)
    seed_count, image_count = changes.shape
    of_images = changes.mean(axis=0)
    variance = of_images.var(ddof=1) / image_count
    if seed_count > 1:
        of_seeds = changes.mean(axis=1)
        rest = changes - of_images - of_seeds[:, None] + changes.mean()
        rest_variance = np.sum(rest**2) / ((seed_count - 1) * (image_count - 1))
        # The part of their variance that comes from the images is already counted.
        variance += max(0, of_seeds.var(ddof=1) / seed_count - rest_variance / rest.size)
    return changes.mean(), math.sqrt(variance)


def change_text(before, after, column):
    """Return how much a mean has changed as text, with its error, such as "+0.13 ± 0.08, may be chance". Only
    accuracies get a verdict: the standard error of a loss is less reliable.

    before, after: {seed: record}, as for mean_change.
    """
    change, error = mean_change(before, after, column)
    form = form_of(column)
    text = f"{change:+{form}} ± {error:{form}}"
    if column == "eval_accuracy" and abs(change) < 3 * error:
        text += ", may be chance"
    return text


NOTES = [
    "",
    "± behind a mean is the standard deviation of the seeds; behind a gain or a change, its standard",
    "error, from the choice of images and, if there are several, of seeds. From two or three seeds, it is",
    'itself rough. "may be chance": an accuracy that changed by less than three errors; equally good',
    "models often do. The best of many rows is partly the luckiest: it was selected by these figures.",
]


def summary(run):
    """Return what was reached, as lines: a table of the last epochs, and remarks."""
    baseline = run.baseline
    table = [["experiment", "train acc", f"{run.kind} loss", f"{run.kind} acc", "gain", "seconds"]]
    has_gains = False
    for name, seeds in run.stats.items():
        cells = [cell(run.records.get(name), "train_accuracy")]  # of the model as it was at the end
        cells += [cell(seeds, "eval_loss"), cell(seeds, "eval_accuracy")]
        gain = ""
        if name != baseline and is_finished(run, name) and is_finished(run, baseline):
            gain = change_text(run.records[baseline], run.records[name], "eval_accuracy")
            has_gains = True
        seconds = np.mean([columns["seconds"].sum() for columns in seeds.values()])
        table.append([name, *cells, gain, f"{seconds:.0f}"])
    lines = [f"Run {run.folder.name}, {run.date}: {run.description}"]
    numbers = ", ".join(map(str, run.seeds))
    word = "seed" if len(run.seeds) == 1 else "seeds"
    lines += [f"Last epoch, {word} {numbers}", "", *markdown(table), ""]
    if has_gains:
        lines.append(f"gain: {run.kind} accuracy over {baseline}, in percentage points")
    elif len(run.experiments) > 1:
        lines.append(f"No gain is given: it needs BASELINE ({baseline}) and another row, both finished")
    lines.append(f"seconds: of each training; {run.workers} ran at the same time")
    return lines + training_remarks(run)


def losses_of(run, name):
    """Return for each seed of an experiment its training and evaluation losses, as a list of lists."""
    losses = []
    for columns in run.stats.get(name, {}).values():
        both = np.concatenate([columns["train_loss"], columns["eval_loss"]])
        losses.append(both.tolist())
    return losses


def training_remarks(run):
    """Return a line for each training that has not finished or is no better than guessing, and for each
    experiment whose seeds make no difference."""
    lines = []
    for name, facts in run.experiments.items():
        losses = losses_of(run, name)
        if any(losses.count(each) > 1 for each in losses):
            reason = "something in the model or its row sets the seed itself"
            lines.append(f"Warning: {name}: several seeds gave the same figures: {reason}")
        for seed in run.seeds:
            columns = run.stats.get(name, {}).get(seed, {"epoch": []})
            if seed not in run.records.get(name, {}):
                count = len(columns["epoch"])
                lines.append(f"Not finished: {name}, seed {seed}: {count} of {facts['epochs']} epochs")
            elif columns["eval_loss"][-1] > 0.95 * LOSS_OF_GUESSING and columns["eval_accuracy"][-1] < 0.2:
                advice = "try another learning_rate, more epochs, smaller batches, no softmax at the end"
                train_accuracy = run.records[name][seed]["train_accuracy"]
                if train_accuracy > 0.5:
                    advice = f"but {train_accuracy:.0%} of the training images: are these of another kind?"
                lines.append(f"Warning: {name}, seed {seed} has learned almost nothing: {advice}")
    return lines


def details(run):
    """Return what summary.md also holds, as lines: row and layers of each experiment."""
    lines = []
    for name, facts in run.experiments.items():
        lines += ["", f"## {name}", "", f"    {facts['row']}"]  # four spaces: Markdown shows it as code
        if name in run.records:
            _, record = first_records(run)[name]
            table = [["layer", "kind", "output", "parameters"]]
            for layer, kind, parameters, output in layers_of(record):
                table.append([layer, kind, shape_text(output), f"{parameters:,}"])
            table.append(["total", "", "", f"{facts['parameters']:,}"])
            lines += ["", *markdown(table)]
    return lines


def shape_text(array):
    """Return a shape such as "6 x 28 x 28"."""
    return " x ".join(map(str, array.shape))


# What did my edit do? -------------------------------------------------------------------------------


class Edit:
    """What led from one run to another.

    changes: lines of the code that differ, without blank ones, and data, seeds and versions.
    finished: names of the experiments that both have finished.
    experiments: those of them whose losses differ.
    no_error: why the errors of changes can't be given, or "".
    """

    def __init__(self, before, after):
        self.before = before
        self.after = after
        self.changes = code_changes(before.code, after.code)
        keys = ["description", "seeds", "python", "torch", "numpy"]
        if before.description == after.description:
            keys += ["train_checksum", "eval_checksum"]
        for key in keys:
            old, new = getattr(before, key), getattr(after, key)
            if old != new:
                self.changes.append(f"{key}: {old} -> {new}")
        self.changes += row_changes(before, after)
        self.finished = []
        self.experiments = []
        for name in after.experiments:
            if is_finished(before, name) and is_finished(after, name):
                self.finished.append(name)
                if losses_of(before, name) != losses_of(after, name):
                    self.experiments.append(name)
        self.no_error = ""
        if before.seeds != after.seeds:
            self.no_error = "not judged: other seeds"
        if before.eval_checksum != after.eval_checksum:
            self.no_error = "not judged: other images"


def code_changes(before, after):
    """Return the lines that differ between the code of two runs."""
    changes = []
    for name in sorted(before | after):
        if name not in before or name not in after:
            changes.append(f"{name} is {'new' if name in after else 'gone'}")
            continue
        removed = [f"{name}, line {number}: - {line}" for number, line in before[name].items()]
        added = [f"{name}, line {number}: + {line}" for number, line in after[name].items()]
        lines = list(before[name].values()), list(after[name].values())
        matcher = difflib.SequenceMatcher(None, *lines, autojunk=False)
        for kind, old_start, old_end, new_start, new_end in matcher.get_opcodes():
            if kind != "equal":
                changes += removed[old_start:old_end] + added[new_start:new_end]
    return changes


def row_changes(before, after):
    """Return how rows differ between two runs with the same main.py, such as those that a notebook makes."""
    changes = []
    if before.code.get("main.py") != after.code.get("main.py"):
        return changes
    for name in after.experiments:
        if name not in before.experiments:
            continue
        old = before.experiments[name]["row"].split(", ")
        new = after.experiments[name]["row"].split(", ")
        if old != new:
            parts = ", ".join(part for part in new if part not in old)
            changes.append(f"row {name!r}: {parts}")
    return changes


def choose_run_before(folder, settings):
    """Choose the run that a new one is compared with. Return its number as text, or None, and lines that say
    what was edited since, or why there is none.

    Of the finished runs with the same evaluated images and seeds, it is the one whose code differs in the
    fewest lines, and the oldest of these: an exercise is compared with the unedited run, and not with the
    exercise before it. Runs that can't be read cost one line on standard error.
    """
    run = Run(folder, {}, read_codes(folder), **settings, compared_with=None, edit=[])
    edits = []
    for before in read_runs(run_folders(folder.parent)):
        names = before.experiments.keys()
        has_finished = all(is_finished(before, name) for name in names)
        has_common_row = names & run.experiments.keys()
        if has_finished and has_common_row:
            edits.append(Edit(before, run))
    edits = [edit for edit in edits if not edit.no_error]
    if edits:
        nearest = min(edits, key=lambda edit: len(edit.changes))  # the first of several
        return nearest.before.folder.name, change_lines(nearest)
    return None, [
        "Not compared: no finished run has the same seeds, the same images and a row of this one.",
        "To see what an edit does, run it without and with the edit.",
        "",
    ]


def run_before(run):
    """Return the Run that was chosen for the comparison before a run began, or None. If it can't be read any
    more, a line on standard error says so."""
    chosen = run.compared_with
    if chosen is None:
        return None
    try:
        before = read_run(run.folder.parent / chosen)
        before.records  # noqa: B018, which reads their files
    except OSError as error:
        print(f"warning: not compared: {error}", file=sys.stderr)
        return None
    return before


def change_lines(edit):
    """Return what was edited since another run, as lines."""
    number = edit.before.folder.name
    if not edit.changes:
        return [f"Nothing has changed since run {number}.", ""]
    shown = edit.changes[:MOST_LINES]
    if len(shown) < len(edit.changes):
        shown.append(f"and {len(edit.changes) - len(shown)} more")
    return [f"Compared with run {number}:", "", *(f"    {line}" for line in shown)]  # Markdown: four for code


def edit_lines(edit):
    """Return what has changed since another run and what it did, as lines."""
    lines = ["", *change_lines(edit)]
    if edit.experiments and not edit.changes:
        lines.append(
            "But results differ: another computer, other random numbers, another file that it reads?"
        )
    if edit.experiments:
        lines += ["", *edit_table(edit)]
    elif not edit.finished:
        lines += ["", "Not compared: there is no row that both runs have finished"]
    elif edit.changes:
        lines += ["", "This changed no loss and no accuracy of the rows that both runs have finished"]
    return lines


def edit_table(edit):
    """Return a table of the experiments that an edit has changed, as lines."""
    before, after = edit.before, edit.after
    table = [["experiment", after.kind, f"run {before.folder.name}", f"run {after.folder.name}", "change"]]
    for name in edit.experiments:
        first = name
        for quantity in ("accuracy", "loss"):
            column = f"eval_{quantity}"
            cells = [cell(run.stats[name], column) for run in (before, after)]
            change = edit.no_error or change_text(before.records[name], after.records[name], column)
            table.append([first, quantity, *cells, change])
            first = ""
        if not edit.no_error:
            seed, record = first_records(after)[name]
            fixed, broken = fixed_and_broken(before.records[name][seed], record)
            counts = f"seed {seed}: {len(fixed)} fixed, {len(broken)} broken"
            table.append(["", "images", "", "", counts])
    return markdown(table)


def fixed_and_broken(old, new):
    """Return which images the newer of two records reads rightly and the older does not, and the other way
    round: two arrays of numbers."""
    change = scores(new, "eval_accuracy") - scores(old, "eval_accuracy")
    return np.flatnonzero(change > 0), np.flatnonzero(change < 0)


# The list of runs -----------------------------------------------------------------------------------


def list_of_runs(folders):
    """Return a table of runs, the oldest first, as lines: when, how many epochs and seeds, the accuracies of
    the rows, and below it what each was compared with and the first line that its edit added."""
    table = [["run", "date", "epochs", "seeds", "accuracy"]]
    lines = [""]
    runs = read_runs(folders)
    for run in runs:
        number = run.folder.name
        epochs = sorted({facts["epochs"] for facts in run.experiments.values()})
        counts = [", ".join(map(str, epochs)), str(len(run.seeds))]
        accuracies = [f"{name} {cell(seeds, 'eval_accuracy')}" for name, seeds in run.stats.items()]
        shown = textwrap.shorten("; ".join(accuracies), WIDTH - 41, placeholder=" ...")
        table.append([number, run.date[5:16], *counts, shown])
        added = [line for line in run.edit if ": + " in line]
        edit = run.edit[0]
        if added:
            edit += added[0]
        lines.append(textwrap.shorten(f"{number}: {edit}", WIDTH, placeholder=" ..."))
    if len({run.description for run in runs}) > 1:
        lines += ["", *(f"{run.folder.name}: {run.description}" for run in runs)]
    return [*markdown(table), *lines]


# Curves ---------------------------------------------------------------------------------------------


# Okabe and Ito's palette, which colour-blind people can tell apart, too, and two more instead of its yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "black", "#7A3E9D", "gray")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")  # all of them can be hollow

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
    """Return a Figure with the four curves of one experiment and its learning rate, on one axis of epochs."""
    seeds = run.stats[name]
    figure = new_figure(8, 8.5, f"{name}\n{run.title}")
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=[4, 4, 1.5])
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for part, color in zip(("train", "eval"), COLORS):
            column = f"{part}_{quantity}"
            label = f"{run.headings[column]} {cell(seeds, column)}"
            draw_curve(axes, seeds, column, {"label": label, "color": color, "marker": "o"})
        finish_axes(axes, quantity)
        # Above the axes it hides no curve.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
        axes.label_outer()
    seed, record = first_records(run).get(name, (min(seeds), {}))
    # of each step or, where these are not recorded, at the end of each epoch
    rates = record.get("learning_rates", [])
    if len(rates) == 0:
        rates = seeds[seed]["learning_rate"]
    ends = np.linspace(0, len(seeds[seed]["epoch"]), len(rates) + 1)[1:]
    marker = "." if len(rates) < 100 else ""
    rate.plot(ends, rates, color="gray", linewidth=1, marker=marker)
    rate.set(xlabel="epoch", ylabel="learning rate")
    rate.set_ylim(bottom=0)
    rate.grid(alpha=0.3)
    return figure


def plot_comparison(run, edit=None):
    """Return a Figure of all experiments or, given the edit that led to a run, of those that it has changed,
    before and after it: loss and accuracy, training and test, a closer look at the end, and a legend, the
    best first."""
    from matplotlib.legend_handler import HandlerTuple

    names = run.stats if edit is None else edit.experiments
    names = sorted(names, key=lambda name: -values_of(run.stats[name], "eval_accuracy").mean())
    title = run.title
    heading = f"{run.headings['eval_accuracy']} at the end"
    if edit is not None:
        if edit.before.description != run.description:
            title = f"{edit.before.description} \u2192 {title}"
        title = "\n".join([title, *edit.changes[:3]])
        if len(edit.changes) > 3:
            title += f" ... and {len(edit.changes) - 3} more lines"
        heading += f", run {edit.before.folder.name} (dashed) \u2192 run {run.folder.name}"
    rows = [["train_loss", "eval_loss"], ["train_accuracy", "eval_accuracy"]]
    if max(len(columns["epoch"]) for name in names for columns in run.stats[name].values()) > 3:
        rows.append(["end", "end"])  # of fewer epochs, the whole curves are close enough
    figure = new_figure(10, 3.4 * len(rows), title)
    panels = figure.subplot_mosaic(rows)
    panels["train_loss"].sharey(panels["eval_loss"])
    panels["train_accuracy"].sharey(panels["eval_accuracy"])
    places = list(run.experiments)
    entries = {}  # {text: the lines that stand before it}
    for name in names:
        place = places.index(name)  # so a row has the same look in all pictures
        style = {"color": COLORS[place % len(COLORS)], "marker": MARKERS[place % len(MARKERS)]}
        versions = [(run.stats[name], style)]
        text = cell(run.stats[name], "eval_accuracy")
        if edit is not None:
            old = cell(edit.before.stats[name], "eval_accuracy")
            records = edit.before.records[name], run.records[name]
            change = edit.no_error or change_text(*records, "eval_accuracy")
            text = f"{old} \u2192 {text} ({change})"
            hollow = {"linestyle": "--", "markerfacecolor": "white"}
            versions.insert(0, (edit.before.stats[name], style | hollow))
        for panel, axes in panels.items():
            column = "eval_accuracy" if panel == "end" else panel
            lines = [draw_curve(axes, seeds, column, look) for seeds, look in versions]
        entries[textwrap.fill(f"{text}  {name}", 110)] = tuple(lines)
    for column, text in run.headings.items():
        panels[column].set_title(text)
        finish_axes(panels[column], column)
    if "end" in panels:
        panels["end"].set_title(f"{run.headings['eval_accuracy']}: a closer look at the best")
        look_closer(panels["end"])
    style = {"loc": "outside lower left", "fontsize": 9, "frameon": False, "alignment": "left"}
    style |= {"handlelength": 4, "handler_map": {tuple: HandlerTuple(ndivide=None)}}  # side by side
    figure.legend(entries.values(), entries.keys(), title=heading, **style)
    lines_of_legend = sum(len(text.splitlines()) for text in entries)
    figure.set_figheight(figure.get_figheight() + 0.5 + 0.2 * lines_of_legend)
    return figure


def draw_curve(axes, seeds, column, style):
    """Draw the mean of the seeds as a line and their range as a band. Return the line.

    Accuracies are drawn as errors in percent, 100 - accuracy, on a logarithmic scale, upside down and with
    labels that say accuracy. That spreads out 98 to 99.9%.
    """
    # (epochs, seeds); an interrupted training lacks the later epochs.
    curves = (columns[column] for columns in seeds.values())
    values = np.array(list(zip_longest(*curves, fillvalue=np.nan)))
    if column.endswith("accuracy"):
        values = np.maximum(100 - 100 * values, 0.01)  # log(0) does not exist
    epochs = range(1, len(values) + 1)
    (line,) = axes.plot(epochs, np.nanmean(values, axis=1), markersize=4, linewidth=1.3, **style)
    if len(seeds) > 1:
        low = np.nanmin(values, axis=1)
        high = np.nanmax(values, axis=1)
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=1.5)
    return line


def look_closer(axes):
    """Finish axes of accuracies, and let them show only the later half of the epochs, and there what has at
    most three times the least error: a model that guesses would press the good ones together."""
    half = int(min(line.get_xdata()[-1] for line in axes.lines) / 2)  # a run may have had fewer epochs
    points = [line.get_xydata() for line in axes.lines]
    for band in axes.collections:
        points.append(band.get_paths()[0].vertices)
    epochs, errors = np.concatenate(points).T
    errors = errors[epochs > half]
    near = errors[errors <= 3 * max(errors.min(), 0.1)]
    axes.set_ylim(0.9 * near.min(), 1.1 * near.max())
    finish_axes(axes, "eval_accuracy")
    axes.set_xlim(half + 0.5, axes.dataLim.xmax + 0.5)


def finish_axes(axes, column):
    """Label and scale axes whose curves are drawn. If one is about as bad as guessing, add a dotted line."""
    from matplotlib.ticker import AutoLocator, LogLocator, MaxNLocator

    last = axes.dataLim.xmax
    axes.set_xlabel("epoch")
    axes.set_xlim(0, 1.15 * last)  # an epoch's point is at its end; on the right there is room for a text
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    guessing = LOSS_OF_GUESSING if column.endswith("loss") else 90
    if axes.dataLim.ymax > 0.8 * guessing:
        axes.axhline(guessing, xmax=1 / 1.15, color="gray", linestyle=":", linewidth=1)
        axes.text(1.01 * last, guessing, "guessing", va="center", fontsize=7, clip_on=True)
    together = axes.get_shared_y_axes().get_siblings(axes)
    positive = all(each.dataLim.ymin > 0 for each in together)  # a loss may be negative, such as NLLLoss
    locator = AutoLocator()
    if positive:
        axes.set_yscale("log")
        steps = LogLocator(subs=(1, 2, 5))
        low, high = sorted(axes.get_ylim())
        ticks = steps.tick_values(low, high)
        if np.sum((low <= ticks) & (ticks <= high)) >= 3:
            locator = steps
    axes.yaxis.set_major_locator(locator)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if column.endswith("loss"):
        axes.set_ylabel("loss per image, logarithmic" if positive else "loss per image")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylabel("accuracy in %, stretched towards 100")
        axes.yaxis.set_major_formatter(lambda error, position: f"{100 - error:g}")
        axes.yaxis.set_inverted(True)


# Images ---------------------------------------------------------------------------------------------


def bare_panels(title, count, columns, width, height):
    """Return a Figure and `count` axes without frames and ticks, in rows of at most `columns`. width and
    height of each are in inches."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = new_figure(max(width * columns, 6), 0.6 + height * rows, title)
    bare = {"xticks": [], "yticks": [], "frame_on": False}
    panels = figure.subplots(rows, columns, squeeze=False, subplot_kw=bare).flatten()
    return figure, panels[:count]


def sheet(images, columns, room=1):
    """Return images (N, H, W) as one image, in rows of `columns`, with room below each, in pixels."""
    rows = max(1, math.ceil(len(images) / columns))
    missing = rows * columns - len(images)
    spaces = ((0, missing), (0, room), (0, 1))
    images = np.pad(images.astype(float), spaces, constant_values=np.nan)  # which is drawn white
    return np.vstack([np.hstack(row) for row in np.split(images, rows)])


def softmax(logits):
    """Return probabilities, in double precision, so that 0.99999999 does not become 1."""
    logits = logits.astype(float)
    return np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def confidence(probability):
    """Return a probability in percent, at most 99.99%: no model is quite certain."""
    return f"{min(100 * probability, 99.99):.2f}%"


def plot_images(run):
    """Return a Figure of some training images and, for each experiment with a transform, of random versions
    of them."""
    sheets = {}
    for name, (_, record) in first_records(run).items():
        sheets["as they are"] = record["originals"], []
        if "versions" in record:
            sheets[f"{name}: random versions of each"] = record["versions"].reshape(-1, 28, 28), []
    return plot_sheets(f"Training images\n{run.description}", sheets, columns=8)


def plot_mistakes(run):
    """Return a Figure with the most confident mistakes of each experiment."""
    sheets = {}
    for name, (seed, record) in first_records(run).items():
        wrong = np.flatnonzero(scores(record, "eval_accuracy") == 0)
        sheets[f"{name}, seed {seed}: {len(wrong):,} mistakes"] = most_confident(record, wrong)
    title = f"Mistakes, the most confident first: label \u2192 answer, its probability\n{run.description}"
    return plot_sheets(title, sheets, room=20)


def plot_fixed(edit):
    """Return a Figure of the images that experiments read rightly after an edit and not before, and the other
    way round."""
    sheets = {}
    for name in edit.experiments:
        seed, new = first_records(edit.after)[name]
        old = edit.before.records[name][seed]
        fixed, broken = fixed_and_broken(old, new)
        sheets[f"{name}, seed {seed}: {len(fixed):,} fixed"] = most_confident(old, fixed)
        sheets[f"{name}, seed {seed}: {len(broken):,} broken"] = most_confident(new, broken)
    runs = f"run {edit.before.folder.name} to run {edit.after.folder.name}"
    title = f"Fixed and broken from {runs}, the most confident mistakes first"
    meaning = "label \u2192 wrong answer, before it was fixed or after it was broken, and its probability"
    return plot_sheets(f"{title}\n{meaning}\n{edit.after.description}", sheets, room=20)


def most_confident(record, images):
    """Return the most confident of some mistakes, given by the numbers of their images: at most MOST_MISTAKES
    images (N, 28, 28), and for each a text with label, answer and the answer's probability."""
    probabilities = softmax(record["logits"])
    answers = probabilities.argmax(axis=1)
    confidences = probabilities[images].max(axis=1)
    order = images[np.argsort(-confidences, kind="stable")][:MOST_MISTAKES]
    texts = []
    for index in order:
        text = f"{record['labels'][index]} \u2192 {answers[index]}"
        texts.append(f"{text}\n{confidence(probabilities[index].max())}")
    wrong = np.flatnonzero(answers != record["labels"])  # those whose images are recorded
    return record["mistakes"][np.searchsorted(wrong, order)], texts


def plot_sheets(title, sheets, columns=12, room=1):
    """Return a Figure of images, one sheet below the other. sheets: {heading: (images (N, 28, 28), a list of
    the texts below them)}; room: that of a text, in pixels of MNIST"""
    most = max(len(images) for images, _ in sheets.values())
    columns = min(columns, max(most, 1))
    pictures = [sheet(images, columns, room) for images, _ in sheets.values()]
    heights = list(map(len, pictures))
    inches = 0.8 + 0.3 * len(sheets) + sum(heights) / 39  # of title, headings and pictures
    figure = new_figure(max(6, 0.75 * columns), inches, title)
    panels = figure.subplots(len(sheets), 1, height_ratios=heights, squeeze=False).flatten()
    for axes, picture, (heading, (_, texts)) in zip(panels, pictures, sheets.items()):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(heading, fontsize=9)
        axes.set_axis_off()
        for index, text in enumerate(texts):
            row, column = divmod(index, columns)
            x = 14 + 29 * column
            y = 30 + (28 + room) * row
            axes.text(x, y, text, ha="center", va="top", fontsize=7, in_layout=False)
    return figure


def plot_confusion(run):
    """Return a Figure that counts the predictions for each label, with the accuracy of each label on the
    right. Only mistakes are coloured, in each model by its own scale."""
    title = f"Confusion matrices: numbers of images, and the accuracy of each digit\n{run.description}"
    figure, panels = bare_panels(title, len(run.records), columns=3, width=4, height=3.95)
    for axes, (name, (seed, record)) in zip(panels, first_records(run).items()):
        pairs = 10 * record["labels"] + record["logits"].argmax(axis=1)
        counts = np.bincount(pairs, minlength=100).reshape(10, 10)
        right = np.diag(counts)
        mistakes = counts - np.diag(right)
        darkest = 1.5 * max(mistakes.max(), 1)  # dark text stays readable
        axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=darkest)
        style = {"ha": "center", "va": "center", "fontsize": 7, "in_layout": False}
        for label, prediction in np.argwhere(counts):
            axes.text(prediction, label, counts[label, prediction], **style)
        for label in np.unique(record["labels"]):
            axes.text(10.3, label, f"{right[label] / counts[label].sum():.1%}", **style)
        axes.set(xlim=(-0.5, 11), xticks=range(10), yticks=range(10), xlabel="prediction", ylabel="label")
        axes.set_title(f"{name}, seed {seed}", fontsize=9)
    return figure


def plot_layers(run):
    """Return a Figure of one digit on its way through each model: what comes out of its layers."""
    digit = f"the one of a hundred {run.kind} images of which it is least sure"
    meaning = "blue is positive, red negative; where nothing is negative, black is 0"
    title = f"A digit on its way through each model: {digit}\n{meaning}\n{run.description}"
    figure, panels = bare_panels(title, len(run.records), columns=4, width=4, height=1)
    depth = 0
    for axes, (name, (_, record)) in zip(panels, first_records(run).items()):
        axes.set_title(name, fontsize=10)
        bottom = draw_step(axes, "input", record["input"][None], 15)
        if "filters" in record:
            bottom = draw_step(axes, "weights of the first layer", record["filters"], bottom + 15)
        layers = [layer for layer in layers_of(record) if 1 <= layer[-1].ndim <= 3]
        if len(layers) > MOST_LAYERS:
            axes.set_title(f"{name}, the first {MOST_LAYERS} layers", fontsize=10)
        for layer, kind, _, output in layers[:MOST_LAYERS]:
            scale = output
            if output.ndim == 1:  # strips of one kind have one scale: one sees where numbers fade
                strips = [each for _, other, _, each in layers if other == kind and each.ndim == 1]
                scale = np.concatenate(strips)
            bottom = draw_step(axes, f"{layer}, {kind}", output, bottom + 15, scale)
        draw_probabilities(axes, softmax(record["input_logits"]), bottom + 15)
        depth = max(depth, bottom + 55)
    for axes in panels:
        axes.set(xlim=(0, 8 * 29), ylim=(depth, 0))
    figure.set_figheight(0.8 + math.ceil(len(panels) / 4) * (0.3 + depth / 60))
    return figure


def draw_step(axes, step, values, top, scale=None):
    """Draw maps (C, H, W) in rows of eight, or numbers (N,) as a strip, in the colours that fit them or, if
    given, the numbers in scale. Return the y at which the drawing ends. The unit is a pixel of MNIST: a map
    of 28 x 28 and its gap take 29."""
    axes.text(0, top - 3, f"{step}: {shape_text(values)}", fontsize=8)
    most = np.abs(values if scale is None else scale).max()
    style = {"cmap": "gray", "vmin": 0, "vmax": most}
    if values.min() < 0:
        style = {"cmap": "RdBu", "vmin": -most, "vmax": most}
    bottom = top + 10 * values.ndim
    if values.ndim == 3:
        bottom = top + 29 * math.ceil(min(len(values), MOST_MAPS) / 8)
        values = sheet(values[:MOST_MAPS], 8)
    axes.imshow(np.atleast_2d(values), extent=(0, 8 * 29, bottom, top), **style)
    return bottom


def draw_probabilities(axes, probabilities, top):
    """Draw a bar for each digit, before a pale one for 100%."""
    axes.text(0, top - 3, "probabilities of the digits: 10", fontsize=8)
    places = range(11, 240, 23)
    style = {"bottom": top + 20, "width": 18}
    axes.bar(places, -20, color="gainsboro", **style)
    axes.bar(places, -20 * probabilities, color=COLORS[0], **style)
    for digit, place in enumerate(places):
        text = f"{digit}\n{confidence(probabilities[digit])}"
        axes.text(place, top + 22, text, ha="center", va="top", fontsize=6)


def plot_digits(digits, logits):
    """Return a Figure of digits, see `dataset.read_digits`: as taken, as the models see them, and the answers
    of {model: logits (M, 10)}."""
    count = min(len(digits["names"]), MOST_DIGITS)
    title = f"My digits ({count} of {len(digits['names'])}): the picture, and what the models see"
    height = 1.7 + 0.12 * len(logits)  # inches; the second part for a line of text
    figure, panels = bare_panels(title, count, columns=6, width=2.4, height=height)
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
PICTURES = ("comparison", "edit", "fixed", "my_digits", *IMAGES)


def show_run(folder):
    """Write summary.md and all pictures of a run into its folder. Print what was reached, what the edit did
    and where the pictures are. Return whether all could be drawn. Raises OSError that names a file that
    can't be read, or if summary.md or standard output can't be written to."""
    run = read_run(folder)
    lines = summary(run)
    before = run_before(run)
    pictures = {}
    if before is not None:
        edit = Edit(before, run)
        lines += edit_lines(edit)
        pictures = pictures_of_edit(edit)
    if run.stats:
        lines += NOTES
    for name in ("edit", "fixed"):
        if name not in pictures:  # of a run that is not there any more
            (run.folder / f"{name}.png").unlink(missing_ok=True)
    if run.stats:
        pictures["comparison"] = partial(plot_comparison, run)
    if run.records:
        pictures |= {name: partial(make_figure, run) for name, make_figure in IMAGES.items()}
    pictures |= {name: partial(plot_experiment, run, name) for name in run.stats}
    path = run.folder / "summary.md"
    text = "\n".join([*lines, *details(run)])
    path.write_text(f"{text}\n", encoding="utf-8")
    try:
        print("", *lines, "", f"{path} holds this table. Drawing the pictures ...", sep="\n", flush=True)
    finally:  # even if printing fails, as in python main.py | head
        all_drawn = draw_all(pictures, run.folder)
    return all_drawn


def draw_all(pictures, folder, ending=".png"):
    """Draw pictures, {name: a function that makes the Figure}, into a folder and print their names. Return
    whether all could be drawn."""
    drawn = []
    for name, make_figure in pictures.items():
        path = folder / f"{name}{ending}"
        if draw(path, make_figure):
            drawn.append(path.name)
    if drawn:
        print(f"In {folder}: {'  '.join(drawn)}", flush=True)
    return len(drawn) == len(pictures)


def draw_comparison(folder):
    """Draw the curves of a run that is still training, up to the epochs that have finished. A file that can't
    be read just now costs nothing but the picture."""
    with suppress(OSError):
        run = read_run(folder)
        if run.stats:
            draw(folder / "comparison.png", plot_comparison, run)


def pictures_of_edit(edit):
    """Return {name: a function that makes the Figure} of an edit."""
    pictures = {}
    if edit.experiments:
        pictures["edit"] = partial(plot_comparison, edit.after, edit)
        if not edit.no_error:
            pictures["fixed"] = partial(plot_fixed, edit)
    return pictures


def compare_runs(before_folder, after_folder):
    """Print what changed from one run to another and what that did, and draw it beside the later folder.
    Return whether it could be drawn. Raises OSError that names a file that can't be read."""
    edit = Edit(read_run(before_folder), read_run(after_folder))
    lines = edit_lines(edit)
    if edit.experiments:
        lines += NOTES
    print(*lines, "", sep="\n")
    ending = f"_{edit.before.folder.name}_{edit.after.folder.name}.png"
    return draw_all(pictures_of_edit(edit), edit.after.folder.parent, ending)


def main(arguments):
    """List the runs, show the one with this number or path again, or compare two. Return the exit code."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("runs", nargs="*", help="at most two: their numbers in results/, or their folders")
    names = parser.parse_args(arguments).runs
    if len(names) > 2:
        parser.error("only two runs can be compared")
    all_drawn = True
    try:
        folders = [find_run(name) for name in names]
        if len(folders) == 2:
            all_drawn = compare_runs(*folders)
        elif len(folders) == 1:
            all_drawn = show_run(*folders)
        elif folders := run_folders(RESULTS):
            print(*list_of_runs(folders), sep="\n")
        else:
            raise FileNotFoundError(f"there is no run in {RESULTS}: first run main.py")
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all_drawn else 1


def find_run(name):
    """Return the folder of a run, given its number or path. Raises FileNotFoundError if there is none."""
    folder = RESULTS / name if name.isdecimal() else Path(name)
    if not (folder / "settings.json").exists():
        raise FileNotFoundError(f"there is no run {name}: python plot.py lists those in {RESULTS}")
    return folder


def prepare_output():
    """Let a terminal that has no "±" show a "?" instead."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has not
        sys.stdout.reconfigure(errors="replace")


if __name__ == "__main__":
    prepare_output()
    sys.exit(main(sys.argv[1:]))
