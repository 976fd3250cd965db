"""MiniLLM's objective: exact single-step reverse KL plus the long-term return, on packed tokens. Imports torch only.

`minillm_loss` makes loss and gradients in one pass over chunks of tokens; `minillm_loss_dense` is its definition.
p is the teacher, q the student, q_b the student that drew a token, m the mixture that drew it. Logs are in nats.
"""

from minillm_ray.objective.dense import minillm_loss_dense, text_loss_dense
from minillm_ray.objective.head import Head
from minillm_ray.objective.loss import TermGradients, minillm_loss, term_gradients
from minillm_ray.objective.result import MiniLLMResult, TopKAgreement
from minillm_ray.objective.settings import ObjectiveSettings
from minillm_ray.objective.teachers import SampledTeacher, TeacherArgument, TopKTeacher
from minillm_ray.objective.text import TextResult, text_loss
from minillm_ray.objective.weights import mixture_log_weight

__all__ = [
    "Head",
    "MiniLLMResult",
    "ObjectiveSettings",
    "SampledTeacher",
    "TeacherArgument",
    "TermGradients",
    "TextResult",
    "TopKAgreement",
    "TopKTeacher",
    "minillm_loss",
    "minillm_loss_dense",
    "mixture_log_weight",
    "term_gradients",
    "text_loss",
    "text_loss_dense",
]
