"""The doctor: reads a run's logs and advises in the right direction."""

from omnivae.jobs.doctor import codes, fitting, latent, operation, optimisation
from omnivae.jobs.doctor.examine import diagnose, examine
from omnivae.jobs.doctor.records import Curve, Look, Record, read_curves, read_run
from omnivae.jobs.doctor.registry import RULES, SEVERITIES, Examination, Finding, Rule, Severity, apply_rules, rule

__all__ = [
    "RULES",
    "SEVERITIES",
    "Curve",
    "Examination",
    "Finding",
    "Look",
    "Record",
    "Rule",
    "Severity",
    "apply_rules",
    "codes",
    "diagnose",
    "examine",
    "fitting",
    "latent",
    "operation",
    "optimisation",
    "read_curves",
    "read_run",
    "rule",
]
