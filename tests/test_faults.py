"""Faults while the program runs: real signals and limits on real processes."""

import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

import plot
from conftest import ENVIRONMENT, copy_project, use_sample

NAMES = ("LeNet5", "CustomMLP", "RegularizedLeNet5")


@pytest.fixture
def start(tmp_path):
    """A function that starts main.py with these constants, on the sample, in a group of
    processes of its own, as a shell does. What is left of the group at the end is killed."""
    processes = []

    def start(edit=lambda line: line, preexec_fn=None, **constants):
        folder = copy_project(tmp_path, **constants)
        use_sample(folder)
        lines = (folder / "main.py").read_text().splitlines()
        (folder / "main.py").write_text("\n".join(map(edit, lines)) + "\n")
        process = subprocess.Popen(
            [sys.executable, "main.py"],
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
        except ProcessLookupError:
            pass
        process.communicate()


def wait_for_epochs(process, count):
    """Read lines of progress until each of `count` trainings has finished an epoch."""
    seen = set()
    while len(seen) < count:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        if match := re.match(r"(\S+ +seed \d+) ", line):
            seen.add(match[1])


def results_of(tmp_path):
    (folder,) = (tmp_path / "results").iterdir()
    return folder


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


def assert_whole_lines(folder):
    for path in folder.glob("*.csv"):
        text = path.read_text()
        assert text.endswith("\n") and {line.count(",") for line in text.splitlines()} == {5}


@pytest.mark.parametrize("number, workers", [(signal.SIGINT, 2), (signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_interrupted_run_is_plotted_and_leaves_no_process(start, tmp_path, number, workers):
    process = start(EPOCHS=1000, WORKERS=workers)
    wait_for_epochs(process, workers)
    if number == signal.SIGINT:  # Ctrl-C in a terminal reaches the whole group, and here twice
        os.killpg(process.pid, number)
        time.sleep(0.3)
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert_group_ends(process, 5)
    folder = results_of(tmp_path)
    assert len(err.splitlines()) == 1, err
    assert folder.name in err
    assert_whole_lines(folder)
    finished = set(plot.read_run(folder))
    assert {path.stem for path in folder.glob("*.png")} == finished | {"comparison"}
    assert all(name in (folder / "summary.md").read_text() for name in NAMES)
    assert not list(folder.glob("*.pt")) and not list(folder.glob("*.part"))


def test_killed_parent_takes_its_trainings_with_it(start, tmp_path):
    process = start(EPOCHS=1000, WORKERS=2)
    wait_for_epochs(process, 2)
    process.kill()
    process.wait()
    assert_group_ends(process, 5)
    folder = results_of(tmp_path)
    assert len(plot.read_run(folder)) == 2
    assert plot.main([str(folder)]) == 0


def explode(line):
    """Give LeNet5 a learning rate with which the loss overflows."""
    return line.replace("0.02", "1e30") if line.lstrip().startswith('"LeNet5"') else line


def test_exploding_loss_ends_that_training_only(start, tmp_path):
    process = start(explode, EPOCHS=1, WORKERS=2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = err.splitlines()
    assert "LeNet5" in line and "seed 0" in line and "epoch 1" in line and "learning_rate" in line
    folder = results_of(tmp_path)
    assert set(plot.read_run(folder)) == {"CustomMLP", "RegularizedLeNet5"}
    plots = {"CustomMLP", "RegularizedLeNet5", "comparison", "mistakes"}
    assert {path.stem for path in folder.glob("*.png")} == plots
    assert "LeNet5, seed 0" in (folder / "summary.md").read_text()


def test_full_disk_is_one_line_and_keeps_the_figures(start, tmp_path):
    limit = 100_000  # bytes of a file: enough for figures, too few for weights and plots
    process = start(
        EPOCHS=1, WORKERS=1, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert all(name in line for name, line in zip(NAMES, err.splitlines()))
    folder = results_of(tmp_path)
    assert set(plot.read_run(folder)) == set(NAMES)
    assert not list(folder.glob("*.pt")) and not list(folder.glob("*.part"))


def test_nothing_finished_is_no_traceback(start, tmp_path):
    process = start(lambda line: re.sub(r"learning_rate=[0-9.]+", "learning_rate=1e30", line), EPOCHS=1, WORKERS=1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err and all(name in err for name in NAMES)
