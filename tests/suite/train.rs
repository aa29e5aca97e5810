//! Training: that it learns, that it goes on to the bit where it was, that several ranks do what one does, and what it
//! says when it cannot.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use flanc::diag::Result;
use flanc::model::arena::Precision;
use flanc::model::config::Config;
use flanc::model::cpu::Cpu;
use flanc::model::cuda::Cuda;
use flanc::model::decoder::{Decoder, Layout, Purpose};
use flanc::model::ops::{Batch, Ops};
use flanc::model::ranks::Ranks;
use flanc::model::weights;
use flanc::seed::Seed;
use flanc::shard::pages::PageEncoder;
use flanc::shard::rows::PackedRows;
use flanc::shard::writer::ShardWriter;
use flanc::train::data::{Data, Limits};
use flanc::train::settings::Settings;
use flanc::train::{Event, Origin, Run, Stop, Summary};
use safetensors::{Dtype, SafeTensors};

use super::compile::{Scratch, run, stderr, walk};
use super::cuda::Simulated;
use super::simulator::Simulator;

/// What a run finds in its directory when it goes on: damage, other settings; how it is stopped, and what it says.
mod resume;

const RECIPE: &str = "tasks = ['rte', 'trec']\nlengths = { inputs = 96, targets = 31 }\n\
    output = { profile = 'packed', sequence = 128, shard_tokens = 30_000 }";

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 2048, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": true}"#;

const SETTINGS: &str = "steps = 12\ntokens_per_step = 1024\nmicro_batch = 512\ncheckpoint_every = 2\n\
    validate_every = 5\nvalidate_rows = 2\noptimizer.learning_rate = 3e-3\nschedule.warmup = 2\n";

/// A compiled mixture, and a model to be.
struct Bench {
    scratch: Scratch,
    origin: Origin,
}

impl Bench {
    fn new() -> Bench {
        Bench::of(RECIPE)
    }

    fn of(recipe: &str) -> Bench {
        let scratch = Scratch::new();
        run(recipe, &scratch.join("data"));
        let config = scratch.join("config.json");
        fs::write(&config, CONFIG).unwrap();
        Bench { scratch, origin: Origin::Fresh(config) }
    }

    fn run(&self, out: &str, settings: &str) -> Run {
        Run {
            data: self.scratch.join("data"),
            out: self.scratch.join(out),
            origin: self.origin.clone(),
            settings: toml::from_str(settings).unwrap(),
        }
    }

    fn program(&self, out: &str, settings: &str) -> Command {
        fs::write(self.scratch.join("train.toml"), settings).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanc"));
        command.arg("train").arg("--data").arg(self.scratch.join("data")).arg("--out").arg(self.scratch.join(out));
        match &self.origin {
            Origin::Fresh(config) => command.arg("--init").arg(config),
            Origin::Checkpoint(model) => command.arg("--model").arg(model),
            Origin::Tiny => command.args(["--init", "tiny"]),
        };
        command.arg("--settings").arg(self.scratch.join("train.toml")).args(["--threads", "2", "--device", "cpu"]);
        command
    }
}

fn train(run: &Run) -> (Result<Summary>, Vec<Event>) {
    train_on::<Cpu>(run)
}

fn train_on<O: Ops + Send>(run: &Run) -> (Result<Summary>, Vec<Event>) {
    let mut events = Vec::new();
    let mut report = |event: &Event| events.push(event.clone());
    let outcome = flanc::train::train::<O>(run, &mut Ranks::alone(), &Stop::new(0), &mut report);
    (outcome, events)
}

fn losses(events: &[Event]) -> Vec<f64> {
    events.iter().filter_map(|e| if let Event::Step { loss, .. } = e { Some(*loss) } else { None }).collect()
}

/// Steps, those that were skipped, and validations of a log, without what depends on the clock.
fn logged(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
    let timeless = events.filter_map(|event| match event {
        Event::Step { step, loss, targets, tokens, rate, norm, .. } => {
            Some(format!("{step} {loss} {targets} {tokens} {rate} {norm}"))
        }
        Event::Validation { step, loss, targets, .. } => Some(format!("validation {step} {loss} {targets}")),
        Event::Skipped { step, reason, rows, .. } => Some(format!("skipped {step} {reason} {rows:?}")),
        _ => None,
    });
    timeless.collect()
}

