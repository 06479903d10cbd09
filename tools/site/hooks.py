"""Hooks of mkdocs.yml: pages that are made from the code, and links from pages to files beside docs/."""

from __future__ import annotations

from typing import Any

from configs.schema import Config
from core.optional import need
from modalities.table import MODALITIES
from tools.site.reference import configuration_page


def on_files(files: Any, config: Any) -> Any:
    media = {f"streams.NAME.media ({name})": row.settings for name, row in MODALITIES.items() if not row.family}
    pages = need("mkdocs.structure.files", "make site", "Everything else works")
    files.append(pages.File.generated(config, "reference/configuration.md", content=configuration_page(Config, media)))
    return files
