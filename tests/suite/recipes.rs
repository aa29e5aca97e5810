//! The plan of every bundled recipe, as `flanc recipe show` prints it: one snapshot each, under
//! `tests/fixtures/recipes/`. Rows are those that definitions publish; no data is read.

use std::process::Command;

use flanc::task::{self, Folder};
use flanc::template::definition::Part;

#[test]
fn plans_of_the_bundled_recipes() {
    let (catalogue, _) = task::load(&Folder::BundledDefinitions, &Folder::BundledSchemas).unwrap();
    let names = flanc::mixture::names(&catalogue);
    assert!(names.len() >= 70, "{names:?}");
    insta::with_settings!({
        snapshot_path => "../fixtures/recipes",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        for name in names {
            let output = Command::new(env!("CARGO_BIN_EXE_flanc")).args(["recipe", "show", &name]).output().unwrap();
            let said = format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
            assert!(output.status.success(), "{name}: {said}");
            let said: Vec<&str> = said.lines().map(str::trim_end).collect();
            insta::assert_snapshot!(name.replace(':', "-"), said.join("\n"));
        }
    });
}

/// What FLAN's own code counts, by split: tasks trained on, and tasks evaluated (google-research/FLAN at e9e4ec6, its
/// splits listed by running it).
#[test]
fn splits_have_as_many_tasks_as_flans() {
    let inter = [
        (58, 11),
        (65, 4),
        (61, 6),
        (65, 4),
        (55, 4),
        (65, 4),
        (66, 3),
        (63, 4),
        (61, 8),
        (66, 3),
        (55, 10),
        (68, 1),
        (67, 2),
        (68, 1),
        (68, 1),
        (68, 1),
        (57, 2),
    ];
    let inter = inter.iter().enumerate().map(|(i, &counts)| (format!("inter-cluster:{i}"), counts));
    let clusters = [11, 19, 25, 29, 33, 36, 38].iter().zip(1..).map(|(&n, i)| (format!("clusters:{i}"), (n, 18)));
    let tasks = [7, 14, 20, 25].iter().zip(1..).map(|(&n, i)| (format!("tasks-per-cluster:{i}"), (n, 18)));
    let others = [("flan".to_owned(), (69, 0)), ("superglue".to_owned(), (61, 8))];
    for (name, (trained, held_out)) in inter.chain(clusters).chain(tasks).chain(others) {
        let plan = show(&name);
        let count = |key: &str| plan[key].as_array().unwrap().len();
        assert_eq!((count("trained"), count("held_out")), (trained, held_out), "{name}");
    }
}

/// On the published counts, 59 tasks have a rate of 1.593 % each and all rates stand for 188,371 examples.
#[test]
fn rates_of_the_full_mixture_are_the_papers() {
    let plan = show("flan");
    let trained = plan["trained"].as_array().unwrap();
    let at_most = trained.iter().filter(|t| (t["rate"].as_f64().unwrap() - 0.015_926).abs() < 1e-6).count();
    assert_eq!(at_most, 59);
    assert_eq!(trained.iter().map(|t| t["in_mixture"].as_u64().unwrap()).sum::<u64>(), 188_371);
}

fn show(recipe: &str) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_flanc")).args(["recipe", "show", recipe, "--json"]).output().unwrap();
    assert!(output.status.success(), "{recipe}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The page on compatibility lists every difference that a definition does.
#[test]
fn differences_are_documented() {
    let page = std::fs::read_to_string("docs/COMPATIBILITY.md").unwrap();
    let (catalogue, _) = task::load(&Folder::BundledDefinitions, &Folder::BundledSchemas).unwrap();
    for task in &catalogue.tasks {
        for difference in &task.definition.flan_v1 {
            let part = match &difference.part {
                Part::Field(name) => format!("`{name}`"),
                Part::Filter => "filter".to_owned(),
                Part::Split(name) => format!("{name} split"),
            };
            let repeated = if difference.value.is_some() { "yes" } else { "no" };
            // Tasks that are `like` another differ as it does.
            let line = format!(" | {part} | {} | {repeated} |", difference.why);
            assert!(page.contains(&line), "{}: {line}", task.name());
        }
    }
}
