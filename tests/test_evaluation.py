"""Batched, cached scoring against the definition, one row at a time from full logits; metrics by hand."""

import pytest
import torch

from recall.encoding import encode
from recall.evaluation import evaluate
from recall.generation import GreedyDecoder
from recall.learning_tasks import Row, TaskSpec
from recall.likelihood import AnswerScorer
from recall.loading import load_model, load_tokenizer
from recall.settings import EvaluationSettings

LABELS = ["b", "good", "quite bad"]
PROMPTS = ["a b c d e f g", "x", "the film was", "zz top", "a longer prompt than all of the others here"]
SETTINGS = EvaluationSettings(batch_size=2, max_tokens=64, max_new_tokens=6)
CLASSIFICATION = TaskSpec(kind="classification", metric="accuracy", labels=LABELS, source={})
TRANSLATION = TaskSpec(kind="translation", metric="chrf", source={})


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def loaded(request, tiny_model_folder, tiny_gpt2_folder):
    folder = {"llama": tiny_model_folder, "gpt2": tiny_gpt2_folder}[request.param]
    model = load_model(folder, torch.float32)
    # Random weights are near ties everywhere; sharper logits make the likeliest token a clear one.
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3)
    return model, load_tokenizer(folder)


@torch.inference_mode()
def log_likelihood(model, tokenizer, prompt, answer):
    """The definition: full logits, no padding, no cache."""
    ids = tokenizer(f"{prompt} {answer}", return_tensors="pt").input_ids.to(model.device)
    start = len(tokenizer(prompt).input_ids)
    log_probs_TV = model(ids).logits[0].double().log_softmax(-1)
    return sum(log_probs_TV[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1]))


@torch.inference_mode()
def greedy_line(model, tokenizer, prompt, max_new_tokens):
    """The definition: the whole text read again for every token."""
    ids = tokenizer(prompt).input_ids
    start = len(ids)
    while len(ids) < start + max_new_tokens:
        ids.append(model(torch.tensor([ids], device=model.device)).logits[0, -1].argmax().item())
        if ids[-1] == tokenizer.eos_token_id or "\n" in tokenizer.decode(ids[start:]):
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True).partition("\n")[0].strip()


def classify(loaded, rows, **changes):
    return evaluate(*loaded, rows, CLASSIFICATION, SETTINGS.model_copy(update=changes))


def test_likelihoods_are_those_of_the_definition(loaded):
    model, tokenizer = loaded
    batch = encode(tokenizer, PROMPTS, [LABELS[: 1 + i % 3] for i in range(len(PROMPTS))], 64)
    found = AnswerScorer(model, tokenizer).log_likelihoods(batch)
    for i, (prompt, sums) in enumerate(zip(PROMPTS, found, strict=True)):
        wanted = [log_likelihood(model, tokenizer, prompt, answer) for answer in LABELS[: 1 + i % 3]]
        assert sums == pytest.approx(wanted, abs=1e-3, rel=1e-5)


def test_the_likeliest_label_is_chosen_and_rows_keep_their_order(loaded):
    wanted = [max(LABELS, key=lambda label: log_likelihood(*loaded, prompt, label)) for prompt in PROMPTS]
    rows = [Row(id=prompt, prompt=prompt, target="good") for prompt in PROMPTS]
    found = classify(loaded, rows)
    assert found.predictions == wanted
    assert found.row_scores == [float(label == "good") for label in wanted]
    assert found.score == found.extra["acc"] == sum(found.row_scores) / len(rows)
    given = max(LABELS, key=wanted.count)
    assert (found.label_bias.label, found.label_bias.given) == (given, wanted.count(given) / len(rows))
    assert (found.label_bias.true, found.label_bias.auc) == (float(given == "good"), None), "all rows are good"


