"""Whole models of the shapes of Qwen1.5-MoE-A2.7B, pruned and not, and their peers in llama.cpp."""
