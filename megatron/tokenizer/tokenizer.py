"""One small protocol for the tokenizers that GPT-NeoX names in `tokenizer-type`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from megatron.errors import ConfigError, DataError
from megatron.optional import import_optional
from megatron.tokenizer.merges import require_prefixed_merges

# Names of the end-of-document token: GPT-NeoX's first, then those of other tokenizer families.
_EOD_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>")


@runtime_checkable
class Tokenizer(Protocol):
    """Converts text to token ids and back. `vocab_size` is the largest id plus one. `eod` ends a document."""

    name: str

    @property
    def vocab_size(self) -> int: ...

    @property
    def unknown(self) -> int | None:
        """Id of the token that stands for text outside the vocabulary, or None."""
        ...

    @property
    def drops_characters(self) -> bool:
        """Whether a character can have no token at all."""
        ...

    @property
    def eod(self) -> int:
        """Id of the end-of-document token. Raises DataError if the vocabulary has none."""
        ...

    def tokenize(self, text: str) -> list[int]: ...

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of any ids. Bytes that are not whole UTF-8 characters become U+FFFD; unknown ids are dropped."""
        ...


class CharLevelTokenizer:
    """UTF-8 bytes as token ids. As in GPT-NeoX, the vocabulary has 512 ids, `eod` is 0 and padding is 1."""

    name = "CharLevelTokenizer"
    vocab_size = 512
    eod = 0
    pad = 1
    unknown = None
    drops_characters = False

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.tokenize(text) for text in texts]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return bytes(i for i in token_ids if self.eod < i < 256).decode("utf-8", errors="replace")


class HFTokenizer:
    """A tokenizer of the `tokenizers` library (a `tokenizer.json`)."""

    def __init__(self, tokenizer: Any, name: str, source: str) -> None:
        self.name, self._tokenizer, self._source = name, tokenizer, source
        tokenizer.no_truncation()  # a fine-tuned model's settings would truncate documents
        tokenizer.no_padding()
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        if not vocab:
            raise DataError(f"vocab-file {source} contains an empty vocabulary")
        self.vocab_size = max(vocab.values()) + 1
        self.unknown, self.drops_characters = _outside(tokenizer)
        self._eod: int | None = next((vocab[token] for token in _EOD_TOKENS if token in vocab), None)

    @property
    def eod(self) -> int:
        if self._eod is None:
            raise DataError(f"vocab-file {self._source} has no end-of-document token, for example {_EOD_TOKENS[0]}")
        return self._eod

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._call(lambda: self._tokenizer.encode(text, add_special_tokens=False).ids)
        return ids

    def _call(self, encode: Callable[[], Any]) -> Any:
        return _read(encode, "vocab-file", self._source, "a tokenizer that can encode this text")

    def save(self, path: Path) -> None:
        """Write the tokenizer as a `tokenizer.json`."""
        self._tokenizer.save(str(path))

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._call(lambda: self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))
        return [encoding.ids for encoding in encodings]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([int(i) for i in token_ids])
        return text


class TransformersTokenizer:
    """A tokenizer of the `transformers` library."""

    def __init__(self, tokenizer: Any, name: str, source: str, what: str = "check the name and the network") -> None:
        self.name, self._tokenizer = name, tokenizer
        self.vocab_size = len(tokenizer)
        self.unknown, self.drops_characters = _outside(tokenizer.backend_tokenizer)
        if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens) - tokenizer.get_added_vocab().keys():
            raise DataError(f"vocab-file: {source} holds no tokens except special ones; {what}")

    @property
    def eod(self) -> int:
        if self._tokenizer.eos_token_id is None:
            raise DataError("vocab-file: the tokenizer has no end-of-text token")
        return int(self._tokenizer.eos_token_id)

    def save(self, folder: Path) -> None:
        """Write the tokenizer as a folder of the transformers library."""
        self._tokenizer.save_pretrained(str(folder))

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def detokenize(self, token_ids: Sequence[int]) -> str:
        known = [int(i) for i in token_ids if 0 <= i < self.vocab_size]
        text: str = self._tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class SPMTokenizer:
    """A SentencePiece model file."""

    name = "SPMTokenizer"

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.vocab_size = processor.get_piece_size()
        self.unknown: int | None = processor.unk_id()
        self.drops_characters = True  # its normalization can
        eod = processor.piece_to_id(_EOD_TOKENS[0])
        self._eod: int = processor.eos_id() if eod == processor.unk_id() else eod

    @property
    def eod(self) -> int:
        if self._eod < 0:
            raise DataError("vocab-file: the SentencePiece model has no end-of-sentence piece")
        return self._eod

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text)
        return ids

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.encode(list(texts))
        return ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        text: str = self._processor.decode([int(i) for i in token_ids if 0 <= i < self.vocab_size])
        return text


