"""Changes to models and services as operations of the store: used by the RPCs and by the queue's tasks alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from gswarm.errors import InvalidError, NotFoundError, RefusedError
from gswarm.host.transaction import Transaction
from gswarm.model.backends import NAMES, backend
from gswarm.model.fitting import Offer, default_backend, fit
from gswarm.model.sources.source import check, simulated_size, without_secrets
from gswarm.names import check_name, near
from gswarm.units import size as show_size
from gswarm.v1 import cluster_pb2, common_pb2, models_pb2
from gswarm.v1.cluster_pb2 import Device, Node
from gswarm.v1.models_pb2 import Model, ModelVersion, Placement, Service

SIMULATED = cluster_pb2.DEVICE_KIND_SIMULATED
STORED = models_pb2.PLACEMENT_PHASE_STORED
GONE = (models_pb2.SERVICE_PHASE_STOPPED, models_pb2.SERVICE_PHASE_FAILED)


def resolve_devices(tx: Transaction, words: Iterable[str], *, nodes: frozenset[str] | None = None) -> list[Device]:
    """Devices by id, alias or short name; a short name must fit one node only. Raises NotFoundError, RefusedError."""
    known = list(tx.list(Device))
    found = []
    for word in words:
        exact = [d for d in known if word in (d.id, d.alias)]
        fitting = exact or [
            d for d in known if d.alias.partition(":")[2] == word and (nodes is None or not nodes or d.node in nodes)
        ]
        if not fitting:
            next_ = "name each with its own --device" if "," in word else near(word, (d.alias for d in known))
            raise NotFoundError(f"there is no device {word}", next=next_, field="device")
        if len(fitting) > 1:
            raise RefusedError(
                f"{word} could be {', '.join(sorted(d.alias for d in fitting)[:6])}",
                next="name one of them",
                field="device",
            )
        if fitting[0].phase == cluster_pb2.DEVICE_PHASE_LOST:
            raise RefusedError(
                f"{fitting[0].alias} is lost", why=fitting[0].detail, next="choose another device", field="device"
            )
        found.append(fitting[0])
    if len({d.id for d in found}) != len(found):
        raise InvalidError("a device is named twice", field="device")
    if len({d.node for d in found}) > 1:
        raise InvalidError("one service runs on one node", why=", ".join(d.alias for d in found), field="device")
    return found


def find_model(tx: Transaction, name: str) -> Model:
    """A private copy of a model. Raises NotFoundError with near names."""
    model = tx.edit(Model, name)
    if model is None:
        raise NotFoundError(
            f"there is no model {name}", next=near(name, (m.name for m in tx.list(Model))), field="model"
        )
    return model


def find_version(model: Model, version: str) -> ModelVersion:
    """A version of it, the default when none is named. Raises NotFoundError."""
    wanted = version or model.default_version
    for known in model.versions:
        if known.version == wanted:
            return known
    raise NotFoundError(
        f"{model.name} has no version {wanted}", next=near(wanted, (v.version for v in model.versions)), field="version"
    )


def download(request: models_pb2.DownloadRequest) -> Callable[[Transaction], models_pb2.DownloadResponse]:
    """Register a version and ask nodes to fetch it."""
    check_name(request.name, "model name")
    scheme = check(request.source)

    def operation(tx: Transaction) -> models_pb2.DownloadResponse:
        nodes = _download_nodes(tx, list(request.nodes), simulated=scheme == "simulated")
        model = tx.edit(Model, request.name)
        shown = without_secrets(request.source)
        if model is None:
            model = Model(name=request.name, simulated=scheme == "simulated")
            model.created_at.FromDatetime(tx.now)
        elif model.simulated != (scheme == "simulated"):
            raise RefusedError(
                f"{request.name} is {'simulated' if model.simulated else 'real'}",
                next="choose another name",
                field="name",
            )
        version = next((v for v in model.versions if v.source == shown), None)
        if version is None:
            version = model.versions.add(version=f"v{tx.next_id(f'version:{request.name}')}", source=shown)
            version.created_at.FromDatetime(tx.now)
            if scheme == "simulated":
                version.size_bytes = model.size_bytes = simulated_size(request.source)
        model.default_version = version.version
        model.metadata.update(dict(request.metadata))
        tx.put(model)
        placements = [_place(tx, model.name, version.version, node, request.source) for node in nodes]
        tx.event("model.download", f"{model.name}@{version.version} from {shown} to {', '.join(nodes)}", subject=model)
        return models_pb2.DownloadResponse(revision=tx.revision, model=model, placements=placements)

    return operation


def _download_nodes(tx: Transaction, asked: list[str], *, simulated: bool) -> list[str]:
    known = {n.name: n for n in tx.list(Node)}
    for name in asked:
        if name not in known:
            raise NotFoundError(f"there is no node {name}", next=near(name, known), field="nodes")
    if asked:
        return asked
    ready = [n for n in known.values() if n.phase == cluster_pb2.NODE_PHASE_READY]
    if simulated:
        ready = [n for n in ready if n.simulated]
        if not ready:
            raise RefusedError(
                "no node has simulated devices", next="start one with gswarm up --simulate 8xH100", field="source"
            )
    if not ready:
        raise RefusedError("no node is attached", next="start one with gswarm client connect HOST:8090")
    if simulated:
        return sorted(n.name for n in ready)
    return [max(ready, key=lambda n: (n.store_free_bytes, n.name)).name]


def _place(tx: Transaction, model: str, version: str, node: str, source: str) -> Placement:
    key = f"{model}@{version}/{node}"
    placement = tx.edit(Placement, key) or Placement(id=key, model=model, version=version, node=node)
    placement.source, placement.owner = source, common_pb2.OWNER_USER
    if placement.phase != STORED:
        placement.generation += 1
        placement.phase, placement.detail = models_pb2.PLACEMENT_PHASE_PENDING, ""
        placement.bytes_done = placement.bytes_total = 0
        placement.changed_at.FromDatetime(tx.now)
        tx.put(placement)
    return placement


def delete_model(request: models_pb2.DeleteModelRequest) -> Callable[[Transaction], models_pb2.DeleteModelResponse]:
    """Remove a model, or its copies on one node; refused while it is served."""

    def operation(tx: Transaction) -> models_pb2.DeleteModelResponse:
        model = find_model(tx, request.name)
        serving = [
            s for s in tx.list(Service)
            if s.model == model.name and s.phase not in GONE and (not request.node or s.node == request.node)
        ]  # fmt: skip
        if serving:
            raise RefusedError(
                f"{model.name} is being served",
                why=f"by {', '.join(s.name for s in serving)}",
                next=f"gswarm model stop {serving[0].name}",
            )
        for placement in list(tx.list(Placement)):
            if placement.model == model.name and request.node in ("", placement.node):
                tx.delete(Placement, placement.id)
        for service in list(tx.list(Service)):
            if service.model == model.name and request.node in ("", service.node):
                tx.delete(Service, service.name)
        if not request.node:
            tx.delete(Model, model.name)
        where = f"from {request.node}" if request.node else "everywhere"
        tx.event("model.deleted", f"{model.name} deleted {where}", subject=model)
        return models_pb2.DeleteModelResponse(revision=tx.revision)

    return operation


def serve(request: models_pb2.ServeRequest) -> Callable[[Transaction], models_pb2.ServeResponse]:
    """Ask that a model be served: devices resolved, backend chosen, what cannot fit refused."""
    if request.name:
        check_name(request.name, "service name")
    if request.port > 65535:
        raise InvalidError(f"{request.port} is no port", next="ports go from 0 to 65535", field="port")
    if request.backend:
        backend(request.backend)

    def operation(tx: Transaction) -> models_pb2.ServeResponse:
        model = find_model(tx, request.model)
        version = find_version(model, request.version)
        placed = {p.node: p for p in tx.list(Placement) if p.model == model.name and p.version == version.version}
        stored = frozenset(node for node, p in placed.items() if p.phase == STORED)
        devices = (
            resolve_devices(tx, request.devices, nodes=stored)
            if request.devices
            else _choose(tx, model, version, stored, request.backend)
        )
        node = devices[0].node
        if node not in stored:
            where = ", ".join(sorted(stored)) or "no node yet"
            raise RefusedError(
                f"{model.name} is not stored on {node}",
                why=f"it is on {where}",
                next=f"gswarm model download {model.name} --source {version.source} --node {node}",
                field="device",
            )
        kind, at = devices[0].kind, tx.get(Node, devices[0].node)
        name = request.backend or _default_backend(devices[0], at)
        chosen = backend(name)
        for device in devices:
            if not chosen.accepts(device.kind):
                raise RefusedError(
                    f"backend {name} does not run on {device.alias}",
                    why="it is simulated" if device.kind == SIMULATED else "it is a real device",
                    next=f"one of {', '.join(n for n in NAMES if backend(n).accepts(device.kind))} does",
                    field="backend",
                )
        if at is not None and chosen.name not in at.backends and kind != SIMULATED:
            raise RefusedError(
                f"backend {chosen.name} is not installed on {at.name}",
                next=f"run there: gswarm client backend install {chosen.name}",
                field="backend",
            )
        if (kind == SIMULATED) != model.simulated:
            raise RefusedError(
                f"{model.name} is {'simulated' if model.simulated else 'real'}, {devices[0].alias} is {'simulated' if kind == SIMULATED else 'real'}",
                next="serve simulated models on simulated devices, real ones on real ones",
                field="device",
            )
        _check_fits(tx, model.name, version, devices, chosen.needed_bytes(version.size_bytes))
        service = _new_service(tx, request, model, version, devices, name)
        service.max_in_flight = chosen.max_in_flight
        tx.put(service)
        aliases = ", ".join(d.alias for d in devices)
        tx.event("service.asked", f"{service.name} ({model.name}@{version.version}) on {aliases}", subject=service)
        return models_pb2.ServeResponse(revision=tx.revision, service=service)

    return operation


def _new_service(
    tx: Transaction,
    request: models_pb2.ServeRequest,
    model: Model,
    version: ModelVersion,
    devices: list[Device],
    backend_name: str,
) -> Service:
    name = request.name or _free_name(tx, model.name)
    known = tx.get(Service, name)
    if known is not None and known.phase not in GONE and not known.stop:
        raise RefusedError(
            f"there is a service {name} on {known.node}",
            next=f"stop it (gswarm model stop {name}), or choose another --service",
            field="name",
        )
    if request.port:
        for other in tx.list(Service):
            if (
                other.port == request.port
                and other.node == devices[0].node
                and other.phase not in GONE
                and other.name != name
            ):
                raise RefusedError(
                    f"port {request.port} is {other.name}'s on {other.node}",
                    next="choose another --port, or none",
                    field="port",
                )
    service = Service(
        name=name,
        model=model.name,
        version=version.version,
        node=devices[0].node,
        device_ids=[d.id for d in devices],
        backend=backend_name,
        port=request.port,
        phase=models_pb2.SERVICE_PHASE_PENDING,
        generation=(known.generation if known else 0) + 1,
        observed_generation=known.observed_generation if known else 0,
        owner=request.owner or common_pb2.OWNER_USER,
        simulated=devices[0].kind == SIMULATED,
        options=dict(request.options),
    )
    service.created_at.FromDatetime(tx.now)
    service.changed_at.FromDatetime(tx.now)
    return service


def _free_name(tx: Transaction, base: str) -> str:
    name, number = base, 1
    while (known := tx.get(Service, name)) is not None and known.phase not in GONE:
        number += 1
        name = f"{base}-{number}"
    return name


def promised_bytes(services: Iterable[Service], sizes: Mapping[tuple[str, str], int], device_id: str) -> int:
    """Memory that services on a device take or will take, by their backends' own estimate; those that stop count no more."""
    total = 0
    for service in services:
        if device_id in service.device_ids and service.phase not in GONE and not service.stop:
            size = sizes.get((service.model, service.version), 0)
            total += backend(service.backend).needed_bytes(size) // len(service.device_ids)
    return total


