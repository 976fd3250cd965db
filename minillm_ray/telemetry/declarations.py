"""Every metric a run may write: its name once, with its meaning.

A name is room/quantity_unit/statistic. The unit is left out where the quantity is a plain number. Logs are natural, in
nats. "Of the step" means over all trained response tokens of one optimiser step, on all ranks.
"""

from collections.abc import Mapping
from types import MappingProxyType

_DECILES = {
    f"objective/kl_nats_per_token/decile_{tenth}": (
        f"Mean KL(q || p) over the tokens in tenth {tenth} of their response (0 is its beginning)"
    )
    for tenth in range(10)
}

_IDLE = {
    "pipeline/busy_seconds/rollout": "Seconds of the step in which the engine worked, mean over replicas",
    "pipeline/waiting_input_seconds/rollout": "Idle for want of prompts or of the teacher's word on a mixed response",
    "pipeline/waiting_weights_seconds/rollout": "Idle while weights came, or had to come before a prompt could start",
    "pipeline/busy_seconds/teacher": "Seconds of the step in which the engine worked, mean over replicas",
    "pipeline/waiting_input_seconds/teacher": "Idle for want of responses to score",
    "pipeline/busy_seconds/learner": "Seconds of the step in which the ranks trained or published weights",
    "pipeline/waiting_input_seconds/learner": "Idle for want of scored responses",
}

_METRICS = {
    # What is minimised, and how far its estimate can be trusted.
    "objective/kl_nats_per_token/mean": (
        "Exact reverse KL(q || p) at each token of the step, over the whole vocabulary. With teacher.payload topk a "
        "lower bound of it, with sampled an estimate (k3, weighted)"
    ),
    "objective/loss/total": "The loss that was differentiated: single_step + long_term + the weighted text loss",
    "objective/loss/single_step": "Its exact half: the KL at each token, weighted by w",
    "objective/loss/long_term": "Its long-term half: the value of the surrogate whose gradient is used",
    "objective/loss/text": "Language-modelling loss on plain text, before its coefficient",
    "objective/entropy_nats_per_token/mean": "Entropy of q at the tokens of the step; a collapse shows here first",
    "objective/ratio/mean": "omega = q / q_b of the sampled token",
    "objective/ratio/max": "Largest omega of the step",
    "objective/weight/mean": "w = q_b / m of the sampled token; 1 without teacher mixing",
    "objective/clip_fraction/mean": "Share of tokens whose ratio was clipped",
    "objective/effective_sample_size_fraction/mean": "(sum of weights)^2 / (number x sum of squares); 1 when all equal",
    "objective/topk_student_mass/mean": "Probability that q gives to the teacher's k most probable tokens",
    "objective/topk_teacher_mass/mean": "Probability that p gives to them; the rest is seen as one bucket",
    "objective/topk_overlap/mean": "Share of the student's own k most probable tokens that are among the teacher's",
    "objective/long_term_gradient_snr/probe": "Signal-to-noise ratio of the long-term gradient, from a separate probe",
    **_DECILES,
    # The optimiser step.
    "learner/gradient_norm/global": "Norm of the whole gradient before clipping",
    "learner/learning_rate/current": "Learning rate of the step",
    "learner/step_seconds/total": "Forward, backward and optimiser of one step on the slowest rank",
    "learner/sampler_mismatch_nats/mean": "|log q_b from the engine - log q_b from the learner| at the same weights",
    "learner/sampler_mismatch_nats/max": "The same, largest of the step",
    "learner/supervised_loss_nats_per_token/train": (
        "Cross-entropy of the responses of a supervised step; in kd mixed with forward KL to the teacher"
    ),
    "learner/supervised_loss_nats_per_token/validation": "The same on the held-out pairs",
    # The student on held-out prompts, one sampled response each.
    "evaluation/rouge_l/mean": "Rouge-L of the responses, 0 to 100, against the reference that each is closest to",
    "evaluation/reverse_kl_nats_per_token/mean": "Exact reverse KL(q || p) along the responses",
    "evaluation/response_tokens/mean": "Length of the responses, EOS included",
    "evaluation/truncated_fraction/mean": "Share of the responses that ended at max_response_tokens instead of EOS",
    # Drawing responses.
    "rollout/response_tokens/mean": "Response length, EOS included",
    "rollout/truncated_fraction/mean": "Share of responses that ended at max_response_tokens instead of EOS",
    "rollout/tokens_per_second/total": "Response tokens of the step over the time they took, all workers together",
    "rollout/generate_seconds/total": "From the first prompt handed out to the last response of the step",
    "rollout/staleness_versions/mean": "Weight versions between the one that began a response and the one it trains",
    "rollout/staleness_versions/max": "The same, largest of the round; never above the bound",
    "rollout/corrected_fraction/mean": "Share of the response tokens that replaced a token of the student's",
    "rollout/drawn_tokens_per_token/mean": "Tokens that the student drew for each response token; above 1 with mixing",
    "rollout/requests_per_token/mean": "Requests to the student's engine for each response token",
    # Scoring.
    "teacher/score_seconds/total": "From the last response of the step to the last score, all replicas together",
    "teacher/payload_bytes_per_token/mean": "What travels from teacher to learner for each response token",
    "teacher/computed_tokens_per_token/mean": "Tokens that the teacher's engine computed for each response token",
    # Weights.
    "weights/publish_and_pull_seconds/total": "From a round's last update to the last replica's pull of that version",
    # The whole.
    "pipeline/step_seconds/total": "Wall time of a step, from its first prompt to its weights being pulled",
    "pipeline/round_seconds/total": "Wall time between the ends of two rounds",
    **_IDLE,
    "data/prompts_cut/total": "Prompts of the data set that were longer than max_prompt_tokens and were cut",
}

METRICS: Mapping[str, str] = MappingProxyType(_METRICS)
"""Declared metric name -> its meaning."""


def require_declared(name: str) -> None:
    """Raise KeyError if `name` is not a declared metric: a misspelt one must not start a series of its own."""
    if name not in METRICS:
        raise KeyError(f"metric {name!r} is not declared; add it with its meaning to telemetry/declarations.py")
