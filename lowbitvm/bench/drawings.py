"""What the plots of a run show, one function for each section of its JSON."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowbitvm import targets
from lowbitvm.bench.modelled import least_us
from lowbitvm.pack import as_format, stored_bytes
from lowbitvm.targets import OVERHEAD_US

INK, GRID, PAPER = "#010203", "#040506", "#070809"  # text, grid and background; see plots.ON_PAGE
PALETTE = ("#3f83d0", "#e5832a", "#2e9f74", "#c25fb0", "#8b8f99", "#c9a21f", "#d1495b", "#5a6bd8")
MARKERS = "osD^vPXp"
FLOATS = ("f16", "bf16")
WIDTH = 9.0  # inches of a figure
GPU_WIDTHS = ("u2", "u4", "u8", "i4 × i8", "f16", "i8 x i8")  # of all that are measured, those that are drawn


@dataclass(frozen=True)
class Drawing:
    """A figure; `caption` says what was counted, modelled or measured."""

    name: str
    title: str
    caption: str
    figure: Any = field(repr=False)


def _panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Any, Any]:
    """(figure, axes [rows, columns]), `height` inches high."""
    from matplotlib.figure import Figure  # an extra, and slow to import

    figure = Figure((WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _style(number: int, label: str) -> dict[str, Any]:
    """The colour and marks of a line; those of the ninth are the first one's."""
    at = number % len(PALETTE)
    return {"color": PALETTE[at], "marker": MARKERS[at], "markersize": 4, "label": label}


def _legend(figure: Any, panel: Any) -> None:
    """One legend above all panels, which have the same kinds of marks."""
    marks, labels = panel.get_legend_handles_labels()
    figure.legend(marks, labels, loc="outside upper left", ncols=len(labels), fontsize=9)


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def static(rows: Sequence[dict[str, Any]]) -> Iterator[Drawing]:
    """Products per instruction beside other tools, and instructions per weight of all formats."""
    fours = [row for row in rows if row["weights"] == "u4" and row["act"] == "f16" and row["zero"] == "int"]
    if fours:
        yield _tools(fours)
    linear = [row for row in rows if row["tool"] == "lowbitvm" and row["act"] in FLOATS]
    if linear:
        yield _formats(linear)
    products = [row for row in rows if row["tool"] == "lowbitvm" and row["act"] not in FLOATS]
    if products:
        yield _products(products)


def _tools(rows: Sequence[dict[str, Any]]) -> Drawing:
    names, tools = _unique(row["target"] for row in rows), _unique(row["tool"] for row in rows)
    shared = _unique(row["tile"] for row in rows)
    figure, axes = _panels(1, len(names), 3.2, sharey=True)
    for panel, target in zip(axes[0], names, strict=True):
        for number, tool in enumerate(tools):
            value = {
                row["tile"]: row["mac_per_instruction"]
                for row in rows
                if (row["tool"], row["target"]) == (tool, target)
            }
            places = [shared.index(tile) + (number - (len(tools) - 1) / 2) * 0.8 / len(tools) for tile in value]
            bars = panel.bar(places, list(value.values()), 0.75 / len(tools), label=tool, color=PALETTE[number])
            panel.bar_label(bars, fmt="%.0f", fontsize=7)
        panel.set_xticks(range(len(shared)), shared, rotation=20, fontsize=8)
        panel.set_title(target)
        panel.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("multiply-adds per instruction")
    _legend(figure, axes[0][0])
    caption = "4-bit weights, group 128, integer zero points, f16. Counted in machine code; more is better."
    return Drawing("tools", "Multiply-adds per instruction of the main loop", caption, figure)


def _formats(rows: Sequence[dict[str, Any]]) -> Drawing:
    """The tile of the fewest rows, on the first target: the decode and what else the loop does."""
    target, fewest = rows[0]["target"], min(_bm(row) for row in rows)
    taken = [row for row in rows if row["target"] == target and _bm(row) == fewest]
    names, acts = _unique(row["weights"] for row in taken), _unique(row["act"] for row in taken)
    figure, axes = _panels(len(acts), 1, 0.8 + 2.2 * len(acts), sharex=True, sharey=True)
    for panel, act in zip(axes[:, 0], acts, strict=True):
        own = [row for row in taken if row["act"] == act]
        places = [names.index(row["weights"]) for row in own]
        decode = [row["decode_per_weight"] for row in own]
        others = [row["instructions_per_weight"] - row["decode_per_weight"] for row in own]
        panel.bar(places, decode, 0.75, label="decode", color=PALETTE[0])
        panel.bar(places, others, 0.75, decode, label="loads, products and the rest", color=PALETTE[4])
        panel.set_ylabel(f"{act}: per weight")
        panel.grid(axis="x", visible=False)
    axes[-1][0].set_xticks(range(len(names)), names, rotation=90, fontsize=7.5)
    axes[-1][0].set_xlim(-0.7, len(names) - 0.3)
    _legend(figure, axes[0][0])
    caption = (
        f"Kernels for up to {fewest} rows on {target}, issue slots per weight and thread. Counted; less is better."
    )
    return Drawing("formats", "Instructions per weight, by format", caption, figure)


