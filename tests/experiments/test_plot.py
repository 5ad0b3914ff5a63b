"""experiments/plot.py: every picture is drawn, and shows what was measured."""

import json
import runpy
import sys

import pytest
import torch
from conftest import ROOT

from attentionce.data.images import Images
from attentionce.errors import UserError
from experiments import encoder_figures, plot, result_figures, results, studies


def test_pictures(toy, pictures, call, tmp_path):
    """Every picture is drawn, from real weights and tables."""
    trained = next(toy.folder.rglob("*.pth"))
    tables = list(toy.folder.rglob("*.csv"))
    assert any("linear" in table.name for table in tables)  # which curves leaves out
    drawn = [name for name in plot.PICTURES if name != "grid"]
    study = toy.flags[: toy.flags.index("--pretrain")]
    words = [*drawn, "--csv", *tables, "--model_path", "random", trained]
    words += ["--dataset_name", "folder", "--root", pictures, "--store_size", 8]
    words += ["--image_size", 8, "--out", tmp_path]
    pretrain, linear = (toy.flags[toy.flags.index(flag) + 1] for flag in ("--pretrain", "--linear"))
    study = f"folder {' '.join(study)} --pretrain='{pretrain}' --linear='{linear}'"
    words += ["--study", f"{study} --root {pictures} --results {toy.folder}"]
    call(plot, *words)
    for name in drawn:
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_pictures_of_the_photographs(call, tmp_path):
    """They are the default; an untrained encoder is too."""
    words = ["attention", "numbers", "flags", "--image_size", 8, "--batch_size", 16]
    call(plot, *words, "--out", tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_curves_refuse_what_is_not_a_table_of_main(toy, refused, tmp_path):
    other = refused(plot, "curves", "--csv", ROOT / "requirements.txt", "--out", tmp_path)
    assert "is not a table of metrics of main.py" in other
    linear = next(toy.folder.rglob("*_linear.csv"))
    assert "has no tables of main.py" in refused(plot, "curves", "--csv", linear, "--out", tmp_path)
    assert "needs --csv" in refused(plot, "curves", "--out", tmp_path)
    empty = tmp_path / "empty.csv"
    empty.write_text("epoch,views,seconds,loss,knn_top1\n")
    assert "no rows yet" in refused(plot, "curves", "--csv", empty, "--out", tmp_path)
    empty.write_text("epoch,views,seconds,loss,knn_top1\n1,2\n")
    assert "is not a table" in refused(plot, "curves", "--csv", empty, "--out", tmp_path)


def test_curves_show_mean_and_range_of_seeds(tmp_path):
    """As far as all seeds have come; kNN accuracy only where all have measured it."""
    head = "epoch,loss,views,seconds,knn_top1\n"
    rows = ["1,4.0,60,30,\n", "2,3.0,120,60,50\n", "3,2.0,180,90,\n"]
    paths = []
    for seed, lines in enumerate((rows, ["1,6.0,60,50,40\n", "2,5.0,120,100,60\n"])):
        path = tmp_path / str(seed) / "cifar10_SimCLR_4model_256_400_1.0_10.0.csv"
        path.parent.mkdir()
        path.write_text(head + "".join(lines))
        paths.append(str(path))
    figure = result_figures.plot_curves(plot.parse_args(["curves", "--csv", *paths]))
    loss, knn = figure.axes[0], figure.axes[3]
    (line,) = loss.lines
    assert line.get_label() == "AttentioNCE (d_pos 1, d_neg 10), 400 epochs"
    assert line.get_xdata().tolist() == [1, 2] and line.get_ydata().tolist() == [5, 4]
    band = loss.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == 3 and band.max() == 6
    assert knn.lines[0].get_xdata().tolist() == [2] and knn.lines[0].get_ydata().tolist() == [55]
    minutes = figure.axes[2].lines[0].get_xdata()
    assert minutes.tolist() == pytest.approx([40 / 60, 80 / 60])
    assert figure.axes[5].get_xlabel() == "minutes of training"


def test_pictures_of_a_small_data_set(pictures, call, refused, tmp_path):
    words = ["attention", "numbers", "flags", "--dataset_name", "folder", "--root", pictures]
    words += ["--image_size", 8, "--out", tmp_path]
    call(plot, *words)
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert "--batch_size" in refused(plot, *words, "--batch_size", 3)


def test_map_tells_many_classes_by_colour_and_mark():
    """More classes than colours; too many for their names."""
    labels = torch.arange(24)
    images = Images(torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8), labels, ["?"] * 24)
    args = plot.parse_args(["map"])
    args.device = torch.device("cpu")
    (axis,) = encoder_figures.plot_map(args, images).axes
    looks = {(line.get_color(), line.get_marker()) for line in axis.lines}
    assert len(looks) == 24 and len(axis.texts) == 0


