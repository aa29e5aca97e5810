//! What a run finds in its directory when it goes on: damage, other settings; and how it is stopped.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use flanc::diag::Result;
use flanc::model::cpu::Cpu;
use flanc::model::cuda::Cuda;
use flanc::model::ops::Ops;
use flanc::model::ranks::Ranks;
use flanc::train::settings::Settings;
use flanc::train::{Event, Run, Stop, Summary};

use super::super::compile::{stderr, walk};
use super::super::cuda::Simulated;
use super::super::simulator::Simulator;
use super::{Bench, CONFIG, IN_PASSES, SETTINGS, logged, losses, outputs, ranks_of, train, train_on};

/// Copies a directory with what is in it.
fn copy(from: &Path, to: &Path) {
    for file in walk(from) {
        let to = to.join(&file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from.join(file), to).unwrap();
    }
}

/// Does something to the file's bytes.
fn change(file: &Path, what: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    what(&mut bytes);
    fs::write(file, bytes).unwrap();
}

/// Codes of what a run warned of.
fn warnings(events: &[Event]) -> Vec<&str> {
    events.iter().filter_map(|e| if let Event::Warning { code, .. } = e { Some(code.as_str()) } else { None }).collect()
}

/// A run of 12 steps, and the same one as it was after 8, with checkpoints of steps 6 and 8.
fn stopped_at_8(bench: &Bench) -> [Run; 2] {
    let [clean, begun] = ["clean", "begun"].map(|out| bench.run(out, SETTINGS));
    train(&clean).0.unwrap();
    train(&Run { settings: Settings { steps: 8, ..begun.settings.clone() }, ..begun.clone() }).0.unwrap();
    [clean, begun]
}

/// Ways in which the file of a checkpoint may be damaged.
type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 7] = [
    ("model.safetensors is not as it was written", |c| {
        change(&c.join("model.safetensors"), |b| *b.last_mut().unwrap() ^= 1);
    }),
    ("optimizer.safetensors is not as it was written", |c| {
        change(&c.join("optimizer.safetensors"), |b| b.truncate(b.len() / 2));
    }),
    ("optimizer.safetensors is missing", |c| fs::remove_file(c.join("optimizer.safetensors")).unwrap()),
    ("state.json is not as it was written", |c| {
        change(&c.join("state.json"), |b| {
            let text = String::from_utf8(b.clone()).unwrap();
            *b = text.replace("\"position\": 6", "\"position\": 7").into_bytes();
        });
    }),
    ("state.json cannot be read", |c| change(&c.join("state.json"), |b| b.truncate(40))),
    ("state.json cannot be read", |c| change(&c.join("state.json"), Vec::clear)),
    ("state.json is no text", |c| change(&c.join("state.json"), |b| b[9] = 0xff)),
];

#[test]
fn damaged_checkpoints_are_set_aside_and_said() {
    let bench = Bench::new();
    let [clean, begun] = stopped_at_8(&bench);
    for (number, (says, damage)) in DAMAGES.iter().enumerate() {
        let run = Run { out: bench.scratch.join(format!("damaged{number}")), ..begun.clone() };
        copy(&begun.out, &run.out);
        let checkpoints = run.out.join("checkpoints");
        damage(&checkpoints.join("step-00000008"));
        copy(&checkpoints.join("step-00000008"), &run.out.join("before"));
        let (outcome, events) = train(&run);
        outcome.unwrap();
        assert!(matches!(events[0], Event::Started { step: 6, .. }), "{:?}", events[0]);
        assert_eq!(warnings(&events), ["checkpoint-damaged"]);
        let Event::Warning { step: 6, text, .. } = &events[1] else { panic!("{:?}", events[1]) };
        assert!(text.contains(says) && text.contains("step-00000008.damaged"), "{text}");
        assert!(fs::read_to_string(run.out.join("log.jsonl")).unwrap().contains("\"checkpoint-damaged\""));
        let (before, aside) = (run.out.join("before"), checkpoints.join("step-00000008.damaged"));
        for file in walk(&before) {
            assert!(fs::read(before.join(&file)).unwrap() == fs::read(aside.join(&file)).unwrap(), "{says}: {file}");
        }
        assert_eq!(logged(&clean.out), logged(&run.out));

        // Damaged once more, it gets a name of its own.
        if number == 0 {
            fs::remove_dir_all(checkpoints.join("step-00000012")).unwrap();
            copy(&aside, &checkpoints.join("step-00000012"));
            train(&run).0.unwrap();
            assert!(checkpoints.join("step-00000012.damaged").is_dir() && aside.is_dir());
            damage(&checkpoints.join("step-00000012"));
            train(&run).0.unwrap();
            assert!(checkpoints.join("step-00000012.damaged-2").is_dir());
        }
    }
}

