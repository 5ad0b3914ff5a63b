"""Every figure that a sentence about the studies takes from results/ is what the file says."""

import math
import statistics

import pytest
from helpers.pages import RESULTS, found, last_row, says

PHOTOS = "resnet10-10/seed{}/photos/photos_SimCLR_{}"
SHORT = "resnet10-4/seed0/folder/folder_SimCLR_{}"


def knn(result):
    return result["knn_top1"]


def linear(result):
    return result["best_epoch"]["top1"]


# ---------------------------------------------------------------------- the study on CIFAR-10

SMALL = "cifar10-small-resnet10-4/seed{}/folder/folder_SimCLR_{}"
PAPERS, NONE, SHARP = (
    f"4model_256_4_{pair}" for pair in ("1.0_10.0", "1000000.0_1000000.0", "0.1_0.5")
)


MEASURES = (linear, lambda result: result["last_epoch"]["top1"], knn)


def differences(a, b, seeds=(0, 1, 2)):
    """Two runs' differences in each of MEASURES, seed by seed."""
    results = [[found(SMALL.format(s, f"{run}_linear.json")) for run in (a, b)] for s in seeds]
    return [[pick(one) - pick(other) for one, other in results] for pick in MEASURES]


def points(values):
    """`+1.30 ± 0.51` of several, `+1.30` of one."""
    text = f"{statistics.mean(values):+.2f}".replace("-", "−")
    return f"{text} ± {statistics.stdev(values):.2f}" if len(values) > 1 else text


COMPARED = {
    "AttentioNCE − SimCLR, equal epochs": (PAPERS, "simclr_256_4"),
    "no attention − SimCLR, equal epochs": (NONE, "simclr_256_4"),
    "AttentioNCE − SimCLR, equal views": (PAPERS, "simclr_256_12"),
    "no attention − SimCLR, equal views": (NONE, "simclr_256_12"),
    "AttentioNCE − no attention": (PAPERS, NONE),
    "sharper − AttentioNCE": (SHARP, PAPERS),
    "sharper − SimCLR, equal views": (SHARP, "simclr_256_12"),
}


@pytest.mark.parametrize("name", COMPARED)
def test_differences(name):
    cells = map(points, differences(*COMPARED[name]))
    says("docs/study-cifar10.md", f"| {name} | {' | '.join(cells)} |")


def test_what_the_differences_mean():
    """The words for them hold, and the README and the advice have the same figures."""
    mean = {
        name: [statistics.mean(values) for values in differences(*pair)]
        for name, pair in COMPARED.items()
    }
    with_, without = (
        mean[f"{name} − SimCLR, equal epochs"] for name in ("AttentioNCE", "no attention")
    )
    assert all(6.5 <= gain < 8 for gain in with_)  # "about seven points"
    says(
        "README.md",
        f"AttentioNCE is {with_[0]:.1f} points of linear accuracy ahead of SimCLR at equal epochs "
        f"({without[0]:.1f} without its attention), and not ahead at equal numbers of encoded",
    )
    advice = "docs/choosing-d_pos-and-d_neg.md"
    says(advice, f"AttentioNCE was {with_[0]:.1f} points of linear accuracy ahead of SimCLR")
    assert all(gap < 0 for gap in mean["AttentioNCE − SimCLR, equal views"])
    assert all(abs(gap) < 1 for gap in mean["AttentioNCE − no attention"])
    gained = mean["sharper − AttentioNCE"]
    sentence = (
        f"gained {gained[2]:.1f} points of kNN accuracy over (1, 10) and lost {-gained[0]:.1f}"
    )
    says(advice, sentence)
    to_simclr = mean["sharper − SimCLR, equal views"]
    differ = [abs(gap) for gap in (gained[0], gained[2], to_simclr[2])]
    assert max(differ) < 1.4 < -to_simclr[0]  # two standard errors of the test set


def test_what_counts_in_the_study():
    def effective(run):
        last = [last_row(RESULTS / SMALL.format(seed, f"{run}.csv")) for seed in range(3)]
        kinds = ("effective_positives", "effective_negatives")
        return [statistics.mean(float(row[kind]) for row in last) for kind in kinds]

    positives, negatives = effective(PAPERS)
    page = "docs/study-cifar10.md"
    says(page, f"of positives is {positives:.2f} of 4, and of negatives {negatives:.1f} of 510.")
    sentence = f"{positives:.2f} of 4 positives and {negatives:.1f} of 510 negatives counted"
    says("docs/choosing-d_pos-and-d_neg.md", f"where {sentence} at (1, 10), it was level")
    positives, negatives = effective(SHARP)
    says(page, f"are {positives:.1f} of 4 positives and {negatives:.0f} of 510 negatives.")


