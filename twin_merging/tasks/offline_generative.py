"""Tasks of the generative suite out of a registry package, as files where HELM looks for them: no hub is needed."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twin_merging import assets

ASSET = "bigbench"
OFFLINE = ("bbq", "truthful_qa", "xsum", "cnn_dm")
TASKS = "*/bigbench/benchmark_tasks"
BBQ, TRUTHFUL = f"{TASKS}/bbq_lite/resources/*.json", f"{TASKS}/truthful_qa/questions.json"
XSUM, CNN_DM = f"{TASKS}/gem/xsum/task.json", f"{TASKS}/factuality_of_summary/cnn_dm.json"
SHARES = {"test": 0.4, "validation": 0.1}  # of the articles, which the package does not split
LAYOUT = 1  # of the files below; another one is another folder
TRUTHFUL_COLUMNS = (
    "Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source",
)  # fmt: skip


def offline_folder(folder: Path) -> Path:
    """A folder that ``paths.data`` may be, with bbq, truthful_qa, xsum and cnn_dm in ``generative``; made once.

    BBQ's rows are those of BIG-bench's ``bbq_lite`` in nine categories, TruthfulQA's questions the 299 that BIG-bench has,
    of which HELM takes the first fifth for training. Articles are cut into 50 % train, 10 % validation and 40 % test by a
    hash of their text. The package asks not to be republished: only what is used is read out of it, into the user's cache.

    Args:
        folder: of the assets.

    Raises:
        UserError: if the package (358 MB) cannot be fetched, or the folder not be written.
    """

    def make(target: Path) -> None:
        write_layout(assets.read_members(ASSET, folder, BBQ, TRUTHFUL, XSUM, CNN_DM), target / "generative")

    return assets.derived_folder(ASSET, folder, f"generative-{LAYOUT}", make)


def write_layout(members: Mapping[str, bytes], target: Path) -> None:
    """Write the members of the package as HELM's files.

    Args:
        members: name in the package -> content.
        target: receives a folder for each task.
    """
    for name, content in members.items():
        if "/bbq_lite/" in name:
            rows = json.loads(content)["examples"]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            _file(target / f"bbq/data/{Path(name).stem}.jsonl").write_text(lines, encoding="utf-8")
        elif "/truthful_qa/" in name:
            _write_questions(json.loads(content)["examples"], _file(target / "truthful_qa/data/TruthfulQA.csv"))
        elif "/gem/xsum/" in name:
            pairs = [{"document": row["input"], "summary": row["target"]} for row in json.loads(content)["examples"]]
            _write_articles(pairs, "document", _file(target / "xsum/data/xsum-sampled.pk"))
        else:
            objects = [
                line for line in content.decode().splitlines() if line and not line.startswith("#")
            ]  # its canary
            found = [json.loads(line) for line in objects]
            pairs = [{"article": row["source"], "highlights": row["true_cnd"], "id": row["idx"]} for row in found]
            _write_articles(pairs, "article", _file(target / "cnn_dm/data/cnndm.pk"))


def _write_questions(examples: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(TRUTHFUL_COLUMNS)
        for row in examples:
            right, wrong = ("; ".join(row[f"{kind} answers"]) for kind in ("True", "False"))
            writer.writerow(("", row["Category"], row["Question"], row["Best answer"], right, wrong, "BIG-bench"))


def _write_articles(pairs: list[dict[str, str]], key: str, path: Path) -> None:
    """A pickle of plain lists and dicts, which is the form that HELM reads."""
    order = sorted(pairs, key=lambda pair: hashlib.sha256(pair[key].encode()).hexdigest())
    splits = {}
    for name, share in SHARES.items():
        count = round(share * len(pairs))
        splits[name], order = order[:count], order[count:]
    path.write_bytes(pickle.dumps({"train": order, **splits}))


def _file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