#[test]
fn a_run_with_nothing_but_damaged_checkpoints_does_not_begin_anew() {
    let bench = Bench::new();
    let [_, begun] = stopped_at_8(&bench);
    let directory = |step: u64| begun.out.join(format!("checkpoints/step-{step:08}"));
    DAMAGES[0].1(&directory(6));
    DAMAGES[4].1(&directory(8));
    let [files, log] = [walk(&begun.out), logged(&begun.out)];
    // However often it is started.
    for _ in 0..2 {
        let said = train(&begun).0.unwrap_err().to_string();
        assert!(said.contains("error[no-whole-checkpoint]"), "{said}");
        for part in ["step-00000008: state.json cannot", "step-00000006: model.safetensors is not", "to begin anew"] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!([walk(&begun.out), logged(&begun.out)], [files.clone(), log.clone()]);
    }
    // What was set aside was a checkpoint too.
    fs::remove_dir_all(directory(6)).unwrap();
    fs::rename(directory(8), directory(8).with_extension("damaged")).unwrap();
    let said = train(&begun).0.unwrap_err().to_string();
    assert!(said.contains("step-00000008.damaged: set aside by an earlier run"), "{said}");
}

#[test]
fn what_a_killed_run_did_not_finish_is_no_damage() {
    let bench = Bench::new();
    let [clean, begun] = stopped_at_8(&bench);
    fs::remove_file(begun.out.join("checkpoints/step-00000008/state.json")).unwrap();
    fs::write(begun.out.join("checkpoints/step-00000008/.state.json.tmp"), "{").unwrap();
    let (outcome, events) = train(&begun);
    outcome.unwrap();
    assert!(matches!(events[0], Event::Started { step: 6, .. }), "{:?}", events[0]);
    assert_eq!(warnings(&events), [""; 0]);
    assert_eq!(logged(&clean.out), logged(&begun.out));
}

/// A disk that fails is no damage of the file: nothing is set aside, and the run is not done again from further back.
#[test]
fn what_cannot_be_read_is_an_error() {
    let bench = Bench::new();
    let [_, begun] = stopped_at_8(&bench);
    let file = begun.out.join("checkpoints/step-00000008/optimizer.safetensors");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap(); // can be opened, but not read
    let said = train(&begun).0.unwrap_err().to_string();
    assert!(said.contains("error[io]") && said.contains("optimizer.safetensors"), "{said}");
    assert!(file.is_dir());
}

#[test]
fn a_run_may_go_on_with_other_passes() {
    let bench = Bench::new();
    let [clean, begun] = stopped_at_8(&bench);
    let go_on = |out: &str, settings: Settings| -> (Result<Summary>, Vec<Event>) {
        let run = Run { out: bench.scratch.join(out), settings, ..begun.clone() };
        copy(&begun.out, &run.out);
        train(&run)
    };
    let (outcome, events) = go_on("recomputed", Settings { recompute: true, ..begun.settings.clone() });
    outcome.unwrap();
    assert_eq!(warnings(&events), [""; 0]);
    let mut lines = logged(&bench.scratch.join("recomputed"));
    lines.retain(|line| !line.starts_with("validation 8 ")); // its end came twice
    assert_eq!(lines, logged(&clean.out));

    let (outcome, events) = go_on("smaller", Settings { micro_batch: 256, ..begun.settings.clone() });
    outcome.unwrap();
    assert_eq!(warnings(&events), ["other-passes"]);
    let (whole, parts) = (losses(&train(&bench.run("again", SETTINGS)).1), losses(&events));
    assert_eq!(parts.len(), 4);
    for (one, all) in parts.iter().zip(&whole[8..]) {
        assert!((one - all).abs() < 1e-4, "{one} {all}");
    }
    // Rows are passed as a whole: of 128 tokens, as many fit into 600 as into 512.
    let (_, events) = go_on("same", Settings { micro_batch: 600, ..begun.settings.clone() });
    assert_eq!(warnings(&events), [""; 0]);
}

