"""The documents: every link in them leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def anchors(document: Path) -> set[str]:
    """Those that GitHub makes of headings."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)|\b([\w./-]+\.md#[\w-]+)", document.read_text()):
        link = next(filter(None, target))
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        # What is said in an example is seen from the repository.
        found = next((base / path for base in (document.parent, ROOT) if (base / path).exists()), None)
        if found is None or (anchor and anchor not in anchors(found if path else document)):
            lost.append(link)
    assert not lost
