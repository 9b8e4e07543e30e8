/**
 * Answers texts in onnxruntime-node with examples/node and @huggingface/tokenizers.
 *
 *     node node_texts.mjs FOLDER NEW_TOKENS END < texts > answers
 */
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";

import { generate } from "./decoding.mjs";

const [folder, newTokens, end] = process.argv.slice(2);
const json = async (name) => JSON.parse(await readFile(`${folder}/${name}`, "utf8"));
const tokenizer = new Tokenizer(await json("tokenizer.json"), await json("tokenizer_config.json"));
const session = await ort.InferenceSession.create(`${folder}/model.onnx`);
for await (const line of createInterface({ input: process.stdin })) {
  const { ids } = tokenizer.encode(JSON.parse(line));
  console.log((await generate(ort, session, ids, Number(newTokens), [Number(end)])).join(" "));
}
