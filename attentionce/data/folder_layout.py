"""Which of the user's files are images, and to which split and class they belong."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from attentionce.data.decoding import extensions
from attentionce.errors import UserError

# The names that a split's folder may have, in any case, in the order in which they are looked for.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
# Folders that operating systems and servers make.
SYSTEM = ("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found")
NEEDS = "--root {!r} needs a folder train with one folder per class, or just images"


class NoLabels(UserError):
    """Labels are asked for where there are none."""


class Part(NamedTuple):
    """The images of one split."""

    files: dict[str, str]  # the path of each in the root, with /, and its class; "": no label
    classes: list[str]
    left_out: Counter[str]  # how many files of which kind
    source: str  # the folders


def find_split(root: str, split: str, test_split: str | None) -> tuple[Part, list[str]]:
    """The images of a split; and those of all splits, whose sizes decide on the size to keep.

    Args:
        root: The user's folder.
        split: "pretrain" (those without labels come last), "train" (those with labels), "test" or
            "all" (in the order of their paths).
        test_split: The folder of the test images, in root; None: test or val.

    Raises:
        NoLabels: "train" or "test" is asked for, and there are no labels.
        UserError: There are no images, or test images of a class that the training images lack.
    """
    if not os.path.isdir(root):
        raise UserError(f"{NEEDS.format(root)}: there is no such folder")
    paths = files_below(root)
    folders = split_folders(root, paths, test_split)
    label = {path: label_of(path, folders["test"]) for path in paths if is_image(path)}
    files = sorted(label) if split == "all" else training_images(label, folders)
    classes = sorted({label[path] for path in files} - {""})
    test = [path for path in within(label, folders["test"]) if label[path] and classes]
    everything = files if split == "all" else files + test
    left_out = left_out_of(paths, {*everything})
    if not files:
        raise UserError(f"{NEEDS.format(root)}: there are none in it; left out: {listed(left_out)}")
    sources = [] if split == "all" else folders["train"] + folders["unlabeled"]
    source = " and ".join(os.path.join(root, folder) for folder in sources) or root
    if split in ("train", "test") and not classes:
        raise NoLabels(
            f"the images in {source} have no labels: they need one folder per class, "
            f"{os.path.join(root, 'train', 'CLASS')}"
        )
    if split == "train":
        files = [path for path in files if label[path]]
    if split == "test":
        files, source = test, os.path.join(root, *folders["test"])
        left_out = compare_classes(root, source, classes, {label[path] for path in test})
    return Part({path: label[path] for path in files}, classes, left_out, source), everything


def training_images(label: dict[str, str], folders: dict[str, list[str]]) -> list[str]:
    """The images to pretrain on: those of a folder train and of folders for unlabelled images.

    Where there is neither a folder train nor one for a test split, they are all images. Folders in
    train, or in root, are classes.
    """
    if not folders["train"] and not folders["test"]:
        return sorted(label, key=lambda path: not label[path])
    files = within(label, folders["train"])
    if any(label[path] for path in files):
        files = [path for path in files if label[path]]
    return files + within(label, folders["unlabeled"])


def compare_classes(root: str, source: str, classes: list[str], found: set[str]) -> Counter[str]:
    """How many classes are not among those `found` in the test images in `source`.

    Raises:
        UserError: There are none, or one that is not among the `classes` of the training images.
    """
    if not found:
        raise NoLabels(
            f"there are no test images with labels: {root!r} needs the folders train and test (or "
            "val, or another that --test_split names), each with one folder per class"
        )
    for name in sorted(found.difference(classes)):
        folder = os.path.join(source, name)
        raise UserError(f"{folder!r} is not a class of the folder train: rename or remove it")
    lacking = sorted(set(classes) - found)
    return Counter(
        {f"classes without images here, such as {lacking[0]!r}": len(lacking)} if lacking else {}
    )


def left_out_of(paths: list[str], used: set[str]) -> Counter[str]:
    """How many images are not used, and how many other files there are, by their extension."""
    found: Counter[str] = Counter()
    for path in paths:
        end = extension(path)
        if not is_image(path):
            heic = ", which needs pip install pillow-heif" if end in (".heic", ".heif") else ""
            found[f"{end or 'no extension'!r}{heic}"] += 1
        elif path not in used:
            found["images beside splits and classes"] += 1
    return found


def listed(left_out: Counter[str]) -> str:
    """The most frequent kinds of what is left out, with their numbers."""
    kinds = [f"{kind} ({count:,})" for kind, count in left_out.most_common(6)]
    return ", ".join(kinds + ["…"] * (len(left_out) > 6))


# ------------------------------------------------------------------------------ files and folders


def files_below(root: str) -> list[str]:
    """The paths in a folder, with /, of all files below it that are not hidden.

    A folder's own files come first, then those of the folders in it, each by name. Links are
    followed, but not to a folder above. A folder that cannot be listed is an OSError.
    """
    found = []
    for folder, inner, names in os.walk(root, followlinks=True, onerror=_raise):
        inner[:] = sorted(name for name in inner if not is_passed_over(folder, name))
        inside = folder[len(root) :].replace(os.sep, "/").strip("/")
        visible = sorted(name for name in names if not name.startswith("."))
        found += [f"{inside}/{name}" if inside else name for name in visible]
    return found


def is_passed_over(folder: str, name: str) -> bool:
    """Whether a folder in a folder is hidden, the system's, or a link to one that it lies in."""
    if name.startswith(".") or name.casefold() in SYSTEM:
        return True
    path = os.path.join(os.path.abspath(folder), name)
    return os.path.islink(path) and any(os.path.samefile(path, up) for up in Path(path).parents)


