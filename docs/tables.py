"""Write the tables of parts in the docs from the registry. Run after a change: python docs/tables.py"""

from __future__ import annotations

import re
from pathlib import Path

from advect.core import registry


def main() -> None:
    for page in sorted(Path(__file__).parent.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = re.sub(r"(<!-- parts: (\S+) -->\n).*?(\n?<!-- end -->)", fill, text, flags=re.S)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(f"{page.name}: tables written anew")


def fill(match: re.Match[str]) -> str:
    return f"<!-- parts: {match[2]} -->\n{registry.markdown_table(match[2])}\n<!-- end -->"


if __name__ == "__main__":
    main()
