"""Files of KuaiRand-27K's shape, smaller than the published ones: users fewer, their rows as many.

Rows a user, random rows a user, the size of the catalogue and the columns are the published ones.
Videos grow with rows as from KuaiRand-1K to KuaiRand-27K. Every video is logged once, the other
rows fall on videos by Zipf's law, half of them on those of the user's own taste, which the user
likes better, too. A hundredth of the more popular videos is the catalogue, and holds as few of the
rows as there. All rows are synthetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from kuaisim_gym.data.kuairand import RANDOM, STANDARD, USER_FEATURES, VIDEO_BASIC

PUBLISHED = {"1k": (1_000, 4_369_953, 11_713_045), "27k": (27_285, 32_038_725, 322_278_385)}
RANDOM_ROWS = 1_186_059 / 27_285  # of a user
CATALOGUE = 7_583
TASTES = 8
_STRIDE = 100  # ranks of popularity from one video of the catalogue to the next, at most
_START, _SPAN = 1_649_347_200_000, 2_678_400_000  # ms: 2022-04-08, 31 days
_MEMORY = "1GB"


@dataclass(frozen=True)
class Shape:
    """Numbers of users and videos, of a user's rows, and of videos that can be recommended."""

    users: int
    rows: int  # of a user, in the standard log
    videos: int
    random_rows: int  # of a user
    catalogue: int = CATALOGUE

    @property
    def stride(self) -> int:
        """Ranks of popularity from one video of the catalogue to the next."""
        return min(_STRIDE, self.videos // self.catalogue)

    @classmethod
    def of_rows(cls, rows: int) -> Shape:
        """The shape of a standard log of about so many rows."""
        users, _, total = PUBLISHED["27k"]
        of_user = round(total / users)
        n_users = max(round(rows / of_user), 1)
        return cls(n_users, of_user, videos_of(n_users * of_user), round(RANDOM_ROWS))


def videos_of(rows: int) -> int:
    """Videos among so many rows: a power law through the two published sizes."""
    (_, videos_1k, rows_1k), (_, videos_27k, rows_27k) = PUBLISHED.values()
    power = math.log(videos_27k / videos_1k) / math.log(rows_27k / rows_1k)
    return round(float(videos_1k * (rows / rows_1k) ** power))


_ROWS = """
SELECT *, CASE WHEN by_taste < .5 THEN (any_rank - any_rank % {tastes} + u % {tastes}) % {videos}
    ELSE any_rank END AS rank
FROM (
    SELECT n // {rows} AS u, n % {rows} AS k, hash(n, 1) / {most} AS chance,
        n * 7919 % {total} AS once,
        CASE WHEN once < {videos} THEN 1.0 ELSE hash(n, 2) / {most} END AS by_taste,
        CASE WHEN once < {videos} THEN once
        ELSE floor(pow({videos}, hash(n, 3) / {most})) - 1 END::BIGINT AS any_rank
    FROM range({first} * {rows}, {end} * {rows}) numbers(n)
)
"""
_RANDOM_ROWS = """
SELECT u, k, chance, hash(u, k, 5) % {catalogue} * {stride} AS rank
FROM (
    SELECT n // {random_rows} AS u, n % {random_rows} AS k, hash(n, 4) / {most} AS chance
    FROM range({users} * {random_rows}) numbers(n)
)
"""
_LOG = """
SELECT u AS user_id, {video} AS video_id, strftime(make_timestamp(t * 1000), '%Y%m%d') AS "date",
    strftime(make_timestamp(t * 1000), '%H%M')::INT AS hourmin, t AS time_ms,
    (chance < p)::INT AS is_click, (chance < .05 * p)::INT AS is_like,
    (chance < .01 * p)::INT AS is_follow, (chance > .99)::INT AS is_comment,
    (chance > .995)::INT AS is_forward, 0 AS is_hate, (chance < .7 * p)::INT AS long_view,
    (duration * chance)::BIGINT AS play_time_ms, duration AS duration_ms, 0 AS profile_stay_time,
    0 AS comment_stay_time, 0 AS is_profile_enter, {random} AS is_rand, 1 AS tab
FROM (
    SELECT *, hash(rank, 6) % 60000 + 3000 AS duration,
        .2 + .2 * (hash(rank, 7) / {most}) + .25 * (rank % {tastes} = u % {tastes})::INT AS p,
        ({start} + floor((k + .9 * chance) * {span} / {of_user}))::BIGINT * 2 + {random} AS t
    FROM ({source})
)
WHERE {where}
"""
_USERS = """
SELECT n AS user_id, ['full_active', 'high_active', 'middle_active'][(hash(n) % 3 + 1)::INT]
    AS user_active_degree, 0 AS is_lowactive_period, 0 AS is_live_streamer, 1 AS is_video_author,
    hash(n, 1) % 500 AS follow_user_num, '(10,50]' AS follow_user_num_range,
    hash(n, 2) % 90 AS fans_user_num, '[1,10)' AS fans_user_num_range,
    hash(n, 3) % 40 AS friend_user_num, '[1,5)' AS friend_user_num_range,
    hash(n, 4) % 900 AS register_days, '366-730' AS register_days_range,
    {onehot} FROM range({users}) numbers(n)
"""
_VIDEOS = """
SELECT {video} AS video_id, hash(rank, 8) % {videos} // 4 AS author_id,
    CASE WHEN hash(rank, 9) % 50 = 0 THEN 'AD' ELSE 'NORMAL' END AS video_type,
    '2022-04-08' AS upload_dt, 'ShortImport' || hash(rank, 10) % 8 AS upload_type,
    'public' AS visible_status, hash(rank, 6) % 60000 + 3000 AS video_duration, 720 AS server_width,
    1280 AS server_height, rank AS music_id, hash(rank, 11) % 4 AS music_type, rank % 60 AS tag
FROM range({videos}) ranks(rank)
"""


def write_large_files(shape: Shape, folder: Path) -> list[Path]:
    """Writes all files of a shape, a stream of rows at a time; returns them."""
    import duckdb

    half, middle = shape.users // 2, _START + _SPAN // 2
    constants = {
        "total": shape.users * shape.rows, "tastes": TASTES, "stride": shape.stride,
        "most": "1.8446744073709552e19", **vars(shape),
    }  # fmt: skip
    # A bijection of ranks: ids say nothing of popularity.
    video = f"rank * {_coprime(shape.videos)} % {shape.videos}"
    log = {"video": video, "start": _START // 2, "span": _SPAN // 2, **constants}
    queries = {}
    for name, times in zip(STANDARD, (f"t < {middle}", f"t >= {middle}"), strict=True):
        for file_number, (first, end) in enumerate(((0, half), (half, shape.users)), start=1):
            rows = _ROWS.format(first=first, end=end, **constants)
            queries[f"{name}_27k_part{file_number}"] = _LOG.format(
                source=rows, where=times, random=0, of_user=shape.rows, **log
            )
    queries[f"{RANDOM}_27k"] = _LOG.format(
        source=_RANDOM_ROWS.format(**constants), where="true", random=1,
        of_user=shape.random_rows, **log,
    )  # fmt: skip
    onehot = ", ".join(f"hash(n, {20 + i}) % 7 AS onehot_feat{i}" for i in range(18))
    queries[f"{USER_FEATURES}_27k"] = _USERS.format(onehot=onehot, **constants)
    queries[f"{VIDEO_BASIC}_27k"] = _VIDEOS.format(video=video, **constants)
    files = []
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": _MEMORY,
        "threads": 2,
        "temp_directory": str(folder / "spill"),
    }
    with duckdb.connect(config=settings) as connection:
        for table, query in queries.items():
            files.append(folder / f"{table}.csv")
            connection.execute(f"COPY ({query}) TO '{files[-1]}' (HEADER)")
    return files


def _coprime(n: int) -> int:
    """A factor that moves the numbers below ``n`` about, each to a place of its own."""
    factor = int(n * 0.618)
    while math.gcd(factor, n) > 1:
        factor += 1
    return factor
