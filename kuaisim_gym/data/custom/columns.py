"""Roles of a table's columns, and the names by which they are recognised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError, DataFormatError

# By role, without capitals, blanks, - and _.
RECOGNISED: dict[str, tuple[str, ...]] = {
    "user": ("user", "userid", "uid"),
    "item": (
        *("item", "itemid", "iid", "movieid", "videoid", "productid", "songid", "trackid"),
        *("artistid", "bookid", "articleid", "newsid", "businessid"),
    ),
    "response": ("response",),
    "rating": ("rating", "ratings", "stars"),
    "label": ("label",),
    "time": ("time", "timestamp", "datetime"),
    "exposures": ("exposures", "impressions", "showcnt"),
    "propensity": ("propensity",),
}
ANSWERS = ("response", "rating", "label")

Roles = dict[str, str]  # by role, the column


def check_columns(columns: Mapping[str, str | None], headers: Iterable[Sequence[str]]) -> None:
    """Checks the columns that a user names.

    Args:
        columns: By role, the column, or ``None`` for no column.
        headers: Columns of all tables.

    Raises:
        ConfigError: A role is unknown, or no table has the column.
    """
    available = sorted({name for header in headers for name in header})
    for role, column in columns.items():
        check_choice("columns: a role", role, RECOGNISED)
        if column is not None and column not in available:
            raise ConfigError(
                f"columns says that {role!r} is the column {column!r}, but the tables have "
                f"{available}."
            )


def find_roles(
    label: str,
    header: Sequence[str],
    roles: Iterable[str],
    columns: Mapping[str, str | None],
) -> Roles:
    """Finds the columns of some roles: those that ``columns`` names, then recognised ones.

    Args:
        label: Names the table in messages.
        header: Its columns.
        roles: The roles to look for.
        columns: By role, the column that a user names, or ``None`` for no column.

    Raises:
        DataFormatError: Several columns could have a role.
        ConfigError: ``columns`` gives one of them two roles.
    """
    taken = set(columns.values())
    result: Roles = {}
    for role in roles:
        if role in columns:
            named = columns[role]
            if named in header:
                result[role] = str(named)
            if named is None or named in header:
                continue
        names = [name for name in header if _plain(name) in RECOGNISED[role] and name not in taken]
        if len(names) > 1:
            raise DataFormatError(
                f"{label} has several columns for {role!r}: {names}. Say which one is meant: "
                f"columns={{{role!r}: {names[0]!r}}}."
            )
        if names:
            result[role] = names[0]
    for role, column in result.items():
        others = [other for other, name in result.items() if name == column and other != role]
        if others:
            raise ConfigError(
                f"columns gives the column {column!r} of {label} two roles, {role!r} and "
                f"{others[0]!r}: a column has one."
            )
    return result


def require(label: str, header: Sequence[str], roles: Roles, *required: str) -> None:
    """Checks that a table has the columns of some roles.

    Raises:
        DataFormatError: It lacks one; the message says which names are recognised.
    """
    for role in required:
        if role not in roles:
            names = ", ".join(RECOGNISED[role])
            raise DataFormatError(
                f"{label} has no column of {role}s; it has {list(header)}. Recognised names are "
                f"{names} (capitals, blanks, - and _ do not matter). Name another one by "
                f"columns={{{role!r}: NAME}}."
            )


def is_named(column: str) -> bool:
    """Tells a column with a name from one without, such as an index that pandas wrote."""
    return bool(column.strip()) and not column.startswith("Unnamed: ")


def _plain(name: str) -> str:
    """A column's name without capitals, blanks, ``-``, ``_`` and the type that RecBole adds."""
    bare = name.partition(":")[0].strip().lower()
    return bare.replace("_", "").replace("-", "").replace(" ", "")
