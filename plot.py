"""Draw and tabulate what a run has left in its folder.

python plot.py        draw the newest run in results/ again
python plot.py 3      draw run 3, the folder results/3, again
python plot.py 3 5    what changed from run 3 to run 5, and what did it do?
"""

import ast
import difflib
import json
import math
import os
import re
import sys
import textwrap
from contextlib import contextmanager
from csv import DictReader
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

# The figures of an epoch: their columns in a CSV, and what tables and axes call them.
HEADINGS = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
}

# Okabe and Ito's palette without its yellow: colour-blind people can tell these apart, too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "^", "s", "x", "v", "d")  # further curves of the same colour

LOSS_OF_GUESSING = math.log(10)  # cross-entropy, if all ten digits are equally likely
WIDTH = 100  # of the screen, in characters


class RunError(ValueError):
    """Says what is wrong with the files of a run, in words for the person at the shell."""


# The files of a run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What the files of a run hold, each read once. Losses are averages per image, accuracies fractions."""

    folder: Path
    settings: dict  # settings.json
    stats: dict  # {experiment: {seed: {column: an array with a number per epoch}}}
    outputs: dict  # {experiment: {seed: {name: array}}}, of trainings that have finished
    layers: dict  # {experiment: {name: array}}, of the first seed that has finished
    images: dict  # {name: array}, of images.npz
    digits: dict  # {name: array}, of my_digits.npz
    code: dict  # {module: its source}
    before: "Run | None" = None  # the run to compare it with

    @cached_property
    def edit(self):
        """The Edit that led to it from the run before, if there is one."""
        return find_edit(self.before, self) if self.before else None

    @property
    def data(self):
        """What it was trained and validated on."""
        return self.settings["data"].get("description", "unknown data")

    @property
    def seed_count(self):
        """The largest number of seeds of an experiment."""
        return max((len(seeds) for seeds in self.stats.values()), default=1)

    @property
    def heading(self):
        """The title of its curves."""
        if self.seed_count > 1:
            return f"{self.data}, mean and range of {self.seed_count} seeds"
        return self.data


def read_run(folder):
    """Return the Run in a folder, its experiments in the order of settings.json. Trainings without a
    finished epoch are left out. Raises RunError that names a damaged file."""
    folder = Path(folder)
    settings = read_settings(folder)
    stats = read_stats(folder, settings["EXPERIMENTS"])
    outputs = read_outputs(folder, stats)
    return Run(
        folder=folder,
        settings=settings,
        stats=stats,
        outputs=outputs,
        layers=read_layers(folder, outputs),
        images=read_arrays(folder / "images.npz"),
        digits=read_arrays(folder / "my_digits.npz"),
        code=read_code(folder / "code"),
    )


@contextmanager
def damage_named(path):
    """Turn whatever goes wrong while a file is read into a RunError that names it."""
    try:
        yield
    except Exception as error:  # json, numpy and zipfile raise many kinds
        reason = " ".join(str(error).split())
        raise RunError(f"{path} is damaged: {reason[:200]}") from error


def read_settings(folder):
    """Return the settings of a run, with an empty value for what earlier versions did not write."""
    settings = {"EXPERIMENTS": {}, "SEEDS": [], "data": {}, "parameters": {}, "layers": {}}
    path = folder / "settings.json"
    if not path.exists():
        return settings
    with damage_named(path):
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, empty in settings.items():
            if not isinstance(found.get(name, empty), type(empty)):
                raise TypeError(f"{name} must be a {type(empty).__name__}")
        for name, row in found.get("EXPERIMENTS", {}).items():
            if not isinstance(row, dict):
                raise TypeError(f"EXPERIMENTS[{name!r}] must be a dict")
        return settings | found


def read_stats(folder, names):
    """Return {experiment: {seed: {column: array}}}, first the experiments with these names, in order."""
    stats = {name: {} for name in names}
    for path in sorted(folder.glob("*-seed*.csv")):
        name, _, seed = path.stem.rpartition("-seed")
        if not seed.isdecimal():  # not a file of a run
            continue
        columns = read_csv(path)
        if columns:
            stats.setdefault(name, {})[int(seed)] = columns
    for name, seeds in stats.items():
        stats[name] = dict(sorted(seeds.items()))
    return {name: seeds for name, seeds in stats.items() if seeds}


def read_csv(path):
    """Return {column: an array with a number per epoch}, or {} if no epoch was finished."""
    with damage_named(path):
        text = path.read_text(encoding="utf-8")
        # A run that was killed may have left half a line at the end.
        whole_lines = text[: text.rfind("\n") + 1].splitlines()
        rows = list(DictReader(whole_lines))
        if not rows:
            return {}
        if "epoch" not in rows[0]:
            raise ValueError("it has no column epoch")
        columns = {}
        for name in rows[0]:
            columns[name] = np.array([float(row[name]) for row in rows])
            if not np.isfinite(columns[name]).all():
                raise ValueError(f"{name} holds a number that is not finite")
        return columns


def read_arrays(path):
    """Return {name: array}, the content of an npz file, or {} if there is none."""
    if not path.exists():
        return {}
    with damage_named(path), np.load(path) as arrays:
        return dict(arrays)


def read_outputs(folder, stats):
    """Return {experiment: {seed: {name: array}}}. Adds the predictions, (N,), to the logits, (N, 10)."""
    outputs = {}
    for name, seeds in stats.items():
        for seed in seeds:
            path = folder / f"{name}-seed{seed}.npz"
            arrays = read_arrays(path)
            if arrays:
                with damage_named(path):
                    arrays["predictions"] = arrays["logits"].argmax(axis=1)
                outputs.setdefault(name, {})[seed] = arrays
    return outputs


def read_layers(folder, outputs):
    """Return {experiment: {name: array}}: what the layers did to one digit, for the first seed."""
    layers = {}
    for name, seeds in outputs.items():
        arrays = read_arrays(folder / f"{name}-seed{min(seeds)}.layers.npz")
        if arrays:
            layers[name] = arrays
    return layers


