"""What `recall compare` makes: the cases of each setting, the methods in them, and the settings of each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import factorial
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field

from flows.training import SEQUENTIAL
from recall.comparison_line import SETTINGS, Setting
from recall.errors import BadInput
from recall.load_settings import load_settings
from recall.merge_settings import BY_MOMENTS, READ_BY, Baseline
from recall.settings import HOLDS_NOTHING, Settings

METHODS = (
    "sequential", "ewc", "replay", "average", "task_arithmetic", "ties", "dare", "lm_cocktail", "regmean",
    "recall_moments",
)  # fmt: skip
# Of a learning task alone, sequential fine-tuning is the expert, and what merges by moments has nothing to merge it
# with: the base leaves none. SLERP goes between two models. The others that train are made for a sequence.
LEFT_OUT: dict[Setting, tuple[str, ...]] = {
    "single": (*SEQUENTIAL, *BY_MOMENTS),
    "independent": (*SEQUENTIAL, "slerp"),
    "stream": (),
}
# They do not know which model is the newest, so one merge serves every order.
ORDERLESS = ("average", "task_arithmetic", "ties", "pruned_average", "regmean")
# What RECALL's own models depend on; of `update` the settings single and independent fix all but the latter's pool
# without the base. Of `merging`, what RECALL with moments reads, whose variants these are.
VARIED = ("update", "finetuning", "sampling", "representations", "weighting")
VARIED_BY_MOMENTS = tuple(f"merging.{name}" for name in READ_BY["recall_moments"])
UNVARIED = ("finetuning.seed", "sampling.seed", "finetuning.ewc", "finetuning.replay", "update.merge")


class Options(BaseModel):
    """What the command was asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: list[Setting] = list(SETTINGS)
    methods: list[str] = list(METHODS)
    seeds: int = Field(1, ge=1)
    orders: int = Field(1, ge=1)
    paired: bool = False
    vary: list[str] = []
    split: Literal["validation", "test"] = "test"
    results: Path = Path("comparison.jsonl")


@dataclass(frozen=True)
class Contender:
    """A method, `base` and `expert NAME` among them; RECALL's, or that with moments, perhaps with a setting changed."""

    method: str
    key: str | None = None
    value: str | None = None

    @property
    def label(self) -> str:
        """As `Line.label`."""
        return self.method if self.key is None else f"{self.method} {self.key}={self.value}"


@dataclass(frozen=True)
class Case:
    """One setting, seed and order; in `single` `learning_tasks` is one, and `others` are the stream's other ones."""

    setting: Setting
    seed: int
    order: int
    learning_tasks: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people."""
        what = f"{self.setting}, seed {self.seed}"
        return f"{what}, {self.learning_tasks[0]}" if self.setting == "single" else f"{what}, order {self.order}"

    def settings(self, base: Settings, method: str) -> Settings:
        """The settings of this case: its seeds and learning tasks, and in `independent` experts from the base.

        The methods `recall` and `recall_moments` are the paper's merge and ours, whatever a run merges by.
        """
        # Of experts that all start from the base none holds another.
        at_once = {} if self.setting == "stream" else {"hold": 0.0}
        seeds = {
            "finetuning": base.finetuning.model_copy(update={"seed": self.seed}),
            "sampling": base.sampling.model_copy(update={"seed": self.seed}),
            "merging": base.merging.model_copy(update={"seed": self.seed} | at_once),
        }
        tasks = list(self.learning_tasks)
        if self.setting == "independent" and method in ORDERLESS:
            tasks = [name for name in base.stream.learning_tasks if name in tasks]
        stream = base.stream.model_copy(update={"learning_tasks": tasks})
        fixed = {}
        if self.setting == "independent":
            fixed = {"start_from": "base", "pool": "experts" if base.update.pool == "experts" else "all"}
        elif self.setting == "single" and base.update.pool == "experts":
            fixed = {"pool": "current"}  # the base is what the expert is merged with
        update = base.update.model_copy(update={"merge": "recall", **fixed})
        return base.model_copy(update={**seeds, "stream": stream, "update": update})


def all_cases(settings: Settings, options: Options) -> Iterator[Case]:
    """Every case, seed after seed, so that a comparison that is stopped early has whole ones.

    `paired` has seed i go with order i alone, and from the first order on again where there are fewer of them.

    Raises:
        BadInput: there are not so many orders, or not the seeds to go with them.
    """
    if options.paired and options.orders > options.seeds:
        raise BadInput(
            f"--paired: {options.orders} orders need as many seeds, and there are {options.seeds}; raise --seeds"
        )
    own = tuple(settings.stream.learning_tasks)
    for seed in range(options.seeds):
        for setting in dict.fromkeys(options.settings):
            if setting == "single":
                for name in own:
                    yield Case(setting, seed, 0, (name,), tuple(other for other in own if other != name))
                continue
            orders = stream_orders(own, options.orders) if setting == "stream" else newest_orders(own, options.orders)
            taken = [seed % len(orders)] if options.paired else range(len(orders))
            for number in taken:
                yield Case(setting, seed, number, orders[number], ())


def stream_orders(own: tuple[str, ...], count: int) -> list[tuple[str, ...]]:
    """The stream's own order, then others drawn by a fixed seed, no two the same.

    Raises:
        BadInput: there are not so many.
    """
    if count > factorial(len(own)):
        raise BadInput(f"--orders {count}: {len(own)} learning tasks have {factorial(len(own))} orders; ask for fewer")
    generator, found = random.Random(0), [own]
    while len(found) < count:
        order = tuple(generator.sample(own, len(own)))
        if order not in found:
            found.append(order)
    return found


def newest_orders(own: tuple[str, ...], count: int) -> list[tuple[str, ...]]:
    """Orders that differ in the last, as many as there are; the first is the stream's own."""
    drawn = random.Random(0).sample(own[:-1], len(own) - 1)
    return [own, *((*(name for name in own if name != last), last) for last in drawn)][:count]


