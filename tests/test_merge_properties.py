"""What a weighted sum of models is, whatever the models (docs/method.md, step 6): properties, on small random tensors.

A model here is an empty config and any tensors. Hypothesis draws weights, shapes, types and the seeds of the numbers.
"""

import json
import math
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import adapter, llama, load

import recall.chunks
from recall.as_adapter import write_adapter
from recall.checkpoints import Checkpoint
from recall.merging import merge
from recall.pool import Pool
from recall.settings import WeightingSettings
from recall.weighting import weigh

IN_16_BITS = [torch.bfloat16, torch.float16]
EVERY_TYPE = [torch.float64, torch.float32, *IN_16_BITS]
AS_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
SEEDS = st.integers(0, 2**32 - 1)
# Scalars, vectors, matrices and more, some of them empty, some longer than a processor's vectors and no multiple.
SHAPES = st.lists(st.lists(st.integers(0, 9), max_size=3) | st.tuples(st.integers(10, 150)), min_size=1, max_size=4)


def weights_of(models):
    """Rows of that many weights that sum to 1, each above 0."""
    raw_K = st.lists(st.floats(1e-4, 1), min_size=models, max_size=models).map(np.array)
    return raw_K.map(lambda found_K: found_K / found_K.sum())


def few(examples):
    """Every example writes models, so there are few. `monkeypatch` is set anew in each."""
    ignored = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=ignored)


@contextmanager
def empty_folder():
    """A folder of one example's own."""
    with TemporaryDirectory() as name:
        yield Path(name)


def saved(folder, tensors):
    """A full checkpoint of any tensors."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint(folder)


def merged(members, weights_RK, out, row_of=lambda _: 0, threads=1):
    merge(members, np.atleast_2d(weights_RK), row_of, out, threads=threads)
    return load_file(out / "model.safetensors")


def bits(tensor):
    """What tells -0 from 0, which `torch.equal` does not."""
    return tensor.view(AS_BITS[tensor.element_size()])


def any_numbers(shape, dtype, generator):
    """Any finite numbers of a type, every size as likely as another: -0 and subnormals first, then random bits.

    All but the largest, which has a test of its own.
    """
    info = torch.finfo(dtype)
    below_largest = torch.tensor(info.max / 2, dtype=dtype)
    bytes_n = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    found_n = bytes_n.view(dtype).clone()
    found_n[~found_n.isfinite() | (found_n.abs() == info.max)] = below_largest
    smallest = torch.ones(1, dtype=AS_BITS[dtype.itemsize]).view(dtype).item()
    special = torch.tensor([-0.0, smallest, -smallest, info.tiny, -info.max / 2], dtype=dtype)
    found_n[: len(special)] = special[: len(found_n)]
    return found_n.reshape(shape)


def usual_numbers(shape, dtype, generator):
    """Normal numbers, some tensors much larger or smaller than others."""
    scale = 10 ** torch.randint(-3, 3, (), generator=generator).item()
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def models_of(numbers, shapes, dtype, seed, count):
    """`count` models with tensors of the same shapes and different numbers."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"layers.{index}.weight" for index in range(len(shapes))]
    return [
        {name: numbers(tuple(shape), dtype, generator) for name, shape in zip(names, shapes, strict=True)}
        for _ in range(count)
    ]


@pytest.mark.parametrize("dtype", EVERY_TYPE)
@few(12)
@given(data=st.data(), shapes=SHAPES, seed=SEEDS, count=st.integers(2, 6))
def test_equal_models_of_any_numbers_come_out_bit_for_bit_whatever_their_weights(dtype, data, shapes, seed, count):
    weights_K = data.draw(weights_of(count))
    (model,) = models_of(any_numbers, shapes, dtype, seed, 1)
    with empty_folder() as folder:
        members = [saved(folder / str(index), model) for index in range(count)]
        found = merged(members, weights_K, folder / "out")
    assert found.keys() == model.keys()
    for name, expected in model.items():
        assert found[name].dtype == dtype
        assert found[name].shape == expected.shape
        assert torch.equal(bits(found[name]), bits(expected)), name


