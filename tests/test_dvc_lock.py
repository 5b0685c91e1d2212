"""dvc.lock fits the code and settings beside it; else a fresh clone prepares its data again and its run is a draft."""

import hashlib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_locked_with_the_code_that_is_there(stage):
    stale = [
        dep["path"]
        for dep in STAGES[stage]["deps"]
        if (ROOT / dep["path"]).suffix in (".py", ".txt")
        and hashlib.md5((ROOT / dep["path"]).read_bytes(), usedforsecurity=False).hexdigest() != dep["md5"]
    ]
    assert not stale, "run `dvc repro` and commit dvc.lock"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_locked_with_the_settings_that_are_there(stage):
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, locked in STAGES[stage].get("params", {}).get("params.yaml", {}).items():
        now = settings
        for part in key.split("."):
            now = now[part]
        assert now == locked, f"{key}: run `dvc repro` and commit dvc.lock"
