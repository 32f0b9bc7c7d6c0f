"""Training concepts: many owners' ED-LoRAs on one frozen base, or a single one."""

from mos.training.config import PRESETS, TrainingConfig, preset_for
from mos.training.data import ConceptData, DataError, Picture, concept_data, load_concept_data
from mos.training.loop import SlotSpec, StepReport, Trainer, TrainingError, train_concept

__all__ = [
    "PRESETS",
    "ConceptData",
    "DataError",
    "Picture",
    "SlotSpec",
    "StepReport",
    "Trainer",
    "TrainingConfig",
    "TrainingError",
    "concept_data",
    "load_concept_data",
    "preset_for",
    "train_concept",
]
