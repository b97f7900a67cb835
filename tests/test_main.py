"""The training loop, and the whole program as a user runs it."""

import csv
import json
import re
import statistics

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler

import dataset
import main
import plot
from conftest import PROJECT, copy_project, run, use_sample
from model import CustomMLP, LeNet5, RegularizedLeNet5

EXPERIMENTS = ("LeNet5", "CustomMLP", "RegularizedLeNet5")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A copy of the project in which `python main.py` has run, with the sample in data/, and
    what it printed."""
    folder = copy_project(tmp_path_factory.mktemp("project"), EPOCHS=4, SEEDS=(0, 3), WORKERS=1)
    use_sample(folder)
    process = run(folder, "main.py")
    assert process.returncode == 0, process.stderr
    return folder, process


@pytest.fixture(scope="module")
def results(finished):
    """The one folder of results of that run."""
    (folder,) = (finished[0] / "results").iterdir()
    return folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_results_folder_holds_a_csv_and_weights_of_every_training(results):
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", results.name)
    ends = ("csv", "pt", "npz")
    trainings = {f"{name}-seed{seed}.{end}" for name in EXPERIMENTS for seed in (0, 3) for end in ends}
    plots = {f"{name}.png" for name in (*EXPERIMENTS, "comparison", "mistakes")}
    assert {path.name for path in results.iterdir()} == trainings | plots | {"settings.json", "summary.md"}
    for path in results.glob("*.csv"):
        assert path.read_text().splitlines()[0] == "epoch,train_loss,train_accuracy,val_loss,val_accuracy,seconds"
        assert [row["epoch"] for row in rows(path)] == ["1", "2", "3", "4"]


def test_training_on_the_sample_reaches_a_sensible_accuracy(results):
    for path in results.glob("*.csv"):
        first, *_, last = rows(path)
        assert float(last["val_accuracy"]) > (0.8 if "MLP" in path.name else 0.93)
        assert float(last["train_accuracy"]) > float(first["train_accuracy"])
        assert float(last["train_loss"]) < float(first["train_loss"])


def test_saved_weights_are_those_that_were_validated(results, test_set):
    for model_class in (LeNet5, CustomMLP, RegularizedLeNet5):
        name = f"{model_class.__name__}-seed3"
        model = model_class()
        model.load_state_dict(torch.load(results / f"{name}.pt", weights_only=True))
        loss, accuracy = main.test(model, main.batches(test_set, SequentialSampler(test_set), 1000))
        last = rows(results / f"{name}.csv")[-1]
        assert float(last["val_loss"]) == pytest.approx(loss, rel=1e-5)
        assert float(last["val_accuracy"]) == pytest.approx(accuracy)


def test_batch_norm_remembers_the_training_images_as_they_are(results, train_set):
    model = RegularizedLeNet5()
    model.load_state_dict(torch.load(results / "RegularizedLeNet5-seed3.pt", weights_only=True))
    with torch.no_grad():
        outputs = model.pool(model.conv1(train_set[:][0]))
    # torch's own sums over a batch of 1,000 images are exact to three digits only
    assert torch.allclose(model.norm1.running_mean, outputs.mean(dim=(0, 2, 3)), atol=0.002)
    assert torch.allclose(model.norm1.running_var, outputs.var(dim=(0, 2, 3)), rtol=0.005)


def test_saved_mistakes_are_the_wrong_answers_of_highest_confidence(results, test_set):
    images, labels = test_set[:]
    for model_class in (LeNet5, CustomMLP, RegularizedLeNet5):
        model = model_class().eval()
        model.load_state_dict(torch.load(results / f"{model_class.__name__}-seed3.pt", weights_only=True))
        with torch.no_grad():
            probabilities = model(images).double().softmax(dim=1)
        wrong = [
            (row.max().item(), row.argmax().item(), index)
            for index, row in enumerate(probabilities)
            if row.argmax() != labels[index]
        ]
        saved = plot.read_mistakes(results / f"{model_class.__name__}-seed3.npz")
        assert saved["mistakes"] == len(wrong) > 25 or len(saved["labels"]) == len(wrong)
        assert saved["confidences"] == pytest.approx(sorted((mistake[0] for mistake in wrong), reverse=True)[:25])
        answers = {
            (test_set.images[index].numpy().tobytes(), labels[index].item(), answer) for _, answer, index in wrong
        }
        assert len(saved["images"]) == min(25, len(wrong))
        for image, label, answer in zip(saved["images"], saved["labels"], saved["answers"]):
            assert (image.tobytes(), label, answer) in answers


def test_settings_tell_constants_data_and_versions(results):
    settings = json.loads((results / "settings.json").read_text())
    constants = re.findall(r"^([A-Z_]+) = ", (PROJECT / "main.py").read_text(), re.MULTILINE)
    assert {*constants, "data", "versions"} == set(settings)
    assert settings["EPOCHS"] == 4 and settings["SEEDS"] == [0, 3]
    assert settings["EXPERIMENTS"]["CustomMLP"]["model"] == "CustomMLP"
    assert settings["data"]["train_images"] == 4000 and settings["data"]["test_images"] == 1000
    assert settings["versions"]["torch"] == torch.__version__


def test_summary_holds_mean_and_deviation_of_the_last_epochs(finished, results):
    summary = (results / "summary.md").read_text().partition("\n## ")[0]
    assert summary in finished[1].stdout
    for name, parameters in zip(EXPERIMENTS, ("61,706", "61,720", "62,158")):
        (line,) = [line for line in summary.splitlines() if line.startswith(f"| {name} ")]
        _, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        last = [rows(results / f"{name}-seed{seed}.csv")[-1] for seed in (0, 3)]
        expected = [parameters]
        for column, form in (
            ("train_loss", ".4f"),
            ("train_accuracy", ".2%"),
            ("val_loss", ".4f"),
            ("val_accuracy", ".2%"),
        ):
            values = [float(row[column]) for row in last]
            expected.append(f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}")
        assert cells[:5] == expected
        if name == "LeNet5":
            baseline, gain = last, ""
        else:
            ours, theirs = ([100 * float(row["val_accuracy"]) for row in each] for each in (last, baseline))
            error = ((statistics.variance(ours) + statistics.variance(theirs)) / 2) ** 0.5
            gain = f"{statistics.mean(ours) - statistics.mean(theirs):+.2f} ± {error:.2f}"
        assert cells[5] == gain


def test_summary_holds_every_epoch(results):
    blocks = (results / "summary.md").read_text().split("## ")[1:]
    for name, block in zip(EXPERIMENTS, blocks, strict=True):
        assert block.startswith(name)
        lines = [line.split("|")[1:-1] for line in block.splitlines() if line.startswith("| ")][2:]
        trainings = [rows(results / f"{name}-seed{seed}.csv") for seed in (0, 3)]
        for epoch, (line, *same) in enumerate(zip(lines, *trainings, strict=True), start=1):
            assert line[0].strip() == str(epoch)
            for cell, column in zip(
                line[1:], ("train_loss", "train_accuracy", "val_loss", "val_accuracy"), strict=True
            ):
                mean, _, deviation = (float(part.rstrip("%")) for part in cell.replace("±", "0").split())
                values = [float(row[column]) * (100 if "%" in cell else 1) for row in same]
                assert mean == pytest.approx(statistics.mean(values), abs=0.006 if "%" in cell else 6e-5)
                assert deviation == pytest.approx(statistics.stdev(values), abs=0.006 if "%" in cell else 6e-5)


def test_prints_a_line_for_every_epoch_and_the_plots(finished, results):
    lines = finished[1].stdout.splitlines()
    for path in results.glob("*.csv"):
        name, seed = path.stem.split("-seed")
        mine = [line for line in lines if re.match(rf"{name} +seed {seed} ", line)]
        assert len(mine) == 4
        for number, (line, row) in enumerate(zip(mine, rows(path)), start=1):
            assert f"{number}/4" in line
            assert f"{float(row['val_accuracy']):.2%}" in line and f"{float(row['train_loss']):.4f}" in line
    printed = {line for line in lines if line.endswith(".png")}
    assert printed == {str(path.relative_to(finished[0])) for path in results.glob("*.png")}
    assert finished[1].stderr == ""


def test_plots_are_pictures(results):
    for path in results.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert image.width > 800 and image.height > 400
            assert len(set(image.convert("L").tobytes())) > 50


def test_plot_draws_the_newest_run_or_several(finished):
    folder, _ = finished
    (original,) = (folder / "results").glob("????-*")
    older = folder / "results" / "2001-01-01_00-00-00"
    older.mkdir()
    (older / "Old-seed0.csv").write_text(",".join(plot.COLUMNS) + "\n1,1,0.5,1,0.5,1\n")
    for png in original.glob("*.png"):
        png.unlink()
    assert run(folder, "plot.py").returncode == 0
    assert len(list(original.glob("*.png"))) == 5 and not list(older.glob("*.png"))
    assert run(folder, "plot.py", str(older)).returncode == 0
    assert {path.name for path in older.glob("*.png")} == {"Old.png", "comparison.png"}
    process = run(folder, "plot.py", str(older), str(original))
    assert process.returncode == 0, process.stderr
    assert (folder / process.stdout.strip()).stat().st_size > 10_000


def test_readme_example_classifies_an_image(finished):
    (example,) = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    process = run(finished[0], "-c", example)
    assert process.returncode == 0, process.stderr
    assert process.stdout


def test_without_data_and_network_trains_on_the_sample_and_says_so(tmp_path):
    folder = copy_project(tmp_path, EPOCHS=1, WORKERS=1)
    process = run(folder, "main.py")
    assert process.returncode == 0, process.stderr
    assert str(folder / "data") in process.stderr
    (results,) = (folder / "results").iterdir()
    data = json.loads((results / "settings.json").read_text())["data"]
    assert "sample" in data["description"] and data["train_images"] == 4000
    assert data["description"] in (results / "summary.md").read_text()
    assert data["description"] in plot.plot_experiment(results, "LeNet5").get_suptitle()
    assert data["description"] in plot.plot_comparison([results]).get_suptitle()
    # nothing of the failed download is left
    assert [path.name for path in (folder / "data").iterdir()] == ["sample"]


def test_a_missing_tar_is_one_line_and_exit_code_2(tmp_path):
    folder = copy_project(tmp_path)
    (folder / "data" / "train.tar").symlink_to(folder / "data" / "sample" / "train.tar")
    process = run(folder, "main.py")
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert "data/test.tar" in line
    assert not (folder / "results").exists()


BAD_CONSTANTS = [
    *(("EPOCHS", value) for value in (0, -1, 1.5, "10", True, None)),
    *(("BATCH_SIZE", value) for value in (0, 32.0, None)),
    *(("MOMENTUM", value) for value in (1, -0.1, "0.9", float("nan"))),
    *(("SEEDS", value) for value in ((), 0, (0, 0), (-1,), (0.5,), "01", (2**64,))),
    *(("VALIDATION_IMAGES", value) for value in (-1, 0.5, "10", None)),
    *(("WORKERS", value) for value in (0, -2, 1.5, "2")),
    *(("DEVICE", value) for value in ("abacus", "cuda:99", None, 7.5, "")),
    *(("DATA_DIR", value) for value in (None, 3)),
    *(("RESULTS_DIR", value) for value in (None, 3)),
    *(("EXPERIMENTS", value) for value in ({}, [], None)),
]


@pytest.mark.parametrize("name, value", BAD_CONSTANTS)
def test_bad_constants_are_named_before_anything_is_read(monkeypatch, capsys, name, value):
    monkeypatch.setattr(main, "DATA_DIR", "/nowhere/at/all")
    monkeypatch.setattr(main, name, value)
    assert main.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line and repr(value) in line


GOOD_ROW = dict(model=LeNet5, options={}, learning_rate=0.01, weight_decay=0, augmentation={})
BAD_FIELDS = [
    *(("model", value) for value in ("LeNet5", LeNet5(), None, int)),
    *(("options", value) for value in (None, {"dropout": 0.5}, {"dropout": 2})),
    *(("learning_rate", value) for value in (0, -0.1, "0.1", float("inf"), float("nan"), None)),
    *(("weight_decay", value) for value in (-0.1, "0", float("nan"), None)),
    *(("augmentation", value) for value in (None, 8, {"rotate": 8}, {"shift": -1}, {"scaling": "0.05"})),
]


@pytest.mark.parametrize("field, value", BAD_FIELDS)
def test_bad_fields_of_experiments_are_named(monkeypatch, capsys, field, value):
    monkeypatch.setattr(main, "EXPERIMENTS", {"good": GOOD_ROW, "my model": {**GOOD_ROW, field: value}})
    assert main.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "my model" in line and field in line


@pytest.mark.parametrize(
    "row", [None, {}, {**GOOD_ROW, "lr": 0.1}, dict(model=LeNet5, options={}, learning_rate=0.1)]
)
def test_rows_with_other_fields_are_refused(monkeypatch, capsys, row):
    monkeypatch.setattr(main, "EXPERIMENTS", {"my model": row})
    assert main.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "my model" in line and "weight_decay" in line


@pytest.mark.parametrize(
    "names",
    [
        ("",),
        ("a/b",),
        ("..",),
        ("a\\b",),
        ("a\0b",),
        ("a\nb",),
        ("a" * 300,),
        (5,),
        (" a",),
        ("comparison",),
        ("Mistakes",),
        ("lenet", "LeNet"),
    ],
)
def test_names_that_are_no_file_names_or_lead_to_the_same_one_are_refused(monkeypatch, capsys, names):
    monkeypatch.setattr(main, "EXPERIMENTS", dict.fromkeys(names, GOOD_ROW))
    assert main.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert repr(names[-1]) in line


def test_batches_of_one_are_refused_for_batch_norm_only(monkeypatch, capsys):
    monkeypatch.setattr(main, "BATCH_SIZE", 1)
    with pytest.raises(ValueError) as error:
        main.check_constants()
    assert "RegularizedLeNet5" in str(error.value) and "BATCH_SIZE" in str(error.value)
    monkeypatch.setattr(main, "EXPERIMENTS", {"plain": GOOD_ROW})
    main.check_constants()


@pytest.mark.parametrize("images, batch_size", [(20, 1), (63, 31), (50, 1000), (2, 1000), (64, 32), (1001, 1000)])
def test_every_batch_size_trains(monkeypatch, tmp_path, train_set, test_set, images, batch_size):
    monkeypatch.setattr(main, "EPOCHS", 1)
    monkeypatch.setattr(main, "BATCH_SIZE", batch_size)
    name = "LeNet5" if batch_size == 1 else "RegularizedLeNet5"
    main.run_training(name, 0, train_set.subset(slice(images)), test_set, tmp_path)
    assert len(rows(tmp_path / f"{name}-seed0.csv")) == 1


def test_augmentation_is_for_the_training_images_of_its_experiment_only(
    monkeypatch, tmp_path, train_set, test_set
):
    monkeypatch.setattr(main, "EPOCHS", 1)
    # learns nothing, so that all differences come from the images
    still = {**GOOD_ROW, "model": CustomMLP, "learning_rate": 1e-20}
    moved = {**still, "augmentation": {"rotation": 8, "shift": 1.4, "scaling": 0.05}}
    monkeypatch.setattr(main, "EXPERIMENTS", {"moved": moved, "still": still})
    figures = {}
    for name in ("moved", "still"):
        main.run_training(name, 0, train_set, test_set, tmp_path)
        (figures[name],) = rows(tmp_path / f"{name}-seed0.csv")
    torch.manual_seed(0)
    model = main.build_model("still")
    loss, _ = main.test(model, main.batches(train_set, SequentialSampler(train_set), 1000))
    assert float(figures["still"]["train_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(figures["moved"]["train_loss"]) != pytest.approx(loss, rel=1e-4)
    assert figures["moved"]["val_loss"] == figures["still"]["val_loss"]


def test_every_test_image_counts(monkeypatch, tmp_path, train_set, test_set):
    images = train_set.subset(slice(1001))  # one more than a batch
    monkeypatch.setattr(main, "EPOCHS", 1)
    main.run_training("CustomMLP", 0, images, images, tmp_path)
    accuracy = float(rows(tmp_path / "CustomMLP-seed0.csv")[0]["val_accuracy"])
    assert 0 < accuracy < 1 and accuracy * 1001 == pytest.approx(round(accuracy * 1001), abs=0.002)


def test_training_set_as_test_set_is_refused(tmp_path):
    folder = copy_project(tmp_path)
    for name in ("train.tar", "test.tar"):
        (folder / "data" / name).symlink_to(folder / "data" / "sample" / "test.tar")
    process = run(folder, "main.py")
    assert process.returncode == 2 and len(process.stderr.splitlines()) == 1
    assert not (folder / "results").exists()


@pytest.fixture
def small_data(monkeypatch, tmp_path, train_set, test_set):
    """Make main.main() train CustomMLP for an epoch on two small tars, and return their folder."""
    monkeypatch.setattr(main, "EPOCHS", 1)
    monkeypatch.setattr(main, "EXPERIMENTS", {"CustomMLP": main.EXPERIMENTS["CustomMLP"]})
    monkeypatch.setattr(main, "DATA_DIR", str(tmp_path))
    monkeypatch.setattr(main, "RESULTS_DIR", str(tmp_path / "results"))
    dataset.write_tar(tmp_path / "train.tar", train_set.images[:30], train_set.labels[:30])
    dataset.write_tar(tmp_path / "test.tar", test_set.images[:30], test_set.labels[:30])
    return tmp_path


def test_bad_image_is_one_line_and_exit_code_2(small_data, capsys):
    images = torch.zeros(2, 32, 32, dtype=torch.uint8)
    dataset.write_tar(small_data / "test.tar", images, torch.tensor([3, 8]))
    assert main.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(small_data / "test.tar") in line and "test/00000_3.png" in line
    assert not (small_data / "results").exists()


def test_warnings_about_the_data_are_printed(monkeypatch, small_data, capsys, train_set):
    assert main.main() == 0
    assert capsys.readouterr().err == ""
    kept = [index for index in range(30) if train_set.labels[index] != 7]
    dataset.write_tar(small_data / "train.tar", train_set.images[kept], train_set.labels[kept])
    dataset.write_tar(small_data / "test.tar", train_set.images[28:60], train_set.labels[28:60])
    monkeypatch.setattr(main, "BATCH_SIZE", len(kept) - 1)
    assert main.main() == 0
    both, digit, single = capsys.readouterr().err.splitlines()
    assert "2" in both and "7" in digit and "BATCH_SIZE" in single


def test_held_out_images_are_validated_instead_of_the_test_set(monkeypatch, small_data, train_set):
    monkeypatch.setattr(main, "VALIDATION_IMAGES", 10)
    assert main.main() == 0
    (results,) = (small_data / "results").iterdir()
    data = json.loads((results / "settings.json").read_text())["data"]
    assert "20 training and 10 held-out" in data["description"]
    model = CustomMLP()
    model.load_state_dict(torch.load(results / "CustomMLP-seed0.pt", weights_only=True))
    held_out = train_set.subset(slice(20, 30))
    loss, _ = main.test(model, main.batches(held_out, SequentialSampler(held_out), 10))
    assert float(rows(results / "CustomMLP-seed0.csv")[0]["val_loss"]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("count", [29, 30, 10_000])
def test_images_to_train_on_must_be_left(monkeypatch, small_data, capsys, count):
    monkeypatch.setattr(main, "VALIDATION_IMAGES", count)
    assert main.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "VALIDATION_IMAGES" in line and str(count) in line
    assert not (small_data / "results").exists()


@pytest.mark.parametrize("constant", ["DATA_DIR", "RESULTS_DIR"])
def test_folders_that_cannot_be_written_are_named(monkeypatch, tmp_path, capsys, constant):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(main, "DATA_DIR", str(dataset.SAMPLE_DIR))
    monkeypatch.setattr(main, constant, str(file))
    assert main.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line


@pytest.fixture
def short_run(monkeypatch, tmp_path, train_set, test_set):
    """A function that trains RegularizedLeNet5, which draws most from the random generator,
    for two epochs and returns its CSV without the seconds and its weights."""
    monkeypatch.setattr(main, "EPOCHS", 2)

    def train(seed, name):
        folder = tmp_path / name
        folder.mkdir()
        main.run_training("RegularizedLeNet5", seed, train_set, test_set, folder)
        path = folder / f"RegularizedLeNet5-seed{seed}"
        lines = [line.rpartition(",")[0] for line in open(f"{path}.csv")]
        return lines, torch.load(f"{path}.pt", weights_only=True)

    return train


def test_same_seed_same_figures_to_the_last_digit(short_run):
    first, weights = short_run(0, "first")
    torch.rand(7)  # whatever happened before must not matter
    second, same_weights = short_run(0, "second")
    assert first == second and len(first) == 3
    assert all(torch.equal(weights[key], same_weights[key]) for key in weights)
    assert short_run(1, "third")[0] != first


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_losses_are_per_image_whatever_the_batch_size(batch_size, train_set, test_set):
    torch.manual_seed(0)
    model = LeNet5()
    images, labels = test_set[:]
    with torch.no_grad():
        logits = model(images)
    expected = (cross_entropy(logits, labels).item(), (logits.argmax(dim=1) == labels).float().mean().item())
    loader = main.batches(test_set, SequentialSampler(test_set), batch_size)
    assert main.test(model, loader) == pytest.approx(expected, rel=1e-5)
    # with a learning rate of 0 the model stays as it is, and training sees the same
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    assert main.train(model, loader, optimizer, scheduler) == pytest.approx(expected, rel=1e-5)


def test_training_figures_are_seen_with_dropout_and_validation_without(test_set):
    torch.manual_seed(0)
    model = RegularizedLeNet5(dropout=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    loader = main.batches(test_set, SequentialSampler(test_set), 1000)
    assert main.test(model, loader) == main.test(model, loader)
    # nothing is learned, so it is chance what makes the difference
    assert main.train(model, loader, optimizer, scheduler) != main.train(model, loader, optimizer, scheduler)
    assert main.test(model, loader) == main.test(model, loader)


def test_figures_of_finished_epochs_are_on_disk_at_once(monkeypatch, tmp_path, train_set, test_set):
    seen = []

    def stop_in_third_epoch(*arguments):
        seen.append((tmp_path / "LeNet5-seed0.csv").read_text().splitlines())
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real_train(*arguments)

    real_train = main.train
    monkeypatch.setattr(main, "train", stop_in_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        main.run_training("LeNet5", 0, train_set, test_set, tmp_path)
    assert [len(lines) for lines in seen] == [1, 2, 3]
    assert list(plot.read_run(tmp_path)["LeNet5"][0]["epoch"]) == [1, 2]


def test_every_run_gets_a_new_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(main, "RESULTS_DIR", str(tmp_path / "results"))
    folders = [main.new_folder(), main.new_folder()]
    assert folders[0] != folders[1] and all(folder.is_dir() for folder in folders)


@pytest.fixture
def folders(tmp_path):
    """Two empty folders for the results of two runs."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path / "one", tmp_path / "two"