#[test]
fn the_loss_falls_and_a_second_run_does_nothing() {
    let bench = Bench::new();
    let first = bench.run("run", SETTINGS);
    let (outcome, events) = train(&first);
    let summary = outcome.unwrap();
    let steps = losses(&events);
    assert_eq!(steps.len(), 12);
    assert!((steps[0] - 2048f64.ln()).abs() < 0.1, "fresh weights know nothing: {}", steps[0]);
    assert!(steps[11] < steps[0] - 0.3, "{steps:?}");
    assert_eq!(events.iter().filter(|e| matches!(e, Event::Validation { .. })).count(), 3);
    assert!(summary.trained && summary.skipped == 0);
    let files = walk(&first.out);
    assert!(files.contains(&"checkpoints/step-00000010/state.json".to_owned()), "{files:?}");
    assert!(!files.contains(&"checkpoints/step-00000008/state.json".to_owned()), "{files:?}");
    assert!(files.iter().any(|f| f.starts_with("tensorboard/events.out.tfevents.")), "{files:?}");
    for name in ["loss.svg", "log.jsonl", "model/config.json", "model/model.safetensors", "model/tokenizer.json"] {
        assert!(files.contains(&name.to_owned()), "{files:?}");
    }

    // The ends of texts are those of the data, whatever transformers takes for a model of this type.
    let said = |name: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(first.out.join("model").join(name)).unwrap()).unwrap()
    };
    assert_eq!(said("tokenizer_config.json")["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(said("tokenizer_config.json")["eos_token"], "<eos>");
    assert_eq!(said("generation_config.json"), serde_json::json!({ "eos_token_id": 1, "pad_token_id": 0 }));

    let (outcome, events) = train(&first);
    assert_eq!((outcome.unwrap(), events), (Summary { trained: false, ..summary }, Vec::new()));

    // What comes out can go in again.
    let mut second = bench.run("second", SETTINGS);
    second.origin = Origin::Checkpoint(first.out.join("model"));
    let (_, events) = train(&second);
    assert!(losses(&events)[0] < steps[0] - 0.3);
}

const IN_BF16: &str = "master_weights = 'bf16'\n";

/// A run that is killed at several times, and started again, leaves what one leaves that was not.
fn check_killed(more: &str) {
    let bench = Bench::new();
    let settings = more.to_owned() + &SETTINGS.replace("steps = 12", "steps = 40");
    let start = |out: &str| bench.program(out, &settings).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(start("clean").wait().unwrap().success());
    let clean = bench.scratch.join("clean");
    let out = bench.scratch.join("killed");
    let mut killed = 0;
    for lines in [1, 4, 9, 20, 33] {
        let mut child = start("killed");
        let log = out.join("log.jsonl");
        let written = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        while written() < lines && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(500));
        }
        child.kill().unwrap(); // SIGKILL
        killed += u32::from(!child.wait().unwrap().success());
    }
    assert!(killed >= 2, "only {killed} of 5 runs were killed before their end");
    assert!(start("killed").wait().unwrap().success());
    for file in ["model/model.safetensors", "model/config.json", "checkpoints/step-00000040/optimizer.safetensors"] {
        assert!(fs::read(clean.join(file)).unwrap() == fs::read(out.join(file)).unwrap(), "{file} differs");
    }
    assert_eq!(logged(&clean), logged(&out));
}

#[test]
fn goes_on_to_the_bit_after_being_killed() {
    check_killed("");
}

#[test]
fn with_weights_in_bf16_as_well() {
    check_killed(IN_BF16);
}