// ---- Signals -------------------------------------------------------------------------------------------------------

/// Waits until a run has logged so many lines.
fn wait_for(out: &Path, lines: usize, child: &mut Child) {
    let log = out.join("log.jsonl");
    while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < lines {
        assert!(child.try_wait().unwrap().is_none(), "the run is over");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// The step that a run stopped after, as its log says.
fn stopped_after(out: &Path, signal: i32) -> u64 {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["signal"]), (&"stopped".into(), &signal.into()));
    last["step"].as_u64().unwrap()
}

/// That the run in `out`, which was stopped, goes on for three more steps as one that was not.
fn check_goes_on(bench: &Bench, out: &str, settings: &str, step: u64) {
    assert!(bench.scratch.join(out).join(format!("checkpoints/step-{step:08}/state.json")).is_file());
    let [stopped, whole] = [out, "whole"].map(|out| {
        let run = bench.run(out, settings);
        let settings = Settings { steps: step + 3, ..run.settings.clone() };
        train(&Run { settings, ..run.clone() }).0.unwrap();
        run.out
    });
    assert_eq!(logged(&stopped), logged(&whole));
}

/// The same for as long as it takes to stop it, without other checkpoints and validations: digits come before those there are.
fn long(settings: &str) -> String {
    settings.replace("steps = ", "steps = 1000").replace("_every = ", "_every = 1000")
}

#[test]
fn a_signal_stops_a_run_after_its_step() {
    let bench = Bench::new();
    let settings = long(SETTINGS);
    for (out, kill, signal, name) in [("terminated", "-TERM", 15, "SIGTERM"), ("interrupted", "-INT", 2, "SIGINT")] {
        let mut command = bench.program(out, &settings);
        let mut child = command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for(&bench.scratch.join(out), 4, &mut child);
        send(kill, &child);
        let output: Output = child.wait_with_output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(128 + signal), "{said}");
        assert!(
            said.contains(&format!("{name}: the run stops")) && said.contains(&format!("stopped by {name}")),
            "{said}"
        );
        let lines = String::from_utf8(output.stdout).unwrap();
        let events: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(events.iter().any(|event| event["event"] == "stopping"), "{lines}");
        assert_eq!(events.last().unwrap()["stopped"], signal);
        let step = stopped_after(&bench.scratch.join(out), signal);
        if signal == 15 {
            check_goes_on(&bench, out, &settings, step);
        }
    }
}

/// A run that is asked to stop while a step is computed stops after that step; a backend with a queue has the next one in it,
/// which then counts.
fn check_stopped<O: Ops + Send>(last: u64) {
    let bench = Bench::new();
    fs::write(bench.scratch.join("config.json"), CONFIG.replace("\"hidden_size\": 16", "\"hidden_size\": 32")).unwrap();
    let settings = long(IN_PASSES).replace("steps = 10008", "steps = 8");
    let settings = settings.replace("micro_batch = 256", "micro_batch = 128").replace("_step = 1024", "_step = 256");
    let run = bench.run("stopped", &settings);
    let stop = Stop::new(0);
    let mut report = |event: &Event| {
        if let Event::Step { step: 3, .. } = event {
            stop.store(15, Ordering::Relaxed);
        }
    };
    let summary = flanc::train::train::<O>(&run, &mut Ranks::alone(), &stop, &mut report).unwrap();
    assert_eq!((summary.stopped, summary.steps), (Some(15), last));
    assert_eq!(stopped_after(&run.out, 15), last);
    assert!(!run.out.join("model").exists());
    train_on::<O>(&run).0.unwrap();
    let whole = bench.run("whole", &settings);
    train_on::<O>(&whole).0.unwrap();
    assert_eq!(logged(&run.out), logged(&whole.out));
}

#[test]
fn a_run_stops_after_a_step_that_is_known() {
    check_stopped::<Cpu>(4);
    if Simulator::get().is_some() {
        check_stopped::<Cuda<Simulated>>(5);
    }
}

