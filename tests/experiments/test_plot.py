"""experiments/plot.py: every picture is drawn, and shows what was measured."""

import json
import runpy
import sys

import pytest
import torch
from conftest import ROOT

import main
from experiments import plot
from model import load_encoder


def test_pictures(toy, pictures, call, refused, tmp_path):
    """Every picture is drawn, from real weights and tables, also of a small data set."""
    trained = next(toy.folder.rglob("*_4_1.0_10.0.pth"))
    tables = list(toy.folder.rglob("*.csv"))
    assert any("linear" in table.name for table in tables)  # which curves leaves out
    words = ["--csv", *tables, "--model_path", "random", trained, "--dataset_name", "folder"]
    words += ["--root", pictures, "--store_size", 8, "--image_size", 8, "--out", tmp_path]
    call(plot, *plot.PICTURES, *words)
    for name in plot.PICTURES:
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert "--batch_size" in refused(plot, "flags", *words, "--batch_size", 3)
    encoder, _ = load_encoder(trained)
    torch.save(
        {f"f.{name}": value for name, value in encoder.state_dict().items()}, tmp_path / "f.pth"
    )
    call(plot, "neighbours", *words, "--model_path", tmp_path / "f.pth")  # it needs no more


def test_the_photographs_and_an_untrained_encoder_are_the_default(call, tmp_path):
    call(plot, "flags", "--image_size", 8, "--batch_size", 16, "--out", tmp_path)
    assert (tmp_path / "flags.png").exists()


def test_curves_refuse_what_is_not_a_table_of_main(refused, tmp_path):
    curves = ("curves", "--out", tmp_path, "--csv")
    assert "is not a table" in refused(plot, *curves, ROOT / "requirements.txt")
    assert "needs --csv" in refused(plot, "curves", "--out", tmp_path)
    assert "not of linear.py" in refused(plot, *curves, tmp_path / "some_linear.csv")
    table = tmp_path / "table.csv"
    table.write_text("epoch,views,seconds,loss,knn_top1\n")
    assert "no rows yet" in refused(plot, *curves, table)


def test_curves_show_mean_and_range_of_seeds(tmp_path):
    """As far as all seeds have come; kNN accuracy only where all have measured it."""
    head = "epoch,loss,views,seconds,knn_top1\n"
    rows = ["1,4.0,60,30,\n", "2,3.0,120,60,50\n", "3,2.0,180,90,\n"]
    flags = vars(main.parse_args(["--d_neg", "10"]))
    paths = []
    for seed, lines in enumerate((rows, ["1,6.0,60,50,40\n", "2,5.0,120,100,60\n"])):
        path = tmp_path / str(seed) / "cifar10_SimCLR_4model_256_400_1.0_10.0.csv"
        path.parent.mkdir()
        path.write_text(head + "".join(lines))
        path.with_name(f"{path.stem}.json").write_text(json.dumps({"flags": flags}))
        paths.append(str(path))
    figure = plot.plot_curves(plot.parse_args(["curves", "--csv", *paths]))
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


def test_missing_matplotlib_is_reported_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "experiments" / "plot.py"))
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "pip install matplotlib" in lines[0]
