"""Several recipes on the same images, under one budget, from the same seeds: one table, one page."""

from omnivae.jobs.family.compare import compare_family
from omnivae.jobs.family.plan import METRICS, Plan
from omnivae.jobs.family.result import FamilyResult, Run

__all__ = ["METRICS", "FamilyResult", "Plan", "Run", "compare_family"]