def _bm(row: dict[str, Any]) -> int:
    """Rows of activations of a tile."""
    return int(row["tile"].partition("x")[0])


def _products(rows: Sequence[dict[str, Any]]) -> Drawing:
    names = _unique(row["target"] for row in rows)
    sizes = sorted(_unique(_bm(row) for row in rows))
    pairs = _unique(f"{row['weights']} × {row['act']}" for row in rows)
    figure, axes = _panels(1, len(names), 3.0, sharey=True)
    for panel, target in zip(axes[0], names, strict=True):
        for number, size in enumerate(sizes):
            own = [row for row in rows if (row["target"], _bm(row)) == (target, size)]
            places = [pairs.index(f"{row['weights']} × {row['act']}") for row in own]
            values = [row["mac_per_instruction"] for row in own]
            label = f"{size} row{'s' * (size > 1)}"
            panel.plot(places, values, linestyle="none", **_style(number, label))
        panel.set_xticks(range(len(pairs)), pairs, rotation=90, fontsize=8)
        panel.set_title(target)
    axes[0][0].set(yscale="log", ylabel="multiply-adds per instruction")
    _legend(figure, axes[0][0])
    caption = (
        "Weights × activations in the digits and tiles that the plan chooses. Counted in machine code; more is better."
    )
    return Drawing("products", "Products of integers, by rows of the tile", caption, figure)


def model(rows: Sequence[dict[str, Any]]) -> Iterator[Drawing]:
    """Time and speed-up against M by width, for a block of each model; then all layers under the roofline."""
    for name in _unique(row["model"] for row in rows):
        yield _block(name, [row for row in rows if row["model"] == name])
    yield _roofline(rows)


def _block(name: str, rows: Sequence[dict[str, Any]]) -> Drawing:
    """The layers of a block together: microseconds, and how much less than f16 weights take at best."""
    gpus, widths = _unique(row["gpu"] for row in rows), _unique(_width(row) for row in rows)
    figure, axes = _panels(2, len(gpus), 5.0, sharex=True, sharey="row")
    for column, gpu in enumerate(gpus):
        least = _by_rows((row, _f16_us(row)) for row in rows if row["gpu"] == gpu and _width(row) == widths[0])
        time, gain = axes[:, column]
        time.plot(*_lines(least), "--", color=PALETTE[4], label="f16, at least", linewidth=1.2)
        for number, width in enumerate(widths):
            own = _by_rows((row, row["time_us"]) for row in rows if row["gpu"] == gpu and _width(row) == width)
            time.plot(*_lines(own), **_style(number, width))
            gain.plot(*_lines({m: least[m] / own[m] for m in own}), **_style(number, width))
        gain.axhline(1, color=PALETTE[4], linestyle="--", linewidth=1.2)
        time.set_title(targets.gpu(gpu)[1].name)
        time.set(xscale="log", yscale="log")
        gain.set_xticks(list(least), [str(m) for m in least], fontsize=8)
        gain.minorticks_off()
        gain.set_xlabel("rows of activations, M")
    axes[1][0].set_ylim(bottom=0)  # of all: they share the axis
    axes[0][0].set_ylabel("µs per block")
    axes[1][0].set_ylabel("speed-up over f16 at best")
    _legend(figure, axes[0][0])
    caption = (
        "The linear layers of one block, one launch each, or two for integers. Modelled, not measured; f16 weights "
        "take the time of the roofline, which no kernel reaches, and of the launches."
    )
    return Drawing(name, f"{name}: time and speed-up against M", caption, figure)


def _width(row: dict[str, Any]) -> str:
    """The code type of a row's weights, and of the activations that they are multiplied with as integers."""
    name, _, rest = str(row["weights"]).partition(",")
    act = re.search(r"\bact=(\w+)", rest)
    return f"{name} × {act[1]}" if act else name


def _by_rows(times: Iterable[tuple[dict[str, Any], float]]) -> dict[int, float]:
    """The sums of times over the layers, by M."""
    found: dict[int, float] = {}
    for row, time in times:
        found[row["m"]] = found.get(row["m"], 0) + time
    return dict(sorted(found.items()))


