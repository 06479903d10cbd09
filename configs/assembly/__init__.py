"""From a configuration to everything that it names, by one road for all commands; read `Assembly` from top to bottom."""

from configs.assembly.assembly import Assembly

__all__ = ["Assembly"]
