"""Fail unless exactly the distributions named on the command line are those of ours that are installed."""

import importlib.metadata
import sys

found = sorted(name for dist in importlib.metadata.distributions() if (name := dist.name).startswith("mmm-"))
expected = sorted(sys.argv[1:])
if found != expected:
    sys.exit(f"installed of ours: expected {', '.join(expected)}; got {', '.join(found)}")
for name in found:
    print(name, importlib.metadata.version(name))