def _lines(values: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(values), list(values.values())


def _f16_us(row: dict[str, Any]) -> float:
    """The roofline's time of the layer with f16 weights, and a launch's."""
    return OVERHEAD_US + least_us(row["gpu"], None, row["m"], row["n"], row["k"])


def _roofline(rows: Sequence[dict[str, Any]]) -> Drawing:
    gpus, widths = _unique(row["gpu"] for row in rows), _unique(_width(row) for row in rows)
    integers = any("×" in width for width in widths)
    figure, axes = _panels(1, len(gpus), 3.2, sharey=True)
    for panel, gpu in zip(axes[0], gpus, strict=True):
        sheet = targets.gpu(gpu)[1]
        own = [row for row in rows if row["gpu"] == gpu]
        first, last = _ends(_intensity(row) for row in own)
        for kind, rate in (("-", sheet.f16), *([("--", sheet.s8)] if integers else [])):
            peak = rate * sheet.sms * sheet.boost_ghz / 1e3  # TFLOP/s
            line = sorted({first / 2, 2 * last, min(max(1e3 * peak / sheet.dram_gbs, first / 2), 2 * last)})
            panel.plot(line, [min(peak, at * sheet.dram_gbs / 1e3) for at in line], kind, color=INK, linewidth=1.2)
        for number, width in enumerate(widths):
            some = [row for row in own if _width(row) == width]
            speeds = [2e-6 * row["m"] * row["n"] * row["k"] / row["time_us"] for row in some]
            panel.plot([_intensity(row) for row in some], speeds, linestyle="none", alpha=0.8, **_style(number, width))
        panel.set(xscale="log", yscale="log", xlabel="operations per byte of x, w and y")
        panel.set_title(sheet.name)
    axes[0][0].set_ylabel("Tera-operations/s")
    _legend(figure, axes[0][0])
    caption = "Every layer and M of the tables; the line is the data sheet's bandwidth and f16 peak"
    caption += (", dashed that of 8-bit integers" if integers else "") + ". Modelled, not measured."
    return Drawing("roofline", "Layers under the roofline", caption, figure)


def _ends(values: Iterable[float]) -> tuple[float, float]:
    every = list(values)
    return min(every), max(every)


def _intensity(row: dict[str, Any]) -> float:
    """Operations per byte of x, y in f16, and the weights."""
    m, n, k = row["m"], row["n"], row["k"]
    return float(2 * m * n * k / (sum(stored_bytes(as_format(row["weights"]), n, k).values()) + 2 * m * (n + k)))


def gpu(found: dict[str, Any]) -> Iterator[Drawing]:
    """Measured times and speed-ups against M, and the model's times beside them."""
    rows = found["rows"]
    for name in _unique(row["model"] for row in rows):
        yield _measured(name, [row for row in rows if row["model"] == name])
    known = [row for row in rows if row.get("modelled_us")]
    if known:
        yield _measured_and_modelled(known)


def _measured(name: str, rows: Sequence[dict[str, Any]]) -> Drawing:
    """The layers of a block together: microseconds, and how much less than 16-bit weights take."""
    layers = len({row["layer"] for row in rows})
    kinds: dict[str, dict[int, float]] = {}
    for kind in _unique((row["tool"], _width(row)) for row in rows if _width(row) in GPU_WIDTHS):
        own = [row for row in rows if (row["tool"], _width(row)) == kind]
        whole = {m for m in (row["m"] for row in own) if sum(row["m"] == m for row in own) == layers}
        kinds[" ".join(kind)] = _by_rows((row, row["us"]) for row in own if row["m"] in whole)
    plain = next((times for kind, times in kinds.items() if kind.endswith(" f16")), {})
    figure, ((time, gain),) = _panels(1, 2, 4.0)
    for number, (kind, times) in enumerate(kinds.items()):
        time.plot(*_lines(times), **_style(number, kind))
        gain.plot(*_lines({m: plain[m] / us for m, us in times.items() if m in plain}), **_style(number, kind))
    for panel, label in ((time, "µs per block"), (gain, "speed-up over f16 weights")):
        panel.set(xscale="log", xlabel="rows of activations, M", ylabel=label)
        panel.set_xticks(sorted({row["m"] for row in rows}), [str(m) for m in sorted({row["m"] for row in rows})])
        panel.minorticks_off()
    time.set_yscale("log")
    figure.legend(*time.get_legend_handles_labels(), loc="outside upper left", ncols=5, fontsize=8)
    caption = "The linear layers of one block, one launch each; measured on the GPU of the run."
    return Drawing(name, f"{name}: time and speed-up against M", caption, figure)


def _measured_and_modelled(rows: Sequence[dict[str, Any]]) -> Drawing:
    figure, ((panel,),) = _panels(1, 1, 4.0)
    for number, m in enumerate(sorted({row["m"] for row in rows})):
        own = [row for row in rows if row["m"] == m]
        times = ([row[name] for row in own] for name in ("us", "modelled_us"))
        panel.plot(*times, linestyle="none", **_style(number, f"M = {m}"))
    ends = _ends(row[name] for row in rows for name in ("us", "modelled_us"))
    panel.plot(ends, ends, color=INK, linewidth=1)
    panel.set(xscale="log", yscale="log", xlabel="measured µs", ylabel="modelled µs")
    _legend(figure, panel)
    caption = "Every layer of ours; on the line the model is right."
    return Drawing("model", "The performance model against the GPU", caption, figure)


def validation(rows: Sequence[dict[str, Any]]) -> Iterator[Drawing]:
    """Published and modelled times by width."""
    gpus = _unique(row["gpu"] for row in rows)
    figure, axes = _panels(1, len(gpus), 2.8, sharey=True)
    for panel, gpu in zip(axes[0], gpus, strict=True):
        own = [row for row in rows if row["gpu"] == gpu]
        names = [row["weights"] for row in own]
        panel.plot(names, [row["published_us"] for row in own], "o-", label="published", color=PALETTE[0], markersize=4)
        modelled = [row["kernel_us"] + row["constant_us"] for row in own]
        panel.plot(names, modelled, "s--", label="modelled", color=PALETTE[1], markersize=4)
        panel.set_title(gpu)
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].set_ylabel("µs")
    _legend(figure, axes[0][0])
    caption = "Humming's kernels, M = 1, N = K = 8192; what the harness adds is fitted to the other points of the GPU."
    yield Drawing("times", "The model against published measurements", caption, figure)