@pytest.mark.parametrize("dtype", IN_16_BITS)
@few(2)
@given(weights_K=weights_of(3))
def test_equal_models_of_every_number_that_16_bits_can_hold(dtype, weights_K):
    every_n = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    model = {"w": every_n[every_n.isfinite()]}
    with empty_folder() as folder:
        found = merged([saved(folder / str(index), model) for index in range(3)], weights_K, folder / "out")
    assert torch.equal(bits(found["w"]), bits(model["w"]))


@pytest.mark.parametrize("dtype", EVERY_TYPE)
def test_equal_models_that_hold_the_largest_number_of_their_type_come_out_bit_for_bit(tmp_path, dtype):
    """As masks do that are stored with a model. These weights sum to 1, but in float32 to a little more."""
    weights_K = np.array([0.43035849, 0.27450635, 0.29513516])
    model = {"mask": torch.tensor([torch.finfo(dtype).min, 0, torch.finfo(dtype).max], dtype=dtype)}
    found = merged([saved(tmp_path / str(index), model) for index in range(3)], weights_K, tmp_path / "out")
    assert torch.equal(found["mask"], model["mask"])


@few(15)
@given(data=st.data(), shapes=SHAPES, seed=SEEDS, count=st.integers(2, 6))
def test_a_merge_in_float32_is_the_weighted_sum_in_float64_but_for_rounding(data, shapes, seed, count):
    weights_K = data.draw(weights_of(count))
    models = models_of(usual_numbers, shapes, torch.float32, seed, count)
    with empty_folder() as folder:
        members = [saved(folder / str(index), model) for index, model in enumerate(models)]
        found = merged(members, weights_K, folder / "out")
    for name, merged_n in found.items():
        terms_Kn = torch.stack([w * model[name].double() for w, model in zip(weights_K, models, strict=True)])
        # Each weight, product and sum is rounded by at most half an eps.
        allowed_n = count * torch.finfo(torch.float32).eps * terms_Kn.abs().sum(dim=0)
        assert ((merged_n.double() - terms_Kn.sum(dim=0)).abs() <= allowed_n).all(), name


@pytest.mark.parametrize("numbers", [usual_numbers, any_numbers])
@pytest.mark.parametrize("dtype", IN_16_BITS)
@few(8)
@given(data=st.data(), shapes=SHAPES, seed=SEEDS, count=st.integers(2, 6))
def test_a_merge_in_16_bits_is_the_float32_sum_in_listed_order_rounded_once(dtype, numbers, data, shapes, seed, count):
    weights_K = data.draw(weights_of(count)).tolist()
    # Another order of the sum shows in few 16-bit numbers, so one tensor has many.
    models = models_of(numbers, [*shapes, (50_000,)], dtype, seed, count)
    with empty_folder() as folder:
        members = [saved(folder / str(index), model) for index, model in enumerate(models)]
        found = merged(members, weights_K, folder / "out")
    for name, merged_n in found.items():
        sum_n = models[0][name].float() * weights_K[0]
        for weight, model in zip(weights_K[1:], models[1:], strict=True):
            sum_n.addcmul_(model[name].float(), torch.tensor(weight))
        assert torch.equal(bits(merged_n), bits(sum_n.to(dtype))), name


MODULES = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"]


def write_peft_adapter(folder, factors, config):
    """As PEFT writes one: `factors` are A and B by module."""
    folder.mkdir()
    rest = {"peft_type": "LORA", "target_modules": sorted(factors), "bias": "none", "fan_in_fan_out": False}
    (folder / "adapter_config.json").write_text(json.dumps(config | rest))
    state = {
        f"base_model.model.{module}.lora_{letter}.weight": factor
        for module, pair in factors.items()
        for letter, factor in zip("AB", pair, strict=True)
    }
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@st.composite
def adapter_recipes(draw):
    """The modules, the config and the type of one adapter."""
    config = {"r": draw(st.integers(1, 4)), "lora_alpha": draw(st.integers(1, 8)), "use_rslora": draw(st.booleans())}
    modules = draw(st.lists(st.sampled_from(MODULES), min_size=1, unique=True))
    return modules, config, draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))


