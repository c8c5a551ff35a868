"""Export a Whisper checkpoint in several ways, and write what was measured as JSON.

    python tools/bench/whisper_tiny.py --data DATA_FOLDER --out BUNDLES [--only NAME ...]

`DATA_FOLDER` holds `speech/` (recordings with an index) and `whisper/whisper_tiny_en_fp16.pt`. One folder serves
calibration and evaluation: no recording is in both. Every export runs in its own process with one thread; a bundle that
is there already is not exported again. Then the driver of the bundle transcribes what calibration did not use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgeq.artifact import Artifact, model_bytes
from edgeq.artifact.transcribe import SETTINGS, Settings, Transcriber, read_audio
from edgeq.devices import open_model
from edgeq.models.whisper_text import compare_texts

RESULTS = Path(__file__).parent / "results"
ROWS: dict[str, list[str]] = {
    "tfl8": ["--device", "rpi", "--scheme", "dynamic"],
    "ov8": ["--device", "x86", "--scheme", "dynamic"],
    "ov8s": ["--device", "x86", "--scheme", "static", "--method", "mse"],
    "tfl4": ["--device", "rpi", "--bits", "w4a8", "--max-drop", "1.5"],
    "ov4": ["--device", "x86", "--bits", "w4a8", "--max-drop", "1.5"],
    "tfl_mixed": ["--device", "rpi", "--bits", "mixed", "--budget-kb", "32000", "--max-drop", "1.5"],
    "ov_mixed": ["--device", "x86", "--bits", "mixed", "--budget-kb", "32000", "--max-drop", "1.5"],
}


def main() -> None:
    """Export what is missing, measure every bundle, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args()
    speech, weights = args.data / "speech", args.data / "whisper" / "whisper_tiny_en_fp16.pt"
    path = RESULTS / "whisper.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}
    for name in args.only:
        bundle = args.out / name
        if not bundle.is_dir():
            words = ["whisper:tiny.en", "--weights", weights, "--calib", speech, "--data", speech, *ROWS[name]]
            more = ["--threads", "1", "--runs", "5", "--out", bundle]
            subprocess.run([sys.executable, "-m", "edgeq", "export", *map(str, (*words, *more))], check=True)
        rows[name] = row_of(bundle, speech)
        ordered = {key: rows[key] for key in ROWS if key in rows}
        path.write_text(json.dumps({"rows": ordered}, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(rows[name]["metric"]), rows[name]["heard"]["real_time_factor"])


def row_of(bundle: Path, speech: Path) -> dict[str, Any]:
    """What the bundle's evidence says, and how long it takes for some recordings."""
    whole = Artifact.open(bundle)
    evidence = whole.evidence()
    networks = {name: Artifact.open(bundle / name) for name in whole.manifest.networks}
    shipped = {}
    for name, network in networks.items():
        found = network.evidence()
        candidate = next(c for c in found["candidates"] if c["scheme"] == found["shipped"])
        shipped[name] = {key: candidate[key] for key in ("scheme", "bytes", "fidelity_sqnr_db", "latency", "rejected")}
        shipped[name] |= {"census": candidate["file"]["census"], "float_bytes": found["float_bytes"]}
    return {
        "command": " ".join(whole.manifest.command),
        "bits": whole.manifest.config["bits"],
        "rounding": whole.manifest.config["rounding"],
        "format": next(iter(networks.values())).model_file.suffix,
        "bytes": sum(model_bytes(network.model_file) for network in networks.values()),
        "metric": evidence["metric"],
        "calibration_recordings": len(whole.manifest.calibration),
        "networks": shipped,
        "heard": transcribe_all(bundle, networks, speech),
        "environment": {k: evidence["environment"][k] for k in ("edgeq", "python", "cpu", "cores", "packages")},
        "not_measured": evidence["not_measured"],
    }


def transcribe_all(bundle: Path, networks: dict[str, Artifact], speech: Path) -> dict[str, Any]:
    """What the bundle hears in the recordings that calibration did not use, and how long it takes.

    The real-time factor is seconds of work per second of sound, with one thread: of all recordings but the first
    together, and their median.
    """
    run = {name: open_model(network.model_file).run for name, network in networks.items()}
    driver = Transcriber(Settings.read(bundle / SETTINGS), run["encoder"], run["decoder"])
    used = {item["id"] for item in Artifact.open(bundle).manifest.calibration}
    work, sound, wrong, loops = [], [], [], 0
    for entry in json.loads((speech / "index.json").read_bytes()):
        if entry["file"] in used:
            continue
        samples = read_audio((speech / entry["file"]).read_bytes())
        started = time.perf_counter()
        found = driver.transcribe(samples)
        work.append(time.perf_counter() - started)
        sound.append(found.seconds)
        loops += found.loops
        if compare_texts(entry["text"], found.text).errors:
            wrong.append({"file": entry["file"], "said": entry["text"], "heard": found.text})
    return {
        "recordings": len(work),
        "windows_in_a_loop": loops,
        "real_time_factor": {
            "total": round(sum(work[1:]) / sum(sound[1:]), 3),
            "median": round(statistics.median(w / s for w, s in zip(work[1:], sound[1:], strict=True)), 3),
            "n": len(work) - 1,
        },
        "wrong": wrong,
    }


if __name__ == "__main__":
    main()
