"""Renders a session as text, as video frames and in a window.

Both pictures and text are functions of a :class:`SessionView` alone, so they know nothing of
environments. Pictures need matplotlib, which is imported when a canvas is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import Event
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

FloatArray = NDArray[np.float64]
Frame = NDArray[np.uint8]

SMALLEST = (900, 480)  # pixels; below, the legend has no room

_TEXT_COLUMNS = 160
# Sizes in pixels are divided by it and multiplied again; a power of two loses nothing on the way.
_DPI = 128

_PAPER, _SLOT, _UNKNOWN = 255.0, 242.0, 128.0  # grey levels: background, tile to come, no category
_PALEST = 0.2  # how much of its colour a tile keeps at response 0
_FRAME = 0.35  # how bright the frame of a popular item is, as a share of its tile
# Columns are what is computed, rows what it is computed from.
_OKLAB_TO_LMS = np.array(
    [
        [1.0, 1.0, 1.0],
        [0.3963377774, -0.1055613458, -0.0894841775],
        [0.2158037573, -0.0638541728, -1.2914855480],
    ]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -1.2684380046, -0.0041960863],
        [-3.3077115913, 2.6097574011, -0.7034186147],
        [0.2309699292, -0.3413193965, 1.7076147010],
    ]
)
_INK, _EDGE = "#222222", "#888888"
_BLUE, _GREEN, _RED = "#2f6db3", "#cfe8cf", "#c62828"


@dataclass(frozen=True, eq=False)
class SessionView:
    """The visible state of one session after t steps with slates of K items.

    Attributes:
        dataset: Source of the world, such as ``"kuairec (synthetic)"``.
        user_id: The dataset's own id.
        max_len: Initial temper, in steps; no session takes more steps.
        item_ids: (t, K) int64 or strings, the dataset's own ids.
        categories: (t, K) int32 category codes, -1 where unknown.
        popular: (t, K) bool, true for items of the popular group.
        responses: (t, K) float32 in [0, 1].
        rewards: (t,) float64 in [-1, 1].
        temper: (t + 1,) float64, in steps, from the start on.
        popular_share: (t,) float64 in [0, 1], share of popular items in the exposure window, or
            what ``measure`` says of other groups.
        penalised: (t,) bool, true where that window cost temper.
        over: True if the session has ended.
        bounds: Shares strictly between these are not penalised.
        lowest_reward: Lower end of the axis of rewards; below 0 where rewards can be negative.
        measure: Title of ``popular_share``: ``"popular share"``; or ``"group share"`` or
            ``"imbalance"``, see :attr:`~kuaisim_gym.simulator.groups.Groups.measure`.
    """

    dataset: str
    user_id: int | str
    max_len: int
    item_ids: NDArray[Any]
    categories: NDArray[np.int32]
    popular: NDArray[np.bool_]
    responses: NDArray[np.float32]
    rewards: FloatArray
    temper: FloatArray
    popular_share: FloatArray
    penalised: NDArray[np.bool_]
    over: bool
    bounds: tuple[float, float]
    lowest_reward: float = 0.0
    measure: str = "popular share"

    @property
    def steps(self) -> int:
        """Number of steps taken so far, t."""
        return len(self.rewards)


def as_text(view: SessionView) -> str:
    """The session as lines of ASCII, at most 160 columns wide for slates of up to 20 items.

    An item is its id, ``P`` (popular) or ``t`` (long tail), and its response in one character. Ids
    are left out where the lines would become too wide.
    """
    header = (
        f"{view.dataset}, user {view.user_id}: step {view.steps} of {view.max_len}, "
        f"temper {view.temper[-1]:z.2f}"
    )
    if not view.steps:
        return header
    table = _table(view, _tokens(view, with_ids=True))
    key = "item: id, "
    if max(map(len, table)) > _TEXT_COLUMNS:
        table = _table(view, _tokens(view, with_ids=False))
        key = "item: "
    key += "P popular or t long tail, response (+ is 1, - is 0, 7 is 0.7)"
    return "\n".join([header, key, *table, *([_closing(view)] if view.over else [])])


def _table(view: SessionView, tokens: list[list[str]]) -> list[str]:
    """Column heads, and one line per step."""
    slates = [" ".join(row) for row in tokens]
    width = max(map(len, slates))
    title = view.measure.split()[0]
    lines = [f"step  {'slate':{width}}  reward  temper  {title}"]
    for step, slate in enumerate(slates):
        lines.append(
            f"{step + 1:4}  {slate:{width}}  {view.rewards[step]:6.2f}  "
            f"{view.temper[step + 1]:z6.2f}  {view.popular_share[step]:{len(title)}.2f}"
            + ("  penalised" if view.penalised[step] else "")
        )
    return lines


def _tokens(view: SessionView, with_ids: bool) -> list[list[str]]:
    """Short words for the items, all of equal length."""
    ids = view.item_ids.astype(str) if with_ids else np.full(view.item_ids.shape, "")
    width = max(map(len, ids.flat))
    return [
        [
            f"{name:>{width}}{'P' if popular else 't'}{_response_mark(float(response))}"
            for name, popular, response in zip(*row, strict=True)
        ]
        for row in zip(ids, view.popular, view.responses, strict=True)
    ]


def _response_mark(response: float) -> str:
    """``+`` for 1, ``-`` for 0, and the nearest of 1 to 9 tenths strictly between."""
    if response >= 1.0:
        return "+"
    return "-" if response <= 0.0 else str(min(max(round(10 * response), 1), 9))


def _closing(view: SessionView) -> str:
    return (
        f"over after {view.steps} steps, {view.penalised.sum()} of them penalised: "
        f"mean reward {view.rewards.mean():.2f}"
    )


class Canvas:
    """Draws sessions, on frames of one size and in a window.

    Args:
        size: (width, height) of a frame in pixels: even, as video formats want them.

    Raises:
        ConfigError: The size is odd or too small, or matplotlib is not installed.
    """

    def __init__(self, size: tuple[int, int] = (960, 640)) -> None:
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "Pictures need matplotlib, which is not installed: "
                'pip install "kuaisim-gym[render]".'
            ) from error
        if any(pixels % 2 or pixels < least for pixels, least in zip(size, SMALLEST, strict=True)):
            raise ConfigError(
                f"size must be even numbers of pixels from {SMALLEST} on, (width, height), "
                f"got {size}."
            )
        self.size = size
        self._board: _Board | None = None
        self._window: _Window | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_board": None, "_window": None}  # a copy draws them again

    def draw(self, view: SessionView) -> Frame:
        """The session as a picture.

        Args:
            view: Any session, at any step.

        Returns:
            (height, width, 3) uint8 RGB, the caller's own; the same for the same view.
        """
        plan = _Plan.of(view)
        if self._board is None or self._board.plan != plan:
            self._board = _Board(self.size, plan)
        return self._board.draw(view)

    def show(self, view: SessionView) -> None:
        """Draws the session in a window, which the first call opens, and returns at once.

        Backends without windows, such as Agg, show nothing.
        """
        frame = self.draw(view)
        if self._window is None or self._window.closed:
            self._window = _Window(frame)
        self._window.update(frame)

    def close(self) -> None:
        """Closes the window, if there is one; drawing again is allowed."""
        if self._window is not None:
            self._window.close()
        self._window = None
        self._board = None


def category_colours(categories: NDArray[np.integer]) -> FloatArray:
    """One colour for each category code, the same in every session.

    Successive codes are a golden angle apart in hue, at two alternating lightnesses, so that the
    codes whose hues come closest differ in lightness. The space is OKLCH (Ottosson 2020), where
    colours of equal lightness look equally light.

    Args:
        categories: (...) integer codes, -1 where unknown.

    Returns:
        (..., 3) float64 sRGB in [0, 255]; grey where unknown.
    """
    hue = categories * (np.pi * (3.0 - np.sqrt(5.0))) + 0.5
    lightness = np.where(categories % 2 == 0, 0.60, 0.73)
    lab = np.stack([lightness, 0.14 * np.cos(hue), 0.14 * np.sin(hue)], axis=-1)
    linear = np.clip((lab @ _OKLAB_TO_LMS) ** 3 @ _LMS_TO_RGB, 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1.0 / 2.4) - 0.055)
    return np.where(categories[..., None] < 0, _UNKNOWN, 255.0 * encoded)


class _Window:
    """A pyplot figure that holds one frame."""

    def __init__(self, frame: Frame) -> None:
        from matplotlib import pyplot as plt

        height, width = frame.shape[:2]
        self._figure: Figure = plt.figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        axes = self._figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        self._image: AxesImage = axes.imshow(frame, origin="upper")
        # The backends that open windows are those that need a GUI framework.
        self._visible = self._figure.canvas.required_interactive_framework is not None
        self.closed = False  # by hand, too
        self._figure.canvas.mpl_connect("close_event", self._forget)
        manager = self._figure.canvas.manager
        if self._visible and manager is not None:
            manager.set_window_title("kuaisim-gym")
            manager.show()

    def update(self, frame: Frame) -> None:
        self._image.set_data(frame)
        if self._visible:
            self._figure.canvas.draw_idle()
            # As pyplot.pause, which would raise the current window, any window.
            self._figure.canvas.start_event_loop(0.001)

    def close(self) -> None:
        from matplotlib import pyplot as plt

        plt.close(self._figure)

    def _forget(self, event: Event) -> None:
        self.closed = True


@dataclass(frozen=True)
class _Plan:
    """Constants of a session; as long as they stay, the backdrop does."""

    max_len: int
    slate_size: int
    bounds: tuple[float, float]
    lowest_reward: float
    measure: str

    @classmethod
    def of(cls, view: SessionView) -> _Plan:
        lowest = float(np.min(view.rewards, initial=view.lowest_reward))
        return cls(view.max_len, view.item_ids.shape[1], view.bounds, lowest, view.measure)


class _Box(NamedTuple):
    """A rectangle of pixels, counted from the upper left corner."""

    left: int
    top: int
    right: int
    bottom: int


class _Board:
    """A backdrop of axes, ticks and legend, drawn once because they take most of the time."""

    def __init__(self, size: tuple[int, int], plan: _Plan) -> None:
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.plan = plan
        width, height = size
        # The style of the caller's figures must not change the frames.
        with style.context("default"):
            self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
            self._canvas = cast(Any, FigureCanvasAgg(self._figure))  # has no types
            self._tile_box, share, reward, temper = _layout(size)
            _slate_axes(_axes(self._figure, self._tile_box, plan), plan)
            self._share, self._penalties = _share_axes(_axes(self._figure, share, plan), plan)
            self._rewards = _reward_axes(_axes(self._figure, reward, plan), plan)
            self._temper = _temper_axes(_axes(self._figure, temper, plan), plan)
            self._title, self._facts = _header(self._figure, self._tile_box)
            _legend(self._figure, self._tile_box)
            lines = (self._share, self._penalties, self._temper)
            self._changing: tuple[Artist, ...] = (*lines, self._rewards, self._title, self._facts)
            for artist in self._changing:
                artist.set_animated(True)  # left out of the backdrop
            self._canvas.draw()
        self._backdrop = self._canvas.copy_from_bbox(self._figure.bbox)

    def draw(self, view: SessionView) -> Frame:
        """(height, width, 3) uint8 RGB."""
        middle, late = np.arange(view.steps) + 0.5, view.penalised
        self._share.set_data(middle, view.popular_share)
        self._penalties.set_data(middle[late], view.popular_share[late])
        self._rewards.set_verts(list(_bars(view.rewards)))
        self._temper.set_data(np.arange(view.steps + 1), view.temper)
        self._title.set_text(f"{view.dataset}, user {view.user_id}")
        self._facts.set_text(_facts(view))
        self._facts.set_color(_RED if view.over else _INK)
        self._canvas.restore_region(self._backdrop)
        for artist in self._changing:
            self._figure.draw_artist(artist)
        frame: Frame = np.asarray(self._canvas.buffer_rgba())[:, :, :3].copy()
        left, top, right, bottom = self._tile_box
        frame[top:bottom, left:right] = _tiles(view, bottom - top, right - left)
        return frame


def _layout(size: tuple[int, int]) -> list[_Box]:
    """Boxes of the slates, shares, rewards and temper, from top to bottom, of one width."""
    left, right, top, bottom, gap = 58, 14, 66, 42, 9
    pixels = size[1] - top - bottom - 3 * gap
    edges = np.round(np.cumsum([0, 52, 16, 13, 19]) * pixels / 100).astype(int) + top
    return [
        _Box(left, int(start) + row * gap, size[0] - right, int(end) + row * gap)
        for row, (start, end) in enumerate(pairwise(edges))
    ]


def _axes(figure: Figure, box: _Box, plan: _Plan) -> Axes:
    """Axes with one column per step, aligned in all panels."""
    left, top, right, bottom = box
    width, height = figure.bbox.size
    axes = figure.add_axes(
        (left / width, 1.0 - bottom / height, (right - left) / width, (bottom - top) / height)
    )
    axes.set_xlim(0, plan.max_len)
    steps = _numbers(plan.max_len, (right - left) // 60)
    axes.set_xticks(steps - 0.5, [str(step) for step in steps])
    axes.tick_params(labelsize=6, length=2, width=0.5, pad=2, labelbottom=False)
    axes.spines[:].set(linewidth=0.5, color=_EDGE)
    return axes


def _numbers(last: int, most: int) -> NDArray[np.int64]:
    """1 and round numbers up to ``last``, about ``most`` in all."""
    strides = [base * 10**power for power in range(9) for base in (1, 2, 5)]
    stride = next(stride for stride in strides if last <= stride * max(most, 1))
    return np.unique(np.append(1, np.arange(stride, last + 1, stride)))


def _slate_axes(axes: Axes, plan: _Plan) -> None:
    """Labels the slate panel; its tiles are pasted in later."""
    axes.set_ylim(plan.slate_size, 0)
    positions = _numbers(plan.slate_size, 10)
    axes.set_yticks(positions - 0.5, [str(position) for position in positions])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _name(axes, "slate position")


def _share_axes(axes: Axes, plan: _Plan) -> tuple[Line2D, Line2D]:
    """Line of shares with marks at penalised steps, over the band of allowed shares."""
    low, high = np.clip(plan.bounds, 0.0, 1.0)
    axes.axhspan(low, high, color=_GREEN, linewidth=0)
    axes.set_ylim(-0.08, 1.08)  # marks at 0 and 1 are whole
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    _name(axes, plan.measure.replace(" ", "\n"))
    (line,) = axes.plot([], [], color=_INK, linewidth=0.9, marker="o", markersize=2.2)
    marks = _penalty_mark()
    axes.add_line(marks)
    return line, marks


def _reward_axes(axes: Axes, plan: _Plan) -> PolyCollection:
    """One bar per step."""
    from matplotlib.collections import PolyCollection

    axes.set_ylim(plan.lowest_reward, 1.0)
    ticks = sorted({plan.lowest_reward, 0.0, 1.0})
    axes.set_yticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axes.axhline(0.0, color=_EDGE, linewidth=0.5)
    _name(axes, "reward")
    bars = PolyCollection([], facecolor=_BLUE, linewidth=0, antialiased=True)
    axes.add_collection(bars, autolim=False)
    return bars


def _temper_axes(axes: Axes, plan: _Plan) -> Line2D:
    """Line of temper, over a dotted line below which users leave."""
    axes.axhline(1.0, color=_RED, linewidth=0.8, linestyle=":")
    axes.text(
        plan.max_len * 0.995, 1.0, "leaves below 1", fontsize=6, color=_RED, ha="right", va="bottom"
    )
    axes.set_ylim(0, plan.max_len * 1.04)
    axes.set_yticks([0, plan.max_len / 2, plan.max_len])
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("step", fontsize=7, labelpad=1)
    _name(axes, "temper")
    (line,) = axes.plot([], [], color=_BLUE, linewidth=1.3, marker="o", markersize=2.2)
    return line


def _name(axes: Axes, text: str) -> None:
    """Labels the y axis; labels of all panels are aligned."""
    axes.yaxis.set_label_coords(-32 / axes.bbox.width, 0.5)
    axes.set_ylabel(text, fontsize=7, linespacing=0.95)


def _header(figure: Figure, box: _Box) -> tuple[Text, Text]:
    """Empty texts above the slates: the title of the session, and its current state."""
    width, height = figure.bbox.size
    y = 1.0 - 20 / height
    title = figure.text(box.left / width, y, "", fontsize=9, weight="bold", va="center")
    return title, figure.text(box.right / width, y, "", fontsize=8, ha="right", va="center")


def _facts(view: SessionView) -> str:
    facts = [f"step {view.steps} of {view.max_len}", f"temper {view.temper[-1]:z.1f}"]
    if view.steps:
        facts += [f"mean reward {view.rewards.mean():.2f}", f"{view.penalised.sum()} penalised"]
    return "   ".join((["over"] if view.over else []) + facts)


def _legend(figure: Figure, box: _Box) -> None:
    """Legend of tiles and marks in one line."""
    from matplotlib.patches import Patch

    first, second = category_colours(np.arange(2))
    fills = {
        "long tail": first,
        "response 1": second,
        "response 0": _blend(second, _PAPER, _PALEST),
        "colour: category, grey: unknown": np.full(3, _UNKNOWN),
    }
    width, height = figure.bbox.size
    figure.legend(
        handles=[
            Patch(facecolor=_hex(first), edgecolor=_hex(_FRAME * first), lw=1.2, label="popular"),
            *(Patch(facecolor=_hex(colour), label=label) for label, colour in fills.items()),
            Patch(facecolor=_GREEN, label="share not penalised"),
            _penalty_mark(label="penalised"),
        ],
        loc="center left",
        bbox_to_anchor=(box.left / width, 1.0 - 46 / height),
        borderaxespad=0.0,
        borderpad=0.0,
        ncols=7,
        fontsize=6.5,
        frameon=False,
        handlelength=1.0,
        handleheight=1.0,
        handletextpad=0.5,
        columnspacing=1.6,
    )


def _penalty_mark(label: str = "") -> Line2D:
    """Crosses, whose positions are set later."""
    from matplotlib.lines import Line2D

    mark = Line2D([], [], color=_RED, linestyle="none", label=label)
    mark.set(marker="x", markersize=5, markeredgewidth=1.3)
    return mark


def _hex(colour: FloatArray) -> str:
    """A colour in [0, 255] as hexadecimal text for matplotlib."""
    return "#" + bytes(colour.round().astype(np.uint8).tolist()).hex()


def _bars(heights: FloatArray) -> FloatArray:
    """(t, 4, 2) corners of one vertical bar per step, starting at 0."""
    left = np.arange(len(heights))[:, None] + np.array([0.14, 0.86, 0.86, 0.14])
    ends = heights[:, None] * np.array([0.0, 0.0, 1.0, 1.0])
    return np.stack([left, ends], axis=2)


def _tiles(view: SessionView, height: int, width: int) -> Frame:
    """(height, width, 3) uint8: slates as tiles, one column per step and one row per position."""
    position, from_row_edge = _cells(height, view.item_ids.shape[1])
    step, from_column_edge = _cells(width, view.max_len)
    fill, frame = _tile_colours(view)
    side = min(height // fill.shape[0], width // fill.shape[1])
    gap, thickness = int(side >= 6), 2 if side >= 12 else int(side >= 4)
    depth = np.minimum(from_row_edge[:, None], from_column_edge)[:, :, None]
    inside, border = fill[position][:, step], frame[position][:, step]
    tiles = np.where(depth < gap + thickness, border, inside)
    return np.where(depth < gap, np.uint8(_PAPER), tiles)


def _tile_colours(view: SessionView) -> tuple[Frame, Frame]:
    """(K, max_len, 3) uint8 arrays: the inside of every tile, and its frame."""
    shape = (view.item_ids.shape[1], view.max_len, 3)
    inside = np.full(shape, _PAPER if view.over else _SLOT)
    frame = inside.copy()
    answered = np.clip(view.responses, 0.0, 1.0).astype(np.float64)[:, :, None]
    colours = category_colours(view.categories)
    shown = _blend(colours, _PAPER, _PALEST + (1.0 - _PALEST) * answered)
    inside[:, : view.steps] = shown.transpose(1, 0, 2)
    framed = np.where(view.popular[:, :, None], _FRAME * colours, shown)
    frame[:, : view.steps] = framed.transpose(1, 0, 2)
    return inside.round().astype(np.uint8), frame.round().astype(np.uint8)


def _blend(colours: FloatArray, white: float, share: FloatArray | float) -> FloatArray:
    """Colours mixed with white, ``share`` of the mixture."""
    return white + share * (colours - white)


def _cells(length: int, cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(length,) arrays: each pixel's cell, and its distance from the edges of that cell."""
    pixels = np.arange(length)
    edges = np.linspace(0, length, cells + 1).round().astype(np.intp)
    cell = np.searchsorted(edges, pixels, side="right") - 1
    return cell, np.minimum(pixels - edges[cell], edges[cell + 1] - 1 - pixels)
