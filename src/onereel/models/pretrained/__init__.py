"""Weights in and out: other families' files into our model, our own folders, and back to transformers' VideoMAE.

Names in a file decide its family (`layouts`), a conversion brings its tensors under our names (`convert`), and
`load_converted` puts them into a model, all or none, with an account of each (`LoadReport`).
"""

from onereel.models.pretrained.convert import Converted, Inflation, convert, convert_blocks
from onereel.models.pretrained.reading import Weights, locate, read_weights
from onereel.models.pretrained.report import LoadReport, load_converted

__all__ = [
    "Converted",
    "Inflation",
    "LoadReport",
    "Weights",
    "convert",
    "convert_blocks",
    "load_converted",
    "locate",
    "read_weights",
]
