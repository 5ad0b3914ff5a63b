"""experiments/results.py: which files count as a row's results."""

import json
import shutil
from pathlib import Path

import pytest

import main
import reproduce
from attentionce.errors import UserError
from experiments import results, studies


@pytest.fixture
def row(toy):
    """The first of the toy study's rows."""
    rows = studies.all_rows(reproduce.parse_args(toy.flags[: toy.flags.index("--row")]))
    return next(row for row in rows if row.study.name == "folder")


def changed(row, **changes):
    return row._replace(study=row.study._replace(**changes))


def test_results_with_other_flags_do_not_count(row):
    linear, pretrain = row.study.linear, row.study.pretrain
    assert results.read(row, 0).evaluations
    same = [*linear, "--lr=10e-4", "--compile=off"]  # 1e-3 is the default
    assert results.read(changed(row, linear=same), 0).evaluations
    pretraining, evaluations = results.read(changed(row, linear=[*linear, "--lr=1e-2"]), 0)
    assert pretraining and not evaluations
    assert results.read(changed(row, pretrain=[*pretrain, "--lr=7"]), 0) == (None, {})


def test_results_on_other_images_do_not_count(row):
    assert results.read(changed(row, root="elsewhere/pictures0"), 0).evaluations
    assert results.read(changed(row, root="elsewhere/cats"), 0) == (None, {})


def test_seeds_that_were_not_run_are_left_out(row):
    some = row._replace(seeds=[5, 0, 7])
    assert results.evaluations(some, 0) == results.evaluations(row, 0) != []
    assert results.hours(some) == results.hours(row) > results.evaluations(row, 0)[0]["hours"]


def test_a_damaged_file_is_named(tmp_path):
    row = studies.all_rows(reproduce.parse_args(["--results", str(tmp_path)]))[0]
    path = results.run_file(row, 0, row.epochs, ".json")
    path.parent.mkdir(parents=True)
    path.write_text('{"flags": 3}')
    with pytest.raises(UserError, match=f"{path} is damaged: remove it and run its row again"):
        results.read(row, 0)


def test_titles_come_from_the_flags_beside_a_file(toy, tmp_path):
    """Also for weights of an earlier epoch; a file without its run's flags keeps its name."""
    weights = sorted(toy.folder.rglob("*_10.0.pth"))
    titles = [results.title(path) for path in weights]
    assert titles == [f"AttentioNCE (d_pos 1, d_neg 10), {epochs} epochs" for epochs in range(1, 5)]
    assert results.title(Path(shutil.copy(weights[0], tmp_path))) == weights[0].stem
    flags = vars(main.parse_args(["--num_pos", "8", "--epochs", "30"]))
    path = tmp_path / "cifar10_SimCLR_8model_256_30_1.0_1.0.csv"
    path.with_name(f"{path.stem}.json").write_text(json.dumps({"flags": flags}))
    path.touch()
    assert results.title(path) == "AttentioNCE (d_pos 1, d_neg 1, 8 positives), 30 epochs"
