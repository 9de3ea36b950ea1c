"""What alert actions return."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gswarm.cluster.types import Kind, Severity


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule that holds for one subject. Key: id."""

    id: str = ""
    """"<rule>/<subject>"."""
    rule: str = ""
    severity: Severity = Severity.UNKNOWN
    subject_kind: Kind = Kind.UNKNOWN
    subject: str = ""
    """Key of the device or node."""
    name: str = ""
    """What people call the subject: "n1:gpu0", "n1"."""
    node: str = ""
    """The node it is on."""
    metric: str = ""
    """Empty for rules on events and states."""
    value: float | None = None
    """The metric when the rule began to hold, in the unit of the metric's name."""
    message: str = ""
    """One sentence for a person."""
    since: datetime | None = None
    """From when on it held: the node's clock for metrics, the host's for all else."""
    fired_at: datetime | None = None
    """When the host said so."""
    last_at: datetime | None = None
    """When it happened last, for rules on events and rising counters."""
    count: int = 0
    """How often it happened while it fires, for rules on events and rising counters."""
