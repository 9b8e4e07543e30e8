"""Speed and memory of exported models, measured side by side: `moe-export bench`.

`models` finds the models in folders, `process` holds one model in a process of its own, and `turns`
has these processes take turns; `nodes` profiles one.
"""
