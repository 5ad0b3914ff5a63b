"""The errors that a user can mend."""

from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can mend: one line, what is wrong and what to do; printed at the top, exit status 2."""


@contextmanager
def mending(advice: str):
    """Turn whatever goes wrong inside into a UserError: this advice and the cause, in one printable line.

    Every Exception, since readers of images, archives and networks raise what their parsing runs into, from OSError and
    struct.error to KeyError.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = repr(f"{type(error).__name__}: {error}")[1:-1][
            :300
        ]  # repr: names in it may hold line breaks
        raise UserError(f"{advice} ({cause})") from error