def evaluate(row, study, seed, result):
    """Write a linear evaluation of this content."""
    path = results.weights(row, study, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.stem}_linear.json").write_text(json.dumps(result))


def test_grid_shows_the_mean_over_seeds(tmp_path):
    args = studies.parse_flags(["--results", str(tmp_path)])
    rows = [row for row in studies.photo_rows() if row.flags.get("num_pos") == 4]
    for number, (row, study) in enumerate(studies.with_flags(rows, args)):
        for seed in (0, 1):
            top1 = {"top1": 10 + number + 2 * seed}
            evaluate(row, study, seed, {"knn_top1": 50 + number + 2 * seed, "best_epoch": top1})
    figure = result_figures.plot_grid(plot.parse_args(["grid", "--results", str(tmp_path)]))
    knn, linear = figure.axes[:2]  # the colour bars come after them
    for axis, first in ((knn, 51), (linear, 11)):
        texts = {text.get_text() for text in axis.texts}
        assert texts == {f"{first + number:.2f}\n± 1.41" for number in range(len(rows))}
    with pytest.raises(UserError, match="no results in"):
        result_figures.plot_grid(plot.parse_args(["grid", "--results", str(tmp_path / "none")]))


def test_accuracy_shows_the_study_beside_the_paper(tmp_path):
    """Mean and deviation over seeds against epochs and encoded views, and the paper's figures."""
    words = f"folder --seeds 0 1 --epochs 8 --results {tmp_path}"
    options = studies.parse_flags(words.split())
    for row, study in studies.with_flags(studies.folder_rows(), options):
        for seed in (0, 1):
            evaluate(row, study, seed, {"best_epoch": {"top1": row.epochs + 2 * seed}})
    args = plot.parse_args(["accuracy", "--study", words, "--beside", "cifar10"])
    epochs, views = result_figures.plot_accuracy(args).axes
    for axis, factors in ((epochs, (1, 1)), (views, (6, 2))):
        lines = [bars.lines[0] for bars in axis.containers]
        for line, stops, factor in zip(lines, ([2, 4, 8], [6, 8, 12, 24]), factors, strict=True):
            assert line.get_xdata().tolist() == [factor * stop for stop in stops]
            assert line.get_ydata().tolist() == [stop + 1 for stop in stops]
        tops = [bars.lines[1][1].get_ydata()[0] for bars in axis.containers]
        assert tops == pytest.approx([2 + 1 + 2**0.5, 6 + 1 + 2**0.5])
    published = [line for line in epochs.lines if "published" in line.get_label()]
    assert [line.get_ydata()[0] for line in published] == [91.12, 92.52, 92.42, 93.08]
    assert [line.get_xdata()[0] for line in published] == [400, 400, 200, 400]
    published = [line for line in views.lines if "published" in line.get_label()]
    assert [line.get_xdata()[0] for line in published] == [800, 800, 1200, 2400]
    empty = plot.parse_args(["accuracy", "--study", f"photos --results {tmp_path}"])
    with pytest.raises(UserError, match="no results of"):
        result_figures.plot_accuracy(empty)


def test_missing_matplotlib_is_reported_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "experiments" / "style.py"))
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "pip install matplotlib scikit-learn" in lines[0]
