"""The console's colours: palettes, the paint that mixes them once into styles, and the Textual themes made of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from rich.color import Color
from rich.style import Style

if TYPE_CHECKING:
    from textual.theme import Theme


class Form(Enum):
    """How a lane block is told apart: by a tinted background, by the terminal's own colours, or by brackets."""

    TINT = "tint"
    ANSI = "ansi"
    MONO = "mono"


@dataclass(frozen=True, slots=True)
class Palette:
    """One theme's roles. Colours are #rrggbb, or the names of the terminal's sixteen for the ansi and mono forms."""

    name: str
    background: str
    text: str
    strong: str
    dim: str
    faint: str
    ready: str
    changing: str
    failed: str
    focus: str
    selection: str
    border: str
    bar: str
    track: str
    hues: tuple[str, ...]
    form: Form = Form.TINT
    is_dark: bool = True


DARK = Palette(
    name="gswarm-dark",
    background="#0f1419",
    text="#d6dde6",
    strong="#ffffff",
    dim="#8f9dad",
    faint="#748393",
    ready="#5fd38d",
    changing="#f2b84b",
    failed="#ff7a70",
    focus="#4cb3ff",
    selection="#1c3247",
    border="#33404d",
    bar="#9fb2c6",
    track="#26313c",
    hues=("#eba530", "#56d4ff", "#1a976f", "#fef647", "#7b6ff7", "#d65f35", "#bd8eb3", "#b7e0d1"),
)
LIGHT = Palette(
    name="gswarm-light",
    background="#fbfbf9",
    text="#22282f",
    strong="#000000",
    dim="#5d6873",
    faint="#69747f",
    ready="#117a3d",
    changing="#8a5a00",
    failed="#c0271d",
    focus="#0b66c3",
    selection="#d7e8fa",
    border="#c3c9d0",
    bar="#55677a",
    track="#ccd2d9",
    hues=("#9b6600", "#1372cb", "#00704f", "#635e1c", "#2b3fd0", "#a81005", "#a1458b", "#4a545e"),
    is_dark=False,
)
CONTRAST = Palette(
    name="gswarm-contrast",
    background="#000000",
    text="#ffffff",
    strong="#ffffff",
    dim="#d0d6dc",
    faint="#9aa5b1",
    ready="#5cff9d",
    changing="#ffd24a",
    failed="#ff8f87",
    focus="#ffff00",
    selection="#00408a",
    border="#9aa5b1",
    bar="#ffffff",
    track="#303030",
    hues=("#e8c930", "#7fb7f7", "#10f49a", "#f3ff7e", "#9a86ff", "#ff7151", "#fb90c0", "#ceffff"),
)
ANSI = Palette(
    name="gswarm-ansi",
    background="default",
    text="default",
    strong="bright_white",
    dim="default",
    faint="bright_black",
    ready="green",
    changing="yellow",
    failed="red",
    focus="bright_blue",
    selection="blue",
    border="bright_black",
    bar="default",
    track="bright_black",
    hues=("yellow", "cyan", "green", "bright_yellow", "blue", "red", "magenta", "white"),
    form=Form.ANSI,
)
MONO = Palette(
    name="gswarm-mono",
    background="default",
    text="default",
    strong="default",
    dim="default",
    faint="default",
    ready="default",
    changing="default",
    failed="default",
    focus="default",
    selection="default",
    border="default",
    bar="default",
    track="default",
    hues=("default",) * 8,
    form=Form.MONO,
)
PALETTES = {palette.name: palette for palette in (DARK, LIGHT, CONTRAST, ANSI, MONO)}
SHORT_NAMES = {name.removeprefix("gswarm-"): name for name in PALETTES}


def mix(over: str, under: str, share: float) -> str:
    """`share` of `over` on top of `under`, both #rrggbb."""
    pairs = zip(bytes.fromhex(over[1:]), bytes.fromhex(under[1:]), strict=True)
    return "#" + "".join(f"{round(a * share + b * (1 - share)):02x}" for a, b in pairs)


