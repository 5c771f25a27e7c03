"""python run.py +exp=quickstart: run an experiment. ``python run.py --help`` shows what can be set."""

import sys

from twin_merging.cli import main

if __name__ == "__main__":
    sys.exit(main())
