"""Run the code of every page of the guide and keep the pictures that it draws: ``python docs/make_pictures.py [PAGE ...]``.

A page's code saves ``NAME.png`` in the working directory, and the page shows ``../images/guide/NAME.png``: the picture in the
guide is the one that its code makes. So are those of ``tiling.md`` and ``volumes-reconstruct.md``, beside the guide.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

GUIDE = Path(__file__).parent / "guide"
PAGES = (*sorted(GUIDE.glob("*.md")), *(GUIDE.parent / f"{name}.md" for name in ("tiling", "volumes-reconstruct")))


def code_of(page: Path) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def pictures_of(page: Path) -> list[str]:
    """Return the pictures that a page shows, relative to it."""
    return re.findall(r"\]\(((?:\.\./)?images/[\w/-]+\.png)\)", page.read_text())


def main() -> None:
    """Run the command."""
    names = set(sys.argv[1:])
    for page in PAGES:
        if names and page.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            before = Path.cwd()
            os.chdir(folder)
            try:
                space: dict[str, object] = {}
                for block in code_of(page):
                    exec(compile(block, str(page), "exec"), space)
                for picture in pictures_of(page):
                    shutil.copy(Path(folder) / Path(picture).name, page.parent / picture)
            finally:
                os.chdir(before)
        print(page.stem, *pictures_of(page))


if __name__ == "__main__":
    main()
