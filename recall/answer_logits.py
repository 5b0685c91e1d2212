"""Logits at chosen positions only.

The output head is the largest matrix of a small model (49,152 x 576 for SmolLM2-135M, a fifth of all parameters), and
`logits_to_keep` hands it a strided batch, for which the CPU's batched product copies the head once a row. So the body
runs alone and the head sees the chosen positions as one matrix.

Shapes: B batch, T tokens, N chosen positions, E hidden, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

CHUNK = 256


class LogitReader:
    """Reads the logits of any causal language model where they are asked for.

    Where logits are more than a linear map of the body's output (soft caps, scaled heads), which one small forward
    pass tells, the model's own full forward is used: slower, never wrong.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        self.causal_lm = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        self.dtype = self.causal_lm.dtype
        self.body = self.causal_lm.base_model
        self.head = self.causal_lm.get_output_embeddings()
        self.head_is_all = self._head_is_all()
        self.takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters
        self.shares_prefixes = self.takes_positions and self._caches_keys_and_values_alone()
        self.draws_dropout = self.shares_prefixes and self._draws_in_training()

    def read_through(self, wrapper: Any) -> None:
        """From now on call the model's whole forward, in a wrapper (DDP, FSDP) that spreads it over processes.

        That gathers its weights and gathers its gradients; a call of its parts would pass both by.
        """
        self.causal_lm, self.head_is_all, self.shares_prefixes = wrapper, False, False

    def states(self, inputs: dict[str, Any], chosen_BT: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """What `logits` turns into logits, (N, E) or (N, V), and the key-value cache.

        `inputs` are the model's keyword arguments; `chosen_BT` is boolean, N its number of trues, in row order.
        """
        out = self.body(**inputs) if self.head_is_all else self.causal_lm(**inputs)
        read_BT = out.last_hidden_state if self.head_is_all else out.logits
        return read_BT[chosen_BT], out.get("past_key_values")

    def row_states(self, ids_BT: torch.Tensor, chosen_BT: torch.Tensor) -> torch.Tensor:
        """States (N, ...) at the chosen places of rows that are padded on the right, for which causal attention needs
        no mask.

        What all rows begin with, as a template's words, is read once for all of them, and so is its gradient computed.
        Not so with dropout, which is to hit each row apart, nor on a GPU, which waits for kernel launches at these
        lengths: a pass of their own doubles them.
        """
        shared = self._shared_tokens(ids_BT, chosen_BT)
        if not shared:
            return self.states({"input_ids": ids_BT, "use_cache": False}, chosen_BT)[0]
        _, cache = self.states({"input_ids": ids_BT[:1, :shared], "use_cache": True}, chosen_BT[:1, :shared])
        cache.batch_repeat_interleave(len(ids_BT))
        rest = {
            "input_ids": ids_BT[:, shared:],
            "position_ids": torch.arange(shared, ids_BT.shape[1], device=ids_BT.device)[None],
            "past_key_values": cache,
            "use_cache": True,
        }
        return self.states(rest, chosen_BT[:, shared:])[0]

    def _shared_tokens(self, ids_BT: torch.Tensor, chosen_BT: torch.Tensor) -> int:
        """How many tokens all rows begin with, before the first that is chosen in any."""
        drawn, on_gpu = self.causal_lm.training and self.draws_dropout, ids_BT.is_cuda
        if not self.shares_prefixes or drawn or on_gpu or len(ids_BT) == 1:
            return 0
        before = int(chosen_BT.any(0).int().argmax())
        return int((ids_BT == ids_BT[:1]).all(0)[:before].cumprod(0).sum())

    def logits(self, states_N: torch.Tensor) -> torch.Tensor:
        """Logits (N, V) in float32."""
        logits_NV: torch.Tensor = self.head(states_N) if self.head_is_all else states_N
        return logits_NV.float()

    def log_probs(self, states_N: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
        """Log-probability (N,), in float32, of one token after each state.

        A chunk at a time, as the logits of all N may not fit in memory; several chunks with a gradient are computed
        again in the backward pass instead of kept.
        """
        chunks = list(zip(torch.split(states_N, CHUNK), torch.split(tokens_N, CHUNK), strict=True))
        if len(chunks) > 1 and states_N.requires_grad:
            parts = [checkpoint(self._chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        else:
            parts = [self._chunk(*chunk) for chunk in chunks]
        return torch.cat(parts)

    def _chunk(self, states_N: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
        return -cross_entropy(self.logits(states_N), tokens_N, reduction="none")

    @torch.no_grad()
    def _caches_keys_and_values_alone(self) -> bool:
        """Can rows go on from one cache, as they cannot from the state of a recurrence or of a sliding window?"""
        ids_BT = torch.zeros((1, 1), dtype=torch.long, device=self.causal_lm.device)
        cache = self.body(input_ids=ids_BT, use_cache=True).get("past_key_values")
        return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)

    @torch.no_grad()
    def _draws_in_training(self) -> bool:
        """Does a forward pass in training mode draw random numbers, from a module, a function or an attention?

        Not: do two passes differ; an adapter that starts at zero hides what its dropout draws.
        """
        device, training = self.causal_lm.device, self.causal_lm.training
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            before = _generators(device)
            self.causal_lm.train()
            self.body(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device), use_cache=False)
            self.causal_lm.train(training)
            return any(not torch.equal(*pair) for pair in zip(before, _generators(device), strict=True))

    @torch.no_grad()
    def _head_is_all(self) -> bool:
        if self.head is None:
            return False
        training = self.causal_lm.training
        self.causal_lm.eval()
        vocabulary = self.causal_lm.config.get_text_config().vocab_size
        ids_BT = torch.arange(4, device=self.causal_lm.device)[None] % vocabulary
        whole = self.causal_lm(input_ids=ids_BT, use_cache=False).logits
        apart = self.head(self.body(input_ids=ids_BT, use_cache=False).last_hidden_state)
        self.causal_lm.train(training)
        return torch.equal(whole, apart)


def _generators(device: torch.device) -> list[torch.Tensor]:
    """The state of every random generator that a model on `device` draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
