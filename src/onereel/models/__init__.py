"""Tokens to features to logits: the video ViT on packed tokens, its heads, and models by name."""

from onereel.models.dual_encoder import DualEncoder
from onereel.models.heads import ClassificationHead, ProjectionHead
from onereel.models.masked_autoencoder import MaskedAutoencoder, MaskedDecoder
from onereel.models.pooling import AttentionPool, pool_tokens
from onereel.models.registry import create_decoder, create_encoder, list_models
from onereel.models.student import Student
from onereel.models.text import TextTower, Tokenizer
from onereel.models.video_model import Output, VideoModel
from onereel.models.vit import VisionTransformer

Trainee = VideoModel | MaskedAutoencoder | Student | DualEncoder
"""What a run may train, within its objective."""

__all__ = [
    "AttentionPool",
    "ClassificationHead",
    "DualEncoder",
    "MaskedAutoencoder",
    "MaskedDecoder",
    "Output",
    "ProjectionHead",
    "Student",
    "TextTower",
    "Tokenizer",
    "Trainee",
    "VideoModel",
    "VisionTransformer",
    "create_decoder",
    "create_encoder",
    "list_models",
    "pool_tokens",
]
