"""Every figure that a sentence about the studies takes from results/ is what the file says."""

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
    AttentioNCE is {AttentioNCE − SimCLR, equal epochs, best:.1f} points of linear accuracy ahead
    at equal epochs ({no attention − SimCLR, equal epochs, best:.1f} without its attention), and
docs/choosing-d_pos-and-d_neg.md
    AttentioNCE was {AttentioNCE − SimCLR, equal epochs, best:.1f} points of linear accuracy ahead
    gained {sharper − AttentioNCE, knn:.1f} points of kNN accuracy over (1, 10) and lost {lost:.1f}
    where {positives:.2f} of 4 positives and {negatives:.1f} of 510 negatives counted at (1, 10)
docs/study-cifar10.md
    of positives is {positives:.2f} of 4, and of negatives {negatives:.1f} of 510.
    are {sharp positives:.1f} of 4 positives and {sharp negatives:.0f} of 510 negatives.
    by {hcl best} and {bcl best} (best epoch) and {hcl knn} and {bcl knn} (kNN), with seed 0 only.
    DCL: {dcl best} and {dcl knn}, no difference seen.
    last epoch are {apart:.1f} points apart on average.
    reaches {untrained best:.2f}% linear and {untrained knn:.2f}% kNN accuracy (on a CPU, seed 0)
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
    values["lost"] = -values["sharper − AttentioNCE, best"]
    within = [values[f"sharper − AttentioNCE, {measure}"] for measure in ("best", "knn")]
    assert max(map(abs, within)) < 1.4 < -values["sharper − SimCLR, equal views, best"]
    for loss, run in WEIGHTED.items():
        for measure in MEASURES:
            values[f"{loss} {measure}"] = points(differences(SMALL, run, SIMCLR_12, measure, [0]))
    for measure in ("best", "knn"):  # "higher than those of every AttentioNCE run here"
        ours = [x for run in (PAPERS, NONE, SHARP) for x in measured(SMALL, run, measure)]
        assert all(
            measured(SMALL, WEIGHTED[loss], measure, [0])[0] > max(ours) for loss in ("hcl", "bcl")
        )
    untrained = found("cpu/folder/random_resnet10_0_linear.json")
    values |= {f"untrained {measure}": pick(untrained) for measure, pick in MEASURES.items()}
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
    says(page, f"the hardware alone moves an accuracy by up to {max(moved):.1f} points")


# ------------------------------------------------------------------- the study on photographs

TOY = """
docs/study-photographs.md
    ahead of all four at equal epochs, by {least:.1f} to {most:.1f} points, and level with all four
    In linear accuracy (best epoch) it is ahead of DCL at equal epochs, by {dcl:.1f} points; at
    at equal views it is behind SimCLR, by {simclr:.1f}, and HCL, by {hcl:.1f}, and level with
    one is worse than two in kNN (by {two − one, knn:.1f}) and in linear accuracy (by
    in linear accuracy (by {two − one, best:.1f}). Eight are worse than two in kNN (by
    Eight are worse than two in kNN (by {two − eight, knn:.1f}), but better than one and four in
    one and four in linear accuracy (by {eight − one, best:.1f} and {eight − four, best:.1f}).
    0.1 instead of 10 costs {low:.1f} to {high:.1f} points of linear accuracy
    where d_pos is 1 or 10, {low knn:.1f} to {high knn:.1f} points of kNN.
    0.1 instead of 1 costs {d_pos:.1f} points of kNN
    {positives:.1f} of 4 positives and {negatives:.1f} of 126 negatives count
docs/results.md
    ahead of SimCLR by {short, views, knn:.2f} points of kNN and {short, views, best:.2f} of linear
    at equal epochs (4) it is ahead by {short, epochs, knn:.2f} and {short, epochs, best:.2f}.
"""


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

    def gaps(epochs, measure):
        return {
            loss: ahead(attention(), run.format(epochs), measure) for loss, run in others.items()
        }

    equal = gaps(10, "knn").values()
    assert min(equal) > 0 and not any(gaps(30, "knn").values())
    equal_epochs, equal_views = gaps(10, "best"), gaps(30, "best")
    assert [loss for loss, gap in equal_epochs.items() if gap] == ["dcl"]
    assert [loss for loss, gap in equal_views.items() if gap] == ["simclr", "hcl"]
    values |= {"least": min(equal), "most": max(equal), "dcl": equal_epochs["dcl"]}
    values |= {"simclr": -equal_views["simclr"], "hcl": -equal_views["hcl"]}
    count = {"one": 1, "two": 2, "four": 4, "eight": 8}
    for a, b in (("two", "one"), ("two", "eight"), ("eight", "one"), ("eight", "four")):
        for measure in MEASURES:
            runs = (attention(positives=count[name]) for name in (a, b))
            values[f"{a} − {b}, {measure}"] = ahead(*runs, measure)
    costs = [ahead(attention(d, 10.0), attention(d, 0.1), "best") for d in (0.1, 1.0, 10.0)]
    of_knn = [ahead(attention(d, 10.0), attention(d, 0.1), "knn") for d in (1.0, 10.0)]
    values |= {"low": min(costs), "high": max(costs)}
    values |= {"low knn": min(of_knn), "high knn": max(of_knn)}
    values["d_pos"] = ahead(attention(), attention(0.1), "knn")
    grid = [attention(d_pos, d_neg) for d_pos in (0.1, 1.0, 10.0) for d_neg in (0.1, 1.0, 10.0)]
    better = [ahead(run, attention(), measure) > 0 for run in grid for measure in ("knn", "best")]
    assert not any(better)  # "no sharper setting did better"
    for name, run in (("views", "simclr_64_12"), ("epochs", "simclr_64_4")):
        for measure in MEASURES:
            (gap,) = differences(SHORT, "4model_64_4_1.0_10.0", run, measure, [0])
            values[f"short, {name}, {measure}"] = gap
    says_all(TOY, values)
