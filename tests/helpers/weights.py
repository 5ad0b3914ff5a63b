"""What tests of weights files share."""

import zipfile

import pytest
import torch

from attentionce.errors import UserError

SMALL = {"f.weight": torch.arange(300.0).view(3, 100), "count": torch.tensor(7)}


def refusal(function, *arguments):
    """The message of the UserError that function raises; one printable line with the file's name."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable() and 20 < len(message) < 1000, message
    assert str(arguments[0]) in message
    return message


def repacked(path, change=lambda name, content: content, **options):
    """The zip at path written again with change(name, content) as its records' contents."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))
