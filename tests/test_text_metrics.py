"""Text metrics on examples worked out by hand."""

import pytest

from recall.text_metrics import bleu, chrf, json_exact, json_f1, squad_exact, squad_f1


def test_chrf_of_one_wrong_letter():
    """Matching n-grams for n = 1..4 are 3/4, 2/3, 1/2, 0/1; precision is recall, so F is their mean."""
    corpus, (sentence,) = chrf(["abcd"], [["abce"]])
    assert sentence == pytest.approx((3 / 4 + 2 / 3 + 1 / 2 + 0) / 4)
    assert corpus == pytest.approx(sentence)


def test_bleu_of_one_wrong_word():
    """Five words of six: n-gram precisions 5/6, 4/5, 3/4, 2/3, lengths equal."""
    corpus, _ = bleu(["the cat sat on the rug"], [["the cat sat on the mat"]])
    assert corpus == pytest.approx((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** (1 / 4))


@pytest.mark.parametrize("metric", [chrf, bleu])
def test_the_best_of_several_references_counts_and_rows_may_have_different_numbers(metric):
    texts = ["the cat sat on the mat", "a dog barked at us today"]
    corpus, sentences = metric(texts, [["nothing alike here now", texts[0]], [texts[1]]])
    assert corpus == pytest.approx(1)
    assert sentences == pytest.approx([1, 1])


def test_squad_normalises_case_articles_and_punctuation():
    assert squad_exact("The Eiffel Tower.", ["eiffel tower"]) == 1
    assert squad_exact("an Eiffel", ["eiffel tower"]) == 0


def test_squad_f1_is_that_of_the_shared_words_and_the_best_reference():
    """Two of two words found, two of four wanted: P = 1, R = 1/2, F1 = 2/3."""
    assert squad_f1("Eiffel Tower", ["big iron Eiffel Tower"]) == pytest.approx(2 / 3)
    assert squad_f1("Eiffel Tower", ["Louvre", "the Eiffel tower"]) == 1
    assert squad_f1("", ["Louvre"]) == 0
    assert squad_f1("a", ["the"]) == 1


def test_squad_f1_counts_a_repeated_word_as_often_as_both_have_it():
    """One shared "no" of three: P = 1/3, R = 1."""
    assert squad_f1("no no no", ["no"]) == pytest.approx(1 / 2)


DATE = '{"day": 3, "month": 5, "year": 2024}'


def test_json_is_compared_as_a_value_and_not_as_text():
    other = '{ "year":2024,"month":5,\n"day":3 }'
    assert json_exact(other, [DATE]) == json_f1(other, [DATE]) == 1
    assert json_exact('{"day": "3", "month": 5, "year": 2024}', [DATE]) == 0, "a number is not its digits"


def test_json_f1_counts_the_fields_that_are_right():
    """Two of three found and wanted: P = R = 2/3. One of one found, of three wanted: P = 1, R = 1/3, F1 = 1/2."""
    assert json_f1('{"day": 3, "month": 6, "year": 2024}', [DATE]) == pytest.approx(2 / 3)
    assert json_f1('{"day": 3}', ['{"day": 4}', DATE]) == pytest.approx(1 / 2)
    assert json_exact('{"day": 3}', [DATE]) == 0


@pytest.mark.parametrize(
    "text", ["", DATE[:-1], f"{DATE} and more", "[3, 5, 2024]", "3", '{"day": NaN}', "[" * 100_000]
)
def test_what_is_no_json_object_scores_nothing(text):
    assert json_f1(text, [DATE]) == json_exact(text, [DATE]) == 0


def test_json_fields_lie_where_their_path_says():
    """Fields a.0.b, a.1 and c of the one; of the other only c is the same."""
    wanted = '{"a": [{"b": 1}, 2], "c": {}}'
    assert json_f1(wanted, [wanted]) == 1
    assert json_f1('{"a": [2, {"b": 1}], "c": {}}', [wanted]) == pytest.approx(1 / 3)
    assert json_f1('{"a": [], "c": {}}', [wanted]) == pytest.approx(2 / 5), "an empty list is a field too"
    assert json_f1("{}", ["{}"]) == json_exact("{}", ["{}"]) == 1
    assert json_f1("{}", [wanted]) == json_f1(wanted, ["{}"]) == 0
