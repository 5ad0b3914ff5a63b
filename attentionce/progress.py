"""How far long work is: a bar in a terminal, elsewhere a line a minute."""

import sys
from typing import Any

from tqdm import tqdm


class Lines(tqdm):
    """A tqdm that prints a line, with what is done, the rate and the time left, once a minute."""

    def __init__(self, **options: Any) -> None:
        super().__init__(mininterval=60, miniters=1, delay=60, ascii=True, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the line; nothing at the end, when the bar would be cleared."""
        if msg is None:
            print(self, file=sys.stderr, flush=True)


def progress(total: int, what: str, done: int = 0) -> tqdm:
    """A bar for `total` images, of which the first `done` are done already; `update` moves it."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    kind = tqdm if terminal else Lines
    return kind(total=total, initial=done, desc=what, unit="image", leave=False)
