"""Jobs: the public functions behind the commands. They may use every package; the command line only calls them."""

from omnivae.jobs.config import RunConfig
from omnivae.jobs.train import train

__all__ = ["RunConfig", "train"]
