"""Which of the user's folders hold which images, and which of them are classes."""

import os
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

# The names that a split's folder may have, in any case, in the order in which they are looked for.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
NEEDS = "--root {!r} needs a folder train with one folder per class, or just images"


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
    if not os.path.isdir(root):
        raise UserError(f"{NEEDS.format(root)}: there is no such folder")
    inner = [os.path.join(root, name) for name in folders_in(root)]
    if len(inner) == 1 and split_folders(inner[0])["train"]:
        raise UserError(f"--root {root!r} has no folder train: did you mean --root {inner[0]!r}?")
    if split == "all":
        part = all_images(root)
        return part, part.files
    folders = split_folders(root, test_split)
    training = training_part(root, folders)
    everything = training.files
    try:
        test = test_part(root, training, folders["test"])
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
    files, left_out = [], LeftOut()
    for file in sorted(find_images(root, left_out), key=lambda file: file.inside(root)):
        _, *inner = file.inside(root).split("/")
        if file.folder.casefold() in SPLITS["train"] + SPLITS["test"]:
            file = file._replace(folder=inner[0] if len(inner) > 1 else "")
        files.append(without_label(file))
    refuse_empty(root, files, left_out)
    return Part(files, classes_of(files), left_out, root)


def training_part(root: str, folders: dict[str, list[str]]) -> Part:
    """The images to pretrain on: those of a folder train and of folders for unlabelled images.

    Where there is neither a folder train nor one for a test split, they are all images below root.
    Folders in train, or in root, are classes.
    """
    left_out = LeftOut()
    if folders["train"] or folders["test"]:
        sources = folders["train"][:1]
        files = [file for folder in sources for file in find_images(folder, left_out)]
        if classes_of(files):
            files = in_folders(files, sources[0], left_out)
        for folder in folders["unlabeled"]:
            files += [file._replace(folder="") for file in find_images(folder, left_out)]
        used = [*sources, *folders["unlabeled"], *folders["test"]]
        sources = (sources if files else []) + folders["unlabeled"]
        for name in sorted(os.listdir(root)):
            path = os.path.join(root, name)
            image = extension(name) in extensions() or os.path.isdir(path)
            if image and not is_hidden(name) and path not in used:
                left_out["items beside train"][name] += 1
    else:
        sources, files = [root], [without_label(file) for file in find_images(root, left_out)]
        files.sort(key=lambda file: not file.folder)
    refuse_empty(root, files, left_out)
    return Part(files, classes_of(files), left_out, " and ".join(sources))


def test_part(root: str, training: Part, folders: list[str]) -> Part:
    """The test images: those of the first of these folders that has class folders.

    Raises:
        NoLabels: There are no labels to test with.
    """
    folders = [folder for folder in folders if folders_in(folder)]
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
    for name in sorted(set(training.classes).difference(classes_of(files))):
        left_out["classes of which there are no images here"][name] += 1
    return Part(files, training.classes, left_out, folders[0])


def classes_of(files: list[ImageFile]) -> list[str]:
    """The names of the classes of these images, in alphabetical order."""
    return sorted({file.folder for file in files} - {""})


def without_label(file: ImageFile) -> ImageFile:
    """The file, in no class if it lies in a folder for unlabelled images."""
    return file._replace(folder="") if file.folder.casefold() in SPLITS["unlabeled"] else file


def in_folders(files: list[ImageFile], top: str, left_out: LeftOut) -> list[ImageFile]:
    """Those of the files in `top` that lie in class folders."""
    for file in files:
        if not file.folder:
            left_out["images beside the class folders"][file.inside(top)] += 1
    return [file for file in files if file.folder]


def split_folders(root: str, test_split: str | None = None) -> dict[str, list[str]]:
    """The paths of every split's folders in root, in the order of preference.

    Raises:
        UserError: There is no folder `test_split` with class folders, or it is trained on.
    """
    found = {name.casefold(): os.path.join(root, name) for name in folders_in(root)}
    folders = {
        split: [found[name] for name in names if name in found] for split, names in SPLITS.items()
    }
    if test_split is not None:
        folder = os.path.join(root, test_split)
        folders["test"] = [folder]
        if not os.path.isdir(folder) or not folders_in(folder):
            raise UserError(
                f"--test_split {test_split}: {folder!r} is not a folder with one folder per class"
            )
        if any(os.path.samefile(folder, train) for train in folders["train"]):
            raise UserError(f"--test_split {test_split}: these images are trained on; name others")
    return folders


def refuse_empty(root: str, files: list[ImageFile], left_out: LeftOut) -> None:
    """Raise a UserError where there are no images."""
    if not files:
        message = f"{NEEDS.format(root)}: there are none in it"
        raise UserError(f"{message}; left out: {left_out}" if left_out else message)


def no_labels(root: str, training: Part) -> str:
    """What to say where the training images have no labels."""
    return (
        f"the images in {training.source} have no labels: they need one folder per class, "
        f"{os.path.join(root, 'train', 'CLASS')}"
    )
