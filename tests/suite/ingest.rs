//! Reading corpora: the rows that TensorFlow Datasets decodes, and for what is wrong a report that helps.
//!
//! Some tests read the exports that the project is developed with, in `../shared/corpora`, and are skipped where those
//! are absent; each has a twin that needs no more than `data/`.

use std::fs;
use std::path::{Path, PathBuf};

use flanc::diag::Diagnostic;
use flanc::ingest::Corpus;
use flanc::ingest::splits::Part;

/// Corpora with something wrong in them: what is said about each.
mod bad;
/// Rows of random feature trees, encoded here and decoded there.
mod decode;
/// `tf.train.Example` as protobuf's own derive has it; and the difference between two parsers, which is none.
mod example;
/// Rows of whole corpora, against what TFDS made of them.
mod golden;
/// Names, versions, configs, data directories, file names, labels, sub-splits.
mod headers;
/// features.json in its spellings, and trees that differ or make no sense.
mod schema;
/// TFRecord files, bit by bit.
mod tfrecord;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The exports that the project is developed with.
pub fn shared_corpora() -> Option<PathBuf> {
    let path = root().join("../shared/corpora");
    if !path.is_dir() {
        println!("skipped: ../shared/corpora is absent");
        return None;
    }
    Some(path)
}

/// An empty directory for a test to write in; `name` keeps tests apart.
fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ingest").join(name);
    let _ = fs::remove_dir_all(&path); // of an earlier run, if there was one
    fs::create_dir_all(&path).unwrap();
    path
}

/// Calls `row` with the canonical line of each row of `parts` that can be decoded, and returns what is said of the others.
fn read(corpus: &Corpus, parts: &[Part], mut row: impl FnMut(&str)) -> Vec<Diagnostic> {
    let decoder = corpus.decoder(None).unwrap();
    let (mut said, mut damaged) = (Vec::new(), Vec::new());
    let mut line = String::new();
    for part in parts {
        match corpus.damage(part) {
            Ok(damage) => said.extend(damage.into_iter().map(|d| d.diagnostic.clone())),
            Err(refusal) => {
                said.push(*refusal);
                continue;
            }
        }
        let visited = corpus.visit(
            part,
            &|_| true,
            &mut |raw| {
                let mut oddities = Vec::new();
                match decoder.decode(raw.payload, &mut oddities) {
                    Ok(datum) => {
                        line.clear();
                        datum.write_canonical(&mut line);
                        row(&line);
                    }
                    Err(error) => said.push(raw.error(error)),
                }
                said.extend(oddities.iter().map(|oddity| raw.oddity(oddity)));
                Ok(())
            },
            &mut |damage| {
                damaged.push(damage.diagnostic);
                Ok(())
            },
        );
        visited.unwrap();
    }
    said.extend(damaged);
    said
}

/// Where snapshots lie: `tests/fixtures/ingest`, or a folder of it.
fn settings(folder: &str) -> insta::Settings {
    let mut settings = insta::Settings::new();
    settings.set_snapshot_path(root().join("tests/fixtures/ingest").join(folder));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}
