"""Which files below a folder are images, and which are left out for what reason."""

import mimetypes
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image

from attentionce.data.decoding import extensions, formats, needs_heic_reader

# What operating systems and servers put beside images.
SYSTEM_NAMES = {
    "__macosx",
    "@eadir",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
}
# Files whose extension is not an image's count if their content is in one of these formats. TIFF is
# among them only for files without extension, because a camera's raw files are TIFF too, with a
# thumbnail.
BY_CONTENT = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "JPEG2000", "HEIF")
HEIC_EXTENSIONS = {".heic", ".heif", ".hif"}
TYPES = mimetypes.MimeTypes(filenames=()).types_map[True]  # the same on every machine


class ImageFile(NamedTuple):
    """A file that is taken for an image."""

    path: str
    label: int  # -1: none
    size: int  # bytes
    changed: int  # time of the last change, ns


@dataclass
class LeftOut:
    """What is not read, by reason."""

    heic: int = 0  # without the reader
    others: Counter[str] = field(default_factory=Counter)  # by extension
    beside: int = 0  # images beside the class folders
    unused: list[str] = field(default_factory=list)  # names of what lies beside the folder train
    hidden: int = 0
    loops: int = 0
    empty: list[str] = field(default_factory=list)  # names of class folders
    broken: list[str] = field(default_factory=list)  # paths

    def add(self, other: "LeftOut") -> None:
        """Count what another folder leaves out as well."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        heic = f"{self.heic:,} HEIC (to read them: pip install pillow-heif)" if self.heic else ""
        hidden = f"{self.hidden:,} hidden or of the system" if self.hidden else ""
        words = [
            heic,
            counted(self.others.total(), "other file", common(self.others)),
            counted(self.beside, "image", "beside the class folders"),
            counted(len(self.unused), "item", f"beside train: {some(self.unused)}"),
            hidden,
            counted(self.loops, "link", "back to a folder above"),
            counted(len(self.empty), "folder", f"without images: {some(self.empty)}"),
            counted(len(self.broken), "broken image", some(self.broken)),
        ]
        return ", ".join(filter(None, words))


def counted(count: int, what: str, more: str) -> str:
    """`3 links (back to a folder above)`; nothing if there are none."""
    return f"{count:,} {what}{'s' if count > 1 else ''} ({more})" if count else ""


def some(names: list[str]) -> str:
    """The first three names."""
    shown = ", ".join(repr(name) for name in names[:3])
    return f"{shown}, …" if len(names) > 3 else shown


def common(extensions: Counter[str]) -> str:
    """The most common extensions and how often they occur."""
    ordered = sorted(extensions.items(), key=lambda entry: (-entry[1], entry[0]))
    words = []
    for end, count in ordered[:4]:
        words.append(f"{count:,} {ascii(end)[1:-1][:20] or 'without extension'}")
    return ", ".join(words) + (", …" if len(ordered) > 4 else "")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or the system's."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def folders_in(top: str) -> list[str]:
    """The names of the folders in a folder that are not hidden, in alphabetical order."""
    return sorted(e.name for e in os.scandir(top) if is_folder(e) and not is_hidden(e.name))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def extension(name: str) -> str:
    """The extension of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def find_images(
    top: str, deep: bool = True, above: tuple[str, ...] = ()
) -> tuple[list[ImageFile], LeftOut]:
    """Find the images below a folder, in a fixed order and without labels.

    Links are followed. A file with an image's extension counts as an image whatever it holds. Any
    other file counts if it holds one.

    Args:
        top: The folder.
        deep: Whether folders in it are searched too.
        above: The folders that it lies in, as far as links may lead back to them.

    Raises:
        OSError: A folder cannot be read.
    """
    found: list[ImageFile] = []
    left_out = LeftOut()
    for path in walk(top, deep, above, left_out):
        file = look_up(path, left_out)
        if file is not None:
            found.append(file)
    return found, left_out


def walk(top: str, deep: bool, above: tuple[str, ...], left_out: LeftOut) -> Iterator[str]:
    """The paths of the files that are not hidden: a folder's own before those of folders in it."""
    folders = [(top, frozenset(identity(folder) for folder in above))]
    while folders:
        folder, ancestors = folders.pop()
        here = ancestors | {identity(folder)}
        if len(here) == len(ancestors):
            left_out.loops += 1
            continue
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        inner = []
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if is_hidden(entry.name):
                left_out.hidden += is_folder(entry) or extension(entry.name) in extensions()
            elif not is_folder(entry):
                yield path
            elif deep:
                inner.append((path, here))
        folders += reversed(inner)


def identity(folder: str) -> tuple[int, int]:
    """The same for every path that leads to a folder."""
    info = os.stat(folder)
    return info.st_dev, info.st_ino


def look_up(path: str, left_out: LeftOut) -> ImageFile | None:
    """An image's file. What is not an image is counted in `left_out`."""
    size, changed, regular = -1, -1, False
    with suppress(OSError):  # a link that leads nowhere
        info = os.stat(path)
        size, changed, regular = info.st_size, info.st_mtime_ns, stat.S_ISREG(info.st_mode)
    end = extension(path)
    if end not in extensions():
        kind = kind_by_content(path, end) if regular else "other"
        if kind == "HEIC":
            left_out.heic += 1
        elif kind == "other":
            left_out.others[end] += 1
        if kind != "image":
            return None
    return ImageFile(path, -1, size, changed)


def kind_by_content(path: str, end: str) -> str:
    """What a file is whose extension is not an image's: "image", "HEIC" or "other".

    Files whose extension says that they are text, sound, a video or a program are not opened.
    """
    if end in HEIC_EXTENSIONS:
        return "HEIC"
    if not TYPES.get(end, "image/").startswith("image/"):
        return "other"
    allowed = [name for name in (*BY_CONTENT, *(() if end else ("TIFF",))) if name in formats()]
    try:
        if needs_heic_reader(path):
            return "HEIC"
        with Image.open(path, formats=allowed):
            return "image"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return "image"
    except Exception:  # of whatever the reading of a file that is not an image runs into
        return "other"
