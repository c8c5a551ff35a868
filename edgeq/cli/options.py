"""Options that all commands share, accepted before and after the name of the command."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgeq.cli.console import Console, Talk
from edgeq.config import ConfigFile, ExportConfig, find_config, load_config, resolve_export
from edgeq.errors import UsageError

_META = "edgeq.options"
HELP_NAMES = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@dataclass(frozen=True)
class Settings:
    """Shared options of the commands that resolve a configuration.

    Args:
        config: The configuration file to use instead of the nearest `edgeq.toml`.
        isolated: Use no configuration file.
        seed: Seed of every random choice, None when not given.
        threads: CPU threads, None when not given.
    """

    config: Path | None = None
    isolated: bool = False
    seed: int | None = None
    threads: int | None = None

    def file(self) -> ConfigFile | None:
        """The configuration file that applies.

        Raises:
            UsageError: EQ-U001 for `--config` with `--isolated`, EQ-U002, 4, 5 or 7 for an unusable file.
        """
        if self.isolated and self.config is not None:
            message, hint = "--config and --isolated exclude each other", "drop one of them"
            raise UsageError(message, code="EQ-U001", place="--isolated", hint=hint)
        path = None if self.isolated else (self.config or find_config(Path.cwd()))
        return None if path is None else load_config(path)

    def resolve(
        self,
        flags: Mapping[str, object],
        target_defaults: Callable[[str], Mapping[str, object]] | None = None,
    ) -> tuple[ExportConfig, dict[str, str]]:
        """The configuration of an export and the source of each of its values; see `edgeq.config.resolve_export`."""
        given = {**flags, "seed": self.seed, "threads": self.threads}
        return resolve_export(given, os.environ, self.file(), target_defaults)


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """Remember a shared option; the innermost place where it is written wins."""
    if param.name and ctx.get_parameter_source(param.name) is not click.core.ParameterSource.DEFAULT:
        ctx.meta.setdefault(_META, {})[param.name] = value


class SharedOption(click.Option):
    """An option that every command takes."""

    def __init__(self, *names: str, **settings: Any) -> None:
        super().__init__(list(names), expose_value=False, callback=_keep, **settings)


def talk_options() -> list[click.Parameter]:
    """How the user wants to be spoken to."""
    return [
        SharedOption("--json", is_flag=True, help="Print exactly one JSON object on stdout."),
        SharedOption("-q", "--quiet", is_flag=True, help="Results and errors only."),
        SharedOption("-v", "--verbose", is_flag=True, help="Details too."),
        SharedOption(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            help="Colour the output; auto honours NO_COLOR.",
        ),
        SharedOption("--no-progress", is_flag=True, help="No progress bars."),
    ]


def run_options() -> list[click.Parameter]:
    """What the commands that resolve a configuration share."""
    return [
        SharedOption("--config", metavar="FILE", type=click.Path(path_type=Path), help="Use FILE, not edgeq.toml."),
        SharedOption("--isolated", is_flag=True, help="Ignore edgeq.toml."),
        SharedOption("--seed", type=int, metavar="N", help="Seed of every random choice (default 0)."),
        SharedOption("--threads", type=int, metavar="N", help="CPU threads (default: the runtime's choice)."),
    ]


class EdgeqCommand(click.Command):
    """A command whose help lists the shared options apart from its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the two option sections."""
        _format_options(self, ctx, formatter)


class EdgeqGroup(click.Group):
    """The command group: commands in the order of a working day, shared options apart."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of registration."""
        del ctx
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the option sections, then the commands."""
        _format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def _format_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    for title, shared in (("Options", False), ("Shared options", True)):
        params = [p for p in command.get_params(ctx) if isinstance(p, SharedOption) is shared]
        if records := [record for p in params if (record := p.get_help_record(ctx)) is not None]:
            with formatter.section(title):
                formatter.write_dl(records)


def command(
    name: str, *, examples: str = "", settings: bool = False
) -> Callable[[Callable[..., int | None]], EdgeqCommand]:
    """Declare a command.

    The function gets a `Console` first, then the `Settings` if `settings` is set, then its own parameters by name; it
    returns an exit code or None for 0. Put `click.argument` and `click.option` below this decorator. The docstring is
    the help, up to its `Raises:`.

    Args:
        name: What the user types.
        examples: Lines that end the help.
        settings: Accept `--config`, `--isolated`, `--seed` and `--threads`.
    """

    def declare(body: Callable[..., int | None]) -> EdgeqCommand:
        own = list(reversed(body.__dict__.pop("__click_params__", [])))

        def run(**values: object) -> int | None:
            kept: dict[str, Any] = click.get_current_context().meta.get(_META, {})
            first: list[object] = [Console(talk_from(kept))]
            if settings:
                first.append(Settings(**{k: kept[k] for k in ("config", "isolated", "seed", "threads") if k in kept}))
            return body(*first, **values)

        shared = talk_options() + (run_options() if settings else [])
        # \b keeps click from joining the lines of the examples.
        epilog = f"\b\nExamples:\n{_indent(examples)}" if examples else None
        help_text = inspect.cleandoc(body.__doc__ or "").split("\nRaises:")[0]  # 3.13 strips the indent, others do not
        return EdgeqCommand(
            name, callback=run, params=[*own, *shared], help=help_text, epilog=epilog, context_settings=HELP_NAMES
        )

    return declare


def talk_from(kept: Mapping[str, Any]) -> Talk:
    """The user's wishes from the shared options met so far, by parameter name."""
    return Talk(
        json=kept.get("json", False),
        quiet=kept.get("quiet", False),
        verbose=kept.get("verbose", False),
        color=kept.get("color", "auto"),
        progress=not kept.get("no_progress", False),
    )


def kept_options(ctx: click.Context) -> Mapping[str, Any]:
    """The shared options met so far."""
    kept: Mapping[str, Any] = ctx.meta.get(_META, {})
    return kept


def _indent(text: str) -> str:
    return "\n".join(f"  {line.strip()}" for line in text.strip().splitlines())
