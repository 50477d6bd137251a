"""Packs JavaScript files into the one text that a widget can have. Each file stays an ES module with names of its own.

anywidget imports the text of `_esm` from a blob URL, where `import "./words.js"` finds nothing. A bundler would join
the files, but needs Node, and a card must also work in a checkout and in an installation without the side panel. So the
text carries all files, and `load_modules.js` turns each into a blob URL in the browser, where imports are linked as
everywhere. A page has to permit that for anywidget already.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

LOADER: Final = Path(__file__).with_name("load_modules.js")


def packed(entry: Path) -> str:
    """An ES module with the default export of this one, which may import all files of its folder.

    Args:
        entry: Imports of it and of its neighbours are written `from "./name.js";`, and form no circle.
    """
    sources = {path.name: path.read_text("utf-8") for path in sorted(entry.parent.glob("*.js")) if path != LOADER}
    header = f"const SOURCES = {json.dumps(sources)};\nconst ENTRY = {json.dumps(entry.name)};\n"
    return header + LOADER.read_text("utf-8")