def test_weighted_negatives():
    runs = ("hcl_256_12_0.1_1.0", "bcl_256_12_0.1_0.9_0.9", "dcl_256_12_0.1")
    gaps = [differences(run, "simclr_256_12", [0]) for run in runs]
    (hcl, bcl, dcl) = ([points(values) for values in gap] for gap in gaps)
    says(
        "docs/study-cifar10.md",
        f"by {hcl[0]} and {bcl[0]} (best epoch) and {hcl[2]} and {bcl[2]} (kNN), with seed 0 only.",
    )
    says("docs/study-cifar10.md", f"DCL: {dcl[0]} and {dcl[2]}, no difference seen.")
    for pick in (linear, knn):  # "higher than those of every AttentioNCE run here"
        hcl, bcl = (pick(found(SMALL.format(0, f"{run}_linear.json"))) for run in runs[:2])
        ours = [
            pick(found(SMALL.format(seed, f"{run}_linear.json")))
            for run in (PAPERS, NONE, SHARP)
            for seed in range(3)
        ]
        assert min(hcl, bcl) > max(ours)


def test_errors_of_the_study():
    """Of 10,000 images, and between the classifier's best and last epoch."""
    results = [
        found(SMALL.format(seed, f"{run}_linear.json"))
        for run in (PAPERS, NONE, SHARP, "simclr_256_4", "simclr_256_12")
        for seed in range(3)
    ]
    errors = [math.sqrt(p * (1 - p) / 10_000) * 100 for p in (linear(r) / 100 for r in results)]
    low, high = min(errors), max(errors)
    assert f"{low:.1f}" == f"{high:.1f}" == "0.5" and f"{math.sqrt(2) * high:.1f}" == "0.7"
    apart = statistics.mean(linear(r) - r["last_epoch"]["top1"] for r in results)
    says("docs/study-cifar10.md", f"last epoch are {apart:.1f} points apart on average.")
    best = [result["best_epoch"]["epoch"] for result in results]
    assert best == [4, 5, 4] * 5  # the same for all methods of a seed


def test_the_study_on_a_cpu():
    page, moved = "docs/study-cifar10.md", []
    runs = {"simclr_256_4": ("SimCLR", 4, None), "simclr_256_12": ("SimCLR", 12, "simclr_256_12")}
    runs[PAPERS] = ("AttentioNCE", 4, PAPERS)
    for run, (method, epochs, pretraining) in runs.items():
        path = SMALL.format(0, f"{run}_linear.json")
        cpu, gpu = found(f"cpu/{path}"), found(path)
        both = [[pick(result) for result in (cpu, gpu)] for pick in MEASURES]
        moved += [abs(one - other) for one, other in both]
        cells = [f"{one:.2f} / {other:.2f}" for one, other in both]
        hours = ""
        if pretraining:
            training = found("cpu/" + SMALL.format(0, f"{pretraining}.json"))["hours"]
            hours = f"{training + cpu['hours']:.2f} "
        says(page, f"| {method} | {epochs} | {' | '.join(cells)} | {hours}|")
    says(page, f"the hardware alone moves an accuracy by up to {max(moved):.1f} points")
    untrained = found("cpu/folder/random_resnet10_0_linear.json")
    best, neighbours = linear(untrained), knn(untrained)
    says(
        page, f"reaches {best:.2f} % linear and {neighbours:.2f} % kNN accuracy (on a CPU, seed 0)"
    )


# ------------------------------------------------------------------- the study on photographs


def photos(name, pick):
    """Mean and standard deviation of a run of the study over its seeds."""
    values = [pick(found(PHOTOS.format(seed, f"{name}_linear.json"))) for seed in range(3)]
    return statistics.mean(values), statistics.stdev(values)


def ahead(a, b, pick):
    """How many points run `a` is ahead of `b`; 0 where that is within the deviations."""
    (mean_a, spread_a), (mean_b, spread_b) = photos(a, pick), photos(b, pick)
    gap = mean_a - mean_b
    return gap if abs(gap) > math.hypot(spread_a, spread_b) else 0


