"""MiniLLM distillation as a Ray rollout/learner system."""
