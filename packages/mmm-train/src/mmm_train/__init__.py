"""Data, training and evaluation for MultiModalMamba, and the `mmm` command."""

from mmm_train.answers import Answer
from mmm_train.comparison import Comparison, compare
from mmm_train.config import Config, DataConfig, ModelConfig, TrainConfig
from mmm_train.data import Picture, Question, QuestionSet, Tokenizer, read_easy_vqa, read_metadata
from mmm_train.demo import compare_config, demo_config
from mmm_train.errors import ConfigError, DataError, Interrupted, LossError, RunError, TrainError
from mmm_train.evaluate import QuestionOnly, Scores, Share, score
from mmm_train.run import Run
from mmm_train.terminal import Terminal
from mmm_train.training import ask, evaluate_run, resume, train

__all__ = [
    "Answer",
    "Comparison",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataError",
    "Interrupted",
    "LossError",
    "ModelConfig",
    "Picture",
    "Question",
    "QuestionOnly",
    "QuestionSet",
    "Run",
    "RunError",
    "Scores",
    "Share",
    "Terminal",
    "Tokenizer",
    "TrainConfig",
    "TrainError",
    "ask",
    "compare",
    "compare_config",
    "demo_config",
    "evaluate_run",
    "read_easy_vqa",
    "read_metadata",
    "resume",
    "score",
    "train",
]
