/**
 * Greedy decoding of an exported model with a KV cache, for onnxruntime-node and onnxruntime-web.
 *
 * Neither has a way to register an operator library, so the experts run as standard operators. A
 * model with `layout: packed` needs the library and does not load.
 */

/** Integer that orders float16 numbers, given as their bits, as their values do. */
const orderOfHalf = (bits) => (bits & 0x8000 ? -(bits & 0x7fff) : bits);

/** Logits after the last position, as numbers of the same order. */
function lastLogits({ data, dims, type }) {
  const last = data.subarray(data.length - dims.at(-1));
  if (type !== "float16") return last;
  return Array.from(new Uint16Array(last.buffer, last.byteOffset, last.length), orderOfHalf);
}

function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** Type and sizes of the cache, from an input such as `past_key_values.0.key`. */
function cacheFacts(session) {
  const names = session.inputNames.filter((name) => name.startsWith("past_key_values."));
  const { type, shape } = session.inputMetadata.find(({ name }) => name === names[0]);
  return { names, type, heads: shape[1], headSize: shape[3] };
}

/**
 * Answers a prompt.
 *
 * @param ort The module onnxruntime-node or onnxruntime-web.
 * @param session Session of a `model.onnx`.
 * @param {number[]} prompt Token ids.
 * @param {number} newTokens Longest answer in tokens.
 * @param {number[]} ends Tokens that end a text.
 * @returns {Promise<number[]>} Token ids, the one that ended the text included.
 */
export async function generate(ort, session, prompt, newTokens, ends) {
  const int64 = (values) =>
    new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const { names, type, heads, headSize } = cacheFacts(session);
  const empty = () => new ort.Tensor(type, type === "float16" ? new Uint16Array() : new Float32Array(), [1, heads, 0, headSize]);
  let cache = Object.fromEntries(names.map((name) => [name, empty()]));
  let step = prompt;
  const answer = [];
  while (answer.length < newTokens && !ends.includes(answer.at(-1))) {
    const mask = new Array(prompt.length + answer.length).fill(1);
    const outputs = await session.run({ input_ids: int64(step), attention_mask: int64(mask), ...cache });
    cache = Object.fromEntries(
      names.map((name) => [name, outputs[name.replace("past_key_values", "present")]]),
    );
    step = [largest(lastLogits(outputs.logits))];
    answer.push(...step);
  }
  return answer;
}