def test_a_row_with_choices_of_its_own_is_scored_by_likelihood_a_character(loaded):
    choices = ["no", "a very long answer indeed", "maybe so"]
    rows = [Row(id=prompt, prompt=prompt, target="no", choices=choices) for prompt in PROMPTS]
    spec = TaskSpec(kind="multiple_choice", metric="accuracy", source={})
    found = evaluate(*loaded, rows, spec, SETTINGS)
    wanted = [max(choices, key=lambda text: log_likelihood(*loaded, p, text) / len(text)) for p in PROMPTS]
    summed = [max(choices, key=lambda text: log_likelihood(*loaded, p, text)) for p in PROMPTS]
    assert found.predictions == wanted
    assert found.score == found.extra["acc_norm"]
    assert found.extra["acc"] == summed.count("no") / len(rows)
    assert found.label_bias is None
    assert wanted != summed, "an example where both agree would show nothing"


def test_decoding_is_greedy_whatever_the_batch(loaded):
    model, tokenizer = loaded
    wanted = [greedy_line(model, tokenizer, prompt, 6) for prompt in PROMPTS]
    ids = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    assert GreedyDecoder(model, tokenizer, 6).first_lines(ids) == wanted
    rows = [Row(id=prompt, prompt=prompt, target="le film") for prompt in PROMPTS]
    assert evaluate(model, tokenizer, rows, TRANSLATION, SETTINGS).predictions == wanted


@pytest.mark.parametrize("stop", ["<|end|>", "\n"])
def test_a_row_that_ends_early_leaves_the_others_alone(loaded, stop):
    """The token that one row writes second is made the one that ends a line."""
    model, tokenizer = loaded
    ids = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    head = model.get_output_embeddings()
    second = tokenizer(greedy_line(model, tokenizer, PROMPTS[0], 2)).input_ids[-1]
    kept = head.weight.detach().clone()
    try:
        with torch.no_grad():
            head.weight[
                tokenizer.convert_tokens_to_ids("<|end|>") if stop != "\n" else tokenizer("\n").input_ids[0]
            ] = 1.01 * kept[second]
        wanted = [greedy_line(model, tokenizer, prompt, 12) for prompt in PROMPTS]
        found = GreedyDecoder(model, tokenizer, 12).first_lines(ids)
    finally:
        with torch.no_grad():
            head.weight.copy_(kept)
    assert found == wanted
    assert len({len(text) for text in wanted}) > 1


def test_a_prompt_that_is_too_long_is_cut_on_the_left(loaded):
    tail = "d e f g"
    long, short = [Row(id=p, prompt=p, target="b", choices=["b", "c"]) for p in ("a b c " * 9 + tail, tail)]
    settings = SETTINGS.model_copy(update={"max_tokens": 1 + len(loaded[1](tail).input_ids)})
    scorer = AnswerScorer(*loaded)
    cut, whole = encode(loaded[1], [long.prompt, short.prompt], [["b", "c"]] * 2, settings.max_tokens)
    assert cut.prompt[-3:] == whole.prompt[-3:]
    assert len(cut.prompt) == len(whole.prompt)
    assert scorer.log_likelihoods([cut])[0] == pytest.approx(scorer.log_likelihoods([cut, whole])[0], abs=1e-3)


def harness_split(tokenizer, context, continuation):
    """`_encode_pair` of lm-evaluation-harness, written down from its description."""
    spaces = len(context) - len(context.rstrip())
    if spaces > 0:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    start = len(tokenizer(context).input_ids)
    whole = tokenizer(context + continuation).input_ids
    return whole[:start], whole[start:]


@pytest.mark.parametrize("prompt", ["the film was", "the film was ", "the film was  \n", "a"])
def test_prompt_and_answer_are_parted_where_the_harness_parts_them(loaded, prompt):
    _, tokenizer = loaded
    (found,) = encode(tokenizer, [prompt], [["good", "b"]], 64)
    for answer, ids in zip(["good", "b"], found.answers, strict=True):
        assert (found.prompt, ids) == harness_split(tokenizer, prompt, f" {answer}")


def test_a_prompt_to_go_on_from_keeps_the_space_at_its_end(loaded):
    _, tokenizer = loaded
    (found,) = encode(tokenizer, ["the film was "], [[]], 64)
    assert tokenizer.decode(found.prompt) == "the film was "
    (blank,) = encode(tokenizer, [" "], [["good"]], 64)
    assert blank.prompt
