//! Compiles of the bundled corpora: what is in the output, and that it is the same however it came about.

mod output;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int32Type;
use flanc::compile::Outcome;
use flanc::ingest::Corpus;
use flanc::ingest::features::Decoder;
use flanc::seed::Seed;
use flanc::storage;
use flanc::tokenize::Tokenizer;

pub use output::*;

/// Four small tasks of three clusters.
const FEW: &str = "tasks = ['rte', 'glue_mrpc', 'trec', 'openbookqa']";

// ---- The same bytes, however they came about -----------------------------------------------------------------------

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    for profile in ["packed", "sft", "megatron"] {
        check_same_bytes("data".as_ref(), &format!("output = {{ profile = '{profile}', shard_tokens = 100_000 }}"));
    }
}

/// Units of one task are under way at the same time only where a task has more than one.
#[test]
fn any_number_of_threads_gives_the_same_bytes_of_many_units() {
    let data = Scratch::new();
    repeat_corpus("super_glue/rte", 250, &data);
    let recipe = "tasks = ['rte']\ntemplates = 'one'\noutput = { profile = 'sft', shard_tokens = 200_000 }";
    let files = check_same_bytes(&data, recipe);
    assert!(files.contains_key("tasks/rte/train-00002-of-00003.parquet"), "{files:?}");
    assert!(files.keys().filter(|f| f.starts_with("mixture/train-")).count() >= 6, "{files:?}");
}

fn check_same_bytes(data: &Path, keys: &str) -> BTreeMap<String, String> {
    let with = |threads: usize| {
        let out = Scratch::new();
        Compiler { data: data.to_owned(), threads, ..Compiler::default() }.run(keys, &out);
        bytes(&out)
    };
    let one = with(1);
    for threads in [2, 8] {
        assert_eq!(with(threads), one, "{threads} threads, {keys}");
    }
    one
}

#[test]
fn a_second_run_writes_nothing() {
    let out = Scratch::new();
    run(FEW, &out);
    let state = || -> Vec<(String, SystemTime)> {
        let changed = |file: &str| fs::metadata(out.join(file)).unwrap().modified().unwrap();
        walk(&out).into_iter().map(|file| (file.clone(), changed(&file))).collect()
    };
    let before = state();
    let began = Instant::now();
    let again = Compiler::default().try_run(FEW, &out);
    assert!(matches!(again, Ok(Outcome::UpToDate(_))));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(state(), before);
}

/// The same directory is compiled with one recipe after the other; each ends as if it had begun in an empty one.
#[test]
fn what_was_there_before_makes_no_difference() {
    let out = Scratch::new();
    let first = "tasks = ['rte', 'cola']";
    let recipes = [
        first,
        "tasks = ['rte', 'cola']\ntokenizer.pad = '<eos>'",
        "tasks = ['rte', 'cola']\ntokenizer.separator = '<pad>'",
        "tasks = ['rte', 'cola']\ntokenizer.separator = '<pad>'\noutput.profile = 'sft'",
        "tasks = ['rte', 'cola']\noutput.mix = 'tasks'",
        "tasks = ['rte', 'cola']\nhold_out = ['rte']",
        "tasks = ['rte', 'cola']\nkinds = ['original']\ntemplates = 3",
        "tasks = ['rte', 'cola']\nsize = { prompts = 500 }\noutput.shard_tokens = 10_000",
        "tasks = ['cola']\nsize = { prompts = 500 }\nseed = 18",
        first,
    ];
    for keys in recipes {
        let clean = Scratch::new();
        run(keys, &clean);
        run(keys, &out);
        assert_eq!(bytes(&out), bytes(&clean), "{keys}");
        assert_eq!(walk(&out), walk(&clean), "{keys}");
    }
}

/// A template that the recipe does not use comes before those that it does.
#[test]
fn templates_of_other_kinds_make_no_difference_to_what_is_reused() {
    let (scratch, out, clean) = (Scratch::new(), Scratch::new(), Scratch::new());
    let keys = "kinds = ['original']\ntemplates = 2";
    copy_definition("natural-language-inference/rte", &scratch);
    let catalogue = definitions(&scratch);
    Compiler { catalogue: &catalogue, ..Compiler::default() }.run(keys, &out);
    edit(&scratch.join("rte.toml"), "[[template]]\nname = \"can-we-conclude\"", |found| {
        format!(
            "[[template]]\nname = 'new'\nkind = 'turned-around'\ninputs = '{{{{ hypothesis }}}}'\ntargets = '{{{{ premise }}}}'\n\n{found}"
        )
    });
    let catalogue = definitions(&scratch);
    let compiler = Compiler { catalogue: &catalogue, ..Compiler::default() };
    // The draws may stay or change; what is there must be what a clean compile gives.
    compiler.try_run(keys, &out).unwrap_or_else(|e| panic!("{}", text(&e)));
    compiler.run(keys, &clean);
    assert_eq!(bytes(&out), bytes(&clean));
}

#[test]
fn an_edited_template_recompiles_its_task_alone() {
    let (scratch, out, clean) = (Scratch::new(), Scratch::new(), Scratch::new());
    for task in ["natural-language-inference/rte", "paraphrase/glue_mrpc", "sentiment/sst2"] {
        copy_definition(task, &scratch);
    }
    let catalogue = definitions(&scratch);
    Compiler { catalogue: &catalogue, ..Compiler::default() }.run("", &out);
    let original = bytes(&out);
    let changed = |file: &str| fs::metadata(out.join(file)).unwrap().modified().unwrap();
    let task_files: Vec<String> = original.keys().filter(|f| f.starts_with("tasks/")).cloned().collect();
    let before: Vec<SystemTime> = task_files.iter().map(|f| changed(f)).collect();

    edit(&scratch.join("rte.toml"), "Can we conclude that", |_| "Does it follow that".to_owned());
    let catalogue = definitions(&scratch);
    let compiler = Compiler { catalogue: &catalogue, ..Compiler::default() };
    let again = compiler.run("", &out);
    assert_eq!((again.reused, again.units), (4, 6));
    for (file, before) in task_files.iter().zip(before) {
        assert_eq!(changed(file) != before, file.starts_with("tasks/rte/"), "{file}");
    }
    compiler.run("", &clean);
    assert_eq!(bytes(&out), bytes(&clean));
    assert_ne!(bytes(&out), original);

    // And back.
    edit(&scratch.join("rte.toml"), "Does it follow that", |_| "Can we conclude that".to_owned());
    let catalogue = definitions(&scratch);
    Compiler { catalogue: &catalogue, ..Compiler::default() }.run("", &out);
    assert_eq!(bytes(&out), original);
}

fn copy_definition(task: &str, to: &Path) {
    let name = task.rsplit('/').next().unwrap();
    fs::copy(format!("template-defs/{task}.toml"), to.join(format!("{name}.toml"))).unwrap();
}