def read_code(folder):
    """Return {module: its source} of the modules in a folder."""
    code = {}
    for path in sorted(folder.glob("[!.]*.py")):
        with damage_named(path):
            source = path.read_text(encoding="utf-8-sig")  # some editors begin with a mark
            ast.parse(source)
        code[path.name] = source
    return code


def first_outputs(run):
    """Return {"experiment, seed k": its outputs}, for the first seed that has finished, which is the only one
    that pictures show."""
    return {f"{name}, seed {min(seeds)}": seeds[min(seeds)] for name, seeds in run.outputs.items()}


def is_finished(run, name):
    """Whether all trainings of an experiment have run through all of their epochs."""
    seeds = run.settings["SEEDS"]
    if name not in run.stats or not seeds:
        return False
    return all(finished_epochs(run, name, seed) >= all_epochs(run, name) for seed in seeds)


def finished_epochs(run, name, seed):
    """Return how many epochs of a training have finished."""
    columns = run.stats.get(name, {}).get(seed)
    return len(columns["epoch"]) if columns else 0


def all_epochs(run, name):
    """Return how many epochs each training of an experiment has."""
    row = run.settings["EXPERIMENTS"].get(name, {})
    return row.get("epochs", run.settings.get("EPOCHS", 0))


def run_folders(results_dir):
    """Return the folders of all runs, the oldest first. Before runs had numbers, they had dates."""
    dated = []
    numbered = []
    for folder in Path(results_dir).glob("[0-9]*"):
        if folder.name.isdecimal():
            numbered.append(folder)
        elif re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name):
            dated.append(folder)
    return sorted(dated) + sorted(numbered, key=lambda folder: int(folder.name))


def newest_run(results_dir, file="*-seed*.csv"):
    """Return the folder of the newest run that has a file of this name or pattern, such as
    "LeNet5-seed0.pt". By default, any run with a finished epoch will do. Raises FileNotFoundError if there
    is none."""
    for folder in reversed(run_folders(results_dir)):
        if any(folder.glob(file)):
            return folder
    what = "a finished epoch" if "*" in file else file
    raise FileNotFoundError(f"no run in {results_dir} has {what}: first run main.py")


def finished_runs(folders):
    """Return the Runs of these folders whose trainings have all finished, the newest first, one by one."""
    for folder in reversed(folders):
        try:
            run = read_run(folder)
        except (OSError, RunError):  # must not cost a later run its tables
            continue
        names = run.settings["EXPERIMENTS"]
        if names and all(is_finished(run, name) for name in names):
            yield run


def newest_finished_run(results_dir):
    """Return the newest Run with an experiment whose trainings have finished. Raises FileNotFoundError if
    there is none, and RunError that names a damaged file."""
    for folder in reversed(run_folders(results_dir)):
        run = read_run(folder)
        if any(is_finished(run, name) for name in run.settings["EXPERIMENTS"]):
            return run
    raise FileNotFoundError(f"no run in {Path(results_dir).absolute()} has finished: first run main.py")


def run_before(run):
    """Return the newest Run before this one that has finished, on the same data, or None."""
    folders = run_folders(run.folder.parent)
    if run.folder in folders:
        for before in finished_runs(folders[: folders.index(run.folder)]):
            if same_data(before, run):
                return before
    return None


def same_data(run, other):
    """Whether two runs had the same images, whatever the names of their folders."""
    checksum = run.settings["data"].get("checksum")
    other_checksum = other.settings["data"].get("checksum")
    if checksum and other_checksum:
        return checksum == other_checksum
    return run.data == other.data


# Tables ---------------------------------------------------------------------------------------------


# The columns of a progress line, 100 characters wide; a longer name is cut.
PROGRESS = "{:<22.22}  {:>4}  {:>7}  {:>14}  {:>8}  {:>16}  {:>8}  {:>7}"


def opening(data, folder, rehearsed, seconds, workers):
    """Return what is printed before the first epoch: what is trained, how long it takes, and headings.

    rehearsed: {experiment: a dict with its number of parameters}. seconds: roughly, of each training.
    """
    parameters = [f"{name} {facts['parameters']:,}" for name, facts in rehearsed.items()]
    lines = [data["description"]]
    lines += textwrap.wrap(f"Parameters: {'; '.join(parameters)}", WIDTH)
    trainings = "1 training" if len(seconds) == 1 else f"{len(seconds)} trainings"
    if workers > 1:
        trainings += f", {workers} at a time"
    all_seconds = max(max(seconds), sum(seconds) / workers)
    lines.append(f"{trainings}, about {duration(all_seconds)}")
    lines.append(f"The results go to {folder}")
    headings = ("experiment", "seed", "epoch", "training: loss", "accuracy", "validation: loss", "accuracy")
    lines += ["", PROGRESS.format(*headings, "seconds")]
    return "\n".join(lines)


def progress(name, seed, epochs, figures):
    """Return what is printed after an epoch; figures are those of a row of the CSV."""
    return PROGRESS.format(
        name,
        seed,
        f"{figures['epoch']}/{epochs}",
        f"{figures['train_loss']:.4f}",
        f"{figures['train_accuracy']:.2%}",
        f"{figures['val_loss']:.4f}",
        f"{figures['val_accuracy']:.2%}",
        f"{figures['seconds']:.1f}",
    )


