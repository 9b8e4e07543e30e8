"""Asks `moe-export serve` with the client of OpenAI; answers are texts.

python openai_client.py URL NEW_TOKENS < texts > answers
"""

from __future__ import annotations

import json
import sys

from openai import OpenAI

url, new_tokens = sys.argv[1:]
client = OpenAI(base_url=url, api_key="none")
for line in sys.stdin:
    answer = client.completions.create(
        model="demo", prompt=json.loads(line), max_tokens=int(new_tokens), temperature=0
    )
    print(json.dumps(answer.choices[0].text))