/// Weights in bf16 are kept as such, with nothing lost and nothing more; they are another run's than weights in f32.
#[test]
fn weights_in_bf16_are_kept_and_written_as_they_are() {
    let bench = Bench::new();
    let run = bench.run("run", &(IN_BF16.to_owned() + SETTINGS + "dtype = 'f32'\n"));
    let (outcome, events) = train(&run);
    outcome.unwrap();
    let steps = losses(&events);
    assert!(steps[11] < steps[0] - 0.3, "{steps:?}");
    let [kept, written] = ["checkpoints/step-00000012", "model"].map(|directory| {
        let bytes = fs::read(run.out.join(directory).join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<(String, Dtype, Vec<u8>)> =
            file.iter().map(|(name, view)| (name.to_owned(), view.dtype(), view.data().to_vec())).collect();
        tensors.sort();
        tensors
    });
    assert_eq!(kept.len(), written.len());
    for ((name, dtype, kept), (_, written_as, written)) in kept.iter().zip(&written) {
        assert_eq!((dtype, written_as), (&Dtype::BF16, &Dtype::F32), "{name}");
        let widened: Vec<u8> = kept.as_chunks().0.iter().flat_map(|[low, high]| [0, 0, *low, *high]).collect();
        assert!(&widened == written, "{name}");
    }
    let in_f32 = Settings { master_weights: Precision::F32, ..run.settings.clone() };
    let said = train(&Run { settings: in_f32, ..run }).0.unwrap_err().to_string();
    assert!(said.contains("error[run-differs]") && said.contains("other settings"), "{said}");
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let bench = Bench::new();
    let clean = bench.run("clean", SETTINGS);
    train(&clean).0.unwrap();
    let damaged = bench.run("damaged", SETTINGS);
    train(&Run { settings: Settings { steps: 8, ..damaged.settings.clone() }, ..damaged.clone() }).0.unwrap();
    let file = damaged.out.join("checkpoints/step-00000008/optimizer.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file, bytes).unwrap();
    let (outcome, events) = train(&damaged);
    outcome.unwrap();
    assert!(matches!(events[0], Event::Started { step: 6, .. }), "{:?}", events[0]);
    assert_eq!(logged(&clean.out), logged(&damaged.out));
}

#[test]
fn passes_make_no_difference_but_rounding() {
    let bench = Bench::new();
    let with = |micro_batch: usize, recompute: bool| {
        let run = bench.run(&format!("run{micro_batch}{recompute}"), SETTINGS);
        let settings = Settings { micro_batch, recompute, ..run.settings.clone() };
        losses(&train(&Run { settings, ..run }).1)
    };
    let whole = with(1024, false);
    assert_eq!(whole, with(1024, true), "what is computed again is what was computed");
    for (one, all) in with(128, false).iter().zip(&whole) {
        assert!((one - all).abs() < 1e-4, "{one} {all}");
    }
}

#[test]
fn a_run_may_be_longer_but_not_another() {
    let bench = Bench::new();
    let whole = bench.run("whole", SETTINGS);
    train(&whole).0.unwrap();
    let parts = bench.run("parts", SETTINGS);
    train(&Run { settings: Settings { steps: 7, ..parts.settings.clone() }, ..parts.clone() }).0.unwrap();
    let other = Settings { seed: 18, ..parts.settings.clone() };
    let said = train(&Run { settings: other, ..parts.clone() }).0.unwrap_err().to_string();
    assert!(said.contains("error[run-differs]") && said.contains("other settings"), "{said}");
    // Nothing but what differs is said of either.
    assert!(
        said.contains("expected: seed = 17, steps = 7\n") && said.contains("found: seed = 18, steps = 12\n"),
        "{said}"
    );
    train(&parts).0.unwrap();
    let model = |run: &Run| fs::read(run.out.join("model/model.safetensors")).unwrap();
    assert!(model(&parts) == model(&whole));
}

// ---- Ranks ---------------------------------------------------------------------------------------------------------

/// A step of four passes.
const IN_PASSES: &str = "steps = 8\ntokens_per_step = 1024\nmicro_batch = 256\ncheckpoint_every = 4\n\
    validate_every = 5\nvalidate_rows = 5\noptimizer.learning_rate = 3e-3\nmax_norm = 0.5\n";

/// Starts a process for each element, with the arguments it holds, as ranks of one run.
fn ranks_of(bench: &Bench, out: &str, settings: &str, processes: &[&[&str]]) -> Vec<Child> {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut commands = Vec::new();
    for (rank, arguments) in processes.iter().enumerate() {
        let mut command = bench.program(out, settings);
        let place = [("RANK", rank.to_string()), ("WORLD_SIZE", processes.len().to_string())];
        command.envs(place).env("MASTER_PORT", port.to_string()).args(*arguments);
        commands.push(command);
    }
    let start = |mut command: Command| command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    commands.into_iter().map(start).collect()
}

fn outputs(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

/// Runs a process for each element as ranks of one run; what each said, if any failed.
fn together(bench: &Bench, out: &str, processes: &[&[&str]]) -> Result<(), Vec<String>> {
    let outputs = outputs(ranks_of(bench, out, IN_PASSES, processes));
    if outputs.iter().all(|output| output.status.success()) {
        return Ok(());
    }
    Err(outputs.iter().map(stderr).collect())
}

#[test]
fn ranks_do_what_one_does_to_the_bit() {
    let bench = Bench::new();
    train(&bench.run("one", IN_PASSES)).0.unwrap();
    together(&bench, "two", &[&[], &[]]).unwrap();
    together(&bench, "three", &[&[], &[], &[]]).unwrap();
    // A run may also go on with another number of ranks; at its end, which comes twice, it validates.
    together(&bench, "four", &[&["--steps", "4"][..]; 4]).unwrap();
    together(&bench, "four", &[&[], &[]]).unwrap();
    train(&bench.run("one-in-bf16", &(IN_BF16.to_owned() + IN_PASSES))).0.unwrap();
    together(&bench, "three-in-bf16", &[&["--master-weights", "bf16"][..]; 3]).unwrap();
    assert_eq!(logged(&bench.scratch.join("one")).len(), 10);
    for (one, several) in [("one", "two"), ("one", "three"), ("one", "four"), ("one-in-bf16", "three-in-bf16")] {
        let [one, several] = [one, several].map(|out| bench.scratch.join(out));
        let mut lines = logged(&several);
        lines.retain(|line| !line.starts_with("validation 4 "));
        assert_eq!(lines, logged(&one));
        for file in ["model/model.safetensors", "checkpoints/step-00000008/optimizer.safetensors"] {
            assert!(fs::read(one.join(file)).unwrap() == fs::read(several.join(file)).unwrap(), "{file} differs");
        }
    }
}

#[test]
fn ranks_that_do_not_go_together_are_refused() {
    let bench = Bench::new();
    let said = together(&bench, "run", &[&[], &["--seed", "18"]]).unwrap_err();
    assert!(said[0].contains("error[rank-lost]") && said[0].contains("rank 1"), "{said:?}");
    assert!(said[1].contains("rank 1 was asked for another run than rank 0"), "{said:?}");
    assert!(!bench.scratch.join("run/model").exists());
    let said = together(&bench, "run", &[&["--micro-batch", "1024"][..]; 2]).unwrap_err();
    assert!(said.iter().all(|said| said.contains("error[idle-ranks]") && said.contains("1 passes")), "{said:?}");
}

// ---- TensorBoard ---------------------------------------------------------------------------------------------------

/// Where Python has TensorBoard: it reads what the log says. Also of a run that was stopped and went on.
#[test]
fn tensorboard_reads_what_is_logged() {
    let python = std::env::var("FLANC_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let imports = Command::new(&python).args(["-c", "import tensorboard"]).output();
    if !imports.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} cannot import tensorboard");
        return;
    }
    let bench = Bench::new();
    let run = bench.run("run", SETTINGS);
    for steps in [7, 12] {
        train(&Run { settings: Settings { steps, ..run.settings.clone() }, ..run.clone() }).0.unwrap();
        let output = Command::new(&python).arg("tests/event_files.py").arg(&run.out).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        println!("{said}");
    }
}

// ---- Data ----------------------------------------------------------------------------------------------------------

const LIMITS: Limits = Limits { vocabulary: 2048, positions: 128 };

#[test]
fn any_position_of_the_data_can_be_gone_on_from() {
    let bench = Bench::new();
    let data = Data::open(&bench.scratch.join("data"), LIMITS).unwrap().train;
    let read = |from: u64, count: u64| -> Vec<Batch> {
        let mut rows = data.rows_from(from);
        let next = |_| {
            let mut batch = Batch::default();
            rows.next_into(&mut batch).unwrap();
            batch
        };
        (0..count).map(next).collect()
    };
    let shards = walk(&bench.scratch.join("data/mixture")).iter().filter(|f| f.starts_with("train-")).count() / 2;
    assert!(shards > 2, "{shards} shards");
    let twice = read(0, 2 * data.rows);
    let (first, second) = twice.split_at(data.rows as usize);
    assert!(first == second, "an epoch is as the one before it");
    for from in (0..data.rows).step_by(17).chain([data.rows - 1, data.rows, data.rows + 3]) {
        let at = from as usize;
        assert!(read(from, 5)[..] == twice.iter().cycle().skip(at).take(5).cloned().collect::<Vec<_>>()[..], "{from}");
    }
}

/// Overwrites the training shards with rows of the given ids and first target, and no rows are left for validation.
fn overwrite<'i>(bench: &Bench, ids: impl IntoIterator<Item = &'i [u32]>, target_start: usize) {
    let data = bench.scratch.join("data");
    let file = walk(&data).into_iter().find(|f| f.starts_with("mixture/train-00000") && !f.contains("provenance"));
    let mut manifest: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(data.join("manifest.json")).unwrap()).unwrap();
    let (mut writer, groups) = ShardWriter::create(&data, &file.unwrap(), PackedRows::schema(), &[]).unwrap();
    let mut rows = PackedRows::default();
    for ids in ids {
        rows.push(ids, target_start);
        rows.close(128, 0);
    }
    writer.write(groups.pages(&rows.columns(), &mut PageEncoder::default()).unwrap()).unwrap();
    let info = writer.finish().unwrap();
    let files = manifest["files"].as_array_mut().unwrap();
    files.retain(|f| !f["path"].as_str().unwrap().starts_with("mixture/"));
    files.push(serde_json::json!(info));
    fs::write(data.join("manifest.json"), manifest.to_string()).unwrap();
}

