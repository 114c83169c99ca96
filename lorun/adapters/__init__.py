"""Adapters: one shared denoiser, and low-rank updates that turn it into one per stage."""

from lorun.adapters.adapter_files import load_adapters, save_adapters
from lorun.adapters.adapter_set import AdapterSet, LayerAdapter
from lorun.adapters.align import ChannelGroup, Use, align_channels, unet_channel_groups
from lorun.adapters.compress import compress
from lorun.adapters.exchange import Target, from_locon, from_loralib, to_loralib
from lorun.adapters.peft_files import from_peft, to_peft
from lorun.adapters.sets import (
    NamedSet,
    active_adapters,
    adapter_names,
    add_adapters,
    delete_adapters,
    disable_adapters,
    get_adapters,
    set_adapters,
)
from lorun.adapters.share import share_stages
from lorun.adapters.targets import targets_of
from lorun.adapters.view import adapted_view

__all__ = [
    "AdapterSet",
    "ChannelGroup",
    "LayerAdapter",
    "NamedSet",
    "Target",
    "Use",
    "active_adapters",
    "adapted_view",
    "adapter_names",
    "add_adapters",
    "align_channels",
    "compress",
    "delete_adapters",
    "disable_adapters",
    "from_locon",
    "from_loralib",
    "from_peft",
    "get_adapters",
    "load_adapters",
    "save_adapters",
    "set_adapters",
    "share_stages",
    "targets_of",
    "to_loralib",
    "to_peft",
    "unet_channel_groups",
]
