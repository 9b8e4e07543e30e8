"""Speed and memory of exported models, measured side by side: `moe-export bench`.

`models` finds the models in folders, `process` holds one model in a process of its own, which runs
`in_onnx_runtime` or `in_llama_cpp` and answers `requests`; `turns` has these processes take turns;
`nodes` profiles one.
"""
