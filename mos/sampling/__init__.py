"""Drawing pictures with several concepts, each in its own region (Mix-of-Show, arXiv:2305.18292, 3.3)."""

from mos.sampling.condition import Condition
from mos.sampling.config import SamplingConfig
from mos.sampling.denoising import denoise
from mos.sampling.layout import Layout, parse_region, read_layout
from mos.sampling.region import Region, RegionError
from mos.sampling.sampler import sample

__all__ = [
    "Condition",
    "Layout",
    "Region",
    "RegionError",
    "SamplingConfig",
    "denoise",
    "parse_region",
    "read_layout",
    "sample",
]