def launch(tools: dict[str, Any]) -> Iterator[Drawing]:
    """Microseconds of Python per call."""
    calls = [
        (tool, f"{tool}: {call}", times["median_us"])
        for tool, kinds in tools.items()
        if isinstance(kinds, dict)
        for call, times in kinds.items()
    ]
    if calls:
        caption = "Median on a driver whose launches do nothing. Measured on this machine's processor; less is better."
        yield Drawing("calls", "Python's share of a call", caption, _bars(calls, "µs"))


def compile_(kinds: dict[str, Any]) -> Iterator[Drawing]:
    """Milliseconds from a function to machine code."""
    calls = [
        ("lowbitvm" if kind not in ("triton", "tilelang", "nvJitLink alone") else kind, kind, times["median_ms"])
        for kind, times in kinds.items()
    ]
    caption = (
        "Median, 4-bit kernels; the tools compile the same tiles in the same run. Measured on this machine's "
        "processor; less is better."
    )
    yield Drawing("latency", "From the Python function to machine code", caption, _bars(calls, "ms", log=True))


def pack(formats: dict[str, Any]) -> Iterator[Drawing]:
    """GB/s of f16 weights that are packed and quantised."""
    calls = [(what, text, times["gb_per_s"]) for text, kinds in formats.items() for what, times in kinds.items()]
    caption = "GB/s of the f16 weights that the codes stand for. Measured on this machine's processor; more is better."
    yield Drawing("speed", "Packing and quantising", caption, _bars(calls, "GB/s", legend=True))


def _bars(values: Sequence[tuple[str, str, float]], unit: str, log: bool = False, legend: bool = False) -> Any:
    """A bar for each (group, label, value), from the top down; a group has a colour."""
    groups = _unique(group for group, _, _ in values)
    figure, ((panel,),) = _panels(1, 1, 0.7 + 0.28 * len(values))
    colours = [PALETTE[groups.index(group)] for group, _, _ in values]
    bars = panel.barh(range(len(values)), [value for _, _, value in values], 0.7, color=colours)
    panel.bar_label(
        bars, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for _, _, value in values], padding=3, fontsize=8
    )
    panel.set_yticks(range(len(values)), [label for _, label, _ in values])
    panel.invert_yaxis()
    panel.margins(x=0.08)
    panel.set_xlabel(unit)
    panel.grid(axis="y", visible=False)
    if log:
        panel.set_xscale("log")
    if legend:
        first = [colours.index(PALETTE[number]) for number in range(len(groups))]
        panel.legend(
            [bars[place] for place in first], groups, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(groups)
        )
    return figure


SECTIONS: dict[str, Callable[[Any], Iterator[Drawing]]] = {
    "static": static,
    "model": model,
    "gpu": gpu,
    "validation": validation,
    "launch": launch,
    "compile": compile_,
    "pack": pack,
}
