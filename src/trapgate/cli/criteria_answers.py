"""The answers of criteria commands: in words, as JSON, Markdown or a page, with an exit status."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from trapgate.cli.criteria_options import Form, JsonOption
from trapgate.cli.documents import HtmlOption, MarkdownOption, shown
from trapgate.cli.terminal import fail
from trapgate.errors import TrapgateError

if TYPE_CHECKING:
    from trapgate.criteria import Definition
    from trapgate.trace.document import Document


class Reportable(Protocol):
    """What can be told in words, in JSON and as a page."""

    def lines(self) -> list[str]:
        """In words."""

    def document(self) -> dict[str, Any]:
        """For JSON."""

    def page(self) -> Document:
        """For browsers and mails."""


@dataclass(frozen=True)
class Answer:
    """What a command found, in words and for JSON, and its exit status."""

    lines: Callable[[], list[str]]
    document: Callable[[], dict[str, Any]]
    status: int = 0
    page: Callable[[], Document] | None = None


def answered(command: Callable[..., Answer]) -> Callable[..., None]:
    """A command with the option --json that prints its answer, or complains in one line
    (in JSON, too). Status 1 if there is no answer, 2 for wrong usage or input.
    """

    @wraps(command)
    def run(*, as_json: bool, markdown: bool, html: Path | None, **given: Any) -> None:
        from trapgate.criteria import InexpressibleError, UndecidedError

        try:
            try:
                answer = command(**given)
                if shown(answer.page, markdown=markdown, html=html):
                    raise typer.Exit(answer.status)
            except TrapgateError as error:
                if as_json:
                    print(json.dumps(_error_document(error), indent=2))
                if isinstance(error, InexpressibleError | UndecidedError):
                    raise typer.Exit(1) from fail(str(error))
                raise fail(str(error)) from None
            if as_json:
                print(json.dumps(answer.document(), indent=2))
            else:
                for line in answer.lines():
                    print(line)
        except BrokenPipeError:
            raise typer.Exit(1) from None
        raise typer.Exit(answer.status)

    asked = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(name, _KEYWORD, default=default, annotation=annotation)
        for name, default, annotation in (
            ("markdown", False, MarkdownOption),
            ("html", None, HtmlOption),
            ("as_json", False, JsonOption),
        )
    ]
    run.__signature__ = asked.replace(  # type: ignore[attr-defined]
        parameters=[*asked.parameters.values(), *options]
    )
    return run


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _error_document(error: TrapgateError) -> dict[str, Any]:
    facts = {
        key: [f"{code:#x}" for code in value] if key in {"core", "codes"} else list(value)
        for key, value in vars(error).items()
        if isinstance(value, tuple)
    }
    kind = type(error).__name__.removesuffix("Error").lower()
    return {"error": kind, "message": str(error), **facts}


def defined(definition: Definition, form: Form, output: Path | None, told: Reportable) -> Answer:
    """The answer of a command that defines fields: these, then what else it has to tell."""
    if output is not None:
        write_fields(output, definition.toml())
    forms = {"toml": definition.toml, "c": definition.c, "vmwrite": definition.vmwrites}

    def lines() -> list[str]:
        if form is not Form.all:
            return [forms[form.value]().rstrip("\n")]
        printed = definition.lines()
        for name, made in forms.items():
            text = "\n".join(line for line in made().splitlines() if not line.startswith("#"))
            printed += ["", f"{name}:", text]
        return printed + (["", *told.lines()] if told is not definition else [])

    return Answer(lines, told.document, page=told.page)


def write_fields(output: Path, text: str) -> None:
    """Write a TOML file of fields."""
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TrapgateError(
            f"{output}: cannot be written ({error.strerror}); give a file in a writable folder"
        ) from None
