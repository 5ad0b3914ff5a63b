"""Which of the user's files are images, and to which split and class they belong."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from attentionce.data.decoding import extensions
from attentionce.errors import UserError

# The names that a split's folder may have, in any case, in the order in which they are looked for.
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
UNLABELED = ("unlabeled", "unlabelled")
# Folders that operating systems and servers make.
SYSTEM = ("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found")


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
    paths = files_below(root)
    images = [path for path in paths if extension(path) in extensions()]
    train, test, unlabeled = split_folders(root, paths, images, test_split)
    label = {path: label_of(path, test) for path in images}
    source = root
    if split == "all":
        files = sorted(images)
    elif train or test:
        # Images in train beside class folders are left out.
        in_train = within(images, train)
        files = [path for path in in_train if label[path]] or in_train
        files += within(images, unlabeled)
        folders = [os.path.join(root, folder) for folder in (train, unlabeled) if folder]
        source = " and ".join(folders) or root
    else:
        # Never train on what is called test images.
        files = [path for path in images if path.split("/")[0].casefold() not in TEST]
        files.sort(key=lambda path: not label[path])
    classes = sorted({label[path] for path in files} - {""})
    tested = [path for path in within(images, test) if label[path] and classes]
    everything = files if split == "all" else files + tested
    left_out = left_out_of(paths, {*everything})
    if not files:
        raise UserError(
            f"--root {root!r} needs a folder train with one folder per class, or just images: "
            f"there are none in it; left out: {listed(left_out)}"
        )
    if split in ("train", "test") and not classes:
        raise NoLabels(
            f"the images in {source} have no labels: they need one folder per class, "
            f"{os.path.join(root, 'train', 'CLASS')}"
        )
    if split == "train":
        files = [path for path in files if label[path]]
    if split == "test":
        files, source, left_out = tested, os.path.join(root, test), Counter()
        found = {label[path] for path in tested}
        check_test_images(root, source, found, classes)
        if lacking := sorted(set(classes) - found):
            left_out[f"classes without images here, such as {lacking[0]!r}"] = len(lacking)
    return Part({path: label[path] for path in files}, classes, left_out, source), everything


def check_test_images(root: str, source: str, found: set[str], classes: list[str]) -> None:
    """Raise a UserError if no class is `found` in them, or one that the training images lack."""
    if not found:
        raise NoLabels(
            f"there are no test images with labels: {root!r} needs the folders train and test (or "
            "val, or another that --test_split names), each with one folder per class"
        )
    for name in sorted(found.difference(classes)):
        folder = os.path.join(source, name)
        raise UserError(f"{folder!r} is not a class of the folder train: rename or remove it")


def left_out_of(paths: list[str], used: set[str]) -> Counter[str]:
    """How many images are not used, and how many other files there are, by their extension."""
    found: Counter[str] = Counter()
    for path in paths:
        end = extension(path)
        if end not in extensions():
            heic = ", which needs pip install pillow-heif" if end in (".heic", ".heif") else ""
            found[f"{end or 'no extension'!r}{heic}"] += 1
        elif path not in used:
            found["images beside splits and classes"] += 1
    return found


def listed(left_out: Counter[str]) -> str:
    """The kinds of what is left out, with their numbers, the most frequent first."""
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


def split_folders(
    root: str, paths: list[str], images: list[str], test_split: str | None
) -> tuple[str, str, str]:
    """The folders in root for training, tests and unlabelled images; "" where there is none.

    Raises:
        UserError: They are in a folder of root, or `test_split` is no folder of test images.
    """
    tops = {path.split("/")[0].casefold(): path.split("/")[0] for path in paths if "/" in path}
    right = os.path.join(root, *tops.values())
    if len(tops) == 1 and any(name.casefold() in TRAIN for name in os.listdir(right)):
        raise UserError(f"--root {root!r} has no folder train: did you mean --root {right!r}?")
    train = next((tops[name] for name in TRAIN if name in tops), "")
    unlabeled = next((tops[name] for name in UNLABELED if name in tops), "")
    tests = [test_split.strip("/")] if test_split else [tops.get(name, "") for name in TEST]
    test = next((folder for folder in tests if has_classes(images, folder)), "")
    if test_split and not test:
        folder = os.path.join(root, test_split)
        raise UserError(f"--test_split: {folder!r} is not a folder with one folder per class")
    if test_split and test.split("/")[0] == train:
        raise UserError(f"--test_split {test_split}: these images are trained on; name others")
    return train, test, unlabeled


def has_classes(images: list[str], folder: str) -> bool:
    """Whether a folder has images in folders."""
    return any(label_of(path, folder) for path in within(images, folder))


def label_of(path: str, test: str) -> str:
    """The class of an image: the first folder that it lies in, not counting that of a split."""
    top, _, inside = path.partition("/")
    if top.casefold() in UNLABELED:
        return ""
    if path.startswith(f"{test}/"):
        inside = path.removeprefix(f"{test}/")
    elif top.casefold() not in TRAIN + TEST:
        inside = path
    folder, in_folder, _ = inside.partition("/")
    return folder if in_folder else ""


def within(paths: Iterable[str], folder: str) -> list[str]:
    """The paths in a folder; none where that is ""."""
    return [path for path in paths if path.startswith(f"{folder}/")]


def extension(path: str) -> str:
    """The extension of a file in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()
