"""python reproduce.py table_8: compute one table or figure of the paper. ``python reproduce.py --list`` names them."""

import sys

from twin_merging.reproducing.cli import main

if __name__ == "__main__":
    sys.exit(main())
