"""What all rows of a batch begin with is read once, with the same likelihoods, texts and gradients as row by row."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_evaluation import greedy_line, log_likelihood
from transformers import MistralConfig, MistralForCausalLM, OPTConfig, OPTForCausalLM

from recall.answer_logits import LogitReader
from recall.encoding import encode
from recall.generation import GreedyDecoder
from recall.likelihood import AnswerScorer
from recall.loading import load_model, load_tokenizer

TEMPLATE = "translate the name into french"
PROMPTS = [f"{TEMPLATE} {name}" for name in ("a b c d", "x", "ndebele of the south", "zz")]
IDS_BT = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 20, 21, 22, 0], [5, 6, 7, 8, 30, 31, 32]])
CHOSEN_BT = torch.tensor([[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1, 0]]).bool()
"""Three rows that begin with three tokens in common; the second ends in padding."""


@pytest.fixture(params=["llama", "gpt2"])
def loaded(request, tiny_model_folder, tiny_gpt2_folder):
    folder = {"llama": tiny_model_folder, "gpt2": tiny_gpt2_folder}[request.param]
    model = load_model(folder, torch.float32).cpu()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3)
    return model, load_tokenizer(folder)


@pytest.fixture
def widths(loaded):
    """Rows and tokens of every forward pass of the model's body."""
    seen = []

    def note(module, args, kwargs):
        seen.append(tuple((args[0] if args else kwargs["input_ids"]).shape))

    loaded[0].base_model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def gradient(model, states_N):
    (found,) = torch.autograd.grad(states_N.square().sum(), model.get_input_embeddings().weight)
    return found


def test_the_gradient_is_that_of_rows_read_apart(loaded, widths):
    model, _ = loaded
    reader = LogitReader(model)
    widths.clear()
    shared_N = reader.row_states(IDS_BT, CHOSEN_BT)
    assert widths == [(1, 3), (3, 4)]
    apart_N = torch.cat(
        [
            reader.states({"input_ids": ids_1T, "use_cache": False}, chosen_1T)[0]
            for ids_1T, chosen_1T in zip(IDS_BT[:, None], CHOSEN_BT[:, None], strict=True)
        ]
    )
    torch.testing.assert_close(shared_N, apart_N)
    torch.testing.assert_close(gradient(model, shared_N), gradient(model, apart_N), rtol=1e-4, atol=1e-4)


def test_a_token_that_is_asked_for_is_not_shared(loaded, widths):
    reader = LogitReader(loaded[0])
    widths.clear()
    chosen_BT = CHOSEN_BT.clone()
    chosen_BT[1, 1] = True
    assert len(reader.row_states(IDS_BT, chosen_BT)) == CHOSEN_BT.sum() + 1
    assert widths == [(1, 1), (3, 6)]


def test_dropout_hits_each_row_apart(loaded, widths):
    """GPT-2 drops out in training."""
    model, _ = loaded
    reader = LogitReader(model)
    model.train()
    widths.clear()
    reader.row_states(IDS_BT, CHOSEN_BT)
    assert widths == ([(3, 7)] if model.config.model_type == "gpt2" else [(1, 3), (3, 4)])


def opt(**dropout):
    """OPT's dropout is a function, not a module, and it has none on its attention."""
    shape = {"vocab_size": 64, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return OPTForCausalLM(OPTConfig(**shape, word_embed_proj_dim=16, max_position_embeddings=32, **dropout)).eval()


def test_dropout_by_a_function_hits_each_row_apart_too():
    model = opt(dropout=0.5, attention_dropout=0.0)
    reader = LogitReader(model)
    assert reader.shares_prefixes
    assert not model.training
    model.train()
    alike_BT = torch.tensor([[5, 6, 7, 8, 9]]).expand(2, -1)
    one, other = reader.row_states(alike_BT, torch.tensor([[0, 0, 0, 0, 1]] * 2).bool())
    assert not torch.equal(one, other), "one mask for both rows"


def test_dropout_of_an_adapter_that_starts_at_zero_is_seen(tiny_model_folder):
    plain = load_model(tiny_model_folder, torch.float32)
    assert not LogitReader(plain).draws_dropout
    adapted = get_peft_model(plain, LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear"))
    assert LogitReader(adapted).draws_dropout


def test_to_look_for_dropout_leaves_the_random_numbers_as_they_were(loaded):
    before = torch.get_rng_state()
    LogitReader(loaded[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sliding_window_is_read_whole():
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    windowed = MistralForCausalLM(MistralConfig(**shape, **heads, sliding_window=4)).eval()
    assert not LogitReader(windowed).shares_prefixes
    plain = MistralForCausalLM(MistralConfig(**shape, **heads, sliding_window=None)).eval()
    assert LogitReader(plain).shares_prefixes


def test_likelihoods_and_texts_are_those_of_the_definition(loaded, widths):
    model, tokenizer = loaded
    batch = encode(tokenizer, PROMPTS, [["good", "quite bad"]] * len(PROMPTS), 64)
    common = len(tokenizer(TEMPLATE).input_ids)
    scorer, decoder = AnswerScorer(model, tokenizer), GreedyDecoder(model, tokenizer, 6)
    widths.clear()
    found = scorer.log_likelihoods(batch)
    assert widths[0][0] == 1
    assert widths[0][1] >= common
    for prompt, sums in zip(PROMPTS, found, strict=True):
        wanted = [log_likelihood(model, tokenizer, prompt, answer) for answer in ("good", "quite bad")]
        assert sums == pytest.approx(wanted, abs=1e-3, rel=1e-5)
    texts = decoder.first_lines([row.prompt for row in batch])
    assert texts == [greedy_line(model, tokenizer, prompt, 6) for prompt in PROMPTS]


def test_equal_prompts_share_all_but_their_last_token(loaded, widths):
    model, tokenizer = loaded
    ids = tokenizer(PROMPTS[0]).input_ids
    decoder = GreedyDecoder(model, tokenizer, 3)
    widths.clear()
    assert decoder.first_lines([ids, ids]) == [greedy_line(model, tokenizer, PROMPTS[0], 3)] * 2
    assert widths[:2] == [(1, len(ids) - 1), (2, 1)]