def _raise(error: OSError) -> None:
    raise error


def split_folders(root: str, paths: list[str], test_split: str | None) -> dict[str, list[str]]:
    """The folders of every split in root: at most one for training, and one for tests.

    Raises:
        UserError: They are in a folder of root, or `test_split` is no folder of test images.
    """
    folders = named_like_splits(paths)
    top, *more = {path.split("/")[0] for path in paths if "/" in path} or {""}
    if not more and named_like_splits([path.removeprefix(f"{top}/") for path in paths])["train"]:
        right = os.path.join(root, top)
        raise UserError(f"--root {root!r} has no folder train: did you mean --root {right!r}?")
    if test_split is not None:
        folders["test"] = [test_split.strip("/")]
        if folders["test"][0].split("/")[0] in folders["train"]:
            raise UserError(f"--test_split {test_split}: these images are trained on; name others")
        if not has_classes(paths, folders["test"][0]):
            folder = os.path.join(root, test_split)
            raise UserError(
                f"--test_split {test_split}: {folder!r} is not a folder with one folder per class"
            )
    folders["test"].sort(key=lambda folder: not has_classes(paths, folder))
    if not folders["train"] and not folders["test"]:
        folders["unlabeled"] = []  # one folder among others
    return {split: names if split == "unlabeled" else names[:1] for split, names in folders.items()}


def has_classes(paths: list[str], folder: str) -> bool:
    """Whether a folder has images in folders."""
    return any(label_of(path, [folder]) and is_image(path) for path in within(paths, [folder]))


def named_like_splits(paths: list[str]) -> dict[str, list[str]]:
    """The first folders of these paths that are named like one of a split, the usual name first."""
    tops = {path.split("/")[0].casefold(): path.split("/")[0] for path in paths if "/" in path}
    return {
        split: [tops[name] for name in names if name in tops] for split, names in SPLITS.items()
    }


def label_of(path: str, tests: list[str]) -> str:
    """The class of an image: the first folder that it lies in, not counting that of a split."""
    top = next((folder for folder in tests if path.startswith(f"{folder}/")), path.split("/")[0])
    if top.casefold() in SPLITS["unlabeled"]:
        return ""
    if top in tests or top.casefold() in SPLITS["train"] + SPLITS["test"]:
        path = path[len(top) + 1 :]
    folder, inside, _ = path.partition("/")
    return folder if inside else ""


def within(paths: Iterable[str], folders: list[str]) -> list[str]:
    """The paths in these folders."""
    return [path for folder in folders for path in paths if path.startswith(f"{folder}/")]


def is_image(path: str) -> bool:
    """Whether a file has an image's extension; what it holds does not matter."""
    return extension(path) in extensions()


def extension(path: str) -> str:
    """The extension of a file in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()
