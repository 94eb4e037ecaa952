"""What `profile` found: rows, totals, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from resgrow._text import table

if TYPE_CHECKING:
    from resgrow.surgery.profile.comparison import Comparison

_TOTALS = ("params", "live_params", "macs", "live_macs", "activation_bytes", "saved_bytes", "peak_bytes", "seconds")
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class LayerProfile:
    """One layer.

    Attributes:
        name: its first one in the model; empty for the model itself.
        kind: its class. calls: how often one forward pass runs it.
        width: output channels or features, for attention heads; None for what has none of its own.
        params: elements of its own parameters; shared ones are those of the first layer that has them.
        macs: multiply-accumulates per sample of its own products, all calls together.
        live_params, live_macs: the same without masked weights.
        activation_bytes: for the whole batch, of its outputs and of what its own code hands to modules inside it, as
            far as they are new memory: what works in place, or only rearranges, takes none.
        seconds: of all its calls in one forward pass of the batch, without modules in it; None where not measured.
    """

    name: str
    kind: str
    width: int | None
    calls: int
    params: int
    live_params: int
    macs: int
    live_macs: int
    activation_bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Profile:
    """What a model consists of and costs; print it for a table. Made by `profile`.

    Attributes:
        layers: in the order in which they first run.
        batch: samples in the pass. device: where it ran. threads: of the CPU.
        masked: whether masks were given; otherwise everything is live.
        saved_bytes: what autograd keeps after one training forward pass, parameters and buffers apart.
        peak_bytes: the most that is live beside them at a time in inference.
        seconds: median time of a forward pass in inference, without hooks.
        notes: what could not be counted or measured, and why.

    Either is None where it was not asked for or, with a note, could not be found.
    """

    layers: tuple[LayerProfile, ...]
    batch: int
    device: str
    threads: int
    masked: bool
    saved_bytes: int | None
    peak_bytes: int | None
    seconds: float | None
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> LayerProfile:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def params(self) -> int:
        """Of the whole model, shared ones once."""
        return sum(layer.params for layer in self.layers)

    @property
    def live_params(self) -> int:
        return sum(layer.live_params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def live_macs(self) -> int:
        return sum(layer.live_macs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Of all layers' outputs; not all of them are live at a time."""
        return sum(layer.activation_bytes for layer in self.layers)

    def compare(self, other: Profile) -> Comparison:
        """This one before, another one after; printing the result shows the table.

        Raises:
            ValueError: the two are of different batch sizes.
        """
        from resgrow.surgery.profile.comparison import Comparison

        return Comparison(self, other)

    def widths(self) -> dict[str, int]:
        """``{name: width}`` of the layers that multiply, in order: what `resgrow.report.draw_widths` draws."""
        return {layer.name: layer.width for layer in self.layers if layer.macs and layer.width is not None}

    def totals(self) -> dict[str, Any]:
        """The whole model's numbers."""
        return {name: getattr(self, name) for name in _TOTALS}

    def to_rows(self) -> list[dict[str, Any]]:
        """A dictionary per layer, for CSV."""
        return [asdict(layer) for layer in self.layers]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        settings = {name: getattr(self, name) for name in ("batch", "device", "threads", "masked")}
        return {**settings, "totals": self.totals(), "layers": self.to_rows(), "notes": list(self.notes)}

    def __repr__(self) -> str:
        return f"Profile({len(self.layers)} layers, {self.params:,} parameters, {self.macs:,} MACs)"

    def __str__(self) -> str:
        titles = {
            "layer": lambda layer: layer["name"] or "(model)",
            "kind": lambda layer: layer["kind"],
            "width": lambda layer: "" if layer["width"] is None else str(layer["width"]),
            "params": lambda layer: f"{layer['params']:,}",
            "live params": lambda layer: f"{layer['live_params']:,}",
            "MACs": lambda layer: f"{layer['macs']:,}",
            "live MACs": lambda layer: f"{layer['live_macs']:,}",
            "activations": lambda layer: size(layer["activation_bytes"]),
            "ms": lambda layer: milliseconds(layer["seconds"]),
        }
        unseen = set() if self.masked else {"live params", "live MACs"}
        unseen |= set() if self.seconds is not None else {"ms"}
        head = [title for title in titles if title not in unseen]
        total: Mapping[str, Any] = {"name": "all", "kind": "", "width": None, **self.totals()}
        rows = [[titles[title](row) for title in head] for row in (*self.to_rows(), total)]
        return "\n".join([table(head, rows, ("layer", "kind")), self._footer(), *self.notes])

    def _footer(self) -> str:
        parts = [f"batch {self.batch}"]
        if self.seconds is not None:
            parts.append(self.device if self.device != "cpu" else f"{self.threads} thread{'s' * (self.threads > 1)}")
        parts += [f"saved for backward {size(self.saved_bytes)}"] if self.saved_bytes is not None else []
        parts += [f"peak in inference {size(self.peak_bytes)}"] if self.peak_bytes is not None else []
        return ", ".join(parts)


def size(count: float | None) -> str:
    """1536 -> "1.5 KiB"."""
    if count is None:
        return ""
    unit = 0
    while count >= 1024 and unit < len(_BYTES) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.1f} {_BYTES[unit]}" if unit else f"{count:.0f} B"


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3f}"
