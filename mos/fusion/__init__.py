"""Gradient fusion: many concepts, trained apart, become one update of the base (Mix-of-Show, arXiv:2305.18292, 3.2).

`fuse` is the driver; `FusionExecutor` is what a cluster implements to spread its work.
"""

from mos.fusion.config import FusionConfig, StageName, StageRule, paper_config
from mos.fusion.errors import BaseMismatchError, FusionError
from mos.fusion.executor import FusionExecutor, SerialExecutor, solve_stage
from mos.fusion.fuse import fuse, measure_fusion
from mos.fusion.model import FusedModel, SourceRecord, extended_refs, read_fused, read_fused_record, write_fused
from mos.fusion.problem import SiteProblem, SiteSolution
from mos.fusion.solver import plan_bins, site_cost, solve_sites
from mos.fusion.source import FusionSource
from mos.fusion.stages import Stage, plan_stages, record_stage
from mos.fusion.statistics import SiteStatistics, StageStatistics

__all__ = [
    "BaseMismatchError",
    "FusedModel",
    "FusionConfig",
    "FusionError",
    "FusionExecutor",
    "FusionSource",
    "SerialExecutor",
    "SiteProblem",
    "SiteSolution",
    "SiteStatistics",
    "SourceRecord",
    "Stage",
    "StageName",
    "StageRule",
    "StageStatistics",
    "extended_refs",
    "fuse",
    "measure_fusion",
    "paper_config",
    "plan_bins",
    "plan_stages",
    "read_fused",
    "read_fused_record",
    "record_stage",
    "site_cost",
    "solve_sites",
    "solve_stage",
    "write_fused",
]
