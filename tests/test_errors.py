"""Wrong images, results folders and weights: one line that says what is wrong and what to do."""

import linear
import main
from attentionce.errors import UserError

# ---- images ----


def test_a_root_without_images(refused, tiny, evaluation, encoder, tmp_path, contents):
    (tmp_path / "empty").mkdir()
    for program, flags in ((main, tiny), (linear, [*evaluation, "--model_path", encoder])):
        message = refused(program, *flags, "--root", tmp_path / "empty")
        assert f"--root '{tmp_path / 'empty'}' needs a folder train with one folder per" in message
        assert "there are none" in message
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


def test_missing_weights(refused, evaluation, encoder, nothing_loaded, contents):
    """All are opened before the first is evaluated, so that good ones have no results either."""
    path, before = encoder.parent / "none.pth", contents(encoder.parent)
    message = refused(linear, *evaluation, "--model_path", encoder, path)
    assert f"{path} does not exist" in message
    assert contents(encoder.parent) == before


def test_a_message_is_one_printable_line():
    """Whatever the names of files or the flags in a damaged state hold."""
    message = str(UserError("--lr 1 (there: \x16)\r\nand \udcff: é 漢"))
    assert message == "--lr 1 (there: \\x16)  and \\udcff: é 漢"
