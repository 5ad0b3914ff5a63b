"""main.py: its flags, what a run writes and prints, and that the seed decides everything."""

import json
import re

import pytest
import torch
from helpers.device import DEVICE
from helpers.outputs import check_end, last, read_csv, rows, same_bits
from helpers.programs import Small
from helpers.runs import new_run
from torch.nn.functional import normalize

import main
from attentionce.presets import PRESETS
from attentionce.runs import files, states
from attentionce.training import devices
from loss import contrastive

# What flags without effect had before they were None.
OLD_FLAGS = {"num_pos": 4, "d_pos": 1.0, "d_neg": 1.0, "tau_plus": 0.1, "queue": 4096}


# ---- flags ----

REFERENCE = """--root data --dataset_name cifar10 --feature_dim 128 --temperature 0.5 --k 200
--batch_size 256 --epochs 400 --estimator SimCLR --d_pos 1 --d_neg 1 --lr 1e-3 --weight_decay 1e-6
--loss attentionce --num_pos 4 --arch resnet50 --image_size 32 --save_every 200"""


def test_flags_and_defaults_of_the_reference():
    assert main.parse_args(REFERENCE.split()) == main.parse_args([])
    assert main.parse_args(["--dataset_name", "tinyImageNet"]).save_every == 100
    assert main.parse_args(["--dataset_name", "tinyImageNet", "--save_every", "7"]).save_every == 7


# ---- what a run writes ----


def test_what_a_run_writes(call, tiny, results, small_encoder, capsys, contents):
    """One row per epoch; weights and kNN at multiples of their flags, and at the end."""
    words = "--epochs 3 --save_every 2 --knn_every 2 --k 5 --d_pos 2 --seed 9"
    assert call(main, *tiny, *words.split()) == 0
    folder, stem = results / "folder", "folder_SimCLR_4model_8_{}_2.0_1.0"
    written = {stem.format(epoch) + ".pth" for epoch in (2, 3)}
    written |= {stem.format(3) + ending for ending in (".csv", ".json", ".state")}
    assert set(contents(results)) == {f"folder/{name}" for name in written}

    table = read_csv(folder / (stem.format(3) + ".csv"))
    columns = "epoch loss views seconds skipped effective_positives effective_negatives knn_top1"
    assert set(table[0]) >= {*columns.split(), "knn_top5", "alignment"}
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert [int(row["views"]) for row in table] == [epoch * 24 * 6 for epoch in (1, 2, 3)]
    assert [row["knn_top1"] != "" for row in table] == [False, True, True]
    for row in table:
        assert 0 < float(row["loss"]) < 20 and 1 <= float(row["effective_positives"]) <= 4
        assert 1 <= float(row["effective_negatives"]) <= 14
    said, bars = capsys.readouterr()
    assert bars == ""  # it is no terminal
    lines = re.findall(r"^epoch (\d)/3: loss [\d.]+, [\d,]+ images/s, [\d:]+ left", said, re.M)
    assert lines == ["1", "2", "3"] and re.search("epoch 2/3: .*, kNN top-1 .* %, top-5", said)

    result = json.loads((folder / (stem.format(3) + ".json")).read_text())
    assert result["flags"].keys() == vars(main.parse_args([])).keys()
    assert result["flags"]["d_pos"] == 2.0 and result["flags"]["queue"] is None
    assert result["machine"]["device"] == str(DEVICE)
    assert result["precision"] == "float32" and result["epochs_done"] == 3
    assert result["best_knn"] == max(float(row["knn_top1"] or 0) for row in table)
    assert str(result["last"]["loss"]) == table[-1]["loss"]

    one, other = (files.read(folder / (stem.format(epoch) + ".pth")) for epoch in (2, 3))
    assert list(other) == [f"module.{key}" for key in Small().state_dict()]
    assert not same_bits(one, other)
    assert other["module.f.1.num_batches_tracked"] == 3 * 3 * 6


def test_the_seed_decides_every_bit(call, tiny, results, small_encoder):
    found = []
    for i, seed in enumerate((0, 0, 1)):
        torch.rand(i)  # what was drawn before does not matter
        folder = results / str(i)
        words = ["--num_pos", 2, "--seed", seed, "--device", "cpu"]  # a GPU needs --deterministic
        call(main, *tiny, *words, "--results", folder)
        found.append(files.read(last(folder, ".pth")))
    assert same_bits(found[0], found[1])
    assert not torch.equal(found[0]["module.f.0.weight"], found[2]["module.f.0.weight"])


# ---- losses ----


