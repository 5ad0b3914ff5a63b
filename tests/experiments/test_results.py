"""experiments/results.py: which files count as a row's results."""

import json

import pytest

from attentionce.errors import UserError
from experiments import results, studies


@pytest.fixture
def row_and_study(toy):
    """The first of the toy study's rows."""
    row = studies.folder_rows()[0]
    words = [word for word in toy.flags[: toy.flags.index("--row")]]
    ((row, study),) = studies.with_flags([row], studies.parse_flags(words))
    return row, study


def test_an_evaluation_with_other_flags_does_not_count(row_and_study):
    row, study = row_and_study
    assert results.read(row, study, 0).evaluation
    other = study._replace(linear=["--epochs", "7"])
    assert results.read(row, other, 0).evaluation is None
    other = study._replace(linear=[*study.linear, "--lr=1e-2"])
    assert results.read(row, other, 0).evaluation is None
    same = study._replace(linear=[*study.linear, "--lr=10e-4"])  # the default, 1e-3
    assert results.read(row, same, 0).evaluation
    elsewhere = study._replace(linear=[*study.linear, "--compile=off", "--cache=elsewhere"])
    assert results.read(row, elsewhere, 0).evaluation


def test_an_evaluation_of_other_weights_does_not_count(row_and_study):
    row, study = row_and_study
    other = study._replace(pretrain=[*study.pretrain, "--lr", "7"])
    assert results.read(row, other, 0) == (None, None)


def test_results_on_other_images_do_not_count(row_and_study):
    row, study = row_and_study
    assert results.read(row, study._replace(root="elsewhere/pictures0"), 0).evaluation
    assert results.read(row, study._replace(root="elsewhere/cats"), 0) == (None, None)


def test_seeds_that_were_not_run_are_left_out(row_and_study):
    row, study = row_and_study
    evaluation = results.read(row, study, 0).evaluation
    assert results.evaluations(row, study._replace(seeds=[5, 0, 7])) == [evaluation]
    hours = results.hours(row, study._replace(seeds=[0]))
    assert results.hours(row, study._replace(seeds=[5, 0, 7])) == hours > evaluation["hours"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"flags": 3}'])
def test_a_damaged_file_is_named(tmp_path, content):
    args = studies.parse_flags(["--results", str(tmp_path)])
    ((row, study),) = studies.with_flags(studies.paper_rows()[:1], args)
    path = results.weights(row, study, 0).with_suffix(".json")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError, match="is damaged .*: remove it and run its row again") as caught:
        results.read(row, study, 0)
    assert str(path) in str(caught.value)


def test_views_per_image():
    """Two, and the positives of a loss that has some; further flags of the study count."""
    by_flags = {
        (row.loss, row.flags.get("num_pos")): results.views_per_image(row, studies.PHOTOS)
        for row in studies.photo_rows()
    }
    assert by_flags == {
        ("simclr", None): 2,
        ("dcl", None): 2,
        ("hcl", None): 2,
        ("bcl", None): 2,
        ("attentionce", 1): 3,
        ("attentionce", 2): 4,
        ("attentionce", 4): 6,
        ("attentionce", 8): 10,
    }
    row = studies.folder_rows()[0]
    assert results.views_per_image(row, studies.PAPER) == 6
    assert results.views_per_image(row, studies.PAPER._replace(pretrain=["--num_pos", "1"])) == 3


def test_means():
    assert results.mean_text([]) == ""
    assert results.mean_text([91.2]) == "91.20"
    assert results.mean_text([1, 2, 3]) == "2.00 ± 1.00"
    assert results.mean_and_deviation([5]) == (5, 0)


def test_the_old_name_of_the_loss_is_read(toy, row_and_study, tmp_path):
    """Results from before the loss's flag was called attentionce count."""
    row, study = row_and_study
    study = study._replace(results=str(tmp_path))
    for path in toy.folder.rglob("*.json"):
        found = json.loads(path.read_text())
        if "loss" in found["flags"]:
            found["flags"]["loss"] = "attention_nce"
        copy = tmp_path / path.relative_to(toy.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(json.dumps(found))
    pretraining, evaluation = results.read(row, study, 0)
    assert pretraining["flags"]["loss"] == "attention_nce" and evaluation