#[test]
fn steps_without_targets_are_skipped_and_at_last_refused() {
    let bench = Bench::new();
    overwrite(&bench, [&[5; 100][..]; 8], 100);
    let (outcome, events) = train(&bench.run("run", &format!("max_skipped = 3\n{SETTINGS}")));
    let said = outcome.unwrap_err().to_string();
    assert!(said.contains("error[too-many-skipped]") && said.contains("no token of it is trained"), "{said}");
    let skipped: Vec<_> = events.iter().filter(|e| matches!(e, Event::Skipped { .. })).collect();
    assert_eq!(skipped.len(), 4);
    assert!(losses(&events).is_empty());
}

#[test]
fn nan_and_inf_leave_the_weights_alone() {
    let bench = Bench::new();
    let settings = SETTINGS.replace("3e-3", "1e38") + "optimizer.clip_threshold = 1e30\n";
    let (outcome, events) = train(&bench.run("run", &format!("max_skipped = 3\n{settings}")));
    let said = outcome.unwrap_err().to_string();
    assert!(said.contains("error[too-many-skipped]") && said.contains("lower the learning rate"), "{said}");
    assert!(losses(&events).iter().all(|l| l.is_finite()));
}

/// A model to which one token is infinite, and the ids of rows, that token in one of them; also without this row and the one
/// before it.
fn with_a_bad_token() -> (Bench, Vec<Vec<u32>>, Vec<Vec<u32>>) {
    const BAD: u32 = 7;
    let mut bench = Bench::new();
    let config = r#"{"model_type": "llama", "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}"#;
    let layout = Layout { tokens: 1, logit_rows: 1, purpose: Purpose::Score { places: 0 } };
    let (decoder, table) = Decoder::lay_out(Config::parse(config).unwrap(), layout);
    let mut cpu = Cpu::allocate(table).unwrap();
    weights::init(Seed(17), &decoder, &mut cpu);
    let embedding = &decoder.parameters[0];
    assert_eq!(embedding.name, "model.embed_tokens.weight");
    let mut values = cpu.read(embedding.weight);
    values[32 * BAD as usize + 5] = f32::INFINITY;
    cpu.write(embedding.weight, &values);
    let model = bench.scratch.join("bad-token");
    weights::save(&model, &decoder, &cpu, weights::Dtype::F32).unwrap();
    bench.origin = Origin::Checkpoint(model);

    let mut rows: Vec<Vec<u32>> = (0..16).map(|k| (0..100).map(|i| 10 + (i * 7 + k * 13) % 50).collect()).collect();
    rows[5][40] = BAD;
    let mut without = rows.clone();
    without.drain(4..6);
    (bench, rows, without)
}

