"""Fetch all that an experiment needs: ``python scripts/mirror.py +exp=NAME out=DIR``."""

from twin_merging.mirror.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
