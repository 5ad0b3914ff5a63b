"""Every figure that a sentence of README.md or docs/ takes from results/ is what the file says."""

import argparse
import csv
import json
import math
import statistics

import pytest
import torch
from conftest import ROOT

import main
from attentionce.training.memory import expected_bytes
from benchmark.scaling import sent
from model import Model

RESULTS = ROOT / "results"
PHOTOS = "resnet10-10/seed{}/photos/photos_SimCLR_{}"
SHORT = "resnet10-4/seed0/folder/folder_SimCLR_{}"


def says(page, sentence):
    """The page has this sentence, wherever its lines break."""
    text = " ".join((ROOT / page).read_text().split())
    assert sentence in text, f"{page} should say: {sentence}"


def found(path):
    return json.loads((RESULTS / path).read_text())


@pytest.fixture
def rows():
    """rows(path): the medians of a benchmark's file, by row and variant."""

    def function(path):
        return {(row["name"], row["variant"]): row for row in found(path)["rows"]}

    return function


def ratios(table, *keys):
    return [table[key]["ratio"]["of_medians"] for key in keys]


def knn(result):
    return result["knn_top1"]


def linear(result):
    return result["best_epoch"]["top1"]


def test_speed(rows):
    table = rows("benchmark-cpu.json")
    fp32, bf16 = ratios(table, ("step", "fp32"), ("step", "bf16"))
    most, least = ratios(table, ("memory", "fp32"), ("memory", "bf16"))
    says(
        "README.md",
        f"a training step of resnet50 is {bf16:.2f} times as fast in bf16 as the published "
        f"scripts' recipe ({fp32:.2f} times in fp32) and takes {100 * least:.0f} % of its memory "
        f"({100 * most:.0f} %).",
    )
    eager, compiled = ratios(table, ("views", "cpu eager"), ("views", "cpu compiled"))
    slow, fast = (1 / r for r in ratios(table, ("linear", "fp32"), ("linear", "bf16")))
    says(
        "README.md",
        f"Making views is {eager:.0f} to {compiled:.0f} times as fast, an epoch of linear "
        f"evaluation {slow:.1f} to {fast:.1f} times",
    )
    says("docs/speed.md", f"the step is {fp32:.2f} times as fast as the recipe's")
    limits = [table["limit", precision]["ours"]["median"] for precision in ("bf16", "fp32")]
    says("docs/speed.md", f"bfloat16, in which it multiplies {limits[0] / limits[1]:.1f} times")
    making = table["view making", "bf16"]["ours"]["median"]
    says("docs/speed.md", f"Making views is {making:.1f} % of a step.")
    steps = [table["step", precision]["ours"]["median"] for precision in ("bf16", "fp32")]
    says("docs/speed.md", f"that is bf16, which is {steps[0] / steps[1]:.1f} times as fast")
    assert least < 0.5  # "less than half of the recipe's memory"


def test_memory(rows):
    """Measured for 16 × 6 views."""
    table, parameters = rows("benchmark-cpu.json"), found("scaling-cpu.json")["parameters"]
    variants = ("bf16", "fp32", "bf16 grad_cache")
    gb = [table["memory", variant]["ours"]["median"] / 1000 for variant in variants]
    says(
        "docs/speed.md",
        f"takes {gb[0]:.1f} GB in bf16, {gb[1]:.1f} GB in fp32 and {gb[2]:.1f} GB in bf16 with",
    )
    fixed = 4 * 4 * parameters / 1e9  # weights, gradients, two moments in float32
    says("docs/speed.md", f"Weights, gradients and optimiser are {fixed:.1f} GB of that.")


def test_second_cpu(rows):
    table = rows("without-bf16/benchmark-cpu.json")
    views = ratios(table, ("views", "cpu eager"), ("views", "cpu compiled"))
    step, epoch = ratios(table, ("step", "fp32"), ("epoch", "fp32"))
    memory = ratios(table, ("memory", "fp32"), ("memory", "fp32 grad_cache"))
    loss = ratios(table, *(("loss", f"batch {batch}") for batch in ("256", "1,024", "4,096")))
    linear = ratios(table, ("linear", "fp32"))
    assert f"{step:.2f}" == f"{epoch:.2f}"
    sentence = (
        "the ratios are {:.2f} and {:.2f} for views, {:.2f} for step and epoch, {:.2f} for memory "
        "({:.2f} with `--grad_cache`), {:.2f}, {:.2f} and {:.2f} for the loss, and {:.2f} for "
        "linear evaluation"
    )
    says("docs/speed.md", sentence.format(*views, step, *memory, *loss, *linear))


