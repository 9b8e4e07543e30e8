/**
 * Answers texts in transformers.js, with its own tokenizer.
 *
 *     node transformers_js.mjs FOLDER NEW_TOKENS < texts > answers
 */
import path from "node:path";
import { createInterface } from "node:readline";

import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

const [folder, newTokens] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder) + "/";
const name = path.basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name);
for await (const line of createInterface({ input: process.stdin })) {
  const inputs = tokenizer(JSON.parse(line));
  const made = await model.generate({ ...inputs, max_new_tokens: Number(newTokens), do_sample: false });
  console.log(made.tolist()[0].slice(inputs.input_ids.dims[1]).join(" "));
}
