"""Where panes go at each size of the terminal: one pure function of the size, the zoom and the number of devices."""

from __future__ import annotations

from dataclasses import dataclass

LEAST_WIDTH, LEAST_HEIGHT = 60, 16
TITLES = {1: "Devices", 2: "Models", 3: "Data", 4: "Queue", 5: "Sessions", 6: "Nodes", 7: "Events"}
_SPLITS = ((200, (76, 66, 58)), (160, (62, 50, 48)), (120, (42, 40, 38)))
LANES = 8
"""The pane of the fleet's lanes, above the queue when that is in full."""


@dataclass(frozen=True, slots=True)
class Box:
    """A pane's size; -1 is all that is left."""

    pane: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of boxes from top to bottom, between the totals and the echo."""

    rows: tuple[tuple[Box, ...], ...]
    has_tabs: bool = False
    too_small: bool = False


def arrange(width: int, height: int, zoom: int, devices: int) -> Layout:
    """`zoom` 0 is the overview, else the pane in full; `devices` is how many rows all devices and nodes would take."""
    if width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return Layout((), too_small=True)
    small = width < 100 or height < 30
    free = height - 3 - small
    if zoom == 4:
        lanes = min(devices + 3, int(free * 0.62)) if devices else 0
        if lanes < 5 or free - lanes < 6:
            return Layout(((Box(4, -1, free),),), has_tabs=small)
        return Layout(((Box(LANES, -1, lanes),), (Box(4, -1, free - lanes),)), has_tabs=small)
    if zoom:
        return Layout(((Box(zoom, -1, free),),), has_tabs=small)
    if small:
        return Layout(((Box(1, -1, free),),), has_tabs=True)
    top = max(7, min(devices + 3, round(free * 21 / 37)))
    for least, (models, queue, data) in _SPLITS:
        if width >= least:
            spare = width - models - queue - data
            models += spare - 2 * (spare // 3)
            widths = (Box(2, models, free - top), Box(4, queue + spare // 3, free - top), Box(3, -1, free - top))
            return Layout(((Box(1, -1, top),), widths))
    models = round(46 * width / 100)
    return Layout(((Box(1, -1, top),), (Box(2, models, free - top), Box(4, -1, free - top))))
