"""What guidellm takes of torch, which is 3 GB: the names of its data loader, for rows one by one in this process.

guidellm is as it comes; the requests that it makes do not depend on any of this. Where torch is installed, this is not on the path.
"""

from . import utils

__all__ = ["Generator", "utils"]


class Generator:
    """Rows are neither shuffled nor drawn, so that no number is needed."""

    def manual_seed(self, seed: int) -> "Generator":
        return self
