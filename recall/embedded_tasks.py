"""The embedded learning tasks: rows made from data files that pinned PyPI packages carry.

Every split and every order follows from a hash of the inputs (see `recall.splits`). All learning tasks made from CLDR
put what belongs to one English name into one split, so that none shows another's test answers.
"""

from __future__ import annotations

import io
import pickle
import re
import tarfile
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recall.errors import BadInput
from recall.learning_tasks import SPLITS, Row, Split
from recall.splits import shuffled, split_of

REVIEWS = "additional_resources/hutto_ICWSM_2014.tar.gz"
CLEAR_RATING, NEUTRAL_RATING = 1.0, 0.3
REVIEW_WORDS = range(3, 13)
CLDR_SECTIONS = ("currency_names", "languages", "scripts", "territories")
NAME_LANGUAGES = {
    "cs": "Czech",
    "de": "German",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "it": "Italian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "sv": "Swedish",
    "tr": "Turkish",
}

Rows = dict[Split, list[Row]]
Builder = Callable[[Path, Mapping[Split, int]], Rows]


class Embedded(NamedTuple):
    """How one embedded learning task is made, and what its card says of it."""

    build: Builder
    licence: str
    notes: str


def _balanced(rows: Iterable[Row], most: int) -> list[Row]:
    """At most `most` rows for which the targets took turns, so that their counts differ by no more than they must."""
    queues: dict[str, list[Row]] = defaultdict(list)
    for row in shuffled(rows, lambda row: row.id):
        queues[row.target].append(row)
    turns = [(turn, target) for target, queue in queues.items() for turn in range(len(queue))]
    chosen = [queues[target][turn] for turn, target in sorted(turns)[:most]]
    return shuffled(chosen, lambda row: row.id)


def _equal_classes(rows: Collection[Row], most: int) -> list[Row]:
    counts = Counter(row.target for row in rows)
    return _balanced(rows, min(most, len(counts) * min(counts.values(), default=0)))


def reviews(source: str, prompt: str, names: tuple[str, ...], words: range = REVIEW_WORDS) -> Builder:
    """Texts that people rated from -4 to 4; `names`: the labels of negative, perhaps neutral, and positive means.

    Args:
        source: a table of `hutto_ICWSM_2014/` in the vaderSentiment source distribution: reviews, tweets, editorials.
        prompt: a template with `{text}`.
        words: how many a text may have.
    """

    def build(file: Path, most: Mapping[Split, int]) -> Rows:
        rows: dict[Split, dict[str, Row]] = {split: {} for split in SPLITS}
        for number, rating, text in _rated_texts(file, source):
            label = _label(rating, names)
            if label is None or len(text.split()) not in words:
                continue
            same = re.sub(r"\W+", " ", text.casefold()).strip()
            rows[split_of(same)].setdefault(same, Row(id=number, prompt=prompt.format(text=text), target=label))
        return {split: _equal_classes(rows[split].values(), most[split]) for split in SPLITS}

    return build


def _label(rating: float, names: tuple[str, ...]) -> str | None:
    """None where people's mean rating is too near a border to call."""
    if abs(rating) >= CLEAR_RATING:
        return names[-1] if rating > 0 else names[0]
    return names[1] if abs(rating) <= NEUTRAL_RATING and len(names) > 2 else None


def _rated_texts(file: Path, source: str) -> Iterable[tuple[str, float, str]]:
    """(id, mean rating, text) of every line of a ground-truth table inside the vaderSentiment source distribution."""
    with tarfile.open(file) as outer:
        inner = outer.extractfile(f"{file.name.removesuffix('.tar.gz')}/{REVIEWS}")
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            table = archive.extractfile(f"hutto_ICWSM_2014/{source}")
            assert table is not None
            lines = table.read().decode("utf-8").splitlines()
    for line in lines:
        number, rating, text = line.split("\t")
        yield number, float(rating), " ".join(text.split())


def _translated_names(locale: str, language: str) -> Builder:
    """English names to another language's; every name that CLDR gives for the same English one is a reference."""

    def build(file: Path, most: Mapping[Split, int]) -> Rows:
        english, other = _cldr_names(file, "en"), _cldr_names(file, locale)
        names: dict[str, tuple[str, list[str]]] = {}
        for key in sorted(english.keys() & other.keys()):
            if english[key].casefold() == other[key].casefold():
                continue
            _, translations = names.setdefault(english[key].casefold(), (english[key], []))
            if other[key] not in translations:
                translations.append(other[key])
        rows: Rows = {split: [] for split in SPLITS}
        for same, (name, translations) in names.items():
            prompt = f"Translate the name into {language}.\nEnglish: {name}\n{language}:"
            references = translations if len(translations) > 1 else []
            rows[split_of(same)].append(Row(id=same, prompt=prompt, target=translations[0], references=references))
        return {split: shuffled(rows[split], lambda row: row.id)[: most[split]] for split in SPLITS}

    return build


