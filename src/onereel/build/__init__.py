"""From a configuration to the objects it names: the only place that may import every room."""

from onereel.build.data import (
    build_annotations,
    build_augment,
    build_dataset,
    build_eval_loader,
    build_library,
    build_train_loader,
    class_names,
    num_threads,
    num_workers,
    split_held_out,
)
from onereel.build.features import (
    build_encoding_augment,
    build_encoding_loader,
    build_feature_augment,
    build_feature_cache,
    build_feature_key,
)
from onereel.build.models import (
    build_autoencoder,
    build_dual_encoder,
    build_encoder,
    build_model,
    build_objective,
    build_student,
    build_tokenizer,
    build_trainee,
    learns_pairs,
)
from onereel.build.selection import (
    build_frames,
    build_picker,
    build_selector,
    frames_read,
)

__all__ = [
    "build_annotations",
    "build_augment",
    "build_autoencoder",
    "build_dataset",
    "build_dual_encoder",
    "build_encoder",
    "build_encoding_augment",
    "build_encoding_loader",
    "build_eval_loader",
    "build_feature_augment",
    "build_feature_cache",
    "build_feature_key",
    "build_frames",
    "build_library",
    "build_model",
    "build_objective",
    "build_picker",
    "build_selector",
    "build_student",
    "build_tokenizer",
    "build_train_loader",
    "build_trainee",
    "class_names",
    "frames_read",
    "learns_pairs",
    "num_threads",
    "num_workers",
    "split_held_out",
]
