"""Errors that the user can fix."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can fix.

    Its message is one line: what is wrong and what to do. The programs print that line last and
    exit with status 2.

    Args:
        message: The line. What cannot be printed in it, such as a line break in the name of a file
            or in what a damaged file holds, is escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


@contextmanager
def mending(advice: str) -> Iterator[None]:
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
