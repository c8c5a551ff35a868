"""Whisper: an encoder and a decoder, exported apart and shipped together with what drives them.

Checkpoints are those of openai-whisper, which hold their dimensions. The networks are judged together, by the words
that the driver in the bundle makes of recordings.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeq.artifact import transcribe
from edgeq.artifact.transcribe import Cache, Settings, Transcriber, Unusable, encoder_inputs, read_audio
from edgeq.data import Role, Source, open_speech
from edgeq.errors import DataError, MissingError, ModelError, UsageError
from edgeq.graph.capture import capture
from edgeq.hashing import file_sha256
from edgeq.models.base import LoadedModel, Metric, ModelRequest, Networks, Portrait
from edgeq.models.checkpoint import load_into, load_state_dict
from edgeq.models.whisper_networks import Dimensions, build_networks
from edgeq.models.whisper_text import Heard, compare_texts, same_text, settings_of, word_error_rate
from edgeq.quant.sensitivity import kl_divergence

Samples = NDArray[np.float32]
Arrays = tuple[NDArray[Any], ...]

AUTO = ("dynamic",)
"""What `--scheme auto` tries: rare values of hundreds in the encoder's last block (most are below 20) leave calibrated
8-bit grids too coarse, and a token at a time is bound by the bytes of the weights in any scheme."""

FLOOR_DB = 10.0
"""8-bit weights alone leave 20 dB of the logits, of which most is common to all tokens and no word depends on it."""

HEARD = 6
"""Tokens of a recording by which changes of the encoder are judged: with more, trying its weights takes minutes."""

RESAMPLES = 2000
METRIC = Metric("WER", "%", word_error_rate, higher_is_better=False, alike=same_text, resamples=RESAMPLES, record=Heard)


class Part:
    """One of the two networks, as exporting needs it; only both together have a metric."""

    metric = METRIC
    sample_file: Path | None = None

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded

    def open(self, path: Path, role: Role) -> Source[Samples]:
        """Recordings, see `open_speech`."""
        return open_speech(path, role=role, decode=decode_audio)

    def judge(self, outputs: Sequence[NDArray[Any]], sample: Samples, label: str) -> Heard:
        """A network alone says nothing."""
        raise NotImplementedError


class EncoderPart(Part):
    """The encoder: the first window of a recording is its input."""

    decoder: DecoderPart

    def __init__(self, loaded: LoadedModel, mels: int) -> None:
        super().__init__(loaded)
        self.mels = mels

    def damage(self, reference: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> float:
        """Divergence of the first tokens that the decoder expects, given those before them, averaged over tokens."""
        tokens, exact = self.decoder.expected(reference)
        return kl_divergence(torch.from_numpy(exact), torch.from_numpy(self.decoder.logits(outputs, tokens)))

    def inputs(self, sample: Samples) -> Arrays:
        """Log-mel spectrogram and positions of the first window."""
        return encoder_inputs(transcribe.windows(sample)[0], self.mels)


class DecoderPart(Part):
    """The decoder: what it reads at each token of the text that the float networks make of a recording."""

    def __init__(self, loaded: LoadedModel, encoder: EncoderPart, settings: Settings) -> None:
        super().__init__(loaded)
        self.encoder, self.settings = encoder, settings
        self._texts: dict[bytes, tuple[int, ...]] = {}
        self._expected: dict[bytes, tuple[tuple[int, ...], NDArray[np.float32]]] = {}
        encoder.decoder = self

    def damage(self, reference: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> float:
        """Divergence of the token that is expected."""
        return kl_divergence(torch.from_numpy(reference[0]), torch.from_numpy(outputs[0]))

    def run(self, *arrays: NDArray[Any]) -> Arrays:
        """The float network."""
        return run_graph(self.loaded.graph, *arrays)

    def tokens(self, cross: Sequence[NDArray[Any]]) -> tuple[int, ...]:
        """What the float network makes of an encoded window; kept, as every pass over the data asks for it."""
        key = _key_of(cross)
        if key not in self._texts:
            driver = Transcriber(self.settings, lambda *_: tuple(cross), self.run)
            self._texts[key] = driver.decode(tuple(cross), 0.0, None).tokens
        return self._texts[key]

    def expected(self, cross: Sequence[NDArray[Any]]) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """The first tokens of an encoded window, and their logits; kept, as each weight that is tried asks."""
        key = _key_of(cross)
        if key not in self._expected:
            tokens = self.tokens(cross)[:HEARD]
            self._expected[key] = tokens, self.logits(cross, tokens)
        return self._expected[key]

    def logits(self, cross: Sequence[NDArray[Any]], tokens: Sequence[int]) -> NDArray[np.float32]:
        """What the float network expects after the prompt and after each token but the last: `(tokens, vocabulary)`."""
        state = Cache(self.settings)
        found = [state.step(self.run, token, cross) for token in (*self.settings.prompt, *tokens[:-1])]
        return np.stack(found[len(self.settings.prompt) - 1 :]).astype(np.float32)

    def inputs(self, sample: Samples) -> Arrays:
        """What the decoder reads in the middle of the text."""
        steps = list(self.steps(sample))
        return steps[len(steps) // 2]

    def steps(self, sample: Samples) -> Iterator[Arrays]:
        """What the decoder reads at each token of the first window."""
        cross = run_graph(self.encoder.loaded.graph, *self.encoder.inputs(sample))
        state = Cache(self.settings)
        for token in (*self.settings.prompt, *self.tokens(cross)):
            read = state.inputs(token, cross)
            yield tuple(a if any(a is c for c in cross) else a.copy() for a in read)
            state.step(self.run, token, cross)


class WhisperAdapter:
    """The Whisper family for one checkpoint: `edgeq.models.base.Composite`."""

    metric = METRIC
    sample_file: Path | None = None
    driver = Path(transcribe.__file__)

    def __init__(self, name: str, encoder: EncoderPart, decoder: DecoderPart, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self.parts = {"encoder": encoder, "decoder": decoder}

    def open(self, path: Path, role: Role) -> Source[Samples]:
        """Recordings, see `open_speech`."""
        return open_speech(path, role=role, decode=decode_audio)

    def judge(self, networks: Networks, sample: Samples, label: str) -> Heard:
        """The words that the networks hear in a recording, against those that were said."""
        found = Transcriber(self.settings, networks["encoder"], networks["decoder"]).transcribe(sample)
        return compare_texts(label, found.text, found.loops)

    def portray(self, networks: Networks, sample: Samples, label: str | None) -> Portrait:
        """The transcript, and what was said."""
        found = Transcriber(self.settings, networks["encoder"], networks["decoder"]).transcribe(sample)
        return Portrait(found.text if label is None else f"{found.text} — said: {label}")

    def write_settings(self, folder: Path) -> None:
        """Write what the driver reads."""
        self.settings.write(folder / transcribe.SETTINGS)


def load_whisper(request: ModelRequest) -> WhisperAdapter:
    """Load an openai-whisper checkpoint.

    Raises:
        UsageError: No checkpoint is named.
        ModelError: It cannot be used.
        MissingError: openai-whisper is not installed.
    """
    if request.path is None:
        raise UsageError(
            "edgeq does not download weights, and Whisper's do not ship with it",
            code="EQ-U016",
            hint=f"edgeq export whisper:{request.variant or 'tiny.en'} --weights CHECKPOINT.pt --device ...",
        )
    dims = read_dimensions(request.path)
    settings = settings_of(dims)
    encoder, decoder, tensors = build_networks(dims, load_state_dict(request.path))
    load_into(encoder, tensors["encoder"], request.path)
    load_into(decoder, tensors["decoder"], request.path)
    name = request.variant or request.path.stem
    cross = [f"{kind}_{i}" for i in range(dims.n_text_layer) for kind in ("cross_keys", "cross_values")]
    own = [f"{kind}_{i}" for i in range(dims.n_text_layer) for kind in ("keys", "values")]
    digest = file_sha256(request.path)

    def loaded(part: str, module: Any, inputs: Sequence[str], outputs: Sequence[str]) -> LoadedModel:
        example = module.example(dims)
        return LoadedModel(
            name=f"{name}-{part}",
            family="whisper",
            graph=capture(module.eval(), example),
            input_names=tuple(inputs),
            input_shapes=tuple(tuple(x.shape) for x in example),
            output_names=tuple(outputs),
            preprocess=None,
            weights_sha256=digest,
            classes=None,
            source=request.path.name if request.path else "",
            schemes=AUTO,
            least_weight_bits=8 if part == "encoder" else 4,  # 4 bits there cost 7 points of WER, in the decoder 1.4
            floor_db=FLOOR_DB,
        )

    first = EncoderPart(loaded("encoder", encoder, ("mel", "positions"), cross), dims.n_mels)
    read = ("token", "position", "mask", *(f"past_{n}" for n in own), *cross)
    second = DecoderPart(loaded("decoder", decoder, read, ("logits", *own)), first, settings)
    return WhisperAdapter(name, first, second, settings)


def read_dimensions(path: Path) -> Dimensions:
    """The sizes that a checkpoint of openai-whisper holds.

    Raises:
        ModelError: EQ-M700, it holds none, or impossible ones; it is damaged or would run code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return Dimensions(**content["dims"])
    except (KeyError, TypeError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"{path.name} is no checkpoint of openai-whisper: {reason}",
            code="EQ-M700",
            place=path.name,
            hint="give the .pt file that openai-whisper downloads; those of other libraries have no 'dims'",
        ) from error


def decode_audio(data: bytes, place: str) -> Samples:
    """A recording as float32 `(n,)` at 16 kHz.

    Raises:
        DataError: EQ-D703, it cannot be used.
        MissingError: EQ-P701, a package is needed to read it.
    """
    try:
        samples: Samples = read_audio(data)
    except Unusable as error:
        message = f"{Path(place).name} {error}"
        if error.package:
            raise MissingError(message, code="EQ-P701", place=place, hint=error.hint) from error
        raise DataError(message, code="EQ-D703", place=place, hint=error.hint) from error
    return samples


def _key_of(cross: Sequence[NDArray[Any]]) -> bytes:
    """What an encoded window is known by: the keys and values of the first layer."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in cross[:2])).digest()


@torch.no_grad()
def run_graph(graph: fx.GraphModule, *arrays: NDArray[Any]) -> Arrays:
    """Outputs of a captured network."""
    return tuple(t.numpy() for t in graph(*(torch.from_numpy(a) for a in arrays)))
