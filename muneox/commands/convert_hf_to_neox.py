"""Convert a model of Hugging Face's transformers to a checkpoint in GPT-NeoX's format.

    python tools/ckpts/convert_hf_to_neox.py --input_dir Llama-3.2-1B --output_dir llama
    python deepy.py train.py llama/model.yml your_training.yml

GPT-NeoX (Pythia), Llama and Mistral models work. The folder gets the checkpoint, the tokenizer, and model.yml with the
configuration keys of the model, which start a new run from its weights. Any tensor and pipeline layout can load it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron.command_help import command_parser
from megatron.files import write_whole
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import conversion_config
from megatron.training.model_from_config import model_plan
from muneox.commands.convert_neox_to_hf import DTYPES, add_output
from muneox.conversion.hugging_face_config import HuggingFaceConfig
from muneox.conversion.hugging_face_weights import HuggingFaceWeights, JoinedWeights
from muneox.conversion.neox_writer import NeoxFormat, write_neox
from muneox.conversion.resources import complete_folder

_TOKENIZERS = {"tokenizer.json": "HFTokenizer", "tokenizer.model": "SPMTokenizer"}
_TOKENIZER_FILES = ("*token*.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja")


def main(input_args: Sequence[str] | None = None) -> int:
    """Write the checkpoint. Returns exit code 0. Raises UserError."""
    args = _parse(input_args)
    theirs = HuggingFaceConfig(args.input_dir)
    keys = theirs.keys() | _tokenizer_keys(args.input_dir, args.output_dir)
    plan = model_plan(conversion_config(NeoXArgs.from_dict(keys)).model, theirs.vocab_size)
    form = NeoxFormat(plan, tensor=args.tp, multiple=theirs.vocab_multiple)
    source = HuggingFaceWeights(args.input_dir)
    weights = JoinedWeights(source, list(theirs.family.groups(plan.config)), form.assembly.shapes)
    stored = weights.weight("embedding.word_embeddings.weight").dtype
    dtype = stored if args.precision == "auto" else DTYPES[args.precision]
    plain = args.pp == 0
    form.check_resources(args.output_dir, dtype, plain=plain)
    with complete_folder(args.output_dir) as folder:
        write_neox(weights.weight, weights.release, form, folder, dtype, plain=plain)
        _copy_tokenizer(args.input_dir, folder / "tokenizer")
        run = {"load": str(args.output_dir), "finetune": True, "model-parallel-size": args.tp}
        text = yaml.safe_dump(keys | run | {"pipe-parallel-size": args.pp}, sort_keys=False)
        write_whole(
            folder / "model.yml", f"# The model in {args.input_dir}, to start a new run from its weights.\n{text}"
        )
    size = f"{plan.num_parameters:,} parameters in {dtype}"
    print(f"wrote {args.output_dir}: {theirs.family.architecture}, {size}; keys in model.yml")
    if "vocab-file" not in keys:
        print(
            f"no tokenizer: {args.input_dir} holds none of {', '.join(_TOKENIZERS)}; set tokenizer-type and vocab-file"
        )
    return 0


def _tokenizer_keys(source: Path, folder: Path) -> dict[str, Any]:
    for file, kind in _TOKENIZERS.items():
        if (source / file).is_file():
            return {"tokenizer-type": kind, "vocab-file": str(folder / "tokenizer" / file)}
    return {}


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy its files, which are not opened here."""
    found = sorted({file for pattern in _TOKENIZER_FILES for file in source.glob(pattern) if file.is_file()})
    if found:
        folder.mkdir()
    for file in found:
        shutil.copyfile(file, folder / file.name)


def _parse(input_args: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(
        __doc__, "`muneox train OUTPUT/model.yml your_training.yml` trains from these weights.", allow_abbrev=False
    )
    parser.add_argument(
        "--input_dir", type=Path, required=True, help="folder with config.json and .safetensors or .bin files"
    )
    add_output(parser, of_auto="that of the source")
    add_layout(parser)
    return parser.parse_args(input_args)


def add_layout(parser: argparse.ArgumentParser) -> None:
    """Add --tp and --pp."""
    parser.add_argument("--tp", type=positive, default=1, help="tensor-parallel size of the files (default: 1)")
    parser.add_argument(
        "--pp",
        type=int,
        choices=(0, 1),
        default=1,
        help="1: one file per layer, for every pipeline-parallel size; 0: one per rank, without a pipeline",
    )


def positive(text: str) -> int:
    """An argument that must be a positive number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return number
