"""What rooms, microphones and lines do to speech. Recordings are `(n,)` float32 in -1 to 1 at 16 kHz.

Levels relate to the power of the whole recording, pauses included. Every result has the length of its input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import signal  # type: ignore[import-untyped]

RATE = 16_000
Recording = NDArray[np.float32]


def white_noise(speech: Recording, snr_db: float, random: np.random.Generator) -> Recording:
    """White noise `snr_db` below the speech."""
    return _mixed(speech, random.normal(size=len(speech)), snr_db)


def speech_noise(speech: Recording, snr_db: float, random: np.random.Generator) -> Recording:
    """Noise with the long-term spectrum of the recording itself, `snr_db` below it: many voices at once, no words."""
    spectrum = np.abs(np.fft.rfft(speech))
    width = max(1, len(spectrum) // 256)
    smooth = np.sqrt(np.convolve(spectrum**2, np.ones(width) / width, mode="same"))
    phases = np.exp(2j * np.pi * random.random(len(smooth)))
    return _mixed(speech, np.fft.irfft(smooth * phases, n=len(speech)), snr_db)


def reverberation(speech: Recording, seconds: float, random: np.random.Generator) -> Recording:
    """A room of reverberation time `seconds` (RT60): direct sound and an exponential tail.

    The tail is white noise that falls by 60 dB in `seconds` (Polack's model), from 2 ms after the direct sound on. As
    in one room at one distance its energy grows with `seconds`; at 0.4 s it is that of the direct sound.
    """
    count = max(1, int(seconds * RATE))
    tail = random.normal(size=count) * 10 ** (-3 * np.arange(count) / count)
    tail[: RATE // 500] = 0
    tail *= np.sqrt(seconds / 0.4) / max(float(np.sqrt(np.sum(tail**2))), 1e-12)
    room = np.concatenate([[1.0], tail])
    return _same_power(signal.fftconvolve(speech, room)[: len(speech)], speech)


def clipping(speech: Recording, db: float, random: np.random.Generator) -> Recording:
    """Overdriven: everything above `db` below the peak is cut off; the peak then is where it was."""
    del random
    gain = 10 ** (db / 20)
    peak = float(np.max(np.abs(speech), initial=0))
    return np.asarray(np.clip(gain * speech, -peak, peak), dtype=np.float32)


def band_limit(speech: Recording, hertz: float, random: np.random.Generator) -> Recording:
    """Nothing above `hertz` (Butterworth of order 8, without delay)."""
    del random
    low_pass = signal.butter(8, hertz, fs=RATE, output="sos")
    padding = min(len(speech) - 1, 3 * (2 * len(low_pass) + 1))
    return np.asarray(signal.sosfiltfilt(low_pass, speech, padlen=max(0, padding)), dtype=np.float32)


def companding(speech: Recording, bits: float, random: np.random.Generator) -> Recording:
    """A line that sends `bits` a sample, mu-law with mu = 255 (ITU-T G.711 at 8 bits), at 16 kHz."""
    del random
    steps, mu = 2 ** (int(bits) - 1) - 1, 255.0
    coded = np.sign(speech) * np.log1p(mu * np.abs(np.clip(speech, -1, 1))) / np.log1p(mu)
    coded = np.rint(coded * steps) / steps
    return np.asarray(np.sign(coded) * np.expm1(np.abs(coded) * np.log1p(mu)) / mu, dtype=np.float32)


def dropouts(speech: Recording, percent: float, random: np.random.Generator) -> Recording:
    """A line that loses `percent` of its packets of 20 ms; silence is played instead."""
    packet = RATE // 50
    lost = random.random(-(-len(speech) // packet)) < percent / 100
    return np.asarray(np.where(np.repeat(lost, packet)[: len(speech)], 0, speech), dtype=np.float32)


def _mixed(speech: Recording, noise: NDArray[np.float64], snr_db: float) -> Recording:
    power, own = float(np.mean(speech.astype(np.float64) ** 2)), float(np.mean(noise**2))
    gain = np.sqrt(power / max(own, 1e-20) * 10 ** (-snr_db / 10))
    return np.asarray(speech + gain * noise, dtype=np.float32)


def _same_power(found: NDArray[np.float64], speech: Recording) -> Recording:
    power, own = float(np.mean(speech.astype(np.float64) ** 2)), float(np.mean(found**2))
    return np.asarray(found * np.sqrt(power / max(own, 1e-20)), dtype=np.float32)
