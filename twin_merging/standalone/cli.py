"""The command line of ``merge.py``: checked before anything is written; one clear error and exit code 2 for bad input."""

from __future__ import annotations

import ctypes
import errno
import logging
import sys

from twin_merging.config import data_methods, merge_methods
from twin_merging.errors import UserError, exit_code
from twin_merging.help import group_help
from twin_merging.registry import CONFIGS, load_plugins
from twin_merging.validation import STATIC_METHODS_EXCLUDED

log = logging.getLogger("twin_merging")

USAGE = """Usage: python merge.py base=MODEL experts=[MODEL,MODEL] out=DIR [merge_method=NAME] [key=value] ...
"""

EXAMPLES = """Examples:
  python merge.py base=DIR experts=[DIR1,DIR2] merge_method=ties merge_method.density=0.2 out=DIR
      a Hugging Face folder that from_pretrained loads
  python merge.py base=DIR experts=[LORA1,LORA2] merge_method=task_arithmetic merge_method.scaling=0.5 out=DIR
      PEFT adapters into one adapter, exactly
  python merge.py base=DIR experts=[DIR1,DIR2] merge_method=twin sparsifier.rank=16 out=DIR
      a shared expert and compressed exclusive knowledge, which TwinMergedModel.from_pretrained loads
"""

HELP = """Merge models that exist. A model is a folder with safetensors weights (sharded or not), a hub name
(name@revision), or as an expert a PEFT LoRA adapter.

{usage}
{keys}
{groups}
  These need tasks and their data, or give more than one model, and are run.py's alone: {others}.

{examples}
Nothing is written where the input is bad. A merge that was killed goes on where it was when the same command runs again.
TWIN_FULL_ERROR=1         in the environment: show the traceback of an error
Exit codes: 0 done; 1 it failed; 2 bad input, found before anything was written."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done; 2 bad input; 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    return exit_code(lambda: _explained(arguments), "finished shards are kept, and the same command goes on from there")


def help_text() -> str:
    """Every key and every option of the groups, those that only a plugin brings included."""
    from twin_merging.standalone.options import FIELDS, GROUPS

    keys = [f"  {name:<18}{item.metadata['help']}" for name, item in FIELDS.items() if "help" in item.metadata]
    keys.append(f"  {'parameters':<18}include, exclude: regular expressions of what merges; the rest is the base's")
    groups = [group_help(CONFIGS / group) for group in GROUPS]
    others = ", ".join(sorted(methods_of_run()))
    return HELP.format(usage=USAGE, keys="\n".join(keys), groups="\n".join(groups), examples=EXAMPLES, others=others)


def methods_of_run() -> list[str]:
    """The methods that weights alone do not suffice for, told without loading any of them."""
    return [
        name
        for name, component in merge_methods.items()
        if name != "twin" and (name in STATIC_METHODS_EXCLUDED or component.options.__module__ == data_methods.__name__)
    ]


def _explained(arguments: list[str]) -> int:
    try:
        return _main(arguments)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            "the disk is full; finished shards are kept, and the same command goes on", key="out", found=error
        ) from error


def _main(arguments: list[str]) -> int:
    if not arguments:
        print(f"{USAGE}\n{EXAMPLES}\npython merge.py --help shows every method and key.", file=sys.stderr)
        return 2
    if "--help" in arguments or "-h" in arguments:
        load_plugins([])
        print(help_text())
        return 0
    from twin_merging.standalone.options import compose

    options = compose(arguments)
    _give_large_blocks_back()
    from twin_merging.standalone.run import run

    log.info(run(options))
    return 0


def _give_large_blocks_back() -> None:
    """Have freed tensors returned to the system, of which glibc would keep several of up to 32 MB for each thread."""
    mmap_threshold, size = -3, 4 << 20
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, size)
