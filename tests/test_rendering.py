"""What a rendered session says, in text and in pixels."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.backend_bases import CloseEvent, FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

from kuaisim_gym.errors import ConfigError
from kuaisim_gym.rendering import Canvas, Frame, SessionView, as_text, category_colours

STEPS, K, MAX_LEN = 4, 3, 8


def session(steps: int = STEPS, max_len: int = MAX_LEN, k: int = K, **changes: Any) -> SessionView:
    """The first steps of a session whose slates, answers and penalties all vary."""
    rng = np.random.default_rng(5)
    popular = rng.random((max_len, k)) < 0.5
    responses = (rng.random((max_len, k)) < 0.5).astype(np.float32)
    rewards = responses.mean(axis=1).astype(np.float64)
    share = popular.mean(axis=1)
    penalised = np.abs(2 * share - 1) >= 0.3
    temper = max_len - np.cumsum(np.append(0.0, 2 - rewards + penalised)) / 3
    view = SessionView(
        dataset="kuairec (synthetic)",
        user_id=14,
        max_len=max_len,
        item_ids=np.arange(max_len * k).reshape(max_len, k)[:steps],
        categories=rng.integers(0, 31, (max_len, k)).astype(np.int32)[:steps],
        popular=popular[:steps],
        responses=responses[:steps],
        rewards=rewards[:steps],
        temper=temper[: steps + 1],
        popular_share=share[:steps],
        penalised=penalised[:steps],
        over=False,
        bounds=(0.35, 0.65),
    )
    return dataclasses.replace(view, **changes)


def with_entry(view: SessionView, name: str, at: Any, value: Any) -> SessionView:
    """The same view but for one entry of one array."""
    array = getattr(view, name).copy()
    assert array[at] != value
    array[at] = value
    return dataclasses.replace(view, **{name: array})


def extent(one: Frame, other: Frame) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the pixels that differ, both ends included."""
    rows, columns = np.nonzero((one != other).any(axis=2))
    assert len(rows), "no pixel differs"
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


@pytest.fixture(scope="module")
def canvas() -> Canvas:
    return Canvas()


@pytest.fixture(scope="module")
def tiles(canvas: Canvas) -> dict[tuple[int, int], tuple[int, int, int, int]]:
    """Where the inside of each tile is, found by changing its category."""
    view = session(categories=np.zeros((STEPS, K), np.int32), responses=np.ones((STEPS, K), "f4"))
    before = canvas.draw(view)
    return {
        at: extent(before, canvas.draw(with_entry(view, "categories", at, 3)))
        for at in np.ndindex(STEPS, K)
    }


@pytest.fixture
def agg() -> Any:
    """Pyplot on a backend without windows, and no figures left behind."""
    plt.switch_backend("Agg")
    yield
    plt.close("all")


# Text


def test_text_of_a_small_session() -> None:
    view = SessionView(
        dataset="kuairec (synthetic)",
        user_id=14,
        max_len=30,
        item_ids=np.array([[2517, 88], [1397, 5]]),
        categories=np.array([[0, -1], [3, 3]], np.int32),
        popular=np.array([[True, True], [False, True]]),
        responses=np.array([[1.0, 0.0], [0.72, 0.01]], np.float32),
        rewards=np.array([0.5, 0.365]),
        temper=np.array([30.0, 27.5, 25.865]),
        popular_share=np.array([1.0, 0.5]),
        penalised=np.array([True, False]),
        over=True,
        bounds=(0.35, 0.65),
    )
    text = """\
kuairec (synthetic), user 14: step 2 of 30, temper 25.86
item: id, P popular or t long tail, response (+ is 1, - is 0, 7 is 0.7)
step  slate          reward  temper  popular
   1  2517P+   88P-    0.50   27.50     1.00  penalised
   2  1397t7    5P1    0.36   25.86     0.50"""
    assert as_text(dataclasses.replace(view, over=False)) == text
    assert as_text(view) == f"{text}\nover after 2 steps, 1 of them penalised: mean reward 0.43"


def test_text_before_the_first_step_is_the_header() -> None:
    assert as_text(session(0)) == "kuairec (synthetic), user 14: step 0 of 8, temper 8.00"


def test_only_certain_answers_look_certain() -> None:
    responses = np.array([[0.0, 0.001, 0.5, 0.999, 1.0]], np.float32)
    slate = as_text(session(1, k=5, responses=responses)).splitlines()[3]
    assert [token[-1] for token in slate.split()[1:6]] == ["-", "1", "5", "9", "+"]


@pytest.mark.parametrize(("k", "with_ids"), [(10, True), (20, False)])
def test_wide_slates_leave_ids_out(k: int, with_ids: bool) -> None:
    ids = np.full((4, k), 10_727_123)
    lines = as_text(session(k=k, item_ids=ids)).splitlines()
    assert max(map(len, lines)) <= 160
    assert ("10727123" in lines[3]) == with_ids
    assert len(lines[3].split()[1 : k + 1]) == k
    assert all(token[-2] in "Pt" and token[-1] in "+-" for token in lines[3].split()[1 : k + 1])


