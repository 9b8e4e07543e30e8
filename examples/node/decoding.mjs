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

/**
 * The cache at the start of a text, by the names of the inputs: keys and values of no tokens, and
 * states of fixed size, which are zero.
 */
function emptyCache(ort, session) {
  const inputs = session.inputMetadata.filter(({ name }) => name.startsWith("past_key_values."));
  return Object.fromEntries(
    inputs.map(({ name, type, shape: [, ...sizes] }) => {
      const dims = [1, ...sizes.map((size) => (typeof size === "number" ? size : 0))];
      const Numbers = type === "float16" ? Uint16Array : Float32Array;
      return [name, new ort.Tensor(type, new Numbers(dims.reduce((a, b) => a * b)), dims)];
    }),
  );
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
  let cache = emptyCache(ort, session);
  let step = prompt;
  const answer = [];
  while (answer.length < newTokens && !ends.includes(answer.at(-1))) {
    const mask = new Array(prompt.length + answer.length).fill(1);
    const outputs = await session.run({ input_ids: int64(step), attention_mask: int64(mask), ...cache });
    cache = Object.fromEntries(
      Object.keys(cache).map((name) => [name, outputs[name.replace("past_key_values", "present")]]),
    );
    step = [largest(lastLogits(outputs.logits))];
    answer.push(...step);
  }
  return answer;
}
