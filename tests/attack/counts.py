"""What an attack found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Counts:
    """Tries of an attack, those that were met as they should be, and the story of each other."""

    tried: int = 0
    held: int = 0
    lost: list[str] = field(default_factory=list)

    def note(self, story: str | None) -> None:
        """Counts a try: it held, or was lost as the story tells, if there is one."""
        self.tried += 1
        if not story:
            self.held += 1
        else:
            self.lost.append(story)

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tried + other.tried, self.held + other.held, self.lost + other.lost)
