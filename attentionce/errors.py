"""Errors that the user can fix."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can fix.

    Its message is one line: what is wrong and what to do. The programs print that line last and
    exit with status 2.

    Args:
        message: The line. It may quote anything, such as the name of a file or what a damaged file
            holds: line breaks and tabs become spaces, what else cannot be printed is escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(map(_printable, message)))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else repr(character)[1:-1]


@contextmanager
def as_user_error(advice: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a UserError.

    This covers every Exception: readers of images, archives and networks raise whatever their
    parsing runs into, from OSError and struct.error to KeyError. A UserError passes unchanged.

    Args:
        advice: What is wrong and what to do.

    Raises:
        UserError: The advice and the cause, in one printable line.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # repr escapes line breaks and control characters in names of files.
        cause = repr(f"{type(error).__name__}: {error}")[1:-1][:300]
        raise UserError(f"{advice} ({cause})") from error