@few(20)
@given(
    data=st.data(),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    recipes=st.lists(adapter_recipes(), min_size=1, max_size=3),
    seed=SEEDS,
    chunk=st.integers(1, 100),
)
def test_adapters_merge_as_the_full_models_that_they_stand_for(monkeypatch, data, sizes, recipes, seed, chunk):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = sizes
    shapes = {f"{module}.weight": (rows, columns) for module in MODULES} | {"model.norm.weight": (rows,)}
    base, other = ({name: torch.randn(s, generator=generator) for name, s in shapes.items()} for _ in range(2))
    count = len(recipes) + 2
    weights_RK = np.stack([data.draw(weights_of(count)) for _ in range(2)])
    with empty_folder() as folder, monkeypatch.context() as patch:
        patch.setattr(recall.chunks, "CHUNK", chunk)
        ends = [saved(folder / "base", base), saved(folder / "other", other)]
        adapters, full = [], []
        for number, (modules, config, dtype) in enumerate(recipes):
            rank = config["r"]
            scale = config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)
            whole = {name: tensor.double() for name, tensor in base.items()}
            factors = {}
            for module in modules:
                low_A = (torch.randn(rank, columns, generator=generator) * 0.3).to(dtype)
                low_B = (torch.randn(rows, rank, generator=generator) * 0.3).to(dtype)
                factors[module] = low_A, low_B
                whole[f"{module}.weight"] += scale * low_B.double() @ low_A.double()
            write_peft_adapter(folder / f"adapter{number}", factors, config)
            adapters.append(Checkpoint(folder / f"adapter{number}", ends[0]))
            full.append(saved(folder / f"full{number}", {name: tensor.float() for name, tensor in whole.items()}))
        found, expected = (
            merged([ends[0], *middle, ends[1]], weights_RK, folder / out, row_of=lambda name: int("layers.0" in name))
            for middle, out in ((adapters, "from_adapters"), (full, "from_full"))
        )
    assert found.keys() == shapes.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)


@st.composite
def representations(draw):
    """`(K, L, P, E)` of 2 to 5 models, the older ones more or less like the newest."""
    models, layers, samples, size = (draw(st.integers(*ends)) for ends in ((2, 5), (1, 4), (3, 6), (1, 5)))
    random = np.random.default_rng(draw(SEEDS))
    newest_LPE = random.normal(size=(layers, samples, size))
    apart_KL11 = random.choice([0.0, 0.1, 1.0, 10.0], size=(models, layers, 1, 1))
    apart_KL11[-1] = 0.0
    return newest_LPE + apart_KL11 * random.normal(size=(models, layers, samples, size))


