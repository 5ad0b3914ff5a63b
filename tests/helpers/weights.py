"""What tests of weights files share: a small content, refusals, and changed files."""

import zipfile

import pytest
import torch

from attentionce.errors import UserError

SMALL = {"f.weight": torch.arange(300.0).view(3, 100), "count": torch.tensor(7)}


def refusal(function, path, *arguments):
    """The message of the UserError that function(path, …) raises: one line with the path."""
    with pytest.raises(UserError) as caught:
        function(path, *arguments)
    message = str(caught.value)
    assert message.isprintable() and 20 < len(message) < 1000, message
    assert str(path) in message
    return message


def rewritten(path, change=lambda name, content: content, **options):
    """Write the zip file again, with change(name, content) as the content of each record."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))
