//! How fast each stage is by itself, on one thread, and a compile as a whole.
//!
//! ```text
//! cargo bench --bench stages                  all of it, some minutes
//! cargo bench --bench stages -- data/render   one stage on one input
//! ```
//!
//! There are two inputs: `data`, the corpora of the repository, and `shared`, the same five corpora in full from
//! `../shared`, left out where that is absent. Every stage is given what the stage before it makes of the same rows,
//! and its throughput is counted in prompts and in bytes of their rendered text. Times are therefore comparable:
//! a stage that takes twice as long as another is twice as much of a compile. Rows are the same in every round, so
//! the encoder finds their words in its cache, which is also the usual case in a long run.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use flanc::compile::{Progress, compile};
use flanc::diag::Source;
use flanc::example::Datum;
use flanc::ingest::Corpus;
use flanc::ingest::features::Decoder;
use flanc::ingest::splits::Part;
use flanc::mixture::{self, Recipe};
use flanc::pack::pack;
use flanc::plan::plan;
use flanc::seed::Seed;
use flanc::shard::pages::{Column, PageEncoder};
use flanc::shard::rows::{PackedRows, PromptRows};
use flanc::shard::writer::ShardWriter;
use flanc::task::{self, Catalogue, Folder};
use flanc::template::engine::{Bound, Prompt};
use flanc::tokenize::Tokenizer;

// As in the program: what allocates much is measured with the allocator that it will have.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tokens of a packed row.
const SEQUENCE: usize = 2048;
/// Prompts are cut to this many tokens before they are packed.
const LONGEST: usize = 1280;

struct Input {
    name: &'static str,
    data: &'static str,
    tokenizer: &'static str,
    /// Rows from the beginning of each split.
    rows: u64,
}

const INPUTS: [Input; 2] = [
    Input { name: "data", data: "data", tokenizer: "data/tokenizer.json", rows: u64::MAX },
    Input { name: "shared", data: "../shared/corpora/tfds", tokenizer: "../shared/bench/tokenizer.json", rows: 500 },
];

fn benches(criterion: &mut Criterion) {
    for input in INPUTS {
        if Path::new(input.data).is_dir() && Path::new(input.tokenizer).is_file() {
            stages(criterion, &input);
        } else {
            eprintln!("skipped: `{}` needs {} and {}", input.name, input.data, input.tokenizer);
        }
    }
}

/// The split `train`, as far as the input takes it.
fn part(corpus: &Corpus, rows: u64) -> Part {
    let there = corpus.split("train").expect("the split train").rows();
    Part { split: "train".into(), rows: 0..there.min(rows) }
}

fn visit(corpora: &[Corpus], rows: u64, mut each: impl FnMut(usize, &[u8])) {
    for (t, corpus) in corpora.iter().enumerate() {
        let mut visit = |row: flanc::ingest::RawRow<'_>| {
            each(t, row.payload);
            Ok(())
        };
        let mut damaged = |damage: flanc::ingest::record::Damage| panic!("{}", damage.diagnostic);
        corpus.visit(&part(corpus, rows), &|_| true, &mut visit, &mut damaged).expect("readable corpora");
    }
}

