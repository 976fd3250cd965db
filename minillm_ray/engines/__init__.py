"""Models on disk and the engines that run them: the only room that imports vllm."""
