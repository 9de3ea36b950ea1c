"""Where models are and where they are about to be: GPUs, servers, and moves of a model onto a set of GPUs.

A move claims a set of GPUs for a model. It waits until what is on them has run out, ends the servers there (it is *fixed*
then, and cannot be called off any more) and loads.
"""

from __future__ import annotations

from collections.abc import Iterable

from gswarm.scheduler.strategies.memory import Host
from gswarm.scheduler.strategies.pieces import Copy, Line, Move, Place, together
from gswarm.scheduler.strategy import Device, Instruction, Load, Server

COOLDOWN_S = 60.0
"""How long a model that failed to load on a device is not tried there again."""
USABLE = 0.9
"""Share of a shared device's memory that is planned with."""


class Fleet:
    """All of it. What is to be done about it goes into `out`."""

    def __init__(self) -> None:
        self.out: list[Instruction] = []
        self.touched: dict[str, Line] = {}
        """Models that may start something."""
        self.lines: dict[str, Line] = {}
        self.places: dict[str, Place] = {}
        self.copies: dict[str, Copy] = {}
        self.free: dict[str, Place] = {}
        """GPUs with no server and no move; the shared devices are apart."""
        self.shared: dict[str, Place] = {}
        self.idle: dict[str, Copy] = {}
        """Servers of ours on GPUs that run nothing and are in no move."""
        self.cooling: dict[tuple[str, str], float] = {}
        self.host = Host(self._demand)
        self._count = 0

    def line(self, name: str) -> Line:
        """The model of this name."""
        found = self.lines.get(name)
        if found is None:
            found = self.lines[name] = Line(name)
        return found

    def _demand(self, name: str) -> float:
        # A method, not a function made here: in a copy of the fleet it asks the copy.
        return self.line(name).demand

    def takes(self, line: Line, place: Place) -> bool:
        """Whether the model could be loaded there at all."""
        return line.model is not None and place.device.id in line.devices and not self._cools(line, place)

    def _cools(self, line: Line, place: Place) -> bool:
        return bool(self.cooling) and (line.name, place.device.id) in self.cooling

    def can_place(self, line: Line) -> bool:
        """Whether the model is somewhere, or could be brought up without ending what is not ours or out of reach."""
        if line.copies or line.moves:
            return True
        if any(self.takes(line, p) for p in self.shared.values()):
            return True
        return bool(
            together((p for p in self.places.values() if self._can_empty(p) and self.takes(line, p)), line.width)
        )

    @staticmethod
    def _can_empty(place: Place) -> bool:
        copy = place.copy
        return not place.device.shared and (copy is None or (copy.server.ours and copy.server.reachable))

    def round_of_loads(self) -> float:
        """How many tasks take as long as switching to every model once."""
        return sum(line.switch_s / line.run_s for line in self.lines.values() if line.model is not None and line.run_s)

    # Moves

    def begin(self, line: Line, places: list[Place], reason: str, now: float) -> Move:
        """Claim GPUs for a model."""
        move = Move(line, sorted(places, key=lambda p: p.number), reason, now)
        line.moves.append(move)
        for place in places:
            place.move = move
            self.free.pop(place.device.id, None)
            for copy in place.copies:
                move.left[copy.server.id] = copy
                copy.move = move
                copy.line.open.pop(copy.server.id, None)
                self.idle.pop(copy.server.id, None)
        self.proceed(move, now)
        return move

    def proceed(self, move: Move, now: float) -> None:
        """Make room if nothing runs there any more."""
        if move.is_fixed or any(c.running or not c.server.ready for c in move.left.values()):
            return
        move.is_fixed = True
        move.line.coming += 1
        for copy in move.left.values():
            self.send_away(copy, f"makes room for {move.line.name}" if move.reason else "")
        if not move.left:
            self._load(move, now)

    def send_away(self, copy: Copy, reason: str) -> None:
        """End a server, or put it to sleep."""
        self._leave(copy)
        self.host.send_away(copy.server.id, copy.line.model, reason, self.out)
        self._costs(copy.line)

    def _costs(self, line: Line) -> None:
        """What it costs to switch to the model, after it went to sleep or woke."""
        if self.host.room and line.model is not None:
            line.switch_s = self.host.load_s(line.model) + self.host.away_s(line.model)

    def _load(self, move: Move, now: float) -> None:
        move.began = now
        if self.host.brought_up(move.line.name):
            self._costs(move.line)
        self.out.append(Load(move.line.name, tuple(p.device.id for p in move.places), move.reason))

    def call_off(self, move: Move) -> None:
        """Give its GPUs back to what is there."""
        move.line.moves.remove(move)
        if move.is_fixed:
            move.line.coming -= 1
        for place in move.places:
            if place.move is move:
                place.move = None
            if not place.copies and place.device.id in self.places and not place.device.shared:
                self.free[place.device.id] = place
        for copy in move.left.values():
            copy.move = None
            self.settle(copy)

    def load_beside(self, line: Line, place: Place, reason: str, now: float) -> None:
        """Load on a shared device, beside what is there."""
        move = Move(line, [place], reason, now)
        move.is_fixed = True
        line.coming += 1
        line.moves.append(move)
        self._load(move, now)

    def has_room(self, line: Line, place: Place, without: Copy | None = None) -> bool:
        """Whether the model fits on a shared device, once `without` has left."""
        taken = sum(c.server.memory // max(1, len(c.places)) for c in place.copies if c is not without)
        for other in self.lines.values():
            taken += sum(other.model.memory for m in other.moves if other.model and place in m.places)
        return line.model is not None and taken + line.model.memory <= place.device.memory * USABLE

    # Servers

    def settle(self, copy: Copy) -> None:
        """Note what a server is good for, after any change to it."""
        key, line = copy.server.id, copy.line
        if copy.can_start and key in line.copies:
            line.open[key] = copy
            if line.ready.count:
                self.touched[line.name] = line
        else:
            line.open.pop(key, None)
        s = copy.server
        can_leave = s.ours and s.ready and s.reachable and copy.move is None and not copy.places[0].device.shared
        if can_leave and not copy.running:
            self.idle[key] = copy
        else:
            self.idle.pop(key, None)

    def server_is(self, server: Server, now: float) -> Copy | None:
        """A server appeared or changed. None: its devices are not known."""
        copy = self.copies.get(server.id)
        line = self.line(server.model)
        if copy is None:
            places = [self._place_of(d) for d in server.devices]
            if not places:
                return None
            copy = self.copies[server.id] = Copy(server, line, places, now)
            copy.ends = now + line.switch_s
            for place in places:
                if copy not in place.copies:
                    place.copies = (*place.copies, copy)
                self.free.pop(place.device.id, None)
            for move in line.moves:
                if move.is_fixed and not move.left and set(move.places) == set(places):
                    copy.began = move.began
                    copy.ends = move.began + line.switch_s
                    line.moves.remove(move)
                    line.coming -= 1
                    for place in places:
                        place.move = None
                    break
        elif server.id in line.copies:
            line.slots -= copy.server.slots
        if server.ready and not copy.server.ready:
            copy.ends = now
        copy.server = server
        if server.reachable and not copy.is_leaving:
            line.copies[server.id] = copy
            line.slots += server.slots
        else:
            line.copies.pop(server.id, None)
        if not server.reachable and copy.move is not None and not copy.move.is_fixed:
            self.call_off(copy.move)  # no one knows when it would be gone
        self.settle(copy)
        return copy

    def _place_of(self, device: str) -> Place:
        place = self.places.get(device)
        if place is None:  # told of later, when it is free
            place = Place(Device(device, 0), self._count)
            self.places[device] = place
            self._count += 1
        return place

    def _leave(self, copy: Copy) -> None:
        """It is on its way out."""
        copy.is_leaving = True
        if copy.line.copies.pop(copy.server.id, None) is not None:
            copy.line.slots -= copy.server.slots
        copy.line.open.pop(copy.server.id, None)

    def server_gone(self, server: str, failed: bool, now: float, asleep: bool = False) -> Copy | None:
        """A server is no more."""
        copy = self.copies.pop(server, None)
        if self.host.gone(server, asleep) and copy is not None:
            self._costs(copy.line)
        if copy is None:
            return None
        self._leave(copy)
        self.idle.pop(server, None)
        if failed:
            self._cool(copy.line, copy.places, now)
        for place in copy.places:
            place.copies = tuple(c for c in place.copies if c is not copy)
            if place.move is None and not place.copies and not place.device.shared:
                self.free[place.device.id] = place
        if (move := copy.move) is not None:
            move.left.pop(server, None)
            if not move.is_fixed:
                self.proceed(move, now)
            elif not move.left:
                self._load(move, now)
        return copy

    def refused(self, model: str, device: str, now: float) -> None:
        """A load was not carried out."""
        line, place = self.line(model), self.places.get(device)
        for move in line.moves:
            if move.is_fixed and not move.left and (place is None or place in move.places):
                self.call_off(move)
                self._cool(line, move.places, now)
                return

    def _cool(self, line: Line, places: Iterable[Place], now: float) -> None:
        for place in places:
            self.cooling[line.name, place.device.id] = now + COOLDOWN_S

    # Devices

    def device_is(self, device: Device) -> None:
        """A device appeared or changed."""
        place = self.places.get(device.id)
        if place is None:
            place = self.places[device.id] = Place(device, self._count)
            self._count += 1
            for copy in self.copies.values():  # it was away, and what is on it was not
                if any(known.device.id == device.id for known in copy.places):
                    copy.places = [place if known.device.id == device.id else known for known in copy.places]
                    place.copies = (*place.copies, copy)
        place.device = device
        if device.shared:
            self.shared[device.id] = place
        elif not place.copies and place.move is None:
            self.free[device.id] = place

    def device_gone(self, device: str) -> None:
        """A device can no longer be used."""
        place = self.places.pop(device, None)
        if place is not None:
            self.free.pop(device, None)
            self.shared.pop(device, None)
            if place.move is not None:
                self.call_off(place.move)
