"""`python -m mmm_train.comparison` does one run of a comparison; `compare` starts it. See `member`."""

import sys

from mmm_train.comparison.member import main

sys.exit(main())
