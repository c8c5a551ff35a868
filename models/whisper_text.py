"""What openai-whisper knows of text, and the word error rate; the only place that imports openai-whisper and jiwer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeq.artifact.transcribe import Settings
from edgeq.errors import DataError, MissingError
from edgeq.models.whisper_networks import Dimensions

_ENGLISH_ONLY = 51865
"""Vocabularies below this are English only; larger ones have a token a language."""


@dataclass(frozen=True)
class Heard:
    """What was made of a recording.

    Args:
        errors: Words to substitute, insert or delete, after normalization.
        words: Words of the truth, after normalization.
        text: As transcribed.
        normal: Normalized; two texts are the same when these are.
        loops: Windows that repeat themselves.
    """

    errors: int
    words: int
    text: str
    normal: str
    loops: int


def settings_of(dims: Dimensions) -> Settings:
    """Prompt, suppressed tokens and vocabulary of a checkpoint; many languages are transcribed as English.

    Raises:
        MissingError: EQ-P700, openai-whisper is not installed.
    """
    tokenizer = _whisper().tokenizer.get_tokenizer(
        dims.n_vocab >= _ENGLISH_ONLY,
        num_languages=dims.n_vocab - 51765 - int(dims.n_vocab >= _ENGLISH_ONLY),
        language="en",
        task="transcribe",
    )
    special = ("transcribe", "translate", "sot", "sot_prev", "sot_lm", "no_speech", "no_timestamps")
    suppress = {*tokenizer.non_speech_tokens, *(getattr(tokenizer, name) for name in special)}
    suppress |= {*tokenizer.all_language_tokens, *range(tokenizer.timestamp_begin, dims.n_vocab)}
    heads = dims.n_text_head
    return Settings(
        mels=dims.n_mels,
        prompt=tuple(tokenizer.sot_sequence_including_notimestamps),
        end=tokenizer.eot,
        no_speech=tokenizer.no_speech,
        steps=dims.steps,
        cache=(1, heads, dims.steps, dims.n_text_state // heads),
        cached=2 * dims.n_text_layer,
        suppress=tuple(sorted(suppress)),
        suppress_first=(*tokenizer.encode(" "), tokenizer.eot),
        tokens=tuple(tokenizer.encoding.decode_single_token_bytes(i) for i in range(tokenizer.eot)),
    )


def compare_texts(truth: str, text: str, loops: int = 0) -> Heard:
    """Errors of `text` against `truth` in words, both normalized as Whisper's authors do for English.

    Raises:
        DataError: EQ-D702, the truth has no words.
        MissingError: EQ-P700, a package is missing.
    """
    try:
        import jiwer
    except ImportError as error:
        raise _missing("jiwer", error) from error
    normalize = _normalizer()
    wanted, got = normalize(truth), normalize(text)
    if not wanted:
        raise DataError(f"{truth!r} holds no words", code="EQ-D702", hint="leave the recording out of index.json")
    found = jiwer.process_words(wanted, got)
    errors = found.substitutions + found.insertions + found.deletions
    return Heard(errors, len(wanted.split()), text, got, loops)


def word_error_rate(records: Sequence[Heard]) -> float:
    """Errors per 100 words of all recordings together."""
    return 100 * sum(r.errors for r in records) / sum(r.words for r in records)


def same_text(first: Heard, second: Heard) -> bool:
    """Whether two models heard the same words."""
    return first.normal == second.normal


@functools.cache
def _normalizer() -> Any:
    return _whisper().normalizers.EnglishTextNormalizer()


def _whisper() -> Any:
    try:
        import whisper
        import whisper.normalizers
        import whisper.tokenizer
    except ImportError as error:
        raise _missing("openai-whisper", error) from error
    return whisper


def _missing(package: str, error: ImportError) -> MissingError:
    return MissingError(f"Whisper models need {package}: {error}", code="EQ-P700", hint="pip install 'edgeq[whisper]'")
