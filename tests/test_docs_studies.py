"""Every figure that a sentence about the studies takes from results/ is what the files say."""

import functools
import math
from argparse import Namespace
from statistics import mean, stdev

from helpers.pages import found, says, says_all

from experiments import results, studies

SMALL, TOY, FOLDER = "cifar10-small", "photos", "folder"
EPOCHS = {SMALL: 4, TOY: 10}  # of the losses of six views
UNIFORM, PAPERS = {"negatives": "uniform"}, {"d_neg": 10}
MEAN, EACH = {"positives": "mean"}, {"positives": "each"}


def key(loss="attentionce", epochs=None, **flags):
    return loss, epochs, frozenset(flags.items())


@functools.cache
def measured(study):
    """By row and seed: accuracies of the best and of the last epoch, kNN; the last metrics."""
    table = {}
    for row in studies.all_rows(Namespace(seeds=[0, 1, 2])):
        if row.study.name == study:
            runs = {seed: results.read(row, seed) for seed in row.seeds}
            epochs = row.epochs if row.loss != "attentionce" else None
            table[key(row.loss, epochs, **row.flags)] = {
                seed: (accuracies(*run.evaluations.values()), run.pretraining["last"])
                for seed, run in runs.items()
                if run.evaluations
            }
    return table


def accuracies(evaluation):
    best, last = (evaluation[f"{which}_epoch"]["top1"] for which in ("best", "last"))
    return best, last, evaluation["knn_top1"]


def gaps(study, a, b):
    """Row a minus row b in each of the three accuracies: a list over the seeds that both have."""
    one, other = measured(study)[a], measured(study)[b]
    pairs = [(one[seed][0], other[seed][0]) for seed in one if seed in other]
    assert pairs
    return [[x[i] - y[i] for x, y in pairs] for i in range(3)]


def metric(study, row, name):
    """A metric after the last epoch, mean over the seeds."""
    return mean(float(last[name]) for _, last in measured(study)[row].values())


def minus(text):
    return text.replace("-", "−")


def points(values):
    """`+1.30 ± 0.51` of several seeds."""
    return minus(f"{mean(values):+.2f} ± {stdev(values):.2f}")


def three(values, sign="+"):
    """`+1.3 / −0.2 / +0.5`: best epoch, last epoch, kNN."""
    return minus(" / ".join(f"{mean(each):{sign}.1f}" for each in values))


# ---------------------------------------------------------------------- the study on CIFAR-10

OURS, NONE, SHARP = (key(d_pos=p, d_neg=n) for p, n in ((1, 10), (10**6, 10**6), (0.1, 0.5)))
SIMCLR, SIMCLR_12 = (key("simclr", epochs) for epochs in (4, 12))
COMPARED = {
    "AttentioNCE − SimCLR, equal epochs": (OURS, SIMCLR),
    "no attention − SimCLR, equal epochs": (NONE, SIMCLR),
    "AttentioNCE − SimCLR, equal views": (OURS, SIMCLR_12),
    "no attention − SimCLR, equal views": (NONE, SIMCLR_12),
    "AttentioNCE − no attention": (OURS, NONE),
    "sharper − AttentioNCE": (SHARP, OURS),
    "sharper − SimCLR, equal views": (SHARP, SIMCLR_12),
}
STUDY = """
README.md
    AttentioNCE is {equal epochs[1]:.1f} points of linear accuracy ahead of SimCLR
    (last epoch; best epoch: {equal epochs[0]:.1f}), without its attention
    without its attention {none[1]:.1f} ({none[0]:.1f}). At equal numbers of encoded views it
    two cores took [{epoch minutes:.0f} minutes](docs/study-cifar10.md#the-same-on-two-cpu-cores)
docs/choosing-d_pos-and-d_neg.md
    it was {hcl least:.1f} to {hcl most:.1f} points ahead of SimCLR at equal numbers of encoded
    (one seed), BCL {bcl least:.1f} to {bcl most:.1f}, and AttentioNCE was level
    it was {six least:.0f} to {six most:.0f} points ahead of SimCLR at equal epochs, and
    gained {sharper[2]:.1f} points of kNN accuracy over (1, 10) and lost {lost[1]:.1f}
    of linear accuracy (last epoch; best epoch: {lost[0]:.1f}), too little
    where {positives:.2f} of 4 positives and {negatives:.1f} of 510 negatives counted at (1, 10)
docs/study-cifar10.md
    of positives is {positives:.2f} of 4, and of negatives {negatives:.1f} of 510.
    are {sharp positives:.1f} of 4 positives and {sharp negatives:.0f} of 510 negatives.
    last epoch are {apart:.1f} points apart on average.
    reaches {untrained[0]:.2f}% linear accuracy, in the best and in the last epoch, and
    and {untrained[2]:.2f}% kNN accuracy (on a CPU, seed 0)
    RankMe falls from {rank sharp:.0f} to {rank sharp noisy:.0f} (with 50% noise; the mean's is
    the mean's is {rank mean:.0f} and {rank mean noisy:.0f}).
    positives noisy it is {noisy least:.1f} to {noisy most:.1f} points above the mean
"""


