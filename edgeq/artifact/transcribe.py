"""Speech to text with an encoder and a decoder that somebody else runs. Needs Python 3.9 and numpy, nothing of edgeq.

The same file transcribes where an artifact is measured and, copied into its bundle beside `run.py`, where it is used.
What is not 16 kHz needs scipy, what is not PCM in WAV needs soundfile.

Source: Radford et al. 2022, arXiv 2212.04356: log-mel spectrogram (section 2.2), greedy decoding with temperature
fallback (section 4.5). Deviations: no timestamps, so long recordings are cut at a quiet place near the end of each
window of 30 s; one sample a temperature; when all fail, the likeliest text that does not repeat itself is kept.
"""

from __future__ import annotations

import base64
import io
import json
import math
import wave
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000
WINDOW = 30 * RATE
HOP = 160
FFT = 400
MOST_HOURS = 3

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
REPEATS = 2.4
"""A text that deflate shortens more than this repeats itself: the decoder is in a loop."""
UNLIKELY = -1.0
SILENT = 0.6
HIDDEN = -10000.0
"""Added to the scores of empty places of the cache; its exponential is exactly 0."""

SETTINGS = "speech.json"

Network = Callable[..., Sequence[Any]]


class Unusable(Exception):
    """A recording that cannot be used, or a package that is needed to read it."""

    def __init__(self, message: str, hint: str, package: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.package = package


@dataclass(frozen=True)
class Settings:
    """What a checkpoint dictates.

    Args:
        mels: Bands of the spectrogram.
        prompt: Tokens that every text begins with.
        end: Token that ends a text; those above it are special.
        no_speech: Token whose probability after the first prompt token says that nobody speaks.
        steps: Places of the decoder's cache, prompt included.
        cache: Shape `(1, heads, steps, d)` of one cached tensor.
        cached: Number of cached tensors.
        suppress: Tokens that never follow: non-speech symbols, special tokens, timestamps.
        suppress_first: Tokens that cannot be the first.
        tokens: Bytes of each ordinary token.
    """

    mels: int
    prompt: tuple[int, ...]
    end: int
    no_speech: int
    steps: int
    cache: tuple[int, ...]
    cached: int
    suppress: tuple[int, ...]
    suppress_first: tuple[int, ...]
    tokens: tuple[bytes, ...]

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read what `write` has written."""
        data: dict[str, Any] = json.loads(path.read_bytes())
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        values["tokens"] = tuple(base64.b64decode(t) for t in data["tokens"])
        return cls(**values)

    def write(self, path: Path) -> None:
        """Write as JSON, tokens in base64."""
        data = {**vars(self), "tokens": [base64.b64encode(t).decode() for t in self.tokens]}
        path.write_bytes(f"{json.dumps(data, sort_keys=True)}\n".encode())

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens; special ones are left out."""
        data = b"".join(self.tokens[t] for t in tokens if t < len(self.tokens))
        return data.decode("utf-8", errors="replace").strip()


@dataclass(frozen=True)
class Decoded:
    """One attempt at a window.

    Args:
        tokens: Without prompt and end.
        text: Their text.
        average: Mean log probability of a token, the end included.
        no_speech: Probability that nobody speaks.
        temperature: Of the sampling; 0 takes the likeliest token.
    """

    tokens: tuple[int, ...]
    text: str
    average: float
    no_speech: float
    temperature: float

    @property
    def repeats(self) -> bool:
        """Whether the text repeats itself."""
        return compression(self.text) > REPEATS

    @property
    def silent(self) -> bool:
        """Whether there is nothing to transcribe."""
        return self.no_speech > SILENT and self.average < UNLIKELY

    @property
    def good(self) -> bool:
        """Whether no other attempt is needed."""
        return self.silent or not (self.repeats or self.average < UNLIKELY)


@dataclass(frozen=True)
class Transcript:
    """A transcribed recording.

    Args:
        text: All of it.
        windows: The attempt that was kept for each window of at most 30 s.
        seconds: Length of the recording.
    """

    text: str
    windows: tuple[Decoded, ...]
    seconds: float

    @property
    def loops(self) -> int:
        """Windows whose text repeats itself in spite of every attempt."""
        return sum(w.repeats for w in self.windows)


def compression(text: str) -> float:
    """Bytes of the text over its deflated bytes."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


class Transcriber:
    """Speech to text.

    Args:
        settings: Of the checkpoint.
        encoder: Log-mel spectrogram `(1, mels, 1, 3000)` and positions to what the decoder's cross attention reads.
        decoder: Token, position, mask, cached tensors, the encoder's results, to logits and what to cache.
    """

    def __init__(self, settings: Settings, encoder: Network, decoder: Network) -> None:
        self.settings, self.encoder, self.decoder = settings, encoder, decoder
        self._never = np.array(settings.suppress, dtype=np.int64)
        self._never_first = np.array(settings.suppress_first, dtype=np.int64)

    def transcribe(self, samples: Any, seed: int = 0) -> Transcript:
        """The text of a recording: float32 `(n,)` at 16 kHz."""
        kept = []
        for index, window in enumerate(windows(samples)):
            cross = self.encoder(*encoder_inputs(window, self.settings.mels))
            kept.append(self.window(cross, [seed, index]))
        said = [w.text for w in kept if not w.silent]
        return Transcript(" ".join(t for t in said if t), tuple(kept), len(samples) / RATE)

    def window(self, cross: Sequence[Any], seed: Sequence[int] = (0,)) -> Decoded:
        """Decode an encoded window, at higher temperatures while the text repeats itself or is unlikely."""
        tried = []
        for attempt, temperature in enumerate(TEMPERATURES):
            tried.append(self.decode(cross, temperature, np.random.default_rng([*seed, attempt])))
            if tried[-1].good:
                return tried[-1]
        return max(tried, key=lambda d: (not d.repeats, d.average))

    def decode(self, cross: Sequence[Any], temperature: float, random: Any) -> Decoded:
        """One attempt."""
        wanted = self.settings
        tokens: list[int] = []
        total = silence = 0.0
        state = Cache(wanted)
        waiting = list(wanted.prompt)
        while len(state) < wanted.steps:
            logits = state.step(self.decoder, waiting.pop(0), cross)
            if len(state) == 1:
                silence = float(np.exp(log_softmax(logits)[wanted.no_speech]))
            if waiting:
                continue
            logits[self._never] = -np.inf
            if not tokens:
                logits[self._never_first] = -np.inf
            token = pick(logits, temperature, random)
            total += float(log_softmax(logits)[token])
            if token == wanted.end:
                break
            tokens.append(token)
            waiting.append(token)
        return Decoded(tuple(tokens), wanted.text(tokens), total / (len(tokens) + 1), silence, temperature)


class Cache:
    """Keys and values of the tokens so far, and what the decoder reads beside them."""

    def __init__(self, settings: Settings) -> None:
        self.past = [np.zeros(settings.cache, dtype=np.float32) for _ in range(settings.cached)]
        self.mask = np.full((1, 1, 1, settings.steps + 1), HIDDEN, dtype=np.float32)
        self.mask[..., -1] = 0  # the token itself
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def inputs(self, token: int, cross: Sequence[Any]) -> list[Any]:
        """What the decoder reads for `token`."""
        index = (np.array([value], dtype=np.int32) for value in (token, self._length))
        return [*index, self.mask, *self.past, *cross]

    def step(self, decoder: Network, token: int, cross: Sequence[Any]) -> Any:
        """Run the decoder on `token`, keep what it says of it, and return the logits `(vocabulary,)` in float64."""
        logits, *new = decoder(*self.inputs(token, cross))
        for past, one in zip(self.past, new):  # noqa: B905 - Python 3.9
            past[:, :, self._length] = one[:, :, 0]
        self.mask[..., self._length] = 0
        self._length += 1
        return np.array(logits[0], dtype=np.float64)


def pick(logits: Any, temperature: float, random: Any) -> int:
    """The likeliest token, or one drawn."""
    if temperature == 0:
        return int(np.argmax(logits))
    shares = np.exp(log_softmax(logits / temperature))
    return int(random.choice(len(shares), p=shares / shares.sum()))


def log_softmax(logits: Any) -> Any:
    """Log probabilities `(n,)`."""
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def windows(samples: Any) -> list[Any]:
    """Pieces of at most 30 s, cut where it is quietest in the last 5 s of each."""
    pieces, frame = [], RATE // 10
    while len(samples) > WINDOW:
        tail = samples[WINDOW - 5 * RATE : WINDOW].reshape(-1, frame)
        quiet = int(np.argmin((tail.astype(np.float64) ** 2).mean(axis=1)))
        end = WINDOW - 5 * RATE + quiet * frame + frame // 2
        pieces.append(samples[:end])
        samples = samples[end:]
    return [*pieces, samples]


def encoder_inputs(samples: Any, mels: int) -> tuple[Any, Any]:
    """What the encoder reads for at most 30 s: spectrogram `(1, mels, 1, 3000)`, positions int32 `(1500,)`."""
    return log_mel(samples, mels), np.arange(WINDOW // HOP // 2, dtype=np.int32)


def log_mel(samples: Any, mels: int) -> Any:
    """Log-mel spectrogram `(1, mels, 1, 3000)` of at most 30 s at 16 kHz, in float64 up to the last rounding."""
    padded = np.zeros(WINDOW + FFT)
    padded[FFT // 2 : FFT // 2 + len(samples)] = samples
    padded[: FFT // 2] = padded[FFT : FFT // 2 : -1]
    padded[-FFT // 2 :] = padded[-FFT // 2 - 2 : -FFT - 2 : -1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[:WINDOW:HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    bands = np.log10(np.maximum(mel_filters(mels) @ power.T, 1e-10))
    bands = (np.maximum(bands, bands.max() - 8) + 4) / 4
    return bands.astype(np.float32)[None, :, None]


def mel_filters(mels: int) -> Any:
    """Triangles of equal area on Slaney's mel scale (linear below 1 kHz, logarithmic above), `(mels, 201)`."""
    step = math.log(6.4) / 27

    def hertz(mel: Any) -> Any:
        return np.where(mel < 15, 200 / 3 * mel, 1000 * np.exp(step * (mel - 15)))

    top = 15 + math.log(RATE / 2 / 1000) / step
    edges = hertz(np.linspace(0, top, mels + 2))
    bins = np.linspace(0, RATE / 2, FFT // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def read_audio(data: bytes) -> Any:
    """An encoded recording as float32 `(n,)` at 16 kHz; channels are averaged.

    Raises:
        Unusable: It cannot be used, or a package is needed to read it.
    """
    samples, rate = _pcm(data) or _decoded(data)
    if len(samples) == 0:
        raise Unusable("holds no samples", "remove it")
    if len(samples) > MOST_HOURS * 3600 * rate:
        raise Unusable(f"is longer than {MOST_HOURS} hours", "cut it into pieces")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise Unusable("holds NaN or infinity", "record or convert it again")
    return np.ascontiguousarray(_at_16_khz(mono, rate), dtype=np.float32)


def _pcm(data: bytes) -> Any:
    """Samples `(n, channels)` and rate of 16-bit WAV; None for what needs a library."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            if file.getsampwidth() != 2:
                return None
            raw = file.readframes(file.getnframes())
            values = np.frombuffer(raw[: len(raw) // 2 * 2], dtype="<i2").astype(np.float64) / 32768
            count = file.getnchannels()
            return values[: len(values) // count * count].reshape(-1, count), file.getframerate()
    except (wave.Error, EOFError):
        return None


def _decoded(data: bytes) -> Any:
    """Samples `(n, channels)` and rate of anything that libsndfile reads."""
    try:
        import soundfile
    except ImportError as error:
        hint = "pip install soundfile, or give 16-bit WAV"
        raise Unusable("is no 16-bit WAV file, and soundfile is absent", hint, package=True) from error
    try:
        return soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)
    except Exception as error:  # the library has errors of several kinds
        reason = str(error).rpartition(": ")[2]  # what comes before names an object of Python
        raise Unusable(f"is not a recording that can be read: {reason}", "convert it to WAV or FLAC") from error


def _at_16_khz(samples: Any, rate: int) -> Any:
    if rate == RATE:
        return samples
    if not 1000 <= rate <= 768000:
        raise Unusable(f"has {rate} samples a second", "convert it to 16 kHz")
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        hint = f"pip install scipy, or convert it: ffmpeg -i FILE -ar {RATE} -ac 1 OUT.wav"
        raise Unusable(f"has {rate} samples a second, and scipy is absent", hint, package=True) from error
    shared = math.gcd(rate, RATE)
    return resample_poly(samples, RATE // shared, rate // shared)


def run_file(path: Path, networks: Mapping[str, Network], folder: Path) -> dict[str, Any]:
    """What `run.py` prints of a recording.

    Args:
        path: The recording.
        networks: `encoder` and `decoder`, each taking and returning arrays.
        folder: Where the settings are.

    Raises:
        Unusable: The recording cannot be used.
        OSError: It cannot be read.
    """
    samples = read_audio(path.read_bytes())
    settings = Settings.read(folder / SETTINGS)
    found = Transcriber(settings, networks["encoder"], networks["decoder"]).transcribe(samples)
    return {"text": found.text, "seconds": found.seconds, "loops": found.loops}
