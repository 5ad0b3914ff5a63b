"""Every figure that a sentence about the studies takes from results/ is what the file says."""

import itertools
import math
from statistics import mean, stdev

from helpers.pages import RESULTS, found, last_row, says, says_all

SMALL = "cifar10-small-resnet10-4/seed{}/folder/folder_SimCLR_{}"
PAPERS, NONE, SHARP = (
    f"4model_256_4_{pair}" for pair in ("1.0_10.0", "1000000.0_1000000.0", "0.1_0.5")
)
SIMCLR, SIMCLR_12 = "simclr_256_4", "simclr_256_12"
PHOTOS = "resnet10-10/seed{}/photos/photos_SimCLR_{}"
SHORT = "resnet10-4/seed{}/folder/folder_SimCLR_{}"
MEASURES = {
    "best": lambda result: result["best_epoch"]["top1"],
    "last": lambda result: result["last_epoch"]["top1"],
    "knn": lambda result: result["knn_top1"],
}


def measured(pattern, run, measure, seeds=range(3)):
    """What the linear evaluations of a run's seeds measured."""
    results = [found(pattern.format(seed, f"{run}_linear.json")) for seed in seeds]
    return [MEASURES[measure](result) for result in results]


def differences(pattern, a, b, measure, seeds=range(3)):
    """Seed by seed."""
    pair = (measured(pattern, run, measure, seeds) for run in (a, b))
    return [one - other for one, other in zip(*pair, strict=True)]


def effective(pattern, run):
    """The effective numbers of positives and negatives after the last epoch, mean over seeds."""
    rows = [last_row(RESULTS / pattern.format(seed, f"{run}.csv")) for seed in range(3)]
    return {
        kind: mean(float(row[f"effective_{kind}"]) for row in rows)
        for kind in ("positives", "negatives")
    }


def points(values):
    """`+1.30 ± 0.51` of several, `+1.30` of one."""
    text = f"{mean(values):+.2f}".replace("-", "−")
    return f"{text} ± {stdev(values):.2f}" if len(values) > 1 else text


# ---------------------------------------------------------------------- the study on CIFAR-10

COMPARED = {
    "AttentioNCE − SimCLR, equal epochs": (PAPERS, SIMCLR),
    "no attention − SimCLR, equal epochs": (NONE, SIMCLR),
    "AttentioNCE − SimCLR, equal views": (PAPERS, SIMCLR_12),
    "no attention − SimCLR, equal views": (NONE, SIMCLR_12),
    "AttentioNCE − no attention": (PAPERS, NONE),
    "sharper − AttentioNCE": (SHARP, PAPERS),
    "sharper − SimCLR, equal views": (SHARP, SIMCLR_12),
}
WEIGHTED = {"hcl": "hcl_256_12_0.1_1.0", "bcl": "bcl_256_12_0.1_0.9_0.9", "dcl": "dcl_256_12_0.1"}

STUDY = """
README.md
    AttentioNCE is {AttentioNCE − SimCLR, equal epochs, last:.1f} points of linear accuracy ahead of
    (last epoch; best epoch: {AttentioNCE − SimCLR, equal epochs, best:.1f}), without its attention
    without its attention {no attention − SimCLR, equal epochs, last:.1f} (
    ({no attention − SimCLR, equal epochs, best:.1f}), and not ahead at equal numbers of encoded
    two cores took [{epoch minutes:.0f} minutes](docs/study-cifar10.md#the-same-on-two-cpu-cores)
docs/choosing-d_pos-and-d_neg.md
    AttentioNCE was {AttentioNCE − SimCLR, equal epochs, last:.1f} points of linear accuracy ahead
    (last epoch; best epoch: {AttentioNCE − SimCLR, equal epochs, best:.1f}). At equal cost
    gained {sharper − AttentioNCE, knn:.1f} points of kNN accuracy over (1, 10) and lost {lost:.1f}
    of linear accuracy (last epoch; best epoch: {lost best:.1f}), too little
    where {positives:.2f} of 4 positives and {negatives:.1f} of 510 negatives counted at (1, 10)
docs/study-cifar10.md
    of positives is {positives:.2f} of 4, and of negatives {negatives:.1f} of 510.
    are {sharp positives:.1f} of 4 positives and {sharp negatives:.0f} of 510 negatives.
    by {hcl − best} and {bcl − best} (best epoch), {hcl − last} and {bcl − last} (last epoch) and
    (last epoch) and {hcl − knn} and {bcl − knn} (kNN), with seed 0 only.
    BCL is ({bcl last:.2f}), but HCL ({hcl last:.2f}) is below one of them ({most last:.2f}).
    DCL: {dcl − best}, {dcl − last} and {dcl − knn}, no difference seen.
    last epoch are {apart:.1f} points apart on average.
    reaches {untrained best:.2f}% linear accuracy, in the best and in the last epoch, and
    and {untrained knn:.2f}% kNN accuracy (on a CPU, seed 0)
"""


