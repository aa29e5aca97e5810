//! What flanc says about recipes and definitions, by fixtures: `tests/fixtures/{recipe,definitions}/*.toml`, and
//! beside each what is said about it.
//!
//! A recipe is read and planned with the bundled definitions over `data/`, or over the directory that a comment
//! `# data-dir: …` in it names. A definition is loaded and planned in the same way; if there is a folder `<name>.d`
//! beside it, its `*.toml` are loaded too, and its `features.json` takes the place of the corpus's own. To add a test,
//! add a file and accept its snapshot.

use std::fs;
use std::path::{Path, PathBuf};

use flanc::diag::{Diagnostic, Source};
use flanc::mixture;
use flanc::plan::{Role, plan};
use flanc::task::{self, Catalogue, Folder};

use super::compile::{Scratch, copy_tree};

#[test]
fn recipes() {
    let (catalogue, _) = task::load(&Folder::BundledDefinitions, &Folder::BundledSchemas).unwrap();
    check("recipe", |path, text| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let data = text.lines().find_map(|l| l.strip_prefix("# data-dir: ")).unwrap_or("data");
        planned(name, text, &catalogue, Path::new(data))
    });
}

#[test]
fn definitions() {
    check("definitions", |path, text| {
        let scratch = Scratch::new();
        let (definitions, data) = (scratch.join("defs"), scratch.join("data"));
        let name = path.file_name().unwrap();
        fs::create_dir_all(&definitions).unwrap();
        fs::write(definitions.join(name), text).unwrap();
        copy_tree(Path::new("data/super_glue"), &data.join("super_glue"));
        for extra in fs::read_dir(path.with_extension("d")).into_iter().flatten() {
            let extra = extra.unwrap();
            let to = match extra.file_name().to_str().unwrap() {
                "features.json" => data.join("super_glue/rte/1.0.2/features.json"),
                other => definitions.join(other),
            };
            fs::copy(extra.path(), to).unwrap();
        }
        let said = match task::load(&Folder::Directory(definitions), &Folder::BundledSchemas) {
            Err(errors) => rendered(&errors),
            Ok((catalogue, warnings)) => {
                let recipe = "[tokenizer]\nfile = 'data/tokenizer.json'";
                rendered(&warnings) + &planned("recipe.toml", recipe, &catalogue, &data)
            }
        };
        said.replace(scratch.to_str().unwrap(), "…")
    });
}

/// Compares what is said about each fixture of a folder with its snapshot. One whose name begins with `fine-` gives no
/// error.
fn check(folder: &str, said_about: impl Fn(&Path, &str) -> String) {
    insta::with_settings!({
        snapshot_path => format!("../fixtures/{folder}"),
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::glob!("../fixtures", &format!("{folder}/*.toml"), |path| {
            let said = said_about(path, &fs::read_to_string(path).unwrap());
            let fine = path.file_name().unwrap().to_str().unwrap().starts_with("fine-");
            assert_eq!(fine, !said.contains("error["), "{said}");
            // An empty label leaves a blank at the end of its line.
            let said: Vec<&str> = said.lines().map(str::trim_end).collect();
            insta::assert_snapshot!("said", said.join("\n"));
        });
    });
}

/// Reads and plans a recipe; says what was found wrong, and which tasks play which part.
fn planned(name: &str, text: &str, catalogue: &Catalogue, data: &Path) -> String {
    let (recipe, mut warnings) = match mixture::read(&Source::new(name, text), Path::new(""), catalogue) {
        Ok(read) => read,
        Err(errors) => return rendered(&errors),
    };
    let plan = match plan(recipe, catalogue, &[PathBuf::from(data)]) {
        Ok(plan) => plan,
        Err(errors) => return rendered(&errors),
    };
    warnings.extend(plan.warnings.iter().cloned());
    let mut said = rendered(&warnings);
    for (role, label) in [(Role::Trained, "trained"), (Role::HeldOut, "held out")] {
        let of_role = plan.tasks.iter().filter(|t| t.role == role);
        let tasks: Vec<String> = of_role
            .map(|t| {
                let splits: Vec<String> = t.splits.iter().map(|s| format!("{} {}", s.name.name(), s.rows)).collect();
                format!("{} ({}; {} templates)", t.task.name(), splits.join(", "), t.templates.len())
            })
            .collect();
        said.push_str(&format!("{label}: {}\n", if tasks.is_empty() { "none".to_owned() } else { tasks.join(", ") }));
    }
    for skipped in &plan.skipped {
        let split = skipped.split.map_or(String::new(), |s| format!(", {}", s.name()));
        said.push_str(&format!("skipped {}{split}: {}\n", skipped.task, skipped.reason));
    }
    said
}

fn rendered(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(|d| format!("{d}\n")).collect()
}
