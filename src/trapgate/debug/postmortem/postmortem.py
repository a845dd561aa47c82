"""A post-mortem: scenes in the order of events, remedies, registers; as text, JSON and HTML."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from textwrap import wrap

_WIDTH = 100


@dataclass(frozen=True)
class Scene:
    """One event: what happened, and what the processor looked at and found."""

    title: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class PostMortem:
    """How a guest came to its end.

    `end` says what the end was, and `headline` why, in a sentence. `before` are the last events
    before the first scene. `remedies` probably help, the likeliest first. `registers` are the
    guest's by name, `branches` those taken last (the latest last), `output` its last lines.
    """

    end: str
    headline: str
    scenes: tuple[Scene, ...] = ()
    remedies: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    registers: dict[str, int] = field(default_factory=dict)
    branches: tuple[str, ...] = ()
    output: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        return self.html()

    def lines(self) -> Iterator[str]:
        """The post-mortem as a screenful of text."""
        yield from _folded(f"{self.end}: {self.headline}", "", "  ")
        if self.before:
            yield "before that:"
            for line in self.before:
                yield from _folded(line, "  ", "    ")
        for number, scene in enumerate(self.scenes, start=1):
            yield from _folded(scene.title, f"{number}. ", "   ")
            for line in scene.lines:
                yield from _folded(line, "   - ", "     ")
        for remedy in self.remedies:
            yield from _folded(remedy, "what probably helps: ", "  ")
        names = list(self.registers)
        for start in range(0, len(names), 4):
            yield "  ".join(
                f"{name}={self.registers[name]:X}H" for name in names[start : start + 4]
            )
        if self.branches:
            yield "the last branches:"
            for line in self.branches:
                yield from _folded(line, "  ", "    ")
        if self.output:
            yield "the guest's last words:"
            yield from (f"  {line}" for line in self.output)

    def html(self) -> str:
        """The post-mortem as a part of a page."""
        from html import escape  # a run that prints its post-mortem does without

        from trapgate.trace.html import table

        parts = [f"<h1>{escape(self.end)}: {escape(self.headline)}</h1>"]
        parts += [
            f'<p class="remedy">What probably helps: {escape(words)}</p>' for words in self.remedies
        ]
        parts += _items("Before that:", self.before)
        parts.append("<ol>")
        for scene in self.scenes:
            lines = "".join(f"<li>{escape(line)}</li>" for line in scene.lines)
            parts.append(f"<li>{escape(scene.title)}{f'<ul>{lines}</ul>' if lines else ''}</li>")
        parts.append("</ol>")
        parts.append(
            table(
                ("register", "value"),
                [(n, f"{value:X}H") for n, value in self.registers.items()],
            )
        )
        parts += _items("The last branches:", self.branches)
        if self.output:
            parts.append(
                f"<p>The guest's last words:</p><pre>{escape(chr(10).join(self.output))}</pre>"
            )
        return "".join(parts)

    def values(self) -> dict[str, object]:
        """The post-mortem for programs."""
        return {
            "end": self.end,
            "headline": self.headline,
            "before": list(self.before),
            "scenes": [{"title": scene.title, "lines": list(scene.lines)} for scene in self.scenes],
            "remedies": list(self.remedies),
            "registers": self.registers,
            "branches": list(self.branches),
            "output": list(self.output),
        }


def _folded(text: str, first: str, rest: str) -> list[str]:
    return wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _items(title: str, lines: tuple[str, ...]) -> list[str]:
    from html import escape

    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return [f"<p>{title}</p><ul>{items}</ul>"] if lines else []
