//! One file that lines are appended to. Whole lines only, by one write each (O_APPEND), so that a reader
//! or a second writer never sees half of one; a file that was moved away or removed is opened anew.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    /// A line was cut off by a full disk: the next one begins on a line of its own.
    torn: bool,
    /// Lines that are not in the file since it could last be written.
    missing: u64,
    trouble: Option<String>,
}

impl LogFile {
    /// It is opened at the first line.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            torn: false,
            missing: 0,
            trouble: None,
        }
    }

    /// Writes `line` and its newline. A failure is kept for [`Self::trouble`], and the next line is tried
    /// again.
    pub fn append(&mut self, line: &str) {
        match self.write(line) {
            Ok(()) => {
                if self.missing > 0 {
                    tracing::warn!("{} lacks {} lines", self.path.display(), self.missing);
                }
                self.missing = 0;
                self.trouble = None;
            }
            Err(error) => {
                self.missing += 1;
                self.trouble = Some(format!(
                    "the alert log {} cannot be written: {error}; make room or mend the path",
                    self.path.display()
                ));
            }
        }
    }

    /// Why the last line is not in the file.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }

    /// The next line opens it anew.
    pub fn close(&mut self) {
        self.file = None;
    }

    pub fn sync(&mut self) {
        if let Some(file) = &self.file {
            // The lines are written; a disk that cannot make them durable fails the next write.
            let _ = file.sync_data();
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.moved_away() {
            self.file = None;
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = self.open()?;
                self.torn = false;
                file
            }
        };
        let before = if self.torn { "\n" } else { "" };
        let whole = format!("{before}{line}\n");
        let written = match file.write(whole.as_bytes()) {
            Ok(written) if written == whole.len() => Ok(()),
            Ok(written) => {
                self.torn |= written > 0;
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            Err(error) => Err(error),
        };
        if written.is_ok() {
            self.torn = false;
        }
        self.file = Some(file);
        written
    }

    /// The path leads to another file than the open one, or to none.
    fn moved_away(&self) -> bool {
        let Some(file) = &self.file else {
            return false;
        };
        let identity = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        match (file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(open), Ok(named)) => identity(open) != identity(named),
            _ => true,
        }
    }

    fn open(&self) -> io::Result<File> {
        if let Some(folder) = self.path.parent()
            && !folder.as_os_str().is_empty()
        {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)?;
        }
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn lines_are_appended_to_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/alert.log");
        let mut log = LogFile::new(path.clone());
        log.append("one");
        log.append("two");
        let mut second = LogFile::new(path.clone());
        second.append("three");
        log.append("four");
        assert_eq!(fs::read_to_string(path).unwrap(), "one\ntwo\nthree\nfour\n");
    }

    #[test]
    fn a_file_that_was_moved_away_or_removed_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("alert.log");
        let moved = folder.path().join("alert.log.1");
        let mut log = LogFile::new(path.clone());
        log.append("one");
        fs::rename(&path, &moved).unwrap();
        log.append("two");
        assert_eq!(fs::read_to_string(&moved).unwrap(), "one\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        fs::remove_file(&path).unwrap();
        log.append("three");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_full_disk_is_trouble_until_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("alert.log");
        symlink("/dev/full", &path).unwrap();
        let mut log = LogFile::new(path.clone());
        log.append("lost");
        let trouble = log.trouble().unwrap();
        assert!(
            trouble.contains("alert.log") && trouble.contains("No space left"),
            "{trouble}"
        );
        fs::remove_file(&path).unwrap();
        log.append("kept");
        assert_eq!(log.trouble(), None);
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept\n");
    }

    #[test]
    fn a_line_after_a_torn_one_stands_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("alert.log");
        let mut log = LogFile::new(path.clone());
        log.append("one");
        fs::write(&path, "one\ntw").unwrap();
        log.torn = true;
        log.append("three");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntw\nthree\n");
    }
}
