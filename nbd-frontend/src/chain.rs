//! An error with its causes, as a program prints it when it ends.

use std::error::Error;

/// The messages from the outermost to the first cause. Many of them quote their cause, so that they say what to do next
/// after it and not before; one that has been said is not said again.
pub fn text(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        next = cause.source();
        let message = cause.to_string();
        if text.contains(&message) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&message);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Fault {
        #[error("cannot read it: {source}; look for it")]
        Quoting { source: io::Error },
        #[error("cannot read it")]
        Silent { source: io::Error },
    }

    #[test]
    fn a_cause_is_said_once() {
        let source = || io::Error::other("no such thing");
        for (fault, expected) in [
            (
                Fault::Quoting { source: source() },
                "cannot read it: no such thing; look for it",
            ),
            (
                Fault::Silent { source: source() },
                "cannot read it: no such thing",
            ),
        ] {
            assert_eq!(text(&fault), expected);
        }
    }
}
