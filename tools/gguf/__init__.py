"""GGUF files of our checkpoints, for llama.cpp as a peer."""
