"""Wrong images, results folders and weights: one line that says what is wrong and what to do."""

import pytest
import torch

import linear
import main
from attentionce.errors import UserError

# ---- images ----


@pytest.mark.parametrize("root, why", [("empty", "there are none"), ("missing", "no such folder")])
def test_a_root_without_images(refused, tiny, evaluation, encoder, tmp_path, contents, root, why):
    (tmp_path / "empty").mkdir()
    for program, flags in ((main, tiny), (linear, [*evaluation, "--model_path", encoder])):
        message = refused(program, *flags, "--root", tmp_path / root)
        assert f"--root '{tmp_path / root}' needs a folder train with one folder per" in message
        assert why in message
    assert set(contents(tmp_path)) == {"weights/encoder.pth"}  # not even a lock


def test_fewer_images_than_a_batch(refused, call, tiny, results, evaluation, encoder, contents):
    message = refused(main, *tiny, "--batch_size", 25)
    assert "--batch_size 25" in message and "24 images" in message
    assert contents(results) == {}
    # linear.py drops no images, so that less than a batch is enough.
    call(linear, *evaluation, "--model_path", encoder, "--batch_size", 25)


def test_k_above_the_number_of_images(call, tiny, evaluation, encoder, capsys):
    """The run says so and goes on with fewer."""
    call(main, *tiny, "--loss", "simclr", "--knn_every", 1, "--k", 500)
    call(linear, *evaluation, "--model_path", encoder, "--k", 500)
    said = capsys.readouterr().out
    assert said.count("--k 500") == said.count("using 24") == 2


# ---- results ----


def test_a_results_folder_that_takes_no_files(refused, tiny, tmp_path, evaluation, nothing_loaded):
    """It lies below a regular file, because root may write into any folder."""
    file = tmp_path / "file"
    file.write_text("mine")
    folder = file / "results"
    untrained = [*evaluation, "--model_path", "random", "--arch", "resnet10"]
    for program, flags in ((main, tiny), (linear, untrained)):
        message = refused(program, *flags, "--results", folder)
        assert "--results" in message and str(folder) in message
    assert file.read_text() == "mine"


# ---- weights ----


@pytest.mark.parametrize(
    "content, named",
    [
        (None, "no file"),
        ("<html>404</html>", "is truncated, damaged or not a weights file of PyTorch"),
        ({"weight": torch.ones(2)}, "not of a known arch"),
    ],
)
def test_bad_weights(refused, evaluation, encoder, nothing_loaded, contents, content, named):
    """All are opened before the first is evaluated, so that good ones have no results either."""
    path = encoder.parent / "foreign.pth"
    if isinstance(content, str):
        path.write_text(content)
    elif content:
        torch.save(content, path)
    before = contents(encoder.parent)
    message = refused(linear, *evaluation, "--model_path", encoder, path)
    assert str(path) in message and named in message
    assert contents(encoder.parent) == before


def test_a_message_is_one_printable_line():
    """Whatever the names of files or the flags in a damaged state hold."""
    assert str(UserError("--lr 1 (there: \x16)\r\nand \udcff: é 漢")) == (
        "--lr 1 (there: \\x16)  and \\udcff: é 漢"
    )