def duration(seconds):
    """Return a rough duration as a string, such as "2 minutes"."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def summary(run):
    """Return what is printed at the end of a run, as lines: a table of the last epochs, and remarks."""
    lines = [f"Run {run.folder.name}, {run.settings.get('date', 'of an earlier version')}: {run.data}"]
    if run.seed_count > 1:
        lines.append(f"Last epoch, mean ± standard deviation (SD) of {run.seed_count} seeds")
    else:
        lines.append("Last epoch, 1 seed")
    gains = gains_over_baseline(run)
    lines += ["", *markdown(result_table(run, gains))]
    remarks = [*gain_note(run, gains), *training_remarks(run)]
    if remarks:
        lines += ["", *remarks]
    return lines


def result_table(run, gains):
    """Return the figures of the last epochs as rows of strings, the headings first."""
    deviation = " ± SD" if run.seed_count > 1 else ""
    table = [["experiment", f"train acc{deviation}", f"val loss{deviation}", f"val acc{deviation}"]]
    if gains:
        table[0].append("gain ± SE" if run.seed_count > 1 else "gain")
    table[0].append("seconds")
    for name, seeds in run.stats.items():
        row = [name, cell(seeds, "train_accuracy"), cell(seeds, "val_loss"), cell(seeds, "val_accuracy")]
        if gains:
            row.append(gains.get(name, ""))
        seconds = [columns["seconds"].sum() for columns in seeds.values() if "seconds" in columns]
        row.append(f"{np.mean(seconds):.0f}" if seconds else "")
        table.append(row)
    return table


def gains_over_baseline(run):
    """Return {experiment: gain}. There is none unless both it and BASELINE have finished."""
    baseline = run.settings.get("BASELINE")
    gains = {}
    if is_finished(run, baseline):
        for name, seeds in run.stats.items():
            if name != baseline and is_finished(run, name):
                gains[name] = change_of(run.stats[baseline], seeds, "val_accuracy")
    return gains


def gain_note(run, gains):
    """Return a line that says what the gain is, or why there is none."""
    baseline = run.settings.get("BASELINE")
    if gains:
        error = " ± standard error (SE)" if run.seed_count > 1 else ""
        return [f"gain: validation accuracy over {baseline}, in percentage points{error}"]
    if len(run.settings["EXPERIMENTS"]) < 2:
        return []
    if baseline not in run.settings["EXPERIMENTS"]:
        return [f"No gain is given: EXPERIMENTS has no row with the name of BASELINE, {baseline!r}"]
    return ["No gain is given: it needs BASELINE and another experiment, both finished"]


def training_remarks(run):
    """Return a line for each training that has not finished, or has not learned."""
    lines = []
    for name, row in run.settings["EXPERIMENTS"].items():
        for seed in run.settings["SEEDS"]:
            epochs = finished_epochs(run, name, seed)
            if epochs < all_epochs(run, name):
                lines.append(f"Not finished: {name}, seed {seed}: {epochs} of {all_epochs(run, name)} epochs")
            elif has_learned_nothing(run, name, seed):
                advice = f"try another learning_rate (now {row.get('learning_rate')}) or activation"
                lines.append(f"Warning: {name}, seed {seed} has learned nothing: {advice}")
    return lines


def has_learned_nothing(run, name, seed):
    """Whether a training is still no better than guessing, or predicts the same digit for all images."""
    columns = run.stats.get(name, {}).get(seed, {})
    losses = columns.get("val_loss", [0])
    accuracies = columns.get("val_accuracy", [1])
    if losses[-1] > 0.95 * LOSS_OF_GUESSING and accuracies[-1] < 0.5:
        return True
    outputs = run.outputs.get(name, {}).get(seed)
    if not outputs:
        return False
    return len(set(outputs["predictions"])) == 1 < len(set(outputs["labels"]))


def cell(seeds, column, epoch=-1):
    """Return a figure of an epoch as a string, with "± standard deviation" if there are several seeds."""
    values = [columns[column][epoch] for columns in seeds.values() if column in columns]
    if not values:
        return ""
    if column.endswith("accuracy"):
        return mean_and_deviation(100 * np.array(values), ".2f") + "%"
    return mean_and_deviation(values, ".4f")


def mean_and_deviation(values, form):
    """Return the mean in this format, with "± standard deviation" if there are several values."""
    text = f"{np.mean(values):{form}}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1):{form}}"
    return text


def change_of(old_seeds, new_seeds, column):
    """Return the change of a last figure, with "± its standard error" if there are several seeds. Accuracies
    are in percentage points."""
    old = np.array([columns[column][-1] for columns in old_seeds.values() if column in columns])
    new = np.array([columns[column][-1] for columns in new_seeds.values() if column in columns])
    if not len(old) or not len(new):
        return ""
    form = ".4f"
    if column.endswith("accuracy"):
        old = 100 * old
        new = 100 * new
        form = ".2f"
    text = f"{new.mean() - old.mean():+{form}}"
    if min(len(old), len(new)) > 1:
        standard_error = math.sqrt(old.var(ddof=1) / len(old) + new.var(ddof=1) / len(new))
        text += f" ± {standard_error:{form}}"
    return text


def details(run):
    """Return what summary.md holds beside the summary, as lines: layers and epochs of each experiment."""
    lines = []
    for name, seeds in run.stats.items():
        if name in run.settings["layers"]:
            lines += ["", f"## {name}, its layers", "", *markdown(layer_table(run, name))]
        lines += ["", f"## {name}, epoch by epoch", "", *markdown(epoch_table(seeds))]
    return lines


def layer_table(run, name):
    """Return the layers of a model in the order of their use, as rows of strings."""
    table = [["layer", "kind", "output", "parameters"]]
    for layer in run.settings["layers"][name]:
        output = " x ".join(str(size) for size in layer["output"])
        table.append([layer["name"], layer["kind"], output, f"{layer['parameters']:,}"])
    table.append(["total", "", "", f"{run.settings['parameters'][name]:,}"])
    return table


def epoch_table(seeds):
    """Return the figures of every epoch that all seeds have finished, as rows of strings."""
    table = [["epoch", *HEADINGS.values()]]
    epochs = min(len(columns["epoch"]) for columns in seeds.values())
    for epoch in range(epochs):
        figures = [cell(seeds, column, epoch) for column in HEADINGS]
        table.append([str(epoch + 1), *figures])
    return table


def markdown(table):
    """Return the lines of a table, given as rows of strings; the first row holds the headings."""
    widths = [max(len(text) for text in column) for column in zip(*table)]
    lines = []
    for row in [table[0], ["-" * width for width in widths], *table[1:]]:
        cells = [text.ljust(width) for text, width in zip(row, widths)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


# What did my edit do? -------------------------------------------------------------------------------


# These settings change no figure. (Whether the data differ shows in their checksum.)
WITHOUT_EFFECT = ("WORKERS", "BASELINE", "DATA_DIR", "RESULTS_DIR", "DIGITS_DIR")


@dataclass(frozen=True)
class Edit:
    """What differs between two runs."""

    general: list  # what may concern all experiments: constants, data, code, versions
    rows: dict  # {experiment: a list of what differs in its row}
    experiments: list  # those that it has added or changed, and that have finished
    unfinished: list  # those that it may have changed, but that have not finished


def find_edit(before, after):
    """Return the Edit that led from one run to another."""
    general = []
    for name, values in constant_changes(before.settings, after.settings).items():
        general.append(f"{name} {values}")
    if not same_data(before, after):
        general.append(f"data: {before.data} -> {after.data}")
    general += code_changes(before.code, after.code)
    rows = row_changes(before.settings, after.settings)
    experiments = []
    unfinished = []
    for name in after.settings["EXPERIMENTS"]:
        is_new = name not in before.settings["EXPERIMENTS"]
        if not is_finished(after, name) or not (is_new or is_finished(before, name)):
            unfinished.append(name)
        elif name in rows or (general and not same_results(before.stats.get(name), after.stats[name])):
            experiments.append(name)
    return Edit(general, rows, experiments, unfinished)


def constant_changes(before, after):
    """Return {name: "old -> new"} for the constants that differ between two runs, and the versions."""
    changes = {}
    for name in before:
        is_constant = name.isupper() and name != "EXPERIMENTS" and name not in WITHOUT_EFFECT
        if name in after and (is_constant or name == "versions"):
            changes |= setting_changes(name, before[name], after[name])
    return changes


def row_changes(before, after):
    """Return {experiment: what differs in its row}, a list that is empty if all of it follows from a changed
    constant, which is named elsewhere."""
    constants = set()
    for name, values in constant_changes(before, after).items():
        constants.add((last_part(name).lower(), values))
    rows = {name: ["removed"] for name in before["EXPERIMENTS"] if name not in after["EXPERIMENTS"]}
    for name, new_row in after["EXPERIMENTS"].items():
        if name not in before["EXPERIMENTS"]:
            rows[name] = ["new"]
            continue
        old_row = before["EXPERIMENTS"][name]
        changes = {}
        for setting in new_row:
            if setting in old_row:
                changes |= setting_changes(setting, old_row[setting], new_row[setting])
        if changes:
            rows[name] = []
        for setting, values in changes.items():
            if (last_part(setting), values) not in constants:
                rows[name].append(f"{setting} {values}")
    return rows


def last_part(name):
    """Return "rotation" of "transform.rotation"."""
    return name.rpartition(".")[2]


def setting_changes(name, before, after):
    """Return {name: "old -> new"} if a value differs. Of a dict with the same keys only the values that
    differ, as {"name.key": "old -> new"}."""
    if before == after:
        return {}
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        found = {}
        for key in before:
            found |= setting_changes(f"{name}.{key}", before[key], after[key])
        return found
    return {name: f"{setting_text(before)} -> {setting_text(after)}"}


def setting_text(value):
    """Return a value of settings.json as it might stand in main.py."""
    if isinstance(value, dict) and "class" in value:
        arguments = [f"{name}={each!r}" for name, each in value.items() if name != "class"]
        return f"{value['class']}({', '.join(arguments)})"
    return str(value)


def code_changes(before, after):
    """Return what differs between the modules of two runs, as a list, besides the settings in main.py."""
    changes = []
    if not before or not after:  # earlier versions kept no copy of the code
        return changes
    for module in sorted(before | after):
        if module not in before or module not in after:
            changes.append(f"{module}: {'new' if module in after else 'removed'}")
        else:
            change = module_change(module, before, after)
            if change:
                changes.append(change)
    return changes


def module_change(module, before, after):
    """Return what differs in a module between two codes, {module: its source}; "" if nothing does, or if one
    of them lacks it."""
    if module not in before or module not in after:
        return ""
    old_lines = code_lines(module, before[module])
    new_lines = code_lines(module, after[module])
    changed = []
    for line in difflib.unified_diff(old_lines, new_lines, n=0, lineterm=""):
        if line[0] in "+-" and line[:3] not in ("+++", "---"):
            changed.append(line)
    return f"{module}: {lines_text(changed)}" if changed else ""


def code_lines(module, source):
    """Return the lines of a module without comments and, if it is main.py, without its settings."""
    tree = ast.parse(source)
    if module == "main.py":
        tree.body = [statement for statement in tree.body if not is_setting(statement)]
    return ast.unparse(tree).splitlines()


def is_setting(statement):
    """Whether a statement assigns a constant, whose name is in capitals."""
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]).isupper()


def lines_text(changed):
    """Return changed lines, "-old" and "+new", as one text: a single one in full, else their number."""
    if len(changed) == 1:
        return f"{changed[0][0]} {changed[0][1:].strip()}"
    if [line[0] for line in changed] != ["-", "+"]:
        return f"{len(changed)} lines differ"
    old, new = (line[1:].strip() for line in changed)
    same = os.path.commonprefix([old, new]).rfind(" ") + 1  # whole words
    return f"{old} -> {new[same:]}"


def same_results(old_seeds, new_seeds):
    """Whether an experiment has the same losses and accuracies in two runs, to the last digit."""
    if old_seeds is None or old_seeds.keys() != new_seeds.keys():
        return False
    for seed in new_seeds:
        for column in HEADINGS:
            if not np.array_equal(old_seeds[seed].get(column), new_seeds[seed].get(column)):
                return False
    return True


def edit_lines(run):
    """Return what changed since the run before and what it did, as lines, or [] if there is none."""
    if run.edit is None:
        return []
    edit = run.edit
    before = run.before
    if not edit.general and not edit.rows:
        compared = "settings, code and data" if before.code and run.code else "settings and data"
        return [f"Nothing has changed since run {before.folder.name}: the same {compared}"]
    lines = [f"What has changed since run {before.folder.name}:", ""]
    lines += [f"* {change}" for change in edit.general]
    for name, changes in edit.rows.items():
        if changes:
            lines.append(f"* {name}: {', '.join(changes)}")
    if edit.experiments:
        lines += ["", *markdown(edit_table(run)), "", "Changes in accuracy are in percentage points"]
        if min(run.seed_count, before.seed_count) > 1:
            lines[-1] += " ± standard error (SE)"
    if edit.unfinished:
        lines += ["", f"Not compared, since not finished: {', '.join(edit.unfinished)}"]
    elif not edit.experiments:
        lines += ["", "This changed no loss and no accuracy"]
    return lines


def edit_table(run):
    """Return the last figures of the changed experiments before and after an edit, as rows of strings."""
    deviation = " ± SD" if max(run.seed_count, run.before.seed_count) > 1 else ""
    error = " ± SE" if min(run.seed_count, run.before.seed_count) > 1 else ""
    headings = ["experiment", "run", f"val acc{deviation}", f"change{error}"]
    table = [[*headings, f"val loss{deviation}", f"change{error}"]]
    for name in run.edit.experiments:
        old = run.before.stats.get(name)
        new = run.stats[name]
        accuracy = loss = ""
        if old:
            number = run.before.folder.name
            table.append([name, number, cell(old, "val_accuracy"), "", cell(old, "val_loss"), ""])
            accuracy = change_of(old, new, "val_accuracy")
            loss = change_of(old, new, "val_loss")
        number = run.folder.name
        table.append([name, number, cell(new, "val_accuracy"), accuracy, cell(new, "val_loss"), loss])
    return table


# Curves ---------------------------------------------------------------------------------------------


def new_figure(width, height, title):
    """Return an empty Figure, its size in inches."""
    import matplotlib.figure  # takes 0.4 s, for which the trainings need not wait

    matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of an experiment is just a $
    figure = matplotlib.figure.Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def plot_experiment(run, name):
    """Return a Figure with the four curves of one experiment and its learning rate."""
    seeds = run.stats[name]
    figure = new_figure(8.6, 5.6, f"{name}\n{run.heading}")
    panels = figure.subplot_mosaic([["loss", "accuracy"], ["rate", "rate"]], height_ratios=[4, 1])
    for quantity in ("loss", "accuracy"):
        axes = panels[quantity]
        for part, color in zip(("train", "val"), COLORS):
            column = f"{part}_{quantity}"
            look = {"color": color, "marker": "o", "label": f"{HEADINGS[column]} {cell(seeds, column)}"}
            draw_curve(axes, seeds, column, look)
        finish_axes(axes, quantity)
        axes.legend(fontsize=8)
    steps, rates = learning_rates(run, name)
    panels["rate"].plot(steps, rates, color="gray", linewidth=1)
    panels["rate"].set(xlabel="epoch", ylabel="learning rate")
    panels["rate"].set_ylim(bottom=0)
    panels["rate"].grid(alpha=0.3)
    return figure


def learning_rates(run, name):
    """Return places, in epochs, and learning rates there: of every step, or of the end of each epoch if
    the training has not finished."""
    longest = max(run.stats[name].values(), key=lambda columns: len(columns["epoch"]))
    for outputs in run.outputs.get(name, {}).values():
        if "learning_rates" in outputs:
            rates = outputs["learning_rates"]
            return np.linspace(0, len(longest["epoch"]), len(rates)), rates
    return longest["epoch"], longest.get("learning_rate", np.full(len(longest["epoch"]), np.nan))


def plot_comparison(run):
    """Return a Figure with the curves of all experiments."""
    if not run.stats:
        return None
    looks = looks_of(run.stats)
    curves = [labelled_curve(name, seeds, "-", looks[name]) for name, seeds in run.stats.items()]
    return plot_panels(run.heading, curves)


def plot_edit(run):
    """Return a Figure with the curves of the experiments that an edit has changed, before and after it."""
    if run.edit is None or not run.edit.experiments:
        return None
    looks = looks_of(run.stats)
    curves = []
    title = [run.heading, *run.edit.general]
    for name in run.edit.experiments:
        old = run.before.stats.get(name)
        new = run.stats[name]
        effects = list(run.edit.rows.get(name, []))
        if old:
            look = {"markerfacecolor": "white", **looks[name]}
            curves.append(labelled_curve(f"{name}, run {run.before.folder.name}", old, "--", look))
            effects.append(f"validation accuracy {change_of(old, new, 'val_accuracy')} points")
        curves.append(labelled_curve(f"{name}, run {run.folder.name}", new, "-", looks[name]))
        title.append(f"{name}: {', '.join(effects)}")
    lines = []
    for line in title:
        lines += textwrap.wrap(line, WIDTH)
    return plot_panels("\n".join(lines), curves)


def labelled_curve(name, seeds, linestyle, look):
    """Return a pair for `plot_panels`: the seeds, and arguments of axes.plot."""
    label = f"{name}  {cell(seeds, 'val_accuracy')}"
    return seeds, {"label": label, "linestyle": linestyle, **look}


def looks_of(names):
    """Return {name: color and marker}. Rows of a sweep, whose names differ in a number, get shades in
    the order of that number."""
    looks = {}
    for index, name in enumerate(names):
        color = COLORS[index % len(COLORS)]
        marker = MARKERS[index // len(COLORS) % len(MARKERS)]
        looks[name] = {"color": color, "marker": marker}
    number = r"\d+(?:\.\d+)?(?:e-?\d+)?"
    sweeps = {}
    for name in names:
        sweeps.setdefault(re.sub(number, "#", name), []).append(name)
    for sweep in sweeps.values():
        if len(sweep) > 2:
            from matplotlib import colormaps

            sweep.sort(key=lambda name: [float(text) for text in re.findall(number, name)])
            for name, shade in zip(sweep, np.linspace(0, 0.9, len(sweep))):
                looks[name] = {"color": colormaps["viridis"](shade), "marker": "o"}
    return looks


def plot_panels(title, curves):
    """Return a Figure with four panels: loss and accuracy, training and validation. The two of a quantity
    have the same scale. curves: a list of what `labelled_curve` returns."""
    longest = max(len(look["label"]) for _, look in curves)
    columns = max(1, min(3, 115 // (longest + 8)))  # of the legend: 115 characters fit side by side
    rows = math.ceil(len(curves) / columns)
    figure = new_figure(10, 7.5 + 0.2 * (rows + title.count("\n")), title)
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for axes, column in zip(panels.flat, ("train_loss", "val_loss", "train_accuracy", "val_accuracy")):
        for seeds, look in curves:
            draw_curve(axes, seeds, column, look)
        axes.set_title(HEADINGS[column])
        finish_axes(axes, column.partition("_")[2])
        axes.label_outer()
    figure.legend(
        handles=panels[0, 0].lines[: len(curves)], loc="outside lower center", ncols=columns, fontsize=9
    )
    return figure


def draw_curve(axes, seeds, column, look):
    """Draw the mean of the seeds as a line and their range as a band."""
    curves = [as_drawn(columns[column], column) for columns in seeds.values() if column in columns]
    mean = []
    low = []
    high = []
    for epoch in range(max((len(curve) for curve in curves), default=0)):
        # An interrupted training has no figures of the later epochs.
        values = [curve[epoch] for curve in curves if len(curve) > epoch]
        mean.append(np.mean(values))
        low.append(min(values))
        high.append(max(values))
    epochs = range(1, len(mean) + 1)
    (line,) = axes.plot(epochs, mean, markersize=3, linewidth=1.3, **look)
    if len(seeds) > 1:
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=1.5)


# The axis of the accuracy shows errors, in percent, on a logarithmic scale, upside down and with labels
# that say accuracy. That spreads out 98 to 99.9%. Everything from 99.99% is drawn there.
LEAST_ERROR = 0.01


def as_drawn(values, column):
    """Return losses as they are, and accuracies as the errors that are drawn in their place."""
    if column.endswith("accuracy"):
        return np.maximum(100 - 100 * values, LEAST_ERROR)
    return values


def finish_axes(axes, quantity):
    """Give axes that hold their curves of a loss or an accuracy names, units, scales and ticks."""
    from matplotlib.ticker import AutoLocator, LogLocator, MaxNLocator

    epochs = max((len(line.get_xdata()) for line in axes.lines), default=0)
    if epochs == 0:  # an older run that lacks the column
        axes.set_axis_off()
        return
    axes.set_xlabel("epoch")
    axes.set_xlim(0.5, epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_yscale("log")
    locator = LogLocator(subs=(1, 2, 5))
    low, high = sorted(axes.get_ylim())
    if sum(low <= tick <= high for tick in locator.tick_values(low, high)) < 3:
        locator = AutoLocator()
    axes.yaxis.set_major_locator(locator)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if quantity == "loss":
        axes.set_ylabel("loss per image, logarithmic")
        axes.yaxis.set_major_formatter("{x:g}")
        mark_guessing(axes, LOSS_OF_GUESSING)
    else:
        axes.set_ylabel("accuracy in %, logarithmic in the error")
        axes.yaxis.set_major_formatter(accuracy_label)
        axes.yaxis.set_inverted(True)
        mark_guessing(axes, 90)


def accuracy_label(error, position):
    """Return what an axis of errors says at a tick."""
    at_least = "\u2265 " if error <= LEAST_ERROR else ""
    return f"{at_least}{100 - error:g}"


def mark_guessing(axes, value):
    """Draw a dotted line at the value of guessing, if a curve comes near it."""
    highest = max((max(line.get_ydata(), default=0) for line in axes.lines), default=0)
    if highest > 0.8 * value:
        axes.axhline(value, color="gray", linestyle=":", linewidth=1)
        axes.annotate(
            "guessing",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 4),
            textcoords="offset points",
            ha="right",
            fontsize=7,
        )


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
    count, height, width = images.shape
    rows = math.ceil(count / columns)
    places = np.full((rows * columns, height + 1, width + 1), np.nan)  # drawn white
    places[:count, :height, :width] = images
    places = places.reshape(rows, columns, height + 1, width + 1)
    return places.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1))


def softmax(logits):
    """Return probabilities in double precision, which keeps apart what is almost 1."""
    powers = np.exp(logits.astype(float) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def confidence(probabilities):
    """Return the largest probability in percent, rounded down: 99.99% rather than 100%."""
    return f"{min(math.floor(1e4 * probabilities.max()), 9999) / 100:.2f}%"


def plot_images(run):
    """Return a Figure of some training images and, for each experiment with a transform, of random
    versions of them."""
    if not run.images:
        return None
    originals = run.images["originals"]
    names = run.images["names"]
    columns = len(originals)
    sheets = {"as they are": sheet(originals, columns)}
    for name, versions in zip(names, run.images["versions"]):
        title = f"{name}: {len(versions)} random versions of each"
        sheets[title] = sheet(versions.reshape(-1, 28, 28), columns)
    heights = [len(image) for image in sheets.values()]
    figure = new_figure(7, 1.2 + sum(heights) / 32, f"What is trained on\n{run.data}")
    panels = figure.subplots(len(sheets), 1, height_ratios=heights, squeeze=False).flatten()
    for axes, (title, image) in zip(panels, sheets.items()):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure


STRIPS = 2  # rows of mistakes for each experiment
IN_A_STRIP = 12


def plot_mistakes(run):
    """Return a Figure with the misclassified images, those of highest confidence first."""
    if not run.outputs:
        return None
    title = f"Mistakes, the most confident first: label \u2192 prediction\n{run.data}"
    count = STRIPS * len(run.outputs)
    figure, panels = bare_panels(title, count=count, columns=1, width=9, height=0.95)
    for axes, (training, outputs) in zip(panels.reshape(-1, STRIPS), first_outputs(run).items()):
        wrong = outputs["predictions"] != outputs["labels"]
        probabilities = softmax(outputs["logits"][wrong])
        labels = outputs["labels"][wrong]
        worst = np.argsort(-probabilities.max(axis=1), kind="stable")[: STRIPS * IN_A_STRIP]
        heading = f"{training}: {wrong.sum():,} mistakes"
        if len(worst):
            highest = confidence(probabilities[worst[0]])
            lowest = confidence(probabilities[worst[-1]])
            heading += f"; confidence of these {highest} to {lowest}"
        axes[0].set_title(heading, fontsize=9)
        for strip in range(STRIPS):
            shown = worst[strip * IN_A_STRIP : (strip + 1) * IN_A_STRIP]
            texts = [f"{labels[each]} \u2192 {probabilities[each].argmax()}" for each in shown]
            draw_strip(axes[strip], outputs["mistakes"][shown], texts)
    return figure


def draw_strip(axes, images, texts):
    """Draw up to IN_A_STRIP images (N, 28, 28) side by side, each above its text."""
    strip = np.full((IN_A_STRIP, 28, 28), np.nan)
    strip[: len(images)] = images
    axes.imshow(sheet(strip, IN_A_STRIP), cmap="gray", vmin=0, vmax=255)
    middles = 14 + 29 * np.arange(len(texts))
    axes.set_xticks(middles, texts)
    axes.tick_params(length=0)


def plot_confusion(run):
    """Return a Figure that counts the predictions for each label; only mistakes are coloured."""
    if not run.outputs:
        return None
    title = f"Confusion matrices\n{run.data}"
    figure, panels = bare_panels(title, count=len(run.outputs), columns=3, width=3.6, height=3.95)
    matrices = {}
    for training, outputs in first_outputs(run).items():
        pairs = 10 * outputs["labels"] + outputs["predictions"]
        matrices[training] = np.bincount(pairs, minlength=100).reshape(10, 10)
    off_diagonal = 1 - np.eye(10, dtype=int)
    most = max((matrix * off_diagonal).max() for matrix in matrices.values())
    for axes, (training, matrix) in zip(panels, matrices.items()):
        mistakes = matrix * off_diagonal
        axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=1.5 * max(most, 1))  # dark text stays readable
        for (label, prediction), count in np.ndenumerate(matrix):
            weight = "bold" if label == prediction else "normal"
            axes.text(prediction, label, count or "", ha="center", va="center", fontsize=7, weight=weight)
        axes.set(xticks=range(10), yticks=range(10), ylabel="label")
        axes.set_xlabel(f"prediction\nmost frequent: {most_frequent(mistakes)}", fontsize=9)
        axes.set_title(training, fontsize=9)
    return figure


def most_frequent(mistakes):
    """Return the three pairs of label and prediction that account for most mistakes, as a string."""
    pairs = []
    for index in np.argsort(-mistakes, axis=None, kind="stable")[:3]:
        label, prediction = divmod(index, 10)
        if mistakes[label, prediction]:
            pairs.append(f"{label} \u2192 {prediction}: {mistakes[label, prediction]}")
    return ", ".join(pairs) or "no mistakes"


MAPS_IN_A_ROW = 8
MOST_MAPS = 64  # of a layer, so that no picture grows without bound
MOST_LAYERS = 20  # of a model


def plot_layers(run):
    """Return a Figure of one digit on its way through each model: what comes out of its layers."""
    if not run.layers:
        return None
    columns = min(len(run.layers), 4)
    rows = math.ceil(len(run.layers) / columns)
    height = max(sum(layer_heights(layers)) for layers in run.layers.values())
    title = f"One digit on its way through the layers\n{run.data}"
    figure = new_figure(4 * columns, 0.8 + (height + 0.5) * rows, title)
    parts = figure.subfigures(rows, columns, squeeze=False).flatten()
    for part, (name, layers) in zip(parts, run.layers.items()):
        heights = layer_heights(layers)
        shown = f"{name}, its first {MOST_LAYERS} layers" if len(layers) > MOST_LAYERS else name
        part.suptitle(shown, fontsize=10)
        panels = part.subplots(len(heights), 1, height_ratios=heights, squeeze=False).flatten()
        for axes, (layer, values) in zip(panels, layers.items()):
            draw_layer(axes, layer, values)
    return figure


def layer_heights(layers):
    """Return how high, in inches, each output of the first MOST_LAYERS layers is drawn."""
    heights = []
    for values in list(layers.values())[:MOST_LAYERS]:
        if values.ndim == 1:
            heights.append(0.5)
        else:
            rows = math.ceil(min(len(values), MOST_MAPS) / MAPS_IN_A_ROW)
            heights.append(0.3 + 0.5 * rows)
    return heights


def draw_layer(axes, layer, values):
    """Draw an output: maps (C, H, W) side by side, numbers (N,) as a strip, ten probabilities as bars."""
    axes.set(xticks=[], yticks=[], frame_on=False)
    shape = " x ".join(str(size) for size in values.shape)
    axes.set_title(f"{layer.removeprefix('layer ')}: {shape}", fontsize=8)
    if layer == "probabilities":
        axes.bar(range(10), values, color=COLORS[0])
        axes.set_xticks(range(10), range(10), fontsize=7)
        axes.set_ylim(0, 1)
    elif values.ndim == 1:
        axes.imshow(values[None], cmap="viridis", aspect="auto")
    elif layer == "filters":
        most = np.abs(values).max()
        axes.imshow(sheet(values[:MOST_MAPS], MAPS_IN_A_ROW), cmap="RdBu", vmin=-most, vmax=most)
        axes.set_title(f"filters of the first layer: {shape}; blue is positive, red negative", fontsize=8)
    else:
        axes.imshow(sheet(values[:MOST_MAPS], MAPS_IN_A_ROW), cmap="gray")


MOST_DIGITS = 500  # in one picture


def plot_digits(run):
    """Return a Figure of your own digits: as taken, as the models see them, and each model's answer."""
    if not run.digits:
        return None
    logits = {}
    for name, seeds in run.outputs.items():
        outputs = seeds[min(seeds)]
        if "digit_logits" in outputs:
            logits[name] = outputs["digit_logits"]
    return draw_digits(run.digits, logits)