class TiktokenTokenizer:
    """An encoding of the `tiktoken` library. The text of special tokens is encoded as ordinary text."""

    name = "TiktokenTokenizer"

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding
        self.vocab_size = encoding.n_vocab
        self.unknown, self.drops_characters = None, False  # every byte has a token
        self.eod = encoding.eot_token

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._encoding.encode_ordinary(text)
        return ids

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._encoding.encode_ordinary_batch(list(texts))
        return ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        pieces = []
        for i in token_ids:
            try:
                pieces.append(b"" if i == self.eod else self._encoding.decode_single_token_bytes(int(i)))
            except KeyError:  # the vocabulary has gaps
                continue
        return b"".join(pieces).decode("utf-8", errors="replace")


class StreamDetokenizer:
    """Detokenizes one token at a time and holds back incomplete characters."""

    _CONTEXT = 64  # tokens kept: decoding the whole text at every token would take quadratic time
    _PATIENCE = 4  # a character has at most 4 bytes, and a token has at least one

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = 0  # characters of the text of `_ids` that were returned
        self._held = 0  # tokens added since then

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes. Empty inside a character of several tokens."""
        self._ids.append(int(token_id))
        self._held += 1
        text = self._tokenizer.detokenize(self._ids)
        if text.endswith("\ufffd") and self._held < self._PATIENCE:
            return ""
        fresh, self._sent, self._held = text[self._sent :], len(text), 0
        if len(self._ids) >= self._CONTEXT:  # keep the last token: SentencePiece drops a leading space
            self._ids = self._ids[-1:]
            self._sent = len(self._tokenizer.detokenize(self._ids))
        return fresh

    def flush(self) -> str:
        """Return the remaining text. Bytes that are not a whole character become U+FFFD."""
        text = self._tokenizer.detokenize(self._ids)[self._sent :]
        self._ids, self._sent, self._held = [], 0, 0
        return text


def padded_vocab_size(vocab_size: int, divisible_by: int, model_parallel_size: int = 1) -> int:
    """`vocab_size` rounded up to a multiple of divisible_by * model_parallel_size."""
    multiple = divisible_by * model_parallel_size
    return -(-vocab_size // multiple) * multiple


def build_tokenizer(
    tokenizer_type: str, vocab_file: str | Path | None = None, merge_file: str | Path | None = None
) -> Tokenizer:
    """Build the tokenizer of a GPT-NeoX `tokenizer-type`.

    Raises ConfigError for an unknown type or a missing key. Raises DataError, naming `vocab-file` or `merge-file`, for
    a missing or corrupt file, and for an optional library that is not installed.
    """
    if tokenizer_type not in TOKENIZER_TYPES:
        raise ConfigError(f"tokenizer-type: {tokenizer_type!r} is not one of {', '.join(TOKENIZER_TYPES)}")
    return TOKENIZER_TYPES[tokenizer_type](vocab_file, merge_file)


def _existing(path: str | Path | None, key: str, what: str) -> str:
    if path is None:
        raise ConfigError(f"{key} is not set: set it to {what}")
    if not Path(path).is_file():
        raise DataError(f"{key}: {path} does not exist; it must be {what}")
    return str(path)


def _read(load: Callable[[], Any], key: str, path: str, what: str) -> Any:
    """Run a function of a library, which raises any error for a corrupt file: in Rust plain Exception, or a panic."""
    try:
        return load()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{key}: {path} is not {what}: {error}") from error


def _outside(tokenizer: Any) -> tuple[int | None, bool]:
    """Id of the unknown token of a tokenizer of the tokenizers library, and whether it can drop characters.

    GPT-2's unknown token ends documents too, and its vocabulary never needs one. A vocabulary of whole words has no
    token for most characters alone, so that they cannot be checked one by one.
    """
    name = getattr(tokenizer.model, "unk_token", None)
    unknown = None if name is None or name in _EOD_TOKENS else tokenizer.token_to_id(name)
    return unknown, type(tokenizer.model).__name__ == "BPE"


def _char_level(vocab_file: object, merge_file: object) -> Tokenizer:
    return CharLevelTokenizer()


def _hf(vocab_file: str | Path | None, merge_file: object) -> Tokenizer:
    from tokenizers import Tokenizer as RustTokenizer

    what = "a tokenizer.json of the tokenizers library"
    path = _existing(vocab_file, "vocab-file", what)
    require_prefixed_merges(path)
    return HFTokenizer(_read(lambda: RustTokenizer.from_file(path), "vocab-file", path, what), "HFTokenizer", path)


def _gpt2_bpe(vocab_file: str | Path | None, merge_file: str | Path | None) -> Tokenizer:
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    vocab = _existing(vocab_file, "vocab-file", "the vocab.json of a GPT-2 tokenizer")
    merges = _existing(merge_file, "merge-file", "the merges.txt of a GPT-2 tokenizer")
    what = f"a GPT-2 vocabulary that fits the merge-file {merges}"
    model = _read(lambda: models.BPE.from_file(vocab, merges), "vocab-file", vocab, what)
    tokenizer = RustTokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return HFTokenizer(tokenizer, "GPT2BPETokenizer", vocab)


def _hf_gpt2(vocab_file: str | Path | None, merge_file: object) -> Tokenizer:
    transformers = import_optional("transformers", "hf", "tokenizer-type HFGPT2Tokenizer", DataError)
    source = "gpt2" if vocab_file is None else str(vocab_file)
    what = "a folder or hub name of a GPT-2 tokenizer (the hub needs a network)"
    require_prefixed_merges(Path(source) / "tokenizer.json")
    load = transformers.GPT2TokenizerFast.from_pretrained
    tokenizer = _read(lambda: load(source), "vocab-file", source, what)
    tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    return TransformersTokenizer(tokenizer, "HFGPT2Tokenizer", source, f"it must be {what}")


def _spm(vocab_file: str | Path | None, merge_file: object) -> Tokenizer:
    path = _existing(vocab_file, "vocab-file", "a SentencePiece model")
    sentencepiece = import_optional("sentencepiece", "sentencepiece", "tokenizer-type SPMTokenizer", DataError)
    load = sentencepiece.SentencePieceProcessor
    return SPMTokenizer(_read(lambda: load(model_file=path), "vocab-file", path, "a SentencePiece model"))


def _tiktoken(vocab_file: str | Path | None, merge_file: object) -> Tokenizer:
    tiktoken = import_optional("tiktoken", "tiktoken", "tokenizer-type TiktokenTokenizer", DataError)
    if vocab_file is None:
        raise ConfigError("vocab-file is not set: set it to an encoding of tiktoken, for example cl100k_base")
    name = str(vocab_file)
    what = "an encoding of tiktoken that can be loaded (the first time needs a network)"
    return TiktokenTokenizer(_read(lambda: tiktoken.get_encoding(name), "vocab-file", name, what))


TOKENIZER_TYPES: dict[str, Callable[[Any, Any], Tokenizer]] = {
    "GPT2BPETokenizer": _gpt2_bpe,
    "HFTokenizer": _hf,
    "HFGPT2Tokenizer": _hf_gpt2,
    "SPMTokenizer": _spm,
    "CharLevelTokenizer": _char_level,
    "TiktokenTokenizer": _tiktoken,
}
