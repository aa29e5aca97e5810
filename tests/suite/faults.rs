//! Where the system refuses, a compile says what it refused and on which path, leaves no manifest, and goes on from
//! there when it is run again; and it holds no more memory than it promises.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::compile::{Scratch, bytes, program, repeat_corpus, run, stderr, walk};

const KEYS: &str = "tasks = ['rte', 'glue_mrpc', 'trec']\noutput.shard_tokens = 50_000";

/// The files of a compile that nothing disturbed.
fn undisturbed() -> std::collections::BTreeMap<String, String> {
    let out = Scratch::new();
    run(KEYS, &out);
    bytes(&out)
}

/// A refusal: exit code 1, a message that names the path, no manifest.
fn check_refused(output: &Output, path: &Path, out: &Path) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error["), "{said}");
    assert!(said.contains(path.to_str().unwrap()), "{} is not named in: {said}", path.display());
    assert!(output.stdout.is_empty());
    assert!(!out.join("manifest.json").is_file());
}

#[test]
fn a_file_where_a_directory_should_be() {
    let expected = undisturbed();
    for in_the_way in ["", ".flanc", ".flanc/receipts", ".flanc/runs", "tasks", "tasks/rte", "mixture"] {
        let scratch = Scratch::new();
        let out = scratch.join("out");
        let file = if in_the_way.is_empty() { out.clone() } else { out.join(in_the_way) };
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "in the way").unwrap();
        let mut command = program(KEYS, &scratch, "data".as_ref(), &out);
        check_refused(&command.output().unwrap(), &file, &out);
        fs::remove_file(&file).unwrap();
        assert!(command.output().unwrap().status.success());
        assert_eq!(bytes(&out), expected, "{in_the_way}");
    }
}

#[test]
fn a_directory_where_a_file_should_be() {
    let expected = undisturbed();
    for in_the_way in
        [".flanc/lock", "manifest.json", "README.md", "tokenizer.json", "tasks/rte/train-00000-of-00001.parquet"]
    {
        let scratch = Scratch::new();
        let out = scratch.join("out");
        fs::create_dir_all(out.join(in_the_way).join("with")).unwrap();
        fs::write(out.join(in_the_way).join("with/a.parquet"), "something in it").unwrap();
        let mut command = program(KEYS, &scratch, "data".as_ref(), &out);
        check_refused(&command.output().unwrap(), &out.join(in_the_way), &out);
        fs::remove_dir_all(out.join(in_the_way)).unwrap();
        assert!(command.output().unwrap().status.success());
        assert_eq!(bytes(&out), expected, "{in_the_way}");
    }
}

#[test]
fn a_directory_that_must_not_be_written() {
    let scratch = Scratch::new();
    let out = scratch.join("closed");
    fs::create_dir(&out).unwrap();
    let mut command = program(KEYS, &scratch, "data".as_ref(), &out.join("out"));
    fs::set_permissions(&out, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::metadata(&out).unwrap().uid() == 0 {
        command.uid(65534).gid(65534); // to root nothing is closed
    }
    match command.output() {
        Ok(output) => check_refused(&output, &out.join("out"), &out.join("out")),
        Err(error) => println!("skipped: nobody cannot run the program: {error}"),
    }
}

#[test]
fn a_limit_on_the_size_of_files() {
    let expected = undisturbed();
    let mut refused = 0;
    for blocks in [1, 4, 16, 48] {
        let scratch = Scratch::new();
        let out = scratch.join("out");
        let flanc = program(KEYS, &scratch, "data".as_ref(), &out);
        let limited = |signal: &str| {
            let mut shell = Command::new("bash");
            shell.arg("-c").arg(format!("{signal} ulimit -f {blocks}; exec \"$0\" \"$@\""));
            shell.arg(flanc.get_program()).args(flanc.get_args()).output().unwrap()
        };
        // With the signal that the limit sends ignored, the write fails.
        let output = limited("trap '' XFSZ;");
        if !output.status.success() {
            check_refused(&output, &out, &out);
            refused += 1;
        }
        // Otherwise it is a way of being killed.
        limited("");
        assert!(program(KEYS, &scratch, "data".as_ref(), &out).output().unwrap().status.success());
        assert_eq!(bytes(&out), expected, "{blocks} KiB");
    }
    assert!(refused > 1, "{refused}");
}

/// A file system of a given size, if this user may make one.
struct Small<'s>(&'s Path);

impl Small<'_> {
    fn mount<'s>(at: &'s Path, options: &str) -> Option<Small<'s>> {
        fs::create_dir_all(at).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Small(at))
    }

    fn resize(&self, options: &str) {
        let remount = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.0).status();
        assert!(remount.unwrap().success());
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk() {
    let expected = undisturbed();
    let mut refused = 0;
    for kib in [8, 40, 100, 200, 320, 440, 600, 900] {
        let scratch = Scratch::new();
        let disk = scratch.join("disk");
        let Some(small) = Small::mount(&disk, &format!("size={kib}k")) else {
            println!("skipped: no file system may be mounted here");
            return;
        };
        let out = disk.join("out");
        let mut command = program(KEYS, &scratch, "data".as_ref(), &out);
        let output = command.output().unwrap();
        if !output.status.success() {
            check_refused(&output, &out, &out);
            assert!(stderr(&output).contains("help: free some space and run the same command again"));
            // Nothing half written is left under any name.
            let left: Vec<String> = walk(&out).into_iter().filter(|file| file.ends_with(".tmp")).collect();
            assert!(left.is_empty(), "{left:?}");
            refused += 1;
        }
        small.resize("size=64m");
        assert!(command.output().unwrap().status.success());
        assert_eq!(bytes(&out), expected, "{kib} KiB");
    }
    assert!(refused > 3, "{refused}");
}

/// No more than 256 MiB and 96 MiB a thread, whatever the size of the corpora.
#[test]
fn memory_is_bounded() {
    let (scratch, data) = (Scratch::new(), Scratch::new());
    for corpus in ["super_glue/multirc", "aeslc", "imdb_reviews"] {
        repeat_corpus(corpus, 40, &data);
    }
    let keys = "tasks = ['multirc', 'aeslc', 'imdb_reviews']\nkinds = ['original']";
    let out = scratch.join("out");
    let mut child = program(keys, &scratch, &data, &out).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        // Mapped files are page cache; what counts is what the process itself holds.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let held = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = held.and_then(|held| held.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0);
        most = most.max(kib);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    println!("{} MiB held at most", most >> 10);
    assert!(most > 0 || !Path::new("/proc/self/status").exists());
    assert!(most >> 10 < 256 + 2 * 96, "{} MiB", most >> 10);
}
