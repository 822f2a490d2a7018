"""Pictures and questions: read, checked, numbered and put into batches."""

from mmm_train.data.batches import Batch, Example, Examples, Text, batches, collate, shuffled
from mmm_train.data.easy_vqa import EASY_VQA, read_easy_vqa
from mmm_train.data.metadata import read_metadata
from mmm_train.data.pictures import Augment, check_pictures, open_picture, to_bytes, to_tensor
from mmm_train.data.questions import Picture, Question, QuestionSet
from mmm_train.data.sources import read_sets, read_test_set
from mmm_train.data.tokenizer import SPECIAL, Tokenizer, normal

__all__ = [
    "EASY_VQA",
    "SPECIAL",
    "Augment",
    "Batch",
    "Example",
    "Examples",
    "Picture",
    "Question",
    "QuestionSet",
    "Text",
    "Tokenizer",
    "batches",
    "check_pictures",
    "collate",
    "normal",
    "open_picture",
    "read_easy_vqa",
    "read_metadata",
    "read_sets",
    "read_test_set",
    "shuffled",
    "to_bytes",
    "to_tensor",
]
