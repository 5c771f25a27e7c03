"""python merge.py base=DIR experts=[DIR1,DIR2] merge_method=ties out=DIR: merge models that exist. See ``--help``."""

import gc
import sys

if __name__ == "__main__":
    gc.disable()  # collecting garbage while torch is imported takes a tenth of that time, and a merge leaves none
    from twin_merging.standalone.cli import main

    sys.exit(main())
