"""The driver of speech models: spectrogram, decoding on a made-up decoder, loops, windows, audio files."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.artifact import transcribe
from edgeq.artifact.transcribe import Cache, Settings, Transcriber, Unusable, log_mel, read_audio, windows

WORDS = (b" a", b" b", b" c", b" never")
END, START, SILENCE = 4, 5, 6
SETTINGS = Settings(
    mels=80,
    prompt=(START,),
    end=END,
    no_speech=SILENCE,
    steps=40,
    cache=(1, 1, 40, 2),
    cached=2,
    suppress=(3, START, SILENCE),
    suppress_first=(END,),
    tokens=WORDS,
)


class Scripted:
    """A decoder that says what a script holds at each position, and checks its cache and mask."""

    def __init__(self, script: list[int], confidence: float = 20.0, silence: float = 0.0) -> None:
        self.script, self.confidence, self.silence = script, confidence, silence
        self.positions: list[int] = []

    def __call__(self, token: Any, position: Any, mask: Any, *past: Any) -> list[Any]:
        index = int(position[0])
        self.positions.append(index)
        assert token.dtype == position.dtype == np.int32
        assert int((mask[0, 0, 0] == 0).sum()) == index + 1  # what came before, and the token itself
        assert np.array_equal(past[0][0, 0, :index, 0], np.arange(index))
        logits = np.zeros((1, 7), np.float32)
        logits[0, self.script[min(index, len(self.script) - 1)]] = self.confidence
        logits[0, SILENCE] = self.silence
        new = np.full((1, 1, 1, 2), index, np.float32)
        return [logits, new, new]


def decode(script: list[int], **options: float) -> transcribe.Decoded:
    decoder = Scripted(script, **options)
    return Transcriber(SETTINGS, lambda *_: [], decoder).window([np.zeros(1)])


def test_greedy_decoding_follows_the_likeliest_tokens_to_the_end() -> None:
    found = decode([0, 1, 2, END])
    assert (found.text, found.tokens, found.temperature) == ("a b c", (0, 1, 2), 0.0)
    assert found.average == pytest.approx(0, abs=1e-3)


def test_suppressed_tokens_never_come_and_the_end_not_first() -> None:
    assert 3 not in decode([3, 3, END]).tokens
    assert len(decode([END, 0, END]).tokens) > 0


def test_the_cache_is_never_left() -> None:
    found = Transcriber(SETTINGS, lambda *_: [], Scripted([0])).decode([], 0.0, None)
    assert len(found.tokens) == SETTINGS.steps  # the prompt's place gives the first one


def test_a_loop_is_tried_again_at_higher_temperatures_and_named() -> None:
    decoder = Scripted([0], confidence=30.0)
    found = Transcriber(SETTINGS, lambda *_: [], decoder).window([])
    assert found.repeats
    assert len(decoder.positions) == SETTINGS.steps * len(transcribe.TEMPERATURES)
    assert not decode([0, 1, 2, 0, 2, END]).repeats


def test_a_retry_draws_alike_with_the_same_seed() -> None:
    unsure = Transcriber(SETTINGS, lambda *_: [], Scripted([0, END], confidence=0.1))
    assert unsure.window([], [7]) == unsure.window([], [7])


def test_silence_is_no_text() -> None:
    found = Transcriber(SETTINGS, lambda *_: [], Scripted([0, END], confidence=0.0, silence=9.0))
    assert found.transcribe(np.zeros(16000, np.float32)).text == ""


def test_settings_come_back(tmp_path: Path) -> None:
    SETTINGS.write(tmp_path / "speech.json")
    assert Settings.read(tmp_path / "speech.json") == SETTINGS


def test_bytes_of_a_character_may_be_spread_over_tokens() -> None:
    settings = Settings(**{**vars(SETTINGS), "tokens": ("é".encode()[:1], "é".encode()[1:], b"", b"")})
    assert settings.text([0, 1, END]) == "é"


def test_spectrogram_equals_that_of_openai_whisper() -> None:
    whisper = pytest.importorskip("whisper")
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    for mels, count in ((80, 5 * 16000), (128, 30 * 16000)):
        samples = (0.1 * random.standard_normal(count)).astype(np.float32)
        wanted = whisper.log_mel_spectrogram(whisper.pad_or_trim(torch.from_numpy(samples)), mels).numpy()
        assert np.abs(log_mel(samples, mels)[0, :, 0] - wanted).max() < 1e-4


def test_long_recordings_are_cut_where_it_is_quiet() -> None:
    samples = np.ones(70 * 16000, np.float32)
    samples[int(27.3 * 16000) : int(27.5 * 16000)] = 0
    pieces = windows(samples)
    assert sum(map(len, pieces)) == len(samples)
    assert len(pieces) == 3
    assert 27.3 <= len(pieces[0]) / 16000 <= 27.5
    assert max(map(len, pieces)) <= 30 * 16000


def wav(samples: np.ndarray[Any, Any], rate: int = 16000) -> bytes:
    store = io.BytesIO()
    with wave.open(store, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return store.getvalue()


def test_wav_is_read_without_a_library_as_the_library_reads_it() -> None:
    soundfile = pytest.importorskip("soundfile")
    sound = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    expected = soundfile.read(io.BytesIO(wav(sound)), dtype="float64")[0].mean(axis=1)
    assert np.array_equal(read_audio(wav(sound)), expected.astype(np.float32))


def test_other_rates_are_resampled() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)[:, None]
    found = read_audio(wav(tone, 44100))
    wanted = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert len(found) == 16000
    assert np.abs(found - wanted)[200:-200].max() < 1e-3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (wav(np.zeros((0, 1))), "no samples"),
        (b"", "not a recording"),
        (b"RIFF1234WAVE", "not a recording"),
        (b"x" * 999, "not a recording"),
    ],
)
def test_bad_audio_is_named(data: bytes, reason: str) -> None:
    pytest.importorskip("soundfile")
    with pytest.raises(Unusable, match=reason):
        read_audio(data)


def test_float_wav_with_nan_is_refused() -> None:
    soundfile = pytest.importorskip("soundfile")
    store = io.BytesIO()
    soundfile.write(store, np.array([0.0, np.nan, 0.1]), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(Unusable, match="NaN"):
        read_audio(store.getvalue())


def test_cached_tensors_are_those_of_the_settings() -> None:
    state = Cache(SETTINGS)
    assert [a.shape for a in state.inputs(1, [])[3:]] == [(1, 1, 40, 2)] * 2