def test_the_study():
    """Its table and the sentences about it, whose words hold."""
    values = effective(SMALL, PAPERS)
    values |= {f"sharp {kind}": number for kind, number in effective(SMALL, SHARP).items()}
    for name, runs in COMPARED.items():
        gaps = {measure: differences(SMALL, *runs, measure) for measure in MEASURES}
        says("docs/study-cifar10.md", f"| {name} | {' | '.join(map(points, gaps.values()))} |")
        values |= {f"{name}, {measure}": mean(gap) for measure, gap in gaps.items()}
    for measure in MEASURES:
        equal_epochs = values[f"AttentioNCE − SimCLR, equal epochs, {measure}"]
        assert 6.5 <= equal_epochs < 8  # "about seven points"
        assert values[f"AttentioNCE − SimCLR, equal views, {measure}"] < 0
        assert abs(values[f"AttentioNCE − no attention, {measure}"]) < 1
    values["lost"] = -values["sharper − AttentioNCE, last"]
    values["lost best"] = -values["sharper − AttentioNCE, best"]
    within = [values[f"sharper − AttentioNCE, {measure}"] for measure in ("best", "knn")]
    assert max(map(abs, within)) < 1.4 < -values["sharper − SimCLR, equal views, best"]
    for measure in MEASURES:
        ours = [x for run in (PAPERS, NONE, SHARP) for x in measured(SMALL, run, measure)]
        values[f"most {measure}"] = max(ours)
        for loss, run in WEIGHTED.items():
            (values[f"{loss} {measure}"],) = measured(SMALL, run, measure, [0])
            gap = differences(SMALL, run, SIMCLR_12, measure, [0])
            values[f"{loss} − {measure}"] = points(gap)
        above = sum(values[f"{loss} {measure}"] > max(ours) for loss in ("hcl", "bcl"))
        assert above == (1 if measure == "last" else 2)
    assert sorted(measured(SMALL, PAPERS, "last"))[-2] < values["hcl last"]  # "one of them"
    untrained = found("cpu/folder/random_resnet10_0_linear.json")
    values |= {f"untrained {measure}": pick(untrained) for measure, pick in MEASURES.items()}
    assert f"{values['untrained best']:.2f}" == f"{values['untrained last']:.2f}"
    values["epoch minutes"] = found("cpu/" + SMALL.format(0, f"{PAPERS}.json"))["hours"] * 60 / 4
    runs = (PAPERS, NONE, SHARP, SIMCLR, SIMCLR_12)
    best, last = ([x for r in runs for x in measured(SMALL, r, m)] for m in ("best", "last"))
    values["apart"] = mean(best) - mean(last)
    errors = [math.sqrt(p * (100 - p) / 10_000) for p in best]  # of 10,000 images
    assert {f"{error:.1f}" for error in errors} == {"0.5"}
    assert f"{math.sqrt(2) * max(errors):.1f}" == "0.7"
    says_all(STUDY, values)


def test_the_study_on_a_cpu():
    moved, page = [], "docs/study-cifar10.md"
    hours = {SIMCLR: ""}  # which is part of the longer run
    for run in (SIMCLR_12, PAPERS):
        path = "cpu/" + SMALL.format(0, run)
        hours[run] = (
            f"{found(f'{path}.json')['hours'] + found(f'{path}_linear.json')['hours']:.2f} "
        )
    for run, method in zip(hours, ("SimCLR | 4", "SimCLR | 12", "AttentioNCE | 4"), strict=True):
        both = [[measured(p, run, m, [0])[0] for p in (f"cpu/{SMALL}", SMALL)] for m in MEASURES]
        moved += [abs(cpu - gpu) for cpu, gpu in both]
        cells = " | ".join(f"{cpu:.2f} / {gpu:.2f}" for cpu, gpu in both)
        says(page, f"| {method} | {cells} | {hours[run]}|")
    minutes = [60 * float(text) for text in hours.values() if text]
    says(
        page,
        f"takes [{min(minutes):.0f} to {max(minutes):.0f} minutes](#the-same-on-two-cpu-cores)",
    )
    says(page, f"the hardware alone moves an accuracy by up to {max(moved):.1f} points")


