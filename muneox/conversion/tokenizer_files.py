"""Write the tokenizer of a checkpoint in the format of Hugging Face's transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError, DataError
from megatron.files import write_whole
from megatron.neox_arguments.run_config import TokenizerConfig
from megatron.optional import import_optional
from megatron.tokenizer import Tokenizer, build_tokenizer
from megatron.tokenizer.tokenizer import HFTokenizer, SPMTokenizer, TransformersTokenizer

_OTHERWISE = "set --no_save_tokenizer"


def end_token(tokenizer: Tokenizer) -> int | None:
    """Id of the token that ends a document; None if the tokenizer has none."""
    try:
        return tokenizer.eod
    except DataError:
        return None


def open_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The configured tokenizer. The error where it cannot be opened names the way out."""
    try:
        return build_tokenizer(*config)
    except (ConfigError, DataError) as error:
        raise type(error)(f"{error}; correct the configuration, or {_OTHERWISE}") from error


def write_tokenizer(
    config: TokenizerConfig, tokenizer: Tokenizer, folder: Path, *, of_folder: bool, pad_token: int | None
) -> bool:
    """Write tokenizer.json and its settings to `folder`. Returns False if transformers has no such tokenizer.

    of_folder: the folder of `vocab-file` is a tokenizer of transformers, which is copied. pad_token: id of the padding.
    """
    if of_folder:
        saved = _from_folder(Path(config.vocab_file or ""))
    elif isinstance(tokenizer, HFTokenizer):
        tokenizer.save(folder / "tokenizer.json")
        saved = _transformers().PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        if (end := end_token(tokenizer)) is not None:
            saved.eos_token = saved.convert_ids_to_tokens(end)
    elif isinstance(tokenizer, TransformersTokenizer):
        tokenizer.save(folder)
        return True
    elif isinstance(tokenizer, SPMTokenizer):
        _write_sentencepiece(Path(config.vocab_file or ""), folder)
        return True
    else:
        return False
    if pad_token is not None:
        saved.pad_token_id = pad_token
    saved.save_pretrained(str(folder))
    return True


def _transformers() -> Any:
    return import_optional("transformers", "hf", "writing tokenizer files", otherwise=_OTHERWISE)


def _from_folder(vocab_file: Path) -> Any:
    try:
        return _transformers().AutoTokenizer.from_pretrained(str(vocab_file.parent), local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"vocab-file: the folder of {vocab_file} is no tokenizer of transformers: {error}") from error


def _write_sentencepiece(model: Path, folder: Path) -> None:
    """Copy the model. transformers converts it when it loads the tokenizer."""
    shutil.copyfile(model, folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False, "legacy": False}
    write_whole(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
