"""Docstrings in the style of transformers, as mkdocstrings reads them: types without marks, names as links."""

import re

import griffe

PACKAGE = "transformers_flashsloth"
# An entry of `Args`: "name (`type`, *optional*, defaults to 1): ..."
ENTRY = re.compile(r"^( +)([\w ,]+?) \((.+?)\):(?= |$)", re.MULTILINE)
DEFAULT = re.compile(r"(^ +[\w ,]+? \(.+?), defaults to .+?\):(?= |$)", re.MULTILINE)
NAME = re.compile(r"\[`~?([\w.]+)`\](?![\[(])")


class TransformersStyle(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            text = ENTRY.sub(_entry, obj.docstring.value)
            if obj.is_function:  # its signature says so too
                text = DEFAULT.sub(r"\1):", text)
            obj.docstring.value = _linked(text, obj)


def _entry(match: re.Match) -> str:
    indentation, name, kind = match.groups()
    plain = re.sub(r"\[?`~?([^`]*)`\]?", r"\1", kind).replace("*optional*", "optional")
    return f"{indentation}{name} ({plain}):"


def _linked(text: str, obj: griffe.Object) -> str:
    package = obj.package

    def link(match: re.Match) -> str:
        name = match[1]
        first, _, member = name.partition(".")
        is_public = first in (package.exports or []) and (not member or member in package[first].members)
        return f"[`{name}`][{PACKAGE}.{name}]" if is_public else f"`{name}`"

    return NAME.sub(link, text)