def test_the_study():
    values = {
        f"{name}{kind}": metric(SMALL, row, f"effective_{kind}")
        for name, row in (("", OURS), ("sharp ", SHARP))
        for kind in ("positives", "negatives")
    }
    for name, rows in COMPARED.items():
        found_gaps = gaps(SMALL, *rows)
        says("docs/study-cifar10.md", f"| {name} | {' | '.join(map(points, found_gaps))} |")
        values[name] = [mean(gap) for gap in found_gaps]
    values["equal epochs"] = values["AttentioNCE − SimCLR, equal epochs"]
    values["none"] = values["no attention − SimCLR, equal epochs"]
    values["sharper"] = values["sharper − AttentioNCE"]
    values["lost"] = [-x for x in values["sharper"]]
    assert all(7 < gap < 8 for gap in values["equal epochs"])  # "seven to eight points"
    assert all(-1 < gap < 0 for gap in values["AttentioNCE − SimCLR, equal views"])  # "level"
    assert all(0 < gap < 1 for gap in values["AttentioNCE − no attention"])
    pairs = {"hcl": (key("hcl", 12), SIMCLR_12), "bcl": (key("bcl", 12), SIMCLR_12)}
    pairs["six"] = (key(**MEAN, negatives="hard"), SIMCLR)
    noisy = {"d_neg": 10, "noisy_positives": 0.5}
    pairs["noisy"] = (key(d_pos=1, **noisy), key(**MEAN, **noisy))
    for name, rows in pairs.items():
        one = [mean(gap) for gap in gaps(SMALL, *rows)]
        values |= {f"{name} least": min(one), f"{name} most": max(one)}
    for name, row in (("sharp", {"d_pos": 0.1}), ("mean", MEAN)):
        values[f"rank {name}"] = metric(SMALL, key(**row, **PAPERS), "rankme")
        values[f"rank {name} noisy"] = metric(SMALL, key(**row, **noisy), "rankme")
    values["untrained"] = accuracies(found("cpu/folder/random_resnet10_0_linear.json"))
    assert f"{values['untrained'][0]:.2f}" == f"{values['untrained'][1]:.2f}"
    values["epoch minutes"] = on_cpu("4model_256_4_1.0_10.0.json")["hours"] * 60 / 4
    every = [numbers for row in measured(SMALL).values() for numbers, _ in row.values()]
    values["apart"] = mean(best - last for best, last, _ in every)
    errors = [math.sqrt(best * (100 - best) / 10_000) for best, _, _ in every]
    assert {f"{error:.1f}" for error in errors} == {"0.5"}
    assert f"{math.sqrt(2) * max(errors):.1f}" == "0.7"
    says_all(STUDY, values)


