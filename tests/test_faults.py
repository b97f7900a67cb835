"""Several trainings at once, and faults while they run: real signals, limits and files on real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import dataset
import main
import plot
from helpers import ENVIRONMENT, copy_project, edit, figures, make_row, own_lines, results_of, run

try:
    import resource
except ImportError:  # Windows
    resource = None

posix = pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no groups of processes")

FEW = "3000"  # held-out images of the sample's 4,000, so that an epoch is short
TWO_ROWS = '[Experiment("A", CustomMLP, 0.01), Experiment("B", CustomMLP, 0.02)]'

FORKING = ("main.py",)
# How main.py starts its workers on Windows and macOS.
SPAWNING = (
    "-c",
    "import runpy, sys, torch._dynamo; sys.argv = ['main.py']; sys.path.insert(0, '.'); "
    "sys.platform = 'darwin'; runpy.run_path('main.py', run_name='__main__')",
)


@pytest.fixture
def start(tmp_path):
    """A function that starts main.py with these constants, on the sample, in a group of
    processes of its own, as a shell does. What is left of the group at the end is killed."""
    processes = []

    def start(preexec_fn=None, command=FORKING, folder=tmp_path, **constants):
        copy_project(folder, **constants)
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
            preexec_fn=preexec_fn,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except AttributeError:
            process.kill()
        except ProcessLookupError:
            pass
        process.communicate()


def wait_for_epochs(process, count):
    """Read lines of progress until each of `count` trainings has finished an epoch."""
    seen = set()
    while len(seen) < count:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        if match := re.match(r"(\S+ +\d+) +\d+/", line):
            seen.add(match[1])


def assert_group_ends(process, seconds):
    """All processes of the group end within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a process is left behind")


# Several trainings at once --------------------------------------------------------------------------


# Rows of a caller, as those of report/study.py, which main.py does not have.
CALLER = """
import sys
import torch, torch._dynamo, main
from functools import partial
from main import Augmentation, CustomMLP, Experiment, LeNet5, RegularizedLeNet5

def compiled():
    return torch.compile(LeNet5(), backend="eager")

MOVED = Augmentation(rotation=8, shift=1.4, scaling=0.1, elastic=0.4)
FIXED = {"batch_size": 32, "device": "cpu", "optimizer": partial(torch.optim.SGD, momentum=0.9)}
EXPERIMENTS = [
    Experiment("short", CustomMLP, 0.01, epochs=3, **FIXED),
    Experiment("compiled", compiled, 0.02, epochs=2, **FIXED),
    Experiment("long", RegularizedLeNet5, 0.05, transform=MOVED, epochs=4, **FIXED),
]

if __name__ == "__main__":
    sys.platform = sys.argv[1]
    sys.exit(main.run(EXPERIMENTS, (0,)))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{way to start two workers: the folder of a run and what it printed}."""
    processes = {}
    for way, platform in (("forked", "linux"), ("spawned", "darwin")):
        folder = copy_project(tmp_path_factory.mktemp(way), WORKERS="2", VALIDATION_IMAGES=FEW)
        (folder / "caller.py").write_text(CALLER, encoding="utf-8")
        command = [sys.executable, folder / "caller.py", platform]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes[way] = folder, subprocess.Popen(command, env=ENVIRONMENT, encoding="utf-8", **pipes)
    found = {}
    for way, (folder, process) in processes.items():
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and own_lines(err) == [], err
        found[way] = results_of(folder), out
    return found


@pytest.fixture(scope="module")
def trained_here(tmp_path_factory):
    """The folder of the same trainings in this process, as with one worker."""
    caller = {"__name__": "caller"}
    exec(CALLER, caller)
    folder = tmp_path_factory.mktemp("here")
    train_set, test_set, _ = dataset.load_data(dataset.SAMPLE_DIR, validation_images=int(FEW))
    for experiment in caller["EXPERIMENTS"]:
        if experiment.name != "compiled":
            assert main.run_job(main.run_training, experiment, main.Data(train_set, test_set), 0, folder)
    return folder