# ------------------------------------------------------------------- the study on photographs

TOY = """
docs/study-photographs.md
    ahead of all four at equal epochs, by {least:.1f} to {most:.1f} points, and level with all four
    ahead of HCL alone at equal epochs, by {10 last hcl:.1f} points, and level with all four at
    ahead of DCL alone at equal epochs, by {10 best dcl:.1f}; at equal views it is behind SimCLR,
    behind SimCLR, by {−30 best simclr:.1f}, and HCL, by {−30 best hcl:.1f}.
    one is worse than two in kNN (by {two − one, knn:.1f}) and in the best epoch (by
    in the best epoch (by {two − one, best:.1f}). Eight are worse than two in kNN (by
    Eight are worse than two in kNN (by {two − eight, knn:.1f}), but better than one and four in
    one and four in the best epoch (by {eight − one, best:.1f} and {eight − four, best:.1f}).
    0.1 instead of 10 costs {least last:.1f} to {most last:.1f} points of linear accuracy in the
    in the last epoch, {least best:.1f} to {most best:.1f} in the best and, where d_pos is 1 or 10,
    where d_pos is 1 or 10, {least knn:.1f} to {most knn:.1f} points of kNN.
    0.1 instead of 1 costs {d_pos:.1f} points of kNN
    {positives:.1f} of 4 positives and {negatives:.1f} of 126 negatives count
docs/results.md
    ahead of SimCLR by {views knn:.2f} points of kNN and {views last:.2f} of linear accuracy in the
    in the last epoch (best epoch: {views best:.2f}); at equal epochs (4) it is ahead by
    at equal epochs (4) it is ahead by {epochs knn:.2f} and {epochs last:.2f} ({epochs best:.2f}).
"""


GRID = (0.1, 1.0, 10.0)  # of d_pos and of d_neg


def attention(d_pos=1.0, d_neg=10.0, positives=4):
    return f"{positives}model_64_10_{d_pos}_{d_neg}"


def ahead(a, b, measure):
    """How many points run `a` is ahead of `b`; 0 where that is within the deviations."""
    one, other = (measured(PHOTOS, run, measure) for run in (a, b))
    gap = mean(one) - mean(other)
    return gap if abs(gap) > math.hypot(stdev(one), stdev(other)) else 0


def test_the_photographs():
    values = effective(PHOTOS, attention())
    others = {"simclr": "simclr_64_{}", "dcl": "dcl_64_{}_0.1", "hcl": "hcl_64_{}_0.1_1.0"}
    others["bcl"] = "bcl_64_{}_0.1_0.9_0.9"
    expected = {"10 knn": [*others], "30 knn": [], "10 last": ["hcl"], "30 last": []}
    expected |= {"10 best": ["dcl"], "30 best": ["simclr", "hcl"]}
    for case, differ in expected.items():
        epochs, measure = case.split()
        for loss, run in others.items():
            gap = ahead(attention(), run.format(epochs), measure)
            assert bool(gap) == (loss in differ), (case, loss)
            values |= {f"{case} {loss}": gap, f"−{case} {loss}": -gap}
    equal = [values[f"10 knn {loss}"] for loss in others]
    values |= {"least": min(equal), "most": max(equal)}
    count = {"one": 1, "two": 2, "four": 4, "eight": 8}
    for a, b in itertools.permutations(count, 2):
        runs = [attention(positives=count[name]) for name in (a, b)]
        values |= {f"{a} − {b}, {measure}": ahead(*runs, measure) for measure in MEASURES}
        assert values[f"{a} − {b}, last"] == 0  # "no two of them differ"
    for measure, settings in {"last": GRID, "best": GRID, "knn": GRID[1:]}.items():
        costs = [ahead(attention(d, 10.0), attention(d, 0.1), measure) for d in settings]
        values |= {f"least {measure}": min(costs), f"most {measure}": max(costs)}
    values["d_pos"] = ahead(attention(), attention(0.1), "knn")
    runs = [attention(d_pos, d_neg) for d_pos in GRID for d_neg in GRID]
    better = [ahead(run, attention(), measure) > 0 for run in runs for measure in MEASURES]
    assert not any(better)  # "no sharper setting did better"
    for name, run in (("views", "simclr_64_12"), ("epochs", "simclr_64_4")):
        for measure in MEASURES:
            gap = differences(SHORT, "4model_64_4_1.0_10.0", run, measure, [0])
            values[f"{name} {measure}"] = gap[0]
    says_all(TOY, values)
