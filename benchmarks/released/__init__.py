"""Released agents: trained, small, described by a card each, and checked before they play.

``load("dsrm-hrl", "KuaiRec-Fair-v0", release="https://...")`` gives an agent that is ready to play.
"""

from .library import load

__all__ = ["load"]
