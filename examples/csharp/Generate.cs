// Runs an exported model in ONNX Runtime from C#: greedy decoding with a KV cache.
//
//   dotnet run -- FOLDER NEW_TOKENS [END_TOKEN ...] < prompts > answers
//
// NOT RUN by the tests of this repository: it follows examples/c/generate.c, which is, with the
// package Microsoft.ML.OnnxRuntime (1.22 or newer). For an export in float32; in float16 the cache
// and the logits are DenseTensor<Float16>.
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

var folder = args[0];
var newTokens = int.Parse(args[1]);
var ends = args.Skip(2).Select(long.Parse).ToHashSet();

// A warning would tell of the input logits_from, which has a default.
using var options = new SessionOptions { LogSeverityLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR };
var library = Path.Combine(folder, "libmoe_export_ops.so");
// Faster with the library, which is for Linux x86-64; without it the same answers come from
// standard operators.
if (File.Exists(library) && OperatingSystem.IsLinux()) options.RegisterCustomOpLibrary(library);
using var session = new InferenceSession(Path.Combine(folder, "model.onnx"), options);

while (Console.ReadLine() is { } line)
{
    var prompt = line.Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(long.Parse).ToArray();
    if (prompt.Length > 0) Console.WriteLine(string.Join(' ', Answer(prompt)));
}

List<long> Answer(long[] prompt)
{
    // Names are such as past_key_values.N.key and .value; the outputs present.N.key follow them.
    var names = session.InputMetadata.Keys.Where(name => name.StartsWith("past_key_values.")).ToList();
    var cache = names.ToDictionary(name => name, name =>
    {
        // Axes without a size are the batch and, for keys and values, the tokens so far: none.
        var shape = session.InputMetadata[name].Dimensions.Select(size => Math.Max(size, 0)).ToArray();
        shape[0] = 1;
        return new DenseTensor<float>(shape);
    });
    var answer = new List<long>();
    var step = prompt;
    while (answer.Count < newTokens)
    {
        var mask = Enumerable.Repeat(1L, prompt.Length + answer.Count).ToArray();
        var inputs = new List<NamedOnnxValue>
        {
            NamedOnnxValue.CreateFromTensor("input_ids", new DenseTensor<long>(step, new[] { 1, step.Length })),
            NamedOnnxValue.CreateFromTensor("attention_mask", new DenseTensor<long>(mask, new[] { 1, mask.Length })),
        };
        inputs.AddRange(names.Select(name => NamedOnnxValue.CreateFromTensor(name, cache[name])));
        using var outputs = session.Run(inputs);
        var found = outputs.ToDictionary(output => output.Name, output => output.AsTensor<float>());
        foreach (var name in names)
            cache[name] = found[name.Replace("past_key_values", "present")].ToDenseTensor();
        step = new[] { BestToken(found["logits"]) };
        answer.Add(step[0]);
        if (ends.Contains(step[0])) break;
    }
    return answer;
}

// Token with the largest logit after the last position of [batch, tokens, vocabulary].
static long BestToken(Tensor<float> logits)
{
    var last = logits.Dimensions[1] - 1;
    var best = 0;
    for (var token = 1; token < logits.Dimensions[2]; token++)
        if (logits[0, last, token] > logits[0, last, best]) best = token;
    return best;
}