fn stages(criterion: &mut Criterion, input: &Input) {
    let mut group = criterion.benchmark_group(input.name);
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));

    let catalogue = catalogue();
    let tokenizer = Tokenizer::open(Path::new(input.tokenizer)).expect("a tokenizer");
    let data = [PathBuf::from(input.data)];
    let open = |t: &task::Task| Corpus::open(&t.definition.corpus, &data).expect("the corpora of the benchmark");
    let corpora: Vec<Corpus> = catalogue.tasks.iter().map(open).collect();
    let wanted: Vec<Option<&BTreeSet<String>>> = catalogue.tasks.iter().map(|t| t.program.decoded_features()).collect();
    let decoders: Vec<Decoder<'_>> = corpora
        .iter()
        .zip(&wanted)
        .map(|(corpus, wanted)| Decoder::new(&corpus.info.features, *wanted).expect("features that can be decoded"))
        .collect();

    // What every stage hands to the next.
    let mut records: Vec<(usize, Vec<u8>)> = Vec::new();
    visit(&corpora, input.rows, |t, payload| records.push((t, payload.to_vec())));
    let rows: Vec<(usize, usize, Datum<'_>)> =
        records.iter().map(|(t, record)| (*t, record.len(), decode(&decoders[*t], record))).collect();
    let bound: Vec<(usize, Bound)> =
        rows.iter().map(|(t, bytes, row)| (*t, bind(&catalogue, *t, row, *bytes))).collect();
    let prompts: Vec<Prompt> = render(&catalogue, &bound).collect();
    let mut encoder = tokenizer.encoder();
    let mut encode = |text: &str, ids: &mut Vec<u32>| encoder.encode_into(text, ids).expect("text that can be encoded");
    let encoded: Vec<(Vec<u32>, usize)> = prompts
        .iter()
        .map(|prompt| {
            let mut ids = Vec::new();
            encode(&prompt.inputs, &mut ids);
            let target_start = ids.len();
            encode(&prompt.targets, &mut ids);
            (ids, target_start)
        })
        .collect();

    let text: usize = prompts.iter().map(|p| p.inputs.len() + p.targets.len()).sum();
    group.throughput(Throughput::ElementsAndBytes { elements: prompts.len() as u64, bytes: text as u64 });
    group.bench_function("read", |b| {
        b.iter(|| visit(&corpora, input.rows, |_, payload| _ = black_box(payload)));
    });
    group.bench_function("decode", |b| {
        b.iter(|| records.iter().for_each(|(t, record)| drop(black_box(decode(&decoders[*t], record)))));
    });
    group.bench_function("bind", |b| {
        b.iter(|| rows.iter().for_each(|(t, bytes, row)| drop(black_box(bind(&catalogue, *t, row, *bytes)))));
    });
    group.bench_function("render", |b| b.iter(|| render(&catalogue, &bound).for_each(|p| drop(black_box(p)))));
    let mut ids = Vec::new();
    group.bench_function("encode", |b| {
        b.iter(|| {
            for prompt in &prompts {
                ids.clear();
                encode(&prompt.inputs, &mut ids);
                encode(&prompt.targets, &mut ids);
                black_box(&ids);
            }
        });
    });
    group.bench_function("build rows", |b| b.iter(|| by_row(&encoded)));
    let rows = by_row(&encoded);
    writing(&mut group, "write by row", &PromptRows::schema(), rows.iter().map(PromptRows::columns));
    let lengths: Vec<u32> = shuffled(&encoded).map(|(ids, _)| ids.len() as u32).collect();
    group.bench_function("pack", |b| b.iter(|| pack(black_box(&lengths), SEQUENCE as u32)));
    let rows = packed(&encoded, &lengths);
    writing(&mut group, "write shuffled", &PackedRows::schema(), rows.iter().map(PackedRows::columns));
    whole(&mut group, input, &catalogue, &data);
    group.finish();
}

fn catalogue() -> Catalogue {
    let folder = |path: &str| Folder::Directory(path.into());
    match task::load(&folder("benches/work/defs"), &folder("schemas")) {
        Ok((catalogue, _)) => catalogue,
        Err(errors) => panic!("{}", errors[0]),
    }
}

fn decode<'r, 'f: 'r>(decoder: &Decoder<'f>, record: &'r [u8]) -> Datum<'r> {
    decoder.decode(record, &mut Vec::new()).expect("rows that can be decoded")
}

fn bind(catalogue: &Catalogue, task: usize, row: &Datum<'_>, bytes: usize) -> Bound {
    catalogue.tasks[task]
        .program
        .bind(row, bytes, Default::default())
        .expect("fields that can be computed")
        .expect("no filter takes it out")
}

/// Every row through every template. Rows without a subject have nothing to give as targets.
fn render<'i>(catalogue: &'i Catalogue, rows: &'i [(usize, Bound)]) -> impl Iterator<Item = Prompt> + 'i {
    rows.iter().flat_map(|(t, bound)| {
        let task = &catalogue.tasks[*t];
        (0..task.definition.templates.len()).filter_map(|template| task.program.render(bound, template).ok())
    })
}