def draw_digits(digits, logits):
    """Return a Figure of digits, see `dataset.read_digits`, with the answers of {model: logits (M, 10)}."""
    count = min(len(digits["names"]), MOST_DIGITS)
    title = f"My digits: the picture, and what the models see ({count} of {len(digits['names'])})"
    columns = 5 if count <= 30 else 10
    height = 1.7 + 0.12 * len(logits)  # inches; the second part for a line of text
    figure, panels = bare_panels(title, count, columns, width=2.4, height=height)
    for index, axes in enumerate(panels):
        seen = np.kron(digits["images"][index], np.ones((4, 4), dtype=np.uint8))  # as large as the picture
        seen = np.stack([seen, seen, seen], axis=2)
        axes.imshow(np.hstack([digits["originals"][index], seen]))
        axes.set_title(str(digits["names"][index])[:30], fontsize=8)
        answers = digit_answers(digits, logits, index)
        lines = [f"{model}: {answer}" for model, answer in answers.items()]
        axes.set_xlabel("\n".join(lines), fontsize=7)
        if any(answer.endswith("wrong") for answer in answers.values()):
            axes.xaxis.label.set_color(COLORS[1])
    return figure


def digit_answers(digits, logits, index):
    """Return {model: its answer to one digit, with its probability}, as strings. If the picture's name
    begins with the true digit, as 7.png or 7_a.jpg, the answer ends in "right" or "wrong"."""
    label = re.match(r"([0-9])(?![0-9])", str(digits["names"][index]))
    answers = {}
    for model, model_logits in logits.items():
        probabilities = softmax(model_logits[index])
        answer = probabilities.argmax()
        answers[model] = f"{answer} ({confidence(probabilities)})"
        if label:
            answers[model] += " right" if int(label[1]) == answer else " wrong"
    return answers


