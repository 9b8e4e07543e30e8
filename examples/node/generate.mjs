/**
 * Runs an exported model in Node.
 *
 *     npm install --ignore-scripts && node generate.mjs FOLDER [PROMPT]
 *
 * FOLDER is one exported model. Without PROMPT, each line of the input is a prompt as token ids,
 * and each line of the output its answer as token ids.
 */
import { readFile } from "node:fs/promises";
import path from "node:path";
import { createInterface } from "node:readline";

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";

import { generate } from "./decoding.mjs";

const NEW_TOKENS = 40;

const [folder, prompt] = process.argv.slice(2);
if (folder === undefined) {
  console.error("usage: node generate.mjs FOLDER [PROMPT]");
  process.exit(2);
}
const json = async (name) => JSON.parse(await readFile(path.join(folder, name), "utf8"));
const ends = [(await json("config.json")).eos_token_id ?? []].flat();
// A warning would tell of the input logits_from, which has a default.
const options = { logSeverityLevel: 3 };
const session = await ort.InferenceSession.create(path.join(folder, "model.onnx"), options);

if (prompt !== undefined) {
  const tokenizer = new Tokenizer(await json("tokenizer.json"), await json("tokenizer_config.json"));
  const answer = await generate(ort, session, tokenizer.encode(prompt).ids, NEW_TOKENS, ends);
  console.log(tokenizer.decode(answer, { skip_special_tokens: true }));
} else {
  for await (const line of createInterface({ input: process.stdin })) {
    const ids = line.trim().split(/\s+/).map(Number);
    console.log((await generate(ort, session, ids, NEW_TOKENS, ends)).join(" "));
  }
}
