"""`edgeq search` from its request to its folder: session, device, journal, search, summary."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeq.artifact import check_out, write_json
from edgeq.cache import cache_key
from edgeq.config import ExportConfig
from edgeq.devices.attached import Described, Device
from edgeq.devices.environment import runtime_version
from edgeq.errors import UsageError
from edgeq.places import state_dir
from edgeq.progress import Progress
from edgeq.report import search_page
from edgeq.search.engine import SCHEMA, Search, summary
from edgeq.search.problem import Budgets
from edgeq.search.store import CostStore
from edgeq.search.workbench import DeviceBench
from edgeq.session import Job, Stages, prepare

BEST, RESULT, PAGE, FILES = "best", "search.json", "search.html", ".files"
"""In the folder of a search: the bundle, what was found, the same as a page, and built files while it lasts."""

DECIDED: Mapping[str, Any] = {
    "bits": "w8a8",
    "keep_float": "auto",
    "narrow": None,
    "budget_kb": None,
    "budget_minutes": None,
    "learn_steps": None,
    "compare": None,
    "dry_run": False,
    "force": False,
}
"""Settings of an export that a search decides about, or has no use for, whatever `edgeq.toml` says."""


@dataclass(frozen=True)
class SearchRequest:
    """What to search for.

    Args:
        config: Model, target, data: as for an export; of what it decides about bits, `bits` says nothing here.
        budgets: The limits.
        out: Folder of the search.
        builds: Files with widths chosen layer by layer to build at most.
        minutes: Begin no further build after that; None for no limit.
        resume: Go on in a folder that holds a finished search, with other budgets for instance.
        remeasure: Forget what earlier searches measured.
    """

    config: ExportConfig
    budgets: Budgets
    out: Path
    builds: int = 4
    minutes: float | None = None
    resume: bool = False
    remeasure: bool = False


def search(request: SearchRequest, device: Device, command: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Find the widths of a model's layers that lose least within budgets measured on a device.

    Args:
        request: What to search for.
        device: Where costs are measured.
        command: The command line, for the manifests.
        progress: Where to show the steps.

    Returns:
        The JSON contract `edgeq.search/1`.

    Raises:
        UsageError: EQ-U884, the folder holds something else, or a finished search; EQ-U885, several networks.
        GateError: EQ-G880 or EQ-G881, nothing keeps the budgets.
        EdgeqError: Whatever stops a build or the device; the best so far stays, and the same command goes on.
    """
    started = time.monotonic()
    request = replace(request, config=replace(request.config, **DECIDED))
    out = prepare_folder(request)
    identity = identity_of(device)
    stages = Stages(progress)
    job = open_job(request, out, stages)
    key, store = recall(request, job, identity)
    bench = DeviceBench(job, device, request.budgets.kb is not None, out / FILES, out / BEST, command, stages)
    journal = state_dir() / "search" / f"{key}.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)

    def write() -> dict[str, Any]:
        table = {"device": identity["device"], "measured_at": store.measured_at, "runtime": identity["runtime"]}
        seconds = round(time.monotonic() - started, 1)
        facts = {"model": job.name, "target": job.first.target.name, "artifact": str(request.out / BEST)}
        result = summary(work.findings, {**facts, "device": identity, "table": table, "seconds": seconds})
        write_result(out, result)
        return result

    work = Search(bench, request.budgets, journal, key, store, progress, request.builds, request.minutes, write)
    try:
        work.run()
    except BaseException:
        if work.findings.uniform:
            write()
        if (out / BEST).is_dir():
            mine = work.findings.winner is not None
            said = (
                "the best so far; the same command goes on" if mine else "what an earlier search found for its budget"
            )
            progress.say(f"{request.out / BEST} is {said}")
        raise
    result = write()
    shutil.rmtree(out / FILES, ignore_errors=True)
    return result


def write_result(out: Path, result: Mapping[str, Any]) -> None:
    """Replace the page and the JSON of a search, each at once."""
    for name, write in ((PAGE, _write_page), (RESULT, write_json)):
        aside = out / f".{name}"
        write(aside, result)
        aside.replace(out / name)


def _write_page(path: Path, result: Mapping[str, Any]) -> None:
    path.write_text(search_page(result), encoding="utf-8")


def prepare_folder(request: SearchRequest) -> Path:
    """The folder of the search: new, or of a search that was interrupted, or finished with `resume`.

    Raises:
        UsageError: EQ-U884 as above; EQ-U043, it cannot be written to.
    """
    out = request.out
    if not out.exists():
        check_out(out)
        out.mkdir(parents=True)
        return out
    finished = (out / RESULT).is_file() and not (out / FILES).is_dir()
    ours = {BEST, RESULT, PAGE, FILES, f".{RESULT}", f".{PAGE}"}
    foreign = sorted(p.name for p in out.iterdir() if p.name not in ours) if out.is_dir() else [out.name]
    if foreign:
        message, hint = f"the folder holds something else: {foreign[0]}", "choose another --out"
        raise UsageError(message, code="EQ-U884", place=str(out), hint=hint)
    if finished and not request.resume:
        hint = "--resume to go on there, with another budget for instance; or another --out"
        raise UsageError("the folder holds a finished search", code="EQ-U884", place=str(out), hint=hint)
    return out


def identity_of(device: Device) -> dict[str, Any]:
    """What decides the figures of a device: board, CPU, runtimes or compiler. Raises as `Device.profile`."""
    facts: Mapping[str, Any] = device.describe() if isinstance(device, Described) else {}
    environment = facts.get("environment") or {}
    cpu = environment.get("cpu") or {}
    return {
        "device": device.name,
        "board": facts.get("board") or cpu.get("model") or "",
        "machine": environment.get("machine") or "",
        "runtime": facts.get("compiler") or "",
        "packages": environment.get("packages") or {},
    }


def open_job(request: SearchRequest, out: Path, stages: Stages) -> Job:
    """The session of the export, of one network."""
    scratch = out / FILES / "session"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    job = prepare(request.config, scratch, stages)
    if len(job.sessions) > 1:
        message = f"{job.name} has several networks: {', '.join(job.sessions)}; a search is of one"
        raise UsageError(message, code="EQ-U885", place=request.config.model, hint="edgeq export, which takes them all")
    return job


def recall(request: SearchRequest, job: Job, identity: dict[str, Any]) -> tuple[str, CostStore]:
    """Key of the journal, and the costs that the device is known for; both empty after `remeasure`.

    Completes `identity` with the runtime's version.
    """
    session = job.first
    packages = identity.pop("packages")
    identity["runtime"] = identity["runtime"] or runtime_version(session.exporter.name, packages)
    samples, config = session.samples, request.config.to_dict()
    data = [item.sha256 for item in (*samples.calibration_items, *samples.held_out_items)]
    labelled = [] if job.labelled is None else [item.sha256 for item in job.labelled.items]
    asked = {k: v for k, v in config.items() if k not in ("out", "exist", "dry_run", "force", "compare", "runs")}
    narrow = request.budgets.kb is not None
    key = cache_key(SCHEMA, identity, session.adapter.loaded.weights_sha256, asked, data, labelled, narrow)
    device = " | ".join(str(identity[k]) for k in ("device", "board", "machine", "runtime"))
    device += f" | {session.exporter.name} | {request.config.threads or 1} threads"
    store = CostStore.open(cache_key(device), device)
    if request.remeasure:
        store.forget()
        (state_dir() / "search" / f"{key}.jsonl").unlink(missing_ok=True)
    return key, store
