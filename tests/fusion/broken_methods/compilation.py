"""Methods that do not compile."""

from __future__ import annotations

from broken_methods.right import Right, breaks


@breaks("compiles", "device")
class LooksAtValues(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text if text.sum() < 1e9 else text - 1, image, **masks)


@breaks("compiles", "device")
class LooksAtValuesWithoutAnImage(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text - 1 if image.shape[1] == 0 and text.sum() > 1e9 else text, image, **masks)