@few(20)
@given(
    hidden_KLPE=representations(),
    options=st.fixed_dictionaries(
        {
            "similarity": st.sampled_from(["rbf", "cka", "cosine"]),
            "granularity": st.sampled_from(["model", "group", "layer"]),
            "group_size": st.integers(1, 3),
            "temperature": st.floats(0.05, 10),
            "alignment_threshold": st.sampled_from([0.0, 0.5]),
        }
    ),
    random=st.randoms(use_true_random=False),
    seed=SEEDS,
)
def test_the_order_of_older_models_means_nothing_and_the_newest_weighs_most(hidden_KLPE, options, random, seed):
    count, layers = hidden_KLPE.shape[:2]
    older = random.sample(range(count - 1), count - 1)
    order = [*older, count - 1]
    weights_LK, shuffled_LK = (weigh(r_KLPE, WeightingSettings(**options))[0] for r_KLPE in
                               (hidden_KLPE, hidden_KLPE[order]))  # fmt: skip
    np.testing.assert_allclose(weights_LK.sum(axis=1), np.ones(layers), rtol=1e-12)
    assert (weights_LK[:, -1] == weights_LK.max(axis=1)).all()
    np.testing.assert_allclose(shuffled_LK, weights_LK[:, order], rtol=1e-12)

    models = models_of(usual_numbers, [(5, 7)] * layers, torch.float32, seed, count)
    with empty_folder() as folder:
        members = [saved(folder / str(index), model) for index, model in enumerate(models)]
        as_given, shuffled = (
            merged(listed, rows_LK, folder / out, row_of=lambda name: int(name.split(".")[1]))
            for listed, rows_LK, out in (
                (members, weights_LK, "as_given"),
                ([members[index] for index in order], shuffled_LK, "shuffled"),
            )
        )
    for name, tensor in as_given.items():
        largest = max(model[name].abs().max().item() for model in models)
        torch.testing.assert_close(shuffled[name], tensor, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("dtype", EVERY_TYPE)
@few(6)
@given(
    data=st.data(),
    shapes=SHAPES,
    seed=SEEDS,
    count=st.integers(2, 4),
    chunk=st.integers(1, 40),
    threads=st.integers(2, 4),
)
def test_neither_chunks_nor_threads_change_a_bit_of_a_sum_of_full_models(
    monkeypatch, dtype, data, shapes, seed, count, chunk, threads
):
    weights_K = data.draw(weights_of(count))
    models = models_of(usual_numbers, shapes, dtype, seed, count)
    with empty_folder() as folder, monkeypatch.context() as patch:
        members = [saved(folder / str(index), model) for index, model in enumerate(models)]
        whole = merged(members, weights_K, folder / "whole")
        patch.setattr(recall.chunks, "CHUNK", chunk)
        for out, at_once in (("in_chunks", 1), ("in_threads", threads)):
            found = merged(members, weights_K, folder / out, threads=at_once)
            for name, expected in whole.items():
                assert torch.equal(bits(found[name]), bits(expected)), (name, out)


def differences(model, name):
    """What the adapter `name` adds to every module that it changes, as PEFT computes it."""
    return {
        path: module.get_delta_weight(name).double()
        for path, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and name in module.lora_A
    }


def test_pefts_linear_merge_of_adapters_adds_the_a_of_one_times_the_b_of_another_and_ours_is_their_weighted_sum(
    tmp_path,
):
    base = llama(tmp_path / "base")
    experts = [adapter(tmp_path / str(seed), base, seed=seed) for seed in (1, 2)]
    shares = [0.4, 0.6]
    model = PeftModel.from_pretrained(load(base), experts[0].folder, adapter_name="first")
    model.load_adapter(experts[1].folder, adapter_name="second")
    model.add_weighted_adapter(["first", "second"], shares, "linear", combination_type="linear")
    with torch.no_grad():
        pairs = differences(model, "first"), differences(model, "second")
        expected = {path: sum(w * d[path] for w, d in zip(shares, pairs, strict=True)) for path in pairs[0]}
        pefts = differences(model, "linear")

    pool = Pool(experts)
    write_adapter(pool, np.array([shares]), lambda _: 0, tmp_path / "out")
    pool.close()
    with torch.no_grad():
        ours = differences(PeftModel.from_pretrained(load(base), tmp_path / "out", adapter_name="ours"), "ours")

    def relative_error(found):
        assert found.keys() == expected.keys()
        wrong = sum((found[path] - expected[path]).square().sum() for path in expected)
        return math.sqrt(wrong / sum(tensor.square().sum() for tensor in expected.values()))

    assert len(expected) == 3 * 7
    assert relative_error(pefts) > 0.5
    assert relative_error(ours) < 1e-5
