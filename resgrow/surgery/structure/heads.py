"""Attributes by which modules split a dimension themselves: the number of heads, and what they are in all."""

from __future__ import annotations

from typing import Any

from torch import nn

from resgrow.nn.attention import NarrowAttention

# Names for heads x (size of a head), as timm's, Hugging Face's and others' attention has them.
_TOTALS = ("attn_dim", "all_head_size", "inner_dim", "attention_dim", "proj_dim")

# torchvision's Swin attention, a function of many arguments, has heads of the stream's width over their number.
_WIDTH_OVER_HEADS = ("ShiftedWindowAttention",)


def adapted(module: nn.Module, before: int, after: int) -> dict[str, Any]:
    """What a module that split a dimension into ``before`` pieces has to say of ``after``: by name and value.

    A guess for modules that are not torch's: whether the model runs with it is for the caller to see.

    Raises:
        ValueError: there is no such module with fewer heads.
    """
    if isinstance(module, nn.MultiheadAttention):
        if module.bias_k is not None or module.add_zero_attn:
            raise ValueError(
                "nn.MultiheadAttention can lose heads where it has neither add_bias_kv nor add_zero_attn (got one of "
                "them)"
            )
        # Anything but True keeps torch's fused encoder layers from running past the module's forward.
        kind = NarrowAttention if type(module) is nn.MultiheadAttention else type(module)
        return {"__class__": kind, "num_heads": after, "_qkv_same_embed_dim": False}
    for kind in type(module).__mro__:
        if kind.__name__ in _WIDTH_OVER_HEADS:
            raise ValueError(
                f"{kind.__name__} cannot lose heads: a head's size is the stream's width over their number"
            )
    result: dict[str, Any] = {}
    numbers = {name: value for name, value in vars(module).items() if type(value) is int}
    for name, value in numbers.items():
        if "head" in name and not any(word in name for word in ("dim", "size")) and value == before:
            result[name] = after
        elif name in _TOTALS and value % before == 0:
            result[name] = value // before * after
    return result