fn by_row(encoded: &[(Vec<u32>, usize)]) -> Vec<PromptRows> {
    let groups = encoded.chunks(flanc::expand::GROUP_ROWS);
    let rows = groups.map(|group| {
        let mut rows = PromptRows::default();
        group.iter().for_each(|(ids, target_start)| rows.push(&ids[..*target_start], &ids[*target_start..]));
        rows
    });
    rows.collect()
}

/// The prompts in a mixture's order, cut to length.
fn shuffled(encoded: &[(Vec<u32>, usize)]) -> impl Iterator<Item = (&[u32], usize)> {
    let stream = Seed(17).stream(&["order"]);
    let mut order: Vec<usize> = (0..encoded.len()).collect();
    order.sort_unstable_by_key(|&i| stream.draw(i as u64));
    order.into_iter().map(|i| {
        let (ids, target_start) = &encoded[i];
        (&ids[..ids.len().min(LONGEST)], (*target_start).min(LONGEST))
    })
}

fn packed(encoded: &[(Vec<u32>, usize)], lengths: &[u32]) -> Vec<PackedRows> {
    let prompts: Vec<_> = shuffled(encoded).collect();
    let mut groups = Vec::new();
    let mut rows = PackedRows::default();
    for row in pack(lengths, SEQUENCE as u32).iter() {
        for &i in row {
            let (ids, target_start) = prompts[i as usize];
            rows.push(ids, target_start);
        }
        rows.close(SEQUENCE, 0);
        // As `link` does.
        if rows.rows() * SEQUENCE >= flanc::expand::GROUP_TOKENS {
            groups.push(std::mem::take(&mut rows));
        }
    }
    groups.push(rows);
    groups
}

/// Encodes, compresses, hashes and syncs a file.
fn writing<'r>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    schema: &SchemaRef,
    groups: impl Iterator<Item = [Column<'r>; 3]> + Clone,
) {
    let directory = scratch();
    let mut pages = PageEncoder::default();
    group.bench_function(name, |b| {
        b.iter(|| {
            let (mut shard, encoder) = ShardWriter::create(&directory, "shard.parquet", schema.clone(), &[]).unwrap();
            for columns in groups.clone() {
                shard.write(encoder.pages(&columns, &mut pages).unwrap()).unwrap();
            }
            shard.finish().unwrap()
        });
    });
    let _ = std::fs::remove_dir_all(directory);
}

/// All phases, start-up left out, packed, into a directory that was empty.
fn whole(group: &mut BenchmarkGroup<'_, WallTime>, input: &Input, catalogue: &Catalogue, data: &[PathBuf]) {
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(16 << 20).build().unwrap();
        let plan = match plan(recipe(input, catalogue), catalogue, data) {
            Ok(plan) => plan,
            Err(errors) => panic!("{}", errors[0]),
        };
        let directory = scratch();
        group.bench_function(format!("compile, threads: {threads}"), |b| {
            let fresh = || {
                let _ = std::fs::remove_dir_all(&directory);
            };
            let compile = |()| pool.install(|| compile(&plan, &directory, 0, &Progress::default()).is_ok());
            b.iter_batched(fresh, |()| assert!(compile(())), BatchSize::PerIteration);
        });
        let _ = std::fs::remove_dir_all(directory);
    }
}

fn recipe(input: &Input, catalogue: &Catalogue) -> Recipe {
    let tokenizer = std::env::current_dir().unwrap().join(input.tokenizer);
    let text = format!(
        "tasks = ['*']\ncap = {}\nselect = 'head'\n[tokenizer]\nfile = '{}'\n[output]\nsequence = {SEQUENCE}\n",
        input.rows.min(1 << 40),
        tokenizer.display()
    );
    match mixture::read(&Source::new("stages", text), Path::new(""), catalogue) {
        Ok((recipe, _)) => recipe,
        Err(errors) => panic!("{}", errors[0]),
    }
}

fn scratch() -> PathBuf {
    std::env::temp_dir().join(format!("flanc-stages-{}", std::process::id()))
}

criterion_group!(all, benches);
criterion_main!(all);