@pytest.mark.parametrize("positives, negatives", [*PRESETS.values(), ("mean", "attention")])
def test_losses_train(call, tiny, results, small_encoder, positives, negatives):
    """With MoCo, too, where it has positives. What has attention reports how much of it counts."""
    flags = [*tiny, "--batch_size", 24, "--positives", positives, "--negatives", negatives]
    numbers = {"positives": 4, "negatives": 46}
    torch.manual_seed(0)
    untrained = Small().g.weight
    for more in ([], ["--estimator", "MoCo", "--queue", 30]):
        if more and positives == "pair":
            continue
        assert call(main, *flags, *more, "--results", results / str(len(more))) == 0
        (row,) = rows(results / str(len(more)))
        assert 0 < float(row["loss"]) < 20
        assert int(row["views"]) == 24 * (2 if positives == "pair" else 6)
        for side, name in (("positives", positives), ("negatives", negatives)):
            effective = row[f"effective_{side}"]
            assert 1 <= float(effective) <= numbers[side] if name == "attention" else not effective
        weight = files.read(last(results / str(len(more)), ".pth"))["module.g.weight"]
        assert weight.isfinite().all() and not torch.equal(weight, untrained)


@pytest.mark.parametrize("positives, negatives", [*PRESETS.values(), ("each", "bayes")])
def test_a_run_has_the_loss_that_is_named_with_its_flags(positives, negatives):
    values = {"tau_plus": 0.2, "alpha": 0.7, "beta": 0.6, "d_pos": 2.0, "d_neg": 0.5}
    defaults = vars(main.parse_args(["--positives", positives, "--negatives", negatives]))
    used = {name: value for name, value in values.items() if defaults[name] is not None}
    words = [word for name, value in used.items() for word in (f"--{name}", value)]
    words += ["--positives", positives, "--negatives", negatives, "--temperature", 0.3]
    run = new_run(*words, encoder=Small)
    z = normalize(torch.randn(run.views, 5, 4, dtype=torch.float64), dim=-1)
    assert torch.equal(run.loss(z), contrastive(z, positives, negatives, 0.3, **used))


# ---- the same command again ----


def test_changed_code_is_named(call, tiny, small_encoder, stop_after, monkeypatch, capsys):
    """Whether the command resumes a run, finds it done, or extends it."""
    assert devices.code_digests().keys() == set(devices.CODE)
    changed = {**devices.code_digests(), "loss.py": "changed", "model.py": "changed"}
    stop_after(4)
    assert call(main, *tiny, "--epochs", 2) == 143
    with monkeypatch.context() as patch:
        patch.setattr(states, "code_digests", lambda: changed)
        for epochs, then in ((2, "continuing from"), (2, "already trained"), (3, "extending")):
            capsys.readouterr()
            assert call(main, *tiny, "--epochs", epochs) == 0
            said = capsys.readouterr().out
            assert then in said and said.count("to start over: --resume never\n") == 1
            assert "loss.py, model.py changed since the state was saved" in said
    assert call(main, *tiny, "--epochs", 3) == 0
    assert capsys.readouterr().out.startswith("already trained")


def test_a_shorter_run_than_an_interrupted_one_is_refused(
    call, refused, tiny, results, small_encoder, stop_after
):
    stop_after(2)
    assert call(main, *tiny, "--epochs", 3) == 143
    message = refused(main, *tiny, "--epochs", 2)
    assert f"{last(results, '.state')} is this run with --epochs 3: give that to" in message
    assert call(main, *tiny, "--epochs", 2, "--resume", "never") == 0


@pytest.mark.parametrize("loss, named", [("attentionce", False), ("hcl", True)])
def test_a_state_of_older_code_continues(
    call, tiny, results, tmp_path, small_encoder, stop_after, refused, loss, named
):
    """Its flags name no positives and negatives, and all have a value, used or not."""
    flags = [*tiny, "--epochs", 3, "--device", "cpu", "--loss", loss]
    call(main, *flags, "--results", tmp_path / "whole")
    stop_after(4)
    assert call(main, *flags) == 143
    stop_after(10**6)
    state, result = last(results, ".state"), last(results, ".json")
    content, description = files.read(state), json.loads(result.read_text())
    for old in (content["flags"], description["flags"]):
        del old["positives"], old["negatives"]
        old.update({name: value for name, value in OLD_FLAGS.items() if old[name] is None})
    files.save(state, content)
    result.write_text(json.dumps(description))
    words = ["--resume", state] if named else []
    assert "--temperature 0.1 (there: 0.5)" in refused(main, *flags, *words, "--temperature", 0.1)
    assert call(main, *flags, *words) == 0
    check_end(results, tmp_path / "whole")
