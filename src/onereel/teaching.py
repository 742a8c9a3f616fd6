"""The teacher of a distillation: a model of ours or of transformers, frozen."""

from __future__ import annotations

from pathlib import Path

from onereel import build
from onereel.config import RunConfig
from onereel.errors import ConfigError
from onereel.loading import load_trained
from onereel.models.dual_encoder import video_of
from onereel.models.factorised import FactorisedEncoder
from onereel.models.foreign_teachers import foreign_teacher
from onereel.models.masked_autoencoder import MaskedAutoencoder
from onereel.models.pretrained.folder import holds_saved_model
from onereel.models.pretrained.reading import locate, read_json
from onereel.models.teachers import OwnTeacher, Stats, Teacher, View


def load_teacher(config: RunConfig) -> Teacher | None:
    """The model that `distill.teacher` names, on the CPU; None where a run learns from none.

    Raises:
        OnereelError: there is none, it cannot be loaded whole, or it cannot do what `config` asks of it.
    """
    if config.objective.kind != "distillation":
        return None
    distill, source = config.distill, config.distill.teacher
    if not source:
        raise ConfigError(
            "objective.kind is distillation, and no teacher is named: give --distill.teacher RUN, a folder of "
            "transformers, or OWNER/MODEL of the Hugging Face Hub"
        )
    attention = distill.choose == "attention"
    path = locate(source)
    student = (config.augment.mean, config.augment.std)
    if path.is_dir() and not holds_saved_model(path) and _is_foreign(path):
        teacher: Teacher = foreign_teacher(
            path, source, student, size=distill.teacher_size, attention=attention
        )
    else:
        teacher = _own_teacher(source, student, distill.teacher_size)
    if attention and not teacher.attends:
        raise ConfigError(
            f"distill.choose is attention, and {source} has no class token whose attention could choose; "
            "set it to ranking, or choose another teacher"
        )
    return teacher


def _is_foreign(folder: Path) -> bool:
    return "model_type" in read_json(folder / "config.json")


def _own_teacher(source: str, student: Stats, size: int) -> OwnTeacher:
    trained = load_trained(source)
    config, model = trained.config, trained.model
    video = video_of(model)
    if isinstance(video.encoder, FactorisedEncoder):
        raise ConfigError(
            f"{source} has a factorised encoder, which has no feature for each token; choose another teacher"
        )
    stats = (config.augment.mean, config.augment.std)
    view = View.between(student, stats, build.frames_read(config), size or config.data.size)
    head = None if isinstance(video, MaskedAutoencoder) else video.head
    return OwnTeacher(video.encoder, head, view)
