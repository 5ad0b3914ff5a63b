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


# ------------------------------------------------------------------- the study on photographs

PHOTOGRAPHS = """
docs/study-photographs.md
    in linear accuracy it is ahead of all four at equal epochs, by {least:.1f} to {most:.1f} points
    In kNN it is ahead of SimCLR, DCL and BCL at equal epochs, by {least knn:.1f} to {most knn:.1f}
    and of SimCLR at equal views, by {views knn:.1f}.
    one is worse than two and four in kNN, by {two − one:.1f} and {four − one:.1f} points.
    0.1 instead of 10 costs {least last:.1f} to {most last:.1f} points of linear accuracy in the
    in the last epoch, {least best:.1f} to {most best:.1f} in the best, and {least d_neg:.1f} to
    to {most d_neg:.1f} points of kNN.
    0.1 instead of 1 costs {d_pos:.1f} points of kNN
    {positives:.1f} of 4 positives and {negatives:.1f} of 126 negatives count
    steps, by {six uniform:.1f} and {six bayes:.1f} points of kNN, and HCL's by {six hard:.1f}
    behind the mean in kNN, by {sharp least:.1f} to {sharp most:.1f} points
docs/results.md
    ahead of SimCLR by {equal views[2]:.2f} points of kNN and {equal views[1]:.2f} of linear
    in the last epoch (best epoch: {equal views[0]:.2f}); at equal epochs (4) it is ahead by
    at equal epochs (4) it is ahead by {equal epochs[2]:.2f} and {equal epochs[1]:.2f}
    ({equal epochs[0]:.2f}).
"""
BEST, LAST, KNN = range(3)


def ahead(a, b, measure):
    """How many points row a is ahead of b; 0 where that is within the deviations."""
    one, other = (
        [numbers[measure] for numbers, _ in measured(TOY)[row].values()] for row in (a, b)
    )
    gap = mean(one) - mean(other)
    return gap if abs(gap) > math.hypot(stdev(one), stdev(other)) else 0


def test_the_photographs():
    grid, four = (0.1, 1, 10), key(d_pos=1, d_neg=10)
    values = {kind: metric(TOY, four, f"effective_{kind}") for kind in ("positives", "negatives")}
    losses = ("simclr", "dcl", "hcl", "bcl")
    linear = [ahead(four, key(loss, 10), m) for loss in losses for m in (BEST, LAST)]
    knn = [ahead(four, key(loss, 10), KNN) for loss in losses]
    assert min(linear) > 0 and [gap > 0 for gap in knn] == [True, True, False, True]
    values |= {"least": min(linear), "most": max(linear)}
    values |= {"least knn": min(filter(None, knn)), "most knn": max(knn)}
    views = {(loss, m): ahead(four, key(loss, 30), m) for loss in losses for m in range(3)}
    assert [case for case, gap in views.items() if gap] == [("simclr", KNN)]
    values["views knn"] = views["simclr", KNN]
    count = {n: four if n == 4 else key(num_pos=n, d_pos=1, d_neg=10) for n in (1, 2, 4, 8)}
    pairs = {
        (a, b, m): ahead(count[a], count[b], m) for a in count for b in count for m in range(3)
    }
    assert [case for case, gap in pairs.items() if gap > 0] == [(2, 1, KNN), (4, 1, KNN)]
    values |= {"two − one": pairs[2, 1, KNN], "four − one": pairs[4, 1, KNN]}
    for name, measure in (("last", LAST), ("best", BEST), ("d_neg", KNN)):
        costs = [ahead(key(d_pos=d, d_neg=10), key(d_pos=d, d_neg=0.1), measure) for d in grid]
        assert min(costs) > 0
        values |= {f"least {name}": min(costs), f"most {name}": max(costs)}
    values["d_pos"] = ahead(four, key(d_pos=0.1, d_neg=10), KNN)
    sharp = []
    for name, loss in {"uniform": "simclr", "hard": "hcl", "bayes": "bcl", "attention": ""}.items():
        negatives = {"negatives": name} if loss else PAPERS
        average = key(**MEAN, **negatives)
        if loss:
            values[f"six {name}"] = ahead(average, key(loss, 10), LAST if loss == "hcl" else KNN)
        sharp.append(ahead(key(d_pos=0.1, **negatives), average, KNN))
        for kind in (EACH, {"d_pos": 1}):  # "level"
            assert not any(ahead(key(**kind, **negatives), average, m) for m in range(3))
    assert sharp[1] == 0  # with HCL's negatives it is level
    values |= {"sharp least": -max(filter(None, sharp)), "sharp most": -min(sharp)}
    for negatives in (UNIFORM, PAPERS):  # "never ahead of the mean"
        for noise in ({}, {"noisy_positives": 0.25}, {"noisy_positives": 0.5}):
            average = key(**MEAN, **negatives, **noise)
            for d_pos in (1, 0.1):
                row = key(d_pos=d_pos, **negatives, **noise)
                assert max(ahead(row, average, measure) for measure in range(3)) <= 0
    for d_pos in (1, 0.1):
        cells = []
        for noise in (0.25, 0.5):
            rows = [key(d_pos=d_pos, **n, noisy_positives=noise) for n in (UNIFORM, PAPERS)]
            got = sorted({f"{metric(TOY, row, 'attention_on_noisy'):.2f}" for row in rows})
            cells.append(" to ".join(got))
        says("docs/study-photographs.md", f"| α, d_pos {d_pos} | {' | '.join(cells)} |")
    noisy = [{**UNIFORM, "d_pos": 1, "noisy_positives": noise} for noise in (0.25, 0.5)]
    cells = [f"{metric(TOY, key(**flags), 'noisy_positives'):.2f}" for flags in noisy]
    says("docs/study-photographs.md", f"| share of the positives | {' | '.join(cells)} |")
    run = "resnet10-4/seed0/folder/folder_SimCLR_{}_linear.json".format
    ours = accuracies(found(run("4model_64_4_1.0_10.0")))
    for name, epochs in (("equal views", 12), ("equal epochs", 4)):
        theirs = accuracies(found(run(f"simclr_64_{epochs}")))
        values[name] = [a - b for a, b in zip(ours, theirs, strict=True)]
    says_all(PHOTOGRAPHS, values)