def digit_table(digits, logits):
    """Return the answers of all models to all digits as the lines of a table."""
    table = [["picture", *logits]]
    for index, name in enumerate(digits["names"]):
        table.append([str(name), *digit_answers(digits, logits, index).values()])
    return markdown(table)


# All together ---------------------------------------------------------------------------------------


# The pictures of a run, besides that of each experiment. No experiment can have one of these names.
PICTURES = {
    "edit": plot_edit,
    "comparison": plot_comparison,
    "images": plot_images,
    "mistakes": plot_mistakes,
    "confusion": plot_confusion,
    "layers": plot_layers,
    "my_digits": plot_digits,
}


def draw_run(folder):
    """Write summary.md and all pictures of a run into its folder. Return what to print about them."""
    run = read_run(folder)
    run = replace(run, before=run_before(run))
    lines = summary(run)
    edit = edit_lines(run)
    if edit:
        lines += ["", *edit]
    all_lines = [*lines, *details(run)]
    (run.folder / "summary.md").write_text("\n".join(all_lines) + "\n", encoding="utf-8")
    drawn = []
    for name, draw in PICTURES.items():
        figure = draw(run)
        if figure is not None:
            figure.savefig(run.folder / f"{name}.png")
            drawn.append(f"{name}.png")
    for name in run.stats:
        plot_experiment(run, name).savefig(run.folder / f"{name}.png")
    files = f"In {run.folder}: {', '.join(drawn)}, a picture of each experiment, summary.md"
    lines += ["", *textwrap.wrap(files, WIDTH, break_long_words=False)]
    return "\n".join(["", *lines])


