"""Model families on open_clip towers (CLIP, MERU, SigLIP), their checkpoints, and the bundled models.

- ``base.py``: what families have in common. A family is one class in one file; :mod:`.clip` is the shortest.
- ``configuration.py``: which keys a configuration may have; ``preprocess.py``: what some of them mean.
- ``checkpoint.py``: to and from disk. ``origins.py``: what a model's name stands for, and the bundled ones;
  ``weights.py``: tensors in files; ``layouts/``: whose names they have; ``tokenizers.py``: theirs;
  ``huggingface.py``: text towers of transformers; ``delta.py``: what differs between two models, alone.
- ``wrapping.py``: compiled and wrapped models; ``modes.py``: evaluation mode for a while.
"""

from riemann_unlearn.models.base import FAMILIES, DualEncoder
from riemann_unlearn.models.checkpoint import (
    convert,
    create_model,
    load,
    save_model,
)
from riemann_unlearn.models.clip import CLIP
from riemann_unlearn.models.delta import apply_delta, save_delta
from riemann_unlearn.models.meru import MERU
from riemann_unlearn.models.modes import evaluating
from riemann_unlearn.models.origins import ModelInfo, list_models
from riemann_unlearn.models.siglip import SigLIP
from riemann_unlearn.models.wrapping import state_of, unwrap
from riemann_unlearn.registry import import_files

__all__ = [
    "CLIP",
    "FAMILIES",
    "MERU",
    "DualEncoder",
    "ModelInfo",
    "SigLIP",
    "apply_delta",
    "convert",
    "create_model",
    "evaluating",
    "list_models",
    "load",
    "save_delta",
    "save_model",
    "state_of",
    "unwrap",
]

# Each file registers its own; a new one needs no line here.
import_files(__name__, __path__)
