"""Files to pixels: packet indices, decoders, the chunk store, and libraries that read clips by name."""

from onereel.video.decode import Decoder, ReferenceDecoder, VideoFile
from onereel.video.fused import FusedDecoder
from onereel.video.index import PacketIndex, build_packet_index
from onereel.video.library import RawVideos, VideoLibrary, open_library

__all__ = [
    "Decoder",
    "FusedDecoder",
    "PacketIndex",
    "RawVideos",
    "ReferenceDecoder",
    "VideoFile",
    "VideoLibrary",
    "build_packet_index",
    "open_library",
]
