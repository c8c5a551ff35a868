"""Folders of speech, one folder for two purposes, and what Whisper's family refuses."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgeq.config import ExportConfig
from edgeq.data import open_speech
from edgeq.errors import DataError, EdgeqError, ModelError, UsageError
from edgeq.models.base import ModelRequest, Sensitive, parse_model
from edgeq.samples import collect_samples, open_labelled
from edgeq.session import config_for, require_simple

pytest.importorskip("whisper")

from edgeq.models.whisper import decode_audio, load_whisper, read_dimensions
from edgeq.models.whisper_networks import Dimensions, build_networks
from edgeq.models.whisper_text import compare_texts, same_text, settings_of, word_error_rate

TINY = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 384, "n_audio_head": 6, "n_audio_layer": 4}
TINY |= {"n_vocab": 51864, "n_text_ctx": 448, "n_text_state": 384, "n_text_head": 6, "n_text_layer": 4}


def folder(path: Path, count: int, index: Any = None) -> Path:
    for i in range(count):
        (path / f"{i}.wav").write_bytes(b"%d" % i)
    if index is not None:
        (path / "index.json").write_text(json.dumps(index))
    return path


def read(data: bytes, place: str) -> bytes:
    del place
    return data


def test_an_index_gives_files_and_texts(tmp_path: Path) -> None:
    index = [{"file": "1.wav", "text": "one", "sec": 2}, {"file": "0.wav"}]
    source = open_speech(folder(tmp_path, 3, index), role="evaluation", decode=read)
    assert [(i.id, i.label) for i in source.items] == [("1.wav", "one"), ("0.wav", None)]
    assert source.read(0) == b"1"


def test_without_an_index_all_recordings_are_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no audio")
    assert len(open_speech(folder(tmp_path, 3), role="calibration", decode=read)) == 3


BAD_INDICES: list[tuple[Any, str]] = [
    ({}, "EQ-D701"),
    ([], "EQ-D701"),
    ([{"text": "x"}], "EQ-D701"),
    ([{"file": "../x.wav"}], "EQ-D701"),
    ([{"file": "0.wav", "text": 3}], "EQ-D701"),
    ([{"file": "9.wav"}], "EQ-D057"),
]


@pytest.mark.parametrize(("index", "code"), BAD_INDICES)
def test_a_bad_index_is_named(tmp_path: Path, index: Any, code: str) -> None:
    with pytest.raises(DataError) as caught:
        open_speech(folder(tmp_path, 1, index), role="calibration", decode=read)
    assert caught.value.code == code


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_speech(tmp_path, role="calibration", decode=read)
    assert caught.value.code == "EQ-D700"


class Adapter:
    """Recordings as they are."""

    sample_file = None
    loaded = SimpleNamespace(name="made up", classes=None)

    def open(self, path: Path, role: Any) -> Any:
        return open_speech(path, role=role, decode=read)

    def inputs(self, sample: bytes) -> Any:
        return (np.frombuffer(sample, np.uint8),)


def test_one_folder_for_two_purposes_is_shared_out(tmp_path: Path) -> None:
    index = [{"file": f"{i}.wav", "text": str(i)} for i in range(40)]
    place = folder(tmp_path, 40, index)
    config = ExportConfig(model="whisper:tiny.en", device="rpi", calib=place, data=place)
    (samples,) = collect_samples(config, [Adapter()])  # type: ignore[list-item]
    labelled = open_labelled(config, samples)
    assert labelled is not None
    used, judged = {i.sha256 for i in samples.calibration_items}, {i.sha256 for i in labelled.items}
    assert (len(used), len(judged)) == (10, 30)
    assert not used & judged
    assert [labelled.read(i).decode() for i in range(3)] == [i.label for i in labelled.items[:3]]
    again = replace(config, data=None, samples=len(used))  # what the manifest makes of it
    assert collect_samples(again, [Adapter()])[0].calibration_index == samples.calibration_index  # type: ignore[list-item]


def test_words_are_compared_after_normalization() -> None:
    heard = compare_texts("Mr. Brown's number is twenty-two.", "mister browns number is 22")
    other = compare_texts("Mr. Brown's number is twenty-two.", "Mister Brown's number is 23!")
    assert (heard.errors, heard.words) == (2, 6)  # "brown is", as Whisper expands it, and "browns"
    assert not same_text(heard, other)
    assert word_error_rate([heard, heard]) == pytest.approx(100 * heard.errors / heard.words)
    with pytest.raises(DataError) as caught:
        compare_texts("[noise]", "x")
    assert caught.value.code == "EQ-D702"


def test_settings_of_english_and_multilingual_vocabularies() -> None:
    english, many = settings_of(Dimensions(**TINY)), settings_of(Dimensions(**{**TINY, "n_vocab": 51865}))
    assert (english.prompt, english.end) == ((50257, 50362), 50256)
    assert many.prompt == (50258, 50259, 50359, 50363)  # start, English, transcribe, no timestamps
    assert english.text([15496, 995, english.end]) == "Hello world"
    assert english.cache == (1, 6, 224, 64)
    assert {50362, 50363, 51863} <= set(english.suppress)


def test_both_networks_are_judged_by_the_tokens_that_are_expected(tmp_path: Path) -> None:
    """Of a small network with random weights: the mechanism, not accuracy."""
    small = {**TINY, "n_audio_state": 16, "n_text_state": 16, "n_audio_layer": 1, "n_text_layer": 1}
    dims = Dimensions(**{**small, "n_audio_head": 2, "n_text_head": 2})
    torch.manual_seed(0)
    encoder, decoder, _ = build_networks(dims, {})
    own = {f"encoder.{k}": v for k, v in encoder.state_dict().items() if not k.startswith("cross")}
    own |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
    for kind, tensor in (("key.weight", (16, 16)), ("value.weight", (16, 16)), ("value.bias", (16,))):
        own[f"decoder.blocks.0.cross_attn.{kind}"] = torch.randn(tensor)
    own = {
        k: v.squeeze(2) if k.startswith("encoder.conv") and v.ndim == 4 else torch.randn(v.shape)
        for k, v in own.items()
    }
    own["decoder.positional_embedding"] = torch.randn(448, 16)
    torch.save({"dims": asdict(dims), "model_state_dict": own}, tmp_path / "small.pt")
    model = load_whisper(ModelRequest("whisper", "tiny.en", tmp_path / "small.pt"))
    first, second = model.parts["encoder"], model.parts["decoder"]
    assert isinstance(first, Sensitive)
    assert isinstance(second, Sensitive)
    sound = np.sin(np.arange(16000) / 9).astype(np.float32)
    exact = [t.numpy() for t in first.loaded.graph(*map(torch.from_numpy, first.inputs(sound)))]
    near, far = (
        [a + noise * np.random.default_rng(1).standard_normal(a.shape) for a in exact] for noise in (0.01, 0.3)
    )
    damages = [first.damage(exact, [a.astype(np.float32) for a in arrays]) for arrays in (exact, near, far)]
    assert damages[0] == pytest.approx(0, abs=1e-9)
    assert 0 < damages[1] < damages[2]
    logits = [np.float32([[2, 1, 0]]), np.zeros((1, 2, 1, 8), np.float32)]
    assert second.damage(logits, [logits[0], logits[1] + 9]) == pytest.approx(0, abs=1e-9), "the cache is no result"
    assert second.damage(logits, [logits[0][:, ::-1].copy(), logits[1]]) > 0.5


NO_CHECKPOINTS: list[dict[str, Any]] = [
    {"model_state_dict": {}},
    {"dims": {"n_mels": 80}},
    {"dims": {**TINY, "n_audio_ctx": 100}},
    {"dims": {**TINY, "n_audio_head": 5}},
    {"dims": {**TINY, "n_mels": -1}},
]


@pytest.mark.parametrize("content", NO_CHECKPOINTS)
def test_other_checkpoints_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ModelError) as caught:
        read_dimensions(tmp_path / "x.pt")
    assert caught.value.code == "EQ-M700"


def test_damaged_checkpoints_and_missing_weights(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nonsense")
    with pytest.raises(ModelError):
        read_dimensions(tmp_path / "x.pt")
    with pytest.raises(UsageError, match="does not download"):
        load_whisper(ModelRequest("whisper", "tiny.en", None))


def test_the_name_has_a_dot_and_is_no_file() -> None:
    assert parse_model("whisper:tiny.en", None, None) == ModelRequest("whisper", "tiny.en", None)


def test_unusable_audio_is_a_data_error() -> None:
    with pytest.raises(EdgeqError) as caught:
        decode_audio(b"nothing", "a/b.wav")
    assert caught.value.code == "EQ-D703"
    assert "b.wav is not a recording" in caught.value.message


def test_options_for_one_network_are_refused_for_several() -> None:
    config = ExportConfig(model="whisper:tiny.en", device="rpi", budget_kb=1000.0)
    with pytest.raises(UsageError) as caught:
        require_simple(config, SimpleNamespace(name="tiny.en", parts={"encoder": 0, "decoder": 0}))  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.place) == ("EQ-U700", "--budget-kb")
    several = SimpleNamespace(name="tiny.en", parts={"encoder": 0, "decoder": 0})
    require_simple(replace(config, bits="mixed"), several)  # type: ignore[arg-type]


def test_a_network_may_keep_wide_weights() -> None:
    config = ExportConfig(model="whisper:tiny.en", device="rpi", bits="w4a8")
    keeps, narrows = SimpleNamespace(least_weight_bits=8), SimpleNamespace(least_weight_bits=4)
    assert config_for(config, keeps).bits == "w8a8"  # type: ignore[arg-type]
    assert config_for(config, narrows) is config  # type: ignore[arg-type]