/// A step that is skipped, which a backend with a queue says when the next one is under way, changes nothing, and does not
/// count: the run goes as if its rows had not been there.
fn check_skipped<O: Ops + Send>(more: &str) -> Vec<f64> {
    let settings = more.to_owned() + IN_PASSES;
    let settings = settings.replace("micro_batch = 256", "micro_batch = 128");
    let settings = &settings.replace("tokens_per_step = 1024", "tokens_per_step = 256");
    let (bench, rows, without) = with_a_bad_token();
    overwrite(&bench, rows.iter().map(Vec::as_slice), 60);
    let late = bench.run("late", settings);
    let (outcome, events) = train_on::<O>(&late);
    assert_eq!(outcome.unwrap().skipped, 1);
    let lines = logged(&late.out);
    assert_eq!(lines[2], "skipped 3 its loss is NaN (4, 6)");
    // With a checkpoint, everything before it is known.
    let known = bench.run("known", &settings.replace("checkpoint_every = 4", "checkpoint_every = 1"));
    train_on::<O>(&known).0.unwrap();
    assert_eq!(logged(&known.out), lines);
    // Whoever goes on knows how many steps count.
    let parts = bench.run("parts", settings);
    train_on::<O>(&Run { settings: Settings { steps: 5, ..parts.settings.clone() }, ..parts.clone() }).0.unwrap();
    train_on::<O>(&parts).0.unwrap();
    assert_eq!(logged(&parts.out), lines);
    overwrite(&bench, without.iter().map(Vec::as_slice), 60);
    let never = bench.run("never", &settings.replace("steps = 8", "steps = 7"));
    let (outcome, expected) = train_on::<O>(&never);
    outcome.unwrap();
    assert_eq!(losses(&events), losses(&expected));
    let read = |run: &Run, name: &str, steps: u64| {
        fs::read(run.out.join(format!("checkpoints/step-{steps:08}/{name}.safetensors"))).unwrap()
    };
    for name in ["model", "optimizer"] {
        assert!(read(&late, name, 8) == read(&known, name, 8), "{name}");
        assert!(read(&late, name, 8) == read(&parts, name, 8), "{name}");
        assert!(read(&late, name, 8) == read(&never, name, 7), "{name}");
    }
    losses(&events)
}

