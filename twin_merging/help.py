"""``python run.py --help`` and the answer to ``python run.py`` alone.

Hydra's own help composes the configuration once a group and takes seconds for what a listing of ``configs/`` knows.
"""

from __future__ import annotations

from pathlib import Path

from twin_merging.config import REGISTRIES

EXAMPLES = """Examples:
  python run.py +exp=quickstart
      the whole pipeline on real data, minutes on a CPU
  python run.py +exp=quickstart merge_method=twin sparsifier.rank=4
      one method with other options
  python run.py -m +exp=quickstart merge_method=twin sparsifier.rank=1,4,16 seed=0,1,2
      a sweep over comma-separated values, with one table at the end
"""

HELP = """Twin-Merging and the methods it is compared with, from fine-tuning to normalized scores.

Usage: python run.py +exp=NAME [group=option] [key=value] ...

Groups and their options:
{groups}
{examples}
-m, --multirun            sweep over comma-separated values
+exp=NAME --cfg job       show the whole configuration, with every key, and run nothing
cache=list, cache=clean   show what is cached, remove it
--hydra-help              Hydra's own flags
TWIN_FULL_ERROR=1         in the environment: show the traceback of an error
Exit codes: 0 done; 1 a job failed, the others finished; 2 bad input, found before work started."""


def help_text(configs: Path) -> str:
    """Every group with its options and what each is; options that only a plugin brings included."""
    groups = [group_help(folder) for folder in sorted(configs.iterdir()) if folder.is_dir()]
    return HELP.format(groups="\n".join(groups), examples=EXAMPLES)


def usage_text(configs: Path) -> str:
    """What to add to ``python run.py``."""
    experiments = ", ".join(sorted(path.stem for path in (configs / "exp").glob("*.yaml")))
    return f"Say what to run: add +exp=NAME. Experiments: {experiments}\n\n{EXAMPLES}\npython run.py --help shows every group."


def group_help(folder: Path) -> str:
    """A group's options with what each is."""
    about = {path.stem: _first_comment(path) for path in sorted(folder.glob("*.yaml"))}
    for name, component in REGISTRIES.get(folder.name, {}).items():
        if not isinstance(component.target, str):  # brought by a plugin
            about.setdefault(name, (component.options.__doc__ or "").strip().splitlines()[0])
    prefix = "+" if folder.name == "exp" else ""
    width = max((len(name) for name in about), default=0) + 2
    return "\n".join([f"  {prefix}{folder.name}", *(f"    {name:<{width}}{text}" for name, text in about.items())])


def _first_comment(path: Path) -> str:
    comments = [
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("# ") and "@package" not in line
    ]
    return comments[0].removeprefix("# ") if comments else ""
