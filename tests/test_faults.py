"""Faults while the program runs: real signals, limits and files on real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import plot
from helpers import ENVIRONMENT, copy_project, edit, own_lines, results_of, run

try:
    import resource
except ImportError:  # Windows
    resource = None

posix = pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no groups of processes")

TWO_ROWS = '{"A": Experiment(CustomMLP, 0.01), "B": Experiment(CustomMLP, 0.02)}'


@pytest.fixture
def start(tmp_path):
    """A function that starts main.py with these constants, on the sample, in a group of
    processes of its own, as a shell does. What is left of the group at the end is killed."""
    processes = []

    def start(preexec_fn=None, command=("main.py",), **constants):
        folder = copy_project(tmp_path, **constants)
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


# How main.py starts its trainings on Windows and macOS.
SPAWNING = (
    "-c",
    "import runpy, sys, torch._dynamo; sys.argv = ['main.py']; sys.path.insert(0, '.'); "
    "sys.platform = 'darwin'; runpy.run_path('main.py', run_name='__main__')",
)


@posix
@pytest.mark.parametrize(
    "name, workers, command",
    [
        ("SIGINT", 2, ["main.py"]),
        ("SIGTERM", 2, ["main.py"]),
        ("SIGINT", 1, ["main.py"]),
        ("SIGINT", 2, SPAWNING),
    ],
    ids=["Ctrl-C", "SIGTERM", "Ctrl-C, one worker", "Ctrl-C, spawned"],
)
def test_interrupted_run_is_plotted_and_leaves_no_process(start, tmp_path, name, workers, command):
    process = start(command=command, EPOCHS="1000", WORKERS=str(workers), EXPERIMENTS=TWO_ROWS)
    wait_for_epochs(process, workers)
    if name == "SIGINT":  # Ctrl-C in a terminal reaches the whole group, and here twice
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert_group_ends(process, 5)
    folder = results_of(tmp_path)
    (line,) = own_lines(err)
    assert "Traceback" not in err and str(Path("results") / folder.name) in line
    run = plot.read_run(folder)
    for path in folder.glob("*.csv"):
        text = path.read_text(encoding="utf-8")
        assert text.endswith("\n") and {line.count(",") for line in text.splitlines()} == {6}
    assert {path.stem for path in folder.glob("*.png")} == {*run.stats, "comparison", "images"}
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    assert all(f"Not finished: {name}" in summary for name in run.stats)
    assert "No gain" in summary
    for name in run.stats:  # the weights of the last epoch are there, and whole
        assert torch.load(folder / f"{name}-seed0.pt", weights_only=True)
    assert not list(folder.glob("*.part"))


@posix
def test_ctrl_c_while_processes_start_is_one_line(start, tmp_path):
    process = start(command=SPAWNING, EPOCHS="1000", WORKERS="2", EXPERIMENTS=TWO_ROWS)
    for line in process.stdout:
        if "at a time" in line:
            break
    time.sleep(1.5)  # the new interpreters import their modules
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(own_lines(err)) == 1 and "Traceback" not in err
    assert_group_ends(process, 5)


@posix
def test_killed_parent_takes_its_trainings_with_it(start, tmp_path):
    process = start(EPOCHS="1000", WORKERS="2", EXPERIMENTS=TWO_ROWS)
    wait_for_epochs(process, 2)
    process.kill()
    process.wait()
    assert_group_ends(process, 5)
    folder = results_of(tmp_path)
    assert len(plot.read_run(folder).stats) == 2
    assert plot.main([str(folder)]) == 0


# A model that breaks after the rehearsal, as soon as it is trained in a process of its own.
BREAKING = """

import multiprocessing, os


class Breaking(LeNet5):
    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, images):
        logits = super().forward(images)
        if multiprocessing.parent_process():
            if self.fault == "killed":
                os._exit(9)  # as a process that is killed, without a word
            elif self.fault == "raises":
                raise RuntimeError("my own fault")
            logits = logits * float("inf")
        return logits
"""


def test_trainings_that_fail_take_no_other_with_them(tmp_path):
    faults = {
        "killed": ["died"],
        "explodes": ["exploded", "learning_rate"],
        "raises": ["my own fault"],
    }
    rows = [f'"{fault}": Experiment(Breaking, 0.02, {{"fault": "{fault}"}})' for fault in faults]
    rows = f'{{{", ".join(rows)}, "lasts": Experiment(CustomMLP, 0.01)}}'
    folder = copy_project(tmp_path, EPOCHS="1", WORKERS="2", EXPERIMENTS=rows)
    with open(folder / "model.py", "a", encoding="utf-8") as file:
        file.write(BREAKING)
    text = (folder / "main.py").read_text(encoding="utf-8")
    text = text.replace("RegularizedLeNet5\n\n", "RegularizedLeNet5, Breaking\n\n", 1)
    (folder / "main.py").write_text(text, encoding="utf-8")
    process = run(folder, "main.py")
    assert process.returncode == 1
    errors = own_lines(process.stderr)
    lines = {line.split(": ")[1].split(",")[0]: line for line in errors}
    assert len(lines) == len(errors) and set(lines) == set(faults)
    folder = results_of(folder)
    for fault, words in faults.items():
        assert all(word in lines[fault] for word in ("seed 0", *words))
        assert f"{fault}, seed 0" in (folder / "summary.md").read_text(encoding="utf-8")
    assert set(plot.read_run(folder).stats) == {"lasts"}
    assert {path.stem for path in folder.glob("*.png")} >= {"lasts", "comparison", "mistakes"}


def test_editing_main_while_it_runs_changes_nothing_in_that_run(start, tmp_path):
    process = start(EPOCHS="2", WORKERS="1", EXPERIMENTS=TWO_ROWS)
    wait_for_epochs(process, 1)
    edit(tmp_path / "main.py", EPOCHS="7", EXPERIMENTS="nonsense")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    run = plot.read_run(results_of(tmp_path))
    assert [len(run.stats[name][0]["epoch"]) for name in "AB"] == [2, 2]


@pytest.mark.skipif(resource is None, reason="Windows has no limits of this kind")
def test_full_disk_is_one_line_and_keeps_the_figures(start, tmp_path):
    limit = 60_000  # bytes of a file: enough for the figures and the code, too few for weights and plots

    def fill_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(fill_disk, EPOCHS="1", WORKERS="1", EXPERIMENTS=TWO_ROWS)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert all(f"error: {name}, seed 0: " in err for name in "AB")
    folder = results_of(tmp_path)
    assert set(plot.read_run(folder).stats) == {"A", "B"}
    assert not list(folder.glob("*.pt")) and not list(folder.glob("*.part"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
def test_standard_output_that_fails_costs_the_lines_only(tmp_path):
    end, closed_pipe = os.pipe()
    os.close(end)
    started = []
    for workers, sink in ((2, closed_pipe), (1, os.open("/dev/full", os.O_WRONLY))):  # both at once
        folder = tmp_path / str(workers)
        folder.mkdir()
        copy_project(folder, EPOCHS="1", WORKERS=str(workers), EXPERIMENTS=TWO_ROWS)
        command = [sys.executable, "main.py"]
        started.append(
            subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=sink, stderr=subprocess.PIPE)
        )
        os.close(sink)
    for process in started:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        (line,) = own_lines(err.decode())
        assert "output" in line
    for workers in "12":
        folder = results_of(tmp_path / workers)
        assert {path.stem for path in folder.glob("*.pt")} == {"A-seed0", "B-seed0"}
        assert {path.stem for path in folder.glob("*.png")} >= {"A", "B", "comparison", "mistakes"}