fn edit(file: &Path, find: &str, replace: impl Fn(&str) -> String) {
    let text = fs::read_to_string(file).unwrap();
    assert_eq!(text.matches(find).count(), 1, "{find}");
    fs::write(file, text.replace(find, &replace(find))).unwrap();
}

/// Whatever is missing, cut or left over, compiling again ends in the same files.
#[test]
fn goes_on_from_whatever_a_run_left() {
    let (out, clean) = (Scratch::new(), Scratch::new());
    let keys = format!("{FEW}\nhold_out = ['glue_mrpc']\noutput.shard_tokens = 50_000");
    run(&keys, &clean);
    run(&keys, &out);
    let (expected, names) = (bytes(&clean), walk(&clean));
    for round in 0..5 * rounds() {
        let draws = Seed(3).stream(&["damage"]).at(round);
        for (i, file) in names.iter().enumerate() {
            let (path, draw) = (out.join(file), draws.draw(i as u64));
            match draw % (3 + round % 7) {
                0 => fs::remove_file(&path).unwrap(),
                1 => cut(&path, draw >> 32),
                _ => {}
            }
        }
        // Without this, the run is done already.
        fs::remove_file(out.join("manifest.json")).ok();
        for left in ["tasks/rte/.train-00000-of-00001.parquet.tmp", "tasks/gone/train-00000-of-00001.parquet"] {
            fs::create_dir_all(out.join(left).parent().unwrap()).unwrap();
            fs::write(out.join(left), "left over").unwrap();
        }
        fs::create_dir_all(out.join(".flanc/runs/train")).unwrap();
        fs::write(out.join(".flanc/runs/train/000000.run"), "left over").unwrap();
        run(&keys, &out);
        assert_eq!(bytes(&out), expected, "round {round}");
        assert_eq!(walk(&out), names, "round {round}");
    }
}

/// Single files, each missing and each cut, with the manifest in place.
#[test]
fn misses_what_is_missing_under_a_manifest() {
    let out = Scratch::new();
    let keys = "tasks = ['rte']";
    run(keys, &out);
    let (expected, names) = (bytes(&out), walk(&out));
    for file in names.iter().filter(|f| !f.starts_with(".flanc/")) {
        fs::remove_file(out.join(file)).unwrap();
        run(keys, &out);
        assert_eq!(bytes(&out), expected, "without {file}");
        // Only the size of a file is looked at, `flanc verify` looks into it; the card says so little that it has none.
        if file != "README.md" {
            cut(&out.join(file), 3);
            run(keys, &out);
            assert_eq!(bytes(&out), expected, "with {file} cut");
        }
    }
}

fn cut(path: &Path, draw: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(draw % length.max(1)).unwrap();
}

