//! Every warning: a file that earns it, beside the good one, which earns none.

use super::*;

#[test]
fn a_file_with_everything_earns_no_warning() {
    let found = parse(GOOD).unwrap().warnings;
    assert!(found.is_empty(), "{found:?}");
}
