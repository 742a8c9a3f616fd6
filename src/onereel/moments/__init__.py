"""Moments of videos by what they show: embeddings of a list in a file, and texts that search it."""

from onereel.moments.embedding import EmbedReport, embed
from onereel.moments.index import Moment, MomentIndex
from onereel.moments.searching import Found, search, write_page

__all__ = ["EmbedReport", "Found", "Moment", "MomentIndex", "embed", "search", "write_page"]