# Frames


@pytest.mark.parametrize("size", [(960, 640), (1278, 722)])
def test_every_frame_has_the_same_shape(size: tuple[int, int]) -> None:
    canvas = Canvas(size)
    for steps in range(MAX_LEN + 1):
        frame = canvas.draw(session(steps, over=steps == MAX_LEN))
        assert frame.shape == (size[1], size[0], 3)
        assert frame.dtype == np.uint8
        assert frame.flags.c_contiguous
        assert frame.flags.owndata


def test_a_frame_depends_on_its_view_alone(canvas: Canvas) -> None:
    first = canvas.draw(session())
    kept = first.copy()
    canvas.draw(session(7, over=True))  # a later step of the same session
    canvas.draw(session(0, dataset="kuairand (real)", user_id=3))
    canvas.draw(session(9, max_len=50, k=20, bounds=(-1.0, 0.65), lowest_reward=-1.0))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(canvas.draw(session()), kept)
    np.testing.assert_array_equal(Canvas().draw(session()), kept)


def test_a_frame_ignores_the_style_of_other_figures(canvas: Canvas) -> None:
    with plt.style.context("dark_background"):
        other = Canvas().draw(session())
    np.testing.assert_array_equal(other, canvas.draw(session()))


def test_tiles_lie_in_a_grid_of_steps_and_positions(tiles: dict[Any, Any]) -> None:
    for (step, position), (top, bottom, left, right) in tiles.items():
        if step:
            assert tiles[step - 1, position][3] < left
            assert tiles[step - 1, position][:2] == (top, bottom)
        if position:
            assert tiles[step, position - 1][1] < top
            assert tiles[step, position - 1][2:] == (left, right)


@pytest.mark.parametrize("at", [(0, 0), (2, 1), (3, 2)])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("responses", lambda old: 1.0 - old),
        ("responses", lambda old: abs(old - 0.1)),  # in between
        ("categories", lambda old: old + 1),
        ("categories", lambda old: -1),
        ("popular", lambda old: not old),
    ],
)
def test_an_item_shows_in_its_own_tile(
    canvas: Canvas, tiles: dict[Any, Any], at: tuple[int, int], name: str, change: Any
) -> None:
    view = session()
    changed = with_entry(view, name, at, change(getattr(view, name)[at]))
    top, bottom, left, right = extent(canvas.draw(view), canvas.draw(changed))
    own = tiles[at]
    assert own[0] <= top <= bottom <= own[1]
    assert own[2] <= left <= right <= own[3]


def test_popular_items_are_framed(canvas: Canvas, tiles: dict[Any, Any]) -> None:
    view = session(popular=np.zeros((STEPS, K), bool))
    plain, framed = canvas.draw(view), canvas.draw(with_entry(view, "popular", (1, 1), True))
    top, bottom, left, right = tiles[1, 1]
    middle = (slice(top + 4, bottom - 3), slice(left + 4, right - 3))
    np.testing.assert_array_equal(plain[middle], framed[middle])
    assert (framed[top, left : right + 1] < plain[top, left : right + 1]).all()