def attention(d_pos=1.0, d_neg=10.0, positives=4):
    return f"{positives}model_64_10_{d_pos}_{d_neg}"


OTHERS = {"SimCLR": "simclr_64_{}", "DCL": "dcl_64_{}_0.1", "HCL": "hcl_64_{}_0.1_1.0"}
OTHERS["BCL"] = "bcl_64_{}_0.1_0.9_0.9"


def test_against_the_other_losses():
    def gaps(epochs, pick):
        return {
            method: ahead(attention(), name.format(epochs), pick) for method, name in OTHERS.items()
        }

    equal = gaps(10, knn).values()
    assert min(equal) > 0 and not any(gaps(30, knn).values())
    says(
        "docs/study-photographs.md",
        f"ahead of all four at equal epochs, by {min(equal):.1f} to {max(equal):.1f} points, and "
        "level with all four at equal numbers of encoded views",
    )
    equal, more = gaps(10, linear), gaps(30, linear)
    assert [method for method in OTHERS if equal[method]] == ["DCL"]
    assert [method for method in OTHERS if more[method]] == ["SimCLR", "HCL"]
    says(
        "docs/study-photographs.md",
        f"ahead of DCL at equal epochs, by {equal['DCL']:.1f} points; at equal views it is behind "
        f"SimCLR, by {-more['SimCLR']:.1f}, and HCL, by {-more['HCL']:.1f}, and level with",
    )


def test_number_of_positives():
    one, two, four, eight = (attention(positives=positives) for positives in (1, 2, 4, 8))
    says(
        "docs/study-photographs.md",
        f"one is worse than two in kNN (by {ahead(two, one, knn):.1f}) and in linear accuracy (by "
        f"{ahead(two, one, linear):.1f}). Eight are worse than two in kNN (by "
        f"{ahead(two, eight, knn):.1f}), but better than one and four in linear accuracy (by "
        f"{ahead(eight, one, linear):.1f} and {ahead(eight, four, linear):.1f}).",
    )


def test_d_pos_and_d_neg():
    costs = [ahead(attention(d, 10.0), attention(d, 0.1), linear) for d in (0.1, 1.0, 10.0)]
    of_knn = [ahead(attention(d, 10.0), attention(d, 0.1), knn) for d in (1.0, 10.0)]
    says(
        "docs/study-photographs.md",
        f"0.1 instead of 10 costs {min(costs):.1f} to {max(costs):.1f} points of linear accuracy "
        f"and, where d_pos is 1 or 10, {min(of_knn):.1f} to {max(of_knn):.1f} points of kNN.",
    )
    cost = ahead(attention(), attention(0.1), knn)
    says("docs/study-photographs.md", f"0.1 instead of 1 costs {cost:.1f} points of kNN")
    grid = [attention(d_pos, d_neg) for d_pos in (0.1, 1.0, 10.0) for d_neg in (0.1, 1.0, 10.0)]
    better = [ahead(name, attention(), pick) > 0 for name in grid for pick in (knn, linear)]
    assert not any(better)  # "no sharper setting did better"


def test_effective_numbers():
    last = [last_row(RESULTS / PHOTOS.format(seed, f"{attention()}.csv")) for seed in range(3)]
    positives, negatives = (
        statistics.mean(float(row[f"effective_{kind}"]) for row in last)
        for kind in ("positives", "negatives")
    )
    sentence = f"{positives:.1f} of 4 positives and {negatives:.1f} of 126 negatives count"
    says("docs/study-photographs.md", sentence)


def test_short_run_on_real_images():
    def gap(ours, theirs, pick):
        results = [found(SHORT.format(f"{name}_linear.json")) for name in (ours, theirs)]
        return pick(results[0]) - pick(results[1])

    full = "4model_64_4_1.0_10.0"
    views = [gap(full, "simclr_64_12", pick) for pick in (knn, linear)]
    epochs = [gap(full, "simclr_64_4", pick) for pick in (knn, linear)]
    says(
        "docs/results.md",
        f"ahead of SimCLR by {views[0]:.2f} points of kNN and {views[1]:.2f} of linear accuracy "
        f"(best epoch); at equal epochs (4) it is ahead by {epochs[0]:.2f} and {epochs[1]:.2f}.",
    )
