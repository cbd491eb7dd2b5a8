//! For every key what is refused, with the line, the reason and the remedy.

use super::*;

#[test]
fn sections_and_keys_are_known_by_name() {
    refused(
        "[heartbeat]\n",
        "[heartbeat]\nintervall = \"3s\"\n",
        &["did you mean \"interval\"?"],
    );
}
