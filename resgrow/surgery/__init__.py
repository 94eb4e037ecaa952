"""Removing parts of a network: what is coupled, masks, and physically smaller copies. Scores nothing."""

from resgrow.surgery.activations import swap_activations
from resgrow.surgery.channel_units import ChannelUnits
from resgrow.surgery.compact import compact
from resgrow.surgery.count import count_macs, count_params, layer_positions
from resgrow.surgery.deepen import deepen
from resgrow.surgery.factorise import Factorised, FactorRow, factorise
from resgrow.surgery.fuse import fuse
from resgrow.surgery.gates import settle_gates
from resgrow.surgery.groups import ChannelGroup, Consumer, channel_groups
from resgrow.surgery.growth_gain import growth_gain
from resgrow.surgery.make_units import count_latency, make_units
from resgrow.surgery.masks import Masks
from resgrow.surgery.merge import Merged, MergeRow, merge_linear
from resgrow.surgery.profile import Comparison, LayerProfile, Profile, profile
from resgrow.surgery.prune import prune
from resgrow.surgery.residual_units import ResidualUnits
from resgrow.surgery.speed import Speed, measure
from resgrow.surgery.storage import load, load_extra, save
from resgrow.surgery.swap import swap, unswap
from resgrow.surgery.swap_table import Swap, SwapRow
from resgrow.surgery.units import Units
from resgrow.surgery.weight_units import BlockUnits, WeightUnits
from resgrow.surgery.widen import widen

__all__ = [
    "BlockUnits",
    "ChannelGroup",
    "ChannelUnits",
    "Comparison",
    "Consumer",
    "FactorRow",
    "Factorised",
    "LayerProfile",
    "Masks",
    "MergeRow",
    "Merged",
    "Profile",
    "ResidualUnits",
    "Speed",
    "Swap",
    "SwapRow",
    "Units",
    "WeightUnits",
    "channel_groups",
    "compact",
    "count_latency",
    "count_macs",
    "count_params",
    "deepen",
    "factorise",
    "fuse",
    "growth_gain",
    "layer_positions",
    "load",
    "load_extra",
    "make_units",
    "measure",
    "merge_linear",
    "profile",
    "prune",
    "save",
    "settle_gates",
    "swap",
    "swap_activations",
    "unswap",
    "widen",
]