#[test]
fn a_skipped_step_is_as_if_it_had_not_been() {
    for more in ["", IN_BF16] {
        let on_cpu = check_skipped::<Cpu>(more);
        if Simulator::get().is_some() {
            let simulated = check_skipped::<Cuda<Simulated>>(more);
            for (found, expected) in simulated.iter().zip(&on_cpu) {
                assert!((found - expected).abs() < 1e-2 * expected, "{simulated:?} {on_cpu:?}");
            }
        }
    }
}

#[test]
fn every_rank_skips_what_one_skips() {
    let (bench, rows, _) = with_a_bad_token();
    overwrite(&bench, rows.iter().map(Vec::as_slice), 60);
    train(&bench.run("one", IN_PASSES)).0.unwrap();
    together(&bench, "two", &[&[], &[]]).unwrap();
    let [one, two] = ["one", "two"].map(|out| bench.scratch.join(out));
    assert_eq!(logged(&one), logged(&two));
    for file in ["model/model.safetensors", "checkpoints/step-00000008/optimizer.safetensors"] {
        assert!(fs::read(one.join(file)).unwrap() == fs::read(two.join(file)).unwrap(), "{file} differs");
    }
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let bench = Bench::new();
    overwrite(&bench, [&[5, 2047, 2048, 1][..]; 8], 2);
    let said = train(&bench.run("run", SETTINGS)).0.unwrap_err().to_string();
    assert!(said.contains("error[packed-row]") && said.contains("2048"), "{said}");
    overwrite(&bench, [&[5; 100][..]; 8], 50);
    fs::write(bench.scratch.join("config.json"), CONFIG.replace("128,", "64,")).unwrap();
    let said = train(&bench.run("run", SETTINGS)).0.unwrap_err().to_string();
    assert!(said.contains("a segment of 100 tokens"), "{said}");
    fs::write(bench.scratch.join("config.json"), CONFIG.replace("2048", "2047")).unwrap();
    let said = train(&bench.run("run", SETTINGS)).0.unwrap_err().to_string();
    assert!(said.contains("error[vocabulary]"), "{said}");

    let bench = Bench::of(&RECIPE.replace("packed", "sft").replace("sequence = 128, ", ""));
    let said = train(&bench.run("run", SETTINGS)).0.unwrap_err().to_string();
    assert!(said.contains("error[profile]") && said.contains("`sft`"), "{said}");
}

