"""The programs on images of one's own: without labels, without splits, broken, elsewhere."""

import sys

from helpers.groups import Tiny
from helpers.outputs import rows
from helpers.samples import picture, put

import linear
import main
from attentionce import cli


def words(root, results, *more):
    """Flags of a run of one epoch with one step."""
    folders = ["--dataset_name", "folder", "--root", root, "--results", results]
    size = "--arch resnet10 --image_size 8 --store_size 8 --batch_size 4 --epochs 1 --num_pos 1"
    return [*folders, *size.split(), "--precision", "fp32", "--device", "cpu", "--k", 2, *more]


def save(root, *names):
    """One image of noise under each name."""
    put(root, {name: picture((8, 8, 3), i, "PNG") for i, name in enumerate(names)})
    return root


def test_pretraining_without_labels(tmp_path, results, call, capsys, small_encoder):
    root = save(tmp_path / "own", *(f"train/{i}.png" for i in range(8)))
    assert call(main, *words(root, results, "--knn_every", 1)) == 0
    out = capsys.readouterr().out
    assert f"pretraining on 8 images without labels, 8×8 px ({root}/train)\n" in out
    assert f"no kNN accuracy: the images in {root}/train have no labels" in out
    (row,) = rows(results)
    assert float(row["loss"]) > 0 and row["knn_top1"] == ""


def test_what_labels_there_are_vote(tmp_path, results, call, capsys, small_encoder, monkeypatch):
    """Those of the images for pretraining, which are not read a second time."""
    banks, knn = [], main.knn
    monkeypatch.setattr(main, "knn", lambda *given: (banks.append(given[:2]), knn(*given))[1])
    names = ["train/a/1.png", "train/b/2.png", "test/a/1.png", "test/b/x.png"]
    root = save(tmp_path / "own", *names, *(f"unlabeled/{i}.png" for i in range(9)))
    assert call(main, *words(root, results, "--knn_every", 1)) == 0
    ((features, labels),) = banks
    assert len(features) == 2 and labels.tolist() == [0, 1]
    out = capsys.readouterr().out
    assert "pretraining on 11 images, 2 of 2 classes and 9 without labels" in out
    assert f"kNN accuracy on 2 images of 2 classes, 8×8 px ({root}/test); 2 images vote\n" in out


def test_flags_of_the_images(tmp_path, results, encoder, call, refused, capsys):
    """Both programs take them, and say what they left out and which images they test on."""
    names = [f"train/{name}/{i}.png" for name in "ab" for i in range(4)]
    root = save(tmp_path / "own", *names, "held/a/1.png", "held/b/2.png", "test/1.png")
    put(root, {"train/a/broken.png": b"text"})
    flags = ["--test_split", "held", "--skip_broken", "--cache", tmp_path / "cache"]
    pretrain = words(root, results, "--knn_every", 1)
    evaluate = [*pretrain[:6], "--model_path", encoder, "--epochs", 1, "--store_size", 8]
    for module, given in ((main, pretrain), (linear, evaluate)):
        message = refused(module, *given, "--cache", tmp_path / "cache")
        assert "cannot read" in message and "broken.png" in message and "--skip_broken" in message
        assert call(module, *given, *flags) == 0
        out = capsys.readouterr().out
        assert "training on 8 images of 2 classes, 8×8 px" in out
        assert "left out: images beside splits and classes (1), broken images (1)\n" in out
        assert f"on 2 images of 2 classes, 8×8 px ({root}/held)" in out
    suffixes = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert suffixes == [".npy", ".npy", ".part"] and not list(root.glob(".*"))


def pretrain_in_a_group(flags):
    """main.py with a small model, in a group of processes."""
    main.Model = Tiny
    sys.argv = ["main.py", *map(str, flags)]
    cli.run(main.main)


def test_several_processes_without_labels(tmp_path, results, group):
    """None of them waits for test images that another one did not find."""
    root = save(tmp_path / "own", *(f"train/{i}.png" for i in range(8)))
    processes = group(2, pretrain_in_a_group, words(root, results, "--knn_every", 1))
    assert processes.join(60) == [0, 0], processes.output()
    assert processes.output(0).count("no kNN accuracy") == 1
    assert "no kNN accuracy" not in processes.output(1)
