//! The only module that touches files.
//!
//! Reading maps files into memory; writing goes to a temporary name in the same directory, is synced, and is
//! renamed into place, so that a file under its final name is always whole. An object store needs the same five
//! verbs: map (get), list, write (put), remove, lock.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::diag::{Diagnostic, Result};

/// A file's bytes, mapped. They count as page cache, not as memory of the process.
#[derive(Debug)]
pub struct Mapped(Option<memmap2::Mmap>);

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Maps a file for reading.
///
/// A file that another process shortens while it is mapped ends this one with SIGBUS; exports and finished shards
/// are not written in place by anything known to us.
#[allow(unsafe_code)]
pub fn map(path: &Path) -> Result<Mapped> {
    let file = File::open(path).map_err(|e| failure("read", path, &e))?;
    let length = file.metadata().map_err(|e| failure("read", path, &e))?;
    if length.is_dir() {
        return Err(failure("read", path, &io::Error::from(io::ErrorKind::IsADirectory)));
    }
    if length.len() == 0 {
        return Ok(Mapped(None)); // an empty file cannot be mapped
    }
    // SAFETY: the mapping is private and only read; see above for a file that changes meanwhile.
    let mapped = unsafe { memmap2::Mmap::map(&file) };
    Ok(Mapped(Some(mapped.map_err(|e| failure("map", path, &e))?)))
}

/// Largest text file (definition, recipe, JSON header, tokenizer) that is read into memory.
const TEXT_LIMIT: u64 = 256 << 20;

/// Reads a text file; not UTF-8 and larger than [`TEXT_LIMIT`] are errors.
pub fn read_text(path: &Path) -> Result<String> {
    let size = fs::metadata(path).map_err(|e| failure("read", path, &e))?.len();
    if size > TEXT_LIMIT {
        return Err(Diagnostic::error("file-too-large", "a text file is too large to be read")
            .at(path)
            .expected(format!("at most {TEXT_LIMIT} bytes"))
            .found(format!("{size} bytes"))
            .into());
    }
    let bytes = fs::read(path).map_err(|e| failure("read", path, &e))?;
    String::from_utf8(bytes).map_err(|e| {
        Diagnostic::error("not-utf8", "a text file is not UTF-8")
            .at(path)
            .found(format!("an invalid sequence at byte {}", e.utf8_error().valid_up_to()))
            .into()
    })
}

/// Opens a file to be read line by line.
pub fn open(path: &Path) -> Result<io::BufReader<File>> {
    File::open(path).map(io::BufReader::new).map_err(|e| failure("read", path, &e))
}

/// Size in bytes and time of last change (nanoseconds since 1970), or `None` if there is no such file.
pub fn stamp(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok().filter(|m| m.is_file())?;
    let changed = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((meta.len(), changed.as_nanos() as u64))
}

/// Where a path leads, all links followed; `None` if there is nothing.
pub fn resolved(path: &Path) -> Option<PathBuf> {
    fs::canonicalize(path).ok()
}

/// Entries of a directory by name, sorted; an absent directory is empty. The flag says whether it is a directory.
pub fn list(path: &Path) -> Result<Vec<(String, bool)>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(failure("list", path, &e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| failure("list", path, &e))?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path().is_dir()));
        }
    }
    found.sort();
    Ok(found)
}

