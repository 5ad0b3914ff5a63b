"""Which files below a folder are images, and which are left out for what reason."""

import os
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from attentionce.data.decoding import extensions

# What operating systems and servers put beside images.
SYSTEM_NAMES = "__macosx @eadir #recycle #snapshot $recycle.bin lost+found thumbs.db desktop.ini"


class ImageFile(NamedTuple):
    """A file that is taken for an image."""

    path: str
    folder: str  # its class: the folder that it lies in, in the one that was searched; "": none
    size: int  # bytes
    changed: int  # time of the last change, ns

    def inside(self, folder: str) -> str:
        """Its path in a folder that it lies below, with / on every system."""
        return self.path.removeprefix(folder).replace(os.sep, "/").lstrip("/")


class LeftOut(defaultdict[str, Counter[str]]):
    """What is not read: for each reason, how often which names or extensions occur."""

    def __init__(self) -> None:
        super().__init__(Counter)

    def __str__(self) -> str:
        reasons = []
        for reason, names in self.items():
            shown = [
                repr(name) if count == 1 else f"{count:,} {name!r}"
                for name, count in names.most_common(3)
            ]
            more = ", …" if len(names) > 3 else ""
            reasons.append(f"{reason} ({names.total():,}: {', '.join(shown)}{more})")
        return ", ".join(reasons)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or the system's."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES.split()


def folders_in(top: str) -> list[str]:
    """The names of the folders in a folder that are not hidden, in alphabetical order."""
    _, folders, _ = next(os.walk(top, onerror=_raise))
    return sorted(name for name in folders if not is_hidden(name))


def extension(name: str) -> str:
    """The extension of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def find_images(top: str, left_out: LeftOut) -> list[ImageFile]:
    """Find the images below a folder: a folder's own, then those of the folders in it, by name.

    A file with an image's extension counts as an image whatever it holds. Links are followed. What
    is not read is added to `left_out`. A folder that cannot be listed is an OSError.
    """
    found: list[ImageFile] = []
    empty = set(folders_in(top))
    for folder, inner, names in os.walk(top, followlinks=True, onerror=_raise):
        first = ImageFile(folder, "", 0, 0).inside(top).split("/")[0]
        inner.sort()
        for name in inner[:]:
            if is_hidden(name):
                left_out["hidden or of the system"][name] += 1
                inner.remove(name)
            elif leads_back(os.path.join(folder, name)):
                left_out["links to a folder above"][name] += 1
                inner.remove(name)
        for name in sorted(names):
            end = extension(name)
            if end in extensions() and is_hidden(name):
                left_out["hidden or of the system"][name] += 1
            elif end in extensions():
                found.append(look_up(os.path.join(folder, name), first))
            elif not is_hidden(name):
                heic = end in (".heic", ".heif", ".hif")
                reason = "HEIC, which needs pip install pillow-heif" if heic else "other files"
                left_out[reason][end or "no extension"] += 1
    for name in sorted(empty.difference(file.folder for file in found)):
        left_out["folders without images"][name] += 1
    return found


def leads_back(path: str) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return os.path.islink(path) and any(
        os.path.samefile(path, folder) for folder in Path(os.path.abspath(path)).parents
    )


def look_up(path: str, folder: str) -> ImageFile:
    """An image's file. A link that leads nowhere is a broken image."""
    with suppress(OSError):
        info = os.stat(path)
        return ImageFile(path, folder, info.st_size, info.st_mtime_ns)
    return ImageFile(path, folder, -1, -1)


def _raise(error: OSError) -> None:
    raise error
