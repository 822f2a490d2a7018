"""The error that a wrong image raises."""


class ShapeError(ValueError):
    """A tensor has a shape that the model cannot take; the text names the axis and the next step."""
