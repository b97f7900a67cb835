"""How often does a seed alone look like a change? The rule of three errors, tried on trainings that differ in
nothing but the seed.

    python report/calibration.py              train the rows of main.py with ten seeds, then print the tables
    python report/calibration.py results/7    print the tables of such a run that has finished

Takes about 25 minutes on two cores.
"""

import sys
from itertools import combinations
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import main
import plot

SEEDS = range(10)
SIZES = (1, 2, 3, 5)  # seeds of a group


def pairs_of_groups(records, size):
    """Return all pairs of groups of so many trainings, without a common one, for plot.mean_change."""
    pairs = []
    for first in combinations(records, size):
        others = [seed for seed in records if seed not in first and seed > first[0]]  # each pair once
        for second in combinations(others, size):
            groups = [dict(enumerate(records[seed] for seed in group)) for group in (first, second)]
            pairs.append(groups)
    return pairs


def share_above(pairs, column):
    """Return how many of the changes between two groups exceed two and three of their errors, as a text."""
    ratios = []
    for before, after in pairs:
        change, error = plot.mean_change(before, after, column)
        ratios.append(abs(change) / error)
    shares = [sum(ratio > limit for ratio in ratios) / len(ratios) for limit in (2, 3)]
    return f"{shares[0]:.0%} / {shares[1]:.0%}"


def calibration_tables(folder):
    """Return the lines of three tables: the shares of accuracies and of losses above two / three errors, and
    how many images another seed alone changes."""
    run = plot.read_run(folder)
    lines = []
    for column in ("eval_accuracy", "eval_loss"):
        table = [[f"{run.headings[column]}: seeds in a group", *map(str, SIZES)]]
        for name, records in run.records.items():
            shares = [share_above(pairs_of_groups(records, size), column) for size in SIZES]
            table.append([name, *shares])
        lines += [*plot.markdown(table), ""]
    table = [["another seed alone", "images changed", "net", "pairs"]]
    for name, records in run.records.items():
        changed = []
        net = []
        for old, new in combinations(records.values(), 2):
            fixed, broken = plot.fixed_and_broken(old, new)
            changed.append(len(fixed) + len(broken))
            net.append(abs(len(fixed) - len(broken)))
        means = [f"{sum(counts) / len(counts):.0f}" for counts in (changed, net)]
        table.append([name, *means, str(len(net))])
    return [*lines, *plot.markdown(table)]


if __name__ == "__main__":
    try:
        if len(sys.argv) == 1:
            if main.run(main.EXPERIMENTS, SEEDS):
                sys.exit(1)
            folder = plot.run_folders(plot.RESULTS)[0]
        else:
            folder = Path(sys.argv[1])
        print("", *calibration_tables(folder), sep="\n")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
