"""The wheel that is built where no C++ compiler is found: it works, is no platform's, and says what it lacks."""

from importlib.metadata import distribution

import torch

from mmm_core import BackendUnavailable, Mamba, explain, selective_scan

y = Mamba(8)(torch.randn(2, 5, 8))
assert y.isfinite().all()

print(explain())
assert explain().chosen == "chunked"
reason = dict(explain())["native"] or ""
assert reason.endswith(" was not built; reinstall mmm-core where GCC 12 or newer, or Clang, is at hand"), reason
u, A = torch.zeros(1, 1, 1), torch.zeros(1, 1)
try:
    selective_scan(u, u, A, u, u, backend="native")
    said = "nothing"
except BackendUnavailable as error:
    said = str(error)
assert said == f"selective_scan: backend 'native' cannot run: {reason}. Can run here: chunked, reference.", said

lines = (distribution("mmm-core").read_text("WHEEL") or "").splitlines()
assert "Tag: py3-none-any" in lines, lines
assert "Root-Is-Purelib: true" in lines, lines
