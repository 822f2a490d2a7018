"""`python -m mmm_train` is the `mmm` command."""

import sys

from mmm_train.cli import main

sys.exit(main())
