"""From a configuration to everything that it names, by one road for all commands; see `Assembly`."""

from configs.assembly.assembly import Assembly

__all__ = ["Assembly"]
