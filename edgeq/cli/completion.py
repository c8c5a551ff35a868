"""`edgeq completion SHELL`: the script that makes Tab work."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from edgeq.cli.console import Console
from edgeq.cli.options import command

_INSTALL = {
    "bash": 'eval "$(edgeq completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(edgeq completion zsh)"   # in ~/.zshrc',
    "fish": "edgeq completion fish > ~/.config/fish/completions/edgeq.fish",
}


@command("completion", examples="\n".join(_INSTALL.values()))
@click.argument("shell", type=click.Choice(list(_INSTALL)))
def completion(console: Console, shell: str) -> None:
    """Print the completion script for SHELL."""
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    root = click.get_current_context().find_root().command
    # Filled in here: click's own `source()` starts a bash to ask for its version.
    complete = found(root, {}, "edgeq", "_EDGEQ_COMPLETE")
    script = complete.source_template % complete.source_vars()
    console.result(script)
    console.emit_json({"schema": "edgeq.completion/1", "ok": True, "shell": shell, "script": script})
