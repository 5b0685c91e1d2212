"""Text metrics on examples worked out by hand."""

import pytest

from recall.text_metrics import bleu, chrf, squad_exact, squad_f1


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