def compare_runs(before_folder, after_folder):
    """Draw what an edit did beside the folders of two runs. Return what to print about it."""
    before = read_run(before_folder)
    after = replace(read_run(after_folder), before=before)
    lines = edit_lines(after)
    figure = plot_edit(after)
    if figure is not None:
        path = after.folder.parent / f"edit_{before.folder.name}_{after.folder.name}.png"
        figure.savefig(path)
        lines += ["", str(path)]
    return "\n".join(lines)


def find_folder(argument):
    """Return the folder of a run, given by its number in results/ or by its path. Raises FileNotFoundError
    if it has no finished epoch."""
    folder = Path("results") / argument if argument.isdecimal() else Path(argument)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run {folder}")
    if not any(folder.glob("*-seed*.csv")):
        raise FileNotFoundError(f"{folder} has no <experiment>-seed<k>.csv with a finished epoch")
    return folder


def main(arguments):
    """Draw the run with this number or path again, or compare two. Return the exit code."""
    if len(arguments) > 2 or any(argument.startswith("-") for argument in arguments):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        folders = [find_folder(argument) for argument in arguments] or [newest_run("results")]
        if len(folders) == 1:
            print(draw_run(folders[0]))
        else:
            print(compare_runs(*folders))
    except (OSError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def prepare_output():
    """Let a terminal that has no "±" print a "?" instead."""
    if sys.stdout:  # there is none without a console on Windows
        sys.stdout.reconfigure(errors="replace")


if __name__ == "__main__":
    prepare_output()
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
