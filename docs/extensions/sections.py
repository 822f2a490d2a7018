"""Lets the sections of a docstring stand without blank lines between them, as they do in our source."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<!\n)\n(?=(?:Args|Attributes|Returns|Yields|Raises|Source):\n)")


class Sections(griffe.Extension):
    """Adds the blank line that griffe wants before a section."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """See griffe's documentation: called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