/// More rounds than the four that an ordinary run can afford: `FLANC_TEST_ROUNDS=100`.
fn rounds() -> u64 {
    std::env::var("FLANC_TEST_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap())
}

#[test]
fn goes_on_after_being_killed() {
    let (scratch, data) = (Scratch::new(), Scratch::new());
    for corpus in ["super_glue/rte", "glue/mrpc", "trec"] {
        repeat_corpus(corpus, 5, &data);
    }
    let keys = "tasks = ['rte', 'glue_mrpc', 'trec']\noutput.shard_tokens = 100_000";
    let start = |out: &Path| {
        let mut command = program(keys, &scratch, &data, out);
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    let clean = scratch.join("clean");
    assert!(start(&clean).wait().unwrap().success());
    let (expected, names) = (bytes(&clean), walk(&clean));
    let mut killed = 0;
    for round in 0..rounds() {
        let out = scratch.join(format!("out{round}"));
        let draws = Seed(5).stream(&["kill"]).at(round);
        // Each time when so many files are there, temporary ones and scratch included; the last may come too late.
        let mut moments: Vec<usize> = (0..5).map(|i| 1 + draws.draw(i) as usize % (names.len() + 2)).collect();
        moments.sort_unstable();
        for files in moments {
            let mut child = start(&out);
            while walk(&out).len() < files && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            child.kill().unwrap(); // SIGKILL
            killed += u64::from(!child.wait().unwrap().success());
            // Either there is no manifest or it is true.
            assert!(!out.join("manifest.json").exists() || bytes(&out) == expected);
        }
        assert!(start(&out).wait().unwrap().success());
        assert_eq!(bytes(&out), expected, "round {round}");
        assert_eq!(walk(&out), names, "round {round}");
    }
    println!("{killed} of {} runs were killed before their end", 5 * rounds());
    assert!(killed >= 3 * rounds(), "only {killed} of {} runs were killed before their end", 5 * rounds());
}

#[test]
fn one_run_at_a_time() {
    let (scratch, out) = (Scratch::new(), Scratch::new());
    let held = storage::lock(&out.join(".flanc/lock")).unwrap();
    let refused = program(FEW, &scratch, "data".as_ref(), &out).output().unwrap();
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("error[output-busy]: another run is writing here"), "{said}");
    assert!(said.contains(out.to_str().unwrap()), "{said}");
    drop(held);
    assert!(program(FEW, &scratch, "data".as_ref(), &out).output().unwrap().status.success());
}

#[test]
fn a_changed_input_is_read_again() {
    let (scratch, out, clean) = (Scratch::new(), Scratch::new(), Scratch::new());
    let data = scratch.join("data");
    copy_tree("data/super_glue".as_ref(), &data.join("super_glue"));
    let compiler = Compiler { data: data.clone(), ..Compiler::default() };
    let keys = "tasks = ['rte', 'cb']";
    compiler.run(keys, &out);
    let original = bytes(&out);

    // The same records in another order: a file of the same size.
    let file = data.join("super_glue/rte/1.0.2/super_glue-train.tfrecord-00000-of-00001");
    let before = fs::read(&file).unwrap();
    let mut records = frames(&before);
    records.reverse();
    fs::write(&file, records.concat()).unwrap();
    let again = compiler.run(keys, &out);
    assert_eq!((again.reused, again.units), (2, 4));
    compiler.run(keys, &clean);
    assert_eq!(bytes(&out), bytes(&clean));
    assert_ne!(bytes(&out), original);

    // And back.
    fs::write(&file, before).unwrap();
    compiler.run(keys, &out);
    assert_eq!(bytes(&out), original);
}

/// Files that flanc did not write are neither removed nor written over.
#[test]
fn what_is_not_flancs_stays() {
    for mine in ["tasks/todo.txt", "eval/results.json", "mixture/notes/a.md", "README.md"] {
        let out = Scratch::new();
        fs::create_dir_all(out.join(mine).parent().unwrap()).unwrap();
        fs::write(out.join(mine), mine).unwrap();
        let Err(refused) = Compiler::default().try_run("tasks = ['cola']", &out) else { panic!("wrote over {mine}") };
        let said = text(&refused);
        assert!(said.starts_with("error[output-not-empty]") && said.contains(&format!("`{mine}`")), "{said}");
        assert_eq!(walk(&out), [".flanc/lock", mine]);
        assert_eq!(fs::read_to_string(out.join(mine)).unwrap(), mine);
    }
    // What is not in the way is of no interest.
    let out = Scratch::new();
    fs::write(out.join("log.txt"), "begun").unwrap();
    run("tasks = ['cola']", &out);
    run("tasks = ['wic']", &out);
    assert_eq!(fs::read_to_string(out.join("log.txt")).unwrap(), "begun");
    assert!(!out.join("tasks/cola").exists());
}

// ---- Which rows and templates --------------------------------------------------------------------------------------

/// The rows of a task's training split that are used.
fn rows_used(out: &Path, task: &str) -> BTreeSet<u64> {
    prompts(out, &format!("tasks/{task}/train-")).into_iter().map(|p| p.segment.name.row).collect()
}

fn rows_of(keys: &str, task: &str) -> BTreeSet<u64> {
    let out = Scratch::new();
    run(&format!("output.mix = 'tasks'\n{keys}"), &out);
    rows_used(&out, task)
}

#[test]
fn a_smaller_cap_takes_a_subset() {
    let tasks = "tasks = ['rte', 'glue_mrpc']";
    for task in ["rte", "glue_mrpc"] {
        let all = rows_of(tasks, task);
        let thirty = rows_of(&format!("{tasks}\ncap = 30"), task);
        let ten = rows_of(&format!("{tasks}\ncap = 10"), task);
        assert_eq!((thirty.len(), ten.len()), (30, 10));
        assert!(ten.is_subset(&thirty) && thirty.is_subset(&all));
        assert_ne!(ten, (0..10).collect(), "the first ones are no draw");
        // Which rows they are has nothing to do with templates, kinds, other tasks and lengths, and all with the seed.
        let others = "cap = 10\ntemplates = 'one'\nkinds = ['original']\nwrapper = 'flan-v1'\nlengths.inputs = 512";
        assert_eq!(rows_of(&format!("tasks = ['{task}', 'cb', 'wic']\n{others}"), task), ten);
        assert_ne!(rows_of(&format!("{tasks}\ncap = 10\nseed = 18"), task), ten);
    }
}

#[test]
fn head_takes_the_first_rows() {
    assert_eq!(rows_of("tasks = ['rte']\ncap = 7\nselect = 'head'", "rte"), (0..7).collect());
    // The split is two shards: rows are counted over both.
    assert_eq!(rows_of("tasks = ['sst2']\ncap = 25\nselect = 'head'", "sst2"), (0..25).collect());
}

/// A filter before the cap leaves the cap's number of rows; after it, as in FLAN, fewer.
#[test]
fn filters_come_before_the_cap_or_after_it() {
    let scratch = Scratch::new();
    copy_definition("natural-language-inference/rte", &scratch);
    edit(&scratch.join("rte.toml"), "filter = \"label >= 0\"", |_| "filter = \"label == 1\"".to_owned());
    let catalogue = definitions(&scratch);
    let kept: Vec<u64> = source_rows("super_glue/rte", "train")
        .iter()
        .take(32)
        .enumerate()
        .filter(|(_, row)| row["label"] == 1)
        .map(|(i, _)| i as u64)
        .collect();
    let check = |keys: &str, rows: &[u64], capped: u64, filtered: u64| {
        let out = Scratch::new();
        let keys = format!("{keys}\nselect = 'head'\ncap = 10\noutput.mix = 'tasks'");
        let manifest = Compiler { catalogue: &catalogue, ..Compiler::default() }.run(&keys, &out).manifest;
        let entry = train(&manifest, "rte");
        assert_eq!(rows_used(&out, "rte"), rows.iter().copied().collect(), "{keys}");
        assert_eq!((entry.rows, entry.capped, entry.filtered), (32, capped, filtered), "{keys}");
    };
    let among_ten: Vec<u64> = kept.iter().copied().filter(|&row| row < 10).collect();
    for templates in ["all", "one", "round-robin"] {
        let keys = |filters: &str| format!("filters = '{filters}'\ntemplates = '{templates}'");
        let filtered = 32 - kept.len() as u64;
        check(&keys("before-cap"), &kept[..10], 32 - 10 - filtered, filtered);
        check(&keys("after-cap"), &among_ten, 22, 10 - among_ten.len() as u64);
    }
}

#[test]
fn templates_are_assigned_as_asked() {
    let by_row = |keys: &str| {
        let out = Scratch::new();
        run(&format!("tasks = ['rte']\noutput.mix = 'tasks'\n{keys}"), &out);
        let mut by_row = BTreeMap::<u64, Vec<String>>::new();
        for prompt in prompts(&out, "tasks/rte/train-") {
            by_row.entry(prompt.segment.name.row).or_default().push(prompt.segment.name.template);
        }
        by_row
    };
    let names: Vec<String> =
        bundled().task("rte").unwrap().definition.templates.iter().map(|t| t.name.text.clone()).collect();
    assert!(by_row("").values().all(|templates| *templates == names));
    for (choice, number) in [("'one'", 1), ("3", 3), ("99", names.len())] {
        let assigned = by_row(&format!("templates = {choice}"));
        assert!(assigned.values().all(|templates| templates.len() == number), "{assigned:?}");
        let different: BTreeSet<&Vec<String>> = assigned.values().collect();
        assert_eq!(different.len() > 5, number < names.len(), "{assigned:?}");
        let used: BTreeSet<&String> = assigned.values().flatten().collect();
        assert!(used.len() >= 8, "a draw that leaves templates out: {used:?}");
    }
    // Three templates are the one and two more.
    let (one, three) = (by_row("templates = 'one'"), by_row("templates = 3"));
    assert!(one.iter().all(|(row, templates)| three[row].contains(&templates[0])));
    for (i, templates) in by_row("templates = 'round-robin'").values().enumerate() {
        assert_eq!(*templates, [names[i % names.len()].clone()]);
    }
    // The position among the kept rows counts, not the row's number.
    for (i, templates) in by_row("templates = 'round-robin'\ncap = 12").values().enumerate() {
        assert_eq!(*templates, [names[i % names.len()].clone()]);
    }
}

#[test]
fn kinds_are_those_asked_for() {
    for (kinds, expected) in [("'original'", vec!["original"]), ("'turned-around'", vec!["turned-around"])] {
        let out = Scratch::new();
        run(&format!("{FEW}\nkinds = [{kinds}]"), &out);
        let found: BTreeSet<String> = prompts(&out, "mixture/").into_iter().map(|p| p.segment.kind).collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    }
}

/// A held-out cluster, and what is too close to it, leaves no row in anything that is trained on.
#[test]
fn held_out_is_held_out() {
    let out = Scratch::new();
    let manifest = run("hold_out = ['natural-language-inference', 'openbookqa']", &out);
    let trained: BTreeSet<String> =
        prompts(&out, "tasks/").into_iter().chain(prompts(&out, "mixture/")).map(|p| p.segment.name.task).collect();
    let gone = ["rte", "cb", "openbookqa", "glue_mrpc"];
    assert!(gone.iter().all(|task| !trained.contains(*task)), "{trained:?}");
    assert_eq!(trained.len(), VARIOUS.len() - gone.len());
    assert!(!manifest.tasks.iter().any(|t| t.task == "glue_mrpc"), "paraphrase is too close to be used at all");
    let held_out: Vec<&str> = manifest.tasks.iter().filter(|t| t.role == "held-out").map(|t| t.task.as_str()).collect();
    let nli = bundled().tasks.iter().filter(|t| t.definition.cluster == "natural-language-inference");
    let mut expected: Vec<&str> = nli.map(|t| t.name()).chain(["openbookqa"]).collect();
    expected.sort_unstable();
    assert_eq!(held_out, expected);

    let tokenizer = Tokenizer::open("data/tokenizer.json".as_ref()).unwrap();
    for (task, corpus, split) in [
        ("rte", "super_glue/rte", "validation"),
        ("cb", "super_glue/cb", "validation"),
        ("openbookqa", "openbookqa", "test"),
    ] {
        let program = &bundled().task(task).unwrap().definition;
        let originals = program.templates.iter().filter(|t| t.kind.name() == "original").count();
        let rows = source_rows(corpus, split).len();
        // Beside the rows that are tested stand those that templates are chosen on.
        let [shards, validation] = ["test", "validation"].map(|split| shards(&out, &format!("eval/{task}/{split}-")));
        let shard = &shards[0];
        assert_eq!((shards.len(), shard.batch.num_rows(), validation.len()), (1, rows * originals, 1), "{task}");
        for (row, prompts) in shard.rows.iter().enumerate() {
            let [prompt] = prompts.as_slice() else { panic!("{prompts:?}") };
            let options = shard.batch["options"].as_list::<i32>().value(row);
            let options: Vec<Vec<i32>> = (0..options.len())
                .map(|i| options.as_list::<i32>().value(i).as_primitive::<Int32Type>().values().to_vec())
                .collect();
            let answer = shard.batch["answer"].as_primitive::<Int32Type>().value(row);
            // The targets of an original template are the answer, and so are the ids of the option of that index.
            assert_eq!(options[answer as usize], prompt.targets(), "{prompt:?}");
            assert_eq!(options.iter().filter(|o| *o == prompt.targets()).count(), 1);
        }
        if task == "rte" {
            let answers = source_rows(corpus, split);
            for prompt in shard.rows.iter().flatten() {
                let label = &answers[prompt.segment.name.row as usize]["label"];
                let expected = if *label == 0 { "yes" } else { "no" };
                let ids: Vec<u32> = prompt.targets().iter().map(|&id| id as u32).collect();
                assert!(tokenizer.decode(&ids).starts_with(expected), "{prompt:?}");
            }
        }
    }
}

/// Two tasks over one corpus: with one of them held out, the other's rows are its rows.
#[test]
fn a_corpus_of_a_held_out_task_is_not_trained_on() {
    let out = Scratch::new();
    let manifest = run("tasks = ['mnli_matched', 'mnli_mismatched', 'rte']\nhold_out = ['mnli_matched']", &out);
    let roles: Vec<(&str, &str)> = manifest.tasks.iter().map(|t| (t.task.as_str(), t.role.as_str())).collect();
    assert_eq!(roles, [("mnli_matched", "held-out"), ("rte", "trained")]);
}

// ---- How many prompts ----------------------------------------------------------------------------------------------

/// Shares of `total` by largest remainder, computed in whole numbers where the weights are.
fn shares(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u64 = weights.iter().sum();
    let mut shares: Vec<u64> = weights.iter().map(|w| total * w / sum).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(total * weights[i] % sum), i));
    let missing = total - shares.iter().sum::<u64>();
    order.iter().take(missing as usize).for_each(|&i| shares[i] += 1);
    shares
}

