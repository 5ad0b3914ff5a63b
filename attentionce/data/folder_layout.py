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
    is_folder,
    is_hidden,
)
from attentionce.errors import UserError

TESTS = ("test", "val")
UNLABELLED = ("unlabeled", "unlabelled")


class NoLabels(UserError):
    """Labels are asked for where there are none."""


class Part(NamedTuple):
    """The images of one split, those with labels first."""

    files: list[ImageFile]
    classes: list[str]
    left_out: LeftOut
    source: str  # the folders


def training_part(root: str, test_split: str | None) -> Part:
    """Find the images to pretrain on.

    They are those of root/train and of root/unlabeled. Where there is neither a folder train nor
    one for a test split, they are all images below root. Folders in root/train or root are classes.

    Args:
        root: The user's folder.
        test_split: The folder of the test images, in root; None: test or val.

    Raises:
        UserError: There are no images, or a class ends up without any.
    """
    tests = (test_split,) if test_split else TESTS
    train = os.path.join(root, "train")
    if os.path.isdir(train):
        part = class_folders(train, root)
    elif os.path.isdir(root) and not existing(root, tests):
        part = class_folders(root, root)
    else:
        part = Part([], [], LeftOut(), "")
    if os.path.isdir(root) and part.source != root:
        part.left_out.unused = unused(root, {"train", *TESTS, *UNLABELLED, *tests})
    sources = [part.source] if part.files else []
    for folder in existing(root, UNLABELLED):
        files, left_out = find_images(folder, above=(root,))
        part.files.extend(files)
        part.left_out.add(left_out)
        sources.append(folder)
    if not part.files:
        raise UserError(no_images(root, tests, part.left_out))
    return part._replace(source=" and ".join(sources))


def test_part(root: str, training: Part, test_split: str | None, strict: bool) -> Part:
    """Find the test images. Those of a class that the training images lack have the label -1.

    Args:
        root: The user's folder.
        training: The images to pretrain on.
        test_split: The folder of the test images, in root; None: the first of test and val that has
            class folders.
        strict: Refuse a class of which no image can be read.

    Raises:
        NoLabels: There are no labels to test with.
        UserError: The folder that `test_split` names has no class folders.
    """
    tests = (test_split,) if test_split else TESTS
    folders = [folder for folder in existing(root, tests) if folders_in(folder)]
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
    part = class_folders(folders[0], root, training.classes, strict)
    if not part.files:
        raise NoLabels(f"no images in {folders[0]!r}: it needs one folder per class, with images")
    return part


def class_folders(
    top: str, root: str, classes: list[str] | None = None, strict: bool = True
) -> Part:
    """Find the images of one folder that has a folder per class.

    Args:
        top: That folder. In root itself, images beside the class folders count too.
        root: The user's folder.
        classes: The classes, if they are known already. Otherwise all folders with images are
            classes; if there are none, the images in `top` count, without labels.
        strict: Refuse a class of which no image can be read.
    """
    loose, left_out = find_images(top, deep=False)
    found: dict[str, list[ImageFile]] = {}
    without: dict[str, LeftOut] = {}
    for name in folders_in(top):
        if top == root and name in UNLABELLED:
            continue
        files, left_out_there = find_images(os.path.join(top, name), above=(root, top))
        left_out.add(left_out_there)
        if files:
            found[name] = files
        else:
            without[name] = left_out_there
    if strict and found:
        for name, there in without.items():
            if there.heic or (there.others and top != root):
                raise UserError(
                    f"the class {name!r} ends up empty: there is nothing that can be read in "
                    f"{os.path.join(top, name)!r}; left out: {there}"
                )
    labels = {name: label for label, name in enumerate(classes or found)}
    files = [f._replace(label=labels.get(name, -1)) for name in found for f in found[name]]
    if classes is None:
        left_out.empty = list(without)
    if top == root or (classes is None and not found):
        files += loose
    else:
        left_out.beside = len(loose)
    return Part(files, classes or list(found), left_out, top)


def existing(root: str, names: tuple[str, ...]) -> list[str]:
    """The paths of those of these folders that are there."""
    paths = [os.path.join(root, name) for name in names]
    return [path for path in paths if os.path.isdir(path)]


def unused(root: str, known: set[str]) -> list[str]:
    """The names of folders and images in root that belong to no split."""
    with os.scandir(root) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    return [
        entry.name
        for entry in entries
        if not is_hidden(entry.name)
        and entry.name not in known
        and (is_folder(entry) or extension(entry.name) in extensions())
    ]


def no_images(root: str, tests: tuple[str, ...], left_out: LeftOut) -> str:
    """What to say where there is nothing to train on."""
    train = os.path.join(root, "train")
    if os.path.isdir(train):
        message = f"no images in {train!r}: it needs images, best in one folder per class"
    else:
        message = f"--root {root!r} needs a folder train with one folder per class, or just images"
        if not os.path.isdir(root):
            message += ": there is no such folder"
        elif existing(root, tests):
            message += (
                f": it has {', '.join(map(repr, existing(root, tests)))}, but no folder train"
            )
        else:
            message += ": there are none in it"
    return f"{message}; left out: {left_out}" if str(left_out) else message


def no_labels(root: str, training: Part) -> str:
    """What to say where the training images have no labels."""
    return (
        f"the images in {training.source} have no labels: they need one folder per class, "
        f"{os.path.join(root, 'train', 'CLASS')}"
    )