@pytest.mark.parametrize("way", ["forked", "spawned"])
def test_figures_and_weights_do_not_depend_on_the_workers(trained, trained_here, way):
    folder, _ = trained[way]
    for name in ("short", "long"):
        assert figures(folder / f"{name}-seed0.csv") == figures(trained_here / f"{name}-seed0.csv")
        weights = torch.load(folder / f"{name}-seed0.pt", weights_only=True)
        expected = torch.load(trained_here / f"{name}-seed0.pt", weights_only=True)
        assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_the_longest_training_starts_first(trained):
    _, out = trained["forked"]
    lines = re.findall("^(short|compiled|long) +0 ", out, re.MULTILINE)
    others = [index for index, name in enumerate(lines) if name != "long"]
    assert lines.index("long") < others[-1]  # in the order of the table, both others would end before
    assert lines.count("long") == 4


def test_rows_that_cannot_reach_a_spawned_process_are_named(monkeypatch):
    rows = [
        make_row("fine", main.CustomMLP),
        make_row("mine", main.CustomMLP, transform=lambda images: images),
    ]
    monkeypatch.setattr(main, "WORKERS", 2)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(main.UserError, match="'mine'"):
        main.run_jobs(main.dry_run, [(row, None, 0, None) for row in rows])


# Faults ---------------------------------------------------------------------------------------------


@posix
def test_interrupted_runs_are_plotted_and_leave_no_process(start, tmp_path):
    """Ctrl-C with forked workers, SIGTERM with one worker, Ctrl-C with spawned workers."""
    processes = {}
    ways = (("forked", 2, FORKING), ("alone", 1, FORKING), ("spawned", 2, SPAWNING))
    for name, workers, command in ways:
        constants = {"EPOCHS": "1000", "WORKERS": str(workers), "EXPERIMENTS": TWO_ROWS}
        processes[name] = start(command=command, folder=tmp_path / name, **constants)
    for name, process in processes.items():
        wait_for_epochs(process, 1 if name == "alone" else 2)
        if name == "alone":
            process.send_signal(signal.SIGTERM)
        else:  # Ctrl-C in a terminal reaches the whole group, and here twice
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
            os.killpg(process.pid, signal.SIGINT)
    for name, process in processes.items():
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        assert_group_ends(process, 5)
        folder = results_of(tmp_path / name)
        assert len(own_lines(err)) == 1 and "Traceback" not in err
        check_interrupted(folder)


def check_interrupted(folder):
    """The finished epochs of a run are whole and drawn, the weights of the last one are there."""
    run = plot.read_run(folder)
    for path in folder.glob("*.csv"):
        text = path.read_text(encoding="utf-8")
        assert text.endswith("\n") and {line.count(",") for line in text.splitlines()} == {6}
    assert {path.stem for path in folder.glob("*.png")} == {*run.stats, "comparison"}
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    assert all(f"Not finished: {name}" in summary for name in run.stats)
    assert "No gain" in summary
    for name in run.stats:
        assert torch.load(folder / f"{name}-seed0.pt", weights_only=True)
    assert not list(folder.glob("*.part"))


@posix
def test_ctrl_c_before_the_first_epoch_leaves_nothing(start, tmp_path):
    process = start(EPOCHS="1000", WORKERS="2", EXPERIMENTS=TWO_ROWS)
    for line in process.stdout:
        if "Trying" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(own_lines(err)) == 1 and "Traceback" not in err
    assert_group_ends(process, 5)
    assert not (tmp_path / "results").exists()


@posix
def test_killed_parent_takes_its_trainings_with_it(start, tmp_path):
    process = start(EPOCHS="1000", WORKERS="2", EXPERIMENTS=TWO_ROWS)
    wait_for_epochs(process, 2)
    process.kill()
    process.wait()
    assert_group_ends(process, 5)
    assert len(plot.read_run(results_of(tmp_path)).stats) == 2