def test_figures_and_weights_do_not_depend_on_the_number_of_workers(monkeypatch, folders, train_set, test_set):
    monkeypatch.setattr(main, "EPOCHS", 2)
    trainings = [(name, 1) for name in EXPERIMENTS]
    for workers, folder in zip((1, 2), folders):
        assert main.run_trainings(trainings, workers, train_set, test_set, folder) == []
    for name in EXPERIMENTS:
        alone, among_others = (
            [line.rpartition(",")[0] for line in open(folder / f"{name}-seed1.csv")] for folder in folders
        )
        assert alone == among_others and len(alone) == 3
        alone, among_others = (torch.load(folder / f"{name}-seed1.pt", weights_only=True) for folder in folders)
        assert all(torch.equal(alone[key], among_others[key]) for key in alone)
    # the images were not copied for each process
    assert train_set.images.is_shared() and test_set.images.is_shared()


def test_longest_training_starts_first(monkeypatch, folders, train_set, test_set):
    order = ("CustomMLP", "LeNet5", "RegularizedLeNet5")
    monkeypatch.setattr(main, "EPOCHS", 2)
    monkeypatch.setattr(main, "EXPERIMENTS", {name: main.EXPERIMENTS[name] for name in order})
    folder = folders[0]
    main.run_trainings([(name, 0) for name in order], 2, train_set, test_set, folder)
    first_end = min((folder / f"{name}-seed0.pt").stat().st_mtime for name in order[1:])
    # the short one only began when one of the others had ended
    assert (folder / "CustomMLP-seed0.csv").stat().st_mtime > first_end


def test_a_training_that_is_killed_takes_no_other_with_it(tmp_path):
    folder = copy_project(tmp_path, EPOCHS=1, WORKERS=2)
    use_sample(folder)
    with open(folder / "model.py", "a") as file:
        file.write("""

import multiprocessing, os, signal

def die(self, images):
    if multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)
    return LeNet5.forward(self, images)

RegularizedLeNet5.forward = die
""")
    process = run(folder, "main.py")
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert "RegularizedLeNet5" in line and "seed 0" in line
    (results,) = (folder / "results").iterdir()
    assert {path.stem for path in results.glob("*.png")} == {"LeNet5", "CustomMLP", "comparison", "mistakes"}
    # the last of the two had not begun when the first training, the longest, was killed
    assert {path.name for path in results.glob("*.pt")} == {"LeNet5-seed0.pt", "CustomMLP-seed0.pt"}
    assert "RegularizedLeNet5, seed 0" in (results / "summary.md").read_text()
