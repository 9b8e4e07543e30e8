/**
 * Runs an exported model in the browser, with WebAssembly.
 *
 *     cd examples/web && npm install && cp -r FOLDER model
 *     python -m http.server --bind 127.0.0.1 --directory .. 8000
 *
 * and open http://127.0.0.1:8000/web/. `?model=URL` names another folder of an exported model.
 */
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";

import { generate } from "../node/decoding.mjs";

const NEW_TOKENS = 40;
const WEIGHTS = "model.onnx.data";

const folder = new URLSearchParams(location.search).get("model") ?? "model";
const shown = document.querySelector("#answer");

async function json(name) {
  const response = await fetch(`${folder}/${name}`);
  if (!response.ok) throw new Error(`${folder}/${name}: ${response.status} ${response.statusText}`);
  return response.json();
}

async function load() {
  const { eos_token_id: end = [] } = await json("config.json");
  const tokenizer = new Tokenizer(await json("tokenizer.json"), await json("tokenizer_config.json"));
  const session = await ort.InferenceSession.create(`${folder}/model.onnx`, {
    executionProviders: ["wasm"],
    logSeverityLevel: 3, // a warning would tell of the input logits_from, which has a default
    // The graph names its weights by this path; a browser cannot look there by itself.
    externalData: [{ path: WEIGHTS, data: `${folder}/${WEIGHTS}` }],
  });
  const answerIds = (ids) => generate(ort, session, ids, NEW_TOKENS, [end].flat());
  const answer = async (prompt) =>
    tokenizer.decode(await answerIds(tokenizer.encode(prompt).ids), { skip_special_tokens: true });
  return { answer, answerIds };
}

/** The loaded model, for scripts: `(await moeExport).answer("12+30=")`. */
globalThis.moeExport = load();

try {
  const { answer } = await globalThis.moeExport;
  shown.value = "";
  const button = document.querySelector("#run");
  button.disabled = false;
  document.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    shown.value = await answer(document.querySelector("#prompt").value);
    button.disabled = false;
  });
} catch (error) {
  shown.value = `The model cannot be loaded: ${error.message}`;
}