def test_the_better_the_answer_the_stronger_the_colour(
    canvas: Canvas, tiles: dict[Any, Any]
) -> None:
    responses = np.zeros((STEPS, K), np.float32)
    responses[:, 0] = [0.0, 0.3, 0.7, 1.0]
    frame = canvas.draw(session(categories=np.full((STEPS, K), 2, np.int32), responses=responses))
    centres = [tiles[step, 0] for step in range(STEPS)]
    seen = [frame[(t + b) // 2, (le + r) // 2].astype(float) for t, b, le, r in centres]
    whiteness = [colour.min() for colour in seen]
    assert whiteness == sorted(whiteness, reverse=True)
    assert len(set(whiteness)) == STEPS
    np.testing.assert_allclose(seen[-1], category_colours(np.array(2)), atol=0.5)


@pytest.mark.parametrize("name", ["temper", "rewards", "popular_share"])
def test_a_series_shows_below_its_step(canvas: Canvas, tiles: dict[Any, Any], name: str) -> None:
    view, bottom = session(), tiles[0, K - 1][1]
    # The last entry but one: the header tells the latest temper.
    at = 1 if name != "temper" else 2
    changed = with_entry(view, name, at, 0.05)
    one, other = canvas.draw(view), canvas.draw(changed)
    np.testing.assert_array_equal(one[50:bottom], other[50:bottom])
    _, _, left, right = extent(one[bottom:], other[bottom:])
    # Lines reach over to the neighbouring steps, no further.
    assert tiles[0, 0][2] <= left <= tiles[1, 0][3]
    assert tiles[1, 0][2] <= right <= tiles[3, 0][3]


def test_a_penalty_is_marked_at_its_step_and_counted(canvas: Canvas, tiles: dict[Any, Any]) -> None:
    view = session(penalised=np.zeros(STEPS, bool))
    one, other = canvas.draw(view), canvas.draw(with_entry(view, "penalised", 2, True))
    bottom = tiles[0, K - 1][1]
    _, _, left, right = extent(one[bottom:], other[bottom:])
    assert tiles[2, 0][2] <= left <= right <= tiles[2, 0][3]
    extent(one[:40], other[:40])  # in the header
    np.testing.assert_array_equal(one[50:bottom], other[50:bottom])


def test_series_lie_one_below_the_other(canvas: Canvas, tiles: dict[Any, Any]) -> None:
    view, bottom = session(), tiles[0, K - 1][1]
    before = canvas.draw(view)[bottom:]
    spans = [
        extent(before, canvas.draw(with_entry(view, name, at, 0.05))[bottom:])[:2]
        for name, at in (("popular_share", 1), ("rewards", 1), ("temper", 2))
    ]
    assert spans[0][1] < spans[1][0]
    assert spans[1][1] < spans[2][0]


def test_an_ended_session_looks_ended(canvas: Canvas, tiles: dict[Any, Any]) -> None:
    running, over = canvas.draw(session()), canvas.draw(session(over=True))
    right = tiles[STEPS - 1, 0][3] + 2
    top, bottom = tiles[0, 0][0], tiles[0, K - 1][1]
    np.testing.assert_array_equal(running[50:, :right], over[50:, :right])
    assert (over[top:bottom, right:] == 255).all()
    assert (running[top:bottom, right:] < 255).any()
    extent(running[:40], over[:40])  # the header says it


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "kuairand (real)"},
        {"user_id": 15},
        {"bounds": (-np.inf, 0.65)},
        {"lowest_reward": -0.5},
        {"rewards": np.array([1.0, -0.5, 0.2, 0.0])},
    ],
)
def test_facts_of_a_session_show_outside_the_tiles(
    canvas: Canvas, tiles: dict[Any, Any], changes: dict[str, Any]
) -> None:
    one, other = canvas.draw(session()), canvas.draw(session(**changes))
    extent(one, other)
    top, bottom = tiles[0, 0][0], tiles[0, K - 1][1]
    np.testing.assert_array_equal(one[top:bottom], other[top:bottom])


@pytest.mark.parametrize(("max_len", "k"), [(2, 1), (50, 20), (1000, 100)])
def test_any_number_of_tiles_can_be_drawn(canvas: Canvas, max_len: int, k: int) -> None:
    extent(canvas.draw(session(1, max_len, k)), canvas.draw(session(max_len, max_len, k)))


def test_colours_belong_to_codes() -> None:
    codes = np.arange(-1, 60)
    colours = category_colours(codes)
    assert colours.min() >= 0
    assert colours.max() <= 255
    np.testing.assert_array_equal(colours[0], 128.0)
    np.testing.assert_array_equal(colours[::-1], category_colours(codes[::-1].reshape(61)))
    between = np.abs(colours[:, None] - colours[None]).sum(axis=2)
    assert between[~np.eye(61, dtype=bool)].min() > 5


# Window and set-up


def test_showing_without_windows_is_silent(agg: None) -> None:
    canvas = Canvas()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas.show(session(1))
        canvas.show(session(2))
        assert len(plt.get_fignums()) == 1
        canvas.close()
        assert not plt.get_fignums()
        canvas.close()
    assert canvas.draw(session(2)).any()


def test_a_window_holds_the_frame(agg: None) -> None:
    canvas = Canvas()
    canvas.show(session(3))
    shown = plt.figure(plt.get_fignums()[0])
    shown.canvas.draw()
    np.testing.assert_array_equal(
        np.asarray(shown.canvas.buffer_rgba())[:, :, :3], canvas.draw(session(3))
    )
    canvas.close()


def test_a_window_opens_once_and_again_when_closed_by_hand(
    agg: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[FigureManagerBase] = []
    served: list[float] = []
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "stand-in")
    monkeypatch.setattr(FigureManagerBase, "show", lambda self: opened.append(self))  # noqa: PLW0108
    monkeypatch.setattr(
        FigureCanvasAgg, "start_event_loop", lambda self, timeout=0: served.append(timeout)
    )
    canvas = Canvas()
    canvas.show(session(1))
    canvas.show(session(2))
    assert len(opened) == 1
    assert len(served) == 2
    assert max(served) < 0.01
    figure = opened[0].canvas
    figure.callbacks.process("close_event", CloseEvent("close_event", figure))
    canvas.show(session(3))
    assert len(opened) == 2
    canvas.close()


def test_drawing_leaves_pyplot_alone(agg: None) -> None:
    mine = plt.figure()
    before = dict(plt.rcParams)
    Canvas().draw(session())
    assert plt.get_fignums() == [mine.number]
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize("size", [(961, 640), (960, 641), (200, 640), (960, 100)])
def test_sizes_that_videos_or_labels_do_not_take(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="even numbers of pixels"):
        Canvas(size)


def test_missing_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r'pip install "kuaisim-gym\[render\]"'):
        Canvas()
    assert as_text(session())


def test_importing_and_text_need_no_matplotlib() -> None:
    code = (
        "import sys, kuaisim_gym.rendering; "
        "print([name for name in sys.modules if name.startswith('matplotlib')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