/// Every file below `root`, as paths relative to it, sorted.
pub fn walk(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        for (name, is_dir) in list(&root.join(&relative))? {
            let path = relative.join(name);
            if is_dir { open.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

/// A file being written under a temporary name. Dropped before [`Pending::commit`], it leaves nothing behind.
pub struct Pending {
    file: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

/// Names of unfinished files end like this; a run clears those of its predecessors away.
pub const TEMPORARY: &str = ".tmp";

impl Pending {
    pub fn create(path: &Path) -> Result<Pending> {
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(|e| failure("create", directory, &e))?;
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("unnamed");
        let temporary = directory.join(format!(".{name}{TEMPORARY}"));
        let file = File::create(&temporary).map_err(|e| failure("create", &temporary, &e))?;
        Ok(Pending {
            file: BufWriter::with_capacity(1 << 16, file),
            temporary,
            path: path.to_owned(),
            committed: false,
        })
    }

    /// Makes the file whole under its name: flush, fsync, rename, fsync of the directory.
    pub fn commit(mut self) -> Result<()> {
        let commit = || -> io::Result<()> {
            self.file.flush()?;
            self.file.get_ref().sync_all()?;
            fs::rename(&self.temporary, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        let mut commit = commit;
        commit().map_err(|e| failure("write", &self.path, &e))?;
        self.committed = true;
        Ok(())
    }
}

impl Write for Pending {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.temporary); // nothing better can be done while unwinding
        }
    }
}

/// A file for this run alone, which nobody reads after it: neither synced nor renamed.
pub struct Scratch {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Scratch {
    pub fn create(path: &Path) -> Result<Scratch> {
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(|e| failure("create", directory, &e))?;
        let file = File::create(path).map_err(|e| failure("create", path, &e))?;
        Ok(Scratch { file: BufWriter::with_capacity(1 << 16, file), path: path.to_owned() })
    }

    /// Hands what is buffered to the system, so that the file can be mapped.
    pub fn close(mut self) -> Result<()> {
        self.file.flush().map_err(|e| failure("write", &self.path, &e))
    }
}

impl Write for Scratch {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a small file whole.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut pending = Pending::create(path)?;
    pending.write_all(bytes).map_err(|e| failure("write", path, &e))?;
    pending.commit()
}

/// Adds bytes to the end of a file. What is cut off by a crash has to be recognised by whoever reads it.
pub fn append(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(bytes)).map_err(|e| failure("write", path, &e))
}

/// The directory of this user for what can be made again: `$XDG_CACHE_HOME/flanc` or `~/.cache/flanc`. `None`: the
/// environment names neither.
pub fn cache() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    root.is_absolute().then(|| root.join("flanc"))
}

/// Gives a file or directory another name in the same directory, which nothing has.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(Path::new("."));
    let renamed = fs::rename(from, to).and_then(|()| File::open(parent)?.sync_all());
    renamed.map_err(|e| failure("rename", from, &e))
}

/// Removes a file; one that is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failure("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Removes a directory and what is below it; one that is not there is fine.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failure("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Removes the directories below `root` that hold nothing.
pub fn remove_empty_directories(root: &Path) -> Result<()> {
    for (name, is_dir) in list(root)? {
        if is_dir {
            let path = root.join(name);
            remove_empty_directories(&path)?;
            let _ = fs::remove_dir(&path); // fails, rightly, where something is left
        }
    }
    Ok(())
}

/// Held while a run writes below a directory; the operating system lets go of it when the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the lock file, or says that another run has it.
pub fn lock(path: &Path) -> Result<Lock> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(|e| failure("create", directory, &e))?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| failure("create", path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(fs::TryLockError::WouldBlock) => Err(Diagnostic::error("output-busy", "another run is writing here")
            .at(path)
            .help("wait until it has ended, or give this run another --out")
            .into()),
        Err(fs::TryLockError::Error(e)) => Err(failure("lock", path, &e)),
    }
}

/// An I/O error as a diagnostic: what was tried, on which path, and what usually helps.
pub fn failure(verb: &str, path: &Path, error: &io::Error) -> Box<Diagnostic> {
    let diagnostic = Diagnostic::error("io", format!("cannot {verb} {}: {error}", path.display())).at(path);
    Box::new(match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            diagnostic.help("free some space and run the same command again: it goes on where it was")
        }
        io::ErrorKind::PermissionDenied => diagnostic.help("check the owner and the mode of the path"),
        io::ErrorKind::NotFound => diagnostic.help("check the path, and --data-dir or --out"),
        _ => diagnostic,
    })
}