def test_scaling():
    result = found("scaling-cpu.json")
    one, two = (measured["images_per_second"] for measured in result["measured"])
    says(
        "docs/several-gpus.md",
        f"measured {one:.1f} images/s in one process and {two:.1f} in two, {two / one / 2:.0%} of "
        "twice as many".replace("%", " %"),
    )
    megabytes = [
        sum(sent(*exchange, n) for exchange in result["exchanges"][str(n)].values()) / 1e6
        for n in (2, 8, 512)
    ]
    sentence = "each of two processes sends {:.1f} MB, each of 8 sends {:.1f} MB and each of 512"
    says("docs/several-gpus.md", f"{sentence} sends {{:.1f}} MB".format(*megabytes))


def test_on_a_gpu(rows):
    table = rows("h100/compiled/benchmark-cuda.json")
    step, making = table["step", "bf16"], table["view making", "bf16"]["ours"]["median"]
    ratio = step["ratio"]["of_medians"]
    says("README.md", f"{ratio:.2f} times as fast, in bf16 and compiled, as the recipe's on views")
    says("docs/speed.md", f"Making them adds {making:.1f} % to this code's compiled step.")
    least, most = (f"{step['ours'][which]:,.0f}" for which in ("min", "max"))
    says("docs/speed.md", f"the compiled step reached {least} to {most} images/s")
    says("docs/speed.md", f"the step reaches {step['share_of_limit']:.0%}".replace("%", " %"))
    runs = (RESULTS / "cifar10-small-resnet10-4").glob("seed*/folder/*[0-9].csv")
    last = [last_row(path) for path in runs]
    assert len(last) == 15
    together = sum(float(row["views"]) for row in last) / max(float(row["seconds"]) for row in last)
    assert round(together, -4) == 100_000
    says("docs/speed.md", "encoded about 100 thousand views per second together")


def test_what_to_expect_of_a_gpu(rows):
    """Hours of 400 epochs, from a step and the making of its views."""
    table = rows("h100/compiled/benchmark-cuda.json")
    making = table["view making", "bf16"]["ours"]["median"] / 100
    step = 256 / table["step", "bf16"]["ours"]["median"]
    seconds = step * (1 + making)
    rate = 256 * 6 / seconds
    says(
        "docs/speed.md",
        f"{1000 * seconds:.0f} ms for 256 × 6 views, or {rate / 1000:.1f} thousand views per",
    )
    for images, name in (
        (50_000, "CIFAR-10 or CIFAR-100"),
        (100_000, "TinyImageNet"),
        (105_000, "STL10"),
    ):
        views = 400 * (images // 256) * 256 * 6
        hours = f"{views / rate / 3600:.1f} hours"
        says("docs/speed.md", f"| AttentioNCE on {name} | {views / 1e6:.0f} million | {hours} |")
        if images == 50_000:
            says("README.md", f"we calculate {hours} for 400 epochs of CIFAR-10")
            slowest = 256 / table["step", "bf16"]["ours"]["min"] * (1 + making)
            hours = views / (256 * 6) * slowest / 3600
            says("docs/speed.md", f"400 epochs of CIFAR-10 would take {hours:.1f} hours.")
    says("docs/speed.md", "moves about 160 GB")
    share = f"{160 / step / 3350:.0%}".replace("%", " %")
    says(
        "docs/speed.md",
        f"In the {1000 * step:.0f} ms that it takes without making views, that is {share}",
    )


def last_row(path):
    """Of a table of metrics."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))[-1]


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
    last = []
    for seed in range(3):
        with open(RESULTS / PHOTOS.format(seed, f"{attention()}.csv"), newline="") as file:
            last.append(list(csv.DictReader(file))[-1])
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


def test_expected_memory():
    """The calculated figures of docs/speed.md; half of the activations are the compiler's own."""
    args = main.parse_args([])
    model = Model(args.feature_dim, args.arch)

    def expected(**flags):
        changed = argparse.Namespace(**{**vars(args), **flags})
        compiled = not changed.grad_cache and changed.compile != "off"
        return expected_bytes(model, changed, 6, torch.bfloat16, compiled) / 1e9

    says("docs/speed.md", f"| compiled, as on CUDA by default | {expected():.1f} GB |")
    off, cached = expected(compile="off"), expected(grad_cache=True)
    says("docs/speed.md", f"which recomputes the first stage | {off:.1f} GB |")
    says("docs/speed.md", f"| `--grad_cache` | {cached:.1f} GB |")
    assert cached < 8 < 12 < off < 16 < expected() < 24


def test_the_loss_as_it_is_now(rows):
    table = rows("loss/benchmark-cpu.json")
    small, middle, large = ratios(
        table, *(("loss", f"batch {batch}") for batch in ("256", "1,024", "4,096"))
    )
    most = table["loss memory", "batch 16,384"]["ours"]["median"]
    says(
        "docs/speed.md",
        f"takes {small:.2f}, {middle:.2f} and {large:.2f} of the recipe's time at batches of 256, "
        f"1,024 and 4,096, and {most:.0f} MB at 16,384",
    )
