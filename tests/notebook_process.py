"""Runs the code cells of a notebook, one after the other, installing nothing: `python notebook_process.py NOTEBOOK`."""

import json
import sys
from pathlib import Path


def main(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            source = "\n".join("" if line.startswith("%pip ") else line for line in source.split("\n"))
            exec(compile(source, f"{notebook.name}, {cell['id']}", "exec"), names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
