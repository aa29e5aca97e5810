// A small corpus that no page should trip over, in TFDS layout: rows that would be markup, that turn text around, that
// hold a megabyte. With it a definition, a schema and a recipe.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export const MEGABYTE = "All work and no play makes a long cell. ".repeat(26_215);

export const ROWS = [
  { text: "The ferry was late, and nobody on the quay was told why.", label: 0 },
  { text: "</script><script>window.harm = 1</script><img src=x onerror=\"window.harm = 2\"><!-- ]]> &lt;b&gt;", label: 1 },
  { text: "A line\u2028and a paragraph\u2029, \u202eturned around\u202c, \u2066isolated\u2069, zero\u200bwidth, tab\tand\u0000nul", label: 0 },
  { text: MEGABYTE, label: 1 },
  { text: "مرحبا بالعالم, 中文也行, 👩\u200d🔬 and e\u0301", label: 0 },
  { text: "${window.harm = 3} {{ premise }} {% for x in y %} `backticks` \\ \"quotes\" 'single'", label: 1 },
  { text: "'); alert(1); //", label: 0 },
  { text: "https://example.org/beacon.png <link rel=stylesheet href=//example.org/x.css>", label: 1 },
];

const DEFINITION = `# Kept by hand.
task = "odd"   # the name
title = "Odd <b>rows</b>"
tfds = "odd:1.0.0"
cluster = "fixtures"
licence = "CC0"
splits = { train = "train" }

[fields]
text = "text"   # as it is
options = "['yes', 'no']"
answer = "options[label]"

[[template]]
name = "ask"
kind = "original"
inputs = '''
Text: {{ text }}
Is it so?
{{ options_ }}'''
targets = "{{ answer }}"   # nothing else

[[template]]
name = "<i>write</i>"
kind = "turned-around"
inputs = "Write a text that is “{{ answer }}”."
targets = "{{ text }}"
`;

// Writes everything below \`root\`, and returns the arguments that a command takes.
export function putCorpus(root, tokenizer) {
  const feature = (module, name) => `tensorflow_datasets.core.features.${module}.${name}`;
  const features = JSON.stringify({
    pythonClassName: feature("features_dict", "FeaturesDict"),
    featuresDict: { features: {
      label: { pythonClassName: feature("class_label_feature", "ClassLabel"), classLabel: { numClasses: "2" } },
      text: { pythonClassName: feature("text_feature", "Text"), text: {} },
    } },
  });
  const info = JSON.stringify({ name: "odd", version: "1.0.0", fileFormat: "tfrecord", splits: [
    { name: "train", shardLengths: [String(ROWS.length)], filepathTemplate: "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}" },
  ] });
  const put = (path, content) => {
    mkdirSync(join(root, path, ".."), { recursive: true });
    writeFileSync(join(root, path), content);
  };
  for (const folder of ["data", "schemas"]) put(`${folder}/odd/1.0.0/features.json`, features);
  put("data/odd/1.0.0/dataset_info.json", info);
  put("data/odd/1.0.0/odd-train.tfrecord-00000-of-00001", Buffer.concat(ROWS.map((row) => record(example(row)))));
  put("definitions/odd.toml", DEFINITION);
  put("recipe.toml", `[tokenizer]\nfile = ${JSON.stringify(tokenizer)}\n[lengths]\ninputs = 384\ntargets = 128\n`);
  return { definition: DEFINITION, path: join(root, "definitions/odd.toml"),
    arguments: [join(root, "recipe.toml"), "--data-dir", join(root, "data"), "--templates", join(root, "definitions"), "--schemas", join(root, "schemas")] };
}

// ---- tf.train.Example and TFRecord

function varint(number) {
  const bytes = [];
  let rest = BigInt(number);
  do {
    bytes.push(Number(rest & 127n) | (rest > 127n ? 128 : 0));
    rest >>= 7n;
  } while (rest > 0n);
  return Buffer.from(bytes);
}

function field(number, bytes) {
  return Buffer.concat([varint((number << 3) | 2), varint(bytes.length), bytes]);
}

function example(row) {
  const entries = Object.entries(row).map(([name, value]) => {
    const feature = typeof value === "string" ? field(1, field(1, Buffer.from(value))) : field(3, field(1, varint(value)));
    return field(1, Buffer.concat([field(1, Buffer.from(name)), field(2, feature)]));
  });
  return field(1, Buffer.concat(entries));
}

// Length and payload, each with its masked checksum.
function record(payload) {
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(payload.length));
  return Buffer.concat([length, masked(length), payload, masked(payload)]);
}

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let crc = n;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc >>> 0;
});

// CRC-32C, turned and moved as TFRecord has it.
function masked(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  crc = (crc ^ 0xffffffff) >>> 0;
  const out = Buffer.alloc(4);
  out.writeUInt32LE((((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0);
  return out;
}
