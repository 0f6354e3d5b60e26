"""README with addresses in the place of paths, for pages outside of the repository.

A package page knows no repository, so that it shows no picture and follows no link by path::

    python docs/absolute.py https://HOST/OWNER/NAME < README.md > README.absolute.md
"""

from __future__ import annotations

import re
import sys

_TARGET = re.compile(r"(!?)(\[[^\]]*\]\()(?!https?:|#)/?([^)]+)")


def absolute(text: str, repository: str) -> str:
    """Markdown whose pictures and links are addresses.

    Args:
        text: Of a page in the repository's root.
        repository: Address of the repository, without a slash at its end.
    """
    return _TARGET.sub(
        lambda match: (
            f"{match[1]}{match[2]}{repository}/{'raw' if match[1] else 'blob'}/HEAD/{match[3]}"
        ),
        text,
    )


if __name__ == "__main__":
    sys.stdout.write(absolute(sys.stdin.read(), sys.argv[1]))
