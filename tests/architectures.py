"""Small random models of many architectures, and where their checkpoints' tensors belong (docs/method.md, step 6)."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers as hf

from recall.checkpoints import Checkpoint


@dataclass(frozen=True)
class Architecture:
    """One class, its config, and its layers as the checkpoint's file names them.

    `stacks` are the block lists with their lengths; `after` what follows a stack, with the row that it takes; all else
    comes before. `attention` are the parts of a block in its attention row. `modules` are the model's own names of the
    stacks, where they are not the file's; `untied` a head that is not tied, though the class ties it.
    """

    kind: type
    config: hf.PreTrainedConfig
    stacks: dict[str, int]
    before: tuple[str, ...]
    after: dict[str, int]
    attention: tuple[str, ...]
    modules: tuple[str, ...] | None = None
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    untied: str | None = None

    def make(self, seed: int = 0) -> hf.PreTrainedModel:
        torch.manual_seed(seed)
        model = self.kind(self.config).eval()
        if self.untied:
            # As in T5 1.1's files, whatever the class makes of its config.
            head = model.get_submodule(self.untied)
            head.weight = torch.nn.Parameter(head.weight.detach().clone())
        with torch.no_grad():
            for parameter in model.parameters():
                # Norms and biases start as ones and zeros, which hide mistakes.
                parameter += 0.05 * torch.randn_like(parameter)
        return model

    def save(self, folder: Path, seed: int = 0) -> Checkpoint:
        self.make(seed).save_pretrained(folder)
        return Checkpoint(folder)

    @property
    def paths(self) -> list[str]:
        """The blocks' names in the model, in order."""
        prefixes = self.modules or tuple(self.stacks)
        return [f"{p}.{i}" for p, count in zip(prefixes, self.stacks.values(), strict=True) for i in range(count)]

    def row(self, tensor: str) -> int:
        """The row of a tensor in the file, by the lists above."""
        start = 0
        for prefix, count in self.stacks.items():
            if tensor.startswith(f"{prefix}."):
                return start + 1 + int(tensor.removeprefix(f"{prefix}.").split(".")[0])
            start += count
        row = next((row for prefix, row in self.after.items() if tensor.startswith(prefix)), 0)
        assert row or tensor.startswith(self.before), f"{tensor} is in no list"
        return row


