"""`accelerate launch -m diffsynth_omniavatar.train`: flags in `training/flags.py`, the run in `training/run.py`."""

import sys

from .training.run import main

if __name__ == "__main__":
    sys.exit(main())