#[test]
fn sizes_are_exact_quotas_by_rate() {
    for (total, rate_max) in [(1000, 20), (37, 3000), (5000, 3000), (1, 3000)] {
        let out = Scratch::new();
        let manifest = run(&format!("{FEW}\nsize = {{ prompts = {total} }}\nrate_max = {rate_max}"), &out);
        assert_eq!(manifest.mixture["train"].prompts, total);
        let examples: Vec<u64> =
            manifest.tasks.iter().map(|t| t.splits["train"].rows - t.splits["train"].capped).collect();
        let weights: Vec<u64> = examples.iter().map(|&n| n.min(rate_max)).collect();
        let drawn: Vec<u64> = manifest.tasks.iter().map(|t| t.splits["train"].drawn).collect();
        assert_eq!(drawn, shares(total, &weights), "{total} prompts, weights {weights:?}");

        let mut uses = BTreeMap::<Name, Vec<u32>>::new();
        for prompt in prompts(&out, "mixture/train-") {
            uses.entry(prompt.segment.name).or_default().push(prompt.segment.repeat);
        }
        for task in &manifest.tasks {
            let entry = &task.splits["train"];
            let of_task: Vec<&Vec<u32>> = uses.iter().filter(|(n, _)| n.task == task.task).map(|(_, u)| u).collect();
            let most = entry.drawn.div_ceil(entry.prompts);
            let all: u64 = of_task.iter().map(|u| u.len() as u64).sum();
            assert_eq!(entry.drawn, all);
            assert_eq!(entry.repeated, entry.drawn.saturating_sub(entry.prompts));
            assert!((task.rate_realised.unwrap() - all as f64 / total as f64).abs() < 1e-12);
            // Every prompt as often as it goes into the quota, and some once more; uses are numbered.
            for uses in of_task {
                assert!(uses.len() as u64 == most || uses.len() as u64 == most - 1, "{uses:?} of at most {most}");
                let mut numbers = uses.clone();
                numbers.sort_unstable();
                assert_eq!(numbers, (0..uses.len() as u32).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn a_size_in_tokens_is_nearly_met() {
    for total in [50_000_u64, 600_000] {
        let out = Scratch::new();
        let manifest = run(&format!("{FEW}\nsize = {{ tokens = {total} }}"), &out);
        let tokens = manifest.mixture["train"].tokens;
        assert!(tokens.abs_diff(total) * 50 < total, "{tokens} of {total} tokens");
        assert_eq!(prompts(&out, "mixture/train-").iter().map(|p| p.ids.len() as u64).sum::<u64>(), tokens);
    }
}

#[test]
fn temperature_flattens_rates() {
    let out = Scratch::new();
    let manifest = run("tasks = ['rte', 'sst2']\nsize = { prompts = 1000 }\nrate_max = 40\ntemperature = 2", &out);
    let weights = ["rte", "sst2"].map(|task| (train(&manifest, task).rows.min(40) as f64).sqrt());
    for (task, weight) in ["rte", "sst2"].iter().zip(weights) {
        let rate = weight / weights.iter().sum::<f64>();
        assert!((entry(&manifest, task).rate_asked.unwrap() - rate).abs() < 1e-12);
        assert!((train(&manifest, task).drawn as f64 - 1000.0 * rate).abs() < 1.0);
    }
    // A high temperature makes all tasks equal.
    let manifest = run("tasks = ['rte', 'sst2']\nsize = { prompts = 1000 }\ntemperature = 1e9\nseed = 2", &out);
    assert_eq!(["rte", "sst2"].map(|task| train(&manifest, task).drawn), [500, 500]);
}

// ---- What is in a row ----------------------------------------------------------------------------------------------

/// Every prompt of the tasks is in the mixture once, and a row's provenance is what it was made of.
fn check_mixture(keys: &str) -> (Scratch, Vec<Shard>) {
    let out = Scratch::new();
    run(&format!("{FEW}\n{keys}\noutput.shard_tokens = 60_000"), &out);
    for split in ["train", "validation"] {
        let of_tasks: Vec<Prompt> =
            prompts(&out, "tasks/").into_iter().filter(|p| is_of(&p.segment.name, split)).collect();
        let mut mixed = prompts(&out, &format!("mixture/{split}-"));
        assert_ne!(mixed, of_tasks, "the mixture is shuffled");
        let mut sorted = of_tasks.clone();
        sorted.sort();
        mixed.sort();
        assert!(sorted == mixed, "{} prompts of tasks, {} in the mixture", sorted.len(), mixed.len());
    }
    let shards = shards(&out, "mixture/train-");
    assert!(shards.len() >= 3);
    (out, shards)
}

/// All of `FEW` have 32 rows of `train` for training, and the last 8 (2 of 50 for MRPC, TREC) for validation.
fn is_of(name: &Name, split: &str) -> bool {
    let definition = &bundled().task(&name.task).unwrap().definition;
    let expression = if split == "train" { &definition.splits.train } else { &definition.splits.validation };
    let corpus = Corpus::open(&definition.corpus, &["data".into()]).unwrap();
    let parts = corpus.resolve(&expression.as_ref().unwrap().text, 0.04).unwrap();
    parts.iter().any(|part| part.split == name.split && part.rows.contains(&name.row))
}

#[test]
fn packed_rows() {
    let (_out, shards) = check_mixture("output.profile = 'packed'\noutput.sequence = 1536\nlengths.inputs = 1000");
    for Shard { batch, rows } in shards {
        let columns: Vec<String> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(columns, ["input_ids", "labels", "seq_lengths"]);
        let (ids, labels, lengths) =
            (lists(&batch, "input_ids"), lists(&batch, "labels"), lists(&batch, "seq_lengths"));
        for (row, prompts) in rows.iter().enumerate() {
            assert_eq!((ids[row].len(), labels[row].len()), (1536, 1536));
            let used: usize = prompts.iter().map(|p| p.ids.len()).sum();
            let mut expected: Vec<i32> = prompts.iter().map(|p| p.ids.len() as i32).collect();
            expected.extend((used < 1536).then_some((1536 - used) as i32));
            assert_eq!(lengths[row], expected);
            let mut expected: Vec<i32> = Vec::new();
            for prompt in prompts {
                assert!(prompt.segment.target_start >= 1 && prompt.ids.last() == Some(&1), "{prompt:?}");
                expected.extend(prompt.inputs().iter().map(|_| -100));
                expected.extend(prompt.targets());
            }
            expected.resize(1536, -100);
            assert_eq!(labels[row], expected);
            assert!(ids[row][used..].iter().all(|&id| id == 0), "padding");
        }
    }
}

#[test]
fn sft_rows() {
    let (_out, shards) = check_mixture("output.profile = 'sft'");
    for Shard { batch, rows } in shards {
        let columns: Vec<String> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(columns, ["input_ids", "labels", "attention_mask"]);
        let (labels, masks) = (lists(&batch, "labels"), lists(&batch, "attention_mask"));
        for (row, prompts) in rows.iter().enumerate() {
            let [prompt] = prompts.as_slice() else { panic!("{prompts:?}") };
            let expected: Vec<i32> =
                prompt.inputs().iter().map(|_| -100).chain(prompt.targets().iter().copied()).collect();
            assert_eq!(labels[row], expected);
            assert_eq!(masks[row], vec![1; prompt.ids.len()]);
        }
    }
}

/// Read as Megatron-Bridge does: per segment, labels are `ids[s + 1..e]` under `loss_mask[s..e - 1]`.
#[test]
fn megatron_rows() {
    let (_out, shards) = check_mixture("output.profile = 'megatron'");
    for Shard { batch, rows } in shards {
        let columns: Vec<String> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(columns, ["input_ids", "seq_start_id", "loss_mask"]);
        let (ids, starts) = (lists(&batch, "input_ids"), lists(&batch, "seq_start_id"));
        let masks = lists(&batch, "loss_mask");
        for (row, prompts) in rows.iter().enumerate() {
            assert_eq!(starts[row].len(), prompts.len());
            assert_eq!(masks[row].len(), ids[row].len());
            assert!(ids[row].len() <= 2048);
            let ends = starts[row][1..].iter().copied().chain([ids[row].len() as i32]);
            for ((&start, end), prompt) in starts[row].iter().zip(ends).zip(prompts) {
                let (s, e) = (start as usize, end as usize);
                let trained: Vec<i32> = (s..e - 1).filter(|&i| masks[row][i] == 1).map(|i| ids[row][i + 1]).collect();
                assert_eq!(trained, prompt.targets());
                assert_eq!(masks[row][e - 1], 0, "the last position predicts nothing");
            }
        }
    }
}

/// Every prompt of the mixture is made again from its row, by reading, rendering and encoding it alone.
#[test]
fn provenance_leads_back_to_the_row() {
    let out = Scratch::new();
    let keys = "hold_out = ['cb']\nlengths.overflow = 'drop'\noutput.shard_tokens = 200_000";
    let manifest = run(keys, &out);
    let tokenizer = Tokenizer::open("data/tokenizer.json".as_ref()).unwrap();
    let mut wanted = BTreeMap::<(String, String, u64), Vec<Prompt>>::new();
    for prompt in ["mixture/", "eval/"].iter().flat_map(|folder| prompts(&out, folder)) {
        let name = prompt.segment.name.clone();
        wanted.entry((name.task, name.split, name.row)).or_default().push(prompt);
    }
    let mut checked = 0;
    for ((task, split, row), prompts) in wanted {
        let task = bundled().task(&task).unwrap();
        let corpus = Corpus::open(&task.definition.corpus, &["data".into()]).unwrap();
        let part = flanc::ingest::splits::Part { split, rows: row..row + 1 };
        let decoder = Decoder::new(&corpus.info.features, None).unwrap();
        let mut visit = |raw: flanc::ingest::RawRow<'_>| {
            let datum = decoder.decode(raw.payload, &mut Vec::new()).unwrap();
            let bound = task.program.bind(&datum, raw.payload.len(), Default::default()).unwrap().unwrap();
            for prompt in &prompts {
                let templates = &task.definition.templates;
                let template = templates.iter().position(|t| t.name.text == prompt.segment.name.template).unwrap();
                assert_eq!(templates[template].kind.name(), prompt.segment.kind);
                let rendered = task.program.render(&bound, template).unwrap();
                let (mut inputs, mut targets) = (Vec::new(), Vec::new());
                tokenizer.encoder().encode_into(&rendered.inputs, &mut inputs)?;
                tokenizer.encoder().encode_into(&rendered.targets, &mut targets)?;
                targets.push(1);
                assert_eq!(prompt.segment.target_start, inputs.len());
                inputs.extend(targets);
                assert_eq!(prompt.ids, inputs.iter().map(|&id| id as i32).collect::<Vec<_>>());
                checked += 1;
            }
            Ok(())
        };
        corpus.visit(&part, &|_| true, &mut visit, &mut |damage| panic!("{damage:?}")).unwrap();
    }
    let in_eval: u64 = entry(&manifest, "cb").splits.values().map(|split| split.prompts).sum();
    assert_eq!(checked, manifest.mixture.values().map(|m| m.prompts).sum::<u64>() + in_eval);
}

#[test]
fn flan_v1_wraps_the_inputs() {
    let (plain, wrapped) = (Scratch::new(), Scratch::new());
    run("tasks = ['rte']\noutput.mix = 'tasks'", &plain);
    run("tasks = ['rte']\noutput.mix = 'tasks'\nwrapper = 'flan-v1'", &wrapped);
    let tokenizer = Tokenizer::open("data/tokenizer.json".as_ref()).unwrap();
    let decode = |ids: &[i32]| tokenizer.decode(&ids.iter().map(|&id| id as u32).collect::<Vec<_>>());
    let (plain, wrapped) = (prompts(&plain, "tasks/"), prompts(&wrapped, "tasks/"));
    assert_eq!(plain.len(), wrapped.len());
    for (plain, wrapped) in plain.iter().zip(&wrapped) {
        assert_eq!(decode(wrapped.inputs()), format!("0 {} X 1 FLAN", decode(plain.inputs())));
        assert_eq!(wrapped.targets(), plain.targets());
    }
}

/// A separator is one more token of the inputs, within their length.
#[test]
fn a_separator_ends_the_inputs() {
    let (plain, separated) = (Scratch::new(), Scratch::new());
    run("tasks = ['rte']\noutput.mix = 'tasks'", &plain);
    run("tasks = ['rte']\noutput.mix = 'tasks'\ntokenizer.separator = '<pad>'", &separated);
    for (plain, separated) in prompts(&plain, "tasks/").iter().zip(prompts(&separated, "tasks/")) {
        assert_eq!(separated.inputs(), [plain.inputs(), &[0]].concat());
        assert_eq!(separated.targets(), plain.targets());
    }
}

// ---- Prompts that do not fit, rows that fail -----------------------------------------------------------------------

/// Compiles MultiRC with short inputs, and gives what came of it beside the prompts at their full length.
fn overflow(overflow: &str, inputs: usize) -> (BTreeMap<Name, Prompt>, BTreeMap<Name, Prompt>, u64, u64) {
    let by_name = |out: &Path| -> BTreeMap<Name, Prompt> {
        prompts(out, "tasks/multirc/train-").into_iter().map(|p| (p.segment.name.clone(), p)).collect()
    };
    let (whole, cut) = (Scratch::new(), Scratch::new());
    let keys = "tasks = ['multirc']\noutput.mix = 'tasks'\nkinds = ['original']";
    run(keys, &whole);
    let manifest = run(&format!("{keys}\nlengths = {{ inputs = {inputs}, overflow = '{overflow}' }}"), &cut);
    let entry = train(&manifest, "multirc");
    let dropped = entry.dropped.values().flat_map(|reasons| reasons.values()).map(|f| f.count).sum();
    let (whole, cut) = (by_name(&whole), by_name(&cut));
    assert_eq!(cut.len() as u64, entry.prompts);
    assert_eq!(whole.len() as u64, entry.prompts + dropped);
    (whole, cut, entry.shortened, dropped)
}

#[test]
fn too_long_is_shortened_where_nothing_is_lost() {
    const LENGTH: usize = 256;
    let (whole, cut, shortened, dropped) = overflow("shorten", LENGTH);
    let rows = source_rows("super_glue/multirc", "train");
    let tokenizer = Tokenizer::open("data/tokenizer.json".as_ref()).unwrap();
    let decode = |ids: &[i32]| tokenizer.decode(&ids.iter().map(|&id| id as u32).collect::<Vec<_>>());
    let too_long = whole.values().filter(|p| p.inputs().len() > LENGTH).count();
    assert!(too_long > 50, "{too_long}");
    assert_eq!((shortened, dropped), (too_long as u64, 0));
    let mut lengths = Vec::new();
    for (name, prompt) in &cut {
        let full = &whole[name];
        assert_eq!(prompt.targets(), full.targets());
        if full.inputs().len() <= LENGTH {
            assert_eq!(prompt, full);
            continue;
        }
        assert!(prompt.inputs().len() <= LENGTH);
        lengths.push(prompt.inputs().len());
        let (text, full) = (decode(prompt.inputs()), decode(full.inputs()));
        let row = &rows[name.row as usize];
        for kept in ["question", "answer"] {
            assert!(text.contains(row[kept].as_str().unwrap().trim()), "{kept} of {name:?}:\n{text}");
        }
        assert_eq!(text.contains("OPTIONS:\n- no\n- yes"), full.contains("OPTIONS:\n- no\n- yes"));
        // What is gone is the end of the paragraph: what is left begins and ends as the whole did.
        let paragraph = row["paragraph"].as_str().unwrap().trim();
        let (before, after) = full.split_once(paragraph).unwrap();
        assert!(text.starts_with(before) && text.ends_with(after), "{text}");
        let left = &text[before.len()..text.len() - after.len()];
        assert!(paragraph.starts_with(left.trim_end()), "{left}");
    }
    let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
    assert!(mean > LENGTH as f64 - 4.0, "more was cut than had to be: {mean} tokens left");
}

#[test]
fn too_long_is_dropped_or_cut_if_asked() {
    const LENGTH: usize = 256;
    let (whole, cut, shortened, dropped) = overflow("drop", LENGTH);
    assert_eq!(shortened, 0);
    assert_eq!(dropped, whole.values().filter(|p| p.inputs().len() > LENGTH).count() as u64);
    assert!(cut.iter().all(|(name, prompt)| *prompt == whole[name] && prompt.inputs().len() <= LENGTH));

    let (whole, cut, shortened, dropped) = overflow("right", LENGTH);
    assert_eq!(dropped, 0);
    assert_eq!(shortened, whole.values().filter(|p| p.inputs().len() > LENGTH).count() as u64);
    for (name, prompt) in &cut {
        let full = &whole[name];
        assert_eq!(prompt.inputs(), &full.inputs()[..full.inputs().len().min(LENGTH)]);
        assert_eq!(prompt.targets(), full.targets());
    }
}

/// With nothing long left to cut, a prompt is given up, by name.
#[test]
fn what_cannot_be_shortened_is_dropped_and_counted() {
    let (whole, cut, _, dropped) = overflow("shorten", 32);
    assert!(dropped > 0 && whole.len() as u64 == cut.len() as u64 + dropped);
    assert!(cut.values().all(|p| p.inputs().len() <= 32));
}

#[test]
fn long_targets_are_cut_where_they_end() {
    let (whole, cut) = (Scratch::new(), Scratch::new());
    let keys = "tasks = ['rte']\nkinds = ['turned-around']\noutput.mix = 'tasks'";
    run(keys, &whole);
    let manifest = run(&format!("{keys}\nlengths.targets = 16"), &cut);
    let (whole, cut) = (prompts(&whole, "tasks/rte/train-"), prompts(&cut, "tasks/rte/train-"));
    let mut shortened = 0;
    for (full, prompt) in whole.iter().zip(&cut) {
        let targets = full.targets();
        let kept = (targets.len() - 1).min(15);
        assert_eq!(prompt.targets(), [&targets[..kept], &[1]].concat(), "it ends with the end of sequence");
        shortened += u64::from(targets.len() > 16);
    }
    assert_eq!(train(&manifest, "rte").shortened, shortened);
    assert!(shortened > 10);
}

#[test]
fn rows_that_fail_are_counted_by_template_and_reason() {
    let (scratch, out) = (Scratch::new(), Scratch::new());
    fs::write(
        scratch.join("rte.toml"),
        r#"
task = "rte"
tfds = "super_glue/rte:1.0.2"
cluster = "natural-language-inference"
licence = "unknown"
splits = { train = "train" }

[fields]
premise = "premise"
words = "premise.split()"
options = "['It', 'No', 'The', words[1]]"
answer = "words[0] if row.idx % 5 == 0 else words[1]"

[[template]]
name = "whole"
inputs = "{{ premise }}"
targets = "{{ answer }}"

[[template]]
name = "empty-targets"
inputs = "{{ premise }}"
targets = " {{ premise if words[1] == 'is' else '' }} "

[[template]]
name = "empty-inputs"
inputs = "{% if words | length > 20 %}{{ premise }}{% endif %}"
targets = "{{ answer }}"

[[template]]
name = "fails"
inputs = "{{ premise[:10 // (words | length - 24)] }}"
targets = "{{ answer }}"
"#,
    )
    .unwrap();
    let catalogue = definitions(&scratch);
    let keys = "split_scale = 1\noutput.profile = 'sft'";
    let manifest = Compiler { catalogue: &catalogue, ..Compiler::default() }.run(keys, &out).manifest;
    let mut expected = BTreeMap::<(&str, &str), u64>::new();
    let mut made = 0;
    for row in source_rows("super_glue/rte", "train") {
        let words: Vec<&str> = row["premise"].as_str().unwrap().split_whitespace().collect();
        let first = row["idx"].as_u64().unwrap().is_multiple_of(5);
        if first && !["It", "No", "The", words[1]].contains(&words[0]) {
            *expected.entry(("", "answer-not-an-option")).or_default() += 1;
            continue;
        }
        let failures = [
            ("empty-targets", "empty-targets", words[1] != "is"),
            ("empty-inputs", "empty-inputs", words.len() <= 20),
            ("fails", "template", words.len() == 24),
        ];
        made += 1;
        for (template, reason, fails) in failures {
            made += u64::from(!fails);
            *expected.entry((template, reason)).or_default() += u64::from(fails);
        }
    }
    expected.retain(|_, count| *count > 0);
    let entry = train(&manifest, "rte");
    let found: BTreeMap<(&str, &str), u64> = entry
        .dropped
        .iter()
        .flat_map(|(t, reasons)| reasons.iter().map(move |(r, f)| ((t.as_str(), r.as_str()), f.count)))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(expected.len(), 4, "{expected:?}");
    assert_eq!((entry.prompts, prompts(&out, "mixture/train-").len() as u64), (made, made));
    // The first ones are listed, with their rows and why.
    let listed = &entry.dropped[""]["answer-not-an-option"].rows;
    assert!(listed.iter().all(|row| row.starts_with("train ") && row.contains("is none of")), "{listed:?}");
    let listed = &entry.dropped["fails"]["template"].rows;
    assert!(listed.iter().all(|row| row.starts_with("train ")), "{listed:?}");
}

/// Damages RTE's training shard; gives the data directory.
fn damaged(scratch: &Path, damage: impl Fn(&mut Vec<Vec<u8>>)) -> std::path::PathBuf {
    let data = scratch.join("data");
    copy_tree("data/super_glue".as_ref(), &data.join("super_glue"));
    let file = data.join("super_glue/rte/1.0.2/super_glue-train.tfrecord-00000-of-00001");
    let mut records = frames(&fs::read(&file).unwrap());
    damage(&mut records);
    fs::write(file, records.concat()).unwrap();
    data
}

/// What happened to the rows adds up: each is capped, filtered, bad, failed as a whole, or in the shard.
fn check_rows_add_up(manifest: &flanc::shard::manifest::Manifest, out: &Path) {
    for task in manifest.tasks.iter().filter(|t| t.role == "trained") {
        for (split, entry) in &task.splits {
            let failed: u64 = entry.dropped.get("").into_iter().flat_map(|r| r.values()).map(|f| f.count).sum();
            let shard = prompts(out, &format!("tasks/{}/{split}-", task.task));
            let used: BTreeSet<Name> =
                shard.iter().map(|p| Name { template: String::new(), ..p.segment.name.clone() }).collect();
            let sum = entry.capped + entry.filtered + entry.bad_records + failed + used.len() as u64;
            assert_eq!(entry.rows, sum, "{} {split}: {entry:?}", task.task);
        }
    }
}

#[test]
fn rows_add_up() {
    let out = Scratch::new();
    let manifest = run("cap = 20", &out);
    check_rows_add_up(&manifest, &out);
}

type Damage = fn(&mut Vec<Vec<u8>>);

#[test]
fn bad_records_stop_the_run_or_are_skipped() {
    let cases: [(&str, Damage, u64); 5] = [
        ("flipped", |records| *records[3].last_mut().unwrap() ^= 1, 1),
        ("undecodable", |records| records[5] = frame(b"no protocol buffer"), 1),
        ("a feature less", |records| records[7] = frame(b""), 1),
        ("cut at a record", |records| records.truncate(36), 4),
        (
            "cut within a record",
            |records| {
                records.truncate(36);
                records[35].truncate(20);
            },
            5,
        ),
    ];
    for (name, damage, bad) in cases {
        let (scratch, out) = (Scratch::new(), Scratch::new());
        let data = damaged(&scratch, damage);
        let keys = "tasks = ['rte', 'cb']\nsplit_scale = 1e-6"; // all rows are training rows
        let compiler = |max_bad_records| Compiler { data: data.clone(), max_bad_records, ..Compiler::default() };
        for (max, passes) in [(0, false), (bad - 1, false), (bad, true), (bad + 10, true), (bad - 1, false)] {
            match compiler(max).try_run(keys, &out) {
                Ok(outcome) => {
                    assert!(passes, "{name} with at most {max}");
                    let manifest = match outcome {
                        Outcome::Compiled(compiled) => {
                            assert!(!compiled.bad.is_empty());
                            compiled.manifest
                        }
                        Outcome::UpToDate(manifest) => manifest,
                    };
                    assert_eq!(train(&manifest, "rte").bad_records, bad, "{name}");
                    assert_eq!(train(&manifest, "rte").prompts, 10 * (40 - bad), "{name}");
                    assert_eq!(train(&manifest, "cb").bad_records, 0);
                    check_rows_add_up(&manifest, &out);
                }
                Err(said) => {
                    assert!(!passes, "{name} with at most {max}: {}", text(&said));
                    let said = text(&said);
                    assert!(said.starts_with("error[bad-records]"), "{said}");
                    assert!(said.contains(&format!("--max-bad-records {bad}")), "{said}");
                    assert!(said.contains("super_glue-train.tfrecord-00000-of-00001, record "), "{said}");
                    assert!(!out.join("manifest.json").exists());
                }
            }
        }
    }
}

/// Two tasks over one corpus meet the same bad record, and it counts once.
#[test]
fn a_bad_record_of_two_tasks_is_one() {
    let (data, out) = (Scratch::new(), Scratch::new());
    copy_tree("data/glue/mnli".as_ref(), &data.join("glue/mnli"));
    let file = walk(&data).into_iter().find(|file| file.contains("-train.")).unwrap();
    let mut records = frames(&fs::read(data.join(&file)).unwrap());
    *records[3].last_mut().unwrap() ^= 1;
    fs::write(data.join(&file), records.concat()).unwrap();
    let compiler = |max_bad_records| Compiler { data: data.to_owned(), max_bad_records, ..Compiler::default() };
    let Err(said) = compiler(0).try_run("tasks = ['mnli_matched', 'mnli_mismatched']", &out) else {
        panic!("skipped unasked")
    };
    assert!(text(&said).starts_with("error[bad-records]: 1 record cannot be used"), "{}", text(&said));
    let compiled = compiler(1).run("tasks = ['mnli_matched', 'mnli_mismatched']", &out);
    assert_eq!(compiled.bad.len(), 1);
    assert!(compiled.manifest.tasks.iter().all(|task| task.splits["train"].bad_records == 1));
}

/// Puts a payload into TFRecord's framing.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let masked = |bytes: &[u8]| crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    let length = (payload.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), payload, &masked(payload)].concat()
}

#[test]
fn the_program_lists_bad_records_and_exits_with_1() {
    let (scratch, out) = (Scratch::new(), Scratch::new());
    let data = damaged(&scratch, |records| *records[3].last_mut().unwrap() ^= 1);
    let mut stopped = program("tasks = ['rte']", &scratch, &data, &out);
    let output = stopped.output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(stderr(&output).contains("error[bad-records]: 1 record cannot be used"), "{}", stderr(&output));
    assert!(stderr(&output).contains("record 3"), "{}", stderr(&output));
    let output = stopped.args(["--max-bad-records", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("record 3"), "what is skipped is said: {}", stderr(&output));
}

// ---- The manifest --------------------------------------------------------------------------------------------------

#[test]
fn the_manifest_is_true_of_every_file() {
    let out = Scratch::new();
    for profile in ["packed", "sft", "megatron"] {
        let keys = format!("{FEW}\nhold_out = ['rte']\noutput = {{ profile = '{profile}', shard_tokens = 50_000 }}");
        let manifest = run(&keys, &out);
        let listed: Vec<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
        let there = bytes(&out);
        let there: Vec<&str> = there.keys().map(String::as_str).filter(|f| f.ends_with(".parquet")).collect();
        assert_eq!(listed, there);
        for file in &manifest.files {
            let content = fs::read(out.join(&file.path)).unwrap();
            assert_eq!(file.bytes, content.len() as u64);
            assert_eq!(file.blake3, blake3::hash(&content).to_hex().to_string());
            assert_eq!(file.rows, read(&out.join(&file.path)).num_rows() as u64);
            if !file.path.ends_with(".provenance.parquet") {
                let shard = shard(&out, &file.path);
                assert_eq!(file.tokens, shard.rows.iter().flatten().map(|p| p.ids.len() as u64).sum::<u64>());
            }
        }
        for (split, entry) in &manifest.mixture {
            let prompts = prompts(&out, &format!("mixture/{split}-"));
            let rows: usize = shards(&out, &format!("mixture/{split}-")).iter().map(|s| s.rows.len()).sum();
            let tokens: usize = prompts.iter().map(|p| p.ids.len()).sum();
            let loss: usize = prompts.iter().map(|p| p.targets().len()).sum();
            assert_eq!(
                (entry.prompts, entry.rows, entry.tokens, entry.loss_tokens),
                (prompts.len() as u64, rows as u64, tokens as u64, loss as u64)
            );
            let padding = if profile == "packed" { rows * 2048 - tokens } else { 0 };
            assert_eq!(entry.padding_tokens, padding as u64);
        }
        for task in manifest.tasks.iter().filter(|t| t.role == "trained") {
            for (split, entry) in &task.splits {
                let prompts = prompts(&out, &format!("tasks/{}/{split}-", task.task));
                let (inputs, targets) =
                    prompts.iter().fold((0, 0), |(i, t), p| (i + p.inputs().len(), t + p.targets().len()));
                assert_eq!(
                    (entry.prompts, entry.input_tokens, entry.target_tokens),
                    (prompts.len() as u64, inputs as u64, targets as u64)
                );
            }
        }
    }
}

/// Nothing in the output tells where or when it was made.
#[test]
fn the_output_knows_no_place_and_no_time() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let compile = |at: &Path| {
        let out = at.join("deep/out");
        copy_tree("data/glue".as_ref(), &at.join("corpora/glue"));
        let command = &mut program("tasks = ['cola']", at, &at.join("corpora"), &out);
        let output = command.current_dir(at).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let manifest = fs::read_to_string(out.join("manifest.json")).unwrap();
        for path in [at.to_str().unwrap(), env!("CARGO_MANIFEST_DIR"), "/tmp", "/dev/shm"] {
            assert!(!manifest.contains(path), "{path} in {manifest}");
        }
        bytes(&out)
    };
    assert_eq!(compile(&here), compile(&there));
}
