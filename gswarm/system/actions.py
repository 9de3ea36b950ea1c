"""What a person can do with this machine: start, stop, check, look at settings and logs. None of it needs a host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from gswarm.catalogue import Doc, action
from gswarm.model.types import Environment
from gswarm.system.types import Daemon, Finding, Setting


@action("", "up", local=True, effect="starts host and agent in the background")
async def up(
    *,
    simulate: Annotated[str, Doc("add devices that exist only as numbers: 8xH100, 2xA100+1xH200")] = "",
    console: Annotated[bool, Doc("open the console when there is a terminal")] = True,
) -> int:
    """Start a host and an agent here if none runs, and open the console.

    Without a terminal it prints how things stand and how to attach.

    Examples:
        gswarm up
        gswarm up --simulate 8xH100
    """
    from gswarm.system.up import bring_up

    return await bring_up(simulate, console=console)


@action("", "down", local=True, effect="stops host and agent, and the services they run")
async def down() -> list[Daemon]:
    """Stop the host and agents of this machine, and what they started.

    Examples:
        gswarm down
    """
    from gswarm.system.up import bring_down

    return await bring_down()


@action("", "doctor", local=True, read=True)
async def doctor() -> list[Finding]:
    """Check this machine: ports, token, GPUs, state directory, shared memory, backends.

    Examples:
        gswarm doctor
        gswarm doctor --output json
    """
    import asyncio

    from gswarm.system.doctor import examine

    return await asyncio.to_thread(examine)


@action("host", "start", local=True, effect="runs a host in the foreground")
async def host_start(
    *,
    port: Annotated[int | None, Doc("gRPC port; 0: any free one")] = None,
    http_port: Annotated[int | None, Doc("HTTP port: REST, metrics, health")] = None,
    model_port: Annotated[int | None, Doc("port of the OpenAI-compatible gateway")] = None,
    bind: Annotated[str | None, Doc("address to listen on; beyond loopback TLS is on")] = None,
    insecure: Annotated[bool, Doc("allow a bind beyond loopback without TLS")] = False,
    dcgm_metrics: Annotated[bool, Doc("/metrics also under dcgm-exporter's names")] = False,
) -> int:
    """Run a host until Ctrl-C or SIGTERM.

    Examples:
        gswarm host start --port 8090 --http-port 8091 --model-port 9010
        gswarm host start --bind 0.0.0.0
        gswarm host start --dcgm-metrics
    """
    from gswarm import config as settings
    from gswarm.host.server import run
    from gswarm.system.foreground import say_more

    say_more()
    flags: dict[str, object] = {
        "host.port": port,
        "host.http_port": http_port,
        "host.model_port": model_port,
        "host.bind": bind,
        "host.insecure": insecure or None,
        "http.dcgm_names": dcgm_metrics or None,
    }
    await run(settings.load(flags), settings.state_dir())
    return 0


@action("host", "stop", local=True, effect="ends the host; agents keep serving and wait for it")
async def host_stop() -> None:
    """Stop the host of this machine.

    Examples:
        gswarm host stop
    """
    import asyncio

    from gswarm.errors import NotFoundError
    from gswarm.system.daemon import running_host, stop

    found = running_host()
    if found is None:
        raise NotFoundError("no host runs on this machine")
    await asyncio.to_thread(stop, found.pid, found.started)


@action("client", "connect", local=True, effect="runs an agent in the foreground")
async def client_connect(
    host: Annotated[str, Doc("the host, HOST:8090")],
    *,
    resilient: Annotated[bool, Doc("wait for a host that goes away, for ever; keep serving meanwhile")] = False,
    simulate: Annotated[str, Doc("add devices that exist only as numbers: 8xH100")] = "",
    name: Annotated[str, Doc("node name; by default the machine's")] = "",
    bind: Annotated[str | None, Doc("address of the peer port; beyond loopback it has TLS")] = None,
    token_file: Annotated[Path | None, Doc("file with the join token; else GSWARM_TOKEN")] = None,
    extra_metrics: Annotated[
        list[str], Doc("another property of nvitop's Device to sample; repeat for several")
    ] = [],  # noqa: B006
) -> int:
    """Run an agent on this machine until Ctrl-C or SIGTERM.

    Examples:
        gswarm client connect 10.0.0.5:8090 --resilient
        gswarm client connect 127.0.0.1:8090 --simulate 8xH100
        gswarm client connect 10.0.0.5:8090 --extra-metrics memory_percent
    """
    from gswarm import config as settings
    from gswarm import net
    from gswarm.client.agent import Options, run
    from gswarm.system.foreground import say_more

    say_more()
    endpoint = net.discover(host, token_file)
    config = settings.load({"client.bind": bind})
    await run(config, Options(endpoint, resilient, name, simulate, tuple(extra_metrics)))
    return 0


@action("client", "backend install", local=True, effect="makes a virtual environment and installs packages into it")
async def backend_install(
    backend: Annotated[Literal["transformers", "vllm"], Doc("which backend")],
    *,
    cpu: Annotated[bool | None, Doc("packages for CPU only; by default when there is no NVIDIA driver")] = None,
) -> Environment:
    """Install a backend into an interpreter of its own.

    Examples:
        gswarm client backend install transformers
    """
    from gswarm.model.backends.environments import has_nvidia, install

    return await install(backend, cpu=not has_nvidia() if cpu is None else cpu)


@action("client", "backend list", local=True, read=True)
async def backend_list() -> list[Environment]:
    """List backends and their interpreters.

    Examples:
        gswarm client backend list
    """
    from gswarm.model.backends.environments import list_all

    return list_all()


@action("config", "show", local=True, read=True)
async def config_show(*, origin: Annotated[bool, Doc("also where each value comes from")] = False) -> Any:
    """Show the settings as they are in force.

    Examples:
        gswarm config show --origin
    """
    from gswarm import config as settings

    loaded = settings.load()
    values = settings.as_dict(loaded)
    if not origin:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return [Setting(key, str(value), loaded.origins.get(key, "default")) for key, value in values.items()]


@action("", "logs", local=True, read=True)
async def logs(
    role: Annotated[Literal["host", "agent"], Doc("whose")],
    *,
    lines: Annotated[int, Doc("lines from the end")] = 100,
) -> str:
    """Show what the background host or agent wrote.

    Examples:
        gswarm logs host
        gswarm logs agent --lines 20
    """
    from gswarm.errors import NotFoundError
    from gswarm.system.daemon import log_path

    path = log_path(role)
    if not path.exists():
        raise NotFoundError(
            f"there is no log of the {role}", why=f"{path} does not exist", next="it is written by gswarm up"
        )
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