SIZES = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
PAIR = {
    "vocab_size": 96, "d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {"vocab_size": 96, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
SOUND = {
    "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
DECODER = {
    "stacks": {"model.layers": 3},
    "before": ("model.embed_tokens",),
    "after": {"model.norm": 3, "lm_head": 3},
    "attention": ("self_attn", "input_layernorm"),
}
BERT_EMBEDDINGS = ("bert.embeddings",)
WAV2VEC2_BEFORE = ("wav2vec2.masked_spec", "wav2vec2.feature", "wav2vec2.encoder.pos_conv")
BART_STACKS = {"model.encoder.layers": 3, "model.decoder.layers": 2}
BART_BEFORE = ("model.shared", "model.encoder.embed", "model.decoder.embed")

ARCHITECTURES = {
    "llama": Architecture(hf.LlamaForCausalLM, hf.LlamaConfig(**GROUPED), **DECODER),
    "qwen2": Architecture(hf.Qwen2ForCausalLM, hf.Qwen2Config(**GROUPED), **DECODER),
    "qwen3": Architecture(hf.Qwen3ForCausalLM, hf.Qwen3Config(**GROUPED, head_dim=8), **DECODER),
    "gemma": Architecture(hf.GemmaForCausalLM, hf.GemmaConfig(**GROUPED, head_dim=8), **DECODER),
    "gemma2": Architecture(hf.Gemma2ForCausalLM, hf.Gemma2Config(**GROUPED, head_dim=8), **DECODER),
    "mixtral": Architecture(hf.MixtralForCausalLM, hf.MixtralConfig(**GROUPED, num_local_experts=3), **DECODER),
    "gpt2": Architecture(
        hf.GPT2LMHeadModel,
        hf.GPT2Config(vocab_size=96, n_embd=16, n_layer=3, n_head=4, n_positions=64, **ENDS),
        stacks={"transformer.h": 3},
        before=("transformer.wte", "transformer.wpe"),
        after={"transformer.ln_f": 3},
        attention=("ln_1", "attn"),
    ),
    "gpt_neox": Architecture(
        hf.GPTNeoXForCausalLM,
        hf.GPTNeoXConfig(**SIZES, max_position_embeddings=64),
        stacks={"gpt_neox.layers": 3},
        before=("gpt_neox.embed_in",),
        after={"gpt_neox.final_layer_norm": 3, "embed_out": 3},
        attention=("input_layernorm", "attention"),
    ),
    # Its final norm is registered before its blocks.
    "opt": Architecture(
        hf.OPTForCausalLM,
        hf.OPTConfig(
            vocab_size=96, hidden_size=16, ffn_dim=24, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=8
        ),
        stacks={"model.decoder.layers": 3},
        before=("model.decoder.embed", "model.decoder.project_in"),
        after={"model.decoder.final_layer_norm": 3, "model.decoder.project_out": 3},
        attention=("self_attn.", "self_attn_layer_norm"),
    ),
    "bert": Architecture(
        hf.BertForMaskedLM,
        hf.BertConfig(**SIZES),
        stacks={"bert.encoder.layer": 3},
        before=BERT_EMBEDDINGS,
        after={"cls": 3},
        attention=("attention",),
    ),
    "bert_classifier": Architecture(
        hf.BertForSequenceClassification,
        hf.BertConfig(**SIZES),
        stacks={"bert.encoder.layer": 3},
        before=BERT_EMBEDDINGS,
        after={"bert.pooler": 3, "classifier": 3},
        attention=("attention",),
    ),
    "roberta": Architecture(
        hf.RobertaForMaskedLM,
        hf.RobertaConfig(**SIZES, max_position_embeddings=64),
        stacks={"roberta.encoder.layer": 3},
        before=("roberta.embeddings",),
        after={"lm_head": 3},
        attention=("attention",),
    ),
    "t5": Architecture(
        hf.T5ForConditionalGeneration,
        hf.T5Config(**T5, decoder_start_token_id=0),
        stacks={"encoder.block": 3, "decoder.block": 2},
        before=("shared",),
        after={"encoder.final_layer_norm": 3, "decoder.final_layer_norm": 5},
        attention=("layer.0", "layer.1.EncDecAttention", "layer.1.layer_norm@decoder"),
    ),
    "t5_free_head": Architecture(
        hf.T5ForConditionalGeneration,
        hf.T5Config(**T5, decoder_start_token_id=0, tie_word_embeddings=False, feed_forward_proj="gated-gelu"),
        untied="lm_head",
        stacks={"encoder.block": 3, "decoder.block": 2},
        before=("shared",),
        after={"encoder.final_layer_norm": 3, "decoder.final_layer_norm": 5, "lm_head": 5},
        attention=("layer.0", "layer.1.EncDecAttention", "layer.1.layer_norm@decoder"),
    ),
    # Its embedding norms are registered behind its blocks, and its logits' bias is a buffer of the whole model.
    "bart": Architecture(
        hf.BartForConditionalGeneration,
        hf.BartConfig(**PAIR, max_position_embeddings=64),
        stacks=BART_STACKS,
        before=(*BART_BEFORE, "model.encoder.layernorm_embedding", "model.decoder.layernorm_embedding"),
        after={"final_logits_bias": 5},
        attention=("self_attn.", "encoder_attn.", "self_attn_layer_norm@decoder"),
    ),
    "whisper": Architecture(
        hf.WhisperForConditionalGeneration,
        hf.WhisperConfig(
            **PAIR,
            **ENDS,
            pad_token_id=1,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=30,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        stacks=BART_STACKS,
        before=(*BART_BEFORE, "model.encoder.conv"),
        after={"model.encoder.layer_norm": 3, "model.decoder.layer_norm": 5},
        attention=("self_attn.", "self_attn_layer_norm", "encoder_attn.", "encoder_attn_layer_norm"),
        inputs={"input_features": (8, 40)},
    ),
    # An encoder alone, whose config says that it is of an encoder-decoder.
    "whisper_classifier": Architecture(
        hf.WhisperForAudioClassification,
        hf.WhisperConfig(**PAIR, **ENDS, pad_token_id=1, num_mel_bins=8, max_source_positions=20),
        stacks={"encoder.layers": 3},
        before=("encoder.conv", "encoder.embed_positions"),
        after={"encoder.layer_norm": 3, "projector": 3, "classifier": 3},
        attention=("self_attn.", "self_attn_layer_norm"),
        inputs={"input_features": (8, 40)},
    ),
    "vit": Architecture(
        hf.ViTForImageClassification,
        hf.ViTConfig(**{**SIZES, "image_size": 16, "patch_size": 8}),
        stacks={"vit.encoder.layer": 3},
        before=("vit.embeddings",),
        after={"vit.layernorm.": 3, "classifier": 3},
        attention=("attention", "layernorm_before"),
        modules=("vit.layers",),
        inputs={"pixel_values": (3, 16, 16)},
    ),
    "wav2vec2": Architecture(
        hf.Wav2Vec2ForCTC,
        hf.Wav2Vec2Config(**SIZES, **SOUND),
        stacks={"wav2vec2.encoder.layers": 3},
        before=(*WAV2VEC2_BEFORE, "wav2vec2.encoder.layer_norm"),
        after={"lm_head": 3},
        attention=("attention",),
        inputs={"input_values": (400,)},
    ),
    # The same norm, registered in the same place, now runs behind the blocks.
    "wav2vec2_stable": Architecture(
        hf.Wav2Vec2ForCTC,
        hf.Wav2Vec2Config(**SIZES, **SOUND, do_stable_layer_norm=True, feat_extract_norm="layer"),
        stacks={"wav2vec2.encoder.layers": 3},
        before=WAV2VEC2_BEFORE,
        after={"wav2vec2.encoder.layer_norm": 3, "lm_head": 3},
        attention=("attention", "layer_norm"),
        inputs={"input_values": (400,)},
    ),
}
TEXT = [name for name, architecture in ARCHITECTURES.items() if not architecture.inputs]
OTHER = [name for name, architecture in ARCHITECTURES.items() if architecture.inputs]