def _sizes(tx: Transaction) -> dict[tuple[str, str], int]:
    return {(m.name, v.version): v.size_bytes for m in tx.list(Model) for v in m.versions}


def _check_fits(tx: Transaction, model: str, version: ModelVersion, devices: list[Device], needed: int) -> None:
    sizes, services = _sizes(tx), list(tx.list(Service))
    share = needed // len(devices)
    for device in devices:
        taken = promised_bytes(services, sizes, device.id)
        if device.memory_bytes and taken + share > device.memory_bytes:
            holders = [s.name for s in services if device.id in s.device_ids and s.phase not in GONE]
            raise RefusedError(
                f"{model} does not fit on {device.alias}",
                why=f"it needs {show_size(share)}, {show_size(max(0, device.memory_bytes - taken))} of {show_size(device.memory_bytes)} are free",
                next=(
                    f"stop {' or '.join(holders)}, or choose another device"
                    if holders
                    else "choose a larger device, or several"
                ),
                field="device",
            )


def _default_backend(device: Device, node: Node | None) -> str:
    return default_backend(node.backends if node is not None else (), simulated=device.kind == SIMULATED)


def _choose(
    tx: Transaction, model: Model, version: ModelVersion, stored: frozenset[str], backend_name: str
) -> list[Device]:
    """Of the devices where the model is: as few as take it, those with most memory free; a GPU before a CPU."""
    nodes = {n.name: n for n in tx.list(Node) if n.phase == cluster_pb2.NODE_PHASE_READY}
    sizes, services = _sizes(tx), list(tx.list(Service))
    offers: dict[str, Offer] = {}
    devices = {d.id: d for d in tx.list(Device)}
    for device in devices.values():
        if device.node not in stored or device.node not in nodes or device.phase == cluster_pb2.DEVICE_PHASE_LOST:
            continue
        if (device.kind == SIMULATED) == model.simulated:
            room = device.memory_bytes - promised_bytes(services, sizes, device.id)
            chosen = backend(backend_name or _default_backend(device, nodes[device.node]))
            if chosen.accepts(device.kind) and (model.simulated or chosen.name in nodes[device.node].backends):
                offers[device.id] = offer_of(device, room, chosen.needed_bytes(version.size_bytes))
    found = fit(offers.values())
    by_node: defaultdict[str, list[Offer]] = defaultdict(list)
    for key in found.devices:
        by_node[offers[key].node].append(offers[key])

    def worth(offer: Offer) -> tuple[bool, int, int]:
        return not offer.cpu, offer.room, -devices[offer.device].index

    sets = [sorted(some, key=worth, reverse=True)[: found.width] for some in by_node.values()]
    if not sets:
        raise RefusedError(
            f"no device can take {model.name} now",
            why=f"it is stored on {', '.join(sorted(stored)) or 'no node'}",
            next="name one with --device to see why",
            field="device",
        )
    return [devices[offer.device] for offer in max(sets, key=lambda some: worth(some[-1]))]


def offer_of(device: Device, room: int, needed: int) -> Offer:
    """What a device offers to a model that takes so many bytes there."""
    cpu = device.kind == cluster_pb2.DEVICE_KIND_CPU
    return Offer(device.id, device.node, room, needed, cpu, alone=cpu or device.kind == cluster_pb2.DEVICE_KIND_MIG)


def stop_service(name: str) -> Callable[[Transaction], models_pb2.StopServiceResponse]:
    """Ask that a service end."""

    def operation(tx: Transaction) -> models_pb2.StopServiceResponse:
        service = tx.edit(Service, name)
        if service is None:
            raise NotFoundError(
                f"there is no service {name}", next=near(name, (s.name for s in tx.list(Service))), field="name"
            )
        if not service.stop and service.phase not in (models_pb2.SERVICE_PHASE_STOPPED,):
            service.stop = True
            service.generation += 1
            service.phase = models_pb2.SERVICE_PHASE_STOPPING
            service.changed_at.FromDatetime(tx.now)
            tx.put(service)
            tx.event("service.stop", f"{name} is to stop", subject=service)
        return models_pb2.StopServiceResponse(revision=tx.revision, service=service)

    return operation
