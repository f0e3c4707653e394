"""
Files of the repository that lie outside of `docs/` as pages of the site, where they are linked or in the navigation.

A link is written as it works in the repository, such as `../benchmarks/README.md`. On the site it leads to the page
made of that file: Markdown as it is, a notebook as its cells. A link to anything else in the repository loses its link,
as the site holds no such page.
"""

import json
import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[2]
PAGES = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "MODEL_CARD.md", "SECURITY.md"),
    *("benchmarks/README.md", "demo/web/README.md"),
)
PICTURES = ("benchmarks/compare.png",)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[\w-]+)?\)")
METADATA = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def on_files(files, config):
    for name in PAGES:
        text = METADATA.sub("", (ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, _on_the_site(name), content=text))
    for name in PICTURES:
        files.append(File.generated(config, _on_the_site(name), abs_src_path=str(ROOT / name)))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        name = f"notebooks/{notebook.name}"
        copy = File.generated(config, name, abs_src_path=str(notebook), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(copy)
        files.append(File.generated(config, _on_the_site(name), content=_notebook(notebook)))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    original = next((name for name in _outside() if _on_the_site(name) == here), f"docs/{here}")

    def replace(link: re.Match) -> str:
        picture, text, target, anchor = link.groups()
        in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(original), target))
        if in_repository.startswith("docs/"):
            on_the_site = in_repository.removeprefix("docs/")
        elif target == posixpath.basename(here).replace(".md", ".ipynb"):  # the notebook itself, to download
            on_the_site = target if posixpath.dirname(here) == "" else f"{posixpath.dirname(here)}/{target}"
        else:
            on_the_site = _on_the_site(in_repository)
        if files.get_file_from_path(on_the_site) is None:
            if not (ROOT / in_repository).exists():
                raise FileNotFoundError(f"{original}: there is no {in_repository}")
            return text
        relative = os.path.relpath(on_the_site, posixpath.dirname(here) or ".").replace(os.sep, "/")
        return f"{picture}[{text}]({relative}{anchor or ''})"

    return LINK.sub(replace, markdown)


def _outside() -> list[str]:
    return [*PAGES, *PICTURES, *(f"notebooks/{file.name}" for file in (ROOT / "notebooks").glob("*.ipynb"))]


def _on_the_site(name: str) -> str:
    """The path on the site of a file of the repository: README.md of the top is its first page."""
    if name == "README.md":
        return "index.md"
    if name.endswith(".ipynb"):
        return name.removesuffix(".ipynb") + ".md"
    if "/" in name:
        return name.replace("README.md", "index.md")
    return f"project/{name.lower().replace('_', '-')}" if name in PAGES else name


def _notebook(path: Path) -> str:
    """A notebook's cells as Markdown, with a link to the notebook behind its title."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    title, _, rest = parts[0].partition("\n")
    link = f"Download it: [{path.name}]({path.name})"
    return "\n\n".join([title, link, rest.strip(), *parts[1:]]) + "\n"
