"""The colours of an evaluation's figures and page, light and dark, and how an SVG takes on those of its page.

Knows colours and text; neither matplotlib nor figures.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree

# Each on white and on near black. Strategies after Okabe & Ito (2008); experiences, which have an order, after viridis
# without the end that is lost on the ground.
INK, MUTED, GRID, PAPER = "#1c2024", "#60676f", "#d5d9de", "#ffffff"
_STRATEGIES: Final = (
    ("#0072b2", "#56a8e0"),
    ("#d55e00", "#f08a3c"),
    ("#009e73", "#2fc598"),
    ("#b8578d", "#e08fbd"),
    ("#a87400", "#e6b030"),
    ("#4d4d99", "#a3a3ea"),
)
_EXPERIENCES: Final = (
    ("#440154", "#2c738e"),
    ("#482071", "#25838e"),
    ("#443b84", "#1f948c"),
    ("#3a548c", "#21a585"),
    ("#2f6b8e", "#31b57b"),
    ("#27808e", "#50c46a"),
    ("#1f958b", "#77d153"),
    ("#24aa83", "#a2da37"),
    ("#40bd72", "#d2e21b"),
    ("#6ece58", "#fde725"),
)
_COLOURS: Final = {
    "ink": (INK, "#e8eaed"),
    "muted": (MUTED, "#9aa4ae"),
    "grid": (GRID, "#363c43"),
    "paper": (PAPER, "#14171a"),
    **{f"strategy{index}": pair for index, pair in enumerate(_STRATEGIES)},
    **{f"experience{index}": pair for index, pair in enumerate(_EXPERIENCES)},
}
_VARIABLE_OF: Final = {light: f"var(--{name})" for name, (light, _) in _COLOURS.items()}


def of_strategy(index: int) -> str:
    """The colour of the index-th strategy; after six they come round again, so lines are named, too."""
    return _STRATEGIES[index % len(_STRATEGIES)][0]


def of_experience(index: int, n: int) -> str:
    """The colour of the index-th of n experiences, from the first to the last."""
    return _EXPERIENCES[round(index * (len(_EXPERIENCES) - 1) / max(1, n - 1))][0]


def variables(*, dark: bool) -> str:
    """The colours as CSS declarations."""
    return " ".join(f"--{name}: {pair[dark]};" for name, pair in _COLOURS.items())


def themed(svg: bytes, name: str, label: str) -> str:
    """An SVG of matplotlib as a page takes it in: our colours as its variables, its font, ids that begin with `name`.

    Without prologue, metadata, style sheet and namespaces: HTML declares them, and nothing is left that names a host.
    `label` is what is read out instead of the picture.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _bare(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _bare(element.tag)
        element.attrib = {_bare(key): _themed(_bare(key), text, name) for key, text in element.attrib.items()}
        if element.tag == "g":
            element.attrib.pop("id", None)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _bare(name: str) -> str:
    return name.rpartition("}")[2]


def _themed(key: str, text: str, name: str) -> str:
    """One attribute: its colours, references and font."""
    if key == "id":
        return f"{name}-{text}"
    if key == "style":
        text = re.sub(r"#[0-9a-f]{6}\b", lambda match: _VARIABLE_OF.get(match[0], match[0]), text)
        text = re.sub(r"font-family: [^;]*", "font-family: inherit", text)
    return re.sub(r"(^|\()#", rf"\1#{name}-", text) if key in ("href", "clip-path") else text
