"""Code in the cards of exported and pruned models; it runs in the model's folder as it stands."""

from __future__ import annotations

from string import Template

PROMPT = "The capital of Norway is"
NEW_TOKENS = 16

MOE_EXPORT = Template("""\
import moe_export

model = moe_export.load(".")
print(model.generate("$prompt", $new_tokens))
""")

ONNX_RUNTIME = Template("""\
${imports}import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

options = ort.SessionOptions()
options.log_severity_level = 3  # no warning about the default of logits_from
${library}session = ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file("tokenizer.json")
prompt = ${bos}tokenizer.encode("$prompt").ids
${cache}step, answer = prompt, []
while len(answer) < $new_tokens:
    inputs = {
        "input_ids": np.array([step]),
        "attention_mask": np.ones((1, len(prompt) + len(answer)), np.int64),
        "logits_from": np.array([-1]),  # logits of the last position alone
    }
    logits, *present = session.run(None, inputs | cache)
    cache = dict(zip(cache, present))
    step = [int(logits[0, -1].argmax())]
    if step[0] in $ends:  # tokens that end a text
        break
    answer += step
print(tokenizer.decode(answer))
""")

CACHE = Template("""\
cache = {
    i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.$dtype) for i in session.get_inputs()[2:]
}
""")
"""Keys and values of no tokens."""

STATES = """\
types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
cache = {  # keys and values of no tokens, and states of fixed size
    i.name: np.zeros([1] + [n if isinstance(n, int) else 0 for n in i.shape[1:]], types[i.type])
    for i in session.get_inputs()[2:]
}
"""

GENAI = Template("""\
${imports}import onnxruntime_genai as og

${config}model = og.Model($model)
tokenizer = og.Tokenizer(model)
${special}ids = tokenizer.encode("$prompt")
params = og.GeneratorParams(model)
params.set_search_options(max_length=len(ids) + $new_tokens, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(ids)
answer = []
while not generator.is_done():
    generator.generate_next_token()
    answer.append(generator.get_next_tokens()[0])
print(tokenizer.decode([token for token in answer if token not in $ends]))
""")

TRANSFORMERS = Template("""\
${register}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("$prompt", return_tensors="pt", return_token_type_ids=False)
tokens = model.generate(**inputs, max_new_tokens=$new_tokens, do_sample=False)
answer = tokens[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
""")

TRANSFORMERS_JS = Template("""\
import { env, pipeline } from "@huggingface/transformers";

env.localModelPath = "";
const answer = await pipeline("text-generation", ".");
const options = { max_new_tokens: $new_tokens, do_sample: false, return_full_text: false };
console.log((await answer("$prompt", options))[0].generated_text);
""")

LIBRARY_HERE = Template("""\
libraries = {
$files}
system = f"{platform.system()}-{platform.machine()}"
if system not in libraries:
    raise SystemExit(
        f"{system} has no operator library in this folder, which has those of "
        f"{', '.join(libraries)}; export the model again with it in export.platforms"
    )
""")
"""Code that picks the library of the system it runs on as `libraries[system]`."""

GENAI_LIBRARY = """\
config = og.Config(".")
session = {"custom_ops_library": libraries[system]}
config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
"""

FASTER = "  # the same answers without it, slower"
SPECIAL = 'tokenizer.update_options(add_special_tokens="true")  # texts begin as in training\n'
REGISTER = "import moe_export  # registers the model type with transformers\n"


def filled(template: Template, language: str = "python", **values: object) -> str:
    """A fenced block of code with the prompt and the given values in it."""
    code = template.substitute(prompt=PROMPT, new_tokens=NEW_TOKENS, **values)
    return f"```{language}\n{code}```"
