"""`edgeq models [NAME]`: which models have a name here."""

from __future__ import annotations

from dataclasses import asdict

import click
from click.shell_completion import CompletionItem

from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.errors import unknown_name
from edgeq.models import FAMILIES, MODELS


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of models that begin with `incomplete`."""
    del ctx, param
    return [CompletionItem(name, help=m.summary) for name, m in MODELS.items() if name.startswith(incomplete)]


@command("models", examples="edgeq models\nedgeq models vit_nano --json")
@click.argument("name", required=False, shell_complete=complete_model)
def models(console: Console, name: str | None) -> None:
    """List the models with a name, or describe NAME.

    Model files need no entry: `edgeq export model.onnx --family vit`.

    Raises:
        UsageError: EQ-U014 for an unknown name.
    """
    if name is None:
        rows = [(m.name, m.family, "yes" if m.ships_weights else "no", m.summary) for m in MODELS.values()]
        console.result_table(("model", "family", "works offline", "summary"), rows)
        console.emit_json(
            {
                "schema": "edgeq.models/1",
                "ok": True,
                "families": sorted(FAMILIES),
                "models": [asdict(m) for m in MODELS.values()],
            }
        )
        return
    family, colon, variant = name.rpartition(":")
    entry = MODELS.get(variant)
    if entry is None or (colon and family != entry.family):
        known = [f"{m.family}:{m.name}" if colon else m.name for m in MODELS.values()]
        raise unknown_name("model", name, known, code="EQ-U014", command="edgeq models")
    details = {**asdict(entry), "ships_weights": "yes" if entry.ships_weights else "no"}
    console.result_table(("", entry.name), [(field.replace("_", " "), value) for field, value in details.items()])
    console.emit_json({"schema": "edgeq.model/1", "ok": True, **asdict(entry)})