# A model in a folder of its own that breaks in its second epoch, long after the dry run.
BREAKING = """
import os
from installed import call
from model import LeNet5


class Breaking(LeNet5):
    steps = 0

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, images):
        self.steps += self.training
        if self.steps < 50:
            return super().forward(images)
        if self.fault == "is killed":
            os._exit(9)
        if self.fault == "raises":
            call(self.fail)
        return super().forward(images) * float("inf")

    def fail(self):
        try:
            self.fc1(None)  # the cause
        except TypeError as error:
            raise KeyError("my own fault") from error
"""
INSTALLED = "def call(function):\n    function()  # a line of installed code\n"


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """What a run printed in which all trainings but one break, each in another way, and its folder."""
    folder = tmp_path_factory.mktemp("broken")
    faults = ("raises", "explodes", "is killed")
    rows = [f'Experiment("{fault}", Breaking, 0.02, {{"fault": "{fault}"}})' for fault in faults]
    rows.append('Experiment("lasts", CustomMLP, 0.01, epochs=4)')
    copy_project(folder, EPOCHS="3", WORKERS="2", VALIDATION_IMAGES=FEW, EXPERIMENTS=f"[{', '.join(rows)}]")
    for name, source in {"models/breaking.py": BREAKING, ".venv/lib/installed.py": INSTALLED}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(source, encoding="utf-8")
    text = (folder / "main.py").read_text(encoding="utf-8")
    text = text.replace("import dataset\n", "import dataset\nfrom models.breaking import Breaking\n", 1)
    (folder / "main.py").write_text(text, encoding="utf-8")
    process = run(folder, "main.py", PYTHONPATH=str(folder / ".venv" / "lib"))
    assert process.returncode == 1, process.stderr
    return process.stderr, results_of(folder)


def test_trainings_that_fail_say_why_and_the_others_go_on(broken):
    err, folder = broken
    explodes, raises, killed = sorted(own_lines(err), key=lambda line: ("row" not in line, line))
    assert "'explodes', seed 0" in explodes and "learning_rate" in explodes
    assert "'raises', seed 0" in raises and "KeyError" in raises
    assert "WORKERS" in killed
    run = plot.read_run(folder)
    assert set(run.records) == {"lasts"} and len(run.stats["lasts"][0]["epoch"]) == 4
    assert set(run.stats) == {"raises", "explodes", "is killed", "lasts"}  # their finished epochs
    assert {path.stem for path in folder.glob("*.png")} >= {"lasts", "raises", "comparison", "mistakes"}


def test_a_mistake_of_ones_own_is_shown_with_the_lines_of_ones_own_files(broken):
    err, _ = broken
    for line in ("self.fc1(None)  # the cause", "raise KeyError", "call(self.fail)", "KeyError: "):
        assert err.count(line) == 1
    files = {Path(path) for path in re.findall('File "(.*?)", line', err)}
    assert {path.name for path in files} == {"main.py", "breaking.py"}  # and nothing of .venv or torch


def test_the_code_of_a_run_keeps_its_folders(broken):
    _, folder = broken
    code = {path.relative_to(folder / "code").as_posix() for path in folder.glob("code/**/*.*")}
    assert code == {"main.py", "dataset.py", "model.py", "plot.py", "models/breaking.py"}


@posix
def test_an_edited_main_and_a_closed_pipe_change_nothing_in_a_run(start, tmp_path):
    process = start(EPOCHS="2", WORKERS="1", VALIDATION_IMAGES=FEW, EXPERIMENTS=TWO_ROWS)
    for line in process.stdout:
        if "Reading" in line:
            break
    before = (tmp_path / "main.py").read_bytes()
    edit(tmp_path / "main.py", EPOCHS="7", EXPERIMENTS="nonsense")
    wait_for_epochs(process, 2)
    process.stdout.close()  # as a reader that has ended, before the table is printed
    process.wait(timeout=60)
    assert process.returncode != 0
    run = plot.read_run(results_of(tmp_path))
    assert [len(run.stats[name][0]["epoch"]) for name in "AB"] == [2, 2]
    assert (run.folder / "code" / "main.py").read_bytes() == before
    assert {path.stem for path in run.folder.glob("*.png")} >= {"A", "B", "comparison", "mistakes"}


@pytest.mark.skipif(resource is None, reason="Windows has no limits of this kind")
def test_full_disk_is_one_line_and_keeps_the_figures(start, tmp_path):
    limit = 60_000  # bytes of a file: enough for the code, too few for weights and plots

    def fill_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(fill_disk, EPOCHS="1", WORKERS="1", EXPERIMENTS=TWO_ROWS)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2  # the dry run shows it
    first, second, _ = sorted(own_lines(err))
    assert "'A'" in first and "'B'" in second and "Traceback" not in err
    assert not (tmp_path / "results").exists()