class Paint:
    """Styles by name, mixed once. A name is a role ("dim"), or a model's form and hue number ("now3").

    `+` behind a name sets it on the selection, `~` makes it dim because what it shows is stale, `*` makes it bold.
    """

    def __init__(self, palette: Palette, *, is_ascii: bool = False) -> None:
        self.palette, self.is_ascii = palette, is_ascii
        self.form = palette.form
        self._styles: dict[str, Style] = {}

    def __getitem__(self, name: str) -> Style:
        style = self._styles.get(name)
        if style is None:
            style = self._styles[name] = self._make(name)
        return style

    def _make(self, name: str) -> Style:
        if name.endswith("+"):
            return self._selected(self[name[:-1]])
        if name.endswith("*"):
            return self[name[:-1]] + Style(bold=True)
        if name.endswith("~"):
            return self._stale(self[name[:-1]])
        p = self.palette
        background = Color.parse(p.background)
        if name[-1].isdigit():
            return self._hued(name.rstrip("0123456789"), int(name[-1]) % len(p.hues), background)
        if name == "key":
            return Style(color=Color.parse(p.focus), bgcolor=background, bold=True)
        if name == "title":
            return Style(color=Color.parse(p.strong), bgcolor=background, bold=True)
        color = Color.parse(getattr(p, "faint" if name == "load" else name))
        is_dim = (self.form is Form.MONO and name in ("dim", "faint", "track", "load")) or (
            self.form is Form.ANSI and name == "dim"
        )
        return Style(color=color, bgcolor=background, bold=True if name == "strong" else None, dim=is_dim or None)

    def _hued(self, form: str, number: int, background: Color) -> Style:
        p, hue = self.palette, self.palette.hues[number]
        if self.form is Form.MONO:
            return Style(color=Color.parse("default"), bgcolor=background, bold=form in ("now", "nowedge") or None)
        if self.form is Form.ANSI:
            if form == "now":
                return Style(color=Color.parse("black"), bgcolor=Color.parse(hue))
            if form == "nowedge":
                return Style(color=Color.parse(hue), bgcolor=Color.parse(hue))
            return Style(color=Color.parse(hue), bgcolor=background)
        if form in ("now", "nowedge"):
            under = Color.parse(mix(hue, p.background, 0.36))
            if form == "now":
                return Style(color=Color.parse(p.strong), bgcolor=under, bold=True)
            return Style(color=Color.parse(hue), bgcolor=under)
        if form in ("later", "lateredge"):
            under = Color.parse(mix(hue, p.background, 0.20))
            color = hue if form == "lateredge" else mix(hue, p.strong, 0.75)
            return Style(color=Color.parse(color), bgcolor=under)
        return Style(color=Color.parse(hue), bgcolor=background)

    def _selected(self, style: Style) -> Style:
        if self.form is Form.MONO:
            return style + Style(reverse=True)
        if self.form is Form.ANSI:
            return Style(color=Color.parse("bright_white"), bgcolor=Color.parse(self.palette.selection), bold=True)
        return style + Style(bgcolor=Color.parse(self.palette.selection))

    def _stale(self, style: Style) -> Style:
        if self.form is Form.TINT:
            return Style(color=Color.parse(self.palette.faint), bgcolor=style.bgcolor)
        return Style(color=style.color if self.form is Form.ANSI else None, bgcolor=style.bgcolor, dim=True)


def themes() -> list[Theme]:
    """The palettes as Textual themes; the variables are what console.tcss names."""
    from textual.theme import BUILTIN_THEMES, Theme

    native = BUILTIN_THEMES["ansi-dark"].variables

    def css(color: str) -> str:
        return color if color.startswith("#") else f"ansi_{color}"

    return [
        Theme(
            name=p.name,
            primary=css(p.focus) if p.form is not Form.MONO else "ansi_default",
            secondary=css(p.focus),
            warning=css(p.changing),
            error=css(p.failed),
            success=css(p.ready),
            accent=css(p.focus),
            foreground=css(p.text),
            background=css(p.background),
            surface=css(p.background),
            panel=css(p.background),
            dark=p.is_dark,
            ansi=p.form is not Form.TINT,
            variables={
                **(native if p.form is not Form.TINT else {}),
                "gs-border": css(p.border),
                "gs-focus": css(p.focus),
                "gs-dim": css(p.dim),
                "gs-faint": css(p.faint),
                "gs-text": css(p.text),
                "gs-strong": css(p.strong),
                "gs-selection": css(p.selection),
                "gs-changing": css(p.changing),
                "gs-failed": css(p.failed),
                "gs-ready": css(p.ready),
                "gs-background": css(p.background),
                "block-cursor-background": css(p.selection),
                "block-cursor-foreground": css(p.strong),
                "block-cursor-text-style": "bold",
                "input-cursor-background": css(p.text) if p.form is Form.TINT else "ansi_white",
                "input-cursor-foreground": css(p.background) if p.form is Form.TINT else "ansi_black",
                "input-selection-background": css(p.selection),
                "footer-key-foreground": css(p.focus),
            },
        )
        for p in PALETTES.values()
    ]
