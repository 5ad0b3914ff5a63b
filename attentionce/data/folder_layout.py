"""Which of the user's folders hold which images, and which of them are classes."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from attentionce.data.decoding import extensions
from attentionce.data.image_files import (
    ImageFile,
    LeftOut,
    extension,
    find_images,
    folders_in,
    is_hidden,
)
from attentionce.errors import UserError

# The names that a split's folder may have, in the order in which they are looked for.
SPLITS = {
    "train": ("train",),
    "test": ("test", "val"),
    "unlabeled": ("unlabeled", "unlabelled"),
}


class NoLabels(UserError):
    """Labels are asked for where there are none."""


class Part(NamedTuple):
    """The images of one split; those that are in no class come last, unless all are asked for."""

    files: list[ImageFile]
    classes: list[str]
    left_out: LeftOut
    source: str  # the folders


def find_split(root: str, split: str, test_split: str | None) -> tuple[Part, list[ImageFile]]:
    """The images of a split; and those of all splits, whose sizes decide on the size to keep.

    Args:
        root: The user's folder.
        split: "pretrain", "train" (those with labels), "test" or "all".
        test_split: The folder of the test images, in root; None: test or val.

    Raises:
        NoLabels: "train" or "test" is asked for, and there are no labels.
        UserError: There are no images, or test images of a class that the training images lack.
    """
    if split == "all":
        part = all_images(root)
        return part, part.files
    training = training_part(root, test_split)
    everything = training.files
    try:
        test = test_part(root, training, test_split)
        everything = training.files + test.files
    except NoLabels:
        if split == "test":
            raise
    if split == "test":
        unknown = sorted({file.folder for file in test.files}.difference(training.classes))
        if unknown:
            folder = os.path.join(test.source, unknown[0])
            raise UserError(f"{folder!r} is not a class of the folder train: rename or remove it")
        return test, everything
    if split == "train":
        if not training.classes:
            raise NoLabels(no_labels(root, training))
        training = training._replace(files=[file for file in training.files if file.folder])
    return training, everything


def all_images(root: str) -> Part:
    """All images below root, in the order of their paths.

    The first folder that an image lies in is its class. The folder of a split does not count.
    """
    left_out = LeftOut()
    if not os.path.isdir(root):
        raise UserError(f"--root {root!r} is not a folder")
    files = []
    for file in sorted(find_images(root, left_out), key=lambda file: file.inside(root)):
        _, *inner = file.inside(root).split("/")
        if file.folder in SPLITS["train"] + SPLITS["test"]:
            file = file._replace(folder=inner[0] if len(inner) > 1 else "")
        files.append(without_label(file))
    if not files:
        raise UserError(f"no images in --root {root!r}; left out: {left_out or 'nothing'}")
    return Part(files, classes_of(files), left_out, root)


def training_part(root: str, test_split: str | None) -> Part:
    """Find the images to pretrain on.

    They are those of root/train and of root/unlabeled. Where there is neither a folder train nor
    one for a test split, they are all images below root. Folders in root/train or root are classes.
    The arguments and errors are those of `find_split`.
    """
    left_out = LeftOut()
    sources = existing(root, SPLITS["train"])
    if sources or existing(root, (test_split,) if test_split else SPLITS["test"]):
        files = [file for folder in sources for file in find_images(folder, left_out)]
        if classes_of(files):
            files = in_folders(files, sources[0], left_out)
        sources = sources if files else []
        for folder in existing(root, SPLITS["unlabeled"]):
            files += [file._replace(folder="") for file in find_images(folder, left_out)]
            sources.append(folder)
        used = {test_split, *sum(SPLITS.values(), ())}
        for name in sorted(os.listdir(root)):
            image = extension(name) in extensions() or os.path.isdir(os.path.join(root, name))
            if image and name not in used and not is_hidden(name):
                left_out["items beside train"][name] += 1
    else:
        sources = [root] if os.path.isdir(root) else []
        files = [without_label(f) for folder in sources for f in find_images(folder, left_out)]
        files.sort(key=lambda file: not file.folder)
    if not files:
        message = f"--root {root!r} needs a folder train with one folder per class, or just images"
        message += ": there are none in it" if os.path.isdir(root) else ": there is no such folder"
        raise UserError(f"{message}; left out: {left_out}" if left_out else message)
    return Part(files, classes_of(files), left_out, " and ".join(sources))


def test_part(root: str, training: Part, test_split: str | None) -> Part:
    """Find the test images.

    Args:
        root: The user's folder.
        training: The images to pretrain on.
        test_split: As for `find_split`; None: the first of test and val that has class folders.

    Raises:
        NoLabels: There are no labels to test with.
        UserError: The folder that `test_split` names has no class folders.
    """
    names = (test_split,) if test_split else SPLITS["test"]
    folders = [folder for folder in existing(root, names) if folders_in(folder)]
    if test_split and not folders:
        raise UserError(
            f"--test_split {test_split}: {os.path.join(root, test_split)!r} is not a folder that "
            "has one folder per class"
        )
    if not training.classes:
        raise NoLabels(no_labels(root, training))
    if not folders:
        raise NoLabels(
            f"there are no test images with labels: {root!r} needs the folders train and test (or "
            "val, or another that --test_split names), each with one folder per class"
        )
    left_out = LeftOut()
    files = in_folders(find_images(folders[0], left_out), folders[0], left_out)
    if not files:
        raise NoLabels(f"no images in {folders[0]!r}: it needs one folder per class, with images")
    return Part(files, training.classes, left_out, folders[0])


def classes_of(files: list[ImageFile]) -> list[str]:
    """The names of the classes of these images, in alphabetical order."""
    return sorted({file.folder for file in files} - {""})


def without_label(file: ImageFile) -> ImageFile:
    """The file, in no class if it lies in a folder for unlabelled images."""
    return file._replace(folder="") if file.folder in SPLITS["unlabeled"] else file


def in_folders(files: list[ImageFile], top: str, left_out: LeftOut) -> list[ImageFile]:
    """Those of the files in `top` that lie in class folders."""
    for file in files:
        if not file.folder:
            left_out["images beside the class folders"][file.inside(top)] += 1
    return [file for file in files if file.folder]


def existing(root: str, names: Sequence[str]) -> list[str]:
    """The paths of those of these folders that are there."""
    paths = [os.path.join(root, name) for name in names]
    return [path for path in paths if os.path.isdir(path)]


def no_labels(root: str, training: Part) -> str:
    """What to say where the training images have no labels."""
    return (
        f"the images in {training.source} have no labels: they need one folder per class, "
        f"{os.path.join(root, 'train', 'CLASS')}"
    )
