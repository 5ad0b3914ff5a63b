"""Errors that the user can fix."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can fix.

    Its message is one line: what is wrong and what to do. The programs print that line last and
    exit with status 2. Line breaks become spaces; what else cannot be printed is escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(map(_printable, message)))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else repr(character)[1:-1]


@contextmanager
def as_user_error(advice: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a UserError of the `advice` and the cause.

    This covers every Exception: readers of images, archives and networks raise whatever their
    parsing runs into, from OSError and struct.error to KeyError. A UserError passes unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"[:300]
        raise UserError(f"{advice} ({cause})") from error
