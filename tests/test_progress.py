"""How far long work is, where there is no terminal."""

import re

from attentionce.progress import progress


def test_a_line_a_minute(monkeypatch, capsys):
    """With what is done, the rate and the time left; what an earlier process did is no rate."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with progress(100, "decoding train", 40) as bar:
        for _ in range(20):
            now[0] += 10
            bar.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert re.match(r"decoding train: +52%.* 52/100 .*01:00<0\d:\d\d, .*5\.\d+s/image", lines[0]), (
        lines
    )
