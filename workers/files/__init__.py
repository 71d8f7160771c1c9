"""Integrity of files: what is created, changed, renamed or deleted at configured paths, also while the agent is off."""

from garrison.workers.files.module import FilesModule

MODULE = FilesModule

__all__ = ["MODULE", "FilesModule"]
