"""A plug-in that is not, or no longer, installed: the error names the nearest method, and nothing failed to load.

Arguments: the method's name, and the nearest.
"""

import sys

import mmm_fusion

method, nearest = sys.argv[1:]
message = None
try:
    mmm_fusion.create(method, 8, 6, heads=2, dropout=0.0)
except mmm_fusion.UnknownMethodError as error:
    message = str(error)
print(message)
assert message == f"fusion method '{method}' is not registered. Did you mean '{nearest}'? See `python -m mmm_fusion`."
assert mmm_fusion.failures() == ()