#[test]
fn a_signal_to_one_rank_stops_all() {
    let bench = Bench::new();
    let settings = long(IN_PASSES);
    let mut children = ranks_of(&bench, "ranks", &settings, &[&[], &[]]);
    wait_for(&bench.scratch.join("ranks"), 4, &mut children[0]);
    send("-TERM", &children[1]);
    for output in outputs(children) {
        assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    }
    let step = stopped_after(&bench.scratch.join("ranks"), 15);
    check_goes_on(&bench, "ranks", &settings, step);
}

// ---- What a run says -----------------------------------------------------------------------------------------------

#[test]
fn a_log_says_what_was_trained_with_what_and_when() {
    let bench = Bench::new();
    let run = bench.run("run", SETTINGS);
    train(&run).0.unwrap();
    let log = fs::read_to_string(run.out.join("log.jsonl")).unwrap();
    let started: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(started["event"], "started");
    assert_eq!(started["flanc"], env!("CARGO_PKG_VERSION"));
    assert!(started["device"].as_str().unwrap().starts_with("CPU, "), "{started}");
    assert_eq!((&started["model"]["hidden_size"], &started["model"]["num_hidden_layers"]), (&16.into(), &1.into()));
    assert_eq!(started["settings"]["optimizer"]["learning_rate"], 3e-3);
    assert_eq!(started["settings"]["micro_batch"], 512);
    assert!(started["parameters"].as_u64() > Some(2048 * 16) && started["time"].as_f64() > Some(1.7e9), "{started}");
    let manifest = fs::read_to_string(run.data.join("manifest.json")).unwrap();
    assert!(manifest.contains(started["data"].as_str().unwrap()), "{started}");
}

/// What stderr says before a run is under way, stdout says as JSON.
#[test]
fn ranks_and_warnings_are_events() {
    let bench = Bench::new();
    for (rank, output) in outputs(ranks_of(&bench, "ranks", IN_PASSES, &[&["--json"], &["--json"]])).iter().enumerate()
    {
        let said = String::from_utf8_lossy(&output.stdout);
        let first: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        assert_eq!((&first["event"], &first["rank"], &first["ranks"]), (&"rank".into(), &rank.into(), &2.into()));
    }

    let definitions = bench.scratch.join("definitions/natural-language-inference");
    fs::create_dir_all(&definitions).unwrap();
    let rte = fs::read_to_string("template-defs/natural-language-inference/rte.toml").unwrap();
    let unfiltered: String =
        rte.lines().filter(|line| !line.starts_with("filter")).map(|line| line.to_owned() + "\n").collect();
    fs::write(definitions.join("rte.toml"), unfiltered).unwrap();
    let recipe = bench.scratch.join("recipe.toml");
    fs::write(&recipe, super::RECIPE.replace(", 'trec'", "")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flanc"));
    command.args(["train", "--init", "tiny", "--device", "cpu", "--json", "--steps", "1", "--templates"]);
    command
        .arg(definitions.parent().unwrap())
        .arg("--recipe")
        .arg(&recipe)
        .arg("--out")
        .arg(bench.scratch.join("tiny"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let first: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!((&first["event"], &first["code"]), (&"warning".into(), &"unlabelled".into()));
    assert!(stderr(&output).contains(first["text"].as_str().unwrap()));
}

/// Exit code 1 and a message, and no trace of a run.
fn check_refused(bench: &Bench, command: &mut Command, code: &str) {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains(&format!("error[{code}]")), "{}", stderr(&output));
    assert!(!bench.scratch.join("run").exists());
}

#[test]
fn nothing_is_made_of_what_is_refused() {
    let mut bench = Bench::new();
    let relative = format!("optimizer.relative_step = true\n{}", SETTINGS.replace("schedule.warmup = 2\n", ""));
    check_refused(&bench, bench.program("run", &relative).args(["--learning-rate", "1e-4"]), "idle-option");
    check_refused(&bench, bench.program("run", SETTINGS).args(["--plan", "--memory", "0.001"]), "does-not-fit");
    let data = bench.scratch.join("data");
    fs::rename(&data, bench.scratch.join("dota")).unwrap();
    check_refused(&bench, &mut bench.program("run", SETTINGS), "no-manifest");
    bench.origin = flanc::train::Origin::Checkpoint(bench.scratch.join("model"));
    check_refused(&bench, bench.program("run", SETTINGS).args(["--seed", "1"]), "idle-option");
}