def test_six_views_and_noise():
    """The two tables of seed 0."""
    page, sharp = "docs/study-cifar10.md", {"d_pos": 0.1}
    names = {"uniform (SimCLR's)": "simclr", "hard (HCL's)": "hcl", "Bayesian (BCL's)": "bcl"}
    for name, loss in names.items():
        negatives = {"negatives": {"simclr": "uniform", "hcl": "hard", "bcl": "bayes"}[loss]}
        average, two = key(**MEAN, **negatives), [key(loss, epochs) for epochs in (4, 12)]
        cells = [" / ".join(f"{x:.2f}" for x in measured(SMALL)[two[1]][0][0])]
        cells += [three([gap[:1] for gap in gaps(SMALL, average, row)]) for row in two]
        cells += compared_with_mean(negatives)
        says(page, f"| {name} | {' | '.join(cells)} |")
    says(page, f"| attention (10) | | | | {' | '.join(compared_with_mean(PAPERS))} |")
    for name, negatives in (("uniform", UNIFORM), ("attention (10)", PAPERS)):
        for noise in (0.25, 0.5):
            flags = {**negatives, "noisy_positives": noise}
            lost = three(gaps(SMALL, key(**MEAN, **negatives), key(**MEAN, **flags)), "")
            line = f"| {name} | {noise:.0%} | {lost} | {' | '.join(compared_with_mean(flags))} |"
            says(page, line.replace("%", " %"))
    for d_pos, text in ((1, "d_pos 1"), (0.1, "d_pos 0.1")):
        cells = []
        for noise in (0.25, 0.5):
            rows = [key(d_pos=d_pos, **n, noisy_positives=noise) for n in (UNIFORM, PAPERS)]
            got = sorted({f"{metric(SMALL, row, 'attention_on_noisy'):.2f}" for row in rows})
            cells.append(" to ".join(got))
            assert metric(SMALL, rows[0], "noisy_positives") == metric(
                SMALL, rows[1], "noisy_positives"
            )
        says(page, f"| their share of α, {text} | {' | '.join(cells)} |")
    assert all(gap[0] < -2 for gap in gaps(SMALL, key(**sharp, **UNIFORM), key(**MEAN, **UNIFORM)))


def compared_with_mean(flags, study=SMALL):
    """Each, attention (1) and attention (0.1) minus the mean, all with these flags."""
    kinds = (EACH, {"d_pos": 1}, {"d_pos": 0.1})
    return [three(gaps(study, key(**kind, **flags), key(**MEAN, **flags))) for kind in kinds]


def on_cpu(name):
    return found(f"cpu/cifar10-small-resnet10-4/seed0/folder/folder_SimCLR_{name}")


def test_the_study_on_a_cpu():
    page, moved, minutes = "docs/study-cifar10.md", [], []
    runs = {"SimCLR | 4": ("simclr_256_4", SIMCLR), "SimCLR | 12": ("simclr_256_12", SIMCLR_12)}
    runs["AttentioNCE | 4"] = ("4model_256_4_1.0_10.0", OURS)
    for method, (name, row) in runs.items():
        evaluation = on_cpu(f"{name}_linear.json")
        both = list(zip(accuracies(evaluation), measured(SMALL)[row][0][0], strict=True))
        moved += [abs(cpu - gpu) for cpu, gpu in both]
        hours = ""
        if row != SIMCLR:  # which is a part of the longer run
            total = on_cpu(f"{name}.json")["hours"] + evaluation["hours"]
            minutes.append(60 * round(total, 2))
            hours = f"{total:.2f} "
        cells = " | ".join(f"{cpu:.2f} / {gpu:.2f}" for cpu, gpu in both)
        says(page, f"| {method} | {cells} | {hours}|")
    least, most = min(minutes), max(minutes)
    says(page, f"takes [{least:.0f} to {most:.0f} minutes](#the-same-on-two-cpu-cores)")
    says(page, f"the hardware alone moves an accuracy by up to {max(moved):.1f} points")
