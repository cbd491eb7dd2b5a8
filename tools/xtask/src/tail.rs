//! What a program said last, kept while it is passed on: of a run of half an hour, people look at the end first, and often
//! have nothing else.

use std::io::{PipeReader, Read, Write};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// So much is kept. The failures of a test binary, with the story of one machine, fit.
const BYTES_MAX: usize = 8 << 10;
/// For the rest to arrive after a program has ended. Nothing comes any more unless something it started lives on.
const REST_MAX: Duration = Duration::from_secs(30);

/// A reader in a thread of its own, which ends with the last writer.
#[derive(Debug)]
pub struct Tail(Receiver<Vec<u8>>);

impl Tail {
    pub fn follow(mut from: PipeReader, mut to: impl Write + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut kept = Vec::new();
            let mut piece = vec![0; BYTES_MAX];
            while let Ok(count @ 1..) = from.read(&mut piece) {
                // Whoever reads along may leave; what is kept is still wanted.
                let _ = to.write_all(&piece[..count]);
                keep(&mut kept, &piece[..count]);
            }
            // Nobody waits any more where REST_MAX was over.
            let _ = sender.send(kept);
        });
        Self(receiver)
    }

    /// The last of it, from the beginning of a line; nothing if something still holds the pipe.
    pub fn finish(self) -> Option<String> {
        let kept = self.0.recv_timeout(REST_MAX).ok()?;
        let text = String::from_utf8_lossy(&kept);
        let whole = match text.split_once('\n') {
            Some((_, rest)) if kept.len() == BYTES_MAX => rest,
            _ => &text,
        };
        Some(whole.to_owned())
    }
}

fn keep(kept: &mut Vec<u8>, piece: &[u8]) {
    kept.extend_from_slice(piece);
    let surplus = kept.len().saturating_sub(BYTES_MAX);
    kept.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail_of(text: &str) -> Option<String> {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let tail = Tail::follow(reader, std::io::sink());
        writer.write_all(text.as_bytes()).unwrap();
        drop(writer);
        tail.finish()
    }

    #[test]
    fn what_is_short_is_kept_whole() {
        assert_eq!(tail_of("one\ntwo"), Some("one\ntwo".into()));
    }

    #[test]
    fn of_much_the_last_lines_are_kept() {
        let lines: Vec<String> = (0..10_000).map(|number| format!("line {number}")).collect();
        let tail = tail_of(&lines.join("\n")).unwrap();
        assert!(tail.len() <= BYTES_MAX && tail.len() > BYTES_MAX / 2);
        assert!(tail.starts_with("line ") && tail.ends_with("line 9999"));
    }
}
