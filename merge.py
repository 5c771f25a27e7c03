"""python merge.py base=DIR experts=[DIR1,DIR2] merge_method=ties out=DIR: merge models that exist. See ``--help``."""

import gc
import os
import sys

if __name__ == "__main__":
    gc.disable()  # collecting garbage while torch is imported takes a tenth of that time, and a merge leaves none
    from twin_merging.standalone.cli import main

    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking torch's modules apart takes as long as merging a model of half a gigabyte
