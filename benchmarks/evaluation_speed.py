"""CPU seconds of training and scoring, our way against the plain one, on a model of your choice.

    python benchmarks/evaluation_speed.py data/base_model [THREADS]

CPU time, not wall time, so that other processes disturb little. Each figure is the least of three.
"""

import argparse
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from recall.answer_logits import LogitReader
from recall.evaluation import evaluate
from recall.learning_tasks import Row, TaskSpec
from recall.loading import load_model, load_tokenizer, training_dtype
from recall.settings import EvaluationSettings

ROWS, TOKENS, ANSWER = 16, 32, 2
LABELS = ["positive", "negative"]


def cpu_seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(3):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def loaded(folder: Path, attention: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=training_dtype("auto"), attn_implementation=attention)


def training(folder: Path) -> None:
    """One forward and backward pass over 16 rows of 32 tokens, 2 of them answer."""
    torch.manual_seed(0)
    ids_BT = torch.randint(0, 10_000, (ROWS, TOKENS))
    targets_N = ids_BT[:, -ANSWER:].reshape(-1)
    chosen_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    chosen_BT[:, -ANSWER - 1 : -1] = True
    for attention, flat, cast in product(["sdpa", "eager"], [False, True], [True, False]):
        model = get_peft_model(loaded(folder, attention), LoraConfig(r=16, target_modules="all-linear"))
        reader = LogitReader(model)

        def step() -> None:
            low = model.dtype == torch.bfloat16 and not cast  # noqa: B023
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                if flat:  # noqa: B023
                    states_N, _ = reader.states({"input_ids": ids_BT, "use_cache": False}, chosen_BT)  # noqa: B023
                    loss = -reader.log_probs(states_N, targets_N).mean()  # noqa: B023
                else:
                    logits = model(ids_BT, use_cache=False, logits_to_keep=ANSWER + 1).logits  # noqa: B023
                    loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets_N)
            loss.backward()

        with disable_input_dtype_casting(model, active=not cast):
            speed = ROWS * TOKENS / cpu_seconds(step)
        head = "flat head" if flat else "logits_to_keep"
        lora = "LoRA in float32" if cast else "LoRA under autocast"
        print(f"training    {attention:5} {head:14} {lora:19} {speed:7.0f} tokens / CPU s")


def shared_prefixes(folder: Path) -> None:
    """The same pass, ours, where the rows' first 0, 8 or 12 tokens are a template's."""
    model = get_peft_model(loaded(folder, "eager"), LoraConfig(r=16, target_modules="all-linear")).train()
    reader = LogitReader(model)
    low = model.dtype == torch.bfloat16
    for shared in (0, 8, 12):
        torch.manual_seed(0)
        ids_BT = torch.randint(0, 10_000, (ROWS, TOKENS))
        ids_BT[:, :shared] = ids_BT[0, :shared]
        chosen_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        chosen_BT[:, -ANSWER - 1 : -1] = True

        def step() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                states_N = reader.row_states(ids_BT, chosen_BT)  # noqa: B023
                loss = -reader.log_probs(states_N, ids_BT[:, -ANSWER:].reshape(-1)).mean()  # noqa: B023
            loss.backward()

        with disable_input_dtype_casting(model):
            speed = ROWS * TOKENS / cpu_seconds(step)
        print(f"training    {shared:2} of {TOKENS} tokens shared by all rows {speed:7.0f} tokens / CPU s")


def scoring(folder: Path) -> None:
    """100 rows of about 35 tokens: 2 labels by likelihood, and 8 new tokens by greedy decoding."""
    words = "the plot of this film was not very good but I liked it all the same".split()  # noqa: SIM905
    prompts = [f"Review: {' '.join((words * 3)[i % 9 : i % 9 + 12 + i % 20])}\nSentiment:" for i in range(100)]
    rows = [Row(id=str(i), prompt=prompt, target=LABELS[i % 2]) for i, prompt in enumerate(prompts)]
    model, tokenizer = load_model(folder, training_dtype("auto")), load_tokenizer(folder)
    settings = EvaluationSettings(max_new_tokens=8)
    labels = TaskSpec(kind="classification", metric="accuracy", labels=LABELS, source={})
    text = TaskSpec(kind="translation", metric="chrf", source={})

    def full_logits() -> None:
        with torch.inference_mode():
            for i in range(0, len(rows), settings.batch_size):
                texts = [f"{row.prompt} {label}" for row in rows[i : i + settings.batch_size] for label in LABELS]
                model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.float().log_softmax(-1)

    def generate() -> None:
        for i in range(0, len(rows), settings.batch_size):
            batch = tokenizer(prompts[i : i + settings.batch_size], return_tensors="pt", padding=True)
            model.generate(**batch, max_new_tokens=8, do_sample=False)

    print(
        f"2 labels    ours        {cpu_seconds(lambda: evaluate(model, tokenizer, rows, labels, settings)):6.2f} CPU s"
    )
    print(f"2 labels    full logits {cpu_seconds(full_logits):6.2f} CPU s")
    print(f"8 tokens    ours        {cpu_seconds(lambda: evaluate(model, tokenizer, rows, text, settings)):6.2f} CPU s")
    print(f"8 tokens    generate    {cpu_seconds(generate):6.2f} CPU s")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the model")
    parser.add_argument("threads", type=int, nargs="?", default=1)
    given = parser.parse_args(arguments)
    if not (given.folder / "config.json").is_file():
        print(f"{given.folder} has no config.json; name a model's folder, data/base_model say", file=sys.stderr)
        return 2
    torch.set_num_threads(given.threads)
    for measure in (training, shared_prefixes, scoring):
        measure(given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