def _name_languages(file: Path, most: Mapping[Split, int]) -> Rows:
    """In which of four languages is a name? A CLDR entry gives one row at most, and is in its English name's split."""
    english = _cldr_names(file, "en")
    names = {locale: _cldr_names(file, locale) for locale in NAME_LANGUAGES}
    spoken: dict[str, set[str]] = defaultdict(set)
    for locale, entries in [("en", english), *names.items()]:
        for name in entries.values():
            spoken[_plain(name)].add(locale)
    rows: dict[Split, dict[str, Row]] = {split: {} for split in SPLITS}
    for key in sorted(english):
        same = english[key].casefold()
        certain = [
            locale
            for locale, entries in names.items()
            if key in entries and len(spoken[_plain(entries[key])]) == 1 and len(entries[key]) >= 6
        ]
        if not certain:
            continue
        locale = _drawn(certain, same)[0]
        row = _name_row(same, names[locale][key], NAME_LANGUAGES[locale])
        rows[split_of(same)].setdefault(same, row)
    return {split: _balanced(rows[split].values(), most[split]) for split in SPLITS}


def _name_row(same: str, name: str, language: str) -> Row:
    others = _drawn(set(NAME_LANGUAGES.values()) - {language}, same)[:3]
    choices = _drawn([language, *others], f"choices {same}")
    listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
    prompt = f"Which language is this name in: {listed}?\nName: {name}\nAnswer:"
    return Row(id=same, prompt=prompt, target=language, choices=choices)


def _drawn(items: Iterable[str], for_: str) -> list[str]:
    """Items in an order of their own for each `for_`."""
    return shuffled(items, lambda item: f"{for_} {item}")


def _plain(name: str) -> str:
    """A name without case and accents: two languages that differ in no more are not told apart."""
    return "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if c.isalnum())


class _Inert:
    """Stands for Babel's own classes (aliases, plural rules), of which no learning task needs any."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _LocaleReader(pickle.Unpickler):
    """Babel keeps a locale as a pickle; this reader runs nothing that such a file names."""

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if not module.startswith("babel."):
            raise BadInput(f"Babel's locale data names {module}.{name}; it was altered, fetch the pinned file again")
        return _Inert


def _cldr_names(file: Path, locale: str) -> dict[str, str]:
    """`section/code` to display name; without names that hold digits or brackets (dated variants) or over six words."""
    with zipfile.ZipFile(file) as wheel:
        data = _LocaleReader(io.BytesIO(wheel.read(f"babel/locale-data/{locale}.dat"))).load()
    return {
        f"{section}/{code}": name
        for section in CLDR_SECTIONS
        for code, name in data[section].items()
        if isinstance(name, str) and not re.search(r"[\d()\[\]]", name) and len(name.split()) <= 6
    }


_RATED = (
    "Mean of at least 20 people's ratings from -4 to 4 (Hutto and Gilbert 2014). Lowest label: at most -1; highest: at "
    "least 1; neutral, where there is one: -0.3 to 0.3; all others dropped. Kept: 3 to 12 words. Duplicates dropped, "
    "classes balanced."
)
_NAMED = (
    "Unicode CLDR names of currencies, languages, scripts and territories. Dropped: names with digits or brackets, or "
    "of over six words. The split follows from the English name, in every learning task made from CLDR."
)
EMBEDDED: dict[str, Embedded] = {
    "product_reviews": Embedded(
        reviews(
            "amazonReviewSnippets_GroundTruth.txt",
            "Is this product review negative, neutral or positive?\nReview: {text}\nSentiment:",
            ("negative", "neutral", "positive"),
        ),
        "MIT (vaderSentiment)",
        _RATED,
    ),
    "film_reviews": Embedded(
        reviews(
            "movieReviewSnippets_GroundTruth.txt",
            "A critic wrote: {text}\nQuestion: Is the film bad or good?\nAnswer:",
            ("bad", "good"),
        ),
        "MIT (vaderSentiment)",
        _RATED,
    ),
    "names_en_fr": Embedded(
        _translated_names("fr", "French"),
        "Unicode-3.0 (CLDR), BSD-3-Clause (Babel)",
        _NAMED + " Same in both: dropped.",
    ),
    "names_en_es": Embedded(
        _translated_names("es", "Spanish"),
        "Unicode-3.0 (CLDR), BSD-3-Clause (Babel)",
        _NAMED + " Same in both: dropped.",
    ),
    "name_language": Embedded(
        _name_languages,
        "Unicode-3.0 (CLDR), BSD-3-Clause (Babel)",
        _NAMED + " Also dropped: names under six letters, and names that two of the twelve languages or English share "
        "(accents and case apart). Three distractors by hash.",
    ),
}
