"""Real worlds: biased logs of positives, judged by real answers.

They are built from files that other researchers republished of KuaiRec (Gao et al., CIKM 2022, doi
10.1145/3511808.3557220) and of KuaiRand (Gao et al., CIKM 2022, doi 10.1145/3511808.3557624). A log
says which exposures were answered positively, and nothing of the others; the answers of the users
who judge are those of KuaiRec's fully observed matrix or of KuaiRand's random exposures.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.captions import CaptionedSource, joined, read_captions
from kuaisim_gym.data.coding import Positions, note_counts
from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.data.feedback import Interactions, LabelLog, PositiveLog, WatchSample
from kuaisim_gym.data.files import DataFiles, Layout, find_files
from kuaisim_gym.data.kuairec import (
    ITEM_CATEGORIES,
    USER_FEATURES,
    read_categories,
    read_user_features,
)
from kuaisim_gym.data.source import Source
from kuaisim_gym.data.split import is_test_user
from kuaisim_gym.data.tables import Column, Table, Tables, open_tables
from kuaisim_gym.errors import DataFormatError

BIG_LIKES = "big_matrix_watch_ratio_ge_2"
SMALL_LIKES, SMALL_ROWS = "small_matrix_watch_ratio_ge_2", "small_matrix_rows"
CLICKS, RANDOM_LABELS = "standard_log_clicks_remapped", "random_log_clicks_remapped"
KUAIREC = Layout(
    "KuaiRec's log of likes and fully observed answers",
    required=(BIG_LIKES, SMALL_LIKES, SMALL_ROWS),
    optional=(USER_FEATURES, ITEM_CATEGORIES),
)
KUAIRAND = Layout("KuaiRand's clicks and labelled random rows", required=(CLICKS, RANDOM_LABELS))

LIKE = 2.0  # watch ratio from which on an answer is a like
# The published big matrix has 12,530,806 rows, of which 915,673 are likes; half of its rows have a
# watch ratio of at least .72. 46.4 % of KuaiRand-Pure's standard rows were clicked.
LIKE_RATE, WATCHED_RATE, CLICK_RATE = 0.073, 0.72, 0.464
POOL_ROWS = 80  # test rows of a user whose sessions are played over them alone

logger = logging.getLogger(__name__)


@dataclass
class _Pairs:
    """Rows of (user, item) ids as they stand in a file, each pair once.

    Attributes:
        users: (n,) ids, ascending.
        items: (n,) ids, ascending for each user.
        value: (n,) the column that the file has beside them, if any.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    value: NDArray[np.float64]


def _read_pairs(
    tables: Tables, files: DataFiles, name: str, notes: dict[str, int], value: Column | None = None
) -> _Pairs:
    """Reads a file of pairs, of which repeated rows must agree.

    Raises:
        DataFormatError: Two rows of a pair have different values.
    """
    keys = [Column("user_id", low=0), Column("video_id", low=0)]
    table = tables.read(files.tables[name], [*keys, *([value] if value else [])], rows="pairs")
    if value is not None:
        _check_agreement(tables, table, value.name)
    chosen = "0" if value is None else f"min({value.name})"
    query = (
        f"SELECT user_id, video_id, {chosen} AS value FROM {table.sql} "
        f"GROUP BY user_id, video_id ORDER BY user_id, video_id"
    )
    chunks = list(tables.stream(query))
    users, items, values = (
        np.concatenate([chunk[column] for chunk in chunks])
        for column in ("user_id", "video_id", "value")
    )
    repeated = tables.count(f"FROM {table.sql}") - len(users)
    if repeated:
        notes[f"{name}_rows_repeated"] = repeated
        logger.warning("%s: %d repeated row(s) of a pair dropped.", table.files[0], repeated)
    return _Pairs(users.astype(np.int64), items.astype(np.int64), values.astype(np.float64))


def _check_agreement(tables: Tables, table: Table, value: str) -> None:
    """Refuses a pair whose rows say different things."""
    wrong = tables.column(
        f"SELECT max(rowid) FROM {table.sql} GROUP BY user_id, video_id "
        f"HAVING min({value}) < max({value}) ORDER BY 1 LIMIT 1"
    )
    if len(wrong):
        raise DataFormatError(
            f"{table.location(int(wrong[0]))}, column {value!r}: an earlier row of the same "
            f"user_id and video_id has another value; expected one answer a pair. Remove one."
        )


