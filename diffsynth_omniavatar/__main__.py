"""`python -m diffsynth_omniavatar` is the command `omniavatar`."""

import sys

from .app.cli import main

if __name__ == "__main__":
    sys.exit(main())