/// Ids of another tokenizer are valid ids. A model is told by the one beside its weights, however that is laid out.
#[test]
fn data_in_other_tokens_is_refused() {
    let mut bench = Bench::new();
    train(&bench.run("first", SETTINGS)).0.unwrap();
    let model = bench.scratch.join("first/model");
    bench.origin = Origin::Checkpoint(model.clone());
    let run = bench.run("run", SETTINGS);
    let path = model.join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::write(&path, tokenizer.to_string()).unwrap();
    flanc::train::open(&run, &flanc::train::config(&run.origin).unwrap()).unwrap();
    let words = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    for id in words.values_mut().filter(|id| [700, 701].contains(&id.as_u64().unwrap())) {
        *id = (1401 - id.as_u64().unwrap()).into();
    }
    fs::write(&path, tokenizer.to_string()).unwrap();
    let said = train(&run).0.unwrap_err().to_string();
    assert!(said.contains("error[other-tokenizer]") && said.contains("id 700 to be"), "{said}");
}

/// What the README begins with: a recipe is compiled, a small model trained and evaluated on what was held out.
#[test]
fn one_command_from_recipe_to_model() {
    let scratch = Scratch::new();
    let flanc = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanc"));
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let out = scratch.join("run").display().to_string();
    let settings = ["--steps", "2", "--tokens-per-step", "512", "--json"];
    let run = [&["train", "--recipe", "sample-held-out", "--init", "tiny", "--out", &out][..], &settings].concat();
    let said = flanc(&run);
    let events: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["event"], "compiled");
    let started = events.iter().position(|event| event["event"] == "started").unwrap();
    assert_eq!(events[started + 1]["loss"].as_f64().map(f64::round), Some(8.0), "{said}");
    assert_eq!(events.last().unwrap()["trained"], true);
    let again = flanc(&run);
    assert!(again.contains("\"up_to_date\":true") && again.contains("\"trained\":false"), "{again}");

    let (model, data) = (format!("{out}/model"), format!("{out}/data"));
    let scores = flanc(&["eval", "--model", &model, "--data", &data, "--task", "cb", "--limit", "1"]);
    assert!(scores.contains("natural-language-inference"), "{scores}");
}

#[test]
fn the_program_plans_and_says_what_is_wrong() {
    let bench = Bench::new();
    let output = bench.program("run", SETTINGS).args(["--plan", "--memory", "0.001"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(said.contains("model.embed_tokens.weight") && said.contains("(2048, 16)"), "{said}");
    assert!(said.contains("does not fit into 1.0 MB"), "{said}");
    assert!(!bench.scratch.join("run").exists());
    // Bytes of a weight: on a GPU, it is there in f32 and bf16, or in bf16 alone.
    let planned = |device: &str, kept: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanc"));
        command.arg("train").arg("--data").arg(bench.scratch.join("data"));
        command.arg("--init").arg(bench.scratch.join("config.json"));
        command.args(["--plan", "--json", "--device", device, "--master-weights", kept]);
        let output = command.output().unwrap();
        let plan: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)));
        plan["groups"][0]["bytes"].as_u64().unwrap() / plan["parameters"].as_u64().unwrap()
    };
    assert_eq!(["f32", "bf16"].map(|kept| planned("cpu", kept)), [4, 4]);
    assert_eq!(["f32", "bf16"].map(|kept| planned("cuda", kept)), [6, 2]);
    let output = bench.program("run", "stepz = 3").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("error[train-settings]"), "{}", stderr(&output));
    // Whoever reads JSON is told as well.
    let output = bench.program("run", "steps = 0").arg("--json").output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((said["event"].as_str(), said["code"].as_str()), (Some("failed"), Some("train-settings")));
}