def _positions(
    pairs: _Pairs, users: Positions, items: Positions
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Positions of users and items, in the pairs' order."""
    return users(pairs.users), items(pairs.items)


@dataclass
class _Answers:
    """Answers of users whose likes are all listed.

    Attributes:
        users: Ids of the users, ascending.
        items: Ids of the catalogue, ascending.
        likes: (n_users, n_items) bool, watch ratios of at least 2.
        sample: (n, 2) rows and columns of the cells whose ratio is in the files.
        ratio: (n,) their watch ratios.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    likes: NDArray[np.bool_]
    sample: NDArray[np.int64]
    ratio: NDArray[np.float64]


def _read_answers(tables: Tables, files: DataFiles, notes: dict[str, int]) -> _Answers:
    """Reads the fully observed likes, and the sample of watch ratios."""
    ratio = Column("watch_ratio", "number", low=0, high=float(np.finfo(np.float32).max))
    listed = _read_pairs(tables, files, SMALL_LIKES, notes)
    rows = _read_pairs(tables, files, SMALL_ROWS, notes, ratio)
    high = rows.value >= LIKE
    strangers = high & ~np.isin(rows.users, listed.users)
    unlisted = high & ~np.isin(rows.items, listed.items)
    covered_user = ~np.isin(rows.users, rows.users[strangers])
    covered_item = ~np.isin(rows.items, rows.items[unlisted])
    notes["users_left_out_as_not_in_the_list"] = len(np.unique(rows.users[~covered_user]))
    notes["videos_left_out_as_not_in_the_list"] = len(np.unique(rows.items[~covered_item]))
    inside = covered_user & covered_item
    users = Positions(np.union1d(listed.users, rows.users[inside]))
    items = Positions(np.union1d(listed.items, rows.items[inside]))
    likes = np.zeros((len(users), len(items)), dtype=bool)
    likes[_positions(listed, users, items)] = True
    cells = _positions(rows, users, items)
    sample = np.stack(cells, axis=1).astype(np.int64)[inside]
    contradicting = high[inside] != likes[sample[:, 0], sample[:, 1]]
    likes[sample[:, 0], sample[:, 1]] = high[inside]
    notes["sampled_answers_that_the_list_contradicts"] = int(np.count_nonzero(contradicting))
    return _Answers(users.ids, items.ids, likes, sample, rows.value[inside])


class _KuaiRecLikes(CaptionedSource):
    """Log of likes of KuaiRec's big matrix, judged by users of the fully observed small one.

    Rules of reading, each counted in ``Dataset.notes``:

    * A like is a watch ratio of at least 2. The log holds a (user, video) pair once, however
      often (``times``) it was liked; popularity counts these pairs.
    * Judging users and the catalogue are those of the list of likes and of the sampled rows,
      ascending. A user or video with a sampled like who is not in the list at all is left out: the
      list does not cover them. Where both cover a pair and disagree, the sampled ratio stands.
    * A logged row of a judging user and a catalogue video is dropped: it would leak an answer.
    * Train users are all other users of the log; the judging users' own rows, all of them of
      videos outside the catalogue, are their history.
    * Videos of the log alone stand behind the catalogue, ascending. Features are optional.
    """

    positive_rate: float

    def find(self, path: str | Path) -> DataFiles:
        return find_files(path, [self.layout(KUAIREC)])

    @abstractmethod
    def _test(self, answers: _Answers, users: NDArray[np.int32]) -> Interactions:
        """The test table, given the judging users' positions."""

    def read(self, files: DataFiles) -> Dataset:
        notes: dict[str, int] = {}
        with open_tables() as tables:
            answers = _read_answers(tables, files, notes)
            likes = _read_pairs(tables, files, BIG_LIKES, notes, Column("times", low=1))
            notes["log_likes_beyond_the_first_of_a_pair"] = int((likes.value - 1).sum())
            users = Positions(np.union1d(likes.users, answers.users))
            log_only = np.setdiff1d(likes.items, answers.items)
            items = Positions(np.concatenate([answers.items, log_only]))
            notes["log_only_items"] = len(log_only)
            log = PositiveLog(*_positions(likes, users, items))
            leaks = np.isin(likes.users, answers.users) & (log.items < len(answers.items))
            notes["log_rows_dropped_as_test_cells"] = int(np.count_nonzero(leaks))
            dataset = Dataset(
                name=self.name,
                synthetic=False,
                user_ids=users.ids,
                item_ids=items.ids,
                n_items=len(answers.items),
                log=log.take(~leaks),
                test=self._test(answers, users(answers.users)),
                user_features=read_user_features(tables, files, users, notes),
                item_features=joined(
                    read_categories(tables, files, items, notes),
                    read_captions(tables, files, items, notes),
                ),
                popularity="positives",
                positive_rate=self.positive_rate,
                notes=notes,
            )
        logger.info("Read %s from %s: %s", self.name, files.folder, note_counts(notes))
        return dataset


class KuaiRecLike(_KuaiRecLikes):
    """KuaiRec's likes: every answer is looked up, nothing is modelled.

    A test answer is 1 where a pair is in the list of likes and 0 elsewhere. Of the small matrix
    .4 % were never observed; those pairs count as 0. Of its 3,327 videos the files establish 3,311.
    """

    name = "kuairec-like"
    positive_rate = LIKE_RATE

    def _test(self, answers: _Answers, users: NDArray[np.int32]) -> Interactions:
        n_items = len(answers.items)
        return LabelLog(
            np.repeat(users, n_items),
            np.tile(np.arange(n_items, dtype=np.int32), len(users)),
            answers.likes.ravel().astype(np.uint8),
        )


class KuaiRecWatch(_KuaiRecLikes):
    """KuaiRec's watch ratios: likes and sampled answers are looked up, the others modelled.

    The log is one of likes, the answers are shares watched, ``min(watch ratio, 1)``; the train
    simulator's level is set to the median watch ratio of the published big matrix. See
    :mod:`kuaisim_gym.simulator.watch` for the model of the pairs that were not sampled.
    """

    name = "kuairec-watch"
    positive_rate = WATCHED_RATE

    def _test(self, answers: _Answers, users: NDArray[np.int32]) -> Interactions:
        ratio = np.where(answers.likes, LIKE, np.nan)
        ratio[answers.sample[:, 0], answers.sample[:, 1]] = answers.ratio
        rows, columns = np.nonzero(~np.isnan(ratio))
        watched = ratio[rows, columns].astype(np.float32)
        return WatchSample(users[rows], columns.astype(np.int32), watched)


class _KuaiRandClicks(Source):
    """Clicks of KuaiRand-Pure's standard log, judged by labelled random exposures.

    The ids are those of the republisher. Rules of reading, each counted in ``Dataset.notes``:

    * The log holds a clicked (user, video) pair once. A logged pair that also has a random row is
      dropped: it would leak an answer.
    * Test users are random-log users that :func:`~kuaisim_gym.data.split.is_test_user` chooses and
      that have at least ``least_rows`` random rows; ``randomised`` holds the random rows of all
      other users.
    * The catalogue is the videos of the random log, ascending; videos of the log alone stand behind
      it, ascending.
    """

    pools: bool
    least_rows: int

    def find(self, path: str | Path) -> DataFiles:
        return find_files(path, [KUAIRAND])

    def read(self, files: DataFiles) -> Dataset:
        notes: dict[str, int] = {}
        with open_tables() as tables:
            clicks = _read_pairs(tables, files, CLICKS, notes)
            label = Column("is_click", low=0, high=1)
            random = _read_pairs(tables, files, RANDOM_LABELS, notes, label)
        users = Positions(np.union1d(clicks.users, random.users))
        catalogue = np.unique(random.items)
        log_only = np.setdiff1d(clicks.items, catalogue)
        items = Positions(np.concatenate([catalogue, log_only]))
        notes["log_only_items"] = len(log_only)
        shown = LabelLog(*_positions(random, users, items), random.value.astype(np.uint8))
        log = PositiveLog(*_positions(clicks, users, items))
        cells = (table.users.astype(np.int64) * len(items) + table.items for table in (log, shown))
        leaks = np.isin(next(cells), next(cells))
        notes["log_rows_dropped_as_random_rows"] = int(np.count_nonzero(leaks))
        count = np.bincount(shown.users, minlength=len(users))
        judges = is_test_user(users.ids) & (count >= self.least_rows)
        is_test = judges[shown.users]
        if not is_test.any():
            raise DataFormatError(
                f"{files.tables[RANDOM_LABELS][0]}: none of its users is a test user with at least "
                f"{self.least_rows} rows, which half of all users with as many are by a hash of "
                f"their ids; expected rows to test on."
            )
        dataset = Dataset(
            name=self.name,
            synthetic=False,
            user_ids=users.ids,
            item_ids=items.ids,
            n_items=len(catalogue),
            log=log.take(~leaks),
            test=shown.take(is_test),
            randomised=None if is_test.all() else shown.take(~is_test),
            popularity="positives",
            positive_rate=CLICK_RATE,
            pools=self.pools,
            notes=notes,
        )
        logger.info("Read %s from %s: %s", self.name, files.folder, note_counts(notes))
        return dataset


class KuaiRandPool(_KuaiRandClicks):
    """KuaiRand's sessions over a user's own random exposures: every answer is real.

    Test users have at least 80 rows. In sessions of ``max_len=20`` and ``slate_size=2`` none runs
    out of items, for at most 40 are shown; typical ones show 22, 11 of them popular, and such a
    pool holds about 16 popular ones, because random exposures do not prefer them.
    """

    name = "kuairand-pool"
    pools = True
    least_rows = POOL_ROWS


class KuaiRandClick(_KuaiRandClicks):
    """KuaiRand's sessions over all items: the .8 % of pairs with a random row are looked up.

    The others are answered by a model of the random rows, which has the items' and users' effects
    and the taste that the log of clicks tells: what it says of personalisation stands only where
    real answers, as in ``kuairand-pool``, say it too.
    """

    name = "kuairand-click"
    pools = False
    least_rows = 1
