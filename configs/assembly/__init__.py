"""From a configuration to everything that it describes, by the same code for all commands; see `Assembly`."""

from configs.assembly.assembly import Assembly

__all__ = ["Assembly"]
