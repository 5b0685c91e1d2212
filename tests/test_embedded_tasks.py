"""The embedded learning tasks, built from files of the shape of the pinned ones."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recall import embedded_tasks, pypi
from recall.errors import BadInput
from recall.learning_tasks import SPLITS, Split
from recall.splits import SHARES, shuffled, split_of

ALL: dict[Split, int] = {"train": 10_000, "validation": 10_000, "test": 10_000}
WORDS = [
    "ash",
    "birch",
    "cedar",
    "elm",
    "fir",
    "hazel",
    "larch",
    "maple",
    "oak",
    "pine",
    "rowan",
    "sloe",
    "teak",
    "yew",
]


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Files of the shape of the pinned ones: a source distribution with rated reviews, a wheel with CLDR names."""
    folder = tmp_path / "sources"
    folder.mkdir()
    lines = []
    for number in range(300):
        rating = (-2.0, 0.1, 2.0, 0.6)[number % 4]
        lines.append(f"{number}_1\t{rating}\t{' '.join(WORDS[(number + step) % 14] for step in range(5))} {number}.")
    shouted = lines[2].split("\t")[2].upper()
    lines += [f"again\t2.0\t{shouted}", "short\t3.0\tgreat", "long\t3.0\t" + "word " * 40]
    inner = tar({"hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt": "\n".join(lines).encode()})
    (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(tar({f"vaderSentiment-3.3.2/{embedded_tasks.REVIEWS}": inner}))
    with zipfile.ZipFile(folder / "babel-2.17.0-py3-none-any.whl", "w") as wheel:
        for locale in ("en", *embedded_tasks.NAME_LANGUAGES):
            wheel.writestr(f"babel/locale-data/{locale}.dat", pickle.dumps(locale_data(locale)))
    return folder


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def locale_data(locale: str) -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {section: {} for section in embedded_tasks.CLDR_SECTIONS}
    for number in range(240):
        name = f"{WORDS[number % 14]} {WORDS[number // 14 % 14]} land"
        sections["territories"][f"{number:03}"] = name.title() if locale == "en" else f"{name} {locale * 3}"
    sections["languages"] = {"same": "Interlingua", "dated": "Old Tongue (1850)"}
    sections["scripts"] = {"twin": "Ash Ash Land" if locale == "en" else f"other {locale * 3}"}
    return sections


def build(downloads: Path, builder: str, most: dict[Split, int] = ALL) -> dict[Split, list[embedded_tasks.Row]]:
    file = "vaderSentiment==3.3.2" if builder == "product_reviews" else "Babel==2.17.0"
    return embedded_tasks.EMBEDDED[builder].build(pypi.downloaded(downloads, file), most)


def test_splits_follow_from_the_text_alone_and_have_their_shares() -> None:
    drawn = Counter(split_of(f"input {number}") for number in range(20_000))
    for split, share in SHARES.items():
        assert drawn[split] / 20_000 == pytest.approx(share, abs=0.01)
    assert [split_of(text) for text in ("Andorra", "Belgium", "Chad")] == ["test", "test", "validation"]


def test_the_order_depends_on_the_keys_and_not_on_the_order_given() -> None:
    assert shuffled(WORDS, str) == shuffled(reversed(WORDS), str) != sorted(WORDS)


@pytest.mark.parametrize("builder", ["product_reviews", "names_en_fr", "name_language"])
def test_no_embedded_input_is_in_two_splits(downloads: Path, builder: str) -> None:
    rows = build(downloads, builder)
    prompts = [row.prompt for split in SPLITS for row in rows[split]]
    assert len(prompts) == len(set(prompts)) > 50
    assert all(not row.prompt.endswith(" ") and row.prompt.endswith(":") for row in rows["train"])


def test_embedded_rows_do_not_move_when_fewer_are_asked_for(downloads: Path) -> None:
    everything = build(downloads, "names_en_fr")
    few = build(downloads, "names_en_fr", {"train": 20, "validation": 3, "test": 10})
    assert {split: few[split] for split in SPLITS} == {
        "train": everything["train"][:20],
        "validation": everything["validation"][:3],
        "test": everything["test"][:10],
    }


def test_reviews_are_labelled_by_mean_rating_filtered_and_balanced(downloads: Path) -> None:
    rows = build(downloads, "product_reviews")
    label = {"0": "negative", "1": "neutral", "2": "positive"}
    for split in SPLITS:
        assert all(row.target == label[str(int(row.id.split("_")[0]) % 4)] for row in rows[split])
        assert len(set(Counter(row.target for row in rows[split]).values())) == 1
    assert not {"again", "short", "long"} & {row.id for split in SPLITS for row in rows[split]}


def test_a_translation_drops_equal_names_and_keeps_every_right_answer(downloads: Path) -> None:
    rows = [row for split in build(downloads, "names_en_fr").values() for row in split]
    assert not {"interlingua", "old tongue (1850)"} & {row.id for row in rows}
    twin = next(row for row in rows if row.id == "ash ash land")
    assert twin.references == ["other frfrfr", "ash ash land frfrfr"]
    assert twin.target == "other frfrfr"


def test_a_name_keeps_its_split_in_every_cldr_learning_task(downloads: Path) -> None:
    translated, told = build(downloads, "names_en_fr"), build(downloads, "name_language")
    for split in SPLITS:
        assert {row.id for row in told[split]} <= {row.id for row in translated[split]}


def test_a_name_has_four_choices_of_which_one_is_its_language(downloads: Path) -> None:
    locale = {language: code for code, language in embedded_tasks.NAME_LANGUAGES.items()}
    places = Counter()
    for row in build(downloads, "name_language")["train"]:
        assert len(set(row.choices)) == 4
        assert f"{locale[row.target] * 3}\nAnswer:" in row.prompt
        places[row.choices.index(row.target)] += 1
    assert set(places) == {0, 1, 2, 3}


def test_a_locale_file_that_names_other_code_is_refused_and_not_run(downloads: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    with zipfile.ZipFile(downloads / "babel-2.17.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("babel/locale-data/en.dat", pickle.dumps(Attack()))
    with pytest.raises(BadInput, match="it was altered"):
        build(downloads, "names_en_fr")
    assert not (tmp_path / "ran").exists()


def test_a_requirement_that_was_not_downloaded_says_what_to_do(downloads: Path) -> None:
    assert pypi.downloaded(downloads, "BABEL==2.17.0").name.startswith("babel")
    with pytest.raises(BadInput, match=r"Babel==2.18.0 is not in .*data/pypi.txt"):
        pypi.downloaded(downloads, "Babel==2.18.0")