def contenders(case: Case, options: Options, variants: dict[Contender, Settings]) -> list[Contender]:
    """The methods of a case, variants last: what every method needs is made first."""
    experts = ["expert"] if case.setting == "single" else [f"expert {name}" for name in case.learning_tasks]
    named = [name for name in options.methods if name not in ("base", "recall")]
    named += ["recall_moments"] if any(one.method == "recall_moments" for one in variants) else []
    methods = [
        "base",
        *(experts if case.setting != "stream" else []),
        *(name for name in dict.fromkeys(named) if name not in LEFT_OUT[case.setting]),
        "recall",
    ]
    return [*map(Contender, methods), *(one for one in variants if _has_a_meaning(one, case.setting))]


def _has_a_meaning(variant: Contender, setting: Setting) -> bool:
    if variant.method in LEFT_OUT[setting]:
        return False
    if variant.key == "update.pool" and variant.value == "experts":
        return setting != "single"  # where that would leave nothing to merge the expert with
    return setting == "stream" or variant.key not in ("update.start_from", "update.pool", "merging.hold")


def check_methods(options: Options, settings: Settings, variants: dict[Contender, Settings]) -> None:
    """Raise BadInput where a method is unknown, applies in none of the settings asked for, or would hold nothing."""
    known = (*get_args(Baseline), "recall", "base")
    for name in options.methods:
        if name not in known:
            raise BadInput(f"--method {name} is not known; take one of {', '.join(known)}")
        if all(name in LEFT_OUT[setting] for setting in options.settings):
            raise BadInput(
                f"--method {name} has no meaning in --setting {' and '.join(options.settings)}; leave it out"
            )
    if "slerp" in options.methods and "stream" in options.settings and settings.update.pool_has_experts:
        raise BadInput("--method slerp goes between two models, and update.pool has every expert; leave it out")
    by_moments = [settings] if "recall_moments" in options.methods else []
    by_moments += [changed for one, changed in variants.items() if one.method == "recall_moments"]
    if "stream" in options.settings and any(one.holds_nothing for one in by_moments):
        raise BadInput(HOLDS_NOTHING)


def read_variants(
    options: Options, config: Path, profile: str | None, overrides: list[str]
) -> dict[Contender, Settings]:
    """RECALL with one setting changed, for each value of each --vary; of `merging`, RECALL with moments.

    Raises:
        BadInput: it is no key=value,..., neither reads the key, or a value does not fit.
    """
    found = {}
    for text in options.vary:
        key, separator, values = text.partition("=")
        if not separator or not values:
            raise BadInput(f"--vary {text}: expected key=value,value, for instance --vary weighting.temperature=0.2,1")
        section = key.partition(".")[0]
        by_moments = key in VARIED_BY_MOMENTS
        fixed = any(key == one or key.startswith(f"{one}.") for one in UNVARIED)
        if not by_moments and (section not in VARIED or fixed):
            why = (
                "that is what --seeds sets"
                if key.endswith(".seed")
                else f"RECALL reads {', '.join(VARIED)}, and with moments {', '.join(VARIED_BY_MOMENTS)}"
            )
            why = "--method recall_moments is the other merge" if key == "update.merge" else why
            raise BadInput(f"--vary {key} cannot be varied ({why}); take it out")
        try:
            parsed = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError as error:
            raise BadInput(f"--vary {text}: the values are not YAML; quote them") from error
        for value in parsed:
            shown = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
            variant = Contender("recall_moments" if by_moments else "recall", key, shown)
            if not any(_has_a_meaning(variant, setting) for setting in options.settings):
                asked = " and ".join(options.settings)
                raise BadInput(f"--vary {key}={shown} has no meaning in --setting {asked}; take it out")
            found[variant] = load_settings(config, profile, [*overrides, f"{key}={shown}"])
    return found
